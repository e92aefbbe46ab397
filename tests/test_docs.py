"""Every command of every page, notebook and of run_all.sh's head is run, or exists and takes its options; links hold.

Each command of a page goes to the check of the program that it begins with (`CHECKS`). What nobody can check here
stands in `NOT_CHECKED` with its reason. A command that is in neither fails.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = [*PAGES, *NOTEBOOKS, ROOT / "run_all.sh"]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
PROGRAMS = r"(?:\./run_all\.sh|\.ci/run|\.venv/bin/\w|python -m |nfx (?:fetch|check|doctor|decode|report|publish)\b|conda |hf |pip )"  # noqa: E501
DEVELOPMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]

# What stands in a page for something of the reader's, and what is put there here.
OF_THE_READER = {
    "data/mine/profile.yaml": "nfx/profiles/paper.yaml",
    "data/paper_24gb.yaml": "nfx/profiles/paper.yaml",
    "FILE.yaml": "nfx/profiles/paper.yaml",
    "mine.yaml": "nfx/profiles/demo.yaml",
    "--slurm=FOLDER": "--slurm=workflow/profiles/slurm",
}
# Commands that nothing here can check -> why not.
NOT_CHECKED = {
    "aws s3 sync s3://hcp-openaccess/HCP_1200/ data/paper/hcp/ --exclude '*' --include "
    "'*/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii'": "Amazon's tool; half a terabyte, with the HCP's token",
}


# --- what the pages hold -------------------------------------------------------------------------------------


def text_of(source: Path) -> str:
    """What a reader reads of a page, of a notebook (its Markdown), or of run_all.sh (its head)."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    if source.suffix == ".sh":
        return text.split("\nset -", 1)[0]
    return text


def commands(source: Path) -> list[str]:
    """Commands in a page's shell blocks, and between backticks in its text; comments are left out, lines joined.

    The head of run_all.sh has no backticks: there a command goes from the script's name to the first gap or sign.
    """
    text = text_of(source)
    if source.suffix == ".sh":
        return list(dict.fromkeys(re.findall(r"\./run_all\.sh(?: [\w/=-]+(?:\.\w+)*)*", text)))
    found = []
    for language, block in FENCE.findall(text):
        if language in ("bash", "sh", "console"):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [part for line in lines for part in re.sub(r"\s+# .*", "", line).split(" && ")]
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text)):
        if re.match(PROGRAMS, span) and not span.endswith("/"):
            found += " ".join(span.split()).split(" && ")
    told = (command.strip() for command in found)
    return list(dict.fromkeys(command for command in told if command and not command.startswith("#")))


EVERY = [(source, command) for source in SOURCES for command in commands(source)]


