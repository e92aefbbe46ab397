"""Spins of the cortex, shifts along the hierarchy, and the share of attention in higher visual parcels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from helpers_cortex import NETWORK, PARCEL, PATCHES, SIZE, VERTEX

from nfx.attention import nulls
from nfx.attention.maps import patch_means, sphere, to_voxels
from nfx.attention.networks import NETWORKS
from nfx.attention.planted import smooth_maps
from nfx.data import parcels
from nfx.flatmaps import CORTEX, LEFT


@pytest.fixture(scope="module")
def sources():
    return nulls.spun_sources(VERTEX, spins=400, seed=1)


def all_pairs(weights):
    return np.stack([first - second for first, second in combinations(weights, 2)])


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


def test_a_spin_brings_what_it_should_and_keeps_hemispheres():
    everywhere = np.arange(0, CORTEX, 10)
    found = nulls.spun_sources(everywhere, spins=2, seed=5)
    places = sphere()[everywhere]
    assert ((everywhere[found] < LEFT) == (everywhere < LEFT)).all()
    for source, turn in zip(found, nulls.random_rotations(2, seed=5), strict=True):
        for own, turned in ((everywhere < LEFT, turn), (everywhere >= LEFT, nulls.mirrored(turn))):
            brought = places[source[own]] @ turned.T
            away = np.linalg.norm(brought - places[own], axis=1)
            assert np.median(away) < 0.06 and np.mean(away < 0.15) > 0.85  # else the medial wall has come
            nearest = np.linalg.norm(places[own] @ turned.T - places[own][7], axis=1).min()
            assert away[7] == pytest.approx(nearest)


def test_no_rotation_moves_nothing(monkeypatch):
    monkeypatch.setattr(nulls, "random_rotations", lambda count, seed: np.tile(np.eye(3), (count, 1, 1)))
    found = nulls.spun_sources(VERTEX, spins=2)
    np.testing.assert_array_equal(found, np.tile(np.arange(len(VERTEX)), (2, 1)))
    values = np.random.default_rng(0).standard_normal(PATCHES)
    np.testing.assert_allclose(nulls.spun_maps(values, found, SIZE), [values, values])
    one_side = VERTEX[VERTEX < LEFT]
    assert nulls.spun_sources(one_side, spins=1).shape == (1, len(one_side))


def test_spun_maps_by_hand():
    sources = np.array([[4, 4, 0, 1, 2], [0, 2, 2, 4, 0]])
    # Patches of two voxels, 1 2 3: the first spin makes means 3 1 2, the second 1.5 2.5 1.
    np.testing.assert_allclose(nulls.spun_maps(np.array([1.0, 2, 3]), sources, 2), [[3, 1, 2], [2, 3, 1]])
    # Ties share what lies between: means 9 9 2 of values 2 5 9.
    np.testing.assert_allclose(nulls.spun_maps(np.array([9.0, 5, 2]), np.array([[0, 1, 0, 1, 4]]), 2), [[7, 7, 2]])


def test_every_spin_has_the_observed_values_in_other_places(sources):
    values = smooth_maps(VERTEX, SIZE, 1, seed=2)[0]
    maps = nulls.spun_maps(values, sources, SIZE)
    assert maps.shape == (400, PATCHES)
    np.testing.assert_allclose(np.sort(maps, axis=1).mean(axis=0), np.sort(values), atol=0.1)
    assert abs(np.corrcoef(values, maps.mean(axis=0))[0, 1]) < 0.6
    neighbours = np.mean(maps[:, 1:] * maps[:, :-1])
    assert neighbours == pytest.approx(np.mean(values[1:] * values[:-1]), abs=0.3)


def test_shifted_maps_are_all_other_positions():
    assert nulls.shifted_maps(np.array([1, 2, 3])).tolist() == [[3, 1, 2], [2, 3, 1]]


def test_patch_weights_make_the_means_over_voxels():
    label, values = np.array(["a", "a", "b", "b", "b"]), np.array([4.0, 0, 1])
    weights = nulls.patch_weights(label, ["a", "b"], 2)
    np.testing.assert_allclose(weights, [[1, 0, 0], [0, 2 / 3, 1 / 3]])
    voxels = to_voxels(values, 5, 2)
    np.testing.assert_allclose(weights @ values, [voxels[:2].mean(), voxels[2:].mean()])
    with pytest.raises(ValueError, match="lies in c"):
        nulls.patch_weights(label, ["a", "c"], 2)


def test_p_values_by_counting(sources):
    values = smooth_maps(VERTEX, SIZE, 1, seed=4)[0]
    contrasts = all_pairs(nulls.patch_weights(NETWORK, NETWORKS, SIZE))
    found = nulls.map_tests(values, contrasts, sources, SIZE)
    maps = {"spin": nulls.spun_maps(values, sources, SIZE), "shift": nulls.shifted_maps(values)}
    for null, test in found.items():
        reached = [[abs(contrast @ one) for contrast in contrasts] for one in maps[null]]
        for k, contrast in enumerate(contrasts):
            seen = abs(contrast @ values)
            assert test.p[k] == pytest.approx((1 + sum(row[k] >= seen for row in reached)) / (1 + len(reached)))
            assert test.largest[k] == pytest.approx((1 + sum(max(row) >= seen for row in reached)) / (1 + len(reached)))
    np.testing.assert_allclose(nulls.map_tests(-values, contrasts, sources, SIZE)["shift"].p, found["shift"].p)
    assert (nulls.map_tests(np.ones(PATCHES), contrasts, sources, SIZE)["spin"].p == 1).all()


def test_an_effect_in_one_network_is_found(sources):
    contrasts = all_pairs(nulls.patch_weights(NETWORK, NETWORKS, SIZE))
    planted = smooth_maps(VERTEX, SIZE, 1, seed=0)[0] / 3 + 2 * patch_means(NETWORK == "DefaultA", SIZE)
    of_default = np.array(["DefaultA" in pair for pair in combinations(NETWORKS, 2)])
    for test in nulls.map_tests(planted, contrasts, sources, SIZE).values():
        assert (test.p[of_default] <= 0.05).all() and (test.largest[of_default] <= 0.05).any()
        assert (test.p[~of_default] > 0.05).mean() > 0.6 and (test.largest >= test.p).all()


def test_maps_without_an_effect_give_5_percent_and_unequal_values_do_not(sources):
    """150 smooth random maps. A spun map that is left as flat as averaging makes it finds 'effects' everywhere."""
    contrasts = all_pairs(nulls.patch_weights(NETWORK, NETWORKS, SIZE))
    p, flat, largest = [], [], []
    for values in smooth_maps(VERTEX, SIZE, 150, seed=1):
        test = nulls.map_tests(values, contrasts, sources, SIZE)["spin"]
        p.append(test.p)
        largest.append(test.largest.min())
        means = patch_means(to_voxels(values, len(VERTEX), SIZE)[sources], SIZE)
        flat.append(np.mean(np.abs(means @ contrasts.T) >= np.abs(contrasts @ values), axis=0))
    assert 0.015 <= np.mean(np.array(p) < 0.05) <= 0.085 and 0.43 < np.mean(p) < 0.57
    assert np.mean(np.array(largest) < 0.05) <= 0.1  # any pair of the ten
    assert np.mean(np.array(flat) < 0.05) > 0.12


def along_the_hierarchy(count, seed):
    """Random maps that are smooth along the patches' order."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((count, PATCHES)), axis=1)
    spectrum[:, 3:] = 0
    return np.fft.irfft(spectrum, PATCHES, axis=1)


