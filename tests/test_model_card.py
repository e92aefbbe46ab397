"""A decoder as a folder that stands alone, its card, and its upload to a hub on this machine."""

from __future__ import annotations

import json
from io import BytesIO

import fake_hub
import numpy as np
import pandas as pd
import pytest
import tiny_decoder
import yaml
from huggingface_hub import ModelCard, constants, hf_api, snapshot_download
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from PIL import Image

from nfx import files, paths, plots
from nfx.data import load_subject
from nfx.data.recording import read_needs
from nfx.diffusion import NeuralFlixPipeline, decode, make_solver, sampled_by
from nfx.diffusion.solvers import TITLES
from nfx.evaluation.decoded import load_pipeline, load_run, run_folder
from nfx.evaluation.tables import score_table
from nfx.model_card import machine_paths, publish, upload, write_clips
from nfx.plots import new_figure


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return root, tiny_decoder.make(root)


@pytest.fixture
def profile(made, tmp_path, monkeypatch):
    tiny_decoder.copy(made[0], tmp_path / "root", monkeypatch)
    return made[1]


@pytest.fixture
def published(profile, tmp_path):
    return publish(profile, 1, 10, tmp_path / "given" / "decoder", licence="mit")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api, "is_xet_available", lambda: False)  # the hub here speaks Git LFS
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    disable_progress_bars()
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
    enable_progress_bars()


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_the_pipeline_with_what_it_needs(profile, published):
    source = run_folder(profile, 1, 10) / "pipeline"
    ours, theirs = NeuralFlixPipeline.from_pretrained(published), NeuralFlixPipeline.from_pretrained(source)
    for one, other in zip(ours.unet.state_dict().values(), theirs.unet.state_dict().values(), strict=True):
        np.testing.assert_array_equal(one, other)
    needs = read_needs(published)
    assert needs.vertex == tuple(range(20)) and needs.window == 2
    assert (needs.solver, needs.steps, needs.guidance) == ("ddim", 4, 2.0)
    assert files.finished(published, files.read_manifest(published)["facts"])
    assert set(everything(published)) == {*everything(source), "decoder.json", "README.md", "clips.png"}


def test_no_path_of_this_machine_is_left(profile, published):
    source = run_folder(profile, 1, 10) / "pipeline"
    assert "_name_or_path" in files.read_json(source / "unet/config.json"), "else this test shows nothing"
    assert not list(machine_paths(published)) and list(machine_paths(source))
    assert all(b"/home/someone" not in content for content in everything(published).values())


def test_the_card_s_front_is_what_a_hub_reads(profile, published):
    card = ModelCard.load(published / "README.md")
    data = yaml.safe_load((published / "README.md").read_text().split("---")[1])
    assert (data["license"], data["library_name"]) == ("mit", "diffusers")
    assert "simulated" in data["tags"]
    table = score_table(load_run(profile, 1, 10).scores, profile.evaluation)
    results = card.data.eval_results
    assert [result.metric_value for result in results] == table["mean"].round(4).tolist()
    for result, (low, high) in zip(results, table[["low", "high"]].to_numpy(), strict=True):
        assert f"[{low:.3f}, {high:.3f}]" in result.metric_name


def test_the_card_says_what_one_must_know(profile, published):
    text = (published / "README.md").read_text()
    for said in (
        "**Simulated.**", "20 cortical vertices", "6 frames of\n16 x 16 pixels", "## Limits", "one correct class",
        "120 clips of 2 s were trained on", "Not for clinical",
        "was not measured (notebook 04)", "`mit`",
    ):  # fmt: skip
        assert said in text, said
    count = sum(p.numel() for p in NeuralFlixPipeline.from_pretrained(published).unet.parameters())
    assert f"| unet | VideoUNet | {count:,} |" in text


