"""A trained, decoded and scored decoder in miniature, for the tests of publishing and of using it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_baselines as toy
import tiny_diffusion as tiny

from nfx import files, paths
from nfx.evaluation.decoded import run_folder
from nfx.evaluation.tables import METRICS
from nfx.profile import Profile


def copy(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of what `make` has written below `made`, for one test, whose `nfx.paths.ROOT` it is."""
    shutil.copytree(made, root)
    monkeypatch.setattr(paths, "ROOT", root)


def make(root: Path) -> Profile:
    """Below `root` a profile's data, and subject 1's decoder of row 10, untrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        return _make(root)


def _make(root: Path) -> Profile:
    made = toy.make(root, steps=1)
    made.reveal()
    profile = made.profile
    folder = run_folder(profile, 1, 10)
    pipeline = tiny.pipeline()
    pipeline.save_pretrained(folder / "pipeline")
    for part in ("unet", "fmri_encoder", "vae"):  # as parts have it that were loaded from somewhere
        config = folder / "pipeline" / part / "config.json"
        files.write_json(config, files.read_json(config) | {"_name_or_path": f"/home/someone/work/demo/{part}"})
    arrays = files.read_manifest(paths.work(profile, "subject1"))["arrays"]
    files.write_manifest(folder / "pipeline", {"fmri": {"train_fmri": arrays["train_fmri"]["sha256"]}})
    clip = np.arange(len(toy.TEST))
    scores = pd.DataFrame({"part": "test", "clip": clip, "segment": toy.TEST})
    rng = np.random.default_rng(0)
    for name in METRICS:
        scores[name] = rng.uniform(0.1, 0.5, len(clip))
    files.save_arrays(folder, {"test_clip": clip, "test_decoded": made.clips}, {})
    scores.to_csv(folder / "scores.csv", index=False)
    files.write_manifest(folder, {}, ["test_clip.npy", "test_decoded.npy", "scores.csv"])
    return profile
