import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from nfx.evaluation import n_way_chance, n_way_pairs, n_way_top_k


def logits(seed, clips=200, classes=128):
    return np.random.default_rng(seed).standard_normal((clips, classes))


@pytest.mark.parametrize(
    ("n_way", "top_k", "truth_classes"), [(2, 1, 1), (50, 1, 1), (50, 1, 3), (2, 1, 3), (10, 3, 2)]
)
def test_chance_by_simulation(n_way, top_k, truth_classes):
    truth, decoded = logits(0, 4000), logits(1, 4000)
    rates = n_way_top_k(truth, decoded, n_way, top_k, 20, truth_classes, seed=3)
    chance = n_way_chance(n_way, top_k, truth_classes)
    assert abs(rates.mean() - chance) < 4 * rates.std() / np.sqrt(len(rates))


def test_chance_levels_known_from_the_literature():
    assert n_way_chance(50, 1, 1) == pytest.approx(1 / 50)
    assert n_way_chance(50, 1, 3) == pytest.approx(3 / 52)
    assert n_way_chance(2, 1, 3) == pytest.approx(0.75)
    assert n_way_chance(5, 5, 1) == 1


@pytest.mark.parametrize(
    ("rivals", "top_k", "truth_classes"), [(0, 1, 1), (1, 1, 1), (3, 1, 3), (10, 5, 1), (100, 2, 1)]
)
def test_expectation_is_hypergeometric(rivals, top_k, truth_classes):
    classes, n_way, trials = 128, 50, 20_000
    truth, decoded = np.zeros((1, classes)), np.zeros((1, classes))
    correct = [5, 60, 127][:truth_classes]
    truth[0, correct] = [3, 2, 1][:truth_classes]
    decoded[0] = -1.0
    decoded[0, correct[-1]] = 1.0
    others = np.setdiff1d(np.arange(classes), correct)[:rivals]
    decoded[0, others] = 1.0  # a tie counts against the decoder
    expected = hypergeom.cdf(top_k - 1, classes - truth_classes, rivals, n_way - 1)
    found = n_way_top_k(truth, decoded, n_way, top_k, trials, truth_classes)[0]
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / trials) + 1e-12)
    assert n_way_pairs(truth, decoded, n_way, top_k, truth_classes)[0, 0] == pytest.approx(expected)


def test_a_clip_does_not_depend_on_its_place_or_company():
    truth, decoded = logits(0), logits(0) * 0.3 + logits(1)
    rates = n_way_top_k(truth, decoded, seed=7)
    order = np.random.default_rng(2).permutation(len(truth))
    np.testing.assert_array_equal(n_way_top_k(truth[order], decoded[order], seed=7), rates[order])
    np.testing.assert_array_equal(n_way_top_k(truth[5:6], decoded[5:6], seed=7), rates[5:6])


def class_after_class(truth, decoded, n_way, top_k, trials, truth_classes, seed):
    """The test as it is defined: the draws of a clip's best class, made anew for every clip, in a loop over trials."""
    rates = []
    for own, scores in zip(np.argsort(-truth, axis=1, kind="stable")[:, :truth_classes], decoded, strict=True):
        others = np.delete(np.arange(len(scores)), own)
        order = np.random.default_rng([seed, own[0]]).random((trials, len(others))).argpartition(n_way - 2, axis=1)
        draws = others[order[:, : n_way - 1]]
        rates.append(np.mean([(scores[draw] >= scores[own].max()).sum() < top_k for draw in draws]))
    return np.array(rates)


@pytest.mark.parametrize(("top_k", "truth_classes"), [(1, 1), (1, 3), (5, 2)])
def test_every_bit_is_that_of_one_clip_after_another_with_any_number_of_threads(top_k, truth_classes):
    truth, decoded = logits(0, 60).round(1), (logits(0, 60) * 0.3 + logits(1, 60)).round(1)  # with ties
    expected = class_after_class(truth, decoded, 50, top_k, 30, truth_classes, seed=5)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found = n_way_top_k(truth, decoded, 50, top_k, 30, truth_classes, seed=5)
            np.testing.assert_array_equal(found, expected)
    finally:
        torch.set_num_threads(threads)


def test_seed_matters_and_monotone_scaling_does_not():
    truth, decoded = logits(0), logits(0) * 0.3 + logits(1)
    rates = n_way_top_k(truth, decoded, seed=0)
    assert not np.array_equal(rates, n_way_top_k(truth, decoded, seed=1))
    np.testing.assert_array_equal(n_way_top_k(truth, np.exp(decoded), seed=0), rates)


def test_perfect_constant_and_more_trials():
    truth = logits(0)
    assert (n_way_top_k(truth, truth) == 1).all()
    assert (n_way_top_k(truth, np.zeros_like(truth)) == 0).all()
    assert set(np.unique(n_way_top_k(truth, logits(1), trials=1))) <= {0.0, 1.0}


def test_a_full_draw_uses_every_other_class():
    truth, decoded = logits(0, 50, 20), logits(1, 50, 20)
    best = truth.argmax(axis=1)
    rank = (decoded >= decoded[np.arange(50), best][:, None]).sum(axis=1)  # 1 = best
    np.testing.assert_array_equal(n_way_top_k(truth, decoded, 20, 3, 5), (rank <= 3).astype(float))


def test_pairs_agree_with_single_pairs():
    truth, decoded = logits(0, 6, 40), logits(1, 6, 40)
    table = n_way_pairs(truth, decoded, 20, 1, 3)
    for i in range(6):
        for j in range(6):
            one = n_way_top_k(truth[i : i + 1], decoded[j : j + 1], 20, 1, 3000, 3)
            assert table[i, j] == pytest.approx(one[0], abs=0.04)


def test_bad_input():
    truth = logits(0, 4, 51)
    n_way_top_k(truth, truth, 50, truth_classes=2)
    with pytest.raises(ValueError, match="too few"):
        n_way_top_k(truth, truth, 50, truth_classes=3)
    with pytest.raises(ValueError, match="expected"):
        n_way_top_k(truth, truth[:3])
    broken = truth.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        n_way_top_k(truth, broken)
    with pytest.raises(ValueError, match="top_k"):
        n_way_top_k(truth, truth, top_k=0)
    with pytest.raises(ValueError, match="trials"):
        n_way_top_k(truth, truth, trials=0)
