"""The command `nfx`: what one does beside stepping through the notebooks and `./run_all.sh`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

OUTPUTS = (".mp4", ".gif", ".npy")
# Help texts are wrapped here, for 80 columns: argparse would run examples together.
FETCH = """\
Fetch the published data set (Wen et al. 2018) and the pre-trained models that a
profile names, and check them. What is there and whole is kept; an interrupted
call goes on. A simulated profile needs nothing from anywhere.
"""
FETCH_END = """\
reads    the profile; from the network the data set's server and the model hub
         (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and proxies apply)
writes   the data set below the profile's data.root, about 15 GB a subject; the
         models into the hub's cache (HF_HOME), recorded in data/models.json

examples:
  nfx fetch paper
  nfx fetch paper --only data --subjects 1

exit status: 0 all is there and checked; 1 something could not be fetched, or is
damaged, said in one sentence; 2 wrong options
"""
DECODE = """\
Decode one film's recordings of a subject to video, 2 s a clip, with a decoder
that 'nfx publish' wrote or that was downloaded from a model hub. Several
recordings of the same film are averaged first, which takes noise away. Give
--clips alone for recordings in the published layout, else --onset. Solver,
steps, guidance and seed are those of the decoder's evaluation.
"""
DECODE_END = """\
reads    the recordings, of each the JSON file beside it if there is one, and
         the decoder's folder, compared with its manifest
writes   FILE: a film of 3 frames a second (.mp4, .gif), or an array of uint8
         (clips, frames, height, width, 3) (.npy); prints how much it holds

examples:
  nfx decode test1_*.dtseries.nii --decoder decoder --clips 240 --out test1.mp4
  nfx decode mine.dtseries.nii --decoder decoder --onset 12 --out mine.gif

exit status: 0 written; 1 a recording or the decoder is missing, damaged or does
not fit, said in one sentence; 2 wrong options
"""
PUBLISH = """\
Copy a trained and evaluated decoder to a folder that stands alone: weights, the
sampler that it was evaluated with, which voxels it reads, and a model card with
data, sizes, scores, clips, licence and limits. Nothing is uploaded unless
--repository is given.
"""
PUBLISH_END = """\
reads    in work/<profile>/ the decoder, its clips and scores (notebook 03) and
         the subject (01); figures/<profile>/ssim_controls.csv if it is there
writes   the folder: a diffusers pipeline, decoder.json, README.md (the card),
         clips.png, manifest.json; with --repository also that repository of the
         hub (HF_TOKEN, or hf auth login; HF_ENDPOINT names another hub)

examples:
  nfx publish demo decoder
  nfx publish demo decoder --subject 2 --row 8 --repository OWNER/NAME

exit status: 0 written, and uploaded if asked; 1 the decoder is not there or not
scored, the folder is not empty, no licence is known, or the hub refuses, said
in one sentence; 2 wrong options
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands; an error of the user's is one sentence on standard error, and status 1."""
    from nfx import __version__

    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="nfx",
        usage="nfx COMMAND [OPTIONS]",
        description="The NeuralFlix companion: video decoded from fMRI, simulated or recorded.",
        epilog=f"commands (nfx COMMAND --help tells more):\n{listed}\n\nThe whole pipeline runs with ./run_all.sh.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nfx {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="OPTIONS", help="of that command")
    given = parser.parse_args(arguments)
    try:
        COMMANDS[given.command](given.rest)
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"nfx {given.command}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"nfx {given.command}: interrupted")


def fetch(arguments: Sequence[str]) -> None:
    """Fetch the data set and the pre-trained models that a profile names."""
    from nfx import paths, weights
    from nfx.data import fetch as data
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(
        prog="nfx fetch",
        description=FETCH,
        epilog=FETCH_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help="demo, paper, or a YAML file")
    parser.add_argument("--only", choices=["data", "weights"], help="one of the two; default: both")
    parser.add_argument("--subjects", type=int, nargs="+", help="default: the profile's")
    parser.add_argument(
        "--accept",
        nargs="+",
        default=[],
        metavar="OWNER/NAME",
        help="take a model's revision of today in place of the recorded one",
    )
    given = parser.parse_args(arguments)
    profile = load_profile(given.profile)
    if given.only != "weights":
        if profile.simulated:
            print(f"data: the profile '{profile.name}' is simulated; notebook 01 writes its data")
        elif profile.data.recordings is not None:
            print(f"data: {profile.data.recordings} names recordings of your own; nothing is fetched")
        else:
            subjects = given.subjects or profile.data.subjects
            data.main([str(paths.data_set(profile).parent), "--subjects", *map(str, subjects)])
    if given.only != "data":
        weights.main([given.profile, *(["--accept", *given.accept] if given.accept else [])])


