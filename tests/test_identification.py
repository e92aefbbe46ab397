import numpy as np
import pytest

from nfx.evaluation import identification as ident
from nfx.evaluation.controls import blocks, mean_frame, mid_grey

SEGMENT = np.repeat([1, 2, 3], 20)


def clips(rng, count=60, frames=3, size=8):
    return rng.integers(0, 256, (count, frames, size, size, 3)).astype(np.uint8)


def noisy(rng, truth, weight):
    """Part truth, part noise, on the scale of pixels."""
    return np.rint(weight * truth + (1 - weight) * rng.integers(0, 256, truth.shape)).astype(np.uint8)


def test_pixel_similarity_is_the_mean_correlation_of_frames(monkeypatch):
    rng = np.random.default_rng(0)
    truth, decoded = clips(rng, 5), clips(rng, 5)
    expected = [
        [np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]) for b in decoded]
        for a in truth
    ]
    np.testing.assert_allclose(ident.pixel_similarity(truth, decoded), expected, atol=1e-12)
    monkeypatch.setattr(ident, "CLIPS_AT_ONCE", 2)  # in parts, the same
    np.testing.assert_allclose(ident.pixel_similarity(truth, decoded), expected, atol=1e-12)


def test_a_flat_frame_is_like_nothing():
    truth = clips(np.random.default_rng(0), 4)
    assert (ident.pixel_similarity(truth, mid_grey(truth)) == 0).all()


def test_embedding_similarity_takes_the_mean_of_unit_frames():
    truth = np.array([[[1.0, 0], [0, 100]], [[-1, 0], [-5, 0]]])
    decoded = np.array([[[3.0, 3], [1, 1]], [[0, 1], [0, 1]]])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(ident.embedding_similarity(truth, decoded), [[1, root], [-root, 0]], atol=1e-12)
    with pytest.raises(ValueError, match="direction"):
        ident.embedding_similarity(truth, 0 * decoded)
    with pytest.raises(ValueError, match="clips, frames, dim"):
        ident.embedding_similarity(truth[:, 0], decoded[:, 0])


def test_two_way_by_hand_and_ties_count_half():
    similarity = np.array([[0.5, 0.9, 0.1], [0.2, 0.9, 0.4], [0.6, 0.1, 0.3]])
    # own 0.5 against 0.2 and 0.6; own 0.9 against a tie and 0.1; own 0.3 against 0.1 and 0.4
    np.testing.assert_allclose(ident.identification(similarity), [0.5, 0.75, 0.5])


@pytest.mark.parametrize("n_way", [2, 3, 6])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_closed_form_agrees_with_draws(n_way, in_blocks):
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 6, (12, 12)).astype(float)  # many ties
    block = np.repeat([0, 1, 2], [3, 4, 5]) if in_blocks else None
    found = ident.identification_pairs(similarity, n_way, block)
    for own, decoded in ((0, 0), (5, 5), (11, 2), (7, 7)):
        rivals = [i for i in range(12) if i != own and not (in_blocks and block[i] == block[own])]
        wins = []
        for _ in range(4000):
            drawn = rng.choice(rivals, n_way - 1, replace=False)
            column = similarity[[own, *drawn], decoded] + 1e-3 * rng.random(n_way)  # ties fall at random
            wins.append(column.argmax() == 0)
        assert found[own, decoded] == pytest.approx(np.mean(wins), abs=0.03)


def test_own_block_is_left_out():
    block = np.repeat(np.arange(6), 10)
    similarity = (block[:, None] == block).astype(float)  # a decoder that knows the scene and no more
    scene = ident.identification(similarity, 2, block)
    assert (scene == 1).all()
    clip = ident.identification(similarity)
    np.testing.assert_allclose(clip, (50 + 9 / 2) / 59)


@pytest.mark.parametrize("n_way", [2, 10])
@pytest.mark.parametrize("blind", ["grey", "mean frame"])
def test_a_blind_decoder_is_at_chance_exactly(n_way, blind):
    truth = clips(np.random.default_rng(0))
    decoded = mid_grey(truth) if blind == "grey" else np.array(mean_frame(truth[:9], truth))
    similarity = ident.pixel_similarity(truth, decoded)
    assert ident.identification(similarity, n_way).mean() == pytest.approx(ident.identification_chance(n_way), abs=1e-9)
    null = ident.permuted_identification(similarity, SEGMENT, 5, n_way, permutations=200)
    assert null.p > 0.3


def test_table_finds_a_decoder_and_no_decoder():
    rng = np.random.default_rng(1)
    truth = clips(rng)
    similarities = {
        "good": ident.pixel_similarity(truth, noisy(rng, truth, 0.3)),
        "none": ident.pixel_similarity(truth, clips(rng)),
        "perfect": ident.pixel_similarity(truth, truth),
    }
    table = ident.identification_table(similarities, SEGMENT, 5, n_way=20, subject=1)
    assert len(table) == 3 * 2 * 2 and set(table["rivals"]) == {"all", "other blocks"}
    assert (table["subject"] == 1).all() and (table["clips"] == 60).all()
    by = table.set_index("by")
    assert (by.loc["perfect", "mean"] == 1).all()
    assert (by.loc["good", "low"] > by.loc["good", "chance"]).all() and (by.loc["good", "p"] < 0.01).all()
    assert (by.loc["none", "p"] > 0.02).all()
    kept = (table["mean"] - table["chance"]) / 12  # in a random order one of the 12 blocks stays in place
    assert (abs(table["shuffled"] - table["chance"] - kept) < 0.04).all()


def test_p_is_uniform_without_a_decoder_in_spite_of_scenes():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(120):  # clips of a scene alike, in the truth and in what is decoded
        truth, decoded = (np.repeat(rng.standard_normal((12, 1, 8)), 5, 0) for _ in range(2))
        truth, decoded = (x + 0.1 * rng.standard_normal(x.shape) for x in (truth, decoded))
        similarity = ident.embedding_similarity(truth, decoded)
        block = blocks(SEGMENT, 5)
        p.append(ident.permuted_identification(similarity, SEGMENT, 5, 2, block, permutations=99).p)
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.11 and 0.4 < np.mean(p) < 0.6


def test_what_cannot_be_scored_is_an_error():
    with pytest.raises(ValueError, match="square"):
        ident.identification(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        ident.identification(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="rivals"):
        ident.identification(np.eye(4), 5)
    with pytest.raises(ValueError, match="rivals"):
        ident.identification(np.eye(4), 2, np.zeros(4))
    with pytest.raises(ValueError, match="at least 2"):
        ident.identification_chance(1)
    truth = clips(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="same clips"):
        ident.pixel_similarity(truth, truth[:2])
    with pytest.raises(ValueError, match="uint8"):
        ident.pixel_similarity(truth, truth / 255)
