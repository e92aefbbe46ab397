"""Attributes of decoded clips against the simulator's truth."""

from __future__ import annotations

import numpy as np
import pytest

from nfx import paths
from nfx.data.simulator import movie, scenes
from nfx.evaluation import truth_recovery as recovery
from nfx.files import write_json
from nfx.paths import data_set
from nfx.profile import load_profile

SEGMENT = np.repeat([1, 2, 3, 4], 40)


def made_up(clips=160, seed=0):
    rng = np.random.default_rng(seed)
    levels = {name: np.repeat(rng.integers(0, n, clips // 4), 4) for name, n in recovery.LEVELS.items()}
    return levels | {"position": np.repeat(rng.normal(32, 6, (clips // 4, 2)), 4, axis=0)}


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A film of a training and two test segments, of which only the truth is written."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    small = demo.data.model_copy(update={"train_segments": 1, "test_segments": 2})
    profile = demo.model_copy(update={"data": small})
    rng = np.random.default_rng(4)
    shots = {}
    for name in ("seg1", "test1", "test2"):
        drawn = [scenes.random_scene(rng, 4.0, motion=m % 4) for m in range(len(shots), len(shots) + 2)]
        shots[name] = [movie.Shot(drawn[0], 0, 2), movie.Shot(drawn[1], 2, 1)]
    write_json(data_set(profile) / "truth" / "movie.json", movie.describe(shots))
    return profile, shots


def test_truth_is_that_of_the_film(profile):
    profile, shots = profile
    clip = np.array([1, 2, 4])  # of six test clips
    truth = recovery.clip_truth(profile, "test", clip)
    expected = [shots["test1"][0].scene, shots["test1"][1].scene, shots["test2"][0].scene]
    for place, name in enumerate(recovery.NAMES):
        assert truth[name].tolist() == [scene[place] for scene in expected]
    times = np.arange(6) / 3
    for found, scene, passed in zip(truth["position"], expected, (2, 0, 2), strict=True):
        np.testing.assert_allclose(found, scenes.centre(scene, times + passed).mean(axis=0))
    assert len(recovery.clip_truth(profile, "train", np.arange(3))["object"]) == 3
    with pytest.raises(ValueError, match="real data"):
        recovery.clip_truth(profile.model_copy(update={"simulated": False}), "test", clip)


def test_positions_are_those_of_the_rendered_objects():
    rng = np.random.default_rng(0)
    drawn = [scenes.random_scene(rng, rng.uniform(2, 8)) for _ in range(120)]
    times = np.arange(6) / 3
    clips = np.stack([scenes.render(scene, times) for scene in drawn])
    true = np.array([scenes.centre(scene, times).mean(axis=0) for scene in drawn])
    found = recovery.position(clips)
    assert recovery.hits("position", true, found).mean() > 0.9
    assert all(np.corrcoef(found[:, k], true[:, k])[0, 1] > 0.85 for k in (0, 1))
    larger = np.stack([scenes.render(scene, times, 128) for scene in drawn[:6]])
    np.testing.assert_allclose(recovery.position(larger), found[:6], atol=2.5)


def test_a_clip_without_an_object_has_its_place_in_the_middle():
    clips = np.full((2, 6, 64, 64, 3), 128, np.uint8)
    np.testing.assert_allclose(recovery.position(clips), 32, atol=0.5)


def test_attributes_of_joint_logits():
    rng = np.random.default_rng(0)
    image, video = np.zeros((3, 6, 128)), np.zeros((3, 128))
    drawn = [scenes.random_scene(rng) for _ in range(3)]
    for clip, scene in enumerate(drawn):
        image[clip, :, scenes.frame_class(scene)] = 5
        video[clip, scenes.video_class(scene)] = 5
    image[0, 0] = 0
    image[0, 0, (scenes.frame_class(drawn[0]) + 40) % 128] = 6  # one frame that is read wrongly is outvoted
    found = recovery.read_logits(image, video)
    for place, name in enumerate(recovery.NAMES):
        assert found[name].tolist() == [scene[place] for scene in drawn]


def test_an_attribute_is_the_sum_over_the_others():
    image, video = np.full((1, 1, 128), -9.0), np.zeros((1, 128))
    joint = image.reshape(8, 4, 4)
    joint[2, 1, 1] = 1.0  # the largest class of all
    joint[5] = 0.5  # but the object 5 has more in sum
    assert recovery.read_logits(image, video)["object"].tolist() == [5]
    with pytest.raises(ValueError, match="1000 classes, expected the 128"):
        recovery.read_logits(np.zeros((1, 1, 1000)), video)


def test_hits():
    assert recovery.hits("motion", np.array([1, 2]), np.array([1, 3])).tolist() == [1, 0]
    away = np.array([[32.0, 32], [32, 32]])
    assert recovery.hits("position", away, away + [[0, 7.9], [6, 6]]).tolist() == [1, 0]


def test_table_of_a_perfect_a_partial_and_a_blind_reader():
    truth = made_up()
    rng = np.random.default_rng(1)
    half = {name: np.where(rng.random(160) < 0.5, levels, 0) for name, levels in truth.items() if name != "position"}
    noisy = truth["position"] + rng.normal(0, 6, (160, 2))
    seen = {
        "perfect": truth,
        "partial": half | {"position": noisy},
        **{f"blind {k}": made_up(seed=10 + k) for k in range(8)},
    }
    table = recovery.recovery_table(truth, seen, SEGMENT, 10, permutations=500)
    assert table.shape == (50, 9)
    table = table.set_index(["attribute", "reader"])
    perfect = table.xs("perfect", level="reader")
    assert (perfect["right"] == 1).all() and (perfect["p"] < 0.01).all()
    assert perfect["chance"].iloc[:4].tolist() == [0.125, 0.25, 0.25, 0.25] and 0.2 < perfect["chance"].iloc[4] < 0.8
    assert (table["low"] <= table["right"]).all() and (table["right"] <= table["high"]).all()
    partial = table.xs("partial", level="reader")
    assert (
        (partial["right"] < 0.9).all() and (partial["p"] < 0.01).all() and (partial["low"] > partial["permuted"]).all()
    )
    blind = table[table.index.get_level_values("reader").str.startswith("blind")]
    assert 0.35 < blind["p"].mean() < 0.65 and (blind["p"] <= 0.05).mean() <= 0.15
    assert (blind["right"] - blind["permuted"]).abs().max() < 0.2
