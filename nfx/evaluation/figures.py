"""Figures 1-5 and 7 and the tables, from plain arrays and DataFrames (Sections 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx.plots import COLOURS, contact_sheet, draw_sheet, new_figure, panel_letter, sheet_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

QUOTED = "quoted (real data)"
# Ours, row 0 and the four baselines; colour-blind safe (Okabe and Ito).
BAR_COLOURS = (COLOURS["ours"], COLOURS["second"], COLOURS["third"], "#E69F00", "#CC79A7", "#F0E442")
METRIC_NAMES = {"image": "50-way image", "video": "50-way video"}
TABLE_1_COLUMNS = {
    "spatial_ratio": "spatial mask ratio",
    "temporal_ratio": "temporal interpolation ratio",
    "spatial_weight": "spatial loss weight",
    "temporal_weight": "temporal loss weight",
    "beta": "dependent noise ratio",
}


# ---------------------------------------------------------------- Figure 1


def figure_1(
    tokens: np.ndarray, masked: np.ndarray, interpolated: np.ndarray, noise: dict[float, np.ndarray]
) -> Figure:
    """The framework, with panels a and d drawn from data.

    Parameters
    ----------
    tokens, masked, interpolated : (window, patches, dim)
        One window as the encoder embeds it, after spatial masking, and after temporal interpolation.
    noise : beta -> (frames, height, width)
        One channel of dependent noise (Eq. 7) for several beta.

    Returns
    -------
    Figure
    """
    fig = new_figure(14, 9)
    left, right = fig.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.15], wspace=0.03).flat
    augmentation, noises = left.subfigures(2, 1, height_ratios=[1.25, 1], hspace=0.05)
    phase_1, phase_2 = right.subfigures(2, 1, hspace=0.05)
    _draw_tokens(augmentation, {"tokens": tokens, "spatial masking": masked, "temporal interpolation": interpolated})
    _draw_phase_1(phase_1)
    _draw_phase_2(phase_2)
    _draw_noise(noises, noise)
    equation = r"$\epsilon^j = \sqrt{\beta}\,\epsilon_s + \sqrt{1-\beta}\,\epsilon_i^j$"
    panel_letter(noises, "d", f"Dependent noise  {equation}")
    return fig


def _draw_tokens(fig: SubFigure, versions: dict[str, np.ndarray]) -> None:
    shapes = {np.shape(tokens) for tokens in versions.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"tokens have shapes {sorted(shapes)}, expected (window, patches, dim) three times")
    window = next(iter(shapes))[0]
    limit = float(np.quantile(np.abs(next(iter(versions.values()))), 0.98)) or 1.0
    axes = fig.subplots(window, len(versions), squeeze=False, sharex=True, sharey=True)
    for column, (title, tokens) in enumerate(versions.items()):
        for frame in range(window):
            ax = axes[frame, column]
            image = ax.imshow(
                tokens[frame], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
            )
            ax.set(xticks=[], yticks=[])
            if frame == 0:
                ax.set_title(title, fontsize=11)
            if column == 0:
                ax.set_ylabel(f"volume {frame + 1}\npatches")
            if frame == window - 1:
                ax.set_xlabel("embedding")
    fig.colorbar(image, ax=axes, shrink=0.6, ticks=[-limit, 0, limit], format="%.1f", label="token value")
    panel_letter(fig, "a", "Augmented views of one fMRI window")


def _draw_noise(fig: Figure | SubFigure, noise: dict[float, np.ndarray]) -> None:
    frames = len(next(iter(noise.values())))
    axes = fig.subplots(len(noise), frames, squeeze=False)
    for row, (beta, panels) in zip(axes, noise.items(), strict=True):
        for frame, (ax, panel) in enumerate(zip(row, panels, strict=True)):
            ax.imshow(panel, cmap="gray", vmin=-2.5, vmax=2.5, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if ax in axes[0]:
                ax.set_title(f"frame {frame + 1}", fontsize=10)
        row[0].set_ylabel(rf"$\beta$ = {beta:g}", rotation=0, ha="right", va="center", labelpad=6)


def figure_noise(noise: dict[float, np.ndarray]) -> Figure:
    """Panel d of Figure 1 by itself: dependent noise (Eq. 7) for several beta, frame by frame.

    Parameters
    ----------
    noise : beta -> (frames, height, width), of `nfx.evaluation.panels.noise_panels`
    """
    fig = new_figure(7, 0.95 * len(noise) + 0.7)
    _draw_noise(fig, noise)
    return fig


def _draw_phase_1(fig: SubFigure) -> None:
    ax = _canvas(fig, "b", "Phase 1: contrastive mapping to CLIP")
    views = {"fMRI window $v$": 0.82, "masked $v^{spa}$": 0.5, "interpolated $v^{tem}$": 0.18}
    for text, y in views.items():
        _box(ax, 0.13, y, 0.23, 0.17, text, COLOURS["second"])
        _arrow(ax, (0.25, y), (0.35, 0.5 + 0.3 * (y - 0.5)))
    _box(ax, 0.445, 0.5, 0.18, 0.42, "fMRI encoder\n$E_f$\n(pre-trained\nViT)", COLOURS["ours"], dark=True)
    targets = {
        "CLIP text of\nBLIP caption": (0.82, 0.72, r"$L_{emb}$"),
        "CLIP image of\nframe": (0.5, 0.53, r"$L_{emb}$"),
        "$E_f(v)$ and its\naugmented views": (0.18, 0.19, r"$L_{spa},\ L_{tem}$"),
    }
    for text, (y, above, loss) in targets.items():
        colour = COLOURS["second"] if y < 0.3 else COLOURS["third"]
        _box(ax, 0.86, y, 0.26, 0.2, text, colour)
        start = (0.54, 0.5 + 0.3 * (y - 0.5))
        _arrow(ax, start, (0.725, y), double=True)
        ax.text(0.62, above, loss, ha="center", va="bottom", fontsize=11)


def _draw_phase_2(fig: SubFigure) -> None:
    ax = _canvas(fig, "c", "Phase 2: video diffusion from fMRI")
    _box(ax, 0.11, 0.78, 0.2, 0.19, "fMRI\nwindow", COLOURS["second"])
    _box(ax, 0.46, 0.78, 0.3, 0.19, "fMRI encoder $E_f$", COLOURS["ours"], dark=True)
    _box(ax, 0.11, 0.27, 0.2, 0.24, "dependent\nnoise, 6 frames", COLOURS["control"])
    unet = "Video U-Net, DDIM\nspatial self-attention\ntemporal attention\ncross-attention"
    _box(ax, 0.46, 0.27, 0.3, 0.46, unet, COLOURS["ours"], dark=True)
    _box(ax, 0.73, 0.27, 0.13, 0.24, "VAE\ndecoder", COLOURS["third"])
    _box(ax, 0.92, 0.27, 0.14, 0.24, "clip: 2 s,\n6 frames", COLOURS["second"])
    _arrow(ax, (0.22, 0.78), (0.305, 0.78))
    _arrow(ax, (0.46, 0.68), (0.46, 0.51))
    ax.text(0.48, 0.595, "tokens replace the text embedding", ha="left", va="center", fontsize=10)
    _arrow(ax, (0.22, 0.27), (0.305, 0.27))
    _arrow(ax, (0.615, 0.27), (0.66, 0.27))
    _arrow(ax, (0.80, 0.27), (0.845, 0.27))


def _canvas(fig: SubFigure, letter: str, title: str) -> Axes:
    ax = fig.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    panel_letter(fig, letter, title)
    return ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, dark: bool = False) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.02",
            facecolor=to_rgba(colour, 1.0 if dark else 0.25),
            edgecolor=colour,
            linewidth=1.2,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=10, color="white" if dark else "black", linespacing=1.35)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], double: bool = False) -> None:
    style = "<|-|>" if double else "-|>"
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": style, "color": "#444444", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    )


# ---------------------------------------------------------------- Figure 2


def figure_2(
    ours: pd.DataFrame,
    accuracy: pd.DataFrame,
    published: pd.DataFrame,
    chance: float,
    simulated: bool,
) -> Figure:
    """SSIM per subject and method, and 50-way accuracy. Published numbers keep to axes of their own.

    Parameters
    ----------
    ours : DataFrame
        Columns subject, method, mean, low, high: SSIM of our decoders and controls; low and high may be NaN.
        The first method is the headline; controls have a method that begins with "control: ".
    accuracy : DataFrame
        Columns subject, method, metric ("image" or "video"), mean, low, high: 50-way top-1, one correct class.
    published : DataFrame
        Of `nfx.evaluation.published`; its quoted SSIM by subject and the quoted accuracies of NeuralFlix are drawn.
    chance : float
        Level of the n-way test, of `n_way_chance`.
    simulated : bool
        Whether `ours` and `accuracy` come from the simulated brain.

    Returns
    -------
    Figure
    """
    label = "ours, simulated data" if simulated else "ours"
    fig = new_figure(14, 8.6)
    top, bottom = fig.subfigures(2, 1, squeeze=False, hspace=0.06).flat
    ax, beside = top.subplots(1, 2, width_ratios=[1.25, 1])
    panel_letter(top, "a", "Structural similarity")
    _grouped_bars(ax, ours, "method")
    ax.set(ylabel="SSIM", title=label)
    # SSIM definitions differ between papers: only values of the paper itself, and derived from it, stand here.
    quoted = published[published["metric"].eq("ssim") & published["method"].isin(["NeuralFlix", "MinD-Video"])]
    quoted = quoted[quoted["source"].str.contains("NeuralFlix") & quoted["subject"].isin([1, 2, 3])]
    derived = quoted["status"].eq("derived")
    quoted = quoted.assign(method=quoted["method"] + np.where(derived, ", derived from the gain", ""))
    _published_bars(beside, quoted, "method")
    beside.set(ylabel="SSIM", title=QUOTED)

    *measured, beside = bottom.subplots(1, 3, width_ratios=[1, 1, 0.8])
    panel_letter(bottom, "b", "50-way top-1 accuracy, one correct class; methods as in a")
    for ax, (metric, name) in zip(measured, METRIC_NAMES.items(), strict=True):
        _grouped_bars(ax, accuracy[accuracy["metric"].eq(metric)], "method")
        ax.get_legend().remove()
        ax.set(ylabel="accuracy", title=f"{name}; {label}")
    quoted = published[published["metric"].eq("video_50way") & published["method"].str.startswith("NeuralFlix")]
    quoted = quoted[quoted["status"].eq("quoted")]
    video = quoted.assign(method=quoted["method"].str.replace("NeuralFlix time-averaged", "time-averaged fMRI"))
    _published_bars(beside, video, "method")
    beside.set(ylabel="accuracy", title=f"video; {QUOTED}")
    for axes in (*measured, beside):
        axes.axhline(
            chance, color=COLOURS["chance"], linestyle="--", linewidth=1.2, label=f"chance {chance:.3f}", zorder=3
        )
    _legend(beside)
    return fig


def _grouped_bars(ax: Axes, table: pd.DataFrame, group: str) -> None:
    """Bars by subject and group with intervals; controls as grey markers over the whole width of a subject."""
    is_control = table[group].str.startswith("control: ")
    bars, controls = table[~is_control], table[is_control]
    subjects, groups = sorted(table["subject"].unique()), list(dict.fromkeys(bars[group]))
    if len(groups) > len(BAR_COLOURS):
        raise ValueError(f"{len(groups)} kinds of bar {groups}, expected at most {len(BAR_COLOURS)}")
    by_subject = {s: [g for g in groups if g in set(bars[bars["subject"].eq(s)][group])] for s in subjects}
    width = 0.72 / len(groups)
    for k, name in enumerate(groups):
        part = bars[bars[group].eq(name)]
        # The bars of a subject stand together in the middle, also where it has fewer kinds than another.
        place = [subjects.index(s) + (by_subject[s].index(name) - (len(by_subject[s]) - 1) / 2) * width
                 for s in part["subject"]]  # fmt: skip
        ax.bar(place, part["mean"], width * 0.92, color=BAR_COLOURS[k], label=name)
        ax.errorbar(place, part["mean"], _reach(part), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        for at, value, high in zip(place, part["mean"], part["high"].fillna(part["mean"]), strict=True):
            _value(ax, at, value, high, upright=len(groups) > 3)
    for k, name in enumerate(dict.fromkeys(controls[group])):
        part = controls[controls[group].eq(name)].set_index("subject").reindex(subjects)
        style = ("-", "--", ":", "-.")[k % 4]
        x = np.arange(len(subjects))
        label = name.removeprefix("control: ")
        ax.hlines(part["mean"], x - 0.42, x + 0.42, color="#555555", linestyle=style, linewidth=1.6, label=label)
    ax.set_xticks(range(len(subjects)), [f"subject {s}" for s in subjects])
    _legend(ax, above=0.22 if len(groups) > 3 else 0.12)


def _reach(table: pd.DataFrame) -> np.ndarray:
    """Lengths of the error bars below and above the mean, 0 where there is no interval."""
    lengths = np.array([table["mean"] - table["low"], table["high"] - table["mean"]], dtype=float)
    return np.nan_to_num(np.clip(lengths, 0, None))


def _published_bars(ax: Axes, table: pd.DataFrame, group: str) -> None:
    """Hatched open bars by subject: never of the look of a measured bar."""
    subjects, groups = sorted(table["subject"].unique()), list(dict.fromkeys(table[group]))
    width = 0.72 / max(len(groups), 1)
    for k, name in enumerate(groups):
        part = table[table[group].eq(name)].set_index("subject").reindex(subjects)
        x = np.arange(len(subjects)) + (k - (len(groups) - 1) / 2) * width
        hatch = ("///", "...", "xxx")[k % 3]
        ax.bar(
            x,
            part["value"].astype(float),
            width * 0.92,
            fill=False,
            edgecolor=COLOURS["published"],
            hatch=hatch,
            label=name,
        )
        for at, value in zip(x, part["value"].astype(float), strict=True):
            _value(ax, at, value, value)
    ax.set_xticks(range(len(subjects)), [f"subject {s}" for s in subjects])
    _legend(ax)


def _value(ax: Axes, x: float, value: float, top: float, upright: bool = False) -> None:
    """A bar's value above its interval, on white where lines would run through it."""
    if np.isfinite(value):
        ax.annotate(
            f"{value:.3f}",
            (x, top),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",  # not the baseline, which upright text has at its side
            fontsize=8 if upright else 9,
            rotation=90 if upright else 0,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )


