"""Controls on toys: what each takes away, and that all else stays; at the end a whole project in miniature."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_controls as toy
import tiny_diffusion as tiny

from nfx import paths
from nfx.data import load_subject, prepare_subject, windows
from nfx.diffusion import stage_two
from nfx.evaluation import altered, control_tables, decoded, interventions, lags, methods
from nfx.evaluation.controls import blocks
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


# --- decoding ------------------------------------------------------------------------------------------------


def test_controls_without_training_change_the_recordings_alone(profile, monkeypatch):
    decoded.decode_run(profile, 1, 10)
    before = toy.everything_in(work(profile))
    data, pipeline = load_subject(profile, 1), decoded.run_folder(profile, 1, 10) / "pipeline"
    foreign = np.random.default_rng(5).normal(size=(len(toy.TEST), toy.VOXELS)).astype(np.float32)

    def read(asked, subject, part, vertex):
        assert (subject, part) == (2, "test")
        np.testing.assert_array_equal(vertex, data.vertex)
        return foreign

    monkeypatch.setattr(interventions, "recordings_at", read)
    monkeypatch.setattr(interventions, "block_length", lambda segment: 4)
    given = interventions.exchange_blocks(toy.TEST, 4, profile.seed)
    fmri = {
        "shuffled": data.test.fmri[given],
        "other_subject": windows(foreign, toy.TEST, tiny.WINDOW),
        "condition_dropped": np.zeros_like(data.test.fmri),
    }
    untouched = decoded.load_run(profile, 1, 10)
    for name, wanted in fmri.items():
        folder = interventions.decode(profile, name, 1)
        assert folder == work(profile, "controls", f"{name}_subject1")
        run = interventions.load(profile, name, 1)
        toy.assert_same(run.test.decoded, toy.expected(profile, pipeline, wanted, np.arange(len(toy.TEST))))
        assert run.validation is None and run.test.clip.tolist() == list(range(len(toy.TEST)))
        np.testing.assert_array_equal(run.test.truth, untouched.test.truth)  # scored against their own truth
        assert np.abs(run.test.decoded.astype(int) - untouched.test.decoded).max() > 1
    assert list(interventions.decoded(profile, 1)) == [interventions.TITLES[name] for name in fmri]
    after = toy.everything_in(work(profile))
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
    before = toy.everything_in(work(profile))
    for name in interventions.NAMES:
        interventions.decode(profile, name, 1)
    after = toy.everything_in(work(profile))
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert "controls" in new and new <= {"controls", "judged"}  # what the classifiers made of the clips is kept too
    voxels = load_subject(profile, 1).vertex
    elsewhere = load_arrays(work(altered.altered_profile(profile, "non_visual"), "subject1"))
    assert elsewhere["train_fmri"].shape[1] == len(voxels) and not np.isin(elsewhere["vertex"], voxels).any()
    table = control_tables.control_table(profile, 1)
    assert table["control"].nunique() == 8 and np.isfinite(table["mean"]).all()
    assert set(table.loc[table["control"].str.contains("volumes too"), "clips"]) == {2 * (10 - 4)}
    curve = lags.lag_curve(profile, 1, range(-2, 3))
    assert len(curve) == 5 and np.isfinite(curve["mean"]).all()
