"""Decoded runs on an untrained ten-line decoder, a toy data set and untrained classifiers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_diffusion as tiny
import torch

from nfx import paths
from nfx.diffusion import decode
from nfx.evaluation import decoded
from nfx.files import load_arrays, read_manifest, save_arrays, write_json, write_manifest
from nfx.profile import load_profile

TRAIN, TEST = np.repeat([1, 2, 3], 6), np.repeat([1, 2], 5)  # segments of the clips; 3 is held out
SCENES = [{"caption": "a red cat", "length": 2}, {"caption": "a blue car", "length": 3}]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    from transformers import VideoMAEImageProcessorPil, ViTImageProcessorPil

    from nfx.stand_ins import recognition

    torch.manual_seed(0)
    folder, size = tmp_path_factory.mktemp("classifiers"), {"height": 64, "width": 64}
    recognition.vit().save_pretrained(folder / "vit")
    ViTImageProcessorPil(size=size).save_pretrained(folder / "vit")
    recognition.videomae().save_pretrained(folder / "videomae")
    VideoMAEImageProcessorPil(size={"shortest_edge": 64}, crop_size=size).save_pretrained(folder / "videomae")
    return folder


@pytest.fixture
def profile(tmp_path, monkeypatch, classifiers):
    """All that decoding reads, drawn at random."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    changes = {
        "data": {
            "frame_size": 16, "window": tiny.WINDOW, "train_segments": 3, "test_segments": 2,
            "validation_segments": (3,),
        },
        "models": {
            "stable_diffusion": "sd", "image_classifier": str(classifiers / "vit"),
            "video_classifier": str(classifiers / "videomae"),
        },
        "sampling": {"steps": 2, "batch_size": 2, "validation_clips": 3, "test_clips": None},
        "evaluation": {"n_way": 5, "trials": 20},
    }  # fmt: skip
    changed = {name: getattr(demo, name).model_copy(update=values) for name, values in changes.items()}
    profile = demo.model_copy(update=changed)
    tiny.stable_diffusion(tmp_path / "sd")
    rng = np.random.default_rng(0)
    arrays, stimuli = {}, {}
    for part, segment in (("train", TRAIN), ("test", TEST)):
        stimuli[f"{part}_clips"] = rng.integers(0, 256, (len(segment), 6, 16, 16, 3), dtype=np.uint8)
        stimuli[f"{part}_segment"] = arrays[f"{part}_segment"] = segment
        arrays[f"{part}_fmri"] = rng.normal(size=(len(segment), tiny.VOXELS)).astype(np.float32)
    save_arrays(paths.work(profile, "stimuli"), stimuli, {})
    save_arrays(paths.work(profile, "subject1"), {**arrays, "vertex": np.arange(tiny.VOXELS)}, {})
    latents = rng.normal(size=(len(TEST), 6, 4, 8, 8)).astype(np.float32)
    save_arrays(paths.work(profile, "targets"), {"test_latents": latents}, {})
    write_json(paths.work(profile, "targets", "captions.json"), [""])
    for name in ("subject1_row10", "subject1_row10_averaged"):
        folder = paths.work(profile, "decoder", name, "pipeline")
        tiny.pipeline(beta=0.75).save_pretrained(folder)
        write_manifest(folder, {})
    first = paths.work(profile, "stage1", "beta_0.75")
    tiny.video_unet().save_pretrained(first / "unet")
    write_manifest(first, {})
    write_json(paths.data_set(profile) / "truth" / "movie.json", {"segments": {"test1": SCENES, "test2": SCENES}})
    return profile


@pytest.fixture
def decoding(monkeypatch):
    """Numbers of the clips of each block that is decoded; set `fail_at` to stop before a block."""

    class Log(list):
        fail_at: int | None = None

    log, original = Log(), decoded.decode_windows

    def logged(profile, pipeline, numbers, **conditions):
        if len(log) == log.fail_at:
            raise KeyboardInterrupt
        log.append(numbers.tolist())
        return original(profile, pipeline, numbers, **conditions)

    monkeypatch.setattr(decoded, "decode_windows", logged)
    return log


def test_clips_are_spread_from_the_first_to_the_last():
    assert decoded.evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert decoded.evenly_spaced(3, None).tolist() == decoded.evenly_spaced(3, 7).tolist() == [0, 1, 2]


