"""Writing the simulated data set, in the very layout of the published one, so that one reader reads both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nfx.data.simulator.brain import (
    FEATURE_RATE,
    LATENCIES,
    STATIC_SECONDS,
    Cortex,
    acquisition_times,
    answer,
    bold,
    features,
    make_brain,
    noise_ceiling,
    respond,
    signal_scale,
    starts_late,
)
from nfx.data.simulator.movie import (
    Movie,
    describe,
    generator,
    plan_movie,
    plan_other_movie,
    simulation_of,
    write_movie,
)
from nfx.files import (
    finished,
    read_json,
    save_arrays,
    source_digest,
    write_atomically,
    write_json,
    write_manifest,
)
from nfx.paths import data_set

if TYPE_CHECKING:
    from nibabel.cifti2 import Cifti2Header

    from nfx.profile import Profile

LAST_DROPPED = 4  # volumes that the official trimming drops at the end of a run
HEADER_STEP = 1.0  # s; the published headers do not give the true 2 s either
RECORDING = "MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"  # HCP's name
FIRST_PERSON = 900001  # six digits, as the HCP's, from a range that it does not use
SURFACE_VERTICES = 32492  # of a hemisphere of fsLR-32k


def simulate_dataset(profile: Profile) -> Path:
    """Write films and recordings of all subjects, and the truth behind them.

    Layout, under `nfx.paths.data_set(profile)`::

        stimuli/seg1.mp4 ... test5.mp4
        subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii ...
        truth/movie.json                 scenes of every segment, with captions
        truth/subject1/                  arrays grayordinate, carries, share, noise_ceiling,
                                         noise_ceiling_train, latency

    Each file is drawn from a seed of its own and written whole or not at all: an interrupted call resumes with the
    files that are missing. Other settings or other code of the simulator replace what it wrote before. Explained
    variances (`share`) are of one trial after the official cleaning, noise ceilings those of the mean of all test or
    training repeats; `carries` is one of image, motion, object, animal, person, place, context, nothing.

    Returns
    -------
    Path
        The folder `video_fmri_dataset`.

    Raises
    ------
    ValueError
        If the profile has no simulation, or the folder holds a data set that is not the simulator's.
    """
    facts = _facts(profile, "dataset")
    root = data_set(profile)
    truth = root / "truth"
    movie = plan_movie(profile)
    runs = {k: _run_files(profile, movie, k) for k in profile.data.subjects}
    films = {name: root / "stimuli" / f"{name}.mp4" for name in movie}
    everything = [*films.values(), *(path for files in runs.values() for path in files.values())]
    if finished(truth, facts) and all(path.is_file() for path in everything):
        return root
    old = [*root.glob("stimuli/*.mp4"), *root.glob("subject*/fmri/*/cifti/*.dtseries.nii")]
    _claim(truth / "settings.json", facts, old)

    for name, path in tqdm(films.items(), desc="films", leave=False, mininterval=5):
        if not path.is_file():
            write_movie(path, movie[name], profile.data.frame_size)
    recorded, strength = _recorded_movie(movie), simulation_of(profile).signal_to_noise
    for place, subject in enumerate(profile.data.subjects):
        _write_subject(profile, movie, recorded, subject, strength[place], runs[subject])
    write_json(truth / "movie.json", describe(movie))
    write_manifest(truth, facts)
    return root


def simulate_recordings(profile: Profile) -> Path:
    """Write unlabelled recordings of other brains that watch other movies, in the layout of the HCP's resting state.

    `simulation.pretraining_subjects` files ``<id>/MNINonLinear/Results/rfMRI_REST1_LR/...`` of
    `simulation.pretraining_volumes` volumes each, from the movie's start, with the true repetition time in their
    headers. The signal is as strong as on average in the data set.

    Returns
    -------
    Path
        The folder ``hcp`` beside `video_fmri_dataset`.
    """
    facts = _facts(profile, "recordings")
    folder, simulation = recordings_folder(profile), simulation_of(profile)
    if finished(folder, facts):
        return folder
    _claim(folder / "settings.json", facts, list(folder.rglob("*.dtseries.nii")))
    share = float(np.mean(simulation.signal_to_noise))
    paths = [folder / str(FIRST_PERSON + number) / RECORDING for number in range(simulation.pretraining_subjects)]
    for path in tqdm(paths, desc="recordings", leave=False, mininterval=5):
        if path.is_file():
            continue
        name = path.relative_to(folder).parts[0]
        brain = make_brain(profile.seed, name, share, simulation.vertex_step, simulation.other_step)
        shots = plan_other_movie(profile.seed, name, simulation.pretraining_volumes, simulation.scene_volumes)
        bank = features(shots)
        signal = answer(brain, respond(bank - _movie_mean([bank]), 2.0 * np.arange(simulation.pretraining_volumes)))
        scale = signal_scale(brain, [signal])[0]
        run = bold(brain, signal * scale, generator(profile.seed, "recording", name))
        write_cifti(path, run, cifti_header(brain.where, len(run), profile.data.repetition_time))
    write_manifest(folder, facts, [path.relative_to(folder) for path in paths])
    return folder


def recordings_folder(profile: Profile) -> Path:
    """Where the unlabelled recordings are: ``hcp`` beside `video_fmri_dataset`, one folder per person."""
    return data_set(profile).parent / "hcp"


def cifti_header(where: Cortex, volumes: int, step: float = HEADER_STEP) -> Cifti2Header:
    """Header of a dense time series over exactly the vertices of `where`; made once for many files.

    Parameters
    ----------
    volumes : int
    step : float
        Seconds between volumes that the header claims.
    """
    from nibabel.cifti2 import BrainModelAxis, Cifti2Header, SeriesAxis

    surfaces = dict.fromkeys(np.unique(where.structure), SURFACE_VERTICES)
    brain = BrainModelAxis(where.structure, vertex=where.vertex, nvertices=surfaces)
    return Cifti2Header.from_axes((SeriesAxis(0, step, volumes), brain))


def write_cifti(path: Path, run: np.ndarray, header: Cifti2Header) -> Path:
    """Write a run (volumes, vertices) float32 as `.dtseries.nii`, atomically."""
    from nibabel import Cifti2Image

    if run.shape != header.matrix.get_data_shape():
        raise ValueError(f"{path}: the run is {run.shape}, its header wants {header.matrix.get_data_shape()}")
    image = Cifti2Image(run, header)
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    with write_atomically(path) as unfinished:
        image.to_filename(unfinished)
    return path


# --- parts ---------------------------------------------------------------------------------------------------------


def _facts(profile: Profile, what: str) -> dict[str, Any]:
    """All that the files depend on; of `data`, only what shapes them."""
    simulation = simulation_of(profile)
    shape = {"frame_size", "train_segments", "test_segments", "train_volumes", "test_volumes", "repetition_time"}
    shape |= {"subjects", "train_repeats", "test_repeats"}
    return {
        "what": what,
        "seed": profile.seed,
        "data": profile.data.model_dump(mode="json", include=shape) if what == "dataset" else {},
        "simulation": simulation.model_dump(mode="json"),
        "code": source_digest("data/simulator"),
    }


def _claim(note: Path, facts: dict[str, Any], files: list[Path]) -> None:
    """Make a folder ours by a `note` in it: refuse one that holds another's `files`, clear what other settings made."""
    ours = note.is_file()
    if files and not ours:
        raise ValueError(
            f"{files[0]} was not written by the simulator; expected a folder without a data set: "
            f"choose another data.root"
        )
    if ours and read_json(note) == facts:
        return
    for path in files:
        path.unlink()
    write_json(note, facts)


