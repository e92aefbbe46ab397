"""Contrastive losses: the cross-entropy of Eq. 2 over a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_one_way(query: Tensor, key: Tensor, temperature: float | Tensor) -> Tensor:
    """Cross-entropy of finding row i of ``key`` from row i of ``query`` among all rows of the batch.

    Logits are cosines divided by the temperature; the other rows of the batch are the negatives. One direction, as in
    DC-MAE.

    Parameters
    ----------
    query, key : Tensor of shape (batch, dim)
    temperature : float or scalar Tensor, positive

    Returns
    -------
    Tensor, scalar
    """
    return _diagonal_cross_entropy(_logits(query, key, temperature))


def info_nce(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """L_CE of Eq. 2: symmetric InfoNCE, the mean of both directions, as CLIP.

    Parameters
    ----------
    a, b : Tensor of shape (batch, dim)
        Paired rows; normalised here.
    temperature : float or scalar Tensor, positive

    Returns
    -------
    Tensor, scalar

    Raises
    ------
    ValueError
        If the shapes differ or are not (batch, dim), or the temperature is not positive.
    """
    logits = _logits(a, b, temperature)
    return (_diagonal_cross_entropy(logits) + _diagonal_cross_entropy(logits.T)) / 2


def _logits(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape (batch, dim), got {tuple(a.shape)} and {tuple(b.shape)}")
    if not torch.is_tensor(temperature) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    with torch.autocast(
        a.device.type, enabled=False
    ):  # in float32: at temperature 0.01 a bf16 cosine is off by a tenth of a logit or more
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T / temperature


def _diagonal_cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def retrieval(predicted: Tensor, target: Tensor, top: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Share of rows whose own target is among the k most similar (cosine) of all targets.

    Parameters
    ----------
    predicted, target : Tensor of shape (clips, dim)
        Paired rows.
    top : tuple of int

    Returns
    -------
    dict
        ``top1``, ``top5`` (for the k asked) and ``chance1``, ``chance5``: k / clips, the score of a blind guess. A
        tie counts against the row: as many strictly better or equal others as k is a miss, so that a constant
        prediction scores 0.
    """
    similarity = _logits(predicted, target, 1.0)
    own = similarity.diagonal()[:, None]
    others = (similarity >= own).sum(dim=1) - 1  # itself aside
    clips = len(similarity)
    hits = {f"top{k}": (others < k).float().mean().item() for k in top}
    return hits | {f"chance{k}": min(k / clips, 1.0) for k in top}
