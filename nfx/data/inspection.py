"""Looking whether the published data set is all there, before hours of work on it.

    python -m nfx.data.inspection ROOT [--subjects 1 2 3]

Headers and file sizes alone are read. Values are checked when a run is cleaned.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas as pd
from nibabel.cifti2.parse_cifti2 import Cifti2Parser
from tqdm import tqdm

from nfx.data.cifti import checked_axes
from nfx.data.cleaning import FIRST_DROPPED, LAST_DROPPED
from nfx.data.stimuli import CLIP_SECONDS, FRAME_RATE, LENGTH_TOLERANCE, RATE_TOLERANCE, opened
from nfx.files import one_line

DATA_SET = "video_fmri_dataset"
STATES = ("present", "late", "missing", "truncated", "misnamed", "damaged", "unexpected")
FAULTS = ("missing", "truncated", "misnamed", "damaged")
LATE = "subject3/fmri/test2/cifti/test2_9_Atlas.dtseries.nii"
SURFACE_VERTICES = 32492  # of a hemisphere of fsLR-32k
HEADER_BYTES = 540  # of NIfTI-2


class Finding(NamedTuple):
    """The state of a file, what more is to be said, and, of a whole recording, a digest of its brain axis."""

    state: str
    detail: str = ""
    brain: str = ""


def check_dataset(
    root: str | Path,
    subjects: Sequence[int] = (1, 2, 3),
    *,
    train_segments: int = 18,
    test_segments: int = 5,
    train_repeats: int = 2,
    test_repeats: int = 10,
    train_volumes: int = 240,
    test_volumes: int = 240,
) -> pd.DataFrame:
    """Compare a folder with the published layout, file by file.

    Parameters
    ----------
    root : path
        The folder `video_fmri_dataset`, or the one that holds it.
    subjects : sequence of int
    train_segments, test_segments, train_repeats, test_repeats : int
        As published.
    train_volumes, test_volumes : int
        Clips of 2 s in a film, and volumes of a run after trimming; a run has 5 or 6 more.

    Returns
    -------
    DataFrame
        A row for each expected film and recording, then for each file beside them, with the columns part, file (path
        in `video_fmri_dataset`), state, detail. States:

        - present
        - late: subject3's test2_9, whole but about 10 s behind the film; the paper profile excludes it
        - missing
        - truncated: shorter than its header says, or a film that cannot be opened or is too short
        - misnamed: there under a name with another separator or case; detail gives the expected one
        - damaged: cannot be read, another number of volumes, another brain axis than most runs of the subject, a film
          too long or at another rate
        - unexpected: a file that is none of these, in a folder that is read

    Raises
    ------
    FileNotFoundError
        If `root` neither is nor holds the data set.
    """
    root = _data_set(Path(root))
    trains = [(f"seg{n}", train_repeats, train_volumes) for n in range(1, train_segments + 1)]
    tests = [(f"test{n}", test_repeats, test_volumes) for n in range(1, test_segments + 1)]
    expected = {"stimuli": {f"stimuli/{name}.mp4": volumes for name, _, volumes in trains + tests}}
    for subject in subjects:
        expected[f"subject{subject}"] = {
            f"subject{subject}/fmri/{name}/cifti/{name}_{repeat}_Atlas.dtseries.nii": volumes
            for name, repeats, volumes in trains + tests
            for repeat in range(1, repeats + 1)
        }
    tables = [_check_part(root, part, files) for part, files in expected.items()]
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> str:
    """Counts by part and state, then the files that are not present; a part of which nothing is there is one line."""
    counts = pd.crosstab(table["part"], table["state"])
    lines = [counts.reindex(columns=[state for state in STATES if state in counts]).to_string(), ""]
    for part, rows in table.groupby("part", sort=False):
        if (rows["state"] == "missing").all():
            lines.append(f"missing: all {len(rows)} files of {part}")
            continue
        for row in rows[rows["state"] != "present"].itertuples():
            lines.append(f"{row.state}: {row.file}" + (f" ({row.detail})" if row.detail else ""))
    return "\n".join(lines).rstrip()


def _data_set(root: Path) -> Path:
    if (root / DATA_SET).is_dir():
        return root / DATA_SET
    if root.is_dir() and (root.name == DATA_SET or (root / "stimuli").is_dir()):
        return root
    raise FileNotFoundError(f"{root} neither is nor holds {DATA_SET}/; python -m nfx.data.fetch {root} fetches it")


def _check_part(root: Path, part: str, expected: Mapping[str, int]) -> pd.DataFrame:
    """The rows of one part, from its files' names and their volumes (of a film: clips)."""
    pattern = "*" if part == "stimuli" else "fmri/*/cifti/*"
    there = {path.relative_to(root).as_posix() for path in _visible_files(root / part, pattern)}
    beside = {_spelling(name): name for name in sorted(there - expected.keys())}
    findings: dict[str, Finding] = {}
    for name, volumes in tqdm(expected.items(), desc=part, unit="file", leave=False, mininterval=1):
        if name not in there:
            other = beside.pop(_spelling(name), None)
            findings[other or name] = Finding("misnamed", f"expected {name}") if other else Finding("missing")
        elif name.endswith(".mp4"):
            findings[name] = check_film(root / name, volumes * CLIP_SECONDS)
        else:
            findings[name] = check_recording(root / name, volumes)
    # As when runs are prepared, all must have the same grayordinates; the odd one out is the damaged one.
    brains = Counter(finding.brain for finding in findings.values() if finding.brain)
    usual = brains.most_common(1)[0][0] if brains else ""
    for name, finding in findings.items():
        if finding.brain not in ("", usual):
            findings[name] = Finding("damaged", "has other grayordinates than most runs of the subject")
        elif name == LATE and finding.state == "present":
            findings[name] = Finding("late", "about 10 s behind the film; the paper profile excludes it")
    for name in sorted(there - findings.keys()):
        findings[name] = Finding("unexpected")
    rows = [(part, name, finding.state, finding.detail) for name, finding in findings.items()]
    return pd.DataFrame(rows, columns=["part", "file", "state", "detail"])


