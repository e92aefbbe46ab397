"""Spins of the cortex, and the share of attention in higher visual parcels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfx.attention import nulls
from nfx.attention.networks import NETWORKS
from nfx.data import hierarchy_order, networks, parcels

CORTEX = nulls.CORTEX
VERTEX = np.arange(0, CORTEX, 24)  # a sample of all of cortex
NETWORK = networks(VERTEX)


@pytest.fixture(scope="module")
def labels():
    return nulls.spun_networks(VERTEX, spins=500, seed=1)


def points_of(vertex):
    """Points on the sphere, both hemispheres on one another as mirror images, (n, 3)."""
    where = np.full((CORTEX, 3), np.nan)
    for sphere, side in zip(nulls.spheres(), (1, -1), strict=True):
        inside = sphere.grayordinate >= 0
        where[sphere.grayordinate[inside]] = sphere.points[inside] * [side, 1, 1]
    return where[vertex]


def smooth_maps(count, seed, width=0.35):
    """Gaussian random maps on the sphere, isotropic, as smooth as `width` radians, each hemisphere its own."""
    rng = np.random.default_rng(seed)
    points, left = (
        points_of(VERTEX),
        VERTEX < len(nulls.spheres()[0].grayordinate[nulls.spheres()[0].grayordinate >= 0]),
    )
    maps = np.empty((count, len(VERTEX)))
    for one in maps:
        for side in (left, ~left):
            waves, phase = rng.standard_normal((200, 3)) / width, rng.uniform(0, 2 * np.pi, 200)
            one[side] = np.cos(points[side] @ waves.T + phase).mean(axis=1) * np.sqrt(400)
    return maps


def test_rotations_are_rotations_and_go_everywhere():
    turns = nulls.random_rotations(400, seed=3)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    assert np.abs(turns.mean(axis=0)).max() < 0.1 and turns[:, 0, 0].std() == pytest.approx(1 / np.sqrt(3), abs=0.04)
    np.testing.assert_array_equal(nulls.random_rotations(3, seed=3), turns[:3])


def test_the_other_hemisphere_is_rotated_as_in_a_mirror():
    turn = nulls.random_rotations(1)[0]
    point = np.array([0.3, -0.5, 0.8])
    flip = np.array([-1, 1, 1])
    np.testing.assert_allclose(nulls.mirrored(turn) @ (flip * point), flip * (turn @ point))
    assert np.linalg.det(nulls.mirrored(turn)) == pytest.approx(1)


def test_no_rotation_moves_nothing():
    np.testing.assert_array_equal(nulls.spun_from(VERTEX, np.eye(3)), VERTEX)
    values = np.random.default_rng(0).standard_normal(CORTEX)
    np.testing.assert_array_equal(nulls.spin(values, np.eye(3)), values)


def test_a_spin_keeps_distances_and_hemispheres_and_brings_what_it_should():
    turn = nulls.random_rotations(1, seed=5)[0]
    source = nulls.spun_from(VERTEX, turn)
    kept = source >= 0
    before, after = points_of(source[kept]), points_of(VERTEX[kept])
    # In the mirrored frame both hemispheres are rotated by the left one's matrix; the mesh is 0.03 radians wide.
    assert np.linalg.norm(before @ turn.T - after, axis=1).max() < 0.03
    chosen = np.random.default_rng(0).permutation(kept.sum())[:300]
    distances = [np.linalg.norm(x[chosen, None] - x[chosen], axis=-1) for x in (before, after)]
    np.testing.assert_allclose(*distances, atol=0.06)
    half = np.flatnonzero(points_of(np.arange(CORTEX))[:, 0] > -2)  # all
    assert len(half) == CORTEX
    border = int((nulls.spheres()[0].grayordinate >= 0).sum())
    assert ((source[kept] < border) == (VERTEX[kept] < border)).all()
    assert 0.03 < 1 - kept.mean() < 0.12  # the medial wall has come somewhere


def test_a_spun_map_keeps_its_values():
    values = np.sin(4 * points_of(np.arange(CORTEX))[:, 1])
    spun = nulls.spin(values, nulls.random_rotations(1, seed=5)[0])
    known = ~np.isnan(spun)
    assert np.isin(spun[known], values).all() and 0.88 < known.mean() < 0.97
    assert np.nanmean(spun) == pytest.approx(values.mean(), abs=0.15) and spun[known].std() == pytest.approx(
        values.std(), rel=0.15
    )
    assert np.isnan(nulls.spin(np.full((2, CORTEX), np.nan), np.eye(3))).all()


def test_first_row_is_unspun_and_spins_move_the_networks(labels):
    names = np.array([*NETWORKS, ""])
    np.testing.assert_array_equal(names[labels[0]], NETWORK)
    overlap = [(row == labels[0])[labels[0] >= 0].mean() for row in labels[1:]]
    assert np.mean(overlap) < 0.2 and labels.shape == (501, len(VERTEX))
    sizes = [(labels[1:] == number).sum(axis=1).mean() / (labels[0] == number).sum() for number in range(5)]
    assert np.allclose(sizes, 1, atol=0.25)


def test_means_by_hand():
    labels = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [-1, -1, -1, 1]])
    values = np.array([1.0, 2, 3, 5])
    found = nulls.spun_means(values, labels, 2, least=0.5)
    np.testing.assert_allclose(found.mean, [[1.5, 4], [np.nan, 10 / 3], [np.nan, np.nan]])
    np.testing.assert_allclose(found.error[0], [np.var([1, 2], ddof=1) / 2, np.var([3, 5], ddof=1) / 2])
    assert np.isnan(nulls.spun_means(values, labels[[0, 0, 1]], 2, least=1).mean[2, 0])
    assert nulls.spun_means(np.ones((3, 4)), labels, 2).mean.shape == (3, 3, 2)


def test_what_is_compared_is_welchs_t(labels):
    """A pair's p counts the spins whose |t| over voxels is at least the unspun one."""
    values, few = smooth_maps(1, seed=9)[0], labels[:121]
    p = nulls.spin_tests(nulls.spun_means(values, few, 5, least=0), NETWORKS)["spin_p"][3]  # VisCent, DefaultA
    t = [abs(stats.ttest_ind(values[row == 0], values[row == 4], equal_var=False).statistic) for row in few]
    assert p == pytest.approx((1 + np.sum(t[1:] >= t[0])) / 121)


