"""Reading and writing results so that a half-written file is never taken for a whole one.

A folder of results is complete when its ``manifest.json`` is there: it is written last, and lists what the folder
holds (shapes, sha256, sizes), from what settings and code (`facts`), and with which versions.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from nfx import paths

MANIFEST = "manifest.json"
CLAIM = ".being_made"  # the lock of a folder that a process is making, and who that is
LEFT_BEHIND = (".*.????????.npy", "*/.tmp??????")  # by a killed process: of `write_atomically`, and of safetensors
PATIENCE = 60.0  # s that one process waits for another which makes the same folder
_CLAIMS: dict[Path, FileLock] = {}  # of this process
LARGEST_HEADER = 10_000  # bytes, of an array; NumPy reads no longer one, but takes the memory for it first
LARGEST_YAML = 1 << 20  # bytes; those of the project have 15 thousand
# Content is compared with the manifest by whoever reads it (`load_arrays`, `verify`) or reuses it (`finished`): a job
# reads its inputs anyway, and at 1 to 2 GB/s the ten GB of a job at the paper's size cost seconds of its hours. A large
# file is read once a process. The engine goes by the manifests alone, so that a run in which nothing changed reads no
# content, and ends in seconds also beside 170 GB; `python -m nfx.doctor PROFILE --contents` reads all of it.
DIGESTS_KEPT_FROM = 1 << 24  # bytes of a file whose digest is kept for the process; smaller ones are read each time
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

    Raises
    ------
    OSError
        If the disk is full, read-only or broken, or the folder may not be written to; it names `path`, which is then
        as it was before.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        # NumPy tells of a full disk without a number, "1024 requested and 16 written"; other errors without one are
        # sentences already.
        code = error.errno or (errno.EIO if "requested and" in str(error) else None)
        if code is None:
            raise
        reason = error.strerror or str(error)
        if error.filename not in (None, os.fspath(path.parent), os.fspath(temporary or path)):
            reason += f": {error.filename}"
        raise OSError(
            code,
            f"{path} was not written ({reason}), and what was there before is unchanged: make room or "
            "allow writing there, then run again",
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it, then: {_remedy(path.parent)}") from error


class _PlainYaml(yaml.SafeLoader):
    """YAML of plain values, in which no key comes twice, and whose size bounds what it becomes.

    A text may be repeated with ``*name``; a list or a section may not: ten of them in one another are a petabyte.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            assert event.start_mark is not None  # the parser marks every event
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: *{event.anchor} repeats a list or a section")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            names = [str(key.value) for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), "one of its keys")
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: '{twice[:40]}' comes twice in a section")
        return mapping


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of plain values: no classes, no key twice in a section, no repeated lists or sections.

    Raises
    ------
    ValueError
        If it is none, or larger than a megabyte; the message names the file.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST_YAML:
        raise ValueError(f"{path} is not valid YAML for this: it has {path.stat().st_size} bytes, 1 MB are allowed")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainYaml)
    except OSError:
        raise
    except Exception as error:  # PyYAML raises many kinds for a value that its tag does not fit
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """Memory-map a .npy file, read-only. Pickled objects are never read.

    Raises
    ------
    ValueError
        If it is no array, or shorter than its header says; the message names the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(12)
        length = int.from_bytes(start[8:12], "little") if start[6:7] > b"\x01" else 0  # version 1 has two bytes for it
        if start.startswith(b"\x93NUMPY") and length > LARGEST_HEADER:
            raise ValueError(f"its header says that it has {length} bytes")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        array.close()
        raise ValueError("it is a zip")
    except OSError:
        raise
    except Exception as error:  # NumPy has many kinds for a damaged header, and may advise to unpickle it
        reason = "it has no header of an array of numbers" if "pickle" in str(error) else one_line(error)
        raise ValueError(f"{os.fspath(path)} is not a whole .npy file ({reason})") from error


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
            array = read_array(path)
        else:
            array = np.asanyarray(array)
            with write_atomically(path) as temporary:
                np.save(temporary, array, allow_pickle=False)
        listed[name] = {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": sha256(path)}
    files = {f"{name}.npy": _file_entry(folder / f"{name}.npy", listed[name]["sha256"]) for name in arrays}
    write_json(folder / MANIFEST, {"facts": facts, "arrays": listed, "files": files, **_provenance()})
    _release(folder)


def load_arrays(folder: str | os.PathLike[str], *names: str) -> dict[str, np.ndarray]:
    """Memory-map arrays of `save_arrays`, read-only; all of them if no name is given.

    Raises
    ------
    FileNotFoundError
        If the folder, its manifest or a file is missing; the message says which notebook to run.
    ValueError
        If a name is not in the manifest, or a file's size, shape, dtype or content (sha256) differ from it.
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
        try:
            array = read_array(path)
        except ValueError as error:
            raise ValueError(f"{error}. {_again(folder)}") from error
        if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
            raise ValueError(
                f"{path} holds {array.dtype.str} {list(array.shape)}, but its manifest says "
                f"{expected['dtype'][:80]} {str(expected['shape'])[:80]}. {_again(folder)}"
            )
        _check_content(path, manifest["files"][f"{name}.npy"]["sha256"])
        loaded[name] = array
    return loaded


