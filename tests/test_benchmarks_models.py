"""The plain references of the benchmarks compute what the package computes, on models that take seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

import models_at_size as at  # noqa: E402
import plain_models as plain  # noqa: E402

from nfx.diffusion import decode  # noqa: E402
from nfx.diffusion.fine_tuning import clip_generator  # noqa: E402
from nfx.memory import stage_two_bytes  # noqa: E402
from nfx.profile import load_profile  # noqa: E402
from nfx.training import _parameter_groups, train  # noqa: E402

demo = load_profile("demo")
small = demo.model_copy(update={
    "encoder": demo.encoder.model_copy(update={"dim": 16, "depth": 2, "heads": 2}),
    "pretraining": demo.pretraining.model_copy(update={"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}),
    "stage_two": demo.stage_two.model_copy(update={"batch_size": 2}),
})  # fmt: skip
TINY = at.Case("tiny", small, voxels=150)
MAKERS = (at.encoder_steps, at.pretraining_steps, at.caption_steps, at.fmri_steps)


@pytest.mark.parametrize("make", MAKERS)
def test_a_plain_loss_and_its_gradients_are_ours(make):
    steps = make(TINY, 4)(3)
    ours, theirs = (loss() for loss in steps.losses)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, steps.trained, allow_unused=True) for loss in (ours, theirs)]
    largest = max(g.abs().max() for g in gradients[0] if g is not None)
    for mine, other in zip(*gradients, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-5 * largest.item())


def test_a_timed_step_is_one_of_the_training_loop(tmp_path):
    """Bit by bit; else the benchmarks would time something else than the notebooks do."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))

    def loss(model, step, generator, share):
        return {"loss": 100 * model(torch.randn(5, 3, generator=generator)).square().mean()}  # a gradient to be clipped

    looped, stepped = model(), model()
    train(looped, loss, steps=1, learning_rate=0.1, seed=0, folder=tmp_path)
    trained = list(stepped.parameters())
    at.training_step(stepped, loss, trained, learning_rate=0.1)()
    assert len(_parameter_groups(stepped, 0.01)) == 2
    for a, b, start in zip(looped.parameters(), trained, model().parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, start)


def test_a_plain_step_trains_all_and_ours_what_section_4_3_names():
    steps = at.fmri_steps(TINY, 2)(2)

    def changed(step):
        before = {name: p.detach().clone() for name, p in steps.model.named_parameters()}
        step()
        return {name for name, p in steps.model.named_parameters() if not torch.equal(p, before[name])}

    ours, theirs = changed(steps.ours), changed(steps.plain)
    trained = {id(parameter) for parameter in steps.trained}
    assert ours == {name for name, p in steps.model.named_parameters() if id(p) in trained}
    assert theirs == {name for name, _ in steps.model.named_parameters()}


def test_plain_sampling_gives_the_same_clips():
    made, windows = at.pipeline(TINY), at.noise(2, 2, TINY.voxels)
    ours = decode(made, windows, clip_ids=[0, 1], seed=0, steps=3, guidance=4.0, batch_size=2)
    theirs = plain.sample(made, torch.from_numpy(windows), 3, 4.0, [clip_generator(0, clip) for clip in (0, 1)])
    np.testing.assert_allclose(np.rint(255 * theirs), ours, rtol=0, atol=1)
    assert ours.std() > 1 and not any("forward" in vars(module) for module in made.unet.modules())


@pytest.mark.slow
def test_a_plain_step_needs_more_memory():
    """Counted on tensors without content, as at the paper's size, and on real ones."""
    counts = at.counted_bytes(small, held=at.held_bytes, ours=stage_two_bytes, plain=at.fine_tuning_bytes)
    assert counts["held"] < counts["ours"] < counts["plain"]
    ours, theirs = at.measured_peaks(TINY, 2)
    assert ours < theirs


def test_operations_are_those_of_matrix_products():
    a = torch.randn(8, 16)
    assert at.operations(lambda: a @ a.T) == 2 * 8 * 8 * 16
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    product = 2 * 2 * 8 * 8 * 4
    for attend in (torch.nn.functional.scaled_dot_product_attention, plain.attention):
        assert at.operations(lambda attend=attend: attend(q, q, q)) == 2 * product
    fused = torch.nn.functional.scaled_dot_product_attention
    assert at.operations(lambda: fused(q, q, q).sum().backward()) >= 6 * product  # backward: twice as many
