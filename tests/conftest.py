"""What holds for every test."""

import io
import sys

import pytest
import tqdm
from hypothesis import HealthCheck, Phase, settings

# pytest --hypothesis-profile=long: many cases of what is random, without looking for the smallest that fails.
settings.register_profile(
    "long", max_examples=1000, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


@pytest.fixture(autouse=True)
def figures_are_closed():
    """Figures that a test leaves open do not add up over the session."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def bars(monkeypatch):
    """`bars(module)` lists the progress bars that the functions of a module make from then on, silent."""

    def watch(module) -> list[tqdm.tqdm]:
        made: list[tqdm.tqdm] = []

        def bar(*given, **options):
            made.append(tqdm.tqdm(*given, **options | {"file": io.StringIO()}))
            return made[-1]

        monkeypatch.setattr(module, "tqdm", bar)
        return made

    return watch
