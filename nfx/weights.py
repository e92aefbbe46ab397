"""The pre-trained models of a profile: fetched once from the model hub, recorded, and from then on exactly those.

    python -m nfx.weights PROFILE [--accept OWNER/NAME ...]

A profile names a folder, or a repository ``owner/name`` of the hub, or ``owner/name@revision``. Repositories come into
the hub's cache on this machine (``HF_HOME``); ``data/models.json`` records for each the commit that was resolved, and
of every file its bytes and SHA-256, computed here. That commit stays in use, also when the repository's branch moves
on. Only safetensors weights and the text files beside them are fetched: a pickle can run code when it is read.

Nothing here needs torch. Mirrors, tokens and offline use are the hub client's: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nfx import paths
from nfx.files import is_inside, one_line, read_json, sha256, write_json

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.weights"
SHIPPED = "sha256.json"  # beside the stand-ins: the digests of their files
_RESTORE = "restore it with git, or train it again: ./run_all.sh stand-ins"
MAIN = "main"
_REVISION = re.compile(r"[0-9a-f]{40}")


def _weights(stem: str) -> tuple[str, ...]:
    """A class's own weights, whole or in parts; not their variants (.fp16, .non_ema)."""
    return (f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}-?????-of-?????.safetensors")


def _inside(folder: str, *patterns: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{pattern}" for pattern in patterns)


_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt"),
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_MODEL = ("config.json", *_weights("model"))
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt")  # any of them

# By the key of the profile's `models`: patterns of the files that are fetched.
FILES: Mapping[str, tuple[str, ...]] = {
    "clip": (*_MODEL, *_TOKENIZER, *_PROCESSOR),
    "blip": (*_MODEL, *_TOKENIZER, *_PROCESSOR, "generation_config.json"),
    "stable_diffusion": (
        *_inside("unet", "config.json", *_weights("diffusion_pytorch_model")),
        *_inside("vae", "config.json", *_weights("diffusion_pytorch_model")),
        *_inside("text_encoder", *_MODEL),
        *_inside("tokenizer", *_TOKENIZER),
        "scheduler/scheduler_config.json",
    ),
    "image_classifier": (*_MODEL, *_PROCESSOR),
    "video_classifier": (*_MODEL, *_PROCESSOR),
}
# And of which there must be one each.
_REQUIRED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "clip": (("config.json",), _weights("model"), _PROCESSOR, _VOCABULARY),
    "blip": (("config.json",), _weights("model"), _PROCESSOR, _VOCABULARY),
    "stable_diffusion": (
        ("unet/config.json",),
        _inside("unet", *_weights("diffusion_pytorch_model")),
        ("vae/config.json",),
        _inside("vae", *_weights("diffusion_pytorch_model")),
        ("text_encoder/config.json",),
        _inside("text_encoder", *_weights("model")),
        _inside("tokenizer", *_VOCABULARY),
        ("scheduler/scheduler_config.json",),
    ),
    "image_classifier": (("config.json",), _weights("model"), _PROCESSOR),
    "video_classifier": (("config.json",), _weights("model"), _PROCESSOR),
}


class File(NamedTuple):
    """A recorded file. Its SHA-256 holds without reading it again while size and dates are these.

    Attributes
    ----------
    bytes : int
    sha256 : str
    modified, changed : int, nanoseconds since 1970
        When content, and when content or anything else of the file was changed; the second, which no program can set,
        is -1 in records of earlier versions.
    """

    bytes: int
    sha256: str
    modified: int
    changed: int = -1


class Recorded(NamedTuple):
    """What is recorded of a repository.

    Attributes
    ----------
    asked : str
        The revision that the profile asked for: a branch, a tag or a commit.
    revision : str
        The commit that this was when it was fetched.
    files : dict of str to File
        By path in the repository.
    """

    asked: str
    revision: str
    files: dict[str, File]


class _Listed(NamedTuple):
    """A file as the hub lists it; `digest` is its git blob's SHA-1, or of large files the SHA-256."""

    bytes: int
    digest: str
    large: bool


# --- what the others use -------------------------------------------------------------------------------------


