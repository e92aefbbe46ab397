"""A linear encoding of the fMRI and a conditional video GAN, after Wang et al. 2022 ("f-CVGAN").

C. Wang, H. Yan, W. Huang, J. Li, Y. Wang, Y.-S. Fan, W. Sheng, T. Liu, R. Li and H. Chen, "Reconstructing rapid natural
vision with fMRI-conditional video generative adversarial network", Cerebral Cortex 32(20), 4502-4511, 2022. No code of
it is public.

What our sources say (its abstract; Section 2.1.2 of the NeuralFlix paper): a linear layer encodes the fMRI, a generator
makes a short video of it, 8 frames from each volume, and two discriminators judge it, a spatial one and a temporal
one. Everything else is our choice:

- The linear encoding is a ridge regression from a window of volumes to the leading principal components of the training
  clips at 16 x 16 pixels, fitted once, its penalty by cross-validation over whole training segments. In training the
  generator is given each clip's prediction by a fit that has not seen the clip's segment: so it learns to live with
  predictions as poor as those it gets in the test. A linear layer trained with the generator learns the training
  recordings by heart, which are hardly more in number than its inputs.
- Six frames, as of all methods here.
- The generator: noise beside the condition, a linear map to 4 x 4, then convolutions over space and over time with
  upsampling. The spatial discriminator sees one frame of each clip, the temporal one the whole clip at half the
  resolution; both are told the condition by a projection.
- Least-squares adversarial losses, and an L1 loss between the generated and the shown clip, which ties the output to
  this clip and not only to films as such. Its weight was chosen on validation clips of the demo's subject 1: of 10, 35
  and 100 the largest brought the clips nearest. The film is too short for discriminators to be of much help: with a
  small weight they know it by heart, and drive the generator to noise.
- Generator and discriminators take their steps at the same time, with one optimiser.
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

NAME = "wang2022"
CODE = (*shared.CODE, "baselines/wang2022.py", "training.py")
PIXELS = 16  # height and width at which the linear encoding's components are taken
COMPONENTS = 64
NOISE = 16  # dimensions
CHANNELS = 64  # of the generator at 4 x 4
GRID = 4
STEPS = 2  # optimisation steps, as a multiple of those of stage two
BATCH = 16
LEARNING_RATE = 2e-3
RECONSTRUCTION = 100.0  # weight of L1 against the two adversarial losses


# --- the linear encoding -------------------------------------------------------------------------------------


def encode_linearly(profile: Profile, subject: int) -> Path:
    """Ridge regression from windows to the principal components of the training clips.

    Returns
    -------
    Path
        ``work/<profile>/baselines/wang2022_subject<k>/encoding`` with weight (window * voxels, components), offset, and
        held_out (training clips, components), each clip's prediction by a fit without its segment. All are scaled
        so that the component that varies most has standard deviation 1 over held_out.
    """
    from nfx.data import load_subject

    folder = baseline_folder(profile, NAME, subject) / "encoding"
    facts = {
        **shared.training_facts(profile, subject, CODE),
        "clips": files.identity(paths.work(profile, "stimuli"), "train_clips"),
    }
    if files.finished(folder, facts):
        return folder
    part = load_subject(profile, subject).train
    film = shared.training_rows(profile, "stimuli", "train_clips", part.clip)
    scores = principal_components(film, part.clip, COMPONENTS)
    fitted, held_out = shared.ridge(part.fmri.reshape(len(part.fmri), -1), scores, part.segment)
    # One scale for all: a component that the recordings hardly hold is hardly predicted, and stays small.
    scale = max(held_out.std(axis=0).max(), 1e-6)
    arrays = {"weight": fitted.weight / scale, "offset": fitted.offset / scale, "held_out": held_out / scale}
    files.save_arrays(folder, {name: array.astype(np.float32) for name, array in arrays.items()}, facts)
    return folder


def principal_components(film: np.ndarray, clip: np.ndarray, count: int) -> np.ndarray:
    """Scores of some clips on their leading components.

    film uint8 (clips, frames, height, width, 3) and clip, its rows to use, (n,), to (n, count), or fewer if n is less.
    """

    def pooled(rows: np.ndarray) -> Tensor:
        frames = shared.to_video(film[rows]).transpose(1, 2)
        return F.adaptive_avg_pool2d(frames.flatten(0, 1), PIXELS).reshape(len(rows), -1)

    small = [pooled(rows) for rows in np.array_split(clip, max(1, len(clip) // 64))]
    flat = torch.cat(small).numpy()
    flat = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh(flat @ flat.T)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return vectors * np.sqrt(np.maximum(values, 0))


# --- the conditional video GAN -------------------------------------------------------------------------------


class Generator(nn.Module):
    """Condition (batch, components) and noise (batch, NOISE) to videos (batch, 3, frames, size, size) in [-1, 1]."""

    def __init__(self, components: int, frames: int, size: int) -> None:
        super().__init__()
        self.shape = (CHANNELS, frames, GRID, GRID)
        self.start = nn.Linear(components + NOISE, CHANNELS * frames * GRID * GRID)
        self.decoder = shared.VideoDecoder(CHANNELS, GRID, size)

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        return self.decoder(self.start(torch.cat([condition, noise], dim=1)).unflatten(1, self.shape))


class Discriminator(nn.Module):
    """Score of (batch, 3, frames, size, size), given a condition: convolutions that halve height and width to 4 x 4.

    With `temporal` their kernels reach over three frames; without, each frame stands for itself.
    """

    def __init__(self, components: int, size: int, temporal: bool) -> None:
        super().__init__()
        reach, widths = (3 if temporal else 1), [3, 16, 32, 64, 64]
        layers: list[nn.Module] = []
        steps = shared.doublings(GRID, size)
        widths += [widths[-1]] * (steps + 1 - len(widths))
        for a, b in zip(widths[:steps], widths[1 : steps + 1], strict=True):
            layers += [nn.Conv3d(a, b, (reach, 4, 4), (1, 2, 2), (reach // 2, 1, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(widths[steps], 1)
        self.project = nn.Linear(components, widths[steps])

    def forward(self, video: Tensor, condition: Tensor) -> Tensor:
        """(batch,)"""
        seen = self.layers(video).mean(dim=(2, 3, 4))
        return self.score(seen)[:, 0] + (seen * self.project(condition)).sum(dim=1)


class VideoGAN(nn.Module):
    """The generator and its two judges, the spatial and the temporal discriminator."""

    def __init__(self, components: int, frames: int, size: int) -> None:
        super().__init__()
        self.generator = Generator(components, frames, size)
        self.spatial = Discriminator(components, size, temporal=False)
        self.temporal = Discriminator(components, size // 2, temporal=True)

    def views(self, video: Tensor, frame: Tensor) -> dict[str, Tensor]:
        """What each discriminator sees of videos: one frame of each, (batch,) int, and all frames at half the size."""
        one = video[torch.arange(len(video), device=frame.device), :, frame][:, :, None]
        return {"spatial": one, "temporal": F.avg_pool3d(video, (1, 2, 2))}


def gan_loss(film: np.ndarray, clip: np.ndarray, conditions: np.ndarray) -> Loss:
    """Losses of generator and discriminators in one, for `nfx.training.train` of a `VideoGAN`.

    The generator's loss passes the discriminators with their weights detached, and theirs sees a detached video: the
    gradient of the sum is that of each player's own loss.

    Parameters
    ----------
    film : uint8 (clips, frames, height, width, 3)
    clip : int (n,), the film's clips to train on
    conditions : float32 (n, components), theirs
    """

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        place, rows = next(model.parameters()).device, share.rows(BATCH)
        chosen = torch.randint(len(clip), (BATCH,), generator=generator)[rows].numpy()
        noise = torch.randn(BATCH, NOISE, generator=generator)[rows].to(place)
        frame = torch.randint(film.shape[1], (BATCH,), generator=generator)[rows].to(place)
        shown = shared.to_video(film[clip[chosen]]).to(place)
        condition = torch.from_numpy(conditions[chosen]).to(place)
        made = model.generator(condition, noise)
        parts = {"reconstruction": (made - shown).abs().mean()}
        real, fake, judged = model.views(shown, frame), model.views(made.detach(), frame), model.views(made, frame)
        for name in ("spatial", "temporal"):
            judge = getattr(model, name)
            fixed = {key: weight.detach() for key, weight in judge.named_parameters()}
            verdict = torch.func.functional_call(judge, fixed, (judged[name], condition))
            parts[f"fooled_{name}"] = (verdict - 1).square().mean()
            apart = (judge(real[name], condition) - 1).square() + judge(fake[name], condition).square()
            parts[f"judged_{name}"] = apart.mean() / 2
        total = sum(parts.values()) + (RECONSTRUCTION - 1) * parts["reconstruction"]
        return {name: share.mean(value, BATCH) for name, value in {"loss": total, **parts}.items()}

    return loss


def train(profile: Profile, subject: int) -> Path:
    """Train the GAN on the training part; reused if it is there.

    Returns
    -------
    Path
        ``work/<profile>/baselines/wang2022_subject<k>/model`` with generator.safetensors and curve.csv.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 01 has not prepared the subject or the stimuli, they are damaged, or data.frame_size is not 4 times
        a power of two.
    """
    from nfx import training
    from nfx.data import load_subject
    from nfx.out_of_memory import lower_constant

    encoding = encode_linearly(profile, subject)
    folder = baseline_folder(profile, NAME, subject) / "model"
    steps = STEPS * profile.stage_two.steps
    facts = {
        **shared.training_facts(profile, subject, CODE),
        "encoding": files.identity(encoding),
        "clips": files.identity(paths.work(profile, "stimuli"), "train_clips"),
        "steps": steps,
        "precision": profile.training.precision,
    }
    if files.finished(folder, facts):
        print(f"{folder.parent.name}: the GAN is finished and reused")
        return folder
    clip = load_subject(profile, subject).train.clip
    film = shared.training_rows(profile, "stimuli", "train_clips", clip)
    conditions = np.array(files.load_arrays(encoding, "held_out")["held_out"])
    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        model = VideoGAN(conditions.shape[1], profile.data.frames, profile.data.frame_size)
    training.train(
        model, gan_loss(film, clip, conditions), steps=steps, learning_rate=LEARNING_RATE, seed=profile.seed,
        folder=folder, warmup=steps // 20, betas=(0.5, 0.99), clip=10.0, precision=profile.training.precision,
        checkpoint_every=profile.training.checkpoint_every, description=f"Wang 2022, subject {subject}", facts=facts,
        lower=lower_constant("nfx.baselines.wang2022.BATCH", BATCH),
    )  # fmt: skip
    shared.save_weights(folder, {"generator": model.generator}, facts)
    training.finish(folder)
    return folder


def load_decoder(profile: Profile, subject: int) -> shared.Decoder:
    """Windows to clips, by the linear encoding and the generator; a clip's number gives the generator's noise."""
    from nfx.diffusion.fine_tuning import clip_generator

    folder = baseline_folder(profile, NAME, subject)
    linear = files.load_arrays(folder / "encoding", "weight", "offset")
    generator = Generator(len(linear["offset"]), profile.data.frames, profile.data.frame_size)
    generator = shared.load_weights(folder / "model", "generator", generator)
    place = next(generator.parameters()).device

    @torch.no_grad()
    def decoder(windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        condition = windows.reshape(len(windows), -1) @ linear["weight"] + linear["offset"]
        noise = [torch.randn(NOISE, generator=clip_generator(profile.seed, int(number))) for number in numbers]
        return shared.to_clips(generator(torch.from_numpy(condition).to(place), torch.stack(noise).to(place)))

    return decoder
