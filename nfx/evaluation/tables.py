"""Tables of notebooks 04 and 05: runs gathered, with intervals and controls (Sections 4.1, 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from nfx.evaluation.controls import (
    block_bootstrap,
    mean_frame,
    mid_grey,
    permuted_accuracy,
    permuted_ssim,
)
from nfx.evaluation.n_way import n_way_chance

if TYPE_CHECKING:
    from pathlib import Path

    from nfx.profile import Evaluation, Profile

JUDGED_AT_ONCE = 512  # frames: whole batches of the classifier, so that the parts' logits are those of one call

# Column of a run's scores -> (what it measures, correct classes)
METRICS: dict[str, tuple[str, int | None]] = {
    "ssim": ("SSIM", None),
    "image_top1_1": ("image", 1),
    "image_top1_3": ("image", 3),
    "video_top1_1": ("video", 1),
    "video_top1_3": ("video", 3),
}


def block_length(segment: np.ndarray) -> int:
    """Clips in a block of the resampling: a twentieth of all, at least 10, at most half of the shortest segment.

    Ten clips last 20 s, several scenes; long data sets get longer blocks, so that the cost of permuting stays the same.
    """
    shortest = np.unique(segment, return_counts=True)[1].min()
    return int(max(1, min(max(10, len(segment) // 20), shortest // 2)))


def score_table(scores: pd.DataFrame, evaluation: Evaluation, **labels: object) -> pd.DataFrame:
    """Mean and 95 % block-bootstrap interval of every score of one run.

    Parameters
    ----------
    scores : DataFrame
        A row a clip, in film order: segment and the columns of `METRICS`; one part (test or validation) only.
    evaluation : of the profile, for the chance levels
    **labels : columns put in front, such as subject=1, method="ours"

    Returns
    -------
    DataFrame
        A row a metric: the labels, metric ("SSIM", "image", "video"), correct (classes, missing for SSIM), mean, low,
        high, chance, clips.
    """
    segment = scores["segment"].to_numpy()
    rows = []
    for column, (metric, correct) in METRICS.items():
        interval = block_bootstrap(scores[column].to_numpy(), segment, block_length(segment))
        chance = np.nan if correct is None else n_way_chance(evaluation.n_way, evaluation.top_k, correct)
        rows.append({**labels, "metric": metric, "correct": correct or np.nan, **interval._asdict(), "chance": chance})
    return pd.DataFrame(rows).astype({"correct": "Int64"}).assign(clips=len(scores))


def of_part(scores: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows of a run's scores that belong to "validation" or "test"; none is a ValueError."""
    chosen = scores[scores["part"].eq(part)].reset_index(drop=True)
    if chosen.empty:
        raise ValueError(f"the scores hold no clip of part '{part}', only of {sorted(scores['part'].unique())}")
    return chosen


def readable(table: pd.DataFrame, index: str | Sequence[str], digits: int = 3) -> pd.DataFrame:
    """A `score_table`, wide: a row for each value of `index` in its order, a column a metric, "mean [low, high]"."""
    correct = table["correct"].map(lambda n: "" if pd.isna(n) else f", {n} correct")
    cells = [
        f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        for mean, low, high in zip(table["mean"], table["low"], table["high"], strict=True)
    ]
    wide = table.assign(column=table["metric"] + correct, cell=cells)
    keys = [index] if isinstance(index, str) else list(index)
    order, lines = list(dict.fromkeys(wide["column"])), wide[keys].drop_duplicates()
    found = wide.pivot(index=keys, columns="column", values="cell")[order].rename_axis(columns=None)
    return found.loc[list(lines.itertuples(index=False, name=None)) if len(keys) > 1 else lines[keys[0]]]


