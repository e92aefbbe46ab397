import numpy as np
import pytest

from nfx.evaluation import controls, ssim

SEGMENT = np.repeat([1, 2, 3], 20)


def smooth_clips(rng, clips=60, size=12):
    """Scenes of five clips, each with its own two colours."""
    scenes = rng.integers(0, 256, (clips // 5, 1, 2, 1, 3))
    halves = np.repeat(
        np.broadcast_to(scenes, (clips // 5, size, 2, size // 2, 3)).reshape(clips // 5, size, size, 3), 5, 0
    )
    noise = rng.integers(-20, 20, (clips, 2, size, size, 3))
    return np.clip(halves[:, None] + noise, 0, 255).astype(np.uint8)


def test_blocks_are_contiguous_and_keep_to_their_segment():
    segment = np.array([1] * 23 + [4] * 9 + [2] * 3)
    number = controls.blocks(segment, 10)
    assert number.tolist() == sorted(number)
    assert all(len(set(segment[number == block])) == 1 for block in set(number))
    assert np.bincount(number).tolist() == [12, 11, 9, 3]


def test_segments_that_are_torn_apart_are_an_error():
    with pytest.raises(ValueError, match="together"):
        controls.blocks(np.array([1, 2, 1]), 2)
    with pytest.raises(ValueError, match="length"):
        controls.blocks(SEGMENT, 0)


def test_equal_blocks():
    index = controls.equal_blocks(np.array([1] * 7 + [2] * 4), 3)
    assert index.tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
    with pytest.raises(ValueError, match="at least 2"):
        controls.equal_blocks(np.array([1] * 7), 5)


def test_bootstrap_covers_the_truth_in_spite_of_blocks():
    rng, covered = np.random.default_rng(0), 0
    segment = np.repeat(np.arange(5), 40)
    for _ in range(200):  # clips of a block share their value: an interval over clips would be far too narrow
        values = np.repeat(rng.standard_normal(20), 10) + 0.1 * rng.standard_normal(200)
        interval = controls.block_bootstrap(values, segment, 10, samples=400)
        covered += interval.low <= 0 <= interval.high
    assert 0.86 <= covered / 200 <= 0.98


def test_bootstrap_of_a_constant_and_its_seed():
    assert controls.block_bootstrap(np.full(60, 0.3), SEGMENT) == pytest.approx((0.3, 0.3, 0.3))
    values = np.random.default_rng(0).random(60)
    first = controls.block_bootstrap(values, SEGMENT, 5, seed=1)
    assert first == controls.block_bootstrap(values, SEGMENT, 5, seed=1)
    assert first.mean == pytest.approx(values.mean()) and first.low < first.mean < first.high
    with pytest.raises(ValueError, match="segment"):
        controls.block_bootstrap(values[:-1], SEGMENT)


def test_permuted_ssim_finds_a_decoder_and_no_decoder():
    rng = np.random.default_rng(0)
    truth, unrelated = smooth_clips(rng), smooth_clips(rng)
    found = controls.permuted_ssim(truth, truth, SEGMENT, 10, permutations=500)
    assert found.observed == pytest.approx(1) and found.null_mean < 0.6 and found.p == pytest.approx(1 / 501)
    none = controls.permuted_ssim(truth, unrelated, SEGMENT, 10, permutations=500)
    assert none.p > 0.02 and abs(none.observed - none.null_mean) < 0.1
    assert none.observed == pytest.approx(ssim(truth, unrelated).mean())


def test_a_decoder_that_sees_no_brain_gains_nothing_by_permutation():
    truth = smooth_clips(np.random.default_rng(0))
    grey = controls.permuted_ssim(truth, controls.mid_grey(truth), SEGMENT, 10, permutations=200)
    assert grey.p == 1 and grey.observed == pytest.approx(grey.null_mean)


def test_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(1)
    p = [controls.permutation_test(rng.standard_normal((8, 8)), 199).p for _ in range(200)]
    assert 0.005 <= np.mean(np.array(p) <= 0.05) <= 0.11
    assert 0.4 < np.mean(p) < 0.6


def test_permuted_accuracy_planted_and_none():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((60, 2, 70))
    hit = controls.permuted_accuracy(
        truth, truth + 0.5 * rng.standard_normal(truth.shape), SEGMENT, 1, permutations=500
    )
    assert hit.observed > 0.5 and hit.null_mean == pytest.approx(0.02, abs=0.01) and hit.p < 0.01
    miss = controls.permuted_accuracy(truth, rng.standard_normal(truth.shape), SEGMENT, 1, permutations=500)
    assert miss.p > 0.02


def test_a_decoder_with_a_favourite_class_is_unmasked_by_shuffling():
    rng = np.random.default_rng(0)
    truth, decoded = rng.standard_normal((60, 70)), np.zeros((60, 70))
    truth[:, 7] += 5  # all clips of one class, and the decoder always says so
    decoded[:, 7] = 1
    found = controls.permuted_accuracy(truth, decoded, SEGMENT, 5, permutations=200)
    assert found.observed == 1 and found.null_mean == 1 and found.p == 1


def test_paired_permutation():
    rng = np.random.default_rng(0)
    base = rng.random(60)
    difference, p = controls.paired_permutation(base + 0.1, base, SEGMENT, 5)
    assert difference == pytest.approx(0.1) and p < 0.01
    _, p = controls.paired_permutation(base, base + 0.2 * rng.standard_normal(60), SEGMENT, 5)
    assert p > 0.05
    assert controls.paired_permutation(base, base, SEGMENT, 5) == (0, 1)


def test_baselines_and_motion():
    clips = smooth_clips(np.random.default_rng(0))
    assert controls.mid_grey(clips).dtype == np.uint8 and (controls.mid_grey(clips) == 128).all()
    mean = controls.mean_frame(clips[:30], clips)
    np.testing.assert_array_equal(mean[59, 1], np.rint(clips[:30].mean(axis=(0, 1))))
    assert mean.shape == clips.shape and mean.dtype == np.uint8
    with pytest.raises(ValueError, match="size"):
        controls.mean_frame(clips[:, :, :8], clips)
    np.testing.assert_array_equal(controls.frame_difference(mean), 0)
    step = np.zeros((1, 2, 4, 4, 3), np.uint8)
    step[:, 1] = 255
    assert controls.frame_difference(step).tolist() == [1]


def test_overlap_and_near_duplicates():
    assert controls.category_overlap({"cat", "car", "fish"}, ["cat", "car", "person", "cat"]) == 0.5
    with pytest.raises(ValueError, match="categories"):
        controls.category_overlap([], [])
    train = np.random.default_rng(0).standard_normal((9, 16))
    index, cosine = controls.nearest_training_clip(train, 3 * train[[4, 2]])
    assert index.tolist() == [4, 2] and cosine == pytest.approx(1)
