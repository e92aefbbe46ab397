"""All that decodes, side by side and clip by clip: ours, the baselines, and references that see little or nothing.

All of them are scored by the same code on the same clips of the test film, so that any two can be compared pairwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from nfx import files, paths
from nfx.evaluation.comparisons import compare, holm_over, statement
from nfx.evaluation.controls import mean_frame, mid_grey
from nfx.evaluation.decoded import (
    DecodedRun,
    autoencoder_ceiling,
    decode_and_score,
    decode_captions,
    evenly_spaced,
    load_autoencoder_run,
    load_captions_run,
    load_decoded,
    load_run,
    run_folder,
)
from nfx.evaluation.identification import embedding_similarity, identification, pixel_similarity
from nfx.evaluation.metrics import clip_metrics, metric_table
from nfx.evaluation.references import retrieve
from nfx.evaluation.tables import METRICS, block_length, of_part

if TYPE_CHECKING:
    from pathlib import Path

    from nfx.profile import Profile

NEAREST, MEAN_FRAME, MID_GREY = "nearest training clip", "training-mean frame", "mid-grey frame"
ORACLE, AUTOENCODER = "oracle (true caption)", "autoencoder"
BLIND = (MEAN_FRAME, MID_GREY)  # see no brain
CEILINGS = (ORACLE, AUTOENCODER)  # see the truth
CODE = ("evaluation/controls.py", "evaluation/references.py", "data/windows.py")

# Scores of a clip -> what a table calls them. In all of them more is better, but for the last two, whose mark is the
# truth's own value.
SCORES = {
    "ssim": "SSIM",
    "image_top1_1": "image",
    "video_top1_1": "video",
    "psnr": "PSNR",
    "pixels_2way": "2-way pixels",
    "clip_2way": "2-way CLIP",
    "motion_agreement": "motion",
    "direction_agreement": "direction",
    "motion_energy_ratio": "energy",
    "consistency": "consistency",
}
COMPARED = ("ssim", "image_top1_1", "video_top1_1", "clip_2way", "direction_agreement")  # chosen before looking


def gather(profile: Profile, subject: int, baselines: Mapping[str, DecodedRun] | None = None) -> dict[str, DecodedRun]:
    """All that has decoded a subject's test clips: ours, row 0 if it has been run, baselines, references, and ceilings.

    Parameters
    ----------
    baselines : those that have been run, of `nfx.baselines.decoded`

    Returns
    -------
    dict of method to DecodedRun

    Raises
    ------
    FileNotFoundError, ValueError
        If the headline row has not been decoded, `decode_references` has not been called, or files are damaged.
    """
    runs = {f"row {profile.headline_row}": load_run(profile, subject, profile.headline_row)}
    if (run_folder(profile, subject, 0) / "manifest.json").is_file() and profile.headline_row != 0:
        runs["row 0"] = load_run(profile, subject, 0)
    runs |= baselines or {}
    runs |= {name: load_decoded(profile, reference_folder(profile, name, subject)) for name in (NEAREST, *BLIND)}
    return runs | {ORACLE: load_captions_run(profile), AUTOENCODER: load_autoencoder_run(profile)}


def reference_folder(profile: Profile, name: str, subject: int) -> Path:
    """``work/<profile>/references/...`` of the nearest training clip by subject, and of each of the blind decoders."""
    of_subject = f"_subject{subject}" if name == NEAREST else ""
    return paths.work(profile, "references", name.replace(" ", "_").replace("-", "_") + of_subject)


def decode_references(profile: Profile) -> None:
    """Decode the test clips of `decode_run` by all references and ceilings; what is finished is reused.

    From below, retrieval by fMRI for every subject, the mean training frame, and mid-grey; from above, the true
    captions and the autoencoder.
    """
    stimuli = files.load_arrays(paths.work(profile, "stimuli"), "train_clips", "test_clips")
    for subject in profile.data.subjects:
        _decode_reference(profile, NEAREST, subject, stimuli)
    for name in BLIND:
        _decode_reference(profile, name, profile.data.subjects[0], stimuli)
    decode_captions(profile)
    autoencoder_ceiling(profile)


def _decode_reference(profile: Profile, name: str, subject: int, stimuli: Mapping[str, np.ndarray]) -> None:
    from nfx.data import load_subject

    data, film = load_subject(profile, subject), stimuli["train_clips"]
    chosen = evenly_spaced(len(data.test.clip), profile.sampling.test_clips)
    clip = data.test.clip[chosen]

    @cache
    def answer() -> np.ndarray:
        if name == NEAREST:
            return retrieve(data.train.fmri, data.test.fmri[chosen], film[data.train.clip]).clips
        shown = stimuli["test_clips"][clip]
        return mid_grey(shown) if name == MID_GREY else mean_frame(film[data.train.clip], shown)

    facts = {
        "stimuli": files.identity(paths.work(profile, "stimuli"), "train_clips"),
        "validation_segments": list(profile.data.validation_segments),
        "clips": clip,
        "code": files.source_digest(*CODE),
    }
    if name == NEAREST:
        facts["fmri"] = files.identity(paths.work(profile, f"subject{subject}"), "train_fmri", "test_fmri")
    folder = reference_folder(profile, name, subject)
    decode_and_score(profile, folder, {"test": clip}, {"test": lambda block: answer()[block]}, facts)


def embed(clips: np.ndarray, profile: Profile) -> np.ndarray:
    """CLIP's image embeddings of clips, (clips, frames, dim); frames that occur more than once are embedded once."""
    from nfx.data.targets import image_embeddings
    from nfx.evaluation.classifiers import kept

    clips = np.asarray(clips)

    def embeddings() -> np.ndarray:
        frames = np.ascontiguousarray(clips).reshape(-1, *clips.shape[2:])
        seen: dict[bytes, int] = {}
        place = [seen.setdefault(hashlib.sha256(frame.tobytes()).digest(), len(seen)) for frame in frames]
        first = np.unique(place, return_index=True)[1]
        return image_embeddings(frames[first], profile.models.clip)[place].reshape(*clips.shape[:2], -1)

    return kept(embeddings, clips, profile.models.clip, paths.work(profile, "judged"))