def _visible_files(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def _spelling(name: str) -> tuple[str | int, ...]:
    """Words and numbers of a path, without case and separators: test1_9 agrees with Test1.9, but not with test19."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[a-z]+|[0-9]+", name.lower()))


# --- films ---------------------------------------------------------------------------------------------------


def check_film(path: Path, seconds: float) -> Finding:
    """State of a film that should last `seconds`, by its boxes and its header."""
    size = path.stat().st_size
    end = _end_of_boxes(path)
    if end > size:
        return Finding("truncated", f"{size} bytes, but its header says {end}")
    try:
        with opened(path) as stream:
            rate = float(stream.average_rate or 0)
            lasts = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    except (ValueError, OSError) as error:
        return Finding("truncated", f"cannot be opened ({one_line(error)})")
    if lasts < seconds - LENGTH_TOLERANCE:
        return Finding("truncated", f"lasts {lasts:.2f} s, {seconds:g} s were expected")
    if lasts > seconds + LENGTH_TOLERANCE:
        return Finding("damaged", f"lasts {lasts:.2f} s, {seconds:g} s were expected")
    if abs(rate - FRAME_RATE) > RATE_TOLERANCE:
        return Finding("damaged", f"{rate:g} frames per second, {FRAME_RATE:g} were expected")
    return Finding("present")


def _end_of_boxes(path: Path) -> int:
    """Where an MP4's outermost boxes end. A film whose index comes first opens even if its pictures are cut short."""
    size, end = path.stat().st_size, 0
    with open(path, "rb") as file:
        while end < size:
            file.seek(end)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # the length follows in 64 bits
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # to the end of the file
                return size
            if len(header) < 8 or length < 8 or not header[4:8].isalnum():
                return end  # no box: left to the reader
            end += length
    return end


# --- recordings ----------------------------------------------------------------------------------------------


def check_recording(path: Path, volumes: int) -> Finding:
    """State of a recording of `volumes` + 5 or + 6 volumes, by its header and size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        block = file.read(HEADER_BYTES)
        if len(block) < HEADER_BYTES:
            return Finding("truncated", f"{size} bytes, less than a header")
        try:
            header = nibabel.Nifti2Header(block)
            offset, shape = int(header["vox_offset"]), header.get_data_shape()
            width = header.get_data_dtype().itemsize
            needed = offset + math.prod(shape) * width
        except Exception as error:  # nibabel raises many kinds for a damaged header
            return Finding("damaged", f"no NIfTI-2 header ({one_line(error)})")
        # Where a length is 0, a product of lengths bounds none of the others, nor the memory that the axes take.
        if min(shape, default=0) < 1 or width < 1:
            return Finding("damaged", f"its header says data of shape {shape} and {width} bytes a value")
        if size < needed:
            return Finding("truncated", f"{size} bytes, but its header says {needed}")
        extension = file.read(max(0, offset - HEADER_BYTES))
    first, last = extension.find(b"<CIFTI"), extension.rfind(b"</CIFTI>")
    if not 0 <= first < last:
        return Finding("damaged", "no CIFTI header")
    try:
        # Metadata differ between runs (they name files); the axes hardly do, and need not be parsed 86 times.
        xml = _without_metadata(extension[first : last + len(b"</CIFTI>")])
        points, brain, grayordinates = _axes(xml, shape[4:])
    except Exception as error:  # as above
        return Finding("damaged", f"its CIFTI header cannot be read ({one_line(error)})")
    if shape[4:] != (points, grayordinates):
        return Finding("damaged", f"data of shape {shape[4:]}, but its axes say {(points, grayordinates)}")
    allowed = [first + volumes + LAST_DROPPED for first in FIRST_DROPPED]
    if points not in allowed:
        return Finding("damaged", f"{points} volumes, {' or '.join(map(str, allowed))} were expected")
    return Finding("present", brain=brain)


def _without_metadata(xml: bytes) -> bytes:
    """Without regular expressions, which of many tags that are never closed would look for the end of each."""
    kept, end = [], 0
    while (start := xml.find(b"<MetaData>", end)) >= 0 and (close := xml.find(b"</MetaData>", start)) >= 0:
        kept.append(xml[end:start])
        end = close + len(b"</MetaData>")
    return b"".join([*kept, xml[end:]])


@lru_cache(maxsize=8)
def _axes(xml: bytes, shape: tuple[int, ...]) -> tuple[int, str, int]:
    """Volumes, a digest of the grayordinates, and their number, for data of this shape."""
    parser = Cifti2Parser()
    parser.parse(string=xml)
    series, brain = checked_axes(parser.header, shape)
    for side in ("LEFT", "RIGHT"):
        if (count := brain.nvertices.get(f"CIFTI_STRUCTURE_CORTEX_{side}")) != SURFACE_VERTICES:
            raise ValueError(f"{side.lower()} cortex of {count or 0} vertices, expected fsLR-32k ({SURFACE_VERTICES})")
    digest = hashlib.sha256("\n".join(brain.name).encode())
    digest.update(np.asarray(brain.vertex, np.int64).tobytes())
    return len(series), digest.hexdigest(), len(brain)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: prints the summary; status 1 if a file is missing, truncated, misnamed or damaged."""
    parser = argparse.ArgumentParser(prog="python -m nfx.data.inspection", description="Check the published data set.")
    parser.add_argument("root", help=f"{DATA_SET}/, or the folder that holds it")
    parser.add_argument("--subjects", type=int, nargs="*", default=[1, 2, 3], help="default: 1 2 3")
    given = parser.parse_args(arguments)
    try:
        table = check_dataset(given.root, given.subjects)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(summary(table))
    sys.exit(1 if table["state"].isin(FAULTS).any() else 0)


if __name__ == "__main__":
    main()
