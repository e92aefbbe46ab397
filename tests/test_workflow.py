"""The pipeline: which jobs there are, and what makes them run again. Stub notebooks, dry runs, no kernels."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from nfx import paths
from nfx.doctor import last_failure

NOTEBOOKS = (
    "01_data_preparation",
    "02_encoder_contrastive_training",
    "03_diffusion_fine_tuning",
    "04_evaluation",
    "05_ablations",
    "06_attention_analysis",
)


# In place of papermill: writes the manifests that the notebook would write, and what it was called with.
STUB = """#!/usr/bin/env bash
notebook=$(basename "$1" .ipynb); shift 2
while (($#)); do case $1 in -p | -r) declare "$2=$3"; shift 3 ;; *) shift ;; esac; done
job="subject${subject:-}_row${row:-}$([[ ${time_averaged:-} == True ]] && echo _averaged)"
echo "$notebook $job" >> calls
[[ "$notebook $job" != "${BROKEN:-}" ]] || { echo "ValueError: a broken row" >&2; exit 3; }
case $notebook in
  01*) folders="stimuli targets subject1 subject2 subject3" ;;
  02*) folders="encoder/$job" ;;
  03*) folders="decoder/$job" ;;
esac
for folder in ${folders:-}; do mkdir -p "work/$profile/$folder"; echo '{}' > "work/$profile/$folder/manifest.json"; done
"""


# In place of python, for the modules that jobs run; all else is the real one's.
MODULE_STUB = """#!/usr/bin/env bash
[[ $1 == -m && $2 == nfx.* ]] || exec "$REAL_PYTHON" "$@"
echo "$2 ${@:3:2}" >> calls
case $2 in
  nfx.baselines) folder="baselines/$3_subject$4" ;;
  nfx.evaluation.interventions) folder="controls/$3_subject$4" ;;
  nfx.evaluation.solver_study) folder="solvers/subject$3" ;;
  *) exit ;;
esac
mkdir -p "work/demo/$folder"; echo '{}' > "work/demo/$folder/manifest.json"
"""


def write_notebook(folder, name, prose="why", code="x = 1"):
    cells = [{"cell_type": kind, "source": [text]} for kind, text in (("markdown", prose), ("code", code))]
    (folder / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))


@pytest.fixture
def pipeline(tmp_path):
    """A folder with the Snakefile, the code and stub notebooks, and the function that runs the engine in it."""
    shutil.copytree(paths.ROOT / "workflow", tmp_path / "workflow")
    shutil.copytree(paths.ROOT / "nfx", tmp_path / "nfx", ignore=shutil.ignore_patterns("snapshots", "__pycache__"))
    (tmp_path / "notebooks").mkdir()
    for name in NOTEBOOKS:
        write_notebook(tmp_path, name)
    stub = tmp_path / "bin" / "papermill"
    stub.parent.mkdir()
    stub.write_text(STUB)
    (stub.parent / "python").write_text(MODULE_STUB)
    for file in stub.parent.iterdir():
        file.chmod(0o755)

    def engine(*arguments, profile="demo", broken="", expected=0):
        config = [f"profile={profile}", *(argument for argument in arguments if "=" in argument)]
        command = [
            sys.executable, "-m", "snakemake", *(argument for argument in arguments if "=" not in argument),
            "--snakefile", "workflow/Snakefile", "--workflow-profile", "workflow/profiles/default", "--cores", "2",
            "--config", *config,
        ]  # fmt: skip
        environment = os.environ | {
            "NFX_ROOT": str(tmp_path),
            "PYTHONPATH": str(tmp_path),
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "BROKEN": broken,
            "REAL_PYTHON": sys.executable,
        }
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == expected, run.stdout + run.stderr
        return run.stdout + run.stderr

    return tmp_path, engine


def jobs(output):
    """Name of each rule, and how many of its jobs would run."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}


def calls(folder):
    """Jobs run since the last look, in their order."""
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.slow
def test_the_jobs_of_the_demo(pipeline):
    _, engine = pipeline
    counts = jobs(engine("--dry-run"))
    assert counts == {
        "data": 1,
        "encoder": 8 + 2 + 2,  # rows 1, 8, 9 and 10 share one; two more subjects; their averaged controls
        "decoder": 11 + 2 + 2,
        "evaluation": 1,
        "ablations": 1,
        "attention": 1,
        "report": 1,
        "all": 1,
        "total": 33,
    }


@pytest.mark.slow
def test_the_headline_is_the_three_subjects_and_the_plain_row(pipeline):
    _, engine = pipeline
    counts = jobs(engine("headline", "--dry-run"))
    assert (counts["encoder"], counts["decoder"]) == (3 + 1, 3 + 1)  # row 0 stands beside them
    assert "ablations" not in counts and counts["report_headline"] == 1


@pytest.mark.slow
def test_a_study_has_encoders_and_decoders_alone(pipeline):
    _, engine = pipeline
    assert set(jobs(engine("decoders", "--prioritize", "decoders", "--dry-run"))) == {
        "data", "encoder", "decoder", "decoders", "total",
    }  # fmt: skip


