"""Solvers against a network whose path from noise to clip is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_diffusion as tiny
import torch
from diffusers import DDIMScheduler

from nfx.diffusion import SOLVERS, dependent_noise, make_solver, sampled_by

FAST = SOLVERS[1:]
SPREAD, GUIDANCE = 0.7, 3.0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def windows():
    return torch.randn(3, tiny.WINDOW, tiny.VOXELS, generator=generator(0))


@pytest.fixture
def gaussian(pipeline):
    """The pipeline with the exact noise of clips from N(mu, SPREAD^2), mu the mean of the condition, as its UNet."""
    alpha_bar = pipeline.scheduler.alphas_cumprod

    def noise(sample, timestep, condition):
        a, mu = alpha_bar[timestep], condition.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - a).sqrt() * (sample - a.sqrt() * mu) / (a * SPREAD**2 + 1 - a))

    pipeline.unet.forward = noise
    return pipeline


def exact(pipeline, start, first: int, mu: float):
    """Where the path from noise `start` at step `first` ends: the standard score of a value never changes on it."""
    first, last = pipeline.scheduler.alphas_cumprod[first], pipeline.scheduler.alphas_cumprod[0]
    wide = [(a * SPREAD**2 + 1 - a).sqrt() for a in (first, last)]
    return last.sqrt() * mu + wide[1] * (start - first.sqrt() * mu) / wide[0]


def sampled(pipeline, solver: str, steps: int):
    """The end of a path, its noise, and the step it began at. The guided mean is 0.1 + GUIDANCE (0.4 - 0.1) = 1."""
    start = torch.randn(1, 4, 6, 8, 8, generator=generator(1))
    tokens = torch.ones(1, tiny.TOKENS, tiny.TOKEN_DIM)
    with sampled_by(pipeline, solver):
        end = pipeline(
            condition=0.4 * tokens, null_condition=0.1 * tokens, latents=start, num_inference_steps=steps,
            guidance_scale=GUIDANCE, output_type="latent",
        ).frames  # fmt: skip
        return end, start, int(pipeline.scheduler.timesteps[0])


def error(pipeline, solver: str, steps: int) -> float:
    end, start, first = sampled(pipeline, solver, steps)
    return float((end - exact(pipeline, start, first, 1.0)).abs().max())


@pytest.mark.parametrize(("solver", "least", "most"), [("ddim", 3.5, 4.5), ("dpm++", 5.5, 16), ("unipc", 5.5, 16)])
def test_four_times_the_steps_leave_a_quarter_of_ddim_s_error_and_less_of_the_others(gaussian, solver, least, most):
    few, many = (error(gaussian, solver, steps) for steps in (20, 80))
    assert least < few / many < most and many < 0.1


def test_all_solvers_end_in_the_same_clip(gaussian):
    _, start, _ = sampled(gaussian, "ddim", 1)
    clip = exact(gaussian, start, 999, 1.0)
    for solver in SOLVERS:
        end, _, first = sampled(gaussian, solver, 250)
        assert first >= 997
        torch.testing.assert_close(end, clip, rtol=0, atol=0.03)


@pytest.mark.parametrize("solver", FAST)
def test_a_fast_solver_is_nearer_in_20_steps_than_ddim_in_50(gaussian, solver):
    assert error(gaussian, solver, 20) < error(gaussian, "ddim", 50)


@pytest.mark.parametrize("solver", FAST)
def test_more_steps_are_never_worse(gaussian, solver):
    errors = [error(gaussian, solver, steps) for steps in (4, 8, 12, 14, 16, 25, 50)]
    assert errors == sorted(errors, reverse=True)


def test_ddim_is_the_pipeline_s_own_sampler_untouched(pipeline, windows):
    own = pipeline.scheduler
    plain = pipeline(windows, 3, generator=generator(0)).frames
    with sampled_by(pipeline, "ddim") as same:
        assert same is pipeline and pipeline.scheduler is own
        np.testing.assert_array_equal(pipeline(windows, 3, generator=generator(0)).frames, plain)


@pytest.mark.parametrize("solver", FAST)
def test_the_pipeline_gets_its_own_sampler_back(pipeline, windows, solver):
    own = pipeline.scheduler
    plain = pipeline(windows, 3, generator=generator(0)).frames
    with sampled_by(pipeline, solver), pytest.raises(ValueError, match="finite"):
        assert pipeline.scheduler is not own
        pipeline(windows * float("nan"), 1)
    assert pipeline.scheduler is own
    np.testing.assert_array_equal(pipeline(windows, 3, generator=generator(0)).frames, plain)


@pytest.mark.parametrize("solver", FAST)
def test_a_clip_depends_neither_on_batch_nor_order_nor_what_went_before(pipeline, windows, solver):
    def run(order):
        return pipeline(windows[order], 5, generator=[generator(s) for s in order]).frames

    with sampled_by(pipeline, solver):
        batch = run([0, 1, 2])
        np.testing.assert_array_equal(run([0, 1, 2]), batch)  # no memory of the last call, and no chance
        np.testing.assert_allclose(run([2, 0]), batch[[2, 0]], rtol=0, atol=1e-4)
        np.testing.assert_allclose(run([1]), batch[[1]], rtol=0, atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_is_one_evaluation_from_the_same_dependent_noise(pipeline, windows, solver):
    seen, encoded, drawn = [], [], []
    pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    pipeline.fmri_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0])))
    clips = [generator(seed) for seed in range(3)]
    start = dependent_noise((3, 4, 6, 8, 8), 0.5, [generator(seed) for seed in range(3)])
    with sampled_by(pipeline, solver):
        pipeline(windows, 7, guidance_scale=GUIDANCE, generator=clips)
    assert [len(batch) for batch in seen] == [6] * 7  # both branches of three clips, once a step
    assert encoded == [3, 1]  # conditions and the null condition, once
    assert drawn == [6] * 3  # the frames of each clip, once
    assert torch.equal(seen[0], torch.cat([start, start]))


@pytest.mark.parametrize("solver", FAST)
def test_the_schedule_is_that_of_training(solver):
    ddim = DDIMScheduler.from_config(tiny.scheduler().config, prediction_type="v_prediction", beta_end=0.02)
    made = make_solver(solver, ddim)
    assert torch.equal(made.alphas_cumprod, ddim.alphas_cumprod)
    assert made.config.prediction_type == "v_prediction" and not made.config.thresholding
    assert made.config.final_sigmas_type == "sigma_min"
    to_the_end = DDIMScheduler.from_config(ddim.config, set_alpha_to_one=True)
    assert make_solver(solver, to_the_end).config.final_sigmas_type == "zero"


@pytest.mark.parametrize("solver", FAST)
def test_noise_on_the_way_is_refused(pipeline, windows, solver):
    with sampled_by(pipeline, solver), pytest.raises(ValueError, match="adds no noise"):
        pipeline(windows, 2, eta=1.0)


def test_an_unknown_solver_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"no solver 'euler': expected one of ddim, dpm\+\+, unipc"):
        make_solver("euler", tiny.scheduler())
