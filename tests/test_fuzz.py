"""Damaged files are refused in one sentence that names them, or read as something whole; nothing else happens.

Whole files are cut, and bytes, numbers and words in them replaced by what a fault or an attacker would put there. Each
reader works in a process of its own with limits of time and memory (`fuzz_readers.py`).

    pytest tests/test_fuzz.py                                  # some hundred cases
    pytest tests/test_fuzz.py --hypothesis-profile=long        # some ten thousand

Where atheris is installed (``pip install -c constraints.txt -e '.[fuzz]'``), the readers of binary headers are searched
once more by what code a case reaches (`coverage_fuzz.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import coverage_fuzz
import pytest
from coverage_fuzz import TARGETS
from fuzz_readers import MOST_MEGABYTES, MOST_SECONDS, READERS, breach
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = 40  # cases of a reader in every run of the tests
NOT_AT_HAND = "the long profile of hypothesis is not chosen: --hypothesis-profile=long"

EXTREMES = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"99999999", b"4294967296", b"9" * 30, b"9" * 5000, b"1e999", b"-0.0", b"nan", b".inf", b"1_0")
WORDS = (
    b"../../../escaped", b"/etc/passwd", b"", b"null", b"true", b"[]", b"{}", b"[[[]]]", b"\x00", b"\xff\xfe", b"~",
    b"'", b'"', b"\n", b"\t", b": ", b"- ", b"<a>", b"&amp;&b;", b"a" * 5000, b"[" * 3000, b"{\"a\":" * 3000,
    b"&x [1, 1]", b"*x", b"!!python/object/apply:os.system [echo]", b"http://127.0.0.1:9/a", b"\xf0\x9f\xa7\xa0",
)  # fmt: skip
KINDS = ("cut", "flip", "byte", "field", "digits", "number", "word", "insert", "delete", "repeat", "swap")

places = st.one_of(st.integers(0, 600), st.integers(-600, -1), st.floats(0, 1, exclude_max=True))
changes = st.lists(st.tuples(st.sampled_from(KINDS), places, st.integers(0, 2**20)), min_size=1, max_size=4)


def damaged(content: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    """`content` after some changes, each at a place: from the beginning, from the end, or as a share of the length."""
    data = bytearray(content)
    for kind, place, value in steps:
        at = int(place * len(data)) if isinstance(place, float) else place % max(1, len(data))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= 1 << value % 8
        elif kind == "byte" and data:
            data[at] = value % 256
        elif kind == "field":
            number, (width, order) = (
                EXTREMES[value % len(EXTREMES)],
                ((1, 2, 4, 8)[value % 4], ("big", "little")[value % 2]),
            )
            data[at : at + width] = (number % 256**width).to_bytes(width, order)
        elif kind in ("digits", "number", "word"):
            found = list(re.finditer(rb"\d+" if kind != "word" else rb"[\w./-]+", data))
            if found:
                start, end = found[at % len(found)].span()
                long = (b"9" if value % 2 else b"0") * (end - start)
                data[start:end] = {"digits": long, "number": pick(NUMBERS, value), "word": pick(WORDS, value)}[kind]
        elif kind == "insert":
            data[at:at] = pick(WORDS, value)
        elif kind == "delete":
            del data[at : at + 1 + value % 64]
        elif kind == "repeat":
            data[at:at] = data[at : at + 1 + value % 4096]
        elif kind == "swap":
            data[at : at + 8] = data[at : at + 8][::-1]
    return bytes(data)


def pick(choices: tuple[bytes, ...], value: int) -> bytes:
    return choices[value % len(choices)]


class Process:
    """A reader at work in `folder`, alone in a box of which it must not change the rest."""

    def __init__(self, name: str, box: Path) -> None:
        self.name, self.box, self.folder = name, box, box / "folder"
        self.folder.mkdir(parents=True)
        first = self.start()
        assert first["outcome"] == "read" and not first["forbidden"], first
        self.whole = {file: (self.folder / file).read_bytes() for file in READERS[name].files}
        self.expected = first["text"]

    def start(self) -> dict:
        command = [sys.executable, str(Path(__file__).with_name("fuzz_readers.py")), self.name, str(self.folder)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TMPDIR": str(self.folder),
        }
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        return self.answer()

    def answer(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            self.stop()
            pytest.fail(f"the reader died with status {self.child.returncode} (-27: after {MOST_SECONDS} s and more)")
        return json.loads(line)

    def read(self, file: str, content: bytes) -> dict:
        if self.child.poll() is not None:
            self.start()
        for other, whole in self.whole.items():
            (self.folder / other).write_bytes(content if other == file else whole)
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        self.child.kill()
        self.child.communicate()


@pytest.fixture(scope="module", params=READERS)
def process(request, tmp_path_factory):
    started = Process(request.param, tmp_path_factory.mktemp("box"))
    yield started
    started.stop()


def check(process: Process, file: str, content: bytes) -> None:
    """Read the damaged file, and judge what happened."""
    told = process.read(file, content)
    try:
        assert [path.name for path in process.box.iterdir()] == ["folder"], "something was written outside"
        assert breach(process.name, told, process.folder, process.expected) is None
    except AssertionError:
        process.stop()  # its memory, and what else it has, would be seen in the next case
        raise


def examples(process: Process):
    return st.tuples(st.sampled_from(READERS[process.name].files), changes)


COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}  # the machine may be busy


@settings(max_examples=FEW, derandomize=True, **COMMON)
@given(data=st.data())
def test_damaged_files_are_refused_in_a_sentence_or_read_whole(process, data):
    file, steps = data.draw(examples(process))
    check(process, file, damaged(process.whole[file], steps))


@pytest.mark.slow
@given(data=st.data())
def test_ten_thousand_damaged_files(process, data):
    if settings.get_current_profile_name() != "long":
        pytest.skip(NOT_AT_HAND)
    file, steps = data.draw(examples(process))
    check(process, file, damaged(process.whole[file], steps))


# --- by coverage ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_some_hundred_cases_that_reach_other_code(target, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install -c constraints.txt -e '.[fuzz]'")
    command = [sys.executable, coverage_fuzz.__file__, target, "--cases", "300", "--folder", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert f"{target}: 300 cases, no breach" in done.stdout


WHOLE = {"outcome": "read", "text": "7", "forbidden": [], "seconds": 0.1, "megabytes": 1.0}
REFUSED = WHOLE | {"outcome": "refused", "text": "array.npy is cut", "kind": ["ValueError", "Exception"]}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (WHOLE, None), (REFUSED, None), (WHOLE | {"text": "8"}, "something else"),
        (WHOLE | {"forbidden": ["open '/x'"]}, "open '/x'"), (WHOLE | {"megabytes": MOST_MEGABYTES}, "900 MB"),
        (REFUSED | {"seconds": MOST_SECONDS}, "20.0 s"),
        (REFUSED | {"kind": ["MemoryError", "Exception"]}, "MemoryError"),
        (REFUSED | {"text": "it is cut"}, "no file or folder"),
        (REFUSED | {"text": "array.npy\nis cut"}, "no sentence"),
        (REFUSED | {"text": "array.npy: Unable to allocate 5 GB"}, "memory was asked for"),
    ],
)  # fmt: skip
def test_a_breach_of_the_contract_is_seen(told, found, tmp_path):
    seen = breach("arrays", told, tmp_path, "7")
    assert seen is None if found is None else found in seen
