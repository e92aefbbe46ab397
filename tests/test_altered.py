"""Recordings that are altered for a control, and decoders trained on them, on a toy decoder and a toy data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_controls as toy
import tiny_diffusion as tiny
import torch
from helpers_dataset import write_dataset
from safetensors.torch import load_file

from nfx import paths
from nfx.data import Split, load_subject, prepare_subject
from nfx.data.voxels import networks, parcels
from nfx.diffusion import stage_two
from nfx.evaluation import altered, interventions, lags, methods
from nfx.files import load_arrays, save_arrays
from nfx.paths import work
from nfx.profile import load_profile


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return toy.write_classifiers(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture
def profile(tmp_path, monkeypatch, classifiers):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "embed", toy.embed)  # in place of CLIP
    return toy.make(tmp_path, classifiers)


# --- recordings ----------------------------------------------------------------------------------------------


def test_non_visual_voxels_are_as_many_and_outside(profile):
    everywhere, rng = np.arange(0, 59412, 7), np.random.default_rng(0)
    constant = rng.integers(0, 2, len(everywhere))
    chosen = {"vertex": np.arange(300), "reproducibility_vertex": everywhere, "constant_runs": constant}
    save_arrays(work(profile, "subject1"), chosen, {})
    found = altered.non_visual_voxels(profile, 1)
    assert len(np.unique(found)) == 300 and (constant[np.searchsorted(everywhere, found)] == 0).all()
    area = {name[2:] for name in parcels(found)}
    assert set(networks(found)) == {""} and not area & {"V1", "MT", "FFC", "PHA1", "TE2p", "TPOJ2", "V3A", "LO1"}
    assert {"1", "4"} <= area  # somatosensory, motor
    other = profile.model_copy(update={"seed": profile.seed + 1})
    assert not np.array_equal(altered.non_visual_voxels(other, 1), found)
    save_arrays(work(profile, "subject1"), chosen | {"vertex": np.arange(5000)}, {})
    with pytest.raises(ValueError, match="and 5000 voxels"):
        altered.non_visual_voxels(profile, 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two subjects in the published layout, prepared by notebook 01's functions: where, and the profile."""
    root = tmp_path_factory.mktemp("recordings")
    demo = load_profile("demo")
    data = demo.data.model_copy(update={
        "frame_size": 32, "train_segments": 6, "test_segments": 2, "train_volumes": 12, "test_volumes": 12,
        "test_repeats": 3, "validation_segments": (6,), "keep": 1.0, "alpha": 0.5, "subjects": (1, 2),
        "exclude_runs": ("subject2/test2_3",),
    })  # fmt: skip
    profile = demo.model_copy(update={"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        layout = {"segments": 6, "tests": 2, "volumes": 12, "test_repeats": 3}
        for subject in (1, 2):
            write_dataset(paths.data_set(profile), **layout, seed=subject, subject=subject)
            prepare_subject(profile, subject)
    return root, profile


@pytest.fixture
def recorded(recordings, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", recordings[0])
    return recordings[1]


def test_recordings_read_again_are_those_of_notebook_01(recorded):
    for subject in (1, 2):
        arrays = load_arrays(work(recorded, f"subject{subject}"))
        order = np.random.default_rng(0).permutation(len(arrays["vertex"]))
        for part in ("train", "test"):
            again = altered.recordings_at(recorded, subject, part, arrays["vertex"][order])
            assert again.dtype == np.float32
            np.testing.assert_allclose(again, arrays[f"{part}_fmri"][:, order], atol=1e-6)


def test_a_vertex_that_the_recordings_lack_is_told(recorded):
    with pytest.raises(ValueError, match="lacks 1 of 2 vertices, grayordinate 59000 first"):
        altered.recordings_at(recorded, 2, "test", np.array([load_subject(recorded, 1).vertex[0], 59000]))


def test_lagged_recordings_meet_the_right_clips_and_the_others_are_held_out(profile):
    for name, lag in lags.LAG.items():
        shifted = altered.prepare_altered(profile, name, 1)
        data = load_subject(shifted, 1)
        assert shifted.name == f"demo_{name}" and shifted.data.validation_segments == (3, 4, 5, 6)
        for part, segments in ((data.train, (1, 2)), (data.validation, (3,))):
            kept = part.segment <= 3
            assert set(part.segment[kept]) == set(segments)
            # The first voxel of a recording is its number: the clip's own, and the lag.
            np.testing.assert_array_equal(part.fmri[kept, 0, 0], part.clip[kept] + lag)
        assert len(data.train.clip) == 2 * (toy.PER_SEGMENT - 2)
        there = data.test.segment == toy.TEST
        np.testing.assert_array_equal(data.test.fmri[there, 0, 0], data.test.clip[there] + lag)
        same = toy.TRAIN[data.train.fmri[:, :, 0].astype(int)] == data.train.segment[:, None]
        assert same.all()  # no window reaches into another segment
        for shared in ("targets", "pretraining"):
            assert work(shifted, shared).resolve() == work(profile, shared)


def test_what_stands_in_a_links_way_is_told(profile):
    lagged = altered.altered_profile(profile, "lag_2")
    work(lagged, "targets").mkdir(parents=True)
    with pytest.raises(ValueError, match="targets is in the way"):
        altered.prepare_altered(profile, "lag_2", 1)


# --- training anew -------------------------------------------------------------------------------------------


def weights(folder, part):
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def test_decoders_under_a_control_are_trained_as_stage_two_trains(profile):
    from nfx.encoder import FMRIEncoder

    ours = stage_two(profile, 1, 10) / "pipeline"
    encoder = FMRIEncoder.from_pretrained(work(profile, "encoder", "subject1_row1", "encoder"))
    folder = work(altered.altered_profile(profile, "toy"), "decoder", "subject1_row10")
    again = altered.train_decoder(profile, folder, load_subject(profile, 1).train, encoder, "the same")
    for part in ("unet", "fmri_encoder"):
        mine, theirs = weights(again, part), weights(ours, part)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    facts, others = (json.loads((path / "manifest.json").read_text())["facts"] for path in (again, ours))
    same = ("beta", "seed", "settings", "precision", "code")
    assert {name: facts[name] for name in same} == {name: others[name] for name in same}


def test_clips_that_are_left_out_are_not_trained_on(profile):
    stage_two(profile, 1, 10)
    latents = {name: np.array(array) for name, array in load_arrays(work(profile, "targets")).items()}
    latents["train_latents"][[3, 9]] = np.nan  # training on one would end with an error
    save_arrays(work(profile, "targets"), latents, {})
    train = load_subject(profile, 1).train
    kept = ~np.isin(train.clip, [3, 9])
    many = profile.model_copy(update={"stage_two": profile.stage_two.model_copy(update={"batch_size": 40})})
    folder = work(altered.altered_profile(profile, "toy"), "decoder", "subject1_row10")
    examples = Split(train.fmri[kept], train.clip[kept], train.segment[kept])
    altered.train_decoder(many, folder, examples, tiny.fmri_encoder(), "toy")
    with pytest.raises(FloatingPointError):
        altered.train_decoder(many, folder, train, tiny.fmri_encoder(), "toy")


def test_an_untrained_encoder_stays_as_it_was_drawn(profile):
    stage_two(profile, 1, 10)
    interventions.decode(profile, "untrained_encoder", 1)
    drawn = altered.fresh_encoder(profile, toy.VOXELS).state_dict()
    pipeline = work(altered.altered_profile(profile, "untrained_encoder"), "decoder", "subject1_row10", "pipeline")
    kept = weights(pipeline, "fmri_encoder")
    assert kept.keys() == drawn.keys() and all(torch.equal(kept[name], drawn[name]) for name in kept)
    start, end = weights(work(profile, "stage1", "beta_0.75"), "unet"), weights(pipeline, "unet")
    assert any(not torch.equal(start[name], end[name]) for name in end)  # the UNet has learnt
    run = interventions.load(profile, "untrained_encoder", 1)
    wanted = toy.expected(profile, pipeline, load_subject(profile, 1).test.fmri, np.arange(len(toy.TEST)))
    toy.assert_same(run.test.decoded, wanted)
