import time
import warnings

import numpy as np
import pytest

from nfx.data import clean_run
from nfx.data.cleaning import BLOCK, polynomial_basis


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


@pytest.mark.slow
def test_a_full_run_takes_a_moment():
    bold = run(245, 91282)
    start = time.perf_counter()
    cleaned = clean_run(bold)
    seconds = time.perf_counter() - start
    assert cleaned.shape == (240, 91282)
    assert seconds < 5, f"{seconds:.1f} s"  # 0.1-0.2 s on one core; room for a loaded machine
