"""The benchmarks' harness, and that their plain references do the same work; times are in `python tests/benchmarks`."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dataset import write_film

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import floors  # noqa: E402
import plain_data  # noqa: E402
import table  # noqa: E402
from test_demo import at_work, spans  # noqa: E402

from nfx.attention.maps import attention_maps  # noqa: E402
from nfx.data import read_clips  # noqa: E402
from nfx.data.cleaning import clean_run  # noqa: E402
from nfx.encoder import FMRIEncoder  # noqa: E402
from nfx.evaluation import n_way_pairs, ssim  # noqa: E402


def columns(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_times_and_ratios():
    rows = [
        table.Row("clean", 0.3, 0.1, 12.0, (2.0, 4.1), "of a run"),
        table.Row("memory", 4.0, plain=10.0, unit="GB"),
        table.Row("the demo", math.nan, unit="min"),
    ]
    text = table.render(rows, "a machine")
    lines = [columns(line) for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == list(table.COLUMNS)
    assert lines[2] == ["1. clean", "300 ms", "100 ms", "3.00", "12.0 s", "40.0", "2.00", "4.10"]
    assert lines[3] == ["2. memory", "4.00 GB", "", "", "10.0 GB", "2.50", "", ""]
    assert lines[4] == ["3. the demo", *[""] * 7]
    assert text.startswith("a machine\n") and "\n1. clean: of a run\n" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_floors_grow_with_the_work_and_the_header_tells_them(monkeypatch):
    monkeypatch.setattr(floors, "COPIED", 1 << 16)
    monkeypatch.setattr(floors, "MATRIX", {"cpu": 32, "cuda": 32})
    try:
        assert 0 < floors.seconds_for_bytes(1e6) == pytest.approx(floors.seconds_for_bytes(2e6) / 2)
        assert 0 < floors.seconds_for_operations(1e6) == pytest.approx(floors.seconds_for_operations(2e6) / 2)
        assert re.search(r"\d cores .* torch .* memory [\d.]+ GB/s, .* [\d]+ Gflop/s", table.header())
    finally:  # what was measured with arrays this small is no floor
        floors.bandwidth.cache_clear()
        floors.matrix_rate.cache_clear()


def test_times_of_notebooks_side_by_side_count_once(tmp_path):
    assert at_work([(0, 10), (5, 12), (20, 21), (6, 7)]) == 13
    assert spans(tmp_path) == {}


def test_the_plain_cleaning_is_ours():
    volume = np.linspace(0, 1, 245, dtype=np.float32)[:, None]
    bold = 1e4 + 500 * volume**3 + 100 * np.random.default_rng(0).standard_normal((245, 3), dtype=np.float32)
    np.testing.assert_allclose(clean_run(bold), plain_data.clean_by_voxel(bold[1:-4]), rtol=0, atol=1e-4)


def test_the_plain_frames_are_ours(tmp_path):
    film = write_film(tmp_path / "film.mp4", range(120))
    np.testing.assert_array_equal(
        plain_data.frames_by_seeking(film, 32, 12), read_clips(film, 32).reshape(12, 32, 32, 3)
    )


def test_the_plain_scores_are_ours():
    rng = np.random.default_rng(0)
    truth, decoded = rng.integers(0, 256, (2, 2, 2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(plain_data.ssim_by_frame(truth, decoded), ssim(truth, decoded), rtol=0, atol=1e-6)
    logits = rng.standard_normal((2, 4, 60))
    np.random.seed(0)
    found = plain_data.n_way_by_trial(*logits, 10, 400)
    expected = np.diag(n_way_pairs(*logits, 10))
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 400) + 1e-12).all()


def test_the_plain_attention_is_ours():
    torch.manual_seed(0)
    encoder = FMRIEncoder(voxels=40, window=2, patch_size=16, dim=16, depth=3, heads=2, tokens=4, token_dim=8).eval()
    torch.nn.init.normal_(encoder.layers[0].temporal_attention.out.weight)
    bold = np.random.default_rng(0).standard_normal((3, 2, 40), dtype=np.float32)
    for layer in (0, 2):
        expected = plain_data.attention_by_clip(encoder, bold, layer)
        np.testing.assert_allclose(attention_maps(encoder, bold, layer).received, expected, rtol=1e-4)
