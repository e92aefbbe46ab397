"""The command `nfx`: its help, its errors, and what it gives to the functions that do the work."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tiny_decoder
from helpers_dataset import surface_sample, write_cifti

from nfx import cli, paths
from nfx.data.recording import read_needs, read_windows
from nfx.diffusion import NeuralFlixPipeline, decode
from nfx.model_card import USE, publish


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A published decoder that reads 20 vertices."""
    root = tmp_path_factory.mktemp("made")
    profile = tiny_decoder.make(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        return publish(profile, 1, 10, root / "decoder", licence="mit")


@pytest.fixture
def recording(tmp_path):
    brain = surface_sample(range(60), range(60))
    bold = np.random.default_rng(0).normal(100, 5, (13, len(brain)))
    return write_cifti(tmp_path / "new.dtseries.nii", bold, brain)


def refused(*arguments) -> str:
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    return stopped.value.code


def helped(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_with_a_sentence(capsys):
    text = helped(capsys)
    for name, run in cli.COMMANDS.items():
        assert f"  {name} " in text and run.__doc__.splitlines()[0] in text


# Of each command: its arguments and options, and what it writes.
HELP = {
    "fetch": (["profile", "--only", "--subjects", "--accept"], ["data.root", "data/models.json"]),
    "check": (["profile", "--slurm"], ["nothing", "table"]),
    "doctor": (["profile", "--contents"], ["nothing", "report"]),
    "decode": (
        ["RECORDING", "--decoder", "--out", "--clips", "--onset", "--tr", "--steps", "--guidance", "--seed"],
        [".mp4", ".gif", ".npy"],
    ),
    "report": (["profile"], ["figures/<profile>/report.html"]),
    "publish": (
        ["profile", "folder", "--subject", "--row", "--licence", "--repository", "--public"],
        ["decoder.json", "README.md", "clips.png", "manifest.json"],
    ),
}


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_s_help_stands_alone_in_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, command)
    assert max(map(len, text.splitlines())) <= 80
    usage, what, *_ = text.split("\n\n")
    assert usage.startswith(f"usage: nfx {command} ") and len(what) > 100
    arguments, written = HELP[command]
    listed = re.findall(r"^  ([\w-]+)", text.split("examples:")[0], flags=re.MULTILINE)
    assert sorted(listed) == sorted([*arguments, "-h"])
    reads, writes = re.search(r"^reads    (.*?)^writes   (.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL).groups()
    assert reads.strip() and all(file in writes for file in written), writes
    assert re.search(r"exit status: 0 .*; 1 .*;\s2 wrong options$", text.strip(), flags=re.DOTALL)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_the_examples_of_the_help_are_understood(command, capsys, monkeypatch):
    """Each is run until its options are parsed; a wrong one would end with status 2."""
    examples = re.findall(r"^  nfx (.*)$", helped(capsys, command).split("examples:")[1], flags=re.MULTILINE)
    assert len(examples) >= 2

    class Understood(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *given, **options):
        raise Understood(parse(self, *given, **options))

    for example in examples:
        name, *rest = shlex.split(example)
        assert name == command
        with monkeypatch.context() as patch, pytest.raises(Understood):
            patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            cli.COMMANDS[name](rest)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_a_wrong_option_ends_with_the_status_that_the_help_names(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--none-such"])
    assert stopped.value.code == 2 and "usage: nfx" in capsys.readouterr().err


def test_a_command_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["decoed"])
    assert stopped.value.code == 2 and "decoed" in capsys.readouterr().err


def test_it_starts_fast_and_as_a_module():
    code = "import sys; from nfx import cli; print([m for m in ('torch', 'diffusers', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    run = subprocess.run([sys.executable, "-m", "nfx", "--version"], capture_output=True, text=True)
    assert run.stdout.startswith("nfx ") and run.returncode == 0


@pytest.mark.parametrize("kind", ["npy", "mp4", "gif"])
def test_a_recording_is_decoded_to_a_file(decoder, recording, tmp_path, capsys, kind):
    out = tmp_path / "made" / f"clips.{kind}"
    arguments = [recording, "--decoder", decoder, "--clips", 8, "--out", out, "--steps", 2]
    cli.main(["decode", *map(str, arguments)])
    assert "8 clips of 6 frames, 16 x 16 pixels" in capsys.readouterr().out
    if kind == "npy":
        windows = read_windows(recording, decoder, clips=8)
        needs = read_needs(decoder)
        pipeline = NeuralFlixPipeline.from_pretrained(decoder)
        expected = decode(pipeline, windows, clip_ids=range(8), seed=needs.seed, steps=2, guidance=needs.guidance)
        np.testing.assert_array_equal(np.load(out), expected)
    else:
        import av

        with av.open(str(out)) as film:
            assert sum(1 for _ in film.decode(video=0)) == 8 * 6


def test_options_reach_the_decoder(decoder, recording, tmp_path, monkeypatch):
    from nfx import diffusion

    seen = {}

    def record(pipeline, windows, **options):
        seen.update(options, windows=windows)
        return np.zeros((len(windows), 6, 16, 16, 3), np.uint8)

    monkeypatch.setattr(diffusion, "decode", record)
    common = [recording, recording, "--decoder", decoder, "--out", tmp_path / "x.npy"]
    cli.main(["decode", *map(str, [*common, "--onset", -4, "--tr", 2])])
    needs = read_needs(decoder)
    assert (seen["steps"], seen["guidance"], seen["seed"]) == (needs.steps, needs.guidance, needs.seed)
    assert len(seen["windows"]) == 13
    cli.main(["decode", *map(str, [*common, "--clips", 8, "--steps", 3, "--guidance", 0, "--seed", 0])])
    assert (seen["steps"], seen["guidance"], seen["seed"], list(seen["clip_ids"])) == (3, 0.0, 0, list(range(8)))


def test_faults_of_decode_are_one_sentence_before_a_model_is_loaded(decoder, recording, tmp_path, monkeypatch):
    monkeypatch.setattr(NeuralFlixPipeline, "from_pretrained", None)
    common = [recording, "--decoder", decoder]
    assert "expected a name that ends in .mp4" in refused("decode", *common, "--clips", 8, "--out", "x.avi")
    assert "--tr says nothing" in refused("decode", *common, "--clips", 8, "--tr", 2, "--out", "x.npy")
    assert "--steps is 0" in refused("decode", *common, "--clips", 8, "--steps", 0, "--out", "x.npy")
    assert "nfx decode: " in refused("decode", *common, "--out", "x.npy")
    assert "does not exist" in refused(
        "decode", tmp_path / "none", "--decoder", decoder, "--clips", 8, "--out", "x.npy"
    )
    assert "nfx publish" in refused("decode", recording, "--decoder", tmp_path, "--clips", 8, "--out", "x.npy")


def test_the_lines_of_the_card_decode_a_recording(decoder, recording, tmp_path, monkeypatch):
    """The five lines of the model card and of docs/using_a_decoder.md, as they stand."""
    (tmp_path / "recording.dtseries.nii").symlink_to(recording)
    (tmp_path / "decoder").symlink_to(decoder)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(USE.format(clips=8, seed=2024, steps=2, guidance=4.0), names)
    assert names["video"].shape == (8, 6, 16, 16, 3) and names["video"].std() > 0


def test_publishing_from_the_command(decoder, tmp_path, monkeypatch, capsys):
    from nfx import model_card, profile

    made, sent = [], []
    monkeypatch.setattr(model_card, "publish", lambda *given: made.append(given) or tmp_path / "out")
    monkeypatch.setattr(model_card, "upload", lambda *given, **options: sent.append((given, options)) or "address")
    demo = profile.load_profile("demo")
    cli.main(["publish", "demo", "out"])
    assert made[-1] == (demo, 1, 10, "out", None) and not sent
    cli.main(["publish", "demo", "out", "--subject", "2", "--row", "8", "--licence", "mit", "--repository", "me/it"])
    assert made[-1] == (demo, 2, 8, "out", "mit") and sent == [((tmp_path / "out", "me/it"), {"private": True})]
    cli.main(["publish", "demo", "out", "--repository", "me/it", "--public"])
    assert sent[-1][1] == {"private": False}
    assert "--public says nothing" in refused("publish", "demo", "out", "--public")
    assert "row is 12" in refused("publish", "demo", "out", "--row", "12")
    assert "no profile 'dmeo'" in refused("publish", "dmeo", "out")


def test_fetching_from_the_command(monkeypatch, capsys):
    from nfx import weights
    from nfx.data import fetch

    calls = []
    monkeypatch.setattr(fetch, "main", lambda given: calls.append(("data", given)))
    monkeypatch.setattr(weights, "main", lambda given: calls.append(("weights", given)))
    root = str(paths.ROOT / "data/paper")
    cli.main(["fetch", "paper"])
    assert calls == [("data", [root, "--subjects", "1", "2", "3"]), ("weights", ["paper"])]
    calls.clear()
    cli.main(["fetch", "paper", "--subjects", "2", "--only", "data"])
    cli.main(["fetch", "paper", "--only", "weights", "--accept", "a/b"])
    assert calls == [("data", [root, "--subjects", "2"]), ("weights", ["paper", "--accept", "a/b"])]
    calls.clear()
    cli.main(["fetch", "demo"])
    assert calls == [("weights", ["demo"])] and "is simulated" in capsys.readouterr().out


def test_check_and_report_speak_under_their_name(monkeypatch, tmp_path):
    assert refused("check", "papre").startswith("nfx check: no profile 'papre'")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert refused("report", "demo").startswith("nfx report: ")
