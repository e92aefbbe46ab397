"""From the published layout to the arrays that the trainings read (Section 4.2).

    video_fmri_dataset/stimuli/seg1.mp4 ... seg18.mp4, test1.mp4 ... test5.mp4
    video_fmri_dataset/subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii ...

Recordings of other films, prepared with fMRIPrep, go the same way: `derivatives.py`. What takes long is kept piece by
piece while it is made (`pieces.py`), so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nfx import paths
from nfx.data.cifti import read_cifti
from nfx.data.cleaning import average_volumes, clip_weights, detrend_and_z_score, resample, trim, warn_of_constant
from nfx.data.pieces import discard, file_state, join, keep, open_pieces
from nfx.data.stimuli import CLIP_FRAMES, CLIP_SECONDS, FRAME_RATE, read_clips
from nfx.data.voxels import choose_voxels, correlation, grayordinate, hierarchy_order, parcels, t_test_of_correlations
from nfx.data.windows import split, windows
from nfx.files import finished, load_arrays, save_arrays
from nfx.paths import data_set, work

if TYPE_CHECKING:
    from nfx.profile import Profile

Brain = tuple[np.ndarray, np.ndarray]  # structure and vertex of each column of a recording
CORRELATED_AT_ONCE = 4096  # columns
_RUN_NAME = re.compile(r"((?:seg|test)\d+)_(\d+)_Atlas\.dtseries\.nii")


class Run(NamedTuple):
    """One showing of a film segment, and the recording that holds it.

    Attributes
    ----------
    segment : str
        `seg1`, `test1`, ...
    repeat : int
        From 1.
    path : path of the recording
    start : float or None
        Of another layout, when in the recording the 2 s that go to the first clip begin: onset plus delay, s. None in
        the published layout, where the number of volumes says it.
    repetition_time : float
        s. None if neither recording nor sidecar is there.
    """

    segment: str
    repeat: int
    path: Path
    start: float | None = None
    repetition_time: float | None = CLIP_SECONDS


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


def subject_runs(profile: Profile, subject: int) -> list[Run]:
    """A subject's showings that are there, in natural order, in the layout that the profile names.

    Raises
    ------
    FileNotFoundError, ValueError
        If the subject's folder is missing, or events and films do not match (`data.recordings`).
    """
    return [run for run in _showings(profile, subject) if run.path.is_file()]


def film_weights(run: Run, volumes: int, clips: int) -> np.ndarray:
    """Weights with which the volumes of a recording make the rows of a run: (clips, volumes), rows sum to 1.

    In the published layout each row picks one volume, as `trim` does; in another see `clip_weights`.
    """
    if run.start is None:
        return np.eye(volumes)[trim(np.arange(volumes)[:, None], clips)[:, 0]]
    assert run.repetition_time is not None  # a recording's header or sidecar says it
    return clip_weights(volumes, run.repetition_time, run.start, clips)


def clean_film(run: Run, bold: np.ndarray, clips: int) -> np.ndarray:
    """`clean_run` in either layout: the film's part of a recording, without drift, z-scored.

    Parameters
    ----------
    run : Run
    bold : array of shape (volumes, grayordinates), the whole recording
    clips : int

    Returns
    -------
    array of shape (clips, grayordinates), float32
    """
    cleaned, constant = _clean(run, bold, clips)
    warn_of_constant(constant)
    return cleaned


def _clean(run: Run, bold: np.ndarray, clips: int) -> tuple[np.ndarray, np.ndarray]:
    rows = trim(bold, clips) if run.start is None else resample(bold, film_weights(run, len(bold), clips))
    return detrend_and_z_score(rows)


# --- the film ------------------------------------------------------------------------------------------------


def prepare_stimuli(profile: Profile) -> Path:
    """Write the film's clips to `work/<profile>/stimuli`, a segment at a time; nothing is done if they are there.

    Arrays: train_clips, test_clips (clips, 6, size, size, 3) uint8; train_segment, test_segment (clips,) int.
    An interrupted call goes on with the next segment. Until the end it needs twice the disk: 13 GB at the paper's size.
    """
    data = profile.data
    if (data.frames, data.repetition_time) != (CLIP_FRAMES, CLIP_SECONDS):
        raise ValueError(
            f"data.frames is {data.frames} and data.repetition_time {data.repetition_time}; a clip has "
            f"{CLIP_FRAMES} frames in {CLIP_SECONDS} s (Section 4.2)"
        )
    folder = work(profile, "stimuli")
    films = film_paths(profile)
    facts = _facts(profile, "frame_size", "train_segments", "test_segments", "train_volumes", "test_volumes")
    if data.recordings is not None:
        facts["films"] = {name: relpath(film, paths.ROOT) for name, film in films.items()}
    if finished(folder, facts):
        return folder
    _require(profile, "film segments", list(films.values()))
    pieces = open_pieces(folder, facts)
    rate = FRAME_RATE if data.recordings is None else None
    arrays: dict[str, np.ndarray | Path] = {}
    for part, kind, volumes in (("test", "test", data.test_volumes), ("train", "seg", data.train_volumes)):
        names = [name for name in films if name.startswith(kind)]
        parts = [
            keep(
                pieces, name, file_state(films[name]), partial(read_clips, films[name], data.frame_size, volumes, rate)
            )
            for name in tqdm(names, desc=f"{part} film", leave=False, mininterval=5)
        ]
        arrays[f"{part}_clips"] = join(pieces / f"{part}_clips.npy", parts)
        arrays[f"{part}_segment"] = np.repeat(np.arange(1, len(names) + 1), volumes)
    save_arrays(folder, arrays, facts)
    discard(folder)
    return folder


def film_paths(profile: Profile) -> dict[str, Path]:
    """The film of every segment, training segments first: {"seg1": path, ...}, whether or not it is there."""
    if profile.data.recordings is not None:
        from nfx.data import derivatives

        return derivatives.film_paths(profile)
    counts = {"seg": profile.data.train_segments, "test": profile.data.test_segments}
    names = [f"{kind}{number}" for kind, count in counts.items() for number in range(1, count + 1)]
    return {name: data_set(profile) / "stimuli" / f"{name}.mp4" for name in names}


# --- the recordings ------------------------------------------------------------------------------------------


def prepare_subject(profile: Profile, subject: int) -> Path:
    """Clean a subject's recordings, choose voxels, average repeats; write `work/<profile>/subject<k>`.

    Runs are read one at a time, twice: first the training segments for the reproducibility of each cortical
    vertex, then all runs for the chosen vertices. Voxels are chosen on the segments that are trained on; the
    held-out validation segments and the test set have no part in it, nor in any other statistic (each run is
    z-scored by itself). Averages of repeats are not scaled again: a response keeps its size whether two
    training or ten test repeats are averaged.

    An interrupted call goes on with the next segment; it keeps what it has, at the paper's size some 200 MB.

    Arrays: train_fmri, test_fmri (clips, voxels) float32; train_segment, test_segment (clips,) int; vertex
    (voxels,) int, grayordinates in the order of the visual hierarchy; and for every cortical vertex
    reproducibility_vertex, reproducibility_t, reproducibility_p, and constant_runs, the number of training runs
    in which it was constant.

    Raises
    ------
    FileNotFoundError
        If a run is missing that the profile does not exclude.
    ValueError
        If a run is damaged, has another number of volumes or other vertices, or if no vertex is reproducible; with
        `data.recordings`, if a film was not shown as often as the profile says, or a run ends before it.
    """
    data = profile.data
    if subject not in data.subjects:
        raise ValueError(f"subject is {subject}, expected one of data.subjects, {list(data.subjects)}")
    folder = work(profile, f"subject{subject}")
    keys = ("train_segments", "test_segments", "train_volumes", "test_volumes", "train_repeats", "test_repeats")
    facts = {"subject": subject, **_facts(profile, *keys, "validation_segments", "exclude_runs", "alpha", "keep")}
    if data.recordings is not None:
        runs = _showings(profile, subject)
        facts["showings"] = [[*run[:2], relpath(run.path, paths.ROOT), *run[3:]] for run in runs]
    if finished(folder, facts):
        return folder

    train = _runs_by_segment(profile, subject, "seg", data.train_segments, data.train_repeats)
    test = _runs_by_segment(profile, subject, "test", data.test_segments, data.test_repeats)
    pieces = open_pieces(folder, facts)
    brain = read_cifti(train[0][0].path)[1:]
    places = grayordinate(*brain)
    candidates = np.flatnonzero(places >= 0)
    places = places[candidates]

    held_out = set(data.validation_segments)
    trained_on = [runs for number, runs in enumerate(train, 1) if number not in held_out]
    t, p, constant_runs = _reproducibility_of_runs(pieces, trained_on, data.train_volumes, candidates, brain)
    chosen = np.flatnonzero(choose_voxels(t, p, data.alpha, data.keep))
    chosen = chosen[hierarchy_order(places[chosen])]

    arrays = {
        "train_fmri": _averages(pieces, "train_fmri", train, data.train_volumes, candidates[chosen], brain),
        "test_fmri": _averages(pieces, "test_fmri", test, data.test_volumes, candidates[chosen], brain),
        "train_segment": np.repeat(np.arange(1, len(train) + 1), data.train_volumes),
        "test_segment": np.repeat(np.arange(1, len(test) + 1), data.test_volumes),
        "vertex": places[chosen],
        "reproducibility_vertex": places,
        "reproducibility_t": t,
        "reproducibility_p": p,
        "constant_runs": constant_runs,
    }
    save_arrays(folder, arrays, facts)
    discard(folder)
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

    The files below the folder `hcp` beside the data set that match `pretraining.recordings` are read in natural order,
    cut to V1-V4, as DC-MAE was trained (Section 3.1.1), in the order of the visual hierarchy. In each,
    `pretraining.volumes_averaged` consecutive volumes are averaged (what is left over at the end is dropped), and the
    averages detrended and z-scored whole: there is no film to trim to. An interrupted call goes on with the next
    recording; at the paper's size the arrays take 2 GB, and until the end twice that.

    Arrays: fmri (volumes, voxels) float32, recordings after one another; recording (volumes,) int, from 1; vertex
    (voxels,) int, grayordinates.

    Raises
    ------
    FileNotFoundError
        If there is no recording.
    ValueError
        If a recording is damaged or too short, or has other vertices than the first.
    """
    folder = work(profile, "pretraining", "data")
    root = data_set(profile).parent / "hcp"
    settings = profile.pretraining
    names = natural_sort(path.relative_to(root).as_posix() for path in root.glob(settings.recordings))
    facts = {"recordings": names, **_facts(profile)}
    if settings.volumes_averaged > 1:  # so that what was prepared before there was this setting stays finished
        facts["volumes_averaged"] = settings.volumes_averaged
    if finished(folder, facts):
        return folder
    if not names:
        made = f"notebook 01 with profile='{profile.name}' simulates them" if profile.simulated else "put HCP's there"
        raise FileNotFoundError(
            f"{root} holds no recording ({settings.recordings}) to pre-train on; {made} (docs/pretraining.md)"
        )
    brain = read_cifti(root / names[0])[1:]
    places = grayordinate(*brain)
    early = np.flatnonzero(np.isin(parcels(places), [f"{side}_V{n}" for side in "LR" for n in (1, 2, 3, 4)]))
    if early.size == 0:
        raise ValueError(f"{root / names[0]} has no vertex in V1-V4; expected fsLR-32k cortex")
    early = early[hierarchy_order(places[early])]

    def samples(name: str) -> np.ndarray:
        bold = _read_columns(root / name, early, brain)
        try:
            return detrend_and_z_score(average_volumes(bold, settings.volumes_averaged))[0]
        except ValueError as error:
            raise ValueError(f"{root / name}: {error}") from error

    pieces = open_pieces(folder, facts)
    parts = [
        keep(pieces, f"{number:05d}", [file_state(root / name), early, *brain], partial(samples, name))
        for number, name in enumerate(tqdm(names, desc="recordings", leave=False, mininterval=5), 1)
    ]
    lengths = [len(np.load(part, mmap_mode="r")) for part in parts]
    arrays = {
        "fmri": join(pieces / "fmri.npy", parts),
        "recording": np.repeat(np.arange(1, len(names) + 1), lengths),
        "vertex": places[early],
    }
    save_arrays(folder, arrays, facts)
    discard(folder)
    return folder


