"""A checkout in miniature whose whole run, `./run_all.sh tiny.yaml`, takes about a minute: engine, kernels and all.

One subject, two rows of Table 1 and the time-averaged control: three decoders, all six notebooks and the report. What
takes the time are the kernels, each of which imports torch, diffusers and transformers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import tiny
from yaml import safe_load

from nfx.profile import PROFILES

HERE = Path(__file__).resolve().parents[1]
SCRIPTS = ("run_all.sh", "constraints.txt", "pyproject.toml")
EVERY = 2  # steps between two checkpoints
DATE = rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC"  # of the newest figure, in the report
CHANGES = {
    "data": {
        # Of 64 pixels, as the demo's: at 32 libx264 was once seen to write other bytes for the same frames.
        "subjects": [1], "frame_size": 64, "train_segments": 12, "test_segments": 2, "train_volumes": 12,
        "test_volumes": 10, "validation_segments": [12],
    },
    "simulation": {"signal_to_noise": [0.22], "vertex_step": 8, "other_step": 400},
    "encoder": {"patch_size": 4, "depth": 2},
    "pretraining": {"steps": 6},
    "contrastive": {"steps": 6},
    "stage_one": {"steps": 6},
    "stage_two": {"steps": 6},
    "sampling": {"validation_clips": 4, "test_clips": 12},
    "training": {"checkpoint_every": EVERY},
    "averaged_subjects": [1],
    "headline_row": 1,
}  # fmt: skip


def make_checkout(folder: Path, **changes: dict) -> Path:
    """Copy the code to a folder and write `tiny.yaml` and the models beside it; the profile's path."""
    folder.mkdir(parents=True, exist_ok=True)
    unneeded = shutil.ignore_patterns("snapshots", "__pycache__")
    for part in ("nfx", "notebooks", "workflow"):
        shutil.copytree(HERE / part, folder / part, ignore=unneeded)
    for name in SCRIPTS:
        shutil.copy2(HERE / name, folder / name)
    rows = safe_load((PROFILES / "demo.yaml").read_text(encoding="utf-8"))["rows"]
    rows = {0: rows[0], 1: {**rows[1], "beta": 0.5}}
    return tiny.make_root(folder, **{**CHANGES, "rows": rows, **changes})


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What `run_all.sh` and kernels of a copied checkout need: its own code, and the Python that runs the tests.

    The name of the conda environment keeps it from making a `.venv`.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NFX_"))}
    return kept | {
        "CONDA_DEFAULT_ENV": "nfx", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    } | more  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a run has made, by its path: arrays, tables, weights, figures, films, manifests.

    Left out is what says when or how something was made: executed notebooks and their logs, the engine's marks, and the
    date in the report; and what has served its time, which a run that was killed at the end of a job removes when it
    reads the result again. Folders of two runs can be compared if both runs had the same root, which snapshots'
    config.json name.
    """
    found = {}
    for top in ("data", "work", "figures"):
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder)
            spent = {"executed", ".pieces", "blocks", "checkpoint"} & set(name.parts)
            if path.is_file() and not spent and not path.name.startswith("."):
                content = re.sub(DATE, b"", path.read_bytes()) if path.name == "report.html" else path.read_bytes()
                found[name.as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names whose content is not as expected, and those that one side lacks."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
