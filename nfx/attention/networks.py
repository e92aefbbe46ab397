"""Attention by Yeo network and by functional region (Sections 3.3 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

NETWORKS = ("VisCent", "VisPeri", "DorsAttnA", "DorsAttnB", "DefaultA")  # Section 3.3, of the Yeo-17 parcellation
# Glasser's MMP parcels, without the hemisphere. The atlas has no "EBA": these lie where it is found, around MT+.
FUSIFORM = ("FFC",)
BODY_AREA = ("FST", "MST", "V4t", "MT", "LO3", "PH", "TPOJ2", "TPOJ3")


def network_means(values: np.ndarray, network: np.ndarray, names: Sequence[str] = NETWORKS) -> pd.DataFrame:
    """Mean over the voxels of each network.

    Parameters
    ----------
    values : (clips, voxels)
    network : (voxels,) of str
        Network of each voxel, of `nfx.data.networks`.
    names : networks to keep

    Returns
    -------
    DataFrame (clips, networks); NaN where a network has no voxel

    Raises
    ------
    ValueError
        If there is not one label a voxel.
    """
    network = np.asarray(network)
    if values.ndim != 2 or values.shape[1] != len(network):
        raise ValueError(
            f"values {values.shape} and {len(network)} labels: expected (clips, voxels) and one label a voxel"
        )
    means = {name: values[:, network == name] for name in names}
    return pd.DataFrame({name: x.mean(axis=1) if x.shape[1] else np.full(len(x), np.nan) for name, x in means.items()})


def in_region(parcel: np.ndarray, region: Sequence[str]) -> np.ndarray:
    """Whether a voxel lies in one of the region's parcels, in either hemisphere: bool (voxels,).

    Parameters
    ----------
    parcel : (voxels,) of str, "L_FFC", "R_FFC", ..., of `nfx.data.parcels`
    region : names without the hemisphere, such as `FUSIFORM` and `BODY_AREA`
    """
    return np.array([name[:2] in ("L_", "R_") and name[2:] in region for name in parcel], dtype=bool)


def category_contrast(
    values: np.ndarray, region: np.ndarray, category: np.ndarray, first: str, second: str
) -> tuple[np.ndarray, np.ndarray]:
    """A region's mean attention, clip by clip, for the clips of two categories (Figure 6d).

    Parameters
    ----------
    values : (clips, voxels)
    region : bool (voxels,), of `in_region`
    category : (clips,) of str
    first, second : e.g. "cat" and "burger" in the fusiform, "person" and "airplane" in the body area

    Returns
    -------
    Means over the region for the clips of `first` and of `second`, in film order

    Raises
    ------
    ValueError
        If the region holds no voxel or a category no clip.
    """
    category, region = np.asarray(category), np.asarray(region, dtype=bool)
    if not region.any():
        raise ValueError("the region holds none of the chosen voxels: nothing to contrast for this subject")
    for name in (first, second):
        if not (category == name).any():
            raise ValueError(f"no clip of category {name!r}, there are {sorted(set(category.tolist()))}")
    by_clip = values[:, region].mean(axis=1)
    return by_clip[category == first], by_clip[category == second]
