"""What somebody else needs to know to help, in one output that can be pasted in an issue.

    python -m nfx.doctor [PROFILE] [--contents]

Environment, versions, hardware, threads, data, models, results, disk, and the last stage that failed with the end of
its log. Nothing is changed and no network is used. Paths are relative to the repository; the names of user and machine,
tokens and passwords are taken out. With --contents every file of every result is read and compared with its SHA-256.
"""

from __future__ import annotations

import argparse
import getpass
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nfx import __version__, files, paths, preflight
from nfx.preflight import Row
from nfx.profile import load_profile

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.doctor"
HELP = """\
Print what somebody else needs to know to help, to be pasted in an issue:
versions, hardware, threads, data, models, results, disk, and the end of the log
of the stage that failed last. Names of user and machine, tokens and passwords
are taken out.
"""
HELP_END = """\
reads    the profile, its data and models as 'nfx check' does, and what is in
         work/<profile>/; no network
writes   nothing; prints the report

examples:
  {command}
  {command} paper --contents

exit status: 0 nothing is amiss; 1 something is missing or damaged, and the
report says what; 2 wrong options
"""
LOG_LINES = 40  # of the stage that failed last
# Variables that change what a run does; of others whose values are nobody's business only that they are set.
TOLD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "PYTORCH_CUDA_ALLOC_CONF",
        "CONDA_DEFAULT_ENV", "SLURM_JOB_ID", "WORLD_SIZE")  # fmt: skip
