"""Reading dense CIFTI time series (`.dtseries.nii`), the format of the published recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel import Nifti2Image
from nibabel.cifti2 import BrainModelAxis, Cifti2Header, SeriesAxis
from nibabel.cifti2.parse_cifti2 import Cifti2Extension, _Cifti2AsNiftiImage

from nfx.files import one_line

LARGEST_EXPONENT = 24  # of ten, in the time step: a yoctosecond


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
        image, header = _opened(path)
        size, shape, width = path.stat().st_size, image.shape[4:], image.dataobj.dtype.itemsize
        needed = image.dataobj.offset + math.prod(shape) * width
        if min(shape, default=0) < 1 or width < 1 or size < needed:
            raise ValueError(
                f"it has {size} bytes, and its header announces {needed} for data of shape {shape}, {width} bytes each"
            )
        series, brain = checked_axes(header, shape)
        # One conversion to float32 in memory: the file may be memory-mapped, scaled or of the other byte order.
        data = np.array(image.dataobj, dtype=np.float32).reshape(len(series), len(brain))
    except Exception as error:  # nibabel raises many kinds for a damaged header
        raise ValueError(
            f"{path} is not CIFTI, or is damaged ({one_line(error)}); expected a dense time series (.dtseries.nii): "
            "fetch or make it again"
        ) from error
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise ValueError(f"{path} holds {bad} values that are NaN or infinite; expected finite BOLD values")
    return Cifti(data, np.asarray(brain.name, dtype=str), np.asarray(brain.vertex, dtype=np.int64))


def time_step(path: str | Path) -> float | None:
    """Seconds between volumes by a recording's header; None if it does not say.

    Raises
    ------
    ValueError
        If the header cannot be read.
    """
    try:
        series = _opened(Path(path))[1].get_index_map(0)
        if series.indices_map_to_data_type != "CIFTI_INDEX_TYPE_SERIES" or series.series_unit != "SECOND":
            return None
        return float(series.series_step * 10.0**series.series_exponent)
    except Exception as error:  # nibabel raises many kinds for a damaged header
        raise ValueError(f"{path} is not CIFTI, or its header is damaged ({one_line(error)}); make it again") from error


def _opened(path: Path) -> tuple[Nifti2Image, Cifti2Header]:
    """A recording as nibabel itself opens it first. `nibabel.load` goes on to compute the axes, of whatever size."""
    image = _Cifti2AsNiftiImage.from_filename(path)
    headers = [part.get_content() for part in image.header.extensions if isinstance(part, Cifti2Extension)]
    if not headers or image.shape[:4] != (1, 1, 1, 1):
        raise ValueError(f"there is no CIFTI header, or data have the shape {image.shape}")
    return image, headers[0]


def checked_axes(header: Cifti2Header, shape: Sequence[int]) -> tuple[SeriesAxis, BrainModelAxis]:
    """The time axis and the brain-model axis of a dense time series of this shape.

    Raises
    ------
    ValueError
        If the axes are others, or the header claims places or powers of ten that would take memory or hours. nibabel
        raises many other kinds for a damaged one.
    """
    for index, length in enumerate(shape):
        along = header.get_index_map(index)
        counts = [model.index_count for model in along.brain_models]
        if counts and (min(counts) < 0 or sum(counts) != length):
            raise ValueError(f"it has {length} columns, and places for {sum(counts)}")
        if abs(along.series_exponent or 0) > LARGEST_EXPONENT:
            raise ValueError(f"the time step has the exponent {along.series_exponent}")
    axes = [header.get_axis(index) for index in range(len(shape))]
    if len(axes) != 2 or not isinstance(axes[0], SeriesAxis) or not isinstance(axes[1], BrainModelAxis):
        found = ", ".join(type(axis).__name__ for axis in axes)
        raise ValueError(f"axes ({found}), expected (SeriesAxis, BrainModelAxis)")
    return axes[0], axes[1]