def test_a_run_decodes_spread_validation_clips_and_every_test_clip(profile):
    folder = decoded.decode_run(profile, 1, 10)
    assert folder == paths.work(profile, "decoder", "subject1_row10") == decoded.run_folder(profile, 1, 10)
    run = decoded.load_run(profile, 1, 10)
    assert run.validation.clip.tolist() == [12, 14, 17] and run.validation.segment.tolist() == [3, 3, 3]
    assert run.test.clip.tolist() == list(range(10)) and run.test.segment.tolist() == TEST.tolist()
    stimuli = load_arrays(paths.work(profile, "stimuli"))
    np.testing.assert_array_equal(run.validation.truth, stimuli["train_clips"][[12, 14, 17]])
    np.testing.assert_array_equal(run.test.truth, stimuli["test_clips"])
    assert run.test.decoded.shape == run.test.truth.shape and run.test.decoded.dtype == np.uint8
    assert list(run.scores.columns) == [
        "part", "clip", "segment", "ssim", "image_top1_1", "image_top1_3", "video_top1_1", "video_top1_3",
    ]  # fmt: skip
    assert run.scores["part"].value_counts().to_dict() == {"validation": 3, "test": 10}


def test_a_segments_first_clips_as_one_video_and_one_by_one(profile):
    decoded.decode_run(profile, 1, 10)
    run = decoded.load_run(profile, 1, 10)
    videos = decoded.decode_segment(profile, 1, 10, clips=4)
    assert {name: video.shape for name, video in videos.items()} == dict.fromkeys(
        ["film", "clip by clip", "one video"], (24, 16, 16, 3)
    )
    np.testing.assert_array_equal(videos["film"], np.concatenate(run.test.truth[:4]))
    difference = videos["clip by clip"].astype(int) - np.concatenate(run.test.decoded[:4])
    assert np.abs(difference).max() <= 1  # the very clips that are scored
    assert np.abs(videos["one video"].astype(int) - videos["clip by clip"]).max() > 1
    with pytest.raises(ValueError, match="has 5 clips, not 6"):
        decoded.decode_segment(profile, 1, 10, clips=6)


def test_test_clips_are_spread_too_and_the_ceilings_decode_the_same_ones(profile):
    few = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"test_clips": 4})})
    wanted = [0, 3, 6, 9]
    decoded.decode_run(few, 1, 10)
    decoded.decode_captions(few)
    decoded.autoencoder_ceiling(few)
    shown = load_arrays(paths.work(few, "stimuli"))["test_clips"][wanted]
    for run in (decoded.load_run(few, 1, 10), decoded.load_captions_run(few), decoded.load_autoencoder_run(few)):
        assert run.test.clip.tolist() == wanted
        np.testing.assert_array_equal(run.test.truth, shown)


def test_a_run_is_what_decode_gives_for_the_windows_of_the_clips(profile):
    from nfx.data import load_subject
    from nfx.diffusion import NeuralFlixPipeline

    decoded.decode_run(profile, 1, 10)
    run, data = decoded.load_run(profile, 1, 10), load_subject(profile, 1)
    pipeline = NeuralFlixPipeline.from_pretrained(decoded.run_folder(profile, 1, 10) / "pipeline")
    settings = {"seed": profile.seed, "steps": 2, "guidance": profile.sampling.guidance}
    test = decode(pipeline, data.test.fmri, clip_ids=len(TRAIN) + np.arange(10), **settings)
    validation = decode(pipeline, data.validation.fmri[[0, 2, 5]], clip_ids=[12, 14, 17], **settings)
    # Batches differ, and with them the last bits of matrix products: one grey level at most.
    assert np.abs(run.test.decoded.astype(int) - test).max() <= 1
    assert np.abs(run.validation.decoded.astype(int) - validation).max() <= 1


def test_a_finished_run_is_reused_and_new_scores_need_no_decoding(profile, decoding, capsys):
    decoded.decode_run(profile, 1, 10)
    count = len(decoding)
    assert count == 2 + 5  # blocks of two clips: three of validation, ten of test
    decoded.decode_run(profile, 1, 10)
    assert "reused" in capsys.readouterr().out and len(decoding) == count
    harder = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update={"n_way": 40})})
    before = decoded.load_run(profile, 1, 10).scores
    decoded.decode_run(harder, 1, 10)
    after = decoded.load_run(harder, 1, 10).scores
    assert len(decoding) == count and "scored anew" in capsys.readouterr().out
    pd.testing.assert_series_equal(before["ssim"], after["ssim"])
    assert after["image_top1_1"].mean() < before["image_top1_1"].mean()
    longer = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"steps": 3})})
    decoded.decode_run(longer, 1, 10)
    assert len(decoding) == 2 * count


