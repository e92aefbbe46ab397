import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers_dataset import frame_number, surface_sample, write_cifti, write_dataset, write_film

import nfx.data.dataset as dataset
from nfx import paths
from nfx.data import (
    clean_run,
    grayordinate,
    hierarchy_order,
    list_runs,
    load_subject,
    natural_sort,
    parcels,
    prepare_pretraining,
    prepare_stimuli,
    prepare_subject,
    read_cifti,
)
from nfx.files import load_arrays, read_manifest
from nfx.paths import data_set
from nfx.profile import load_profile

SEGMENTS, VOLUMES = 10, 12
LAYOUT = {"segments": SEGMENTS, "tests": 2, "volumes": VOLUMES, "test_repeats": 3}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The root of a project with a tiny data set, and the truth it was made from."""
    root = tmp_path_factory.mktemp("project")
    return root, write_dataset(root / "data/demo/video_fmri_dataset", **LAYOUT)


@pytest.fixture
def profile(written, tmp_path, monkeypatch):
    """A profile of that data set; its results go to a folder of the test."""
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    (tmp_path / "data").symlink_to(written[0] / "data")
    return with_data(
        load_profile("demo"),
        frame_size=32,
        train_segments=SEGMENTS,
        test_segments=2,
        train_volumes=VOLUMES,
        test_volumes=VOLUMES,
        test_repeats=3,
        validation_segments=(9, 10),
        keep=1.0,
    )


def with_data(profile, **changes):
    return profile.model_copy(update={"data": profile.data.model_copy(update=changes)})


def copy_data(profile, written, tmp_path):
    """A data set of one's own, to damage."""
    (tmp_path / "data").unlink()
    write_dataset(data_set(profile), **LAYOUT)


def test_natural_sort():
    names = ["test2", "seg10", "seg2", "seg1", "test10", "seg18"]
    assert natural_sort(names) == ["seg1", "seg2", "seg10", "seg18", "test2", "test10"]


def test_runs_are_listed_in_natural_order(written, tmp_path):
    runs = list_runs(written[0] / "data/demo/video_fmri_dataset", 1)
    names = [(run.segment, run.repeat) for run in runs]
    assert names[:2] == [("seg1", 1), ("seg1", 2)] and names[18] == ("seg10", 1) and names[-1] == ("test2", 3)
    assert len(runs) == 26 and all(run.path.is_file() for run in runs)
    with pytest.raises(FileNotFoundError, match="subject1"):
        list_runs(tmp_path, 1)


def test_stimuli(profile):
    arrays = load_arrays(prepare_stimuli(profile))
    assert arrays["train_clips"].shape == (SEGMENTS * VOLUMES, 6, 32, 32, 3)
    assert arrays["test_clips"].shape == (2 * VOLUMES, 6, 32, 32, 3)
    np.testing.assert_array_equal(arrays["train_segment"], np.repeat(np.arange(1, 11), VOLUMES))
    np.testing.assert_array_equal(arrays["test_segment"], np.repeat([1, 2], VOLUMES))
    assert frame_number(arrays["train_clips"][VOLUMES + 3, 4]) == 3 * 60 + 40


def test_subject_holds_the_averages_of_the_responding_vertices(profile, written):
    arrays = load_arrays(prepare_subject(profile, 1))
    truth = written[1]
    place = grayordinate(np.repeat(["CORTEX_LEFT", "CORTEX_RIGHT"], 20), np.r_[truth["left"], truth["right"]])
    column = np.r_[0:8, 20:28]
    inside = place[column] >= 0  # some may lie in the medial wall
    order = hierarchy_order(place[column][inside])
    np.testing.assert_array_equal(arrays["vertex"], place[column][inside][order])
    assert arrays["train_fmri"].shape == (SEGMENTS * VOLUMES, inside.sum()) and arrays["train_fmri"].dtype == np.float32

    folder = data_set(profile) / "subject1/fmri/seg10/cifti"
    runs = [clean_run(read_cifti(folder / f"seg10_{n}_Atlas.dtseries.nii").data, VOLUMES) for n in (1, 2)]
    expected = np.mean(runs, axis=0)[:, column][:, inside][:, order]
    np.testing.assert_allclose(arrays["train_fmri"][arrays["train_segment"] == 10], expected, atol=1e-6)

    # Row k of a 245- and of a 246-like run alike belongs to clip k.
    for number in (1, 2):
        found = arrays["test_fmri"][arrays["test_segment"] == number]
        signal = truth[f"test{number}"][:, inside][:, order]
        r = [np.corrcoef(found[:, v], clean_signal(signal[:, v]))[0, 1] for v in range(found.shape[1])]
        assert np.median(r) > 0.9
    assert len(arrays["reproducibility_t"]) == (place >= 0).sum()
    assert arrays["constant_runs"].sum() == 0


