"""Each leak planted in a tiny project and caught, and none found where there is none."""

from __future__ import annotations

import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from nfx import paths
from nfx.data import prepare_pretraining, prepare_stimuli, prepare_subject, prepare_targets
from nfx.diffusion import fine_tuning
from nfx.evaluation import leaks
from nfx.files import load_arrays, read_json, read_manifest, save_arrays, write_json, write_manifest
from nfx.paths import data_set, work
from nfx.profile import load_profile


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny project as notebook 01 leaves it, with the manifests of trainings."""
    from tiny import make_root

    from nfx.data.simulator import writer

    root = tmp_path_factory.mktemp("project")
    profile = load_profile(
        make_root(root, data={"subjects": [1]}, simulation={"signal_to_noise": [0.22]}, averaged_subjects=[1])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        writer.simulate_dataset(profile)
        writer.simulate_recordings(profile)
        for prepare in (prepare_stimuli, prepare_targets, prepare_pretraining):
            prepare(profile)
        prepare_subject(profile, 1)
        targets, subject = read_manifest(work(profile, "targets")), read_manifest(work(profile, "subject1"))
        held_out = list(profile.data.validation_segments)
        for name, facts in {
            "encoder/subject1_row1": {"subject": 1, "fmri": digests(subject), "targets": digests(targets)},
            "stage1/beta_none": {"targets": digests(targets, "train_latents", "train_caption")},
            "decoder/subject1_row1/pipeline": {"subject": 1, "fmri": digests(subject, "train_fmri")},
        }.items():
            write_manifest(work(profile, name), facts | {"validation_segments": held_out})
    return root, profile


@pytest.fixture
def profile(prepared, tmp_path, monkeypatch):
    """The project, copied to be damaged."""
    root, profile = prepared
    shutil.copytree(root / "work", tmp_path / "work")
    (tmp_path / "data").symlink_to(root / "data")
    (tmp_path / "models").symlink_to(root / "models")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return profile


def digests(manifest, *names):
    return {name: manifest["arrays"][name]["sha256"] for name in names or manifest["arrays"]}


def change(folder, **changed):
    """Replace arrays, so that the manifest is right all the same."""
    facts = read_manifest(folder)["facts"]
    arrays = {name: np.array(array) for name, array in load_arrays(folder).items()}
    save_arrays(folder, arrays | changed, facts)


def arrays_of(profile, folder, *names):
    return [np.array(array) for array in load_arrays(work(profile, folder), *names).values()]


def test_sentences_are_whole_in_order_and_not_too_wide():
    checks = [
        leaks.Leak("copied clips", True, 0, "a " + "long " * 30 + "end"),
        leaks.Leak("window draws", False, 3, "3 of 60", 2),
        leaks.Leak("trainings", True, 0, "0 of 2"),
    ]
    lines = leaks.sentences(pd.DataFrame(checks), 60)
    assert max(map(len, lines)) <= 60
    assert lines[0] == "film, captions and trainings" and lines[-2:] == ["subject 2", "  LEAK  window draws: 3 of 60"]
    assert "  ok    trainings: 0 of 2" in lines and " ".join(" ".join(lines).split()).count("long") == 30


def test_there_is_none_where_there_is_none(profile, bars):
    made = bars(leaks)
    table = leaks.check_leaks(profile)
    segments = profile.data.train_segments - len(profile.data.validation_segments)
    assert [(bar.n, bar.total) for bar in made] == [(segments, segments)]  # of the one subject
    assert table["ok"].all(), table[~table["ok"]].to_string()
    assert len(table) == 11 and table["name"].is_unique and table["sentence"].str.len().min() > 20
    assert set(table.loc[table["subject"] == 1, "name"]) == {
        "voxel choice", "normalisation", "held-out windows", "window draws",
    }  # fmt: skip


def test_a_test_film_of_trained_categories_only(profile):
    truth = data_set(profile) / "truth" / "movie.json"
    movie = read_json(truth)
    paths.ROOT.joinpath("data").unlink()
    for number in (1, 2):
        movie["segments"][f"test{number}"] = movie["segments"]["seg1"]
    write_json(truth, movie)
    found = leaks.categories(profile)
    assert not found.ok and found.number == 1 and found.sentence.startswith("0 of ")
    movie["segments"]["seg12"] = [dict(shot, frame_class=900) for shot in movie["segments"]["seg12"]]
    movie["segments"]["test1"] = movie["segments"]["seg12"]  # known from validation only: new to what is trained
    write_json(truth, movie)
    assert leaks.categories(profile).ok


def test_near_duplicates_are_found_by_clip(profile):
    train, test = arrays_of(profile, "targets", "train_image_embeddings", "test_image_embeddings")
    step = 1e-4 * np.random.default_rng(0).standard_normal(train[5].shape) * np.abs(train[5]).mean()
    test[3], test[7] = train[5] + step, train[-1]  # the last is held out, and may be alike
    change(work(profile, "targets"), test_image_embeddings=test)
    found = leaks.near_duplicates(profile)
    assert not found.ok and found.number == 1


def test_a_limit_that_repeats_in_the_training_film_have_moved_is_told():
    rng = np.random.default_rng(0)
    segment = np.repeat([1, 2, 3, 4], 50)
    train, test = rng.standard_normal((200, 6, 16)), rng.standard_normal((40, 6, 16))
    assert leaks.compare_embeddings(train, test, segment, np.arange(150)).ok
    train[50:60] = train[:10]
    found = leaks.compare_embeddings(train, test, segment, np.arange(150))
    assert not found.ok and "cannot tell" in found.sentence


def test_neighbours_that_share_a_scene_do_not_move_the_limit():
    rng = np.random.default_rng(0)
    segment = np.repeat([1, 2, 3, 4], 50)
    train, test = rng.standard_normal((200, 6, 16)), rng.standard_normal((40, 6, 16))
    train[1::2] = train[::2]  # every clip and the next one
    test[3] = train[60]
    found = leaks.compare_embeddings(train, test, segment, np.arange(150))
    assert found.number == 1 and "cannot tell" not in found.sentence


def test_frames_in_another_order_are_another_clip():
    rng = np.random.default_rng(0)
    train = rng.standard_normal((60, 6, 16))
    found = leaks.compare_embeddings(train, train[[4]][:, ::-1], np.repeat([1, 2, 3], 20), np.arange(60))
    assert found.ok


def test_copied_clips(profile):
    train, test = arrays_of(profile, "stimuli", "train_clips", "test_clips")
    train[0], train[-1] = test[4], 0  # and a clip of a single colour in both films, which says nothing
    test[0] = 0
    change(work(profile, "stimuli"), train_clips=train, test_clips=test)
    found = leaks.copied_clips(profile)
    assert not found.ok and found.number == 1


@pytest.mark.parametrize("with_embedding", [False, True])
def test_a_training_frame_that_points_to_a_test_caption(profile, with_embedding):
    names = ("train_caption", "train_text_embeddings", "test_caption", "test_text_embeddings", "caption_tokens")
    train, text, test, test_text, tokens = arrays_of(profile, "targets", *names)
    test[2, 3] = len(tokens)  # a caption of its own, the same in the list
    test_text[2, 3] += 1
    train[6, 0] = test[2, 3]
    if with_embedding:  # whoever moved the row moved all that goes with it: only BLIP can tell
        text[6, 0] = test_text[2, 3]
    captions = [*read_json(work(profile, "targets") / "captions.json"), "a caption of the test film"]
    change(
        work(profile, "targets"), train_caption=train, train_text_embeddings=text, test_caption=test,
        test_text_embeddings=test_text, caption_tokens=np.concatenate([tokens, tokens[-1:]]),
    )  # fmt: skip
    write_json(work(profile, "targets") / "captions.json", captions)
    found = leaks.captions(profile, spoken_again=240 * 6 if with_embedding else 4)
    assert not found.ok and found.number == 1


def test_losses_that_draw_from_held_out_clips(profile, monkeypatch):
    assert leaks.caption_draws(profile, 5).ok and leaks.window_draws(profile, 1, 5).ok
    monkeypatch.setattr(fine_tuning, "_training_clips", lambda profile, clips: np.arange(clips))
    assert leaks.caption_draws(profile).number > 10 and leaks.window_draws(profile, 1).number > 10


def test_a_loss_that_draws_a_caption_of_held_out_clips(profile, monkeypatch):
    caption = arrays_of(profile, "targets", "train_caption")[0]
    count = len(read_json(work(profile, "targets") / "captions.json"))
    true_loss = fine_tuning.caption_loss
    caption[:-30], caption[-30:] = 0, count - 1  # what only held-out clips show
    change(work(profile, "targets"), train_caption=caption)
    assert leaks.caption_draws(profile, 5).ok

    def any_caption(latents, rows, *rest, **options):
        return true_loss(latents, np.full_like(rows, count - 1), *rest, **options)

    monkeypatch.setattr(fine_tuning, "caption_loss", any_caption)
    assert leaks.caption_draws(profile, 5).number == 5


def test_windows_that_reach_into_the_next_segment(profile, monkeypatch):
    def no_borders(fmri, segment, window, time_averaged=False):
        return fmri[np.minimum(np.arange(len(fmri))[:, None] + np.arange(window), len(fmri) - 1)]

    monkeypatch.setattr(fine_tuning, "fmri_windows", no_borders)
    found = leaks.window_draws(profile, 1, 1)
    assert not found.ok and found.number >= 1  # the last window before the held-out segments, drawn or not


def test_training_rows_that_the_test_runs_had_a_part_in(profile):
    again = leaks.prepare_again(profile, 1)
    assert leaks.normalisation(profile, 1, again).number < 1e-4
    train, test = arrays_of(profile, "subject1", "train_fmri", "test_fmri")
    together = np.concatenate([train, test + 0.2])  # z-scored as one: the usual slip
    scaled = (train - together.mean(axis=0)) / together.std(axis=0)
    change(work(profile, "subject1"), train_fmri=scaled.astype(np.float32))
    assert not leaks.normalisation(profile, 1, again).ok
    change(work(profile, "subject1"), train_fmri=train * np.float32(1.01))  # a scale alone
    assert not leaks.normalisation(profile, 1, again).ok


def test_other_test_recordings_change_nothing_that_is_trained_on(prepared, tmp_path, monkeypatch):
    """The whole preparation, again, with test and validation runs that are noise."""
    root, profile = prepared
    shutil.copytree(root / "data", tmp_path / "data")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    rng = np.random.default_rng(0)
    for segment in ("test1", "test2", "seg11", "seg12"):
        for path in data_set(profile).glob(f"subject1/fmri/{segment}/cifti/*.nii"):
            image = nibabel.load(path)
            data = rng.standard_normal(image.shape).astype(np.float32) * 300 + 5
            nibabel.save(nibabel.Cifti2Image(data, header=image.header), path)
    before = load_arrays(root / "work" / "tiny" / "subject1")
    after = load_arrays(prepare_subject(profile, 1))
    kept = before["train_segment"] <= 10
    np.testing.assert_array_equal(after["train_fmri"][kept], before["train_fmri"][kept])
    for name in ("vertex", "reproducibility_t"):
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.allclose(after["test_fmri"], before["test_fmri"])
    assert not np.allclose(after["train_fmri"][~kept], before["train_fmri"][~kept])


def test_voxels_chosen_on_held_out_segments_too(profile):
    again = leaks.prepare_again(profile, 1)
    everything = profile.model_copy(update={"data": profile.data.model_copy(update={"validation_segments": (12,)})})
    prepare_subject(everything, 1)  # one held-out segment more had a part in the choice
    found = leaks.voxel_choice(profile, 1, again)
    assert not found.ok and found.number > 0.01


def test_voxels_that_are_not_those_of_the_test(profile):
    again = leaks.prepare_again(profile, 1)
    vertex, train, test = arrays_of(profile, "subject1", "vertex", "train_fmri", "test_fmri")
    change(work(profile, "subject1"), vertex=vertex[1:], train_fmri=train[:, 1:], test_fmri=test[:, 1:])
    found = leaks.voxel_choice(profile, 1, again)
    assert not found.ok and "not those that t chooses" in found.sentence


def test_held_out_volumes_among_the_training_rows(profile):
    train, test = arrays_of(profile, "subject1", "train_fmri", "test_fmri")
    train[30], train[31] = test[3], train[-1]
    change(work(profile, "subject1"), train_fmri=train)
    found = leaks.held_out_windows(profile, 1)
    assert not found.ok and found.number == 2


def test_a_split_that_keeps_a_held_out_segment(profile, monkeypatch):
    from nfx.data import dataset

    monkeypatch.setattr(dataset, "split", lambda segment, held_out: (np.arange(len(segment)), np.arange(264, 288)))
    assert leaks.held_out_windows(profile, 1).number > 48


@pytest.mark.parametrize("name", ["encoder/subject1_row1", "stage1/beta_none", "decoder/subject1_row1/pipeline"])
def test_a_training_with_nothing_held_out_or_of_other_arrays(profile, name):
    assert leaks.trainings(profile).ok
    facts = read_manifest(work(profile, name))["facts"]
    write_manifest(work(profile, name), facts | {"validation_segments": []})
    found = leaks.trainings(profile)
    assert not found.ok and found.number == 1 and name in found.sentence
    kind = "fmri" if "fmri" in facts else "targets"
    write_manifest(work(profile, name), facts | {kind: dict.fromkeys(facts[kind], "0" * 64)})
    assert not leaks.trainings(profile).ok


def test_a_subject_among_the_people_of_pretraining(profile, prepared):
    paths.ROOT.joinpath("data").unlink()
    shutil.copytree(prepared[0] / "data", paths.ROOT / "data")
    theirs = sorted((data_set(profile).parent / "hcp").glob("**/*.nii"))[0]
    shutil.copy(sorted(data_set(profile).glob("subject1/fmri/test1/cifti/*.nii"))[0], theirs)
    found = leaks.pretraining_people(profile)
    assert not found.ok and found.number == 1 and theirs.name in found.sentence


def test_the_stand_in_of_the_unet_shows_a_condition():
    echo = leaks._echo()
    for bad in (0.0, float("nan")):
        out = echo(torch.zeros(2, 1, 6, 1, 1), None, torch.full((2, 3, 4), bad)).sample
        assert bool(out.isnan().all()) == np.isnan(bad) and out.shape == (2, 1, 6, 1, 1)