def fetch_models(profile: Profile, accept: Collection[str] = ()) -> dict[str, Path]:
    """Fetch and record the models that a profile names on the hub; check by SHA-256 those that are there.

    A model that is recorded and whole needs no network. Missing or changed files of it are fetched again, of the
    recorded commit. Files that came whole stay when a call is interrupted; a file that did not starts anew.

    Parameters
    ----------
    profile
    accept : collection of str
        Repositories of the profile whose record is replaced by what their revision is now.

    Returns
    -------
    dict of str to Path
        Snapshot folder by key of `profile.models`.

    Raises
    ------
    FileNotFoundError
        If a repository, a revision or a local folder does not exist, or files are missing and the hub is offline.
    PermissionError
        If the hub wants a token, or refuses the one there is.
    ConnectionError
        If the hub cannot be reached or breaks off.
    OSError
        If the disk has too little room: before anything is fetched, from the hub's sizes.
    ValueError
        If a repository has no safetensors weights, a file is not what the hub lists or what was recorded, or the
        profile asks for another revision than was recorded.
    """
    from filelock import FileLock

    models = profile.models.model_dump()
    roles: dict[str, list[str]] = {}
    for role, name in models.items():
        if not (paths.ROOT / name).is_dir():
            roles.setdefault(_require_hub_name(name), []).append(role)
    unknown = sorted(set(accept) - {_repository(name)[0] for name in roles})
    if unknown:
        raise ValueError(f"{unknown[0]} is not a hub repository of the profile {profile.name}, which names {[*roles]}")
    record = paths.model_record()
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_name(f".{record.name}.lock")):
        plans: dict[str, tuple[str, dict[str, _Listed]]] = {}
        for name in roles:
            plan = _plan(name, roles[name], _repository(name)[0] in accept)
            if plan is not None:
                plans[name] = plan
        _require_space(plans)
        for name, (revision, listed) in plans.items():
            _fetch(name, revision, listed, _repository(name)[0] in accept)
    return {role: Path(paths.snapshot(name)) for role, name in models.items()}


def recorded_folder(name: str) -> Path:
    """Snapshot folder of a hub repository at its recorded revision, its files as recorded; no network is needed.

    What is loaded goes through here, so that nothing is trained on other bytes. The files are gigabytes and the jobs
    many, so a file is not read again while its size and both its dates are those at which it was last read whole. A
    write changes the dates, also one that puts the first of them back, and a copy has a second one of its own: both are
    read, once a process, and compared. What this cannot see is a disk that returns other bytes for a file that nobody
    has touched: `verify` reads all of it, before each run of `run_all.sh`.

    Raises
    ------
    FileNotFoundError
        If nothing is recorded, or a file is missing; the message gives the command that fetches it.
    ValueError
        If a file has another size or other bytes than recorded, or another revision is asked for than was recorded.
    """
    recorded, folder = _require_recorded(name), _folder_as_recorded(name)
    for file, entry in recorded.files.items():
        _require_read(name, folder / file, entry)
    return folder


def _folder_as_recorded(name: str) -> Path:
    """As `recorded_folder`, by the files' sizes alone."""
    recorded = _require_recorded(name)
    folder = _folder(name, recorded.revision)
    for file, entry in recorded.files.items():
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(
                f"{name}: {file} of revision {recorded.revision[:12]} is not in {folder}: run {COMMAND} paper, or with "
                f"your own profile, to fetch it{_offline_hint()}"
            )
        if path.stat().st_size != entry.bytes:
            raise ValueError(
                f"{name}: {path} has {path.stat().st_size} bytes, {entry.bytes} were recorded: run {COMMAND} paper, or "
                "with your own profile, to fetch it again"
            )
    return folder


def verify(name: str) -> Recorded:
    """Read every recorded file of a hub repository and compare its SHA-256, as once before a run.

    Raises
    ------
    FileNotFoundError, ValueError
        As `recorded_folder`; and ValueError for a file of other bytes.
    """
    folder, recorded = _folder_as_recorded(name), _require_recorded(name)
    computed = {file: _look(folder / file) for file in recorded.files}
    for file, entry in recorded.files.items():
        _require_same(name, folder / file, computed[file].sha256, entry)
    if computed != recorded.files:  # a copied cache has other dates
        _write(name, recorded._replace(files=computed))
    return recorded