def clean_signal(signal):
    return clean_run(np.r_[0, signal, np.zeros(4)][:, None], len(signal))[:, 0]


def test_held_out_data_never_touch_the_choice_or_the_training(profile, written, tmp_path):
    first = {name: np.array(array) for name, array in load_arrays(prepare_subject(profile, 1)).items()}
    copy_data(profile, written, tmp_path)
    for name in ("seg9", "seg10", "test1", "test2"):
        for run in (data_set(profile) / f"subject1/fmri/{name}/cifti").iterdir():
            data = read_cifti(run).data
            write_cifti(run, np.random.default_rng(1).normal(0, 1, data.shape), _axis(run))
    (tmp_path / "work/demo/subject1/manifest.json").unlink()
    second = load_arrays(prepare_subject(profile, 1))
    train = first["train_segment"] <= 8
    for name in ("vertex", "reproducibility_t", "reproducibility_p"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["train_fmri"][train], second["train_fmri"][train])
    assert not np.allclose(first["test_fmri"], second["test_fmri"])


def _axis(path):
    import nibabel

    return nibabel.load(path).header.get_axis(1)


def test_finished_work_is_reused_and_other_settings_are_not(profile, monkeypatch):
    folder = prepare_subject(profile, 1)
    prepare_stimuli(profile)
    facts = read_manifest(folder)["facts"]

    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(dataset, "read_cifti", fail)
    monkeypatch.setattr(dataset, "read_clips", fail)
    assert prepare_subject(with_data(profile, frame_size=48, window=3), 1) == folder  # neither concerns the fMRI
    prepare_stimuli(with_data(profile, window=3, alpha=0.05))
    assert read_manifest(folder)["facts"] == facts
    for changed in (with_data(profile, keep=0.5), with_data(profile, exclude_runs=("subject1/test2_3",))):
        with pytest.raises(AssertionError, match="read again"):
            prepare_subject(changed, 1)
    with pytest.raises(AssertionError, match="read again"):
        prepare_stimuli(with_data(profile, frame_size=48))


def test_examples_of_a_subject(profile):
    prepare_subject(profile, 1)
    subject = load_subject(profile, 1)
    arrays = load_arrays(prepare_subject(profile, 1))
    voxels = len(subject.vertex)
    assert subject.train.fmri.shape == (8 * VOLUMES, 2, voxels) and subject.train.fmri.dtype == np.float32
    assert subject.validation.fmri.shape == (2 * VOLUMES, 2, voxels)
    assert subject.test.fmri.shape == (2 * VOLUMES, 2, voxels)
    assert set(subject.train.segment) == set(range(1, 9)) and set(subject.validation.segment) == {9, 10}
    assert set(subject.test.segment) == {1, 2}
    for part, fmri in ((subject.train, "train_fmri"), (subject.validation, "train_fmri"), (subject.test, "test_fmri")):
        np.testing.assert_array_equal(part.fmri[:, 0], arrays[fmri][part.clip])
    end = VOLUMES - 1
    np.testing.assert_array_equal(subject.train.fmri[end, 1], subject.train.fmri[end, 0])
    with pytest.raises(ValueError, match="subject is 4"):
        load_subject(profile, 4)


