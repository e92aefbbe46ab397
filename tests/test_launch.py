"""nfx.launch: which training is run, and (slow) that two processes make and save what one does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nfx import launch, paths
from nfx.profile import load_profile


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["pretraining"], ("nfx.encoder.pretrain", ())),
        (["encoder"], ("nfx.encoder.train_encoder", (1, 10, False))),
        (["decoder", "--subject", "3", "--row", "0"], ("nfx.diffusion.stage_two", (3, 0, False))),
        (["decoder", "--subject", "2", "--time-averaged"], ("nfx.diffusion.stage_two", (2, 10, True))),
    ],
)
def test_the_arguments_choose_the_training(arguments, called, monkeypatch):
    seen = []
    for name in ("nfx.encoder.pretrain", "nfx.encoder.train_encoder", "nfx.diffusion.stage_two"):
        monkeypatch.setattr(name, lambda profile, *job, name=name: seen.append((name, job)))
    launch.main(["demo", *arguments])
    assert seen == [called]


def prepared(folder: Path, monkeypatch) -> Path:
    """A tiny project whose data are prepared, with batches that two processes cannot halve."""
    from tiny import make_root

    from nfx.data import prepare_stimuli, prepare_subject, prepare_targets, simulate_dataset, simulate_recordings

    sections = ("pretraining", "contrastive", "stage_one", "stage_two")
    path = make_root(folder, **{name: {"batch_size": 5} for name in sections})
    monkeypatch.setattr(paths, "ROOT", folder)
    profile = load_profile(path)
    simulate_dataset(profile)
    simulate_recordings(profile)
    prepare_stimuli(profile)
    prepare_targets(profile)
    prepare_subject(profile, 1)
    return path


@pytest.mark.slow
def test_two_processes_make_and_save_what_one_does(tmp_path, monkeypatch, capsys):
    source, where = paths.ROOT, {name: tmp_path / name for name in ("alone", "together")}
    path = prepared(where["alone"], monkeypatch)
    shutil.copytree(where["alone"], where["together"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"NFX_ROOT": str(where["together"]), "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    for training in ("pretraining", "encoder", "decoder"):
        launch.main([str(path), training])
        done = subprocess.run(
            [*command, "-m", "nfx.launch", path, training], capture_output=True, text=True, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for folder in ("pretraining", "encoder/subject1_row1", "stage1/beta_0.75", "decoder/subject1_row10"):
        homes = [root / "work/tiny" / folder for root in where.values()]
        curves = [pd.read_csv(home / "curve.csv") for home in homes]
        assert len(curves[0]) >= 3
        pd.testing.assert_frame_equal(*curves, rtol=2e-3, atol=1e-4)  # steps of Adam, which rounding moves
        files = [sorted(file.relative_to(home).as_posix() for file in home.rglob("*.*")) for home in homes]
        assert files[0] == files[1] and not any("checkpoint" in file for file in files[0])
    launch.main([str(path), "decoder"])
    assert "stage two is finished and reused" in capsys.readouterr().out