SET = ("NFX_ROOT", "HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "PYTHONPATH")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(API_)?KEY", re.IGNORECASE)
_NAMED = r"(?i)\b(\w*(?:token|secret|passw(?:or)?d|api_?key)['\"]?\s*[=:]\s*['\"]?)[^\s'\"&]+"
_SECRETS = (  # what to look for, and what stands for it
    (re.compile(r"\b(hf|gh[pousr]|glpat|sk)[_-][A-Za-z0-9_-]{12,}"), "<token>"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "<credentials>@"),
    (re.compile(_NAMED), r"\1<secret>"),
    (re.compile(r"(?i)\b(bearer )\S+"), r"\1<secret>"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"), "<address>"),
)


def examine(name_or_path: str | Path = "demo", contents: bool = False) -> tuple[str, bool]:
    """The whole report, and whether all is well.

    Parameters
    ----------
    name_or_path : a profile's name or YAML file
    contents : bool
        Read every file of every result, not its size alone.
    """
    parts = [("software", _looked(software)), ("hardware", _looked(hardware))]
    log: list[str] = []
    try:
        profile = load_profile(name_or_path)
    except (OSError, ValueError) as error:
        parts.append(("profile", [Row("profile", "damaged", str(error))]))
    else:
        work = paths.work(profile)
        parts += [
            (f"what a run of '{profile.name}' needs", _looked(lambda: _needed(profile))),
            ("results", _looked(lambda: results(work, contents))),
            ("disk", _looked(lambda: disk(profile))),
        ]
        failed, log = last_failure(work / "executed")
        parts.append(("last failure", [failed]))
    well = not any(row.state in preflight.FAULTS for _, rows in parts for row in rows)
    tables = [f"{title}\n\n{_text(rows)}" for title, rows in parts]
    text = "\n\n".join([*tables, *(["end of its log\n", *log] if log else [])])
    return without_secrets(text), well


def _looked(look: Callable[[], list[Row]]) -> list[Row]:
    """Rows of a part, or that it could not be looked at: a report is wanted most where much is broken."""
    try:
        return look()
    except Exception as error:
        return [Row("this part", "damaged", f"{type(error).__name__}: {' '.join(str(error).split())}")]


def _needed(profile: Profile) -> list[Row]:
    return [Row(*row) for row in preflight.check(profile).itertuples(index=False, name=None)]


def software() -> list[Row]:
    """nfx, Python, and every package that has another version than constraints.txt, or is missing."""
    rows = [
        Row("nfx", "ok", f"{__version__}, git revision {files.git_revision() or 'unknown'}"),
        Row("python", "ok", f"{platform.python_version()} ({platform.python_implementation()})"),
        Row("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}, {_libc()}"),
        *_versions(),
    ]
    rows += [Row(name, "set", os.environ[name]) for name in TOLD if name in os.environ]
    return rows + [Row(name, "set", "") for name in SET if name in os.environ]


def _libc() -> str:
    return " ".join(platform.libc_ver()).strip() or "no glibc"


def _versions() -> list[Row]:
    constraints = paths.ROOT / "constraints.txt"
    if not constraints.is_file():
        return [Row("packages", "not compared", "constraints.txt is not there")]
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    try:
        needed = {_canonical(re.split(r"[\s;<>=!~\[(]", text)[0]) for text in metadata.requires("nfx") or []}
    except metadata.PackageNotFoundError:  # run from the sources, without an installation
        needed = set()
    same, rows = 0, []
    for name, wanted in pinned.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if _canonical(name) in needed:  # of the others most belong to tests, a cluster or another system
                rows.append(Row(name, "not installed", f"tested with {wanted}"))
            continue
        if found.split("+")[0] == wanted:  # after + comes the build, such as cu128
            same += 1
        else:
            rows.append(Row(name, "other version", f"{found}; tested with {wanted}"))
    return [Row("packages", "ok", f"{same} of {len(pinned)} have the versions of constraints.txt"), *rows]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hardware() -> list[Row]:
    """Processor, memory, threads and GPUs."""
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    rows = [
        Row("processor", "ok", f"{os.cpu_count()} cores, of which {may_use} may be used; {memory:.1f} GB of memory")
    ]
    try:
        import torch
    except ImportError as error:
        return [*rows, Row("torch", "missing", str(error))]
    rows.append(
        Row("threads", "ok", f"torch {torch.get_num_threads()}, between operations {torch.get_num_interop_threads()}")
    )
    build = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    if not torch.cuda.is_available():
        return [*rows, Row("GPU", "none", f"{build}: no GPU that this torch can use is visible")]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        told = f"{torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free; {build}"
        rows.append(Row(f"GPU {number}", "ok", told))
    return rows


def results(work: Path, contents: bool = False) -> list[Row]:
    """How many results are there and whole, each that is not, and each training that is not finished."""
    if not work.is_dir():
        return [Row("results", "none", "nothing has been made yet")]
    rows, whole = [], 0
    for manifest in sorted(work.rglob(files.MANIFEST)):
        folder = manifest.parent
        try:
            files.verify(folder) if contents else files.verify_sizes(folder)
            whole += 1
        except FileNotFoundError as error:
            rows.append(Row(folder.relative_to(work).as_posix(), "missing", str(error)))
        except (OSError, ValueError) as error:
            rows.append(Row(folder.relative_to(work).as_posix(), "damaged", str(error)))
    how = "every file has its SHA-256" if contents else "every file has its size; --contents reads all"
    begun = [Row(path.parent.parent.relative_to(work).as_posix(), "unfinished", f"checkpoint {path.name}")
             for path in sorted(work.rglob("checkpoint/step_*"))]  # fmt: skip
    return [Row("results", "ok", f"{whole} are whole: {how}"), *rows, *begun]


def disk(profile: Profile) -> list[Row]:
    """Room where results and models go."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    rows = []
    for name, folder in (("results", paths.work(profile)), ("data", paths.data_set(profile)), ("models", cache)):
        there = next(home for home in (folder, *folder.parents) if home.is_dir())
        usage = shutil.disk_usage(there)
        may_write = "" if os.access(there, os.W_OK) else "; it may not be written to"
        told = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free at {there}{may_write}"
        rows.append(Row(name, "ok" if not may_write or name == "data" else "read-only", told))
    return rows


def last_failure(executed: Path) -> tuple[Row, list[str]]:
    """The stage whose log tells of an error, the newest of them, and the end of that log."""
    logs = sorted(executed.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for log in logs:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        # A stage writes its log anew each time, so one that was repaired since is not found.
        if any("Error" in line for line in lines):
            when = datetime.fromtimestamp(log.stat().st_mtime, UTC)
            beside = log.with_suffix(".ipynb")
            notebook = f"; executed notebook {beside}" if beside.is_file() else ""
            return Row(log.stem, "failed", f"{when:%Y-%m-%d %H:%M} UTC; log {log}{notebook}"), lines
    return Row("stages", "ok" if logs else "none", f"{len(logs)} logs, none of them ends in an error"), []


def without_secrets(text: str) -> str:
    """The text without names of user and machine, tokens and passwords, and with paths relative to the root."""
    for folder, short in ((paths.ROOT, "."), (Path(sys.prefix), "<environment>"), (Path.home(), "~")):
        for spelling in sorted({str(folder), str(folder.resolve())} - {"/", ""}, key=len, reverse=True):
            text = re.sub(re.escape(spelling) + r"(?![\w.-])", short, text)
    text = re.sub(r"(?<![\w./~>])\./(?=\w)", "", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "<secret>")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    for name, instead in [*((user, "<user>") for user in _users()), *((host, "<machine>") for host in _machines())]:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", instead, text)
    return text


def _users() -> list[str]:
    """Names of whoever runs this; the administrator's is nobody's."""
    names = {os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), Path.home().name}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError):  # a user id without a name, as in containers
        pass
    return sorted(_told(names) - {"root"}, key=len, reverse=True)


def _machines() -> list[str]:
    names = {socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")}
    return sorted(_told(names | {name.split(".")[0] for name in names}) - {"localhost"}, key=len, reverse=True)


def _told(names: Iterable[str]) -> set[str]:
    """Names that would be recognised as such: no empty ones, nor single letters."""
    return {name for name in names if len(name) > 1}


def _text(rows: Sequence[Row]) -> str:
    return preflight.table_text(pd.DataFrame(rows, columns=list(Row._fields)))


def main(arguments: Sequence[str] | None = None, command: str = COMMAND) -> None:
    """The command: prints the report; status 1 if something is missing or damaged."""
    parser = argparse.ArgumentParser(
        prog=command,
        description=HELP,
        epilog=HELP_END.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", nargs="?", default="demo", help="demo (default), paper, or a YAML file")
    parser.add_argument("--contents", action="store_true", help="compare every file of every result with its SHA-256")
    given = parser.parse_args(arguments)
    text, well = examine(given.profile, given.contents)
    print(text)
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    main()