def verify(folder: str | os.PathLike[str], *names: str) -> None:
    """Compare files of a finished folder, all if no name is given, with its manifest: sizes and content (sha256).

    For what other libraries read: snapshots, tables. A large file is read once a process.

    Raises
    ------
    FileNotFoundError
        If the manifest or a file is missing.
    ValueError
        If a name is not in the manifest, or a file differs from it.
    """
    folder = Path(folder)
    for name, entry in verify_sizes(folder, *names).items():
        _check_content(folder / name, entry["sha256"])


def verified(folder: str | os.PathLike[str], part: str) -> Path:
    """A snapshot in a finished folder, to load it from: its files, all below `part`, are as the manifest says.

    Raises
    ------
    FileNotFoundError
        If the manifest lists no file below `part`, or it or a file is missing.
    ValueError
        If a file differs from the manifest.
    """
    folder = Path(folder)
    names = [name for name in read_manifest(folder)["files"] if name.startswith(f"{part}/")]
    if not names:
        raise FileNotFoundError(f"{folder / MANIFEST} lists no file of {part}/. {_again(folder)}")
    verify(folder, *names)
    return folder / part


def verify_sizes(folder: str | os.PathLike[str], *names: str) -> dict[str, dict[str, Any]]:
    """As `verify`, without reading the files; returns their entries in the manifest."""
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    unknown = [name for name in names if name not in files]
    if unknown:
        raise ValueError(f"{folder / MANIFEST} lists no file '{unknown[0]}'. {_again(folder)}")
    for name in names or files:
        _check_size(folder / name, files[name]["bytes"])
    return {name: files[name] for name in names or files}


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
    _release(folder)


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
        raise ValueError(f"{path} is not a manifest: expected the keys 'facts' and 'files'. {_again(folder)}")
    wrong = _wrong_entry(manifest)
    if wrong is not None:
        raise ValueError(f"{path} is not a manifest: {wrong[:80]!r} is no entry of a file or array. {_again(folder)}")
    return manifest


def _wrong_entry(manifest: Mapping[str, Any]) -> str | None:
    """The first entry of a manifest's files or arrays without what entries have, or that leads out of the folder."""
    files, arrays = manifest["files"], manifest.get("arrays", {})
    for entries, kinds in ((files, {"bytes": int, "sha256": str}), (arrays, {"shape": list, "dtype": str})):
        if not isinstance(entries, dict):
            return str(entries)
        for name, entry in entries.items():
            if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
                return name
            if not is_inside(name):
                return name
    return next((name for name in arrays if f"{name}.npy" not in files), None)


def is_inside(name: str) -> bool:
    """Whether a path of a list, with / between its parts, stays below the folder that it is relative to."""
    parts = name.split("/")
    return name.isprintable() and not {"", ".", ".."} & {*parts} and all(len(part.encode()) < 256 for part in parts)


