"""Studies around a profile: what they change, and what is made of made-up results whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfx import paths, studies, study_figures
from nfx.data.simulator.movie import plan_movie
from nfx.data.simulator.writer import _facts as simulator_facts
from nfx.evaluation.ablations import CLAIMS
from nfx.evaluation.claims import HOLDS, OPPOSITE, UNCLEAR
from nfx.evaluation.decoded import run_folder
from nfx.files import finished, load_arrays, save_arrays, write_atomically, write_manifest
from nfx.profile import load_profile

TEST, VALIDATION = np.repeat([1, 2, 3], 20), np.repeat([15, 16], 10)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo's profile, in an empty folder."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return load_profile("demo")


@pytest.fixture
def real(tmp_path, monkeypatch):
    """The paper's profile, in an empty folder."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return load_profile("paper")


def write_scores(profile, subject, row, mean, seed=0):
    """Leave the scores that notebook 03 would leave; each part's mean is `mean` exactly."""
    parts = []
    for part, segment in (("validation", VALIDATION), ("test", TEST)):
        noise = np.random.default_rng([seed, len(segment)]).normal(0, 0.02, len(segment))
        names = ("ssim", "image_top1_1", "image_top1_3", "video_top1_1", "video_top1_3")
        values = {name: mean + k / 10 + noise - noise.mean() for k, name in enumerate(names)}
        parts.append(pd.DataFrame({"part": part, "clip": np.arange(len(segment)), "segment": segment} | values))
    folder = run_folder(profile, subject, row)
    with write_atomically(folder / "scores.csv") as path:
        pd.concat(parts).to_csv(path, index=False)
    write_manifest(folder, {})


def changed(profile, study):
    """Keys whose values differ, as "section.key"."""
    mine, theirs = (studies._content(p) for p in (profile, study))
    found = set()
    for section, value in theirs.items():
        if isinstance(value, dict) and section != "rows":
            found |= {f"{section}.{key}" for key in value if value[key] != mine[section][key]}
        elif value != mine[section]:
            found.add(section)
    return found


# --- the profiles --------------------------------------------------------------------------------------------


def test_every_study_loads_and_changes_what_it_says_and_nothing_else(demo):
    written = studies.write_studies(demo)
    assert [path.relative_to(paths.work(demo)).as_posix() for path in written] == [
        f"studies/demo-{name}.yaml" for name in ("seed2025", "seed2026", "size6", "size8", "size11", "signal")
    ]
    found = {path.stem: load_profile(path) for path in written}
    assert all(study.name == name for name, study in found.items())
    common = {"name", "averaged_subjects"}
    for seed in (2025, 2026):
        study = found[f"demo-seed{seed}"]
        own = {"seed", "data.root", "data.subjects", "simulation.signal_to_noise"}
        assert changed(demo, study) == common | own
        assert (study.seed, study.data.subjects, study.simulation.signal_to_noise) == (seed, (1,), (0.16,))
    for count in (6, 8, 11):
        study = found[f"demo-size{count}"]
        assert changed(demo, study) == common | {"rows", "data.validation_segments"}
        assert studies.trained_segments(study) == list(range(1, count + 1))
    study = found["demo-signal"]
    own = {"rows", "data.root", "data.subjects", "simulation.signal_to_noise"}
    assert changed(demo, study) == common | own
    assert study.simulation.signal_to_noise == studies.SIGNALS and len(study.data.subjects) == len(studies.SIGNALS)
    for study in (found["demo-signal"], found["demo-size6"]):
        assert study.rows == {10: demo.rows[10]} and study.encoder_row(10) == 10


def test_no_study_makes_the_simulator_replace_a_data_set_that_another_one_uses(demo):
    every = [demo, *(study for kind in studies.studies(demo).values() for study in kind)]
    roots = {}
    for profile in every:
        made = [simulator_facts(profile, what) for what in ("dataset", "recordings")]
        assert roots.setdefault(profile.data.root, made) == made, profile.name
    assert len(roots) == 1 + 2 + 1
    assert plan_movie(studies.signal_study(demo)) == plan_movie(demo) != plan_movie(studies.seed_studies(demo)[0])