def clip_scores(profile: Profile, subject: int, runs: Mapping[str, DecodedRun]) -> pd.DataFrame:
    """Every score of every clip and method: what any other test can be made from.

    Parameters
    ----------
    runs : of `gather`; all of the same test clips

    Returns
    -------
    DataFrame
        A row for each method and clip: subject, method, clip, segment, the columns of `METRICS` and of
        `nfx.evaluation.metrics.clip_metrics`, and the 2-way identification among all test clips by pixels and by CLIP.

    Raises
    ------
    ValueError
        If two methods have decoded different clips.
    """
    truth, tables = next(iter(runs.values())).test, []
    true_embeddings = embed(truth.truth, profile)
    for name, run in tqdm(runs.items(), desc=f"scores, subject {subject}", leave=False, mininterval=5):
        if not np.array_equal(run.test.clip, truth.clip):
            raise ValueError(
                f"'{name}' has decoded other test clips than '{next(iter(runs))}': run both again with the same profile"
            )
        decoded = np.asarray(run.test.decoded)
        embeddings = embed(decoded, profile)
        scores = of_part(run.scores, "test")
        table = scores[["clip", "segment", *METRICS]].join(
            clip_metrics(np.asarray(truth.truth), decoded, true_embeddings, embeddings)
        )
        table["pixels_2way"] = identification(pixel_similarity(truth.truth, decoded))
        table["clip_2way"] = identification(embedding_similarity(true_embeddings, embeddings))
        table.insert(0, "subject", subject)
        table.insert(1, "method", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def method_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % block-bootstrap interval of every score of `SCORES`, of every method of one subject.

    Returns
    -------
    DataFrame with a row for each method and score: subject, method, metric, mean, low, high, median, clips
    """
    tables = []
    for (subject, method), part in scores.groupby(["subject", "method"], sort=False):
        segment = part["segment"].to_numpy()
        tables.append(metric_table(part[list(SCORES)], segment, block_length(segment), subject=subject, method=method))
    return pd.concat(tables, ignore_index=True).replace({"metric": SCORES})


def side_by_side(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """`method_table` of one subject, wide: a row a method, a column a score, "mean [low, high]" in the cells."""
    cells = [f"{m:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for m, low, high in
             zip(table["mean"], table["low"], table["high"], strict=True)]  # fmt: skip
    wide = table.assign(cell=cells).pivot(index="method", columns="metric", values="cell")
    return wide.loc[list(dict.fromkeys(table["method"])), list(dict.fromkeys(table["metric"]))].rename_axis(
        columns=None
    )


def comparisons(scores: pd.DataFrame, ours: str) -> pd.DataFrame:
    """Our decoder against every other method of one subject but the ceilings, by the scores of `COMPARED`.

    One family: Holm's correction is over all methods and scores of the subject.

    Parameters
    ----------
    scores : of `clip_scores`, one subject
    ours : method

    Returns
    -------
    DataFrame of `nfx.evaluation.comparisons.compare` with columns subject and metric in front
    """
    segment = scores.loc[scores["method"].eq(ours), "segment"].to_numpy()
    others = [name for name in dict.fromkeys(scores["method"]) if name not in (ours, *CEILINGS)]
    tables = []
    for column in COMPARED:
        by_method = {name: part[column].to_numpy() for name, part in scores.groupby("method", sort=False)}
        # Clips without a score (no motion in the truth) are left out of all methods alike.
        known = np.all([np.isfinite(by_method[name]) for name in (ours, *others)], axis=0)
        kept = {name: by_method[name][known] for name in (ours, *others)}
        labels = {"subject": int(scores["subject"].iloc[0]), "metric": SCORES[column]}
        pairs = [(ours, other) for other in others]
        tables.append(compare(kept, segment[known], block_length(segment), pairs, **labels))
    return holm_over(tables)


def statements(table: pd.DataFrame) -> list[str]:
    """What `comparisons` of one subject allows to say, a line for each score and method."""
    return [
        f"{line.metric}: " + statement(line.a, line.b, table[table["metric"].eq(line.metric)])
        for line in table.itertuples()
    ]
