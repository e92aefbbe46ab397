"""An encoder and a decoder that teach each other without labels, after Kupershmidt et al. 2022.

G. Kupershmidt, R. Beliy, G. Gaziv and M. Irani, "A penny for your (visual) thoughts: self-supervised reconstruction of
natural movies from brain activity", arXiv:2206.03544, 2022. No code of it is public.

What our sources say (its abstract; Section 2.1.2 of the NeuralFlix paper): an encoder from video to fMRI and a decoder
from fMRI to video, "separable", are made consistent with each other: decoder(encoder(video)) should be the video, for
videos that no recording belongs to. These are the training film at its full frame rate, not only the clips that go with
a volume, and other natural videos.

Two cycles are trained here:

- decoder(encoder(video)) = video, on unlabelled video: the training film's clips begun at any of its frames, and so the
  validation segments' clips too.
- encoder(decoder(fMRI)) = fMRI, on unlabelled fMRI. The abstract names the first cycle alone; this one is of the same
  group's method for images (R. Beliy et al., "From voxels to pixels and back", NeurIPS 2019), which takes the *test*
  recordings for it, and so is transductive. Ours are the recordings of the validation segments, without their clips:
  nothing of the test part touches a training. This baseline must therefore not be scored on validation clips.

Simplified, and our choice (the sources give no more than the above):

- No other videos: only the film, at its 3 frames a second, is at hand in every data set here.
- No perceptual loss and no total variation; L1 between pixels, and for fMRI the squared error and one minus the cosine.
- The encoder is trained first, on pairs alone, and then kept fixed while the decoder trains on pairs and both cycles,
  equally weighted.
- "Separable": each voxel has a map over an 8 x 8 grid and a vector over channels, whose product is its weight; the
  encoder reads voxels off its features with such weights, the decoder paints its first features with others.
- The networks' sizes, how their weights start, and the length of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfx import files, paths
from nfx.baselines import baseline_folder, shared

if TYPE_CHECKING:
    from nfx.profile import Profile
    from nfx.training import Loss, Share

NAME = "kupershmidt2022"
CODE = (*shared.CODE, "baselines/kupershmidt2022.py", "training.py")
GRID = 8  # height and width of the features that voxels are read off
FEATURES = 32  # channels there
STEPS = 1  # optimisation steps of each of the two networks, as a multiple of those of stage two
BATCH = 16  # clips of each kind: paired, unlabelled videos, unlabelled fMRI
LEARNING_RATE = 2e-3
VIDEO_CYCLE = 1.0  # weights of the two cycles against the loss of pairs
FMRI_CYCLE = 1.0
WEIGHT_DECAY = 0.1


# --- the two networks ----------------------------------------------------------------------------------------


class Separable(nn.Module):
    """Weights between features on a grid and voxels: the product of a map over the grid and a vector over channels.

    A voxel's map is nearly even at first, and it learns its place: maps that are random at first paint blotches. What
    is painted of z-scored voxels has unit variance at first.
    """

    def __init__(self, outputs: int, channels: int) -> None:
        super().__init__()
        self.place = nn.Parameter((1 + 0.1 * torch.randn(outputs, GRID * GRID)) / GRID)
        self.channel = nn.Parameter(torch.randn(outputs, channels) / channels**0.5)

    def read(self, features: Tensor) -> Tensor:
        """(batch, channels, grid, grid) to (batch, voxels)."""
        return torch.einsum("bcp,vp,vc->bv", features.flatten(2), self.place, self.channel) / GRID

    def paint(self, voxels: Tensor) -> Tensor:
        """(batch, voxels) to (batch, channels, grid, grid)."""
        count, channels = self.channel.shape
        painted = torch.einsum("bv,vp,vc->bcp", voxels, self.place, self.channel)
        return (painted * GRID * (channels / count) ** 0.5).unflatten(2, (GRID, GRID))


class FMRIFromVideo(nn.Module):
    """Encoder: (batch, 3, frames, size, size) to the window (batch, window, voxels) that goes with the clip."""

    def __init__(self, voxels: int, window: int, frames: int, size: int) -> None:
        super().__init__()
        self.shape, steps = (window, voxels), shared.doublings(GRID, size)
        widths = [3, *[16] * (steps - 1), FEATURES] if steps else [3]
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norm = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.over_time = nn.Conv3d(widths[-1], FEATURES, (frames, 1, 1))
        self.readout = nn.ModuleList(Separable(voxels, FEATURES) for _ in range(window))

    def forward(self, video: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norm, strict=True):
            video = F.leaky_relu(norm(layer(video)), 0.2)
        features = self.over_time(video)[:, :, 0]
        return torch.stack([readout.read(features) for readout in self.readout], dim=1)


class VideoFromFMRI(nn.Module):
    """Decoder: windows (batch, window, voxels) to videos (batch, 3, frames, size, size) in [-1, 1]."""

    def __init__(self, voxels: int, window: int, frames: int, size: int) -> None:
        super().__init__()
        self.shape = (FEATURES, frames)
        self.paint = nn.ModuleList(Separable(voxels, FEATURES * frames) for _ in range(window))
        self.decoder = shared.VideoDecoder(FEATURES, GRID, size)

    def forward(self, windows: Tensor) -> Tensor:
        painted = sum(paint.paint(volume) for paint, volume in zip(self.paint, windows.unbind(1), strict=True))
        return self.decoder(painted.unflatten(1, self.shape))


# --- training ------------------------------------------------------------------------------------------------


def encoder_loss(film: np.ndarray, clip: np.ndarray, windows: np.ndarray) -> Loss:
    """The encoder's loss on pairs, for `nfx.training.train`; arguments as in `decoder_loss`."""

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        place = next(model.parameters()).device
        chosen = torch.randint(len(clip), (BATCH,), generator=generator)[share.rows(BATCH)].numpy()
        predicted = model(shared.to_video(film[clip[chosen]]).to(place))
        return {"loss": share.mean(fmri_distance(predicted, torch.from_numpy(windows[chosen]).to(place)), BATCH)}

    return loss


