"""nfx.paths and the package's lazy names."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import nfx
from nfx import paths

PROFILE = SimpleNamespace(name="tiny", data=SimpleNamespace(root="somewhere/films"))


def test_root_is_the_repository():
    assert (paths.ROOT / "nfx" / "paths.py").is_file()


def test_folders_lie_below_the_root():
    assert paths.data_set(PROFILE) == paths.ROOT / "somewhere/films/video_fmri_dataset"
    assert paths.work(PROFILE, "encoder", "x") == paths.ROOT / "work/tiny/encoder/x"
    assert paths.figures(PROFILE) == paths.ROOT / "figures/tiny"


def test_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    paths.data_set(PROFILE), paths.work(PROFILE, "a"), paths.figures(PROFILE, "b")
    assert list(tmp_path.iterdir()) == []


def test_an_absolute_data_root_is_kept(tmp_path):
    profile = SimpleNamespace(name="tiny", data=SimpleNamespace(root=str(tmp_path)))
    assert paths.data_set(profile) == tmp_path / "video_fmri_dataset"


def test_root_follows_the_environment(tmp_path):
    code = "from nfx import paths; print(paths.ROOT)"
    environment = {"NFX_ROOT": str(tmp_path), "PYTHONPATH": str(paths.ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(tmp_path.resolve())


def test_snapshot_prefers_a_folder_and_knows_hub_names(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    assert paths.snapshot("models/clip") == str(tmp_path / "models" / "clip")
    with pytest.raises(FileNotFoundError, match="python -m nfx.weights paper"):
        paths.snapshot("openai/clip-vit-large-patch14")


def test_the_published_models_are_hub_names():
    names = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "openai/clip-vit-large-patch14", "a/b@refs/pr/4", "1_a/b.c"]
    assert all(paths.is_hub_name(name) for name in names)
    for name in ("clip", "/a/b", "./a", "../a", "nfx/none", "a/b/c", "a/b@", "a b/c"):
        assert not paths.is_hub_name(name), name


@pytest.mark.parametrize("name", ["nfx/stand_ins/none", "nfx/none", "./models/none", "/no/such/folder", "clip"])
def test_a_missing_snapshot_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="run_all.sh stand-ins"):
        paths.snapshot(name)


def test_importing_the_package_is_light():
    code = "import sys, nfx; print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FMRIDecoder'"):
        nfx.FMRIDecoder  # noqa: B018
    assert {"FMRIEncoder", "VideoUNet", "NeuralFlixPipeline"} <= set(dir(nfx))
