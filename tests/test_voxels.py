import numpy as np
import pytest
from scipy import stats

from nfx.data import choose_voxels, grayordinate, hierarchy_order, networks, parcels, reproducibility
from nfx.data.voxels import GRAYORDINATES, _atlases, correlation, t_test_of_correlations

CORTEX = np.arange(59412)


def repeats(segments=6, volumes=30, vertices=5, seed=0):
    rng = np.random.default_rng(seed)
    film = rng.standard_normal((segments, volumes, vertices)) * np.linspace(0, 1.5, vertices)
    return [film + rng.standard_normal(film.shape) for _ in range(2)]


def test_reproducibility_equals_scipy():
    first, second = repeats()
    r = np.array([[stats.pearsonr(x[:, v], y[:, v])[0] for v in range(5)] for x, y in zip(first, second, strict=True)])
    expected = stats.ttest_1samp(np.arctanh(r), 0, axis=0, alternative="greater")
    t, p = reproducibility(first, second)
    np.testing.assert_allclose(t, expected.statistic)
    np.testing.assert_allclose(p, expected.pvalue)


def test_segments_may_differ_in_length():
    first, second = repeats()
    t, _ = reproducibility([first[0], *(x[:20] for x in first[1:])], [second[0], *(x[:20] for x in second[1:])])
    assert t.shape == (5,) and t[-1] > t[0]


def test_identical_and_opposite_repeats_stay_finite_or_certain():
    first, _ = repeats()
    t, p = reproducibility(first, first)
    assert not np.isnan(t).any() and (t > 1e3).all() and (p < 1e-10).all()
    t, p = reproducibility(first, -first)
    assert (t < -1e3).all() and (p > 0.99).all()  # one-sided: an opposite response is not chosen


def test_constant_vertices_are_never_reproducible():
    first, second = repeats()
    first[:, :, 0] = second[:, :, 0] = 0
    t, p = reproducibility(first, second)
    assert t[0] == 0 and p[0] == 0.5


def test_reproducibility_needs_pairs_of_segments():
    first, second = repeats()
    with pytest.raises(ValueError, match="two segments"):
        reproducibility(first[:1], second[:1])
    with pytest.raises(ValueError, match="6 first and 5 second"):
        reproducibility(first, second[:5])
    with pytest.raises(ValueError, match="one shape"):
        correlation(first[0], second[0][:-1])


def test_null_vertices_pass_at_their_nominal_rate():
    rng = np.random.default_rng(1)
    t, p = t_test_of_correlations(rng.standard_normal((14, 20000)) * 0.1)
    assert abs((p < 0.05).mean() - 0.05) < 0.006
    assert abs((t > 0).mean() - 0.5) < 0.02


def test_choice_is_bonferroni_then_the_best_half():
    p = np.array([1e-9, 1e-3, 0.5, 1e-5, 1.9e-3, 2.1e-3])  # 0.01 / 6 = 1.67e-3
    t = stats.t.isf(p, 13)
    assert choose_voxels(t, p, keep=1.0).tolist() == [True, True, False, True, False, False]
    assert choose_voxels(t, p, keep=0.5).tolist() == [True, False, False, True, False, False]  # 1.5, rounded up


def test_choice_goes_by_t_where_p_is_zero():
    t, p = np.array([50.0, 80.0, 60.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.5])
    assert choose_voxels(t, p, keep=0.3).tolist() == [False, True, False, False]


def test_no_reproducible_vertex_is_an_error():
    with pytest.raises(ValueError, match="No vertex of 3.*smallest corrected p is 0.03"):
        choose_voxels(np.array([2.0, 1, 0]), np.array([0.01, 0.2, 0.5]))
    with pytest.raises(ValueError, match="NaN"):
        choose_voxels(np.array([np.nan]), np.array([np.nan]))
    with pytest.raises(ValueError, match="keep"):
        choose_voxels(np.ones(2), np.zeros(2), keep=0)


