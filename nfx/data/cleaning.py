"""Trimming, detrending and z-scoring of one run (Section 4.2; the published data set's own procedure).

Recordings of another layout or repetition time are resampled to the film's clips instead of trimmed.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nfx.data.stimuli import CLIP_SECONDS

LAST_DROPPED = 4  # volumes of the static picture after the film
FIRST_DROPPED = (1, 2)  # runs of 245 and of 246 volumes
DEGREE = 4
ROUNDING = 1e-6  # s by which sums of repetition times may miss the film's end
BLOCK = 256  # columns cleaned at a time, so that float64 work stays in the cache


def clean_run(bold: np.ndarray, volumes: int = 240) -> np.ndarray:
    """Trim a run to its film, remove slow drift, and z-score every column.

    After the trimming, volume k was acquired from 4 s to 6 s after clip k began, in runs of 245 and of
    246 volumes alike: the haemodynamic delay is inside, and nothing must be shifted again.

    Parameters
    ----------
    bold : array of shape (volumes + 5 or volumes + 6, grayordinates)
    volumes : int
        Volumes to keep: the number of 2-s clips of the film.

    Returns
    -------
    array of shape (volumes, grayordinates), float32
        Mean 0 and standard deviation 1 (ddof 1) in each column; a column without any signal is 0.

    Raises
    ------
    ValueError
        If the number of volumes does not fit, or a value is not finite.

    Warns
    -----
    RuntimeWarning
        If columns are constant, saying how many.
    """
    cleaned, constant = detrend_and_z_score(trim(bold, volumes))
    warn_of_constant(constant)
    return cleaned


def warn_of_constant(constant: np.ndarray) -> None:
    """Warn the caller's caller if columns, bool (grayordinates,), are constant, saying how many."""
    if constant.any():
        warnings.warn(
            f"{int(constant.sum())} of {constant.size} columns are constant (up to a slow drift) and were set to 0",
            RuntimeWarning,
            stacklevel=3,
        )


def trim(bold: np.ndarray, volumes: int = 240) -> np.ndarray:
    """Drop the last 4 volumes, and the first 1 or 2 so that `volumes` remain: (volumes, grayordinates), a view.

    Raises
    ------
    ValueError
        If the run has not so many volumes that 1 or 2 are left to drop at the start, or is not a matrix.
    """
    bold = np.asarray(bold)
    if bold.ndim != 2:
        raise ValueError(f"A run has the shape (volumes, grayordinates), not {bold.shape}")
    first = len(bold) - LAST_DROPPED - volumes
    if first not in FIRST_DROPPED:
        raise ValueError(
            f"The run has {len(bold)} volumes; {volumes + LAST_DROPPED + FIRST_DROPPED[0]} or "
            f"{volumes + LAST_DROPPED + FIRST_DROPPED[1]} were expected, to keep {volumes} after dropping the first "
            f"1 or 2 and the last 4. Check the file and the profile's number of volumes"
        )
    return bold[first : first + volumes]


def clip_weights(volumes: int, repetition_time: float, start: float, clips: int) -> np.ndarray:
    """Weights that average the volumes of a recording to the film's clips, by how long they overlap.

    Volume j was acquired from j TR to (j + 1) TR; to clip k go the 2 s from `start` + 2 k on. With a repetition time of
    2 s and a start on a volume, each row picks one volume: the published trimming.

    Parameters
    ----------
    volumes : int
    repetition_time : float
        TR, s.
    start : float
        Onset of the film in the recording plus the haemodynamic delay, s.
    clips : int
        Of 2 s.

    Returns
    -------
    array of shape (clips, volumes), float64
        Rows sum to 1.

    Raises
    ------
    ValueError
        If the recording begins after the first clip's 2 s do, or ends before the last clip's.
    """
    end, needed = volumes * repetition_time, start + clips * CLIP_SECONDS
    if start < -ROUNDING:
        raise ValueError(
            f"The film's first clip needs what was acquired {-start:g} s before the recording begins (onset plus delay "
            f"is {start:g} s); correct the onset or the delay, or exclude the run"
        )
    if needed > end + ROUNDING:
        raise ValueError(
            f"The run ends before the film does: {volumes} volumes of {repetition_time:g} s last {end:g} s, and "
            f"{clips} clips with onset and delay need {needed:g} s; correct the events or exclude the run"
        )
    volume = np.arange(volumes) * repetition_time
    clip = (start + np.arange(clips) * CLIP_SECONDS)[:, None]
    overlap = np.minimum(volume + repetition_time, clip + CLIP_SECONDS) - np.maximum(volume, clip)
    overlap = np.maximum(overlap, 0)
    return overlap / overlap.sum(axis=1, keepdims=True)


