"""Plain references for the models: what a step or a clip costs as the peers' descriptions have it.

Written from the papers, and never fast on purpose: attention is three operations with its whole map in memory, frames
pass an attention one after another, each augmented view and each branch of the guidance is a pass of its own, and CLIP
and the autoencoder run anew in every step. The arithmetic is that of the package, on the package's own modules and
weights, so that the results can be held against each other. CLIP, the text encoder and the autoencoder are frozen in
all peers, and get no gradients here either; of what is trained, every parameter does, and stays in the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfx.diffusion.inflation import VideoTransformerBlock, temporal_mask
from nfx.diffusion.noise import dependent_noise, training_target
from nfx.encoder.augmentation import spatial_mask, temporal_interpolation
from nfx.training import WHOLE, Loss, Share

if TYPE_CHECKING:
    from nfx.diffusion import NeuralFlixPipeline
    from nfx.encoder import FMRIEncoder, MaskedAutoencoder
    from nfx.profile import Row


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; q, k, v (n, heads, length, d), visible (length, length), true where a row may see."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(n, length, heads * d) to (n, heads, length, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(n, heads, length, d) to (n, length, heads * d)."""
    return x.transpose(1, 2).flatten(2)


# The fMRI encoder


def self_attention(module: Any, x: Tensor) -> Tensor:
    """An `nfx.encoder.model.Attention` over (n, length, dim)."""
    q, k, v = (split_heads(part, module.heads) for part in module.qkv(x).chunk(3, dim=-1))
    return module.out(merge_heads(attention(q, k, v)))


def encoder_layer(layer: Any, x: Tensor) -> Tensor:
    """An `nfx.encoder.model.Layer` over (batch, window, patches, dim), its spatial attention a frame at a time."""
    batch, window = x.shape[:2]
    attended = [self_attention(layer.spatial_attention, layer.spatial_norm(frame)) for frame in x.unbind(1)]
    x = x + torch.stack(attended, dim=1)
    if window > 1:
        by_patch = layer.temporal_norm(x.transpose(1, 2).flatten(0, 1))  # (batch * patches, window, dim)
        x = x + self_attention(layer.temporal_attention, by_patch).unflatten(0, (batch, -1)).transpose(1, 2)
    return x + layer.mlp(layer.mlp_norm(x))


def encode(encoder: FMRIEncoder, tokens: Tensor) -> Tensor:
    """Tokens (batch, window, patches, dim) to (batch, tokens, token_dim)."""
    x = tokens + encoder.positions
    for layer in encoder.layers:
        x = encoder_layer(layer, x)
    return encoder.head(encoder.norm(x).flatten(1, 2))


def info_nce(a: Tensor, b: Tensor, temperature: Tensor | float, both_ways: bool = True) -> Tensor:
    """Cross-entropy of finding row i of b from row i of a, by cosines; the mean of both directions or the first."""
    a, b = a.float(), b.float()
    logits = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T / temperature
    own = torch.arange(len(a), device=a.device)
    found = F.cross_entropy(logits, own)
    return (found + F.cross_entropy(logits.T, own)) / 2 if both_ways else found