def file_digests(name: str, wanted: Callable[[str], bool]) -> dict[str, str]:
    """SHA-256 of the files of a model's snapshot by their paths in it, for the facts of a result made with it.

    Of a local folder they are computed. Of a hub repository they are the recorded ones (see `recorded_folder`).

    Parameters
    ----------
    name : str
        As in a profile.
    wanted : function of a path in the snapshot, with "/", to whether its digest is wanted
    """
    folder = Path(paths.snapshot(name))
    if (paths.ROOT / name).is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in files}
        return {file: sha256(path) for file, path in names.items() if wanted(file)}
    recorded = sorted(_require_recorded(name).files.items(), key=lambda item: Path(item[0]).parts)
    return {file: entry.sha256 for file, entry in recorded if wanted(file)}


def require_shipped(folder: Path) -> None:
    """Compare the snapshot in a folder with the digests beside it, if there are: those of the stand-ins.

    ``sha256.json`` in the folder above names each file below itself. Small files alone: all are read at each call.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file that it names in the folder is missing, or has other bytes.
    """
    record = folder.parent / SHIPPED
    if not record.is_file():
        return
    for name, digest in read_json(record).items():
        path = folder.parent / name
        if Path(name).parts[0] != folder.name or path.suffix == ".md":  # cards are not used
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {record} lists it: {_RESTORE}")
        if sha256(path) != digest:
            raise ValueError(f"{path} has other bytes than {record} says, and is not used: {_RESTORE}")


# --- the record ----------------------------------------------------------------------------------------------


def _read() -> dict[str, Recorded]:
    path = paths.model_record()
    if not path.is_file():
        return {}
    try:
        recorded = {
            repository: Recorded(
                entry["asked"], entry["revision"], {file: File(**facts) for file, facts in entry["files"].items()}
            )
            for repository, entry in read_json(path).items()
        }
        for repository, entry in recorded.items():
            if not all(isinstance(text, str) for text in entry[:2]) or not _REVISION.fullmatch(entry.revision):
                raise ValueError(f"the revision of {repository} is none")
            for file, facts in entry.files.items():
                if [type(fact) for fact in facts] != [int, str, int, int] or not is_inside(file):
                    raise ValueError(f"the file {file} of {repository} is none")
        return recorded
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of models: delete it, then run {COMMAND} paper") from error


def _write(name: str, recorded: Recorded) -> None:
    everything = {**_read(), _repository(name)[0]: recorded}
    plain = {
        repository: {**entry._asdict(), "files": {file: facts._asdict() for file, facts in entry.files.items()}}
        for repository, entry in sorted(everything.items())
    }
    write_json(paths.model_record(), plain)


def _require_recorded(name: str) -> Recorded:
    repository, asked = _repository(_require_hub_name(name))
    recorded = _read().get(repository)
    if recorded is None:
        raise FileNotFoundError(
            f"the model {repository} has not been fetched (nor is there such a folder): run {COMMAND} paper, or with "
            "your own profile"
        )
    if asked not in (recorded.asked, recorded.revision):
        raise ValueError(
            f"{name} asks for the revision {asked}, but {paths.model_record()} records {recorded.revision[:12]}, "
            f"fetched as {recorded.asked}: change the profile's models, or take the other with {COMMAND} PROFILE "
            f"--accept {repository}"
        )
    return recorded


def _require_hub_name(name: str) -> str:
    if not paths.is_hub_name(name):
        paths.snapshot(name)  # says that it is neither a folder nor a hub name
    return name


def _repository(name: str) -> tuple[str, str]:
    """``owner/name`` and the revision asked for."""
    repository, _, asked = name.partition("@")
    return repository, asked or MAIN


def _require_same(name: str, path: Path, digest: str, recorded: File) -> None:
    if digest != recorded.sha256:
        raise ValueError(
            f"{name}: {path} has other bytes (SHA-256 {digest[:12]}...) than were recorded "
            f"({recorded.sha256[:12]}...): run {COMMAND} paper, or with your own profile, to fetch those again"
        )


def _look(path: Path) -> File:
    facts = path.stat()
    return File(facts.st_size, sha256(path), facts.st_mtime_ns, facts.st_ctime_ns)


