"""The plan of the simulated movie and its film."""

from collections import Counter

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfx.data import read_clips
from nfx.data.simulator.movie import (
    ALL_CLASSES,
    CLASS_OVERLAP,
    balanced_choice,
    choose_classes,
    class_overlap,
    clip_attributes,
    describe,
    film,
    generator,
    plan_movie,
    plan_other_movie,
    shot_lengths,
    write_movie,
)
from nfx.data.simulator.scenes import render
from nfx.profile import load_profile


@pytest.fixture(scope="module")
def profile():
    return load_profile("demo")


@pytest.fixture(scope="module")
def movie(profile):
    return plan_movie(profile)


def scenes(movie, prefix):
    return [shot.scene for name, shots in movie.items() if name.startswith(prefix) for shot in shots]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_scenes_fill_a_segment(volumes, shortest, more, seed):
    lengths = shot_lengths(np.random.default_rng(seed), volumes, shortest, shortest + more)
    assert sum(lengths) == volumes and max(lengths) <= shortest + more
    if more >= shortest - 1 and volumes >= shortest:  # then any volumes can be filled with whole scenes
        assert min(lengths) >= shortest


def test_scene_lengths_must_be_a_range():
    with pytest.raises(ValueError, match=r"scene_volumes.*\[4, 2\]"):
        shot_lengths(np.random.default_rng(0), 10, 4, 2)


def test_segments_are_those_of_the_profile(profile, movie):
    data = profile.data
    assert list(movie) == [f"seg{n + 1}" for n in range(data.train_segments)] + [
        f"test{n + 1}" for n in range(data.test_segments)
    ]
    for name, shots in movie.items():
        assert [s.start for s in shots] == np.cumsum([0, *(s.length for s in shots[:-1])]).tolist()
        volumes = data.train_volumes if name.startswith("seg") else data.test_volumes
        assert clip_attributes(shots).shape == (volumes, 4)
    assert clip_attributes(movie["seg1"])[movie["seg1"][1].start].tolist() == list(movie["seg1"][1].scene[:4])


def test_the_movie_is_balanced(movie):
    for prefix in ("seg", "test"):
        shown = np.array([scene[:4] for scene in scenes(movie, prefix)])
        for column, levels in enumerate((8, 4, 4, 4)):
            counts = np.bincount(shown[:, column], minlength=levels)
            assert counts.min() >= 0.8 * counts.max() - 1, (prefix, column, counts)
        times_shown = Counter(map(tuple, shown[:, :3].tolist())).values()
        assert max(times_shown) - min(times_shown) <= 1
    assert max(times_shown) <= 2  # each class of the demo's test movie once or twice


def test_each_segment_is_balanced(movie):
    for name, shots in movie.items():
        shown = np.array([shot.scene[:4] for shot in shots])
        for column, levels in enumerate((8, 4, 4, 4)):
            counts = np.bincount(shown[:, column], minlength=levels)
            assert counts.max() - counts.min() <= (2 if name.startswith("test") else 3), (name, column, counts)


def test_train_and_test_classes_overlap_as_in_the_paper(movie):
    shown = {prefix: {scene[:3] for scene in scenes(movie, prefix)} for prefix in ("seg", "test")}
    assert class_overlap(shown["seg"], shown["test"]) == pytest.approx(CLASS_OVERLAP, abs=0.02)
    assert shown["test"] - shown["seg"] and shown["seg"] - shown["test"]
    for one in shown.values():
        assert [len({c[i] for c in one}) for i in range(3)] == [8, 4, 4]
    assert describe(movie)["class_overlap"] == class_overlap(shown["seg"], shown["test"])


@pytest.mark.parametrize("scenes_of_both", [(12, 8), (60, 20), (4000, 400)])
def test_overlap_at_other_sizes(scenes_of_both):
    train, test = choose_classes(np.random.default_rng(3), *scenes_of_both)
    assert len(set(train)) == len(train) <= scenes_of_both[0] and len(set(test)) == len(test) <= scenes_of_both[1]
    assert class_overlap(set(train), set(test)) == pytest.approx(CLASS_OVERLAP, abs=0.06)


def test_balanced_choice_covers_every_level():
    chosen = [ALL_CLASSES[i] for i in balanced_choice(np.random.default_rng(1), ALL_CLASSES, 16)]
    assert len(set(chosen)) == 16
    assert np.bincount([c[0] for c in chosen]).tolist() == [2] * 8
    assert np.bincount([c[1] for c in chosen]).tolist() == [4] * 4
    assert np.bincount([c[2] for c in chosen]).tolist() == [4] * 4


def test_the_seed_decides(profile, movie):
    assert plan_movie(profile) == movie
    other = plan_movie(profile.model_copy(update={"seed": profile.seed + 1}))
    assert other != movie
    assert generator(1, "a", 2).random() == generator(1, "a", 2).random() != generator(1, "a", 3).random()
    assert plan_other_movie(1, "x", 30, (2, 4)) != plan_other_movie(1, "y", 30, (2, 4))


def test_scenes_move_without_a_jump_and_cut_on_clips(movie):
    shots = movie["test1"][:2]
    frames = film(shots, 64).astype(float)
    assert len(frames) == 60 * (shots[0].length + shots[1].length)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    cut = 60 * shots[0].length - 1
    assert change.argmax() == cut and change[cut] > 2 * np.delete(change, cut).max()


@pytest.mark.parametrize("size, rate", [(64, 30), (48, 3)])
def test_film_is_the_rendered_scenes(movie, size, rate):
    shots = movie["seg1"][:2]
    whole = [render(s.scene, np.arange(2 * rate * s.length) / rate, size) for s in shots]
    np.testing.assert_array_equal(film(shots, size, rate), np.concatenate(whole))


def test_film_as_published(tmp_path, movie):
    shots = movie["test1"][:2]
    clips = sum(s.length for s in shots)
    path = write_movie(tmp_path / "stimuli/test1.mp4", shots, 64)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 30)
        assert stream.frames == 60 * clips
        assert float(stream.duration * stream.time_base) == pytest.approx(2 * clips)
    read = read_clips(path, 64, clips)
    truth = film(shots, 64, 3).reshape(read.shape)
    error = ((read.astype(float) - truth) ** 2).mean((2, 3, 4))
    assert 10 * np.log10(255**2 / error.max()) > 25  # dB, the worst frame; the chroma is subsampled
    assert [p.name for p in path.parent.iterdir()] == ["test1.mp4"]


def test_odd_frames_cannot_be_a_film(tmp_path, movie):
    with pytest.raises(ValueError, match="frame_size must be even.*63"):
        write_movie(tmp_path / "x.mp4", movie["test1"][:1], 63)
    assert not (tmp_path / "x.mp4").exists()
