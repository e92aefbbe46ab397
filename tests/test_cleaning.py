import warnings

import numpy as np
import pytest

from nfx.data import clean_run, cleaning
from nfx.data.cleaning import (
    BLOCK,
    average_volumes,
    clip_weights,
    detrend_and_z_score,
    polynomial_basis,
    resample,
    trim,
)


def oracle(bold):
    """Polynomial fit column by column, and z with ddof 1."""
    t = np.linspace(0, 1, len(bold))
    out = np.empty(bold.shape)
    for column in range(bold.shape[1]):
        residual = bold[:, column] - np.polyval(np.polyfit(t, bold[:, column].astype(np.float64), 4), t)
        out[:, column] = (residual - residual.mean()) / residual.std(ddof=1)
    return out


def run(volumes, columns=3, seed=0):
    return np.random.default_rng(seed).normal(1e4, 100, (volumes, columns)).astype(np.float32)


@pytest.mark.parametrize(("length", "first"), [(245, 1), (246, 2)])
def test_trims_detrends_and_scores_as_the_oracle(length, first):
    bold = run(length, BLOCK + 2)
    bold += (50 * np.linspace(-1, 2, length) ** 4)[:, None].astype(np.float32)
    cleaned = clean_run(bold)
    assert cleaned.shape == (240, BLOCK + 2) and cleaned.dtype == np.float32
    columns = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1]
    np.testing.assert_allclose(cleaned[:, columns], oracle(bold[first : first + 240, columns]), atol=2e-6)


def test_what_is_dropped_has_no_effect():
    bold = run(246)
    changed = bold.copy()
    changed[:2], changed[-4:] = 1e6, -1e6
    np.testing.assert_array_equal(clean_run(bold), clean_run(changed))


def test_columns_are_standard_and_free_of_drift():
    cleaned = clean_run(run(45), volumes=40).astype(np.float64)
    np.testing.assert_allclose(cleaned.std(axis=0, ddof=1), 1, atol=1e-6)
    np.testing.assert_allclose(polynomial_basis(40).T @ cleaned, 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_become_zero_and_are_counted(dtype):
    bold = run(45, 5).astype(dtype)
    t = np.linspace(0, 1, 45)
    bold[:, 1], bold[:, 2], bold[:, 3] = 1234.567, 0, 1e4 + 300 * t - 70 * t**4
    with pytest.warns(RuntimeWarning, match="3 of 5 columns"):
        cleaned = clean_run(bold, volumes=40)
    assert not cleaned[:, 1:4].any()
    np.testing.assert_allclose(cleaned[:, [0, 4]], oracle(bold[1:41, [0, 4]]), atol=2e-6)


def test_a_small_signal_on_a_large_mean_is_no_constant():
    bold = 1e6 + np.random.default_rng(0).standard_normal((45, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(clean_run(bold, volumes=40)).all()


def test_integers_are_cleaned_too():
    bold = run(45).round()
    np.testing.assert_allclose(clean_run(bold.astype(np.int16), 40), clean_run(bold, 40), atol=1e-6)


@pytest.mark.parametrize("length", [240, 244, 247])
def test_a_wrong_number_of_volumes_states_the_counts(length):
    with pytest.raises(ValueError, match=f"{length} volumes; 245 or 246"):
        clean_run(run(length))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    bold = run(45)
    bold[10, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        clean_run(bold, volumes=40)


def test_shapes_and_lengths_that_cannot_be_cleaned():
    with pytest.raises(ValueError, match="shape"):
        clean_run(np.zeros(245))
    with pytest.raises(ValueError, match="detrended"):
        clean_run(run(10), volumes=5)


# --- other repetition times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "onset"), [(245, -2.0), (246, 0.0)])
def test_aligned_volumes_of_2_s_are_the_published_trimming(length, onset):
    weights = clip_weights(length, 2.0, onset + 4.0, 240)
    assert set(np.unique(weights)) == {0.0, 1.0}
    bold = run(length, BLOCK + 2)
    np.testing.assert_array_equal(resample(bold, weights), trim(bold))
    np.testing.assert_array_equal(detrend_and_z_score(resample(bold, weights))[0], clean_run(bold))


@pytest.mark.parametrize("step", [0.72, 0.8, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("start", [0.0, 4.3, 7.77])
def test_weights_are_shares_of_time(step, start):
    clips, volumes = 12, int(np.ceil((7.77 + 24) / step)) + 3
    fine = np.arange(0, volumes * step, 1e-3) + 5e-4  # each millisecond is in one volume and in one clip or none
    expected = np.zeros((clips, volumes))
    inside = (fine >= start) & (fine < start + 2 * clips)
    np.add.at(expected, (((fine[inside] - start) // 2).astype(int), (fine[inside] // step).astype(int)), 1e-3 / 2)
    weights = clip_weights(volumes, step, start, clips)
    np.testing.assert_allclose(weights, expected, atol=2e-3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    # Of a signal that rises evenly, the mean over a clip is its value at the clip's middle (but for volumes cut).
    if step in (1.0, 2.0) and start == 0.0:
        np.testing.assert_allclose(weights @ ((np.arange(volumes) + 0.5) * step), start + 1 + 2 * np.arange(clips))


def test_resampling_keeps_constant_columns_constant():
    bold = run(100)
    bold[:, 1] = 1234.567
    cleaned, constant = detrend_and_z_score(resample(bold, clip_weights(100, 0.72, 4.1, 30)))
    assert constant.tolist() == [False, True, False] and not cleaned[:, 1].any()


@pytest.mark.parametrize(
    ("volumes", "start", "message"),
    [(30, -0.5, "0.5 s before the recording begins"), (27, 4.0, "27 volumes of 1 s last 27 s.*need 28 s")],
)
def test_a_film_that_is_not_all_in_the_recording(volumes, start, message):
    with pytest.raises(ValueError, match=message):
        clip_weights(volumes, 1.0, start, 12)
    assert clip_weights(28, 1.0, 4.0, 12).shape == (12, 28)  # to the very end


def test_volumes_averaged():
    bold = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(average_volumes(bold, 3), [[2, 3], [8, 9]])  # the seventh is left over
    assert average_volumes(bold, 3).dtype == np.float32 and average_volumes(bold, 1) is bold
    with pytest.raises(ValueError, match="7 volumes; 8"):
        average_volumes(bold, 8)


@pytest.mark.parametrize("cores", [1, 3])
def test_every_bit_is_that_of_one_block_after_another_with_any_number_of_threads(monkeypatch, cores):
    monkeypatch.setattr(cleaning, "_cores", lambda: cores)
    bold = 1e4 + 100 * np.random.default_rng(0).standard_normal((60, 2 * cleaning.BLOCK + 7), dtype=np.float32)
    basis = cleaning.polynomial_basis(60)
    expected = []
    for block in np.split(bold.astype(np.float64), [cleaning.BLOCK, 2 * cleaning.BLOCK], axis=1):
        block = np.ascontiguousarray(block)
        left = block - basis @ (basis.T @ block)
        deviation = np.sqrt(np.einsum("tc,tc->c", left, left) / 59)
        expected.append((left * (1 / deviation)).astype(np.float32))
    found, constant = cleaning.detrend_and_z_score(bold)
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert not constant.any()
