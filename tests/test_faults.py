"""Disks that fill up, files that change between stages, clocks that jump: one sentence, and the next run goes on.

A fault is put at each call with which something is written, one after another. Killed runs, NaN losses, memory that
runs out in a training, and its checkpoints: test_training.py; files damaged at random: test_fuzz.py.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nfx import files
from nfx.data import fetch
from nfx.data.pieces import discard, file_state, join, keep, open_pieces
from nfx.files import finished, identity, load_arrays, save_arrays, write_json, write_manifest

FACTS, OLD = {"seed": 2}, {"seed": 1}
ARRAYS = {"fmri": np.arange(600, dtype=np.float32).reshape(20, 30), "segment": np.arange(20)}
CALLS = (  # with which the package writes
    (tempfile, "mkstemp"), (os, "fsync"), (os, "replace"), (np, "save"), (Path, "write_text"), (Path, "mkdir"),
)  # fmt: skip
CODES = {
    "no space": errno.ENOSPC, "quota": errno.EDQUOT, "read-only": errno.EROFS, "not allowed": errno.EACCES,
    "broken disk": errno.EIO,
}  # fmt: skip


def make_arrays(folder):
    save_arrays(folder / "result", ARRAYS, FACTS)
    return folder / "result"


def make_table(folder):
    with files.write_atomically(folder / "result" / "scores.csv") as temporary:
        temporary.write_text("clip,ssim\n1,0.5\n")
    write_json(folder / "result" / "captions.json", ["a cat"])
    write_manifest(folder / "result", FACTS, ["scores.csv", "captions.json"])
    return folder / "result"


def make_pieces(folder):
    """As nfx.data.dataset prepares a film: piece by piece, joined, moved into place."""
    pieces = open_pieces(folder / "result", FACTS)
    parts = [keep(pieces, f"seg{n}", [n], lambda n=n: ARRAYS["fmri"][10 * n : 10 * n + 10]) for n in (0, 1)]
    arrays = {"fmri": join(pieces / "fmri.npy", parts), "segment": ARRAYS["segment"]}
    save_arrays(folder / "result", arrays, FACTS)
    discard(folder / "result")
    return folder / "result"


MAKERS = (make_arrays, make_table, make_pieces)


class Fault:
    """The n-th of all `CALLS` fails, from 0; `missed` if there were fewer."""

    def __init__(self, monkeypatch, number, code):
        self.left, self.code, self.missed = number, code, True
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))

    def failing(self, call):
        def instead(*arguments, **named):
            self.left -= 1
            if self.left == -1:
                self.missed = False
                place = arguments[0] if arguments and isinstance(arguments[0], Path | str) else named.get("dir")
                raise OSError(self.code, os.strerror(self.code), *([str(place)] if place else []))
            return call(*arguments, **named)

        return instead


def hidden_files(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != files.CLAIM]


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("make", MAKERS)
def test_a_fault_at_every_write(tmp_path, monkeypatch, make, code):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # some thousand of them would take minutes
    whole = identity(make(tmp_path / "whole"))
    number = 0
    while True:
        folder = tmp_path / str(number)
        save_arrays(folder / "result", {"fmri": ARRAYS["fmri"][:3]}, OLD)  # what an earlier run left
        with monkeypatch.context() as patched:
            fault = Fault(patched, number, code)
            try:
                make(folder)
                told = None
            except OSError as error:
                told = error
        if fault.missed:
            assert told is None
            break
        if told is not None:
            text = str(told)
            assert told.errno == code and str(folder) in text and os.strerror(code) in text
            assert len(text.splitlines()) == 1
            assert not finished(folder / "result", FACTS)
        assert hidden_files(folder) == []
        assert identity(make(folder)) == whole, "the next run goes on"
        assert finished(folder / "result", FACTS)
        number += 1
    assert number >= 6  # so many writes there are at least


def test_a_disk_that_is_full_in_the_middle_of_an_array(tmp_path):
    """The kernel's own error, from a limit on the size of files."""
    save_arrays(tmp_path / "result", {"fmri": ARRAYS["fmri"]}, OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"fmri": np.zeros((1000, 100))}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match="fmri.npy was not written .*unchanged: make room"):
            save_arrays(tmp_path / "result", large, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hidden_files(tmp_path) == [] and not finished(tmp_path / "result", FACTS)
    save_arrays(tmp_path / "result", large, FACTS)
    assert finished(tmp_path / "result", FACTS)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result").chmod(0o500)
    with pytest.raises(PermissionError, match="fmri.npy was not written"):
        save_arrays(tmp_path / "result", ARRAYS, FACTS)


def test_an_archive_that_does_not_fit_is_unpacked_next_time(tmp_path, monkeypatch):
    from fuzz_readers import FILMS, make_archives

    make_archives(tmp_path)
    (tmp_path / "data").mkdir()
    with monkeypatch.context() as patched:
        Fault(patched, 3, errno.ENOSPC)
        with pytest.raises(OSError, match="was not written"):
            fetch.unpack(tmp_path / "stored.zip", tmp_path / "data", "stimuli")
    assert (tmp_path / "stored.zip").is_file(), "not refused: it is whole"
    assert set(fetch.unpack(tmp_path / "stored.zip", tmp_path / "data", "stimuli")) == set(FILMS)


# --- files that change between stages ------------------------------------------------------------------------


def flip(path, place, bit=0):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("kept_from", [0, files.DIGESTS_KEPT_FROM], ids=["digests kept", "read each time"])
def test_every_flipped_bit_of_an_array_is_found(tmp_path, monkeypatch, kept_from):
    monkeypatch.setattr(files, "DIGESTS_KEPT_FROM", kept_from)
    save_arrays(tmp_path / "result", {"segment": np.arange(3, dtype=np.int16)}, FACTS)
    path = tmp_path / "result" / "segment.npy"
    whole, tried = path.read_bytes(), 0
    for place in range(len(whole)):
        path.unlink()  # another file each time, as a copy or a repair of the file system makes
        path.write_bytes(whole)
        flip(path, place, place % 8)
        with pytest.raises(ValueError, match=r"segment.npy .*Delete .*manifest.json"):
            load_arrays(tmp_path / "result", "segment")
        assert not finished(tmp_path / "result", FACTS)
        tried += 1
    path.unlink()
    path.write_bytes(whole)
    assert tried > 128 and finished(tmp_path / "result", FACTS)


@pytest.mark.parametrize("length", [0, 1, 10, 127, 128, 129, 200])
def test_every_cut_of_an_array_is_found_and_made_again(tmp_path, length):
    folder = make_arrays(tmp_path)
    os.truncate(folder / "fmri.npy", length)
    with pytest.raises(ValueError, match=f"fmri.npy has {length} bytes"):
        load_arrays(folder, "fmri")
    assert not finished(folder, FACTS)
    assert finished(make_arrays(tmp_path), FACTS)


def test_a_manifest_that_does_not_match_its_arrays(tmp_path):
    folder = make_arrays(tmp_path)
    save_arrays(tmp_path / "other", {"fmri": ARRAYS["fmri"] + 1, "segment": ARRAYS["segment"]}, FACTS)
    shutil.copy(tmp_path / "other" / "manifest.json", folder)
    with pytest.raises(ValueError, match="fmri.npy has other bytes"):
        load_arrays(folder)
    assert load_arrays(folder, "segment")["segment"].tolist() == ARRAYS["segment"].tolist()
    assert not finished(folder, FACTS)


def test_a_manifest_of_huge_entries_is_told_in_a_sentence(tmp_path):
    folder = make_arrays(tmp_path)
    manifest = files.read_json(folder / "manifest.json")
    manifest["arrays"]["fmri"] |= {"dtype": "<i" + "9" * 5000, "shape": [9] * 5000}
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match="fmri.npy holds .*, but its manifest says <i999") as told:
        load_arrays(folder)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["../other/fmri", "/etc/hostname", "a/../../b", "", "x\ny"])