def test_excluded_runs_are_not_averaged(profile):
    excluding = with_data(profile, exclude_runs=("subject1/test2_2", "subject3/test1_1"))
    arrays = load_arrays(prepare_subject(excluding, 1))
    every = {name: np.array(array) for name, array in arrays.items()}
    arrays = load_arrays(prepare_subject(profile, 1))
    second = arrays["test_segment"] == 2
    np.testing.assert_array_equal(every["test_fmri"][~second], arrays["test_fmri"][~second])
    assert not np.allclose(every["test_fmri"][second], arrays["test_fmri"][second])
    with pytest.raises(ValueError, match="subject3/test2_9"):
        prepare_subject(with_data(profile, exclude_runs=("test2_9",)), 1)
    none = tuple(f"subject1/test2_{n}" for n in (1, 2, 3))
    with pytest.raises(ValueError, match="leaves no run of subject1/test2"):
        prepare_subject(with_data(profile, exclude_runs=none), 1)


def test_missing_and_damaged_files_are_named(profile, written, tmp_path):
    with pytest.raises(FileNotFoundError, match="subject2.*01_data_preparation"):
        prepare_subject(profile, 2)
    with pytest.raises(FileNotFoundError, match="01_data_preparation"):
        load_subject(profile, 2)
    with pytest.raises(ValueError, match="subject is 7"):
        prepare_subject(profile, 7)
    copy_data(profile, written, tmp_path)
    run = data_set(profile) / "subject1/fmri/test2/cifti/test2_2_Atlas.dtseries.nii"
    cifti, axis = read_cifti(run), _axis(run)
    write_cifti(run, cifti.data[:-3], axis)
    with pytest.raises(ValueError, match="test2_2_Atlas.dtseries.nii: The run has 15 volumes; 17 or 18"):
        prepare_subject(profile, 1)
    write_cifti(run, cifti.data[:, :-1], axis[:-1])
    with pytest.raises(ValueError, match="test2_2_Atlas.dtseries.nii has other grayordinates"):
        prepare_subject(profile, 1)
    run.unlink()
    with pytest.raises(FileNotFoundError, match="test2_2_Atlas.dtseries.nii missing.*simulator"):
        prepare_subject(profile, 1)
    assert not (tmp_path / "work/demo/subject1/manifest.json").exists()
    film = data_set(profile) / "stimuli/seg3.mp4"
    write_film(film, range(60))
    with pytest.raises(ValueError, match="seg3.mp4 lasts 2.00 s; 12 clips"):
        prepare_stimuli(profile)
    film.unlink()
    with pytest.raises(FileNotFoundError, match="seg3.mp4 missing"):
        prepare_stimuli(profile)
    left = {path.name for path in (tmp_path / "work/demo/stimuli").iterdir()}
    assert left == {".being_made", ".pieces"}


@pytest.mark.parametrize("prepare", [prepare_stimuli, lambda profile: prepare_subject(profile, 1)])
def test_missing_files_of_the_published_set_name_the_command_that_fetches_them(tmp_path, monkeypatch, prepare):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    command = "nfx fetch paper --only data .*fetches doi:10.4231/R7SF2TCW into"
    with pytest.raises(FileNotFoundError, match=command) as told:
        prepare(load_profile("paper"))
    assert str(data_set(load_profile("paper"))) in str(told.value) and len(str(told.value).splitlines()) == 1