def _facts(profile: Profile, *keys: str) -> dict[str, Any]:
    """What a prepared folder depends on: settings and, for simulated data, how they are simulated."""
    facts: dict[str, Any] = {"data": profile.data.model_dump(mode="json", include=set(keys)), "root": profile.data.root}
    if profile.simulation is not None:
        facts |= {"simulation": profile.simulation.model_dump(mode="json"), "seed": profile.seed}
    return facts


def _runs_by_segment(profile: Profile, subject: int, kind: str, segments: int, repeats: int) -> list[list[Run]]:
    """The runs to use of each segment, in order; a missing one is an error unless the profile excludes it."""
    there = {(run.segment, run.repeat): run for run in _showings(profile, subject)}
    excluded = _excluded(profile.data.exclude_runs, subject)
    wanted = [
        [(f"{kind}{number}", repeat) for repeat in range(1, repeats + 1) if (f"{kind}{number}", repeat) not in excluded]
        for number in range(1, segments + 1)
    ]
    for number, names in enumerate(wanted, 1):
        if not names:
            raise ValueError(f"data.exclude_runs leaves no run of subject{subject}/{kind}{number}; keep at least one")
    missing = [name for names in wanted for name in names if name not in there]
    if missing and profile.data.recordings is not None:
        from nfx.data import derivatives

        raise ValueError(derivatives.shown_too_rarely(profile, subject, missing[0][0], repeats))
    folder = data_set(profile) / f"subject{subject}" / "fmri"
    needed = [folder / segment / "cifti" / f"{segment}_{repeat}_Atlas.dtseries.nii" for segment, repeat in missing]
    needed += [there[name].path for names in wanted for name in names if name in there]
    _require(profile, "recordings", needed)
    return [[there[name] for name in names] for names in wanted]


