"""The simulated brain: where, what, when and how noisy."""

import numpy as np
import pytest

from nfx.data import clean_run
from nfx.data.cleaning import trim
from nfx.data.simulator import brain as simulated
from nfx.data.simulator.brain import (
    FEATURE_RATE,
    LATENCIES,
    STATIC_SECONDS,
    acquisition_times,
    answer,
    bold,
    cortex,
    feature_names,
    features,
    haemodynamic_response,
    image_channels,
    make_brain,
    noise,
    noise_ceiling,
    receptive_fields,
    respond,
    signal_scale,
    slow,
)
from nfx.data.simulator.movie import Shot, film
from nfx.data.simulator.scenes import MOTIONS, OBJECTS, random_scene
from nfx.data.voxels import networks, parcels

STEPS = (20, 200)
SHARE = 0.16


@pytest.fixture(scope="module")
def brain():
    return make_brain(7, "subject1", SHARE, *STEPS)


@pytest.fixture(scope="module")
def shots():
    rng = np.random.default_rng(0)
    return [Shot(random_scene(rng, 4.0), 0, 2), Shot(random_scene(rng, 6.0), 2, 3)]


def test_the_response_peaks_after_four_seconds():
    seconds = np.arange(-5, 40, 0.01)
    response = haemodynamic_response(seconds)
    assert seconds[response.argmax()] == pytest.approx(4, abs=0.1)
    assert (response[seconds <= 0] == 0).all()
    assert 12 < seconds[response.argmin()] < 18 and response.sum() * 0.01 == pytest.approx(5 / 6, abs=1e-3)


@pytest.mark.parametrize(
    "segment, volumes", [("seg1", 245), ("seg18", 245), ("test1", 245), ("test2", 246), ("test5", 246)]
)
def test_kept_rows_are_acquired_four_seconds_after_their_clip(segment, volumes):
    times = acquisition_times(segment, 240)
    assert len(times) == volumes
    assert times[0] == (2 if volumes == 245 else 0)
    assert times[-1] + 2 <= 480 + STATIC_SECONDS  # the scanner stops within the static last frame
    kept = trim(times[:, None], 240)[:, 0]
    np.testing.assert_array_equal(kept, 2 * np.arange(240) + 4)