def test_recordings_to_pretrain_on(profile, tmp_path):
    (tmp_path / "data").unlink()
    with pytest.raises(FileNotFoundError, match="hcp holds no recording.*notebook 01"):
        prepare_pretraining(profile)
    left, right = np.arange(0, 32492, 20), np.arange(7, 32492, 20)
    rng = np.random.default_rng(0)
    bolds = {10: rng.normal(1e3, 10, (30, 3250)), 2: rng.normal(1e3, 10, (40, 3250))}
    for subject, bold in bolds.items():
        path = tmp_path / f"data/demo/hcp/{subject}/rest_Atlas.dtseries.nii"
        write_cifti(path, bold, surface_sample(left, right))
    arrays = load_arrays(prepare_pretraining(profile))
    area = [name[2:] for name in parcels(arrays["vertex"])]
    assert set(area) == {"V1", "V2", "V3", "V4"} and area == sorted(area)
    assert arrays["fmri"].shape == (70, len(area)) and arrays["fmri"].dtype == np.float32
    assert arrays["recording"].tolist() == [1] * 40 + [2] * 30  # natural order: subject 2 before 10
    place = grayordinate(np.repeat(["CORTEX_LEFT", "CORTEX_RIGHT"], 1625), np.r_[left, right])
    column = [np.flatnonzero(place == vertex)[0] for vertex in arrays["vertex"]]
    padded = np.r_[bolds[2][:1], bolds[2], bolds[2][:4]].astype(np.float32)
    np.testing.assert_allclose(arrays["fmri"][:40], clean_run(padded, 40)[:, column], atol=1e-5)


# --- going on after an interruption --------------------------------------------------------------------------


class Stopped(BaseException):
    """As a kill: not caught by any handler of errors."""


def stopping(monkeypatch, name, after):
    """Let a function of the module be called `after` times, then stop; returns the list of the files it was given."""
    real, calls = getattr(dataset, name), []

    def counted(path, *arguments):
        if len(calls) == after:
            raise Stopped
        calls.append(path.name)
        return real(path, *arguments)

    monkeypatch.setattr(dataset, name, counted)
    return calls


def contents(folder):
    """Bytes of every array, and the facts."""
    arrays = {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}
    return arrays, read_manifest(folder)["facts"]


def test_an_interrupted_subject_goes_on_where_it_was(profile, tmp_path, monkeypatch):
    expected = contents(prepare_subject(profile, 1))
    folder = (tmp_path / "work/demo/subject1").rename(tmp_path / "work/demo/whole").with_name("subject1")
    whole, wanted = 1 + 2 * 8 + 2 * 10 + 2 * 3, []
    for after in (6, 20, 17):  # in the comparison of repeats, in the averages, in the averages
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            wanted.append(stopping(patch, "read_cifti", after))
            prepare_subject(profile, 1)
        assert not (folder / "manifest.json").exists() and not list(folder.glob("*.npy"))
    last = stopping(monkeypatch, "read_cifti", 10**9)
    prepare_subject(profile, 1)
    # Again each time: the first run, for the grayordinates, and at most two of a segment that was begun.
    assert [len(calls) for calls in wanted] == [6, 20, 17] and sum(map(len, wanted)) + len(last) <= whole + 3 * 3
    assert contents(folder) == expected
    assert not (folder / ".pieces").exists()


