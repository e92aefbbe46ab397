import numpy as np
import pytest

from nfx.data import split, time_average, windows

SEGMENT = np.array([1, 1, 1, 2, 2, 5])


def test_windows_repeat_the_last_volume_and_never_cross_a_segment():
    fmri = np.arange(6, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    result = windows(fmri, SEGMENT, 3)
    assert result.shape == (6, 3, 3) and result.dtype == np.float32
    assert result[:, :, 0].tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4], [5, 5, 5]]


def test_every_window_stays_in_its_segment():
    segment = np.repeat(np.arange(4), [5, 1, 7, 3])
    for width in (1, 2, 9):
        result = windows(segment[:, None], segment, width)
        assert (result[:, :, 0] == segment[:, None]).all()
        np.testing.assert_array_equal(windows(np.arange(16)[:, None], segment, width)[:, 0, 0], np.arange(16))


def test_windows_refuse_what_they_cannot_order():
    with pytest.raises(ValueError, match="two places"):
        windows(np.zeros((3, 1)), np.array([1, 2, 1]), 2)
    with pytest.raises(ValueError, match="segment per clip"):
        windows(np.zeros((3, 1)), np.array([1, 2]), 2)
    with pytest.raises(ValueError, match="one volume"):
        windows(np.zeros((3, 1)), np.ones(3), 0)


def test_time_average_keeps_shape_type_and_mean():
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    mean = time_average(x)
    assert mean.shape == x.shape and mean.dtype == x.dtype
    for frame in range(3):
        np.testing.assert_allclose(mean[:, frame], x.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(time_average(mean), mean)


def test_split_holds_out_whole_segments():
    train, validation = split(SEGMENT, (2, 5))
    assert train.tolist() == [0, 1, 2] and validation.tolist() == [3, 4, 5]


def test_split_refuses_absent_segments_and_an_empty_training_set():
    with pytest.raises(ValueError, match=r"names \[3\]"):
        split(SEGMENT, [2, 3])
    with pytest.raises(ValueError, match="no segment to train on"):
        split(SEGMENT, [1, 2, 5])
