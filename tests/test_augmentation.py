import numpy as np
import pytest
import torch

from nfx.encoder import interpolate_frame, interpolation_weights, spatial_mask, temporal_interpolation


def tokens(batch=5, window=3, patches=4, dim=20, seed=0):
    return (
        torch.randn(batch, window, patches, dim, generator=torch.Generator().manual_seed(seed)) + 10
    )  # nothing is zero by chance


@pytest.mark.parametrize(
    ("window", "by_hand"),
    [
        (2, [[0, 1 / 2], [1 / 2, 0]]),
        (3, [[0, 2 / 3, 1 / 3], [2 / 3, 0, 2 / 3], [1 / 3, 2 / 3, 0]]),
        (4, [[0, 3 / 4, 2 / 4, 1 / 4], [3 / 4, 0, 3 / 4, 2 / 4], [2 / 4, 3 / 4, 0, 3 / 4], [1 / 4, 2 / 4, 3 / 4, 0]]),
    ],
)
def test_equation_1_by_hand(window, by_hand):
    np.testing.assert_allclose(interpolation_weights(window), by_hand, rtol=1e-6)
    v = tokens(window=window)
    for i in range(window):
        expected = sum(by_hand[i][j] * v[:, j] for j in range(window))
        torch.testing.assert_close(interpolate_frame(v, i), expected)


def test_interpolation_replaces_all_from_the_originals_at_ratio_1_and_none_at_0():
    v = tokens(window=4)
    torch.testing.assert_close(
        temporal_interpolation(v, 1.0), torch.stack([interpolate_frame(v, i) for i in range(4)], dim=1)
    )
    assert torch.equal(temporal_interpolation(v, 0.0), v)


def test_frames_are_replaced_independently_with_the_ratio_as_probability():
    v = tokens(batch=3000, window=2, patches=1, dim=2)
    out = temporal_interpolation(v, 1 / 3, torch.Generator().manual_seed(1))
    replaced = (out != v).all(dim=(2, 3))
    assert torch.equal(replaced, (out != v).any(dim=(2, 3)))  # a frame as a whole
    assert replaced.float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert replaced.all(dim=1).float().mean().item() == pytest.approx(1 / 9, abs=0.02)  # both frames of a window


def test_a_window_of_one_frame_cannot_be_interpolated():
    with pytest.raises(ValueError, match="window of 1"):
        temporal_interpolation(tokens(window=1), 0.5)
    with pytest.raises(ValueError, match="window of 1"):
        interpolate_frame(tokens(window=1), 0)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.33, 0.6, 1.0])
def test_mask_zeroes_the_same_channels_throughout_a_window(ratio):
    v = tokens()
    out = spatial_mask(v, ratio, torch.Generator().manual_seed(0))
    zero = out == 0
    assert torch.equal(zero, zero[:, :1, :1].expand_as(zero))
    assert (zero[:, 0, 0].sum(dim=1) == int(ratio * 20)).all()
    assert torch.equal(out[~zero], v[~zero])


def test_mask_is_new_for_each_sample_and_repeats_with_the_generator():
    v = tokens(batch=50)
    first, second = (spatial_mask(v, 0.4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    channels = (first == 0)[:, 0, 0]
    assert len(channels.unique(dim=0)) > 45
    assert channels.float().mean(dim=0).min() > 0.15  # no channel is spared


def test_mask_removes_even_what_is_not_finite():
    assert torch.equal(spatial_mask(torch.full((1, 2, 3, 4), torch.nan), 1.0), torch.zeros(1, 2, 3, 4))


@pytest.mark.parametrize("augment", [spatial_mask, temporal_interpolation])
def test_input_is_left_alone_and_bad_input_is_refused(augment):
    v = tokens()
    before = v.clone()
    out = augment(v, 0.9)
    assert torch.equal(v, before) and out.shape == v.shape and out.dtype == v.dtype
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            augment(v, ratio)
    with pytest.raises(ValueError, match="batch, window, patches, dim"):
        augment(v[0], 0.5)


def test_frame_index_outside_the_window():
    for index in (-1, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            interpolate_frame(tokens(), index)