def test_an_effect_that_follows_a_networks_borders_is_found(labels):
    planted = smooth_maps(1, seed=0)[0] / 3 + 1.5 * (NETWORK == "VisCent")
    table = nulls.spin_tests(nulls.spun_means(planted, labels, 5), NETWORKS).set_index(["first", "second"])
    with_it = table.xs("VisCent", level="first")
    assert (with_it["map_difference"] > 0.9).all() and (with_it["spin_p"] < 0.01).all()
    assert with_it["holm_spin"].max() < 0.06 and (table["holm_spin"] >= table["spin_p"]).all()
    assert table.loc[("DorsAttnA", "DorsAttnB"), "spin_p"] > 0.05


def test_smooth_maps_without_an_effect_give_uniform_p_and_the_t_test_does_not(labels):
    """200 smooth random maps. Over vertices, and over clips of one fixed map, t-tests find 'effects' nearly always."""
    maps = smooth_maps(200, seed=1)
    spun = (nulls.Spun(*of_map) for of_map in zip(*nulls.spun_means(maps, labels, 5), strict=True))
    pairs = [nulls.spin_tests(of_map, NETWORKS)["spin_p"].to_numpy() for of_map in spun]
    p = np.array(pairs)
    assert not np.isnan(p).any()
    assert 0.02 <= np.mean(p <= 0.05) <= 0.08 and 0.44 < p.mean() < 0.56
    for pair in p.T:
        assert stats.kstest(pair, "uniform").pvalue > 0.001
    first, second = (maps[:, NETWORK == name] for name in ("VisCent", "DefaultA"))
    assert np.mean(stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue <= 0.05) > 0.6


