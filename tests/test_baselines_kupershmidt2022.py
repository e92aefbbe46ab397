"""Kupershmidt 2022 on a toy whose clips have a colour that the recordings hold."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_baselines as toy
import torch
from safetensors.torch import load_file

from nfx import paths
from nfx.baselines import baseline_folder, shared
from nfx.baselines import kupershmidt2022 as kupershmidt
from nfx.training import WHOLE, step_generator

SHAPE = (20, 2, 6, 16)  # voxels, window, frames, size


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(kupershmidt, "BATCH", 4)
    return toy.make(tmp_path, steps=8)


@pytest.mark.slow
def test_a_planted_linear_relation_is_decoded_though_the_test_part_was_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    small = toy.make(tmp_path, steps=100)
    kupershmidt.train(small.profile, 1)  # test recordings are NaN, test clips do not exist
    small.reveal()
    own, other = toy.alignment(toy.decode(kupershmidt, small.profile), small.clips)
    assert own > 0.4 and own > 1.5 * other


def test_separable_weights_are_the_product_of_place_and_channel():
    torch.manual_seed(0)
    layer = kupershmidt.Separable(3, 5)
    torch.nn.init.normal_(layer.place)
    weight = layer.place[:, None, :] * layer.channel[:, :, None]  # (voxels, channels, places)
    features, voxels = torch.randn(2, 5, 8, 8), torch.randn(2, 3)
    torch.testing.assert_close(layer.read(features), torch.einsum("bcp,vcp->bv", features.flatten(2), weight) / 8)
    painted = torch.einsum("bv,vcp->bcp", voxels, weight).unflatten(2, (8, 8)) * 8 * (5 / 3) ** 0.5
    torch.testing.assert_close(layer.paint(voxels), painted)


def test_what_is_painted_starts_with_unit_variance_and_nearly_even():
    torch.manual_seed(0)
    painted = kupershmidt.Separable(300, 40).paint(torch.randn(50, 300))
    assert painted.std().item() == pytest.approx(1, abs=0.1)
    assert painted.std(dim=(2, 3)).mean() < 0.2


def test_the_two_networks_turn_clips_into_windows_and_back():
    torch.manual_seed(0)
    video = torch.rand(3, 3, 6, 16, 16)
    window = kupershmidt.FMRIFromVideo(*SHAPE)(video)
    assert window.shape == (3, 2, 20)
    assert kupershmidt.VideoFromFMRI(*SHAPE)(window).shape == video.shape


def losses(unlabelled):
    """The decoder's loss on random pairs, and the encoder it is given."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (12, 6, 16, 16, 3), dtype=np.uint8)
    windows = rng.normal(size=(8, 2, 20)).astype(np.float32)
    encoder = kupershmidt.FMRIFromVideo(*SHAPE).requires_grad_(False)
    return kupershmidt.decoder_loss(film, np.arange(8), windows, 3, unlabelled, encoder), encoder, film


def test_the_encoder_stays_fixed_and_both_cycles_reach_the_decoder():
    unlabelled = np.random.default_rng(1).normal(size=(4, 2, 20)).astype(np.float32)
    loss, encoder, _ = losses(unlabelled)
    decoder = kupershmidt.VideoFromFMRI(*SHAPE)
    values = loss(decoder, 0, step_generator(0, 0), WHOLE)
    total = values["pairs"] + values["video_cycle"] + values["fmri_cycle"]
    torch.testing.assert_close(values["loss"], total)
    for name in ("pairs", "video_cycle", "fmri_cycle"):
        gradients = torch.autograd.grad(values[name], decoder.parameters(), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients), name
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_unlabelled_clips_begin_at_any_frame_and_stay_in_their_segment(monkeypatch):
    loss, _, film = losses(np.ones((4, 2, 20), np.float32))
    running, seen = film.reshape(3, 24, 16, 16, 3), []
    original = shared.to_video
    monkeypatch.setattr(shared, "to_video", lambda clips: seen.append(clips) or original(clips))
    decoder = kupershmidt.VideoFromFMRI(*SHAPE)
    for step in range(6):
        with torch.no_grad():
            loss(decoder, step, step_generator(0, step), WHOLE)
    begins = set()
    for clip in np.concatenate(seen[1::2]):
        found = [(s, b) for s in range(3) for b in range(19) if (running[s, b : b + 6] == clip).all()]
        assert len(found) == 1
        begins.add(found[0][1])
    assert len(begins) > 12 and any(begin % 6 for begin in begins)


def test_the_fmri_cycle_takes_the_validation_recordings(small, monkeypatch):
    from nfx.data import load_subject

    given = []

    def stop(film, clip, windows, segments, unlabelled, encoder):
        given.append((clip, windows, segments, unlabelled))
        raise KeyboardInterrupt

    monkeypatch.setattr(kupershmidt, "decoder_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        kupershmidt.train(small.profile, 1)
    data, (clip, windows, segments, unlabelled) = load_subject(small.profile, 1), given[0]
    np.testing.assert_array_equal(unlabelled, data.validation.fmri)
    np.testing.assert_array_equal(windows, data.train.fmri)
    assert clip.tolist() == list(range(120)) and segments == 4


def test_a_stopped_training_resumes_to_the_same_weights_and_is_reused(small, monkeypatch, capsys):
    def weights():
        model = kupershmidt.train(small.profile, 1)
        parts = {name: load_file(model / f"{name}.safetensors") for name in ("encoder", "decoder")}
        return {f"{part}.{key}": weight for part, found in parts.items() for key, weight in found.items()}

    through = weights()
    folder = baseline_folder(small.profile, "kupershmidt2022", 1) / "model"
    assert not list(folder.glob("**/checkpoint"))
    folder.rename(folder.with_name("through"))
    taken = toy.stop_after(monkeypatch, kupershmidt, "fmri_distance", 8 + 7)  # in the decoder's training
    with pytest.raises(KeyboardInterrupt):
        weights()
    resumed = weights()
    assert len(taken) == 8 + 7 + (8 - 5)  # the encoder is not trained again; the decoder goes on from step 5
    assert all(torch.equal(through[name], resumed[name]) for name in through)
    small.reveal()
    decoded = toy.decode(kupershmidt, small.profile)
    assert decoded.shape == small.clips.shape and decoded.dtype == np.uint8 and decoded.std() > 0
    capsys.readouterr()
    weights()  # new test data train nothing
    assert len(taken) == 18 and "reused" in capsys.readouterr().out
