"""A sample of the analysed networks' vertices for the tests of attention in space."""

from __future__ import annotations

import numpy as np

from nfx.attention.networks import NETWORKS
from nfx.data import hierarchy_order, networks, parcels
from nfx.flatmaps import CORTEX

SIZE = 8  # voxels a patch


def sample(step: int) -> np.ndarray:
    """One in `step` of the vertices of the analysed networks, in the order of the hierarchy, as in notebook 01."""
    of_cortex = np.arange(CORTEX)
    chosen = of_cortex[np.isin(networks(of_cortex), NETWORKS)][::step]
    return chosen[hierarchy_order(chosen)]


VERTEX = sample(40)
NETWORK, PARCEL = networks(VERTEX), parcels(VERTEX)
PATCHES = -(-len(VERTEX) // SIZE)
