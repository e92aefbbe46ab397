import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from nfx.attention import NETWORKS  # noqa: E402
from nfx.attention import figures as attention_figures  # noqa: E402
from nfx.attention.statistics import compare_stages  # noqa: E402
from nfx.evaluation import figures, n_way_chance, published  # noqa: E402
from nfx.profile import load_profile  # noqa: E402


def clips(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 6, 8, 8, 3), dtype=np.uint8)


def texts(fig):
    return " ".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


def test_figure_1():
    tokens = np.random.default_rng(0).standard_normal((2, 5, 8))
    fig = figures.figure_1(tokens, tokens * 0, tokens, {0.25: np.zeros((6, 4, 4)), 0.75: np.zeros((6, 4, 4))})
    images = [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
    assert len(images) == 2 * 3 + 2 * 6
    np.testing.assert_array_equal(images[0], tokens[0])
    assert all(word in texts(fig) for word in ("L_{spa}", "VAE", "spatial masking"))
    with pytest.raises(ValueError, match="tokens"):
        figures.figure_1(tokens, tokens[:, :2], tokens, {0.5: np.zeros((6, 4, 4))})


def test_figure_2_keeps_published_numbers_apart():
    ours = [
        {"subject": s, "method": m, "mean": 0.3, "low": 0.2, "high": 0.4} for s in (1, 2) for m in ("row 10", "row 0")
    ]
    ours += [{"subject": s, "method": "control: mid-grey", "mean": 0.5, "low": np.nan, "high": np.nan} for s in (1, 2)]
    accuracy = [
        {"subject": s, "method": "row 10", "metric": m, "mean": 0.1, "low": 0.05, "high": 0.2}
        for s in (1, 2)
        for m in ("image", "video")
    ]
    fig = figures.figure_2(pd.DataFrame(ours), pd.DataFrame(accuracy), published(), n_way_chance(50, 1, 1), True)
    measured, quoted = fig.axes[0], fig.axes[1]
    assert {bar.get_height() for bar in measured.patches} == {0.3}
    assert all(bar.get_hatch() is None and bar.get_fill() for bar in measured.patches)
    assert all(bar.get_hatch() and not bar.get_fill() for bar in quoted.patches)
    assert sorted(bar.get_height() for bar in quoted.patches) == [0.171, 0.186, 0.188, 0.211, 0.224, 0.225]
    assert "simulated" in measured.get_title() and "quoted (real data)" in quoted.get_title()
    assert "chance 0.020" in texts(fig)
    heights = {bar.get_height() for bar in fig.axes[4].patches}
    assert heights == {0.187, 0.195, 0.157, 0.158}


def test_frame_grids():
    rows = {"truth": clips(), "ours": clips(), "row 0": clips()}
    for draw in (figures.figure_3, figures.figure_4):
        assert sum(bool(ax.images) for ax in draw(rows, ["a", "b"]).axes) == 6
    fig = figures.figure_5(clips(), {1: clips(), 2: clips()})
    assert "subject 2" in texts(fig)
    fig = figures.figure_7({1: clips(), 3: clips(4)}, {1: clips(), 3: clips(4)})
    assert "Subject 3" in texts(fig) and sum(bool(ax.images) for ax in fig.axes) == 12
    with pytest.raises(ValueError, match="same"):
        figures.figure_7({1: clips()}, {2: clips()})


def test_table_1_and_its_figure():
    rows = {row: parameters.model_dump() for row, parameters in load_profile("demo").rows.items()}
    table = figures.table_1(rows, {0: {"SSIM, validation": 0.2}, 8: {"SSIM, validation": 0.3, "SSIM, test": 0.1}})
    assert table.index.tolist() == list(range(11)) and table.loc[0, "dependent noise ratio"] == "off"
    assert table.loc[8, "SSIM, validation"] == 0.3 and np.isnan(table.loc[1, "SSIM, validation"])
    assert table["SSIM, paper (quoted)"].tolist()[:2] == [0.171, 0.204]
    drawn = pd.DataFrame({"mean": 0.2, "low": 0.1, "high": 0.3, "paper_ssim": table["SSIM, paper (quoted)"]})
    fig = figures.figure_ablations(drawn, simulated=True)
    assert "simulated" in fig.axes[0].get_title() and fig.axes[1].get_title() == "quoted (real data)"


def test_numbers_in_text():
    table = figures.numbers_in_text({"neuralflix_ssim_1": 0.3, "category_overlap": 0.5}, published())
    assert table.loc["neuralflix_ssim_1", ["paper", "ours", "source"]].tolist() == ["0.225", 0.3, "Section 5.1"]
    assert table.loc["averaged_video_50way_2", "paper"] == "0.157 ± 0.013"
    assert table.loc["total_attention_p", "paper"] == "< 0.05" and np.isnan(table.loc["total_attention_p", "ours"])
    assert not table.index.str.startswith("table1").any()
    with pytest.raises(ValueError, match="made_up"):
        figures.numbers_in_text({"made_up": 1}, published())


def test_percent_gain_of_the_abstract():
    assert figures.percent_gain(0.225, 0.186) == pytest.approx(20.97, abs=0.01)
    assert figures.percent_gain(0.224, 0.171) == pytest.approx(31.00, abs=0.01)
    with pytest.raises(ValueError, match="baseline"):
        figures.percent_gain(1, 0)


def test_fill_nearest_keeps_hemispheres_apart():
    left, cortex = attention_figures.LEFT, attention_figures.CORTEX
    values = np.full(cortex, np.nan)
    values[[3, 20_000]], values[left + 50] = [1.0, 2.0], 9.0
    wanted = np.zeros(cortex, bool)
    wanted[[3, 4, 20_000, left + 3, left + 20_000]] = True
    filled = attention_figures.fill_nearest(values, wanted)
    assert filled[[3, 20_000]].tolist() == [1, 2] and filled[4] in (1, 2)
    assert filled[[left + 3, left + 20_000]].tolist() == [9, 9]
    assert np.isnan(filled[~wanted]).all()
    values[left:] = np.nan
    assert np.isnan(attention_figures.fill_nearest(values, wanted)[left:]).all()


def test_colour_limits_and_words():
    assert attention_figures.colour_limits([np.array([np.nan, 0.0, 1.0])]) == pytest.approx((0.02, 0.98))
    with pytest.raises(ValueError, match="no value"):
        attention_figures.colour_limits([np.array([np.nan])])
    assert [attention_figures.stars(p) for p in (0.0001, 0.005, 0.02, 0.3)] == ["***", "**", "*", "n.s."]
    assert attention_figures.p_text(0.0001) == "p < 0.001" and attention_figures.p_text(0.25) == "p = 0.25"


def test_figure_trend_shows_each_subjects_intervals_and_three_p_values():
    shares = pd.DataFrame({"stage": ["a", "b"], "share": [0.2, 0.3], "low": [0.1, 0.28], "high": [0.25, 0.31]})
    tests = pd.DataFrame({"holm_permutation": [0.9, 0.0001], "holm_spin": [0.9, 0.03], "holm_shift": [0.9, 0.2]})
    shares = {1: shares.assign(even=0.15), 3: shares.assign(even=0.4)}
    fig = attention_figures.figure_trend(shares, {1: tests, 3: tests})
    assert [ax.get_title().splitlines()[0] for ax in fig.axes] == [f"subject {k}, first to last, Holm" for k in (1, 3)]
    assert all(word in fig.axes[1].get_title() for word in ("blocks p < 0.001", "spins p = 0.030", "shifts p = 0.20"))
    line, _, (bars,) = fig.axes[0].containers[0]
    assert line.get_ydata().tolist() == [0.2, 0.3]
    np.testing.assert_allclose([path[:, 1] for path in bars.get_segments()], [[0.1, 0.25], [0.28, 0.31]])
    assert fig.axes[1].lines[0].get_ydata()[0] == 0.4


def test_figure_total():
    fig = attention_figures.figure_total({"pre-trained": np.ones(4), "full": np.zeros(4)}, p=0.01)
    assert len(fig.axes[0].lines) == 5 and "0.010" in fig.axes[0].get_title()


@pytest.mark.slow
def test_cortex_shows_a_planted_patch_in_colour():
    values = np.full(attention_figures.CORTEX, np.nan)
    plain = attention_figures.cortex_image(values + np.nan, "left", "lateral", (0, 1), inches=1)
    values[:9000] = 1
    painted = attention_figures.cortex_image(values, "left", "lateral", (0, 1), inches=1).astype(int)
    red = (painted[..., 0] - painted[..., 2] > 60).sum()
    assert red > 50 and (np.ptp(plain.astype(int), axis=-1) < 10).all()


@pytest.mark.slow
def test_figure_6_is_complete(monkeypatch, bars):
    made = bars(attention_figures)
    rng = np.random.default_rng(0)
    seen = []

    def picture(values, hemisphere, view, limits):
        seen.append((hemisphere, view, int((~np.isnan(values)).sum())))
        return np.zeros((4, 6, 3), np.uint8)

    monkeypatch.setattr(attention_figures, "cortex_image", picture)
    analysed = np.zeros(attention_figures.CORTEX, bool)
    analysed[::100] = True
    values = np.where(analysed, rng.random(analysed.shape), np.nan)
    stages = dict.fromkeys(("pre-trained", "contrastive", "fully trained"), values)
    network = {s: pd.DataFrame(k + rng.random((9, 5)), columns=list(NETWORKS)) for k, s in enumerate(stages)}
    categories = {"fusiform": {"cat": values, "burger": values}, "body area": {"person": values, "airplane": values}}
    fig = attention_figures.figure_6(
        stages, stages, network, compare_stages(network), categories, {"fusiform": 0.01}, analysed
    )
    words = texts(fig)
    assert all(word in words for word in ("cat", "airplane", "DefaultA", "***", "nearest", "p = 0.010"))
    assert len(seen) == 12 + 12 + 8 and sum(view == "ventral" for _, view, _ in seen) == 4
    assert [(bar.n, bar.total) for bar in made] == [(len(seen), len(seen))]
    assert {count for *_, count in seen} == {analysed.sum()}


def test_figure_6_flat_draws_each_map_once_over_both_hemispheres(monkeypatch):
    from nfx import flatmaps

    values = np.full(attention_figures.CORTEX, np.nan)
    values[::50] = np.arange(len(values[::50]))
    categories = {"fusiform": {"cat": values, "burger": values}, "body area": {"person": values, "airplane": values}}
    fig = attention_figures.figure_6_flat({"before": values, "after": values * 2}, {"last": values}, categories)
    drawn = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in drawn] == ["before", "after", "last", "cat", "burger", "person", "airplane"]
    pictures = [np.asarray(ax.images[0].get_array()) for ax in drawn]
    assert {picture.shape[:2] for picture in pictures} == {flatmaps.flat_sheet().nearest.shape}
    assert (pictures[0] != pictures[1]).any() and (pictures[3] == pictures[4]).all()  # one scale for a panel
    assert "fusiform" in texts(fig) and "low" in texts(fig)


