import numpy as np
import pandas as pd
import pytest
from skimage.metrics import peak_signal_noise_ratio

from nfx.data.simulator.scenes import DIRECTION, MOTIONS, random_scene, render
from nfx.evaluation import metrics
from nfx.evaluation.controls import block_bootstrap


@pytest.fixture(scope="module")
def film():
    """Scenes of the simulator, each with one object that moves steadily before a background."""
    rng = np.random.default_rng(0)
    return np.stack([render(random_scene(rng), np.arange(6) / 3) for _ in range(24)])


def test_psnr_is_that_of_skimage():
    rng = np.random.default_rng(0)
    truth, decoded = (rng.integers(0, 256, (3, 2, 9, 8, 3)).astype(np.uint8) for _ in range(2))
    decoded[1] //= 9
    expected = [[peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
                for a, b in zip(truth, decoded, strict=True)]  # fmt: skip
    np.testing.assert_allclose(metrics.psnr(truth, decoded), expected, rtol=1e-12)
    assert np.isposinf(metrics.psnr(truth, truth)).all()
    black, white = np.zeros_like(truth), np.full_like(truth, 255)  # differences that uint8 would wrap
    np.testing.assert_allclose(metrics.psnr(black, white), 0, atol=1e-12)


def test_agreement_is_a_correlation_about_zero(film):
    truth, decoded = film[:2], film[2:4]
    d, e = (np.diff(x.astype(float), axis=1).reshape(2, -1) for x in (truth, decoded))
    expected = (d * e).sum(1) / np.linalg.norm(d, axis=1) / np.linalg.norm(e, axis=1)
    np.testing.assert_allclose(metrics.motion_agreement(truth, decoded), expected, rtol=1e-12)


def test_the_true_motion_wins(film):
    static = np.repeat(film[:, 2:3], 6, axis=1)
    shuffled = film[:, [3, 0, 5, 2, 1, 4]]
    backwards = film[:, ::-1]
    noise = np.random.default_rng(1).normal(0, 25, film.shape)
    agreement = {
        name: metrics.motion_agreement(film, clips)
        for name, clips in {
            "truth": film,
            "noisy": np.clip(film + noise, 0, 255).astype(np.uint8),
            "static": static,
            "shuffled": shuffled,
            "backwards": backwards,
            "other": np.roll(film, 1, axis=0),
        }.items()
    }
    np.testing.assert_allclose(agreement["truth"], 1)
    assert (agreement["noisy"] > 0.1).all()  # frames full of noise still agree, each clip of them
    assert (agreement["static"] == 0).all()
    assert (agreement["shuffled"] < agreement["noisy"]).mean() > 0.9 and agreement["shuffled"].mean() < 0.1
    assert (agreement["backwards"] < agreement["noisy"]).all() and agreement["backwards"].mean() < -0.05
    assert (agreement["backwards"] < 0.15).all()
    assert abs(agreement["other"].mean()) < 0.1


def test_brightness_and_contrast_of_a_clip_are_no_motion(film):
    darker = (film // 2).astype(np.uint8)
    np.testing.assert_allclose(metrics.motion_agreement(film, darker), 1, atol=0.01)
    np.testing.assert_allclose(metrics.motion_energy_ratio(film, darker), 0.25, rtol=0.05)


def test_energy_tells_still_clips_and_flicker(film):
    np.testing.assert_allclose(metrics.motion_energy_ratio(film, film), 1)
    np.testing.assert_allclose(metrics.motion_energy_ratio(film, film[:, ::-1]), 1)
    assert (metrics.motion_energy_ratio(film, np.repeat(film[:, :1], 6, axis=1)) == 0).all()
    flicker = np.random.default_rng(0).integers(0, 256, film.shape).astype(np.uint8)
    assert (metrics.motion_energy_ratio(film, flicker) > 5).all()
    assert (abs(metrics.motion_agreement(film, flicker)) < 0.05).all()


def test_velocity_of_a_shifted_picture():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (12, 12)), np.ones((8, 8)))
    picture = sum(np.roll(picture, (i, j), (0, 1)) for i in range(8) for j in range(8)) / 64  # smooth
    clips = np.stack(
        [[np.roll(picture, (t * dy, t * dx), (0, 1)) for t in range(4)] for dx, dy in ((1, 0), (0, -2), (-1, 1))]
    )
    clips = np.repeat(np.rint(clips)[:, :, 16:80, 16:80, None], 3, axis=-1).astype(np.uint8)
    np.testing.assert_allclose(metrics.mean_velocity(clips), [[1, 0], [0, -2], [-1, 1]], atol=0.15)
    assert (metrics.mean_velocity(np.repeat(clips[:, :1], 4, axis=1)) == 0).all()
    stripes = np.zeros((1, 3, 8, 8, 3), np.uint8)
    for t in range(3):
        stripes[:, t, :, 2 + t] = 200
    assert (metrics.mean_velocity(stripes) == 0).all()  # which way along the stripes is open


