"""Augmentations of fMRI tokens for contrastive learning (Section 3.1.2).

Both act on the token array v_t of shape (batch, window, patches, dim), that is after patch embedding and before
positions are added, so that a masked or replaced token still knows where it stands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spatial_mask(tokens: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Spatial masking: zero gamma_spa * b of the b embedding channels (Section 3.1.2).

    The same ``floor(ratio * dim)`` channels are zeroed in every patch and every frame of a window; they are drawn
    anew for each sample.

    Parameters
    ----------
    tokens : Tensor of shape (batch, window, patches, dim)
    ratio : float in [0, 1]
        gamma_spa.
    generator : torch.Generator, optional
        Source of the draw; it may live on another device than the tokens.

    Returns
    -------
    Tensor of shape (batch, window, patches, dim)

    Raises
    ------
    ValueError
        If the ratio is outside [0, 1] or the tokens do not have four axes.
    """
    _check(tokens, ratio, "spatial mask ratio")
    batch, _, _, dim = tokens.shape
    rank = (
        _uniform((batch, dim), tokens, generator).argsort(dim=1).argsort(dim=1)
    )  # a permutation per sample: the count is exact
    masked = rank < math.floor(ratio * dim)
    return tokens.masked_fill(masked[:, None, None, :], 0.0)


def interpolation_weights(window: int) -> Tensor:
    """Weights of Eq. 1, w_ij = 1 - |i - j| / n for j != i and w_ii = 0, with n the window size.

    Taken literally: a row's sum depends on the window and on i (0.5 for window 2; 1, 1.33, 1 for window 3), and is
    not normalised.

    Returns
    -------
    Tensor of shape (window, window), float32

    Raises
    ------
    ValueError
        If the window has one frame: the sum of Eq. 1 is then empty, and there is nothing to interpolate from.
    """
    if window < 2:
        raise ValueError(
            f"Eq. 1 interpolates a frame from the other frames of its window; a window of {window} has "
            "none. Use a window of 2 or more."
        )
    index = torch.arange(window)
    distance = (index[:, None] - index[None, :]).abs()
    return (1.0 - distance / window) * (distance > 0)


def interpolate_frame(tokens: Tensor, index: int) -> Tensor:
    """Interpolated frame i of a window, Eq. 1: sum over j != i of (1 - |i - j| / n) v_tj, with n the window size.

    Parameters
    ----------
    tokens : Tensor of shape (batch, window, patches, dim)
    index : int
        Frame of the window, from 0.

    Returns
    -------
    Tensor of shape (batch, patches, dim)

    Raises
    ------
    ValueError
        If the index is outside the window, or the window has one frame.
    """
    _check(tokens, 0.0, "")
    window = tokens.shape[1]
    weights = interpolation_weights(window)
    if not 0 <= index < window:
        raise ValueError(f"frame index {index} is outside the window; expected 0 to {window - 1}")
    return torch.einsum("j,bjpd->bpd", weights[index].to(tokens), tokens)


def temporal_interpolation(tokens: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Temporal interpolation: replace randomly chosen frames of a window by Eq. 1 (Section 3.1.2).

    Each frame is replaced with probability ``ratio``, independently. The right-hand side of Eq. 1 holds the original
    frames, also where they are themselves replaced. (With the paper's window of 2, a fixed number round(ratio *
    window) of frames would make its ratios 1/3 and 1/2 the same experiment.)

    Parameters
    ----------
    tokens : Tensor of shape (batch, window, patches, dim)
    ratio : float in [0, 1]
        gamma_tem.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor of shape (batch, window, patches, dim)

    Raises
    ------
    ValueError
        If the ratio is outside [0, 1], the tokens do not have four axes, or the window has one frame.
    """
    _check(tokens, ratio, "temporal interpolation ratio")
    batch, window, _, _ = tokens.shape
    interpolated = torch.einsum("ij,bjpd->bipd", interpolation_weights(window).to(tokens), tokens)
    replaced = _uniform((batch, window), tokens, generator) < ratio
    return torch.where(replaced[:, :, None, None], interpolated, tokens)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers drawn where the generator lives, so that a CPU generator gives the same draw on every device."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like.device)


def _check(tokens: Tensor, ratio: float, name: str) -> None:
    if tokens.ndim != 4:
        raise ValueError(f"expected tokens of shape (batch, window, patches, dim), got {tuple(tokens.shape)}")
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"the {name} must be between 0 and 1, got {ratio}")
