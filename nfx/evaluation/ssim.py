"""Structural similarity (Section 4.1; Wang et al. 2004), for whole sets of clips."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

WINDOW = 7  # pixels, uniform: the defaults of skimage, which the paper's peers use
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
STRIP = 64  # rows of a frame taken at a time, so that their sums stay in the processor's cache


def ssim(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Structural similarity of each decoded frame with its true frame.

    It equals ``skimage.metrics.structural_similarity(data_range=255, channel_axis=-1)`` with everything else default
    (7 x 7 uniform window, sample covariance, mean over the interior and the channels), the code of the paper's peers.
    Frames are shared among as many threads as torch uses; a frame's score does not depend on their number.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)

    Returns
    -------
    float64 (clips, frames)

    Raises
    ------
    ValueError
        If shapes differ, the type is not uint8, or a frame is smaller than the window.
    """
    import torch

    truth, decoded = np.asarray(truth), np.asarray(decoded)
    if truth.shape != decoded.shape:
        raise ValueError(f"truth {truth.shape} and decoded {decoded.shape} differ in shape: give the same clips")
    for name, clips in (("truth", truth), ("decoded", decoded)):
        if clips.dtype != np.uint8:
            raise ValueError(f"{name} is {clips.dtype}, expected uint8 in 0..255: scale and round the frames first")
    if truth.ndim != 5:
        raise ValueError(f"clips have shape {truth.shape}, expected (clips, frames, height, width, channels)")
    if min(truth.shape[2:4]) < WINDOW:
        raise ValueError(f"frames of {truth.shape[2:4]} pixels are smaller than the {WINDOW} x {WINDOW} window")

    clips, frames = truth.shape[:2]
    pairs = truth.reshape(-1, *truth.shape[2:]), decoded.reshape(-1, *truth.shape[2:])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy lets go of the interpreter while it computes
        scores = list(pool.map(_mean_similarity, *pairs))
    return np.array(scores, dtype=np.float64).reshape(clips, frames)


def _mean_similarity(x: np.ndarray, y: np.ndarray) -> float:
    return similarity_map(x, y).mean()


def similarity_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Local SSIM of two uint8 frames (height, width, channels) at every whole window.

    Returns
    -------
    float64 (height - 6, width - 6, channels)
    """
    height, width, channels = x.shape
    found = np.empty((height - WINDOW + 1, width - WINDOW + 1, channels))
    for top in range(0, len(found), STRIP):
        rows = slice(top, min(top + STRIP, len(found)) + WINDOW - 1)
        found[top : top + STRIP] = _strip_map(x[rows].astype(np.int32), y[rows].astype(np.int32))
    return found


def _strip_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`similarity_map` of int32 (height, width, channels), all at once and with few temporary arrays."""
    n, shape = WINDOW**2, (len(x) - WINDOW + 1, *x.shape[1:])
    # Sums of integers are exact; only what follows is in floating point.
    sum_x, sum_y = window_sums(x), window_sums(y)
    mean_x, mean_y = sum_x / n, sum_y / n
    product = sum_x * mean_x
    structure = _unbiased(window_sums(x * x), product)  # variance of x + variance of y + C2, for now
    structure += _unbiased(window_sums(y * y), np.multiply(sum_y, mean_y, out=product))
    structure += C2
    covariance = _unbiased(window_sums(x * y), np.multiply(sum_x, mean_y, out=product))
    covariance *= 2
    covariance += C2
    structure = np.divide(covariance, structure, out=structure)
    luminance = np.multiply(mean_x, mean_y, out=product)
    luminance *= 2
    luminance += C1
    mean_x *= mean_x
    mean_y *= mean_y
    mean_x += mean_y
    mean_x += C1
    luminance /= mean_x
    similarity = np.empty(shape)
    np.multiply(luminance, structure, out=similarity.reshape(-1)[: len(luminance)])
    return similarity[:, : x.shape[1] - WINDOW + 1]


def _unbiased(squares: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Sample variance or covariance, in place, from the sums of squares or products and the sum times the mean."""
    squares -= product
    squares /= WINDOW**2 - 1
    return squares


def window_sums(image: np.ndarray) -> np.ndarray:
    """Sums over every 7 x 7 window of an int32 image (height, width, channels), as float64 in one row.

    Its first ((height - 6) * width - 6) * channels entries, with the windows that run over the right edge into the next
    row: shifts of one long row are faster, and these are dropped in the end.
    """
    columns = _sums_of_seven(image.reshape(-1), image.shape[1] * image.shape[2])
    return _sums_of_seven(columns, image.shape[2]).astype(np.float64)


def _sums_of_seven(values: np.ndarray, step: int) -> np.ndarray:
    """Sums of values[k], values[k + step], ..., values[k + 6 step], for every k: (n,) to (n - 6 step,)."""
    count = len(values) - 6 * step
    pairs = values[:-step] + values[step:]
    sums = pairs[:count] + pairs[2 * step : 2 * step + count]
    sums += pairs[4 * step : 4 * step + count]
    sums += values[6 * step :]
    return sums