def _require_read(name: str, path: Path, recorded: File) -> None:
    """ValueError if a file whose dates are not the recorded ones has other bytes."""
    facts = path.stat()
    if (facts.st_mtime_ns, facts.st_ctime_ns) != (recorded.modified, recorded.changed):
        digest = _digest_of(path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
        _require_same(name, path, digest, recorded)


@cache
def _digest_of(path: Path, *state: int) -> str:
    return sha256(path)


# --- the hub -------------------------------------------------------------------------------------------------


def _folder(name: str, revision: str) -> Path:
    """Where the hub's cache has a snapshot."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = repo_folder_name(repo_id=_repository(name)[0], repo_type="model")
    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / repository / "snapshots" / revision


def _plan(name: str, roles: Sequence[str], accept: bool) -> tuple[str, dict[str, _Listed]] | None:
    """The revision and the files to fetch; None if all is there, as recorded."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    repository, asked = _repository(name)
    recorded = None if accept or repository not in _read() else _require_recorded(name)
    reason = "it has not been fetched"
    if recorded is not None:
        folder = _folder(name, recorded.revision)
        there = {file: _look(folder / file) for file in recorded.files if (folder / file).is_file()}
        wrong = [f for f, entry in recorded.files.items() if f not in there or there[f].sha256 != entry.sha256]
        if not wrong and all(lacking(role, there) is None for role in roles):
            if there != recorded.files:  # a copied cache has other dates
                _write(name, recorded._replace(files=there))
            return None
        reason = f"{wrong[0]} is missing or damaged" if wrong else "it was fetched for another use"
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{name} is not complete here ({reason}) and HF_HUB_OFFLINE is set: unset it and run {COMMAND} paper, or "
            "with your own profile, where there is a network"
        )
    revision = recorded.revision if recorded is not None else asked
    with _explained(repository, revision):
        if recorded is None:
            revision = HfApi().model_info(repository, revision=asked).sha  # type: ignore[assignment]  # a commit, always
        tree = HfApi().list_repo_tree(repository, recursive=True, revision=revision)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    patterns = [pattern for role in roles for pattern in FILES[role]]
    listed = {
        file.path: _Listed(file.size, file.lfs.sha256 if file.lfs else file.blob_id, file.lfs is not None)
        for file in files
        if any(fnmatchcase(file.path, pattern) for pattern in patterns)
    }
    for role in roles:
        missing = lacking(role, listed)
        if missing is not None:
            raise ValueError(_lacks(repository, revision, role, missing))
    return revision, listed


def lacking(role: str, files: Iterable[str]) -> str | None:
    """The first file that a model of this role needs and that is not among `files`."""
    for alternatives in _REQUIRED[role]:
        if not any(fnmatchcase(file, pattern) for file in files for pattern in alternatives):
            return alternatives[0]
    return None


def _lacks(repository: str, revision: str, role: str, missing: str) -> str:
    if missing.endswith(".safetensors"):
        return (
            f"{repository} has no safetensors weights at revision {revision[:12]} (no {missing}), and pickled ones "
            f"(.bin, .ckpt) are never loaded: name in models.{role} of the profile a repository or revision that has "
            "them, or a folder written by save_pretrained"
        )
    return (
        f"{repository} has no {missing} at revision {revision[:12]}, so it is no model for models.{role} of the "
        "profile: name another repository or revision there"
    )


def _require_space(plans: Mapping[str, tuple[str, Mapping[str, _Listed]]]) -> None:
    """OSError if what is still to come does not fit."""
    from huggingface_hub import constants

    needed = sum(
        entry.bytes
        for name, (revision, listed) in plans.items()
        for file, entry in listed.items()
        if not (_folder(name, revision) / file).is_file()
    )
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"the models need {needed / 1e9:.1f} GB in {cache}, which has {free / 1e9:.1f} GB free: make room, or set "
            "HF_HOME to a folder on a larger disk"
        )


def _fetch(name: str, revision: str, listed: Mapping[str, _Listed], accept: bool) -> None:
    """Download what is not there, check every file against the hub's list and the record, and record it."""
    from huggingface_hub import snapshot_download

    repository, asked = _repository(name)
    folder = _folder(name, revision)
    before = None if accept else _read().get(repository)
    for file, entry in listed.items():  # what is there already may be damaged, and the client would keep it
        if (folder / file).is_file() and not _is_listed(folder / file, _look(folder / file), entry):
            _discard(folder / file)
    print(f"{repository}: fetching revision {revision[:12]}", flush=True)
    with _explained(repository, revision):
        snapshot_download(repository, revision=revision, allow_patterns=list(listed))
    files = {file: _look(folder / file) for file in sorted(listed) if (folder / file).is_file()}
    for file, entry in listed.items():
        if file not in files or not _is_listed(folder / file, files[file], entry):
            if file in files:
                _discard(folder / file)
            raise ValueError(
                f"{repository}: {file} did not come as the hub lists it at revision {revision[:12]} ({entry.bytes} "
                f"bytes, digest {entry.digest[:12]}...) and was removed: run the command again"
            )
    for file, old in (before.files if before is not None else {}).items():
        if file not in files or files[file].sha256 != old.sha256:
            raise ValueError(
                f"{repository}: the hub now has other bytes for {file} at revision {revision[:12]} than were recorded, "
                f"which a revision never should: compare with its publisher, and only if you trust it take it with "
                f"{COMMAND} PROFILE --accept {repository}"
            )
    _write(name, Recorded(asked if before is None else before.asked, revision, files))


