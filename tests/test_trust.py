"""What docs/trust.md says, held by the code: what it never calls, and hostile files that must do nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers_dataset import surface_sample, write_cifti

from nfx import files
from nfx.data import inspection, read_cifti, read_clips
from nfx.data.cifti import time_step

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nfx").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NETWORK = {"urllib", "http", "ftplib", "requests", "httpx", "aiohttp", "huggingface_hub", "smtplib", "telnetlib", "ssl"}
MAY_USE_THE_NETWORK = {"nfx/data/fetch.py", "nfx/weights.py", "nfx/model_card.py"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


@cache
def sources():
    """Name and syntax tree of every module, and of each notebook's code."""
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found[path.name] = re.sub(r"(?m)^\s*[%!].*$", "", text)
    return [(name, ast.parse(text)) for name, text in found.items()]


@cache
def imports():
    """Module and the name that it imports."""
    return list(_imports())


def _imports():
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


@cache
def calls():
    """Place, dotted name as written, keywords and node of every call."""
    return list(_calls())


def _calls():
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield f"{name}:{node.lineno}", ast.unparse(node.func), given, node


def test_the_sources_are_found():
    assert len(MODULES) > 60 and len(NOTEBOOKS) >= 6
    assert len(calls()) > 3000


def test_pickles_are_read_by_torch_alone_and_as_plain_weights():
    found = {(place, name) for place, name in imports() if name.split(".")[0] in UNPICKLERS}
    assert found == {("nfx/encoder/conversion.py", "pickle")}  # for the name of torch's error
    assert "pickle.UnpicklingError" in (text := (ROOT / "nfx/encoder/conversion.py").read_text())
    assert set(re.findall(r"pickle\.\w+", text)) == {"pickle.UnpicklingError"}
    loads = [
        (place, given)
        for place, name, given, _ in calls()
        if name in ("torch.load", "load") and "map_location" in given
    ]
    assert len(loads) == 2 and all(given["weights_only"] == "True" for _, given in loads)
    assert not [
        place for place, name, _, _ in calls() if name.endswith(("read_pickle", "torch.hub.load", "loads_pickle"))
    ]


def test_arrays_are_never_pickled():
    loads = [(place, given) for place, name, given, _ in calls() if name in ("np.load", "numpy.load", "np.save")]
    assert len(loads) >= 8
    assert [place for place, given in loads if given.get("allow_pickle", "False") != "False"] == []  # NumPy's default


def test_no_model_brings_code():
    text = "".join(path.read_text(encoding="utf-8") for path in [*MODULES, *NOTEBOOKS])
    assert "trust_remote_code" not in text and "custom_pipeline" not in text


def test_yaml_is_read_in_one_place_without_classes():
    found = [
        (place, name, given) for place, name, given, _ in calls() if re.match(r"yaml\.(\w*load\w*|\w*Loader)", name)
    ]
    assert [(place.split(":")[0], name, given) for place, name, given in found] == [
        ("nfx/files.py", "yaml.load", {"Loader": "_PlainYaml"})
    ]
    assert issubclass(files._PlainYaml, files.yaml.SafeLoader)


def test_no_shell_and_nothing_evaluated():
    forbidden = (
        "os.system",
        "os.popen",
        "eval",
        "exec",
        "compile",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
    )
    assert [
        place for place, name, _, _ in calls() if name in forbidden or name.startswith(("os.exec", "os.spawn"))
    ] == []
    started = [(place, given, node) for place, name, given, node in calls() if re.fullmatch(r"subprocess\.\w+", name)]
    assert started
    for place, given, node in started:
        assert "shell" not in given and not isinstance(node.args[0], ast.Constant | ast.JoinedStr), place


def test_archives_are_unpacked_member_by_member():
    forbidden = ("extractall", "extract", "unpack_archive", "mktemp")
    assert [place for place, name, _, _ in calls() if name.split(".")[-1] in forbidden] == []
    assert [place for place, name in imports() if name.split(".")[0] == "tarfile"] == []


def test_three_modules_use_the_network():
    found = {place for place, name in imports() if name.split(".")[0] in NETWORK}
    assert found == MAY_USE_THE_NETWORK
    assert {name for place, name in imports() if name.split(".")[0] == "socket"} == {"socket"}
    sockets = {name for place, name, _, _ in calls() if name.startswith("socket.")}
    assert sockets == {"socket.gethostname"}  # of nfx.doctor, which takes the name out


def test_the_page_escapes_what_it_shows():
    made = [given for _, name, given, _ in calls() if name == "Environment"]
    assert [given["autoescape"] for given in made] == ["True"]


def test_every_claim_of_the_page_names_tests_that_exist():
    text = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) >= 15
    for module, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / f"{module}.py").read_text(), re.MULTILINE), (module, test)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert all("test_" in row for row in rows), "a claim without a test"


# --- hostile files -------------------------------------------------------------------------------------------