def test_maps_along_the_hierarchy_need_shifts_beside_spins(sources):
    """Attention is one number a patch, and patches follow areas: spins alone find 'effects' too often."""
    contrasts = all_pairs(nulls.patch_weights(NETWORK, NETWORKS, SIZE))
    found = [nulls.map_tests(values, contrasts, sources, SIZE) for values in along_the_hierarchy(150, 0)]
    p = {null: np.array([test[null].p for test in found]) for null in ("spin", "shift")}
    assert 0.02 <= np.mean(p["shift"] < 0.05) <= 0.08 and 0.42 < p["shift"].mean() < 0.58
    assert np.mean(p["spin"] < 0.05) > 0.12


def test_a_region_that_is_special_and_one_that_is_not(sources):
    inside = np.isin(PARCEL, [f"{side}_{name}" for side in "LR" for name in nulls.HIGHER_VISUAL])
    elsewhere = smooth_maps(VERTEX, SIZE, 1, seed=6)[0]
    special = elsewhere / 3 + 3 * patch_means(inside, SIZE)
    found = nulls.region_test(special, inside, sources, SIZE)
    voxels = to_voxels(special, len(VERTEX), SIZE)
    assert found["beyond_rest"] == pytest.approx(voxels[inside].mean() - voxels[~inside].mean())
    assert found["spin_p"] < 0.01 and found["shift_p"] < 0.05
    assert nulls.region_test(special + 9, inside, sources, SIZE) == pytest.approx(found)  # a rise everywhere is none
    assert nulls.region_test(elsewhere, inside, sources, SIZE)["spin_p"] > 0.05


