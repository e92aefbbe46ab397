"""The fetch against a server of our own, which serves archives of the published structure and misbehaves on request."""

import ftplib
import hashlib
import io
import re
import socket
import stat
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from nfx.data import fetch, fetch_dataset
from nfx.files import read_json

RNG = np.random.default_rng(0)
FILM = "video_fmri_dataset/stimuli/seg1.mp4"
RUN = "video_fmri_dataset/subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii"
WANTED = {  # what must come of each part
    "stimuli": {name: RNG.bytes(3000) for name in (FILM, FILM.replace("seg1", "test1"))},
    "subject1": {name: RNG.bytes(4000) for name in (RUN, RUN.replace("seg1_1", "seg1_2"))},
}
BESIDE = {  # what is in the archives besides
    "video_fmri_dataset/subject1/fmri/seg1/raw/seg1_1.nii.gz": b"raw",
    "video_fmri_dataset/subject1/fmri/seg1/mni/seg1_1_mni.nii.gz": b"mni",
    "video_fmri_dataset/subject2/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii": b"of another part",
    "video_fmri_dataset/stimuli/._seg1.mp4": b"a Mac's",
    "README.txt": b"the publisher's",
}
DiskUsage = namedtuple("DiskUsage", "total used free")


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip of {name or ZipInfo: bytes}, as bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def wrapped(members, compression=zipfile.ZIP_STORED):
    """The published double wrapping: the inner zip deflated, in an outer one that is stored or deflated."""
    bundle = zipped(members, zipfile.ZIP_DEFLATED)
    return zipped({"10_4231_XXX/readme.txt": b"hello", "10_4231_XXX/bundle.zip": bundle}, compression)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content, mode = server.files.get(self.path), server.mode
        wanted = self.headers["Range"]
        server.requests.append((self.path, wanted))
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and mode != "ignores range" else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if mode != "says no size":
            self.send_header("Content-Length", str(len(content) - start + (50 if mode == "announces more" else 0)))
        self.end_headers()
        drops = mode == "drops always" or (mode == "drops once" and len(server.requests) == 1)
        end = len(content) // 2 if drops else start + 500 if mode == "sends little" else None
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with the archives of the stimuli and of subject 1; `.mode` says how it misbehaves."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {f"/{part}": wrapped({**members, **BESIDE}) for part, members in WANTED.items()}
        server.sources = {part: f"http://127.0.0.1:{server.server_port}/{part}" for part in WANTED}
        server.mode, server.requests = "normal", []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_below(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".refused"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_the_package_reads_is_unpacked_and_recorded(server, tmp_path, compression):
    server.files = {f"/{part}": wrapped({**members, **BESIDE}, compression) for part, members in WANTED.items()}
    assert fetch_dataset(tmp_path, [1], server.sources) == tmp_path / "video_fmri_dataset"
    found = files_below(tmp_path)
    del found["fetched.json"]
    assert found == {**WANTED["stimuli"], **WANTED["subject1"]}
    record = read_json(tmp_path / "fetched.json")
    for part, members in WANTED.items():
        archive = server.files[f"/{part}"]
        assert record[part].pop("date").endswith("+00:00")
        assert record[part] == {
            "url": server.sources[part],
            "bytes": len(archive),
            "sha256": sha256(archive),
            "files": {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in members.items()},
        }


def test_a_stored_bundle_is_read_in_place(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "copyfileobj", lambda *_: pytest.fail("the bundle was copied"))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as outer:
        # As for more than 4 GB: the local header has extra fields that the table of contents has not.
        with outer.open("10_4231_XXX/bundle.zip", "w", force_zip64=True) as bundle:
            bundle.write(zipped(WANTED["stimuli"]))
    server.files["/stimuli"] = file.getvalue()
    fetch_dataset(tmp_path, [], server.sources)
    assert (tmp_path / FILM).read_bytes() == WANTED["stimuli"][FILM]


def test_what_is_there_is_not_requested_again(server, tmp_path):
    fetch_dataset(tmp_path, [1], server.sources)
    assert server.requests == [("/stimuli", None), ("/subject1", None)]
    fetch_dataset(tmp_path, [1], server.sources)
    assert len(server.requests) == 2
    (tmp_path / RUN).write_bytes(b"short")
    fetch_dataset(tmp_path, [1], server.sources)
    assert server.requests[2:] == [("/subject1", None)]
    assert (tmp_path / RUN).read_bytes() == WANTED["subject1"][RUN]


def test_a_dropped_connection_goes_on_where_it_was(server, tmp_path):
    server.mode = "drops once"
    fetch_dataset(tmp_path, [], server.sources)
    half = len(server.files["/stimuli"]) // 2
    assert server.requests == [("/stimuli", None), ("/stimuli", f"bytes={half}-")]
    assert read_json(tmp_path / "fetched.json")["stimuli"]["sha256"] == sha256(server.files["/stimuli"])


def test_attempts_that_bring_something_are_not_counted(server, tmp_path):
    server.mode = "sends little"
    fetch_dataset(tmp_path, [], server.sources)
    assert len(server.requests) == -(-len(server.files["/stimuli"]) // 500) > 2 * fetch.ATTEMPTS
    assert read_json(tmp_path / "fetched.json")["stimuli"]["sha256"] == sha256(server.files["/stimuli"])


def test_a_later_call_requests_only_the_rest(server, tmp_path):
    server.mode = "drops always"
    size = len(server.files["/stimuli"])
    half = size // 2
    with pytest.raises(ConnectionError, match=f"nothing after {half} of {size} bytes .*closed.*run again"):
        fetch_dataset(tmp_path, [], server.sources)
    assert files_below(tmp_path) == {"stimuli.zip.partial": server.files["/stimuli"][:half]}
    server.mode = "normal"
    server.requests.clear()
    fetch_dataset(tmp_path, [], server.sources)
    assert server.requests == [("/stimuli", f"bytes={half}-")]
    assert read_json(tmp_path / "fetched.json")["stimuli"]["sha256"] == sha256(server.files["/stimuli"])


def test_a_whole_partial_file_is_taken(server, tmp_path):
    (tmp_path / "stimuli.zip.partial").write_bytes(server.files["/stimuli"])
    fetch_dataset(tmp_path, [], server.sources)
    assert server.requests == [("/stimuli", f"bytes={len(server.files['/stimuli'])}-")]


def test_a_server_without_range_is_asked_for_all(server, tmp_path, capsys):
    server.mode = "ignores range"
    (tmp_path / "stimuli.zip.partial").write_bytes(b"x" * 100)
    fetch_dataset(tmp_path, [], server.sources)
    assert server.requests == [("/stimuli", "bytes=100-")]
    assert "starting again" in capsys.readouterr().err
    assert (tmp_path / FILM).read_bytes() == WANTED["stimuli"][FILM]


def test_a_partial_file_longer_than_the_archive_is_begun_anew(server, tmp_path):
    (tmp_path / "stimuli.zip.partial").write_bytes(b"x" * 10**5)
    fetch_dataset(tmp_path, [], server.sources)
    assert server.requests == [("/stimuli", "bytes=100000-"), ("/stimuli", None)]


def test_another_size_than_announced(server, tmp_path):
    server.mode = "announces more"
    size = len(server.files["/stimuli"])
    with pytest.raises(ValueError, match=f"announced {size + 50} bytes before and {size} now"):
        fetch_dataset(tmp_path, [], server.sources)
    assert files_below(tmp_path) == {}


def test_a_refusal_is_not_repeated(server, tmp_path):
    del server.files["/subject1"]
    with pytest.raises(ConnectionError, match="/subject1 was refused .*404"):
        fetch_dataset(tmp_path, [1], server.sources)
    assert server.requests[1:] == [("/subject1", None)]
    assert list(read_json(tmp_path / "fetched.json")) == ["stimuli"]


def test_a_damaged_archive(server, tmp_path):
    server.files["/subject1"] = b"<html>maintenance</html>" * 100
    with pytest.raises(ValueError, match="subject1.zip.refused: File is not a zip file"):
        fetch_dataset(tmp_path, [1], server.sources)
    assert (tmp_path / "subject1.zip.refused").read_bytes() == server.files["/subject1"]
    assert set(files_below(tmp_path)) == {"fetched.json", *WANTED["stimuli"]}
    assert list(read_json(tmp_path / "fetched.json")) == ["stimuli"]


def test_a_member_s_header_that_claims_a_long_name_is_not_told_at_length(server, tmp_path):
    bundle = bytearray(zipped(WANTED["stimuli"]))
    bundle[26:28] = (2500).to_bytes(2, "little")  # of the first member's own header: the length of its name
    server.files["/stimuli"] = zipped({"10_4231_XXX/bundle.zip": bytes(bundle)})
    with pytest.raises(ValueError, match="stimuli.zip.refused: File name in directory .*fetch it") as raised:
        fetch_dataset(tmp_path, [], server.sources)
    assert len(str(raised.value)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member(server, tmp_path, compression):
    fetch_dataset(tmp_path, [1], server.sources)
    bundle = bytearray(zipped(WANTED["subject1"]))
    bundle[bundle.index(WANTED["subject1"][RUN]) + 1000] ^= 1
    # Recompressed, the outer CRC agrees: only the member's own tells.
    server.files["/subject1"] = zipped({"10_4231_XXX/bundle.zip": bytes(bundle)}, compression)
    (tmp_path / RUN).unlink()
    with pytest.raises(ValueError, match="subject1.zip.refused: Bad CRC-32.*seg1_1_Atlas"):
        fetch_dataset(tmp_path, [1], server.sources)
    assert RUN not in files_below(tmp_path)
    assert not [name for name in files_below(tmp_path) if "zip" in name or "/." in name]
    assert list(read_json(tmp_path / "fetched.json")) == ["stimuli"]


LINK = zipfile.ZipInfo("video_fmri_dataset/stimuli/link.mp4")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("video_fmri_dataset/stimuli/../../../evil.mp4", "leads out"),
        ("video_fmri_dataset\\..\\..\\evil.mp4", "leads out"),
        ("/tmp/evil.mp4", "leads out"),
        ("C:/evil.mp4", "leads out"),
        (LINK, "is a link"),
    ],
)
def test_an_archive_that_leads_out_of_the_folder_is_refused(server, tmp_path, member, reason):
    server.files["/stimuli"] = wrapped({**WANTED["stimuli"], member: b"/etc/passwd"})
    with pytest.raises(ValueError, match=f"stimuli.zip.refused: its member .* {reason}"):
        fetch_dataset(tmp_path / "here", [], server.sources)
    assert files_below(tmp_path) == {"here/fetched.json": b"{}\n"}


def test_an_archive_without_the_part(server, tmp_path):
    server.files["/stimuli"] = wrapped(WANTED["subject1"])
    with pytest.raises(ValueError, match="it holds no film in video_fmri_dataset/stimuli"):
        fetch_dataset(tmp_path, [], server.sources)
    server.files["/stimuli"] = zipped(WANTED["stimuli"])
    with pytest.raises(ValueError, match="it holds 0 files bundle.zip"):
        fetch_dataset(tmp_path, [], server.sources)


def test_too_little_space(server, tmp_path, monkeypatch):
    free = 10_000
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: DiskUsage(10**12, 0, free))
    with pytest.raises(fetch.NotEnoughSpace, match=f"0.00 GB are free in {tmp_path}.*needed for stimuli"):
        fetch_dataset(tmp_path, [], server.sources)
    assert files_below(tmp_path) == {} and len(server.requests) == 1
    server.mode, free = "says no size", 20 * 10**9
    with pytest.raises(fetch.NotEnoughSpace, match="20.00 GB are free .* but 30.00 GB are needed for subject1"):
        fetch_dataset(tmp_path, [1], server.sources)
    assert list(read_json(tmp_path / "fetched.json")) == ["stimuli"]  # 10 GB were enough
    (tmp_path / "subject1.zip").write_bytes(server.files["/subject1"])
    free = 7999  # two runs of 4,000 bytes
    with pytest.raises(fetch.NotEnoughSpace, match="unpacked of subject1"):
        fetch_dataset(tmp_path, [1], server.sources)
    free = 8000
    fetch_dataset(tmp_path, [1], server.sources)  # the archive had stayed
    assert (tmp_path / RUN).read_bytes() == WANTED["subject1"][RUN]


