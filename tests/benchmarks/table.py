"""The table of what was measured, and the line above it that says where."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import cpuinfo
import floors
import torch

COLUMNS = (
    "unit of work", "time", "floor", "times the floor", "plain reference", "times faster than plain", "doubled once",
    "doubled twice",
)  # fmt: skip
LEGEND = (
    "Times are the shortest of several, taken in turns. Doubled once and twice: the time of twice and of four times "
    "the work over the time of the work; 2 and 4 where the cost is linear."
)


class Row(NamedTuple):
    """One unit of work.

    Attributes
    ----------
    name : str
    time : float
        Of this package; in `unit`, like the two below. NaN: not measured, and `notes` say why.
    floor, plain : float, optional
        The least that the hardware allows, and what a plain reference takes.
    grown : tuple of float
        Time of twice and of four times the work over the time of the work; empty if not measured.
    notes : str
        What the floor and the reference are, and how close their results are.
    unit : str
        s, or of another cost, such as GB.
    """

    name: str
    time: float
    floor: float | None = None
    plain: float | None = None
    grown: tuple[float, ...] = ()
    notes: str = ""
    unit: str = "s"


def header() -> str:
    """Processor, cores, device, version of torch, and what was measured of this machine in this run."""
    processor = cpuinfo.get_cpu_info().get("brand_raw", "unknown processor")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rates = [
        f"{device}: memory {floors.bandwidth(device) / 1e9:.1f} GB/s, "
        f"float32 matrix products {floors.matrix_rate(device) / 1e9:.0f} Gflop/s"
        for device in devices
    ]
    if "cuda" in devices:
        rates[-1] += f", bfloat16 {floors.matrix_rate('cuda', torch.bfloat16) / 1e9:.0f} Gflop/s"
    gpu = torch.cuda.get_device_name() if "cuda" in devices else "no GPU"
    return (
        f"{processor}, {cores} cores (torch uses {torch.get_num_threads()}), {gpu}, torch {torch.__version__}; "
        + "; ".join(rates)
    )


def render(rows: Sequence[Row], head: str) -> str:
    """The rows as a table in Markdown, below the head and above the notes."""
    cells = [list(COLUMNS), *(_cells(row, number) for number, row in enumerate(rows, 1))]
    widths = [max(len(line[k]) for line in cells) for k in range(len(COLUMNS))]
    lines = [f"| {' | '.join(_aligned(line, widths))} |" for line in cells]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if k == 0 else ":") for k, width in enumerate(widths)) + "|"
    notes = [f"{number}. {row.name}: {row.notes}" for number, row in enumerate(rows, 1) if row.notes]
    return "\n".join([head, "", lines[0], rule, *lines[1:], "", LEGEND, "", *notes]) + "\n"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first cell to the left, the others, numbers, to the right."""
    return [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]


def _cells(row: Row, number: int) -> list[str]:
    grown = [f"{ratio:.2f}" for ratio in row.grown] or ["", ""]
    return [
        f"{number}. {row.name}",
        amount(row.time, row.unit),
        amount(row.floor, row.unit),
        _ratio(row.time, row.floor),
        amount(row.plain, row.unit),
        _ratio(row.plain, row.time),
        *grown,
    ]


def amount(value: float | None, unit: str) -> str:
    """Three digits and a unit."""
    if value is None or math.isnan(value):
        return ""
    if unit == "s" and value < 1:
        return f"{_digits(1000 * value)} ms"
    return f"{_digits(value)} {unit}"


def _ratio(over: float | None, under: float | None) -> str:
    known = over is not None and under is not None and not math.isnan(over) and not math.isnan(under)
    return _digits(over / under) if known else ""


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"