def test_a_manifest_that_leads_out_of_its_folder(tmp_path, name):
    folder = make_arrays(tmp_path)
    manifest = files.read_json(folder / "manifest.json")
    manifest["files"][name] = manifest["files"]["fmri.npy"]
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match="manifest.json is not a manifest"):
        load_arrays(folder)
    assert not finished(folder, FACTS)


@pytest.mark.parametrize("harm", ["flip", "cut", "no digest", "other digest", "half a digest"])
def test_a_damaged_piece_is_made_again(tmp_path, harm):
    pieces = open_pieces(tmp_path / "result", FACTS)
    made = []

    def piece():
        return keep(pieces, "seg1", [1], lambda: made.append(1) or ARRAYS["fmri"])

    path = piece()
    assert piece() == path and made == [1]
    if harm == "flip":
        flip(path, 300)
    elif harm == "cut":
        os.truncate(path, 300)
    elif harm == "no digest":
        path.with_suffix(".json").unlink()
    elif harm == "other digest":
        write_json(path.with_suffix(".json"), "0" * 64)
    else:
        os.truncate(path.with_suffix(".json"), 5)
    assert np.array_equal(np.load(piece()), ARRAYS["fmri"]) and made == [1, 1]


# --- clocks that jump ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 4_102_444_800], ids=["1970", "2100"])
def test_no_result_depends_on_dates(tmp_path, when):
    folder = make_arrays(tmp_path)
    for path in folder.iterdir():
        os.utime(path, (when, when))
    assert finished(folder, FACTS)
    assert np.array_equal(load_arrays(folder, "fmri")["fmri"], ARRAYS["fmri"])


