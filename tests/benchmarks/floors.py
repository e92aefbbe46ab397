"""What this machine can do at best: how fast it moves bytes and multiplies matrices, measured in the same run.

A floor is a time that no program for the same work can beat here: its bytes over the measured bandwidth, or its
operations over the measured matrix rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

COPIED = 1 << 28  # bytes of an array: eight times a large cache
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns: large enough for the full rate
REPEATS = 10


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Time of one call, s; on a GPU between two events on its stream, after all that was queued before."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000


@cache
def bandwidth(device: str = "cpu") -> float:
    """Bytes per second between processor and memory, read and written together: the best of copies and triads."""
    a, b, c = (torch.ones(COPIED // 4, device=device) for _ in range(3))
    copies = min(seconds(lambda: a.copy_(b), device) for _ in range(REPEATS))
    triads = min(seconds(lambda: torch.add(b, c, alpha=3, out=a), device) for _ in range(REPEATS))
    return max(2 * COPIED / copies, 3 * COPIED / triads)


@cache
def matrix_rate(device: str = "cpu", kind: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second in a product of two large square matrices of a type."""
    size = MATRIX[device]
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(REPEATS))


def seconds_for_bytes(count: float, device: str = "cpu") -> float:
    """Shortest time in which this many bytes are read or written, s."""
    return count / bandwidth(device)


def seconds_for_operations(count: float, device: str = "cpu", kind: torch.dtype = torch.float32) -> float:
    """Shortest time for this many floating-point operations (a multiplication and an addition are two), s."""
    return count / matrix_rate(device, kind)
