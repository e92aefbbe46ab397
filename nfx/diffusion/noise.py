"""The diffusion process of Section 3.2: dependent noise (Eq. 7), the noising step (Eq. 4) and the loss (Eq. 5).

Videos are (batch, channels, frames, height, width) throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def dependent_noise(
    shape: Sequence[int],
    beta: float,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Gaussian noise that the frames of a clip share in part (Section 3.2.2, Eq. 7).

    ``noise^j = sqrt(beta) * shared + sqrt(1 - beta) * own^j`` for frame j. Each value has mean 0 and variance 1, and
    two frames of a clip correlate by exactly ``beta``: the ``beta`` of Table 1 is taken as the variance that is shared.

    Parameters
    ----------
    shape
        (batch, channels, frames, height, width).
    beta
        Share of the variance common to the frames of a clip, in [0, 1]. 0 is independent noise, the very numbers that
        ``torch.randn(shape)`` draws from the same generator; 1 is one noise for all frames.
    generator
        One generator, or one per clip. With one per clip, a clip's noise depends on its own generator alone, and
        neither on its place in the batch nor on the batch's size.
    device, dtype
        Of the result; default: the device of the generator (CPU without one), and torch's default type.

    Raises
    ------
    ValueError
        If ``beta`` is outside [0, 1], ``shape`` has not five entries, or the generators are not one per clip.
    """
    if len(shape) != 5:
        raise ValueError(f"shape {tuple(shape)} should be (batch, channels, frames, height, width).")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, but a share of the variance lies between 0 (independent noise) and 1.")
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} clips: give one, or one per clip.")
        generator = list(generator)
        if device is None and generator:
            device = generator[0].device
    elif device is None and generator is not None:
        device = generator.device

    batch, channels, _, height, width = shape
    # The frames' own part is drawn first, so that beta = 0 gives what plain sampling gives.
    own = randn_tensor(tuple(shape), generator=generator, device=torch.device(device or "cpu"), dtype=dtype)
    shared = randn_tensor((batch, channels, 1, height, width), generator=generator, device=own.device, dtype=own.dtype)
    return beta**0.5 * shared + (1 - beta) ** 0.5 * own


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noisy latents ``z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) noise`` (Eq. 4).

    ``latents`` and ``noise`` are (batch, ...); ``alpha_bar`` is (batch,), the schedule's value at each clip's step.
    """
    alpha_bar = _per_clip(alpha_bar, latents)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def training_target(prediction_type: str, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the UNet should predict, given the scheduler's ``prediction_type``.

    "epsilon" is the noise, as in Eq. 5 and Stable Diffusion v1-5; "v_prediction" is
    ``sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) z_0``, for a base model that was trained that way.
    Shapes as in `add_noise`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha_bar = _per_clip(alpha_bar, latents)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    raise ValueError(
        f"prediction_type is {prediction_type!r}, but 'epsilon' or 'v_prediction' was expected: "
        "see scheduler/scheduler_config.json of the Stable Diffusion snapshot."
    )


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The squared error of Eq. 5, as a mean over clips and latent values; a scalar, in 32 bits."""
    return (target.float() - prediction.float()).square().mean()


def _per_clip(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) values in the device and type of ``like``, ready to be multiplied with (batch, ...)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))
