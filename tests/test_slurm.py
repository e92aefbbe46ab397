"""The pipeline over a SLURM cluster, with scripts in place of SLURM's commands: what is submitted, and what follows.

No cluster was at hand. What the plugin of the engine asks of SLURM is answered here as SLURM's documentation has it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_workflow import NOTEBOOKS, STUB, write_notebook

from nfx import paths

# Keeps a job's arguments, name and state in $CLUSTER/<id>/. The job $REAL runs the command that was submitted; others
# write the manifests that their notebook would write; while $CLUSTER/hold is there, none starts.
SBATCH = r"""#!/usr/bin/env bash
id=1
while ! mkdir "$CLUSTER/$id" 2>/dev/null; do id=$((id + 1)); done
printf '%s\0' "$@" > "$CLUSTER/$id/arguments"
while (($#)); do
  case $1 in
    --job-name) name=$2 ;;
    --wrap=*) command=${1#--wrap=} ;;
  esac
  shift
done
echo "$name" > "$CLUSTER/$id/name"
echo PENDING > "$CLUSTER/$id/state"
job=$(sed "s/.*--target-jobs '\([^']*\)'.*/\1/" <<< "$command")
rule=${job%%:*}
eval "$(tr ',' ' ' <<< "${job#*:}")"  # subject=1 row=3 averaged=
run() {
  export SLURM_JOB_ID=$id CUDA_VISIBLE_DEVICES=5
  if [[ $job == "$REAL" ]]; then
    sh -c "$command"
    return
  fi
  case $rule in
    data) set -- stimuli targets subject1 subject2 subject3 ;;
    encoder | decoder) set -- "$rule/subject${subject}_row$row$averaged" ;;
    *) set -- ;;
  esac
  for folder; do mkdir -p "work/demo/$folder" && echo '{}' > "work/demo/$folder/manifest.json"; done
}
if [[ ! -e $CLUSTER/hold ]]; then
  # At once, so that the engine finds it done when it first asks: it asks ever more rarely.
  { run && echo COMPLETED > "$CLUSTER/$id/state" || echo FAILED > "$CLUSTER/$id/state"; } \
    > "$CLUSTER/$id/output" 2>&1 </dev/null
fi
echo "$id"
"""
SRUN = r"""#!/usr/bin/env bash
echo "$@" > "$CLUSTER/$SLURM_JOB_ID/srun"
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
SACCT = r"""#!/usr/bin/env bash
case "$*" in
  *--parsable2*) for job in "$CLUSTER"/[0-9]*/; do echo "$(basename "$job")|$(cat "$job/state")"; done ;;
  *Account*) echo guessed ;;
  *Reason*) echo NonZeroExitCode ;;
esac
"""
SQUEUE = r"""#!/usr/bin/env bash
for job in "$CLUSTER"/[0-9]*/; do
  ! grep -q PENDING "$job/state" 2>/dev/null || echo "$(basename "$job") $(cat "$job/name")"
done
"""
SCANCEL = r"""#!/usr/bin/env bash
for job in "$@"; do echo CANCELLED > "$CLUSTER/$job/state"; done
"""
OTHERS = {
    "sinfo": "echo 'PARTITION gpus*'",
    "scontrol": "echo 'MinJobAge = 300 sec'",
    "sacctmgr": "echo lab; echo guessed",
    "sshare": "true",
}
PAPERMILL = STUB.replace(
    'echo "$notebook $job" >> calls',
    'echo "$notebook $job" >> calls\n'
    'echo "$PWD $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $(command -v papermill)" >> environment',
)


@pytest.fixture
def cluster(tmp_path):
    """A folder with the pipeline, stub notebooks and stand-ins of SLURM, and the function that starts run_all.sh."""
    shutil.copytree(paths.ROOT / "workflow", tmp_path / "workflow")
    shutil.copytree(paths.ROOT / "nfx", tmp_path / "nfx", ignore=shutil.ignore_patterns("snapshots", "__pycache__"))
    shutil.copy(paths.ROOT / "run_all.sh", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in NOTEBOOKS:
        write_notebook(tmp_path, name)
    commands = {name: f"#!/bin/sh\n{line}\n" for name, line in OTHERS.items()} | {
        "sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "squeue": SQUEUE, "scancel": SCANCEL, "papermill": PAPERMILL,
    }  # fmt: skip
    for folder in ("bin", "queue", "figures/demo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "figures/demo/pipeline.mmd").write_text("drawn")
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*arguments, real="none", broken=""):
        environment = os.environ | {
            "NFX_ROOT": str(tmp_path),
            "PYTHONPATH": str(tmp_path),
            "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CONDA_DEFAULT_ENV": "nfx",  # the environment is there
            "CLUSTER": str(tmp_path / "queue"),
            "REAL": real,
            "BROKEN": broken,
            "CUDA_VISIBLE_DEVICES": "",  # of the login node
        }
        return subprocess.Popen(
            ["./run_all.sh", "demo", *arguments, "--slurm"], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as under nohup in a script
        )  # fmt: skip

    return tmp_path, start


AT_ONCE = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1")  # seconds, not 40


def submitted(folder):
    """(job, arguments) in the order of submission; a job is named as in 'decoder:subject=1,row=3,averaged='."""
    jobs = []
    for number in range(1, 1 + len(list((folder / "queue").glob("[0-9]*")))):
        arguments = (folder / "queue" / str(number) / "arguments").read_text().split("\0")[:-1]
        wrapped = next(argument for argument in arguments if argument.startswith("--wrap="))
        jobs.append((re.search("--target-jobs '([^']*)'", wrapped)[1], arguments))
    return jobs


def value(arguments, option):
    """What follows an option, or what it is set equal to; None without it."""
    if option in arguments:
        return arguments[arguments.index(option) + 1]
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(f"{option}=")), None)


