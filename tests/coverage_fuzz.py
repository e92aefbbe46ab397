"""Readers of binary headers, searched by coverage: a case that reaches other code is changed further.

    python tests/coverage_fuzz.py TARGET --cases N

TARGET is one of `TARGETS`. Readers, limits and contract are those of `fuzz_readers.py`; atheris (libFuzzer) draws the
cases, with one seed. A breach ends the search with status 1, and the case is left in the folder that is named.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = ("arrays", "headers of films", "recordings", "headers of recordings", "archives")
FOLLOWED = (  # modules whose branches count as coverage
    "nfx.files", "nfx.data.cifti", "nfx.data.inspection", "nfx.data.stimuli", "nfx.data.fetch", "zipfile",
    "numpy.lib.format", "numpy.lib._format_impl", "nibabel.nifti1", "nibabel.nifti2", "nibabel.wrapstruct",
    "nibabel.batteryrunners", "nibabel.cifti2.parse_cifti2", "nibabel.cifti2.cifti2", "nibabel.cifti2.cifti2_axes",
)  # fmt: skip
SEED = 1


def search(target: str, cases: int, box: Path) -> int:
    """Run the cases in a process of their own in the folder `box`; its exit status."""
    command = [sys.executable, __file__, target, "--cases", str(cases), "--inside", str(box)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(box / "folder")}
    (box / "folder").mkdir(parents=True)
    with open(box / "log.txt", "w") as log:
        status = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    said = (box / "log.txt").read_text(errors="replace")
    done = re.search(r"Done (\d+) runs", said)
    if status == 0 and done is not None:
        print(f"{target}: {done[1]} cases, no breach")
        return 0
    print(f"{target}: status {status}, see {box}\n{said[-3000:]}")
    return 1


def inside(target: str, cases: int, box: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(FOLLOWED)):
        import nfx.data.cifti  # noqa: F401
        import nfx.data.fetch  # noqa: F401
        import nfx.data.inspection  # noqa: F401
        import nfx.data.stimuli  # noqa: F401
        import nfx.files  # noqa: F401
    import fuzz_readers

    from nfx import paths

    reader, folder = fuzz_readers.READERS[target], (box / "folder").resolve()
    sys.dont_write_bytecode = True
    paths.ROOT = folder
    os.chdir(folder)
    reader.make(folder)
    seeds = box / "seeds"
    seeds.mkdir()
    for number, file in enumerate(reader.files):
        shutil.copy(folder / file, seeds / str(number))
    expected = fuzz_readers.answer(reader, folder)["text"]
    fuzz_readers.limit(folder)

    def case(content: bytes) -> None:
        for file in reader.files:
            (folder / file).write_bytes(content)
        told = fuzz_readers.answer(reader, folder)
        found = fuzz_readers.breach(target, told, folder, expected)
        if found is not None:
            raise AssertionError(found)

    # Limits are those of `fuzz_readers`, in CPU time: the machine may be busy. Memory is given back between cases.
    options = [f"-runs={cases}", f"-seed={SEED}", "-timeout=1000000", "-rss_limit_mb=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={box}/", str(seeds)], case)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where cases and log go; default: a new one")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        inside(given.target, given.cases, given.inside)
    box = Path(tempfile.mkdtemp(prefix="coverage_fuzz_")) if given.folder is None else given.folder
    sys.exit(search(given.target, given.cases, box / given.target.replace(" ", "_")))


if __name__ == "__main__":
    main()
