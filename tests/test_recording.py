"""A new recording, as a trained decoder needs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_dataset import surface_sample, write_cifti, write_dataset

from nfx.data import load_subject, prepare_subject
from nfx.data.cleaning import detrend_and_z_score
from nfx.data.recording import Needs, needs_of, read_needs, read_windows, write_needs
from nfx.paths import data_set
from nfx.profile import load_profile

SEGMENTS, VOLUMES = 10, 12


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    write_dataset(
        root / "data/demo/video_fmri_dataset", segments=SEGMENTS, tests=2, volumes=VOLUMES, test_repeats=3
    )  # fmt: skip
    return root


@pytest.fixture
def profile(written, tmp_path, monkeypatch):
    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    (tmp_path / "data").symlink_to(written / "data")
    demo = load_profile("demo")
    changes = {
        "frame_size": 32, "train_segments": SEGMENTS, "test_segments": 2, "train_volumes": VOLUMES,
        "test_volumes": VOLUMES, "test_repeats": 3, "validation_segments": (9, 10), "keep": 1.0,
    }  # fmt: skip
    return demo.model_copy(update={"data": demo.data.model_copy(update=changes)})


@pytest.fixture
def decoder(tmp_path):
    """A decoder's folder as far as recordings go: three vertices, in an order of its own."""
    write_needs(tmp_path / "decoder", Needs((40, 29700, 3), 2, 4.0, "ddim", 8, 4.0, 2024))
    return tmp_path / "decoder"


def recording(path, volumes, seed=0, left=range(200), right=range(200)):
    brain = surface_sample(left, right)
    return write_cifti(path, np.random.default_rng(seed).normal(100, 5, (volumes, len(brain))), brain)


def columns(file, needs):
    from nfx.data import grayordinate, read_cifti

    data, structure, vertex = read_cifti(file)
    places = grayordinate(structure, vertex).tolist()
    return data[:, [places.index(place) for place in needs.vertex]]


def test_repeats_of_a_test_film_become_the_windows_that_were_evaluated(profile, tmp_path):
    prepare_subject(profile, 1)
    write_needs(tmp_path / "decoder", needs_of(profile, 1))
    repeats = sorted((data_set(profile) / "subject1/fmri/test2/cifti").glob("*.nii"))
    assert len(repeats) == 3
    windows = read_windows(repeats, tmp_path / "decoder", clips=VOLUMES)
    test = load_subject(profile, 1).test
    np.testing.assert_array_equal(windows, test.fmri[test.segment == 2])
    assert windows.dtype == np.float32


def test_what_a_decoder_needs_comes_back(profile, tmp_path):
    prepare_subject(profile, 1)
    needs = needs_of(profile, 1)
    write_needs(tmp_path / "decoder", needs)
    assert read_needs(tmp_path / "decoder") == needs
    assert needs.vertex == tuple(load_subject(profile, 1).vertex) and needs.delay == 4.0
    assert (needs.solver, needs.steps, needs.guidance, needs.seed) == ("ddim", 8, 4.0, 2024)


def test_other_people_s_delay_is_their_description_s(profile, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from nfx.data import derivatives

    prepare_subject(profile, 1)
    monkeypatch.setattr(derivatives, "load_recordings", lambda profile: SimpleNamespace(delay=5.5))
    own = profile.model_copy(update={"data": profile.data.model_copy(update={"recordings": "mine.yaml"})})
    assert needs_of(own, 1).delay == 5.5


def test_an_onset_picks_what_was_acquired_four_seconds_later(decoder, tmp_path):
    file = recording(tmp_path / "new.dtseries.nii", 30)
    windows = read_windows(file, decoder, onset=6.0, repetition_time=2.0)
    bold = columns(file, read_needs(decoder))[5:]  # 6 s + 4 s
    np.testing.assert_allclose(windows[:, 0], detrend_and_z_score(bold)[0], atol=1e-5)
    np.testing.assert_array_equal(windows[:-1, 1], windows[1:, 0])
    fewer = read_windows(file, decoder, clips=8, onset=6.0, repetition_time=2.0)
    np.testing.assert_allclose(fewer[:, 0], detrend_and_z_score(bold[:8])[0], atol=1e-5)


def test_a_shorter_repetition_time_is_averaged_and_read_beside_the_recording(decoder, tmp_path):
    file = recording(tmp_path / "new.dtseries.nii", 44)  # its header says 1 s
    as_said = read_windows(file, decoder, onset=0.0)
    bold = columns(file, read_needs(decoder))[4:].reshape(20, 2, 3).mean(1)
    np.testing.assert_allclose(as_said[:, 0], detrend_and_z_score(bold)[0], atol=1e-4)
    (tmp_path / "new.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    np.testing.assert_array_equal(
        read_windows(file, decoder, onset=0.0), read_windows(file, decoder, onset=0.0, repetition_time=2.0)
    )


def test_faults_are_named(decoder, tmp_path):
    file = recording(tmp_path / "new.dtseries.nii", 30)
    with pytest.raises(ValueError, match="number of clips .published layout., or when it begins"):
        read_windows(file, decoder)
    with pytest.raises(ValueError, match="no recording was given"):
        read_windows([], decoder, clips=25)
    with pytest.raises(ValueError, match="clips is 0"):
        read_windows(file, decoder, clips=0)
    with pytest.raises(ValueError, match=r"new.dtseries.nii: The run has 30 volumes; 25 or 26 were expected"):
        read_windows(file, decoder, clips=20)
    with pytest.raises(ValueError, match="new.dtseries.nii: 30 volumes of 2 s end before"):
        read_windows(file, decoder, onset=58.0, repetition_time=2.0)
    with pytest.raises(ValueError, match="new.dtseries.nii: The run ends before the film does"):
        read_windows(file, decoder, clips=40, onset=0.0, repetition_time=2.0)
    small = recording(tmp_path / "small.dtseries.nii", 30, right=range(3))
    with pytest.raises(ValueError, match="small.dtseries.nii lacks 1 of the 3 vertices .* grayordinate 29700"):
        read_windows(small, decoder, clips=25)
    other = recording(tmp_path / "other.dtseries.nii", 34)
    with pytest.raises(ValueError, match="the recordings hold from 13 to 15 clips"):
        read_windows([file, other], decoder, onset=0.0)
    with pytest.raises(FileNotFoundError, match="nfx publish"):
        read_windows(file, tmp_path, clips=25)
    (decoder / "decoder.json").write_text('{"vertex": [1]}')
    with pytest.raises(ValueError, match="decoder.json is damaged: expected the keys vertex, window"):
        read_windows(file, decoder, clips=25)
