"""Training of the stand-ins: losses that learn, held-out seeds, and the check of what is shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nfx.data.simulator.scenes import FRAME_CLASSES, frame_class
from nfx.stand_ins import generation, language, recognition, renders, scores


def test_renders_are_fixed_by_their_seed_and_held_out_seeds_are_never_drawn():
    a, b = renders.frames(3, 5), renders.frames(3, 5)
    assert a.scenes == b.scenes and torch.equal(a.pixels, b.pixels)
    assert a.pixels.shape == (3, 1, 3, 64, 64) and -1 <= a.pixels.min() < a.pixels.max() <= 1
    assert renders.clips(2, 5).pixels.shape == (2, 6, 3, 64, 64)
    drawn = [renders.training_seed(torch.Generator().manual_seed(i)) for i in range(1000)]
    assert max(drawn) < renders.HELD_OUT // 2


def test_to_uint8_undoes_to_tensor():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(scores.to_uint8(renders.to_tensor(pixels)), pixels)


def test_marginals_are_those_of_the_joint_distribution():
    logits = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    joint = logits.softmax(-1).unflatten(-1, (2, 3, 4))
    for axis, marginal in enumerate(renders.marginals(logits, (2, 3, 4))):
        others = [d for d in (1, 2, 3) if d != axis + 1]
        torch.testing.assert_close(marginal.softmax(-1), joint.sum(others))


def test_attribute_loss_is_least_for_the_right_class():
    scenes = renders.frames(4, 1).scenes
    right = torch.full((4, len(FRAME_CLASSES)), -20.0)
    right[torch.arange(4), torch.tensor([frame_class(s) for s in scenes])] = 20.0
    attributes = renders.frame_attributes(scenes)
    good = recognition.attribute_loss(right, attributes, renders.FRAME_SHAPE)
    bad = recognition.attribute_loss(right.roll(1, dims=-1), attributes, renders.FRAME_SHAPE)
    assert good["loss"] < 1e-3 < bad["loss"] and good["accuracy"] == 1


def test_degraded_frames_stay_near_their_originals():
    pixels = renders.frames(8, 2).pixels
    degraded = renders.degrade(pixels, np.random.default_rng(0))
    assert 0 < (degraded - pixels).abs().mean() < 0.2


@pytest.mark.parametrize("build, loss", [
    (recognition.vit, recognition.vit_loss),
    (recognition.videomae, recognition.videomae_loss),
    (generation.autoencoder, generation.autoencoder_loss),
])  # fmt: skip
def test_one_step_of_training_reaches_every_parameter(build, loss):
    torch.manual_seed(0)
    model = build()
    loss(model, 0, torch.Generator().manual_seed(0), batch=4)["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_blip_starts_as_the_vit_it_is_given():
    torch.manual_seed(0)
    vit, blip = recognition.vit().vit.eval(), language.blip(30).vision_model.eval()
    language.start_as_vit(blip, vit)
    pixels = renders.frames(2, 3).pixels[:, 0]
    with torch.no_grad():
        wanted, found = vit(pixels).last_hidden_state, blip(pixels).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)  # their LayerNorms have other epsilons
    assert wanted.std() > 0.5


def test_the_perceptual_error_is_zero_for_the_same_frames_alone_and_reaches_the_decoder():
    torch.manual_seed(0)
    vision = language.clip(30).vision_model
    pixels = renders.frames(4, 3).pixels[:, 0]
    assert generation.perceptual_error(vision, pixels, pixels) == 0
    assert generation.perceptual_error(vision, pixels.flip(0), pixels) > 0.01
    model = generation.autoencoder()
    generation.decoder_loss(model, vision, 0, torch.Generator().manual_seed(0), batch=2)["loss"].backward()
    assert all(p.grad is not None for p in model.decoder.parameters())
    assert all(p.grad is None for p in model.encoder.parameters())


def test_half_of_the_unets_conditions_are_the_end_of_the_sentence():
    seen = []

    def model(noisy, t, conditions):
        seen.append(conditions)
        return type("Output", (), {"sample": noisy})

    states = torch.arange(12.0).reshape(4, 3, 1).expand(4, 3, 2)  # caption c: 3c, 3c + 1, 3c + 2; the last one is empty
    ends = 100 + torch.arange(4.0)[:, None].expand(4, 2)
    alpha_bar = torch.linspace(0.99, 0.01, 10)
    generator = torch.Generator().manual_seed(0)
    generation.unet_loss(model, torch.zeros(3, 1, 2, 2), states, ends, alpha_bar, generator, batch=4000)
    first = seen[0][:, 0, 0]
    padded = first >= 100
    assert abs(padded.float().mean() - 0.5) < 0.03
    assert (seen[0][padded] == first[padded][:, None, None]).all()
    empty = torch.where(padded, first == 103, first == 9)
    assert abs(empty.float().mean() - 0.1) < 0.02


def test_language_losses_fall_when_a_batch_is_learnt(tmp_path):
    torch.manual_seed(0)
    tokenizer = language.bert_tokenizer(tmp_path)
    model = language.blip(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(8):
        loss = language.blip_loss(model, tokenizer, 0, torch.Generator().manual_seed(1), batch=8)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_a_changed_or_missing_snapshot_is_named(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    scores.write_digests(tmp_path)
    scores.check_snapshots(tmp_path)
    (tmp_path / "vit" / "config.json").write_text("{} ")
    with pytest.raises(ValueError, match=r"vit/config\.json is not the shipped file"):
        scores.check_snapshots(tmp_path)
    (tmp_path / "vit" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        scores.check_snapshots(tmp_path)
