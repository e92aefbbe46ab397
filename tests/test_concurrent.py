"""Two at once: processes that make one folder, runs in one checkout, profiles that share a data set."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock

from nfx import files, paths

FACTS = {"seed": 3}
# Makes a folder as every function of the project does, and tells what it does; in between it waits for a line of input,
# or its end.
MAKE = """
import sys
import numpy as np
from nfx import files
folder, files.PATIENCE = sys.argv[1], float(sys.argv[2])
if files.finished(folder, {"seed": 3}):
    print("reused", flush=True)
else:
    print("making", flush=True)
    sys.stdin.readline()
    files.save_arrays(folder, {"x": np.arange(3)}, {"seed": 3})
"""


def make(folder, patience=60.0, **environment) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)} | environment
    command = [sys.executable, "-c", MAKE, str(folder), str(patience)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def maker(tmp_path):
    """A process that is making a folder, and takes very long."""
    process = make(tmp_path / "it")
    assert process.stdout.readline() == "making\n"
    yield process
    process.kill()
    if process.returncode is None:
        process.communicate()


def test_the_second_waits_and_reuses(tmp_path, maker):
    second = make(tmp_path / "it")
    assert second.stdout.readline() == "it: another process is making it, waiting for that\n"
    maker.communicate("go on\n", timeout=120)
    output, errors = second.communicate(timeout=120)
    assert output == "reused\n", errors


def test_the_second_is_refused_in_a_sentence_that_says_who_is_first(tmp_path, maker):
    second = make(tmp_path / "it", patience=0.3)
    errors = second.communicate(timeout=120)[1]
    last = errors.strip().splitlines()[-1]
    assert second.returncode == 1 and last.startswith("TimeoutError: ")
    assert f"{tmp_path / 'it'} is being made by another process (process {maker.pid} on " in last
    assert "restart its kernel" in last
    assert not (tmp_path / "it" / "x.npy").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_claim_ends_with_its_process(tmp_path, maker, how):
    (tmp_path / "it" / "unet").mkdir()
    unfinished = [tmp_path / "it" / name for name in (".x.ab12cd34.npy", "unet/.tmpAb12Cd")]  # a killed one leaves such
    for file in unfinished:
        file.write_bytes(b"half")
    maker.send_signal(how)
    maker.communicate(timeout=120)
    output, errors = make(tmp_path / "it", patience=0.3).communicate(timeout=120)
    assert output == "making\n", errors
    assert not any(file.exists() for file in unfinished) and files.holds(tmp_path / "it", FACTS)


def test_an_orphan_that_still_writes_keeps_its_claim(tmp_path):
    """The engine is killed, its kernel is not: the next run may not write beside it."""
    script = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", script, sys.executable, "-c", MAKE, str(tmp_path / "it"), "60"]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    waiting, held = os.pipe()  # what the orphan waits for; open as long as this process does not close it
    engine = subprocess.Popen(command, stdin=waiting, stdout=subprocess.PIPE, text=True, env=environment)
    told = [engine.stdout.readline().strip() for _ in range(2)]
    orphan = int(next(line for line in told if line.isdigit()))
    engine.kill()
    engine.wait()
    try:
        assert "making" in told
        assert "is being made by another process" in make(tmp_path / "it", patience=0.3).communicate(timeout=120)[1]
    finally:
        os.kill(orphan, signal.SIGKILL)
        engine.stdout.close()
        os.close(waiting)
        os.close(held)
    assert make(tmp_path / "it").communicate(timeout=120)[0].splitlines()[-1] == "making"


def claimed(folder) -> bool:
    with open(folder / files.CLAIM, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_process_may_ask_again_and_lets_go_when_it_is_done(tmp_path):
    before = os.umask(0o002)
    assert not files.finished(tmp_path / "shared", FACTS)
    os.umask(before)
    assert (tmp_path / "shared" / files.CLAIM).stat().st_mode & 0o777 == 0o664  # for those who may write the rest
    for save in (
        lambda: files.save_arrays(tmp_path, {"x": np.arange(3)}, FACTS),
        lambda: files.write_manifest(tmp_path, FACTS, ["x.npy"]),
    ):
        assert not files.finished(tmp_path, {"seed": 4}) and not files.finished(tmp_path, {"seed": 5})
        assert claimed(tmp_path)
        save()
        assert not claimed(tmp_path)
    assert files.finished(tmp_path, FACTS) and not claimed(tmp_path)
    assert not files.holds(tmp_path, {"seed": 4}) and not claimed(tmp_path)  # who reads claims nothing
    assert files.CLAIM not in files.read_manifest(tmp_path)["files"]


def test_what_a_process_killed_at_its_very_end_did_not_remove_is_removed(tmp_path):
    def left():
        for name in (".pieces", "blocks", "checkpoint"):
            (folder / name / "old").mkdir(parents=True, exist_ok=True)
        files.finished(folder, FACTS)
        return sorted(path.name for path in folder.iterdir() if path.is_dir())

    folder = tmp_path / "it"
    files.save_arrays(folder, {"x": np.arange(3)}, FACTS)
    assert left() == []
    (folder / "pipeline").mkdir()  # of a decoder, whose checkpoint may be in use
    assert left() == ["checkpoint", "pipeline"]
    with FileLock(folder / files.CLAIM):  # the folder is being made anew
        assert left() == [".pieces", "blocks", "checkpoint", "pipeline"]


def test_of_several_processes_of_one_training_the_first_claims(tmp_path, maker):
    assert make(tmp_path / "it", patience=0.3, RANK="1").communicate(timeout=120)[0] == "making\n"


def test_a_second_run_in_a_checkout_is_refused_and_one_in_another_is_not(tmp_path):
    for name in ("snakemake", "python"):  # what is tested is run_all.sh
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text("#!/usr/bin/env bash\nexit 0\n")
        stub.chmod(0o755)
    runs = {}
    for name in ("here", "there"):
        (tmp_path / name / "figures" / "demo").mkdir(parents=True)
        (tmp_path / name / "workflow").mkdir()
        (tmp_path / name / "workflow" / "Snakefile").write_text("")
        (tmp_path / name / "figures" / "demo" / "pipeline.mmd").write_text("drawn")
        shutil.copy2(paths.ROOT / "run_all.sh", tmp_path / name)
    environment = os.environ | {"CONDA_DEFAULT_ENV": "nfx", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with open(tmp_path / "here" / ".run_all.lock", "w") as lock:  # as a run at work holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("here", "there"):
            runs[name] = subprocess.run(
                ["./run_all.sh", "demo"], cwd=tmp_path / name, env=environment, capture_output=True, text=True
            )
    assert runs["here"].returncode == 1 and "another run is at work in this folder" in runs["here"].stderr
    assert runs["there"].returncode == 0, runs["there"].stderr


def test_a_run_in_this_process_is_not_disturbed_by_readers(tmp_path):
    """A notebook that is open has arrays mapped while the engine makes them anew: it keeps what it has read."""
    files.save_arrays(tmp_path, {"x": np.arange(1000)}, FACTS)
    read = files.load_arrays(tmp_path, "x")["x"]
    files.save_arrays(tmp_path, {"x": np.zeros(1000)}, {"seed": 4})
    assert np.array_equal(read, np.arange(1000))
