"""NeuralFlix companion: from fMRI recordings to reconstructed video, one folder per section of the paper.

Importing the package is cheap. The three model classes are found on first use, because ``diffusers`` resolves a
saved pipeline's own components as attributes of the package that defines them.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

with warnings.catch_warnings():  # what diffusers and transformers import warns in a notebook that has no widgets
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401

__version__ = "0.1.0"

_MODELS = {"FMRIEncoder": "nfx.encoder", "VideoUNet": "nfx.diffusion", "NeuralFlixPipeline": "nfx.diffusion"}

__all__ = ["__version__", *_MODELS]


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return getattr(import_module(_MODELS[name]), name)
    raise AttributeError(f"module 'nfx' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODELS])
