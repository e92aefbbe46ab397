"""nfx.data.derivatives: recordings prepared with fMRIPrep go the way of the published ones."""

import json
import shutil

import numpy as np
import pytest
import yaml
from helpers_dataset import SURFACE, frame_number, surface_sample, write_film
from nibabel import save
from nibabel.cifti2 import Cifti2Image, SeriesAxis

from nfx.data import (
    clean_film,
    film_weights,
    grayordinate,
    load_subject,
    prepare_stimuli,
    prepare_subject,
    read_cifti,
    subject_runs,
)
from nfx.data.derivatives import film_paths, load_recordings, showings
from nfx.files import load_arrays, read_manifest
from nfx.profile import load_profile

VOLUMES = 14  # clips of each film
TRAIN, TEST = 6, 1
DELAY = 4.0
FILMS = [f"films/part{n}.mp4" for n in range(1, TRAIN + 1)]  # segment k is the k-th entry, whatever its name
BRAIN = surface_sample(np.arange(0, SURFACE, 900), np.arange(450, SURFACE, 900))
CARRIES = np.flatnonzero(grayordinate(BRAIN.name, BRAIN.vertex) >= 0)[::4]
DESCRIPTION = {
    "derivatives": "mine/derivatives/fmriprep",
    "bids": "mine/bids",
    "stimuli": "mine/bids/stimuli",
    "task": "movie",
    "suffix": "space-fsLR_den-91k_bold",
    "subjects": {1: "01"},
    "train": FILMS,
    "test": [{"film": "films/last.mp4", "event": "the last one"}],
    "events_column": "stim_file",
    "other_events": ["fixation"],
    "delay": DELAY,
}


def planted(seed=0):
    """The response to every clip in the vertices that carry one: {event: (clips, carrying vertices)}."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((VOLUMES, len(CARRIES))) for name in (*FILMS, "the last one")}


def write_run(root, session, run, shown, step, seed, sidecar=True):
    """One run: events and a recording, in which a volume has the response of the clip `DELAY` before its middle.

    shown : [(onset, event), ...]
    """
    rng, responses = np.random.default_rng(seed), planted()
    stem = f"sub-01_ses-{session}_task-movie_run-{run}"
    volumes = int(np.ceil((shown[-1][0] + 2 * VOLUMES + DELAY + 3) / step))
    middle = (np.arange(volumes) + 0.5) * step
    bold = 0.15 * rng.standard_normal((volumes, len(BRAIN)))
    for onset, event in shown:
        clip = np.floor((middle - DELAY - onset) / 2).astype(int)
        inside = (clip >= 0) & (clip < VOLUMES)
        bold[np.ix_(inside, CARRIES)] += responses[event][clip[inside]]
    bold = 1000 + 10 * bold + np.linspace(0, 40, volumes)[:, None] ** 2 / 40
    func = root / "derivatives/fmriprep/sub-01" / f"ses-{session}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    header = (SeriesAxis(0, 9.9 if sidecar else step, volumes), BRAIN)  # where there is a sidecar, it holds
    save(Cifti2Image(bold.astype(np.float32), header), func / f"{stem}_space-fsLR_den-91k_bold.dtseries.nii")
    if sidecar:
        (func / f"{stem}_space-fsLR_den-91k_bold.json").write_text(json.dumps({"RepetitionTime": step}))
    rows = ["onset\tduration\tstim_file\tresponse"]
    for onset, event in shown:
        rows += [f"{onset - 3:g}\t3\tfixation\tn/a", f"{onset:g}\t{2 * VOLUMES}\t{event}\tn/a"]
    rows.append(f"{shown[-1][0] + 1:g}\t0\tn/a\tpressed")
    events = root / "bids/sub-01" / f"ses-{session}" / "func" / f"{stem}_events.tsv"
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text("\n".join(rows) + "\n")


def write_all(root, step, sidecar=True):
    """Two sessions: in the first each training film once, two in a run, in the second again, backwards; 3 tests."""
    spacing = 2 * VOLUMES + 9.0
    for session, films in (("a", FILMS), ("b", FILMS[::-1])):
        for run in range(1, 4):
            pair = films[2 * run - 2 : 2 * run]
            shown = [(6.5 + spacing * k, film) for k, film in enumerate(pair)]
            write_run(root, session, run, shown, step, hash_of(session, run), sidecar)
    write_run(root, "b", 10, [(8.0, "the last one")], step, 100, sidecar)  # after run 3, as a number
    write_run(root, "b", 9, [(4.0, "the last one"), (4.0 + spacing, "the last one")], step, 101, sidecar)
    for number, film in enumerate((*FILMS, "films/last.mp4")):
        write_film(root / "bids/stimuli" / film, range(number, number + 25 * 2 * VOLUMES), rate=25)


def hash_of(session, run):
    return {"a": 10, "b": 20}[session] + run


@pytest.fixture(scope="module", params=[1.0, 1.5, 2.0])
def written(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(f"tr{request.param}")
    write_all(root / "mine", request.param, sidecar=request.param != 1.5)
    (root / "mine.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    return root, request.param


def profile_of(**changes):
    """The paper's profile, with data of this size."""
    paper = load_profile("paper")
    data = {
        "root": "data", "recordings": "mine.yaml", "subjects": (1,), "frame_size": 32, "train_segments": TRAIN,
        "test_segments": TEST, "train_volumes": VOLUMES, "test_volumes": VOLUMES, "train_repeats": 2, "test_repeats": 3,
        "validation_segments": (6,), "exclude_runs": (), "keep": 1.0,
    }  # fmt: skip
    return paper.model_copy(update={"data": paper.data.model_copy(update=data | changes)})