def in_little_memory(code: str, folder: Path, megabytes: int = 700) -> str:
    """What code prints in a process that may have so much memory and ten seconds of CPU time."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))

    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
                         preexec_fn=limit)  # fmt: skip
    return run.stdout + run.stderr


BOMBS = {
    "aliases": "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    "merges": "a: &a {x: 1}\nb: {<<: *a}\n",
    "depth": "[" * 100_000,
    "number": "a: " + "9" * 100_000,
    "class": "!!python/object/apply:os.mkdir [escaped]\n",
    "name": "a: !!python/name:os.system\n",
    "twice": "seed: 1\nseed: 2\n",
    "size": "a: b\n" * 300_000,
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_yaml_bombs_and_classes_are_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("bomb.yaml").write_text(text)
    with pytest.raises(ValueError, match="bomb.yaml is not valid YAML") as refused:
        files.read_yaml(tmp_path / "bomb.yaml")
    assert len(str(refused.value)) < 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.yaml"]


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("escaped"),)


def test_an_array_that_hides_a_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    np.savez("zip.npz", a=np.zeros(2))
    os.rename("zip.npz", "zip.npy")
    for name in ("x.npy", "zip.npy"):
        with pytest.raises(ValueError, match=f"{name} is not a whole .npy file"):
            files.read_array(tmp_path / name)
    assert not Path("escaped").exists()


def test_an_array_that_announces_a_petabyte(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(ValueError, match="x.npy is not a whole"):
        files.read_array(tmp_path / "x.npy")


def with_xml(path: Path, change) -> Path:
    """The recording again, with its CIFTI header changed as text, and everything else as it should be."""
    image = nibabel.load(write_cifti(path, np.ones((9, 40)), surface_sample(np.arange(20), np.arange(20))))
    content, xml = path.read_bytes(), image.header.to_xml()
    new = change(xml)
    assert new != xml
    size = 8 + len(new)
    size += -size % 16
    offset = 544 + size
    extension = size.to_bytes(4, "little") + (32).to_bytes(4, "little") + new.ljust(size - 8)
    header = content[:168] + offset.to_bytes(8, "little") + content[176:540]
    path.write_bytes(header + b"\1\0\0\0" + extension + np.ones((9, 40), np.float32).tobytes())
    return path


HEADERS = {
    "exponent": lambda xml: re.sub(rb'SeriesExponent="\d+"', b'SeriesExponent="999999999"', xml),
    "count": lambda xml: re.sub(rb'IndexCount="\d+"', b'IndexCount="99999999999"', xml),
    "negative count": lambda xml: re.sub(rb'IndexCount="\d+"', b'IndexCount="-20"', xml),
    "entities": lambda xml: b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 1000 + b'">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    ) + b"]>" + xml[xml.index(b"<CIFTI") :].replace(b"</VertexIndices>", b"&j;</VertexIndices>", 1),
}  # fmt: skip


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_recordings_whose_headers_claim_too_much(tmp_path, change):
    path = with_xml(tmp_path / "run.dtseries.nii", change)
    with pytest.raises(ValueError, match="run.dtseries.nii"):
        read_cifti(path)
    assert inspection.check_recording(path, 4).state == "damaged"


def test_the_xml_of_a_recording_reads_no_other_file(tmp_path):
    (tmp_path / "secret").write_text(" 31999")
    doctype = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{tmp_path}/secret">]>'.encode()
    path = with_xml(
        tmp_path / "run.dtseries.nii",
        lambda xml: doctype + xml[xml.index(b"<CIFTI") :].replace(b"19</VertexIndices>", b"19&a;</VertexIndices>"),
    )
    assert b"19&a;" in path.read_bytes()
    assert read_cifti(path).vertex.tolist() == [*range(20), *range(20)]


def test_a_recording_is_rewritten_whole_by_the_test_itself(tmp_path):
    path = with_xml(
        tmp_path / "run.dtseries.nii", lambda xml: xml.replace(b'SeriesExponent="0"', b'SeriesExponent="1"')
    )
    assert read_cifti(path).data.shape == (9, 40) and inspection.check_recording(path, 4).state == "present"
    assert time_step(path) == 10.0


def test_many_open_tags_take_no_hours(tmp_path):
    path = with_xml(
        tmp_path / "run.dtseries.nii", lambda xml: b"<MetaData>" * 400_000 + b"<CIFTI" * 400_000 + b"</CIFTI>"
    )
    assert inspection.check_recording(path, 4).state == "damaged"


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n",
    "address": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/a.mp4\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{other}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\n",
}


@pytest.mark.parametrize("text", PLAYLISTS.values(), ids=PLAYLISTS)
def test_a_playlist_called_film_opens_nothing(tmp_path, text):
    from helpers_dataset import write_film

    other = write_film(tmp_path / "secret.mp4", range(60))
    (tmp_path / "film.mp4").write_text(text.format(other=other))
    with pytest.raises(ValueError, match="film.mp4 cannot be read as a film"):
        read_clips(tmp_path / "film.mp4", 16)


def test_a_film_with_the_name_of_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_clips("http://127.0.0.1:9/film.mp4", 16)
    with pytest.raises(FileNotFoundError):
        read_clips("concat:a.mp4|b.mp4", 16)


def test_a_profile_that_claims_much_is_read_in_little_memory(tmp_path):
    profile = (ROOT / "nfx/profiles/demo.yaml").read_text()
    changed = re.sub(r"(?m)^(\s+train_segments:) \d+", r"\1 9000000000000", profile)
    assert changed != profile
    (tmp_path / "mine.yaml").write_text(changed)
    told = in_little_memory("from nfx.profile import load_profile; print(load_profile('mine.yaml').name)", tmp_path)
    assert told.strip().splitlines()[-1:] == ["demo"], told
