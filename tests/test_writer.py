"""The simulated data set on disk: published layout, truth, resuming."""

import nibabel
import numpy as np
import pytest

from nfx.data import clean_run, grayordinate, list_runs, networks, read_cifti, read_clips
from nfx.data.simulator import simulate_dataset, simulate_recordings, writer
from nfx.data.simulator.movie import plan_movie
from nfx.files import load_arrays, read_json, sha256
from nfx.paths import data_set
from nfx.profile import load_profile

VOLUMES = 12


def small(**update):
    """The demo with 3 training and 2 test segments of 12 volumes and a few hundred vertices."""
    profile = load_profile("demo")
    data = profile.data.model_copy(
        update={
            "subjects": (1, 2),
            "train_segments": 3,
            "test_segments": 2,
            "train_volumes": VOLUMES,
            "test_volumes": VOLUMES,
            "test_repeats": 3,
            "validation_segments": (3,),
        }
    )
    simulation = profile.simulation.model_copy(
        update={
            "signal_to_noise": (0.16, 0.1),
            "vertex_step": 40,
            "other_step": 400,
            "pretraining_subjects": 2,
            "pretraining_volumes": 20,
        }
    )
    return profile.model_copy(update={"data": data, "simulation": simulation} | update)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, sha256(p)) for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The repository of these tests, with the small data set in it."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nfx.paths.ROOT", folder)
        simulate_dataset(small())
        yield folder


def test_published_layout(root):
    folder = data_set(small())
    assert sorted(p.name for p in (folder / "stimuli").iterdir()) == [
        *(f"seg{n}.mp4" for n in (1, 2, 3)), "test1.mp4", "test2.mp4"
    ]  # fmt: skip
    for subject in (1, 2):
        runs = list_runs(folder, subject)
        assert [run[:2] for run in runs] == [
            *((f"seg{n}", r) for n in (1, 2, 3) for r in (1, 2)), *((f"test{n}", r) for n in (1, 2) for r in (1, 2, 3))
        ]  # fmt: skip
        for run in runs:
            image = nibabel.load(run.path)
            assert image.shape[0] == VOLUMES + (6 if run.segment == "test2" else 5)
            assert image.get_data_dtype() == np.float32 and image.header.get_axis(0).step == 1.0  # wrong, as published
    assert read_clips(folder / "stimuli/test2.mp4", 64).shape == (VOLUMES, 6, 64, 64, 3)


def test_files_hold_the_vertices_of_the_truth(root):
    folder = data_set(small())
    first = list_runs(folder, 1)[0].path
    cifti = read_cifti(first)
    truth = load_arrays(folder / "truth/subject1")
    np.testing.assert_array_equal(grayordinate(cifti.structure, cifti.vertex), truth["grayordinate"])
    assert nibabel.load(first).header.get_axis(1).nvertices == {
        "CIFTI_STRUCTURE_CORTEX_LEFT": 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT": 32492
    }  # fmt: skip
    assert len(truth["carries"]) == len(truth["share"]) == len(truth["noise_ceiling"]) == cifti.data.shape[1]
    silent = truth["carries"] == "nothing"
    assert not truth["share"][silent].any() and not truth["noise_ceiling"][silent].any()
    assert truth["share"][~silent].mean() == pytest.approx(0.16, rel=0.05)
    other = load_arrays(folder / "truth/subject2")
    assert other["share"][other["carries"] != "nothing"].mean() == pytest.approx(0.1, rel=0.05)
    assert np.isin(networks(truth["grayordinate"][truth["carries"] == "context"]), "DefaultA").all()


def test_repeats_share_the_signal(root):
    folder = data_set(small())
    truth = load_arrays(folder / "truth/subject1")
    runs = {run[:2]: clean_run(read_cifti(run.path).data, VOLUMES) for run in list_runs(folder, 1)}
    pairs = [(runs[f"seg{n}", 1], runs[f"seg{n}", 2]) for n in (1, 2, 3)]
    pairs += [(runs[f"test{n}", 1], runs[f"test{n}", 3]) for n in (1, 2)]
    strong, silent = truth["share"] > 0.2, truth["share"] == 0
    shared = np.mean([(a * b).sum(0) / (VOLUMES - 1) for a, b in pairs], axis=0)
    assert shared[strong].mean() > 0.15 and abs(shared[silent].mean()) < 0.08
    assert not np.allclose(*pairs[0])


def test_movie_truth(root):
    told = read_json(data_set(small()) / "truth/movie.json")
    movie = plan_movie(small())
    assert list(told["segments"]) == list(movie)
    scene = told["segments"]["test2"][0]
    assert scene["start"] == 0 and sum(s["length"] for s in told["segments"]["test2"]) == VOLUMES
    assert (
        scene["caption"] == f"a {scene['colour']} {scene['object']} moving {scene['motion']} on {scene['background']}"
    )


def test_a_second_call_writes_nothing(root, monkeypatch):
    before = files(root)
    monkeypatch.setattr(writer, "_write_subject", None)
    assert simulate_dataset(small()) == data_set(small())
    assert files(root) == before


def test_missing_files_are_written_again_as_they_were(root):
    folder = data_set(small())
    before = files(folder)
    lost = ["stimuli/seg2.mp4", "subject2/fmri/test1/cifti/test1_2_Atlas.dtseries.nii"]
    for name in lost:
        (folder / name).unlink()
    simulate_dataset(small())
    after = files(folder)
    assert {name: after[name][1] for name in before if "manifest" not in name} == {
        name: before[name][1] for name in before if "manifest" not in name
    }
    assert {n for n in after if after[n] != before[n] and not n.startswith("truth/")} == set(lost)


def test_other_settings_replace_what_was_there(tmp_path, monkeypatch, root):
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    data = small().data.model_copy(
        update={"subjects": (1,), "train_segments": 2, "test_repeats": 1, "train_repeats": 1}
    )
    simulation = small().simulation.model_copy(update={"signal_to_noise": (0.16,)})
    one = small(data=data, simulation=simulation)
    folder = simulate_dataset(one)
    before = files(folder)
    fewer = data.model_copy(update={"train_segments": 1})
    simulate_dataset(small(data=fewer, simulation=simulation, seed=1))
    after = files(folder)
    assert not (folder / "stimuli/seg2.mp4").exists() and "subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii" in after
    assert all(after[n][1] != before[n][1] for n in after if n.endswith(".nii"))


def test_a_real_data_set_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    film = data_set(small()) / "stimuli/seg1.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"published")
    with pytest.raises(ValueError, match="seg1.mp4 was not written by the simulator.*data.root"):
        simulate_dataset(small())
    assert film.read_bytes() == b"published"


def test_nothing_to_simulate():
    with pytest.raises(ValueError, match="no section 'simulation'"):
        simulate_dataset(small(simulation=None))


def test_recordings(root):
    folder = simulate_recordings(small())
    paths = sorted(folder.rglob("*.dtseries.nii"))
    assert [p.relative_to(folder).parts[0] for p in paths] == ["900001", "900002"]
    assert all(p.relative_to(folder).as_posix().endswith(writer.RECORDING) for p in paths)
    first, second = (read_cifti(p) for p in paths)
    assert first.data.shape == second.data.shape and len(first.data) == 20 and not np.allclose(first.data, second.data)
    assert nibabel.load(paths[0]).header.get_axis(0).step == 2.0
    before = files(folder)
    simulate_recordings(small())
    assert files(folder) == before
