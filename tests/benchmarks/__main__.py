"""Measure this package against the machine's limits and against plain references, and print one table.

    python tests/benchmarks [--cores N] [--out FILE] [--quick] [-k WORDS] [any option of pytest]

--cores    processor cores to use; default: all that this process may use
--out      write the table as Markdown, too
--quick    smaller sizes: to try the benchmarks, not to quote them
-k WORDS   some rows only
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", usage=__doc__)
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    parser.add_argument("--cores", type=int, default=len(allowed))
    known, others = parser.parse_known_args(arguments)
    if not 1 <= known.cores <= len(allowed):
        parser.exit(2, f"--cores is {known.cores}: expected 1 to {len(allowed)}, what this process may use\n")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed[: known.cores])
    # Before NumPy and torch are imported: they read the number of threads once.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(known.cores)))

    import pytest

    quiet = ["-q", "--benchmark-quiet", "--disable-warnings", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return pytest.main([str(HERE), *quiet, *others])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
