"""Which of two methods is better? Differences on the same clips, with intervals, and corrected p-values.

Two methods are compared clip by clip, since clips differ far more than methods do. Intervals and tests take blocks of
clips (`nfx.evaluation.controls`). A statement is made of a difference and its interval, never of a mean that is larger
than another mean.

An interval over clips says what another film would do to these two trained decoders. An interval over seeds says what
another training would do on these clips. Neither includes the other: report both, and how the variance splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from nfx.evaluation.controls import block_bootstrap, blocks, holm, paired_permutation

LEVEL = 0.05


class Difference(NamedTuple):
    """Mean difference of two methods, first less second, its 95 % interval over blocks of clips, and its p-value."""

    difference: float
    low: float
    high: float
    p: float


class OverSeeds(NamedTuple):
    """Mean over seeds, its t interval, and the standard deviation of single seeds."""

    mean: float
    low: float
    high: float
    spread: float
    seeds: int


class VarianceSplit(NamedTuple):
    """Variance of one clip's score with one seed: of seeds, of clips, and of a clip with one seed and not another."""

    seeds: float
    clips: float
    rest: float


def paired_difference(
    first: np.ndarray, second: np.ndarray, segment: np.ndarray, length: int, samples: int = 10_000, seed: int = 0
) -> Difference:
    """Mean of first less second on the same clips, with its block-bootstrap interval and block sign-flip p (two-sided).

    Parameters
    ----------
    first, second : (clips,), a score of two methods on the same clips, in film order
    segment : (clips,)
    length : clips a block
    samples, seed : of the bootstrap and of the permutations

    Raises
    ------
    ValueError
        If the methods have other clips, or a score is NaN.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.shape != np.shape(segment):
        raise ValueError(
            f"scores {first.shape} and {second.shape} of clips {np.shape(segment)}: a paired comparison needs the same "
            "clips of both"
        )
    missing = int((~np.isfinite(first - second)).sum())
    if missing:
        raise ValueError(
            f"{missing} of {len(first)} clips have no finite score in both methods: leave them out of both"
        )
    interval = block_bootstrap(first - second, segment, length, samples=samples, seed=seed)
    _, p = paired_permutation(first, second, segment, length, permutations=samples, seed=seed)
    return Difference(interval.mean, interval.low, interval.high, p)


def compare(
    scores: Mapping[str, np.ndarray],
    segment: np.ndarray,
    length: int,
    pairs: Sequence[tuple[str, str]] | None = None,
    **labels: object,
) -> pd.DataFrame:
    """Paired comparisons of methods by one score; the table is one family, Holm-corrected.

    Parameters
    ----------
    scores : method -> (clips,), the same clips in the same order
    segment : (clips,)
    length : clips a block
    pairs : which to compare; all pairs if not given. Choose them before looking: every pair costs the others power.
    **labels : columns put in front, such as metric="SSIM"

    Returns
    -------
    DataFrame with columns a, b, difference (a less b), low, high, p, holm, clips, blocks
    """
    pairs = list(combinations(scores, 2)) if pairs is None else list(pairs)
    unknown = sorted({name for pair in pairs for name in pair} - set(scores))
    if unknown:
        raise ValueError(f"no scores of {unknown}; there are {list(scores)}")
    rows = [
        {**labels, "a": a, "b": b, **paired_difference(scores[a], scores[b], segment, length)._asdict()}
        for a, b in pairs
    ]
    if not rows:
        raise ValueError("no pair of methods to compare: give the scores of two methods or more")
    table = pd.DataFrame(rows)
    return table.assign(holm=holm(table["p"]), clips=len(segment), blocks=int(blocks(segment, length)[-1]) + 1)


def holm_over(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several `compare` tables as one family: joined, with Holm's correction over all their rows."""
    table = pd.concat(tables, ignore_index=True)
    return table.assign(holm=holm(table["p"]))