def test_pages_are_read():
    silent = {ROOT / "docs" / "decisions.md"}
    assert len(EVERY) > 50 and {source for source, _ in EVERY} >= {*PAGES, ROOT / "run_all.sh"} - silent
    head = commands(ROOT / "run_all.sh")
    assert {"./run_all.sh FILE.yaml", "./run_all.sh demo --cores 1", "./run_all.sh evidence"} <= set(head)
    assert any(source in NOTEBOOKS for source, _ in EVERY)
    assert any(command.startswith("aws") and "--include" in command for _, command in EVERY), (
        "continued lines are joined"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_in_a_block_of_another_kind(page):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        assert language in ("bash", "python", "yaml", ""), language
        if language == "":
            assert not re.search(rf"^\s*{PROGRAMS}", block, flags=re.MULTILINE), block


# --- the checks ----------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised in the place of what a command would do, once its options are understood."""


@pytest.fixture
def parse_alone(monkeypatch):
    """Commands of ours stop when they have understood their options; wrong ones are a SystemExit."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *given, **options):
        parse(self, *given, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def nfx_command(words: list[str]) -> None:
    from nfx import cli

    if words in ([], ["--help"], ["--version"]):
        return
    assert words[0] in cli.COMMANDS, f"nfx has no command {words[0]}"
    if len(words) == 1:  # its name in a sentence
        return
    with pytest.raises(Parsed):
        cli.COMMANDS[words[0]](words[1:])


def python(words: list[str]) -> None:
    """`python -m MODULE ARGUMENTS` and `python -c CODE`."""
    if words[0] == "-c":
        for node in ast.walk(ast.parse(words[1])):
            if isinstance(node, ast.ImportFrom):
                assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)
        return
    if words[0] in ("docs/api.py", "tests/coverage_fuzz.py"):  # tests run them
        return
    if words[0] == "tests/benchmarks":
        known = "".join((ROOT / words[0] / name).read_text() for name in ("__main__.py", "conftest.py"))
        assert all(f'"{word}"' in known for word in words if word.startswith("--")), words
        return
    assert words[0] == "-m", words
    module = importlib.util.find_spec(words[1])
    assert module is not None, f"there is no module {words[1]}"
    if module.submodule_search_locations:
        module = importlib.util.find_spec(f"{words[1]}.__main__")
    main = importlib.import_module(module.name).main
    with pytest.raises(Parsed):
        main(words[2:])


def tool(name: str, words: list[str]) -> None:
    """A tool of the development set-up: declared there, and the files among its arguments exist."""
    assert name in DEVELOPMENT, f"{name} is not in the development set-up"
    for word in words:
        if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)+", word) and not word.startswith("work/"):
            assert list(ROOT.glob(word)), f"there is no {word}"


def pytest_command(words: list[str]) -> None:
    tool("pytest", [word for word in words if word.startswith("tests")])
    options = [word for word in words if word.startswith("-")]
    assert set(options) <= {"-m", "-n", "-q"}
    if "-m" in words:
        assert words[words.index("-m") + 1] == "not slow"


def jupyter(words: list[str]) -> None:
    assert words[0] == "lab" and metadata.version("jupyterlab") and (ROOT / words[1]).is_dir()


def accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_known_args(words[1:])[0]
    assert words[0] == "launch" and given.num_processes > 1 and given.module
    python(["-m", given.training_script, *given.training_script_args])


def conda(words: list[str]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert words in (["env", "create", "-f", "environment.yml"], ["activate", environment["name"]])


def pip(words: list[str]) -> None:
    assert words[0] == "install" and words[1:4] == ["-c", "constraints.txt", "-e"] and len(words) == 5
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.fullmatch(r"\.\[(\w+)\]", words[4])[1] in extras


def run_all(words: list[str]) -> None:
    """`run_all.sh` itself, with the engine, Python and the set-up replaced with their names: what would it start?"""
    script = (ROOT / "run_all.sh").read_text().replace('\nmain "$@"\n', "\n")
    replaced = ("set_up", "lock", "engine", "run_evidence", "run_tests", "python")
    stubs = "".join(f'{name}() {{ echo {name} "$@"; }}\n' for name in replaced)
    shell = script.replace('cd "$(dirname "${BASH_SOURCE[0]}")"', f'cd "{ROOT}"') + stubs + 'main "$@"\n'
    run = subprocess.run(["bash", "-c", shell, "run_all.sh", *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    started = [line.split() for line in run.stdout.splitlines() if line.startswith(("engine", "run_", "python"))]
    assert started, run.stdout
    if started[0][0] != "python":
        snakemake(started[0][1:])


def snakemake(words: list[str]) -> None:
    """What `run_all.sh` gives to the engine: a profile, then targets that there are and options that are known."""
    from nfx.profile import load_profile

    rules = set(re.findall(r"^rule (\w+):", (ROOT / "workflow" / "Snakefile").read_text(), flags=re.MULTILINE))
    given = list(words)
    while given:
        word = given.pop(0)
        if word in ("--cores", "-c"):
            assert int(given.pop(0)) > 0
        elif word == "--default-resources":
            while given and "=" in given[0]:
                assert given.pop(0).split("=")[0].startswith("slurm_")
        elif word.startswith("--slurm="):
            assert (ROOT / word.removeprefix("--slurm=") / "config.yaml").is_file()
        elif not word.startswith("-"):
            assert word in rules or load_profile(word), word
        else:
            assert word in ("--dry-run", "-n", "--slurm", "--accept"), word


def test_the_engine_knows_those_options():
    pytest.importorskip("snakemake")
    text = (Path(importlib.util.find_spec("snakemake").origin).parent / "cli.py").read_text()
    assert all(f'"{option}"' in text for option in ("--cores", "--dry-run", "--default-resources"))


CHECKS = {
    "./run_all.sh": run_all,
    ".ci/run": lambda words: run_all(shlex.split((ROOT / ".ci/run").read_text().split("run_all.sh")[1])),
    "python": python,
    "nfx": nfx_command,
    "accelerate": accelerate,
    "jupyter": jupyter,
    "conda": conda,
    "pip": pip,
    "hf": lambda words: importlib.import_module(f"huggingface_hub.cli.{words[0]}"),
    "pytest": pytest_command,
    **{name: partial(tool, name) for name in ("ruff", "codespell", "mypy", "nbstripout", "pre-commit")},
}


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_every_command_of_the_page_is_there_and_takes_its_options(page, parse_alone):
    for command in commands(page):
        if command in NOT_CHECKED:
            continue
        words = [OF_THE_READER.get(word, word) for word in shlex.split(command)]
        program = words[0].removeprefix(".venv/bin/")
        assert program in CHECKS, f"{page.name}: nothing checks '{command}'; add its program to CHECKS"
        try:
            CHECKS[program](words[1:])
        except SystemExit as stopped:
            pytest.fail(f"{page.name}: '{command}' is refused ({stopped.code})")


def test_what_is_not_checked_stands_in_a_page_and_has_a_reason():
    said = {command for _, command in EVERY}
    assert all(command in said and len(reason) > 20 for command, reason in NOT_CHECKED.items())


WRONG = [
    "nfx decoed x",
    "python -m nfx.preflight",
    "./run_all.sh papre",
    "python tests/benchmarks --none",
    "pytest -k x",
    "ruff check nfx/none",
    "rm x",
]


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_would_be_found(command, parse_alone):
    words = shlex.split(command)
    with pytest.raises((SystemExit, AssertionError, KeyError)):
        CHECKS[words[0]](words[1:])


# --- the same in other places --------------------------------------------------------------------------------


def test_spelling():
    pytest.importorskip("codespell_lib")
    run = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_hooks_run_the_commands_of_the_page():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "versions are in constraints.txt alone"
    entries = {hook["id"]: hook["entry"].split() for hook in hooks[0]["hooks"]}
    said = {shlex.split(command)[0]: shlex.split(command)[1:] for command in commands(ROOT / "CONTRIBUTING.md")}
    assert shlex.split(" ".join(entries["nbstripout"]))[1:] == said[".venv/bin/nbstripout"][:-1]
    assert {entries["codespell"][0], entries["mypy"][0]} <= set(DEVELOPMENT)
    assert entries["ruff"][:3] == ["python", "-m", "ruff"]
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])


def test_committed_notebooks_are_clean():
    (options,) = [shlex.split(c)[1:-1] for _, c in EVERY if c.startswith(".venv/bin/nbstripout")]
    notebooks = sorted(map(str, (ROOT / "notebooks").glob("*.ipynb")))
    run = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", *options, *notebooks], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_github_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("./run_all.sh test")


def test_types_and_spelling_are_part_of_the_test_command():
    script = (ROOT / "run_all.sh").read_text()
    assert re.search(r'phase "lint" lint', script) and "codespell && mypy" in script


# --- Python and YAML blocks ----------------------------------------------------------------------------------


def test_every_block_of_python_is_run_by_some_test():
    from nfx.model_card import USE

    for page in PAGES:
        blocks = [block for language, block in FENCE.findall(page.read_text(encoding="utf-8")) if language == "python"]
        if page.name == "extending.md":  # test_extending.py
            assert blocks
        elif page.name == "using_a_decoder.md":  # test_cli.py runs these lines
            assert blocks == [USE.format(clips=64, seed=2024, steps=8, guidance=4.0)]
        else:
            assert not blocks, f"no test runs the Python of {page.name}"


def test_the_description_of_other_data_is_one():
    from nfx.data.derivatives import Recordings

    (block,) = [b for kind, b in FENCE.findall((ROOT / "docs/other_data.md").read_text()) if kind == "yaml"]
    Recordings.model_validate(yaml.safe_load(block))


@pytest.mark.slow
def test_the_profile_for_24_gb_is_one_and_fits_by_the_estimate(tmp_path):
    """The page's keys put into a copy of paper.yaml; Stable Diffusion's sizes from its configuration alone."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from nfx import memory, preflight
    from nfx.profile import load_profile

    page = (ROOT / "docs/paper_on_a_cluster.md").read_text(encoding="utf-8")
    (block,) = [text for kind, text in FENCE.findall(page) if kind == "yaml"]
    content = yaml.safe_load((ROOT / "nfx/profiles/paper.yaml").read_text(encoding="utf-8"))
    for key, value in yaml.safe_load(block).items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    content["models"]["stable_diffusion"] = str(tmp_path)
    file = tmp_path / "paper_24gb.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with torch.device("meta"):
        UNet2DConditionModel(sample_size=64, **preflight.UNET).save_config(tmp_path / "unet")
        AutoencoderKL(**preflight.AUTOENCODER).save_config(tmp_path / "vae")
    needed = memory.estimate(load_profile(file))
    assert max(needed.values()) < 24e9 and max(needed, key=needed.__getitem__) == "pretraining"
    row = next(line for line in (ROOT / "docs/real_data.md").read_text().splitlines() if "[for 24 GB]" in line)
    assert [int(cell) for cell in row.split("|")[2:-1]] == [round(value / 1e9) for value in needed.values()]


# --- links and names -----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def names_in(path: Path) -> set[str]:
    """Names that a module defines, imports, or finds late, by its source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def is_there(dotted: str) -> bool:
    path, names = ROOT / "nfx", dotted.split(".")[1:]
    while names and ((path / names[0]).is_dir() or (path / f"{names[0]}.py").is_file()):
        path /= names.pop(0)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return not names or (len(names) == 1 and names[0] in names_in(source))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_that_is_named_is_there(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for dotted in set(re.findall(r"`(nfx(?:\.\w+)+)[(`]", text)):
        assert is_there(dotted), f"{page.name}: {dotted}"
    for path in set(re.findall(r"`((?:nfx|tests|workflow|notebooks)/[\w./]+)`", text)):
        made = page.name == "extending.md" and "most_alike" in path  # the reader's own
        assert made or (ROOT / path).exists(), f"{page.name}: {path}"


def test_a_name_that_is_not_there_would_be_found():
    assert is_there("nfx.data.clean_run") and is_there("nfx.evaluation.ablations.direction_table")
    assert not is_there("nfx.data.clean_rum") and not is_there("nfx.nowhere.clean_run")


def test_tables_that_show_a_measurement_are_in_the_report():
    items = yaml.safe_load((ROOT / "nfx/templates/report.yaml").read_text(encoding="utf-8"))
    known = set(re.findall(r"name: \"?([\w*/]+)", (ROOT / "nfx/templates/report.yaml").read_text(encoding="utf-8")))
    assert items
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    measured = [name for part in re.findall(r"Measured[^|]*", text) for name in re.findall(r"`(\w+)`", part)]
    assert len(measured) > 12 and set(measured) <= known, sorted(set(measured) - known)


# --- how long reading takes ----------------------------------------------------------------------------------

READING = ROOT / "docs" / "reading.md"
READING_ROW = re.compile(r"^\| (\d+) \| \[[^]]+\]\(([^)]+)\) \| (.+?) \| .+ \|$", flags=re.MULTILINE)


class Amount(NamedTuple):
    """What a section holds to read: words, figures and films, printed lines, lines of code."""

    words: int = 0
    figures: int = 0
    printed: int = 0
    code: int = 0

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override]
        return Amount(*(one + more for one, more in zip(self, other, strict=True)))

    def minutes(self, with_code: bool) -> float:
        """As docs/reading.md says that it counts."""
        return self.words / 200 + self.figures / 2 + (self.printed + with_code * self.code) * 2 / 60


def sections(notebook: Path) -> dict[str, Amount]:
    """What each section of a notebook holds, by its heading without brackets; the first is the introduction."""
    found: dict[str, Amount] = {}
    title = "introduction"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for line in text.splitlines():
                if heading := re.fullmatch(r"###? (.+?)( \([^)]*\))?", line):
                    title = heading[1]
                found[title] = found.get(title, Amount()) + Amount(words=len(line.split()))
            continue
        amount = Amount(code=sum(bool(line.strip()) for line in text.splitlines()))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if any(kind.startswith("image/") for kind in data) or "<video" in "".join(data.get("text/html", "")):
                amount += Amount(figures=1)
            else:
                printed = "".join(output.get("text", data.get("text/plain", "")))
                amount += Amount(printed=len(printed.splitlines()))
        found[title] = found.get(title, Amount()) + amount
    return found


def reading_minutes(target: str, named: str, with_code: bool) -> float:
    """Minutes that a row of docs/reading.md takes: sections of a notebook, or a page."""
    path = (READING.parent / target).resolve()
    if path.suffix == ".md":
        assert named == "*all*", f"{target}: pages are read whole"
        return Amount(words=len(path.read_text(encoding="utf-8").split())).minutes(with_code)
    held = sections(path)
    names = list(held) if named == "*all*" else [name.strip("*") for name in named.split("; ")]
    assert set(names) <= set(held), f"{path.name} has no section {sorted(set(names) - set(held))}"
    return sum((held[name] for name in names), Amount()).minutes(with_code)


def test_how_long_reading_takes_is_what_the_notebooks_hold():
    """A minute off is let pass, so that mending a sentence does not fail; the sums are those of the rows."""
    text = READING.read_text(encoding="utf-8")
    for part in text.split("\n## ")[1:]:
        with_code = part.startswith("An engineer")
        rows = READING_ROW.findall(part)
        assert len(rows) >= 6
        for stated, target, named in rows:
            counted = reading_minutes(target, named, with_code)
            assert abs(int(stated) - counted) <= 1, f"docs/reading.md, {target}: {stated} minutes, now {counted:.1f}"
        assert int(re.search(r"In all \*\*(\d+) minutes\*\*", part)[1]) == sum(int(row[0]) for row in rows)
    first = text.split("\n## ")[1]
    assert "an hour" in first.splitlines()[0] and sum(int(row[0]) for row in READING_ROW.findall(first)) <= 60
    every = sum((sum(sections(path).values(), Amount()) for path in NOTEBOOKS), Amount())
    without, with_code = map(int, re.search(r"\*\*(\d+) minutes\*\*; with the code \*\*(\d+)\*\*", text).groups())
    assert abs(without - every.minutes(False)) <= 2 and abs(with_code - every.minutes(True)) <= 2


def test_reading_is_counted_as_by_hand(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# 1. A title\n", "two words"]},
        {"cell_type": "markdown", "source": ["## The noise (Eq. 7)\n", "word " * 196]},
        {
            "cell_type": "code", "source": ["a = 1\n", "\n", "b = 2"],
            "outputs": [{"text": ["one\n", "two\n"]}, {"data": {"image/jpeg": "", "text/plain": ["<Figure>"]}}],
        },
    ]  # fmt: skip
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    held = sections(path)
    assert held == {"introduction": Amount(words=6), "The noise": Amount(201, figures=1, printed=2, code=2)}
    assert held["The noise"].minutes(False) == pytest.approx(201 / 200 + 1 / 2 + 4 / 60)
    assert held["The noise"].minutes(True) == pytest.approx(201 / 200 + 1 / 2 + 8 / 60)


# --- API pages -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_api_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    assert any(command == ".venv/bin/python docs/api.py work/api" for _, command in EVERY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "docs/api.py", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    modules = {path for path in (ROOT / "nfx").rglob("*.py") if path.name != "__main__.py"}
    assert len(list(tmp_path.rglob("*.html"))) >= len(modules)
    page = (tmp_path / "nfx" / "data" / "recording.html").read_text(encoding="utf-8")
    assert "read_windows" in page and "Clean recordings of one film" in page
