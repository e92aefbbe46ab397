"""Controls on toys: what each takes away, and that all else stays; at the end a whole project in miniature."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import tiny_diffusion as tiny
import torch
from helpers_dataset import write_dataset
from safetensors.torch import load_file

from nfx import paths
from nfx.data import Split, load_subject, prepare_subject, windows
from nfx.data.voxels import networks, parcels
from nfx.diffusion import decode, stage_two
from nfx.evaluation import decoded, interventions, methods
from nfx.evaluation.controls import blocks
from nfx.files import load_arrays, save_arrays, write_manifest
from nfx.paths import work
from nfx.profile import load_profile

PER_SEGMENT = 8
TRAIN, TEST = np.repeat([1, 2, 3], PER_SEGMENT), np.repeat([1, 2], PER_SEGMENT)  # segments; 3 is held out
VOXELS = tiny.VOXELS


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
    """A decoder of row 10, untrained, and all that it and a training of it reads. Recordings hold their own number."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "embed", lambda clips, model: clips.mean(axis=(2, 3)) + 1.0)  # in place of CLIP
    demo = load_profile("demo")
    changes = {
        "data": {
            "frame_size": 16, "window": tiny.WINDOW, "train_segments": 3, "test_segments": 2, "subjects": (1, 2),
            "validation_segments": (3,),
        },
        "models": {
            "stable_diffusion": "sd", "image_classifier": str(classifiers / "vit"),
            "video_classifier": str(classifiers / "videomae"),
        },
        "encoder": {"patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "tokens": tiny.TOKENS,
                    "token_dim": tiny.TOKEN_DIM},
        "stage_one": {"steps": 2, "batch_size": 2},
        "stage_two": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "sampling": {"steps": 2, "batch_size": 3, "validation_clips": 2, "test_clips": None},
        "evaluation": {"n_way": 5, "trials": 20},
    }  # fmt: skip
    changed = {name: getattr(demo, name).model_copy(update=values) for name, values in changes.items()}
    profile = demo.model_copy(update=changed)
    tiny.stable_diffusion(tmp_path / "sd")
    rng = np.random.default_rng(0)
    arrays, stimuli, targets = {}, {}, {}
    for part, segment in (("train", TRAIN), ("test", TEST)):
        stimuli[f"{part}_clips"] = rng.integers(0, 256, (len(segment), 6, 16, 16, 3), dtype=np.uint8)
        stimuli[f"{part}_segment"] = arrays[f"{part}_segment"] = segment
        arrays[f"{part}_fmri"] = rng.normal(size=(len(segment), VOXELS)).astype(np.float32)
        arrays[f"{part}_fmri"][:, 0] = np.arange(len(segment))
        targets[f"{part}_latents"] = rng.normal(size=(len(segment), 6, 4, 8, 8)).astype(np.float32)
        targets[f"{part}_image_embeddings"] = rng.normal(size=(len(segment), 6, 5)).astype(np.float32)
    targets["train_caption"] = np.zeros((len(TRAIN), 6), int)
    targets["caption_tokens"] = rng.normal(size=(1, tiny.TOKENS, tiny.TOKEN_DIM)).astype(np.float32)
    save_arrays(work(profile, "stimuli"), stimuli, {})
    save_arrays(work(profile, "targets"), targets, {})
    save_arrays(work(profile, "subject1"), {**arrays, "vertex": np.arange(VOXELS)}, {})
    write_manifest(work(profile, "pretraining"), {})
    tiny.fmri_encoder().save_pretrained(work(profile, "encoder", "subject1_row1", "encoder"))
    write_manifest(work(profile, "encoder", "subject1_row1"), {})
    pipeline = work(profile, "decoder", "subject1_row10", "pipeline")
    tiny.pipeline(beta=0.75).save_pretrained(pipeline)
    write_manifest(pipeline, {})
    return profile


