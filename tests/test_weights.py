"""Models from the hub, against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from nfx import files, paths, weights
from nfx.profile import PROFILES

SD = "someone/diffusion"
OTHERS = {"clip": "a/clip", "blip": "a/blip", "image_classifier": "a/vit", "video_classifier": "a/videomae"}
MODELS = {**OTHERS, "stable_diffusion": SD}
MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "preprocessor_config.json": b'{"size": 4}'}
LEFT_OUT = {
    "README.md": b"a card", "pytorch_model.bin": b"a pickle", "model.ckpt": b"a pickle", "model.pt": b"a pickle",
    "model.pth": b"a pickle", "model.fp16.safetensors": b"half", "tf_model.h5": b"another framework",
}  # fmt: skip
TEXT = {"tokenizer.json": b'{"t": 1}', "vocab.json": b"{}", "merges.txt": b"#version: 0.2"}
DIFFUSION = {
    "model_index.json": b"{}", "v1-5-pruned.safetensors": b"all in one", "v1-5-pruned.ckpt": b"a pickle",
    "unet/config.json": b'{"unet": 1}', "unet/diffusion_pytorch_model.safetensors": b"unet" * 2000,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"raw",
    "vae/config.json": b'{"vae": 1}', "vae/diffusion_pytorch_model.safetensors": b"vae" * 500,
    "text_encoder/config.json": b'{"text": 1}', "text_encoder/model.safetensors": b"text" * 700,
    "text_encoder/model.fp16.safetensors": b"half", "text_encoder/pytorch_model.bin": b"a pickle",
    "tokenizer/vocab.json": b'{"a": 1}', "tokenizer/merges.txt": b"#v", "tokenizer/tokenizer_config.json": b'{"c": 1}',
    "tokenizer/special_tokens_map.json": b'{"s": 1}', "scheduler/scheduler_config.json": b'{"beta": 1}',
    "safety_checker/config.json": b"{}", "safety_checker/model.safetensors": b"checker",
}  # fmt: skip
NEEDED_OF_DIFFUSION = {
    file
    for file in DIFFUSION
    if file.split("/")[0] in {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    and not any(part in file for part in ("fp16", "non_ema", ".bin"))
}


def profile(**models):
    """A profile with the given models; the others are folders."""
    chosen = {role: models.get(role, "here") for role in MODELS}
    return SimpleNamespace(name="tiny", models=SimpleNamespace(model_dump=lambda: chosen))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, an empty cache, no token, and a root with the folder `here`."""
    (tmp_path / "root" / "here").mkdir(parents=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "root")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    disable_progress_bars()
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
    enable_progress_bars()


@pytest.fixture
def vit(hub):
    """A fetched model: its repository on the hub, and the profile that names it."""
    repository = hub.add("a/vit", {**MODEL, **LEFT_OUT})
    named = profile(image_classifier="a/vit")
    weights.fetch_models(named)
    return SimpleNamespace(hub=hub, repository=repository, profile=named, folder=paths.snapshot("a/vit"))


def weights_file(vit):
    return f"{vit.folder}/model.safetensors"


def overwrite(path, content):
    """Other bytes in a file of the cache, through its link."""
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(content)


def test_only_what_is_needed_comes_and_never_a_pickle(hub):
    hub.add(SD, DIFFUSION)
    for name in OTHERS.values():
        hub.add(name, {**MODEL, **TEXT, **LEFT_OUT, "generation_config.json": b'{"g": 1}'})
    folders = weights.fetch_models(profile(**MODELS))
    found = {
        role: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for role, folder in folders.items()
    }
    assert found["stable_diffusion"] == NEEDED_OF_DIFFUSION
    assert found["image_classifier"] == found["video_classifier"] == set(MODEL)
    assert found["clip"] == {*MODEL, *TEXT} and found["blip"] == {*MODEL, *TEXT, "generation_config.json"}
    assert (folders["clip"] / "merges.txt").read_bytes() == TEXT["merges.txt"]


def test_the_record_holds_the_commit_and_what_was_computed_here(vit):
    entry = json.loads(paths.model_record().read_text())["a/vit"]
    assert entry["asked"] == "main" and entry["revision"] == vit.repository.branches["main"]
    assert {file: facts["sha256"] for file, facts in entry["files"].items()} == {
        file: hashlib.sha256(content).hexdigest() for file, content in MODEL.items()
    }
    assert entry["files"]["config.json"]["bytes"] == 2


