"""Are planted effects found, and none where there is none? The tests of Section 5.3 on maps whose truth is known.

Voxels, patches, networks and blocks of clips are a subject's own, and so is what changes from block to block: blocks
are drawn with replacement from the encoder's, and only their mean map makes room for one that is known. Known maps are
Gaussian random maps over the cortex, with an effect added or with none. A right test calls 5 % of the maps without an
effect significant at p < 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from nfx.attention.maps import patch_means, sphere
from nfx.attention.networks import NETWORKS, in_region
from nfx.attention.nulls import HIGHER_VISUAL, MapTest, map_tests, patch_weights, voxel_shares
from nfx.attention.statistics import block_means, holm
from nfx.flatmaps import LEFT

DRAWS = 200
EFFECTS = (2.0, 8.0)  # standard deviations of the map
LEVEL = 0.05
WIDTHS = (0.2, 0.4, 0.8)  # radians on the sphere: how smooth the maps are, in turn
WAVES = 200  # of one map and hemisphere


def smooth_maps(vertex: np.ndarray, patch_size: int, count: int, seed: int = 0, alike: bool = False) -> np.ndarray:
    """Random maps over the cortex as patches see them: (count, patches), each with mean 0 and standard deviation 1.

    Sums of random plane waves through the sphere: Gaussian, the same everywhere and in every direction, with
    correlation exp(-d^2 / (2 width^2)) at distance d. They know nothing of networks.

    Parameters
    ----------
    vertex : int (voxels,), cortical grayordinates
    patch_size : voxels a patch
    count, seed : how many, and what they are drawn from; `WIDTHS` are taken in turn
    alike : whether one hemisphere is the mirror image of the other, else each has a map of its own
    """
    generator, vertex = np.random.default_rng(seed), np.asarray(vertex)
    left = vertex < LEFT
    places = np.where(left[:, None], 1, [-1, 1, 1]) * sphere()[vertex]
    maps = np.empty((count, len(places)))
    for number, values in enumerate(maps):
        for own in (slice(None),) if alike else (left, ~left):
            directions = generator.standard_normal((3, WAVES)) / WIDTHS[number % len(WIDTHS)]
            values[own] = np.cos(places[own] @ directions + generator.uniform(0, 2 * np.pi, WAVES)).mean(axis=1)
    return stats.zscore(patch_means(maps, patch_size), axis=1)


def check_networks(
    received: np.ndarray,
    vertex: np.ndarray,
    network: np.ndarray,
    patch_size: int,
    sources: np.ndarray,
    segment: np.ndarray,
    length: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each test of `nfx.attention.nulls.compare_networks_on_cortex` calls two networks different.

    Planted are: nothing; nothing, with hemispheres that mirror each other, as brains nearly do; and one network, each
    in turn, that receives more by one of `EFFECTS` standard deviations of the map, where only its own pairs count.

    Parameters
    ----------
    received : (clips, patches), of one stage; gives the fluctuations, the mean and the spread
    vertex : int (voxels,), cortical grayordinates
    network : (voxels,) of str
    patch_size : voxels a patch
    sources : of `nfx.attention.nulls.spun_sources`
    segment : (clips,)
    length : clips a block
    draws, seed : how many maps, and what they are drawn from

    Returns
    -------
    DataFrame with columns planted, test ("t-test", "spin", "shift"), correction ("none", "Holm", "largest"), draws,
    found (share of the tests with p < 0.05), low and high (95 %, Wilson's, with draws as the units)
    """
    blocks = block_means(received, segment, length)
    mean, names = blocks.mean(axis=0), [name for name in NETWORKS if name in set(network)]
    weights, pairs = patch_weights(network, names, patch_size), np.array(list(combinations(range(len(names)), 2)))
    contrasts = weights[pairs[:, 0]] - weights[pairs[:, 1]]
    belongs = np.stack([patch_means(np.asarray(network) == name, patch_size) for name in names])
    planted = {"nothing": (0.0, False), "nothing, hemispheres alike": (0.0, True)}
    planted |= {f"a network, {effect:g} SD": (effect, False) for effect in EFFECTS}
    generator, tables = np.random.default_rng(seed), []
    bar = _bar(planted, draws, "planted in networks")
    for words, (effect, alike) in planted.items():
        found = []
        for draw, known in enumerate(smooth_maps(vertex, patch_size, draws, seed, alike)):
            favoured = draw % len(names)
            drawn = (blocks - mean)[generator.integers(len(blocks), size=len(blocks))]
            drawn = drawn + mean.mean() + mean.std() * (known + effect * belongs[favoured])
            of_networks = drawn @ weights.T
            t = stats.ttest_ind(of_networks[:, pairs[:, 0]], of_networks[:, pairs[:, 1]], equal_var=False).pvalue
            tests = map_tests(drawn.mean(axis=0), contrasts, sources, patch_size)
            found.append(_found(t, tests, (pairs == favoured).any(axis=1) | (effect == 0)))
            bar.update()
        tables.append(_table(words, found))
    bar.close()
    return pd.concat(tables, ignore_index=True)