def along_the_hierarchy(count, seed, patches):
    """Random maps that are smooth along the patches' order, one number a patch."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((count, patches)), axis=1)
    spectrum[:, 6:] = 0
    return np.fft.irfft(spectrum, patches, axis=1)


def test_maps_along_the_hierarchy_need_shifts_beside_spins():
    """Attention is one number a patch, and patches follow areas: spins alone find 'effects' too often."""
    chosen = VERTEX[np.isin(NETWORK, NETWORKS)]
    chosen = chosen[hierarchy_order(chosen)][::2]
    network, patches = networks(chosen), -(-len(chosen) // 8)
    labels = nulls.spun_networks(chosen, spins=400, seed=2)
    maps = along_the_hierarchy(150, 0, patches)
    shift = np.array([nulls.shift_tests(of_map, network, 8)["shift_p"] for of_map in maps])
    assert 0.02 <= np.mean(shift <= 0.05) <= 0.08 and 0.42 < shift.mean() < 0.58
    spun = nulls.spun_means(np.repeat(maps, 8, axis=1)[:, : len(chosen)], labels, 5)
    spin = np.array([nulls.spin_tests(nulls.Spun(*m), NETWORKS)["spin_p"] for m in zip(*spun, strict=True)])
    assert np.nanmean(spin <= 0.05) > 0.12
    planted = np.zeros(patches)
    planted[network[::8] == "DefaultA"] = 1
    found = nulls.shift_tests(planted + 0.05 * maps[0], network, 8).set_index(["first", "second"])
    assert (found.xs("DefaultA", level="second")["shift_p"] < 0.05).all() and (found["holm_shift"] <= 1).all()


def test_shifts_by_hand():
    table = nulls.shift_tests(np.array([4.0, 0, 1]), np.array(["a", "a", "b", "b", "b"]), 2, ["a", "b"])
    # a lies over patch 0, b over patch 1 (two voxels) and 2 (one); shifts give |4 - 1/3|, |1 - 8/3| and |0 - 2|.
    assert table["shift_p"].tolist() == [pytest.approx(1 / 3)]
    with pytest.raises(ValueError, match="do not belong"):
        nulls.shift_tests(np.ones(4), np.array(["a"] * 5), 2, ["a", "b"])


def test_table_beside_the_papers_t_tests():
    rng = np.random.default_rng(2)
    vertex, segment = VERTEX[::2], np.repeat([1, 2], 30)
    patches = -(-len(vertex) // 4)
    fixed = np.stack([part.mean() for part in np.split(smooth_maps(1, seed=4)[0][::2], range(4, len(vertex), 4))])
    received = 5 + fixed + 0.3 * rng.standard_normal((60, 1)) + 0.3 * rng.standard_normal((60, patches))
    network = networks(vertex)
    options = {"spins": 300, "permutations": 200}
    table = nulls.compare_networks_on_cortex(received, vertex, network, 4, segment, 5, **options)
    assert len(table) == 10 and {"t", "p", "holm", "holm_permutation", "holm_shift"} < set(table.columns)
    np.testing.assert_allclose(table["difference"], table["map_difference"])
    assert (table["permutation_p"] < 0.05).mean() > 0.7  # any fixed map, on other clips, is the same map
    assert (table["holm_spin"] > 0.05).all()
    network[network == "VisPeri"] = ""
    with pytest.raises(ValueError, match="VisPeri"):
        nulls.compare_networks_on_cortex(received, vertex, network, 4, segment, 5, **options)


def test_too_few_spins_give_no_p(labels):
    few = nulls.spin_tests(nulls.spun_means(np.ones(len(VERTEX)), labels[:50], 5), NETWORKS)
    assert few["spin_p"].isna().all() and (few["spins"] < 50).all()


def test_semantic_share_by_hand():
    parcel = np.array(["L_V1", "R_V4", "L_FFC", "R_MT", "", "L_V8"])
    values = np.array([[1.0, 1, 1, 1, 1, 1], [0, 0, 3, 1, 4, 0]])
    assert nulls.semantic_share(values, parcel).tolist() == [0.5, 0.5]
    assert nulls.semantic_share(values[:, [0, 2]], parcel[[0, 2]]).tolist() == [0.5, 1]
    with pytest.raises(ValueError, match="after V4"):
        nulls.semantic_share(values[:, :2], parcel[:2])


def test_higher_visual_parcels_are_in_the_atlas():
    known = set(parcels(np.arange(CORTEX)))
    assert {f"{side}_{name}" for side in "LR" for name in nulls.HIGHER_VISUAL} <= known
    assert not {"V1", "V2", "V3", "V4"} & set(nulls.HIGHER_VISUAL)


def test_trend_planted_and_none():
    rng = np.random.default_rng(0)
    parcel, segment = np.array(["L_V1"] * 8 + ["R_FFC"] * 4), np.repeat([1, 2], 40)
    scene = np.repeat(rng.uniform(0.5, 1.5, (16, 12)), 5, axis=0)
    stages = {name: scene * rng.uniform(0.9, 1.1, scene.shape) for name in ("pre-trained", "contrastive", "full")}
    stages["full"][:, 8:] *= 1.3
    shares, tests = nulls.semantic_trend(stages, parcel, segment, 5, permutations=2000)
    assert shares["even"].eq(1 / 3).all() and (shares["low"] < shares["share"]).all()
    assert shares["share"].iloc[2] == pytest.approx(1.3 * 4 / (8 + 1.3 * 4), abs=0.03)
    tests = tests.set_index(["first", "second"])
    assert tests.loc[("pre-trained", "contrastive"), "holm_permutation"] > 0.05
    assert tests.loc[("pre-trained", "full"), "holm_permutation"] < 0.01
    assert tests.loc[("contrastive", "full"), "difference"] > 0.03
    assert isinstance(tests, pd.DataFrame) and len(tests) == 3
