"""Reading dense CIFTI time series (`.dtseries.nii`), the format of the published recordings."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis


class Cifti(NamedTuple):
    """One recording and the place of each of its columns in the brain.

    Attributes
    ----------
    data : array of shape (volumes, grayordinates), float32
    structure : array of shape (grayordinates,), str
        CIFTI structure, for instance `CIFTI_STRUCTURE_CORTEX_LEFT`.
    vertex : array of shape (grayordinates,), int
        Vertex of that structure's surface; -1 for a voxel of a volume structure.
    """

    data: np.ndarray
    structure: np.ndarray
    vertex: np.ndarray


def read_cifti(path: str | Path) -> Cifti:
    """Read a dense time series by the file's own brain-model axis.

    Any number of volumes and any set of grayordinates is read. The time step in the header is
    not looked at: in the published data it is wrong, and 2 s are meant (Section 4.2).

    Parameters
    ----------
    path : path of a `.dtseries.nii` file

    Returns
    -------
    Cifti
        data (volumes, grayordinates) float32, structure, vertex.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CIFTI time series, is cut short, or holds values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a CIFTI time series (.dtseries.nii)")
    try:
        image = nibabel.load(path)
    except Exception as error:  # nibabel raises many kinds for a damaged header
        raise ValueError(f"{path} cannot be read as CIFTI ({_line(error)}); fetch or make it again") from error
    if not isinstance(image, Cifti2Image):
        kind = type(image).__name__
        raise ValueError(f"{path} is not CIFTI but {kind}; expected a dense time series (.dtseries.nii)")
    series, brain = _axes(image, path)
    try:
        # One conversion to float32 in memory: the file may be memory-mapped, scaled or of the other byte order.
        data = np.array(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise ValueError(
            f"{path} is cut short or damaged: {len(series)} volumes of {len(brain)} grayordinates are announced, "
            f"but its data cannot be read ({_line(error)}); fetch or make it again"
        ) from error
    if data.shape != (len(series), len(brain)):
        raise ValueError(f"{path} holds data of shape {data.shape}, its header says {(len(series), len(brain))}")
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise ValueError(f"{path} holds {bad} values that are NaN or infinite; expected finite BOLD values")
    return Cifti(data, np.asarray(brain.name, dtype=str), np.asarray(brain.vertex, dtype=np.int64))


def _line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())


def _axes(image: Cifti2Image, path: Path) -> tuple[SeriesAxis, BrainModelAxis]:
    """The time axis and the brain-model axis of a dense time series."""
    axes = [image.header.get_axis(index) for index in range(image.ndim)]
    if len(axes) != 2 or not isinstance(axes[0], SeriesAxis) or not isinstance(axes[1], BrainModelAxis):
        found = ", ".join(type(axis).__name__ for axis in axes)
        raise ValueError(f"{path} has the axes ({found}); expected a dense time series (SeriesAxis, BrainModelAxis)")
    return axes[0], axes[1]