@pytest.mark.slow
def test_the_evidence_comes_before_the_figures_and_is_not_forgotten(pipeline):
    folder, engine = pipeline
    engine()
    calls(folder)
    counts = jobs(engine("evidence", "evidence=true", "--dry-run"))
    assert counts["baseline"] == 4 * 3
    assert counts["control"] == 4 * 3 + 4  # what is trained anew, of the first subject alone
    assert counts["solvers"] == 1
    engine("evidence", "evidence=true")
    done = calls(folder)
    assert done[-2:] == ["04_evaluation subject_row", "nfx.report demo"] and len(done) == 12 + 16 + 1 + 2
    assert "nfx.baselines chen2023 3" in done and "nfx.evaluation.interventions lag_-2 1" in done
    assert "Nothing to be done" in engine()  # the figures with the evidence stay
    shutil.rmtree(folder / "work/demo/controls/shuffled_subject2")
    engine()
    assert calls(folder) == ["04_evaluation subject_row", "nfx.report demo"]  # what is there, and no more


@pytest.mark.slow
def test_the_paper_has_the_same_jobs(pipeline):
    _, engine = pipeline
    assert jobs(engine("--dry-run", profile="paper"))["total"] == 33


@pytest.mark.slow
def test_a_failing_notebook_leaves_its_traceback_and_its_log(pipeline):
    folder, engine = pipeline
    (folder / "bin" / "papermill").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m papermill "$@"\n')  # the real one
    code = ["profile: str = 'x'", "print('before')", "raise ValueError('the voxels are gone')", "print('after')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "notebooks" / "01_data_preparation.ipynb")
    output = engine("--retries", "0", expected=1)
    executed = folder / "work" / "demo" / "executed"
    log = (executed / "01_data_preparation.log").read_text()
    assert "before" in log and "Traceback" in log and "ValueError: the voxels are gone" in log
    saved = nbformat.read(executed / "01_data_preparation.ipynb", as_version=4)
    outputs = {cell.source: cell.outputs for cell in saved.cells if cell.cell_type == "code"}
    (error,) = outputs[code[2]]
    assert (error.output_type, error.ename, error.evalue) == ("error", "ValueError", "the voxels are gone")
    assert error.traceback and outputs[code[1]][0].text == "before\n" and not outputs[code[3]]
    assert "the end of work/demo/executed/01_data_preparation.log" in output and "the voxels are gone" in output
    failed, lines = last_failure(executed)
    assert failed.item == "01_data_preparation" and any("the voxels are gone" in line for line in lines)


@pytest.mark.slow
def test_one_broken_row_and_what_runs_again(pipeline):
    folder, engine = pipeline
    row_3 = "03_diffusion_fine_tuning subject1_row3"

    output = engine(broken=row_3, expected=1)
    done = calls(folder)
    assert done[:2] == ["01_data_preparation subject_row", "02_encoder_contrastive_training subject1_row1"]
    assert done.count(row_3) == 2, "tried twice"
    assert len(set(done)) == 1 + 12 + 15 + 2, "all but the ablations, which need the row, and the report"
    order = [job for job in done if job.startswith("03")]
    for first, others in (("row0", "row[1-7]"), ("row10", ".*subject[23]")):  # they train stage one for the others
        place = order.index(f"03_diffusion_fine_tuning subject1_{first}")
        assert not any(re.search(f"{others}$", job) for job in order[:place])
    assert "ValueError: a broken row" in output and "03_diffusion_fine_tuning_subject1_row3.log" in output

    output = engine()
    assert calls(folder) == [row_3, "05_ablations subject_row", "nfx.report demo"]
    assert "headline (three subjects, Figures 2-7): was up to date" in output and "all (with" in output

    for name in NOTEBOOKS:
        write_notebook(folder, name, prose="why, said better")
    with open(folder / "nfx/data/voxels.py", "a") as source:
        source.write("# a comment\n")
    assert "Nothing to be done" in engine()

    with open(folder / "nfx/attention/maps.py", "a") as source:
        source.write("ANOTHER = 1\n")
    engine()
    assert calls(folder) == ["06_attention_analysis subject_row", "nfx.report demo"]

    shutil.rmtree(folder / "work/demo/decoder/subject1_row8")
    write_notebook(folder, NOTEBOOKS[3], code="x = 2")
    engine()
    assert sorted(calls(folder)) == [
        "03_diffusion_fine_tuning subject1_row8",
        "04_evaluation subject_row",
        "05_ablations subject_row",
        "nfx.report demo",
    ]


@pytest.mark.parametrize(
    ("limit", "spent", "unit", "left_out"),
    [("", 4000, 3600, False), ("80", 850, 690, False), ("80", 1500, 1200, True), ("120", 1500, 1200, False)],
)
def test_table_1_is_left_out_of_the_test_where_its_time_would_not_do(limit, spent, unit, left_out):
    script = (paths.ROOT / "run_all.sh").read_text()
    function = script[script.index("too_slow_for_table_1()") : script.index("\nrun_tests()")]
    call = f"{function}\nSECONDS={spent}; too_slow_for_table_1 {unit}"
    asked = subprocess.run(["bash", "-uc", call], env=os.environ | {"NFX_TEST_MINUTES": limit})
    assert asked.returncode == int(not left_out)
