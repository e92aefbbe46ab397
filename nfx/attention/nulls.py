"""Attention under nulls that respect space, and its trend towards semantics (Section 5.3).

A t-test over blocks of clips asks whether two networks would differ again on other clips of the same film, of the same
trained encoder. They nearly always do: any smooth map has a mean in one place that is not its mean in another. Whether
a map has to do with the networks is another question, and two nulls ask it, each with maps that are like the observed
one but know nothing of networks:

- spins: the map is rotated with its sphere (Alexander-Bloch et al. 2018, NeuroImage 178), so that its smoothness over
  the cortex stays, and where its hills lie is left to chance;
- shifts: the map is moved along the patches, which stand in the order of the visual hierarchy, so that its smoothness
  along that order stays. Attention is one number a patch, and a map that follows the order follows areas, which
  spins do not know.

Voxels, patches and networks stay where they are. `nfx.attention.planted` tries both nulls on maps whose truth is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from nfx.attention.analysis import CONTRASTS, contrast_table
from nfx.attention.maps import patch_means, sphere, to_voxels
from nfx.attention.networks import NETWORKS, in_region
from nfx.attention.statistics import block_means, category_means, compare_networks, compare_stages, holm
from nfx.data.voxels import MT_AND_LATERAL, VENTRAL
from nfx.evaluation.controls import block_bootstrap
from nfx.flatmaps import LEFT

SPINS = 2000
HIGHER_VISUAL = MT_AND_LATERAL + VENTRAL  # MMP parcels of the levels after V4 in `nfx.data.voxels.HIERARCHY`
SHARE = "higher visual share"


def random_rotations(count: int, seed: int = 0) -> np.ndarray:
    """Rotations drawn uniformly from all there are: (count, 3, 3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()


def mirrored(rotation: np.ndarray) -> np.ndarray:
    """The same rotation for the other hemisphere, reflected at the plane between the two: (..., 3, 3) to the same."""
    flip = np.diag([-1.0, 1.0, 1.0])
    return flip @ rotation @ flip


def spun_sources(vertex: np.ndarray, spins: int = SPINS, seed: int = 0) -> np.ndarray:
    """The voxel whose value comes to lie on each voxel in each spin.

    The left hemisphere is rotated, the right one by the mirror image. Most of cortex has no chosen voxel: where none
    comes to lie, the nearest one is taken, of the same hemisphere.

    Parameters
    ----------
    vertex : int (voxels,)
        Cortical grayordinates, 0..59411.
    spins, seed : how many rotations, and what they are drawn from

    Returns
    -------
    int32 (spins, voxels), places in `vertex`
    """
    from scipy.spatial import cKDTree

    vertex, turns = np.asarray(vertex), random_rotations(spins, seed)
    places, found = sphere()[vertex], np.empty((spins, len(vertex)), dtype=np.int32)
    for own, turned in ((vertex < LEFT, turns), (vertex >= LEFT, mirrored(turns))):
        voxels = np.flatnonzero(own)
        if len(voxels):
            # The nearest rotated point, R x, is that of the point nearest to the place rotated back.
            found[:, voxels] = voxels[cKDTree(places[voxels]).query(places[voxels] @ turned)[1]]
    return found


def spun_maps(received: np.ndarray, sources: np.ndarray, patch_size: int) -> np.ndarray:
    """A map of patches in every spin: (patches,) to (spins, patches).

    A spun map is averaged over the patches once more, which makes it flatter than the observed one, and a test against
    flat maps calls a quarter of unrelated maps significant. So the observed values are put back in the order
    of the spun ones: every spin has the same values, in other places.

    Parameters
    ----------
    received : (patches,)
    sources : int (spins, voxels), of `spun_sources`
    patch_size : voxels a patch
    """
    values = to_voxels(np.asarray(received, dtype=float), sources.shape[1], patch_size)
    means = patch_means(values[sources], patch_size)
    return np.interp(stats.rankdata(means, axis=1), np.arange(1, len(received) + 1), np.sort(received))


def shifted_maps(received: np.ndarray) -> np.ndarray:
    """A map of patches moved along the hierarchy, around the end, to all other positions: (patches - 1, patches)."""
    return np.stack([np.roll(received, shift) for shift in range(1, len(received))])


def patch_weights(label: np.ndarray, names: Sequence[str], patch_size: int) -> np.ndarray:
    """Weights of the patches that make the mean over the voxels of each label: (names, patches), rows sum to 1.

    Parameters
    ----------
    label : (voxels,) of str
    names : labels to weight
    patch_size : voxels a patch

    Raises
    ------
    ValueError
        If a label has no voxel.
    """
    label = np.asarray(label)
    patch = np.arange(len(label)) // patch_size
    counts = np.stack([np.bincount(patch[label == name], minlength=patch[-1] + 1) for name in names])
    empty = [name for name, voxels in zip(names, counts.sum(axis=1), strict=True) if voxels == 0]
    if empty:
        raise ValueError(f"no chosen voxel lies in {', '.join(empty)}: leave it out of what is compared")
    return counts / counts.sum(axis=1, keepdims=True)


class MapTest(NamedTuple):
    """p-values of contrasts of one map under one null, (contrasts,): each alone, and of the largest of them all."""

    p: np.ndarray
    largest: np.ndarray


def map_tests(received: np.ndarray, contrasts: np.ndarray, sources: np.ndarray, patch_size: int) -> dict[str, MapTest]:
    """Two-sided tests of one map under both nulls.

    p is (1 + null maps whose contrast is at least as far from 0) / (1 + null maps). For `largest` the greatest of all
    contrasts of a null map counts (Westfall and Young 1993), which corrects for their number. Holm's correction
    multiplies the least p-value that there can be, 1 / patches under shifts: of few patches it lets nothing remain.

    Parameters
    ----------
    received : (patches,)
    contrasts : (contrasts, patches), differences of `patch_weights`
    sources : of `spun_sources`
    patch_size : voxels a patch

    Returns
    -------
    {"spin": MapTest, "shift": MapTest}
    """
    received = np.asarray(received, dtype=float)
    observed = np.abs(contrasts @ received) - 1e-12 * np.abs(received).max()  # ties tie, whatever the order of a sum
    found = {}
    for null, maps in (("spin", spun_maps(received, sources, patch_size)), ("shift", shifted_maps(received))):
        reached = np.abs(maps @ contrasts.T)
        found[null] = MapTest(_p(reached, observed), _p(reached.max(axis=1, keepdims=True), observed))
    return found


def region_test(change: np.ndarray, inside: np.ndarray, sources: np.ndarray, patch_size: int) -> dict[str, float]:
    """Does a change single a region out? Its mean there, less that over all other voxels, under both nulls.

    A region of the same size in any other place may have changed as much: that is what the nulls ask.

    Parameters
    ----------
    change : (patches,), difference of two maps
    inside : bool (voxels,)
    sources, patch_size : of `map_tests`

    Returns
    -------
    dict with beyond_rest, spin_p and shift_p
    """
    region, rest = patch_weights(np.where(inside, "region", "rest"), ("region", "rest"), patch_size)
    found = map_tests(change, (region - rest)[None], sources, patch_size)
    return {"beyond_rest": float((region - rest) @ change)} | {f"{null}_p": float(t.p[0]) for null, t in found.items()}


def compare_networks_on_cortex(
    blocks: np.ndarray,
    network: np.ndarray,
    patch_size: int,
    sources: np.ndarray,
    names: Sequence[str] = NETWORKS,
    permutations: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """All pairs of networks in one stage: the paper's t-tests over blocks of clips, and beside them both nulls.

    Parameters
    ----------
    blocks : (blocks, patches), attention received, of `nfx.attention.statistics.block_means`
    network : (voxels,) of str
    patch_size : voxels a patch
    sources : of `spun_sources`
    names : networks to compare; those without a voxel are left out
    permutations, seed : of the permutation tests by block

    Returns
    -------
    DataFrame
        Of `nfx.attention.statistics.compare_networks`, with the columns spin_p, holm_spin, largest_spin, shift_p,
        holm_shift and largest_shift.

    Raises
    ------
    ValueError
        If fewer than two networks have voxels.
    """
    names = [name for name in names if name in set(network)]
    if len(names) < 2:
        raise ValueError(f"chosen voxels lie in {names or 'none'} of the networks: expected two or more to compare")
    weights = patch_weights(network, names, patch_size)
    table = compare_networks(pd.DataFrame(blocks @ weights.T, columns=names), permutations, seed)
    contrasts = np.stack([first - second for first, second in combinations(weights, 2)])
    for null, test in map_tests(np.mean(blocks, axis=0), contrasts, sources, patch_size).items():
        columns = {f"{null}_p": test.p, f"holm_{null}": holm(test.p.tolist()), f"largest_{null}": test.largest}
        table = table.assign(**columns)
    return table


def compare_categories_on_cortex(
    received: np.ndarray,
    parcel: np.ndarray,
    category: np.ndarray,
    clip: np.ndarray,
    segment: np.ndarray,
    patch_size: int,
    sources: np.ndarray,
) -> pd.DataFrame:
    """The two contrasts of Figure 6d, and whether the region differs more than others of its size.

    Attention may rise everywhere for one category. So the map of the contrast, first less second, both means over runs
    of clips, is tested by `region_test`. Holm's correction runs over the contrasts.

    Parameters
    ----------
    received : (clips, patches)
    parcel : (voxels,) of str
    category, clip, segment : (clips,)
    patch_size : voxels a patch
    sources : of `spun_sources`

    Returns
    -------
    DataFrame
        Of `nfx.attention.analysis.contrast_table`, with the columns voxels (of the region), holm_permutation,
        beyond_rest, spin_p, holm_spin, shift_p and holm_shift; NaN where there is nothing to contrast.
    """
    received = np.asarray(received, dtype=float)
    table = contrast_table(to_voxels(received, len(parcel), patch_size), parcel, category, clip, segment)
    rows = []
    for contrast, known in zip(CONTRASTS, table["p"].notna(), strict=True):
        inside = in_region(parcel, contrast.parcels)
        row: dict[str, float] = {"voxels": int(inside.sum())}
        if known:
            chosen = [category == name for name in (contrast.first, contrast.second)]
            first, second = (category_means(received[own], clip[own], segment[own]).mean(axis=0) for own in chosen)
            row |= region_test(first - second, inside, sources, patch_size)
        rows.append(row)
    found = pd.DataFrame(rows).reindex(columns=["voxels", "beyond_rest", "spin_p", "shift_p"])
    table = pd.concat([table.drop(columns="why not"), found, table["why not"]], axis=1)
    for name in ("permutation", "spin", "shift"):
        table.insert(table.columns.get_loc(f"{name}_p") + 1, f"holm_{name}", holm(table[f"{name}_p"]))
    return table


# --- the trend towards semantics -----------------------------------------------------------------------------


def voxel_shares(received: np.ndarray, voxels: int, patch_size: int) -> np.ndarray:
    """Attention of one voxel of each patch as a share of all that the voxels receive: (clips, patches) to the same."""
    received = np.asarray(received, dtype=float)
    return received / to_voxels(received, voxels, patch_size).sum(axis=-1, keepdims=True)


def semantic_share(received: np.ndarray, parcel: np.ndarray, patch_size: int) -> np.ndarray:
    """Share of all received attention that goes to higher visual parcels, clip by clip: (clips,).

    The paper tells of a trend towards semantics without a measure. Ours: the attention of the voxels in the MMP
    parcels after V4 (`HIGHER_VISUAL`), over that of all chosen voxels.

    Parameters
    ----------
    received : (clips, patches)
    parcel : (voxels,) of str, of `nfx.data.parcels`
    patch_size : voxels a patch

    Raises
    ------
    ValueError
        If no voxel lies in these parcels.
    """
    higher = in_region(parcel, HIGHER_VISUAL)
    if not higher.any():
        raise ValueError("no chosen voxel lies in a visual parcel after V4: there is no share to speak of")
    shares = voxel_shares(received, len(higher), patch_size)
    return to_voxels(shares, len(higher), patch_size)[:, higher].sum(axis=1)


def semantic_trend(
    stages: Mapping[str, np.ndarray],
    parcel: np.ndarray,
    patch_size: int,
    sources: np.ndarray,
    segment: np.ndarray,
    length: int,
    permutations: int = 10_000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`semantic_share` of every stage of training, and tests between stages.

    The paired tests over blocks ask whether the share changes on other clips too; any two encoders differ in it. The
    nulls of `region_test` ask whether the change of the map has to do with these parcels.

    Parameters
    ----------
    stages : stage -> attention received (clips, patches) of the same clips, in the order of training
    parcel : (voxels,) of str
    patch_size : voxels a patch
    sources : of `spun_sources`
    segment : (clips,)
    length : clips a block
    permutations, seed : of the tests by block, and of the bootstrap

    Returns
    -------
    shares : DataFrame
        Columns stage, share, low, high (95 % block bootstrap) and even, the share if all voxels had as much.
    tests : DataFrame
        Of `nfx.attention.statistics.compare_stages`, with the columns spin_p, holm_spin, shift_p and holm_shift; Holm's
        correction over the pairs of stages.
    """
    higher = in_region(parcel, HIGHER_VISUAL)
    rows, blocks, maps = [], {}, {}
    for stage, received in stages.items():
        by_clip = semantic_share(received, parcel, patch_size)
        mean, low, high = block_bootstrap(by_clip, segment, length, seed=seed)
        rows.append({"stage": stage, "share": mean, "low": low, "high": high, "even": float(higher.mean())})
        blocks[stage] = pd.DataFrame({SHARE: block_means(by_clip, segment, length)})
        maps[stage] = block_means(voxel_shares(received, len(higher), patch_size), segment, length).mean(axis=0)
    tests = compare_stages(blocks, permutations, seed)
    changes = [maps[second] - maps[first] for first, second in zip(tests["first"], tests["second"], strict=True)]
    found = [region_test(change, higher, sources, patch_size) for change in changes]
    for null in ("spin", "shift"):
        p = np.array([row[f"{null}_p"] for row in found])
        tests = tests.assign(**{f"{null}_p": p, f"holm_{null}": holm(p.tolist())})
    return pd.DataFrame(rows), tests


def _p(reached: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Of observed (tests,) among those that null maps reach, (maps, tests) or (maps, 1)."""
    return (1 + np.sum(reached >= observed, axis=0)) / (1 + len(reached))