def test_studies_of_real_data_keep_the_data_set_and_have_no_signal_to_set(real):
    found = studies.studies(real)
    assert set(found) == {"seeds", "size"}
    assert all(
        changed(real, study) == {"name", "averaged_subjects", "seed", "data.subjects"} for study in found["seeds"]
    )
    size = {"name", "averaged_subjects", "rows", "data.subjects", "data.validation_segments"}
    assert all(changed(real, study) == size and study.data.subjects == (1,) for study in found["size"])
    assert all(load_profile(path) for path in studies.write_studies(real))
    with pytest.raises(ValueError, match="real data"):
        studies.signal_study(real)


def test_few_training_segments_make_few_studies(demo):
    held_out = studies._derived(demo, "few", {"data": {"validation_segments": list(range(3, 19))}})
    assert [study.name for study in studies.size_studies(held_out)] == ["few-size1"]
    one = studies._derived(demo, "one", {"data": {"validation_segments": list(range(2, 19))}})
    assert studies.size_studies(one) == []


def test_a_file_is_written_when_its_content_has_changed(demo):
    path = studies.write_studies(demo)[0]
    study = studies.seed_studies(demo)[0]
    before = path.stat().st_ino
    studies.write_studies(demo)
    assert path.stat().st_ino == before and studies.is_current(demo, study)
    other = studies._derived(demo, "demo", {"stage_two": demo.stage_two.model_dump() | {"steps": 3}})
    study = studies.seed_studies(other)[0]
    assert not studies.is_current(other, study)
    studies.write_studies(other)
    assert path.stat().st_ino != before and load_profile(path).stage_two.steps == 3


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_a_study_is_given_what_it_would_make_again(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    profile = load_profile(name)
    studies.write_studies(profile)  # nothing is there yet
    for folder in ("stimuli", "targets", "pretraining"):
        save_arrays(paths.work(profile, folder), {"values": np.arange(5)}, {"folder": folder})
    (paths.work(profile, "pretraining") / "curve.csv").write_text("step\n")
    for _ in range(2):
        studies.write_studies(profile)
    expected = {"seeds": set() if profile.simulated else {"stimuli", "targets"}, "signal": set()}
    expected["size"] = {"stimuli", "targets", "pretraining"}
    for kind, found in studies.studies(profile).items():
        for study in found:
            there = {path.name for path in paths.work(study).glob("*")}
            assert there == expected[kind], study.name
            for folder in there:
                own, given = (paths.work(p, folder) for p in (profile, study))
                assert finished(given, {"folder": folder})
                assert (own / "values.npy").samefile(given / "values.npy")
    study = studies.size_studies(profile)[0]
    given = paths.work(study, "pretraining")
    assert not (given / "curve.csv").samefile(paths.work(profile, "pretraining", "curve.csv"))
    save_arrays(given, {"values": np.zeros(5)}, {})  # another result in the study leaves the profile's as it was
    assert load_arrays(paths.work(profile, "pretraining"))["values"].tolist() == [0, 1, 2, 3, 4]


def test_the_command_prints_the_files_and_says_what_is_wrong(demo, capsys):
    studies.main(["demo"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(path) for path in studies.write_studies(demo)]
    studies.main(["demo", "--measure"])  # nothing has run
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no profile 'demi'"):
        studies.main(["demi"])


# --- seeds ---------------------------------------------------------------------------------------------------


def test_table_over_seeds(demo):
    assert studies.seed_table(demo) is None and studies.seed_directions(demo) is None
    values = {2024: 0.10, 2025: 0.13, 2026: 0.16}
    write_scores(demo, 1, 3, values[2024])
    assert studies.seed_table(demo) is None  # one seed
    for study in studies.seed_studies(demo):
        write_scores(study, 1, 3, values[study.seed])
    assert studies.seed_table(demo) is None  # their files say nothing of which profile made them
    studies.write_studies(demo)
    write_scores(demo, 1, 4, 0.2)  # of one seed alone
    table = studies.seed_table(demo)
    assert table[["part", "row", "metric"]].to_numpy().tolist() == [
        [part, 3, metric] for part in ("validation", "test") for metric in ("SSIM", "image", "video")
    ]
    ssim = table[table["metric"].eq("SSIM")]
    np.testing.assert_allclose(ssim[["seed 2024", "seed 2025", "seed 2026"]], [list(values.values())] * 2)
    np.testing.assert_allclose(ssim["mean"], 0.13)
    np.testing.assert_allclose(ssim["spread"], 0.03)
    low, high = stats.t.interval(0.95, 2, 0.13, 0.03 / np.sqrt(3))
    np.testing.assert_allclose(ssim[["low", "high"]], [[low, high]] * 2)
    np.testing.assert_allclose(table.loc[table["metric"].eq("video"), "mean"], 0.13 + 0.3)  # one correct class
    assert table["seeds"].eq(3).all() and not any(name.startswith("variance") for name in table)


def test_seeds_of_another_profile_do_not_count(demo):
    for profile in (demo, *studies.seed_studies(demo)):
        write_scores(profile, 1, 3, 0.1)
    studies.write_studies(demo)
    assert len(studies.seed_runs(demo)) == 3
    other = studies._derived(demo, "demo", {"sampling": demo.sampling.model_dump() | {"steps": 3}})
    assert list(studies.seed_runs(other)) == [2024] and studies.seed_table(other) is None


def test_real_seeds_share_their_clips_so_that_the_variance_splits(real):
    studies.write_studies(real)
    for k, profile in enumerate((real, *studies.seed_studies(real))):
        write_scores(profile, 1, 0, 0.1 + 0.05 * k)  # the same noise of clips in all seeds
    table = studies.seed_table(real)
    ssim = table[table["metric"].eq("SSIM") & table["part"].eq("test")].iloc[0]
    assert ssim["variance, seeds"] == pytest.approx(0.05**2)
    assert ssim["variance, clips"] == pytest.approx(0.02**2, rel=0.3)
    assert ssim["variance, rest"] == pytest.approx(0, abs=1e-12)


def test_directions_over_seeds(demo):
    """One reading that holds, one that is reversed, others that seeds contradict; seeds differ far more than rows."""
    studies.write_studies(demo)
    rng = np.random.default_rng(0)
    rows = {}
    for k, profile in enumerate((demo, *studies.seed_studies(demo))):
        base = 0.2 * k
        means = {row: base + rng.normal(0, 0.02) for row in demo.rows}
        means[0] = means[1] - 0.05 - 1e-5 * k  # row 1 beats row 0, as in the paper
        means[8] = means[1] - 0.03 - 1e-5 * k**2  # dependent noise does not help
        for row, mean in means.items():
            write_scores(profile, 1, row, mean, seed=100 * k + row)
        rows[profile.seed] = means
    table = studies.seed_directions(demo)
    assert len(table) == 2 * len(CLAIMS) and (table["paper"] > 0).all()
    test = table[table["part"].eq("test")].set_index("claim")
    assert test.loc["augmentation helps", "verdict"] == HOLDS
    assert test.loc["dependent noise, beta 0.25, helps", "verdict"] == OPPOSITE
    others = test.drop(["augmentation helps", "dependent noise, beta 0.25, helps"])
    assert others["verdict"].eq(UNCLEAR).all()
    line = test.loc["loss weights 1, 1 beat 0.5, 0.5"]
    first, second = ([rows[seed][row] for seed in rows] for row in (1, 5))
    np.testing.assert_allclose(line[["seed 2024", "seed 2025", "seed 2026"]].astype(float), np.subtract(first, second))
    assert line["p"] == pytest.approx(stats.ttest_rel(first, second).pvalue)
    low, high = stats.ttest_rel(first, second).confidence_interval()
    assert (line["low"], line["high"]) == pytest.approx((low, high))
    assert test["holm"].min() == pytest.approx(test["p"].min() * len(CLAIMS))  # the claims of a part are one family
    fig = study_figures.figure_seeds(studies.seed_table(demo), table, demo)
    left, right = fig.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == [str(row) for row in range(11)]
    assert [tick.get_text() for tick in right.get_yticklabels()] == [claim for claim, _, _ in CLAIMS]
    assert [text.get_text() for text in right.texts] == test["verdict"].tolist()
    fig.savefig(paths.ROOT / "seeds.png")


def test_a_claim_without_its_rows_is_left_out(demo):
    studies.write_studies(demo)
    for k, profile in enumerate((demo, *studies.seed_studies(demo))):
        for row in (0, 1) if k else (0, 1, 8):
            write_scores(profile, 1, row, 0.1 * row * (1 + 0.1 * k), seed=k)
    table = studies.seed_directions(demo)
    assert table["claim"].tolist() == ["augmentation helps"] * 2


# --- curves --------------------------------------------------------------------------------------------------


def made_up_measures(profile, subject):
    """Two scores by two readers, better where there is more signal and more training."""
    good = profile.simulation.signal_to_noise[profile.data.subjects.index(subject)] * len(
        studies.trained_segments(profile)
    )
    rows = [
        studies._line("object", reader, good / 10 + k / 8, 0.125, good / 10, 0.5)
        for k, reader in enumerate(studies.READERS[:2])
    ]
    return pd.DataFrame([*rows, studies._line("voxels", "one value a subject", 100 * good, np.nan)])


def test_curves_are_of_what_has_run(demo, monkeypatch):
    monkeypatch.setattr(studies, "measure", made_up_measures)
    assert studies.points(demo) == [] and studies.curves(demo) is None
    for subject in demo.data.subjects:
        write_scores(demo, subject, 10, 0.1)
    assert studies.points(demo) == [] and studies.curves(demo) is None  # the profile's own subjects alone
    study = studies.size_studies(demo)[1]
    write_scores(study, 1, 10, 0.1)
    assert studies.curves(demo) is None  # not of this profile, as far as its file tells
    studies.write_studies(demo)
    table = studies.curves(demo)
    assert table["study"].eq("size").all() and len(table) == 4 * 3
    assert table.groupby("profile")["x"].unique().map(list).to_dict() == {"demo": [14 * 160], "demo-size8": [8 * 160]}
    signal = studies.signal_study(demo)
    for subject in (2, 5):
        write_scores(signal, subject, 10, 0.1)
    table = studies.curves(demo)
    found = table[table["study"].eq("signal") & table["score"].eq("voxels")].set_index(["profile", "subject"])["x"]
    assert found["demo"].to_dict() == {1: 0.16, 2: 0.13, 3: 0.1}
    assert found["demo-signal"].to_dict() == {2: studies.SIGNALS[1], 5: studies.SIGNALS[4]}
    with pytest.raises(ValueError, match="one figure each"):
        study_figures.figure_curves(table, demo)
    for kind, label in study_figures.AXES.items():
        fig = study_figures.figure_curves(table[table["study"].eq(kind)], demo)
        assert [ax.get_xlabel() for ax in fig.axes] == [label, label]
        fig.savefig(paths.ROOT / f"{kind}.png")


def test_real_data_have_a_curve_over_training_size_alone(real, monkeypatch):
    line = studies._line("50-way image", "decoded clips", 0.2, 0.02, 0.1, 0.3)
    monkeypatch.setattr(studies, "measure", lambda *_: pd.DataFrame([line]))
    studies.write_studies(real)
    for profile in (real, *studies.size_studies(real)):
        write_scores(profile, 1, 10, 0.1)
    table = studies.curves(real)
    assert table["study"].unique().tolist() == ["size"]
    assert table["x"].tolist() == [segments * 240 for segments in (14, 6, 8, 11)]


@pytest.mark.slow
def test_a_perfect_decoder_is_measured_as_the_true_film(demo, monkeypatch):
    """Decoded clips that are the film, recordings that are the attributes: every score is at its best."""
    from nfx.data.simulator.movie import describe, film
    from nfx.data.targets import image_embeddings
    from nfx.encoder import FMRIEncoder
    from nfx.evaluation.classifiers import score_clips
    from nfx.evaluation.references import indicators, true_attributes
    from nfx.files import write_json

    few = {"train_segments": 6, "test_segments": 2, "train_volumes": 40, "test_volumes": 20, "subjects": [1]}
    changes = {"data": few | {"validation_segments": [6]}, "simulation": {"signal_to_noise": [0.1]}, "seed": 3}
    models = {name: str(Path(__file__).parents[1] / folder) for name, folder in demo.models.model_dump().items()}
    profile = studies._derived(demo, "small", changes | {"averaged_subjects": [], "models": models})
    movie = plan_movie(profile)
    write_json(paths.data_set(profile) / "truth" / "movie.json", describe(movie))
    clips = {
        part: np.concatenate(
            [film(shots, 64, 3.0).reshape(-1, 6, 64, 64, 3) for name, shots in movie.items() if kind in name]
        )
        for part, kind in (("train", "seg"), ("test", "test"))
    }
    segment = {"train": np.repeat(np.arange(1, 7), 40), "test": np.repeat([1, 2], 20)}
    arrays = {f"{part}_clips": clips[part] for part in clips} | {f"{part}_segment": segment[part] for part in clips}
    save_arrays(paths.work(profile, "stimuli"), arrays, {})
    embeddings = image_embeddings(clips["test"].reshape(-1, 64, 64, 3), models["clip"]).reshape(40, 6, -1)
    save_arrays(paths.work(profile, "targets"), {"test_image_embeddings": embeddings}, {})
    write_json(paths.work(profile, "targets", "captions.json"), [])
    rng = np.random.default_rng(0)
    fmri = {}
    for part in clips:
        shown = true_attributes(profile, part)
        levels = {"object": 8, "colour": 4, "background": 4, "motion": 4}
        signal = [indicators(shown[name].to_numpy(), count) for name, count in levels.items()]
        signal = np.concatenate([*signal, (shown[["x", "y"]] - 32) / 10], axis=1)
        fmri[f"{part}_fmri"] = (np.tile(signal, 3) + 0.1 * rng.standard_normal((len(shown), 66))).astype(np.float32)
    vertex, t = np.arange(66), np.r_[np.full(66, 9.0), np.zeros(34)]
    recorded = fmri | {f"{part}_segment": segment[part] for part in clips} | {"vertex": vertex}
    recorded |= {"reproducibility_vertex": np.arange(100), "reproducibility_t": t}
    save_arrays(paths.work(profile, "subject1"), recorded, {})
    carries = np.where(t > 0, "image", "nothing")
    share = np.r_[np.linspace(0.05, 0.3, 66), np.zeros(34)].astype(np.float32)
    truth = {"grayordinate": np.arange(100), "carries": carries, "share": share}
    save_arrays(paths.data_set(profile) / "truth" / "subject1", truth, {})
    folder = run_folder(profile, 1, 10)
    FMRIEncoder(voxels=66, **profile.encoder.model_dump()).save_pretrained(folder / "pipeline" / "fmri_encoder")
    write_manifest(folder / "pipeline", {})
    scores = score_clips(clips["test"], clips["test"], models["image_classifier"], models["video_classifier"], 0)
    labels = {"part": "test", "clip": np.arange(40), "segment": segment["test"]}
    with write_atomically(folder / "scores.csv") as path:
        pd.concat([pd.DataFrame(labels), scores], axis=1).to_csv(path, index=False)
    save_arrays(folder, {"test_decoded": clips["test"], "test_clip": np.arange(40)}, {})
    write_manifest(folder, {}, ["test_decoded.npy", "test_clip.npy", "scores.csv"])

    table = studies.measure(profile, 1).set_index(["score", "reader"])
    best = table.xs("decoded clips", level="reader")
    for name in ("object", "colour", "background", "motion", "position"):
        assert best.loc[name, "value"] == table.loc[(name, "true film"), "value"] > 0.8
        assert table.loc[(name, "ridge regression"), "value"] > 0.9
    assert best.loc["50-way image", "value"] == best.loc["50-way video", "value"] == 1
    assert table.loc[("50-way image", "ridge regression"), "value"] > 0.9
    assert best.loc["CLIP 2-way", "value"] > 0.99 and best.loc["CLIP 2-way", "chance"] == 0.5
    assert 0.5 < best.loc["SSIM above permuted pairs", "value"] < 1
    whole = table.xs("one value a subject", level="reader")["value"]
    assert whole["voxels"] == 66 and whole["voxel choice"] == 1 and -1 <= whole["attention"] <= 1
    assert len(table) == 5 * 3 + 2 * 2 + 2 + 3 and table["chance"].isna().sum() == 1
    intervals = table.dropna(subset=["low"])
    assert (intervals["low"] <= intervals["value"]).all() and (intervals["value"] <= intervals["high"]).all()

    monkeypatch.setattr(studies, "_measured", lambda *_: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(studies.measure(profile, 1).set_index(["score", "reader"]), table)
    monkeypatch.setattr(studies, "_measured", lambda *_: [studies._line("new", "decoded clips", 1.0, 0.5)])
    with write_atomically(folder / "scores.csv") as path:
        pd.DataFrame(labels).to_csv(path, index=False)
    write_manifest(folder, {}, ["test_decoded.npy", "test_clip.npy", "scores.csv"])
    assert studies.measure(profile, 1)["score"].tolist() == ["new"]  # other scores, measured anew