@pytest.mark.parametrize("segment", ["seg1", "test2"])
def test_a_clip_is_best_seen_one_row_later(segment):
    """A clip lasts 2 s and the response peaks after 4 s: row k, at 4 s, sees half of the peak, row k + 1 most of it."""
    events = np.random.default_rng(1).standard_normal(160).astype(np.float32)
    still = round(STATIC_SECONDS * FEATURE_RATE)
    bank = np.pad(np.repeat(events, 6), still)[:, None]
    canonical = respond(bank, acquisition_times(segment, 160))[len(LATENCIES) // 2]
    cleaned = clean_run(canonical, 160)[:, 0]
    found = [np.corrcoef(events[: 160 - lag], cleaned[lag:])[0, 1] for lag in range(5)]
    density = haemodynamic_response(np.arange(2, 12, 0.01)).reshape(5, 200).sum(1)
    assert int(np.argmax(found)) == int(density.argmax()) == 1
    assert found[0] > found[2] > found[3]  # a window of two rows, k and k + 1, is the right one


def test_latency_moves_the_response():
    bank = np.zeros((300, 1), np.float32)
    bank[100] = 1
    runs = respond(bank, np.arange(0.0, 60, 0.1))[..., 0]
    peaks = runs.argmax(1) * 0.1
    np.testing.assert_allclose(np.diff(peaks), np.diff(LATENCIES), atol=0.11)


def test_vertices_carry_what_their_area_does(brain):
    area = np.array([name[2:] for name in parcels(brain.where.grayordinate)])
    network = networks(brain.where.grayordinate)
    where = {kind: brain.carries == kind for kind in simulated.TUNED_SHARE}
    assert set(area[where["animal"]]) == {"FFC"}
    assert set(area[where["place"]]) <= {"PHA1", "PHA2", "PHA3", "VVC"}
    assert set(network[where["context"]]) == {"DefaultA"}
    assert set(network[where["image"]]) <= {"VisCent", "VisPeri", ""} and not where["attention"].any()
    motion = np.isin(area, ["MT", "MST", "V4t", "FST"]) | np.isin(network, ["DorsAttnA", "DorsAttnB"])
    assert motion[where["motion"]].all()
    named = np.isin(area, [name for group in simulated.PARCELS.values() for name in group])
    assert (brain.carries[(network == "") & ~named] == "nothing").all()
    assert not brain.weights[:, where["nothing"]].any() and brain.weights[:, ~where["nothing"]].any(0).all()
    rows = {name: feature_names().index(name) for name in OBJECTS}
    strongest = brain.weights[: max(rows.values()) + 1].argmax(0)
    assert np.mean(strongest[where["animal"]] == rows["cat"]) > 0.8
    assert (strongest[where["person"]] == rows["person"]).all()


def test_the_sample_is_sorted_and_thins_out():
    few, many = cortex(*STEPS), cortex(4, 40)
    assert (np.diff(few.grayordinate) > 0).all() and len(many.vertex) > 4 * len(few.vertex)
    assert few.structure[0] == "CIFTI_STRUCTURE_CORTEX_LEFT" and few.structure[-1] == "CIFTI_STRUCTURE_CORTEX_RIGHT"
    with pytest.raises(ValueError, match="vertex_step"):
        cortex(0, 40)


def test_central_vision_is_central(brain):
    at = (np.arange(simulated.GRID) + 0.5) / simulated.GRID - 0.5
    distance = np.hypot(at[:, None], at[None]).ravel()
    image = brain.carries == "image"
    field = np.abs(brain.weights[: 4 * distance.size, image]).reshape(4, distance.size, -1).sum(0)
    mean = (field * distance[:, None]).sum(0) / field.sum(0)
    central = brain.where.network[image] == "VisCent"
    assert mean[central].max() < np.median(mean[~central])


def test_receptive_field_is_where_it_is_said_to_be():
    field = receptive_fields(np.array([[0.25, 0.75]]), np.array([0.05])).reshape(16, 16)
    row, column = np.unravel_index(field.argmax(), field.shape)
    assert row in (11, 12) and column in (3, 4) and field.sum() == pytest.approx(1)


def test_image_channels():
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[0, :, :32] = [255, 0, 0]
    frames[1] = [255, 255, 255]
    light, contrast, red_green, blue_yellow = np.moveaxis(image_channels(frames), 1, 0)
    assert light[0, 0, 0] == pytest.approx(0.299) and (light[0, :, 8:] == 0).all() and light[1] == pytest.approx(1)
    assert (contrast[0].argmax(1) % 16 >= 7).all() and (contrast[0].argmax(1) <= 8).all() and not contrast[1].any()
    assert red_green[0, 0, 0] == 1 and blue_yellow[0, 0, 0] == -0.5 and np.abs(red_green[1]).max() == 0
    with pytest.raises(ValueError, match="multiple of 16"):
        image_channels(frames[:, :60, :60])


def test_features_of_a_segment(shots):
    bank = features(shots)
    still = round(STATIC_SECONDS * FEATURE_RATE)
    assert bank.shape == (5 * 6 + 2 * still, len(feature_names())) and bank.dtype == np.float32
    np.testing.assert_array_equal(bank[:still, :1024], np.repeat(bank[still : still + 1, :1024], still, 0))
    first = image_channels(film(shots, 64, 3))[0].ravel()
    np.testing.assert_array_equal(bank[0, :1024], first)
    motion = bank[:, 1024:2048].reshape(len(bank), 4, 256).sum(2)
    assert not motion[:still].any() and not motion[-still:].any()
    assert (motion[still : still + 12].argmax(1) == shots[0].scene.motion).all()
    column = feature_names().index(OBJECTS[shots[1].scene.object])
    assert bank[still + 12 :, column].all() and feature_names()[1024].startswith(MOTIONS[0])


def test_slow_context_follows_slowly():
    step = np.r_[np.zeros(5), np.ones(200)][:, None].astype(np.float32)
    followed = slow(step)[:, 0]
    assert followed[4] == 0 and (np.diff(followed[4:]) >= 0).all()
    reached = followed[5 + round(simulated.CONTEXT_SECONDS * FEATURE_RATE) - 1]
    assert reached == pytest.approx(1 - np.exp(-1), abs=1e-4)


def test_explained_variance_is_what_the_truth_says(brain):
    """The correlation of two cleaned repeats estimates the explained variance of one."""
    rng = np.random.default_rng(0)
    count, volumes, segments = len(brain.carries), 100, 12
    tuned = brain.carries != "nothing"
    signals = [rng.standard_normal((volumes + 5, count), dtype=np.float32) * tuned for _ in range(segments)]
    signals = [(s[1:] + s[:-1])[: volumes + 4] for s in signals]
    scale, share, _ = signal_scale(brain, signals)
    assert share[tuned].mean() == pytest.approx(SHARE, rel=0.03) and not share[~tuned].any()
    assert np.quantile(share[tuned], 0.1) < 0.06 < 0.25 < np.quantile(share[tuned], 0.9)
    found = np.zeros(count)
    for signal in signals:
        run = np.pad(signal * scale, ((1, 0), (0, 0)), mode="edge")
        first, second = (clean_run(bold(brain, run, rng), volumes) for _ in range(2))
        found += (first * second).sum(0) / (volumes - 1) / segments
    assert found[tuned].mean() == pytest.approx(SHARE, rel=0.1) and abs(found[~tuned].mean()) < 0.01
    assert np.corrcoef(found[tuned], share[tuned])[0, 1] > 0.9
    ceiling = noise_ceiling(share, 10)
    assert (ceiling >= share).all() and noise_ceiling(np.array([0.5]), 1) == 0.5


def test_noise_is_smooth_in_space_and_time(brain):
    run = noise(brain, 200, np.random.default_rng(2))
    assert run.shape == (200, len(brain.carries)) and run.dtype == np.float32
    z = clean_run(np.pad(run, ((1, 4), (0, 0))) + 1e4, 200)
    assert 0.1 < np.mean(z[1:] * z[:-1]) < 0.5
    correlation = z.T @ z / 199
    position = brain.where.position
    distance = np.linalg.norm(position[:, None] - position[None], axis=2)
    near, far = correlation[(distance > 0) & (distance < 6)].mean(), np.abs(correlation[distance > 60].mean())
    assert near > 0.15 > 3 * far
    other = noise(brain, 200, np.random.default_rng(3))
    assert np.abs(np.mean(z * clean_run(np.pad(other, ((1, 4), (0, 0))) + 1e4, 200))) < 0.02


def test_bold_needs_cleaning(brain):
    run = bold(brain, np.zeros((60, len(brain.carries)), np.float32), np.random.default_rng(0))
    assert run.dtype == np.float32 and 4000 < run.min() and run.max() < 18000
    assert 9000 < run.mean() < 11000 and 0.005 < np.median(run.std(0) / run.mean(0)) < 0.05


def test_subjects_differ_and_can_be_drawn_again(brain):
    again, other = make_brain(7, "subject1", SHARE, *STEPS), make_brain(7, "subject2", SHARE, *STEPS)
    for name in ("carries", "weights", "latency", "wanted_share", "baseline"):
        np.testing.assert_array_equal(getattr(again, name), getattr(brain, name))
        assert not np.array_equal(getattr(other, name), getattr(brain, name))


def test_answers_are_weighted_features(brain):
    recorded = np.random.default_rng(0).standard_normal((len(LATENCIES), 4, len(feature_names()))).astype(np.float32)
    signal = answer(brain, recorded)
    vertex = int(np.flatnonzero(brain.carries == "image")[0])
    expected = recorded[brain.latency[vertex]] @ brain.weights[:, vertex]
    np.testing.assert_allclose(signal[:, vertex], expected, rtol=1e-4)
    assert not signal[:, brain.carries == "nothing"].any()


def test_signal_to_noise_out_of_range():
    with pytest.raises(ValueError, match="signal_to_noise.*0.4"):
        make_brain(7, "subject1", 0.4, *STEPS)