def test_a_moved_branch_is_not_followed_until_it_is_accepted(vit):
    before = vit.repository.branches["main"]
    after = vit.repository.commit({**MODEL, "model.safetensors": b"better" * 1000})
    weights.fetch_models(vit.profile)
    assert paths.snapshot("a/vit") == vit.folder and vit.folder.endswith(before)
    weights.fetch_models(vit.profile, accept=["a/vit"])
    assert paths.snapshot("a/vit").endswith(after)
    assert weights.verify("a/vit").revision == after


def test_accepting_what_the_profile_does_not_name_is_refused(vit):
    with pytest.raises(ValueError, match="a/vlt is not a hub repository of the profile tiny"):
        weights.fetch_models(vit.profile, accept=["a/vlt"])


def test_a_revision_can_be_pinned_and_another_one_is_an_error(vit):
    old = vit.repository.branches["main"]
    vit.repository.commit(MODEL, branch="v2")
    assert paths.snapshot(f"a/vit@{old}") == vit.folder
    for look in (paths.snapshot, lambda name: weights.fetch_models(profile(image_classifier=name))):
        with pytest.raises(
            ValueError, match=r"a/vit@v2 asks for the revision v2, but .*models.json records .*--accept"
        ):
            look("a/vit@v2")
    weights.fetch_models(profile(image_classifier="a/vit@v2"), accept=["a/vit"])
    assert paths.snapshot("a/vit@v2").endswith(vit.repository.branches["v2"])
    with pytest.raises(ValueError, match="asks for the revision main"):
        paths.snapshot("a/vit")


def test_what_is_there_and_recorded_needs_no_network(vit):
    vit.hub.requests.clear()
    weights.fetch_models(vit.profile)
    assert paths.snapshot("a/vit") == vit.folder
    weights.verify("a/vit")
    assert vit.hub.requests == []


def test_offline_an_incomplete_cache_is_one_sentence(vit, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    vit.hub.requests.clear()
    assert weights.fetch_models(vit.profile)["image_classifier"] == Path(vit.folder)
    os.unlink(weights_file(vit))
    for look in (lambda: paths.snapshot("a/vit"), lambda: weights.fetch_models(vit.profile)):
        with pytest.raises(FileNotFoundError) as error:
            look()
        for part in ("a/vit", "model.safetensors", "python -m nfx.weights", "HF_HUB_OFFLINE"):
            assert part in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"a/clip is not complete here \(it has not been fetched\)"):
        weights.fetch_models(profile(clip="a/clip"))
    assert vit.hub.requests == []


def test_a_model_that_was_not_fetched_names_the_command(hub):
    with pytest.raises(FileNotFoundError, match="a/vit has not been fetched.*python -m nfx.weights paper"):
        paths.snapshot("a/vit")


@pytest.mark.parametrize("content", [b"weights", b"Weights" * 1000], ids=["truncated", "changed"])
def test_a_damaged_file_is_noticed_and_fetched_again(vit, content):
    overwrite(weights_file(vit), content)
    for look in (paths.snapshot, lambda name: weights.file_digests(name, lambda file: True)):
        with pytest.raises(ValueError, match=r"model.safetensors has .*bytes.*were recorded.*nfx.weights paper"):
            look("a/vit")
    with pytest.raises(ValueError, match=r"model.safetensors has .*bytes.*were recorded.*nfx.weights paper"):
        weights.verify("a/vit")
    weights.fetch_models(vit.profile)
    assert Path(weights_file(vit)).read_bytes() == MODEL["model.safetensors"]
    weights.verify("a/vit")


def test_other_bytes_at_the_recorded_revision_are_refused(vit):
    vit.repository.commits[vit.repository.branches["main"]]["model.safetensors"] = b"another" * 1000
    os.unlink(weights_file(vit))
    with pytest.raises(ValueError, match="hub now has other bytes for model.safetensors at revision.*--accept a/vit"):
        weights.fetch_models(vit.profile)
    with pytest.raises(ValueError, match="other bytes"):
        weights.verify("a/vit")
    with pytest.raises(ValueError, match="other bytes"):
        weights.file_digests("a/vit", lambda file: True)


