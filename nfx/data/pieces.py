"""Preparing that goes on where it was interrupted: results are kept piece by piece until the whole is written.

A folder under work/ that is being prepared has a hidden folder `.pieces/<digest>`, whose name stands for the facts and
the code that the pieces were made with. A piece is a whole `.npy` file (moved into place when it is on disk), whose
name stands for what it was made from: paths, sizes and times of its input files; beside it stands its sha256. So
nothing stale, half-written or damaged is ever taken up again. Pieces need as much disk as the arrays they become, until
`discard` removes them at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfx.files import as_json, read_json, sha256, source_digest, write_atomically, write_json

FOLDER = ".pieces"
COPIED_AT_ONCE = 1 << 20  # bytes


def open_pieces(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Where the pieces of `folder` for these facts are kept; pieces of other facts or other code are removed."""
    pieces = folder / FOLDER / digest({"facts": facts, "code": source_digest("data")})
    pieces.mkdir(parents=True, exist_ok=True)
    for other in pieces.parent.iterdir():
        if other != pieces:
            shutil.rmtree(other)
    return pieces


def keep(pieces: Path, name: str, inputs: Any, make: Callable[[], np.ndarray]) -> Path:
    """The file of a piece, made now unless it is there.

    Parameters
    ----------
    pieces : path of `open_pieces`
    name : str
    inputs : JSON-serialisable
        What the piece depends on beside the facts: `file_state` of the files it is made from, choices made before.
    make : callable that returns the array
    """
    path = pieces / f"{name}-{digest(inputs)}.npy"
    if not _is_whole(path):
        with write_atomically(path) as temporary:
            np.save(temporary, make(), allow_pickle=False)
        write_json(path.with_suffix(".json"), sha256(path))
    return path


def join(path: Path, parts: Sequence[Path], rows: Sequence[int] | None = None) -> Path:
    """Write the rows of pieces after one another as one array, without reading one whole into memory.

    Parameters
    ----------
    path : where to write; beside the pieces, for `save_arrays` to move into place
    parts : files of pieces of one type and one shape but for the number of rows
    rows : shape that takes the place of the rows, e.g. (clips, 6) where a piece has a row a frame; default: one axis

    Returns
    -------
    path
    """
    headers = [_header(part) for part in parts]
    first = headers[0]
    count = sum(shape[0] for shape, _, _ in headers)
    rows = (count,) if rows is None else tuple(rows)
    if any((shape[1:], dtype) != (first[0][1:], first[1]) for shape, dtype, _ in headers) or math.prod(rows) != count:
        raise ValueError(f"{path}: pieces of {count} rows do not make an array with the first axes {rows}")
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        kind = {"descr": first[1].str, "fortran_order": False, "shape": (*rows, *first[0][1:])}
        np.lib.format.write_array_header_1_0(file, kind)
        for part, (_, _, start) in zip(parts, headers, strict=True):
            with open(part, "rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, file, COPIED_AT_ONCE)
    return path


def discard(folder: Path) -> None:
    """Remove the pieces of `folder`, when its manifest is written."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def file_state(path: Path) -> list[Any]:
    """Path, size and time of change of a file: another file under the same name is another input."""
    state = os.stat(path)
    return [str(path), state.st_size, state.st_mtime_ns]


def digest(obj: Any) -> str:
    """Twenty characters that stand for what can be written as JSON, arrays (by their bytes) included."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            content = np.ascontiguousarray(value)
            return [content.dtype.str, list(content.shape), hashlib.sha256(content.tobytes()).hexdigest()]
        return as_json(value)

    text = json.dumps(obj, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _is_whole(path: Path) -> bool:
    """Whether a piece is there with the bytes that were written; a disk that failed may have cut or changed it."""
    try:
        return read_json(path.with_suffix(".json")) == sha256(path)
    except (FileNotFoundError, ValueError):
        return False


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype of a .npy file, and where its data begin."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran_order:
            raise ValueError(f"{path} holds columns first; rows were expected")
        return shape, dtype, file.tell()