@pytest.fixture
def profile(written, tmp_path, monkeypatch):
    """A profile of what was written; its results, and a description to change, are the test's own."""
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    (tmp_path / "mine").symlink_to(written[0] / "mine")
    shutil.copy(written[0] / "mine.yaml", tmp_path)
    return profile_of()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two short runs of one's own, to damage."""
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    for session in "ab":
        write_run(tmp_path / "mine", session, 1, [(6.0, film) for film in FILMS[:1]], 1.0, 1)
        write_run(tmp_path / "mine", session, 2, [(6.0, FILMS[1])], 1.0, 2)
    write_run(tmp_path / "mine", "b", 3, [(6.0, "the last one")], 1.0, 3)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(DESCRIPTION | {"train": FILMS[:2]}))
    return profile_of(train_segments=2, test_repeats=1, validation_segments=())


def change(root, **keys):
    """Change keys of the description; None removes one."""
    content = DESCRIPTION | {"train": FILMS[:2]} | keys
    (root / "mine.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


def events(root, session="a", run=1):
    return root / f"mine/bids/sub-01/ses-{session}/func/sub-01_ses-{session}_task-movie_run-{run}_events.tsv"


def recording(root, session="a", run=1):
    name = f"sub-01_ses-{session}_task-movie_run-{run}_space-fsLR_den-91k_bold.dtseries.nii"
    return root / f"mine/derivatives/fmriprep/sub-01/ses-{session}/func" / name


def test_showings_are_numbered_by_session_run_and_onset(profile, written):
    runs = subject_runs(profile, 1)
    assert [run[:2] for run in runs] == [*((f"seg{n}", r) for n in range(1, 7) for r in (1, 2)),
                                         *(("test1", r) for r in (1, 2, 3))]  # fmt: skip
    second = runs[2]
    assert "ses-a" in second.path.name and second.start == pytest.approx(6.5 + 2 * VOLUMES + 9 + DELAY)
    assert second.repetition_time == written[1]
    assert "ses-b" in runs[3].path.name and "run-3" in runs[3].path.name
    assert ["run-9" in run.path.name for run in runs[-3:]] == [True, True, False]  # run 9 before run 10
    assert [run.start for run in runs[-3:]] == [8.0, 8.0 + 2 * VOLUMES + 9, 12.0]


def test_planted_responses_come_out_in_their_clips(profile):
    arrays = load_arrays(prepare_subject(profile, 1))
    responses = planted()
    place = grayordinate(BRAIN.name, BRAIN.vertex)
    assert set(arrays["vertex"]) <= set(place[CARRIES]) and len(arrays["vertex"]) >= 4  # at P < 0.01, corrected
    column = [int(np.flatnonzero(place[CARRIES] == vertex)[0]) for vertex in arrays["vertex"]]
    assert arrays["train_fmri"].shape == (TRAIN * VOLUMES, len(column))
    parts = [("train", n, film) for n, film in enumerate(FILMS, 1)] + [("test", 1, "the last one")]
    for part, number, film in parts:
        found = arrays[f"{part}_fmri"][arrays[f"{part}_segment"] == number]
        truth = responses[film][:, column]
        time = np.linspace(-1, 1, VOLUMES)
        drift = np.polynomial.polynomial.polyvander(time, 4)  # the cleaning takes it out of the truth too
        truth = truth - drift @ np.linalg.lstsq(drift, truth, rcond=None)[0]
        r = {
            shift: np.corrcoef(found[1:-1].ravel(), np.roll(truth, shift, 0)[1:-1].ravel())[0, 1]
            for shift in (-1, 0, 1)
        }
        assert r[0] > 0.8 and max(r[-1], r[1]) < 0.5, (film, r)


def test_the_whole_way_to_the_examples(profile):
    stimuli = load_arrays(prepare_stimuli(profile))
    assert stimuli["train_clips"].shape == (TRAIN * VOLUMES, 6, 32, 32, 3)
    assert frame_number(stimuli["train_clips"][VOLUMES * 2 + 3, 3]) == 2 + 3 * 50 + 25  # the third film, at 25 frames
    prepare_subject(profile, 1)
    parts = load_subject(profile, 1)
    assert set(parts.validation.segment) == {6} and len(parts.train.clip) == 5 * VOLUMES
    assert parts.test.fmri.shape == (VOLUMES, 2, len(parts.vertex))
    with pytest.raises(ValueError, match="leaves no run of subject1/test1"):
        prepare_subject(profile_of(exclude_runs=tuple(f"subject1/test1_{n}" for n in (1, 2, 3))), 1)


def test_an_excluded_showing_is_not_averaged(profile):
    whole = np.array(load_arrays(prepare_subject(profile, 1))["test_fmri"])
    excluding = profile_of(exclude_runs=("subject1/test1_2",))
    runs = [run for run in subject_runs(excluding, 1) if run[:2] in (("test1", 1), ("test1", 3))]
    arrays = load_arrays(prepare_subject(excluding, 1))
    place = grayordinate(BRAIN.name, BRAIN.vertex)
    column = [int(np.flatnonzero(place == vertex)[0]) for vertex in arrays["vertex"]]
    expected = np.mean([clean_film(run, read_cifti(run.path).data, VOLUMES)[:, column] for run in runs], axis=0)
    np.testing.assert_allclose(arrays["test_fmri"], expected, atol=1e-6)
    assert not np.allclose(arrays["test_fmri"], whole)


def test_a_showing_without_its_recording_can_be_excluded(small, tmp_path):
    write_run(tmp_path / "mine", "b", 4, [(6.0, "the last one")], 1.0, 4)
    recording(tmp_path, "b", 3).unlink()
    changes = {"train_segments": 2, "test_repeats": 2, "validation_segments": (), "alpha": 0.99}
    with pytest.raises(FileNotFoundError, match="ses-b_task-movie_run-3.*missing"):
        prepare_subject(profile_of(**changes), 1)
    arrays = load_arrays(prepare_subject(profile_of(**changes, exclude_runs=("subject1/test1_1",)), 1))
    run = subject_runs(profile_of(**changes), 1)[-1]
    assert run[:2] == ("test1", 2) and "run-4" in run.path.name  # its number is not taken by the next
    place = grayordinate(BRAIN.name, BRAIN.vertex)
    column = [int(np.flatnonzero(place == vertex)[0]) for vertex in arrays["vertex"]]
    expected = clean_film(run, read_cifti(run.path).data, VOLUMES)[:, column]
    np.testing.assert_allclose(arrays["test_fmri"], expected, atol=1e-6)


def test_volumes_of_2_s_on_an_aligned_onset_are_a_slice(small):
    run = subject_runs(small, 1)[0]._replace(repetition_time=2.0)
    weights = film_weights(run, 30, VOLUMES)
    np.testing.assert_array_equal(weights, np.eye(30)[5 : 5 + VOLUMES])  # (6 + 4) / 2


def test_finished_work_is_reused_until_events_or_description_change(small, tmp_path, monkeypatch):
    small = profile_of(train_segments=2, test_repeats=1, validation_segments=(), alpha=0.99)
    folder = prepare_subject(small, 1)
    facts = read_manifest(folder)["facts"]
    assert not str(facts).count(str(tmp_path))  # the repository can be moved

    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("nfx.data.dataset.read_cifti", fail)
    assert prepare_subject(small, 1) == folder
    text = events(tmp_path).read_text()
    events(tmp_path).write_text(text.replace("\n6\t", "\n6.25\t"))
    with pytest.raises(AssertionError, match="read again"):
        prepare_subject(small, 1)
    events(tmp_path).write_text(text)
    change(tmp_path, delay=5.0)
    with pytest.raises(AssertionError, match="read again"):
        prepare_subject(small, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fims": 3}, r"mine\.yaml: unknown key 'fims' \(value 3\); see docs/other_data.md"),
        ({"task": None}, "key 'task' is missing"),
        ({"delay": -1.0}, "'delay' is -1.0: input should be greater than or equal to 0"),
        ({"delay": "4"}, "'delay' is '4'"),
        ({"subjects": {1: 1}}, "'subjects.1' is 1: .*quotation marks, without sub-"),
        ({"subjects": {1: "sub-01"}}, "'subjects.1' is 'sub-01'.*without sub-"),
        ({"subjects": {2: "02"}}, "subjects gives no label of subject 1"),
        ({"train": FILMS[:1]}, "train lists 1 films, but data.train_segments is 2"),
        ({"test": []}, "'test' is"),
        ({"test": [FILMS[0]]}, "film 'films/part1.mp4' comes twice"),
        ({"other_events": ["the last one"]}, "'the last one' is the event of a film and in other_events"),
        ({"test": [{"film": "a.mp4"}]}, "key 'test.0.event' is missing"),
    ],
)
def test_a_mistake_in_the_description_is_one_sentence(small, tmp_path, keys, message):
    change(tmp_path, **keys)
    with pytest.raises(ValueError, match=message) as caught:
        load_recordings(small)
    assert str(tmp_path / "mine.yaml") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", ""])