def _showings(profile: Profile, subject: int) -> list[Run]:
    """A subject's showings; with `data.recordings` those too whose recording is missing."""
    if profile.data.recordings is not None:
        from nfx.data import derivatives

        return derivatives.showings(profile, subject)
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


def _require(profile: Profile, what: str, needed: Sequence[Path]) -> None:
    missing = [path for path in needed if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more {what}" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}{more} missing. {_remedy(profile)}")


def _remedy(profile: Profile) -> str:
    if profile.simulated:
        return f"The simulator writes it: run notebooks/01_data_preparation.ipynb with profile='{profile.name}'"
    if profile.data.recordings is not None:
        return f"{profile.data.recordings} says where films, events and recordings are (docs/other_data.md)"
    command = f"nfx fetch {profile.name} --only data"
    return f"{command} (of a profile of your own: its file) fetches doi:10.4231/R7SF2TCW into {data_set(profile)}"


def _read_run(run: Run, volumes: int, columns: np.ndarray, brain: Brain) -> tuple[np.ndarray, np.ndarray]:
    """Some columns of a run, cleaned, (volumes, columns) float32, and which of them are constant."""
    bold = _read_columns(run.path, columns, brain)
    try:
        return _clean(run, bold, volumes)
    except ValueError as error:
        raise ValueError(f"{run.path}: {error}") from error