def test_table_beside_the_papers_t_tests(sources):
    rng = np.random.default_rng(2)
    fixed = smooth_maps(VERTEX, SIZE, 1, seed=4)[0]
    blocks = 5 + fixed + 0.1 * rng.standard_normal((12, 1)) + 0.1 * rng.standard_normal((12, PATCHES))
    table = nulls.compare_networks_on_cortex(blocks, NETWORK, SIZE, sources, permutations=200)
    assert len(table) == 10
    assert {"t", "p", "holm", "holm_permutation", "spin_p", "holm_spin", "largest_spin", "shift_p", "holm_shift",
            "largest_shift"} < set(table.columns)  # fmt: skip
    contrasts = all_pairs(nulls.patch_weights(NETWORK, NETWORKS, SIZE))
    np.testing.assert_allclose(table["difference"], contrasts @ blocks.mean(axis=0))
    expected = nulls.map_tests(blocks.mean(axis=0), contrasts, sources, SIZE)
    np.testing.assert_allclose(table["spin_p"], expected["spin"].p)
    np.testing.assert_allclose(table["largest_shift"], expected["shift"].largest)
    assert (table["p"] < 0.05).mean() > 0.7  # any fixed map, on other clips, is the same map
    assert (table["holm_spin"] > 0.05).all() and (table["holm_spin"] >= table["spin_p"]).all()
    fewer = np.where(np.isin(NETWORK, ["VisCent", "DefaultA"]), NETWORK, "")
    table = nulls.compare_networks_on_cortex(blocks, fewer, SIZE, sources, permutations=10)
    assert table[["first", "second"]].values.tolist() == [["VisCent", "DefaultA"]]
    with pytest.raises(ValueError, match="expected two or more"):
        nulls.compare_networks_on_cortex(blocks, np.where(NETWORK == "VisCent", NETWORK, ""), SIZE, sources)


