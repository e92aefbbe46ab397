"""The tests of notebook 06 on maps whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers_cortex import NETWORK, PARCEL, PATCHES, SIZE, VERTEX

from nfx.attention import planted
from nfx.attention.maps import patch_means, sphere
from nfx.attention.nulls import MapTest, spun_sources
from nfx.flatmaps import LEFT

SEGMENT, LENGTH = np.repeat([1, 2], 50), 5


@pytest.fixture(scope="module")
def sources():
    return spun_sources(VERTEX, spins=200, seed=1)


@pytest.fixture(scope="module")
def received():
    """Attention of two stages: a map, and fluctuations from scene to scene."""
    rng = np.random.default_rng(0)
    maps = 3 + planted.smooth_maps(VERTEX, SIZE, 2, seed=3)[:, None]
    return maps * 0.1 + np.repeat(rng.normal(0, 0.03, (2, 20, PATCHES)), 5, axis=1)


def shares(table):
    return table.set_index(["planted", "test", "correction"])["found"]


def test_smooth_maps_are_smooth_equal_and_seeded(monkeypatch):
    monkeypatch.setattr(planted, "WIDTHS", (0.4,))
    vertex = np.arange(0, LEFT, 60)
    maps = planted.smooth_maps(vertex, 1, 400, seed=1)
    np.testing.assert_allclose(maps.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(maps.std(axis=1), 1)
    np.testing.assert_array_equal(planted.smooth_maps(vertex, 1, 2, seed=1), maps[:2])
    assert not np.allclose(planted.smooth_maps(vertex, 1, 2, seed=2), maps[:2])
    covariance = maps.T @ maps / len(maps)
    distance = np.linalg.norm(sphere()[vertex][:, None] - sphere()[vertex], axis=-1)
    for near in (0.2, 0.4, 0.8):
        at = np.abs(distance - near) < 0.02
        assert covariance[at].mean() == pytest.approx(np.exp(-(near**2) / (2 * 0.4**2)), abs=0.12)
    assert np.abs(maps.mean(axis=0)).max() < 0.3  # no place is favoured


def test_hemispheres_are_alike_only_on_request():
    left = np.arange(0, LEFT, 200)
    right = LEFT + np.array(
        [np.argmin(np.linalg.norm(sphere()[LEFT:] - p, axis=1)) for p in sphere()[left] * [-1, 1, 1]]
    )
    both = np.concatenate([left, right])
    for alike, low, high in ((True, 0.98, 1.01), (False, -0.5, 0.5)):
        maps = planted.smooth_maps(both, 1, 30, seed=0, alike=alike)
        together = np.mean([np.corrcoef(one[: len(left)], one[len(left) :])[0, 1] for one in maps])
        assert low < together < high


def test_share_of_tests_counts_only_those_that_are_asked_for():
    tests = {"spin": MapTest(np.array([0.01, 0.2, 0.02]), np.array([0.04, 0.2, 0.06]))}
    found = planted._found(np.array([0.04, 0.001, 0.5]), tests, np.array([True, False, True]))
    assert found == {
        ("t-test", "none"): 0.5, ("t-test", "Holm"): 0.0, ("spin", "none"): 1.0, ("spin", "Holm"): 1.0,
        ("spin", "largest"): 0.5,
    }  # fmt: skip


def test_intervals_are_wilsons():
    table = planted._table("nothing", [{("spin", "none"): 0.0}] * 100)
    assert table.loc[0, ["found", "low"]].tolist() == [0, 0]
    assert table.loc[0, "high"] == pytest.approx(1.96**2 / (100 + 1.96**2), abs=1e-4)
    wide = planted.readable(pd.concat([table, table.assign(planted="b", correction="Holm", found=0.5)]))
    assert wide.loc["nothing", "spin"] == "0.00 [0.00, 0.04]" and wide.loc["b", "spin, Holm"].startswith("0.50")
    assert wide.loc["b", "spin"] == ""


def test_networks_with_an_effect_and_without(received, sources):
    table = planted.check_networks(received[1], VERTEX, NETWORK, SIZE, sources, SEGMENT, LENGTH, draws=60, seed=5)
    assert len(table) == 4 * 8 and table["draws"].eq(60).all()
    assert (table["low"] <= table["found"]).all() and (table["found"] <= table["high"]).all()
    found = shares(table)
    assert found["nothing", "t-test", "none"] > 0.5 and found["nothing", "t-test", "Holm"] > 0.4
    for null in ("spin", "shift"):
        assert found["nothing", null, "none"] < 0.12 and found["nothing", null, "largest"] < 0.05
        assert found["a network, 2 SD", null, "none"] > 2.5 * found["nothing", null, "none"]
        assert found["a network, 8 SD", null, "none"] > 0.75 and found["a network, 8 SD", null, "largest"] > 0.3
    assert found["a network, 2 SD", "spin", "none"] > 0.4
    assert found["a network, 2 SD", "t-test", "none"] > 0.8
    again = planted.check_networks(received[1], VERTEX, NETWORK, SIZE, sources, SEGMENT, LENGTH, draws=4, seed=5)
    pd.testing.assert_frame_equal(
        again, planted.check_networks(received[1], VERTEX, NETWORK, SIZE, sources, SEGMENT, LENGTH, draws=4, seed=5)
    )


def test_stages_with_a_shift_and_without(received, sources):
    table = planted.check_stages(*received, VERTEX, PARCEL, SIZE, sources, SEGMENT, LENGTH, draws=60, seed=5)
    assert len(table) == 3 * 3 and table["correction"].eq("none").all()
    found = shares(table).droplevel("correction")
    assert found["no change", "t-test"] < 0.15 and found["an unrelated change", "t-test"] > 0.5
    for null in ("spin", "shift"):
        assert found["no change", null] < 0.15 and found["an unrelated change", null] < 0.15
        assert found["higher visual, 2 SD", null] > 0.4
    assert found["higher visual, 2 SD", "t-test"] > 0.9


def test_bars_count_every_planted_map(received, sources, bars):
    made, rest = bars(planted), (SIZE, sources[:5], SEGMENT, LENGTH)
    planted.check_networks(received[1], VERTEX, NETWORK, *rest, draws=3)
    planted.check_stages(*received, VERTEX, PARCEL, *rest, draws=3)
    assert [(bar.n, bar.total) for bar in made] == [(4 * 3, 4 * 3), (3 * 3, 3 * 3)]


def test_planted_map_has_the_encoders_own_level_and_spread(received, sources, monkeypatch):
    seen = []
    monkeypatch.setattr(planted, "map_tests", lambda values, *_: seen.append(values) or {})
    monkeypatch.setattr(planted, "EFFECTS", (2.0,))
    planted.check_networks(received[1], VERTEX, NETWORK, SIZE, sources, SEGMENT, LENGTH, draws=5, seed=0)
    mean = received[1].mean(axis=0)
    plain, effect = np.stack(seen[:5]), np.stack(seen[10:])
    np.testing.assert_allclose(plain.mean(axis=1), mean.mean(), rtol=0.03)
    np.testing.assert_allclose(plain.std(axis=1), mean.std(), rtol=0.1)
    for draw, name in enumerate(("VisCent", "VisPeri", "DorsAttnA", "DorsAttnB", "DefaultA")):
        belongs = patch_means(NETWORK == name, SIZE)
        gain = (effect - plain)[draw]
        assert gain[belongs == 1].mean() - gain[belongs == 0].mean() == pytest.approx(2 * mean.std(), rel=0.2)
