"""The notebooks in a real JupyterLab, driven by a real browser. `pytest tests` leaves this folder out; the command is

    .venv/bin/pip install -c constraints.txt -e '.[browser]'
    .venv/bin/pytest tests/browser

It needs Debian's chromium (``apt install chromium``) or another Chromium on the PATH, and a finished demo:
``./run_all.sh``, or NFX_ROOT naming a folder that holds one. The notebooks are copied; settings, workspaces and
screenshots go to temporary folders (``--basetemp`` names them), so that nothing of the user's is read or written,
but that the notebooks write their figures to ``figures/demo/`` once more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from nfx import paths

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH, HEIGHT = 1366, 768  # pixels of a small laptop
PATIENCE = 30 * 60  # seconds for one notebook
PROGRESS = re.compile(r"\d+%\|.*\| \d+/\d+ \[\d\d:\d\d<\d\d:\d\d")  # share done, steps, time spent, time left

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -c constraints.txt -e '.[browser]'"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"),
]
needs_demo = pytest.mark.skipif(
    not (paths.ROOT / "work" / "demo" / "decoder" / "subject1_row10" / "manifest.json").is_file(),
    reason=f"no finished demo in {paths.ROOT}: ./run_all.sh makes one, or let NFX_ROOT name a folder with one",
)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, who owns containers.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("screenshots", numbered=False)


class Lab:
    """A JupyterLab of its own: no token, a free port, empty settings; its notebooks are in `folder`."""

    def __init__(self, home: Path, root: Path) -> None:
        self.folder = home / "notebooks"
        self.folder.mkdir(parents=True)
        settings = home / "settings"
        # All cells are kept in the page, so that they can be looked at; and nobody is asked about news.
        for name, value in {
            "notebook-extension/tracker": {"windowingMode": "none", "recordTiming": True},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        }.items():
            file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(value))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ, "NFX_ROOT": str(root), "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "IPYTHONDIR": str(home / "ipython"), "JUPYTER_NO_CONFIG": "",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
        command += ["--IdentityProvider.token=", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder}"]
        self.log = (home / "lab.log").open("w")
        self.server = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        for _ in range(180):
            try:
                urllib.request.urlopen(f"{self.url}/api/status", timeout=5).close()
                return
            except OSError:
                assert self.server.poll() is None, (home / "lab.log").read_text()[-3000:]
                time.sleep(1)
        self.close()
        raise AssertionError(f"JupyterLab did not answer within 3 minutes: {home / 'lab.log'}")

    def close(self) -> None:
        self.server.terminate()  # shuts its kernels down
        try:
            self.server.wait(60)
        except subprocess.TimeoutExpired:
            self.server.kill()
        self.log.close()


def open_notebook(browser, lab: Lab, name: str):
    """A page of its own with one notebook, ready to run."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{lab.url}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle'], .jp-Toolbar-kernelStatus", state="attached")
    return page


def choose(page, menu: str, item: str) -> None:
    """Choose an item of JupyterLab's menu bar by its name."""
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
    page.locator(".lm-Menu-item:visible", has_text=re.compile(f"^{item}")).first.click()


def running(page) -> int:
    """How many cells run or wait."""
    return page.locator(".jp-InputArea-prompt", has_text="[*]:").count()


def run(page, item: str = "Run All Cells") -> None:
    """Choose an item of the menu Run, and wait until the kernel has taken it up."""
    choose(page, "Run", item)
    page.locator(".jp-InputArea-prompt", has_text="[*]:").first.wait_for(state="attached")


def wait_until_run(page, seconds: float = PATIENCE) -> None:
    """Until no cell runs or waits."""
    end = time.monotonic() + seconds
    while running(page):
        assert time.monotonic() < end, f"still running after {seconds:.0f} s"
        page.wait_for_timeout(1000)


