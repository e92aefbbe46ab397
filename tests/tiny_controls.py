"""A toy decoder and what it was trained on, for the tests of the controls (`nfx.evaluation.interventions`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import tiny_diffusion as tiny
import torch

from nfx.diffusion import decode
from nfx.files import save_arrays, write_manifest
from nfx.paths import work
from nfx.profile import Profile, load_profile

PER_SEGMENT = 8
TRAIN, TEST = np.repeat([1, 2, 3], PER_SEGMENT), np.repeat([1, 2], PER_SEGMENT)  # segments; 3 is held out
VOXELS = tiny.VOXELS


def write_classifiers(folder: Path) -> Path:
    """An image and a video classifier of fresh weights, in the folders ``vit`` and ``videomae``."""
    from transformers import VideoMAEImageProcessorPil, ViTImageProcessorPil

    from nfx.stand_ins import recognition

    torch.manual_seed(0)
    size = {"height": 64, "width": 64}
    recognition.vit().save_pretrained(folder / "vit")
    ViTImageProcessorPil(size=size).save_pretrained(folder / "vit")
    recognition.videomae().save_pretrained(folder / "videomae")
    VideoMAEImageProcessorPil(size={"shortest_edge": 64}, crop_size=size).save_pretrained(folder / "videomae")
    return folder


def make(root: Path, classifiers: Path) -> Profile:
    """A decoder of row 10, untrained, and all that it and a training of it read, below `root`: it must be `paths.ROOT`.

    A recording's first voxel holds its number. `classifiers` is the folder of `write_classifiers`.
    """
    demo = load_profile("demo")
    changes = {
        "data": {
            "frame_size": 16, "window": tiny.WINDOW, "train_segments": 3, "test_segments": 2, "subjects": (1, 2),
            "validation_segments": (3,),
        },
        "models": {
            "stable_diffusion": "sd", "image_classifier": str(classifiers / "vit"),
            "video_classifier": str(classifiers / "videomae"),
        },
        "encoder": {"patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "tokens": tiny.TOKENS,
                    "token_dim": tiny.TOKEN_DIM},
        "stage_one": {"steps": 2, "batch_size": 2},
        "stage_two": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "sampling": {"steps": 2, "batch_size": 3, "validation_clips": 2, "test_clips": None},
        "evaluation": {"n_way": 5, "trials": 20},
    }  # fmt: skip
    changed = {name: getattr(demo, name).model_copy(update=values) for name, values in changes.items()}
    profile = demo.model_copy(update=changed)
    tiny.stable_diffusion(root / "sd")
    rng = np.random.default_rng(0)
    arrays, stimuli, targets = {}, {}, {}
    for part, segment in (("train", TRAIN), ("test", TEST)):
        stimuli[f"{part}_clips"] = rng.integers(0, 256, (len(segment), 6, 16, 16, 3), dtype=np.uint8)
        stimuli[f"{part}_segment"] = arrays[f"{part}_segment"] = segment
        arrays[f"{part}_fmri"] = rng.normal(size=(len(segment), VOXELS)).astype(np.float32)
        arrays[f"{part}_fmri"][:, 0] = np.arange(len(segment))
        targets[f"{part}_latents"] = rng.normal(size=(len(segment), 6, 4, 8, 8)).astype(np.float32)
        targets[f"{part}_image_embeddings"] = rng.normal(size=(len(segment), 6, 5)).astype(np.float32)
    targets["train_caption"] = np.zeros((len(TRAIN), 6), int)
    targets["caption_tokens"] = rng.normal(size=(1, tiny.TOKENS, tiny.TOKEN_DIM)).astype(np.float32)
    save_arrays(work(profile, "stimuli"), stimuli, {})
    save_arrays(work(profile, "targets"), targets, {})
    save_arrays(work(profile, "subject1"), {**arrays, "vertex": np.arange(VOXELS)}, {})
    write_manifest(work(profile, "pretraining"), {})
    tiny.fmri_encoder().save_pretrained(work(profile, "encoder", "subject1_row1", "encoder"))
    write_manifest(work(profile, "encoder", "subject1_row1"), {})
    pipeline = work(profile, "decoder", "subject1_row10", "pipeline")
    tiny.pipeline(beta=0.75).save_pretrained(pipeline)
    write_manifest(pipeline, {})
    return profile


def embed(clips: np.ndarray, model: Profile) -> np.ndarray:
    """Mean colours of every frame, (clips, frames, 3), where CLIP's embeddings are expected."""
    return clips.mean(axis=(2, 3)) + 1.0


def expected(profile: Profile, pipeline: Path, fmri: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """What `nfx.diffusion.decode` makes of windows, with the noise of test clips."""
    from nfx.diffusion import NeuralFlixPipeline

    settings = {"seed": profile.seed, "steps": 2, "guidance": profile.sampling.guidance, "batch_size": 3}
    return decode(NeuralFlixPipeline.from_pretrained(pipeline), fmri, clip_ids=len(TRAIN) + clips, **settings)


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """That clips are equal but for the last bits of another batch."""
    assert np.abs(one.astype(int) - other).max() <= 1


def everything_in(folder: Path) -> dict[str, str]:
    """Digest of every file, hidden ones and links too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
