"""Identification: is a decoded clip more like its own true clip than like others?

A decoded clip is compared with its own true clip and with other true clips of the film, by pixels or by CLIP
embeddings. 2-way identification is the share of the others that are less similar than its own; n-way identification
is the probability that its own is the most similar among n, the n - 1 others drawn at random. No classifier is asked,
so that a film without nameable objects can be scored too, and chance is 1/n whatever the film shows.

Ties are broken at random, in expectation: a tied rival counts half in the 2-way test. So a decoder that knows nothing
(a grey frame, the same clip every time) is at chance exactly, against all other clips. The test of
`nfx.evaluation.n_way` counts ties against the decoder: its scores are logits of a classifier, which tie only where the
classifier fails.

Neighbouring clips share a scene. Every table here has both versions: against all other clips, which asks for the very
clip, and against the clips of other blocks alone, which asks for the scene. A block is a stretch of
`nfx.evaluation.controls.blocks`; a scene that a block boundary cuts still lends its other half as a rival.

How the peers' numbers differ: the "2-way" and "50-way" of the peers' tables are the classifier test of
`nfx.evaluation.n_way`, with three correct classes, where 2-way chance is 0.75. 2-way identification as here is that of
the still-image literature (for instance MindEye2), which takes the embeddings of several networks and all rivals.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nfx.evaluation.controls import Permuted, block_bootstrap, block_pairs, blocks, permutation_test

CLIPS_AT_ONCE = 200
DECIMALS = 10  # similarities that agree to so many decimals tie


def pixel_similarity(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Pearson correlation of every true clip with every decoded clip, frame by frame, mean over the frames.

    All pixels and channels of a frame are its sample. A frame of one grey value has no correlation; it counts 0.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)

    Returns
    -------
    float64 (true clips, decoded clips); the diagonal holds the true pairs

    Raises
    ------
    ValueError
        If shapes differ or the type is not uint8.
    """
    truth, decoded = np.asarray(truth), np.asarray(decoded)
    if truth.shape != decoded.shape or truth.ndim != 5:
        raise ValueError(f"truth {truth.shape} and decoded {decoded.shape}, expected the same clips, 5 axes each")
    if truth.dtype != np.uint8 or decoded.dtype != np.uint8:
        raise ValueError(f"truth is {truth.dtype} and decoded {decoded.dtype}, expected uint8 in 0..255")
    total = np.zeros((len(truth), len(truth)))
    starts = range(0, len(truth), CLIPS_AT_ONCE)
    for frame in range(truth.shape[1]):
        for row in starts:
            x = _flat(truth[row : row + CLIPS_AT_ONCE, frame])
            for column in starts:
                y = _flat(decoded[column : column + CLIPS_AT_ONCE, frame])
                total[row : row + len(x), column : column + len(y)] += _correlations(x, y)
    return total / truth.shape[1]


