"""Wen 2018 on a toy whose latents are a linear map of the recordings."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_baselines as toy

from nfx import paths
from nfx.baselines import shared, wen2018
from nfx.data.targets import decode_latents
from nfx.files import load_arrays, save_arrays


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return toy.make(tmp_path, steps=1, diffusion=True)


def test_a_planted_linear_relation_is_decoded_though_the_test_part_was_not_there(small):
    model = wen2018.train(small.profile, 1)  # test recordings are NaN, test clips and latents do not exist
    errors = load_arrays(model)["errors"]
    assert errors.min() < 0.3 and errors[-1] > 0.9  # at the largest penalty next to nothing is predicted
    small.reveal()
    decoded = toy.decode(wen2018, small.profile)
    truth = decode_latents(small.latents.reshape(-1, 4, 8, 8), small.profile.models.stable_diffusion)
    own, other = toy.alignment(decoded, truth.reshape(decoded.shape))
    assert own > 0.8 and own > 2 * other


def test_each_frame_has_its_own_map(small):
    folder = paths.work(small.profile, "targets")
    arrays = {name: np.array(array) for name, array in load_arrays(folder).items()}
    arrays["train_latents"][:, 4] *= -1  # in the fifth frame of every clip what was bright is dark
    save_arrays(folder, arrays, {})
    model = load_arrays(wen2018.train(small.profile, 1))
    weight = model["weight"].reshape(len(model["weight"]), 6, -1)
    np.testing.assert_allclose(weight[:, 4], -weight[:, 0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(weight[:, 5], weight[:, 0], rtol=1e-3, atol=1e-6)


def test_a_finished_fit_is_reused_until_the_training_part_changes(small, monkeypatch, capsys):
    wen2018.train(small.profile, 1)

    def never(*_):
        raise AssertionError("fitted")

    monkeypatch.setattr(shared, "ridge", never)
    small.reveal()  # other test recordings
    wen2018.train(small.profile, 1)
    assert "reused" in capsys.readouterr().out
    data = small.profile.data.model_copy(update={"validation_segments": (3,)})
    with pytest.raises(AssertionError, match="fitted"):
        wen2018.train(small.profile.model_copy(update={"data": data}), 1)


def test_the_penalty_is_chosen_over_whole_segments(small, monkeypatch):
    given, original = [], shared.ridge
    monkeypatch.setattr(shared, "ridge", lambda x, y, segment: given.append(segment) or original(x, y, segment))
    wen2018.train(small.profile, 1)
    assert given[0].tolist() == toy.TRAIN[toy.TRAIN != 4].tolist()


def test_the_held_out_segments_are_not_fitted(small):
    folder = paths.work(small.profile, "targets")
    weight = np.array(load_arrays(wen2018.train(small.profile, 1))["weight"])
    arrays = {name: np.array(array) for name, array in load_arrays(folder).items()}
    arrays["train_latents"][toy.TRAIN == 4] = np.nan
    save_arrays(folder, arrays, {})
    np.testing.assert_array_equal(load_arrays(wen2018.train(small.profile, 1))["weight"], weight)
