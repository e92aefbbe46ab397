"""Looking whether a run of a profile has what it needs, before it starts.

    python -m nfx.preflight PROFILE

`./run_all.sh paper` does this first, and `./run_all.sh paper --dry-run` shows it. A simulated profile makes its own
data, so only packages and models are looked at, which needs no torch.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from nfx import paths, weights
from nfx.files import as_json, read_manifest
from nfx.profile import load_profile

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.preflight"
HELP = """\
Check that a run of a profile has what it needs, before it starts: packages,
data, models, disk, and the GPU memory that each step is estimated to take.
"""
HELP_END = """\
reads    the profile, constraints.txt, headers and sizes of the data, and all of
         the fetched models, whose SHA-256 is compared; no network
writes   nothing; prints a table of item, state, detail

examples:
  {command} paper
  {command} paper --slurm

exit status: 0 a run can start; 1 something is missing, damaged or too small,
and the last line names it; 2 wrong options
"""
PACKAGES = ("torch", "diffusers", "transformers")
FAULTS = ("missing", "truncated", "misnamed", "damaged", "too small", "another's")  # states with which a run would fail
GRAYORDINATES, CORTEX = 91282, 59412  # of a CIFTI file, and of them on the surface
FLOAT = 4  # bytes of float32
MOMENTS = 2  # AdamW keeps two numbers for each trained one
# Stable Diffusion v1-5, for the sizes before its configuration has been fetched.
UNET: dict[str, Any] = {"cross_attention_dim": 768}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


class Row(NamedTuple):
    """A line of the table: `state` is ok, one of `FAULTS`, or what only informs."""

    item: str
    state: str
    detail: str


def check(profile: Profile, slurm: bool = False) -> pd.DataFrame:
    """Look at everything that a run of a profile needs: packages, data, weights, disk and GPU memory.

    Every recorded weight is read and compared by its SHA-256, once here for all jobs of the run.

    Parameters
    ----------
    profile
    slurm : bool
        The jobs run elsewhere, up to all decoders at once; GPUs of this machine do not count.

    Returns
    -------
    DataFrame
        Columns item, state, detail. States: ok; missing, truncated, misnamed, damaged, too small, another's
        (`FAULTS`); and, for information, other version, late, estimated, not estimated, none.
    """
    rows = [*packages(), *models(profile)]
    if profile.simulated:
        rows.insert(len(PACKAGES), simulated_data(profile))
    else:
        rows[len(PACKAGES) : len(PACKAGES)] = [*data(profile), pretraining(profile)]
        memory = gpu_memory(profile)
        rows += [*disk(profile, slurm), *_memory_rows(memory), *([] if slurm else gpus(profile, memory))]
    return pd.DataFrame(rows, columns=list(Row._fields))


def faults(table: pd.DataFrame) -> list[str]:
    """Items without which a run would fail."""
    return list(table.loc[table["state"].isin(FAULTS), "item"])


# --- packages, data, models ----------------------------------------------------------------------------------


def packages() -> list[Row]:
    """Versions of the packages whose results depend on them, against constraints.txt."""
    pinned = {}
    if (paths.ROOT / "constraints.txt").is_file():
        lines = (paths.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pinned = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return [_package(name, pinned.get(name)) for name in PACKAGES]


def _package(name: str, wanted: str | None) -> Row:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Row(name, "missing", "pip install -c constraints.txt -e .")
    if wanted is None or found.split("+")[0] == wanted:  # after + comes the build, such as cu128
        return Row(name, "ok", found)
    return Row(name, "other version", f"{found}; tested with {wanted} (constraints.txt)")


def data(profile: Profile) -> list[Row]:
    """Films and recordings, by their headers and sizes; of another layout their number."""
    if profile.data.recordings is not None:
        return _other_data(profile)
    from nfx.data.inspection import FAULTS as UNUSABLE
    from nfx.data.inspection import check_dataset

    settings = profile.data
    try:
        table = check_dataset(
            paths.data_set(profile).parent,
            settings.subjects,
            train_segments=settings.train_segments,
            test_segments=settings.test_segments,
            train_repeats=settings.train_repeats,
            test_repeats=settings.test_repeats,
            train_volumes=settings.train_volumes,
            test_volumes=settings.test_volumes,
        )
    except OSError as error:
        return [Row("data set", "missing", str(error))]
    table = table[~table["file"].map(lambda file: _run_of(file) in settings.exclude_runs)]
    rows = []
    for part, found in table.groupby("part", sort=False):
        wrong = found[found["state"].isin(UNUSABLE)]
        late = found[found["state"] == "late"]
        if len(wrong):
            first = wrong.iloc[0]
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            rows.append(
                Row(part, first.state, f"{first.file}{more}; python -m nfx.data.inspection {settings.root} lists all")
            )
        elif len(late):
            rows.append(Row(part, "late", f"{late.iloc[0].file}: {late.iloc[0].detail}; see data.exclude_runs"))
        else:
            rows.append(Row(part, "ok", f"{int((found['state'] == 'present').sum())} files"))
    return rows


def simulated_data(profile: Profile) -> Row:
    """Refuse a folder of simulated data that another profile has used: its data and their truth would be replaced."""
    for file in sorted(paths.ROOT.glob("work/*/stimuli/manifest.json")):
        other, facts = file.parents[1].name, read_manifest(file.parent)["facts"]
        if other == profile.name or facts.get("root") != profile.data.root:
            continue
        data = profile.data.model_dump(mode="json", include=set(facts["data"]))
        mine = as_json({"seed": profile.seed, "simulation": profile.simulation, "data": data})
        if mine != {key: facts.get(key) for key in mine}:
            held = f"{profile.data.root} holds what profile '{other}' simulated with other settings, and still needs"
            return Row("data", "another's", f"{held}: give this profile a data.root of its own, or delete work/{other}")
    return Row("data", "ok", "simulated by notebook 01")


def _run_of(file: str) -> str:
    """``subject1/fmri/seg1/cifti/seg1_2_Atlas.dtseries.nii`` as `data.exclude_runs` names it, ``subject1/seg1_2``."""
    return f"{file.split('/')[0]}/{Path(file).name.removesuffix('_Atlas.dtseries.nii')}"


def _other_data(profile: Profile) -> list[Row]:
    from nfx.data.dataset import film_paths, subject_runs

    rows = []
    try:
        films = film_paths(profile)
        absent = [path for path in films.values() if not path.is_file()]
        detail = f"{absent[0]} and {len(absent) - 1} more" if absent else f"{len(films)} files"
        rows.append(Row("stimuli", "missing" if absent else "ok", detail))
        for subject in profile.data.subjects:
            runs = subject_runs(profile, subject)
            rows.append(Row(f"subject{subject}", "ok" if runs else "missing", f"{len(runs)} showings of film segments"))
    except (OSError, ValueError) as error:
        rows.append(Row("data set", "missing", str(error)))
    return rows


def pretraining(profile: Profile) -> Row:
    """The encoder to start from, or recordings to pre-train one on."""
    if profile.pretraining.snapshot is not None:
        snapshot = paths.ROOT / profile.pretraining.snapshot
        there = (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))
        return Row("pre-training", "ok" if there else "missing", f"pretraining.snapshot: {snapshot}")
    folder = paths.data_set(profile).parent / "hcp"
    count = len(_pretraining_recordings(profile))
    if count:
        return Row("pre-training", "ok", f"{count} recordings in {folder}")
    return Row("pre-training", "missing", f"no recording {profile.pretraining.recordings} below {folder}")


def _pretraining_recordings(profile: Profile) -> list[Path]:
    return list((paths.data_set(profile).parent / "hcp").glob(profile.pretraining.recordings))


def models(profile: Profile) -> list[Row]:
    """The pre-trained models: local folders by their files' names, hub repositories by the record and every byte."""
    return [_model(role, name) for role, name in profile.models.model_dump().items()]