@pytest.mark.slow
def test_table_1_over_a_cluster(cluster):
    folder, start = cluster
    row_3 = "decoder:subject=1,row=3,averaged="  # runs what is submitted, and breaks at first
    account = ("--default-resources", "slurm_account=lab", "slurm_partition=a100")
    run = start(*AT_ONCE, "--retries", "0", *account, real=row_3, broken="03_diffusion_fine_tuning subject1_row3")
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 1, output

    first = submitted(folder)
    names = [name for name, _ in first]
    rows = [f"subject=1,row={row},averaged=" for row in range(11)]
    others = [f"subject={s},row=10,averaged={end}" for s in (2, 3) for end in ("", "_averaged")]
    decoders = {f"decoder:{job}" for job in rows + others}
    encoder_of = {decoder: re.sub("row=(8|9|10),", "row=1,", f"en{decoder[2:]}") for decoder in decoders}
    assert len(set(encoder_of.values())) == 12
    expected = {*decoders, *encoder_of.values(), "data:", "evaluation:", "attention:"}
    assert sorted(names) == sorted(expected), "each once, and no ablations, which need the row"
    assert names[:2] == ["data:", "encoder:subject=1,row=1,averaged="]  # which also pre-trains
    assert all(names.index(encoder) < names.index(decoder) for decoder, encoder in encoder_of.items())

    assert f"SLURM-job '{1 + names.index(row_3)}' failed, SLURM status is: 'FAILED'" in output
    assert "the end of work/demo/executed/03_diffusion_fine_tuning_subject1_row3.log" in output
    assert "ValueError: a broken row" in output

    run = start(*AT_ONCE, real=row_3)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output
    second = submitted(folder)[len(first) :]
    assert [name for name, _ in second] == [row_3, "ablations:", "report:"]

    asked = {}
    for name, arguments in first + second:
        resources = [value(arguments, option) for option in ("-t", "--mem", "--gpus", "--cpus-per-task")]
        asked.setdefault(name.split(":")[0], set()).add(tuple(resources))
        assert value(arguments, "-D") == str(folder) and "--export=ALL" in arguments
        assert "gpus=" not in value(arguments, "--wrap")
    assert asked == {
        "data": {("720", "64000", "1", "8")},
        "encoder": {("1440", "96000", "1", "8")},
        "decoder": {("1440", "64000", "1", "8")},
        "evaluation": {("720", "64000", "1", "8")},
        "ablations": {("120", "32000", None, "2")},
        "attention": {("240", "64000", "1", "8")},
        "report": {("30", "8000", None, "1")},
    }
    assert {(value(a, "-A"), value(a, "-p")) for _, a in first} == {("lab", "a100")}
    assert {(value(a, "-A"), value(a, "-p")) for _, a in second} == {("guessed", "gpus")}  # the cluster's own

    # The job that ran: in the repository, on the GPU that SLURM gave, in this environment.
    assert (folder / "calls").read_text() == 2 * "03_diffusion_fine_tuning subject1_row3\n"
    for line in (folder / "environment").read_text().splitlines():
        where, gpu, threads, papermill = line.split()
        assert (where, gpu, papermill) == (str(folder), "5", str(folder / "bin" / "papermill"))
        assert int(threads) == min(8, os.cpu_count())  # the job's, or all there are here
    assert "--gpus=1" in (folder / "queue" / str(1 + names.index(row_3)) / "srun").read_text().split()


@pytest.mark.slow
def test_stopping_takes_the_jobs_out_of_the_queue_and_a_queue_that_was_left_is_respected(cluster):
    folder, start = cluster
    (folder / "queue" / "hold").touch()
    state = folder / "queue" / "1" / "state"

    def ended(run):
        try:
            return run.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-KILL", "--session", str(run.pid)])
            raise

    run = start(*AT_ONCE)
    while not (state.exists() and state.read_text() == "PENDING\n"):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)
    time.sleep(1)  # the engine learns the job's number
    run.terminate()
    output = ended(run)
    assert run.returncode == 130 and state.read_text() == "CANCELLED\n", output

    # An engine that was killed cannot do so. Its job is neither submitted again nor forgotten.
    state.write_text("PENDING\n")
    run = start(*AT_ONCE)
    output = ended(run)
    assert run.returncode == 1 and output.rstrip().endswith("or: scancel 1"), output
    (folder / "queue/1/name").write_text("nfx-12345_of-another-folder\n")
    run = start("--dry-run")
    assert "total" in ended(run) and run.returncode == 0
    assert len(submitted(folder)) == 1


def test_without_slurm_one_is_told(tmp_path):
    environment = os.environ | {"CONDA_DEFAULT_ENV": "nfx", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    shell = f"""
    source <(sed -n '/^fail()/p; /^queue_name()/p; /^check_queue()/,/^}}/p' '{paths.ROOT / "run_all.sh"}')
    check_queue
    """
    run = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "no sbatch here" in run.stderr
