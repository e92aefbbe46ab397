"""How few evaluations of the UNet give the clips that DDIM gives in 200? Solvers and numbers of steps compared.

The first subject's decoder of the headline row decodes the same clips from the same first noise with every solver of
`nfx.diffusion.solvers` and every number of steps of `STEPS`, and with the reference, DDIM in 200 steps (MinD-Video's
number, and the profile ``paper``'s). A step is one evaluation of the UNet, which both branches of the guidance share.

Two answers are given, each with its margin, which was set before anything was decoded:

- *the same scores*: the 95 % interval of the mean difference to the reference, clip by clip, lies within the margin of
  every score of `MARGINS`;
- *the same clip*: the lower limit of the mean SSIM between the clip and the reference's clip is at least `SAME_CLIP`.

This is a test of equivalence: too few clips fail it, and no absence of a difference passes it. Each solver's numbers of
steps are tested from the largest down and the first to fail ends it, so that the level needs no correction for how many
there are. Validation clips choose; test clips are then decoded with what was chosen, and report.

What is decoded goes to ``work/<profile>/solvers/subject<k>``. One command: ``python -m nfx.evaluation.solvers SUBJECT
[--profile demo]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.diffusion.solvers import SOLVERS, TITLES
from nfx.evaluation.controls import block_bootstrap
from nfx.evaluation.decoded import (
    Decoded,
    decode_and_score,
    decode_windows,
    evenly_spaced,
    load_decoded,
    load_pipeline,
    run_folder,
    sampling_facts,
)
from nfx.evaluation.ssim import ssim
from nfx.evaluation.tables import block_length
from nfx.plots import COLOURS, new_figure, panel_letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nfx.profile import Profile

COMMAND = "python -m nfx.evaluation.solvers"
CODE = ("evaluation/solvers.py", "evaluation/controls.py", "evaluation/ssim.py")
STEPS = (4, 6, 8, 12, 16, 25, 50)
REFERENCE = ("ddim", 200)
CLIPS = 40  # of each part, evenly spaced
# The largest difference to the reference that is taken for none. SSIM: less than lies between rows 8 and 9 of Table 1
# (0.012); accuracies: 2 of 40 clips; the change from frame to frame: a share of the reference's.
MARGINS = {"SSIM": 0.01, "image": 0.05, "video": 0.05, "change": 0.1}
SAME_CLIP = 0.95
COLUMNS = {"SSIM": "ssim", "image": "image_top1_1", "video": "video_top1_1"}  # of scores.csv; one correct class
SIMILARITY = "SSIM to reference"
SCORES, CLIP = "same scores", "same clip"  # the two answers


# --- decoding ------------------------------------------------------------------------------------------------


def study_folder(profile: Profile, subject: int) -> Path:
    """``work/<profile>/solvers/subject<k>``."""
    return paths.work(profile, "solvers", f"subject{subject}")


def decode(profile: Profile, subject: int, solver: str, steps: int, part: str) -> Path:
    """Decode and score `CLIPS` clips of "validation" or "test" with a solver in so many steps; finished ones are kept.

    Noise, guidance and decoder are those of `nfx.evaluation.decoded.decode_run` with the headline row.

    Returns
    -------
    Path
        ``<study folder>/<solver>_<steps>_<part>``; read it with `nfx.evaluation.decoded.load_decoded`.

    Raises
    ------
    FileNotFoundError
        If the stimuli, the subject or the decoder are missing.
    """
    from nfx.data import load_subject

    changed = _with_sampling(profile, solver, steps)
    data = load_subject(profile, subject)
    split = getattr(data, part)
    chosen = evenly_spaced(len(split.clip), CLIPS)
    clips, fmri = split.clip[chosen], split.fmri[chosen]
    # As in `decode_run`: test clips are counted after the training clips.
    numbers = clips + (len(data.train.clip) + len(data.validation.clip) if part == "test" else 0)
    trained = run_folder(profile, subject, profile.headline_row) / "pipeline"
    film = "test" if part == "test" else "train"
    facts = {
        "pipeline": files.identity(trained),
        "fmri": files.identity(paths.work(profile, f"subject{subject}"), f"{film}_fmri", f"{film}_segment"),
        "clips": clips,
        **sampling_facts(changed),
    }
    pipeline = cache(lambda: load_pipeline(trained))  # a finished one needs none

    def decoder(block: slice) -> np.ndarray:
        return decode_windows(changed, pipeline(), numbers[block], fmri=fmri[block])

    folder = study_folder(profile, subject) / f"{solver}_{steps}_{part}"
    return decode_and_score(changed, folder, {part: clips}, {part: decoder}, facts)


def _with_sampling(profile: Profile, solver: str, steps: int) -> Profile:
    sampling = profile.sampling.model_copy(update={"solver": solver, "steps": steps})
    return profile.model_copy(update={"sampling": sampling})