@pytest.mark.parametrize("solver", ["dpm++", "unipc"])
def test_a_decoder_samples_as_it_was_evaluated_wherever_it_is_read(profile, tmp_path, solver, caplog):
    changed = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"solver": solver})})
    published = publish(changed, 1, 10, tmp_path / "decoder", "mit")
    windows = load_subject(profile, 1).test.fmri[:3]
    how = {"clip_ids": range(3), "seed": 7, "steps": 4, "guidance": 2.0}
    trained = NeuralFlixPipeline.from_pretrained(run_folder(profile, 1, 10) / "pipeline")
    by_ddim = decode(trained, windows, **how)
    with sampled_by(trained, solver):
        expected = decode(trained, windows, **how)
    assert not np.array_equal(by_ddim, expected), "else this test shows nothing"
    caplog.clear()
    pipeline = NeuralFlixPipeline.from_pretrained(published)
    np.testing.assert_array_equal(decode(pipeline, windows, **how), expected)
    np.testing.assert_array_equal(decode(load_pipeline(published), windows, **how), expected)
    assert not caplog.records and type(pipeline.scheduler) is type(make_solver(solver, trained.scheduler))
    assert read_needs(published).solver == solver
    pipeline.save_pretrained(tmp_path / "again")
    again = NeuralFlixPipeline.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(decode(again, windows, **how), expected)
    card = (published / "README.md").read_text()
    assert f"decoded by {TITLES[solver]} in 4 steps with guidance 2.0" in card and "DDIM" not in card


