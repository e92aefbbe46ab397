"""A toy data set with a planted linear relation, for the tests of `nfx.baselines`.

Three hidden numbers a clip: its colour, from -1.5 to 1.5 in each channel. The film shows it, the latents hold it, and
the recordings are a linear map of it with noise. Nothing of the test part is there when a training starts: its
recordings are NaN, its clips and latents do not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import tiny_diffusion as tiny

from nfx import paths
from nfx.data import load_subject
from nfx.files import save_arrays
from nfx.profile import Profile, load_profile

PER_SEGMENT = 40
TRAIN, TEST = np.repeat([1, 2, 3, 4], PER_SEGMENT), np.repeat([1, 2], 12)  # segments of the clips; 4 is held out


class Toy(NamedTuple):
    """The profile, the test clips and their latents, and a function that writes the test recordings and clips."""

    profile: Profile
    clips: np.ndarray  # uint8 (clips, 6, size, size, 3)
    latents: np.ndarray  # float32 (clips, 6, 4, size / 2, size / 2)
    reveal: Callable[[], None]


def make(root: Path, steps: int, size: int = 16, diffusion: bool = False) -> Toy:
    """Write stimuli, targets and one subject below `root`, which `nfx.paths.ROOT` must be; with `diffusion` its models.

    They take most of the time.
    """
    demo = load_profile("demo")
    changes = {
        "data": {
            "frame_size": size, "window": tiny.WINDOW, "train_segments": 4, "test_segments": 2,
            "validation_segments": (4,), "train_volumes": PER_SEGMENT,
        },
        "models": {"stable_diffusion": "sd", "image_classifier": "sd", "video_classifier": "sd"},
        "stage_one": {"steps": steps, "batch_size": 8, "learning_rate": 3e-3},
        "stage_two": {"steps": steps, "batch_size": 8, "learning_rate": 3e-3},
        "sampling": {"steps": 4, "guidance": 2.0, "batch_size": 8, "test_clips": None},
        "training": {"checkpoint_every": 5},
    }  # fmt: skip
    changed = {name: getattr(demo, name).model_copy(update=values) for name, values in changes.items()}
    profile = demo.model_copy(update=changed)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, tiny.VOXELS))
    train, test = (rng.uniform(-1.5, 1.5, (len(segment), 3)) for segment in (TRAIN, TEST))
    fmri = {
        f"{part}_fmri": (colour @ mixing + 0.4 * rng.normal(size=(len(colour), tiny.VOXELS))).astype(np.float32)
        for part, colour in (("train", train), ("test", test))
    }
    segments = {"train_segment": TRAIN, "test_segment": TEST, "vertex": np.arange(tiny.VOXELS)}
    to_latents = rng.normal(size=(3, 4))

    def film(colour: np.ndarray) -> np.ndarray:
        shown = np.broadcast_to(128 + 70 * colour[:, None, None, None], (len(colour), 6, size, size, 3))
        return shown.astype(np.uint8)

    def latents(colour: np.ndarray) -> np.ndarray:
        held = (colour @ to_latents)[:, None, :, None, None]
        held = np.broadcast_to(held, (len(colour), 6, 4, size // 2, size // 2))
        return held.astype(np.float32)

    # A caption names which of the three channels are bright.
    captions = ((train > 0) @ [1, 2, 4]).astype(int)[:, None].repeat(6, axis=1)
    bright = (np.arange(8)[:, None] >> np.arange(3)) % 2 * 2.0 - 1
    tokens = (bright @ rng.normal(size=(3, tiny.TOKENS * tiny.TOKEN_DIM))).reshape(8, tiny.TOKENS, tiny.TOKEN_DIM)
    stimuli = {"train_clips": film(train), "train_segment": TRAIN}
    save_arrays(paths.work(profile, "stimuli"), stimuli, {})
    save_arrays(
        paths.work(profile, "targets"),
        {"train_latents": latents(train), "train_caption": captions, "caption_tokens": tokens.astype(np.float32)}, {},
    )  # fmt: skip
    subject = paths.work(profile, "subject1")
    save_arrays(subject, {**fmri, "test_fmri": np.full_like(fmri["test_fmri"], np.nan), **segments}, {})
    if diffusion:
        tiny.stable_diffusion(root / "sd")

    def reveal() -> None:
        save_arrays(subject, {**fmri, **segments}, {})
        shown = {"test_clips": film(test), "test_segment": TEST}
        save_arrays(paths.work(profile, "stimuli"), {**stimuli, **shown}, {})

    return Toy(profile, film(test), latents(test), reveal)


def decode(module: ModuleType, profile: Profile) -> np.ndarray:
    """All test clips as a trained baseline's module decodes them, neither saved nor scored."""
    windows = load_subject(profile, 1).test.fmri
    return module.load_decoder(profile, 1)(windows, len(TRAIN) + np.arange(len(windows)))


def alignment(decoded: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Correlation over clips of what is decoded with the truth, and the largest with the truth of shifted clips.

    Pixel by pixel, without the mean over clips, which needs no brain.
    """
    assert decoded.shape == truth.shape and decoded.dtype == np.uint8
    seen, true = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(axis=0) for x in (decoded / 255, truth / 255))

    def correlate(other: np.ndarray) -> float:
        return float((seen * other).sum() / np.sqrt((seen**2).sum() * (other**2).sum()))

    return correlate(true), max(correlate(np.roll(true, shift, axis=0)) for shift in range(1, len(true)))


def stop_after(monkeypatch, module, name: str, calls: int):
    """Let a function of a module raise KeyboardInterrupt at its n-th call; returns the list of calls taken."""
    original, taken = getattr(module, name), []

    def counted(*arguments, **keywords):
        taken.append(None)
        if len(taken) == calls:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)
    return taken
