"""The only place that names folders. Nothing here creates one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfx.profile import Profile

ROOT = Path(os.environ.get("NFX_ROOT") or Path(__file__).resolve().parents[1]).resolve()


def data_set(profile: Profile) -> Path:
    """Folder of the data set in its published layout (``stimuli/``, ``subject1/``, ...)."""
    return ROOT / profile.data.root / "video_fmri_dataset"


def work(profile: Profile, *parts: str | os.PathLike[str]) -> Path:
    """Folder, or a path below it, of what the notebooks hand to each other."""
    return ROOT.joinpath("work", profile.name, *parts)


def figures(profile: Profile, *parts: str | os.PathLike[str]) -> Path:
    """Folder, or a path below it, of the figures and tables."""
    return ROOT.joinpath("figures", profile.name, *parts)


def snapshot(name: str) -> str:
    """What to give ``from_pretrained`` for a model named in a profile.

    Parameters
    ----------
    name : str
        A folder, absolute or relative to the repository, or an ``owner/name`` on the model hub.

    Returns
    -------
    str
        The absolute folder if there is one, else the hub name unchanged.

    Raises
    ------
    FileNotFoundError
        If `name` is neither an existing folder nor of the form ``owner/name``.
    """
    folder = ROOT / name
    if folder.is_dir():
        return str(folder)
    if name.count("/") == 1 and not name.startswith(("/", ".", "nfx/")):
        return name
    raise FileNotFoundError(
        f"no model snapshot at {folder}: expected a folder written by save_pretrained, or an owner/name on the "
        "model hub. The stand-in models are trained again by ./run_all.sh stand-ins"
    )
