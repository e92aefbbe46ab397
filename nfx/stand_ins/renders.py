"""Batches of fresh renders for the stand-ins' training, and the held-out renders that score them.

Every step draws new scenes from its own generator, so no stand-in sees a frame twice. Scenes of the simulated movie are
drawn from other seeds: the stand-ins see neither its training nor its test part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from nfx.data.simulator.scenes import BACKGROUNDS, COLOURS, MOTIONS, OBJECTS, Scene, random_scene, render

CLIP_TIMES = np.arange(6) / 3  # seconds: the 3 Hz grid of a two-second clip
HELD_OUT = 10**9  # seeds from here on belong to the held-out renders


class Renders(NamedTuple):
    """`pixels` (batch, 6 or 1, 3, 64, 64) in [-1, 1]; `scenes`, one per clip."""

    pixels: torch.Tensor
    scenes: list[Scene]


def training_seed(generator: torch.Generator) -> int:
    """The seed of a batch to train on; never that of a held-out one, nor of the UNet's latents."""
    return int(torch.randint(HELD_OUT // 2, (1,), generator=generator))


def clips(count: int, seed: int) -> Renders:
    """`count` clips of six frames, drawn from `seed` alone."""
    return _draw(count, seed, frames=6)


def frames(count: int, seed: int) -> Renders:
    """`count` single frames, drawn from `seed` alone."""
    return _draw(count, seed, frames=1)


def _draw(count: int, seed: int, frames: int) -> Renders:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, duration=rng.uniform(2, 8)) for _ in range(count)]
    offsets = rng.uniform(0, 5 / 3 if frames == 1 else 0.3, count)
    pixels = np.stack([render(s, CLIP_TIMES[:frames] + t) for s, t in zip(scenes, offsets, strict=True)])
    return Renders(to_tensor(pixels), scenes)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (..., height, width, 3) to float32 (..., 3, height, width) in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1


def degrade(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur and noise half of the clips: decoded frames are softer than renders, and must be judged all the same."""
    out = pixels.clone()
    for clip in out[rng.random(len(out)) < 0.5]:
        for frame in clip:
            image = Image.fromarray(((frame.movedim(0, -1) + 1) * 127.5).clamp(0, 255).byte().numpy())
            blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3)))), np.float32)
            frame[:] = torch.from_numpy(blurred).movedim(-1, 0) / 127.5 - 1
    return out + torch.from_numpy(rng.normal(0, 0.04, out.shape).astype(np.float32))


def marginals(logits: torch.Tensor, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Log-sum-exp of joint logits (batch, a*b*c) over the other attributes: three (batch, .) tensors."""
    joint = logits.unflatten(-1, shape)
    return [joint.logsumexp(others) for others in ((-2, -1), (-3, -1), (-3, -2))]


FRAME_SHAPE = (len(OBJECTS), len(COLOURS), len(BACKGROUNDS))
VIDEO_SHAPE = (len(OBJECTS), len(MOTIONS), len(BACKGROUNDS))


def frame_attributes(scenes: list[Scene]) -> torch.Tensor:
    """(batch, 3): object, colour, background."""
    return torch.tensor([[s.object, s.colour, s.background] for s in scenes])


def video_attributes(scenes: list[Scene]) -> torch.Tensor:
    """(batch, 3): object, motion, background."""
    return torch.tensor([[s.object, s.motion, s.background] for s in scenes])