def row_columns(scores: pd.DataFrame, evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """Our columns of Table 1: row -> {"SSIM, validation": ..., "50-way image, validation": ...}; one correct class.

    Parameters
    ----------
    scores : `score_table` of all rows, with columns part and row
    evaluation : of the profile
    """
    chosen = scores[~scores["correct"].eq(3).fillna(False)]
    columns: dict[int, dict[str, float]] = {}
    for line in chosen.itertuples():
        test = line.metric if line.metric == "SSIM" else f"{evaluation.n_way}-way {line.metric}"
        columns.setdefault(line.row, {})[f"{test}, {line.part}"] = line.mean
    return columns


def clip_logits(clips: np.ndarray, profile: Profile) -> dict[str, np.ndarray]:
    """What both classifiers make of clips: image (clips, frames, classes) and video (clips, classes)."""
    from nfx.evaluation.classifiers import image_logits, video_logits
    from nfx.paths import work

    clips, cache = np.asarray(clips), work(profile, "judged")
    image = image_logits(clips.reshape(-1, *clips.shape[2:]), profile.models.image_classifier, cache=cache)
    return {
        "image": image.reshape(*clips.shape[:2], -1),
        "video": video_logits(clips, profile.models.video_classifier, cache=cache),
    }


def shuffled_table(
    truth: Mapping[str, np.ndarray],
    decoded: Mapping[str, np.ndarray],
    segment: np.ndarray,
    evaluation: Evaluation,
    **labels: object,
) -> pd.DataFrame:
    """Accuracy of the true pairings against shuffled ones, of single clips and of blocks.

    Parameters
    ----------
    truth, decoded : "image" and "video" -> logits, of `clip_logits`
    segment : (clips,)
    evaluation : of the profile
    **labels : columns put in front

    Returns
    -------
    DataFrame
        A row for each test and number of correct classes: expected accuracy (of endlessly many trials), mean and p of
        the shuffled clips, p of the shuffled blocks, and chance for classes that are all alike.
    """
    rows = []
    for metric in ("image", "video"):
        for correct in (1, 3):
            options = {"n_way": evaluation.n_way, "top_k": evaluation.top_k, "truth_classes": correct}
            clips = permuted_accuracy(truth[metric], decoded[metric], segment, 1, **options)
            blocks = permuted_accuracy(truth[metric], decoded[metric], segment, block_length(segment), **options)
            rows.append(
                {**labels, "metric": metric, "correct": correct, "expected": clips.observed,
                 "shuffled": clips.null_mean, "p": clips.p, "p, blocks": blocks.p, "chance": n_way_chance(**options)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def ssim_references(truth: np.ndarray, training_clips: np.ndarray) -> dict[str, float]:
    """SSIM of two decoders that see no brain: mid-grey frames, and the mean of all training frames.

    Parameters
    ----------
    truth : uint8 (clips, frames, height, width, 3)
    training_clips : uint8, the clips that were trained on
    """
    from nfx.evaluation.ssim import ssim

    blind = {"mid-grey frame": mid_grey(truth), "training-mean frame": mean_frame(training_clips, truth)}
    return {name: float(ssim(truth, clips).mean()) for name, clips in blind.items()}


def ssim_controls(
    truth: np.ndarray, decoded: np.ndarray, segment: np.ndarray, references: Mapping[str, float], **labels: object
) -> dict[str, object]:
    """One row of the table of SSIM beside its controls: permuted pairs by block with their p, and `references`.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)
    segment : (clips,)
    references : what knows nothing of the brain -> its SSIM, of `ssim_references`
    labels : further columns, which stand first
    """
    test = permuted_ssim(np.asarray(truth), np.asarray(decoded), segment, block_length(segment))
    row = {**labels, "SSIM": test.observed, "permuted pairs": test.null_mean, "p": test.p, **references}
    return row | {f"above {name}": bool(test.observed > value) for name, value in references.items()}


def voxel_choice_auc(profile: Profile, subject: int) -> float:
    """How well the reproducibility of notebook 01 finds the vertices that carry a signal: area under the ROC curve.

    The simulator's truth is compared with the t-values of all cortical vertices; 0.5 is chance.
    """
    from scipy.stats import mannwhitneyu

    from nfx.files import load_arrays
    from nfx.paths import data_set, work

    found = load_arrays(work(profile, f"subject{subject}"), "reproducibility_vertex", "reproducibility_t")
    truth = load_arrays(data_set(profile) / "truth" / f"subject{subject}", "grayordinate", "carries")
    carries = np.isin(found["reproducibility_vertex"], truth["grayordinate"][truth["carries"] != "nothing"])
    t = np.asarray(found["reproducibility_t"])
    return float(mannwhitneyu(t[carries], t[~carries]).statistic / (carries.sum() * (~carries).sum()))


def text_table(
    scores: pd.DataFrame,
    row_0: float,
    overlap: float,
    published: pd.DataFrame,
    profile: Profile,
    mindvideo: Mapping[int, float] | None = None,
) -> pd.DataFrame:
    """Every number of the paper's running text beside ours, and which table holds those of other notebooks.

    Parameters
    ----------
    scores : `score_table` of the headline runs on the test clips, with a column subject
    row_0 : SSIM of row 0 of the first subject, for a gain over a baseline that we have run ourselves
    overlap : of the categories of training and test set
    published : of `nfx.evaluation.published`
    mindvideo : SSIM of the baseline after Chen 2023 by subject, where it has run: the gains of Section 5.1 are over it

    Returns
    -------
    DataFrame
        Of `nfx.evaluation.figures.numbers_in_text`, with a column "where" and a last line, the gain over row 0.
    """
    from nfx.evaluation.figures import numbers_in_text, percent_gain

    ssim = scores[scores["metric"].eq("SSIM")].set_index("subject")["mean"]
    data = profile.data
    pairs = data.train_segments * data.train_volumes
    ours = {key: value for subject, value in ssim.items() if (key := f"neuralflix_ssim_{subject}") in published.index}
    for subject, value in (mindvideo or {}).items():
        if (key := f"neuralflix_gain_{subject}") in published.index:
            ours[key] = percent_gain(ssim[subject], value)
    ours |= {
        "category_overlap": overlap,
        "training_pairs": pairs,
        "test_pairs": data.test_segments * data.test_volumes,
        "training_hours": pairs * data.repetition_time / 3600,
    }
    table = numbers_in_text(ours, published)
    elsewhere = {"video_50way": "time_averaged", "p_value": "attention_tests"}
    table["where"] = table["metric"].map(elsewhere).fillna("")
    table.loc[table.index.str.startswith("averaged_drop"), "where"] = "time_averaged"
    first = data.subjects[0]
    table1 = (published["value"][f"table1_row_{row}"] for row in (profile.headline_row, 0))
    last = {
        "method": f"row {profile.headline_row} over row 0",
        "subject": first,
        "metric": "percent_gain",
        "paper": f"{percent_gain(*table1):.1f}",
        "status": "derived",
        "formula": "100 (row - row 0) / row 0, of Table 1",
        "ours": percent_gain(ssim[first], row_0),
        "source": "Table 1",
        "where": "",
    }
    return pd.concat([table, pd.DataFrame([last], index=["gain_over_row_0"])]).rename_axis("id")


def clips_by_rule(clips: int, count: int, offset: float = 0.5) -> np.ndarray:
    """Clips to show: `count` of them evenly spaced over the film, whatever their scores.

    The film is cut into `count` equal parts, and of each part the clip at `offset` (0 its start, 1 its end) is taken.
    """
    if not 0 < count <= clips or not 0 <= offset < 1:
        raise ValueError(f"{count} of {clips} clips at {offset}: expected 1 to {clips} clips and an offset in [0, 1)")
    return ((np.arange(count) + offset) * clips / count).astype(int)


def short_captions(captions: Sequence[str], chosen: Sequence[int], width: int = 46) -> list[str]:
    """Titles of shown clips: their number and caption, cut to `width` characters."""
    titles = (f"{clip}: {captions[clip]}" for clip in chosen)
    return [title if len(title) <= width else title[: width - 1] + "…" for title in titles]


def categories(clips: np.ndarray, profile: Profile, frame: int = 2) -> set[int]:
    """Classes that the image classifier sees in the third frame of any clip (ours: the paper does not say, 4.2)."""
    from nfx.evaluation.classifiers import image_logits
    from nfx.paths import work

    shown, model, cache = np.asarray(clips[:, frame]), profile.models.image_classifier, work(profile, "judged")
    found: set[int] = set()
    with tqdm(total=len(shown), desc="categories", unit="frame", leave=False, mininterval=5) as bar:
        for start in range(0, len(shown), JUDGED_AT_ONCE):
            part = shown[start : start + JUDGED_AT_ONCE]
            found |= set(image_logits(part, model, cache=cache).argmax(axis=1).tolist())
            bar.update(len(part))
    return found


def write_listing(profile: Profile, name: str, outputs: Sequence[Path]) -> dict[str, list[str]]:
    """Write ``figures/<profile>/<name>.json``: which figures, tables and films a notebook has made.

    Parameters
    ----------
    name : of the notebook
    outputs : files in ``figures/<profile>``; each must exist, and of a figure or table the other formats are found

    Returns
    -------
    dict with "outputs", paths relative to ``figures/<profile>``, sorted
    """
    from nfx.files import write_json
    from nfx.paths import figures

    folder, found = figures(profile), set()
    for path in outputs:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, but notebook {name} lists it among its outputs")
        found |= {other for other in path.parent.glob(f"{path.stem}.*") if other.stem == path.stem}
    listing = {"outputs": sorted(path.relative_to(folder).as_posix() for path in found)}
    write_json(folder / f"{name}.json", listing)
    return listing
