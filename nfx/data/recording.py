"""A new recording of a subject, prepared for a decoder that is already trained.

A decoder reads chosen vertices in a fixed order. A folder that `nfx publish` writes says which, in `decoder.json`; the
recording is cleaned as the training recordings were (Section 4.2), and needs no statistic of theirs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nfx.data.cifti import read_cifti
from nfx.data.cleaning import ROUNDING
from nfx.data.dataset import Run, clean_film
from nfx.data.stimuli import CLIP_SECONDS
from nfx.data.voxels import grayordinate
from nfx.data.windows import windows
from nfx.files import load_arrays, read_json, write_json
from nfx.paths import work

if TYPE_CHECKING:
    from nfx.profile import Profile

NEEDS = "decoder.json"
DELAY = 4.0  # s from a clip to its volume in the published data (`clean_run`)
PathLike = str | os.PathLike[str]


class Needs(NamedTuple):
    """What a decoder needs of a recording, and how its clips were sampled when it was evaluated.

    Attributes
    ----------
    vertex : tuple of int
        Grayordinates (of 91,282) that are its voxels, in its order.
    window : int
        Volumes of a window.
    delay : float
        s from the begin of a clip to the begin of the 2 s of recording that go with it.
    solver : str
        Of `nfx.diffusion.SOLVERS`; the decoder's folder holds this sampler.
    steps : int
        Evaluations of the UNet.
    guidance : float
    seed : int
    """

    vertex: tuple[int, ...]
    window: int
    delay: float
    solver: str
    steps: int
    guidance: float
    seed: int


def needs_of(profile: Profile, subject: int) -> Needs:
    """What the decoders of a prepared subject need.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 01 has not prepared the subject, or its files are damaged.
    """
    delay = DELAY
    if profile.data.recordings is not None:
        from nfx.data.derivatives import load_recordings

        delay = load_recordings(profile).delay
    vertex = tuple(load_arrays(work(profile, f"subject{subject}"), "vertex")["vertex"].tolist())
    how = profile.sampling
    return Needs(vertex, profile.data.window, delay, how.solver, how.steps, how.guidance, profile.seed)


def write_needs(folder: PathLike, needs: Needs) -> None:
    """Write `decoder.json` into a decoder's folder."""
    write_json(Path(folder) / NEEDS, needs._asdict())


def read_needs(folder: PathLike) -> Needs:
    """Read the `decoder.json` of a decoder's folder.

    Raises
    ------
    FileNotFoundError
        If there is none: the folder is no decoder, or one that was not written by `nfx publish`.
    ValueError
        If it is damaged.
    """
    path = Path(folder) / NEEDS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so it is not known which voxels the decoder reads: give a folder that "
            "'nfx publish PROFILE FOLDER' has written"
        )
    content = read_json(path)
    try:
        return Needs(**{**content, "vertex": tuple(content["vertex"])})
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged: expected the keys {', '.join(Needs._fields)}; publish it again"
        ) from error


def read_windows(
    recordings: PathLike | Sequence[PathLike],
    decoder: PathLike,
    clips: int | None = None,
    onset: float | None = None,
    repetition_time: float | None = None,
) -> np.ndarray:
    """Clean recordings of one film and cut them to the windows that a decoder reads.

    Each recording is cut to the film, loses a polynomial of degree four and is z-scored; several recordings, which must
    be of the same film and subject, are averaged as repeats are (Section 4.2).

    Parameters
    ----------
    recordings : path of a `.dtseries.nii` file in fsLR-32k space, or several
    decoder : folder that `nfx publish` has written
    clips : int, optional
        Clips of 2 s in the film. Without an onset, the recording has the published layout, this number of volumes and
        five or six more, and is trimmed as `nfx.data.clean_run` does. With an onset, default: as many as fit.
    onset : float, optional
        When in the recording the film begins, s from the first volume on. The haemodynamic delay is added here.
    repetition_time : float, optional
        s; only with an onset. Default: RepetitionTime of the JSON file beside the recording, else its header's.

    Returns
    -------
    array of shape (clips, window, voxels), float32

    Raises
    ------
    FileNotFoundError
        If a recording or the decoder's `decoder.json` is missing.
    ValueError
        If a recording is damaged, is shorter than the film, or lacks vertices that the decoder reads.
    """
    files = [Path(recordings)] if isinstance(recordings, str | os.PathLike) else [Path(file) for file in recordings]
    if not files:
        raise ValueError("no recording was given: give one .dtseries.nii file or more")
    if clips is None and onset is None:
        raise ValueError(
            "give the film's number of clips (published layout), or when it begins in the recording (onset, s)"
        )
    if clips is not None and clips < 1:
        raise ValueError(f"clips is {clips}: give the number of 2-s clips of the film, 1 or more")
    needs = read_needs(decoder)
    rows = [_rows(file, needs, clips, onset, repetition_time) for file in files]
    lengths = sorted({len(part) for part in rows})
    if len(lengths) > 1:
        raise ValueError(f"the recordings hold from {lengths[0]} to {lengths[-1]} clips: give the number of clips")
    total = np.zeros(rows[0].shape)
    for part in rows:
        total += part
    mean = (total / len(rows)).astype(np.float32)
    return windows(mean, np.ones(len(mean), int), needs.window)


def _rows(file: Path, needs: Needs, clips: int | None, onset: float | None, tr: float | None) -> np.ndarray:
    """One recording, (clips, voxels) float32, cleaned."""
    data, structure, vertex = read_cifti(file)
    places = grayordinate(structure, vertex)
    column = {place: index for index, place in enumerate(places.tolist()) if place >= 0}
    absent = [place for place in needs.vertex if place not in column]
    if absent:
        raise ValueError(
            f"{file} lacks {len(absent)} of the {len(needs.vertex)} vertices that the decoder reads, e.g. grayordinate "
            f"{absent[0]}: expected the subject's cortex in the space of the training recordings (fsLR 32k)"
        )
    bold = data[:, [column[place] for place in needs.vertex]]
    run = Run("film", 1, file)
    try:
        if onset is not None:
            tr = _repetition_time(file) if tr is None else tr
            run = run._replace(start=onset + needs.delay, repetition_time=tr)
            clips = clips or int((len(bold) * tr - onset - needs.delay + ROUNDING) // CLIP_SECONDS)
            if clips < 1:
                raise ValueError(f"{len(bold)} volumes of {tr:g} s end before the film's first clip does")
        return clean_film(run, bold, clips or 0)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _repetition_time(file: Path) -> float:
    from nfx.data.derivatives import _repetition_time as found

    tr = found(file)
    assert tr is not None  # it is, or an error is raised, for a file that exists
    return tr