def decoder_loss(
    film: np.ndarray, clip: np.ndarray, windows: np.ndarray, segments: int, unlabelled: np.ndarray, encoder: nn.Module
) -> Loss:
    """The decoder's loss on pairs and on both cycles, for `nfx.training.train`.

    Parameters
    ----------
    film : uint8 (clips, frames, height, width, 3)
        The training film. As unlabelled video its frames are taken one after another, and clips begun at any of them.
    clip, windows : the pairs
        Rows of the film, int (n,), and their recordings, float32 (n, window, voxels).
    segments : int
        Segments of the film, all of one length; no clip crosses from one to the next.
    unlabelled : float32 (recordings, window, voxels)
    encoder : `FMRIFromVideo`, fixed
    """
    frames = film.shape[1]
    running = film.reshape(segments, -1, *film.shape[2:])  # (segments, frames, height, width, 3)

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        place, rows = next(model.parameters()).device, share.rows(BATCH)
        encoder.to(place)

        def draw(count: int) -> np.ndarray:
            return torch.randint(count, (BATCH,), generator=generator)[rows].numpy()

        pair, segment, begin, recording = (
            draw(count) for count in (len(clip), segments, running.shape[1] - frames + 1, len(unlabelled))
        )
        shown = shared.to_video(film[clip[pair]]).to(place)
        other = np.stack([running[s, b : b + frames] for s, b in zip(segment, begin, strict=True)])
        other = shared.to_video(other).to(place)
        bold, lone = (torch.from_numpy(x).to(place) for x in (windows[pair], unlabelled[recording]))
        with torch.no_grad():
            imagined = encoder(other)
        # One pass of the decoder for the three kinds of recordings.
        made, cycled, seen = model(torch.cat([bold, imagined, lone])).split(len(shown))
        parts = {
            "pairs": (made - shown).abs().mean(),
            "video_cycle": (cycled - other).abs().mean(),
            "fmri_cycle": fmri_distance(encoder(seen), lone),
        }
        total = parts["pairs"] + VIDEO_CYCLE * parts["video_cycle"] + FMRI_CYCLE * parts["fmri_cycle"]
        return {name: share.mean(value, BATCH) for name, value in {"loss": total, **parts}.items()}

    return loss


