"""Recordings of other films, prepared with fMRIPrep, described by a small YAML (docs/other_data.md).

    <derivatives>/sub-01/[ses-x/]func/sub-01_ses-x_task-movie_run-1_space-fsLR_den-91k_bold.dtseries.nii and .json
    <bids>/sub-01/[ses-x/]func/sub-01_ses-x_task-movie_run-1_events.tsv

The events say what was shown when; each showing is averaged to the film's clips and then goes the way of the published
recordings (`dataset.py`).
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nfx import paths
from nfx.data.cifti import time_step
from nfx.data.dataset import Run, natural_sort
from nfx.data.stimuli import CLIP_SECONDS, LENGTH_TOLERANCE
from nfx.files import is_inside, read_yaml
from nfx.profile import shown as as_shown

if TYPE_CHECKING:
    from nfx.profile import Profile

HELP = "see docs/other_data.md"
EVENTS = "_events.tsv"
LONGEST_STEP = 1000.0  # s between volumes; what is longer is in milliseconds
NOT_GIVEN = ("", "n/a")  # BIDS writes n/a where a table has no value


def _below(film: str) -> str:
    if not is_inside(film):
        raise ValueError(f"the film {as_shown(film)} does not lie below 'stimuli'; expected a path such as part1.mp4")
    return film


LONGEST_NAME = 250  # characters; file names have at most 255 bytes
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$", max_length=LONGEST_NAME)]
Suffix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$", max_length=LONGEST_NAME)]  # a part of a file name
Below = Annotated[Name, AfterValidator(_below)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Film(_Section):
    """A segment: its file below `stimuli`, and its name in the events; written as one text where they are the same."""

    film: Below
    event: Name

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return {"film": value, "event": value} if isinstance(value, str) else value


Films = Annotated[tuple[Film, ...], Field(strict=False, min_length=1)]


class Recordings(_Section):
    """Attributes are the keys of the YAML; folders are absolute or relative to the repository."""

    derivatives: Name
    bids: Name
    stimuli: Name
    task: Label
    suffix: Suffix
    subjects: dict[int, Label]
    train: Films
    test: Films
    events_column: Name
    other_events: Annotated[tuple[str, ...], Field(strict=False)]
    delay: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _each_once(self) -> Recordings:
        for key in ("film", "event"):
            counts = Counter(getattr(entry, key) for entry in (*self.train, *self.test))
            twice = [name for name, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"the {key} '{twice[0]}' comes twice in train and test; expected once")
        both = {entry.event for entry in (*self.train, *self.test)} & set(self.other_events)
        if both:
            raise ValueError(f"'{min(both)}' is the event of a film and in other_events; expected in one of them")
        return self

    @property
    def segments(self) -> dict[str, Film]:
        """The films by segment: seg1, ..., test1, ..."""
        return {f"{kind}{n}": f for kind, fs in (("seg", self.train), ("test", self.test)) for n, f in enumerate(fs, 1)}


def load_recordings(profile: Profile) -> Recordings:
    """Read the YAML that `data.recordings` names, and compare it with the profile.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a key is unknown or missing, a value is wrong, or the profile has other segments or subjects.
    """
    path = paths.ROOT / str(profile.data.recordings)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; data.recordings names a YAML file ({HELP}), or is null")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected the keys of a description; {HELP}")
    try:
        recordings = Recordings.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_sentence(error)}") from None
    for key, films, expected in (
        ("train", recordings.train, profile.data.train_segments),
        ("test", recordings.test, profile.data.test_segments),
    ):
        if len(films) != expected:
            raise ValueError(f"{path}: {key} lists {len(films)} films, but data.{key}_segments is {expected}")
    unknown = [subject for subject in profile.data.subjects if subject not in recordings.subjects]
    if unknown:
        raise ValueError(f"{path}: subjects gives no label of subject {unknown[0]}, which data.subjects names")
    return recordings


def film_paths(profile: Profile) -> dict[str, Path]:
    """The film of every segment, training segments first."""
    recordings = load_recordings(profile)
    return {name: paths.ROOT / recordings.stimuli / entry.film for name, entry in recordings.segments.items()}


def showings(profile: Profile, subject: int) -> list[Run]:
    """Every showing of a film segment to a subject, segments in order, repeats in order of session, run and onset.

    The raw data set's events say what was shown, so that a recording that fMRIPrep did not deliver is missed and not
    passed over: its file does not exist, and its repetition time may be None.

    Raises
    ------
    FileNotFoundError
        If the subject has no events of the task, or a recording lacks its own.
    ValueError
        If an events file is damaged, names a film that the YAML does not, or says that a film was not shown whole; or
        if a repetition time is missing.
    """
    recordings = load_recordings(profile)
    label = recordings.subjects[subject]
    names = {entry.event: name for name, entry in recordings.segments.items()}
    seconds = {"seg": CLIP_SECONDS * profile.data.train_volumes, "test": CLIP_SECONDS * profile.data.test_volumes}
    found: dict[str, list[Run]] = {name: [] for name in recordings.segments}
    for events in _events_files(recordings, label):
        path = _recording(recordings, events)
        shown = _films_shown(events, recordings, names)
        step = _repetition_time(path) if shown else None
        for event in shown:
            name = names[event.film]
            lasts = seconds[name.rstrip("0123456789")]
            if event.duration is not None and event.duration < lasts - LENGTH_TOLERANCE:
                raise ValueError(
                    f"{events} shows '{event.film}' for {event.duration:g} s from {event.onset:g} s on, but by the "
                    f"profile it has {lasts:g} s; expected one row for each whole showing, or n/a as its duration"
                )
            repeat = len(found[name]) + 1
            found[name].append(Run(name, repeat, path, event.onset + recordings.delay, step))
    return [run for runs in found.values() for run in runs]


def shown_too_rarely(profile: Profile, subject: int, segment: str, repeats: int) -> str:
    """What is wrong where a segment was shown less often than the profile says."""
    recordings = load_recordings(profile)
    film, label = recordings.segments[segment], recordings.subjects[subject]
    times = sum(run.segment == segment for run in showings(profile, subject))
    kind = "train" if segment.startswith("seg") else "test"
    if times == 0:
        return (
            f"the events of sub-{label}, task {recordings.task}, never show '{film.event}' ({segment}); correct them, "
            f"or take the film out of {profile.data.recordings}"
        )
    return (
        f"the events of sub-{label}, task {recordings.task}, show '{film.event}' ({segment}) {times} times, but "
        f"data.{kind}_repeats is {repeats}; correct it, or put subject{subject}/{segment}_{times + 1} in "
        f"data.exclude_runs"
    )


# --- files ---------------------------------------------------------------------------------------------------


class _Event(NamedTuple):
    onset: float
    film: str
    duration: float | None


def _events_files(recordings: Recordings, label: str) -> list[Path]:
    """The events of a subject's runs of the task, in order of session and run; each recording must have its own."""
    raw, derived = paths.ROOT / recordings.bids, paths.ROOT / recordings.derivatives
    folder = raw / f"sub-{label}"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; expected the raw BIDS data of a subject ({HELP})")
    files = _of_task(raw, label, EVENTS, recordings.task)
    for recording in _of_task(derived, label, f"_{recordings.suffix}.dtseries.nii", recordings.task):
        stem = recording.name.removesuffix(f"_{recordings.suffix}.dtseries.nii")
        events = raw / recording.parent.relative_to(derived) / f"{stem}{EVENTS}"
        if events not in files:
            raise FileNotFoundError(f"{events} does not exist; the recording {recording} needs its events")
    if not files:
        raise FileNotFoundError(
            f"{folder} has no events of the task '{recordings.task}'; expected "
            f"[ses-*/]func/sub-{label}_*task-{recordings.task}*{EVENTS}"
        )
    order = natural_sort({_order(file) for file in files})
    return sorted(files, key=lambda file: order.index(_order(file)))


