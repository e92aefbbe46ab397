"""Recordings that are altered for a control of `nfx.evaluation.interventions`, and decoders trained on them.

What is trained goes to ``work/<profile>_<control>``, laid out as ``work/<profile>``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfx import files, paths
from nfx.evaluation.lags import LAG, lagged

if TYPE_CHECKING:
    from nfx.data import Split, SubjectData
    from nfx.encoder import FMRIEncoder
    from nfx.profile import Profile

# Visual areas beyond nfx.data.voxels.HIERARCHY, in MMP parcels (Glasser et al. 2016, supplementary section 3): dorsal
# stream, scene areas of medial temporal and retrosplenial cortex, body and object areas of lateral temporal cortex.
FURTHER_VISUAL = (
    *("V3A", "V3B", "V6", "V6A", "V7", "IPS1", "IP0"),
    *("PHA1", "PHA2", "PHA3", "ProS", "DVT", "POS1", "POS2", "RSC"),
    *("TE2p", "PHT", "TPOJ1", "TPOJ2", "TPOJ3"),
)


# --- recordings ----------------------------------------------------------------------------------------------


def recordings_at(profile: Profile, subject: int, part: str, vertex: np.ndarray) -> np.ndarray:
    """A subject's recordings of "train" or "test" at given vertices, prepared as those of notebook 01.

    Parameters
    ----------
    vertex : int (voxels,), grayordinates

    Returns
    -------
    float32 (clips, voxels): each run cleaned, the mean over repeats, segments after one another

    Raises
    ------
    FileNotFoundError
        If a run is missing.
    ValueError
        If the recordings lack a vertex.
    """
    from nfx.data import dataset, grayordinate, read_cifti

    data = profile.data
    kind, segments, volumes, repeats = {
        "train": ("seg", data.train_segments, data.train_volumes, data.train_repeats),
        "test": ("test", data.test_segments, data.test_volumes, data.test_repeats),
    }[part]
    runs = dataset._runs_by_segment(profile, subject, kind, segments, repeats)
    brain = read_cifti(runs[0][0].path)[1:]
    places = grayordinate(*brain)
    column = {int(place): number for number, place in enumerate(places) if place >= 0}
    missing = [int(v) for v in vertex if int(v) not in column]
    if missing:
        raise ValueError(
            f"{runs[0][0].path} lacks {len(missing)} of {len(vertex)} vertices, grayordinate {missing[0]} first: "
            "expected recordings on the same surface points for both subjects"
        )
    columns = np.array([column[int(v)] for v in vertex])
    means = [
        np.mean([dataset._read_run(run, volumes, columns, brain)[0] for run in repeated], axis=0, dtype=np.float64)
        for repeated in runs
    ]
    return np.concatenate(means).astype(np.float32)


def non_visual_voxels(profile: Profile, subject: int) -> np.ndarray:
    """As many vertices outside visual cortex as the subject has voxels, drawn at random, in `hierarchy_order`.

    Outside are vertices in none of the networks and parcels that `nfx.data.voxels` orders by, and in none of
    `FURTHER_VISUAL`: the complement of the networks alone would still hold scene, body and object areas, which answer
    to films, in the simulation as in people. Vertices that are constant in a run are left out.

    Returns
    -------
    int (voxels,), grayordinates

    Raises
    ------
    ValueError
        If there are fewer such vertices than voxels.
    """
    from nfx.data import hierarchy_order, networks, parcels
    from nfx.data.voxels import HIERARCHY

    arrays = files.load_arrays(
        paths.work(profile, f"subject{subject}"), "vertex", "reproducibility_vertex", "constant_runs"
    )
    everywhere, wanted = np.asarray(arrays["reproducibility_vertex"]), len(arrays["vertex"])
    area = np.array([name[2:] for name in parcels(everywhere)])  # without L_ or R_
    visual = [*(name for level in HIERARCHY for name in level), *FURTHER_VISUAL]
    outside = (networks(everywhere) == "") & ~np.isin(area, visual) & (np.asarray(arrays["constant_runs"]) == 0)
    candidates = everywhere[outside]
    if len(candidates) < wanted:
        raise ValueError(
            f"subject {subject} has {len(candidates)} vertices outside visual cortex and {wanted} voxels: this control "
            "needs as many, so lower data.keep"
        )
    drawn = np.random.default_rng(profile.seed).choice(candidates, wanted, replace=False)
    return drawn[hierarchy_order(drawn)]


def prepare_altered(profile: Profile, name: str, subject: int) -> Profile:
    """Write a subject's altered recordings to ``work/<profile>_<name>/subject<k>``; the profile that reads them.

    The targets and the pre-trained encoder are those of the profile, by symbolic links. For the lags, the profile that
    is returned holds the clips without a recording out, as it does the validation segments.
    """
    own = paths.work(profile, f"subject{subject}")
    altered = altered_profile(profile, name)
    facts = {
        "control": name,
        "subject": files.identity(own),
        "seed": profile.seed,
        "code": files.source_digest("evaluation/altered.py", "evaluation/lags.py", "data/voxels.py", "data/dataset.py"),
    }
    folder = paths.work(altered, f"subject{subject}")
    if not files.finished(folder, facts):
        arrays = files.load_arrays(own, "train_fmri", "test_fmri", "train_segment", "test_segment", "vertex")
        files.save_arrays(folder, _alter(profile, name, subject, arrays), facts)
    for shared in ("targets", "pretraining"):
        _link(paths.work(altered, shared), paths.work(profile, shared))
    segments = np.unique(files.load_arrays(folder, "train_segment")["train_segment"])
    without = segments[segments > profile.data.train_segments].tolist()
    held_out = (*profile.data.validation_segments, *without)
    return altered.model_copy(update={"data": altered.data.model_copy(update={"validation_segments": held_out})})


def altered_profile(profile: Profile, name: str) -> Profile:
    """The profile under the name of a control, ``<profile>_<control>``: its folder below ``work`` is its own."""
    return profile.model_copy(update={"name": f"{profile.name}_{name}"})


def _alter(profile: Profile, name: str, subject: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    altered = dict(arrays)
    if name == "non_visual":
        altered["vertex"] = non_visual_voxels(profile, subject)
    for part in ("train", "test"):
        if name == "non_visual":
            altered[f"{part}_fmri"] = recordings_at(profile, subject, part, altered["vertex"])
        else:
            moved = lagged(np.asarray(arrays[f"{part}_fmri"]), arrays[f"{part}_segment"], LAG[name])
            altered[f"{part}_fmri"], altered[f"{part}_segment"] = moved
    return altered


def _link(link: Path, target: Path) -> None:
    files.read_manifest(target)  # a missing one names its notebook
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    if link.exists() or link.is_symlink():
        raise ValueError(f"{link} is in the way: expected nothing there or a link to {target}; delete it")
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


# --- training anew -------------------------------------------------------------------------------------------


def train_anew(profile: Profile, name: str, subject: int) -> tuple[SubjectData, Path]:
    """The subject's examples under a control that trains anew, and the pipeline trained on them.

    Phase 1 is `nfx.encoder.train_encoder` itself, run on altered recordings; phase 2 is `train_decoder`.

    Parameters
    ----------
    name : one of `nfx.evaluation.interventions.TRAINED_ANEW`

    Returns
    -------
    SubjectData
        Its `test` counts clips as the untouched one does; its `validation` holds the clips too that have no recording.
    Path
        Folder of the pipeline.
    """
    from nfx.data import load_subject
    from nfx.encoder import FMRIEncoder, train_encoder

    row = profile.headline_row
    if name == "untrained_encoder":
        data = load_subject(profile, subject)
        encoder, origin = fresh_encoder(profile, len(data.vertex)), "fresh weights, frozen"
    else:
        altered = prepare_altered(profile, name, subject)
        data = load_subject(altered, subject)
        snapshot = train_encoder(altered, subject, row)
        encoder, origin = FMRIEncoder.from_pretrained(snapshot), files.identity(snapshot.parent)
    folder = paths.work(altered_profile(profile, name), "decoder", f"subject{subject}_row{row}")
    return data, train_decoder(profile, folder, data.train, encoder, origin)


def fresh_encoder(profile: Profile, voxels: int) -> FMRIEncoder:
    """An `FMRIEncoder` as it is drawn at random, from the profile's seed, whose weights get no gradient."""
    import torch

    from nfx.encoder import FMRIEncoder

    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        encoder = FMRIEncoder(voxels, profile.data.window, **profile.encoder.model_dump())
    return encoder.requires_grad_(False)