def _model(role: str, name: str) -> Row:
    folder = paths.ROOT / name
    if folder.is_dir():
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        lacking = weights.lacking(role, there)
        return Row(role, "missing", f"{folder} has no {lacking}") if lacking else Row(role, "ok", f"folder {name}")
    try:
        paths.snapshot(name)
        return Row(role, "ok", f"{name}, {weights.describe(weights.verify(name))}")
    except FileNotFoundError as error:
        return Row(role, "missing", str(error))
    except ValueError as error:
        return Row(role, "damaged", str(error))


# --- disk ----------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """Parameters of the networks that a run saves, and the autoencoder's latents.

    Attributes
    ----------
    unet, trained_unet : int
        Of the video UNet all, and those that fine-tuning trains.
    encoder, pretrained_encoder : int
        Of a subject's fMRI encoder, and of the pre-trained one.
    autoencoder : int
    latent : int
        Numbers in a frame's latent.
    """

    unet: int
    trained_unet: int
    encoder: int
    pretrained_encoder: int
    autoencoder: int
    latent: int


def disk(profile: Profile, slurm: bool = False) -> list[Row]:
    """What a run writes to work/<profile>, term by term, and whether it fits."""
    jobs = len(_decoders(profile)) if slurm else max(1, _gpu_count())
    terms = disk_terms(profile, network_sizes(profile), side_by_side=jobs)
    folder = paths.work(profile)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    free = shutil.disk_usage(next(home for home in (folder, *folder.parents) if home.is_dir())).free
    total = sum(terms.values())
    needed = max(0, total - there)
    rows = [Row(f"disk: {name}", "estimated", _gigabytes(size)) for name, size in terms.items()]
    told = f"{_gigabytes(needed)} needed ({_gigabytes(total)} in all, {_gigabytes(there)} there), "
    return [*rows, Row("disk", "ok" if needed <= free else "too small", f"{told}{_gigabytes(free)} free at {folder}")]


def disk_terms(profile: Profile, sizes: Sizes, side_by_side: int = 1) -> dict[str, int]:
    """Bytes that a run of a profile writes, at most.

    With c clips in all, f frames of s x s pixels, n numbers in a latent, t tokens of d numbers, v voxels (at most the
    share `data.keep` of cortex), and the parameters U of the UNet, E of the encoder, A of the autoencoder:

    - film clips: 3 c f s^2
    - latents: 4 c f n
    - embeddings, of images and of captions: 8 c f d
    - caption tokens, if no two frames had the same caption: 4 (c f + 1) t d
    - recordings: 4 c v for each subject
    - pre-training data: size of the recordings x (vertices of V1-V4 / grayordinates) / volumes averaged
    - encoders: 4 E for the pre-trained one, and for each training of the contrastive mapping
    - stage one: 4 U for each beta
    - decoders: 4 (U + E + A) for each subject and row, and for each time-averaged control
    - decoded clips: 3 f s^2 for each validation and test clip of each decoder, and for each test clip of the captions
      and of the autoencoder
    - unfinished work: for each job that runs beside the others two checkpoints (the new one and the one before) of what
      stage two trains, with AdamW's moments: 2 x 3 x 4 bytes a number, and a decoder's clips once more

    Left out are the figures, the executed notebooks, and pieces of notebook 01, which are gone before there is more.
    """
    settings, encoder = profile.data, profile.encoder
    test = settings.test_segments * settings.test_volumes
    clips = settings.train_segments * settings.train_volumes + test
    frames = clips * settings.frames
    shown = FLOAT * frames * encoder.token_dim
    clip = 3 * settings.frames * settings.frame_size**2
    decoders = _decoders(profile)
    encoders = {(subject, profile.encoder_row(row), averaged) for subject, row, averaged in decoders}
    betas = {profile.row(row).beta for _, row, _ in decoders}
    held_out = len(settings.validation_segments) * settings.train_volumes
    tests = min(test, profile.sampling.test_clips or test)
    decoded = clip * (min(held_out, profile.sampling.validation_clips or held_out) + tests)
    checkpoint = (1 + MOMENTS) * FLOAT * (sizes.trained_unet + sizes.encoder)
    return {
        "film clips": clip * clips,
        "latents": FLOAT * frames * sizes.latent,
        "embeddings": 2 * shown,
        "caption tokens": FLOAT * (frames + 1) * encoder.tokens * encoder.token_dim,
        "recordings": FLOAT * clips * _most_voxels(profile) * len(settings.subjects),
        "pre-training data": _pretraining_bytes(profile),
        f"{1 + len(encoders)} encoders": FLOAT * (sizes.pretrained_encoder + len(encoders) * sizes.encoder),
        f"stage one, {len(betas)} betas": FLOAT * sizes.unet * len(betas),
        f"{len(decoders)} decoders": FLOAT * (sizes.unet + sizes.encoder + sizes.autoencoder) * len(decoders),
        "decoded clips": decoded * len(decoders) + 2 * clip * tests,
        f"unfinished work of {side_by_side}": side_by_side * (2 * checkpoint + decoded),
    }


def _decoders(profile: Profile) -> list[tuple[int, int, bool]]:
    """Subject, row and whether time-averaged of every decoder of a run, as workflow/Snakefile has them."""
    first, headline = profile.data.subjects[0], profile.headline_row
    rows = [(first, row, False) for row in profile.rows if row != headline]
    averaged = [(subject, headline, True) for subject in profile.averaged_subjects]
    return [*((subject, headline, False) for subject in profile.data.subjects), *rows, *averaged]


def _most_voxels(profile: Profile) -> int:
    return math.ceil(profile.data.keep * CORTEX)


def _early_vertices() -> int:
    """Of V1 to V4, on which the encoder is pre-trained."""
    import numpy as np

    from nfx.data import parcels

    return int(np.isin(parcels(np.arange(CORTEX)), [f"{side}_V{n}" for side in "LR" for n in (1, 2, 3, 4)]).sum())


def _pretraining_bytes(profile: Profile) -> int:
    recorded = sum(path.stat().st_size for path in _pretraining_recordings(profile))
    return recorded * _early_vertices() // GRAYORDINATES // profile.pretraining.volumes_averaged


def network_sizes(profile: Profile) -> Sizes:
    """Count the parameters of a profile's networks, built without memory for them.

    Stable Diffusion's are those of its configuration, or of v1-5 as long as that has not been fetched.
    """
    import torch
    from diffusers import AutoencoderKL

    from nfx.diffusion import VideoUNet, trainable_parameters
    from nfx.encoder import FMRIEncoder

    unet, autoencoder = UNET, AUTOENCODER
    try:
        folder = Path(paths.snapshot(profile.models.stable_diffusion))
        unet = VideoUNet.load_config(folder, subfolder="unet")
        autoencoder = AutoencoderKL.load_config(folder, subfolder="vae")
    except (OSError, ValueError):
        pass  # the row of the model says what is wrong with it
    sizes = profile.encoder.model_dump()
    with torch.device("meta"):
        video = VideoUNet.from_config(unet)
        vae = AutoencoderKL.from_config(autoencoder)
        encoder = FMRIEncoder(voxels=_most_voxels(profile), window=profile.data.window, **sizes)
        pretrained = FMRIEncoder(voxels=_early_vertices(), window=1, **sizes)
    side = profile.data.frame_size // 2 ** (len(vae.config.block_out_channels) - 1)
    return Sizes(
        unet=_count(video.parameters()),
        trained_unet=_count(trainable_parameters(video)),
        encoder=_count(encoder.parameters()),
        pretrained_encoder=_count(pretrained.parameters()),
        autoencoder=_count(vae.parameters()),
        latent=vae.config.latent_channels * side**2,
    )


def _count(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


# --- GPUs ----------------------------------------------------------------------------------------------------


def gpu_memory(profile: Profile) -> dict[str, float] | str:
    """Bytes of GPU memory that each training and the decoding need, or why that cannot be said."""
    try:
        return _estimate(profile)
    except (OSError, ValueError) as error:
        return str(error)


def gpus(profile: Profile, needed: dict[str, float] | str) -> list[Row]:
    """Free memory of each visible GPU against what `gpu_memory` has found."""
    import torch

    rows, steps = [], needed if isinstance(needed, dict) else {}
    most = max(steps, key=steps.__getitem__, default="")
    for number in range(_gpu_count()):
        free, total = torch.cuda.mem_get_info(number)
        told = f"{torch.cuda.get_device_name(number)}: {_gigabytes(free)} of {_gigabytes(total)} free"
        if steps and free < steps[most]:
            remedy = f"{most} needs {_gigabytes(steps[most])}: see training.accumulate and gradient_checkpointing"
            rows.append(Row(f"GPU {number}", "too small", f"{told}; {remedy}"))
        else:
            rows.append(Row(f"GPU {number}", "ok", told))
    if not rows:
        # With precision "no" a small profile of one's own may well run on a CPU.
        wanted = profile.training.precision == "bf16"
        rows.append(Row("GPU", "missing" if wanted else "none", "no GPU that this torch can use is visible"))
    return rows


def _memory_rows(needed: dict[str, float] | str) -> list[Row]:
    if isinstance(needed, str):
        return [Row("GPU memory", "not estimated", needed)]
    return [Row(f"GPU memory: {step}", "estimated", _gigabytes(size)) for step, size in needed.items()]


def _estimate(profile: Profile) -> dict[str, float]:
    """Bytes of GPU memory by step."""
    from nfx.memory import estimate

    return estimate(profile)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# --- the command ---------------------------------------------------------------------------------------------


def table_text(table: pd.DataFrame) -> str:
    """The table as lines of text."""
    widths = [max(map(len, [*table[column], column])) for column in ("item", "state")]
    lines = [("item", "state", "detail"), *table.itertuples(index=False)]
    return "\n".join(f"{item:<{widths[0]}}  {state:<{widths[1]}}  {detail}".rstrip() for item, state, detail in lines)


def main(arguments: Sequence[str] | None = None, command: str = COMMAND) -> None:
    """The command: prints the table; status 1 if something that a run needs is not there."""
    parser = argparse.ArgumentParser(
        prog=command,
        description=HELP,
        epilog=HELP_END.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help="demo, paper, or a YAML file")
    parser.add_argument("--slurm", action="store_true", help="the jobs run elsewhere: do not look at GPUs here")
    given = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
    except (OSError, ValueError) as error:
        sys.exit(f"{command}: {error}")
    table = check(profile, given.slurm)
    print(table_text(table))
    wrong = faults(table)
    if wrong:
        sys.exit(f"{command}: a run of '{profile.name}' needs more than is there: {', '.join(wrong)} (see the table)")


if __name__ == "__main__":
    main()
