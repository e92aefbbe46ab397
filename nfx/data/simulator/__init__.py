"""A simulated data set in the published layout: scenes, the movie, the brain that sees it, and the files."""

from nfx.data.simulator.writer import simulate_dataset, simulate_recordings

__all__ = ["simulate_dataset", "simulate_recordings"]
