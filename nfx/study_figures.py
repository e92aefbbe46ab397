"""Figures of what the studies show: Table 1 over seeds, and curves over signal-to-noise and training size.

The numbers are of `nfx.studies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nfx.plots import COLOURS, new_figure, panel_letter
from nfx.studies import READERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from nfx.profile import Profile

DECODED, RIDGE, FILM, WHOLE = READERS
LOOKS = {  # reader -> colour, marker, line; apart in grey too
    DECODED: (COLOURS["ours"], "o", "-"),
    RIDGE: (COLOURS["published"], "s", "--"),
    FILM: (COLOURS["control"], "^", ":"),
    WHOLE: (COLOURS["third"], "D", "-."),
}
AXES = {"signal": "single-trial explained variance", "size": "training clips"}
UNITS = {"SSIM above permuted pairs": "SSIM", "CLIP 2-way": "accuracy", "voxels": "voxels", "voxel choice": "AUC"}
UNITS |= {"attention": "rank correlation"}


def figure_curves(table: pd.DataFrame, profile: Profile) -> Figure:
    """Where the method works and where it breaks: a panel a score, over signal-to-noise or over training size.

    Dots are subjects with their 95 % intervals over blocks of clips (filled: the profile's own; open: of a study); the
    line joins the means of the subjects at each x. Dashed black: chance.

    Parameters
    ----------
    table : of `curves`, narrowed to one study
    profile : of whose name the own subjects are

    Raises
    ------
    ValueError
        If the table holds both studies.
    """
    kinds = table["study"].unique()
    if len(kinds) != 1:
        raise ValueError(f"the table holds the studies {list(kinds)}, expected one: narrow it, one figure each")
    names = list(dict.fromkeys(table["score"]))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    fig = new_figure(3.5 * columns, 2.7 * lines + 0.5)
    axes = np.atleast_1d(fig.subplots(lines, columns, sharex=True)).ravel()
    readers = [reader for reader in LOOKS if table["reader"].eq(reader).any()]
    for number, (ax, name) in enumerate(zip(axes, names, strict=False)):
        own = table[table["score"].eq(name)]
        here = [reader for reader in readers if own["reader"].eq(reader).any()]
        for k, reader in enumerate(here):
            _curve(ax, own[own["reader"].eq(reader)], reader, k - (len(here) - 1) / 2, profile)
        chance = own.groupby("x")["chance"].mean().dropna()
        if len(chance):
            ax.plot(chance.index, chance, color=COLOURS["chance"], linestyle=(0, (4, 3)), linewidth=1.1)
        ax.set_xscale("log")
        ax.set_xticks(ticks := _apart(sorted(own["x"].unique())), [f"{x:g}" for x in ticks])
        ax.minorticks_off()
        ax.set(ylabel=UNITS.get(name, "share of clips"))
        panel_letter(ax, "abcdefghijklmnop"[number], name)
        ax.margins(y=0.1)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(names) - columns) : len(names)]:
        ax.set_xlabel(AXES[kinds[0]])
        ax.tick_params(labelbottom=True)
    fig.legend(handles=_legend(readers), loc="outside lower center", ncols=4)
    return fig


def _legend(readers: Sequence[str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    grey = {"color": "#555555", "linestyle": "none", "marker": "o", "markersize": 5}
    return [
        *(Line2D([], [], color=c, marker=m, linestyle=s, label=r) for r, (c, m, s) in LOOKS.items() if r in readers),
        Line2D([], [], color=COLOURS["chance"], linestyle=(0, (4, 3)), label="chance"),
        Line2D([], [], label="the profile's own subjects", **grey),
        Line2D([], [], label="subjects of the study", markerfacecolor="white", **grey),
    ]


def _curve(ax: Axes, table: pd.DataFrame, reader: str, offset: float, profile: Profile) -> None:
    table = table.dropna(subset=["value"])
    if table.empty:
        return
    colour, marker, style = LOOKS[reader]
    mean = table.groupby("x")["value"].mean()
    ax.plot(mean.index, mean, color=colour, linestyle=style, linewidth=1.3, zorder=1)
    for own, part in table.groupby(table["profile"].eq(profile.name)):
        reach = np.clip([part["value"] - part["low"], part["high"] - part["value"]], 0, None)
        ax.errorbar(
            part["x"] * (1 + 0.015 * offset), part["value"], None if np.isnan(reach).any() else reach, fmt=marker,
            color=colour, markersize=5, markerfacecolor=colour if own else "white", elinewidth=0.9, capsize=2, zorder=2,
        )  # fmt: skip


def _apart(values: Sequence[float], least: float = 1.25) -> list[float]:
    """The values that a logarithmic axis has room to name: each at least `least` times the one before."""
    kept = list(values[:1])
    for value in values[1:]:
        if value >= least * kept[-1]:
            kept.append(value)
    return kept


def figure_seeds(table: pd.DataFrame, directions: pd.DataFrame, profile: Profile, part: str = "test") -> Figure:
    """Table 1 over seeds: SSIM of each row, and the readings of Section 5.2 with their intervals over seeds.

    Parameters
    ----------
    table : of `seed_table`
    directions : of `seed_directions`
    profile : for the labels
    part : "test" or "validation"
    """
    table = table[table["part"].eq(part) & table["metric"].eq("SSIM")]
    directions = directions[directions["part"].eq(part)]
    seeds = [column for column in table.columns if column.startswith("seed ")]
    fig = new_figure(13.5, 4.8)
    left, right = fig.subplots(1, 2, width_ratios=[1.2, 1])
    at = np.arange(len(table))
    _over_seeds(left, at, table, seeds, vertical=True)
    left.set_xticks(at, table["row"])
    kind = "simulated data" if profile.simulated else "real data"
    left.set(xlabel="row of Table 1", ylabel=f"SSIM, {part} clips, {kind}")
    panel_letter(left, "a", f"{len(seeds)} seeds")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=len(seeds) + 1, columnspacing=1, handletextpad=0.4)
    at = np.arange(len(directions))[::-1]
    _over_seeds(right, at, directions, seeds, vertical=False)
    right.axvline(0, color=COLOURS["chance"], linestyle=(0, (4, 3)), linewidth=1.1)
    right.set_yticks(at, directions["claim"], fontsize=9)
    for y, told in zip(at, directions["verdict"], strict=True):
        right.text(1.02, y, told, transform=right.get_yaxis_transform(), va="center", fontsize=9)
    right.set(xlabel="difference of SSIM, in the paper's direction to the right")
    panel_letter(right, "b", "readings of Section 5.2")
    return fig


def _over_seeds(ax: Axes, at: np.ndarray, table: pd.DataFrame, seeds: list[str], vertical: bool) -> None:
    """Single seeds as small open marks, and their mean with its t interval."""
    reach = np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])
    place = (lambda x, y: (x, y)) if vertical else (lambda x, y: (y, x))
    error = {"yerr" if vertical else "xerr": reach}
    ax.errorbar(
        *place(at, table["mean"]), **error, fmt="o", color=COLOURS["ours"], capsize=3, elinewidth=1.2,
        label="mean and 95 % t interval", zorder=2,
    )  # fmt: skip
    for k, (seed, marker) in enumerate(zip(seeds, "s^Dv<>" * len(seeds), strict=False)):
        shift = 0.16 * (k + 1)
        ax.plot(
            *place(at + shift, table[seed]), marker, markersize=4.5, markerfacecolor="none",
            color=COLOURS["published"], label=seed, zorder=1,
        )  # fmt: skip
