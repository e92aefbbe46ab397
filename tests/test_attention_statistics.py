import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfx.attention import statistics as st

SEGMENT = np.repeat([1, 2, 3, 4], 25)


def test_block_means():
    values = np.arange(100.0)
    assert st.block_means(values, SEGMENT, 25).tolist() == [12, 37, 62, 87]
    assert st.block_means(np.ones((100, 3)), SEGMENT, 5).shape == (20, 3)
    with pytest.raises(ValueError, match="one each"):
        st.block_means(values[:5], SEGMENT)


def test_category_means_follow_gaps_and_segments():
    found = st.category_means([1, 3, 5, 7, 9], clip=[0, 1, 4, 5, 6], segment=[1, 1, 1, 1, 2])
    assert found.tolist() == [2, 6, 9]


def test_paired_test_against_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal(30) + 0.9, rng.standard_normal(30)
    test, expected = st.paired_test(first, second), stats.ttest_rel(first, second)
    assert (test.t, test.p, test.df) == pytest.approx((expected.statistic, expected.pvalue, 29))
    assert test.permutation_p == pytest.approx(test.p, abs=0.02)
    assert test.effect == pytest.approx(test.t / np.sqrt(30))


def test_two_sample_test_against_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal(20) + 0.5, 2 * rng.standard_normal(35)
    test, expected = st.two_sample_test(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert st.two_sample_test(second, first).effect == pytest.approx(-test.effect)
    planted = st.two_sample_test(first + 3, second)
    assert planted.p < 0.001 and planted.permutation_p == pytest.approx(1 / 10_001)


def test_permutation_is_valid_where_nothing_is_planted():
    rng = np.random.default_rng(0)
    p = [st.two_sample_test(*rng.exponential(size=(2, 12)), permutations=199).permutation_p for _ in range(200)]
    q = [st.paired_test(*rng.standard_normal((2, 12)), permutations=199).permutation_p for _ in range(200)]
    for values in (p, q):
        assert 0.005 <= np.mean(np.array(values) <= 0.05) <= 0.11


def test_blocks_guard_against_repeated_clips():
    """Clips of a scene repeat each other: as clips, nothing is significant far too often; as blocks not."""
    rng, as_clips, as_blocks = np.random.default_rng(3), 0, 0
    for _ in range(200):
        pair = [np.repeat(rng.standard_normal(20), 5) for _ in range(2)]
        as_clips += st.paired_test(*pair, permutations=1).p < 0.05
        as_blocks += st.paired_test(*(st.block_means(x, SEGMENT, 5) for x in pair), permutations=1).p < 0.05
    assert as_clips > 50 and 2 <= as_blocks <= 22


def test_network_test_keeps_the_pairing_in_its_permutations():
    rng = np.random.default_rng(0)
    scene = 5 * rng.standard_normal(20)  # what the networks share hides the difference from a two-sample test
    test = st.network_test(scene + 1 + 0.1 * rng.standard_normal(20), scene)
    assert test.p > 0.2 and test.permutation_p < 0.001


def test_holm():
    assert st.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.5, 0.9]).tolist() == [1, 1]
    with_gap = st.holm([0.01, np.nan, 0.02])
    assert with_gap[0] == pytest.approx(0.02) and np.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.02)


def test_stages_planted_in_one_network():
    rng = np.random.default_rng(0)
    stages = {s: pd.DataFrame(rng.standard_normal((20, 2)), columns=["VisCent", "DefaultA"]) for s in ("a", "b", "c")}
    stages["c"]["DefaultA"] += 3
    table = st.compare_stages(stages).set_index(["network", "first", "second"]).sort_index()
    assert len(table) == 6
    assert table.loc[("DefaultA", "a", "c"), "holm"] < 0.001 and table.loc[("DefaultA", "a", "c"), "difference"] > 2
    assert (table.loc["VisCent", "holm"] > 0.05).all()
    assert (table["holm"] >= table["p"]).all() and (table["holm_permutation"] >= table["permutation_p"]).all()


def test_networks_all_pairs():
    rng = np.random.default_rng(0)
    means = pd.DataFrame(rng.standard_normal((20, 3)), columns=["x", "y", "z"])
    means["z"] += 4
    table = st.compare_networks(means).set_index(["first", "second"])
    assert len(table) == 3 and table.loc[("x", "y"), "holm"] > 0.05
    assert table.loc[("x", "z"), "holm"] < 0.001 and table.loc[("x", "z"), "effect"] < -2


def test_rank_correlation_planted_and_none():
    rng = np.random.default_rng(0)
    share = rng.random(48)
    found = st.rank_correlation(np.exp(3 * share), share)
    assert found.rho == pytest.approx(1) and found.p == pytest.approx(1 / 48)
    x = rng.random(48)
    assert st.rank_correlation(x, share).rho == pytest.approx(stats.spearmanr(x, share).statistic)


def test_rank_correlation_of_smooth_unrelated_maps_is_not_significant_too_often():
    rng = np.random.default_rng(0)

    def smooth():
        spectrum = np.fft.rfft(rng.standard_normal(48))
        spectrum[4:] = 0
        return np.fft.irfft(spectrum, 48)

    p, naive = [], []
    for _ in range(150):
        x, y = smooth(), smooth()
        p.append(st.rank_correlation(x, y).p)
        naive.append(stats.spearmanr(x, y, alternative="greater").pvalue)
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert np.mean(np.array(naive) <= 0.05) > 0.15  # why the order is shifted and not shuffled


def test_bad_input():
    with pytest.raises(ValueError, match="same blocks"):
        st.paired_test(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="at least 2"):
        st.two_sample_test(np.ones(1), np.ones(4))
    with pytest.raises(ValueError, match="same in all patches"):
        st.rank_correlation(np.ones(5), np.arange(5))
    with pytest.raises(ValueError, match="no clips"):
        st.category_means([], [], [])
