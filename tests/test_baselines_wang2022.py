"""Wang 2022 on a toy whose clips have a colour that the recordings hold."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_baselines as toy
import torch
from safetensors.torch import load_file

from nfx import paths
from nfx.baselines import baseline_folder, shared, wang2022
from nfx.data import load_subject
from nfx.files import load_arrays
from nfx.training import WHOLE, step_generator


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(wang2022, "CHANNELS", 16)
    return toy.make(tmp_path, steps=6)


def test_a_planted_linear_relation_is_decoded_though_the_test_part_was_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(wang2022, "CHANNELS", 16)
    small = toy.make(tmp_path, steps=60)
    wang2022.train(small.profile, 1)  # test recordings are NaN, test clips do not exist
    small.reveal()
    own, other = toy.alignment(toy.decode(wang2022, small.profile), small.clips)
    assert own > 0.6 and own > 1.5 * other


def test_the_linear_encoding_holds_the_colour_of_clips_it_has_not_seen(small, monkeypatch):
    given, original = [], shared.ridge
    monkeypatch.setattr(shared, "ridge", lambda x, y, segment: given.append(segment) or original(x, y, segment))
    encoding = load_arrays(wang2022.encode_linearly(small.profile, 1))
    assert given[0].tolist() == toy.TRAIN[toy.TRAIN != 4].tolist()  # folds are of whole segments
    held_out = np.array(encoding["held_out"])
    spread = held_out.std(axis=0)
    assert spread.max() == pytest.approx(1, abs=1e-3) and (spread[:3] > 0.2).all() and (spread[3:] < 0.1).all()
    colour = load_arrays(paths.work(small.profile, "stimuli"))["train_clips"][: 3 * toy.PER_SEGMENT, 0, 0, 0] / 255
    leading = held_out[:, :3]
    predicted = leading @ np.linalg.lstsq(leading, colour - colour.mean(0), rcond=None)[0]
    assert np.corrcoef(predicted.ravel(), (colour - colour.mean(0)).ravel())[0, 1] > 0.8


def test_principal_components_are_those_of_the_small_clips():
    clips = np.random.default_rng(0).integers(0, 256, (20, 6, 16, 16, 3), dtype=np.uint8)
    rows = np.arange(2, 18)
    scores = wang2022.principal_components(clips, rows, 5)
    flat = shared.to_video(clips[rows]).flatten(1).numpy()
    u, s, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(scores), np.abs(u[:, :5] * s[:5]), rtol=1e-2, atol=1e-2)


def test_each_player_is_moved_by_its_own_loss_alone():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (8, 6, 16, 16, 3), dtype=np.uint8)
    loss = wang2022.gan_loss(film, np.arange(8), rng.normal(size=(8, 5)).astype(np.float32))
    model = wang2022.VideoGAN(5, 6, 16)

    def gradients(name):
        values = loss(model, 0, step_generator(0, 0), WHOLE)
        chosen = {
            "all": values["loss"],
            "judges": values["judged_spatial"] + values["judged_temporal"],
            "maker": wang2022.RECONSTRUCTION * values["reconstruction"]
            + values["fooled_spatial"]
            + values["fooled_temporal"],
        }[name]
        names, weights = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(chosen, weights, allow_unused=True), strict=True))

    every, judges, maker = gradients("all"), gradients("judges"), gradients("maker")
    for name, gradient in every.items():
        mine, other = (maker, judges) if name.startswith("generator") else (judges, maker)
        torch.testing.assert_close(gradient, mine[name], rtol=1e-4, atol=1e-6)
        assert other[name] is None
        assert gradient.abs().max() > 0


def test_the_spatial_judge_sees_single_frames_and_the_temporal_one_their_order():
    torch.manual_seed(0)
    model = wang2022.VideoGAN(5, 6, 16)
    video, condition = torch.randn(2, 3, 6, 16, 16), torch.randn(2, 5)
    views = model.views(video, torch.tensor([0, 4]))
    assert torch.equal(views["spatial"][1, :, 0], video[1, :, 4]) and views["temporal"].shape == (2, 3, 6, 8, 8)
    backwards = model.views(video.flip(2), torch.tensor([5, 1]))
    spatial, temporal = (getattr(model, name) for name in ("spatial", "temporal"))
    torch.testing.assert_close(spatial(views["spatial"], condition), spatial(backwards["spatial"], condition))
    there, back = (temporal(seen["temporal"], condition) for seen in (views, backwards))
    assert (there - back).abs().max() > 1e-4


def test_a_stopped_training_resumes_to_the_same_weights_and_is_reused(small, monkeypatch, capsys):
    def weights():
        return load_file(wang2022.train(small.profile, 1) / "generator.safetensors")

    through = weights()
    folder = baseline_folder(small.profile, "wang2022", 1) / "model"
    folder.rename(folder.with_name("through"))
    taken = toy.stop_after(monkeypatch, shared, "to_video", 9)
    with pytest.raises(KeyboardInterrupt):
        weights()
    resumed = weights()
    assert len(taken) == 9 + 12 - 5  # of 12 steps, on from the checkpoint at step 5
    assert all(torch.equal(through[name], resumed[name]) for name in through)
    capsys.readouterr()
    weights()
    assert len(taken) == 16 and "reused" in capsys.readouterr().out


def test_a_clip_is_decoded_to_the_same_in_any_batch_and_its_number_gives_its_noise(small):
    small.reveal()
    wang2022.train(small.profile, 1)
    decoder, windows = wang2022.load_decoder(small.profile, 1), load_subject(small.profile, 1).test.fmri
    numbers = np.arange(100, 124)
    whole = decoder(windows, numbers)
    assert whole.shape == small.clips.shape and whole.dtype == np.uint8 and whole.std() > 0
    parts = np.concatenate([decoder(windows[i : i + 5], numbers[i : i + 5]) for i in range(0, 24, 5)])
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.abs(whole.astype(int) - decoder(windows, numbers + 1)).max() > 1