def saved(page, path: Path):
    """Save the notebook in JupyterLab, and read it from disk."""
    before = path.stat().st_mtime_ns
    choose(page, "File", "Save Notebook")
    for _ in range(60):
        page.wait_for_timeout(500)
        if path.stat().st_mtime_ns != before:
            break
    page.wait_for_timeout(500)
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(notebook) -> list[str]:
    return [
        f"{cell.source.splitlines()[0]}: {output.ename}: {output.evalue}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]


SCROLLER = """() => {
  let box = document.querySelector('.jp-Notebook .jp-Cell').parentElement;
  while (box.scrollHeight <= box.clientHeight + 2 && box.parentElement) box = box.parentElement;
  return box;
}"""


def shoot(page, folder: Path, name: str, height: int = 1600) -> None:
    """Screenshots of the whole notebook from its top, one of `height` pixels after the other."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.wait_for_timeout(2000)
    box = page.evaluate_handle(SCROLLER)
    whole, seen = page.evaluate("box => [box.scrollHeight, box.clientHeight]", box)
    for number, top in enumerate(range(0, whole, seen)):
        page.evaluate("([box, top]) => box.scrollTo(0, top)", [box, top])
        page.wait_for_timeout(1000)
        page.screenshot(path=folder / f"{name}_{number:02d}.png")
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


@pytest.fixture(scope="module")
def demo_lab(tmp_path_factory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("demo"), paths.ROOT)
    for path in NOTEBOOKS:
        shutil.copy(path, lab.folder)
    yield lab
    lab.close()


@needs_demo
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_run_all_shows_every_figure_and_no_error(path, browser, demo_lab, screenshots):
    page = open_notebook(browser, demo_lab, path.name)
    committed = nbformat.read(path, as_version=4)
    headings = [
        re.sub(r"[^\w]", "", line.lstrip("# "))
        for cell in committed.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match("#+ ", line)
    ]
    page.locator("[data-id='table-of-contents']").click()
    page.wait_for_selector(".jp-tocItem-content")
    shown = [re.sub(r"[^\w]", "", text) for text in page.locator(".jp-tocItem-content").all_inner_texts()]
    page.screenshot(path=screenshots / f"{path.stem[:2]}_contents.png")
    assert shown == headings  # in order, and none but the notebook's own
    page.locator("[data-id='table-of-contents']").click()

    run(page)
    wait_until_run(page)
    done = saved(page, demo_lab.folder / path.name)
    shoot(page, screenshots, path.stem[:2])
    assert not errors(done)
    assert all(cell.execution_count for cell in code_cells(done))

    outputs = [output for cell in code_cells(done) for output in cell.outputs]
    pictures = sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)
    sizes = page.locator(".jp-OutputArea-output img").evaluate_all(
        "all => all.map(i => [i.naturalWidth, i.clientWidth])"
    )
    assert len(sizes) >= pictures > 0
    assert all(natural > 0 and 0 < wide <= WIDTH for natural, wide in sizes)
    films = page.locator(".jp-OutputArea-output video").evaluate_all(
        "all => all.map(v => [v.readyState, v.videoWidth])"
    )
    expected = sum("<video" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert len(films) >= expected
    assert all(state > 0 and wide > 0 for state, wide in films)
    page.close()


# ---- stopping, going on, and changing something: in a project in miniature ----------------------------------------


STEPS = 600  # of the contrastive training: some ten seconds, so that there is something to interrupt


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory) -> Iterator[tuple[Lab, Path]]:
    """Notebook 02 on a project in miniature, whose data notebook 01 has prepared; and that project's root."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from tiny import make_root

    root = tmp_path_factory.mktemp("root")
    profile = make_root(root, contrastive={"steps": STEPS}, training={"checkpoint_every": 20})
    environment = {**os.environ, "NFX_ROOT": str(root), "PYTHONPATH": os.pathsep.join(
        [str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    command = [sys.executable, "-m", "papermill", NOTEBOOKS[0], root / "01.ipynb", "--cwd", NOTEBOOKS[0].parent]
    command += ["--no-progress-bar", "--kernel", "python3", "-r", "profile", profile]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lab = Lab(tmp_path_factory.mktemp("tiny"), root)
    notebook = nbformat.read(NOTEBOOKS[1], as_version=4)
    for cell in code_cells(notebook):
        cell.source = cell.source.replace('profile: str = "demo"', f'profile: str = "{profile}"')
        cell.outputs = []
    nbformat.write(notebook, lab.folder / NOTEBOOKS[1].name)
    yield lab, root
    lab.close()


def text_of(page, holds: str) -> str:
    """Text outputs of the one cell whose source holds a phrase."""
    return "\n".join(page.locator(".jp-CodeCell", has_text=holds).locator(".jp-OutputArea").all_inner_texts())


def test_a_long_training_tells_its_time_can_be_interrupted_and_goes_on(browser, tiny_lab, screenshots):
    lab, root = tiny_lab
    training, name = "encoder_folder = train_encoder(", NOTEBOOKS[1].name
    page = open_notebook(browser, lab, name)
    run(page)
    end = time.monotonic() + PATIENCE
    while not (PROGRESS.search(text_of(page, training)) and list(root.glob("work/tiny/encoder/*/checkpoint/step_*"))):
        assert time.monotonic() < end and running(page), text_of(page, training)
        page.wait_for_timeout(200)
    page.locator(".jp-CodeCell", has_text=training).scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "02_progress.png")
    choose(page, "Kernel", "Interrupt Kernel")
    wait_until_run(page)
    page.screenshot(path=screenshots / "02_interrupted.png")
    stopped = saved(page, lab.folder / name)
    assert [error.split(":")[1] for error in errors(stopped)] == [" KeyboardInterrupt"]
    assert list(root.glob("work/tiny/encoder/*/checkpoint/step_*"))

    run(page)
    wait_until_run(page)
    finished = saved(page, lab.folder / name)
    assert not errors(finished)
    told = re.search(rf"resumed from step (\d+) of {STEPS}", text_of(page, training))
    assert told and 0 < int(told[1]) < STEPS
    assert not list(root.glob("work/tiny/encoder/*/checkpoint"))
    page.close()


def test_a_changed_hyper_parameter_is_followed_within_the_notebook(browser, tiny_lab, screenshots):
    """After the test above: the reader writes 0.4 into one cell of notebook 02, and runs on from there."""
    lab, root = tiny_lab
    page = open_notebook(browser, lab, NOTEBOOKS[1].name)
    run(page)
    wait_until_run(page)
    cell = page.locator(".jp-CodeCell", has_text="gamma_spa = None")
    cell.locator(".cm-content").click()
    source = next(c.source for c in code_cells(nbformat.read(NOTEBOOKS[1], 4)) if "gamma_spa = None" in c.source)
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source.replace("gamma_spa = None", "gamma_spa = 0.4"))
    run(page, "Run Selected Cell and All Below")
    wait_until_run(page)
    done = saved(page, lab.folder / NOTEBOOKS[1].name)
    shoot(page, screenshots, "02_changed")
    assert not errors(done)
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in code_cells(done)]
    assert any("gamma_spa = 0.4: cosine" in text for text in printed)
    assert any("row 10" in text and "gamma_spa = 0.4" in text for text in printed)  # the scores of both
    assert (root / "work/tiny/encoder/subject1_row2/manifest.json").is_file()  # Table 1 has that row
    page.close()
