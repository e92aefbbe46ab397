"""Simulation only: what of the known truth decoded clips hold, attribute by attribute.

The simulator knows what every clip shows. The stand-in classifiers read object, colour, background and motion off a
clip; the position of the object is read off the pixels. Beside the decoded clips stand what these readers make of the
true film (no decoder can be read better), permuted pairs (what needs no brain), and ridge regression from the same
windows of fMRI (what the recordings hold for a linear reader).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nfx.evaluation.controls import block_bootstrap, block_pairs, permutation_test

if TYPE_CHECKING:
    from nfx.profile import Profile

NAMES = ("object", "colour", "background", "motion")
LEVELS = {"object": 8, "colour": 4, "background": 4, "motion": 4}
NEAR = 8.0  # pixels of a frame of 64, an eighth of its width: as far off a position may be
BORDER = 6  # pixels of a frame of 64 at its edge, from which the background's colours are taken

Attributes = dict[str, np.ndarray]  # NAMES -> int (clips,); "position" -> float (clips, 2), x and y in a frame of 64


def truth_recovery(profile: Profile, subject: int, row: int, permutations: int = 10_000) -> pd.DataFrame:
    """The table of one decoder on its test clips (`recovery_table`): decoded clips, true film, ridge regression.

    Raises
    ------
    FileNotFoundError, ValueError
        If the clips are not decoded, or the profile's data are not simulated.
    """
    from nfx.evaluation.decoded import load_run
    from nfx.evaluation.tables import block_length

    run = load_run(profile, subject, row).test
    seen = {
        "decoded clips": read_clips(run.decoded, profile),
        "true film": read_clips(run.truth, profile),
        "ridge regression": read_recordings(profile, subject, run.clip),
    }
    length = block_length(run.segment)
    table = recovery_table(clip_truth(profile, "test", run.clip), seen, run.segment, length, permutations, profile.seed)
    table.insert(0, "subject", subject)
    table.insert(1, "row", row)
    return table


def clip_truth(profile: Profile, part: str, clip: np.ndarray) -> Attributes:
    """What the simulator showed in clips of "train" or "test" (`nfx.evaluation.references.true_attributes`).

    The position is that of the object's centre, mean over the clip's frames.
    """
    from nfx.evaluation.references import true_attributes

    shown = true_attributes(profile, part).iloc[clip]
    return {name: shown[name].to_numpy() for name in NAMES} | {"position": shown[["x", "y"]].to_numpy()}


def read_clips(clips: np.ndarray, profile: Profile) -> Attributes:
    """Attributes that the stand-in classifiers, and for the position `position`, read off clips.

    Object, colour and background are of the image classifier, one answer for a clip from the mean of its frames' log
    probabilities; motion is of the video classifier. Probabilities of an attribute are sums over the others.

    Parameters
    ----------
    clips : uint8 (clips, 6, height, width, 3)
    profile : whose classifiers are the stand-ins
    """
    from nfx.evaluation.tables import clip_logits

    logits = clip_logits(clips, profile)
    return {**read_logits(logits["image"], logits["video"]), "position": position(clips)}


def read_logits(image: np.ndarray, video: np.ndarray) -> Attributes:
    """Attributes of joint logits, (clips, frames, 128) of the image and (clips, 128) of the video classifier."""
    import torch

    from nfx.stand_ins.renders import FRAME_SHAPE, VIDEO_SHAPE, marginals

    for logits, shape in ((image, FRAME_SHAPE), (video, VIDEO_SHAPE)):
        if logits.shape[-1] != np.prod(shape):
            raise ValueError(
                f"the classifier knows {logits.shape[-1]} classes, expected the {np.prod(shape)} of the stand-ins: "
                "attributes of simulated clips are read by the stand-ins alone"
            )
    log_p = torch.log_softmax(torch.from_numpy(np.asarray(image, np.float64)), dim=-1)
    first = [x.mean(dim=1).argmax(dim=-1).numpy() for x in marginals(log_p, FRAME_SHAPE)]
    motion = marginals(torch.from_numpy(np.asarray(video, np.float64)), VIDEO_SHAPE)[1].argmax(dim=-1).numpy()
    return dict(zip(NAMES, (*first, motion), strict=True))


def position(clips: np.ndarray) -> np.ndarray:
    """Where the object is, mean over a clip's frames: the centre of what differs from the background.

    The edge of a frame shows background. What is far from the edge's colours (Mahalanobis distance, of the blurred
    clip's mean frame) is object; its half with the larger distances is weighed by them, the largest tenth cut.

    Parameters
    ----------
    clips : uint8 (clips, frames, height, width, 3)

    Returns
    -------
    float (clips, 2): x and y in pixels of a frame of 64
    """
    from scipy.ndimage import gaussian_filter

    height, width = clips.shape[2:4]
    edge, blur = max(1, round(BORDER * width / 64)), 2 * width / 64
    down, right = np.mgrid[:height, :width]
    found = np.empty((len(clips), 2))
    for number, clip in enumerate(clips):
        frame = gaussian_filter(clip.mean(axis=0, dtype=float), (blur, blur, 0))
        around = np.ones((height, width), bool)
        around[edge:-edge, edge:-edge] = False
        colours = frame[around]
        offset = frame - np.median(colours, axis=0)
        precision = np.linalg.inv(np.cov(colours.T) + 20 * np.eye(3))
        distance = np.sqrt(np.einsum("hwi,ij,hwj->hw", offset, precision, offset))
        half, most = np.quantile(distance, [0.5, 0.9])
        weight = np.where(distance > half, np.minimum(distance, most), 0) + 1e-9
        found[number] = np.array([(weight * right).sum(), (weight * down).sum()]) / weight.sum()
    return (found + 0.5) * 64 / width


def read_recordings(profile: Profile, subject: int, clip: np.ndarray) -> Attributes:
    """Attributes of test clips by ridge regression from the windows that the decoder sees, trained as it is.

    See `nfx.evaluation.references.reader_scores`: the level with the largest score wins.
    """
    from nfx.evaluation.references import reader_scores

    scores = reader_scores(profile, subject)
    return {name: scores[name][clip].argmax(axis=1) for name in NAMES} | {"position": scores["position"][clip]}


def hits(name: str, truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Whether an attribute is right: the same level, or a position within `NEAR` pixels; 0 or 1, float (clips,)."""
    if name == "position":
        return (np.linalg.norm(np.asarray(seen) - truth, axis=1) <= NEAR).astype(float)
    return (np.asarray(seen) == truth).astype(float)


