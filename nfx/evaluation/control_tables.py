"""Tables and a figure made of the controls: how far does each fall below the untouched decoder?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx import files
from nfx.evaluation.comparisons import compare, holm_over
from nfx.evaluation.controls import block_bootstrap
from nfx.evaluation.decoded import DecodedRun, load_run
from nfx.evaluation.identification import embedding_similarity, identification, pixel_similarity
from nfx.evaluation.interventions import COMMAND, TITLES, TRAINED_ANEW, control_folder, decoded
from nfx.evaluation.lags import lag_curve
from nfx.evaluation.n_way import n_way_chance
from nfx.evaluation.tables import block_length, of_part
from nfx.plots import COLOURS, new_figure, panel_letter

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nfx.profile import Profile

MEASURED = {  # score of a clip -> what a table calls it
    "ssim": "SSIM",
    "image_top1_1": "image",
    "video_top1_1": "video",
    "pixels_2way": "2-way pixels",
    "clip_2way": "2-way CLIP",
}


def gather_controls(profile: Profile, subjects: Sequence[int]) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """The tables of `control_table` and the curves of `nfx.evaluation.lags.lag_curve`, one a subject.

    Subjects whose controls have not been run (``./run_all.sh evidence``) are left out of both.

    Raises
    ------
    FileNotFoundError, ValueError
        As those two.
    """
    there = [k for k in subjects if (control_folder(profile, "shuffled", k) / files.MANIFEST).is_file()]
    return [control_table(profile, k) for k in there], [lag_curve(profile, k) for k in there]


def control_table(profile: Profile, subject: int) -> pd.DataFrame:
    """Scores of the untouched decoder and of every control that is there, and how far each falls below the untouched.

    A control that lacks clips is compared with the untouched decoder on the clips that it has; then identification of
    both is among these. All comparisons of a subject are one family for Holm's correction.

    Returns
    -------
    DataFrame
        A row for each control (title) and score of `MEASURED`: subject, control, metric, mean, low, high (95 %
        block-bootstrap interval), chance (missing for SSIM), clips; difference (control less untouched, clip by clip)
        with difference_low, difference_high, p and holm, missing for the untouched decoder.

    Raises
    ------
    FileNotFoundError
        If the headline row has not been decoded.
    ValueError
        If a control has decoded clips that the untouched decoder has not.
    """
    untouched = load_run(profile, subject, profile.headline_row)
    name, chance = TITLES["untouched"], n_way_chance(profile.evaluation.n_way, profile.evaluation.top_k, 1)
    chances = {"ssim": np.nan, "image_top1_1": chance, "video_top1_1": chance, "pixels_2way": 0.5, "clip_2way": 0.5}
    known, rows, compared = _similarities(profile, untouched), [], []
    for title, run in {name: untouched, **decoded(profile, subject)}.items():
        clips = np.flatnonzero(np.isin(untouched.test.clip, run.test.clip))
        if not np.array_equal(untouched.test.clip[clips], run.test.clip):
            raise ValueError(
                f"'{title}' has decoded clips that the untouched decoder has not: run it again with {COMMAND}"
            )
        own = known if run is untouched else _similarities(profile, run)
        scores = _scores(run, own, np.arange(len(clips)))
        same = _scores(untouched, known, clips)
        segment = run.test.segment
        for column, metric in MEASURED.items():
            interval = block_bootstrap(scores[column], segment, block_length(segment))
            rows.append(
                {"subject": subject, "control": title, "metric": metric, **interval._asdict(),
                 "chance": chances[column], "clips": len(clips)}
            )  # fmt: skip
            if run is not untouched:
                pair = {title: scores[column], name: same[column]}
                compared.append(compare(pair, segment, block_length(segment), metric=metric))
    table = pd.DataFrame(rows)
    if not compared:
        return table.assign(**dict.fromkeys(("difference", "difference_low", "difference_high", "p", "holm"), np.nan))
    differences = holm_over(compared).rename(
        columns={"a": "control", "low": "difference_low", "high": "difference_high"}
    )
    columns = ["control", "metric", "difference", "difference_low", "difference_high", "p", "holm"]
    return table.merge(differences[columns], on=["control", "metric"], how="left")


def figure_controls(tables: Sequence[pd.DataFrame], curves: Sequence[pd.DataFrame], profile: Profile) -> Figure:
    """Scores under every control, one panel a score, and the lag curves below.

    Parameters
    ----------
    tables : of `control_table`, one a subject
    curves : of `lag_curve`, one a subject; may be empty
    profile : for the labels
    """
    table = pd.concat(tables, ignore_index=True)
    order = [title for title in TITLES.values() if title in set(table["control"])]
    anew = {TITLES[name] for name in TRAINED_ANEW} | {TITLES["time_averaged"]}
    group = [0 if title == TITLES["untouched"] else 2 if title in anew else 1 for title in order]
    order = [title for _, title in sorted(zip(group, order, strict=True), key=lambda pair: pair[0])]
    place = {title: row + 0.6 * kind for row, (title, kind) in enumerate(zip(order, sorted(group), strict=True))}
    subjects = sorted({*table["subject"], *(int(curve["subject"].iloc[0]) for curve in curves)})
    fig = new_figure(14, 1.9 + 0.5 * len(order) + (3.4 if curves else 0))
    upper, lower = fig, None
    if curves:
        upper, lower = fig.subfigures(2, 1, squeeze=False, height_ratios=[1.9 + 0.5 * len(order), 3.4]).flat
    axes = upper.subplots(1, len(MEASURED), sharey=True)
    n_way = f"{profile.evaluation.n_way}-way "
    labels = {"image": f"{n_way}image", "video": f"{n_way}video"}
    for letter, ax, metric in zip("abcde", axes, MEASURED.values(), strict=True):
        _draw_scores(ax, table[table["metric"].eq(metric)], place, subjects)
        ax.set_xlabel("SSIM" if metric == "SSIM" else "accuracy" if metric in labels else "identified")
        panel_letter(ax, letter, labels.get(metric, metric))
    axes[0].set_yticks(list(place.values()), list(place))
    axes[0].set_ylim(max(place.values()) + 0.6, -0.6)
    for kind, text in ((1, "decoding alone"), (2, "trained anew")):
        rows = [place[title] for title in order if (title in anew) == (kind == 2) and title != TITLES["untouched"]]
        if rows:
            axes[0].annotate(
                text, (0, min(rows) - 0.5), (-4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="center", fontsize=9, fontstyle="italic",
            )  # fmt: skip
    if lower is not None:
        _draw_curves(lower.subplots(), curves, subjects, "simulated data" if profile.simulated else "")
    shown: dict[str, Artist] = {}
    for ax in fig.get_axes():
        handles, names = ax.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    fig.legend([shown[name] for name in sorted(shown)], sorted(shown), loc="outside upper right", ncols=len(shown))
    return fig


def _subject_style(number: int) -> dict[str, Any]:
    colours = [COLOURS[name] for name in ("ours", "second", "third")]
    return {"color": colours[number % 3], "marker": "osD^v"[number % 5], "markersize": 5.5}


def _draw_scores(ax: Axes, table: pd.DataFrame, place: dict[str, float], subjects: list[int]) -> None:
    for number, subject in enumerate(subjects):
        part = table[table["subject"].eq(subject)]
        y = part["control"].map(place) + 0.22 * (number - (len(subjects) - 1) / 2)
        reach = np.clip([part["mean"] - part["low"], part["high"] - part["mean"]], 0, None)
        ax.errorbar(
            part["mean"], y, xerr=reach, linestyle="none", elinewidth=1.2, capsize=2, label=f"subject {subject}",
            **_subject_style(number),
        )  # fmt: skip
    chance = table["chance"].iloc[0]
    if np.isfinite(chance):
        ax.axvline(chance, color=COLOURS["chance"], linestyle="--", linewidth=1.1)
        ax.annotate(
            f"chance {chance:.2g}", (chance, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=9,
        )  # fmt: skip
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.12)


def _draw_curves(ax: Axes, curves: Sequence[pd.DataFrame], subjects: list[int], note: str) -> None:
    for curve in curves:
        subject = int(curve["subject"].iloc[0])
        style = _subject_style(subjects.index(subject))
        ax.plot(curve["lag"], curve["mean"], label=f"subject {subject}", **style)
        ax.fill_between(curve["lag"], curve["low"], curve["high"], color=style["color"], alpha=0.15, linewidth=0)
    ax.axhline(curves[0]["chance"].iloc[0], color=COLOURS["chance"], linestyle="--", linewidth=1.1)
    ax.axvline(0, color=COLOURS["control"], linewidth=1)
    ax.set_xticks(sorted(set(curves[0]["lag"])))
    ax.set(
        xlabel="lag of the recordings in volumes; at 0 as prepared, 4 s after the film; positive: later",
        ylabel="2-way CLIP",
    )
    panel_letter(ax, "f", "A linear reader trained anew at each lag" + (f", {note}" if note else ""))


def _similarities(profile: Profile, run: DecodedRun) -> dict[str, np.ndarray]:
    """How alike every true and every decoded test clip are, by pixels and by CLIP: (clips, clips) each."""
    from nfx.evaluation.methods import embed

    truth, decoded_clips = np.asarray(run.test.truth), np.asarray(run.test.decoded)
    embedded = (embed(clips, profile) for clips in (truth, decoded_clips))
    return {"pixels_2way": pixel_similarity(truth, decoded_clips), "clip_2way": embedding_similarity(*embedded)}


def _scores(run: DecodedRun, similarities: dict[str, np.ndarray], clips: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of some of a run's test clips, by their place; identification is among these."""
    table = of_part(run.scores, "test")
    plain = {name: table[name].to_numpy()[clips] for name in MEASURED if name not in similarities}
    return plain | {name: identification(pairs[np.ix_(clips, clips)]) for name, pairs in similarities.items()}
