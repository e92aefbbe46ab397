"""Fetching the published data set (Wen et al. 2018, doi:10.4231/R7SF2TCW, CC0): download, unpack, record.

    python -m nfx.data.fetch FOLDER [--subjects 1 2 3]

The data set comes in parts: the stimuli, and one archive for each subject. An archive is wrapped twice: a zip that
holds a `bundle.zip` that holds `video_fmri_dataset/`. Of it, only what the package reads is unpacked: the films
(`stimuli/*.mp4`) and the recordings on the cortical surface (`fmri/*/cifti/*_Atlas.dtseries.nii`).
"""

from __future__ import annotations

import argparse
import errno
import ftplib
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from nfx.files import is_inside, one_line, read_json, sha256, write_atomically, write_json

SOURCES: Mapping[str, str] = {
    "stimuli": "https://purr.purdue.edu/publications/2808/serve/1?render=archive",  # doi:10.4231/R71Z42KK
    "subject1": "ftp://purr.purdue.edu/10_4231_R7X63K3M.zip",  # 15,297,443,422 bytes
    "subject2": "ftp://purr.purdue.edu/10_4231_R7NS0S1F.zip",
    "subject3": "ftp://purr.purdue.edu/10_4231_R7J101BV.zip",
}
FETCHED = "fetched.json"
DATA_SET = "video_fmri_dataset"
BUNDLE = "bundle.zip"
UNSAID_BYTES = {"stimuli": 5 * 10**9}  # for the disk check, where a server does not say the size; a guess
UNSAID_SUBJECT_BYTES = 15 * 10**9
ATTEMPTS = 5  # in a row that bring no new byte
PAUSE = 5.0  # s between two attempts
TIMEOUT = 60.0  # s without a byte, after which a connection counts as dropped
CHUNK = 1 << 20  # bytes

_BROKEN = (OSError, HTTPException, EOFError, ftplib.Error)  # what a dropped connection raises; URLError is an OSError
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # of these, trying again is no use
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError)


class NotEnoughSpace(OSError):
    """The disk has less room than a part needs."""


class Answer(NamedTuple):
    """A server's answer to a request for the rest of a file.

    Attributes
    ----------
    start : int
        Offset of the first byte that will come; 0 if the server cannot go on in the middle.
    size : int or None
        Bytes of the whole file, None if the server does not say.
    read : function without arguments
        The next bytes; empty at the end, or when the connection was closed.
    """

    start: int
    size: int | None
    read: Callable[[], bytes]


def fetch_dataset(
    folder: str | Path, subjects: Sequence[int] = (1, 2, 3), sources: Mapping[str, str] = SOURCES
) -> Path:
    """Fetch the films and the subjects' recordings, a part at a time; what is there already is not fetched again.

    An interrupted call leaves `<part>.zip.partial`, and the next one goes on from there. Every unpacked file is
    checked by the CRC in its zip. No checksum is published, so `fetched.json` records what came: for each part url,
    bytes, sha256 and date of the archive, and bytes and sha256 of each file. An archive `<part>.zip` that lies in the
    folder is used as if it had just been downloaded; it is deleted after its part is recorded.

    Parameters
    ----------
    folder : path
        Where `video_fmri_dataset/` and `fetched.json` go, `data/paper` for the paper profile. Made if missing.
    subjects : sequence of int
    sources : dict of str to str
        URL (http, https or ftp) of the archive of each part, `stimuli`, `subject1`, ...

    Returns
    -------
    Path
        The folder `video_fmri_dataset`.

    Raises
    ------
    NotEnoughSpace
        Before anything is written that does not fit.
    ConnectionError
        If a server cannot be reached, refuses, or breaks off again and again. What came stays, for the next call.
    ValueError
        If a part has no source, an archive has another size than announced, is damaged, or holds a path or link that
        leads out of the folder. Such an archive is kept as `<part>.zip.refused`.
    """
    folder = Path(folder)
    parts = ["stimuli", *(f"subject{number}" for number in subjects)]
    for part in parts:
        if part not in sources:
            raise ValueError(f"There is no source for {part}; expected one of {', '.join(sources)}")
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        archive = folder / f"{part}.zip"
        if not _is_there(folder, part):
            if not archive.is_file():
                download(sources[part], archive, UNSAID_BYTES.get(part, UNSAID_SUBJECT_BYTES))
            _record(folder, part, None)  # the files are about to be replaced
            files = unpack(archive, folder, part)
            entry = {"url": sources[part], "bytes": archive.stat().st_size, "sha256": sha256(archive)}
            _record(folder, part, {**entry, "date": datetime.now(UTC).isoformat(timespec="seconds"), "files": files})
        archive.unlink(missing_ok=True)
    return folder / DATA_SET


