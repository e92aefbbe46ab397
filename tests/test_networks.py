import numpy as np
import pytest

from nfx.attention import NETWORKS, category_contrast, network_means
from nfx.attention.networks import BODY_AREA, FUSIFORM, in_region
from nfx.data import networks, parcels


def test_means_by_network():
    values = np.arange(8.0).reshape(2, 4)
    means = network_means(values, ["VisCent", "DefaultA", "VisCent", "other"])
    assert list(means.columns) == list(NETWORKS)
    assert means["VisCent"].tolist() == [1, 5] and means["DefaultA"].tolist() == [1, 5]
    assert means["DorsAttnA"].isna().all()
    with pytest.raises(ValueError, match="label"):
        network_means(values, ["VisCent"])


def test_names_are_those_of_the_atlas():
    vertex = np.arange(59_412)
    assert set(NETWORKS) <= set(networks(vertex))
    names = set(parcels(vertex))
    assert all(f"{side}_{name}" in names for side in "LR" for name in FUSIFORM + BODY_AREA)


def test_region_is_in_both_hemispheres_and_exact():
    assert in_region(["L_FFC", "R_FFC", "L_PH", "FFC", "L_FFC2", ""], FUSIFORM).tolist() == [True, True] + [False] * 4
    assert in_region(["L_MT", "R_MST", "L_V1"], BODY_AREA).tolist() == [True, True, False]


def test_planted_category_contrast():
    rng = np.random.default_rng(0)
    category = np.array(["cat", "burger", "car"] * 20)
    region = np.arange(30) < 10
    values = rng.standard_normal((60, 30))
    values[np.ix_(category == "cat", region)] += 2
    cat, burger = category_contrast(values, region, category, "cat", "burger")
    assert cat.mean() - burger.mean() == pytest.approx(2, abs=0.4)
    cat, burger = category_contrast(values, ~region, category, "cat", "burger")
    assert abs(cat.mean() - burger.mean()) < 0.4
    with pytest.raises(ValueError, match="turtle"):
        category_contrast(values, region, category, "cat", "turtle")
    with pytest.raises(ValueError, match="region"):
        category_contrast(values, np.zeros(30, bool), category, "cat", "car")
