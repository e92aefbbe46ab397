"""Who imports whom: notebooks -> nfx -> libraries, and within nfx downwards alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nfx").rglob("*.py"))
# From the bottom up: a folder or a file of nfx may import those before its line, and those of its own line.
LAYERS = (
    ("__init__", "paths", "profile", "files", "weights"),
    ("out_of_memory",),
    ("training", "plots"),
    ("flatmaps",),
    ("data",),
    ("encoder",),
    ("diffusion",),
    ("evaluation",),
    ("baselines", "attention"),
    ("studies", "study_figures", "report", "summary", "launch", "memory", "preflight", "stand_ins", "model_card"),
    ("doctor", "cli", "__main__"),
)
# What breaks the order, and why it may.
ALLOWED = {
    ("nfx/__init__.py", "encoder"): "finds the model classes on first use, for diffusers",
    ("nfx/__init__.py", "diffusion"): "the same",
    ("nfx/evaluation/truth_recovery.py", "stand_ins"): "reads the truth of the simulation off the stand-ins' classes",
}


def part(path: Path) -> str:
    """Folder, or file without its ending, right below nfx."""
    return path.relative_to(ROOT / "nfx").parts[0].removesuffix(".py")


def imported(path: Path, types_too: bool = True) -> Iterator[str]:
    """Dotted names that a source imports, wherever it does; without those for type checkers if asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in [] if types_too else ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def parts_imported(path: Path) -> set[str]:
    found = set()
    known = {part(module) for module in MODULES}
    for name in imported(path, types_too=False):
        names = name.split(".")
        if names[0] == "nfx" and len(names) > 1 and names[1] in known:
            found.add(names[1])
    return found - {part(path)}


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


def test_every_part_has_its_place():
    named = [name for layer in LAYERS for name in layer]
    assert len(named) == len(set(named))
    assert {part(path) for path in MODULES} <= set(named) | {"templates", "profiles"}


def test_imports_go_downwards():
    wrong = []
    for path in MODULES:
        place = path.relative_to(ROOT).as_posix()
        if part(path) != "__init__":
            above = {name for name in parts_imported(path) if level(name) > level(part(path))}
            wrong += [f"{place} imports nfx.{name}" for name in sorted(above) if (place, name) not in ALLOWED]
    assert not wrong, "which stand above them: " + "; ".join(wrong)


def test_what_is_allowed_still_happens():
    for (place, name), reason in ALLOWED.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        assert f"nfx.{name}" in text and reason, f"{place} no longer imports {name}: take it out of ALLOWED"


def test_nfx_knows_nothing_of_notebooks_tests_and_workflow():
    foreign = {"notebooks", "tests", "workflow", "papermill", "snakemake", "pytest"}
    foreign |= {file.stem for file in (ROOT / "tests").glob("*.py")}
    wrong = {path.name: tops for path in MODULES if (tops := {n.split(".")[0] for n in imported(path)} & foreign)}
    assert not wrong


def test_the_order_that_the_paper_has():
    order = [level(name) for name in ("data", "encoder", "diffusion", "evaluation", "attention")]
    assert order == sorted(order) and len(set(order)) == 5


def test_it_would_find_a_step_upwards(tmp_path):
    source = tmp_path / "nfx" / "data" / "x.py"
    source.parent.mkdir(parents=True)
    source.write_text("def f():\n    from nfx.encoder import losses\n")
    assert "nfx.encoder" in set(imported(source))
