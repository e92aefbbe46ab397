"""The notebooks' form, and (slow) their run from end to end in a project in miniature."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MOST_LINES = 12  # of a code cell
MOST_IGNORED = 0.5  # share of the code cells whose outputs nbval does not compare
MOST_BYTES = {"04": 800_000}  # of a notebook with its outputs, else 500 kB; 04 has nine figures
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def parameters(path: Path) -> dict[str, type]:
    """Names and types of the literals of the parameters cell."""
    statements = ast.parse(cells(path)[0].source).body
    return {statement.target.id: type(ast.literal_eval(statement.value)) for statement in statements}


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 3


@by_notebook
def test_it_is_a_valid_notebook_for_any_python_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert path.stat().st_size <= MOST_BYTES.get(path.stem[:2], 500_000)


@by_notebook
def test_parameters_come_first_and_are_annotated_commented_literals(path):
    first, *others = cells(path)
    assert "parameters" in tags(first) and not any("parameters" in tags(cell) for cell in others)
    for statement, line in zip(ast.parse(first.source).body, first.source.splitlines(), strict=True):
        assert isinstance(statement, ast.AnnAssign), line
        assert type(ast.literal_eval(statement.value)).__name__ == statement.annotation.id, line
        assert "  # " in line, line
    assert parameters(path)["profile"] is str
    assert "demo" in first.source.splitlines()[0].split("#")[0]  # without a parameter it is the minutes-long version


@by_notebook
def test_cells_are_short_and_hide_nothing(path):
    for cell in cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert 0 < len(lines) <= MOST_LINES, cell.source
        assert not any(line.rstrip().endswith(";") for line in lines), cell.source
        assert not re.search(r"set_num_threads|OMP_NUM_THREADS|filterwarnings|time\.time\(", cell.source), cell.source


@by_notebook
def test_one_title_and_a_step_for_a_heading(path):
    headings = [line for cell in cells(path, "markdown") for line in cell.source.splitlines() if line.startswith("#")]
    assert sum(line.startswith("# ") for line in headings) == 1 and headings[0].startswith("# ")
    assert sum(line.startswith("## ") for line in headings) >= 3
    assert headings[-2:] == ["## What we have now", "## References and where to go next"]
    assert "no number here is the paper's" in cells(path)[-1].source


@by_notebook
def test_links_lead_somewhere_and_to_the_notebooks_beside_it(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")]
    assert all((path.parent / target).is_file() for target in links), links
    at = NOTEBOOKS.index(path)
    assert {other.name for other in NOTEBOOKS[max(at - 1, 0) : at + 2]} - {path.name} <= set(links)
    assert any(target.startswith("../docs/") for target in links)


@by_notebook
def test_references_name_what_their_links_lead_to(path):
    sites = {"doi": "https://doi.org/", "arXiv": "https://arxiv.org/abs/"}
    found = re.findall(r"\[(doi|arXiv):([^\]]+)\]\(([^)]+)\)", cells(path, "markdown")[-1].source)
    assert len(found) >= 2 and found[0][:2] == ("arXiv", "2402.01590")
    assert all(link == sites[kind] + number for kind, number, link in found)


@by_notebook
def test_most_outputs_are_compared(path):
    code = cells(path)
    ignored = [cell for cell in code if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= MOST_IGNORED * len(code)
    assert not any({"nbval-skip", "raises-exception"} & set(tags(cell)) for cell in code)


@by_notebook
def test_committed_outputs_name_no_machine_and_no_warning(path):
    for cell in cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert str(ROOT) not in text, text
            assert not re.search(r"Warning|Traceback|/home/|/root/|/tmp/|0x[0-9a-f]{6,}", text), text


def test_the_pipeline_gives_only_parameters_that_there_are():
    workflow = (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8")
    of_jobs = re.findall(r"-p (\w+) ", re.search(r'JOB_PARAMETERS = "(.*)"', workflow)[1])
    assert of_jobs
    for name, given in re.findall(r'papermill\("(\w+)"(, JOB_PARAMETERS)?\)', workflow):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        assert path.is_file(), f"{name} is in the Snakefile but not in notebooks/"
        assert set(parameters(path)) == {"profile", *(of_jobs if given else [])}


@pytest.mark.slow
def test_the_first_three_run_in_miniature_and_again_from_what_is_there(tmp_path):
    from tiny import make_root

    profile = make_root(tmp_path)
    environment = {
        **os.environ, "NFX_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    for turn in ("first", "again"):
        for path in NOTEBOOKS[:3]:
            done = tmp_path / f"{path.stem}_{turn}.ipynb"
            command = [sys.executable, "-m", "papermill", path, done, "--cwd", path.parent, "--no-progress-bar"]
            command += ["--kernel", "python3", "-r", "profile", profile]
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[-3000:]
    written = tmp_path / "work" / "tiny" / "decoder" / "subject1_row10"
    assert (written / "manifest.json").is_file() and (written / "scores.csv").is_file()
    printed = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in cells(done)]
    assert sum("reused" in text for text in printed) == 3  # cells: both stages and the decoding
    for path in NOTEBOOKS[:3]:
        for cell in cells(tmp_path / f"{path.stem}_again.ipynb"):
            assert not any("Warning" in output.get("text", "") for output in cell.outputs), cell.outputs
