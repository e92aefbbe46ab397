"""Pages of every module's docstrings: python docs/api.py FOLDER. What pdoc warns about is an error."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import nfx


def build(folder: Path) -> None:
    """Write the pages to a folder; index.html is the first."""
    found = pkgutil.walk_packages(nfx.__path__, "nfx.")
    names = ["nfx", *(module.name for module in found if not module.name.endswith("__main__"))]
    for module in map(importlib.import_module, names):
        for name in getattr(module, "__all__", ()):  # pdoc does not see what is found on first use
            setattr(module, name, getattr(module, name))
    # pdoc finds the modules of a package by itself, unless the package says what it shows.
    names = [name for name in names if name == "nfx" or hasattr(sys.modules[name.rpartition(".")[0]], "__all__")]
    pdoc.render.configure(docformat="numpy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\b")
        pdoc.pdoc(*names, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
