"""Verdicts on tables whose answers are known, made by the functions that make the real ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfx.attention.statistics import compare_networks, compare_stages
from nfx.evaluation import ablations, published
from nfx.evaluation.claims import HOLDS, NOT_RUN, OPPOSITE, UNCLEAR, claims, verdict
from nfx.evaluation.comparisons import compare
from nfx.profile import load_profile

DEMO, QUOTED = load_profile("demo"), published()
SEGMENT = np.repeat([1, 2, 3, 4, 5], 40)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape)


def found(name: str, table: pd.DataFrame, words: str) -> list:
    """The lines of the answer, by one table, whose statement holds `words`."""
    return [line for line in claims({name: table}, QUOTED) if words in line.statement]


def scores(mean: float, seed: int) -> pd.DataFrame:
    columns = {name: mean + noise(seed, len(SEGMENT)) for name in ("ssim", "image_top1_1", "video_top1_1")}
    columns["video_top1_3"] = columns["video_top1_1"]
    return pd.DataFrame({"clip": np.arange(len(SEGMENT)), "segment": SEGMENT} | columns)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.1, 0.2, None, HOLDS),
        (0.1, 0.2, 0.01, HOLDS),
        (0.1, 0.2, 0.05, UNCLEAR),
        (-0.2, -0.1, 0.01, OPPOSITE),
        (-0.1, 0.2, 0.01, UNCLEAR),
        (0.0, 0.2, None, UNCLEAR),
        (np.nan, np.nan, None, UNCLEAR),
        (0.1, 0.2, np.nan, UNCLEAR),
    ],
)
def test_verdict_needs_the_interval_and_the_p_value(low, high, p, expected):
    assert verdict(low, high, p) == expected


def test_without_tables_nothing_has_run_and_everything_is_quoted():
    lines = claims({}, QUOTED)
    assert {line.verdict for line in lines} == {NOT_RUN}
    assert all(line.quoted and line.section and not line.ours for line in lines)
    of_table_1 = [line for line in lines if line.section == "Table 1"]
    assert [line.quoted for line in of_table_1][:2] == ["+0.033 (0.204, 0.171)", "+0.020 (0.204, 0.184)"]
    assert len(of_table_1) == 2 * len(ablations.CLAIMS)  # by validation and by test clips


@pytest.mark.parametrize(("mean", "expected"), [(0.4, HOLDS), (0.2, OPPOSITE), (0.3, UNCLEAR)])
def test_gain_over_mind_video(mean, expected):
    decoded = {"row 10": mean + noise(1, 200), "after Chen 2023": 0.3 + noise(2, 200), "row 0": np.zeros(200)}
    pairs = [("row 10", "row 0"), ("row 10", "after Chen 2023")]
    table = compare(decoded, SEGMENT, 10, pairs, subject=1, metric="SSIM")
    (first, second, third) = found("comparisons", table, "SSIM is higher")
    assert (first.verdict, second.verdict, third.verdict) == (expected, NOT_RUN, NOT_RUN)
    assert ("+0.1" in first.ours) == (expected == HOLDS)
    assert [line.verdict for line in found("comparisons", table, "50-way image")] == [NOT_RUN]


@pytest.mark.parametrize(("averaged", "expected"), [(0.2, HOLDS), (0.4, OPPOSITE), (0.3, UNCLEAR)])
def test_time_averaged_holds_where_the_accuracy_falls(averaged, expected):
    table = ablations.averaged_table({2: scores(0.3, 1)}, {2: scores(averaged, 2)}, QUOTED)
    of_two, of_three = found("time_averaged", table, "time-averaged")
    assert (of_two.verdict, of_three.verdict) == (expected, NOT_RUN)
    assert of_two.quoted == "0.187 ± 0.015 to 0.157 ± 0.013 (\u221216.0\u00a0%)"


@pytest.mark.parametrize("part", ["validation", "test"])
def test_each_direction_of_table_1(part):
    rows = {row: scores(0.2 if row == 1 else 0.1, row) for row in range(11)}
    table = ablations.direction_table(rows, {row: DEMO.row(row).paper_ssim for row in rows})
    by_row = {line.statement: line.verdict for line in found(f"directions_{part}", table, "(row ")
              if f"{part} clips" in line.topic}  # fmt: skip
    assert by_row["augmentation helps (row 1 over row 0)"] == HOLDS
    assert by_row["dependent noise, beta 0.25, helps (row 8 over row 1)"] == OPPOSITE
    assert by_row["beta 0.25 beats 0.5 (row 8 over row 9)"] == UNCLEAR
    assert [*by_row.values()].count(NOT_RUN) == 0


def test_seeds_count_more_than_one_run_and_each_part_is_judged_by_its_own():
    claim = ablations.CLAIMS[0][0]
    one_run = pd.DataFrame([{"claim": claim, "ours": 0.1, "low": 0.05, "high": 0.15}])
    line = {"claim": claim, "mean": -0.1, "low": -0.2, "high": -0.05, "holm": 0.01}
    seeds = pd.DataFrame([{**line, "part": "validation"}, {**line, "part": "test", "low": 0.05, "high": 0.2}])
    tables = {"directions_validation": one_run, "seed_directions": seeds}
    lines = [line for line in claims(tables, QUOTED) if line.section == "Table 1"]
    first, test = (line for line in lines if line.statement.startswith(claim))
    assert (first.verdict, first.decided_by) == (OPPOSITE, "seed_directions") and "seeds" in first.topic
    assert "test clips" in test.topic and test.verdict == HOLDS
    assert [line.verdict for line in lines].count(NOT_RUN) == len(lines) - 2


def stages(change: float, name: str = "total") -> pd.DataFrame:
    """Tests between the stages; each stage lies `change` above the one before."""
    table = compare_stages(
        {stage: pd.DataFrame({name: k * change + noise(k, 20)})
         for k, stage in enumerate(("pre-trained", "contrastive", "full"))}
    )  # fmt: skip
    return table.assign(subject=1)


@pytest.mark.parametrize(("change", "expected"), [(-0.1, HOLDS), (0.1, OPPOSITE), (0.0, UNCLEAR)])
def test_total_attention_holds_where_it_falls(change, expected):
    (line,) = found("attention_total", stages(change), "total sum")
    assert line.verdict == expected and "pre-trained to full" in line.statement


def test_a_change_whose_interval_holds_zero_is_unclear_whatever_the_permutations_say():
    (line,) = found("attention_total", stages(0.0).assign(holm_permutation=0.001), "total sum")
    assert line.verdict == UNCLEAR


def test_interval_of_a_change_is_that_of_the_t_test():
    x, y = noise(1, 20), 0.1 + noise(2, 20)
    table = compare_stages({"pre-trained": pd.DataFrame({"total": x}), "full": pd.DataFrame({"total": y})})
    (line,) = found("attention_total", table.assign(subject=1), "total sum")
    low, high = stats.ttest_rel(y, x).confidence_interval()
    assert f"[{low:+.4f},\u00a0{high:+.4f}]" in line.ours


@pytest.mark.parametrize(
    ("change", "spin", "shift", "expected"),
    [
        (0.1, 0.01, 0.01, HOLDS),
        (0.1, 0.20, 0.01, UNCLEAR),
        (0.1, 0.01, 0.20, UNCLEAR),
        (0.1, np.nan, 0.01, UNCLEAR),
        (-0.1, 0.01, 0.01, OPPOSITE),
    ],
)
def test_semantic_shift_must_remain_under_the_spatial_nulls(change, spin, shift, expected):
    table = stages(change, "higher visual share").assign(holm_spin=spin, holm_shift=shift)
    after, over_all = found("attention_semantic_trend", table, "higher visual regions")
    assert (after.verdict, over_all.verdict) == (expected, expected)
    assert "to contrastive" in after.statement and "to full" in over_all.statement


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, HOLDS),
        ({"holm_spin": 0.2}, UNCLEAR),
        ({"holm_spin": 0.2, "largest_spin": 0.01}, HOLDS),
        ({"holm_spin": 0.01, "holm_shift": 0.2}, UNCLEAR),
    ],
)
def test_networks_differ_where_a_pair_does_under_every_test(columns, expected):
    means = pd.DataFrame(noise(1, 20, 2) + [0.0, 0.5], columns=["VisCent", "DefaultA"])
    table = compare_networks(means).assign(subject=1, **columns)
    (line,) = found("attention_networks", table, "networks differ")
    assert line.verdict == expected and "of 1 pairs: 1 over blocks" in line.ours


def test_different_pairs_under_different_tests_do_not_add_up():
    means = pd.DataFrame(noise(1, 20, 3) + [0.0, 0.5, 0.5], columns=["VisCent", "VisPeri", "DefaultA"])
    table = compare_networks(means).assign(subject=1)
    table["holm_spin"] = np.where(table["holm_permutation"] < 0.05, 0.5, 0.01)
    (line,) = found("attention_networks", table, "networks differ")
    assert line.verdict == UNCLEAR and "0 under all" in line.ours


def test_categories_by_region_and_why_one_was_not_tested():
    row = {"subject": 1, "first": "cat", "second": "food", "df": 20.0, "permutation_p": 0.001, "why not": np.nan}
    table = pd.DataFrame(
        [
            row | {"region": "fusiform", "difference": 0.02, "t": 5.0},
            row | {"region": "body area", "difference": np.nan, "t": np.nan, "why not": "no clip of person"},
        ]
    )
    cat, person = found("attention_categories", table, ": cat above food")
    assert (cat.verdict, person.verdict, person.ours) == (HOLDS, NOT_RUN, "no clip of person")
    (cat, _) = found("attention_categories", table.assign(holm_permutation=0.06), ": cat above food")
    assert cat.verdict == UNCLEAR  # the corrected p-value counts
    (cat, _) = found("attention_categories", table.assign(holm_spin=0.01, holm_shift=0.5), ": cat above food")
    assert cat.ours.endswith("not more than other regions")


@pytest.mark.parametrize(("overlap", "expected"), [(0.56, HOLDS), (1.0, OPPOSITE), (np.nan, NOT_RUN)])
def test_overlap_of_the_categories(overlap, expected):
    table = pd.DataFrame({"id": ["category_overlap"], "ours": [overlap]})
    (line,) = found("numbers_in_text", table, "categories")
    assert line.verdict == expected


@pytest.mark.parametrize("name", ["comparisons", "time_averaged", "directions_validation", "attention_networks"])
def test_a_table_without_the_columns_that_decide_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name}.csv has no column .*run the notebook again"):
        claims({name: pd.DataFrame({"something": [1.0]})}, QUOTED)