def _legend(ax: Axes, above: float = 0.12) -> None:
    ax.margins(y=above)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3)


# ---------------------------------------------------------------- Figures 3, 4, 5 and 7


def figure_3(rows: dict[str, np.ndarray], titles: Sequence[str] | None = None) -> Figure:
    """Ground truth, ours and every baseline, frame by frame: a few clips, one beside the other.

    Parameters
    ----------
    rows : label -> uint8 (clips, frames, height, width, 3)
        E.g. truth, ours (row 10), row 0, nearest training clip; the truth first.
    titles : one a clip

    Returns
    -------
    Figure
    """
    return contact_sheet(rows, None if titles is None else list(titles), clips_per_line=2, frame_inches=0.78)


def figure_4(rows: dict[str, np.ndarray], titles: Sequence[str] | None = None) -> Figure:
    """Ground truth, ours and the strongest baseline: more clips than Figure 3, smaller. Parameters as `figure_3`."""
    return contact_sheet(rows, None if titles is None else list(titles), clips_per_line=3, frame_inches=0.6)


def figure_5(truth: np.ndarray, decoded: dict[int, np.ndarray], titles: Sequence[str] | None = None) -> Figure:
    """Ground truth and the decoded clips of all subjects.

    Parameters
    ----------
    truth : uint8 (clips, frames, height, width, 3)
    decoded : subject -> the same clips, decoded
    titles : one a clip

    Returns
    -------
    Figure
    """
    rows = {"truth": truth} | {f"subject {subject}": clips for subject, clips in decoded.items()}
    return contact_sheet(rows, None if titles is None else list(titles), clips_per_line=2, frame_inches=0.7)