def _of_task(root: Path, label: str, ending: str, task: str) -> list[Path]:
    """Files of a subject and task in `func` folders, with or without sessions."""
    files = [
        file
        for pattern in ("func", "ses-*/func")
        for file in (root / f"sub-{label}").glob(f"{pattern}/sub-{label}_*{ending}")
    ]
    return [file for file in files if _entities(file).get("task") == task]


def _entities(file: Path) -> dict[str, str]:
    """BIDS entities of a file name: {"sub": "01", "ses": ..., "task": ..., "run": ...}."""
    return dict(part.split("-", 1) for part in file.name.split("_") if "-" in part)


def _order(file: Path) -> str:
    """Session, run, then all the rest: what showings are numbered by."""
    entities = _entities(file)
    return f"{entities.get('ses', '')} {entities.get('run', '')} {file.name}"


def _recording(recordings: Recordings, events: Path) -> Path:
    """The recording that belongs to an events file."""
    folder = paths.ROOT / recordings.derivatives / events.parent.relative_to(paths.ROOT / recordings.bids)
    return folder / f"{events.name.removesuffix(EVENTS)}_{recordings.suffix}.dtseries.nii"


def _films_shown(file: Path, recordings: Recordings, names: dict[str, str]) -> list[_Event]:
    """The rows of an events file that show a film, by onset; other rows must be known as such."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text, delimiter="\t", restval=""))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no table of events ({error}); expected text, tabs between columns") from error
    columns = list(rows[0]) if rows else []
    for column in ("onset", "duration", recordings.events_column):
        if rows and column not in columns:
            raise ValueError(f"{file} has no column '{column}'; it has {as_shown(columns)}")
    shown = []
    for number, row in enumerate(rows, 2):
        film = row[recordings.events_column].strip()
        if film in NOT_GIVEN or film in recordings.other_events:
            continue
        if film not in names:
            raise ValueError(
                f"{file}, line {number}: {as_shown(film)} in the column {recordings.events_column} is no film of "
                f"{as_shown(sorted(names))}; correct it, or list it in other_events if it is none"
            )
        onset = _seconds(row["onset"], "onset", file, number)
        if onset is None:
            raise ValueError(f"{file}, line {number}: onset is {as_shown(row['onset'])}, expected seconds")
        shown.append(_Event(onset, film, _seconds(row["duration"], "duration", file, number)))
    return sorted(shown, key=lambda event: event.onset)


def _seconds(text: str, column: str, file: Path, line: int) -> float | None:
    """A time of an events file; None where it is not given."""
    if text.strip() in NOT_GIVEN:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{file}, line {line}: {column} is {as_shown(text)}, expected seconds")
    return value


def _repetition_time(path: Path) -> float | None:
    """Repetition time, s: from the sidecar (RepetitionTime), else from the recording's header; None without either."""
    stem = path.name.removesuffix(".dtseries.nii")
    for sidecar in (path.with_name(f"{stem}.json"), path.with_name(f"{stem}.dtseries.json")):
        if sidecar.is_file():
            try:
                value = json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime")
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError(f"{sidecar} is not a JSON object; expected one with RepetitionTime") from error
            if value is not None:
                return _positive(value, sidecar)
    return _positive(time_step(path), path) if path.is_file() else None


def _positive(value: Any, path: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < LONGEST_STEP:
        raise ValueError(
            f"{path} gives no repetition time ({as_shown(value)}); expected RepetitionTime in seconds in "
            f"{path.name.removesuffix('.json').removesuffix('.dtseries.nii').removesuffix('.dtseries')}.json"
        )
    return float(value)


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints."""
    first = error.errors(include_url=False)[0]
    key, value = ".".join(str(part) for part in first["loc"]), first["input"]
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key[:80]}' (value {as_shown(value)}); {HELP}"
    if first["type"] == "missing":
        return f"key '{key}' is missing; {HELP}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    hint = "; write labels in quotation marks, without sub-" if key.startswith("subjects") else ""
    return f"'{key[:80]}' is {as_shown(value)}: {first['msg'][0].lower()}{first['msg'][1:]}{hint}"