def check(arguments: Sequence[str]) -> None:
    """Look whether a run of a profile has what it needs: packages, data, models, disk, GPUs."""
    from nfx.preflight import main

    main(arguments, "nfx check")


def doctor(arguments: Sequence[str]) -> None:
    """Print versions, hardware, data, models, disk and the last failure, to be pasted in an issue."""
    from nfx.doctor import main

    main(arguments, "nfx doctor")


def decode(arguments: Sequence[str]) -> None:
    """Decode recordings of a subject to video with a trained decoder."""
    parser = argparse.ArgumentParser(
        prog="nfx decode",
        description=DECODE,
        epilog=DECODE_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help=".dtseries.nii files, fsLR 32k")
    parser.add_argument("--decoder", required=True, metavar="FOLDER", help="a published decoder")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"video to write: {', '.join(OUTPUTS)}")
    parser.add_argument("--clips", type=int, help="2-s clips of the film; with --onset default: as many as fit")
    parser.add_argument("--onset", type=float, help="when the film begins, s after the recording's first volume")
    parser.add_argument("--tr", type=float, help="repetition time, s; default: JSON file beside it, else header")
    parser.add_argument("--steps", type=int, help="evaluations of the UNet; default: as it was evaluated")
    parser.add_argument("--guidance", type=float, help="weight of the recording; default: as it was evaluated")
    parser.add_argument("--seed", type=int, help="of the noise; default: as it was evaluated")
    given = parser.parse_args(arguments)
    out = Path(given.out)
    if out.suffix not in OUTPUTS:  # before hours of work
        raise ValueError(f"--out is {given.out}: expected a name that ends in {', '.join(OUTPUTS)}")
    if given.tr is not None and given.onset is None:
        raise ValueError("--tr says nothing without --onset: recordings in the published layout have 2 s")
    if given.steps is not None and given.steps < 1:
        raise ValueError(f"--steps is {given.steps}: expected 1 or more")

    from nfx.data.recording import read_needs, read_windows

    needs = read_needs(given.decoder)
    windows = read_windows(given.recordings, given.decoder, given.clips, given.onset, given.tr)

    from nfx.diffusion import decode as decode_windows
    from nfx.evaluation.decoded import load_pipeline

    clips = decode_windows(
        load_pipeline(Path(given.decoder)),
        windows,
        clip_ids=range(len(windows)),
        seed=needs.seed if given.seed is None else given.seed,
        steps=needs.steps if given.steps is None else given.steps,
        guidance=needs.guidance if given.guidance is None else given.guidance,
    )
    _write(clips, out)
    print(f"{out}: {len(clips)} clips of {clips.shape[1]} frames, {clips.shape[2]} x {clips.shape[3]} pixels")


def _write(clips: np.ndarray, out: Path) -> None:
    """uint8 (clips, frames, height, width, 3) as a film, or as they are."""
    from nfx.plots import write_gif, write_video

    if out.suffix == ".npy":
        import numpy as np

        from nfx.files import write_atomically

        with write_atomically(out) as temporary:
            np.save(temporary, clips, allow_pickle=False)
    else:
        {".mp4": write_video, ".gif": write_gif}[out.suffix](clips, out)


def report(arguments: Sequence[str]) -> None:
    """Put all figures, tables and clips of a run on one page."""
    from nfx.report import main

    main(arguments, "nfx report")


def publish(arguments: Sequence[str]) -> None:
    """Write a trained decoder with its model card to a folder, and on request to a model hub."""
    parser = argparse.ArgumentParser(
        prog="nfx publish",
        description=PUBLISH,
        epilog=PUBLISH_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help="demo, paper, or a YAML file")
    parser.add_argument("folder", help="new folder to write")
    parser.add_argument("--subject", type=int, help="default: the profile's first")
    parser.add_argument("--row", type=int, help="of Table 1; default: the profile's headline row")
    parser.add_argument("--licence", help="as the hub writes it; default: that of the diffusion model, where known")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="upload the folder to this repository of the hub")
    parser.add_argument("--public", action="store_true", help="a new repository can be read by everyone")
    given = parser.parse_args(arguments)
    if given.public and given.repository is None:
        raise ValueError("--public says nothing without --repository")

    from nfx.model_card import publish, upload
    from nfx.profile import load_profile

    profile = load_profile(given.profile)
    subject = profile.data.subjects[0] if given.subject is None else given.subject
    row = profile.headline_row if given.row is None else given.row
    profile.row(row)  # an unknown one is told here
    folder = publish(profile, subject, row, given.folder, given.licence)
    print(f"{folder}: a decoder and its card, README.md; read it before you give it away")
    if given.repository is not None:
        print(upload(folder, given.repository, private=not given.public))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "fetch": fetch,
    "check": check,
    "doctor": doctor,
    "decode": decode,
    "report": report,
    "publish": publish,
}

if __name__ == "__main__":
    main()