def test_direction_is_the_simulators_wherever_the_object_is():
    rng = np.random.default_rng(0)
    unit = np.array([DIRECTION[name] for name in MOTIONS])
    motion = np.arange(32) % 4
    films = [np.stack([render(random_scene(rng, motion=int(m)), np.arange(6) / 3) for m in motion]) for _ in range(2)]
    cosine = [
        (v / np.linalg.norm(v, axis=1, keepdims=True) * unit[motion]).sum(1) for v in map(metrics.mean_velocity, films)
    ]
    assert np.mean(np.concatenate(cosine) > 0.8) > 0.9
    agreement = metrics.direction_agreement(*films)  # other objects in other places, the same direction
    assert agreement.mean() > 0.8 and abs(metrics.motion_agreement(*films).mean()) < 0.1
    np.testing.assert_allclose(metrics.direction_agreement(films[0], films[0]), 1)
    np.testing.assert_allclose(metrics.direction_agreement(films[0], films[0][:, ::-1]), -1, atol=1e-9)
    assert (metrics.direction_agreement(films[0], np.repeat(films[0][:, :1], 6, axis=1)) == 0).all()
    assert metrics.direction_agreement(films[0], films[0][:, [3, 0, 5, 2, 1, 4]]).mean() < 0.3
    assert np.isnan(metrics.direction_agreement(np.repeat(films[0][:, :1], 6, axis=1), films[1])).all()


def test_a_true_clip_that_stands_still_has_no_motion_to_score(film):
    still = np.repeat(film[:2, :1], 6, axis=1)
    assert np.isnan(metrics.motion_agreement(still, film[:2])).all()
    assert np.isnan(metrics.motion_energy_ratio(still, still)).all()


def test_consistency_by_hand():
    embeddings = np.array([[[1.0, 0], [0, 2], [0, 5]], [[1, 1], [2, 2], [3, 3]]])
    np.testing.assert_allclose(metrics.temporal_consistency(embeddings), [0.5, 1])
    # 0, 90, 180 degrees: consecutive frames have 0; all pairs, as one of the peers, would have -1/3
    assert metrics.temporal_consistency(np.array([[[1.0, 0], [0, 1], [-1, 0]]])) == pytest.approx(0)
    with pytest.raises(ValueError, match="direction"):
        metrics.temporal_consistency(0 * embeddings)
    with pytest.raises(ValueError, match="at least 2 frames"):
        metrics.temporal_consistency(embeddings[:, :1])


def test_clip_metrics_hold_the_truth_beside(film):
    rng = np.random.default_rng(0)
    embeddings, still = rng.standard_normal((24, 6, 8)), np.repeat(rng.standard_normal((24, 1, 8)), 6, axis=1)
    table = metrics.clip_metrics(film, film[:, ::-1], embeddings, still)
    assert table.shape == (24, 6)
    np.testing.assert_allclose(table["consistency"], 1)
    np.testing.assert_allclose(table["truth_consistency"], metrics.temporal_consistency(embeddings))
    np.testing.assert_allclose(table["psnr"], metrics.psnr(film, film[:, ::-1]).mean(axis=1))
    np.testing.assert_allclose(table["motion_agreement"], metrics.motion_agreement(film, film[:, ::-1]))


def test_metric_table_leaves_out_what_has_no_value():
    rng, segment = np.random.default_rng(0), np.repeat([1, 2], 12)
    scores = pd.DataFrame({"a": rng.random(24), "b": rng.random(24), "c": np.nan})
    scores.loc[[0, 1, 5], "b"] = [np.nan, np.inf, np.nan]
    table = metrics.metric_table(scores, segment, 4, subject=3).set_index("metric")
    assert table["clips"].to_dict() == {"a": 24, "b": 21, "c": 0} and (table["subject"] == 3).all()
    assert table.loc["a", ["mean", "low", "high"]].tolist() == list(block_bootstrap(scores["a"], segment, 4))
    known = np.isfinite(scores["b"].to_numpy())
    assert table.loc["b", "mean"] == pytest.approx(scores["b"][known].mean())
    assert table.loc["b", "median"] == pytest.approx(scores["b"][known].median())
    assert table.loc["c", ["mean", "low", "high"]].isna().all()


@pytest.mark.parametrize(
    "score", [metrics.psnr, metrics.motion_agreement, metrics.direction_agreement, metrics.motion_energy_ratio]
)
def test_clips_that_do_not_match_are_an_error(film, score):
    with pytest.raises(ValueError, match="same clips"):
        score(film, film[:3])
    with pytest.raises(ValueError, match="uint8"):
        score(film / 255, film / 255)


def test_motion_needs_two_frames(film):
    with pytest.raises(ValueError, match="no motion in a picture"):
        metrics.motion_agreement(film[:, :1], film[:, :1])