# --- the record ----------------------------------------------------------------------------------------------


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / FETCHED
    if not path.is_file():
        return {}
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON; delete it, then its parts are fetched again") from error
    parts = record.values() if isinstance(record, dict) else [None]
    files = [part.get("files") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(listed, dict) and all(map(_is_entry, listed, listed.values())) for listed in files):
        raise ValueError(f"{path} is not a record of fetched parts; delete it, then its parts are fetched again")
    return record


def _is_entry(name: str, entry: Any) -> bool:
    return is_inside(name) and isinstance(entry, dict) and type(entry.get("bytes")) is int


def _record(folder: Path, part: str, entry: Mapping[str, Any] | None) -> None:
    """Set or, with None, remove the entry of a part."""
    others = {name: old for name, old in _recorded(folder).items() if name != part}
    write_json(folder / FETCHED, others if entry is None else {**others, part: entry})


def _is_there(folder: Path, part: str) -> bool:
    """Whether a part is recorded, and all its files are there with their sizes."""
    files = _recorded(folder).get(part, {}).get("files", {})
    return bool(files) and all(_size(folder / name) == entry["bytes"] for name, entry in files.items())


def _size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


# --- download ------------------------------------------------------------------------------------------------


def download(url: str, archive: Path, unsaid: int) -> None:
    """Download to `<archive>.partial`, going on from what is there, then rename.

    Parameters
    ----------
    url : str
    archive : path
    unsaid : int
        Bytes to check the disk for if the server does not say the size.

    Raises
    ------
    NotEnoughSpace, ConnectionError, ValueError
        As `fetch_dataset`.
    """
    partial = archive.with_name(f"{archive.name}.partial")
    size: int | None = None
    furthest, failures = _size(partial), 0
    while True:
        problem = "the connection was closed"
        complete = False
        try:
            with _ask(url, _size(partial)) as answer:
                size = _same_size(url, size, answer.size, partial)
                # What is unpacked is a part of the archive and hardly compressed in it: as much again is enough.
                wanted = size or unsaid
                require_space(archive.parent, 2 * wanted - answer.start, f"{archive.stem} and what is unpacked from it")
                _receive(answer, partial, size)
            complete = size is None or _size(partial) == size
        except (NotEnoughSpace, ValueError):
            raise
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise ConnectionError(f"{url} was refused ({error}); look whether the data set has moved") from error
            problem = str(error)
        except ftplib.error_perm as error:
            raise ConnectionError(f"{url} was refused ({error}); look whether the data set has moved") from error
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            problem = str(error) or type(error).__name__
        there = _size(partial)
        if size is not None and there > size:
            partial.unlink()
            raise ValueError(f"{url} sent {there} bytes where {size} were announced; they were deleted, run again")
        if complete:
            break
        failures = 0 if there > furthest else failures + 1
        furthest = max(furthest, there)
        if failures == ATTEMPTS:
            raise ConnectionError(
                f"{url}: {ATTEMPTS} attempts in a row brought nothing after {there} of {size or 'unknown'} bytes "
                f"({problem}); run again to go on from there"
            )
        time.sleep(PAUSE)
    os.replace(partial, archive)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise NotEnoughSpace, with numbers, if less than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NotEnoughSpace(
            f"{free / 1e9:.2f} GB are free in {folder.resolve()}, but {needed / 1e9:.2f} GB are needed for {purpose}; "
            "free some, or choose another folder"
        )


def _same_size(url: str, before: int | None, now: int | None, partial: Path) -> int | None:
    """The announced size; another one than before is an error, for then the parts would not fit together."""
    if before is not None and now is not None and before != now:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{url} announced {before} bytes before and {now} now; what came was deleted, run again")
    return before if now is None else now