def everything_in(folder):
    """Digest of every file, hidden ones and links too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- what is taken away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_block_gets_the_recordings_of_another_in_order(seed):
    segment = np.repeat([1, 2, 3], [32, 31, 21])
    number, given = blocks(segment, 10), interventions.exchange_blocks(segment, 10, seed)
    assert given.shape == segment.shape and (number[given] != number).all()
    givers = [np.unique(number[given[number == block]]) for block in range(number[-1] + 1)]
    assert sorted(np.concatenate(givers)) == list(range(number[-1] + 1))  # each block gives to one other
    for block in range(number[-1] + 1):
        steps = np.diff(given[number == block])
        assert set(steps[:-1]) == {1} and steps[-1] in (0, 1)  # clips keep their order; a shorter block's last repeats
    np.testing.assert_array_equal(given, interventions.exchange_blocks(segment, 10, seed))
    assert not np.array_equal(given, interventions.exchange_blocks(segment, 10, seed + 1))


def test_one_block_cannot_be_exchanged():
    with pytest.raises(ValueError, match="one block of 10"):
        interventions.exchange_blocks(np.ones(9, int), 10, 0)


def test_the_next_subject_follows_in_a_ring():
    demo = load_profile("demo")
    assert [interventions.next_subject(demo, subject) for subject in (1, 2, 3)] == [2, 3, 1]
    alone = demo.model_copy(update={"data": demo.data.model_copy(update={"subjects": (2,)})})
    with pytest.raises(ValueError, match="subject 2 alone"):
        interventions.next_subject(alone, 2)


@pytest.mark.parametrize("lag", [-2, 0, 2])
def test_a_lag_moves_recordings_within_their_segment(lag):
    segment = np.repeat([1, 2], [5, 6])
    fmri = np.arange(11, dtype=np.float32)[:, None] + 1
    moved, numbers = interventions.lagged(fmri, segment, lag)
    for clip in range(11):
        at = clip + lag
        if 0 <= at < 11 and segment[at] == segment[clip]:
            assert moved[clip] == at + 1 and numbers[clip] == segment[clip]
        else:
            assert moved[clip] == 0 and numbers[clip] == segment[clip] + 2
    assert (numbers > 2).sum() == 2 * abs(lag)
    windows(moved, numbers, 2)  # segments stand together still


def test_clips_at_every_lag_are_those_in_the_middle():
    segment = np.repeat([1, 2], [5, 6])
    there = interventions.recorded_at_all(segment, (-2, 1))
    assert np.flatnonzero(there).tolist() == [2, 3, 7, 8, 9]
    with pytest.raises(ValueError, match="more than 8 clips"):
        interventions.recorded_at_all(segment, (-4, 4))


def test_non_visual_voxels_are_as_many_and_outside(profile):
    everywhere, rng = np.arange(0, 59412, 7), np.random.default_rng(0)
    constant = rng.integers(0, 2, len(everywhere))
    chosen = {"vertex": np.arange(300), "reproducibility_vertex": everywhere, "constant_runs": constant}
    save_arrays(work(profile, "subject1"), chosen, {})
    found = interventions.non_visual_voxels(profile, 1)
    assert len(np.unique(found)) == 300 and (constant[np.searchsorted(everywhere, found)] == 0).all()
    area = {name[2:] for name in parcels(found)}
    assert set(networks(found)) == {""} and not area & {"V1", "MT", "FFC", "PHA1", "TE2p", "TPOJ2", "V3A", "LO1"}
    assert {"1", "4"} <= area  # somatosensory, motor
    other = profile.model_copy(update={"seed": profile.seed + 1})
    assert not np.array_equal(interventions.non_visual_voxels(other, 1), found)
    save_arrays(work(profile, "subject1"), chosen | {"vertex": np.arange(5000)}, {})
    with pytest.raises(ValueError, match="and 5000 voxels"):
        interventions.non_visual_voxels(profile, 1)


# --- recordings, read again ----------------------------------------------------------------------------------


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
            again = interventions.recordings_at(recorded, subject, part, arrays["vertex"][order])
            assert again.dtype == np.float32
            np.testing.assert_allclose(again, arrays[f"{part}_fmri"][:, order], atol=1e-6)


def test_a_vertex_that_the_recordings_lack_is_told(recorded):
    with pytest.raises(ValueError, match="lacks 1 of 2 vertices, grayordinate 59000 first"):
        interventions.recordings_at(recorded, 2, "test", np.array([load_subject(recorded, 1).vertex[0], 59000]))


# --- decoding ------------------------------------------------------------------------------------------------


def expected(profile, pipeline, fmri, clips):
    """What `nfx.diffusion.decode` makes of windows, with the noise of test clips."""
    from nfx.diffusion import NeuralFlixPipeline

    settings = {"seed": profile.seed, "steps": 2, "guidance": profile.sampling.guidance, "batch_size": 3}
    return decode(NeuralFlixPipeline.from_pretrained(pipeline), fmri, clip_ids=len(TRAIN) + clips, **settings)


def assert_same(one, other):
    assert np.abs(one.astype(int) - other).max() <= 1  # last bits of another batch


def test_controls_without_training_change_the_recordings_alone(profile, monkeypatch):
    decoded.decode_run(profile, 1, 10)
    before = everything_in(work(profile))
    data, pipeline = load_subject(profile, 1), decoded.run_folder(profile, 1, 10) / "pipeline"
    foreign = np.random.default_rng(5).normal(size=(len(TEST), VOXELS)).astype(np.float32)

    def read(asked, subject, part, vertex):
        assert (subject, part) == (2, "test")
        np.testing.assert_array_equal(vertex, data.vertex)
        return foreign

    monkeypatch.setattr(interventions, "recordings_at", read)
    monkeypatch.setattr(interventions, "block_length", lambda segment: 4)
    given = interventions.exchange_blocks(TEST, 4, profile.seed)
    fmri = {
        "shuffled": data.test.fmri[given],
        "other_subject": windows(foreign, TEST, tiny.WINDOW),
        "condition_dropped": np.zeros_like(data.test.fmri),
    }
    untouched = decoded.load_run(profile, 1, 10)
    for name, wanted in fmri.items():
        folder = interventions.decode(profile, name, 1)
        assert folder == work(profile, "controls", f"{name}_subject1")
        run = interventions.load(profile, name, 1)
        assert_same(run.test.decoded, expected(profile, pipeline, wanted, np.arange(len(TEST))))
        assert run.validation is None and run.test.clip.tolist() == list(range(len(TEST)))
        np.testing.assert_array_equal(run.test.truth, untouched.test.truth)  # scored against their own truth
        assert np.abs(run.test.decoded.astype(int) - untouched.test.decoded).max() > 1
    assert list(interventions.decoded(profile, 1)) == [interventions.TITLES[name] for name in fmri]
    after = everything_in(work(profile))
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert "controls" in new and new <= {"controls", "judged"}  # what the classifiers made of the clips is kept too


def test_without_a_condition_recordings_do_not_matter(profile):
    interventions.decode(profile, "condition_dropped", 1)
    first = np.array(interventions.load(profile, "condition_dropped", 1).test.decoded)
    arrays = {name: np.array(array) for name, array in load_arrays(work(profile, "subject1")).items()}
    save_arrays(work(profile, "subject1"), arrays | {"test_fmri": -arrays["test_fmri"]}, {})
    (interventions.control_folder(profile, "condition_dropped", 1) / "manifest.json").unlink()
    interventions.decode(profile, "condition_dropped", 1)
    np.testing.assert_array_equal(interventions.load(profile, "condition_dropped", 1).test.decoded, first)


def test_a_finished_control_is_reused_and_one_of_other_recordings_is_not(profile, capsys):
    interventions.decode(profile, "shuffled", 1)
    interventions.decode(profile, "shuffled", 1)
    assert "reused" in capsys.readouterr().out
    other = profile.model_copy(update={"seed": profile.seed + 1})
    interventions.decode(other, "shuffled", 1)
    assert "reused" not in capsys.readouterr().out


def test_clips_of_an_earlier_decoder_are_refused_and_left_out_with_a_warning(profile):
    interventions.decode(profile, "shuffled", 1)
    stage_two(profile, 1, 10)
    with pytest.raises(ValueError, match="earlier decoder than there is now: run python -m"):
        interventions.load(profile, "shuffled", 1)
    with pytest.warns(UserWarning, match="decoder is newer than these: shuffled. ./run_all.sh evidence"):
        assert interventions.decoded(profile, 1) == {}


def test_names_and_missing_controls_are_told(profile, capsys):
    with pytest.raises(ValueError, match="no control 'lesion': expected one of shuffled"):
        interventions.decode(profile, "lesion", 1)
    with pytest.raises(FileNotFoundError, match="interventions lag_2 1 --profile demo"):
        interventions.load(profile, "lag_2", 1)
    assert interventions.decoded(profile, 1) == {}
    assert set(interventions.TITLES) == {"untouched", "time_averaged", *interventions.NAMES}
    with pytest.raises(SystemExit, match="subject is 9, expected one of"):
        interventions.main(["shuffled", "9"])
    with pytest.raises(SystemExit, match="no control 'lesion'"):
        interventions.main(["lesion", "1"])


# --- training anew -------------------------------------------------------------------------------------------


def weights(folder, part):
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def test_decoders_under_a_control_are_trained_as_stage_two_trains(profile):
    from nfx.encoder import FMRIEncoder

    ours = stage_two(profile, 1, 10) / "pipeline"
    encoder = FMRIEncoder.from_pretrained(work(profile, "encoder", "subject1_row1", "encoder"))
    folder = work(interventions._altered(profile, "toy"), "decoder", "subject1_row10")
    again = interventions.train_decoder(profile, folder, load_subject(profile, 1).train, encoder, "the same")
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
    folder = work(interventions._altered(profile, "toy"), "decoder", "subject1_row10")
    examples = Split(train.fmri[kept], train.clip[kept], train.segment[kept])
    interventions.train_decoder(many, folder, examples, tiny.fmri_encoder(), "toy")
    with pytest.raises(FloatingPointError):
        interventions.train_decoder(many, folder, train, tiny.fmri_encoder(), "toy")


def test_an_untrained_encoder_stays_as_it_was_drawn(profile):
    stage_two(profile, 1, 10)
    interventions.decode(profile, "untrained_encoder", 1)
    drawn = interventions.fresh_encoder(profile, VOXELS).state_dict()
    pipeline = work(interventions._altered(profile, "untrained_encoder"), "decoder", "subject1_row10", "pipeline")
    kept = weights(pipeline, "fmri_encoder")
    assert kept.keys() == drawn.keys() and all(torch.equal(kept[name], drawn[name]) for name in kept)
    start, end = weights(work(profile, "stage1", "beta_0.75"), "unet"), weights(pipeline, "unet")
    assert any(not torch.equal(start[name], end[name]) for name in end)  # the UNet has learnt
    run = interventions.load(profile, "untrained_encoder", 1)
    assert_same(run.test.decoded, expected(profile, pipeline, load_subject(profile, 1).test.fmri, np.arange(len(TEST))))


def test_lagged_recordings_meet_the_right_clips_and_the_others_are_held_out(profile):
    for name, lag in interventions.LAG.items():
        altered = interventions.prepare_altered(profile, name, 1)
        data = load_subject(altered, 1)
        assert altered.name == f"demo_{name}" and altered.data.validation_segments == (3, 4, 5, 6)
        for part, segments in ((data.train, (1, 2)), (data.validation, (3,))):
            kept = part.segment <= 3
            assert set(part.segment[kept]) == set(segments)
            # The first voxel of a recording is its number: the clip's own, and the lag.
            np.testing.assert_array_equal(part.fmri[kept, 0, 0], part.clip[kept] + lag)
        assert len(data.train.clip) == 2 * (PER_SEGMENT - 2)
        there = data.test.segment == TEST
        np.testing.assert_array_equal(data.test.fmri[there, 0, 0], data.test.clip[there] + lag)
        same = TRAIN[data.train.fmri[:, :, 0].astype(int)] == data.train.segment[:, None]
        assert same.all()  # no window reaches into another segment
        for shared in ("targets", "pretraining"):
            assert work(altered, shared).resolve() == work(profile, shared)


def test_what_stands_in_a_links_way_is_told(profile):
    altered = interventions._altered(profile, "lag_2")
    work(altered, "targets").mkdir(parents=True)
    with pytest.raises(ValueError, match="targets is in the way"):
        interventions.prepare_altered(profile, "lag_2", 1)


# --- without a decoder ---------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path, monkeypatch):
    """Recordings that follow the film's embedding by `delay` volumes, in noise; no scenes: every clip is new."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    demo = load_profile("demo")
    data = demo.data.model_copy(update={"train_segments": 6, "validation_segments": (6,), "window": 1})
    profile = demo.model_copy(update={"data": data})

    def make(delay):
        rng = np.random.default_rng(0)
        mixing, arrays, targets = rng.normal(size=(8, 20)), {"vertex": np.arange(20)}, {}
        for part, segment in (("train", np.repeat(np.arange(1, 7), 60)), ("test", np.repeat([1, 2], 60))):
            shown = rng.normal(size=(len(segment), 8))
            late = np.zeros((len(segment), 20))
            for number in np.unique(segment):
                late[segment == number] = np.roll(shown[segment == number] @ mixing, delay, axis=0)
            arrays[f"{part}_fmri"] = (late + rng.normal(size=late.shape)).astype(np.float32)
            arrays[f"{part}_segment"] = segment
            targets[f"{part}_image_embeddings"] = np.repeat(shown[:, None], 2, axis=1).astype(np.float32)
        save_arrays(work(profile, "subject1"), arrays, {})
        save_arrays(work(profile, "targets"), targets, {})
        return profile

    return make


