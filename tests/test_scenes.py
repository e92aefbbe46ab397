"""The rendered world: what a scene's attributes do to the picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nfx.data.simulator.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAME_CLASSES,
    MOTIONS,
    OBJECTS,
    SPEED,
    VIDEO_CLASSES,
    Scene,
    caption,
    centre,
    frame_class,
    object_mask,
    random_scene,
    render,
    video_class,
)

TIMES = np.arange(6) / 3


def scene(**attributes: int) -> Scene:
    standard = dict(object=1, colour=0, background=0, motion=1, x=32.0, y=32.0, scale=40, texture_seed=4)
    return Scene(**(standard | attributes))


def test_every_combination_has_its_own_class_and_caption():
    every = list(itertools.product(range(8), range(4), range(4), range(4)))
    scenes = [scene(object=o, colour=c, background=b, motion=m) for o, c, b, m in every]
    assert len({caption(s) for s in scenes}) == len(scenes) == 512
    for s in scenes:
        name = f"{COLOURS[s.colour]} {OBJECTS[s.object]} on {BACKGROUNDS[s.background]}"
        assert FRAME_CLASSES[frame_class(s)] == name
        name = f"{OBJECTS[s.object]} moving {MOTIONS[s.motion]} on {BACKGROUNDS[s.background]}"
        assert VIDEO_CLASSES[video_class(s)] == name
    assert len(set(FRAME_CLASSES)) == len(set(VIDEO_CLASSES)) == 128


def test_rendering_is_a_function_of_the_scene():
    a = render(scene(), TIMES)
    assert a.shape == (6, 64, 64, 3) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, render(scene(), TIMES))
    np.testing.assert_array_equal(a[2:3], render(scene(), TIMES[2:3]))  # a frame does not depend on its neighbours


@pytest.mark.parametrize("attribute", ["object", "colour", "background", "motion"])
def test_each_attribute_shows_in_a_single_frame(attribute):
    a, b = (render(scene(**{attribute: value}), TIMES[3:4]).astype(float) for value in (2, 3))
    assert np.abs(a - b).mean() > 1


@pytest.mark.parametrize("motion", range(4))
def test_the_object_moves_its_way_at_its_speed(motion):
    masks = object_mask(scene(motion=motion), np.array([0.0, 2.0]))
    where = np.array([np.argwhere(mask).mean(0)[::-1] for mask in masks])  # x, y
    expected = np.diff(centre(scene(motion=motion), np.array([0.0, 2.0])), axis=0)[0]
    np.testing.assert_allclose(where[1] - where[0], expected, atol=1)
    assert np.linalg.norm(expected) == pytest.approx(2 * SPEED)


def test_the_object_has_its_colour():
    means = {}
    for colour in range(3):
        s = scene(object=6, colour=colour)
        means[COLOURS[colour]] = render(s, TIMES[:1])[0][object_mask(s, TIMES[:1])[0]].mean(0)
    assert means["red"].argmax() == 0 and means["green"].argmax() == 1 and means["blue"].argmax() == 2


def test_random_scenes_keep_what_is_fixed_and_stay_in_view():
    rng = np.random.default_rng(0)
    for _ in range(100):
        s = random_scene(rng, duration=8.0, object=3, motion=0)
        assert (s.object, s.motion) == (3, 0)
        path = centre(s, np.linspace(0, 8, 9))
        assert path.min() >= 15 and path.max() <= 49
    with pytest.raises(ValueError, match="speed"):
        random_scene(rng, speed=3)


def test_larger_frames_show_the_same_scene():
    large = render(scene(), TIMES[:1], size=128)[0].astype(float)
    small = render(scene(), TIMES[:1])[0].astype(float)
    reduced = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    mask = object_mask(scene(), TIMES[:1])[0]
    assert np.corrcoef(reduced[mask].ravel(), small[mask].ravel())[0, 1] > 0.9
