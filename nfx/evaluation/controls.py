"""What a score is worth: baselines that see no brain, pairings that are wrong on purpose, and intervals.

Neighbouring clips share scenes, so clips are no independent units. Everything here that resamples or permutes takes
contiguous blocks of clips that never cross a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm


class Permuted(NamedTuple):
    """Outcome of a permutation test: the observed mean, the null's mean and 95 % quantile, and the p-value."""

    observed: float
    null_mean: float
    null_upper: float
    p: float


class Interval(NamedTuple):
    """A mean and its confidence limits."""

    mean: float
    low: float
    high: float


def blocks(segment: np.ndarray, length: int) -> np.ndarray:
    """Number of each clip's block: contiguous, of about `length` clips, never across segments.

    A segment is cut into round(clips / length) nearly equal blocks, at least one.

    Parameters
    ----------
    segment : (clips,)
        Segment of each clip; the clips of a segment stand together, in the order of the film.
    length : int
        Wanted number of clips in a block.

    Returns
    -------
    int (clips,), from 0, ascending

    Raises
    ------
    ValueError
        If the clips of a segment do not stand together, or `length` is below 1.
    """
    segment = np.asarray(segment)
    if length < 1:
        raise ValueError(f"block length is {length}, expected at least 1")
    number, count = np.empty(len(segment), dtype=int), 0
    for clips in _runs(segment):
        for part in np.array_split(clips, max(1, round(len(clips) / length))):
            number[part] = count
            count += 1
    return number


def equal_blocks(segment: np.ndarray, length: int) -> np.ndarray:
    """Clips in contiguous blocks of exactly `length`: indices (blocks, length). The rest of a segment is left out.

    Raises
    ------
    ValueError
        If fewer than 2 blocks fit.
    """
    parts = [clips[: len(clips) // length * length].reshape(-1, length) for clips in _runs(np.asarray(segment))]
    found = np.concatenate(parts)
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} blocks of {length} clips fit into the segments, expected at least 2: shorten them"
        )
    return found


def block_bootstrap(
    values: np.ndarray, segment: np.ndarray, length: int = 10, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean over clips with its percentile interval from a bootstrap of blocks.

    Blocks of `blocks(segment, length)` are drawn with replacement, as many as there are; each sample's mean weights
    every clip the same.

    Parameters
    ----------
    values : (clips,)
    segment : (clips,)
    length : clips a block
    level : of confidence
    samples, seed : of the bootstrap

    Raises
    ------
    ValueError
        If there is not one segment a value.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != np.shape(segment):
        raise ValueError(f"values {values.shape} and segment {np.shape(segment)} differ: give one segment a clip")
    number = blocks(segment, length)
    sums, counts = np.bincount(number, weights=values), np.bincount(number)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def block_pairs(score: Callable[[np.ndarray, np.ndarray], np.ndarray], segment: np.ndarray, length: int) -> np.ndarray:
    """Mean score of every true block with every decoded block, clip by clip in order: (blocks, blocks).

    Parameters
    ----------
    score : (truth index, decoded index) -> score of each pair
    segment : (clips,)
    length : clips a block
    """
    index = equal_blocks(segment, length)
    table = np.empty((len(index), len(index)))
    for row, truth in enumerate(index):
        for column, decoded in enumerate(index):
            table[row, column] = np.mean(score(truth, decoded))
    return table


def permutation_test(pairs: np.ndarray, permutations: int = 10_000, seed: int = 0) -> Permuted:
    """Is the mean of the true pairs (the diagonal) larger than that of shuffled pairings?

    The p-value is one-sided, (1 + number of pairings at or above the observed) / (1 + permutations).

    Parameters
    ----------
    pairs : (n, n)
        Score of true item i with decoded item j (`block_pairs`, or `n_way_pairs` by clip).
    permutations, seed : of the test

    Raises
    ------
    ValueError
        If the table is not square, or of fewer than 2 items.
    """
    pairs = np.asarray(pairs, dtype=float)
    if pairs.ndim != 2 or pairs.shape[0] != pairs.shape[1] or len(pairs) < 2:
        raise ValueError(f"pairs have shape {pairs.shape}, expected a square table of at least 2 items")
    generator, rows = np.random.default_rng(seed), np.arange(len(pairs))
    observed = float(pairs.diagonal().mean())
    null = np.array([pairs[rows, generator.permutation(len(pairs))].mean() for _ in range(permutations)])
    # The identity among the permutations must count as a tie, whatever the order of its sum.
    p = (1 + np.sum(null >= observed - 1e-12)) / (1 + permutations)
    return Permuted(observed, float(null.mean()), float(np.quantile(null, 0.95)), float(p))


def permuted_ssim(
    truth: np.ndarray, decoded: np.ndarray, segment: np.ndarray, length: int, permutations: int = 10_000, seed: int = 0
) -> Permuted:
    """SSIM of the true pairs against decoded blocks that are paired with other true blocks.

    What remains in the null mean needs no brain: sharpness, contrast, typical content. Costs (clips / length) x clips
    comparisons: take a longer block for many clips.

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)
    segment : (clips,)
    length : clips a block
    """
    from nfx.evaluation.ssim import ssim

    pairs = len(equal_blocks(segment, length)) ** 2
    with tqdm(total=pairs, desc="SSIM of all pairs of blocks", leave=False, mininterval=5) as bar:

        def score(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            bar.update()
            return ssim(truth[i], decoded[j])

        return permutation_test(block_pairs(score, segment, length), permutations, seed)


def permuted_accuracy(
    truth_logits: np.ndarray,
    decoded_logits: np.ndarray,
    segment: np.ndarray,
    length: int,
    n_way: int = 50,
    top_k: int = 1,
    truth_classes: int = 1,
    permutations: int = 10_000,
    seed: int = 0,
) -> Permuted:
    """Expected n-way accuracy of the true pairs against shuffled pairings of blocks.

    Parameters
    ----------
    truth_logits, decoded_logits : (clips, classes), or (clips, frames, classes) for the image test by frame
    segment : (clips,)
    length : clips a block; 1 shuffles single clips
    n_way, top_k, truth_classes : of the test
    """
    from nfx.evaluation.n_way import n_way_pairs

    truth_logits, decoded_logits = np.asarray(truth_logits), np.asarray(decoded_logits)
    if truth_logits.ndim == 2:
        truth_logits, decoded_logits = truth_logits[:, None], decoded_logits[:, None]
    frames = range(truth_logits.shape[1])
    by_frame = (n_way_pairs(truth_logits[:, f], decoded_logits[:, f], n_way, top_k, truth_classes) for f in frames)
    by_clip = np.asarray(sum(by_frame)) / len(frames)
    return permutation_test(block_pairs(lambda i, j: by_clip[i, j], segment, length), permutations, seed)


def paired_permutation(
    first: np.ndarray, second: np.ndarray, segment: np.ndarray, length: int, permutations: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Difference of two decoders on the same clips, first minus second, and its two-sided p-value.

    The signs of whole blocks are flipped at random: under the null the two decoders are exchangeable in a block.

    Parameters
    ----------
    first, second : (clips,)
        A score of each decoder.
    segment : (clips,)
    length : clips a block
    permutations, seed : of the test
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    sums = np.bincount(blocks(segment, length), weights=difference)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, len(sums)))
    null, observed = np.abs(signs @ sums), abs(sums.sum())
    p = (1 + np.sum(null >= observed - 1e-12 * max(1.0, observed))) / (1 + permutations)
    return float(difference.mean()), float(p)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction of a family of p-values; NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=float)
    corrected, known = np.full(values.shape, np.nan), np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def mid_grey(like: np.ndarray) -> np.ndarray:
    """Clips of grey 128, of the shape of `like`, uint8: the simplest decoder that knows nothing."""
    return np.full(like.shape, 128, dtype=np.uint8)