def finished(folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> bool:
    """Whether `folder` already holds the result of `facts`: manifest there, same facts, all files whole (`verify`).

    So `facts` must hold all that the result depends on: its settings, the `source_digest` of the code that makes it,
    and the `identity` of each folder that it is made from.

    If it does not, the folder is this process's to make, until it has written the manifest or ends: another process
    that asks meanwhile (a notebook run by hand beside the engine, a kernel that a killed engine has left) waits up to
    a minute, and is then refused.

    Raises
    ------
    TimeoutError
        If another process makes the folder and is not done in a minute; the message says which.
    """
    folder = Path(folder)
    if holds(folder, facts):
        _tidy(folder)
        return True
    _claim(folder)
    if holds(folder, facts):  # made by the process that was waited for
        _release(folder)
        return True
    return False


def holds(folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> bool:
    """What `finished` says, for who reads the folder and will not make it."""
    folder = Path(folder)
    try:
        if read_manifest(folder)["facts"] != as_json(facts):
            return False
        verify(folder)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _claim(folder: Path) -> None:
    """Let no other process make `folder`. The system ends a claim with its process, however that ends."""
    path = folder.resolve() / CLAIM
    if path in _CLAIMS or os.environ.get("RANK", "0") != "0":  # of several processes of one training, the first claims
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o666 & ~_umask())  # a group may share a checkout
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder.name}: another process is making it, waiting for that", flush=True)
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        who = path.read_text(encoding="utf-8").strip() or "unknown"
        raise TimeoutError(
            f"{folder} is being made by another process ({who}), and two must not write the same files: wait until it "
            "is done, or stop it (a notebook that is open: restart its kernel), then run this again"
        ) from None
    path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
    _CLAIMS[path] = lock
    for pattern in LEFT_BEHIND:
        for unfinished in folder.glob(pattern):
            unfinished.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove what a process that was killed between the manifest and its end did not: large, and of no use any more."""
    # The checkpoint beside a pipeline is another claim's, that of the pipeline.
    names = (".pieces", "blocks") if (folder / "pipeline").is_dir() else (".pieces", "blocks", "checkpoint")
    spent = [folder / name for name in names if (folder / name).is_dir()]
    path = folder.resolve() / CLAIM
    if spent and path not in _CLAIMS and os.environ.get("RANK", "0") == "0":
        with suppress(OSError), FileLock(path, timeout=0, mode=0o666 & ~_umask()):  # not if it is being made anew
            for left in spent:
                shutil.rmtree(left, ignore_errors=True)


def _release(folder: Path) -> None:
    lock = _CLAIMS.pop(folder.resolve() / CLAIM, None)
    if lock is not None:
        lock.release()


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
            array = read_array(folder / name)
            listed[name[:-4]] = {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": entry["sha256"]}
    return listed


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but its manifest lists it. {_again(path.parent)}")
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, but its manifest says {expected}: it is damaged. {_again(path.parent)}"
        )


def _check_content(path: Path, expected: str) -> None:
    state = path.stat()
    large = state.st_size >= DIGESTS_KEPT_FROM
    digest = _digest_of(path, state.st_size, state.st_mtime_ns, state.st_ino) if large else sha256(path)
    if digest != expected:
        raise ValueError(
            f"{path} has other bytes (SHA-256 {digest[:12]}...) than its manifest says ({expected[:12]}...): it is "
            f"damaged. {_again(path.parent)}"
        )


@cache
def _digest_of(path: Path, *state: int) -> str:
    return sha256(path)


def one_line(error: BaseException) -> str:
    """An error's message on one line, not longer than one reads."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _again(folder: Path) -> str:
    """What to do where a result is damaged: without its manifest, the engine makes it again."""
    at = next((parent for parent in (folder, *folder.parents) if (parent / MANIFEST).is_file()), folder)
    return f"Delete {at / MANIFEST}, then: {_remedy(at)}"


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
    return {"versions": _versions(), "git_revision": git_revision()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the repository, with '-dirty' if files differ from it; None outside git."""
    try:
        command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
