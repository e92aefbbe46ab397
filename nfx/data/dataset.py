"""From the published layout to the arrays that the trainings read (Section 4.2).

    video_fmri_dataset/stimuli/seg1.mp4 ... seg18.mp4, test1.mp4 ... test5.mp4
    video_fmri_dataset/subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nfx.data.cifti import read_cifti
from nfx.data.cleaning import detrend_and_z_score, trim
from nfx.data.stimuli import CLIP_FRAMES, CLIP_SECONDS, read_clips
from nfx.data.voxels import choose_voxels, correlation, grayordinate, hierarchy_order, parcels, t_test_of_correlations
from nfx.data.windows import split, windows
from nfx.files import MANIFEST, finished, load_arrays, save_arrays, write_atomically, write_manifest
from nfx.paths import data_set, work

if TYPE_CHECKING:
    from nfx.profile import Profile

Brain = tuple[np.ndarray, np.ndarray]  # structure and vertex of each column of a recording
_RUN_NAME = re.compile(r"((?:seg|test)\d+)_(\d+)_Atlas\.dtseries\.nii")


class Run(NamedTuple):
    """One recording: segment `seg1`, repeat 1 (from 1), and its file."""

    segment: str
    repeat: int
    path: Path


class Split(NamedTuple):
    """Paired examples of one part of the data.

    Attributes
    ----------
    fmri : array of shape (clips, window, voxels), float32
    clip : array of shape (clips,), int
        Rows of `train_clips` (training and validation) or of `test_clips`, and of the targets made from them.
    segment : array of shape (clips,), int
        Number of the film segment, from 1.
    """

    fmri: np.ndarray
    clip: np.ndarray
    segment: np.ndarray


class SubjectData(NamedTuple):
    """One subject's examples, and the grayordinate of each voxel, (voxels,) int, along the visual hierarchy."""

    train: Split
    validation: Split
    test: Split
    vertex: np.ndarray


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort names with their numbers as numbers: seg2 before seg10."""
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(name)) if part]


def list_runs(root: str | Path, subject: int) -> list[Run]:
    """All surface recordings of a subject, in natural order.

    Parameters
    ----------
    root : path of `video_fmri_dataset`
    subject : int

    Raises
    ------
    FileNotFoundError
        If the subject has no folder `fmri`.
    """
    folder = Path(root) / f"subject{subject}" / "fmri"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; expected <segment>/cifti/<segment>_<repeat>_Atlas.dtseries.nii in it"
        )
    runs = []
    for path in folder.glob("*/cifti/*_Atlas.dtseries.nii"):
        match = _RUN_NAME.fullmatch(path.name)
        if match and match[1] == path.parent.parent.name:
            runs.append(Run(match[1], int(match[2]), path))
    return sorted(runs, key=lambda run: (_natural_key(run.segment), run.repeat))


# --- the film ------------------------------------------------------------------------------------------------


def prepare_stimuli(profile: Profile) -> Path:
    """Write the film's clips to `work/<profile>/stimuli`, a segment at a time; nothing is done if they are there.

    Arrays: train_clips, test_clips (clips, 6, size, size, 3) uint8; train_segment, test_segment (clips,) int.
    """
    data = profile.data
    if (data.frames, data.repetition_time) != (CLIP_FRAMES, CLIP_SECONDS):
        raise ValueError(
            f"data.frames is {data.frames} and data.repetition_time {data.repetition_time}; a clip has "
            f"{CLIP_FRAMES} frames in {CLIP_SECONDS} s (Section 4.2)"
        )
    folder = work(profile, "stimuli")
    facts = _facts(profile, "frame_size", "train_segments", "test_segments", "train_volumes", "test_volumes")
    if finished(folder, facts):
        return folder
    (folder / MANIFEST).unlink(missing_ok=True)
    parts = {
        "train": ([f"seg{n}" for n in range(1, data.train_segments + 1)], data.train_volumes),
        "test": ([f"test{n}" for n in range(1, data.test_segments + 1)], data.test_volumes),
    }
    films = {name: data_set(profile) / "stimuli" / f"{name}.mp4" for names, _ in parts.values() for name in names}
    _require(profile, "film segments", list(films.values()))
    names_written = []
    for part, (names, volumes) in parts.items():
        shape = (len(names) * volumes, CLIP_FRAMES, data.frame_size, data.frame_size, 3)
        # Written in place on disk: the paper's training film is 5 GB.
        with write_atomically(folder / f"{part}_clips.npy") as temporary:
            clips = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for index, name in enumerate(tqdm(names, desc=f"{part} film", leave=False, mininterval=5)):
                clips[index * volumes : (index + 1) * volumes] = read_clips(films[name], data.frame_size, volumes)
            clips.flush()
            del clips
        with write_atomically(folder / f"{part}_segment.npy") as temporary:
            np.save(temporary, np.repeat(np.arange(1, len(names) + 1), volumes))
        names_written += [f"{part}_clips.npy", f"{part}_segment.npy"]
    write_manifest(folder, facts, names_written)
    return folder


# --- the recordings ------------------------------------------------------------------------------------------


def prepare_subject(profile: Profile, subject: int) -> Path:
    """Clean a subject's recordings, choose voxels, average repeats; write `work/<profile>/subject<k>`.

    Runs are read one at a time, twice: first the training segments for the reproducibility of each cortical
    vertex, then all runs for the chosen vertices. Voxels are chosen on the segments that are trained on; the
    held-out validation segments and the test set have no part in it, nor in any other statistic (each run is
    z-scored by itself). Averages of repeats are not scaled again: a response keeps its size whether two
    training or ten test repeats are averaged.

    Arrays: train_fmri, test_fmri (clips, voxels) float32; train_segment, test_segment (clips,) int; vertex
    (voxels,) int, grayordinates in the order of the visual hierarchy; and for every cortical vertex
    reproducibility_vertex, reproducibility_t, reproducibility_p, and constant_runs, the number of training runs
    in which it was constant.

    Raises
    ------
    FileNotFoundError
        If a run is missing that the profile does not exclude.
    ValueError
        If a run is damaged, has another number of volumes or other vertices, or if no vertex is reproducible.
    """
    data = profile.data
    if subject not in data.subjects:
        raise ValueError(f"subject is {subject}, expected one of data.subjects, {list(data.subjects)}")
    folder = work(profile, f"subject{subject}")
    keys = ("train_segments", "test_segments", "train_volumes", "test_volumes", "train_repeats", "test_repeats")
    facts = {"subject": subject, **_facts(profile, *keys, "validation_segments", "exclude_runs", "alpha", "keep")}
    if finished(folder, facts):
        return folder

    train = _runs_by_segment(profile, subject, "seg", data.train_segments, data.train_repeats)
    test = _runs_by_segment(profile, subject, "test", data.test_segments, data.test_repeats)
    brain = read_cifti(train[0][0].path)[1:]
    places = grayordinate(*brain)
    candidates = np.flatnonzero(places >= 0)
    places = places[candidates]

    held_out = set(data.validation_segments)
    trained_on = [runs for number, runs in enumerate(train, 1) if number not in held_out]
    t, p, constant_runs = _reproducibility_of_runs(trained_on, data.train_volumes, candidates, brain)
    chosen = np.flatnonzero(choose_voxels(t, p, data.alpha, data.keep))
    chosen = chosen[hierarchy_order(places[chosen])]

    arrays = {
        "train_fmri": _averages(train, data.train_volumes, candidates[chosen], brain),
        "test_fmri": _averages(test, data.test_volumes, candidates[chosen], brain),
        "train_segment": np.repeat(np.arange(1, len(train) + 1), data.train_volumes),
        "test_segment": np.repeat(np.arange(1, len(test) + 1), data.test_volumes),
        "vertex": places[chosen],
        "reproducibility_vertex": places,
        "reproducibility_t": t,
        "reproducibility_p": p,
        "constant_runs": constant_runs,
    }
    save_arrays(folder, arrays, facts)
    return folder


def load_subject(profile: Profile, subject: int) -> SubjectData:
    """The prepared examples of a subject, as windows of `profile.data.window` volumes.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 01 has not prepared the subject, or its files are damaged.
    """
    data = profile.data
    if subject not in data.subjects:
        raise ValueError(f"subject is {subject}, expected one of data.subjects, {list(data.subjects)}")
    names = ("train_fmri", "test_fmri", "train_segment", "test_segment", "vertex")
    arrays = load_arrays(work(profile, f"subject{subject}"), *names)
    segment, test_segment = np.array(arrays["train_segment"]), np.array(arrays["test_segment"])
    train = windows(arrays["train_fmri"], segment, data.window)
    test = windows(arrays["test_fmri"], test_segment, data.window)
    train_index, validation_index = split(segment, data.validation_segments)
    return SubjectData(
        train=Split(train[train_index], train_index, segment[train_index]),
        validation=Split(train[validation_index], validation_index, segment[validation_index]),
        test=Split(test, np.arange(len(test)), test_segment),
        vertex=np.array(arrays["vertex"]),
    )


def prepare_pretraining(profile: Profile) -> Path:
    """Write the unlabelled recordings that the encoder is pre-trained on to `work/<profile>/pretraining/data`.

    Every `.dtseries.nii` below the folder `hcp` beside the data set is read, in natural order, detrended and
    z-scored whole (there is no film to trim to), and cut to V1-V4, as DC-MAE was trained (Section 3.1.1), in the
    order of the visual hierarchy.

    Arrays: fmri (volumes, voxels) float32, recordings after one another; recording (volumes,) int, from 1; vertex
    (voxels,) int, grayordinates.

    Raises
    ------
    FileNotFoundError
        If there is no recording.
    ValueError
        If a recording is damaged, or has other vertices than the first.
    """
    folder = work(profile, "pretraining", "data")
    root = data_set(profile).parent / "hcp"
    names = natural_sort(path.relative_to(root).as_posix() for path in root.rglob("*.dtseries.nii"))
    facts = {"recordings": names, **_facts(profile)}
    if finished(folder, facts):
        return folder
    if not names:
        made = f"notebook 01 with profile='{profile.name}' simulates them" if profile.simulated else "put HCP's there"
        raise FileNotFoundError(f"{root} holds no recording (.dtseries.nii) to pre-train on; {made}")
    brain = read_cifti(root / names[0])[1:]
    places = grayordinate(*brain)
    early = np.flatnonzero(np.isin(parcels(places), [f"{side}_V{n}" for side in "LR" for n in (1, 2, 3, 4)]))
    if early.size == 0:
        raise ValueError(f"{root / names[0]} has no vertex in V1-V4; expected fsLR-32k cortex")
    early = early[hierarchy_order(places[early])]
    cleaned = []
    for name in tqdm(names, desc="recordings", leave=False, mininterval=5):
        bold = _read_columns(root / name, early, brain)
        cleaned.append(detrend_and_z_score(bold)[0])
    recording = np.repeat(np.arange(1, len(names) + 1), [len(bold) for bold in cleaned])
    save_arrays(folder, {"fmri": np.concatenate(cleaned), "recording": recording, "vertex": places[early]}, facts)
    return folder


def _facts(profile: Profile, *keys: str) -> dict[str, Any]:
    """What a prepared folder depends on: settings and, for simulated data, how they are simulated."""
    facts: dict[str, Any] = {"data": profile.data.model_dump(mode="json", include=set(keys)), "root": profile.data.root}
    if profile.simulation is not None:
        facts |= {"simulation": profile.simulation.model_dump(mode="json"), "seed": profile.seed}
    return facts


def _runs_by_segment(profile: Profile, subject: int, kind: str, segments: int, repeats: int) -> list[list[Run]]:
    """The runs to use of each segment, in order; a missing one is an error unless the profile excludes it."""
    there = {(run.segment, run.repeat): run for run in _listed(profile, subject)}
    excluded = _excluded(profile.data.exclude_runs, subject)
    wanted = [
        [(f"{kind}{number}", repeat) for repeat in range(1, repeats + 1) if (f"{kind}{number}", repeat) not in excluded]
        for number in range(1, segments + 1)
    ]
    for number, names in enumerate(wanted, 1):
        if not names:
            raise ValueError(f"data.exclude_runs leaves no run of subject{subject}/{kind}{number}; keep at least one")
    folder = data_set(profile) / f"subject{subject}" / "fmri"
    missing = [
        folder / segment / "cifti" / f"{segment}_{repeat}_Atlas.dtseries.nii"
        for names in wanted
        for segment, repeat in names
        if (segment, repeat) not in there
    ]
    _require(profile, "recordings", missing)
    return [[there[name] for name in names] for names in wanted]


def _listed(profile: Profile, subject: int) -> list[Run]:
    try:
        return list_runs(data_set(profile), subject)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {_remedy(profile)}") from None


def _excluded(names: Iterable[str], subject: int) -> set[tuple[str, int]]:
    """(segment, repeat) of the entries, written `subject3/test2_9`, that concern a subject."""
    excluded = set()
    for name in names:
        match = re.fullmatch(r"subject(\d+)/((?:seg|test)\d+)_(\d+)", name)
        if match is None:
            raise ValueError(f"data.exclude_runs names '{name}'; expected the form subject3/test2_9")
        if int(match[1]) == subject:
            excluded.add((match[2], int(match[3])))
    return excluded


def _require(profile: Profile, what: str, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more {what}" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}{more} missing. {_remedy(profile)}")


def _remedy(profile: Profile) -> str:
    if profile.simulated:
        return f"The simulator writes it: run notebooks/01_data_preparation.ipynb with profile='{profile.name}'"
    return f"Put the published data set (doi:10.4231/R7SF2TCW) in {data_set(profile)}"


def _read_run(run: Run, volumes: int, columns: np.ndarray, brain: Brain) -> tuple[np.ndarray, np.ndarray]:
    """Some columns of a run, cleaned, (volumes, columns) float32, and which of them are constant."""
    bold = _read_columns(run.path, columns, brain)
    try:
        return detrend_and_z_score(trim(bold, volumes))
    except ValueError as error:
        raise ValueError(f"{run.path}: {error}") from error


def _read_columns(path: Path, columns: np.ndarray, brain: Brain) -> np.ndarray:
    """Some columns of a recording, (volumes, columns), which must have the same grayordinates as `brain`."""
    cifti = read_cifti(path)
    if not all(np.array_equal(mine, first) for mine, first in zip(cifti[1:], brain, strict=True)):
        raise ValueError(f"{path} has other grayordinates than the first recording; expected the same in all")
    return cifti.data[:, columns]


def _reproducibility_of_runs(
    segments: Sequence[Sequence[Run]], volumes: int, columns: np.ndarray, brain: Brain
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t and p of `reproducibility` over the segments with two repeats, and in how many runs a column is constant."""
    constant_runs = np.zeros(len(columns), int)
    correlations = []
    pairs = [runs[:2] for runs in segments if len(runs) >= 2]
    for pair in tqdm(pairs, desc="reproducibility", leave=False, mininterval=5):
        (first, constant_first), (second, constant_second) = (_read_run(run, volumes, columns, brain) for run in pair)
        correlations.append(correlation(first, second))
        constant_runs += constant_first.astype(int) + constant_second
    if len(correlations) < 2:
        raise ValueError(
            f"{len(correlations)} training segments have two repeats; the reproducibility test needs two or more"
        )
    return *t_test_of_correlations(np.stack(correlations)), constant_runs


def _averages(segments: Sequence[Sequence[Run]], volumes: int, columns: np.ndarray, brain: Brain) -> np.ndarray:
    """The mean over repeats of each segment, segments after one another: (clips, voxels) float32."""
    averages = []
    for runs in tqdm(segments, desc="averages", leave=False, mininterval=5):
        total = np.zeros((volumes, len(columns)))
        for run in runs:
            total += _read_run(run, volumes, columns, brain)[0]
        averages.append((total / len(runs)).astype(np.float32))
    return np.concatenate(averages)
