"""Windows of neighbouring volumes (Section 3.1.1) and the hold-out of whole segments (Section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def windows(fmri: np.ndarray, segment: np.ndarray, window: int) -> np.ndarray:
    """The sliding window v_t, ..., v_{t+w-1} of Section 3.1.1, one for each clip t.

    A window never crosses a segment: at a segment's end its last volume is repeated.

    Parameters
    ----------
    fmri : array of shape (clips, voxels)
    segment : array of shape (clips,), int
        Segment of each row; the rows of a segment follow one another.
    window : int
        w, volumes of a window.

    Returns
    -------
    array of shape (clips, window, voxels), the type of `fmri`

    Raises
    ------
    ValueError
        If there is not one segment a row, the rows of a segment are apart, or the window is empty.
    """
    fmri, segment = np.asarray(fmri), np.asarray(segment)
    if fmri.ndim != 2 or segment.shape != (len(fmri),):
        raise ValueError(f"Expected (clips, voxels) and a segment per clip; got {fmri.shape} and {segment.shape}")
    if window < 1:
        raise ValueError(f"A window has one volume or more, not {window}")
    begins = np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]])[: len(fmri)]
    if len(np.unique(segment)) != len(begins):
        raise ValueError("The rows of a segment must follow one another; some segment comes in two places")
    ends = np.r_[begins[1:], len(fmri)]
    last = np.repeat(ends - 1, ends - begins)  # last row of each row's segment
    rows = np.minimum(np.arange(len(fmri))[:, None] + np.arange(window), last[:, None])
    return fmri[rows]


def time_average(windows: np.ndarray) -> np.ndarray:
    """The time-averaged control of Section 5.2: each window's mean, repeated w times; (..., window, voxels) kept."""
    windows = np.asarray(windows)
    return np.broadcast_to(windows.mean(axis=-2, keepdims=True, dtype=np.float64), windows.shape).astype(windows.dtype)


def split(segment: np.ndarray, validation_segments: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Hold out whole segments: neighbouring clips share a scene, and would otherwise be on both sides.

    Parameters
    ----------
    segment : array of shape (clips,), int
    validation_segments : segments to hold out

    Returns
    -------
    train_index, validation_index : arrays of int
        Clips of the two parts, in order.

    Raises
    ------
    ValueError
        If a held-out segment does not exist, or nothing is left to train on.
    """
    segment, held_out = np.asarray(segment), sorted(set(validation_segments))
    absent = [number for number in held_out if number not in segment]
    if absent:
        raise ValueError(f"validation_segments names {absent}; there are segments {np.unique(segment).tolist()}")
    mask = np.isin(segment, held_out)
    if mask.all():
        raise ValueError(f"validation_segments {held_out} leaves no segment to train on")
    return np.flatnonzero(~mask), np.flatnonzero(mask)
