"""Attention maps of the encoder of the paper's size."""

import floors
import numpy as np
import plain_data
import torch

from nfx.attention.maps import attention_maps
from nfx.encoder import FMRIEncoder


def operations(encoder: FMRIEncoder, clips: int, layer: int) -> float:
    """Multiplications and additions up to the softmax of a layer: all layers before, then its queries and keys."""
    own = encoder.config
    patches = -(-own.voxels // own.patch_size)
    tokens = clips * own.window * patches
    projections = 2 * tokens * own.dim**2 * 10  # two attentions of four matrices, two of the MLP
    spatial = 4 * tokens * patches * own.dim
    return layer * (projections + spatial) + 2 * tokens * own.dim**2 * 2 + spatial / 2


def test_attention_maps(row, quick):
    sizes = {"voxels": 640, "dim": 64, "depth": 4, "heads": 4} if quick else {"voxels": 4500, "depth": 24}
    torch.manual_seed(0)
    encoder = FMRIEncoder(**sizes).eval()
    layer, clips = encoder.config.depth - 1, 4
    bold = np.random.default_rng(0).standard_normal((4 * clips, 2, sizes["voxels"]), dtype=np.float32)
    expected = plain_data.attention_by_clip(encoder, bold[:1], layer)
    np.testing.assert_allclose(attention_maps(encoder, bold[:1], layer).received, expected, rtol=1e-4)
    row(
        f"attention of the last of {encoder.config.depth} layers, {clips} clips of {sizes['voxels']:,} voxels",
        lambda: attention_maps(encoder, bold[:clips], layer),
        floor=floors.seconds_for_operations(operations(encoder, clips, layer)),
        plain=lambda: plain_data.attention_by_clip(encoder, bold[:clips], layer),
        grown=(
            lambda: attention_maps(encoder, bold[: 2 * clips], layer),
            lambda: attention_maps(encoder, bold, layer),
        ),
        rounds=2,
        notes="floor: its matrix products at the measured rate. Plain: one clip at a time, every layer's softmax "
        "matrix written out and kept. Equal within 1e-4 of a value. Doubled: clips",
    )