class FakeFTP:
    """What the fetch uses of ftplib.FTP; `calls` holds what was asked, `behaviour` how it misbehaves."""

    content, behaviour, calls = b"", "normal", []

    def __init__(self, timeout):
        assert timeout > 0

    def connect(self, host, port):
        self.calls.append((host, port))

    def login(self):
        pass

    def voidcmd(self, command):
        assert command == "TYPE I"

    def size(self, path):
        return len(self.content) - (7 if self.behaviour == "announces less" else 0)

    def transfercmd(self, command, rest=None):
        self.calls.append((command, rest))
        if rest and self.behaviour == "no REST":
            raise ftplib.error_perm("502 REST not implemented")
        if self.behaviour == "no file":
            raise ftplib.error_perm("550 no such file")
        first = len(self.calls) == 2
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(self.content[rest or 0 : len(self.content) // 2 if first else None])
        return ours

    def close(self):
        pass


@pytest.fixture
def ftp(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(ftplib, "FTP", FakeFTP)
    monkeypatch.setattr(FakeFTP, "content", wrapped(WANTED["stimuli"]))
    monkeypatch.setattr(FakeFTP, "behaviour", "normal")
    monkeypatch.setattr(FakeFTP, "calls", [])
    return FakeFTP


@pytest.mark.parametrize("behaviour", ["normal", "no REST"])
def test_ftp_goes_on_where_it_was(ftp, tmp_path, behaviour):
    ftp.behaviour = behaviour
    fetch_dataset(tmp_path, [], {"stimuli": "ftp://example.org/some%20where/stimuli.zip"})
    command, half = "RETR /some where/stimuli.zip", len(ftp.content) // 2
    again = [(command, None)] if behaviour == "no REST" else []
    connect = ("example.org", 21)
    assert ftp.calls == [connect, (command, None), connect, (command, half), *again]
    assert read_json(tmp_path / "fetched.json")["stimuli"]["sha256"] == sha256(ftp.content)


def test_a_whole_partial_file_is_taken_from_ftp_too(ftp, tmp_path):
    (tmp_path / "stimuli.zip.partial").write_bytes(ftp.content)
    fetch_dataset(tmp_path, [], {"stimuli": "ftp://example.org/stimuli.zip"})
    assert ftp.calls == [("example.org", 21)]  # no RETR


def test_ftp_errors(ftp, tmp_path):
    ftp.behaviour = "no file"
    with pytest.raises(ConnectionError, match="was refused .550 no such file"):
        fetch_dataset(tmp_path, [], {"stimuli": "ftp://example.org/stimuli.zip"})
    assert len(ftp.calls) == 2
    ftp.behaviour = "announces less"
    size = len(ftp.content)
    with pytest.raises(ValueError, match=f"sent {size} bytes where {size - 7} were announced"):
        fetch_dataset(tmp_path, [], {"stimuli": "ftp://example.org/stimuli.zip"})
    assert files_below(tmp_path) == {}


def test_the_command(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no source for subject4; expected one of stimuli, subject1"):
        fetch.main([str(tmp_path), "--subjects", "4"])
    given = []
    monkeypatch.setattr(fetch, "fetch_dataset", lambda *arguments: given.append(arguments))
    fetch.main([str(tmp_path)])
    fetch.main([str(tmp_path), "--subjects"])
    assert given == [(str(tmp_path), [1, 2, 3]), (str(tmp_path), [])]
    with pytest.raises(ValueError, match="expected an address with http, https or ftp"):
        fetch_dataset(tmp_path, [], {"stimuli": "file:///stimuli.zip"})


def test_a_damaged_record_is_named(server, tmp_path):
    (tmp_path / "fetched.json").write_text("{")
    with pytest.raises(ValueError, match="fetched.json is not valid JSON; delete it"):
        fetch_dataset(tmp_path, [], server.sources)
    assert server.requests == []