@pytest.mark.parametrize("delay", [0, 2, -1])
def test_the_lag_curve_peaks_where_the_film_is(film, delay):
    curve = interventions.lag_curve(film(delay), 1, range(-3, 4))
    assert curve["lag"].tolist() == list(range(-3, 4)) and set(curve["clips"]) == {2 * (60 - 6)}
    peak = curve.set_index("lag").loc[delay]
    assert curve["lag"][curve["mean"].idxmax()] == delay and peak["mean"] > 0.8
    others = curve[curve["lag"].ne(delay)]
    assert ((others["mean"] - 0.5).abs() < 0.12).all() and (others["high"] < peak["low"]).all()


def test_a_lag_curve_is_kept_until_the_recordings_change(film, monkeypatch):
    profile = film(0)
    first = interventions.lag_curve(profile, 1, (-1, 0, 1))
    with monkeypatch.context() as patch:
        patch.setattr("nfx.evaluation.references.linear_reader", None)
        pd.testing.assert_frame_equal(interventions.lag_curve(profile, 1, (-1, 0, 1)), first)
    film(1)
    again = interventions.lag_curve(profile, 1, (-1, 0, 1))
    assert again["lag"][again["mean"].idxmax()] == 1


def test_the_lag_curve_sees_no_held_out_or_test_pair(film, monkeypatch):
    from nfx.evaluation import references

    profile, asked = film(0), []
    original = references.linear_reader

    def logged(train, validation, test):
        asked.append((len(train[0]), len(validation[0]), len(test)))
        return original(train, validation, test)

    monkeypatch.setattr(references, "linear_reader", logged)
    interventions.lag_curve(profile, 1, (-2, 0))
    assert asked == [(5 * 58, 58, 2 * 58)] * 2