def recovery_table(
    truth: Attributes,
    seen: Mapping[str, Attributes],
    segment: np.ndarray,
    length: int,
    permutations: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of clips of which an attribute is right, for every reader.

    Parameters
    ----------
    truth : of the clips
    seen : reader -> its attributes of the same clips
    segment : (clips,)
    length : clips a block
    permutations, seed : of the test, and the bootstrap

    Returns
    -------
    DataFrame
        Columns attribute, reader, clips, right, low, high (95 % block bootstrap), chance (1 / levels; for the position
        that of saying the mean position always), permuted (mean over shuffled pairings of blocks) and p (one-sided).
    """
    rows = []
    for name in (*NAMES, "position"):
        for reader, attributes in seen.items():
            right = hits(name, truth[name], attributes[name])
            found = block_bootstrap(right, segment, length, seed=seed)
            pairs = _block_hits(name, truth[name], attributes[name], segment, length)
            null = permutation_test(pairs, permutations, seed)
            constant = np.broadcast_to(truth["position"].mean(axis=0), truth["position"].shape)
            chance = 1 / LEVELS[name] if name in LEVELS else hits(name, truth[name], constant).mean()
            rows.append(
                {"attribute": name, "reader": reader, "clips": len(right), "right": found.mean, "low": found.low}
                | {"high": found.high, "chance": chance, "permuted": null.null_mean, "p": null.p}
            )
    return pd.DataFrame(rows)


def _block_hits(name: str, truth: np.ndarray, seen: np.ndarray, segment: np.ndarray, length: int) -> np.ndarray:
    """Share of `hits` of every pair of blocks: (blocks, blocks)."""
    return block_pairs(lambda i, j: hits(name, truth[i], seen[j]), segment, length)