def test_networks_follow_the_colour_table():
    # The atlas numbers its networks; Yeo's colours say which is which.
    colours = {key: 255 * rgba[:3] for key, rgba in _atlases().yeo17.rgba.items()}
    for key, colour in {1: (120, 18, 134), 2: (255, 0, 0)}.items():
        np.testing.assert_allclose(colours[key], colour, atol=1)  # the table is rounded
    names = networks(np.arange(GRAYORDINATES))
    numbers = _atlases().yeo17.map_all
    for key, name in {1: "VisCent", 2: "VisPeri", 5: "DorsAttnA", 6: "DorsAttnB", 16: "DefaultA"}.items():
        assert ((names == name) == (numbers == key)).all()
    assert set(names) == {"", "VisCent", "VisPeri", "DorsAttnA", "DorsAttnB", "DefaultA"}
    assert (names[59412:] == "").all()


def test_networks_lie_where_they_should():
    area = parcels(CORTEX)
    network = networks(CORTEX)
    v1 = np.isin(area, ["L_V1", "R_V1"])
    assert np.isin(network[v1], ["VisCent", "VisPeri"]).mean() > 0.95
    lateral = np.isin(area, ["L_LO1", "R_LO1", "L_LO2", "R_LO2"])
    assert (network[lateral] == "VisCent").mean() > 0.8  # foveal; the calcarine's depth is peripheral
    medial_prefrontal = np.isin(area, ["L_9m", "R_9m", "L_10r", "R_10r", "L_d32", "R_d32"])
    assert (network[medial_prefrontal] == "DefaultA").mean() > 0.3
    assert len(set(area) - {""}) == 360
    assert [name for name in ("L_FFC", "R_FFC", "L_V1") if name not in area] == []


def test_grayordinates_of_vertices():
    info = _atlases().vertex_info
    vertex = np.r_[info.grayl, info.grayr]
    structure = np.repeat(["CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"], [29696, 29716])
    np.testing.assert_array_equal(grayordinate(structure, vertex), CORTEX)
    wall = np.setdiff1d(np.arange(32492), info.grayl)
    assert (grayordinate(np.full(len(wall), "CORTEX_LEFT"), wall) == -1).all()
    assert grayordinate(["CIFTI_STRUCTURE_THALAMUS_LEFT"], [-1]).tolist() == [-1]
    with pytest.raises(ValueError, match="32491"):
        grayordinate(["CORTEX_LEFT"], [32492])


def test_names_of_no_place_are_empty_and_places_out_of_range_are_refused():
    assert parcels(np.array([-1])).tolist() == [""] and networks(np.array([-1])).tolist() == [""]
    with pytest.raises(ValueError, match="91281"):
        parcels(np.array([91282]))


def test_order_goes_up_the_visual_hierarchy():
    place = np.random.default_rng(0).permutation(CORTEX)
    order = hierarchy_order(place)
    np.testing.assert_array_equal(np.sort(order), CORTEX)
    area = np.array([name[2:] for name in parcels(place[order])])
    network = networks(place[order])
    where = [np.flatnonzero(area == name) for name in ("V1", "V2", "V3", "V4")]
    where.append(np.flatnonzero(np.isin(area, ["MT", "MST", "LO1", "LO2", "LO3", "V4t", "FST"])))
    where.append(np.flatnonzero(np.isin(area, ["FFC", "VVC", "V8"])))
    for lower, higher in zip(where[:-1], where[1:], strict=True):
        assert lower.max() < higher.min()
    named = np.isin(area, ["V1", "V2", "V3", "V4", "MT", "MST", "LO1", "LO2", "LO3", "V4t", "FST", "V3CD", "PH"])
    named |= np.isin(area, ["V8", "VVC", "PIT", "FFC", "VMV1", "VMV2", "VMV3"])
    dorsal = np.flatnonzero(~named & np.isin(network, ["DorsAttnA", "DorsAttnB"]))
    default = np.flatnonzero(~named & (network == "DefaultA"))
    others = np.flatnonzero(~named & (network == ""))
    assert where[-1].max() < dorsal.min() and dorsal.max() < default.min() and default.max() < others.min()
    v1 = place[order][area == "V1"]
    assert (np.diff(v1) > 0).all()