def test_bytes_that_are_not_those_of_the_list_are_not_kept(hub, monkeypatch):
    """As a proxy that changes what it passes on: the size is right, the bytes are not."""
    hub.add("a/vit", MODEL)
    sending = fake_hub._Handler._file
    monkeypatch.setattr(
        fake_hub._Handler, "_file", lambda self, n, c, file, content, from_cdn: sending(
            self, n, c, file, content.swapcase() if file == "model.safetensors" else content, from_cdn)
    )  # fmt: skip
    for _ in range(2):
        with pytest.raises(ValueError, match="model.safetensors did not come as the hub lists it.*was removed"):
            weights.fetch_models(profile(image_classifier="a/vit"))
        assert not paths.model_record().exists()
    monkeypatch.undo()


def test_digests_are_read_from_the_record_and_not_computed_anew(vit, monkeypatch):
    expected = {file: hashlib.sha256(content).hexdigest() for file, content in MODEL.items()}
    monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail(f"{path} was read"))
    assert weights.file_digests("a/vit", lambda file: True) == expected
    assert list(weights.file_digests("a/vit", lambda file: file.endswith(".safetensors"))) == ["model.safetensors"]


def test_a_copied_cache_has_other_dates_and_is_checked_once(vit, monkeypatch):
    os.utime(weights_file(vit), (1, 1))
    read = []
    monkeypatch.setattr(weights, "sha256", lambda path: read.append(path) or files.sha256(path))
    weights.file_digests("a/vit", lambda file: True)
    assert len(read) == 1
    weights.verify("a/vit")
    read.clear()
    weights.file_digests("a/vit", lambda file: True)
    assert read == []


