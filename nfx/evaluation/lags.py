"""Recordings shifted by volumes, and how well they can be read at each shift: where is the film in the brain?

`LAG` are the shifts of two controls of `nfx.evaluation.interventions`, for which a decoder is trained anew; `lag_curve`
needs none: it trains a linear reader at every lag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.evaluation.controls import block_bootstrap
from nfx.evaluation.identification import embedding_similarity, identification
from nfx.evaluation.tables import block_length

if TYPE_CHECKING:
    from nfx.profile import Profile

LAG = {"lag_-2": -2, "lag_2": 2}  # control -> volumes; positive: later recordings
LAGS = tuple(range(-6, 7))  # volumes, of `lag_curve`


def lagged_rows(segment: np.ndarray, lag: int) -> np.ndarray:
    """The volume `lag` after that of each clip: int (clips,), -1 where it is not in the clip's segment."""
    segment = np.asarray(segment)
    rows = np.arange(len(segment)) + lag
    there = (rows >= 0) & (rows < len(segment))
    there[there] = segment[rows[there]] == segment[there]
    return np.where(there, rows, -1)


def lagged(fmri: np.ndarray, segment: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Recordings shifted against the film within each segment; positive: later recordings go to a clip.

    Parameters
    ----------
    fmri : (clips, voxels)
    segment : int (clips,), from 1
    lag : volumes

    Returns
    -------
    fmri : (clips, voxels), zeros for clips whose recording would be outside their segment
    segment : int (clips,)
        Those clips form segments of their own, numbered on from the largest: no window reaches into them, and whoever
        holds these segments out leaves them out.
    """
    segment, rows = np.asarray(segment), lagged_rows(segment, lag)
    there = rows >= 0
    moved = np.zeros_like(fmri)
    moved[there] = fmri[rows[there]]
    return moved, np.where(there, segment, segment + segment.max())


def recorded_at_all(segment: np.ndarray, lags: Sequence[int]) -> np.ndarray:
    """Whether a clip has a recording at every one of the lags: bool (clips,); ValueError if none has."""
    there = np.all([lagged_rows(segment, lag) >= 0 for lag in lags], axis=0)
    if not there.any():
        raise ValueError(
            f"no clip has a recording at every lag from {min(lags)} to {max(lags)} volumes: expected segments of more "
            f"than {max(*lags, 0) - min(*lags, 0)} clips"
        )
    return there


def lag_curve(profile: Profile, subject: int, lags: Sequence[int] = LAGS) -> pd.DataFrame:
    """How well a linear reader that is trained anew at each lag tells test clips apart: where is the film in the brain?

    Ridge regression (`nfx.evaluation.references.linear_reader`) from the windows `lag` volumes after a clip to CLIP's
    image embedding of the clip (mean of its frames'), scored on the test film by 2-way identification. The same clips
    at every lag, in training as in test: those with a recording at all of them. The prepared recordings already lie 4 s
    behind the film (the official trimming), so that the curve must peak at lag 0 or within a volume of it. Neighbouring
    volumes go together, and so do neighbouring clips, which makes it wide.

    Kept in ``work/<profile>/controls/lag_curve_subject<k>``.

    Returns
    -------
    DataFrame
        A row a lag: subject, lag (volumes), mean, low and high (95 % block-bootstrap interval), chance, clips.
    """
    from nfx.evaluation.references import linear_reader

    folder = paths.work(profile, "controls", f"lag_curve_subject{subject}")
    data, targets = paths.work(profile, f"subject{subject}"), paths.work(profile, "targets")
    facts = {
        "lags": list(lags),
        "window": profile.data.window,
        "validation_segments": list(profile.data.validation_segments),
        "fmri": files.identity(data),
        "targets": files.identity(targets, "train_image_embeddings", "test_image_embeddings"),
        "code": files.source_digest("evaluation/lags.py", "evaluation/references.py"),
    }
    if files.finished(folder, facts):
        return pd.read_csv(folder / "curve.csv")
    arrays = files.load_arrays(data) | files.load_arrays(targets, "train_image_embeddings", "test_image_embeddings")
    segment = {part: np.asarray(arrays[f"{part}_segment"]) for part in ("train", "test")}
    common = {part: recorded_at_all(numbers, lags) for part, numbers in segment.items()}
    held_out = np.isin(segment["train"], profile.data.validation_segments)
    shown = {part: _clip_embedding(arrays[f"{part}_image_embeddings"]) for part in segment}
    used = {"train": common["train"] & ~held_out, "validation": common["train"] & held_out, "test": common["test"]}
    rows = []
    for lag in lags:
        moved = {part: _lagged_windows(profile, arrays[f"{part}_fmri"], segment[part], lag) for part in segment}
        fit, check = ((moved["train"][used[x]], {"clip": shown["train"][used[x]]}) for x in ("train", "validation"))
        read = linear_reader(fit, check, moved["test"][used["test"]])["clip"]
        found = identification(embedding_similarity(shown["test"][used["test"]][:, None], read[:, None]))
        numbers = segment["test"][used["test"]]
        interval = block_bootstrap(found, numbers, block_length(numbers))
        rows.append({"subject": subject, "lag": lag, **interval._asdict(), "chance": 0.5, "clips": len(found)})
    with files.write_atomically(folder / "curve.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    files.write_manifest(folder, facts, ["curve.csv"])
    return pd.read_csv(folder / "curve.csv")


def _lagged_windows(profile: Profile, fmri: np.ndarray, segment: np.ndarray, lag: int) -> np.ndarray:
    from nfx.data import windows

    return windows(*lagged(np.asarray(fmri), segment, lag), profile.data.window)


def _clip_embedding(frames: np.ndarray) -> np.ndarray:
    """Mean of a clip's normalised frame embeddings: (clips, frames, dim) to (clips, dim)."""
    frames = np.asarray(frames, dtype=np.float64)
    return (frames / np.linalg.norm(frames, axis=-1, keepdims=True)).mean(axis=1)