def _run_files(profile: Profile, movie: Movie, subject: int) -> dict[tuple[str, int], Path]:
    """File of every run of a subject by (segment, repeat)."""
    root = data_set(profile) / f"subject{subject}" / "fmri"
    repeats = {"seg": profile.data.train_repeats, "test": profile.data.test_repeats}
    return {
        (name, repeat): root / name / "cifti" / f"{name}_{repeat}_Atlas.dtseries.nii"
        for name in movie
        for repeat in range(1, repeats[name.rstrip("0123456789")] + 1)
    }


def _movie_mean(banks: list[np.ndarray]) -> np.ndarray:
    """Mean of each feature while the movie runs."""
    still = round(STATIC_SECONDS * FEATURE_RATE)
    return np.concatenate([bank[still:-still] for bank in banks]).mean(0)


def _recorded_movie(movie: Movie) -> dict[str, np.ndarray]:
    """What :func:`answer` needs of every segment; the same for all subjects."""
    banks = {name: features(shots) for name, shots in tqdm(movie.items(), desc="features", leave=False, mininterval=5)}
    mean = _movie_mean([bank for name, bank in banks.items() if name.startswith("seg")])
    return {
        name: respond(banks.pop(name) - mean, acquisition_times(name, sum(s.length for s in shots)))
        for name, shots in movie.items()
    }


def _trimmed(run: np.ndarray, segment: str) -> np.ndarray:
    return run[1 if starts_late(segment) else 2 : -LAST_DROPPED]


def _write_subject(
    profile: Profile,
    movie: Movie,
    recorded: dict[str, np.ndarray],
    subject: int,
    share: float,
    files: dict[tuple[str, int], Path],
) -> None:
    """All runs of a subject that are not there yet, and the subject's truth."""
    simulation = simulation_of(profile)
    brain = make_brain(profile.seed, f"subject{subject}", share, simulation.vertex_step, simulation.other_step)
    signals = {name: answer(brain, recorded[name]) for name in movie}
    scale, reached, _ = signal_scale(
        brain, [_trimmed(s, name) for name, s in signals.items() if name.startswith("seg")]
    )
    headers = {volumes: cifti_header(brain.where, volumes) for volumes in {len(s) for s in signals.values()}}
    for (name, repeat), path in tqdm(files.items(), desc=f"subject {subject}", leave=False, mininterval=5):
        if not path.is_file():
            rng = generator(profile.seed, "run", subject, name, repeat)
            write_cifti(path, bold(brain, signals[name] * scale, rng), headers[len(signals[name])])
    save_arrays(
        data_set(profile) / "truth" / f"subject{subject}",
        {
            "grayordinate": brain.where.grayordinate,
            "carries": brain.carries,
            "share": reached,
            "noise_ceiling": noise_ceiling(reached, profile.data.test_repeats),
            "noise_ceiling_train": noise_ceiling(reached, profile.data.train_repeats),
            "latency": LATENCIES[brain.latency].astype(np.float32),
        },
        {"subject": subject, "wanted_mean_share": share},
    )
