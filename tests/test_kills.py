"""Killed anywhere, started again, and the same bytes (slow).

Every job of a profile in miniature is killed once. NFX_KILLS=20 kills each so often, and the whole run too, engine and
kernels: by hand, as that takes a while.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import tiny_run

HERE = Path(__file__).parent
KILLS = int(os.environ.get("NFX_KILLS", "0"))
JOBS = (
    "simulation", "stimuli", "subject", "targets", "pre-training", "contrastive", "stage one", "stage two", "decoding",
    "wen2018", "wang2022", "kupershmidt2022", "chen2023",
)  # fmt: skip

pytestmark = pytest.mark.slow


# --- the functions -------------------------------------------------------------------------------------------


class Children:
    """`kill_jobs.py` at work in a checkout in miniature; a job is done in a child of it, which may be killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        profile = tiny_run.make_checkout(root)
        self.process = subprocess.Popen(
            [sys.executable, HERE / "kill_jobs.py", profile], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=tiny_run.environment(root, NFX_ROOT=str(root)), cwd=root,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def together(self, *jobs: dict) -> list[dict]:
        """Jobs at the same time, each in a process of its own."""
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        assert not any(told["error"] for told in found), f"{jobs} ended in an error, which is above"
        return found

    def run(self, job: str, at: int | None = None, after: float = 0) -> dict:
        return self.together({"job": job, "at": at, "after": after})[0]


@pytest.fixture
def children(tmp_path):
    made = Children(tmp_path.resolve() / "checkout")
    yield made
    made.process.stdin.close()
    made.process.wait(60)


def keep(root: Path, kept: Path) -> None:
    """Copy what has been made below root."""
    for top in ("data", "work"):
        shutil.rmtree(kept / top, ignore_errors=True)
        if (root / top).is_dir():
            shutil.copytree(root / top, kept / top)


def costly(root: Path) -> set[str]:
    """Files that are there and must not be made again: films, recordings, pieces, blocks of decoded clips."""
    piece = re.compile(r"/\.pieces/.+-[0-9a-f]{20}\.npy|/blocks/|\.mp4$|\.dtseries\.nii$")
    return {str(path) for path in root.rglob("*") if path.name[0] != "." and piece.search(path.as_posix())}


def test_every_job_killed_and_resumed_ends_in_the_same_bytes(children, tmp_path):
    root, before, chance = children.root, tmp_path / "before", random.Random(2024)
    for job in JOBS:
        keep(root, before)
        whole = children.run(job)
        expected = tiny_run.contents(root)
        kills, most = max(1, KILLS), 0
        for number in range(kills):
            keep(before, root)
            # Evenly over the job, at an event or a little after it, in the middle of something.
            at = 1 + int(whole["events"] * (number + chance.random()) / kills)
            killed = children.run(job, at, chance.choice([0, chance.uniform(0.0005, 0.02)]))
            there = costly(root)
            resumed = children.run(job)
            lost = len(killed["steps"]) + len(resumed["steps"]) - len(whole["steps"])
            where = f"{job}, killed at event {at} of {whole['events']}"
            assert not resumed["died"] and lost <= tiny_run.EVERY, f"{where}: {lost} steps made again"
            assert not there & set(resumed["placed"]), where
            assert not tiny_run.differences(tiny_run.contents(root), expected), where
            most = max(most, lost)
        print(
            f"{job}: {kills} kills over {whole['events']} events, {len(whole['steps'])} steps; most lost: {most} steps"
        )


def test_two_processes_that_make_the_same_agree(children):
    """As a notebook run by hand beside the engine: each job twice at the same time, then all of them alone."""
    root, jobs = children.root, JOBS[:9]
    for job in jobs:
        twice = {"job": job, "at": None, "after": 0}
        first, second = children.together(twice, twice)
        assert not (first["steps"] and second["steps"]), f"{job}: trained twice"
    together = tiny_run.contents(root)
    for top in ("data", "work"):
        shutil.rmtree(root / top)
    for job in jobs:
        children.run(job)
    assert not tiny_run.differences(together, tiny_run.contents(root))


# --- the whole run, engine and kernels -----------------------------------------------------------------------


class Job(NamedTuple):
    """A job of the engine as it announced it, with its seconds in a run that was not disturbed."""

    name: str
    seconds: float


class Run:
    """`./run_all.sh tiny.yaml` at work, and when it announced and finished each job."""

    def __init__(self, root: Path) -> None:
        self.root, self.lines, self.begun, self.ended, numbers = root, [], {}, {}, {}
        self.process = subprocess.Popen(
            ["./run_all.sh", "tiny.yaml"], cwd=root, env=tiny_run.environment(root), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

        def read() -> None:
            for line in self.process.stdout:
                self.lines.append(line)
                if found := re.match(r"Job (\d+): (.*)", line):
                    numbers[found[1]] = found[2]
                    self.begun.setdefault(found[2], time.monotonic())
                elif found := re.match(r"Finished jobid: (\d+)", line):
                    self.ended[numbers.get(found[1])] = time.monotonic()

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()

    def finish(self) -> str:
        self.process.wait()
        self.reader.join(30)
        output = "".join(self.lines)
        assert self.process.returncode == 0, output[-5000:]
        return output

    def jobs(self) -> list[Job]:
        return [Job(name, self.ended[name] - begun) for name, begun in self.begun.items() if name in self.ended]

    def wait_for(self, job: Job, share: float) -> bool:
        """Until a job has run for a share of its time; False if the run ends before."""
        while job.name not in self.begun and self.process.poll() is None:
            time.sleep(0.02)
        while self.process.poll() is None and time.monotonic() < self.begun[job.name] + share * job.seconds:
            time.sleep(0.02)
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """All of the run's, kernels too, which have sessions of their own; known by their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PYTHONPATH") == str(self.root) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, spared: str = "nothing is") -> None:
        """SIGKILL for all but those whose command line holds the pattern `spared`."""
        deadline = time.monotonic() + 60
        while victims := [p for p in self.processes() if not re.search(spared, command(p))]:
            for process in victims:
                try:
                    process.send_signal(signal.SIGSTOP)  # so that none is started meanwhile
                except psutil.Error:
                    continue
            for process in victims:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            assert time.monotonic() < deadline, victims
            time.sleep(0.05)
        self.process.wait(60)


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def progress(root: Path) -> dict[str, float]:
    """How far each training is: the step of its newest checkpoint, infinite if its result is there."""
    work = root / "work" / "tiny"
    folders = [*work.glob("pretraining"), *work.glob("stage1/*"), *work.glob("encoder/*"), *work.glob("decoder/*")]
    found = {}
    for folder in folders:
        steps = [int(path.name.removeprefix("step_")) for path in folder.glob("checkpoint/step_*")]
        done = (folder / "manifest.json").is_file() or (folder / "pipeline" / "manifest.json").is_file()
        found[str(folder)] = float("inf") if done else max(steps, default=0)
    return found


def by_hand(root: Path, folder: Path) -> subprocess.Popen:
    """Notebook 03 as in a JupyterLab that is open: a kernel beside the engine's, with its own copy of the notebook."""
    command = [sys.executable, "-m", "papermill", "notebooks/03_diffusion_fine_tuning.ipynb", folder / "by_hand.ipynb"]
    command += ["--cwd", "notebooks", "--kernel", "python3", "--no-progress-bar", "-r", "profile", root / "tiny.yaml"]
    command += ["-p", "row", "1"]
    return subprocess.Popen(command, cwd=root, env=tiny_run.environment(root), stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(KILLS == 0, reason="by hand: NFX_KILLS=20")
def test_the_run_killed_and_started_again_ends_in_the_same_bytes(tmp_path):
    root, chance = tmp_path.resolve() / "checkout", random.Random(7)
    tiny_run.make_checkout(root)
    undisturbed = Run(root)
    undisturbed.finish()
    jobs, expected = undisturbed.jobs(), tiny_run.contents(root)
    seconds = sum(job.seconds for job in jobs)
    print(f"undisturbed: {[(job.name, round(job.seconds, 1)) for job in jobs]}, {seconds:.0f} s of jobs")
    for top in ("data", "work", "figures", ".snakemake"):
        shutil.rmtree(root / top)

    moments = sorted((index, chance.random()) for index in spread(len(jobs), KILLS, chance))
    deaths, far = 0, progress(root)
    for number, (index, share) in enumerate(moments):
        run = Run(root)
        if not run.wait_for(jobs[index], share):
            run.finish()
            continue
        if number == KILLS // 2:
            run.kill(spared="papermill|ipykernel")  # the engine alone; what it leaves behind may go on for a moment
        else:
            run.kill()
        deaths += 1
        before, far = far, progress(root)
        assert all(far[folder] >= step for folder, step in before.items()), f"{jobs[index]}: {before} then {far}"
        print(f"killed in {jobs[index].name}, after {share:.0%} of its time")

    run, beside = Run(root), by_hand(root, tmp_path)
    run.finish()
    errors = beside.communicate()[1]
    assert beside.returncode == 0 or "is being made by another process" in errors, errors[-3000:]
    print(f"by hand beside the engine: {'refused' if beside.returncode else 'done'}")
    print(f"{deaths} deaths")
    assert deaths >= KILLS - 1
    assert not tiny_run.differences(tiny_run.contents(root), expected)


def spread(count: int, kills: int, chance: random.Random) -> list[int]:
    """Jobs in which to kill: a random one of each part of the run."""
    return [min(count - 1, int(count * (number + chance.random()) / kills)) for number in range(kills)]
