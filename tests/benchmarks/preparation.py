"""How long the preparation of a run of the published size takes, against the plain reading of as many bytes.

    python tests/benchmarks/preparation.py [REPEATS]

Ratios carry over from machine to machine better than times do, which are printed beside them. Nothing is asserted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from nibabel.cifti2 import BrainModelAxis

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]  # tests/ and the repository
from helpers_dataset import surface_sample, write_cifti  # noqa: E402

from nfx.data import grayordinate, read_cifti  # noqa: E402
from nfx.data.cleaning import average_volumes, clip_weights, detrend_and_z_score, resample, trim  # noqa: E402
from nfx.data.voxels import _atlases, correlation  # noqa: E402

VOLUMES, GRAYORDINATES = 245, 91282


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs: what the machine can do when nothing else happens."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(repeats: int) -> None:
    info = _atlases().vertex_info
    brain = surface_sample(info.grayl, info.grayr)
    size = GRAYORDINATES - len(brain)
    brain += BrainModelAxis.from_mask(np.ones((size, 1, 1), bool), name="OTHER", affine=np.eye(4))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        bold = 1e4 + 100 * rng.standard_normal((VOLUMES, GRAYORDINATES), dtype=np.float32)
        path = write_cifti(Path(folder) / "seg1_1_Atlas.dtseries.nii", bold, brain)
        plain = seconds(lambda: np.fromfile(path, dtype=np.uint8).sum(), repeats)
        cifti = read_cifti(path)
        cortex = np.flatnonzero(grayordinate(cifti.structure, cifti.vertex) >= 0)
        part = cifti.data[:, cortex]
        cleaned = detrend_and_z_score(trim(part))[0]
        fast = clip_weights(VOLUMES, 2.0, 1.3, 240)
        steps = {
            "read a run": lambda: read_cifti(path),
            "cut to cortex": lambda: cifti.data[:, cortex],
            "trim, detrend, z-score": lambda: detrend_and_z_score(trim(part)),
            "resample instead of trimming": lambda: resample(part, fast),
            "correlate two repeats": lambda: correlation(cleaned, cleaned[::-1]),
            "average volumes by tens": lambda: average_volumes(part, 10),
        }
        print(f"{VOLUMES} volumes of {GRAYORDINATES} grayordinates, {path.stat().st_size / 1e6:.0f} MB")
        print(f"{'read as many bytes and add them up':34s}   1.0  {plain:6.2f} s")
        for name, step in steps.items():
            took = seconds(step, repeats)
            print(f"{name:34s} {took / plain:5.1f}  {took:6.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