# --- tables and figure ---------------------------------------------------------------------------------------


def test_the_table_compares_clip_by_clip_on_the_clips_of_both(profile):
    from nfx.evaluation.comparisons import paired_difference
    from nfx.evaluation.tables import block_length

    stage_two(profile, 1, 10)
    decoded.decode_run(profile, 1, 10)
    for name in ("shuffled", "condition_dropped"):
        interventions.decode(profile, name, 1)
    # A control that lacks clips, as the lags do.
    folder = interventions.control_folder(profile, "lag_2", 1)
    few = np.r_[2:6, 10:14]
    noise = np.random.default_rng(1).integers(0, 256, (len(few), 6, 16, 16, 3), dtype=np.uint8)
    decoded.decode_and_score(profile, folder, {"test": few}, {"test": lambda block: noise[block]}, {})
    table = interventions.control_table(profile, 1)
    titles = [interventions.TITLES[name] for name in ("untouched", "shuffled", "condition_dropped", "lag_2")]
    assert table["control"].unique().tolist() == titles and len(table) == 4 * 5
    assert set(table.loc[table["control"].eq(titles[3]), "clips"]) == {len(few)}
    ours = decoded.load_run(profile, 1, 10)
    shown = ours.scores[ours.scores["part"].eq("test")]
    theirs = interventions.load(profile, "lag_2", 1).scores
    line = table[table["control"].eq(titles[3]) & table["metric"].eq("SSIM")].iloc[0]
    segment = TEST[few]
    wanted = paired_difference(theirs["ssim"].to_numpy(), shown["ssim"].to_numpy()[few], segment, block_length(segment))
    assert (line["difference"], line["difference_low"], line["p"]) == (wanted.difference, wanted.low, wanted.p)
    assert line["mean"] == pytest.approx(theirs["ssim"].mean()) and np.isnan(line["chance"])
    plain = table[table["control"].eq(titles[0])]
    assert plain["difference"].isna().all() and plain["holm"].isna().all()
    assert (table["holm"].dropna() >= table["p"].dropna()).all() and table["holm"].notna().sum() == 15
    chance = table.drop_duplicates("metric").set_index("metric")["chance"]
    assert chance["image"] == chance["video"] == pytest.approx(0.2) and chance["2-way CLIP"] == 0.5