def _is_listed(path: Path, found: File, entry: _Listed) -> bool:
    """Whether a file is what the hub lists: of a small one, git's digest is that of a header and the content."""
    if found.bytes != entry.bytes:
        return False
    if entry.large:
        return found.sha256 == entry.digest
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == entry.digest


def _discard(path: Path) -> None:
    """Remove a file of the cache with what its link leads to, which other snapshots would take for whole."""
    links = [path]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    for link in links:
        link.unlink(missing_ok=True)


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError: its Xet transfer
        raise _sentence(error, repository, revision) from error


def _sentence(error: BaseException, repository: str, revision: str) -> OSError:
    from huggingface_hub import constants, errors

    where = f"{repository} on {constants.ENDPOINT}"
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{where} has no revision {revision}: check the part after @ in the profile; if it is a recorded one that "
            f"was taken down, take another with {COMMAND} PROFILE --accept {repository}"
        )
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return PermissionError(
            f"{where} may not be read with {'your' if _has_token() else 'no'} token ({status}): accept its terms on "
            f"{constants.ENDPOINT}/{repository}, and set HF_TOKEN to a token of that account, or log in with hf auth "
            "login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):  # 404, and 401 for whoever might be allowed to know
        return FileNotFoundError(
            f"there is no model repository {where}, or it is private ({status}): check its name in the profile; for a "
            "private one set HF_TOKEN, or log in with hf auth login"
        )
    if status == 401:
        return PermissionError(f"the token was refused for {where} (401): set HF_TOKEN to a valid one, or unset it")
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _sentence(error.__cause__, repository, revision)  # no such file here, because of that
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return OSError(
            f"{repository} could not be written to {constants.HF_HUB_CACHE} ({os.strerror(error.errno)}): make room or "
            f"set HF_HOME to another folder, then run the command again; files that came whole are kept"
        )
    reason = one_line(error)
    return ConnectionError(
        f"{where} could not be fetched ({reason[:200]}): check the network and run the command again; files that came "
        "whole are kept"
    )


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _offline_hint() -> str:
    from huggingface_hub import constants

    return " (HF_HUB_OFFLINE is set: unset it for that)" if constants.HF_HUB_OFFLINE else ""


# --- the command ---------------------------------------------------------------------------------------------


def describe(recorded: Recorded) -> str:
    """A recorded repository in a few words."""
    size = sum(entry.bytes for entry in recorded.files.values())
    return f"revision {recorded.revision[:12]} ({recorded.asked}), {len(recorded.files)} files, {size / 1e9:.2f} GB"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: fetches, checks and records the models of a profile."""
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(prog=COMMAND, description="Fetch the pre-trained models of a profile.")
    parser.add_argument("profile", help="paper, or a YAML file")
    parser.add_argument(
        "--accept", nargs="+", default=[], metavar="OWNER/NAME", help="replace the recorded revision by today's"
    )
    given: Any = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        folders = fetch_models(profile, given.accept)
        for role, name in profile.models.model_dump().items():
            local = (paths.ROOT / name).is_dir()
            print(f"{role}: {folders[role] if local else f'{name}, {describe(_require_recorded(name))}, checked'}")
    except (OSError, ValueError) as error:
        sys.exit(f"{COMMAND}: {error}")
    if any(
        paths.is_hub_name(name) and not (paths.ROOT / name).is_dir() for name in profile.models.model_dump().values()
    ):
        print(
            f"Recorded in {paths.model_record()}. These revisions stay in use when their branch moves on; --accept "
            "OWNER/NAME takes what it is then, and what was made with the old one is made again."
        )


if __name__ == "__main__":
    main()