def test_a_file_that_is_no_description(small, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        load_recordings(small)


def test_a_description_that_is_not_there(small, tmp_path):
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="mine.yaml does not exist; data.recordings"):
        prepare_stimuli(small)


def test_films_by_segment(small, tmp_path):
    stimuli = tmp_path / "mine/bids/stimuli"
    expected = {"seg1": stimuli / FILMS[0], "seg2": stimuli / FILMS[1], "test1": stimuli / "films/last.mp4"}
    assert film_paths(small) == expected
    with pytest.raises(FileNotFoundError, match=r"part1.mp4 and 2 more film segments missing. mine.yaml says where"):
        prepare_stimuli(small)


def edit_events(old, new):
    return lambda root: events(root).write_text(events(root).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda root: recording(root).unlink(),
            FileNotFoundError,
            "run-1_space-fsLR_den-91k_bold.dtseries.nii missing",
        ),
        (lambda root: events(root).unlink(), FileNotFoundError, "run-1_events.tsv does not exist; the recording"),
        (lambda root: shutil.rmtree(root / "mine"), FileNotFoundError, "bids/sub-01 does not exist"),
        (lambda root: change(root, task="rest"), FileNotFoundError, "no events of the task 'rest'"),
        (edit_events(FILMS[0], "other.mp4"), ValueError, r"events.tsv, line 3: 'other.mp4' in the column stim_file"),
        (edit_events("stim_file", "film"), ValueError, "has no column 'stim_file'; it has"),
        (edit_events("\n6\t", "\nsoon\t"), ValueError, "line 3: onset is 'soon', expected seconds"),
        (edit_events("\n6\t", "\nn/a\t"), ValueError, "line 3: onset is 'n/a', expected seconds"),
        (edit_events("\n6\t", "\n9.5\t"), ValueError, "run-1_.*nii: The run ends before the film does: 41 volumes"),
        (edit_events("\n6\t", "\n-5\t"), ValueError, "nii: The film's first clip needs what was acquired 1 s before"),
        (edit_events("\t28\t", "\t20\t"), ValueError, "shows 'films/part1.mp4' for 20 s from 6 s on.*it has 28 s"),
        (edit_events(FILMS[0], "n/a"), ValueError, r"\(seg1\) 1 times, but data.train_repeats is 2.*subject1/seg1_2"),
        (
            lambda root: [
                edit_events(FILMS[0], FILMS[1])(root),
                events(root, "b").unlink(),
                recording(root, "b").unlink(),
            ],
            ValueError,
            r"never show 'films/part1.mp4' \(seg1\)",
        ),
        (lambda root: recording(root).with_suffix("").with_suffix(".json").write_text("[]"), ValueError, "JSON object"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(small, tmp_path, damage, error, message):
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        prepare_subject(small, 1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").rglob("manifest.json"))


@pytest.mark.parametrize("value", [0, -1.0, "2 s", True, None])
def test_a_repetition_time_that_is_missing(small, tmp_path, value):
    sidecar = tmp_path / recording(tmp_path).name.replace(".dtseries.nii", ".json")
    sidecar = recording(tmp_path).with_name(sidecar.name)
    sidecar.write_text(json.dumps({"RepetitionTime": value} if value is not None else {}))
    data = read_cifti(recording(tmp_path)).data
    save(Cifti2Image(data, (SeriesAxis(0, 0.0, len(data)), BRAIN)), recording(tmp_path))
    with pytest.raises(ValueError, match="gives no repetition time.*RepetitionTime in seconds in .*bold.json"):
        showings(small, 1)


def test_other_grayordinates(small, tmp_path):
    path = recording(tmp_path, "b", 2)
    data = read_cifti(path).data
    save(Cifti2Image(data[:, 1:], (SeriesAxis(0, 1.0, len(data)), BRAIN[1:])), path)
    with pytest.raises(ValueError, match="ses-b_task-movie_run-2.*has other grayordinates than the first"):
        prepare_subject(small, 1)


def test_without_sessions_and_with_denoised_recordings(small, tmp_path):
    root = tmp_path / "mine"
    change(tmp_path, suffix="space-fsLR_den-91k_desc-denoised_bold", task="film", other_events=[])
    for folder, ending in (("bids", "events.tsv"), ("derivatives/fmriprep", "space-fsLR_den-91k_desc-denoised_bold")):
        (root / folder / "sub-01/func").mkdir()
        for run, film in ((1, FILMS[0]), (2, FILMS[1])):
            stem = root / folder / "sub-01/func" / f"sub-01_task-film_run-{run}_{ending}"
            if folder == "bids":
                stem.write_text(f"onset\tduration\tstim_file\n6\tn/a\t{film}\n")
            else:
                shutil.copy(recording(tmp_path), f"{stem}.dtseries.nii")
                stem.with_suffix(".dtseries.json").write_text('{"RepetitionTime": 1.25}')
    runs = subject_runs(small, 1)
    assert [(run.segment, run.repeat, run.start, run.repetition_time) for run in runs] == [
        ("seg1", 1, 10.0, 1.25), ("seg2", 1, 10.0, 1.25)
    ]  # fmt: skip
    assert all(run.path.is_file() for run in runs)
