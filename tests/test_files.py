"""nfx.files: whole files or none, and manifests that know what they describe."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest

from nfx import files, paths

FACTS = {"seed": 3, "betas": (0.9, 0.99), "rows": {1: 0.5}}
ARRAYS = {"fmri": np.arange(12, dtype=np.float32).reshape(3, 4), "segment": np.array([1, 1, 2])}


@pytest.fixture
def folder(tmp_path):
    files.save_arrays(tmp_path / "saved", ARRAYS, FACTS)
    return tmp_path / "saved"


def test_an_array_that_is_a_file_already_is_moved(tmp_path, folder):
    np.save(tmp_path / "large.npy", ARRAYS["fmri"])
    files.save_arrays(tmp_path / "moved", {"fmri": tmp_path / "large.npy", "segment": ARRAYS["segment"]}, FACTS)
    assert not (tmp_path / "large.npy").exists()
    assert files.read_manifest(tmp_path / "moved") == files.read_manifest(folder)
    assert (tmp_path / "moved" / "fmri.npy").read_bytes() == (folder / "fmri.npy").read_bytes()


def test_sha256_of_known_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_write_atomically_replaces_only_on_success(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with files.write_atomically(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".csv"
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(RuntimeError), files.write_atomically(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["table.csv"]


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").touch()
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_json_round_trip_and_numpy(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": np.arange(2), "z": tmp_path, "ü": "é"})
    assert files.read_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1], "z": str(tmp_path), "ü": "é"}


def test_json_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="half.json"):
        files.read_json(tmp_path / "half.json")
    with pytest.raises(ValueError, match="nan.json"):
        files.write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


def test_arrays_come_back_mapped_and_read_only(folder):
    loaded = files.load_arrays(folder, "fmri")
    assert list(loaded) == ["fmri"] and isinstance(loaded["fmri"], np.memmap)
    np.testing.assert_array_equal(loaded["fmri"], ARRAYS["fmri"])
    with pytest.raises(ValueError, match="read-only"):
        loaded["fmri"][0] = 0
    assert files.load_arrays(folder).keys() == ARRAYS.keys()


def test_manifest_tells_shapes_digests_and_versions(folder):
    manifest = files.read_manifest(folder)
    assert manifest["arrays"]["fmri"] == {
        "shape": [3, 4],
        "dtype": "<f4",
        "sha256": files.sha256(folder / "fmri.npy"),
    }
    assert manifest["facts"] == {"seed": 3, "betas": [0.9, 0.99], "rows": {"1": 0.5}}
    assert manifest["versions"]["numpy"] == np.__version__ and "git_revision" in manifest


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path):
    header = b"\x93NUMPY\x03\x00" + (0xF0000000).to_bytes(4, "little") + b"{'descr': '<f4', 'fortran_order': False}"
    (tmp_path / "a.npy").write_bytes(header)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.npy is not a whole \.npy file \(its header says .* 4026531840 bytes"):
        files.read_array(tmp_path / "a.npy")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_object_arrays_are_refused_and_leave_no_manifest(folder):
    with pytest.raises(ValueError, match="[Oo]bject"):
        files.save_arrays(folder, {"fmri": np.array([{}, 1], dtype=object)}, FACTS)
    assert not files.finished(folder, FACTS)


def test_a_name_that_is_not_listed(folder):
    with pytest.raises(ValueError, match="'voxels'.*'fmri', 'segment'"):
        files.load_arrays(folder, "voxels")


def test_damage_is_found(folder):
    with open(folder / "fmri.npy", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="fmri.npy.*damaged"):
        files.load_arrays(folder, "fmri")
    np.save(folder / "fmri.npy", ARRAYS["fmri"].reshape(4, 3))  # the same size in bytes
    with pytest.raises(ValueError, match=r"\[4, 3\].*\[3, 4\]"):
        files.load_arrays(folder, "fmri")
    (folder / "fmri.npy").unlink()
    with pytest.raises(FileNotFoundError, match="fmri.npy"):
        files.load_arrays(folder, "fmri")


@pytest.mark.parametrize(
    ("place", "notebook"),
    [
        ("subject2", "01_data_preparation"),
        ("encoder/subject1_row1", "02_encoder_contrastive_training"),
        ("stage1/beta_none", "03_diffusion_fine_tuning"),
    ],
)
def test_a_missing_result_names_the_notebook_that_makes_it(place, notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{notebook}.*profile='paper'.*run_all.sh paper"):
        files.load_arrays(tmp_path / "work" / "paper" / place, "x")


def test_finished_is_true_for_the_same_facts_alone(folder):
    assert files.finished(folder, FACTS)
    assert not files.finished(folder, FACTS | {"seed": 4})
    assert not files.finished(folder.parent / "nowhere", FACTS)


@pytest.mark.parametrize("harm", ["missing", "shorter", "no manifest", "half a manifest"])
def test_finished_is_false_after_any_harm(folder, harm):
    if harm == "missing":
        (folder / "segment.npy").unlink()
    elif harm == "shorter":
        os.truncate(folder / "segment.npy", 100)
    elif harm == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        os.truncate(folder / "manifest.json", 50)
    assert not files.finished(folder, FACTS)


def test_an_interrupted_save_leaves_no_manifest(folder, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(files.np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        files.save_arrays(folder, ARRAYS, FACTS)
    assert not files.finished(folder, FACTS)


def test_manifest_of_a_snapshot_covers_every_file_but_checkpoints(tmp_path):
    for name in ("encoder/config.json", "encoder/model.safetensors", "checkpoint/step_1/model", ".hidden", "x.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    files.write_manifest(tmp_path, FACTS)
    manifest = files.read_manifest(tmp_path)
    assert sorted(manifest["files"]) == ["encoder/config.json", "encoder/model.safetensors", "x.npy"]
    assert files.load_arrays(tmp_path, "x")["x"].shape == (2, 3)
    shutil.rmtree(tmp_path / "checkpoint")
    assert files.finished(tmp_path, FACTS)
    (tmp_path / "encoder/config.json").unlink()
    assert not files.finished(tmp_path, FACTS)


def test_a_snapshot_is_loaded_only_if_its_files_are_as_they_were_saved(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_bytes(b"weights")
    (tmp_path / "encoder.txt").write_bytes(b"beside")
    files.write_manifest(tmp_path, {})
    (tmp_path / "encoder.txt").write_bytes(b"changed")
    assert files.verified(tmp_path, "encoder") == tmp_path / "encoder"
    with pytest.raises(FileNotFoundError, match="manifest.json lists no file of unet/"):
        files.verified(tmp_path, "unet")
    (tmp_path / "encoder" / "weights").write_bytes(b"weightt")
    with pytest.raises(ValueError, match="weights has other bytes .*Delete"):
        files.verified(tmp_path, "encoder")


def test_a_listed_file_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv"):
        files.write_manifest(tmp_path, FACTS, ["none.csv"])


def test_identity_follows_content_and_nothing_else(tmp_path):
    files.save_arrays(tmp_path / "a", ARRAYS, FACTS)
    files.save_arrays(tmp_path / "b", ARRAYS, {"made": "later"})
    files.save_arrays(tmp_path / "c", ARRAYS | {"fmri": ARRAYS["fmri"] + 1}, FACTS)
    a, b, c = (files.identity(tmp_path / name) for name in "abc")
    assert a == b != c
    assert files.identity(tmp_path / "a", "segment") == files.identity(tmp_path / "c", "segment")
    with pytest.raises(ValueError, match="voxels"):
        files.identity(tmp_path / "a", "voxels")


def test_source_digest_ignores_prose_and_sees_code():
    plain = "def f(x: int) -> int:\n    return x + 1\n"
    prose = '"""Module."""\n\n# why\ndef f(x: int) -> int:\n    """Add one."""\n    return (x +\n        1)\n'
    assert files._code_of(plain) == files._code_of(prose)
    assert files._code_of(plain) != files._code_of(plain.replace("1", "2"))


def test_source_digest_takes_files_and_folders():
    assert files.source_digest("training.py") != files.source_digest("files.py")
    assert files.source_digest("data") == files.source_digest("data")
    with pytest.raises(FileNotFoundError, match="no_such"):
        files.source_digest("no_such.py")


def test_as_json_is_what_json_gives_back():
    assert files.as_json(FACTS) == json.loads('{"seed": 3, "betas": [0.9, 0.99], "rows": {"1": 0.5}}')
