import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfx.evaluation import comparisons as comp
from nfx.evaluation.controls import block_bootstrap, holm, paired_permutation

SEGMENT = np.repeat([1, 2, 3], 20)


def scores(rng, gain=0.0, noise=0.05):
    """Two methods on clips that differ far more than the methods do."""
    clips = rng.random(60)
    return clips + gain + noise * rng.standard_normal(60), clips


def test_paired_difference_is_of_the_same_clips():
    first, second = scores(np.random.default_rng(0), gain=0.05)
    found = comp.paired_difference(first, second, SEGMENT, 5)
    assert found.difference == pytest.approx((first - second).mean())
    assert found[:3] == block_bootstrap(first - second, SEGMENT, 5)
    assert found.p == paired_permutation(first, second, SEGMENT, 5)[1]
    assert found.low > 0 and found.p < 0.01
    assert block_bootstrap(first, SEGMENT, 5).low < block_bootstrap(second, SEGMENT, 5).high  # unpaired, they overlap
    back = comp.paired_difference(second, first, SEGMENT, 5)
    assert (back.difference, back.p) == pytest.approx((-found.difference, found.p))


def test_clips_that_do_not_match_or_lack_a_score_are_an_error():
    first, second = scores(np.random.default_rng(0))
    with pytest.raises(ValueError, match="same clips"):
        comp.paired_difference(first, second[:-1], SEGMENT, 5)
    with pytest.raises(ValueError, match="same clips"):
        comp.paired_difference(first, second, SEGMENT[:-1], 5)
    second[[3, 9]] = np.nan
    with pytest.raises(ValueError, match="2 of 60 clips"):
        comp.paired_difference(first, second, SEGMENT, 5)


def test_table_is_one_family():
    rng = np.random.default_rng(0)
    better, base = scores(rng, gain=0.1)
    methods = {"new": better, "old": base, "same": base + 0.05 * rng.standard_normal(60)}
    table = comp.compare(methods, SEGMENT, 5, metric="SSIM")
    assert table[["a", "b"]].values.tolist() == [["new", "old"], ["new", "same"], ["old", "same"]]
    np.testing.assert_allclose(table["holm"], holm(table["p"]))
    assert (table["holm"] > table["p"]).any()
    assert (table["clips"] == 60).all() and (table["blocks"] == 12).all() and (table["metric"] == "SSIM").all()
    chosen = comp.compare(methods, SEGMENT, 5, pairs=[("old", "new")])
    assert len(chosen) == 1 and chosen.loc[0, "difference"] == pytest.approx(-table.loc[0, "difference"])
    joined = comp.holm_over([table, chosen])
    np.testing.assert_allclose(joined["holm"], holm(joined["p"]))
    assert joined.loc[0, "holm"] > table.loc[0, "holm"]
    with pytest.raises(ValueError, match="no scores of"):
        comp.compare(methods, SEGMENT, 5, pairs=[("new", "nobody")])
    with pytest.raises(ValueError, match="two methods"):
        comp.compare({"new": better}, SEGMENT, 5)


def test_statement_says_what_the_table_allows():
    rng = np.random.default_rng(0)
    better, base = scores(rng, gain=0.1)
    table = comp.compare({"new": better, "old": base, "same": base + 0.05 * rng.standard_normal(60)}, SEGMENT, 5)
    row = table.iloc[0]
    expected = f"new exceeds old by {row.difference:.3f} [{row.low:.3f}, {row.high:.3f}], p (Holm) = {row.holm:.3f}"
    assert comp.statement("new", "old", table) == comp.statement("old", "new", table) == expected
    said, row = comp.statement("same", "old", table), table.iloc[2]
    assert said.startswith(
        f"same and old cannot be told apart: {-row.difference:.3f} [{-row.high:.3f}, {-row.low:.3f}], p"
    )


def line(**changes):
    values = {"a": "x", "b": "y", "difference": -0.2, "low": -0.3, "high": -0.1, "p": 0.0001, "holm": 0.0004}
    return pd.DataFrame([values | changes])


def test_the_better_one_comes_first_and_both_interval_and_p_must_agree():
    assert comp.statement("x", "y", line()) == "y exceeds x by 0.200 [0.100, 0.300], p (Holm) < 0.001"
    for uncertain in ({"holm": 0.051}, {"high": 0.001}):
        assert "cannot be told apart: -0.200 [-0.300" in comp.statement("x", "y", line(**uncertain))
    assert comp.statement("y", "x", line(holm=0.2)).startswith("y and x cannot be told apart: 0.200 [0.100, 0.300]")


@pytest.mark.parametrize("lacking", ["difference", "low", "high", "holm"])
def test_nothing_is_said_without_an_interval(lacking):
    with pytest.raises(ValueError, match="nothing is said"):
        comp.statement("x", "y", line(**{lacking: np.nan}))


def test_nothing_is_said_of_two_scores_at_once_or_of_none():
    with pytest.raises(ValueError, match="2 times"):
        comp.statement("x", "y", pd.concat([line(), line(a="y", b="x")]))
    with pytest.raises(ValueError, match="0 times"):
        comp.statement("x", "z", line())


def test_methods_that_are_alike_are_rarely_told_apart():
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(150):  # blocks of clips share the luck of each method
        luck = np.repeat(rng.standard_normal((2, 12)), 5, axis=1)
        first, second = luck + 0.2 * rng.standard_normal((2, 60))
        difference = comp.paired_difference(first, second, SEGMENT, 5, samples=300)
        table = pd.DataFrame([{"a": "x", "b": "y", **difference._asdict(), "holm": difference.p}])
        wrong += "exceeds" in comp.statement("x", "y", table)
    assert wrong / 150 < 0.1


def test_interval_over_seeds_is_students():
    values = np.array([0.21, 0.24, 0.22, 0.27])
    found = comp.over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx((values.mean(), low, high, values.std(ddof=1), 4))
    by_clip = values[:, None] + np.array([[-0.1, 0, 0.1]])
    assert comp.over_seeds(by_clip) == pytest.approx(found)
    for bad in (values[:1], np.array([0.1, np.nan])):
        with pytest.raises(ValueError, match="at least 2"):
            comp.over_seeds(bad)


def test_variance_split_finds_what_was_planted():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        seeds, clips = 0.3 * rng.standard_normal((5, 1)), 1.0 * rng.standard_normal((1, 60))
        rest = np.repeat(0.4 * rng.standard_normal((5, 12)), 5, axis=1) + 0.3 * rng.standard_normal((5, 60))
        found.append(comp.variance_split(seeds + clips + rest, SEGMENT, 5))
    mean = np.mean(found, axis=0)
    assert mean == pytest.approx([0.09, 1.0, 0.25], rel=0.2)


def test_no_variance_of_seeds_is_found_where_there_is_none():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):  # the rest is shared by neighbours: over clips alone it would pass for a variance of seeds
        rest = np.repeat(rng.standard_normal((4, 12)), 5, axis=1)
        found.append(comp.variance_split(rest, SEGMENT, 5).seeds)
    assert abs(np.mean(found)) < 0.02
    assert min(found) < 0  # unbiased, so not cut at 0


def test_variance_split_refuses_one_seed_or_one_block():
    with pytest.raises(ValueError, match="2 seeds"):
        comp.variance_split(np.zeros((1, 60)), SEGMENT, 5)
    with pytest.raises(ValueError, match="one block"):
        comp.variance_split(np.zeros((3, 20)), SEGMENT[:20], 20)
