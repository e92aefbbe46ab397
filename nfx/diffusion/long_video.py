"""One continuous video from several consecutive windows (Section 4.2: "with potential for longer sequences")."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nfx.diffusion.noise import dependent_noise
from nfx.diffusion.pipeline import NeuralFlixPipeline


def decode_long(
    pipeline: NeuralFlixPipeline,
    windows: np.ndarray,
    *,
    overlap: int = 3,
    steps: int = 200,
    guidance: float = 12.5,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Decode consecutive windows to one video, without seams between their clips.

    The frames of the whole video share one part of their noise (Eq. 7). The UNet, which knows clips of few frames, is
    slid over the video in steps of ``frames - overlap``; where clips overlap, their predictions are averaged at every
    sampling step, so that they agree on the frames they share (MultiDiffusion, Bar-Tal et al. 2023, over time). A clip
    between two windows is conditioned on the mean of their tokens, weighted by how many of its frames lie in each. The
    paper gives no procedure; this one is ours.

    Parameters
    ----------
    pipeline
        On the device where it should run.
    windows
        (n, window, voxels): the windows of n clips that follow each other within a segment.
    overlap
        Frames that neighbouring clips share, from 0 (clips that share their noise alone) to ``frames - 1``.
    steps, guidance
        DDIM steps, and weight of the condition.
    generator
        Of the video's noise.

    Returns
    -------
    uint8 array (n * frames, height, width, 3)
        At 3 frames a second, n * 2 s. One window gives what the pipeline gives for it.

    Raises
    ------
    ValueError
        If the overlap is outside its range, or the windows are not as the pipeline wants them.
    """
    frames = pipeline.config.frames
    if not 0 <= overlap < frames:
        raise ValueError(f"overlap is {overlap}, expected 0 to {frames - 1}: a clip has {frames} frames")
    tokens, null = pipeline.encode_fmri(windows)
    starts = clip_starts(len(tokens) * frames, frames, overlap)
    condition = torch.stack([tokens_at(tokens, start / frames) for start in starts])
    conditions = torch.cat([null.expand_as(condition), condition])

    size = pipeline.config.frame_size // pipeline.vae_scale_factor
    shape = (1, pipeline.unet.config.in_channels, len(tokens) * frames, size, size)
    latents = dependent_noise(shape, pipeline.config.beta, generator).to(tokens)
    pipeline.scheduler.set_timesteps(steps, device=tokens.device)
    with torch.no_grad():
        for timestep in pipeline.progress_bar(pipeline.scheduler.timesteps):
            noisy = torch.cat([latents[:, :, start : start + frames] for start in starts])
            without, given = pipeline.unet(torch.cat([noisy, noisy]), timestep, conditions).sample.chunk(2)
            predicted = blend(without + guidance * (given - without), starts, latents.shape[2])
            latents = pipeline.scheduler.step(predicted, timestep, latents, eta=0.0).prev_sample
        clips = torch.cat(latents.split(frames, dim=2))  # decoded one by one, which bounds the memory
        pixels = pipeline.video_processor.postprocess_video(pipeline.decode_latents(clips), output_type="np")
    return np.rint(pixels.reshape(-1, *pixels.shape[2:]) * 255).astype(np.uint8)


def clip_starts(length: int, frames: int, overlap: int) -> list[int]:
    """First frame of each clip that is slid over a video of `length` frames; the last one ends with the video."""
    starts = list(range(0, length - frames, frames - overlap))
    return [*starts, length - frames]


def tokens_at(tokens: Tensor, position: float) -> Tensor:
    """Tokens of a clip that begins `position` windows after the first: (n, tokens, dim) to (tokens, dim)."""
    before = int(position)
    return torch.lerp(tokens[before], tokens[min(before + 1, len(tokens) - 1)], position - before)


def blend(clips: Tensor, starts: list[int], length: int) -> Tensor:
    """Mean of overlapping clips (n, channels, frames, height, width): (1, channels, length, height, width).

    A frame counts less the nearer it is to the end of its clip, where the UNet saw fewer neighbours.
    """
    frames = clips.shape[2]
    index = torch.arange(frames, device=clips.device)
    weight = torch.minimum(index + 1, frames - index).to(clips)[:, None, None]
    total = clips.new_zeros(1, clips.shape[1], length, *clips.shape[3:])
    weights = clips.new_zeros(length, 1, 1)
    for clip, start in zip(clips, starts, strict=True):
        total[0, :, start : start + frames] += weight * clip
        weights[start : start + frames] += weight
    return total / weights


def seam_ratio(video: np.ndarray, frames: int) -> float:
    """Mean change between frames where one clip ends and the next begins, over the mean change within clips.

    video (n * frames, height, width, 3), n of 2 or more. 1: no seam. A video that does not change gives NaN.
    """
    change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    seam = np.arange(1, len(video)) % frames == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(change[seam].mean() / change[~seam].mean())
