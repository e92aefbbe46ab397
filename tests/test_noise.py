"""Dependent noise, the noising step and the loss (Eq. 4, 5, 7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from nfx.diffusion import add_noise, denoising_loss, dependent_noise, training_target


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_variance_is_one_and_frames_correlate_by_beta(beta):
    noise = dependent_noise((2, 4, 6, 100, 100), beta, generator(0))
    frames = noise.transpose(1, 2).reshape(12, -1)  # clip-major: six frames of the first clip, then of the second
    covariance = np.cov(frames.numpy())
    own_clip = np.kron(np.eye(2), np.ones((6, 6)))
    expected = own_clip * (beta + (1 - beta) * np.eye(12))
    assert np.abs(covariance - expected).max() < 0.025
    assert noise.mean().abs() < 0.02


def test_beta_zero_is_plain_noise_and_beta_one_is_one_noise():
    shape = (2, 3, 6, 4, 4)
    assert torch.equal(dependent_noise(shape, 0, generator(1)), torch.randn(shape, generator=generator(1)))
    same = dependent_noise(shape, 1, generator(1))
    assert torch.equal(same, same[:, :, :1].expand(shape))
    assert not torch.equal(same[0], same[1])


def test_with_a_generator_per_clip_a_clip_depends_on_its_own_alone():
    batch = dependent_noise((3, 4, 6, 5, 5), 0.5, [generator(s) for s in (10, 11, 12)])
    alone = dependent_noise((1, 4, 6, 5, 5), 0.5, [generator(11)])
    other_order = dependent_noise((2, 4, 6, 5, 5), 0.5, [generator(12), generator(11)])
    assert torch.equal(batch[1], alone[0])
    assert torch.equal(batch[[2, 1]], other_order)


def test_type_and_device():
    assert dependent_noise((1, 1, 2, 2, 2), 0.5, generator(0), "cpu", torch.float64).dtype == torch.float64
    assert dependent_noise((1, 1, 2, 2, 2), 0.5).device.type == "cpu"


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_beta_outside_the_unit_interval_is_an_error(beta):
    with pytest.raises(ValueError, match="beta"):
        dependent_noise((1, 4, 6, 2, 2), beta)


def test_wrong_shape_or_number_of_generators_is_an_error():
    with pytest.raises(ValueError, match="frames"):
        dependent_noise((1, 4, 2, 2), 0.5)
    with pytest.raises(ValueError, match="2 generators for 3 clips"):
        dependent_noise((3, 4, 6, 2, 2), 0.5, [generator(0), generator(1)])


def test_noising_and_targets_are_those_of_diffusers():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    latents, noise = torch.randn(3, 4, 6, 2, 2, generator=generator(0)), torch.randn(3, 4, 6, 2, 2)
    t = torch.tensor([0, 400, 999])
    alpha_bar = scheduler.alphas_cumprod[t]
    torch.testing.assert_close(add_noise(latents, noise, alpha_bar), scheduler.add_noise(latents, noise, t))
    v = training_target("v_prediction", latents, noise, alpha_bar)
    torch.testing.assert_close(v, scheduler.get_velocity(latents, noise, t))
    assert training_target("epsilon", latents, noise, alpha_bar) is noise
    with pytest.raises(ValueError, match="'sample'"):
        training_target("sample", latents, noise, alpha_bar)


def test_loss_is_the_mean_squared_error_in_32_bits():
    a, b = torch.randn(2, 3, 4, dtype=torch.bfloat16), torch.randn(2, 3, 4)
    expected = np.mean((a.float().numpy() - b.numpy()) ** 2)
    assert denoising_loss(a, b).dtype == torch.float32
    assert float(denoising_loss(a, b)) == pytest.approx(float(expected), rel=1e-6)
