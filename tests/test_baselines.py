"""Running any baseline: the clips and noise of decode_run, resuming, reuse, reading, and the command.

The baseline itself is a stand-in whose clips show the number that their noise is drawn from.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_baselines as toy
import yaml

from nfx import baselines, paths
from nfx.baselines.__main__ import main
from nfx.evaluation import decoded
from nfx.files import load_arrays, read_manifest, save_arrays


def shown_numbers(windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.broadcast_to(numbers[:, None, None, None, None], (len(windows), 6, 16, 16, 3)).astype(np.uint8)


def score_by_number(truth: np.ndarray, clips: np.ndarray, *_) -> pd.DataFrame:
    """In the place of the classifiers: the number that a clip shows."""
    return pd.DataFrame({"ssim": clips[:, 0, 0, 0, 0].astype(float)})


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A profile with test recordings, and wen2018 replaced with a stand-in; its `decoder` can be changed."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(decoded, "score_clips", score_by_number)
    monkeypatch.setattr(decoded, "model_digest", lambda model: model)
    made = toy.make(tmp_path, steps=1)
    made.reveal()

    def train(profile, subject):
        folder = baselines.baseline_folder(profile, "wen2018", subject) / "model"
        if not folder.exists():
            save_arrays(folder, {"weight": np.zeros(3)}, {"subject": subject})
        return folder

    module = SimpleNamespace(CODE=("files.py",), train=train, decoder=shown_numbers)
    module.load_decoder = lambda profile, subject: module.decoder
    for name in baselines.NAMES:
        monkeypatch.setitem(sys.modules, f"nfx.baselines.{name}", module)
    return SimpleNamespace(profile=made.profile, clips=made.clips, module=module)


def decoded_by(ready, name: str = "wen2018"):
    return baselines.decode(ready.profile, name, 1)


def test_the_clips_of_decode_run_are_decoded_with_its_noise_and_scored(ready):
    few = ready.profile.model_copy(update={"sampling": ready.profile.sampling.model_copy(update={"test_clips": 5})})
    folder = baselines.decode(few, "wen2018", 1)
    assert folder == paths.work(few, "baselines", "wen2018_subject1")
    run, chosen = baselines.load(few, "wen2018", 1), [0, 6, 12, 17, 23]
    assert run.validation is None and run.test.clip.tolist() == chosen
    assert run.test.segment.tolist() == toy.TEST[chosen].tolist()
    np.testing.assert_array_equal(run.test.truth, ready.clips[chosen])
    numbers = [len(toy.TRAIN) + clip for clip in chosen]
    assert run.test.decoded[:, 0, 0, 0, 0].tolist() == numbers and run.scores["ssim"].tolist() == numbers
    assert run.scores["part"].tolist() == ["test"] * 5 and run.scores["clip"].tolist() == chosen


def test_the_windows_go_with_the_numbers(ready):
    seen = []
    ready.module.decoder = lambda windows, numbers: seen.append((windows, numbers)) or shown_numbers(windows, numbers)
    decoded_by(ready)
    from nfx.data import load_subject

    windows, numbers = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    np.testing.assert_array_equal(windows, load_subject(ready.profile, 1).test.fmri)
    assert numbers.tolist() == list(range(160, 184))


def test_what_was_trained_is_left_alone_when_clips_are_decoded_anew(ready):
    folder = decoded_by(ready)
    before = (folder / "model" / "manifest.json").read_bytes()
    other = ready.profile.model_copy(update={"seed": 1})
    ready.module.decoder = lambda windows, numbers: 255 - shown_numbers(windows, numbers)
    baselines.decode(other, "wen2018", 1)
    assert baselines.load(other, "wen2018", 1).test.decoded[0, 0, 0, 0, 0] == 255 - 160
    assert (folder / "model" / "manifest.json").read_bytes() == before
    assert load_arrays(folder / "model")["weight"].tolist() == [0, 0, 0]
    assert set(read_manifest(folder)["files"]) == {"test_clip.npy", "test_decoded.npy", "scores.csv"}


def test_decoding_goes_on_with_the_next_block_and_is_reused(ready, capsys):
    done = []

    def stopped(windows, numbers):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(windows))
        return shown_numbers(windows, numbers)

    ready.module.decoder = stopped
    with pytest.raises(KeyboardInterrupt):
        decoded_by(ready)
    assert baselines.decoded(ready.profile, 1) == {}
    ready.module.decoder = lambda windows, numbers: done.append(len(windows)) or shown_numbers(windows, numbers)
    decoded_by(ready)
    assert done == [8, 8, 8]
    assert baselines.load(ready.profile, "wen2018", 1).scores["ssim"].tolist() == list(range(160, 184))
    ready.module.decoder = None
    decoded_by(ready)
    assert "reused" in capsys.readouterr().out
    # Another model is decoded anew.
    save_arrays(baselines.baseline_folder(ready.profile, "wen2018", 1) / "model", {"weight": np.ones(3)}, {})
    with pytest.raises(TypeError):
        decoded_by(ready)


def test_recordings_that_are_not_finite_are_refused_before_anything_is_trained(ready):
    folder = paths.work(ready.profile, "subject1")
    arrays = {name: np.array(array) for name, array in load_arrays(folder).items()}
    arrays["test_fmri"][3, 2] = np.nan
    save_arrays(folder, arrays, {})
    with pytest.raises(ValueError, match="test_fmri of subject 1 holds NaN"):
        decoded_by(ready)
    assert not baselines.baseline_folder(ready.profile, "wen2018", 1).exists()


def test_baselines_that_are_there_come_in_the_order_of_the_papers(ready):
    assert baselines.decoded(ready.profile, 1) == {}
    for name in ("chen2023", "wen2018"):
        decoded_by(ready, name)
    (baselines.baseline_folder(ready.profile, "wang2022", 1) / "model").mkdir(parents=True)  # still training
    assert list(baselines.decoded(ready.profile, 1)) == ["after Wen 2018", "after Chen 2023"]
    assert set(baselines.TITLES) == set(baselines.NAMES)


def test_a_baseline_of_earlier_recordings_is_left_out_with_a_warning(ready):
    decoded_by(ready)
    folder = paths.work(ready.profile, "subject1")
    arrays = {name: np.array(array) for name, array in load_arrays(folder).items()}
    save_arrays(folder, arrays | {"test_fmri": arrays["test_fmri"] + 1}, {})
    with pytest.warns(UserWarning, match="subject 1's recordings are newer than these: wen2018"):
        assert baselines.decoded(ready.profile, 1) == {}


@pytest.mark.parametrize("damage", ["scores.csv", "test_decoded.npy", "missing"])
def test_a_damaged_baseline_is_an_error_that_names_the_command(ready, damage):
    folder = decoded_by(ready)
    if damage == "missing":
        (folder / "scores.csv").unlink()
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged: run python -m nfx.baselines wen2018 1 --profile demo"):
        baselines.decoded(ready.profile, 1)
    decoded_by(ready)  # mends it
    assert baselines.load(ready.profile, "wen2018", 1).scores["ssim"].tolist() == list(range(160, 184))


def test_scores_of_older_clips_are_not_read_with_new_ones(ready, monkeypatch):
    decoded_by(ready)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoded, "score_clips", stop)
    with pytest.raises(KeyboardInterrupt):
        baselines.decode(ready.profile.model_copy(update={"seed": 1}), "wen2018", 1)
    assert not (baselines.baseline_folder(ready.profile, "wen2018", 1) / "scores.csv").exists()
    with pytest.raises(FileNotFoundError, match="not scored: run python -m nfx.baselines wen2018 1"):
        baselines.load(ready.profile, "wen2018", 1)


def test_what_was_never_run_names_the_command(ready):
    with pytest.raises(FileNotFoundError, match="no decoded clips: run python -m nfx.baselines chen2023 1"):
        baselines.load(ready.profile, "chen2023", 1)
    for call in (baselines.decode, baselines.load):
        with pytest.raises(ValueError, match="no baseline 'wen', expected one of wen2018, wang2022"):
            call(ready.profile, "wen", 1)
    with pytest.raises(ValueError, match="subject is 7, expected one of"):
        baselines.decode(ready.profile, "wen2018", 7)


def test_the_command_prints_the_folder_or_one_sentence(ready, capsys):
    (paths.ROOT / "toy.yaml").write_text(yaml.safe_dump(ready.profile.model_dump()))
    arguments = ["wen2018", "1", "--profile", str(paths.ROOT / "toy.yaml")]
    main(arguments)
    assert capsys.readouterr().out.strip().endswith("baselines/wen2018_subject1")
    for wrong, sentence in {
        ("wen", "1"): "no baseline 'wen'",
        ("wen2018", "7"): "subject is 7",
        ("wen2018", "1", "--profile", "nothing"): "no profile 'nothing'",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([*wrong[:2], *(wrong[2:] or arguments[2:])])
        message = str(stopped.value.code)
        assert message.startswith("python -m nfx.baselines: ") and sentence in message and "\n" not in message


def test_the_package_is_imported_without_torch():
    code = "import sys, nfx.baselines.__main__; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