def test_an_interrupted_run_goes_on_from_its_last_block_and_ends_in_the_same_clips(profile, decoding):
    decoding.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        decoded.decode_run(profile, 1, 10)
    with pytest.raises(FileNotFoundError, match="03_diffusion_fine_tuning"):
        decoded.load_run(profile, 1, 10)
    decoding.fail_at = None
    decoded.decode_run(profile, 1, 10)
    done = [number for block in decoding for number in block]
    assert sorted(done) == sorted([12, 14, 17, *range(18, 28)])  # every clip once
    resumed = np.array(decoded.load_run(profile, 1, 10).test.decoded)
    folder = decoded.run_folder(profile, 1, 10)
    assert not (folder / "blocks").exists()
    (folder / "manifest.json").unlink()
    decoded.decode_run(profile, 1, 10)
    np.testing.assert_array_equal(decoded.load_run(profile, 1, 10).test.decoded, resumed)


def test_time_averaged_windows_decode_to_other_clips(profile):
    decoded.decode_run(profile, 1, 10)
    decoded.decode_run(profile, 1, 10, time_averaged=True)
    plain, averaged = decoded.load_run(profile, 1, 10), decoded.load_run(profile, 1, 10, time_averaged=True)
    assert not np.array_equal(plain.test.decoded, averaged.test.decoded)
    # The last volume of a segment is repeated, so that its window is its own mean.
    ends = [4, 9]
    assert np.abs(plain.test.decoded[ends].astype(int) - averaged.test.decoded[ends]).max() <= 1


def test_true_captions_follow_the_length_of_the_scenes(profile):
    assert decoded.true_captions(profile, "test") == ["a red cat"] * 2 + ["a blue car"] * 3 + (
        ["a red cat"] * 2 + ["a blue car"] * 3
    )


def test_captions_are_decoded_by_stage_one_and_the_caption_counts(profile):
    folder = decoded.decode_captions(profile)
    assert folder == paths.work(profile, "decoder", "captions")
    run = decoded.load_captions_run(profile)
    assert run.validation is None and run.test.decoded.shape == run.test.truth.shape
    assert set(run.scores["part"]) == {"test"} and len(run.scores) == 10
    other = [{"caption": "a a a", "length": 5}]
    write_json(paths.data_set(profile) / "truth" / "movie.json", {"segments": {"test1": other, "test2": SCENES}})
    decoded.decode_captions(profile)
    changed = decoded.load_captions_run(profile)
    assert not np.array_equal(changed.test.decoded[:5], run.test.decoded[:5])
    np.testing.assert_array_equal(changed.test.decoded[5:], run.test.decoded[5:])


def test_the_autoencoder_s_ceiling_is_its_reconstruction(profile):
    from nfx.data.targets import decode_latents

    decoded.autoencoder_ceiling(profile)
    run = decoded.load_autoencoder_run(profile)
    latents = load_arrays(paths.work(profile, "targets"))["test_latents"]
    expected = decode_latents(np.array(latents[3]), profile.models.stable_diffusion)
    assert np.abs(run.test.decoded[3].astype(int) - expected).max() <= 1


def with_solver(profile, solver):
    return profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"solver": solver})})


def test_facts_of_ddim_are_what_they_were_before_there_were_other_solvers(profile):
    """So that clips which were decoded then stay valid."""
    assert decoded.sampling_facts(profile).keys() == {"steps", "guidance", "seed", "code"}
    fast = decoded.sampling_facts(with_solver(profile, "dpm++"))
    assert fast.items() > decoded.sampling_facts(profile).items() and fast["solver"] == "dpm++"
    assert fast != decoded.sampling_facts(with_solver(profile, "unipc"))


def test_the_profile_s_solver_decodes_clip_by_clip_and_in_one_video(profile):
    decoded.decode_run(profile, 1, 10)
    ddim = np.array(decoded.load_run(profile, 1, 10).test.decoded)
    fast = with_solver(profile, "unipc")
    decoded.decode_run(fast, 1, 10)
    run = decoded.load_run(fast, 1, 10)
    assert np.abs(run.test.decoded.astype(int) - ddim).max() > 1
    videos, before = (decoded.decode_segment(p, 1, 10, clips=2) for p in (fast, profile))
    assert np.abs(videos["clip by clip"].astype(int) - np.concatenate(run.test.decoded[:2])).max() <= 1
    assert np.abs(videos["one video"].astype(int) - before["one video"]).max() > 1


def test_a_missing_decoder_names_the_notebook(profile):
    with pytest.raises(FileNotFoundError, match="03_diffusion_fine_tuning"):
        decoded.decode_run(profile, 1, 8)


def test_facts_of_decoding_and_scoring_are_in_the_manifest(profile):
    folder = decoded.decode_run(profile, 1, 10)
    manifest = read_manifest(folder)
    assert manifest["facts"].keys() == {"decoding", "scoring"}
    assert {"test_decoded.npy", "scores.csv"} <= manifest["files"].keys()
