"""Structural similarity (Section 4.1; Wang et al. 2004), for whole sets of clips."""

from __future__ import annotations

import operator
from functools import reduce

import numpy as np

WINDOW = 7  # pixels, uniform: the defaults of skimage, which the paper's peers use
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Structural similarity of each decoded frame with its true frame.

    It equals ``skimage.metrics.structural_similarity(data_range=255, channel_axis=-1)`` with everything else default
    (7 x 7 uniform window, sample covariance, mean over the interior and the channels), the code of the paper's peers.

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
    pairs = zip(truth.reshape(-1, *truth.shape[2:]), decoded.reshape(-1, *truth.shape[2:]), strict=True)
    # One frame at a time stays in the processor's cache: as fast as larger chunks, in constant memory.
    scores = [similarity_map(x, y).mean() for x, y in pairs]
    return np.array(scores, dtype=np.float64).reshape(clips, frames)


def similarity_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Local SSIM of two uint8 frames (height, width, channels) at every whole window: (height - 6, width - 6, ...)."""
    n = WINDOW**2
    x, y = x.astype(np.int32), y.astype(np.int32)
    # Sums of integers are exact; only the last formula is in floating point.
    sum_x, sum_y = window_sums(x), window_sums(y)
    mean_x, mean_y = sum_x / n, sum_y / n
    variance_x = (window_sums(x * x) - sum_x * mean_x) / (n - 1)
    variance_y = (window_sums(y * y) - sum_y * mean_y) / (n - 1)
    covariance = (window_sums(x * y) - sum_x * mean_y) / (n - 1)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return luminance * structure


def window_sums(image: np.ndarray) -> np.ndarray:
    """Sums over every 7 x 7 window that lies in the image: (height, width, ...) to (height - 6, width - 6, ...)."""
    height, width = image.shape[0] - WINDOW + 1, image.shape[1] - WINDOW + 1
    rows = reduce(operator.add, (image[k : k + height] for k in range(WINDOW)))
    return reduce(operator.add, (rows[:, k : k + width] for k in range(WINDOW)))
