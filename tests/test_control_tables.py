"""The table of the controls on a toy decoder, and the figure on made-up numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_controls as toy

from nfx import paths
from nfx.diffusion import stage_two
from nfx.evaluation import control_tables, decoded, interventions, methods
from nfx.profile import load_profile


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return toy.write_classifiers(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture
def profile(tmp_path, monkeypatch, classifiers):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "embed", toy.embed)  # in place of CLIP
    return toy.make(tmp_path, classifiers)


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
    table = control_tables.control_table(profile, 1)
    titles = [interventions.TITLES[name] for name in ("untouched", "shuffled", "condition_dropped", "lag_2")]
    assert table["control"].unique().tolist() == titles and len(table) == 4 * 5
    assert set(table.loc[table["control"].eq(titles[3]), "clips"]) == {len(few)}
    ours = decoded.load_run(profile, 1, 10)
    shown = ours.scores[ours.scores["part"].eq("test")]
    theirs = interventions.load(profile, "lag_2", 1).scores
    line = table[table["control"].eq(titles[3]) & table["metric"].eq("SSIM")].iloc[0]
    segment = toy.TEST[few]
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
    found = control_tables._scores(run, control_tables._similarities(profile, run), few)
    wanted = identification(pixel_similarity(run.test.truth[few], np.asarray(run.test.decoded)[few]))
    np.testing.assert_array_equal(found["pixels_2way"], wanted)


def test_a_control_of_other_clips_is_refused(profile):
    decoded.decode_run(profile, 1, 10)
    interventions.decode(profile, "shuffled", 1)
    few = profile.model_copy(update={"sampling": profile.sampling.model_copy(update={"test_clips": 5})})
    decoded.decode_run(few, 1, 10)
    with pytest.raises(ValueError, match="'fMRI of other clips' has decoded clips that the untouched"):
        control_tables.control_table(few, 1)


def test_subjects_without_controls_are_left_out_of_tables_and_curves(profile, monkeypatch):
    monkeypatch.setattr(control_tables, "lag_curve", lambda profile, subject: f"curve of {subject}")
    assert control_tables.gather_controls(profile, (1, 2)) == ([], [])
    decoded.decode_run(profile, 1, 10)
    interventions.decode(profile, "shuffled", 1)
    tables, curves = control_tables.gather_controls(profile, (1, 2))
    assert [set(table["subject"]) for table in tables] == [{1}] and curves == ["curve of 1"]


def test_the_figure_shows_every_control_subject_and_lag():
    rng, demo = np.random.default_rng(0), load_profile("demo")
    tables = []
    for subject in (1, 2):
        for metric in control_tables.MEASURED.values():
            table = pd.DataFrame({"control": list(interventions.TITLES.values()), "mean": rng.random(9)})
            chance = np.nan if metric == "SSIM" else 0.5
            tables.append(table.assign(
                subject=subject, metric=metric, low=table["mean"] - 0.1, high=table["mean"] + 0.1, chance=chance
            ))  # fmt: skip
    curves = [
        pd.DataFrame({"subject": s, "lag": range(-2, 3), "mean": 0.6, "low": 0.5, "high": 0.7, "chance": 0.5})
        for s in (1, 2)
    ]
    fig = control_tables.figure_controls(tables, curves, demo)
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
    alone = control_tables.figure_controls(tables, [], demo)
    assert len(alone.get_axes()) == 5