def embedding_similarity(truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Cosine of every true clip with every decoded clip, of the means of their normalised frame embeddings.

    Parameters
    ----------
    truth, decoded : (clips, frames, dim)
        E.g. CLIP's image embeddings of the frames (`nfx.data.targets.image_embeddings`).

    Returns
    -------
    float64 (true clips, decoded clips)
    """
    truth, decoded = np.asarray(truth, dtype=float), np.asarray(decoded, dtype=float)
    if truth.shape != decoded.shape or truth.ndim != 3:
        raise ValueError(f"truth {truth.shape} and decoded {decoded.shape}, expected (clips, frames, dim) twice")
    x, y = (_unit(_unit(frames).mean(axis=1)) for frames in (truth, decoded))
    return x @ y.T


def identification_pairs(similarity: np.ndarray, n_way: int = 2, block: np.ndarray | None = None) -> np.ndarray:
    """Probability that decoded clip j is identified as true clip i, for every i and j.

    Among the rivals of true clip i, let a be more similar to decoded clip j than clip i is, and t as similar, of M. The
    n - 1 rivals drawn without replacement must all be less similar: C(M - a - u, n - 1) / C(M, n - 1), averaged over
    the ways u = 0..t in which a random order of the ties may fall. For n = 2 this is (M - a - t / 2) / M.

    Parameters
    ----------
    similarity : (true clips, decoded clips), square
    n_way : candidates, the own clip included
    block : (clips,), optional
        Block of each true clip (`nfx.evaluation.controls.blocks`): clips in the block of clip i are no rivals of it.
        Without it all other clips are rivals.

    Returns
    -------
    float64 (clips, clips); the diagonal holds the true pairs

    Raises
    ------
    ValueError
        If the table is not square or holds NaN, or a clip has fewer than n - 1 rivals.
    """
    from scipy.stats import hypergeom

    similarity = np.asarray(similarity, dtype=float)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity has shape {similarity.shape}, expected a square table of clips")
    if np.isnan(similarity).any():
        raise ValueError(f"similarity holds {int(np.isnan(similarity).sum())} NaN, expected a number for every pair")
    if n_way < 2:
        raise ValueError(f"n_way is {n_way}, expected at least 2")
    similarity = similarity.round(DECIMALS)
    above, ties = _above_and_ties(similarity)
    rivals = np.full(len(similarity), len(similarity) - 1)
    if block is not None:
        for members in (np.flatnonzero(np.asarray(block) == number) for number in np.unique(block)):
            own_above, own_ties = _above_and_ties(similarity[members])
            above[members] -= own_above
            ties[members] -= own_ties
            rivals[members] = len(similarity) - len(members)
    if rivals.min() < n_way - 1:
        raise ValueError(
            f"a clip has {rivals.min()} rivals, {n_way}-way identification draws {n_way - 1}: give more clips or a "
            "smaller n"
        )
    found = np.empty(similarity.shape)
    for count in np.unique(rivals):
        # success[m]: none of the n - 1 drawn is among the m better rivals; averaged over m = a .. a + t by its sums
        success = hypergeom.pmf(0, count, np.arange(count + 1), n_way - 1)
        sums = np.r_[0, np.cumsum(success)]
        rows = rivals == count
        a, t = above[rows], ties[rows]
        found[rows] = np.where(t == 0, success[a], (sums[a + t + 1] - sums[a]) / (t + 1))
    return found


def identification(similarity: np.ndarray, n_way: int = 2, block: np.ndarray | None = None) -> np.ndarray:
    """Each decoded clip's probability of being identified as its own true clip, (clips,): see `identification_pairs`.

    2-way, it is the share of rivals that are less similar to the decoded clip than its own true clip is.
    """
    return identification_pairs(similarity, n_way, block).diagonal().copy()


def identification_chance(n_way: int) -> float:
    """1/n: that of a decoder that knows nothing, exactly against all clips, nearly against those of other blocks."""
    if n_way < 2:
        raise ValueError(f"n_way is {n_way}, expected at least 2")
    return 1 / n_way


def permuted_identification(
    similarity: np.ndarray,
    segment: np.ndarray,
    length: int,
    n_way: int = 2,
    block: np.ndarray | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> Permuted:
    """Identification of the true pairs against decoded blocks that are handed to other true blocks.

    Whole blocks change places (`nfx.evaluation.controls.equal_blocks`; the rest of a segment is left out), clips within
    them keep their order, so that what neighbouring clips share stays together in the null as well. In a random order
    one block of all stays in place on average, so that the null of a good decoder lies a little above chance.

    Parameters
    ----------
    similarity : (true clips, decoded clips)
    segment : (clips,)
    length : clips a block
    n_way, block : see `identification_pairs`
    permutations, seed : of the test
    """
    pairs = identification_pairs(similarity, n_way, block)
    return permutation_test(block_pairs(lambda i, j: pairs[i, j], segment, length), permutations, seed)


def identification_table(
    similarities: Mapping[str, np.ndarray], segment: np.ndarray, length: int, n_way: int = 50, **labels: object
) -> pd.DataFrame:
    """2-way and n-way identification by each similarity, against all clips and against those of other blocks.

    Parameters
    ----------
    similarities : name -> (clips, clips), e.g. "pixels" and "CLIP"
    segment : (clips,)
    length : clips a block, of the rivals left out, of the interval and of the permutations
    n_way : of the second test
    **labels : columns put in front

    Returns
    -------
    DataFrame
        A row for each similarity, n and kind of rivals ("all" or "other blocks"): mean over all clips, low and high of
        the 95 % block-bootstrap interval, shuffled (mean of the permuted pairings), shuffled_upper (their 95 %
        quantile), p (one-sided), chance, clips. The permutations take whole blocks alone, the mean all clips.
    """
    number = blocks(segment, length)
    rows = []
    for name, similarity in similarities.items():
        for n in dict.fromkeys((2, n_way)):
            for rivals, left_out in (("all", None), ("other blocks", number)):
                interval = block_bootstrap(identification(similarity, n, left_out), segment, length)
                null = permuted_identification(similarity, segment, length, n, left_out)
                rows.append(
                    {**labels, "by": name, "n": n, "rivals": rivals, **interval._asdict(), "shuffled": null.null_mean,
                     "shuffled_upper": null.null_upper, "p": null.p, "chance": identification_chance(n)}
                )  # fmt: skip
    return pd.DataFrame(rows).assign(clips=len(number))


def _flat(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).astype(np.float64)


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the rows of x with those of y. Sums of products of uint8 are exact in float64, so that equal frames tie."""
    n = x.shape[1]
    sum_x, sum_y = x.sum(axis=1), y.sum(axis=1)
    covariance = x @ y.T - np.outer(sum_x, sum_y) / n
    spread_x, spread_y = ((z * z).sum(axis=1) - s * s / n for z, s in ((x, sum_x), (y, sum_y)))
    product = np.sqrt(np.outer(spread_x, spread_y))
    return np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise ValueError(f"{int((~(length > 0)).sum())} embeddings are zero or NaN, expected vectors with a direction")
    return vectors / length


def _above_and_ties(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many others of its column lie above each entry, and how many tie with it."""
    from scipy.stats import rankdata

    lowest, highest = (rankdata(similarity, method=side, axis=0).astype(int) for side in ("min", "max"))
    return len(similarity) - highest, highest - lowest
