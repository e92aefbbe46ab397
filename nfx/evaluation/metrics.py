"""Scores beside SSIM and accuracy: pixels (PSNR), motion, and steadiness from frame to frame.

Each is defined here once, and next to it how the peers' number of the same name differs. None of them says that a clip
was decoded: read each beside the same score of decoders that see no brain (`nfx.evaluation.references`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nfx.evaluation.controls import block_bootstrap


def psnr(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each decoded frame, 20 log10(255 / root mean squared error), in dB.

    It equals ``skimage.metrics.peak_signal_noise_ratio(data_range=255)``; equal frames have infinity. As SSIM, it
    favours what is blurred and grey. Peers report its mean over frames, at their frame size.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)

    Returns
    -------
    float64 (clips, frames)
    """
    truth, decoded = _checked(truth, decoded)
    with np.errstate(divide="ignore"):
        return np.array([20 * np.log10(255 / np.sqrt(_mean_square(x, y))) for x, y in zip(truth, decoded, strict=True)])


def motion_agreement(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Do the same places change in the same way? Correlation of the temporal differences of truth and decoded clip.

    With d_t = x_{t+1} - x_t the difference images of a clip, all of them one vector over frames, pixels and channels,
    the agreement is sum(d d') / sqrt(sum(d^2) sum(d'^2)): their correlation about zero, which is the difference of a
    clip in which nothing happens. 1 is the true motion, 0 what a static clip gets and what unrelated flicker gets on
    average; a clip played backwards is negative on average, and shuffled frames lose. What stands still
    has no part in it, so no background can buy a score. It does ask for the right place: true motion a few pixels off
    counts as none.

    The peers' end-point error (EPE) is the mean distance in pixels between two optical flows (Farneback's), one of the
    true and one of the decoded clip. It is an error, it depends on the frame size, and a static clip, whose flow is
    zero, gets the mean length of the true flow, which clips with wrong motion exceed: the error of a still picture
    beats theirs. Here a still picture gets 0, and wrong motion no more on average.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3), at least 2 frames

    Returns
    -------
    float64 (clips,)
        NaN where the true clip does not change at all: it has no motion to agree with. Leave such clips out.
    """
    truth, decoded = _moving(truth, decoded)
    sums = np.array([_difference_products(x, y) for x, y in zip(truth, decoded, strict=True)])
    true, ours, product = sums.T
    agreement = np.divide(product, np.sqrt(true * ours), out=np.zeros(len(sums)), where=true * ours > 0)
    return np.where(true > 0, agreement, np.nan)


def mean_velocity(clips: np.ndarray) -> np.ndarray:
    """The one translation that best explains a clip's changes, x to the right and y down, in pixels a frame.

    Least squares of the brightness constancy I_x u + I_y v + I_t = 0 over all pixels and pairs of consecutive frames
    (Lucas and Kanade 1981, with the whole clip as its window), on grey values, with the spatial gradients of the mean
    of both frames. What stands still holds the length down, so that the direction is what this is for.

    Parameters
    ----------
    clips : uint8 (clips, frames, height, width, 3), at least 2 frames

    Returns
    -------
    float64 (clips, 2); 0 for a static clip and for one without texture in both directions
    """
    clips, _ = _moving(clips, clips)
    return np.array([_translation(clip.mean(axis=-1, dtype=np.float64)) for clip in clips])


def direction_agreement(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Cosine of the `mean_velocity` of truth and decoded clip: does it move the right way, wherever and how fast?

    The tolerant sister of `motion_agreement`, which asks for the right place: 1 the same direction, 0 across it or no
    motion, -1 backwards. A static clip gets 0 and flicker 0 on average. It holds a clip for one motion; a film of many
    objects or a moving camera has more.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3), at least 2 frames

    Returns
    -------
    float64 (clips,); NaN where the true clip has no velocity
    """
    _moving(truth, decoded)
    v, w = mean_velocity(truth), mean_velocity(decoded)
    product = np.linalg.norm(v, axis=1) * np.linalg.norm(w, axis=1)
    cosine = np.divide((v * w).sum(axis=1), product, out=np.zeros(len(v)), where=product > 0)
    return np.where((v != 0).any(axis=1), cosine, np.nan)