def train_decoder(profile: Profile, folder: Path, examples: Split, encoder: FMRIEncoder, origin: str) -> Path:
    """`nfx.diffusion.stage_two` of the headline row, from its stage one, on other examples and with another encoder.

    With the encoder and the examples that `stage_two` takes, it ends in the same weights. `stage_two` itself would
    train every encoder on, and every clip of the trained-on segments.

    Parameters
    ----------
    folder : where ``curve.csv`` and ``pipeline/`` go
    examples : windows (clips, window, voxels) and their rows of the training film
    encoder : FMRIEncoder
        Trains on, unless its parameters require no gradient: then it stays as it is.
    origin : what the encoder is, for the manifest

    Returns
    -------
    Path
        ``folder/pipeline``. A finished one is kept, an interrupted training is resumed.
    """
    from diffusers import AutoencoderKL
    from torch import nn

    from nfx.diffusion import NeuralFlixPipeline, VideoUNet, fine_tuning
    from nfx.training import finish

    beta, first = profile.row(profile.headline_row).beta, _stage_one(profile)
    facts = {
        "training": "stage two: fMRI, under a control",
        "fmri": array_digest(examples.fmri),
        "clips": array_digest(examples.clip),
        "encoder": origin,
        **stage_two_facts(profile),
    }
    if files.finished(folder / "pipeline", facts):
        print(f"{folder.parent.parent.name}/{folder.name}: the decoder is finished and reused")
        return folder / "pipeline"

    unet = VideoUNet.from_pretrained(files.verified(first, "unet"))
    fine_tuning.trainable_parameters(unet)
    if profile.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        encoder.enable_gradient_checkpointing()
    base = paths.snapshot(profile.models.stable_diffusion)
    scheduler = fine_tuning.load_scheduler(base)
    latents = files.load_arrays(paths.work(profile, "targets"), "train_latents")["train_latents"]
    loss = fine_tuning.fmri_loss(
        latents[examples.clip], examples.fmri, scheduler, beta=beta or 0.0,
        batch_size=profile.stage_two.batch_size, dropout=profile.stage_two.condition_dropout,
    )  # fmt: skip
    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    fine_tuning._train(model, loss, profile, "stage_two", folder, facts, f"stage two, {folder.parent.parent.name}")
    pipeline = NeuralFlixPipeline(
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=unet.dtype),
        unet=unet,
        fmri_encoder=encoder,
        scheduler=scheduler,
        beta=beta or 0.0,
        frames=profile.data.frames,
        frame_size=profile.data.frame_size,
    )
    pipeline.save_pretrained(folder / "pipeline")
    files.write_manifest(folder / "pipeline", facts)
    finish(folder)
    return folder / "pipeline"


def _stage_one(profile: Profile) -> Path:
    beta = profile.row(profile.headline_row).beta
    return paths.work(profile, "stage1", f"beta_{'none' if beta is None else beta}")


def stage_two_facts(profile: Profile) -> dict[str, Any]:
    """What the stage two of every control shares with the headline row's."""
    from nfx.diffusion import fine_tuning

    return {
        "beta": profile.row(profile.headline_row).beta,
        "seed": profile.seed,
        "settings": profile.stage_two.model_dump(),
        "precision": profile.training.precision,
        "targets": files.identity(paths.work(profile, "targets"), "train_latents"),
        "stage_one": files.identity(_stage_one(profile)),
        "code": files.source_digest(*fine_tuning.CODE, "encoder/model.py"),
    }


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, for a manifest."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