def test_a_clock_that_goes_backwards_while_a_result_is_written(tmp_path, monkeypatch):
    whole = identity(make_pieces(tmp_path / "whole"))
    clock = iter(range(10**9, 0, -1000))
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: float(next(clock)))
    assert identity(make_pieces(tmp_path / "jumped")) == whole


def test_an_input_with_another_date_is_another_input(tmp_path):
    """A clock that was wrong costs time, never a stale piece."""
    (tmp_path / "film.mp4").write_bytes(b"film")
    pieces, made = open_pieces(tmp_path / "result", FACTS), []
    for when in (10**9, 5 * 10**8, 10**9):
        os.utime(tmp_path / "film.mp4", (when, when))
        keep(pieces, "film", file_state(tmp_path / "film.mp4"), lambda: made.append(1) or np.zeros(2))
    assert made == [1, 1]


# --- decoding ------------------------------------------------------------------------------------------------


def decode(folder, decoder):
    from nfx.evaluation import decoded
    from nfx.profile import load_profile

    demo = load_profile("demo")
    profile = demo.model_copy(update={"sampling": demo.sampling.model_copy(update={"batch_size": 2})})
    return decoded._in_blocks(folder, "test", 12, profile, decoder, {"seed": 1})


@pytest.mark.parametrize("fault", ["memory", "no space", "flip", "cut"])
def test_decoding_goes_on_after_a_fault(tmp_path, monkeypatch, fault):
    """What one block of clips failed with costs that block alone."""
    seen = []

    def decoder(block):
        seen.append(block.start)
        if fault == "memory" and len(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
        return np.full((block.stop - block.start, 6, 4, 4, 3), block.start, np.uint8)

    if fault == "memory":
        told = "decoding clips 2 to 3 of 12, test: out of memory .*sampling.batch_size is 2: lower it"
        with pytest.raises(MemoryError, match=told):
            decode(tmp_path, decoder)
    elif fault == "no space":
        with monkeypatch.context() as patched:
            Fault(patched, 9, errno.ENOSPC)
            with pytest.raises(OSError, match="was not written"):
                decode(tmp_path, decoder)
    else:
        decode(tmp_path, decoder)
        block = sorted((tmp_path / "blocks").rglob("test_*.npy"))[0]
        flip(block, 200) if fault == "flip" else os.truncate(block, 200)
    before = len(seen)
    clips = decode(tmp_path, decoder)
    starts = sorted({*seen})
    assert [clips[start].max() for start in starts] == starts and len(clips) == 12
    assert len(seen) - before <= len(starts), "a block was decoded twice"
    if fault in ("flip", "cut"):
        assert seen[before:] == [0]
