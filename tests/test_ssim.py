import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nfx.evaluation import ssim
from nfx.evaluation.ssim import C1, C2, STRIP, WINDOW


def random_clips(seed, shape=(3, 2, 20, 17, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(3, 2, 20, 17, 3), (1, 6, 64, 64, 3), (2, 1, 7, 7, 3)])
def test_equals_skimage_frame_by_frame(shape):
    truth, decoded = random_clips(0, shape), random_clips(1, shape)
    decoded[0] = np.clip(truth[0].astype(int) + np.random.default_rng(2).integers(-9, 9, shape[1:]), 0, 255)
    expected = [
        [structural_similarity(a, b, data_range=255, channel_axis=-1) for a, b in zip(x, y, strict=True)]
        for x, y in zip(truth, decoded, strict=True)
    ]
    found = ssim(truth, decoded)
    assert found.shape == shape[:2]
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def by_the_formula(x, y):
    """The mean SSIM of two frames, each term of the formula written as it is defined."""

    def sums(image):
        views = np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW), axis=(0, 1))
        return views.sum(axis=(-2, -1))

    n, x, y = WINDOW**2, x.astype(np.int32), y.astype(np.int32)
    mean_x, mean_y = sums(x) / n, sums(y) / n
    variance_x = (sums(x * x) - sums(x) * mean_x) / (n - 1)
    variance_y = (sums(y * y) - sums(y) * mean_y) / (n - 1)
    covariance = (sums(x * y) - sums(x) * mean_y) / (n - 1)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return np.ascontiguousarray(luminance * structure).mean()


@pytest.mark.parametrize(
    "shape", [(2, 2, 20, 17, 3), (1, 2, 2 * STRIP + 9, 40, 3), (1, 1, 7, 7, 1), (1, 1, STRIP + 6, 8, 3)]
)
def test_every_bit_is_that_of_the_formula_with_any_number_of_threads(shape):
    truth = random_clips(0, shape)
    decoded = np.clip(truth + np.random.default_rng(1).normal(0, 30, shape), 0, 255).astype(np.uint8)
    expected = [[by_the_formula(a, b) for a, b in zip(x, y, strict=True)] for x, y in zip(truth, decoded, strict=True)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            np.testing.assert_array_equal(ssim(truth, decoded), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_frames(value):
    truth = random_clips(0)
    constant = np.full_like(truth, value)
    expected = structural_similarity(truth[1, 1], constant[1, 1], data_range=255, channel_axis=-1)
    assert ssim(truth, constant)[1, 1] == pytest.approx(expected, abs=1e-6)


def test_identity_symmetry_and_independence_of_place():
    truth, decoded = random_clips(0), random_clips(1)
    np.testing.assert_allclose(ssim(truth, truth), 1)
    np.testing.assert_allclose(ssim(truth, decoded), ssim(decoded, truth))
    order = [2, 0, 1]
    np.testing.assert_array_equal(ssim(truth[order], decoded[order]), ssim(truth, decoded)[order])


def test_inputs_are_checked_and_left_alone():
    truth = random_clips(0)
    kept = truth.copy()
    ssim(truth, truth)
    np.testing.assert_array_equal(truth, kept)
    with pytest.raises(ValueError, match="shape"):
        ssim(truth, truth[:2])
    with pytest.raises(ValueError, match="uint8"):
        ssim(truth / 255, truth)
    with pytest.raises(ValueError, match="smaller"):
        ssim(truth[:, :, :6], truth[:, :, :6])