def mean_frame(training_clips: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The mean of all training frames, rounded, in place of every frame of `like`: uint8, read-only view.

    Parameters
    ----------
    training_clips : uint8 (clips, frames, height, width, 3), of the training set only
    like : clips of the same frame size

    Raises
    ------
    ValueError
        If the frames differ in size.
    """
    if training_clips.shape[2:] != like.shape[2:]:
        raise ValueError(f"training frames {training_clips.shape[2:]} and frames {like.shape[2:]} differ in size")
    total = sum(clip.sum(axis=0, dtype=np.int64) for clip in training_clips)
    mean = total / (training_clips.shape[0] * training_clips.shape[1])
    return np.broadcast_to(np.rint(mean).astype(np.uint8), like.shape)


def frame_difference(clips: np.ndarray) -> np.ndarray:
    """Mean absolute change from frame to frame, as a fraction of 255: (clips, frames, ...) uint8 to (clips,).

    SSIM rewards a static clip; this shows whether a gain was bought with motion (Section 5.2, dependent noise).
    """
    change = np.abs(np.diff(clips.astype(np.int16), axis=1))
    return change.mean(axis=tuple(range(1, change.ndim))) / 255


def category_overlap(train: set[str] | list[str], test: set[str] | list[str]) -> float:
    """Intersection over union of the categories of training and test set (Section 4.2; the paper measures 0.56).

    Raises
    ------
    ValueError
        If no category is given.
    """
    train, test = set(train), set(test)
    if not train | test:
        raise ValueError("no categories given: expected the names found in the training and the test captions")
    return len(train & test) / len(train | test)


def nearest_training_clip(train_embeddings: np.ndarray, test_embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every test clip the training clip of the most similar embedding, and their cosine: near-duplicates.

    Parameters
    ----------
    train_embeddings, test_embeddings : (clips, dim), e.g. CLIP image embeddings averaged over a clip's frames
    """
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train_embeddings, test_embeddings))
    cosine = test @ train.T
    return cosine.argmax(axis=1), cosine.max(axis=1)


def _runs(segment: np.ndarray) -> list[np.ndarray]:
    """Indices of the clips of each segment; a segment that comes twice is an error."""
    starts = np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]])
    if len(segment) == 0 or len(np.unique(segment)) != len(starts):
        raise ValueError(f"segment of {len(segment)} clips: expected the clips of each segment together, in film order")
    return np.split(np.arange(len(segment)), starts[1:])
