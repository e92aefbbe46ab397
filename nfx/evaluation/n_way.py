"""The n-way top-k identification test of Section 4.1, its chance level and its expectation.

The paper's text has one correct class. The code its peers share counts the three best classes of the true frame as
correct, which lifts chance from 2 % to 5.8 % in the 50-way test. Both are here (``truth_classes`` 1 and 3), each
with its own chance level.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import comb

import numpy as np


def n_way_top_k(
    truth_logits: np.ndarray,
    decoded_logits: np.ndarray,
    n_way: int = 50,
    top_k: int = 1,
    trials: int = 100,
    truth_classes: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Success rate of every clip in the n-way top-k test (Section 4.1).

    In each trial n - 1 classes are drawn without replacement from the classes that are not correct. The trial succeeds
    if fewer than k of them score at least as high as the best correct class. A tie counts against the decoder.

    The draws depend on the seed and on the clip's best true class alone. So a clip's value does not change with its
    place among the clips, and clips of different classes meet different draws. Classes are shared among as many threads
    as torch uses.

    Parameters
    ----------
    truth_logits, decoded_logits : (clips, classes)
        Scores of a classifier for the true and the decoded stimuli.
    n_way, top_k, trials : int
        Number of candidates, of accepted ranks, and of repetitions.
    truth_classes : int
        How many of the true stimulus' best classes count as correct: 1 as in the paper's text, 3 as in its peers' code.
    seed : int

    Returns
    -------
    float64 (clips,)

    Raises
    ------
    ValueError
        If shapes differ, a logit is NaN, or there are too few classes.
    """
    import torch

    truth_logits, decoded_logits = _checked(truth_logits, decoded_logits, n_way, top_k, truth_classes)
    if trials < 1:
        raise ValueError(f"trials is {trials}, expected at least 1")
    clips, classes = truth_logits.shape
    pool_size = classes - truth_classes
    correct = best_classes(truth_logits, truth_classes)
    rates = np.empty(clips)

    def rate(best_class: int) -> None:
        generator = np.random.default_rng([seed, best_class])
        order = generator.random((trials, pool_size)).argpartition(n_way - 2, axis=1)
        draws = order[:, : n_way - 1]
        for clip in np.flatnonzero(correct[:, 0] == best_class):
            own, scores = correct[clip], decoded_logits[clip]
            rivals = np.delete(scores, own) >= scores[own].max()
            rates[clip] = np.count_nonzero(rivals.take(draws).sum(axis=1) < top_k) / trials

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy lets go of the interpreter while it draws
        list(pool.map(rate, np.unique(correct[:, 0]).tolist()))
    return rates


def n_way_chance(n_way: int, top_k: int, truth_classes: int) -> float:
    """Success rate of exchangeable scores: 1 - C(n-1, k) / C(n-1+t, k).

    The trial fails when the k best of the n - 1 + t candidates are all wrong ones.
    """
    _check_counts(n_way, top_k, truth_classes)
    return 1 - comb(n_way - 1, top_k) / comb(n_way - 1 + truth_classes, top_k)


def n_way_pairs(
    truth_logits: np.ndarray, decoded_logits: np.ndarray, n_way: int = 50, top_k: int = 1, truth_classes: int = 1
) -> np.ndarray:
    """Expected success rate of every pairing of a true clip with a decoded clip: (truth, decoded).

    With m wrong classes at or above the best correct one among M, the number drawn of them is hypergeometric, so
    the rate is P(X < k), X ~ Hypergeometric(M, m, n - 1): the limit of `n_way_top_k` for many trials. The shuffled
    pairings of the control need all pairs, for which drawing would be slow.

    Parameters
    ----------
    truth_logits, decoded_logits : (clips, classes), the same shape

    Returns
    -------
    float64 (clips, clips); the diagonal holds the true pairs
    """
    from scipy.stats import hypergeom

    truth_logits, decoded_logits = _checked(truth_logits, decoded_logits, n_way, top_k, truth_classes)
    clips, classes = truth_logits.shape
    pool_size = classes - truth_classes
    rates_by_rivals = hypergeom.cdf(top_k - 1, pool_size, np.arange(pool_size + 1), n_way - 1)
    correct = best_classes(truth_logits, truth_classes)
    # at_or_above[j, c]: how many classes score at least as high as class c in decoded clip j, c included
    at_or_above = np.stack([classes - np.searchsorted(np.sort(row), row, side="left") for row in decoded_logits])
    pairs = np.empty((clips, clips))
    for clip, own in enumerate(correct):
        best = decoded_logits[:, own].max(axis=1, keepdims=True)
        ties = (decoded_logits[:, own] >= best).sum(axis=1)  # correct classes at the best score are no rivals
        pairs[clip] = rates_by_rivals[at_or_above[:, own].min(axis=1) - ties]
    return pairs


def best_classes(logits: np.ndarray, count: int) -> np.ndarray:
    """The `count` best classes of each row, best first; equal scores go to the lower index: (clips, count)."""
    if count == 1:
        return logits.argmax(axis=1)[:, None]
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def _check_counts(n_way: int, top_k: int, truth_classes: int) -> None:
    if n_way < 2 or top_k < 1 or truth_classes < 1:
        raise ValueError(
            f"n_way {n_way}, top_k {top_k}, truth_classes {truth_classes}: expected n_way >= 2, the others >= 1"
        )


def _checked(
    truth_logits: np.ndarray, decoded_logits: np.ndarray, n_way: int, top_k: int, truth_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    _check_counts(n_way, top_k, truth_classes)
    truth_logits, decoded_logits = np.asarray(truth_logits, dtype=float), np.asarray(decoded_logits, dtype=float)
    if truth_logits.shape != decoded_logits.shape or truth_logits.ndim != 2:
        raise ValueError(
            f"truth_logits {truth_logits.shape} and decoded_logits {decoded_logits.shape}, expected (clips, classes)"
        )
    for name, logits in (("truth_logits", truth_logits), ("decoded_logits", decoded_logits)):
        if np.isnan(logits).any():
            raise ValueError(f"{name} holds NaN in {int(np.isnan(logits).any(axis=1).sum())} clips")
    if truth_logits.shape[1] < n_way - 1 + truth_classes:
        raise ValueError(
            f"{truth_logits.shape[1]} classes are too few for a {n_way}-way test with {truth_classes} correct classes: "
            f"it needs {n_way - 1 + truth_classes}"
        )
    return truth_logits, decoded_logits
