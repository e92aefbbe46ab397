"""Jobs in child processes that kill themselves (SIGKILL) at a given event: for `test_kills.py`.

    python kill_jobs.py PROFILE.yaml

An event is an optimisation step, or a change below the profile's root: a file opened for writing, renamed or deleted,
a folder made or deleted. The death comes at the event, or some milliseconds later, in the middle of whatever is done
then. The models' libraries are imported once; each job is a fork of that. Reads a list of jobs a line (JSON: job, at,
after), does them at the same time, and writes what came of each (JSON: error, died, events, steps, placed).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ALL = {  # in an order in which each finds what it needs; profile to what is done
    "simulation": lambda p: (data.simulate_dataset(p), data.simulate_recordings(p)),
    "stimuli": lambda p: data.prepare_stimuli(p),
    "subject": lambda p: data.prepare_subject(p, 1),
    "targets": lambda p: data.prepare_targets(p),
    "pre-training": lambda p: encoder.pretrain(p),
    "contrastive": lambda p: encoder.train_encoder(p, 1, 1),
    "stage one": lambda p: diffusion.stage_one(p, p.row(1).beta),
    "stage two": lambda p: diffusion.stage_two(p, 1, 1),
    "decoding": lambda p: decoded.decode_run(p, 1, 1),
    "wen2018": lambda p: baselines.decode(p, "wen2018", 1),
    "wang2022": lambda p: baselines.decode(p, "wang2022", 1),
    "kupershmidt2022": lambda p: baselines.decode(p, "kupershmidt2022", 1),
    "chen2023": lambda p: baselines.decode(p, "chen2023", 1),
}
CHANGES = {
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "shutil.rmtree": 0,
}  # event: which argument is the path


class Watch:
    """Counts events, writes steps and renamed files to a log, and kills the process at one of them."""

    def __init__(self, root: Path, log: int, at: int | None, after: float) -> None:
        self.root, self.log, self.at, self.after, self.events = str(root), log, at, after, 0

    def event(self, kind: str, what: str) -> None:
        self.events += 1
        os.write(self.log, f"{kind} {what}\n".encode())
        if self.events == self.at:
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.setitimer(signal.ITIMER_REAL, self.after)  # SIGALRM, unhandled, ends a process as SIGKILL does

    def audit(self, name: str, arguments: tuple) -> None:
        if name == "open":
            path, mode, flags = arguments
            if not (isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif name in CHANGES:
            path = arguments[CHANGES[name]]
        else:
            return
        if str(path).startswith(self.root):
            self.event(name, str(path))


def work(profile, job: str, watch: Watch) -> None:
    from nfx import training

    original = training.learning_rate_at

    def at_each_step(step, *others):
        watch.event("step", str(step))
        return original(step, *others)

    training.learning_rate_at = at_each_step
    sys.addaudithook(watch.audit)
    ALL[job](profile)


def fork(profile, root: Path, job: str, at: int | None, after: float) -> tuple[int, Any]:
    """Begin a job in a child process: its id, and the file that it writes its events to."""
    log = tempfile.TemporaryFile()
    child = os.fork()
    if child:
        return child, log
    os.dup2(2, 1)  # this process's answers are on its standard output
    status = 1
    try:
        work(profile, job, Watch(root, log.fileno(), at, after))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def told(child: int, log: Any) -> dict:
    """What a child did until its end, or its death."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.seek(0)
    events = [line.split(" ", 1) for line in log.read().decode().splitlines()]
    log.close()
    return {
        "error": code if code not in (0, -signal.SIGKILL, -signal.SIGALRM) else 0,
        "died": code != 0,
        "events": len(events),
        "steps": [int(what) for kind, what in events if kind == "step"],
        "placed": [what for kind, what in events if kind == "os.rename"],
    }


def main(profile_file: str) -> None:
    from nfx import paths
    from nfx.profile import load_profile

    profile = load_profile(profile_file)
    print("ready", flush=True)
    for line in sys.stdin:
        begun = [fork(profile, paths.ROOT, **job) for job in json.loads(line)]
        print(json.dumps([told(*child) for child in begun]), flush=True)


if __name__ == "__main__":
    import diffusers  # noqa: F401  what its classes need is imported on first use, in the children
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import BlipForConditionalGeneration, CLIPTextModel, ViTForImageClassification  # noqa: F401

    from nfx import baselines, data, diffusion, encoder
    from nfx.evaluation import decoded

    main(sys.argv[1])
