"""Gathering of notebook 06, on small encoders and made-up attention."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nfx.attention import analysis
from nfx.attention.maps import AttentionMaps

CLIPS, PATCHES, SIZE = 24, 12, 4
SEGMENT = np.repeat([1, 2], 12)


def made_up(seed: int = 0) -> AttentionMaps:
    received = np.random.default_rng(seed).uniform(0.2, 0.4, (CLIPS, PATCHES))
    return AttentionMaps(received, received.sum(axis=1))


def test_categories_follow_from_the_words():
    captions = ["a red cat moving left", "A man, a plane", "two people walking.", "burger on grass", "category"]
    assert analysis.clip_categories(captions).tolist() == ["cat", "", "person", "food", ""]


def test_categories_of_the_simulator_are_all_found():
    from nfx.data.simulator.scenes import OBJECTS

    found = analysis.clip_categories([f"a red {name} moving left on grass" for name in OBJECTS])
    assert dict(zip(OBJECTS, found, strict=True)) | {"cat": "cat", "burger": "food"} == {
        "person": "person", "cat": "cat", "turtle": "", "fish": "", "airplane": "airplane", "burger": "food",
        "car": "", "mountain": "",
    }  # fmt: skip


def test_share_table_finds_attention_that_follows_the_signal():
    share = np.linspace(0, 1, PATCHES * SIZE)
    follows = AttentionMaps(np.tile(np.arange(PATCHES, dtype=float), (CLIPS, 1)), np.ones(CLIPS))
    table = analysis.share_table({"full": {"last": follows}}, share, SIZE)
    assert table.loc[0, "rho"] == pytest.approx(1)
    assert table.loc[0, "p"] == pytest.approx(1 / PATCHES)


def test_network_blocks_are_means_of_a_network_in_a_block():
    values = np.repeat(np.arange(CLIPS, dtype=float)[:, None], 3, axis=1) + [0, 10, 100]
    blocks = analysis.network_blocks(values, np.array(["VisCent", "VisCent", "DefaultA"]), SEGMENT, 6)
    np.testing.assert_allclose(blocks["VisCent"], [7.5, 13.5, 19.5, 25.5])
    np.testing.assert_allclose(blocks["DefaultA"], [102.5, 108.5, 114.5, 120.5])
    assert blocks["VisPeri"].isna().all()


def test_total_blocks_keep_stages_apart():
    low, high = made_up(), made_up()._replace(total=np.full(CLIPS, 9.0))
    found = analysis.total_blocks({"pre-trained": {"last": low}, "full": {"last": high}}, SEGMENT, 6)
    np.testing.assert_allclose(found["full"]["total"], 9)
    assert len(found["pre-trained"]) == 4 and (found["pre-trained"]["total"] < 9).all()


def test_contrasts_find_the_planted_category_and_tell_why_not():
    category = np.array(["cat", "cat", "", "food", "food", ""] * 4)
    parcel = np.array(["L_FFC", "R_V1"])
    values = np.random.default_rng(0).normal(0, 0.01, (CLIPS, 2))
    values[category == "cat", 0] += 1
    table = analysis.contrast_table(values, parcel, category, np.arange(CLIPS), SEGMENT).set_index("region")
    assert table.loc["fusiform", "difference"] == pytest.approx(1, abs=0.05)
    assert table.loc["fusiform", "permutation_p"] < 0.05
    assert table.loc["fusiform", "scenes of first"] == 4
    assert pd.isna(table.loc["body area", "p"]) and "no" in table.loc["body area", "why not"]


def test_category_maps_leave_out_what_was_not_shown():
    category = np.array(["cat"] * 12 + ["food"] * 12)
    values = np.where(category == "cat", 2.0, 1.0)[:, None] * np.ones((1, 3))
    maps = analysis.category_maps(values, np.array([5, 7, 40_000]), category)
    assert set(maps) == {"fusiform"}
    assert maps["fusiform"]["cat"][7] == 2 and maps["fusiform"]["food"][40_000] == 1
    assert np.isnan(maps["fusiform"]["cat"][6])


def test_attention_of_stages_is_one_map_a_clip_and_layer():
    from nfx.encoder import FMRIEncoder

    encoder = FMRIEncoder(voxels=20, window=2, patch_size=4, dim=8, depth=3, heads=2, tokens=4, token_dim=8)
    bold = np.random.default_rng(0).standard_normal((3, 2, 20)).astype(np.float32)
    maps = analysis.attention_of_stages({"full": encoder}, bold)["full"]
    assert list(maps) == ["first", "middle", "last"]
    assert maps["last"].received.shape == (3, 5)
    values = analysis.voxel_values(maps["last"], encoder)
    assert values.shape == (3, 20)
    np.testing.assert_allclose(values[:, :4], np.repeat(maps["last"].received[:, :1], 4, axis=1))
    np.testing.assert_allclose(maps["last"].total, maps["last"].received.sum(axis=1), rtol=1e-6)


def test_stage_encoders_name_the_notebook_that_is_missing(tmp_path, monkeypatch):
    from nfx import paths
    from nfx.profile import load_profile

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="02_encoder_contrastive_training"):
        analysis.stage_encoders(load_profile("demo"), 1)