def motion_energy_ratio(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Sum of squared temporal differences of the decoded clip over that of the true clip: how much it moves.

    1 is as much as the truth, 0 a static clip, and well above 1 a clip that flickers. The agreements say where and
    which way, this says how much, and flicker counts as much as motion does: no score to maximise. It is skewed, so
    that its median says more than its mean.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3), at least 2 frames

    Returns
    -------
    float64 (clips,); NaN where the true clip does not change at all
    """
    truth, decoded = _moving(truth, decoded)
    true, ours, _ = np.array([_difference_products(x, y) for x, y in zip(truth, decoded, strict=True)]).T
    return np.divide(ours, true, out=np.full(len(true), np.nan), where=true > 0)


def temporal_consistency(embeddings: np.ndarray) -> np.ndarray:
    """Mean cosine of the CLIP embeddings of consecutive frames: does the content stay the same through a clip?

    It knows nothing of the truth: a still picture gets 1, of whatever it may be. So it is no score to maximise: the
    truth's own value is the mark, above which a decoder is too still, below which it flickers.

    The peers' "CLIP-pcc" is no Pearson correlation either, and is not one number: Mind-Animator takes consecutive
    frames, with 0 for clips that another network finds too unlike the truth; NeuroClips takes consecutive frames
    without that; NEURONS takes all pairs of frames and another CLIP. Their values of 0.41, 0.74 and 0.93 cannot be
    compared with each other, nor with these.

    Parameters
    ----------
    embeddings : (clips, frames, dim), at least 2 frames

    Returns
    -------
    float64 (clips,)
    """
    embeddings = np.asarray(embeddings, dtype=float)
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        raise ValueError(f"embeddings have shape {embeddings.shape}, expected (clips, frames, dim), at least 2 frames")
    length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise ValueError(f"{int((~(length > 0)).sum())} embeddings are zero or NaN, expected vectors with a direction")
    unit = embeddings / length
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=-1).mean(axis=1)


def clip_metrics(
    truth: np.ndarray, decoded: np.ndarray, truth_embeddings: np.ndarray, decoded_embeddings: np.ndarray
) -> pd.DataFrame:
    """All scores of this module, a row a clip.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)
    truth_embeddings, decoded_embeddings : (clips, frames, dim), CLIP's of their frames

    Returns
    -------
    DataFrame with columns psnr (dB, mean over frames), motion_agreement, direction_agreement, motion_energy_ratio,
    consistency and truth_consistency (the true clip's own)
    """
    return pd.DataFrame(
        {
            "psnr": psnr(truth, decoded).mean(axis=1),
            "motion_agreement": motion_agreement(truth, decoded),
            "direction_agreement": direction_agreement(truth, decoded),
            "motion_energy_ratio": motion_energy_ratio(truth, decoded),
            "consistency": temporal_consistency(decoded_embeddings),
            "truth_consistency": temporal_consistency(truth_embeddings),
        }
    )


def metric_table(scores: pd.DataFrame, segment: np.ndarray, length: int, **labels: object) -> pd.DataFrame:
    """Mean and 95 % block-bootstrap interval of every column of `clip_metrics`, or of other scores by clip.

    Clips without a finite value (a true clip that stands still, a frame that is met exactly) are left out of that row.

    Parameters
    ----------
    scores : a row a clip, in film order
    segment : (clips,)
    length : clips a block
    **labels : columns put in front

    Returns
    -------
    DataFrame with a row a metric: the labels, metric, mean, low, high, median, and clips, the number that count
    """
    rows = []
    for metric in scores.columns:
        values = scores[metric].to_numpy(dtype=float)
        known = np.isfinite(values)
        if not known.any():
            empty = dict.fromkeys(("mean", "low", "high", "median"), np.nan)
            rows.append({**labels, "metric": metric, **empty, "clips": 0})
            continue
        interval = block_bootstrap(values[known], np.asarray(segment)[known], length)
        median = float(np.median(values[known]))
        rows.append({**labels, "metric": metric, **interval._asdict(), "median": median, "clips": int(known.sum())})
    return pd.DataFrame(rows)


def _checked(truth: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, decoded = np.asarray(truth), np.asarray(decoded)
    if truth.shape != decoded.shape or truth.ndim != 5:
        raise ValueError(f"truth {truth.shape} and decoded {decoded.shape}, expected the same clips, 5 axes each")
    if truth.dtype != np.uint8 or decoded.dtype != np.uint8:
        raise ValueError(f"truth is {truth.dtype} and decoded {decoded.dtype}, expected uint8 in 0..255")
    return truth, decoded


def _moving(truth: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, decoded = _checked(truth, decoded)
    if truth.shape[1] < 2:
        raise ValueError(f"clips have {truth.shape[1]} frame, expected at least 2: there is no motion in a picture")
    return truth, decoded


def _mean_square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame of a clip; the sum of integers is exact."""
    return ((x.astype(np.int32) - y) ** 2).mean(axis=(1, 2, 3), dtype=np.float64)


def _difference_products(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Of two clips: the sums over frames and pixels of d d, d' d' and d d', d the temporal differences."""
    d, e = (np.diff(clip.astype(np.float64), axis=0).ravel() for clip in (x, y))
    return float(d @ d), float(e @ e), float(d @ e)


def _translation(frames: np.ndarray) -> np.ndarray:
    """`mean_velocity` of one clip of grey frames (frames, height, width)."""
    middle = (frames[1:] + frames[:-1]) / 2
    gradients = np.stack([np.gradient(middle, axis=axis).ravel() for axis in (2, 1)])
    tensor = gradients @ gradients.T
    # Texture in one direction alone leaves the velocity across it open.
    if np.linalg.eigvalsh(tensor)[0] <= 1e-9 * max(tensor.trace(), 1e-9):
        return np.zeros(2)
    return np.linalg.solve(tensor, -gradients @ np.diff(frames, axis=0).ravel())
