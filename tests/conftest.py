"""What holds for every test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def figures_are_closed():
    """Figures that a test leaves open do not add up over the session."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