def test_a_flipped_bit_is_seen_though_size_and_date_were_put_back(vit):
    path = Path(weights_file(vit))
    before = path.stat()
    overwrite(path, b"x" + MODEL["model.safetensors"][1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(ValueError, match="model.safetensors has other bytes .*than were recorded.*fetch those again"):
        paths.snapshot("a/vit")


def test_a_record_of_an_earlier_version_holds_and_is_completed(vit, monkeypatch):
    record = json.loads(paths.model_record().read_text())
    for facts in record["a/vit"]["files"].values():
        del facts["changed"]
    paths.model_record().write_text(json.dumps(record))
    read = []
    monkeypatch.setattr(weights, "sha256", lambda path: read.append(path) or files.sha256(path))
    assert [paths.snapshot("a/vit") for _ in range(2)] == [vit.folder] * 2
    assert len(read) == len(MODEL), "each file once a process"
    weights.verify("a/vit")
    read.clear()
    assert paths.snapshot("a/vit") == vit.folder and read == []


@pytest.mark.parametrize("harm", ["flip", "missing", "card"])
def test_a_stand_in_that_is_not_what_was_shipped_is_never_used(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    model = {"vit/model.safetensors": b"weights", "vit/config.json": b"{}", "vit/README.md": b"card", "other/a": b"a"}
    for name, content in model.items():
        (tmp_path / "shipped" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shipped" / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in model.items()}
    (tmp_path / "shipped" / "sha256.json").write_text(json.dumps(digests))
    assert paths.snapshot("shipped/vit") == str(tmp_path / "shipped" / "vit")
    path = tmp_path / "shipped" / "vit" / ("README.md" if harm == "card" else "model.safetensors")
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"weightt")
    if harm == "card":
        assert paths.snapshot("shipped/vit")
        return
    for look in (paths.snapshot, lambda name: weights.file_digests(name, lambda file: True)):
        with pytest.raises((ValueError, FileNotFoundError), match="model.safetensors .*restore it with git.*stand-ins"):
            look("shipped/vit")


def test_digests_of_a_local_folder_are_those_of_its_files(hub):
    (paths.ROOT / "here" / "unet").mkdir()
    (paths.ROOT / "here" / "unet" / "a.safetensors").write_bytes(b"a")
    (paths.ROOT / "here" / "config.json").write_bytes(b"b")
    found = weights.file_digests("here", lambda file: file.endswith(".safetensors"))
    assert found == {"unet/a.safetensors": hashlib.sha256(b"a").hexdigest()}


def test_a_connection_that_breaks_off_goes_on_within_the_call(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.add("a/vit", MODEL)
    hub.breaks["model.safetensors"] = 2
    weights.fetch_models(profile(image_classifier="a/vit"))
    assert hub.sent["model.safetensors"] <= len(MODEL["model.safetensors"]) + 2 * 100, "no whole chunk was sent twice"
    weights.verify("a/vit")


def test_a_connection_that_stays_broken_is_one_sentence_and_the_next_call_goes_on(hub):
    hub.add("a/vit", MODEL)
    hub.breaks["model.safetensors"] = 10**6
    with pytest.raises(ConnectionError, match=r"a/vit on http.*could not be fetched.*run the command again") as error:
        weights.fetch_models(profile(image_classifier="a/vit"))
    assert "\n" not in str(error.value)
    assert not paths.model_record().exists()
    with pytest.raises(FileNotFoundError, match="has not been fetched"):
        paths.snapshot("a/vit")
    hub.breaks.clear()
    hub.sent.clear()
    weights.fetch_models(profile(image_classifier="a/vit"))
    assert set(hub.sent) == {"model.safetensors"}, "what came whole is kept"
    weights.verify("a/vit")


def test_no_hub_at_all_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="a/vit on http://127.0.0.1:9 could not be fetched"):
        weights.fetch_models(profile(image_classifier="a/vit"))


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_gated_repository_says_how_to_get_in(hub, monkeypatch, token):
    hub.add("a/vit", MODEL).gated = "right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=r"a/vit on .* \((401|403)\): accept its terms .*HF_TOKEN") as error:
        weights.fetch_models(profile(image_classifier="a/vit"))
    assert ("your token" if token else "no token") in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "right")
    weights.fetch_models(profile(image_classifier="a/vit"))


@pytest.mark.parametrize("token", [None, "some"])
def test_no_such_repository(hub, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match="no model repository a/vit on http.*check its name in the profile"):
        weights.fetch_models(profile(image_classifier="a/vit"))


def test_no_such_revision(hub):
    hub.add("a/vit", MODEL)
    with pytest.raises(FileNotFoundError, match="a/vit on .* has no revision v9: check the part after @"):
        weights.fetch_models(profile(image_classifier="a/vit@v9"))


def test_a_repository_with_pickles_alone_is_refused(hub):
    hub.add("a/vit", {"config.json": b"{}", "preprocessor_config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(
        ValueError, match=r"a/vit has no safetensors weights .*models.image_classifier.*save_pretrained"
    ):
        weights.fetch_models(profile(image_classifier="a/vit"))
    hub.add("a/other", {"model.safetensors": b"w"})
    with pytest.raises(ValueError, match="a/other has no config.json.*is no model for models.clip"):
        weights.fetch_models(profile(clip="a/other"))
    assert not hub.sent


def test_weights_in_parts_come_with_their_index(hub):
    parts = {f"model-0000{n}-of-00002.safetensors": b"part%d" % n for n in (1, 2)}
    sharded = {**MODEL, **parts, "model.safetensors.index.json": b'{"weight_map": {}}'}
    del sharded["model.safetensors"]
    hub.add("a/vit", sharded)
    folder = weights.fetch_models(profile(image_classifier="a/vit"))["image_classifier"]
    assert {path.name for path in folder.iterdir()} == set(sharded)


def test_one_repository_for_two_models_has_the_files_of_both(hub):
    hub.add("a/both", {**MODEL, **TEXT})
    weights.fetch_models(profile(image_classifier="a/both"))
    folders = weights.fetch_models(profile(image_classifier="a/both", clip="a/both"))
    assert (folders["clip"] / "tokenizer.json").is_file()


def test_a_disk_too_small_is_told_before_anything_is_fetched(hub, monkeypatch):
    hub.add("a/vit", MODEL)
    hub.announced["model.safetensors"] = 5 * 10**9
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage(10**10, 10**10, 3 * 10**9))
    with pytest.raises(OSError, match=r"the models need 5\.0 GB in .*cache, which has 3\.0 GB free: .*HF_HOME"):
        weights.fetch_models(profile(image_classifier="a/vit"))
    assert not hub.sent


def test_a_disk_that_fills_up_is_one_sentence(hub, monkeypatch):
    hub.add("a/vit", MODEL)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(OSError, match=r"a/vit could not be written to .*cache \(No space left on device\): make room"):
        weights.fetch_models(profile(image_classifier="a/vit"))
    assert not paths.model_record().exists()


@pytest.mark.slow
def test_every_class_loads_from_what_was_fetched_and_asks_nobody(hub, tmp_path, monkeypatch):
    import numpy as np
    import tiny

    from nfx.data import targets
    from nfx.diffusion.fine_tuning import _snapshot_digests
    from nfx.evaluation import image_logits, video_logits
    from nfx.evaluation.decoded import model_digest

    tiny.save_models(tmp_path / "models")
    places = {"image_classifier": "vit", "video_classifier": "videomae"}
    for role, name in MODELS.items():
        home = tmp_path / "models" / places.get(role, role)
        there = (path for path in home.rglob("*") if path.is_file())
        hub.add(name, {path.relative_to(home).as_posix(): path.read_bytes() for path in there} | LEFT_OUT)
    weights.fetch_models(profile(**MODELS))
    hub.requests.clear()
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)

    def everything(models):
        captions = targets.caption_frames(frames, models["blip"])
        yield captions
        yield targets.image_embeddings(frames, models["clip"])
        yield targets.text_embeddings(captions, models["clip"])
        yield targets.text_states(captions, models["stable_diffusion"])
        yield targets.encode_latents(frames, models["stable_diffusion"])
        yield image_logits(frames, models["image_classifier"])
        yield video_logits(frames[None], models["video_classifier"])
        for role in ("clip", "image_classifier"):
            yield model_digest(models[role])
        yield targets._weights(models["stable_diffusion"])
        yield _snapshot_digests(models["stable_diffusion"])

    local = {role: str(tmp_path / "models" / places.get(role, role)) for role in MODELS}
    for fetched, original in zip(everything(MODELS), everything(local), strict=True):
        np.testing.assert_array_equal(fetched, original)
    assert hub.requests == []


def test_a_damaged_record_is_named(vit):
    for text in ("{", "[]", '{"a/vit": {"revision": "x"}}'):
        paths.model_record().write_text(text)
        with pytest.raises(ValueError, match="models.json is not a record of models: delete it"):
            paths.snapshot("a/vit")


def test_a_folder_that_is_not_there_is_told_before_anything_is_fetched(hub):
    with pytest.raises(FileNotFoundError, match="no model snapshot at"):
        weights.fetch_models(profile(clip="nfx/stand_ins/none", image_classifier="a/vit"))
    assert not hub.requests


def test_the_command_follows_the_client_s_environment(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, in a process of its own; a second one needs no network."""
    demo = tmp_path / "tiny.yaml"
    source = PROFILES / "demo.yaml"
    text = source.read_text()
    for role in ("clip", "blip", "stable_diffusion", "videomae"):
        text = text.replace(f"nfx/stand_ins/snapshots/{role}", "here")
    demo.write_text(text.replace("nfx/stand_ins/snapshots/vit", "a/vit"))
    hub.add("a/vit", MODEL).gated = "right"

    def command(**environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        run = subprocess.run(
            [sys.executable, "-m", "nfx.weights", str(demo)], capture_output=True, text=True,
            env=clean | {"NFX_ROOT": str(paths.ROOT), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
            | environment, cwd=source.parents[2],
        )  # fmt: skip
        return run.returncode, run.stdout + run.stderr

    status, output = command()
    assert status == 1 and "accept its terms" in output and "Traceback" not in output
    status, output = command(HF_TOKEN="right")
    assert status == 0, output
    assert "image_classifier: a/vit, revision" in output and "(main), 3 files, 0.00 GB, checked" in output
    assert "These revisions stay in use" in output and "--accept" in output
    assert (tmp_path / "home" / "hub" / "models--a--vit").is_dir()
    hub.requests.clear()
    assert command(HF_HUB_OFFLINE="1")[0] == 0 and command()[0] == 0
    assert hub.requests == []
