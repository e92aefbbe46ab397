"""Pages of every module's docstrings: python docs/api.py FOLDER. What pdoc warns about is an error."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import get_type_hints

import pdoc

import nfx
from nfx.profile import Profile


def build(folder: Path) -> None:
    """Write the pages to a folder; index.html is the first."""
    found = pkgutil.walk_packages(nfx.__path__, "nfx.")
    names = ["nfx", *(module.name for module in found if not module.name.endswith("__main__"))]
    for module in map(importlib.import_module, names):
        for name in getattr(module, "__all__", ()):  # pdoc does not see what is found on first use
            setattr(module, name, getattr(module, name))
        for kind in list(vars(module).values()):
            if isinstance(kind, type) and issubclass(kind, tuple) and kind.__module__ == module.__name__:
                # A NamedTuple's constructor, where pdoc looks, does not know the module's names.
                kind.__new__.__annotations__ = get_type_hints(kind, localns={"Profile": Profile})
    given, covered = [], set()  # pdoc finds the modules of a package by itself, unless the package has an __all__
    for name in names:
        if name not in covered:
            given.append(name)
            covered |= set(pdoc.extract.walk_specs([name]))
    pdoc.render.configure(docformat="numpy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\b")
        pdoc.pdoc(*given, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
