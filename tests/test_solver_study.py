"""When two sets of clips count as the same, the fewest steps, and the whole study on an untrained ten-line decoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import test_decoded

from nfx import paths
from nfx.evaluation import decoded, solver_study
from nfx.evaluation.decoded import Decoded
from nfx.files import load_arrays, write_manifest
from nfx.profile import load_profile

classifiers, profile = test_decoded.classifiers, test_decoded.profile  # fixtures
SEGMENT = np.repeat([1, 2, 3, 4], 10)
SIMILARITY = solver_study.SIMILARITY


def measured(change=0.0, spread=0.0, similarity=1.0):
    """Scores of 40 clips around 0.5, moved by `change` and scattered by `spread`, SSIM to the reference as given."""
    rng = np.random.default_rng(0)
    base = pd.DataFrame({metric: rng.uniform(0.3, 0.7, 40) for metric in solver_study.MARGINS})
    scatter = np.tile([1, -1], 20)[:, None] * spread + np.repeat([1, -1, 1, -1], 10)[:, None] * spread
    return (base + change + scatter).assign(**{SIMILARITY: similarity})


def equivalent(**changes):
    table = solver_study.compare_with_reference(measured(**changes), measured(), SEGMENT)
    return table.set_index("metric")


def test_the_change_from_frame_to_frame_by_hand():
    clips = np.zeros((2, 3, 4, 4, 3), np.uint8)
    clips[1, 1] = 250
    clips[1, 2] = 240  # 250, then 10 grey levels
    np.testing.assert_allclose(solver_study.frame_change(clips), [0, 130])


def test_the_reference_is_equivalent_to_itself():
    table = equivalent()
    assert table["equivalent"].all() and (table["clips"] == 40).all()
    assert (table["difference"].drop(SIMILARITY) == 0).all() and np.isnan(table["difference"][SIMILARITY])
    assert table["margin"]["change"] == pytest.approx(0.1 * measured()["change"].mean())


def test_a_difference_within_the_margin_is_none_and_one_beyond_it_is_not():
    small, large = equivalent(change=0.008), equivalent(change=-0.012)
    assert small["equivalent"]["SSIM"] and not large["equivalent"]["SSIM"]
    assert large["equivalent"]["image"] and not equivalent(change=0.06)["equivalent"][["image", "video"]].any()
    assert large["difference"]["SSIM"] == pytest.approx(-0.012) == large["difference_low"]["SSIM"]


def test_a_difference_that_cannot_be_told_from_none_is_not_therefore_none():
    table = equivalent(spread=0.2)
    assert table["difference"]["SSIM"] == pytest.approx(0) and not table["equivalent"]["SSIM"]
    assert table["difference_low"]["SSIM"] < 0 < table["difference_high"]["SSIM"]


@pytest.mark.parametrize(("similarity", "passes"), [(0.96, True), (0.94, False)])
def test_the_same_clip_asks_for_similarity_and_not_for_scores(similarity, passes):
    table = equivalent(change=0.5, similarity=similarity)
    assert table["equivalent"][SIMILARITY] == passes
    assert not table["equivalent"].drop(SIMILARITY).any()


def answers(scores, similar, solver="dpm++"):
    """Fewest steps of a table in which, from 4 steps on, all scores but SSIM pass, SSIM and the similarity as given."""
    rows = [{"solver": "ddim", "steps": 200, "metric": "SSIM", "reference": True, "equivalent": True}]
    for steps, same, clip in zip((4, 8, 16, 50), scores, similar, strict=True):
        for metric, passes in {"SSIM": same, "image": True, "video": True, "change": True, SIMILARITY: clip}.items():
            rows.append({"solver": solver, "steps": steps, "metric": metric, "reference": False, "equivalent": passes})
    found = solver_study.fewest_steps(pd.DataFrame(rows))
    assert found["solver"].tolist() == [solver] * 2
    return found.set_index("answer")["steps"]


def test_the_fewest_steps_are_sought_from_above_and_the_first_to_fail_ends_it():
    found = answers(scores=(True, False, True, True), similar=(False, False, False, True))
    assert found[solver_study.SCORES] == 16 and found[solver_study.CLIP] == 50
    found = answers(scores=(True, True, True, False), similar=(True, True, True, True))
    assert pd.isna(found[solver_study.SCORES]) and found[solver_study.CLIP] == 4


def test_other_clips_than_the_reference_s_are_refused():
    clips = np.zeros((2, 3, 8, 8, 3), np.uint8)
    one, other = (Decoded(clips, clips, np.array(rows), np.ones(2, int)) for rows in ((0, 1), (0, 2)))
    with pytest.raises(ValueError, match="other clips"):
        solver_study.clip_measures(other, pd.DataFrame(), one)


# --- the whole study -----------------------------------------------------------------------------------------


@pytest.fixture
def small(profile, monkeypatch):
    """Few steps of few clips, scores without classifiers, and margins that all scores meet and no clip does."""
    monkeypatch.setattr(solver_study, "STEPS", (2, 3))
    monkeypatch.setattr(solver_study, "REFERENCE", ("ddim", 5))
    monkeypatch.setattr(solver_study, "CLIPS", 4)
    monkeypatch.setattr(solver_study, "MARGINS", {"SSIM": 1.0, "image": 1.0, "video": 1.0, "change": 1e3})
    monkeypatch.setattr(solver_study, "SAME_CLIP", 0.999)

    def scores(truth, clips, *_):
        ssim = solver_study.ssim(truth, clips).mean(axis=1)
        return pd.DataFrame({"ssim": ssim, "image_top1_1": ssim / 2, "video_top1_1": ssim / 3})

    monkeypatch.setattr(decoded, "score_clips", scores)
    few = profile.sampling.model_copy(update={"validation_clips": 4, "test_clips": 4})
    return profile.model_copy(update={"sampling": few})


def test_validation_clips_choose_and_test_clips_report(small, capsys):
    decoded.decode_run(small, 1, 10)
    folder = solver_study.study(small, 1)
    made = {path.name for path in folder.iterdir() if path.is_dir()}
    settings = [f"{solver}_{steps}" for solver in ("ddim", "dpm++", "unipc") for steps in (2, 3)]
    assert {name for name in made if "validation" in name} == {f"{n}_validation" for n in (*settings, "ddim_5")}
    assert {name for name in made if "test" in name} == {f"{n}_2_test" for n in ("ddim", "dpm++", "unipc")} | {
        "ddim_5_test"
    }
    # The profile's own solver and steps give the very clips that are scored everywhere: same noise, same windows.
    run = load_arrays(decoded.run_folder(small, 1, 10))
    for part in ("validation", "test"):
        ours = load_arrays(folder / f"ddim_2_{part}")
        clips, fast = (a[f"{part}_decoded"].astype(int) for a in (ours, load_arrays(folder / f"dpm++_2_{part}")))
        np.testing.assert_array_equal(ours[f"{part}_clip"], run[f"{part}_clip"])
        assert np.abs(clips - run[f"{part}_decoded"]).max() <= 1 and np.abs(clips - fast).max() > 1

    comparison, fewest = solver_study.load_study(small, 1)
    assert fewest["steps"].fillna(0).tolist() == [2, 0] * 3
    reference = comparison[comparison["reference"] & comparison["metric"].eq(SIMILARITY)]
    assert reference["part"].tolist() == ["validation", "test"] and (reference["mean"] == 1).all()
    table = solver_study.solver_table(comparison, fewest)
    assert table["borne out"].fillna("").tolist() == ["yes", ""] * 3
    assert table["fewer"].dropna().unique().tolist() == ["2.5 x"]
    figure = solver_study.figure_solvers(comparison, fewest, small)
    assert [ax.get_xlabel() for ax in figure.get_axes()].count("evaluations of the UNet") == 5

    written = solver_study.save_study(small, 1)
    assert [path.name for path in written] == ["solvers.csv", "fewest_steps.csv", "figure_solvers.png"]
    assert len(pd.read_csv(written[0], comment="#")) == len(comparison)
    assert pd.read_csv(written[1], comment="#")["steps"].dropna().tolist() == [2] * 3

    capsys.readouterr()
    solver_study.study(small, 1)
    assert capsys.readouterr().out.count("reused") == 1  # as a whole, without a look at its clips
    write_manifest(decoded.run_folder(small, 1, 10) / "pipeline", {}, ["model_index.json"])  # another one
    with pytest.raises(ValueError, match="another decoder"):
        solver_study.load_study(small, 1)


def test_a_missing_study_tells_its_command(profile):
    with pytest.raises(FileNotFoundError, match=r"run python -m nfx.evaluation.solver_study 1 --profile demo"):
        solver_study.load_study(profile, 1)


@pytest.mark.parametrize(("arguments", "message"), [(["9"], "subject is 9"), (["2"], "notebook")])
def test_the_command_tells_errors_in_a_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=message):
        solver_study.main(arguments)


def test_the_reference_is_the_paper_profile_s_sampling():
    sampling = load_profile("paper").sampling
    assert (sampling.solver, sampling.steps) == solver_study.REFERENCE
