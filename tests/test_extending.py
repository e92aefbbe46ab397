"""The code of docs/extending.md, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import tiny_baselines as toy
import torch

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def code(section: str) -> list[str]:
    """The Python blocks below a heading."""
    return re.findall(r"```python\n(.*?)```", PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0], flags=re.DOTALL)


def run(section: str) -> dict:
    names: dict = {}
    for block in code(section):
        exec(block, names)
    return names


def test_every_block_of_the_page_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    for section in re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE):
        assert f'("{section}")' in here, section


def test_an_augmentation():
    names = run("An augmentation")
    tokens = torch.rand(5, 2, 10, 4) + 1
    masked = names["patch_mask"](tokens, 0.35, torch.Generator().manual_seed(0))
    hidden = (masked == 0).all(dim=3)
    assert (hidden.sum(dim=2) == 3).all() and torch.equal(hidden[:, 0], hidden[:, 1])
    assert torch.equal(masked[~hidden], tokens[~hidden]) and len(torch.unique(hidden[:, 0], dim=0)) > 1
    assert names["loss"].ndim == 0 and torch.isfinite(names["loss"]) and names["loss"].requires_grad


def test_a_baseline(tmp_path, monkeypatch):
    from nfx import baselines, paths
    from nfx.evaluation import decoded

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (block,) = code("A baseline")
    module = ModuleType("nfx.baselines.most_alike")
    exec(block.replace('"baselines/most_alike.py"', '"baselines/wen2018.py"'), module.__dict__)  # a file that is there
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(baselines, "TITLES", {**baselines.TITLES, "most_alike": "most alike"})
    monkeypatch.setattr(baselines, "NAMES", tuple(baselines.TITLES))
    monkeypatch.setattr(decoded, "model_digest", lambda model: model)
    monkeypatch.setattr(
        decoded, "score_clips", lambda truth, clips, *_: pd.DataFrame({"ssim": np.zeros(len(clips))})
    )  # fmt: skip
    made = toy.make(tmp_path, steps=1)
    module.train(made.profile, 1)  # while the test part is not there
    made.reveal()
    baselines.decode(made.profile, "most_alike", 1)
    run = baselines.decoded(made.profile, 1)["most alike"]
    matched, shifted = toy.alignment(run.test.decoded, made.clips)
    assert matched > 0.8 and matched > shifted + 0.2


def test_a_metric():
    names = run("A metric")
    error = names["colour_error"]
    black, grey = np.zeros((2, 6, 4, 4, 3), np.uint8), np.full((2, 6, 4, 4, 3), 10, np.uint8)
    np.testing.assert_allclose(error(black, grey), 10 * np.sqrt(3))
    row = names["table"].iloc[0]
    assert row["low"] <= row["mean"] <= row["high"] and row["clips"] == 40
    assert names["difference"].difference < 0


def test_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("A data set")
    assert [(found.segment, found.repeat) for found in names["runs"]] == [("seg1", 1)]
    assert names["rows"].shape == (240, 400)
    np.testing.assert_allclose(names["rows"].std(axis=0, ddof=1), 1, atol=1e-5)


def test_the_places_that_it_names_are_there():
    import inspect

    from nfx import baselines
    from nfx.encoder import contrastive_loss
    from nfx.evaluation import methods
    from nfx.evaluation.metrics import clip_metrics
    from nfx.profile import Row

    assert "views[" in inspect.getsource(contrastive_loss)
    assert isinstance(Row.encoder, property) and isinstance(methods.SCORES, dict) and methods.COMPARED
    assert '"psnr":' in inspect.getsource(clip_metrics) and set(baselines.NAMES) == set(baselines.TITLES)
    with pytest.raises(ValueError):
        Row.model_validate({"patch_ratio": 0.2})
