"""What the baselines share: their training examples, their weights, ridge regression, and a small video network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nfx import files, paths

if TYPE_CHECKING:
    from nfx.profile import Profile

# Ridge penalties that cross-validation chooses from, as multiples of a window's mean squared norm.
PENALTIES = tuple(float(factor) for factor in np.logspace(-2, 3, 16))
FOLDS = 5
CODE = ("baselines/shared.py", "data/windows.py")
# Windows (clips, window, voxels) and the numbers (clips,) that their noise is drawn from, to uint8 (clips, frames,
# height, width, 3). A clip depends on its window and number alone.
Decoder = Callable[[np.ndarray, np.ndarray], np.ndarray]


# --- training examples and weights ---------------------------------------------------------------------------


def training_facts(profile: Profile, subject: int, code: Sequence[str]) -> dict[str, Any]:
    """What a training on a subject's training part depends on; nothing of the test part is among it."""
    return {
        "subject": subject,
        "fmri": files.identity(paths.work(profile, f"subject{subject}"), "train_fmri", "train_segment"),
        "window": profile.data.window,
        "validation_segments": list(profile.data.validation_segments),
        "seed": profile.seed,
        "code": files.source_digest(*code),
    }


def training_rows(profile: Profile, folder: str, name: str, clip: np.ndarray) -> np.ndarray:
    """An array below work/<profile> with a row for each clip of the training film, memory-mapped.

    ValueError if it has too few rows for `clip`, the rows that go with recordings (`nfx.data.Split`).
    """
    rows = files.load_arrays(paths.work(profile, folder), name)[name]
    if clip.max() >= len(rows):
        raise ValueError(
            f"there are recordings of training clip {clip.max()}, but {folder}/{name} has {len(rows)} clips: run "
            "notebook 01_data_preparation again"
        )
    return rows


def save_weights(folder: Path, models: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> None:
    """Write ``<name>.safetensors`` of each model and, last, the manifest, with the curves that are there."""
    for name, model in models.items():
        with files.write_atomically(folder / f"{name}.safetensors") as temporary:
            save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, temporary)
    curves = [path.relative_to(folder) for path in folder.glob("**/curve.csv")]
    files.write_manifest(folder, facts, [*(f"{name}.safetensors" for name in models), *sorted(curves)])


def load_weights(folder: Path, name: str, model: nn.Module) -> nn.Module:
    """The weights of `save_weights` in a model of the same shape, in evaluation mode on `nfx.training.device`."""
    from nfx.training import device

    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval().requires_grad_(False).to(device())


# --- ridge regression ----------------------------------------------------------------------------------------


class Ridge(NamedTuple):
    """A fitted ridge regression.

    Attributes
    ----------
    weight : float32 (features, outputs)
    offset : float32 (outputs,)
    penalty : float
    errors : (penalties,), mean squared error of held-out segments, relative to predicting the training mean
    """

    weight: np.ndarray
    offset: np.ndarray
    penalty: float
    errors: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(clips, features) to (clips, outputs)."""
        return x @ self.weight + self.offset


def ridge(x: np.ndarray, y: np.ndarray, segment: np.ndarray) -> tuple[Ridge, np.ndarray]:
    """Ridge regression whose one penalty is chosen by cross-validation over whole segments.

    Neighbouring clips share scenes: a fold that held out single clips would find too small a penalty.

    Parameters
    ----------
    x : (clips, features)
    y : (clips, outputs)
    segment : int (clips,)
        The segments are dealt out to `FOLDS` folds, or to as many as there are segments.

    Returns
    -------
    Ridge, and the prediction of every clip by the fit of the folds that do not hold it, float32 (clips, outputs)

    Raises
    ------
    ValueError
        If there are fewer than two segments.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    numbers, place = np.unique(segment, return_inverse=True)
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} training segment: cross-validation of the penalty needs two or more")
    penalties = np.array(PENALTIES) * np.square(x - x.mean(axis=0)).sum(axis=1, dtype=np.float64).mean()
    fold = place % min(FOLDS, len(numbers))
    held_out = [fold == number for number in np.unique(fold)]
    fits = [_ridge_path(x[~outside], y[~outside]) for outside in held_out]
    errors = [
        sum(np.square(y[outside] - fit(x[outside], penalty)).sum() for outside, fit in zip(held_out, fits, strict=True))
        for penalty in penalties
    ]
    scale = sum(np.square(y[outside] - y[~outside].mean(axis=0)).sum() for outside in held_out)
    best = float(penalties[np.argmin(errors)])
    predicted = np.empty_like(y)
    for outside, fit in zip(held_out, fits, strict=True):
        predicted[outside] = fit(x[outside], best)
    left, eigenvalues, right = _decompose(x - x.mean(axis=0), y - y.mean(axis=0))
    weight = ((left / (eigenvalues + best)) @ right).astype(np.float32)
    return Ridge(weight, y.mean(axis=0) - x.mean(axis=0) @ weight, best, np.array(errors) / scale), predicted


def _ridge_path(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray, float], np.ndarray]:
    """Fit at every penalty at once: a function of (new x, penalty)."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    left, eigenvalues, right = _decompose(x - x_mean, y - y_mean)
    return lambda new, penalty: (((new - x_mean) @ left) / (eigenvalues + penalty)) @ right + y_mean


def _decompose(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, s, B so that the weight at a penalty p is A diag(1 / (s + p)) B, from the smaller of the two Gram matrices."""
    if x.shape[1] <= x.shape[0]:
        eigenvalues, basis = np.linalg.eigh(x.T @ x)
        return basis, np.maximum(eigenvalues, 0), basis.T @ (x.T @ y)
    eigenvalues, basis = np.linalg.eigh(x @ x.T)
    return x.T @ basis, np.maximum(eigenvalues, 0), basis.T @ y


# --- a small video network -----------------------------------------------------------------------------------


class VideoDecoder(nn.Module):
    """(batch, channels, frames, grid, grid) to videos (batch, 3, frames, size, size) in [-1, 1].

    Each step doubles height and width and halves the channels, but to no fewer than 16; a step is a convolution of
    1x3x3 and, added to its output, one of 3x1x1 over the frames. size / grid must be a power of two.
    """

    def __init__(self, channels: int, grid: int, size: int) -> None:
        super().__init__()
        steps = doublings(grid, size)
        widths = [max(16, channels >> step) for step in range(steps + 1)]
        widths[0] = channels
        self.space = nn.ModuleList(
            nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.time = nn.ModuleList(nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0)) for b in widths[1:])
        self.norm = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.out = nn.Conv3d(widths[-1], 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        for space, time, norm in zip(self.space, self.time, self.norm, strict=True):
            x = space(nn.functional.interpolate(x, scale_factor=(1, 2, 2)))
            x = nn.functional.leaky_relu(norm(x + time(x)), 0.2)
        return self.out(x).tanh()


def doublings(grid: int, size: int) -> int:
    """How often `grid` is doubled to give `size`; ValueError if it never does."""
    steps = max(size // grid, 1).bit_length() - 1
    if grid << steps != size:
        raise ValueError(
            f"data.frame_size is {size}, expected {grid} times a power of two: the baseline's network doubles it"
        )
    return steps


def to_video(clips: np.ndarray) -> Tensor:
    """uint8 (clips, frames, height, width, 3) to float32 (clips, 3, frames, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(video: Tensor) -> np.ndarray:
    """The inverse of `to_video`, rounded."""
    pixels = (video.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
