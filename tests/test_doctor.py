"""The report that is pasted in an issue: complete, and without names and secrets."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest

from nfx import doctor, files, paths
from nfx.doctor import examine, last_failure, main, results, without_secrets


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of a user with a name, a home and secrets, on a machine with a name."""
    monkeypatch.setattr(paths, "ROOT", tmp_path / "home" / "ada" / "neuralflix")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "ada"))
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "brain7.example.org")
    monkeypatch.setenv("MY_API_KEY", "correct-horse")
    paths.ROOT.mkdir(parents=True)
    return paths.ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{root}/work/demo/manifest.json is gone", "work/demo/manifest.json is gone"),
        ("at {root}", "at ."),
        ("{root}2/work", "~/neuralflix2/work"),
        ("{home}/.cache/huggingface", "~/.cache/huggingface"),
        ("/scratch/ada/tmp, owner ada", "/scratch/<user>/tmp, owner <user>"),
        ("Canada is no user", "Canada is no user"),
        ("on brain7.example.org, brain7:", "on <machine>, <machine>:"),
        ("key correct-horse", "key <secret>"),
        ("hf_AbCdEfGhIjKlMnOp12", "<token>"),
        ("https://me:pw@a.org/x?token=abc&b=1", "https://<credentials>@a.org/x?token=<secret>&b=1"),
        ("HF_TOKEN=abc password: 'x y'", "HF_TOKEN=<secret> password: '<secret> y'"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer <secret>"),
        ("write to ada@mit.edu", "write to <address>"),
        ("tokens 77, ratio 0.5: nothing secret", "tokens 77, ratio 0.5: nothing secret"),
        ("../outside and a/./b", "../outside and a/./b"),
    ],
)
def test_names_and_secrets_are_taken_out(root, text, expected):
    assert without_secrets(text.format(root=root, home=root.parent)) == expected


def test_results_whole_damaged_and_unfinished(root):
    assert results(root / "work")[0].state == "none"
    for name in ("subject1", "targets", "stimuli"):
        files.save_arrays(root / "work" / name, {"x": np.arange(50)}, {"seed": 1})
    (root / "work/decoder/subject1_row10/checkpoint/step_20").mkdir(parents=True)
    os.truncate(root / "work/targets/x.npy", 60)
    with open(root / "work/stimuli/x.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    rows = {row.item: row for row in results(root / "work")}
    assert rows["results"].detail.startswith("2 are whole") and rows["targets"].state == "damaged"
    assert "targets/x.npy" in rows["targets"].detail and "stimuli" not in rows
    assert rows["decoder/subject1_row10"][1:] == ("unfinished", "checkpoint step_20")
    rows = {row.item: row for row in results(root / "work", contents=True)}
    assert rows["results"].detail.startswith("1 are whole") and rows["stimuli"].state == "damaged"
    (root / "work/subject1/x.npy").unlink()
    assert {row.item: row.state for row in results(root / "work")}["subject1"] == "missing"


def test_the_last_stage_that_failed(root):
    executed = root / "work/demo/executed"
    assert last_failure(executed)[0].state == "none"
    executed.mkdir(parents=True)
    for age, (name, text) in enumerate({
        "01_data_preparation": "all is well\n",
        "03_diffusion_fine_tuning_subject1_row2": "step 1\nValueError: the newest\n",
        "02_encoder_contrastive_training_subject1_row1": "OSError: an older one\n",
    }.items()):  # fmt: skip
        (executed / f"{name}.log").write_text(text)
        os.utime(executed / f"{name}.log", (1e9 - age, 1e9 - age))
    (executed / "03_diffusion_fine_tuning_subject1_row2.ipynb").write_text("{}")
    row, lines = last_failure(executed)
    assert (row.item, row.state) == ("03_diffusion_fine_tuning_subject1_row2", "failed")
    assert lines == ["step 1", "ValueError: the newest"] and "row2.ipynb" in row.detail and "2001-09-09" in row.detail
    for log in executed.glob("*.log"):
        log.write_text("done\n")
    assert last_failure(executed)[0].state == "ok"


def test_versions_that_differ_from_the_constraints(root, monkeypatch):
    numpy = doctor.metadata.version("numpy")
    (root / "constraints.txt").write_text(f"# with==care\nnumpy=={numpy}\ntorch==0.1\nno-such-package==1\n")
    rows = {row.item: row for row in doctor.software()}
    assert rows["packages"].detail.startswith("1 of 3 ") and rows["torch"].state == "other version"
    assert "no-such-package" not in rows  # which nfx does not need
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["No.Such_package>=1; extra == 'x'"])
    assert {row.item: row.state for row in doctor.software()}["no-such-package"] == "not installed"


def test_a_part_that_cannot_be_looked_at_does_not_hide_the_others(root, monkeypatch):
    monkeypatch.setattr(doctor.preflight, "check", lambda profile: 1 / 0)
    text, well = examine("demo")
    assert not well and "ZeroDivisionError" in text and "processor" in text and "last failure" in text


def test_a_profile_that_does_not_exist(root):
    text, well = examine("nothing.yaml")
    assert not well and "no profile 'nothing.yaml'" in text


def test_the_command_for_the_demo_without_a_network(monkeypatch, capsys):
    def refuse(*given):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_TOKEN", "something-secret")
    work = paths.work(doctor.load_profile("demo"))
    before = sorted(work.rglob("*")) if work.is_dir() else []
    try:
        main(["demo"])
    except SystemExit as end:
        assert end.code == 1  # of a result that is damaged on this machine
    text = capsys.readouterr().out
    for title in ("software", "hardware", "what a run of 'demo' needs", "results", "disk", "last failure"):
        assert f"{title}\n\nitem" in text
    assert "something-secret" not in text and str(paths.ROOT) not in text and "HF_TOKEN" in text
    assert before == (sorted(work.rglob("*")) if work.is_dir() else [])