def fmri_distance(predicted: Tensor, measured: Tensor) -> Tensor:
    """Mean squared error plus one minus the cosine of whole windows; (batch, window, voxels) twice to a scalar."""
    cosine = F.cosine_similarity(predicted.flatten(1), measured.flatten(1), dim=1)
    return F.mse_loss(predicted, measured) + (1 - cosine).mean()


def train(profile: Profile, subject: int) -> Path:
    """Train the encoder on pairs, then the decoder on pairs and both cycles; reused if they are there.

    Returns
    -------
    Path
        ``work/<profile>/baselines/kupershmidt2022_subject<k>/model`` with encoder.safetensors, decoder.safetensors and
        the curves of both.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 01 has not prepared the subject or the stimuli, they are damaged, or data.frame_size is not 8 times
        a power of two.
    """
    from nfx import training
    from nfx.data import load_subject

    folder = baseline_folder(profile, NAME, subject) / "model"
    facts = {
        **shared.training_facts(profile, subject, CODE),
        "clips": files.identity(paths.work(profile, "stimuli"), "train_clips", "train_segment"),
        "steps": STEPS * profile.stage_two.steps,
        "precision": profile.training.precision,
    }
    if files.finished(folder, facts):
        print(f"{folder.parent.name}: both networks are finished and reused")
        return folder
    data = load_subject(profile, subject)
    film = shared.training_rows(profile, "stimuli", "train_clips", data.train.clip)
    pairs = film, data.train.clip, data.train.fmri
    shape = (data.vertex.size, profile.data.window, profile.data.frames, profile.data.frame_size)
    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        encoder, decoder = FMRIFromVideo(*shape), VideoFromFMRI(*shape)
    _train(encoder, encoder_loss(*pairs), profile, folder / "encoder", facts, f"subject {subject}, encoder")
    encoder.requires_grad_(False)
    loss = decoder_loss(*pairs, profile.data.train_segments, data.validation.fmri, encoder)
    _train(decoder, loss, profile, folder / "decoder", facts, f"subject {subject}, decoder")
    shared.save_weights(folder, {"encoder": encoder, "decoder": decoder}, facts)
    for part in ("encoder", "decoder"):
        training.finish(folder / part)
    return folder


def _train(model: nn.Module, loss: Loss, profile: Profile, folder: Path, facts: dict, description: str) -> None:
    from nfx import training
    from nfx.out_of_memory import lower_constant

    steps = STEPS * profile.stage_two.steps
    training.train(
        model, loss, steps=steps, learning_rate=LEARNING_RATE, warmup=steps // 20, seed=profile.seed, folder=folder,
        weight_decay=WEIGHT_DECAY, checkpoint_every=profile.training.checkpoint_every,
        precision=profile.training.precision, description=f"Kupershmidt 2022, {description}", facts=facts,
        lower=lower_constant("nfx.baselines.kupershmidt2022.BATCH", BATCH),
    )  # fmt: skip


def load_decoder(profile: Profile, subject: int) -> shared.Decoder:
    """Windows to clips, by the decoder alone; nothing is random."""
    from nfx.data import load_subject

    voxels, data = load_subject(profile, subject).vertex.size, profile.data
    network = VideoFromFMRI(voxels, data.window, data.frames, data.frame_size)
    network = shared.load_weights(baseline_folder(profile, NAME, subject) / "model", "decoder", network)
    place = next(network.parameters()).device

    @torch.no_grad()
    def decoder(windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return shared.to_clips(network(torch.from_numpy(windows).to(place)))

    return decoder