def figure_7(
    truth: dict[int, np.ndarray], decoded: dict[int, np.ndarray], titles: dict[int, Sequence[str]] | None = None
) -> Figure:
    """Many decoded clips of each subject, panels a, b, c.

    Parameters
    ----------
    truth, decoded : subject -> uint8 (clips, frames, height, width, 3)
    titles : subject -> one a clip

    Returns
    -------
    Figure
    """
    if set(truth) != set(decoded):
        raise ValueError(f"truth has subjects {sorted(truth)} and decoded {sorted(decoded)}, expected the same")
    rows = {subject: {"truth": truth[subject], "decoded": decoded[subject]} for subject in truth}
    sizes = [sheet_size(sheet, 3, 0.55) for sheet in rows.values()]
    heights = [height + 0.45 for _, height in sizes]
    fig = new_figure(max(width for width, _ in sizes), sum(heights))
    panels = fig.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, letter, (subject, sheet) in zip(panels, "abcdefghij", rows.items(), strict=False):
        draw_sheet(panel, sheet, None if titles is None else list(titles[subject]), clips_per_line=3)
        panel_letter(panel, letter, f"Subject {subject}")
    return fig


# ---------------------------------------------------------------- clip by clip


def best_median_worst(score: np.ndarray) -> dict[str, int]:
    """Places of the clips with the highest, the middle and the lowest score; among equals, the earliest clip.

    Parameters
    ----------
    score : (clips,), NaN where a clip has no score
    """
    known = np.flatnonzero(np.isfinite(score))
    if len(known) < 3:
        raise ValueError(f"{len(known)} clips have a score, expected three at least")
    order = known[np.argsort(-score[known], kind="stable")]
    lowest = int(known[np.argmin(score[known])])
    return {"best": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "worst": lowest}