def test_a_recording_that_was_replaced_meanwhile_is_read_again(profile, written, tmp_path, monkeypatch):
    copy_data(profile, written, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping(patch, "read_cifti", 1 + 2 * 8 + 2 * 10 + 3)
        prepare_subject(profile, 1)
    run = data_set(profile) / "subject1/fmri/seg9/cifti/seg9_2_Atlas.dtseries.nii"  # held out: for its average alone
    write_cifti(run, np.random.default_rng(1).normal(0, 1, read_cifti(run).data.shape), _axis(run))
    calls = stopping(monkeypatch, "read_cifti", 10**9)
    resumed = contents(prepare_subject(profile, 1))
    again = ("seg9_1", "seg9_2", "test2_1", "test2_2", "test2_3")  # the replaced one's segment, and what was left
    assert sorted(calls[1:]) == [f"{name}_Atlas.dtseries.nii" for name in again]
    (tmp_path / "work/demo/subject1/manifest.json").unlink()
    assert contents(prepare_subject(profile, 1)) == resumed


def test_interrupted_stimuli_go_on_where_they_were(profile, tmp_path, monkeypatch):
    expected = contents(prepare_stimuli(profile))
    folder = (tmp_path / "work/demo/stimuli").rename(tmp_path / "work/demo/whole").with_name("stimuli")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        first = stopping(patch, "read_clips", 5)
        prepare_stimuli(profile)
    second = stopping(monkeypatch, "read_clips", 10**9)
    prepare_stimuli(profile)
    assert sorted(first + second) == sorted(f"{name}.mp4" for name in dataset.film_paths(profile))
    assert contents(folder) == expected
    assert not (folder / ".pieces").exists()


def write_recordings(folder, lengths, columns=3250, name="rest_Atlas.dtseries.nii"):
    """Unlabelled recordings {person: volumes} of 3250 vertices of the cortex; returns their data."""
    left, right = np.arange(0, 32492, 20), np.arange(7, 32492, 20)
    rng = np.random.default_rng(0)
    bolds = {person: rng.normal(1e3, 10, (length, columns)).astype(np.float32) for person, length in lengths.items()}
    for person, bold in bolds.items():
        write_cifti(folder / str(person) / name, bold, surface_sample(left, right))
    return bolds


def with_pretraining(profile, **changes):
    return profile.model_copy(update={"pretraining": profile.pretraining.model_copy(update=changes)})


def test_interrupted_recordings_go_on_where_they_were(profile, tmp_path, monkeypatch):
    (tmp_path / "data").unlink()
    write_recordings(tmp_path / "data/demo/hcp", {1: 12, 2: 14, 3: 16})
    expected = contents(prepare_pretraining(profile))
    folder = (tmp_path / "work/demo/pretraining/data").rename(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping(patch, "read_cifti", 3)
        prepare_pretraining(profile)
    calls = stopping(monkeypatch, "read_cifti", 10**9)
    assert contents(prepare_pretraining(profile)) == expected and len(calls) == 2
    assert expected[1].keys() == {"recordings", "data", "root", "simulation", "seed"}  # as before there was averaging
    assert folder.is_dir()


def test_volumes_are_averaged_before_they_are_cleaned(profile, tmp_path):
    (tmp_path / "data").unlink()
    name = "MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"
    bolds = write_recordings(tmp_path / "data/demo/hcp", {100307: 120, 99: 67}, name=name)
    write_recordings(tmp_path / "data/demo/hcp", {100307: 120}, name=name.replace("REST1", "REST2"))
    pattern = load_profile("paper").pretraining.recordings
    averaging = with_pretraining(profile, recordings=pattern, volumes_averaged=10)
    folder = prepare_pretraining(averaging)
    arrays = load_arrays(folder)
    assert arrays["recording"].tolist() == [1] * 6 + [2] * 12  # 7 volumes are left over in the first
    place = grayordinate(np.repeat(["CORTEX_LEFT", "CORTEX_RIGHT"], 1625), np.r_[0:32492:20, 7:32492:20])
    column = [np.flatnonzero(place == vertex)[0] for vertex in arrays["vertex"]]
    means = np.stack([bolds[100307][10 * k : 10 * k + 10].astype(np.float64).mean(0) for k in range(12)])
    padded = np.r_[means[:1], means, means[:4]].astype(np.float32)
    np.testing.assert_allclose(arrays["fmri"][6:], clean_run(padded, 12)[:, column], atol=1e-4)
    assert read_manifest(folder)["facts"]["volumes_averaged"] == 10
    with pytest.raises(ValueError, match="99/.*: 4 volumes cannot be detrended"):
        prepare_pretraining(with_pretraining(averaging, volumes_averaged=15))
    with pytest.raises(FileNotFoundError, match=r"hcp holds no recording \(\*/rest.dtseries.nii\)"):
        prepare_pretraining(with_pretraining(averaging, recordings="*/rest.dtseries.nii"))


# --- memory --------------------------------------------------------------------------------------------------


def peak_of_preparing(folder, profile, segments, monkeypatch):
    """Largest memory, bytes, while a subject with so many segments of 1.6 MB a run is prepared."""
    monkeypatch.setattr("nfx.paths.ROOT", folder)
    volumes, rng = 400, np.random.default_rng(0)
    outside_medial_wall = np.arange(15000, 15500)
    brain = surface_sample(outside_medial_wall, outside_medial_wall)
    names = [f"seg{n}" for n in range(1, segments + 1)] + [f"test{n}" for n in range(1, segments + 1)]
    for name in names:
        signal = rng.standard_normal((volumes + 5, len(brain)), dtype=np.float32)
        for repeat in (1, 2):
            path = data_set(profile) / f"subject1/fmri/{name}/cifti/{name}_{repeat}_Atlas.dtseries.nii"
            write_cifti(path, signal + 0.05 * rng.standard_normal(signal.shape, dtype=np.float32), brain)
    of_this_size = with_data(
        profile, train_segments=segments, test_segments=segments, train_volumes=volumes, test_volumes=volumes,
        train_repeats=2, test_repeats=2, validation_segments=(segments,), keep=1.0, alpha=0.99,
    )  # fmt: skip
    tracemalloc.start()
    try:
        arrays = load_arrays(prepare_subject(of_this_size, 1))
        assert arrays["train_fmri"].nbytes > segments * 1.2e6  # enough to be seen, if it were held
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_runs(profile, tmp_path, monkeypatch):
    prepare_subject(profile, 1)  # what is imported and cached once is none of it
    few, many = (peak_of_preparing(tmp_path / str(n), profile, n, monkeypatch) for n in (5, 10))
    # 20 more runs have 32 MB, the averages of 5 more segments 8 MB; half of one is allowed for lists and tables.
    assert many - few < 0.8e6, f"{few / 1e6:.1f} MB for 5 segments, {many / 1e6:.1f} MB for 10"
    assert few < 16e6  # ten runs: raw and cleaned ones, the correlation's in float64; the atlas takes 9 MB for a moment


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from nfx.data import grayordinate, read_cifti
from nfx.data.dataset import Run, _read_run

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

path = Path(sys.argv[1])
brain = read_cifti(path)[1:]
columns = np.flatnonzero(grayordinate(*brain) >= 0)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = status("VmRSS")
cleaned, constant = _read_run(Run("seg1", 1, path), 240, columns, brain)
print(status("VmHWM") - before, len(columns), constant.sum(), cleaned.shape)
np.save(path.with_name("some.npy"), cleaned[:, ::5000])
"""


@pytest.mark.slow
def test_a_run_of_the_published_size_is_read_in_the_memory_of_three(tmp_path):
    from nibabel.cifti2 import BrainModelAxis

    from nfx.data.voxels import _atlases

    info = _atlases().vertex_info
    brain = surface_sample(info.grayl, info.grayr)
    brain += BrainModelAxis.from_mask(np.ones((91282 - 59412, 1, 1), bool), name="OTHER", affine=np.eye(4))
    bold = np.random.default_rng(0).standard_normal((245, 91282), dtype=np.float32) * 100 + 10000
    bold += (np.linspace(-1, 1, 245, dtype=np.float32) ** 3 * 500)[:, None]
    path = write_cifti(tmp_path / "seg1_1_Atlas.dtseries.nii", bold, brain)
    cifti = read_cifti(path)
    np.testing.assert_array_equal(cifti.data, bold)
    place = grayordinate(cifti.structure, cifti.vertex)
    np.testing.assert_array_equal(place[:59412], np.arange(59412))
    assert (place[59412:] == -1).all()
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process's memory is measured on Linux")
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak, columns, constant, shape = run.stdout.split(maxsplit=3)
    assert (int(columns), int(constant), shape.strip()) == (59412, 0, "(240, 59412)")
    t = np.linspace(0, 1, 240)
    for cleaned, raw in zip(np.load(tmp_path / "some.npy").T, bold[1:241, :59412:5000].T, strict=True):
        residual = raw - np.polyval(np.polyfit(t, raw.astype(np.float64), 4), t)
        np.testing.assert_allclose(cleaned, residual / residual.std(ddof=1), atol=1e-4)
    # The file (mapped), its copy in float32, and of the cortex the raw and the cleaned columns: 2 to 3 runs.
    assert int(peak) < 3 * bold.nbytes, f"{int(peak) / bold.nbytes:.1f} times the run's {bold.nbytes / 1e6:.0f} MB"