def test_figure_noise_has_a_row_for_each_beta():
    fig = figures.figure_noise({0.0: np.zeros((6, 8, 8)), 0.5: np.ones((6, 8, 8))})
    assert len([ax for ax in fig.axes if ax.images]) == 12 and "0.5" in texts(fig)


def test_best_median_and_worst():
    assert figures.best_median_worst(np.array([0.2, np.nan, 0.9, 0.1, 0.5, 0.9])) == {
        "best": 2, "median": 4, "worst": 3
    }  # fmt: skip
    assert figures.best_median_worst(np.array([0.0, 0.0, 0.0, 1.0])) == {"best": 3, "median": 0, "worst": 0}
    with pytest.raises(ValueError, match="three at least"):
        figures.best_median_worst(np.array([1.0, np.nan, 0.0]))


def test_figure_clip_scores_shows_the_clips_that_it_marks():
    score, truth = np.array([0.1, 0.8, np.nan, 0.3]), clips(4)
    fig = figures.figure_clip_scores(score, truth, 255 - truth, "a score", 0.25, ["a", "b", "c", "d"])
    wanted = ("best, score 0.8; b", "median, score 0.3; d", "worst, score 0.1; a", "chance 0.25", "mean 0.4")
    assert all(word in texts(fig) for word in wanted)
    strips = [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
    from nfx.plots import film_strip

    for strip, expected in zip(strips, (1, 1, 3, 3, 0, 0), strict=True):
        assert (strip == film_strip(truth[expected])).all() or (strip == film_strip(255 - truth[expected])).all()
    curve = fig.axes[0].lines[0].get_ydata()
    assert curve.tolist() == [0.8, 0.3, 0.1]
    with pytest.raises(ValueError, match="as many"):
        figures.figure_clip_scores(score[:2], truth, truth, "a score")
