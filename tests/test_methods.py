"""Methods side by side: references on a toy data set, scores and comparisons of made-up clips."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_baselines as toy

from nfx import paths
from nfx.data import load_subject, targets
from nfx.evaluation import methods
from nfx.evaluation.decoded import Decoded, DecodedRun
from nfx.evaluation.tables import METRICS
from nfx.files import load_arrays
from nfx.profile import load_profile

CLIPS = 60
SEGMENT = np.repeat(np.arange(1, 7), 10)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo's profile, with a CLIP that is never loaded."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"weights")
    profile = load_profile("demo")
    return profile.model_copy(update={"models": profile.models.model_copy(update={"clip": "clip"})})


@pytest.fixture
def colours(monkeypatch):
    """In place of CLIP's embedding: what a frame looks like, 4 x 4 pixels of it. Returns the numbers of frames seen."""
    seen = []

    def embed(frames: np.ndarray, model: str) -> np.ndarray:
        seen.append(len(frames))
        return frames[:, ::2, ::2].reshape(len(frames), -1).astype(float) + 1

    monkeypatch.setattr(targets, "image_embeddings", embed)
    return seen


def run(clips: np.ndarray, truth: np.ndarray, quality: float) -> DecodedRun:
    """Clips with made-up classifier scores around `quality`."""
    noise = np.random.default_rng(1).normal(0, 0.05, CLIPS)
    scores = pd.DataFrame({"part": "test", "clip": np.arange(CLIPS), "segment": SEGMENT})
    scores[list(METRICS)] = np.repeat((quality + noise)[:, None], len(METRICS), axis=1)
    return DecodedRun(None, Decoded(clips, truth, np.arange(CLIPS), SEGMENT), scores)


@pytest.fixture
def runs(colours) -> dict[str, DecodedRun]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (CLIPS, 3, 8, 8, 3), dtype=np.uint8)
    noisy = np.clip(truth + rng.normal(0, 40, truth.shape), 0, 255).astype(np.uint8)
    grey = np.full_like(truth, 128)
    made = {"ours": (noisy, 0.5), "other": (truth[::-1].copy(), 0.3), methods.MID_GREY: (grey, 0.5)}
    return {name: run(clips, truth, quality) for name, (clips, quality) in made.items()}


def test_frames_are_embedded_once_and_stand_in_their_places(demo, colours):
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)[[1, 0, 1, 1]]
    found = methods.embed(clips, demo)
    assert colours == [6]
    np.testing.assert_array_equal(methods.embed(clips, demo), found)
    assert colours == [6]  # kept
    direct = targets.image_embeddings(clips.reshape(-1, 8, 8, 3), "clip")
    np.testing.assert_array_equal(found, direct.reshape(4, 3, -1))


def test_what_knows_nothing_is_at_chance_and_what_knows_is_above(demo, runs, bars):
    made = bars(methods)
    table = methods.clip_scores(demo, 2, runs)
    assert [(bar.n, bar.total) for bar in made] == [(len(runs), len(runs))]
    assert list(table["method"].unique()) == list(runs) and (table["subject"] == 2).all() and len(table) == 3 * CLIPS
    assert set(methods.SCORES) <= set(table)
    mean = table.groupby("method")[list(methods.SCORES)].mean()
    assert (mean.loc["ours", ["pixels_2way", "clip_2way"]] > 0.99).all()
    np.testing.assert_allclose(mean.loc[methods.MID_GREY, ["pixels_2way", "clip_2way"]], 0.5)
    assert mean.loc[methods.MID_GREY, "motion_agreement"] == 0 and mean.loc["ours", "motion_agreement"] > 0.5
    assert mean.loc[methods.MID_GREY, "consistency"] == pytest.approx(1)


def test_methods_of_other_clips_are_refused(demo, runs):
    other = runs["other"]
    runs["other"] = other._replace(test=other.test._replace(clip=other.test.clip + 1))
    with pytest.raises(ValueError, match="'other' has decoded other test clips than 'ours'"):
        methods.clip_scores(demo, 1, runs)


def test_tables_have_every_method_and_score(demo, runs):
    table = methods.method_table(methods.clip_scores(demo, 1, runs))
    assert len(table) == 3 * len(methods.SCORES)
    assert table.query("method == 'ours' and metric == 'SSIM'")["mean"].item() == pytest.approx(0.5, abs=0.02)
    wide = methods.side_by_side(table)
    assert list(wide.index) == list(runs) and list(wide.columns) == list(methods.SCORES.values())
    assert wide.loc[methods.MID_GREY, "2-way CLIP"].startswith("0.500 [0.4")


def test_comparisons_are_one_family_and_leave_the_ceilings_out(demo, runs):
    runs[methods.ORACLE] = runs["ours"]
    scores = methods.clip_scores(demo, 1, runs)
    table = methods.comparisons(scores, "ours")
    assert len(table) == 2 * len(methods.COMPARED) and methods.ORACLE not in set(table["b"])
    better = table.query("b == 'other' and metric == 'image'").iloc[0]
    assert better["difference"] == pytest.approx(0.2) and better["holm"] < 0.05
    # Twelve blocks flipped: the least p is 1 / 4096 or so, and Holm multiplies by the size of the family.
    assert better["holm"] >= better["p"] * (len(table) - 5)
    equal = table.query("b == @methods.MID_GREY and metric == 'image'").iloc[0]
    assert equal["difference"] == 0 and equal["holm"] == 1
    lines = methods.statements(table)
    assert len(lines) == len(table)
    assert any(line.startswith("image: ours exceeds other by 0.200 [") for line in lines)
    assert any(f"image: ours and {methods.MID_GREY} cannot be told apart" in line for line in lines)


def test_references_show_training_clips_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    small = toy.make(tmp_path, steps=1)
    data = small.profile.data.model_copy(update={"subjects": (1,)})
    small = small._replace(profile=small.profile.model_copy(update={"data": data}))
    small.reveal()
    answers = {}

    def in_blocks(profile, folder, clips, decoders, facts):
        answers[folder.name] = np.concatenate([decoders["test"](slice(0, 5)), decoders["test"](slice(5, None))])
        return folder

    monkeypatch.setattr(methods, "decode_and_score", in_blocks)
    for ceiling in ("decode_captions", "autoencoder_ceiling"):
        monkeypatch.setattr(methods, ceiling, lambda profile: None)
    methods.decode_references(small.profile)
    assert list(answers) == ["nearest_training_clip_subject1", "training_mean_frame", "mid_grey_frame"]
    data, film = load_subject(small.profile, 1), load_arrays(paths.work(small.profile, "stimuli"))["train_clips"]
    x, y = (part.fmri.reshape(len(part.fmri), -1) for part in (data.train, data.test))
    cosine = (y / np.linalg.norm(y, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    nearest = data.train.clip[cosine.argmax(axis=1)]
    np.testing.assert_array_equal(answers["nearest_training_clip_subject1"], film[nearest])
    # The recordings are those of a colour: the retrieved clip must have nearly that of the true one.
    own, other = toy.alignment(answers["nearest_training_clip_subject1"], small.clips)
    assert own > 0.8 and own > 2 * other
    mean = film[toy.TRAIN != 4].mean(axis=(0, 1), dtype=float)
    np.testing.assert_allclose(answers["training_mean_frame"], np.broadcast_to(mean, small.clips.shape), atol=0.51)
    assert (answers["mid_grey_frame"] == 128).all() and answers["mid_grey_frame"].shape == small.clips.shape
