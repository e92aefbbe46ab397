"""The stand-in for Stable Diffusion v1-5: a KL autoencoder and a text-conditional UNet in its latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, normalize

from nfx.stand_ins import renders

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


def autoencoder() -> nn.Module:
    """An AutoencoderKL: (3, 64, 64) to (8, 8, 8); twice Stable Diffusion's channels, for sharp objects in few steps."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        sample_size=64, latent_channels=8, layers_per_block=1, norm_num_groups=8, block_out_channels=(16, 32, 64, 96),
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    with torch.no_grad():
        model.quant_conv.bias[8:] = -6  # log-variance: a posterior that starts narrow teaches the decoder sooner
    return model


def autoencoder_loss(model: nn.Module, step: int, generator: torch.Generator, batch: int = 16) -> dict[str, Tensor]:
    """Absolute and squared error, an error of the image's gradients that keeps edges, and a small KL term."""
    pixels = renders.frames(batch, renders.training_seed(generator)).pixels[:, 0]
    posterior = model.encode(pixels).latent_dist
    decoded = _decoded(model, posterior, generator)
    loss = pixel_error(decoded, pixels) + 1e-6 * posterior.kl().mean()
    return {"loss": loss, "squared_error": mse_loss(decoded, pixels)}


def decoder_loss(
    model: nn.Module, vision: nn.Module, step: int, generator: torch.Generator, batch: int = 16
) -> dict[str, Tensor]:
    """The loss of the decoder alone: pixels, and features of another network, as in Stable Diffusion's autoencoder."""
    pixels = renders.frames(batch, renders.training_seed(generator)).pixels[:, 0]
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
    decoded = _decoded(model, posterior, generator)
    features = perceptual_error(vision, decoded, pixels)
    return {"loss": pixel_error(decoded, pixels) + 0.5 * features, "features": features}


def _decoded(model: nn.Module, posterior: DiagonalGaussianDistribution, generator: torch.Generator) -> Tensor:
    """Frames decoded from a sample of the posterior, drawn on the CPU."""
    noise = torch.randn(posterior.mean.shape, generator=generator)
    return model.decode(posterior.mean + posterior.std * noise).sample.float()


def pixel_error(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the image's gradients, which keeps edges."""
    edges = sum(l1_loss(decoded.diff(dim=d), pixels.diff(dim=d)) for d in (-1, -2))
    return l1_loss(decoded, pixels) + mse_loss(decoded, pixels) + 0.5 * edges


def perceptual_error(vision: nn.Module, decoded: Tensor, pixels: Tensor) -> Tensor:
    """Distance of normalised features, summed over the layers of a vision transformer (after Zhang et al. 2018)."""
    with torch.no_grad():
        wanted = vision(pixels, output_hidden_states=True).hidden_states[1:]
    found = vision(decoded, output_hidden_states=True).hidden_states[1:]
    return sum(
        (normalize(a, dim=-1) - normalize(b, dim=-1)).square().sum(-1).mean()
        for a, b in zip(found, wanted, strict=True)
    )


def unet() -> nn.Module:
    """A UNet2DConditionModel over (8, 8, 8) latents and 64-dimensional text states."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(64, 128),
        down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Stable Diffusion v1-5's noise schedule, with the DDIM sampler; predicts epsilon."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def unet_loss(
    model: nn.Module,
    latents: Tensor,
    states: Tensor,
    ends: Tensor,
    alpha_bar: Tensor,
    generator: torch.Generator,
    batch: int = 64,
) -> dict[str, Tensor]:
    """Eq. 5 on single frames.

    One caption in ten is replaced with the empty one, for classifier-free guidance. Most of Stable Diffusion's 77
    states are padding and say what the sentence's end says, so that its UNet reads a whole sentence from any of them;
    of our 16 most are words. Half of the draws therefore are the state of the sentence's end, repeated.

    latents (renders, 8, 8, 8); states (renders + 1, tokens, 64) and ends (renders + 1, 64), the last ones of the empty
    text.
    """
    rows = torch.randint(len(latents), (batch,), generator=generator)
    captions = torch.where(torch.rand(batch, generator=generator) < 0.1, len(states) - 1, rows)
    padded = torch.rand(batch, generator=generator) < 0.5
    conditions = torch.where(padded[:, None, None], ends[captions][:, None], states[captions])
    t = torch.randint(len(alpha_bar), (batch,), generator=generator)
    noise = torch.randn(batch, *latents.shape[1:], generator=generator)
    a = alpha_bar[t][:, None, None, None]
    noisy = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise
    return {"loss": mse_loss(model(noisy, t, conditions).sample.float(), noise)}
