"""Tables of notebooks 04 and 05 on made-up scores whose answers are known."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

from nfx.evaluation import ablations, classifiers, controls, panels, published, tables
from nfx.profile import load_profile

DEMO = load_profile("demo")
SEGMENT = np.repeat(np.arange(1, 7), 20)


def made_up(mean: float, seed: int = 0, part: str = "test") -> pd.DataFrame:
    """Scores of 120 clips in 6 segments, around `mean`."""
    noise = np.random.default_rng(seed).normal(0, 0.02, len(SEGMENT))
    scores = {column: mean + noise - noise.mean() for column in tables.METRICS}
    return pd.DataFrame({"part": part, "clip": np.arange(len(SEGMENT)), "segment": SEGMENT} | scores)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([40] * 5, 10), ([240] * 5, 60), ([15] * 4, 7), ([8, 8], 4), ([1, 30], 1)],
)
def test_block_length(counts, expected):
    assert tables.block_length(np.repeat(np.arange(len(counts)), counts)) == expected


def test_score_table_holds_means_intervals_and_chance():
    table = tables.score_table(made_up(0.3), DEMO.evaluation, subject=1)
    assert list(table["metric"]) == ["SSIM", "image", "image", "video", "video"]
    np.testing.assert_allclose(table["mean"], 0.3)
    assert (table["low"] < 0.3).all() and (table["high"] > 0.3).all()
    assert table["chance"].isna().tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(table["chance"].dropna(), [1 / 50, 3 / 52, 1 / 50, 3 / 52])


def test_readable_has_a_column_for_each_test_in_order():
    both = [tables.score_table(made_up(mean), DEMO.evaluation, subject=k) for k, mean in ((2, 0.4), (1, 0.2))]
    wide = tables.readable(pd.concat(both), "subject")
    assert list(wide.index) == [2, 1]  # as the table has them
    tests = [f"{test}, {correct} correct" for test in ("image", "video") for correct in (1, 3)]
    assert list(wide.columns) == ["SSIM", *tests]
    assert wide.loc[1, "SSIM"].startswith("0.200 [0.1") and wide.loc[2, "SSIM"].startswith("0.400 [0.3")


def test_of_part_keeps_one_part_and_names_what_is_missing():
    both = pd.concat([made_up(0.1, part="validation"), made_up(0.2)])
    assert tables.of_part(both, "validation")["ssim"].mean() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no clip of part 'train'"):
        tables.of_part(both, "train")


def test_row_columns_take_one_correct_class():
    scores = tables.score_table(made_up(0.3), DEMO.evaluation, part="test", row=4)
    columns = tables.row_columns(scores, DEMO.evaluation)
    assert set(columns) == {4}
    assert list(columns[4]) == ["SSIM, test", "50-way image, test", "50-way video, test"]


def test_shuffled_table_tells_a_decoder_from_chance():
    rng = np.random.default_rng(0)
    truth = {"image": rng.normal(size=(120, 2, 70)), "video": rng.normal(size=(120, 70))}
    good = {name: logits + 0.3 * rng.normal(size=logits.shape) for name, logits in truth.items()}
    blind = {name: rng.normal(size=logits.shape) for name, logits in truth.items()}
    found = tables.shuffled_table(truth, good, SEGMENT, DEMO.evaluation, subject=1)
    assert (found["p"] < 0.01).all() and (found["expected"] > 0.5).all()
    np.testing.assert_allclose(found["shuffled"], found["chance"], atol=0.02)
    assert (tables.shuffled_table(truth, blind, SEGMENT, DEMO.evaluation)["expected"] < 0.15).all()


def test_ssim_controls_of_a_perfect_decoder(bars):
    made = bars(controls)
    truth = np.random.default_rng(0).integers(0, 256, (24, 2, 8, 8, 3), dtype=np.uint8)
    references = tables.ssim_references(truth, truth)
    row = tables.ssim_controls(truth, truth, np.repeat([1, 2, 3, 4], 6), references, subject=1)
    assert row["SSIM"] == pytest.approx(1) and row["p"] < 0.01
    assert abs(row["permuted pairs"]) < 0.3
    assert row["above mid-grey frame"] and row["above training-mean frame"]
    assert [(bar.n, bar.total) for bar in made] == [(8**2, 8**2)]  # eight blocks of three clips


def test_categories_are_those_of_one_call_and_every_frame_is_counted(monkeypatch, bars):
    def logits(frames, model, cache):
        assert model == DEMO.models.image_classifier and len(frames) <= 4
        return np.eye(256)[frames[:, 0, 0, 0]]

    made = bars(tables)
    monkeypatch.setattr(classifiers, "image_logits", logits)
    monkeypatch.setattr(tables, "JUDGED_AT_ONCE", 4)
    clips = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 8, 3), dtype=np.uint8)
    assert tables.categories(clips, DEMO) == set(clips[:, 2, 0, 0, 0].tolist())
    assert [(bar.n, bar.total) for bar in made] == [(10, 10)]


def test_parts_of_frames_are_whole_batches_of_the_classifier():
    batch = inspect.signature(classifiers.image_logits).parameters["batch_size"].default
    assert tables.JUDGED_AT_ONCE % batch == 0


def test_paired_difference_is_that_of_the_same_clips():
    first, second = made_up(0.31, seed=1), made_up(0.30, seed=1)
    found = ablations.paired(first, second, "ssim")
    # The noise is the same in both: pairing removes it all.
    assert found.difference == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01) and found.high == pytest.approx(0.01) and found.p < 0.01
    with pytest.raises(ValueError, match="different clips"):
        ablations.paired(first, second.assign(clip=second["clip"] + 1), "ssim")


def test_directions_agree_with_themselves_and_not_with_their_reverse():
    paper = {row: line.paper_ssim for row, line in DEMO.rows.items()}
    same = ablations.direction_table({row: made_up(value, seed=row) for row, value in paper.items()}, paper)
    np.testing.assert_allclose(same["ours"], same["paper"])
    assert (same["paper"] > 0).all()  # every claim is what the paper's numbers say
    assert (same["verdict"] == "holds").sum() >= 8  # the smallest of the paper's differences drown in the made-up noise
    reverse = ablations.direction_table({row: made_up(1 - value, seed=row) for row, value in paper.items()}, paper)
    assert (reverse["verdict"] == "does not hold").sum() >= 8 and (reverse["ours"] < 0).all()
    assert ablations.verdicts(same)[0].startswith("12 of the paper's 12")


def test_equal_rows_are_not_told_apart():
    paper = {row: line.paper_ssim for row, line in DEMO.rows.items()}
    rows = {row: made_up(0.2, seed=row) for row in paper}
    assert (ablations.direction_table(rows, paper)["verdict"] == "cannot be told apart").all()


def test_rows_are_compared_with_one_of_them():
    table = ablations.row_comparisons({0: made_up(0.2), 1: made_up(0.25), 2: made_up(0.2)})
    assert set(zip(table["metric"], table["row"], strict=True)) == {
        (m, r) for m in ("SSIM", "image", "video") for r in (1, 2)
    }
    np.testing.assert_allclose(table.loc[table["row"].eq(1), "difference"], 0.05)
    assert (table.loc[table["row"].eq(1), "holm"] < 0.05).all() and (table.loc[table["row"].eq(2), "holm"] == 1).all()


def test_row_groups_are_the_rows_of_the_claims():
    assert {row for rows in ablations.ROW_GROUPS.values() for row in rows} == set(DEMO.rows)
    assert {row for _, *rows in ablations.CLAIMS for row in rows} == set(DEMO.rows)


def test_averaged_table_quotes_the_paper():
    full, averaged = {2: made_up(0.4)}, {2: made_up(0.3)}
    table = ablations.averaged_table(full, averaged, published())
    one = table.iloc[0]
    assert (one["full"], one["averaged"]) == (pytest.approx(0.4), pytest.approx(0.3))
    assert one["difference"] == pytest.approx(-0.1) and one["percent"] == pytest.approx(-25)
    assert (one["paper, full"], one["paper, averaged"]) == (0.187, 0.157)


def test_text_table_says_what_is_ours_and_where_the_rest_is():
    scores = pd.concat([tables.score_table(made_up(0.3), DEMO.evaluation, subject=k) for k in (1, 2, 3)])
    table = tables.text_table(scores, 0.2, 0.5, published(), DEMO)
    assert table.loc["neuralflix_ssim_2", "ours"] == pytest.approx(0.3)
    assert table.loc["gain_over_row_0", "ours"] == pytest.approx(50)
    assert table.loc["gain_over_row_0", "paper"] == "31.6"
    assert table.loc["category_overlap", "ours"] == 0.5
    assert table.loc["averaged_video_50way_2", "where"] == "time_averaged"
    assert np.isnan(table.loc["neuralflix_gain_1", "ours"])  # over MinD-Video, which has not been run


def test_clips_are_chosen_by_place_alone():
    assert tables.clips_by_rule(100, 4).tolist() == [12, 37, 62, 87]
    assert tables.clips_by_rule(5, 5, 0.0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="expected 1 to 3 clips"):
        tables.clips_by_rule(3, 4)


def test_titles_are_cut():
    assert tables.short_captions(["a red cat", "b" * 60], [0, 1], 20) == ["0: a red cat", "1: " + "b" * 16 + "…"]


def test_bars_of_figure_2_keep_controls_apart():
    scores = tables.score_table(made_up(0.3), DEMO.evaluation, subject=1, method="row 10")
    control = {"subject": 1, "permuted pairs": 0.1, "mid-grey frame": 0.4, "training-mean frame": 0.5}
    bars = panels.ssim_bars(scores, [control])
    assert bars["method"].str.startswith("control: ").sum() == 3 and len(bars) == 4
    accuracy = panels.accuracy_bars(scores)
    assert list(accuracy["metric"]) == ["image", "video"] and set(accuracy["method"]) == {"row 10"}


def test_listing_finds_all_formats_and_refuses_what_is_not_there(tmp_path, monkeypatch):
    from nfx import paths

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    folder = paths.figures(DEMO)
    folder.mkdir(parents=True)
    for name in ("figure_2.png", "figure_2.pdf", "figure_22.png"):
        (folder / name).write_bytes(b"x")
    listing = tables.write_listing(DEMO, "04_evaluation", [folder / "figure_2.png"])
    assert listing == {"outputs": ["figure_2.pdf", "figure_2.png"]}
    assert (folder / "04_evaluation.json").is_file()
    with pytest.raises(FileNotFoundError, match="figure_9.png"):
        tables.write_listing(DEMO, "04_evaluation", [folder / "figure_9.png"])


def test_a_saved_figure_is_shown_small_and_once(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    from PIL import Image

    from nfx.plots import show_saved

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    Image.new("RGBA", (400, 200), "red").save(tmp_path / "figure.png")
    plt.figure()
    show_saved(tmp_path / "figure.png", width=100)
    assert len(shown) == 1 and shown[0].data[:2] == b"\xff\xd8"  # a JPEG
    assert not plt.get_fignums()