def _receive(answer: Answer, partial: Path, size: int | None) -> None:
    """Append an answer to the partial file, or begin it anew."""
    if answer.start == 0 and _size(partial) > 0:
        tqdm.write(f"{partial.name}: the server cannot go on in the middle; starting again", file=sys.stderr)
    label = partial.name.removesuffix(".zip.partial")
    with (
        open(partial, "ab" if answer.start else "wb") as file,
        tqdm(
            total=size, initial=answer.start, desc=label, unit="B", unit_scale=True, leave=False, mininterval=1
        ) as bar,
    ):
        while chunk := answer.read():
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _ask(url: str, start: int) -> Iterator[Answer]:
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https", "ftp"):
        raise ValueError(f"{url} cannot be fetched; expected an address with http, https or ftp")
    with (_ask_ftp if scheme == "ftp" else _ask_http)(url, start) as answer:
        yield answer


@contextmanager
def _ask_http(url: str, start: int) -> Iterator[Answer]:
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not start:  # Range Not Satisfiable
            raise
        error.close()
        # The file ends where ours does, or ours is no part of it.
        if error.headers.get("Content-Range", "").strip() == f"bytes */{start}":
            yield Answer(start, start, lambda: b"")
        else:
            with _ask_http(url, 0) as answer:
                yield answer
        return
    with response:
        length = response.headers.get("Content-Length")
        size = int(length) if length else None
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if response.status != 206:  # Range was ignored: all of it comes
            start = 0
        elif sent is None or int(sent[1]) != start:
            raise ConnectionError(f"the server sent '{response.headers.get('Content-Range')}', not from byte {start}")
        else:
            size = None if sent[2] == "*" else int(sent[2])
        yield Answer(start, size, lambda: response.read(CHUNK))


@contextmanager
def _ask_ftp(url: str, start: int) -> Iterator[Answer]:
    address = urlsplit(url)
    path = unquote(address.path)
    with closing(ftplib.FTP(timeout=TIMEOUT)) as ftp:
        ftp.connect(address.hostname or "", address.port or ftplib.FTP_PORT)
        ftp.login()
        ftp.voidcmd("TYPE I")
        try:
            size = ftp.size(path)
        except ftplib.error_perm:  # the server does not know the command
            size = None
        if start and start == size:
            yield Answer(start, size, lambda: b"")
            return
        if size is not None and start > size:
            start = 0  # ours is no part of it
        try:
            connection = ftp.transfercmd(f"RETR {path}", rest=start or None)
        except ftplib.error_perm:
            if not start:
                raise
            start = 0  # no REST: from the beginning
            connection = ftp.transfercmd(f"RETR {path}")
        with connection:
            # The control connection's last word is not waited for: it is often cut during a transfer of hours, and
            # the size says whether all came.
            yield Answer(start, size, lambda: connection.recv(CHUNK))


# --- unpacking -----------------------------------------------------------------------------------------------