def resample(bold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of volumes: (volumes, grayordinates) by weights (clips, volumes) to (clips, grayordinates),
    float32."""
    resampled = np.empty((len(weights), bold.shape[1]), np.float32)
    for start in range(0, bold.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        resampled[:, part] = weights @ bold[:, part].astype(np.float64)
    return resampled


def average_volumes(bold: np.ndarray, count: int) -> np.ndarray:
    """Means of `count` consecutive volumes: (volumes, grayordinates) to (volumes // count, grayordinates), same type.

    What is left over at the end is dropped; with a count of 1 nothing is done.

    Raises
    ------
    ValueError
        If there are fewer volumes than `count`.
    """
    if count == 1:
        return bold
    samples = len(bold) // count
    if samples == 0:
        raise ValueError(f"The recording has {len(bold)} volumes; {count} are averaged to one sample")
    means = bold[: samples * count].reshape(samples, count, -1).mean(axis=1, dtype=np.float64)
    return means.astype(bold.dtype)


def polynomial_basis(volumes: int, degree: int = DEGREE) -> np.ndarray:
    """Orthonormal basis, (volumes, degree + 1) float64, of the polynomials in t from 0 to 1.

    Raises
    ------
    ValueError
        If there are too few volumes for the degree.
    """
    if volumes <= degree + 1:
        raise ValueError(f"{volumes} volumes cannot be detrended with a polynomial of degree {degree}")
    return np.linalg.qr(np.vander(np.linspace(0, 1, volumes), degree + 1, increasing=True))[0]


def detrend_and_z_score(bold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove each column's polynomial of degree 4 (least squares, float64) and divide by its deviation (ddof 1).

    Parameters
    ----------
    bold : array of shape (volumes, grayordinates)

    Returns
    -------
    cleaned : array of shape (volumes, grayordinates), float32
    constant : array of shape (grayordinates,), bool
        Columns in which nothing but rounding is left; they are 0 in `cleaned`.
    """
    volumes, columns = bold.shape
    basis = polynomial_basis(volumes)
    # What rounding of the input and of the projection leaves of a column that is a polynomial.
    kind = bold.dtype if np.issubdtype(bold.dtype, np.floating) else np.dtype(np.float64)
    rounding = max(float(np.finfo(kind).eps), 16 * float(np.finfo(np.float64).eps))
    cleaned = np.empty((volumes, columns), np.float32)
    constant = np.zeros(columns, bool)

    def clean(start: int) -> None:
        part = slice(start, start + BLOCK)
        x = bold[:, part].astype(np.float64)
        size = np.maximum(x.max(axis=0), -x.min(axis=0))
        if not np.isfinite(size).all():
            raise ValueError("The run holds values that are NaN or infinite; expected finite BOLD values")
        x -= basis @ (basis.T @ x)
        deviation = np.sqrt(np.einsum("tc,tc->c", x, x) / (volumes - 1))
        constant[part] = deviation <= rounding * size
        x *= np.where(constant[part], 0.0, 1 / np.where(constant[part], 1.0, deviation))
        cleaned[:, part] = x

    with ThreadPoolExecutor(_cores()) as pool:  # a column does not depend on the others
        list(pool.map(clean, range(0, columns, BLOCK)))
    return cleaned, constant


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
