"""The demo as a whole, from the times that its notebooks have kept."""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import table

from nfx import paths
from nfx.profile import load_profile

Span = tuple[float, float]


def spans(folder: Path) -> dict[str, Span]:
    """When each executed notebook that came to its end began and ended, s, by its name."""
    found = {}
    for file in folder.glob("*.ipynb"):
        kept = json.loads(file.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
        if kept.get("end_time") and not kept.get("exception"):
            found[file.stem] = tuple(
                datetime.fromisoformat(kept[key]).timestamp() for key in ("start_time", "end_time")
            )
    return found


def at_work(times: Iterable[Span]) -> float:
    """Seconds in which at least one was at work."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(times):
        total += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return total


def test_the_demo(told):
    folder = paths.work(load_profile("demo"), "executed")
    found = spans(folder)
    headline = {"04_evaluation", "06_attention_analysis"}
    for name, last in (("three subjects and their figures", headline), ("all rows", headline | {"05_ablations"})):
        if last <= set(found):
            end = max(found[key][1] for key in last)
            seconds = at_work((start, min(stop, end)) for start, stop in found.values() if start < end)
            notes = "time in which at least one of its notebooks was at work, when it last ran, with whatever else ran"
        else:
            seconds, notes = math.nan, "not measured: no finished demo in this folder (./run_all.sh makes one)"
        told(table.Row(f"the demo, {name}", seconds / 60, notes=notes, unit="min"))
