"""What the paper states, beside what the tables of notebooks 04-06 allow to say of it (Sections 4.2 and 5).

One line a statement and subject: the quoted value, ours with its interval, and a verdict. The verdict follows from the
tables by the rules of `verdict`, `RULES` tells them in words, and none is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from nfx.evaluation.comparisons import LEVEL

NO_BREAK = "\u00a0"  # a space at which no line is broken
HOLDS, OPPOSITE, UNCLEAR, NOT_RUN = "holds", "does not hold", "cannot be told apart", "not run"
DIRECTIONS = {  # simulated data can agree with the paper in a direction, never in a value
    HOLDS: "agrees in direction",
    OPPOSITE: "opposite in direction",
    UNCLEAR: UNCLEAR,
    NOT_RUN: NOT_RUN,
}
RULES = (
    f"'{HOLDS}': the 95 % interval of the difference lies wholly on the side that the paper states and, where the "
    f"table has a p-value (Holm-corrected where the table corrects it), that is below {LEVEL}.",
    f"'{OPPOSITE}': the same, on the other side.",
    f"'{UNCLEAR}': the interval holds 0, or the p-value is {LEVEL} or more. This is no evidence of equality.",
    f"'{NOT_RUN}': there is no table to decide by.",
    "Attention to networks and to higher visual regions is judged by the largest corrected p-value of three: over "
    "blocks of clips, under spins of the cortex, under shifts along the hierarchy (those that the table has). Networks "
    "are said to differ where at least one pair does under all of them.",
    "The overlap of the categories is said to be partial where it is below 1.",
    "Table 1, by the paper a validation score, is judged by validation and, beside it, by test clips: over seeds where "
    "several have run, else over the clips of one run a row, which leaves out what another training would change. With "
    "b blocks of clips the least p-value is about 2 / 2^b, and twelve directions are corrected for: of eight blocks or "
    "fewer nothing can be told.",
)
STAGES = ("pre-trained", "contrastive", "full")
SHIFT = "attention shifts towards higher visual regions (their share of it rises)"


class Claim(NamedTuple):
    """A statement of the paper for one subject, or for none; all but the verdict is text to be read."""

    topic: str
    statement: str
    subject: str
    quoted: str
    section: str
    ours: str
    verdict: str
    decided_by: str


def verdict(low: float, high: float, p: float | None = None) -> str:
    """What an interval of a difference, positive where the paper is right, and its corrected p-value allow to say.

    Parameters
    ----------
    low, high : of the 95 % interval
    p : corrected for the number of tests; None if there is no test

    Returns
    -------
    `HOLDS`, `OPPOSITE` or `UNCLEAR`; the last too where a number is missing
    """
    if not np.isfinite([low, high]).all() or (p is not None and not p < LEVEL):
        return UNCLEAR
    return HOLDS if low > 0 else OPPOSITE if high < 0 else UNCLEAR


def claims(tables: Mapping[str, pd.DataFrame], published: pd.DataFrame, headline_row: int = 10) -> list[Claim]:
    """All statements with their verdicts.

    Parameters
    ----------
    tables : name -> table, as the notebooks wrote them; those that are not there leave their statements 'not run'
    published : of `nfx.evaluation.published`
    headline_row : row of Table 1 that is compared with other methods

    Raises
    ------
    ValueError
        If a table has not the columns that decide.
    """
    value = published["value"]
    return [
        *_gains(tables, value, headline_row),
        *_time_average(tables, published),
        *_rows(tables, value, "validation"),
        *_rows(tables, value, "test"),
        *_networks(tables),
        *_stages(tables, "attention_total", -1, "the total sum of attention falls", "p < 0.05", STAGES[::2]),
        *_stages(tables, "attention_semantic_trend", 1, SHIFT, "p < 0.001", STAGES[:2]),
        *_stages(tables, "attention_semantic_trend", 1, SHIFT, "p < 0.001", STAGES[::2]),
        *_categories(tables),
        *_overlap(tables, value),
    ]


# --- Section 5.1 -----------------------------------------------------------------------------------------------


def _gains(tables: Mapping[str, pd.DataFrame], value: pd.Series, headline_row: int) -> Iterator[Claim]:
    topic = "Section 5.1: better than MinD-Video"
    for subject in (1, 2, 3):
        ssim, gain = value[f"neuralflix_ssim_{subject}"], value[f"neuralflix_gain_{subject}"]
        quoted = f"SSIM {ssim:.3f}, {_percent(gain, 2)}"
        ours, found = _over_mind_video(tables, "SSIM", subject, headline_row)
        gain = _number_in_text(tables, f"neuralflix_gain_{subject}")
        ours += f", {_percent(gain, 1)}" if ours and np.isfinite(gain) else ""
        yield Claim(topic, "SSIM is higher", str(subject), quoted, "Abstract, 5.1", ours, found, "comparisons")
    for kind in ("image", "video"):
        ours, found = _over_mind_video(tables, kind, 1, headline_row)
        quoted = "higher; bars without numbers"
        yield Claim(topic, f"50-way {kind} accuracy is higher", "1", quoted, "Figure 2b", ours, found, "comparisons")


def _over_mind_video(
    tables: Mapping[str, pd.DataFrame], metric: str, subject: int, headline_row: int
) -> tuple[str, str]:
    """Ours less MinD-Video in words, and the verdict; `metric` as `nfx.evaluation.methods.comparisons` calls it."""
    table = tables.get("comparisons")
    if table is None:
        return "", NOT_RUN
    _require(table, "comparisons", "subject", "metric", "a", "b", "difference", "low", "high")
    mind_video = table["b"].str.contains("Chen|MinD-Video", na=False)
    ours = table["a"].eq(f"row {headline_row}") & table["metric"].eq(metric) & table["subject"].eq(subject)
    for _, row in table[ours & mind_video].iterrows():
        return _interval(row["difference"], row["low"], row["high"], row), verdict(
            row["low"], row["high"], _corrected(row)
        )
    return "", NOT_RUN


# --- Section 5.2 -----------------------------------------------------------------------------------------------


def _time_average(tables: Mapping[str, pd.DataFrame], published: pd.DataFrame) -> Iterator[Claim]:
    table = tables.get("time_averaged")
    if table is not None:
        _require(table, "time_averaged", "subject", "correct", "difference", "low", "high", "percent")
    for subject in (2, 3):
        full, mean = (published.loc[f"{key}_video_50way_{subject}"] for key in ("neuralflix", "averaged"))
        drop = published["value"][f"averaged_drop_{subject}"]
        quoted = " to ".join(f"{line['value']:.3f} ± {line['uncertainty']:.3f}" for line in (full, mean))
        ours, found = "", NOT_RUN
        if table is not None:
            for _, row in table[table["subject"].eq(subject) & table["correct"].eq(1)].iterrows():
                ours = f"{_interval(row['difference'], row['low'], row['high'], row)}, {_percent(row['percent'], 1)}"
                found = verdict(-row["high"], -row["low"], _corrected(row))
        yield Claim(
            "Section 5.2: the decoder uses the signal's change in time",
            "50-way video accuracy falls with time-averaged fMRI",
            str(subject),
            f"{quoted} ({_percent(drop, 1)})",
            "5.2",
            ours,
            found,
            "time_averaged",
        )


def _rows(tables: Mapping[str, pd.DataFrame], value: pd.Series, part: str) -> Iterator[Claim]:
    from nfx.evaluation.ablations import CLAIMS

    seeds = "seed_directions" in tables
    name, estimate = ("seed_directions", "mean") if seeds else (f"directions_{part}", "ours")
    over = "over seeds" if seeds else "over the clips of one run a row"
    table = tables.get(name)
    if table is not None:
        _require(table, name, "claim", estimate, "low", "high", *(["part"] if seeds else []))
        table = table[table["part"].eq(part)] if seeds else table
    for statement, better, worse in CLAIMS:
        first, second = value[f"table1_row_{better}"], value[f"table1_row_{worse}"]
        ours, found = "", NOT_RUN
        if table is not None:
            for _, row in table[table["claim"].eq(statement)].iterrows():
                ours = _interval(row[estimate], row["low"], row["high"], row)
                found = verdict(row["low"], row["high"], _corrected(row))
        yield Claim(
            f"Section 5.2: each direction of Table 1, by the SSIM of {part} clips, {over}",
            f"{statement} (row {better} over row {worse})",
            "",
            f"{_signed(first - second, 3)} ({first:.3f}, {second:.3f})",
            "Table 1",
            ours,
            found,
            name,
        )


# --- Section 5.3 -----------------------------------------------------------------------------------------------

ATTENTION = "Section 5.3: attention of the fMRI encoder"
TESTS = {  # what a map is compared with, and the columns of its corrected p-value; the first that is there counts
    "over blocks of clips": ("holm_permutation",),
    "under spins": ("largest_spin", "holm_spin"),
    "under shifts": ("largest_shift", "holm_shift"),
}


def _networks(tables: Mapping[str, pd.DataFrame]) -> Iterator[Claim]:
    statement, quoted = "networks differ in the attention they receive", "t-tests, results not printed"
    table = tables.get("attention_networks")
    if table is None:
        yield Claim(ATTENTION, statement, "", quoted, "3.3, 5.3", "", NOT_RUN, "attention_networks")
        return
    _require(table, "attention_networks", "subject", "first", "second", "holm_permutation")
    tests = {words: _first(table, columns) for words, columns in TESTS.items()}
    known = {words: column for words, column in tests.items() if column is not None}
    for subject, rows in table.groupby("subject", sort=True):
        below = rows[list(known.values())].lt(LEVEL)
        counts = [f"{int(below[column].sum())} {words}" for words, column in known.items()]
        ours = f"of {len(rows)} pairs: {', '.join(counts)}, {int(below.all(axis=1).sum())} under all"
        found = HOLDS if below.all(axis=1).any() else UNCLEAR
        yield Claim(ATTENTION, statement, str(subject), quoted, "3.3, 5.3", ours, found, "attention_networks")


def _stages(
    tables: Mapping[str, pd.DataFrame], name: str, sign: int, statement: str, quoted: str, stages: tuple[str, str]
) -> Iterator[Claim]:
    """Two stages of training, by subject; `sign` is the direction that the paper states."""
    table, statement = tables.get(name), f"{statement}, {stages[0]} to {stages[1]}"
    if table is not None:
        _require(table, name, "subject", "first", "second", "difference", "t", "df", "holm_permutation")
        table = table[table["first"].eq(stages[0]) & table["second"].eq(stages[1])]
    if table is None or table.empty:
        yield Claim(ATTENTION, statement, "", quoted, "5.3", "", NOT_RUN, name)
        return
    columns = [column for columns in TESTS.values() if (column := _first(table, columns)) is not None]
    for _, row in table.iterrows():
        low, high = _t_interval(row)
        p = row[columns].max(skipna=False)
        ours = _interval(row["difference"], low, high, pd.Series({"p": p}))
        lower, upper = sorted((sign * low, sign * high))
        found = verdict(lower, upper, p)
        yield Claim(ATTENTION, statement, str(row["subject"]), quoted, "5.3", ours, found, name)


def _categories(tables: Mapping[str, pd.DataFrame]) -> Iterator[Claim]:
    name, quoted = "attention_categories", "shown for one subject, no test"
    table = tables.get(name)
    if table is None:
        for statement in ("fusiform: cat above food", "body area: person above airplane"):
            yield Claim(ATTENTION, statement, "", quoted, "Figure 6d", "", NOT_RUN, name)
        return
    _require(table, name, "subject", "region", "first", "second", "difference", "t", "df", "permutation_p")
    for _, row in table.sort_values("region", ascending=False, kind="stable").iterrows():
        statement = f"{row['region']}: {row['first']} above {row['second']}"
        if not np.isfinite(row["t"]):
            why = row.get("why not")
            ours, found = why if isinstance(why, str) else "", NOT_RUN
        else:
            low, high = _t_interval(row)
            ours, found = _interval(row["difference"], low, high, row), verdict(low, high, _corrected(row))
            null = row.reindex(["holm_spin", "holm_shift"]).max(skipna=False)
            if np.isfinite(null):  # whether the region is special, which the paper does not say in so many words
                ours += "; more than other regions" if null < LEVEL else "; not more than other regions"
        yield Claim(ATTENTION, statement, str(row["subject"]), quoted, "Figure 6d", ours, found, name)


# --- Section 4.2 -----------------------------------------------------------------------------------------------


def _overlap(tables: Mapping[str, pd.DataFrame], value: pd.Series) -> Iterator[Claim]:
    name, ours, found = "numbers_in_text", "", NOT_RUN
    if name in tables:
        measured = _number_in_text(tables, "category_overlap")
        if np.isfinite(measured):
            ours, found = f"{measured:.2f}", HOLDS if measured < 1 else OPPOSITE
    yield Claim(
        "Section 4.2: the data",
        "training and test film share only a part of their categories",
        "",
        f"{value['category_overlap']:.2f}",
        "4.2",
        ours,
        found,
        name,
    )


# --- small pieces ----------------------------------------------------------------------------------------------


def _require(table: pd.DataFrame, name: str, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"{name}.csv has no column {', '.join(map(repr, missing))}, only {', '.join(map(str, table.columns))}: "
            "expected the table that the notebook writes; delete it and run the notebook again"
        )


def _corrected(row: pd.Series) -> float | None:
    """The p-value that counts: corrected before uncorrected, of blocks before t; None if the table has none."""
    for name in ("holm_permutation", "holm", "permutation_p", "p"):
        if name in row:
            return float(row[name])
    return None


def _t_interval(row: pd.Series) -> tuple[float, float]:
    """95 % interval of a difference from its t-test: difference -+ t(0.975, df) difference / t."""
    from scipy.stats import t

    if not np.isfinite([row["difference"], row["t"], row["df"]]).all() or row["t"] == 0:
        return np.nan, np.nan
    reach = t.ppf(0.975, row["df"]) * abs(row["difference"] / row["t"])
    return row["difference"] - reach, row["difference"] + reach


def _number_in_text(tables: Mapping[str, pd.DataFrame], key: str) -> float:
    """Ours of a line of the table of the numbers in the text; NaN if it is not there."""
    table = tables.get("numbers_in_text")
    if table is None:
        return np.nan
    _require(table, "numbers_in_text", "id", "ours")
    return float(pd.to_numeric(table.set_index("id")["ours"], errors="coerce").get(key, np.nan))


def _first(table: pd.DataFrame, columns: tuple[str, ...]) -> str | None:
    return next((column for column in columns if column in table), None)


def _signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "\u2212")


def _percent(value: float, places: int) -> str:
    return f"{_signed(value, places)}{NO_BREAK}%"


def _interval(difference: float, low: float, high: float, row: pd.Series) -> str:
    p = _corrected(row)
    tail = "" if p is None or not np.isfinite(p) else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    tail = tail.replace("p ", f"p{NO_BREAK}").replace("< ", f"<{NO_BREAK}").replace("= ", f"={NO_BREAK}")
    places = 4 if abs(difference) < 0.1 else 3
    return f"{_signed(difference, places)} [{_signed(low, places)},{NO_BREAK}{_signed(high, places)}]{tail}"
