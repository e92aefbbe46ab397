"""Data preparation (Sections 3.1.1 and 4.2): from the published layout to clips, voxels, windows and targets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nfx.data.cifti import Cifti, read_cifti
from nfx.data.cleaning import clean_run
from nfx.data.dataset import (
    Run,
    Split,
    SubjectData,
    clean_film,
    film_weights,
    list_runs,
    load_subject,
    natural_sort,
    prepare_pretraining,
    prepare_stimuli,
    prepare_subject,
    subject_runs,
)
from nfx.data.stimuli import read_clips
from nfx.data.voxels import choose_voxels, grayordinate, hierarchy_order, networks, parcels, reproducibility
from nfx.data.windows import split, time_average, windows

# The targets need torch and transformers, the simulator is not needed for real data: found on first use. The last two
# are also commands, `python -m nfx.data.fetch` and `.inspection`, that Python warns about if they are imported before.
_LATE = {
    "prepare_targets": "nfx.data.targets",
    "load_targets": "nfx.data.targets",
    "simulate_dataset": "nfx.data.simulator.writer",
    "simulate_recordings": "nfx.data.simulator.writer",
    "check_dataset": "nfx.data.inspection",
    "fetch_dataset": "nfx.data.fetch",
}

__all__ = [
    "Cifti",
    "Run",
    "Split",
    "SubjectData",
    "check_dataset",
    "choose_voxels",
    "clean_film",
    "clean_run",
    "fetch_dataset",
    "film_weights",
    "grayordinate",
    "hierarchy_order",
    "list_runs",
    "load_subject",
    "load_targets",
    "natural_sort",
    "networks",
    "parcels",
    "prepare_pretraining",
    "prepare_stimuli",
    "prepare_subject",
    "prepare_targets",
    "read_cifti",
    "read_clips",
    "reproducibility",
    "simulate_dataset",
    "simulate_recordings",
    "split",
    "subject_runs",
    "time_average",
    "windows",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'nfx.data' has no attribute '{name}'")
