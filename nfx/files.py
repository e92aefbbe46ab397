"""Reading and writing results so that a half-written file is never taken for a whole one.

A folder of results is complete when its ``manifest.json`` is there: it is written last, and lists what the folder
holds (shapes, sha256, sizes), from what settings and code (`facts`), and with which versions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nfx import paths

MANIFEST = "manifest.json"
_RECORDED = ("nfx", "numpy", "scipy", "nibabel", "torch", "diffusers", "transformers", "accelerate")
_MADE_BY = {  # first folder under work/<profile>/ -> the notebook that writes it
    "stimuli": "01_data_preparation",
    "targets": "01_data_preparation",
    "subject": "01_data_preparation",
    "pretraining": "02_encoder_contrastive_training",
    "encoder": "02_encoder_contrastive_training",
    "stage1": "03_diffusion_fine_tuning",
    "decoder": "03_diffusion_fine_tuning",
}


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, delete it on error.

    The suffix of `path` is kept, for writers that go by it. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. NaN and infinity are a ValueError: JSON has neither."""
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON ({error})") from error
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or damaged one is an error that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. {_remedy(path.parent)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it, then: {_remedy(path.parent)}") from error


def save_arrays(
    folder: str | os.PathLike[str], arrays: Mapping[str, np.ndarray | Path], facts: Mapping[str, Any]
) -> None:
    """Save each array as ``folder/<name>.npy`` and, last, the manifest.

    Parameters
    ----------
    folder : path
        Made if missing. An old manifest is removed first, so that an interrupted save is never taken for a whole one.
    arrays : dict of str to array, or to the path of a .npy file
        Of any shape; object arrays are refused. A file, for an array that was too large for memory, must be on the same
        disk, and is moved.
    facts : dict
        What the arrays were made from: settings, seed, `source_digest`, `identity`. JSON-serialisable.
    """
    folder = Path(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    listed: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        if isinstance(array, Path):
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(array, path)
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            array = np.asanyarray(array)
            with write_atomically(path) as temporary:
                np.save(temporary, array, allow_pickle=False)
        listed[name] = {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": sha256(path)}
    files = {f"{name}.npy": _file_entry(folder / f"{name}.npy", listed[name]["sha256"]) for name in arrays}
    write_json(folder / MANIFEST, {"facts": facts, "arrays": listed, "files": files, **_provenance()})


def load_arrays(folder: str | os.PathLike[str], *names: str) -> dict[str, np.ndarray]:
    """Memory-map arrays of `save_arrays`, read-only; all of them if no name is given.

    Raises
    ------
    FileNotFoundError
        If the folder, its manifest or a file is missing; the message says which notebook to run.
    ValueError
        If a name is not in the manifest, or a file's size, shape or dtype differ from it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    listed = manifest.get("arrays", {})
    loaded = {}
    for name in names or listed:
        if name not in listed:
            raise ValueError(f"{folder / MANIFEST} lists no array '{name}'; it has {sorted(listed)}")
        path, expected = folder / f"{name}.npy", listed[name]
        _check_size(path, manifest["files"][f"{name}.npy"]["bytes"])
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
            raise ValueError(
                f"{path} holds {array.dtype.str} {list(array.shape)}, but its manifest says "
                f"{expected['dtype']} {expected['shape']}. {_remedy(folder)}"
            )
        loaded[name] = array
    return loaded


def write_manifest(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], files: Iterable[str | os.PathLike[str]] | None = None
) -> None:
    """Write the manifest of a folder that holds anything but arrays alone: snapshots, tables.

    Parameters
    ----------
    folder : path
        Where ``manifest.json`` goes.
    facts : dict
        As in `save_arrays`. Arrays listed by an earlier manifest stay listed while their files are unchanged.
    files : iterable of paths, optional
        Relative to `folder`. By default every file below it, except hidden ones, checkpoints and the manifest itself.
    """
    folder = Path(folder)
    listed = _every_file(folder) if files is None else [folder / file for file in files]
    for path in listed:
        if not path.is_file():
            raise FileNotFoundError(f"{path} cannot be put in the manifest: it does not exist")
    entries = {path.relative_to(folder).as_posix(): _file_entry(path) for path in sorted(listed)}
    write_json(
        folder / MANIFEST, {"facts": facts, "arrays": _arrays(folder, entries), "files": entries, **_provenance()}
    )


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder, as a dict with facts, arrays, files, versions and git_revision."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: this result has not been made, or not to the end. {_remedy(folder)}"
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"facts", "files"} <= manifest.keys():
        raise ValueError(f"{path} is not a manifest: expected the keys 'facts' and 'files'. {_remedy(folder)}")
    return manifest


def finished(folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> bool:
    """Whether `folder` already holds the result of `facts`: manifest there, same facts, all files with their sizes.

    So `facts` must hold all that the result depends on: its settings, the `source_digest` of the code that makes it,
    and the `identity` of each folder that it is made from.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        if manifest["facts"] != as_json(facts):
            return False
        for name, entry in manifest["files"].items():
            _check_size(folder / name, entry["bytes"])
    except (FileNotFoundError, ValueError):
        return False
    return True


def identity(folder: str | os.PathLike[str], *names: str) -> str:
    """Digest of what a finished folder holds (by its manifest), or of its arrays `names`; not of when it was made.

    For the `facts` of a result made from it, so that new data make the result unfinished.
    """
    files = read_manifest(folder)["files"]
    chosen = [f"{name}.npy" for name in names] or sorted(files)
    missing = [name for name in chosen if name not in files]
    if missing:
        raise ValueError(f"{Path(folder) / MANIFEST} lists no {missing}; it has {sorted(files)}")
    return hashlib.sha256("".join(name + files[name]["sha256"] for name in chosen).encode()).hexdigest()


@cache  # once a process: the code that runs is the code that was there when it started
def source_digest(*parts: str) -> str:
    """Digest of the code in files or folders of the package, e.g. ``source_digest("encoder", "training.py")``.

    Comments, docstrings and layout do not count, so that improving the prose never retrains a model.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for part in parts:
        path = package / part
        sources = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not sources or not path.exists():
            raise FileNotFoundError(f"{path} holds no source: give a file or folder of the package nfx")
        for source in sources:
            digest.update(source.relative_to(package).as_posix().encode())
            digest.update(_code_of(source.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _code_of(text: str) -> str:
    """Syntax tree of a source without docstrings, as text."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return ast.dump(tree)


def require_exact_weights(report: Mapping[str, Any], snapshot: str | os.PathLike[str], kind: str) -> None:
    """ValueError unless all weights of a model of class `kind` were found in its snapshot, and no others.

    Hugging Face's classes warn of the first and leave those weights at random; `report` is what their from_pretrained
    returns with `output_loading_info=True`.
    """
    found = {"missing": report["missing_keys"], "unexpected": report["unexpected_keys"]}
    wrong = [f"{len(names)} {problem}, e.g. {min(map(str, names))}" for problem, names in found.items() if names]
    if wrong:
        raise ValueError(
            f"{os.fspath(snapshot)} does not hold the weights of a {kind}: {'; '.join(wrong)}. The snapshot is damaged "
            "or of another model or version: copy, download or make it again"
        )


def as_json(obj: Any) -> Any:
    """`obj` as it comes back from JSON: tuples become lists, keys text; for comparing with what was read."""
    return json.loads(json.dumps(obj, default=_plain))


def _plain(value: Any) -> Any:
    """For json: NumPy scalars and arrays, paths, and what pydantic can dump."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _file_entry(path: Path, digest: str | None = None) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest or sha256(path)}


def _every_file(folder: Path) -> list[Path]:
    def wanted(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return (
            path.is_file() and parts != (MANIFEST,) and not any(p.startswith(".") or p == "checkpoint" for p in parts)
        )

    return [path for path in folder.rglob("*") if wanted(path)]


def _arrays(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Shape and dtype of every .npy among the files at the top of the folder."""
    listed = {}
    for name, entry in entries.items():
        if name.endswith(".npy") and "/" not in name:
            array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            listed[name[:-4]] = {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": entry["sha256"]}
    return listed


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but its manifest lists it. {_remedy(path.parent)}")
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, but its manifest says {expected}: it is damaged. {_remedy(path.parent)}"
        )


def _remedy(folder: Path) -> str:
    """Which notebook makes `folder`, as a sentence."""
    try:
        parts = folder.resolve().relative_to(paths.ROOT / "work").parts
    except ValueError:
        parts = ()
    name = parts[1] if len(parts) > 1 else ""
    notebook = _MADE_BY.get("subject" if name.startswith("subject") else name)
    if notebook is None:
        return "Run ./run_all.sh to make it."
    return f"Run notebooks/{notebook}.ipynb with profile='{parts[0]}', or ./run_all.sh {parts[0]}."


def _provenance() -> dict[str, Any]:
    return {"versions": _versions(), "git_revision": _git_revision()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """Commit of the repository, with '-dirty' if files differ from it; None outside git."""
    try:
        command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
