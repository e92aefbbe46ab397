"""Tests on attention (Section 5.3).

The paper reports two-sample t-tests without their unit. Clips of one scene are not independent, so the unit here is a
contiguous block of clips. Beside each t-test stands a permutation test that assumes no distribution, and over the
tests of a family Holm's correction.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from nfx.evaluation.controls import blocks, holm


class MeanTest(NamedTuple):
    """A t-test with the permutation test beside it; `effect` is Cohen's d (of the differences where paired)."""

    difference: float
    t: float
    df: float
    p: float
    permutation_p: float
    effect: float


def block_means(values: np.ndarray, segment: np.ndarray, length: int = 10) -> np.ndarray:
    """Mean over each contiguous block of clips: (clips, ...) to (blocks, ...).

    Parameters
    ----------
    values : (clips, ...)
    segment : (clips,)
    length : clips a block, see `nfx.evaluation.controls.blocks`

    Raises
    ------
    ValueError
        If there is not one value a clip.
    """
    values = np.asarray(values, dtype=float)
    if len(values) != len(segment):
        raise ValueError(f"{len(values)} values for {len(segment)} clips: expected one each")
    number = blocks(segment, length)
    return np.stack([values[number == block].mean(axis=0) for block in range(number[-1] + 1)])


def category_means(values: np.ndarray, clip: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Mean over each run of neighbouring clips, for the clips of one category: (clips, ...) to (blocks, ...).

    A run is a stretch of clips without a gap in one segment, a scene or a few of them.

    Parameters
    ----------
    values : (clips, ...)
    clip, segment : (clips,)
        Value, index in the film, and segment of each clip of the category, in film order.

    Raises
    ------
    ValueError
        If there are no clips.
    """
    values, clip, segment = np.asarray(values, dtype=float), np.asarray(clip), np.asarray(segment)
    if len(clip) == 0:
        raise ValueError("no clips given: expected the clips of one category")
    new = np.r_[True, (np.diff(clip) != 1) | (segment[1:] != segment[:-1])]
    run = np.cumsum(new) - 1
    return np.stack([values[run == number].mean(axis=0) for number in range(run[-1] + 1)])


def paired_test(first: np.ndarray, second: np.ndarray, permutations: int = 10_000, seed: int = 0) -> MeanTest:
    """Paired t-test of two conditions seen on the same blocks; the permutations flip the signs of whole blocks.

    Parameters
    ----------
    first, second : (blocks,)
        E.g. one network before and after a stage of training.

    Raises
    ------
    ValueError
        If the blocks are not as many in both, or fewer than 2.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} blocks: a paired test needs the same blocks, at least 2")
    difference = first - second
    result = stats.ttest_rel(first, second)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, len(difference)))
    null = signs @ difference / len(difference)
    return MeanTest(
        float(difference.mean()),
        float(result.statistic),
        float(result.df),
        float(result.pvalue),
        _permutation_p(null, difference.mean()),
        float(difference.mean() / difference.std(ddof=1)),
    )


