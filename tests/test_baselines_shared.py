"""What the baselines share: ridge regression against its closed form, the network's shapes, weights on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nfx import paths
from nfx.baselines import shared
from nfx.files import finished, read_manifest, save_arrays
from nfx.profile import load_profile

SEGMENT = np.repeat([1, 2, 3], 20)


def planted(features: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, features)) + 3
    return x, x @ rng.normal(size=(features, 2)) + 5 + noise * rng.normal(size=(60, 2))


@pytest.mark.parametrize("features", [4, 90])
def test_ridge_is_the_closed_form_at_the_penalty_it_chose(features):
    x, y = planted(features, 1.0)
    fitted, held_out = shared.ridge(x, y, SEGMENT)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    weight = np.linalg.solve(x0.T @ x0 + fitted.penalty * np.eye(features), x0.T @ y0)
    np.testing.assert_allclose(fitted.weight, weight, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(fitted(x), x0 @ weight + y.mean(0), rtol=1e-2, atol=1e-2)
    for number in (1, 2, 3):
        inside, outside = number != SEGMENT, number == SEGMENT
        x0, y0 = x[inside] - x[inside].mean(0), y[inside] - y[inside].mean(0)
        weight = np.linalg.solve(x0.T @ x0 + fitted.penalty * np.eye(features), x0.T @ y0)
        expected = (x[outside] - x[inside].mean(0)) @ weight + y[inside].mean(0)
        np.testing.assert_allclose(held_out[outside], expected, rtol=1e-2, atol=1e-2)


def test_the_penalty_grows_with_the_noise_and_pure_noise_is_predicted_by_the_mean():
    clean, noisy = (shared.ridge(*planted(10, noise), SEGMENT)[0] for noise in (0.01, 20.0))
    assert clean.penalty < noisy.penalty
    assert clean.errors.min() < 0.01 and clean.errors.argmin() == 0
    x, y = planted(10, 0.0)[0], np.random.default_rng(1).normal(size=(60, 2))
    assert shared.ridge(x, y, SEGMENT)[0].errors.min() > 0.9


def test_a_held_out_prediction_never_sees_its_own_segment():
    x, y = planted(4, 0.1)
    before = shared.ridge(x, y, SEGMENT)[1]
    y[SEGMENT == 2] += 1000
    after = shared.ridge(x, y, SEGMENT)[1]
    assert np.abs(after[SEGMENT == 2] - before[SEGMENT == 2]).max() < 50  # but for the penalty, as it was
    assert np.abs(after[SEGMENT == 1] - before[SEGMENT == 1]).max() > 100


def test_one_segment_is_refused():
    with pytest.raises(ValueError, match="1 training segment"):
        shared.ridge(np.ones((4, 2)), np.ones((4, 1)), np.ones(4))


@pytest.mark.parametrize("size", [8, 32])
def test_the_video_decoder_gives_its_size_and_links_frames(size):
    torch.manual_seed(0)
    decoder = shared.VideoDecoder(32, 4, size)
    x = torch.randn(2, 32, 6, 4, 4)
    video = decoder(x)
    assert video.shape == (2, 3, 6, size, size) and video.abs().max() <= 1
    shuffled = decoder(x[:, :, torch.tensor([5, 4, 3, 2, 1, 0])]).flip(2)
    assert not torch.allclose(shuffled, video, atol=1e-4)  # unlike networks that take each frame by itself


def test_a_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="frame_size is 48, expected 4 times a power of two"):
        shared.VideoDecoder(16, 4, 48)


def test_clips_survive_the_way_to_a_video_and_back():
    clips = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shared.to_clips(shared.to_video(clips)), clips)


def test_a_film_that_is_too_short_for_the_recordings_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    profile = load_profile("demo")
    save_arrays(paths.work(profile, "stimuli"), {"train_clips": np.zeros((9, 6, 4, 4, 3), np.uint8)}, {})
    with pytest.raises(ValueError, match="clip 119, but stimuli/train_clips has 9 clips"):
        shared.training_rows(profile, "stimuli", "train_clips", np.arange(120))


def test_weights_come_back_with_their_curves_in_the_manifest(tmp_path):
    model = torch.nn.Linear(2, 3)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "curve.csv").write_text("step\n")
    shared.save_weights(tmp_path, {"model": model}, {"a": 1})
    loaded = shared.load_weights(tmp_path, "model", torch.nn.Linear(2, 3))
    assert torch.equal(loaded.weight.cpu(), model.weight) and not loaded.weight.requires_grad and not loaded.training
    assert finished(tmp_path, {"a": 1})
    assert set(read_manifest(tmp_path)["files"]) == {"model.safetensors", "part/curve.csv"}
