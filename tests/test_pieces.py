"""nfx.data.pieces: what was made is taken up again, and nothing stale or half-written is."""

import os

import numpy as np
import pytest

from nfx.data.pieces import digest, discard, file_state, join, keep, open_pieces

FACTS = {"subject": 1, "data": {"keep": 0.5}}


@pytest.fixture
def pieces(tmp_path):
    return open_pieces(tmp_path / "result", FACTS)


def never():
    raise AssertionError("made again")


def test_a_piece_is_made_once(pieces):
    made = keep(pieces, "seg1", ["a.nii", 3, 17], lambda: np.arange(6.0).reshape(2, 3))
    assert keep(pieces, "seg1", ["a.nii", 3, 17], never) == made
    np.testing.assert_array_equal(np.load(made), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(("name", "inputs"), [("seg2", ["a", 3]), ("seg1", ["a", 4]), ("seg1", np.arange(3))])
def test_another_name_or_other_inputs_are_another_piece(pieces, name, inputs):
    keep(pieces, "seg1", ["a", 3], lambda: np.zeros(2))
    with pytest.raises(AssertionError, match="made again"):
        keep(pieces, name, inputs, never)


@pytest.mark.parametrize("left", [0, 20, 150])  # nothing, half a header, half the data
def test_a_piece_that_was_cut_is_made_again(pieces, left):
    path = keep(pieces, "seg1", [], lambda: np.arange(9))
    os.truncate(path, left)
    assert keep(pieces, "seg1", [], lambda: np.arange(9)) == path
    np.testing.assert_array_equal(np.load(path), np.arange(9))


def test_an_interrupted_piece_leaves_nothing(pieces):
    with pytest.raises(KeyboardInterrupt):
        keep(pieces, "seg1", [], lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(pieces.iterdir()) == []


def test_pieces_of_other_facts_or_other_code_are_removed(tmp_path, pieces, monkeypatch):
    path = keep(pieces, "seg1", [], lambda: np.zeros(2))
    assert open_pieces(tmp_path / "result", FACTS) == pieces and path.is_file()
    other = open_pieces(tmp_path / "result", {**FACTS, "subject": 2})
    assert other != pieces and not path.exists() and other.is_dir()
    monkeypatch.setattr("nfx.data.pieces.source_digest", lambda *_: "other code")
    assert open_pieces(tmp_path / "result", {**FACTS, "subject": 2}) != other and not other.exists()
    discard(tmp_path / "result")
    assert list((tmp_path / "result").iterdir()) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, "<U5"])
def test_joined_pieces_are_the_file_that_numpy_would_write(tmp_path, pieces, dtype):
    arrays = [np.arange(rows * 12).reshape(rows, 4, 3).astype(dtype) for rows in (3, 1, 2)]
    parts = [keep(pieces, f"{i}", [], lambda array=array: array) for i, array in enumerate(arrays)]
    np.save(tmp_path / "expected.npy", np.concatenate(arrays))
    assert join(pieces / "all.npy", parts).read_bytes() == (tmp_path / "expected.npy").read_bytes()
    np.save(tmp_path / "expected.npy", np.concatenate(arrays).reshape(2, 3, 4, 3))
    assert join(pieces / "all.npy", parts, (2, 3)).read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_pieces_that_do_not_fit_together(pieces):
    parts = [keep(pieces, str(n), [], lambda n=n: np.zeros((2, n))) for n in (3, 4)]
    with pytest.raises(ValueError, match="4 rows do not make an array"):
        join(pieces / "all.npy", parts)
    with pytest.raises(ValueError, match=r"first axes \(3, 1\)"):
        join(pieces / "all.npy", parts[:1], (3, 1))
    assert not (pieces / "all.npy").exists()


def test_a_file_that_is_replaced_is_another_input(tmp_path):
    path = tmp_path / "run.nii"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    first = file_state(path)
    assert first == file_state(path)
    path.write_bytes(b"abd")  # as long, but later
    assert file_state(path) != first


def test_a_digest_sees_every_value_of_an_array():
    a = np.arange(4)
    assert digest([a, "x"]) == digest([a.copy(), "x"])
    assert len({digest(x) for x in (a, a[::-1], a.astype(float), a.reshape(2, 2), a.tolist())}) == 5
