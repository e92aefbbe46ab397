"""Readers of files from outside, in a process of its own with limits; `test_fuzz.py` damages the files for them.

    python tests/fuzz_readers.py NAME FOLDER

writes the whole files of a reader to FOLDER and says so; then, for each line that comes, reads them and answers in a
line of JSON: what became of it, CPU time, memory, and whatever it did that a reader must not do.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfx import paths

ROOM = 3 << 30  # bytes of address space that a reader may take beyond what it has when it starts
CPU_SECONDS = 60  # after which the kernel ends it
LARGEST_FILE = 1 << 28  # bytes that it may write


class Reader(NamedTuple):
    """`make` writes whole files below a folder, of which those named are damaged; `read` reads them.

    `read` may return text that must be the same whenever nothing is refused.
    """

    files: tuple[str, ...]
    make: Callable[[Path], None]
    read: Callable[[Path], str | None]


# --- settings ------------------------------------------------------------------------------------------------


def make_profile(folder: Path) -> None:
    from nfx.profile import PROFILES

    for name in ("demo", "paper"):
        shutil.copy(PROFILES / f"{name}.yaml", folder)


def read_profile(folder: Path) -> None:
    from nfx.profile import load_profile

    for name in ("demo", "paper"):
        load_profile(folder / f"{name}.yaml").model_dump_json()


DESCRIPTION = """\
derivatives: derivatives
bids: bids
stimuli: films
task: movie
suffix: space-fsLR_den-91k_bold
subjects: {1: "01"}
train: [part1.mp4, part2.mp4]
test: [{film: last.mp4, event: the last one}]
events_column: stim_file
other_events: [fixation]
delay: 4.0
"""
RUN = "sub-01/func/sub-01_task-movie_run-1"


def make_recordings(folder: Path) -> None:
    (folder / "mine.yaml").write_text(DESCRIPTION)
    rows = ["onset\tduration\tstim_file", "1.5\t3\tfixation"]
    rows += [f"{10 + 40 * n}\t28\t{film}" for n, film in enumerate(("part1.mp4", "part2.mp4", "the last one"))]
    for name, text in {
        f"bids/{RUN}_events.tsv": "\n".join(rows) + "\n",
        f"derivatives/{RUN}_space-fsLR_den-91k_bold.json": '{"RepetitionTime": 1.5, "TaskName": "movie"}',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read_recordings(folder: Path) -> None:
    from nfx.data.derivatives import film_paths, showings
    from nfx.profile import load_profile

    paper = load_profile("paper")
    data = {"recordings": "mine.yaml", "subjects": (1,), "train_segments": 2, "test_segments": 1, "train_volumes": 14}
    profile = paper.model_copy(update={"data": paper.data.model_copy(update={**data, "test_volumes": 14})})
    for film in film_paths(profile).values():
        assert ".." not in film.parts, film
    for run in showings(profile, 1):
        assert run.repetition_time is None or 0 < run.repetition_time < 1000, run


# --- results of ours -----------------------------------------------------------------------------------------


def make_arrays(folder: Path) -> None:
    from nfx.files import save_arrays

    rng = np.random.default_rng(0)
    arrays = {"fmri": rng.standard_normal((20, 30)).astype(np.float32), "segment": np.arange(20)}
    save_arrays(folder / "result", arrays, {"seed": 1, "betas": [0.9, 0.99]})


def read_arrays(folder: Path) -> str:
    from nfx.files import finished, load_arrays, read_manifest

    loaded = load_arrays(folder / "result", "fmri", "segment")
    finished(folder / "result", read_manifest(folder / "result")["facts"])
    return " ".join(hashlib.sha256(np.array(array).tobytes()).hexdigest() for array in loaded.values())


def make_array(folder: Path) -> None:
    np.save(folder / "array.npy", np.arange(600, dtype=np.float32).reshape(20, 30))


def read_one_array(folder: Path) -> None:
    from nfx.files import read_array

    np.array(read_array(folder / "array.npy"))


def make_snapshot(folder: Path) -> None:
    import torch

    from nfx.encoder import FMRIEncoder
    from nfx.files import write_manifest

    torch.manual_seed(0)
    sizes = {"voxels": 24, "window": 2, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2, "tokens": 3, "token_dim": 4}
    FMRIEncoder(**sizes).save_pretrained(folder / "result" / "encoder")
    write_manifest(folder / "result", {"seed": 1})


def read_snapshot(folder: Path) -> str:
    from nfx.files import verify

    verify(folder / "result")
    return read_foreign_snapshot(folder)


def read_foreign_snapshot(folder: Path) -> str:
    """Of somebody else's, so that no manifest says what it should hold."""
    from nfx.encoder import FMRIEncoder

    encoder = FMRIEncoder.from_pretrained(folder / "result" / "encoder")
    return str(encoder.config.voxels * 0)


def make_released(folder: Path) -> None:
    import argparse

    import torch
    from test_conversion import SIZES, Theirs

    config = argparse.Namespace(**SIZES)
    torch.save({"model": Theirs().state_dict(), "config": config, "epoch": 3}, folder / "released.pth")