def figure_clip_scores(
    score: np.ndarray,
    truth: np.ndarray,
    decoded: np.ndarray,
    name: str,
    level: float | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """The score of every clip, from the highest to the lowest, and what the best, median and worst look like.

    These three are chosen by their score, and so show the range and not what is typical: the median does that.

    Parameters
    ----------
    score : (clips,), of one column of `nfx.evaluation.methods.clip_scores`; NaN where a clip has none
    truth, decoded : uint8 (clips, frames, height, width, 3)
    name : what the score is called
    level : what the score of a decoder that knows nothing would be
    titles : one a clip
    """
    if not len(score) == len(truth) == len(decoded):
        raise ValueError(f"{len(score)} scores, {len(truth)} true and {len(decoded)} decoded clips: expected as many")
    chosen = best_median_worst(score)
    fig = new_figure(11, 4.2)
    left, right = fig.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.05]).flat
    ax = left.subplots()
    falling = np.sort(score[np.isfinite(score)])[::-1]
    ax.plot(np.arange(1, len(falling) + 1), falling, color=COLOURS["ours"], marker=".", markersize=4, linewidth=0.8)
    place = {"best": 0, "median": (len(falling) - 1) // 2, "worst": len(falling) - 1}
    for (kind, at), marker in zip(place.items(), "^os", strict=True):
        ax.plot(at + 1, falling[at], marker, color=COLOURS["published"], markersize=8, label=kind)
    ax.axhline(falling.mean(), color=COLOURS["ours"], linestyle=":", linewidth=1.2, label=f"mean {falling.mean():.3g}")
    if level is not None:
        ax.axhline(level, color=COLOURS["chance"], linestyle="--", linewidth=1.2, label=f"chance {level:.3g}")
    ax.set(xlabel="clips, from the highest score to the lowest", ylabel=name)
    ax.legend()
    clips = list(chosen.values())
    words = [f"{kind}, score {score[k]:.3g}" + (f"; {titles[k]}" if titles else "") for kind, k in chosen.items()]
    draw_sheet(right, {"truth": truth[clips], "decoded": decoded[clips]}, words, clips_per_line=1)
    return fig


# ---------------------------------------------------------------- Section 5.2


def figure_ablations(table: pd.DataFrame, simulated: bool) -> Figure:
    """SSIM of the rows of Table 1, ours and, apart, as quoted.

    Parameters
    ----------
    table : DataFrame
        Indexed by row, with columns mean, low, high (ours) and paper_ssim.
    simulated : bool
    """
    fig = new_figure(11, 6.4)
    ax, beside = fig.subplots(2, 1, sharex=True)
    x = np.arange(len(table))
    colours = [COLOURS["ours"] if row else COLOURS["second"] for row in table.index]
    ax.bar(x, table["mean"], 0.7, color=colours)
    ax.errorbar(x, table["mean"], _reach(table), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
    beside.bar(x, table["paper_ssim"], 0.7, fill=False, edgecolor=COLOURS["published"], hatch="///")
    values = zip(table["mean"], table["high"].fillna(table["mean"]), table["paper_ssim"], strict=True)
    for at, (ours, high, theirs) in enumerate(values):
        _value(ax, at, ours, high)
        _value(beside, at, theirs, theirs)
    ax.set(ylabel="SSIM", title="ours, simulated data" if simulated else "ours")
    beside.set(ylabel="SSIM", xlabel="row of Table 1", title=QUOTED)
    beside.set_xticks(x, [str(row) for row in table.index])
    for axes in (ax, beside):
        axes.margins(y=0.14)
    return fig


# ---------------------------------------------------------------- Tables


def table_1(rows: dict[int, dict], scores: dict[int, dict[str, float]]) -> pd.DataFrame:
    """Table 1: the parameters of every row, the paper's SSIM and ours. Rows not run yet are left empty.

    Parameters
    ----------
    rows : row -> parameters
        Keys of `TABLE_1_COLUMNS` and paper_ssim, as in the profile; None means off.
    scores : row -> {column: value}
        E.g. validation SSIM with its limits, test SSIM.

    Returns
    -------
    DataFrame indexed by row
    """
    columns = list(dict.fromkeys(column for values in scores.values() for column in values))
    table = []
    for row, parameters in rows.items():
        line: dict[str, Any] = {"row": row}
        for key, name in TABLE_1_COLUMNS.items():
            value = parameters[key]
            line[name] = "off" if value is None else f"{value:.2g}"
        line["SSIM, paper (quoted)"] = parameters["paper_ssim"]
        line |= {column: scores.get(row, {}).get(column, np.nan) for column in columns}
        table.append(line)
    return pd.DataFrame(table).set_index("row")


def percent_gain(ours: float, baseline: float) -> float:
    """Gain over a baseline in per cent, as the paper's abstract states it: 100 (ours - baseline) / baseline."""
    if baseline == 0:
        raise ValueError("baseline is 0: a gain in per cent is not defined")
    return 100 * (ours - baseline) / baseline


def numbers_in_text(ours: dict[str, float], published: pd.DataFrame) -> pd.DataFrame:
    """Every number of the paper's running text beside ours.

    Parameters
    ----------
    ours : published id -> our value
        Ids of ``published.yaml``; what was not measured is left empty.
    published : DataFrame of `nfx.evaluation.published`

    Returns
    -------
    DataFrame indexed by id: method, subject, metric, paper, status, formula, ours, source
    """
    unknown = set(ours) - set(published.index)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no ids of published.yaml")
    own = published[published["source"].str.contains("NeuralFlix") & ~published["source"].str.contains("Table 1")]
    table = own[["method", "subject", "metric", "value", "status", "formula", "source"]].rename(
        columns={"value": "paper"}
    )
    table["paper"] = [_as_printed(entry) for _, entry in own.iterrows()]
    table["source"] = table["source"].str.split(", ").str[-1]
    table.insert(6, "ours", [float(ours.get(key, np.nan)) for key in table.index])
    return table


def _as_printed(entry: pd.Series) -> str:
    """A published value with its sign of inequality or its uncertainty."""
    sign = "< " if entry["bound"] == "below" else ""
    spread = "" if pd.isna(entry["uncertainty"]) else f" ± {entry['uncertainty']:g}"
    return f"{sign}{entry['value']:g}{spread}"
