"""SSIM and the 50-way test over the published test set: 1,200 clips of six frames."""

import floors
import numpy as np
import plain_data
import pytest

from nfx.evaluation import n_way_top_k, ssim

CLIPS, FRAMES = 1200, 6


def test_ssim(row, quick):
    size, timed = (64, 4) if quick else (256, 16)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (4 * timed, FRAMES, size, size, 3), dtype=np.uint8)
    decoded = np.clip(truth + rng.normal(0, 30, truth.shape[1:]), 0, 255).astype(np.uint8)
    few = slice(0, 2)
    expected = plain_data.ssim_by_frame(truth[few], decoded[few])
    np.testing.assert_allclose(ssim(truth[few], decoded[few]), expected, rtol=0, atol=1e-6)
    pixels = truth[:timed].size
    row(
        f"SSIM of {CLIPS:,} x {FRAMES} frames of {size} x {size}",
        lambda: ssim(truth[:timed], decoded[:timed]),
        floor=floors.seconds_for_bytes(2 * pixels),
        plain=lambda: plain_data.ssim_by_frame(truth[few], decoded[few]),
        scale=CLIPS / timed,
        plain_scale=CLIPS / 2,
        grown=(lambda: ssim(truth[: 2 * timed], decoded[: 2 * timed]), lambda: ssim(truth, decoded)),
        notes=f"of {timed} clips and scaled. Floor: both films read once. Plain: one skimage call after another, for 2 "
        "clips and scaled. Equal within 1e-6. Doubled: clips",
    )


@pytest.mark.parametrize(("kind", "classes", "rows"), [("image", 1000, CLIPS * FRAMES), ("video", 400, CLIPS)])
def test_50_way(row, quick, kind, classes, rows):
    rows = rows // 20 if quick else rows
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((4 * rows, classes))
    decoded = 0.3 * truth + rng.standard_normal(truth.shape)
    few = 30 if quick else 60
    np.random.seed(0)
    expected = plain_data.n_way_by_trial(truth[:few], decoded[:few], 50, 100)
    found = n_way_top_k(truth[:few], decoded[:few])
    # Both draw 100 trials a clip: the deviation of the mean of the differences is at most sqrt(0.5 / 100 / clips).
    assert abs(found.mean() - expected.mean()) < 4 * np.sqrt(0.5 / 100 / few)
    row(
        f"50-way test, {kind}: {rows:,} of {classes:,} classes",
        lambda: n_way_top_k(truth[:rows], decoded[:rows]),
        floor=floors.seconds_for_bytes(2 * truth[:rows].nbytes),
        plain=lambda: plain_data.n_way_by_trial(truth[:few], decoded[:few], 50, 100),
        plain_scale=rows / few,
        plain_rounds=2,
        grown=(lambda: n_way_top_k(truth[: 2 * rows], decoded[: 2 * rows]), lambda: n_way_top_k(truth, decoded)),
        rounds=3,
        notes=f"{'frames' if kind == 'image' else 'clips'}, 100 trials. Floor: the scores read once. Plain: a loop "
        f"over trials with np.random.choice, for {few} and scaled. Equal in distribution: means within 4 standard "
        "errors. Doubled: clips; the draws of a class are shared by its clips, so the cost grows by less",
    )