def read_released(folder: Path) -> None:
    from nfx.encoder.conversion import read_checkpoint

    read_checkpoint(folder / "released.pth")


SETTINGS = {"steps": 40, "facts": {"seed": 1}}
CHECKPOINT = "result/checkpoint/step_20"


def small_training() -> tuple[Any, Any]:
    """A model and its optimizer, after a step."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def make_checkpoint(folder: Path) -> None:
    from nfx.training import _save

    _save(*small_training(), folder / "result", 20, [{"step": 0, "lr": 0.1, "loss": 1.0}], SETTINGS)


def read_checkpoint(folder: Path) -> str:
    from nfx.training import _resume

    model, optimizer = small_training()
    step, rows = _resume(model, optimizer, folder / "result", SETTINGS)
    return f"{step} {rows} {model.state_dict()} {optimizer.state_dict()}"


# --- recordings and films ------------------------------------------------------------------------------------


def make_cifti(folder: Path) -> None:
    from helpers_dataset import surface_sample, write_cifti

    rng = np.random.default_rng(0)
    brain = surface_sample(np.arange(0, 2000, 100), np.arange(50, 2050, 100))
    write_cifti(folder / "run.dtseries.nii", 1000 + rng.standard_normal((9, 40)), brain)


def read_recording(folder: Path) -> None:
    from nfx.data.cifti import read_cifti

    recording = read_cifti(folder / "run.dtseries.nii")
    assert np.isfinite(recording.data).all() and len(recording.vertex) == recording.data.shape[1]


def look_at_recording(folder: Path) -> None:
    from nfx.data.cifti import time_step
    from nfx.data.inspection import STATES, check_recording

    assert check_recording(folder / "run.dtseries.nii", 4).state in STATES
    time_step(folder / "run.dtseries.nii")


def make_film(folder: Path) -> None:
    from helpers_dataset import write_film

    write_film(folder / "film.mp4", range(60), height=32, width=32)


def read_film(folder: Path) -> None:
    from nfx.data.stimuli import read_clips

    assert read_clips(folder / "film.mp4", 16, clips=1).shape == (1, 6, 16, 16, 3)


def look_at_film(folder: Path) -> None:
    from nfx.data.inspection import STATES, check_film

    assert check_film(folder / "film.mp4", 2.0).state in STATES


# --- downloads -----------------------------------------------------------------------------------------------

FILMS = {f"video_fmri_dataset/stimuli/{name}.mp4": bytes(range(256)) * 4 for name in ("seg1", "test1")}


def zipped(members: dict[Any, bytes], compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def make_archives(folder: Path) -> None:
    bundle = zipped({"README.txt": b"theirs", **FILMS}, zipfile.ZIP_DEFLATED)
    for name, compression in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        (folder / f"{name}.zip").write_bytes(zipped({"10_4231/bundle.zip": bundle}, compression))


def read_archives(folder: Path) -> None:
    from nfx.data.fetch import unpack

    for name in ("stored", "deflated"):
        target = folder / "unpacked"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            listed = unpack(folder / f"{name}.zip", target, "stimuli")
        except ValueError:
            assert (folder / f"{name}.zip.refused").is_file()
            raise
        finally:
            written = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
            allowed = all(name.startswith("video_fmri_dataset/stimuli/") and name.endswith(".mp4") for name in written)
            assert allowed, written
        for file, entry in listed.items():
            assert hashlib.sha256((target / file).read_bytes()).hexdigest() == entry["sha256"]


def make_records(folder: Path) -> None:
    entry = {"bytes": 3, "sha256": "0" * 64}
    record = {"stimuli": {"url": "https://a.example/b", **entry, "files": {name: entry for name in FILMS}}}
    (folder / "fetched.json").write_text(json.dumps(record, indent=2))
    (folder / "data").mkdir()
    files = {"model.safetensors": {**entry, "modified": 1}, "config.json": {**entry, "modified": 2}}
    models = {"owner/name": {"asked": "main", "revision": "0" * 40, "files": files}}
    (folder / "data" / "models.json").write_text(json.dumps(models, indent=2))


def read_records(folder: Path) -> None:
    from nfx import weights
    from nfx.data import fetch

    fetch._is_there(folder, "stimuli")
    weights._read()


# --- what the report shows -----------------------------------------------------------------------------------


def make_shown(folder: Path) -> None:
    from PIL import Image

    (folder / "table.csv").write_text('# made by a notebook\n,clip,ssim,"note, quoted"\n0,1,0.25,a\n1,2,0.5,\n')
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    make_film(folder)


def read_shown(folder: Path) -> None:
    from nfx import report

    report.read_table(folder / "table.csv")
    report.picture(folder / "picture.png")
    report.film(folder / "film.mp4")


READERS = {
    "profiles": Reader(("demo.yaml", "paper.yaml"), make_profile, read_profile),
    "descriptions": Reader(
        ("mine.yaml", f"bids/{RUN}_events.tsv", f"derivatives/{RUN}_space-fsLR_den-91k_bold.json"),
        make_recordings, read_recordings,
    ),
    "results": Reader(("result/manifest.json", "result/fmri.npy", "result/segment.npy"), make_arrays, read_arrays),
    "arrays": Reader(("array.npy",), make_array, read_one_array),
    "snapshots": Reader(
        (
            "result/manifest.json", "result/encoder/config.json",
            "result/encoder/diffusion_pytorch_model.safetensors",
        ),
        make_snapshot, read_snapshot,
    ),
    "foreign snapshots": Reader(
        ("result/encoder/config.json", "result/encoder/diffusion_pytorch_model.safetensors"),
        make_snapshot, read_foreign_snapshot,
    ),
    "checkpoints": Reader(
        tuple(f"{CHECKPOINT}/{name}" for name in ("model.safetensors", "optimizer.pt", "state.json", "sha256.json")),
        make_checkpoint, read_checkpoint,
    ),
    "released checkpoints": Reader(("released.pth",), make_released, read_released),
    "recordings": Reader(("run.dtseries.nii",), make_cifti, read_recording),
    "headers of recordings": Reader(("run.dtseries.nii",), make_cifti, look_at_recording),
    "films": Reader(("film.mp4",), make_film, read_film),
    "headers of films": Reader(("film.mp4",), make_film, look_at_film),
    "archives": Reader(("stored.zip", "deflated.zip"), make_archives, read_archives),
    "records": Reader(("fetched.json", "data/models.json"), make_records, read_records),
    "figures and tables": Reader(("table.csv", "picture.png", "film.mp4"), make_shown, read_shown),
}  # fmt: skip


# --- the contract --------------------------------------------------------------------------------------------

MOST_SECONDS = 20.0  # CPU time of one case
MOST_MEGABYTES = 900.0  # memory that one case may add: twice a film's largest frame, as RGB and as the codec has it
# Refused by safetensors and diffusers in words of their own; of ours, a manifest says what they should hold.
LIBRARIES_WORDS = ("foreign snapshots",)


def breach(name: str, told: dict[str, Any], folder: Path, expected: str | None) -> str | None:
    """What a reader did with a damaged file and must not do, from its answer; None if nothing.

    `expected` is what it returns for whole files.
    """
    if told["forbidden"]:
        return f"it did {told['forbidden']}"
    if told["seconds"] >= MOST_SECONDS or told["megabytes"] >= MOST_MEGABYTES:
        return f"it took {told['seconds']:.1f} s and {told['megabytes']:.0f} MB: {told}"
    text = told["text"]
    if told["outcome"] == "read":
        return None if text == expected else f"it read something else: {text}"
    if name in LIBRARIES_WORDS:
        return None
    if not {"ValueError", "OSError"} & {*told["kind"]}:
        return f"{told['kind'][0]}: {text}"
    if str(folder) not in text and not any(Path(file).name in text for file in READERS[name].files):
        return f"no file or folder is named: {text}"
    if len(text.splitlines()) != 1 or len(text) >= 2000:
        return f"that is no sentence: {text}"
    if re.search("MemoryError|Unable to allocate|Cannot allocate", text):
        return f"memory was asked for: {text}"
    return None


# --- the process ---------------------------------------------------------------------------------------------

forbidden: list[str] = []  # what the reader did and must not do


def watch(folder: Path) -> None:
    """Note writing outside the folder, other programs, the network, and pickled classes."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changing = ("os.rename", "os.mkdir", "os.symlink", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
    other = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        named: list[Any] = []
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            named = [arguments[0]]
        elif event in changing:
            named = [argument for argument in arguments if isinstance(argument, str | bytes | os.PathLike)]
        elif event in other or event == "pickle.find_class":
            forbidden.append(f"{event} {arguments[:2]}")
        for name in named:
            if not isinstance(name, int) and not Path(os.path.abspath(os.fsdecode(name))).is_relative_to(folder):
                forbidden.append(f"{event} {name!r}")

    sys.addaudithook(hook)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def answer(reader: Reader, folder: Path) -> dict[str, Any]:
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        told = {"outcome": "read", "text": reader.read(folder)}
    except Exception as error:
        told = {"outcome": "refused", "kind": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
    signal.setitimer(signal.ITIMER_PROF, 0)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent, did = time.process_time() - begin, forbidden[:5]
    forbidden.clear()
    return {**told, "seconds": spent, "megabytes": (after - before) / 1024, "forbidden": did}


def limit(folder: Path) -> None:
    """From now on this process has little memory, writes no large files, and is watched."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch(folder)


def main() -> None:
    reader, folder = READERS[sys.argv[1]], Path(sys.argv[2]).resolve()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    sys.dont_write_bytecode = True
    paths.ROOT = folder
    os.chdir(folder)
    reader.make(folder)
    told = answer(reader, folder)  # also imports all it needs, before the limits
    limit(folder)
    while True:
        print(json.dumps(told, default=str), file=answers, flush=True)
        if not sys.stdin.readline():
            return
        told = answer(reader, folder)


if __name__ == "__main__":
    main()
