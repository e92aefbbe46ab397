"""Attention of the fMRI encoder on the cortex (Sections 3.3 and 5.3)."""

from nfx.attention.maps import attention_maps, received, to_cortex, to_voxels, total, unit_rows
from nfx.attention.networks import NETWORKS, category_contrast, network_means

__all__ = [
    "NETWORKS",
    "attention_maps",
    "category_contrast",
    "network_means",
    "received",
    "to_cortex",
    "to_voxels",
    "total",
    "unit_rows",
]