def test_identification_of_few_clips_is_among_these(profile):
    from nfx.evaluation.identification import identification, pixel_similarity

    decoded.decode_run(profile, 1, 10)
    run = decoded.load_run(profile, 1, 10)
    few = np.array([1, 4, 9])
    found = interventions._scores(run, interventions._similarities(profile, run), few)
    wanted = identification(pixel_similarity(run.test.truth[few], np.asarray(run.test.decoded)[few]))
    np.testing.assert_array_equal(found["pixels_2way"], wanted)


def test_a_control_of_other_clips_is_refused(profile):
    decoded.decode_run(profile, 1, 10)
    interventions.decode(profile, "shuffled", 1)
    few = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"test_clips": 5})})
    decoded.decode_run(few, 1, 10)
    with pytest.raises(ValueError, match="'fMRI of other clips' has decoded clips that the untouched"):
        interventions.control_table(few, 1)


def test_the_figure_shows_every_control_subject_and_lag():
    rng, demo = np.random.default_rng(0), load_profile("demo")
    tables = []
    for subject in (1, 2):
        for metric in interventions.MEASURED.values():
            table = pd.DataFrame({"control": list(interventions.TITLES.values()), "mean": rng.random(9)})
            chance = np.nan if metric == "SSIM" else 0.5
            tables.append(table.assign(
                subject=subject, metric=metric, low=table["mean"] - 0.1, high=table["mean"] + 0.1, chance=chance
            ))  # fmt: skip
    curves = [
        pd.DataFrame({"subject": s, "lag": range(-2, 3), "mean": 0.6, "low": 0.5, "high": 0.7, "chance": 0.5})
        for s in (1, 2)
    ]
    fig = interventions.figure_controls(tables, curves, demo)
    fig.canvas.draw()
    axes = fig.get_axes()
    assert len(axes) == 6
    assert [label.get_text() for label in axes[0].get_yticklabels()][0] == "untouched decoder"
    shown = {label.get_text() for label in axes[0].get_yticklabels()}
    assert shown == set(interventions.TITLES.values())
    means = pd.concat(tables)
    first = means[means["metric"].eq("image") & means["subject"].eq(2)].set_index("control")["mean"]
    assert sorted(axes[1].containers[1][0].get_xdata()) == pytest.approx(sorted(first))
    assert len(axes[5].lines) >= 2
    alone = interventions.figure_controls(tables, [], demo)
    assert len(alone.get_axes()) == 5


