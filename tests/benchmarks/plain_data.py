"""Data and metrics as peers write them: a voxel, a frame, a trial or a clip at a time, with general tools."""

from __future__ import annotations

from pathlib import Path

import av
import nibabel
import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity


def read_run(path: Path) -> np.ndarray:
    """nibabel's float64 array of a run: (volumes, grayordinates)."""
    return np.asarray(nibabel.load(path).get_fdata())


def clean_by_voxel(bold: np.ndarray) -> np.ndarray:
    """A polynomial of degree four fitted to one voxel after another, subtracted, and z-scored: float64."""
    cleaned = np.zeros(bold.shape)
    volume = np.linspace(-1, 1, len(bold))
    for voxel in range(bold.shape[1]):
        course = bold[:, voxel].astype(np.float64)
        course = course - np.polyval(np.polyfit(volume, course, 4), volume)
        cleaned[:, voxel] = (course - course.mean()) / course.std(ddof=1)
    return cleaned


def frames_by_seeking(film: Path, size: int, count: int) -> np.ndarray:
    """The first frames at 3 per second, the film opened once and sought for each: (count, size, size, 3) uint8."""
    frames = []
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        for number in range(count):
            wanted = number / 3
            container.seek(int(wanted / stream.time_base), stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.time > wanted - 1 / 60)
            frames.append(np.asarray(frame.to_image().resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(frames)


def ssim_by_frame(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """One call of skimage after another: (clips, frames)."""
    return np.array([
        [structural_similarity(x, y, data_range=255, channel_axis=-1) for x, y in zip(*clips, strict=True)]
        for clips in zip(truth, decoded, strict=True)
    ])  # fmt: skip


def n_way_by_trial(truth: np.ndarray, decoded: np.ndarray, n_way: int, trials: int) -> np.ndarray:
    """Share of the trials in which the true class scores highest among itself and n - 1 drawn others: (clips,)."""
    rates = []
    for best, scores in zip(truth.argmax(axis=1), decoded, strict=True):
        others = [label for label in range(len(scores)) if label != best]
        hits = 0
        for _ in range(trials):
            drawn = np.random.choice(others, n_way - 1, replace=False)
            candidates = np.concatenate([scores[[best]], scores[drawn]])
            hits += int(np.argsort(candidates)[-1] == 0)
        rates.append(hits / trials)
    return np.array(rates)


def attention_by_clip(encoder, bold: np.ndarray, layer: int) -> np.ndarray:
    """Attention received, one clip at a time, with the maps of all layers kept until the end: (clips, patches)."""
    import torch

    found = []
    with torch.no_grad():
        for clip in torch.as_tensor(bold):
            tokens = encoder.tokenize(clip[None]) + encoder.positions
            maps = []
            for block in encoder.layers:
                tokens, weights = _layer_with_maps(block, tokens)
                maps.append(weights)
            rows = maps[layer].double()
            found.append((rows / rows.norm(dim=-1, keepdim=True)).mean(dim=(0, 1, 2, 3)).numpy())
    return np.stack(found)


def _layer_with_maps(block, tokens):
    """A layer of the encoder with its softmax matrices written out; the spatial ones are returned with the tokens."""
    attended, weights = _attention_with_maps(block.spatial_attention, block.spatial_norm(tokens))
    tokens = tokens + attended
    if tokens.shape[1] > 1:
        by_patch = block.temporal_norm(tokens).transpose(1, 2)
        tokens = tokens + _attention_with_maps(block.temporal_attention, by_patch)[0].transpose(1, 2)
    return tokens + block.mlp(block.mlp_norm(tokens)), weights


def _attention_with_maps(attention, x):
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).movedim(-3, 0).transpose(-3, -2)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attention.out((weights @ v).transpose(-3, -2).flatten(-2)), weights