def _read_columns(path: Path, columns: np.ndarray, brain: Brain) -> np.ndarray:
    """Some columns of a recording, (volumes, columns), which must have the same grayordinates as `brain`."""
    cifti = read_cifti(path)
    if not all(np.array_equal(mine, first) for mine, first in zip(cifti[1:], brain, strict=True)):
        raise ValueError(f"{path} has other grayordinates than the first recording; expected the same in all")
    return cifti.data[:, columns]


def _reproducibility_of_runs(
    pieces: Path, segments: Sequence[Sequence[Run]], volumes: int, columns: np.ndarray, brain: Brain
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t and p of `reproducibility` over the segments with two repeats, and in how many runs a column is constant."""
    pairs = [runs[:2] for runs in segments if len(runs) >= 2]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} training segments have two repeats; the reproducibility test needs two or more")

    def compare(pair: Sequence[Run]) -> np.ndarray:
        """Correlation of the repeats, and number of constant runs, of every column: (2, columns)."""
        (first, constant_first), (second, constant_second) = (_read_run(run, volumes, columns, brain) for run in pair)
        r = np.empty(len(columns))
        for start in range(0, len(columns), CORRELATED_AT_ONCE):  # in float64
            part = slice(start, start + CORRELATED_AT_ONCE)
            r[part] = correlation(first[:, part], second[:, part])
        return np.stack([r, constant_first.astype(float) + constant_second])

    parts = [
        keep(pieces, f"reproducibility_{pair[0].segment}", _inputs(pair, columns, brain), partial(compare, pair))
        for pair in tqdm(pairs, desc="reproducibility", leave=False, mininterval=5)
    ]
    correlations, constant = np.stack([np.load(part) for part in parts], axis=1)
    return *t_test_of_correlations(correlations), constant.sum(axis=0).astype(int)


def _averages(
    pieces: Path, name: str, segments: Sequence[Sequence[Run]], volumes: int, columns: np.ndarray, brain: Brain
) -> Path:
    """The mean over repeats of each segment, segments after one another: a file of (clips, voxels) float32."""

    def mean(runs: Sequence[Run]) -> np.ndarray:
        total = np.zeros((volumes, len(columns)))
        for run in runs:
            total += _read_run(run, volumes, columns, brain)[0]
        return (total / len(runs)).astype(np.float32)

    parts = [
        keep(pieces, f"mean_{runs[0].segment}", _inputs(runs, columns, brain), partial(mean, runs))
        for runs in tqdm(segments, desc="averages", leave=False, mininterval=5)
    ]
    return join(pieces / f"{name}.npy", parts)


def _inputs(runs: Sequence[Run], columns: np.ndarray, brain: Brain) -> list[Any]:
    """What a piece made from some columns of runs depends on beside the facts."""
    return [[[*file_state(run.path), run.start, run.repetition_time] for run in runs], columns, *brain]
