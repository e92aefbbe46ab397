"""The paper's own sizes on a small machine: every model is made, saved, loaded and takes a step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nfx.paths import ROOT

# Millions, as the models' papers and cards give them. BLIP's 470 count the matrix of its word embeddings twice.
PARAMETERS = {"unet": 860, "vae": 84, "text encoder": 123, "clip": 428, "blip": 446, "vit": 87, "videomae": 87}


@pytest.mark.slow
def test_one_step_of_everything_at_the_papers_sizes(tmp_path):
    script = Path(__file__).with_name("full_size.py")
    environment = os.environ | {"NFX_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    try:
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=1800)
    finally:
        shutil.rmtree(tmp_path)  # 15 GB, which pytest would keep
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found["seconds"]), f"peak {found['peak_bytes'] / 1e9:.1f} GB")
    assert found["shapes"] == {
        "captions": [1], "text embeddings": [2, 768], "image embeddings": [2, 768], "text states": [2, 77, 768],
        "latents": [2, 4, 32, 32], "image logits": [2, 1000], "video logits": [1, 400],
    }  # fmt: skip
    assert found["clips"] == [1, 6, 256, 256, 3] and found["range"][0] < found["range"][1]
    for name, millions in PARAMETERS.items():
        assert found["parameters"][name] / 1e6 == pytest.approx(millions, rel=0.01), name
    assert found["parameters"]["video unet"] > found["parameters"]["unet"]
    assert found["peak_bytes"] < 20e9