class _Stretch(io.RawIOBase):
    """A stretch of an open file as a read-only file of its own: a stored member of a zip, read in place."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise ValueError(f"position {position} lies before the beginning")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._position)
        data = self._file.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def unpack(archive: Path, folder: Path, part: str) -> dict[str, dict[str, Any]]:
    """Unpack what the package reads of one part; each file is checked, and appears whole or not at all.

    Other members are left out, also those beside `video_fmri_dataset/`: a publisher's readme does no harm. But an
    archive of which any member leads out of the folder, or is a link, is refused as a whole, before anything is
    unpacked.

    Parameters
    ----------
    archive : path
    folder : path
        Where `video_fmri_dataset/` goes.
    part : str
        `stimuli`, `subject1`, ...: nothing is unpacked beside this folder.

    Returns
    -------
    dict of str to dict
        bytes and sha256 of each file, by its path in `folder`.

    Raises
    ------
    NotEnoughSpace
        If the files do not fit; the archive stays.
    ValueError
        If the archive is damaged or refused; it is kept as `<part>.zip.refused`.
    """
    try:
        with _open_bundle(archive, folder / f".{part}.{BUNDLE}") as bundle:
            members = _members(bundle, part)
            require_space(folder, sum(member.file_size for member in members), f"what is unpacked of {part}")
            bar = tqdm(members, desc=f"{part}, unpacking", unit="file", leave=False, mininterval=1)
            return {member.filename: _extract(bundle, member, folder / member.filename) for member in bar}
    except NotEnoughSpace:
        raise
    except (*_DAMAGED, OSError) as error:
        # Errors of the disk have other numbers: bz2's complaints none, and a negative place in a cut archive this one.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        # Kept, since a download of hours may be worth a look; out of the way, since no later run may trust it.
        refused = archive.with_name(f"{archive.name}.refused")
        os.replace(archive, refused)
        raise ValueError(
            f"{refused}: {one_line(error)}. Nothing of it is used; delete it, and run again to fetch it"
        ) from error


@contextmanager
def _open_bundle(archive: Path, temporary: Path) -> Iterator[zipfile.ZipFile]:
    """The inner zip: read in place if it is stored, so that 15 GB are not written twice; else by a temporary file."""
    with open(archive, "rb") as file, zipfile.ZipFile(file) as outer:
        bundles = [member for member in outer.infolist() if member.filename.split("/")[-1] == BUNDLE]
        if len(bundles) != 1:
            raise ValueError(f"it holds {len(bundles)} files {BUNDLE}; one was expected")
        if bundles[0].compress_type == zipfile.ZIP_STORED:
            start = _data_offset(file, bundles[0])
            stretch = io.BufferedReader(_Stretch(file, start, bundles[0].file_size))
            with zipfile.ZipFile(stretch) as bundle:
                yield bundle
            return
        require_space(temporary.parent, bundles[0].file_size, f"{BUNDLE} of {archive.name}")
        try:
            with outer.open(bundles[0]) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            with zipfile.ZipFile(temporary) as bundle:
                yield bundle
        finally:
            temporary.unlink(missing_ok=True)


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where a member's data begin: after the local header, of 30 bytes, a name, and extra fields of its own."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{member.filename} has no local header")
    return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))


def _members(bundle: zipfile.ZipFile, part: str) -> list[zipfile.ZipInfo]:
    """The members to unpack, after a look at all of them."""
    for member in bundle.infolist():
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"its member '{member.filename}' leads out of the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"its member '{member.filename}' is a link")
    names = Counter(member.filename for member in bundle.infolist())
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"its member '{twice[0][:80]}' comes twice")
    # A recording with another separator before 'Atlas' is unpacked too: nfx.data.inspection names it.
    inside = r"[^/.][^/]*\.mp4" if part == "stimuli" else r"fmri/[^/]+/cifti/[^/.][^/]*Atlas\.dtseries\.nii"
    wanted = re.compile(f"{DATA_SET}/{re.escape(part)}/{inside}")
    members = [member for member in bundle.infolist() if wanted.fullmatch(member.filename)]
    for member in members:
        if not is_inside(member.filename):
            raise ValueError(f"its member '{member.filename[:80]}' has a name that no file can have")
    if not members:
        kind = "film" if part == "stimuli" else "recording (cifti/*_Atlas.dtseries.nii)"
        raise ValueError(f"it holds no {kind} in {DATA_SET}/{part}")
    return members


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> dict[str, Any]:
    """Write one member; its bytes and sha256. Reading to the end checks the CRC."""
    digest, size = hashlib.sha256(), 0
    with write_atomically(target) as temporary:
        with bundle.open(member) as source, open(temporary, "wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        if size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} has {size} bytes, {member.file_size} were expected")
    return {"bytes": size, "sha256": digest.hexdigest()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error is one sentence on standard error, and status 1."""
    parser = argparse.ArgumentParser(prog="python -m nfx.data.fetch", description="Fetch the published data set.")
    parser.add_argument("folder", help="where video_fmri_dataset/ goes: data/paper for the paper profile")
    parser.add_argument("--subjects", type=int, nargs="*", default=[1, 2, 3], help="default: 1 2 3")
    given = parser.parse_args(arguments)
    try:
        print(fetch_dataset(given.folder, given.subjects))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: interrupted; run again to go on from there")


if __name__ == "__main__":
    main()
