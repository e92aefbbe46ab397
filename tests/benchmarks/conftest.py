"""How the rows of the table are measured. See `__main__.py` for how to run them, `table.py` for what a row holds.

A test gives its work to the fixture `row`, after it has asserted that the package and the plain reference agree. Times
never fail a test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import floors
import pytest
import table

ROWS = pytest.StashKey[list[table.Row]]()
Work = Callable[[], object]


class Measure(Protocol):
    """What the fixture `row` is; see there."""

    def __call__(
        self,
        name: str,
        ours: Work,
        *,
        floor: Work | float | None = None,
        plain: Work | float | None = None,
        grown: tuple[Work, Work] | None = None,
        grown_from: Work | None = None,
        notes: str = "",
        scale: float = 1,
        plain_scale: float | None = None,
        rounds: int = 5,
        plain_rounds: int | None = None,
        device: str = "cpu",
    ) -> table.Row: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, help="file for the table of the benchmarks, as Markdown")
    parser.addoption("--quick", action="store_true", help="benchmarks of smaller sizes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether smaller sizes were asked for: the benchmarks are tried, not quoted."""
    return request.config.getoption("--quick")


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[table.Row], None]:
    """Add a row that was measured in another way: memory, or the time of a run that is already finished."""
    return request.config.stash[ROWS].append


@pytest.fixture
def row(benchmark: Any, told: Callable[[table.Row], None]) -> Measure:
    """Measure a row and add it to the table.

    In each round every piece of work is done once, one after the other, so that a machine that slows down slows all of
    them; the shortest time of each counts. All times are kept in the benchmark's `extra_info` (--benchmark-json FILE).

    Parameters
    ----------
    name : str
        The unit of work.
    ours : callable
        The work, by this package.
    floor : float or callable, optional
        Seconds (`floors.seconds_for_bytes`, `floors.seconds_for_operations`), or work that nothing can do without.
    plain : float or callable, optional
        The same work as peers write it; seconds if it was timed elsewhere in this run, which the notes then say.
    grown : two callables, optional
        Twice and four times the work of `grown_from`, by this package.
    grown_from : callable, optional
        Default: `ours`. Smaller work, where four times the whole would take too long.
    notes : str
        What floor and reference are, and the tolerance within which the test has found the results equal.
    scale : float
        By how much the row's work is more than what `ours` and `floor` do; their times are multiplied.
    plain_scale : float, optional
        The same of `plain`. Default: `scale`.
    rounds, plain_rounds : int
        How often each is timed; a long reference less often.
    device : str
        cpu, or cuda: the clock is then that of the GPU.
    """

    def measure(
        name, ours, *, floor=None, plain=None, grown=None, grown_from=None, notes="", scale=1, plain_scale=None,
        rounds=5, plain_rounds=None, device="cpu",
    ):  # fmt: skip
        works = {"ours": ours, "floor": floor, "plain": plain}
        if grown is not None:
            works |= {"once": grown_from or ours, "twice": grown[0], "four times": grown[1]}
        times: dict[str, list[float]] = {key: [] for key, work in works.items() if work is not None}

        def take(key: str) -> None:
            work = works[key]
            times[key].append(floors.seconds(work, device) if callable(work) else work)

        def others() -> None:
            for key in times:
                if key != "ours" and not (key == "plain" and len(times[key]) == (plain_rounds or rounds)):
                    take(key)

        benchmark.pedantic(take, args=("ours",), setup=others, rounds=rounds)
        best = {key: min(all_times) for key, all_times in times.items()}
        factors = {"ours": scale, "floor": scale, "plain": scale if plain_scale is None else plain_scale}
        spent = {key: best[key] * factor for key, factor in factors.items() if key in best}
        ratios = tuple(best[key] / best["once"] for key in ("twice", "four times")) if grown is not None else ()
        result = table.Row(name, spent["ours"], spent.get("floor"), spent.get("plain"), ratios, notes)
        benchmark.extra_info.update(result._asdict(), times=times, scale=scale, plain_scale=factors["plain"])
        told(result)
        return result

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    text = table.render(rows, table.header() + ("; quick: smaller sizes" if config.getoption("--quick") else ""))
    terminalreporter.write_line("")
    terminalreporter.write(text)
    if (file := config.getoption("--out")) is not None:
        file.write_text(text)
