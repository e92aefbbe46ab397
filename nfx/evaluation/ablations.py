"""Comparisons of notebook 05: the rows of Table 1 and the time-averaged control (Section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nfx.evaluation.claims import HOLDS, OPPOSITE, UNCLEAR, verdict
from nfx.evaluation.comparisons import Difference, paired_difference
from nfx.evaluation.controls import holm
from nfx.evaluation.tables import block_length
from nfx.plots import COLOURS, new_figure, panel_letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nfx.profile import Profile

ROW_GROUPS: dict[str, tuple[int, ...]] = {  # the parts of Table 1
    "spatial mask ratio": (0, 1, 2, 3),
    "temporal interpolation ratio": (1, 4),
    "loss weights": (1, 5, 6, 7),
    "dependent noise ratio": (1, 8, 9, 10),
}
CLAIMS: tuple[tuple[str, int, int], ...] = (  # what Section 5.2 reads from Table 1: (claim, better row, worse row)
    ("augmentation helps", 1, 0),
    ("spatial mask ratio 0.2 beats 0.4", 1, 2),
    ("spatial mask ratio 0.2 beats 0.6", 1, 3),
    ("temporal ratio 1/3 beats 1/2", 1, 4),
    ("loss weights 1, 1 beat 0.5, 0.5", 1, 5),
    ("loss weights 1, 1 beat 0.25, 0.75", 1, 6),
    ("loss weights 1, 1 beat 0.75, 0.25", 1, 7),
    ("dependent noise, beta 0.25, helps", 8, 1),
    ("dependent noise, beta 0.5, helps", 9, 1),
    ("dependent noise, beta 0.75, helps", 10, 1),
    ("beta 0.25 beats 0.5", 8, 9),
    ("beta 0.5 beats 0.75", 9, 10),
)


def paired(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Difference:
    """Difference of two decoders on the same clips, first less second: `nfx.evaluation.comparisons.paired_difference`.

    Parameters
    ----------
    first, second : DataFrame
        Scores of one part; clip and segment must agree.
    column : score to compare

    Raises
    ------
    ValueError
        If the two hold different clips.
    """
    if not np.array_equal(first["clip"], second["clip"]):
        raise ValueError("the two runs were scored on different clips: run notebook 03 for both with the same profile")
    segment = first["segment"].to_numpy()
    return paired_difference(first[column].to_numpy(), second[column].to_numpy(), segment, block_length(segment))


def direction_table(scores: Mapping[int, pd.DataFrame], paper_ssim: Mapping[int, float]) -> pd.DataFrame:
    """The directions that Section 5.2 reads from Table 1, beside ours; one family, Holm-corrected.

    Parameters
    ----------
    scores : row of Table 1 -> scores of one part
    paper_ssim : row -> quoted SSIM

    Returns
    -------
    DataFrame
        A row a claim of `CLAIMS` whose rows there are: better, worse (rows), paper (difference), ours (difference),
        low, high, p, holm, and verdict, `nfx.evaluation.claims.verdict` of the interval and the corrected p.
    """
    rows = []
    for claim, better, worse in CLAIMS:
        if not {better, worse} <= scores.keys():
            continue  # a profile with fewer rows
        found = paired(scores[better], scores[worse], "ssim")
        rows.append(
            {"claim": claim, "better": better, "worse": worse, "paper": paper_ssim[better] - paper_ssim[worse],
             "ours": found.difference, "low": found.low, "high": found.high, "p": found.p}
        )  # fmt: skip
    table = pd.DataFrame(rows).assign(holm=lambda t: holm(t["p"]))
    lines = zip(table["low"], table["high"], table["holm"], strict=True)
    return table.assign(verdict=[verdict(*line) for line in lines])


def row_comparisons(scores: Mapping[int, pd.DataFrame], base: int = 0) -> pd.DataFrame:
    """Every row of Table 1 against one of them, by SSIM and both accuracies; one family, Holm-corrected.

    Parameters
    ----------
    scores : row -> scores of one part
    base : row to compare with

    Returns
    -------
    DataFrame with columns metric, row, against, difference (row less base), low, high, p, holm
    """
    columns = {"ssim": "SSIM", "image_top1_1": "image", "video_top1_1": "video"}
    rows = [
        {"metric": name, "row": row, "against": base, **paired(table, scores[base], column)._asdict()}
        for column, name in columns.items() for row, table in scores.items() if row != base
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(holm=lambda t: holm(t["p"]))


def averaged_table(
    normal: Mapping[int, pd.DataFrame], averaged: Mapping[int, pd.DataFrame], published: pd.DataFrame
) -> pd.DataFrame:
    """The time-averaged control of Section 5.2: 50-way video accuracy with and without the change in time.

    Parameters
    ----------
    normal, averaged : subject -> scores of the test clips
    published : of `nfx.evaluation.published`

    Returns
    -------
    DataFrame
        A row for each subject and number of correct classes: full, averaged, difference (averaged - full) with low,
        high and p, and in per cent of full; for one correct class, the paper's, its quoted values with the per cent
        that follow from them.
    """
    rows = []
    for subject in averaged:
        for column, correct in (("video_top1_1", 1), ("video_top1_3", 3)):
            change = paired(averaged[subject], normal[subject], column)._asdict()
            quoted = {
                name: published["value"].get(f"{key}_video_50way_{subject}", np.nan) if correct == 1 else np.nan
                for name, key in (("paper, full", "neuralflix"), ("paper, averaged", "averaged"))
            }
            full, mean = (float(scores[subject][column].mean()) for scores in (normal, averaged))
            drop = 100 * (mean - full) / full if full else np.nan
            row = {"subject": subject, "correct": correct, "full": full, "averaged": mean, **change, "percent": drop}
            theirs = published["value"].get(f"averaged_drop_{subject}", np.nan) if correct == 1 else np.nan
            rows.append(row | quoted | {"paper, percent": theirs})
    return pd.DataFrame(rows)


def verdicts(directions: pd.DataFrame) -> list[str]:
    """What `direction_table` says, in sentences: counts first, then a line a claim."""
    same = int((directions["ours"] > 0).sum())
    counts = directions["verdict"].value_counts()
    lines = [
        f"{same} of the paper's {len(directions)} directions have the same sign here, which is no evidence by itself;",
        ", ".join(f"{counts.get(name, 0)} {name}" for name in (HOLDS, OPPOSITE, UNCLEAR))
        + " (95 % interval of the paired difference, Holm-corrected p < 0.05)",
    ]
    return lines + [
        f"{row.claim}: {row.verdict}, {row.ours:+.4f} [{row.low:+.4f}, {row.high:+.4f}], p (Holm) {row.holm:.3f} "
        f"(paper {row.paper:+.3f})"
        for row in directions.itertuples()
    ]


def figure_row_groups(validation: pd.DataFrame, test: pd.DataFrame, profile: Profile) -> Figure:
    """SSIM of the rows of Table 1, a column of panels for each group, ours above and the paper's, quoted, below.

    Parameters
    ----------
    validation, test : DataFrame
        Indexed by row, with columns mean, low and high.
    profile : for the quoted values and the labels
    """
    groups = {name: [row for row in rows if row in validation.index] for name, rows in ROW_GROUPS.items()}
    fig = new_figure(14, 6.6)
    axes = fig.subplots(2, len(groups), width_ratios=[max(len(rows), 2.4) for rows in groups.values()], sharey="row")
    for column, (letter, (name, rows)) in enumerate(zip("abcd", groups.items(), strict=True)):
        ours, quoted = axes[:, column]
        at = np.arange(len(rows))
        _bars(ours, at - 0.2, validation.loc[rows], COLOURS["ours"], "validation")
        _bars(ours, at + 0.2, test.loc[rows], COLOURS["second"], "test")
        paper = [profile.row(row).paper_ssim for row in rows]
        quoted.bar(at, paper, 0.6, fill=False, edgecolor=COLOURS["published"], hatch="///")
        for x, value in zip(at, paper, strict=True):
            quoted.annotate(f"{value:.3f}", (x, value), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        for ax in (ours, quoted):
            ax.set_xticks(at, [_row_label(profile, name, row) for row in rows], fontsize=9)
            ax.margins(y=0.14)
        panel_letter(ours, letter, name.removesuffix(" ratio").replace("interpolation", "").strip())
    kind = "ours, simulated data" if profile.simulated else "ours"
    axes[0, 0].set_ylabel(f"SSIM, {kind}")
    axes[1, 0].set_ylabel("SSIM, paper (quoted, real data)")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def figure_averaged(table: pd.DataFrame, profile: Profile) -> Figure:
    """50-way video accuracy with the full and the time-averaged signal, ours and, apart, as quoted.

    Parameters
    ----------
    table : of `averaged_table`; drawn for one correct class
    profile : for the labels and the chance level
    """
    from nfx.evaluation.n_way import n_way_chance

    table = table[table["correct"].eq(1)]
    fig = new_figure(9.5, 4)
    ours, quoted = fig.subplots(1, 2)
    at = np.arange(len(table))
    for k, (name, colour, hatch) in enumerate((("full", "ours", "///"), ("averaged", "second", "..."))):
        x = at + (k - 0.5) * 0.38
        ours.bar(x, table[name], 0.36, color=COLOURS[colour], label=name)
        values = table[f"paper, {name}"]
        quoted.bar(x, values, 0.36, fill=False, edgecolor=COLOURS["published"], hatch=hatch, label=name)
        for ax, heights in ((ours, table[name]), (quoted, values)):
            for place, value in zip(x, heights, strict=True):
                if np.isfinite(value):
                    ax.annotate(f"{value:.3f}", (place, value), (0, 3), textcoords="offset points", ha="center")
    chance = n_way_chance(profile.evaluation.n_way, profile.evaluation.top_k, 1)
    for ax, title in ((ours, "ours, simulated data" if profile.simulated else "ours"), (quoted, "quoted (real data)")):
        ax.axhline(chance, color=COLOURS["chance"], linestyle="--", linewidth=1.2, label=f"chance {chance:.3f}")
        ax.set_xticks(at, [f"subject {subject}" for subject in table["subject"]])
        ax.set(title=title, ylabel=f"{profile.evaluation.n_way}-way video accuracy")
        ax.margins(y=0.16)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, columnspacing=1, handlelength=1.6)
    return fig


def _bars(ax: Axes, x: np.ndarray, table: pd.DataFrame, colour: str, label: str) -> None:
    reach = np.clip([table["mean"] - table["low"], table["high"] - table["mean"]], 0, None)
    ax.bar(x, table["mean"], 0.38, color=colour, label=label)
    ax.errorbar(x, table["mean"], reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)


def _row_label(profile: Profile, group: str, row: int) -> str:
    """Number of a row and, below it, what the group changes."""
    line = profile.row(row)
    values = {
        "spatial mask ratio": (line.spatial_ratio,),
        "temporal interpolation ratio": (line.temporal_ratio,),
        "loss weights": (line.spatial_weight, line.temporal_weight),
        "dependent noise ratio": (line.beta,),
    }[group]
    return f"row {row}\n" + ", ".join("off" if value is None else f"{value:.2g}" for value in values)
