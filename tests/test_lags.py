"""Recordings shifted by volumes, and the lag curve of films whose delay is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nfx import paths
from nfx.data import windows
from nfx.evaluation import lags
from nfx.files import save_arrays
from nfx.paths import work
from nfx.profile import load_profile


@pytest.mark.parametrize("lag", [-2, 0, 2])
def test_a_lag_moves_recordings_within_their_segment(lag):
    segment = np.repeat([1, 2], [5, 6])
    fmri = np.arange(11, dtype=np.float32)[:, None] + 1
    moved, numbers = lags.lagged(fmri, segment, lag)
    for clip in range(11):
        at = clip + lag
        if 0 <= at < 11 and segment[at] == segment[clip]:
            assert moved[clip] == at + 1 and numbers[clip] == segment[clip]
        else:
            assert moved[clip] == 0 and numbers[clip] == segment[clip] + 2
    assert (numbers > 2).sum() == 2 * abs(lag)
    windows(moved, numbers, 2)  # segments stand together still


def test_clips_at_every_lag_are_those_in_the_middle():
    segment = np.repeat([1, 2], [5, 6])
    there = lags.recorded_at_all(segment, (-2, 1))
    assert np.flatnonzero(there).tolist() == [2, 3, 7, 8, 9]
    with pytest.raises(ValueError, match="more than 8 clips"):
        lags.recorded_at_all(segment, (-4, 4))


# --- the curve -----------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path, monkeypatch):
    """Recordings that follow the film's embedding by `delay` volumes, in noise; no scenes: every clip is new."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    data = demo.data.model_copy(update={"train_segments": 6, "validation_segments": (6,), "window": 1})
    profile = demo.model_copy(update={"data": data})

    def make(delay):
        rng = np.random.default_rng(0)
        mixing, arrays, targets = rng.normal(size=(8, 20)), {"vertex": np.arange(20)}, {}
        for part, segment in (("train", np.repeat(np.arange(1, 7), 60)), ("test", np.repeat([1, 2], 60))):
            shown = rng.normal(size=(len(segment), 8))
            late = np.zeros((len(segment), 20))
            for number in np.unique(segment):
                late[segment == number] = np.roll(shown[segment == number] @ mixing, delay, axis=0)
            arrays[f"{part}_fmri"] = (late + rng.normal(size=late.shape)).astype(np.float32)
            arrays[f"{part}_segment"] = segment
            targets[f"{part}_image_embeddings"] = np.repeat(shown[:, None], 2, axis=1).astype(np.float32)
        save_arrays(work(profile, "subject1"), arrays, {})
        save_arrays(work(profile, "targets"), targets, {})
        return profile

    return make


@pytest.mark.parametrize("delay", [0, 2, -1])
def test_the_lag_curve_peaks_where_the_film_is(film, delay):
    curve = lags.lag_curve(film(delay), 1, range(-3, 4))
    assert curve["lag"].tolist() == list(range(-3, 4)) and set(curve["clips"]) == {2 * (60 - 6)}
    peak = curve.set_index("lag").loc[delay]
    assert curve["lag"][curve["mean"].idxmax()] == delay and peak["mean"] > 0.8
    others = curve[curve["lag"].ne(delay)]
    assert ((others["mean"] - 0.5).abs() < 0.12).all() and (others["high"] < peak["low"]).all()


def test_a_lag_curve_is_kept_until_the_recordings_change(film, monkeypatch):
    profile = film(0)
    first = lags.lag_curve(profile, 1, (-1, 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr("nfx.evaluation.references.linear_reader", None)
        pd.testing.assert_frame_equal(lags.lag_curve(profile, 1, (-1, 0, 1)), first)
    film(1)
    again = lags.lag_curve(profile, 1, (-1, 0, 1))
    assert again["lag"][again["mean"].idxmax()] == 1


def test_the_lag_curve_sees_no_held_out_or_test_pair(film, monkeypatch):
    from nfx.evaluation import references

    profile, asked = film(0), []
    original = references.linear_reader

    def logged(train, validation, test):
        asked.append((len(train[0]), len(validation[0]), len(test)))
        return original(train, validation, test)

    monkeypatch.setattr(references, "linear_reader", logged)
    lags.lag_curve(profile, 1, (-2, 0))
    assert asked == [(5 * 58, 58, 2 * 58)] * 2