def statement(a: str, b: str, table: pd.DataFrame, digits: int = 3) -> str:
    """What the table of `compare` allows to say of two methods, always with the interval.

    One exceeds the other if the interval leaves out 0 and the Holm-corrected p is below 0.05; otherwise the two cannot
    be told apart, whatever their means.

    Parameters
    ----------
    a, b : methods, in either order
    table : of `compare` or `holm_over`, narrowed to one score

    Returns
    -------
    str
        "A exceeds B by x [low, high], p (Holm) = ..." or "A and B cannot be told apart: x [low, high], p (Holm) = ..."

    Raises
    ------
    ValueError
        If the table has no such comparison or several, or it lacks an interval or a corrected p.
    """
    forward = table[(table["a"] == a) & (table["b"] == b)]
    backward = table[(table["a"] == b) & (table["b"] == a)]
    found = len(forward) + len(backward)
    if found != 1:
        raise ValueError(f"the table compares {a} and {b} {found} times, expected once: narrow it to one score")
    row = forward.iloc[0] if len(forward) else backward.iloc[0]
    difference, low, high, p = (float(row[name]) for name in ("difference", "low", "high", "holm"))
    if not np.isfinite([difference, low, high, p]).all():
        raise ValueError(f"{a} and {b}: difference {difference} [{low}, {high}], p {p}; nothing is said without them")
    first, second = row["a"], row["b"]
    told_apart = p < LEVEL and (low > 0 or high < 0)
    # Turned round so that the sentence begins with the better one, or with `a` where neither is.
    if difference < 0 if told_apart else first != a:
        first, second, difference, low, high = second, first, -difference, -high, -low
    numbers = f"{difference:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], p (Holm) {_p(p)}"
    if told_apart:
        return f"{first} exceeds {second} by {numbers}"
    return f"{first} and {second} cannot be told apart: {numbers}"


def over_seeds(values: np.ndarray, level: float = 0.95) -> OverSeeds:
    """Mean over seeds with Student's t interval: mean +- t(level, seeds - 1) s / sqrt(seeds).

    Seeds are the unit here: the interval is what other trainings would give on these clips. For two methods give the
    differences of seeds that share data and clips.

    Parameters
    ----------
    values : (seeds,), or (seeds, clips), whose mean over clips is taken

    Raises
    ------
    ValueError
        If there are fewer than two seeds, or a value is NaN.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    means = values.reshape(len(values), -1).mean(axis=1)
    if len(means) < 2 or not np.isfinite(means).all():
        raise ValueError(f"{len(means)} seeds, {int((~np.isfinite(means)).sum())} without a value: expected at least 2")
    spread = means.std(ddof=1)
    reach = t.ppf((1 + level) / 2, len(means) - 1) * spread / np.sqrt(len(means))
    return OverSeeds(
        float(means.mean()), float(means.mean() - reach), float(means.mean() + reach), float(spread), len(means)
    )


def variance_split(values: np.ndarray, segment: np.ndarray, length: int) -> VarianceSplit:
    """Variance of a score between seeds and between clips, by a crossed random-effects analysis of variance.

    A score is mean + seed + clip + rest. With S seeds and n clips, clips = (MS_clips - MS_rest) / S and rest = MS_rest.
    The rest of neighbouring clips goes together, so that what it adds to the means of the seeds is estimated between
    blocks: seeds = var(means of seeds) - MS_rest(blocks) / blocks, on block means. The estimates are unbiased and may
    fall below 0 by chance, which means that none is found.

    Parameters
    ----------
    values : (seeds, clips)
    segment : (clips,)
    length : clips a block

    Raises
    ------
    ValueError
        If there are fewer than two seeds or blocks, or clips do not match.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[1] != len(segment) or len(values) < 2:
        raise ValueError(f"values {values.shape} of {len(segment)} clips: expected (seeds, clips), at least 2 seeds")
    number = blocks(segment, length)
    if number[-1] < 1:
        raise ValueError("all clips are one block: the spread over blocks needs at least 2, shorten them")
    sizes = np.bincount(number)
    in_blocks = np.stack([np.bincount(number, weights=row) / sizes for row in values])
    rest, clips = _mean_squares(values)
    rest_of_blocks, _ = _mean_squares(in_blocks)
    seeds = in_blocks.mean(axis=1).var(ddof=1) - rest_of_blocks / len(sizes)
    return VarianceSplit(float(seeds), float((clips - rest) / len(values)), float(rest))


def _mean_squares(values: np.ndarray) -> tuple[float, float]:
    """Of the rest and of the columns of a crossed table (rows, columns) with one value in each place."""
    rows, columns = values.shape
    row, column = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = ((values - row - column + values.mean()) ** 2).sum() / ((rows - 1) * (columns - 1))
    return float(rest), float(rows * column.var(ddof=1))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