def two_sample_test(first: np.ndarray, second: np.ndarray, permutations: int = 10_000, seed: int = 0) -> MeanTest:
    """Welch's two-sample t-test of different blocks; the permutations deal the blocks anew.

    Parameters
    ----------
    first : (blocks of the first,)
    second : (blocks of the second,)
        E.g. the runs of two categories (`category_means`).

    Raises
    ------
    ValueError
        If either has fewer than 2 blocks.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} blocks: a two-sample test needs at least 2 of each")
    result = stats.ttest_ind(first, second, equal_var=False)
    pooled, n = np.concatenate([first, second]), len(first)
    generator = np.random.default_rng(seed)
    dealt = generator.permuted(np.tile(pooled, (permutations, 1)), axis=1)
    null = dealt[:, :n].mean(axis=1) - dealt[:, n:].mean(axis=1)
    difference = first.mean() - second.mean()
    degrees = len(pooled) - 2
    spread = np.sqrt(((n - 1) * first.var(ddof=1) + (len(second) - 1) * second.var(ddof=1)) / degrees)
    return MeanTest(
        float(difference),
        float(result.statistic),
        float(result.df),
        float(result.pvalue),
        _permutation_p(null, difference),
        float(difference / spread),
    )


def network_test(first: np.ndarray, second: np.ndarray, permutations: int = 10_000, seed: int = 0) -> MeanTest:
    """Two-sample (Welch) t-test between two networks, as in the paper, over blocks of clips.

    The two networks are seen on the same clips, so that the t-test's samples are not independent. Its permutation
    test keeps the pairing: it exchanges the two networks within a block.

    Parameters
    ----------
    first, second : (blocks,)
    """
    welch = two_sample_test(first, second, permutations=1, seed=seed)
    return welch._replace(permutation_p=paired_test(first, second, permutations, seed).permutation_p)


def compare_stages(stages: dict[str, pd.DataFrame], permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Paired tests of every network between successive stages and between the first and the last (Figure 6c).

    Parameters
    ----------
    stages : stage -> DataFrame (blocks, networks)
        In the order of training; block means of the same clips. A column may as well be the total attention.

    Returns
    -------
    DataFrame with columns network, first, second, those of `MeanTest` (difference = second - first), holm and
    holm_permutation
    """
    names = list(stages)
    pairs = list(pairwise(names)) + ([(names[0], names[-1])] if len(names) > 2 else [])
    rows = []
    for network in stages[names[0]].columns:
        for first, second in pairs:
            test = paired_test(stages[second][network], stages[first][network], permutations, seed)
            rows.append({"network": network, "first": first, "second": second, **test._asdict()})
    return _with_holm(pd.DataFrame(rows))


def compare_networks(means: pd.DataFrame, permutations: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Tests between all pairs of networks in one stage (Section 3.3).

    Parameters
    ----------
    means : DataFrame (blocks, networks)

    Returns
    -------
    DataFrame with columns first, second, those of `MeanTest` (difference = first - second), and holm, holm_permutation
    """
    rows = [
        {"first": first, "second": second, **network_test(means[first], means[second], permutations, seed)._asdict()}
        for first, second in combinations(means.columns, 2)
    ]
    return _with_holm(pd.DataFrame(rows))


class RankCorrelation(NamedTuple):
    """Spearman's rho, its one-sided p-value from shifts of the order, and how many shifts there are."""

    rho: float
    p: float
    shifts: int


def rank_correlation(received: np.ndarray, share: np.ndarray) -> RankCorrelation:
    """Does attention go where the signal is? Spearman's rho over patches, simulated brains only.

    Patches stand in the order of the visual hierarchy and resemble their neighbours, so that freely shuffled patches
    would give p-values that are too small. The null shifts one map against the other, around the end, through all
    positions: the one-dimensional counterpart of spinning a cortical map. The least p-value is 1 / patches.

    Parameters
    ----------
    received : (patches,)
        Attention received, mean over clips.
    share : (patches,)
        Mean true signal share of a patch's voxels, from the simulator.

    Raises
    ------
    ValueError
        If there are fewer than 3 patches, not as many in both, or a map is the same everywhere.
    """
    received, share = np.asarray(received, dtype=float), np.asarray(share, dtype=float)
    if received.shape != share.shape or received.ndim != 1 or len(received) < 3:
        raise ValueError(f"received {received.shape} and share {share.shape}: expected (patches,) twice, at least 3")
    if np.ptp(received) == 0 or np.ptp(share) == 0:
        raise ValueError("attention or signal share is the same in all patches: their ranks cannot be compared")
    a, b = (stats.zscore(stats.rankdata(x)) for x in (received, share))
    null = np.array([np.mean(np.roll(a, shift) * b) for shift in range(len(a))])
    return RankCorrelation(float(null[0]), float(np.mean(null >= null[0] - 1e-12)), len(a))


def _permutation_p(null: np.ndarray, observed: float) -> float:
    """Two-sided: (1 + number at least as far from 0) / (1 + permutations)."""
    reach = abs(observed) * (1 - 1e-12)  # the observed arrangement itself ties, whatever the order of its sum
    return float((1 + np.sum(np.abs(null) >= reach)) / (1 + len(null)))


def _with_holm(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(holm=holm(table["p"]), holm_permutation=holm(table["permutation_p"]))
