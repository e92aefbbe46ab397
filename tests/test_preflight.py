"""The check before a run, and how run_all.sh goes by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from helpers_dataset import write_dataset
from tiny_diffusion import stable_diffusion

from nfx import paths, preflight, weights
from nfx.files import save_arrays
from nfx.preflight import Sizes, check, faults
from nfx.profile import load_profile

SIZES = Sizes(unet=909, trained_unet=143, encoder=254, pretrained_encoder=253, autoencoder=84, latent=4096)
PAPER = load_profile("paper")


def changed(profile, **sections):
    """The profile with some settings of some sections replaced."""
    parts = {name: getattr(profile, name).model_copy(update=values) for name, values in sections.items()}
    return profile.model_copy(update=parts)


def found(rows):
    return {row.item: row.state for row in rows}


def details(rows):
    return {row.item: row.detail for row in rows}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root without anything, where no GPU is visible."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def published(root):
    """A profile and its data set: subjects 1 and 3, two film segments and two tests."""
    for subject in (1, 3):
        folder = root / "data/paper/video_fmri_dataset"
        write_dataset(folder, segments=2, tests=2, volumes=3, test_repeats=9, subject=subject)
    size = {"train_segments": 2, "test_segments": 2, "train_volumes": 3, "test_volumes": 3, "test_repeats": 9}
    return changed(PAPER, data={"subjects": (1, 3), "validation_segments": (2,), **size})


def test_everything_that_the_paper_lacks_is_named(root, monkeypatch):
    monkeypatch.setattr(preflight, "network_sizes", lambda profile: SIZES)
    table = check(PAPER)
    assert list(table.columns) == ["item", "state", "detail"]
    missing = ["data set", "pre-training", *PAPER.models.model_dump(), "GPU"]
    assert set(faults(table)) - {"disk"} == set(missing)
    detail = table.set_index("item")["detail"]
    assert "python -m nfx.data.fetch" in detail["data set"] and str(root / "data/paper") in detail["data set"]
    assert all("python -m nfx.weights paper" in detail[role] for role in PAPER.models.model_dump())
    assert not table["detail"].str.contains("\n").any()


def test_a_simulated_profile_needs_no_torch():
    code = "import sys; from nfx.preflight import main; main(['demo']); print({'torch', 'nibabel'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("set()\n")
    assert "simulated by notebook 01" in run.stdout and "folder nfx/stand_ins/snapshots/vit" in run.stdout


def test_versions_are_those_of_the_constraints(root):
    (root / "constraints.txt").write_text(
        "# a comment==1\ntorch==0.1\ndiffusers==" + preflight.metadata.version("diffusers")
    )
    assert found(preflight.packages()) == {"torch": "other version", "diffusers": "ok", "transformers": "ok"}
    assert "tested with 0.1" in details(preflight.packages())["torch"]


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(preflight, "PACKAGES", ("no-such-package",))
    assert found(preflight.packages()) == {"no-such-package": "missing"}


def test_a_whole_data_set_but_for_an_excluded_run(published):
    assert found(preflight.data(published)) == {"stimuli": "ok", "subject1": "ok", "subject3": "ok"}
    assert details(preflight.data(published))["subject3"] == "21 files"
    kept = changed(published, data={"exclude_runs": ()})
    assert found(preflight.data(kept))["subject3"] == "late"


def test_a_damaged_data_set(root, published):
    films = root / "data/paper/video_fmri_dataset/stimuli"
    (films / "seg1.mp4").unlink()
    (films / "test2.mp4").rename(films / "test_2.mp4")
    run = root / "data/paper/video_fmri_dataset/subject3/fmri/test2/cifti/test2_9_Atlas.dtseries.nii"
    run.unlink()  # which is left out
    rows = preflight.data(published)
    assert found(rows) == {"stimuli": "missing", "subject1": "ok", "subject3": "ok"}
    assert details(rows)["stimuli"].startswith("stimuli/seg1.mp4 and 1 more; python -m nfx.data.inspection")


def test_recordings_to_pretrain_on_or_an_encoder(root):
    assert preflight.pretraining(PAPER).state == "missing"
    adopted = changed(PAPER, pretraining={"snapshot": "models/dc_mae"})
    (root / "models/dc_mae").mkdir(parents=True)
    (root / "models/dc_mae/config.json").write_text("{}")
    assert preflight.pretraining(adopted).state == "missing"
    (root / "models/dc_mae/diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    assert preflight.pretraining(adopted).state == "ok"
    profile = changed(PAPER, pretraining={"recordings": "**/*.dtseries.nii"})
    (root / "data/paper/hcp/a").mkdir(parents=True)
    (root / "data/paper/hcp/a/b.dtseries.nii").write_bytes(b"")
    assert preflight.pretraining(profile).state == "ok" and "1 recordings" in preflight.pretraining(profile).detail


def test_models(root, monkeypatch):
    shutil.copytree(paths.Path(weights.__file__).parent / "stand_ins/snapshots/vit", root / "vit")
    (root / "empty").mkdir()
    monkeypatch.setattr(paths, "snapshot", lambda name: name)

    def verify(name):
        if name == "a/damaged":
            raise ValueError("has other bytes")
        return weights.Recorded("main", "0123456789abcdef", {"model.safetensors": weights.File(2 * 10**9, "", 0)})

    monkeypatch.setattr(weights, "verify", verify)
    names = {"image_classifier": "vit", "video_classifier": "empty", "clip": "a/whole", "blip": "a/damaged"}
    rows = [preflight._model(role, name) for role, name in names.items()]
    assert list(found(rows).values()) == ["ok", "missing", "ok", "damaged"]
    assert details(rows)["clip"] == "a/whole, revision 0123456789ab (main), 1 files, 2.00 GB"
    assert details(rows)["video_classifier"].endswith("empty has no config.json")


def test_the_terms_of_the_disk_at_the_paper_s_size(root):
    terms = preflight.disk_terms(PAPER, SIZES, side_by_side=2)
    clip = 6 * 256 * 256 * 3
    assert terms["film clips"] == (4320 + 1200) * clip
    assert terms["latents"] == 5520 * 6 * 4 * 32 * 32 * 4
    assert terms["embeddings"] == 2 * 5520 * 6 * 768 * 4
    assert terms["caption tokens"] == (5520 * 6 + 1) * 77 * 768 * 4
    assert terms["recordings"] == 3 * 5520 * 29706 * 4
    assert terms["13 encoders"] == (253 + 12 * 254) * 4  # as many as workflow/Snakefile has jobs
    assert terms["stage one, 4 betas"] == 4 * 909 * 4
    assert terms["15 decoders"] == 15 * (909 + 254 + 84) * 4
    assert terms["decoded clips"] == 15 * (4 * 240 + 1200) * clip + 2 * 1200 * clip
    assert terms["unfinished work of 2"] == 2 * (2 * 12 * (143 + 254) + (4 * 240 + 1200) * clip)
    fewer = changed(PAPER, sampling={"test_clips": 10, "validation_clips": 5})
    assert preflight.disk_terms(fewer, SIZES)["decoded clips"] == 15 * 15 * clip + 2 * 10 * clip


def test_pretraining_data_follow_the_recordings(root):
    profile = changed(PAPER, pretraining={"recordings": "*.nii", "volumes_averaged": 10})
    (root / "data/paper/hcp").mkdir(parents=True)
    (root / "data/paper/hcp/a.nii").write_bytes(bytes(912820))
    vertices = preflight._early_vertices()
    assert 2000 < vertices < 6000
    assert preflight.disk_terms(profile, SIZES)["pre-training data"] == vertices


def test_sizes_are_those_of_what_is_saved(root, tmp_path):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from nfx.diffusion import inflate
    from nfx.encoder import FMRIEncoder

    base = stable_diffusion(tmp_path / "sd")
    small = {"dim": 8, "depth": 1, "heads": 2, "tokens": 5, "token_dim": 12}
    profile = changed(PAPER, models={"stable_diffusion": "sd"}, encoder=small, data={"keep": 0.001, "frame_size": 16})
    sizes = preflight.network_sizes(profile)
    unet = inflate(UNet2DConditionModel.from_pretrained(base, subfolder="unet"))
    unet.save_pretrained(tmp_path / "unet")
    encoder = FMRIEncoder(voxels=60, window=2, **profile.encoder.model_dump())
    encoder.save_pretrained(tmp_path / "encoder")
    for number, folder in ((sizes.unet, "unet"), (sizes.encoder, "encoder"), (sizes.autoencoder, "sd/vae")):
        (path,) = (tmp_path / folder).glob("*.safetensors")
        tensors = preflight.FLOAT * number
        assert tensors <= path.stat().st_size < tensors + 40000, folder  # names and shapes come on top
    assert 0 < sizes.trained_unet < sizes.unet
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    assert sizes.latent == vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.numel()


def test_before_stable_diffusion_is_fetched_the_sizes_are_v1_5_s(root):
    sizes = preflight.network_sizes(PAPER)
    assert sizes.autoencoder == 83_653_863 and sizes.latent == 4 * 32 * 32
    added = sizes.unet - 859_520_964
    assert 0 < added < 0.1 * sizes.unet


def test_a_disk_too_small_and_what_is_there_already(root, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight, "network_sizes", lambda profile: SIZES)
    monkeypatch.setattr(preflight, "disk_terms", lambda *_, **__: {"a": 3 * 10**9, "b": 2 * 10**9})
    free = {"now": 5 * 10**9}
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(0, 0, free["now"]))
    *terms, whole = preflight.disk(PAPER)
    assert found(terms) == {"disk: a": "estimated", "disk: b": "estimated"} and whole.state == "ok"
    free["now"] = 5 * 10**9 - 10
    assert preflight.disk(PAPER)[-1].state == "too small"
    (root / "work/paper/stimuli").mkdir(parents=True)
    (root / "work/paper/stimuli/clips.npy").write_bytes(bytes(10))
    assert preflight.disk(PAPER)[-1].state == "ok"


def test_gpus(root, monkeypatch):
    needed = {"encoder": 60e9, "stage two": 73e9}
    assert found(preflight.gpus(PAPER, needed)) == {"GPU": "missing"}
    assert found(preflight.gpus(changed(PAPER, training={"precision": "no"}), needed)) == {"GPU": "none"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "A100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (79e9 if number else 70e9, 80e9))
    rows = preflight.gpus(PAPER, needed)
    assert found(rows) == {"GPU 0": "too small", "GPU 1": "ok"}
    assert "stage two needs 73.0 GB" in details(rows)["GPU 0"] and "79.0 GB of 80.0 GB" in details(rows)["GPU 1"]
    assert found(preflight.gpus(PAPER, "no weights")) == {"GPU 0": "ok", "GPU 1": "ok"}


def test_memory_that_cannot_be_estimated_says_why(root, monkeypatch):
    def fails(profile):
        raise FileNotFoundError("fetch the weights")

    monkeypatch.setattr(preflight, "_estimate", fails)
    (row,) = preflight._memory_rows(preflight.gpu_memory(PAPER))
    assert row == ("GPU memory", "not estimated", "fetch the weights")
    monkeypatch.setattr(preflight, "_estimate", lambda profile: {"decoding": 14e9})
    (row,) = preflight._memory_rows(preflight.gpu_memory(PAPER))
    assert row == ("GPU memory: decoding", "estimated", "14.0 GB")


def test_on_a_cluster_this_machine_s_gpus_do_not_count(root, monkeypatch):
    monkeypatch.setattr(preflight, "network_sizes", lambda profile: SIZES)
    monkeypatch.setattr(preflight, "_estimate", lambda profile: {"decoding": 14e9})
    items = list(check(PAPER, slurm=True)["item"])
    assert "GPU" not in items and "disk: unfinished work of 15" in items


def test_the_command_s_status(monkeypatch, capsys):
    table = [preflight.Row("data", "ok", "there"), preflight.Row("GPU", "none", "")]
    frame = preflight.pd.DataFrame(table)
    monkeypatch.setattr(preflight, "check", lambda profile, slurm: frame)
    preflight.main(["paper"])
    assert capsys.readouterr().out == "item  state  detail\ndata  ok     there\nGPU   none\n"
    frame.loc[1, "state"] = "missing"
    with pytest.raises(SystemExit, match="a run of 'paper' needs more than is there: GPU"):
        preflight.main(["paper"])
    assert "GPU   missing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no profile 'papre'"):
        preflight.main(["papre"])


# --- run_all.sh ----------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """run_all.sh beside a python and a snakemake that say how they were called; the check's status is given."""
    shutil.copy(paths.ROOT / "run_all.sh", tmp_path)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("python", "snakemake"):
        stub = stubs / name
        status = '[[ "$*" != "-m nfx.preflight "* ]] || exit "$STATUS"' if name == "python" else ""
        stub.write_text(f'#!/usr/bin/env bash\n[[ $1 == -c ]] || echo "{name} $*"\n{status}\n')
        stub.chmod(0o755)
    for name in ("workflow/Snakefile", "figures/paper/pipeline.mmd", "figures/demo/pipeline.mmd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("drawn")

    def run(*arguments, status):
        environment = os.environ | {
            "PATH": f"{stubs}:{os.environ['PATH']}", "CONDA_DEFAULT_ENV": "nfx", "STATUS": str(status),
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        run = subprocess.run([tmp_path / "run_all.sh", *arguments], env=environment, capture_output=True, text=True)
        called = [line.split(" --")[0] for line in run.stdout.splitlines() if line.startswith(("python", "snakemake"))]
        return SimpleNamespace(status=run.returncode, called=called, output=run.stdout + run.stderr)

    return run


@pytest.mark.parametrize("status", [0, 1])
def test_a_dry_run_shows_the_check_and_then_the_jobs(script, status):
    run = script("paper", "--dry-run", status=status)
    assert run.called == ["python -m nfx.preflight paper", "snakemake"], run.output
    assert run.status == status


def test_a_run_stops_at_the_check(script):
    run = script("paper", status=1)
    assert run.called == ["python -m nfx.preflight paper"] and run.status == 1, run.output


def test_a_run_goes_on_after_the_check(script):
    run = script("paper", status=0)
    assert run.called == ["python -m nfx.preflight paper", "snakemake"] and run.status == 0, run.output


@pytest.mark.parametrize("arguments", [(), ("demo",), ("--dry-run",)])
def test_the_demo_brings_all_it_needs(script, arguments):
    run = script(*arguments, status=1)
    assert run.called == ["snakemake"] and run.status == 0, run.output


def test_data_that_another_profile_simulated_are_not_replaced(root):
    """Two profiles of one data.root with other settings: the truth that one is scored by would be the other's."""
    demo = load_profile("demo")
    facts = {"root": demo.data.root, "seed": demo.seed, "simulation": demo.simulation, "data": {"train_segments": 18}}
    save_arrays(paths.work(demo, "stimuli"), {}, facts)
    mine = demo.model_copy(update={"name": "mine"})
    assert preflight.simulated_data(demo).state == preflight.simulated_data(mine).state == "ok"  # one data set for both
    assert preflight.simulated_data(changed(mine, data={"alpha": 0.05})).state == "ok"
    assert preflight.simulated_data(demo.model_copy(update={"seed": 1})).state == "ok"  # its own, made anew
    for other in (mine.model_copy(update={"seed": 1}), changed(mine, data={"train_segments": 3, "root": "data/demo"})):
        row = preflight.simulated_data(other)
        assert row.state in preflight.FAULTS and "'demo'" in row.detail and "data.root of its own" in row.detail
        assert preflight.simulated_data(changed(other, data={"root": "data/mine"})).state == "ok"