def test_the_card_shows_the_best_the_median_and_the_worst_clip_truth_above(profile, published, monkeypatch):
    run = load_run(profile, 1, 10)
    score = run.scores["image_top1_1"].to_numpy()
    order = np.argsort(-score)
    places = [order[0], order[(len(order) - 1) // 2], order[-1]]
    drawn = []
    monkeypatch.setattr(plots, "contact_sheet", lambda *given, **options: drawn.append(given) or new_figure(2, 2))
    for simulated in (True, False):
        write_clips(published, run, profile.model_copy(update={"simulated": simulated}))
        drawn.append((published / "clips.png").read_bytes())
    rows, titles = drawn[0]
    assert list(rows) == ["truth", "decoded"]
    for row, clips in (("truth", run.test.truth), ("decoded", run.test.decoded)):
        np.testing.assert_array_equal(rows[row], np.asarray(clips)[places])
    kinds = zip(("best", "median", "worst"), places, strict=True)
    assert titles == [f"{kind}, score {score[k]:.3g}" for kind, k in kinds]
    stamped, plain = (np.asarray(Image.open(BytesIO(drawn[k])).convert("RGB")).astype(int) for k in (1, 3))
    red = lambda picture: ((picture[..., 0] > 140) & (picture[..., 1] < 60)).sum()  # noqa: E731
    assert red(stamped) > 50 and red(plain) == 0


def test_the_picture_is_drawn_whole_and_the_card_points_to_it(profile, published):
    assert "](clips.png)" in (published / "README.md").read_text()
    with Image.open(published / "clips.png") as picture:
        width, height = picture.size
    assert 400 < width < 900 and 300 < height < 900


def test_references_stand_beside_the_ssim_where_they_were_measured(profile, tmp_path):
    table = pd.DataFrame(
        {
            "subject": [2, 1],
            "permuted pairs": [0.9, 0.081],
            "mid-grey frame": [0.9, 0.142],
            "training-mean frame": 0.148,
        }
    )
    path = paths.figures(profile, "ssim_controls.csv")
    path.parent.mkdir(parents=True)
    path.write_text("# simulated\n" + table.to_csv())
    text = (publish(profile, 1, 10, tmp_path / "decoder", "mit") / "README.md").read_text()
    assert "permuted pairs 0.081, a mid-grey frame 0.142, the mean training frame 0.148" in text


def test_recorded_data_are_called_so_and_the_licence_is_the_base_s(profile, tmp_path, monkeypatch):
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    real = profile.model_copy(
        update={
            "simulated": False, "simulation": None,
            "models": profile.models.model_copy(update={"stable_diffusion": base}),
        }
    )  # fmt: skip
    text = (publish(real, 1, 10, tmp_path / "decoder") / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "creativeml-openrail-m" and data["base_model"] == base and "recorded" in data["tags"]
    assert "Simulated" not in text and "Wen et al. 2018" in text


def test_faults_leave_nothing_behind(profile, tmp_path):
    def refused(kind, match, **changed):
        with pytest.raises(kind, match=match):
            publish(
                **{"profile": profile, "subject": 1, "row": 10, "folder": tmp_path / "out", "licence": "mit"} | changed
            )
        assert not list(tmp_path.glob("*out*"))

    refused(ValueError, "the licence of sd is not known here", licence=None)
    refused(FileNotFoundError, "03_diffusion_fine_tuning", row=3)
    unet = run_folder(profile, 1, 10) / "pipeline/unet"
    config = unet / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    refused(ValueError, "config.json is not what its manifest records")
    config.write_text(before.replace('"silu"', '"/home/someone/silu"'))
    files.write_manifest(unet.parent, files.read_manifest(unet.parent)["facts"])
    refused(ValueError, "unet/config.json names the path /home/someone/silu")
    subject = paths.work(profile, "subject1")
    arrays = {name: np.array(array) for name, array in files.load_arrays(subject).items()}
    files.save_arrays(subject, arrays | {"train_fmri": arrays["train_fmri"] + 1}, {})
    refused(ValueError, "was trained on other recordings than .*subject1 holds now")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="exists already"):
        publish(profile, 1, 10, tmp_path / "full", "mit")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep me"


def test_an_upload_arrives_whole_and_comes_back(published, hub, tmp_path):
    address = upload(published, "me/decoder")
    repository = hub.repositories["me/decoder"]
    assert repository.private and address.endswith(repository.branches["main"])
    assert repository.commits[repository.branches["main"]] == everything(published)
    back = snapshot_download("me/decoder", cache_dir=tmp_path / "cache", token="right")
    assert read_needs(back) == read_needs(published)
    NeuralFlixPipeline.from_pretrained(back)
    upload(published, "me/decoder")  # again, to a repository that is there


def test_a_public_repository_must_be_asked_for(published, hub):
    upload(published, "me/decoder", private=False)
    assert not hub.repositories["me/decoder"].private


@pytest.mark.parametrize("name", ["", "decoder", "me/", "https://somewhere/me/decoder", "me/decoder/more"])
def test_nothing_is_sent_without_a_repository_s_name(published, hub, name):
    with pytest.raises(ValueError, match="is no repository of the hub: expected owner/name"):
        upload(published, name)
    assert not hub.requests


def test_nothing_is_sent_that_names_a_path_or_is_no_decoder(published, hub, tmp_path, profile):
    card = published / "README.md"
    card.write_text(card.read_text() + "\ntrained in /home/someone/neuralflix on our machine\n")
    with pytest.raises(ValueError, match="README.md names the path /home/someone/neuralflix"):
        upload(published, "me/decoder")
    with pytest.raises(FileNotFoundError, match="no published decoder"):
        upload(run_folder(profile, 1, 10) / "pipeline", "me/decoder")
    assert not hub.requests


def test_a_token_is_wanted_and_may_be_refused(published, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(PermissionError, match=r"me/decoder on http.* may not be written \(401\): check the token"):
        upload(published, "me/decoder")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(PermissionError, match="HF_TOKEN"):
        upload(published, "me/decoder")
    assert "me/decoder" not in hub.repositories


def test_no_hub_at_all_is_one_sentence(published, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="me/decoder on http://127.0.0.1:9 could not be written") as error:
        upload(published, "me/decoder")
    assert "\n" not in str(error.value)


def test_json_of_the_folder_is_json(published):
    for path in published.rglob("*.json"):
        json.loads(path.read_text())