def test_categories_where_the_region_is_special_and_where_all_of_cortex_is(sources):
    rng = np.random.default_rng(0)
    category = np.repeat(["cat", "food", "", "cat", "food"] * 4, 3)
    clip, segment = np.arange(len(category)), np.ones(len(category), int)
    fusiform = patch_means(np.isin(PARCEL, ["L_FFC", "R_FFC"]), SIZE)
    received = 1 + fusiform + 0.02 * rng.standard_normal((len(category), PATCHES))  # special for cat and food alike
    received[category == "cat"] += 0.5  # everywhere
    args = PARCEL, category, clip, segment, SIZE, sources
    table = nulls.compare_categories_on_cortex(received, *args).set_index("region")
    row = table.loc["fusiform"]
    assert row["permutation_p"] < 0.01 and row["difference"] == pytest.approx(0.5, abs=0.02) and row["spin_p"] > 0.05
    assert abs(row["beyond_rest"]) < 0.05 and row["voxels"] == np.isin(PARCEL, ["L_FFC", "R_FFC"]).sum() > 0
    body = table.loc["body area"]
    assert np.isnan(body["spin_p"]) and np.isnan(body["holm_permutation"]) and "no clip" in body["why not"]
    received[category == "cat"] += fusiform
    row = nulls.compare_categories_on_cortex(received, *args).set_index("region").loc["fusiform"]
    assert row["spin_p"] < 0.05 and row["shift_p"] < 0.1 and row["beyond_rest"] > 0.1
    nothing = nulls.compare_categories_on_cortex(received, PARCEL, np.full(len(category), ""), *args[2:])
    assert nothing["holm_spin"].isna().all() and nothing["why not"].notna().all()


def test_semantic_share_by_hand():
    parcel = np.array(["L_V1", "R_V4", "L_FFC", "R_MT", "", "L_V8"])
    received = np.array([[1.0, 1, 1], [0, 3, 1]])
    assert nulls.semantic_share(received, parcel, 2).tolist() == [0.5, 7 / 8]
    np.testing.assert_allclose(nulls.voxel_shares(received, 5, 2)[1], [0, 3 / 7, 1 / 7])
    with pytest.raises(ValueError, match="after V4"):
        nulls.semantic_share(received[:, :1], parcel[:2], 2)


def test_higher_visual_parcels_are_in_the_atlas():
    known = set(parcels(np.arange(CORTEX)))
    assert {f"{side}_{name}" for side in "LR" for name in nulls.HIGHER_VISUAL} <= known
    assert not {"V1", "V2", "V3", "V4"} & set(nulls.HIGHER_VISUAL)


def test_trend_planted_and_none(sources):
    rng = np.random.default_rng(0)
    segment = np.repeat([1, 2], 40)
    higher = np.isin(PARCEL, [f"{side}_{name}" for side in "LR" for name in nulls.HIGHER_VISUAL])
    scene = np.repeat(rng.uniform(0.5, 1.5, (16, PATCHES)), 5, axis=0) * (1 + 2 * patch_means(higher, SIZE))
    stages = {name: scene * rng.uniform(0.9, 1.1, scene.shape) for name in ("pre-trained", "contrastive", "full")}
    stages["contrastive"] = stages["contrastive"] * (1 + 0.3 * smooth_maps(VERTEX, SIZE, 1, seed=8)[0])
    stages["full"] = stages["full"] * (1 + 0.6 * patch_means(higher, SIZE))
    shares, tests = nulls.semantic_trend(stages, PARCEL, SIZE, sources, segment, 5, permutations=2000)
    assert shares["even"].eq(higher.mean()).all() and (shares["low"] < shares["share"]).all()
    assert shares["share"].iloc[0] > shares["even"].iloc[0] + 0.1  # from the start: that is no change
    tests = tests.set_index(["first", "second"])
    assert len(tests) == 3 and tests["network"].eq(nulls.SHARE).all()
    planted, elsewhere = tests.loc[("pre-trained", "full")], tests.loc[("pre-trained", "contrastive")]
    assert planted["difference"] > 0.05 and planted["difference"] == pytest.approx(
        shares["share"].iloc[2] - shares["share"].iloc[0], abs=0.01
    )
    assert planted["holm_permutation"] < 0.01 and planted["holm_spin"] < 0.05 and planted["shift_p"] < 0.05
    assert elsewhere["holm_permutation"] < 0.01  # any other map has another share
    assert elsewhere["holm_spin"] > 0.05 and elsewhere["holm_shift"] > 0.05
