"""The only place that names folders. Nothing here creates one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfx.profile import Profile

ROOT = Path(os.environ.get("NFX_ROOT") or Path(__file__).resolve().parents[1]).resolve()
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+(@\S+)?")


def data_set(profile: Profile) -> Path:
    """Folder of the data set in its published layout (``stimuli/``, ``subject1/``, ...)."""
    return ROOT / profile.data.root / "video_fmri_dataset"


def work(profile: Profile, *parts: str | os.PathLike[str]) -> Path:
    """Folder, or a path below it, of what the notebooks hand to each other."""
    return ROOT.joinpath("work", profile.name, *parts)


def figures(profile: Profile, *parts: str | os.PathLike[str]) -> Path:
    """Folder, or a path below it, of the figures and tables."""
    return ROOT.joinpath("figures", profile.name, *parts)


def model_record() -> Path:
    """The file that records which revision of each hub model is in use (`nfx.weights`); one for all profiles."""
    return ROOT / "data" / "models.json"


def is_hub_name(name: str) -> bool:
    """Whether a model's name can be a repository on the model hub, ``owner/name`` or ``owner/name@revision``."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith("nfx/")


def snapshot(name: str) -> str:
    """Folder to give ``from_pretrained`` for a model named in a profile. No network is needed.

    Parameters
    ----------
    name : str
        A folder, absolute or relative to the repository, or an ``owner/name`` on the model hub, with ``@revision`` if
        not its main branch.

    Returns
    -------
    str
        The absolute folder if there is one, else that of the hub model's recorded revision (`nfx.weights`).

    Raises
    ------
    FileNotFoundError
        If `name` is neither an existing folder nor a hub name, or that model has not been fetched, or not wholly.
    ValueError
        If a fetched model's files are not those recorded, or another revision is asked for; or a stand-in's are not
        those that were shipped.
    """
    folder = ROOT / name
    if folder.is_dir():
        from nfx.weights import require_shipped

        require_shipped(folder)
        return str(folder)
    if is_hub_name(name):
        from nfx.weights import recorded_folder

        return str(recorded_folder(name))
    raise FileNotFoundError(
        f"no model snapshot at {folder}: expected a folder written by save_pretrained, or an owner/name on the "
        "model hub. The stand-in models are trained again by ./run_all.sh stand-ins"
    )