def check_stages(
    first: np.ndarray,
    second: np.ndarray,
    vertex: np.ndarray,
    parcel: np.ndarray,
    patch_size: int,
    sources: np.ndarray,
    segment: np.ndarray,
    length: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each test of `nfx.attention.nulls.semantic_trend` calls the share of higher visual parcels changed.

    Planted are: nothing, so that stages differ in their fluctuations alone; a change of the map that has nothing to do
    with these parcels, as large as the encoder's own; and the same change, with more in these parcels by the first of
    `EFFECTS`.

    Parameters
    ----------
    first, second : (clips, patches), attention received in two stages, on the same clips
    parcel : (voxels,) of str
    vertex, patch_size, sources, segment, length, draws, seed : of `check_networks`

    Returns
    -------
    DataFrame of `check_networks`; one test a draw, so that there is nothing to correct
    """
    shares = (voxel_shares(received, len(vertex), patch_size) for received in (first, second))
    blocks = np.subtract(*(block_means(of_stage, segment, length) for of_stage in shares))
    mean, higher = blocks.mean(axis=0), in_region(parcel, HIGHER_VISUAL)
    region, rest = patch_weights(np.where(higher, "region", "rest"), ("region", "rest"), patch_size)
    planted = {"no change": (0.0, 0.0), "an unrelated change": (1.0, 0.0)}
    planted |= {f"higher visual, {EFFECTS[0]:g} SD": (1.0, EFFECTS[0])}
    generator, tables = np.random.default_rng(seed), []
    bar = _bar(planted, draws, "planted between stages")
    for words, (change, effect) in planted.items():
        found = []
        for known in smooth_maps(vertex, patch_size, draws, seed):
            drawn = (blocks - mean)[generator.integers(len(blocks), size=len(blocks))]
            drawn = drawn + mean.std() * (change * known + effect * patch_means(higher, patch_size))
            # The share is a linear function of this difference: the same t-test.
            t = stats.ttest_1samp(drawn @ (region - rest), 0).pvalue
            tests = map_tests(drawn.mean(axis=0), (region - rest)[None], sources, patch_size)
            found.append(_found(np.array([t]), tests, np.array([True])))
            bar.update()
        table = _table(words, found)
        tables.append(table[table["correction"].eq("none")])
    bar.close()
    return pd.concat(tables, ignore_index=True)


def _bar(planted: Mapping[str, tuple[float, float]], draws: int, words: str) -> tqdm:
    """Progress over the maps of all that is planted."""
    return tqdm(total=len(planted) * draws, desc=words, unit="map", leave=False, mininterval=5)


def _found(t: np.ndarray, tests: dict[str, MapTest], counted: np.ndarray) -> dict[tuple[str, str], float]:
    """Share of the counted tests that are below the level, by test and correction."""
    p = {("t-test", "none"): t, ("t-test", "Holm"): holm(t.tolist())}
    for null, test in tests.items():
        p |= {(null, "none"): test.p, (null, "Holm"): holm(test.p.tolist()), (null, "largest"): test.largest}
    return {key: float(np.mean(values[counted] < LEVEL)) for key, values in p.items()}


def _table(planted: str, found: list[dict[tuple[str, str], float]]) -> pd.DataFrame:
    rows = []
    for test, correction in found[0]:
        share = float(np.mean([draw[test, correction] for draw in found]))
        # Tests of one draw hang together: whole draws are counted, which makes the interval rather too wide.
        low, high = stats.binomtest(round(share * len(found)), len(found)).proportion_ci(method="wilson")
        row = {"planted": planted, "test": test, "correction": correction, "draws": len(found)}
        rows.append(row | {"found": share, "low": low, "high": high})
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table of the checks, wide: a row for what is planted, a column for each test, "found [low, high]"."""
    cells = [f"{r.found:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in table.itertuples()]
    column = table["test"].where(table["correction"].eq("none"), table["test"] + ", " + table["correction"])
    wide = table.assign(cell=cells, column=column).pivot(index="planted", columns="column", values="cell")
    return wide.reindex(index=dict.fromkeys(table["planted"]), columns=dict.fromkeys(column)).fillna("")