def contrastive_loss(
    model: Any, text_tower: nn.Module, image_tower: nn.Module, bold: Tensor, captions: Tensor, images: Tensor, row: Row,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """Phase 1, Eqs. 2 and 3, with both towers of CLIP in the loop and a pass of the encoder for each view.

    bold (batch, window, voxels), captions: token ids (batch, length), images: pixel values (batch, 3, height, width).
    """
    with torch.no_grad():
        text = text_tower(input_ids=captions).text_embeds
        image = image_tower(pixel_values=images).image_embeds
    encoder, temperature = model.encoder, model.log_temperature.exp()
    tokens = encoder.tokenize(bold)

    def vector(tokens: Tensor) -> Tensor:
        return encode(encoder, tokens).mean(dim=1) @ model.projection.T

    original = vector(tokens)
    loss = info_nce(original, text, temperature) + info_nce(original, image, temperature)
    if row.spatial_ratio is not None and row.spatial_weight is not None:
        masked = vector(spatial_mask(tokens, row.spatial_ratio, generator))
        loss = loss + row.spatial_weight * info_nce(original, masked, temperature)
    if row.temporal_ratio is not None and row.temporal_weight is not None:
        interpolated = vector(temporal_interpolation(tokens, row.temporal_ratio, generator))
        loss = loss + row.temporal_weight * info_nce(original, interpolated, temperature)
    return loss


def masked_autoencoder(model: MaskedAutoencoder, bold: Tensor, masked: Tensor) -> Tensor:
    """All voxels (batch, voxels) from the patches that are not masked (batch, patches)."""
    encoder = model.encoder
    tokens = encoder.tokenize(bold[:, None])[:, 0] + encoder.positions
    x = tokens[~masked].view(len(bold), 1, -1, tokens.shape[-1])
    for layer in encoder.layers:
        x = encoder_layer(layer, x)
    x = model.project(encoder.norm(x))
    filled = model.mask_token.to(x.dtype).expand(*masked.shape, -1).clone()
    filled[~masked] = x.flatten(0, 2)
    x = (filled + model.positions)[:, None]
    for layer in model.layers:
        x = encoder_layer(layer, x)
    return model.predict(model.norm(x[:, 0])).flatten(1)[:, : bold.shape[1]]


def dc_mae_loss(
    model: MaskedAutoencoder, bold: Tensor, masked: Tensor, contrast_weight: float, temperature: float
) -> Tensor:
    """DC-MAE's loss, a pass for each of the two views; masked (2, batch, patches)."""
    views = [masked_autoencoder(model, bold, mask) for mask in masked]
    hidden = masked.repeat_interleave(model.encoder.config.patch_size, dim=2)[:, :, : bold.shape[1]]
    reconstruction = sum(F.mse_loss(view[h], bold[h]) for view, h in zip(views, hidden, strict=True)) / 2
    own = sum(info_nce(view, bold, temperature, both_ways=False) for view in views) / 2
    cross = info_nce(*views, temperature, both_ways=False)
    return reconstruction + contrast_weight * (own + cross) / 2


# The video UNet


def image_attention(module: Any, x: Tensor, seen: Tensor) -> Tensor:
    """One of diffusers' attentions, of (n, length, dim) to (n, other length, other dim)."""
    q, k, v = (
        split_heads(layer(y), module.heads) for layer, y in ((module.to_q, x), (module.to_k, seen), (module.to_v, seen))
    )
    return module.to_out[0](merge_heads(attention(q, k, v)))


def location_attention(module: Any, x: Tensor, index: Tensor) -> Tensor:
    """Attention of each location to itself in this and the two frames before: (clips, frames, locations, dim)."""
    clips, frames, _, _ = x.shape
    x = (x + index[:, None]).transpose(1, 2).flatten(0, 1)  # (clips * locations, frames, dim)
    q, k, v = (split_heads(layer(x), module.heads) for layer in (module.to_q, module.to_k, module.to_v))
    x = module.to_out(merge_heads(attention(q, k, v, temporal_mask(frames, x.device))))
    return x.unflatten(0, (clips, -1)).transpose(1, 2)


def frame_index(frames: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids of the frame's number: (frames, dim), first the sines, then the cosines."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=device) / (dim // 2))
    angle = torch.arange(frames, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def transformer_block(
    block: Any, hidden_states: Tensor, *_: Any, encoder_hidden_states: Tensor, cross_attention_kwargs: Any, **__: Any
) -> Tensor:
    """A `VideoTransformerBlock`: (clips * frames, locations, dim) to the same, one frame at a time in each attention.

    The tokens (clips, tokens, token dim) become keys and values anew for every frame.
    """
    frames = cross_attention_kwargs["frames"]
    x = hidden_states.unflatten(0, (-1, frames))  # (clips, frames, locations, dim)
    x = x + torch.stack([image_attention(block.attn1, y, y) for y in block.norm1(x).unbind(1)], dim=1)
    index = frame_index(frames, x.shape[-1], x.device).to(x.dtype)
    x = x + location_attention(block.attn_temp, block.norm_temp(x), index)
    seen = [image_attention(block.attn2, y, encoder_hidden_states) for y in block.norm2(x).unbind(1)]
    x = x + torch.stack(seen, dim=1)
    return (x + block.ff(block.norm3(x))).flatten(0, 1)


@contextmanager
def plain_blocks(unet: nn.Module) -> Iterator[None]:
    """Inside it a video UNet, whose weights stay where they are, computes each block by `transformer_block`."""
    blocks = [module for module in unet.modules() if isinstance(module, VideoTransformerBlock)]
    for block in blocks:
        block.forward = partial(transformer_block, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


# Fine-tuning


@torch.no_grad()
def latents_of(vae: Any, clips: Tensor) -> Tensor:
    """Scaled latents (batch, channels, frames, height, width) of clips (batch, frames, 3, height, width) in [-1, 1]."""
    frames = [vae.encode(frame).latent_dist.mean for frame in clips.unbind(1)]
    return torch.stack(frames, dim=2) * vae.config.scaling_factor


def denoising_loss(
    unet: nn.Module, prediction_type: str, latents: Tensor, noise: Tensor, t: Tensor, alpha_bar: Tensor,
    condition: Tensor,
) -> Tensor:  # fmt: skip
    """Eqs. 4 and 5; t and alpha_bar (batch,)."""
    a = alpha_bar[:, None, None, None, None]
    with plain_blocks(unet):
        predicted = unet(a.sqrt() * latents + (1 - a).sqrt() * noise, t, condition).sample
    return F.mse_loss(predicted.float(), training_target(prediction_type, latents, noise, alpha_bar).float())


def _denoising(
    unet: nn.Module, vae: Any, scheduler: Any, clips: np.ndarray, condition: Tensor, beta: float,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The loss of uint8 clips (batch, frames, height, width, 3), at noise and steps drawn as the package draws them."""
    where = condition.device
    pixels = torch.from_numpy(clips).to(where).movedim(-1, 2) / 127.5 - 1
    latents = latents_of(vae, pixels)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noise = dependent_noise(latents.shape, beta, generator).to(where)
    alpha_bar = scheduler.alphas_cumprod[t].to(where)
    return denoising_loss(unet, scheduler.config.prediction_type, latents, noise, t.to(where), alpha_bar, condition)


def caption_loss(
    clips: np.ndarray, captions: np.ndarray, empty: np.ndarray, vae: Any, text_encoder: nn.Module, scheduler: Any, *,
    beta: float, batch_size: int, dropout: float,
) -> Loss:  # fmt: skip
    """Stage one, as `nfx.diffusion.fine_tuning.caption_loss`, from pixels and words.

    clips: uint8 (clips, frames, height, width, 3); captions: token ids (clips, frames, length); empty: (length,).
    """

    def loss(unet: nn.Module, step: int, generator: torch.Generator, share: Share = WHOLE) -> dict[str, Tensor]:
        clip = torch.randint(len(clips), (batch_size,), generator=generator).numpy()
        frame = torch.randint(captions.shape[1], (batch_size,), generator=generator).numpy()
        dropped = torch.rand(batch_size, generator=generator).numpy() < dropout
        words = torch.from_numpy(np.where(dropped[:, None], empty, captions[clip, frame]))
        with torch.no_grad():
            condition = text_encoder(input_ids=words.to(next(unet.parameters()).device)).last_hidden_state
        return {"loss": _denoising(unet, vae, scheduler, clips[clip], condition, beta, generator)}

    return loss


def fmri_loss(
    clips: np.ndarray, windows: np.ndarray, vae: Any, scheduler: Any, *, beta: float, batch_size: int, dropout: float
) -> Loss:
    """Stage two, as `nfx.diffusion.fine_tuning.fmri_loss`, from pixels, uint8 (clips, frames, height, width, 3)."""

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share = WHOLE) -> dict[str, Tensor]:
        clip = torch.randint(len(clips), (batch_size,), generator=generator).numpy()
        dropped = torch.rand(batch_size, generator=generator) < dropout
        bold = torch.from_numpy(windows[clip]).masked_fill(dropped[:, None, None], 0.0)
        encoder = model["fmri_encoder"]
        condition = encode(encoder, encoder.tokenize(bold.to(next(model.parameters()).device)))
        return {"loss": _denoising(model["unet"], vae, scheduler, clips[clip], condition, beta, generator)}

    return loss


# Sampling


@torch.no_grad()
def sample(
    pipeline: NeuralFlixPipeline, windows: Tensor, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> np.ndarray:
    """Clips (batch, frames, height, width, 3) in [0, 1] of windows (batch, window, voxels).

    One clip after another, the two branches of the guidance one after the other, both conditions computed at every
    step, and the frames decoded one by one.
    """
    unet, encoder, vae, scheduler = pipeline.unet, pipeline.fmri_encoder, pipeline.vae, pipeline.scheduler
    size = pipeline.config.frame_size // pipeline.vae_scale_factor
    shape = (1, unet.config.in_channels, pipeline.config.frames, size, size)
    clips = []
    for window, generator in zip(windows, generators, strict=True):
        latents = dependent_noise(shape, pipeline.config.beta, [generator]).to(window)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            with plain_blocks(unet):
                given = unet(latents, t, encode(encoder, encoder.tokenize(window[None]))).sample
                without = unet(latents, t, encode(encoder, encoder.tokenize(torch.zeros_like(window[None])))).sample
            latents = scheduler.step(without + guidance * (given - without), t, latents).prev_sample
        frames = [vae.decode(frame / vae.config.scaling_factor).sample[0] for frame in latents.unbind(2)]
        clips.append(torch.stack(frames) / 2 + 0.5)
    return torch.stack(clips).clamp(0, 1).movedim(2, -1).cpu().numpy()