# --- a whole project -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_controls_of_a_whole_project_leave_it_as_it_was(tmp_path, monkeypatch):
    from tiny import make_root

    from nfx.data import prepare_pretraining, prepare_stimuli, prepare_targets
    from nfx.data.simulator import writer
    from nfx.encoder import pretrain, train_encoder

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    profile = load_profile(make_root(tmp_path, data={"alpha": 0.5, "keep": 0.3}, simulation={"other_step": 60}))
    writer.simulate_dataset(profile)
    writer.simulate_recordings(profile)
    for prepare in (prepare_stimuli, prepare_targets, prepare_pretraining, pretrain):
        prepare(profile)
    for subject in profile.data.subjects:
        prepare_subject(profile, subject)
    train_encoder(profile, 1, profile.headline_row)
    stage_two(profile, 1, profile.headline_row)
    decoded.decode_run(profile, 1, profile.headline_row)
    before = everything_in(work(profile))
    for name in interventions.NAMES:
        interventions.decode(profile, name, 1)
    after = everything_in(work(profile))
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert "controls" in new and new <= {"controls", "judged"}  # what the classifiers made of the clips is kept too
    voxels = load_subject(profile, 1).vertex
    elsewhere = load_arrays(work(interventions._altered(profile, "non_visual"), "subject1"))
    assert elsewhere["train_fmri"].shape[1] == len(voxels) and not np.isin(elsewhere["vertex"], voxels).any()
    table = interventions.control_table(profile, 1)
    assert table["control"].nunique() == 8 and np.isfinite(table["mean"]).all()
    assert set(table.loc[table["control"].str.contains("volumes too"), "clips"]) == {2 * (10 - 4)}
    curve = interventions.lag_curve(profile, 1, range(-2, 3))
    assert len(curve) == 5 and np.isfinite(curve["mean"]).all()
