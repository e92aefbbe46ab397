"""Controls: take something away from the headline row's decoder, and see whether what is decoded goes with it.

The paper claims that its clips come from the brain and not from the diffusion prior. Each control here breaks one link
between brain and film; its clips are decoded from the same noise, scored against their own truth, and compared clip by
clip with those of the untouched decoder. The time-averaged control of Section 5.2 is that of
`nfx.evaluation.decoded.decode_run`.

Decoding alone, with the trained decoder as it is:

- ``shuffled``: blocks of clips exchange their recordings, so that every clip is decoded from those of another block.
- ``other_subject``: the recordings of the next subject, at this subject's own vertices.
- ``condition_dropped``: the null condition alone. Windows of zeros are decoded: then condition and null condition are
  the same, and guidance, which weighs their difference, has nothing to weigh.

Trained anew, all else equal:

- ``untrained_encoder``: an encoder of fresh weights, neither pre-trained nor contrastively trained, that stays as it is
  while stage two trains the UNet. Its tokens are a random projection of the recordings, in which what they hold is
  mixed but not lost: this asks what the UNet's cross-attention learns to read by itself in those steps, and need not
  destroy the decoding.
- ``non_visual``: as many voxels outside visual cortex, in phase 1 and phase 2.
- ``lag_-2``, ``lag_2``: recordings two volumes too early or too late for their clips, in phase 1 and phase 2. A
  response lasts longer than that, so that these lower what can be read and need not destroy it: see `lag_curve`.

What these train goes to ``work/<profile>_<control>``, laid out as ``work/<profile>``, and what they decode to
``work/<profile>/controls/<control>_subject<k>``; nothing that stands in ``work/<profile>`` is changed. One command a
control: ``python -m nfx.evaluation.interventions NAME SUBJECT [--profile demo]``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.evaluation.comparisons import compare, holm_over
from nfx.evaluation.controls import block_bootstrap, blocks
from nfx.evaluation.decoded import (
    DecodedRun,
    decode_and_score,
    decode_windows,
    evenly_spaced,
    load_decoded,
    load_pipeline,
    load_run,
    run_folder,
    sampling_facts,
    warn_of_outdated,
)
from nfx.evaluation.identification import embedding_similarity, identification, pixel_similarity
from nfx.evaluation.n_way import n_way_chance
from nfx.evaluation.tables import block_length, of_part
from nfx.plots import COLOURS, new_figure, panel_letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nfx.data import Split, SubjectData
    from nfx.profile import Profile

COMMAND = "python -m nfx.evaluation.interventions"
LAG = {"lag_-2": -2, "lag_2": 2}  # volumes; positive: later recordings
NAMES = ("shuffled", "other_subject", "condition_dropped", "untrained_encoder", "non_visual", *LAG)  # cheap ones first
TRAINED_ANEW = NAMES[3:]
TITLES = {  # in plain words, in the order of tables and figures
    "untouched": "untouched decoder",
    "time_averaged": "time-averaged fMRI",
    "shuffled": "fMRI of other clips",
    "other_subject": "fMRI of another subject",
    "condition_dropped": "no fMRI (null condition)",
    "untrained_encoder": "untrained, frozen encoder",
    "non_visual": "non-visual voxels",
    "lag_-2": "fMRI 2 volumes too early",
    "lag_2": "fMRI 2 volumes too late",
}
MEASURED = {  # score of a clip -> what a table calls it
    "ssim": "SSIM",
    "image_top1_1": "image",
    "video_top1_1": "video",
    "pixels_2way": "2-way pixels",
    "clip_2way": "2-way CLIP",
}
LAGS = tuple(range(-6, 7))  # volumes, of `lag_curve`
# Visual areas beyond nfx.data.voxels.HIERARCHY, in MMP parcels (Glasser et al. 2016, supplementary section 3): dorsal
# stream, scene areas of medial temporal and retrosplenial cortex, body and object areas of lateral temporal cortex.
FURTHER_VISUAL = (
    *("V3A", "V3B", "V6", "V6A", "V7", "IPS1", "IP0"),
    *("PHA1", "PHA2", "PHA3", "ProS", "DVT", "POS1", "POS2", "RSC"),
    *("TE2p", "PHT", "TPOJ1", "TPOJ2", "TPOJ3"),
)


# --- decoding ------------------------------------------------------------------------------------------------


def control_folder(profile: Profile, name: str, subject: int) -> Path:
    """``work/<profile>/controls/<name>_subject<k>``: a control's decoded clips and their scores."""
    return paths.work(profile, "controls", f"{name}_subject{subject}")


def decode(profile: Profile, name: str, subject: int) -> Path:
    """Decode a subject's test clips under one of the controls `NAMES`, training first where it must, and score them.

    Clips and noise are those of `nfx.evaluation.decoded.decode_run` with the headline row. The controls that move the
    recordings decode the clips that have a recording at both lags. A finished control is reused.

    Returns
    -------
    Path
        `control_folder`; read it with `load`.

    Raises
    ------
    FileNotFoundError
        If data, decoder or, of another subject, recordings are missing.
    ValueError
        If the name is unknown; or the control is impossible: a single subject, too few voxels or clips, a vertex that
        the other subject's files lack.
    """
    from nfx.data import load_subject, windows

    if name not in NAMES:
        raise ValueError(f"there is no control '{name}': expected one of {', '.join(NAMES)}")
    data = load_subject(profile, subject)
    chosen = evenly_spaced(len(data.test.clip), profile.sampling.test_clips)
    pipeline = run_folder(profile, subject, profile.headline_row) / "pipeline"
    if name == "shuffled":
        segment = data.test.segment[chosen]
        fmri = data.test.fmri[chosen][exchange_blocks(segment, block_length(segment), profile.seed)]
    elif name == "other_subject":
        recordings = recordings_at(profile, next_subject(profile, subject), "test", data.vertex)
        fmri = windows(recordings, data.test.segment, profile.data.window)[chosen]
    elif name == "condition_dropped":
        fmri = np.zeros_like(data.test.fmri[chosen])
    else:
        altered, pipeline = train_anew(profile, name, subject)
        if name in LAG:
            chosen = chosen[recorded_at_all(data.test.segment, tuple(LAG.values()))[chosen]]
        fmri = altered.test.fmri[chosen]
    numbers = len(data.train.clip) + len(data.validation.clip) + chosen  # of the clips' noise, as in `decode_run`
    facts = {
        "control": name,
        "pipeline": files.identity(pipeline),
        "fmri": _digest(fmri),
        "clips": chosen,
        **sampling_facts(profile),
    }
    # Models are loaded when they are first asked for: a finished control needs none.
    loaded = cache(lambda: load_pipeline(pipeline))

    def decoder(block: slice) -> np.ndarray:
        return decode_windows(profile, loaded(), numbers[block], fmri=fmri[block])

    return decode_and_score(profile, control_folder(profile, name, subject), {"test": chosen}, {"test": decoder}, facts)


def load(profile: Profile, name: str, subject: int) -> DecodedRun:
    """The clips and scores that `decode` has written; `validation` is None.

    Raises
    ------
    FileNotFoundError, ValueError
        If they are not there, were decoded with a decoder that has since been trained anew, or files are damaged.
    """
    folder, again = control_folder(profile, name, subject), f"{COMMAND} {name} {subject} --profile {profile.name}"
    if not _is_there(folder):
        raise FileNotFoundError(f"{folder} holds no decoded clips: run {again}")
    if _is_outdated(profile, name, subject):
        raise ValueError(f"{folder} was decoded with an earlier decoder than there is now: run {again}")
    return load_decoded(profile, folder)


def decoded(profile: Profile, subject: int) -> dict[str, DecodedRun]:
    """The subject's controls that are there, the time-averaged one among them: title -> clips and scores.

    A control of an earlier decoder is left out, with a warning: what is trained anew must not stop what shows it.
    """
    runs = {}
    if _is_there(run_folder(profile, subject, profile.headline_row, time_averaged=True)):
        runs[TITLES["time_averaged"]] = load_run(profile, subject, profile.headline_row, time_averaged=True)
    there = [name for name in NAMES if _is_there(control_folder(profile, name, subject))]
    outdated = [name for name in there if _is_outdated(profile, name, subject)]
    warn_of_outdated(outdated, f"subject {subject}'s decoder is newer")
    current = [name for name in there if name not in outdated]
    return runs | {TITLES[name]: load_decoded(profile, control_folder(profile, name, subject)) for name in current}


def _is_outdated(profile: Profile, name: str, subject: int) -> bool:
    """Whether a control that is there was made from an earlier decoder, or with other settings of training."""
    if name not in TRAINED_ANEW:
        made_with = files.read_manifest(control_folder(profile, name, subject))["facts"]["decoding"]["pipeline"]
        return made_with != files.identity(run_folder(profile, subject, profile.headline_row) / "pipeline")
    decoder = run_folder(_altered(profile, name), subject, profile.headline_row) / "pipeline"
    if not (decoder / files.MANIFEST).is_file():  # deleted to make room: the clips count on
        return False
    made_with = files.read_manifest(decoder)["facts"]
    return any(made_with.get(key) != value for key, value in files.as_json(_stage_two_facts(profile)).items())


def _is_there(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (files.MANIFEST, "scores.csv"))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# --- what is taken away --------------------------------------------------------------------------------------


def exchange_blocks(segment: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Which clip's recording each clip is decoded from when whole blocks exchange theirs; none keeps its own.

    A derangement of the blocks of `nfx.evaluation.controls.blocks`, drawn at random. The k-th clip of a block gets the
    k-th recording of the other; where that block is shorter, its last one again.

    Parameters
    ----------
    segment : (clips,)
    length : clips a block
    seed : of the derangement

    Returns
    -------
    int (clips,)
    """
    number = blocks(segment, length)
    members = [np.flatnonzero(number == block) for block in range(number[-1] + 1)]
    if len(members) < 2:
        raise ValueError(f"{len(number)} clips are one block of {length}: exchanging recordings needs two or more")
    generator, itself = np.random.default_rng(seed), np.arange(len(members))
    giver = generator.permutation(len(members))
    while (giver == itself).any():
        giver = generator.permutation(len(members))
    given = [
        members[other][np.minimum(np.arange(len(own)), len(members[other]) - 1)]
        for own, other in zip(members, giver, strict=True)
    ]
    return np.concatenate(given)


def next_subject(profile: Profile, subject: int) -> int:
    """The subject after this one in the profile, the first after the last; ValueError if there is no other."""
    subjects = profile.data.subjects
    if len(subjects) < 2:
        raise ValueError(f"profile '{profile.name}' has subject {subject} alone: this control needs another")
    return subjects[(subjects.index(subject) + 1) % len(subjects)]


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


def lagged_rows(segment: np.ndarray, lag: int) -> np.ndarray:
    """The volume `lag` after that of each clip: int (clips,), -1 where it is not in the clip's segment."""
    segment = np.asarray(segment)
    rows = np.arange(len(segment)) + lag
    there = (rows >= 0) & (rows < len(segment))
    there[there] = segment[rows[there]] == segment[there]
    return np.where(there, rows, -1)


def lagged(fmri: np.ndarray, segment: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Recordings shifted against the film within each segment; positive: later recordings go to a clip.

    Parameters
    ----------
    fmri : (clips, voxels)
    segment : int (clips,), from 1
    lag : volumes

    Returns
    -------
    fmri : (clips, voxels), zeros for clips whose recording would be outside their segment
    segment : int (clips,)
        Those clips form segments of their own, numbered on from the largest: no window reaches into them, and whoever
        holds these segments out leaves them out.
    """
    segment, rows = np.asarray(segment), lagged_rows(segment, lag)
    there = rows >= 0
    moved = np.zeros_like(fmri)
    moved[there] = fmri[rows[there]]
    return moved, np.where(there, segment, segment + segment.max())


def recorded_at_all(segment: np.ndarray, lags: Sequence[int]) -> np.ndarray:
    """Whether a clip has a recording at every one of the lags: bool (clips,); ValueError if none has."""
    there = np.all([lagged_rows(segment, lag) >= 0 for lag in lags], axis=0)
    if not there.any():
        raise ValueError(
            f"no clip has a recording at every lag from {min(lags)} to {max(lags)} volumes: expected segments of more "
            f"than {max(*lags, 0) - min(*lags, 0)} clips"
        )
    return there


# --- training anew -------------------------------------------------------------------------------------------


def train_anew(profile: Profile, name: str, subject: int) -> tuple[SubjectData, Path]:
    """The subject's examples under a control of `TRAINED_ANEW`, and the pipeline trained on them.

    Phase 1 is `nfx.encoder.train_encoder` itself, run on altered recordings; phase 2 is `train_decoder`.

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
    folder = paths.work(_altered(profile, name), "decoder", f"subject{subject}_row{row}")
    return data, train_decoder(profile, folder, data.train, encoder, origin)


def fresh_encoder(profile: Profile, voxels: int) -> Any:
    """An `FMRIEncoder` as it is drawn at random, from the profile's seed, whose weights get no gradient."""
    import torch

    from nfx.encoder import FMRIEncoder

    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        encoder = FMRIEncoder(voxels, profile.data.window, **profile.encoder.model_dump())
    return encoder.requires_grad_(False)


def prepare_altered(profile: Profile, name: str, subject: int) -> Profile:
    """Write a subject's altered recordings to ``work/<profile>_<name>/subject<k>``; the profile that reads them.

    The targets and the pre-trained encoder are those of the profile, by symbolic links. For the lags, the profile that
    is returned holds the clips without a recording out, as it does the validation segments.
    """
    own = paths.work(profile, f"subject{subject}")
    altered = _altered(profile, name)
    facts = {
        "control": name,
        "subject": files.identity(own),
        "seed": profile.seed,
        "code": files.source_digest("evaluation/interventions.py", "data/voxels.py", "data/dataset.py"),
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


def _altered(profile: Profile, name: str) -> Profile:
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


def train_decoder(profile: Profile, folder: Path, examples: Split, encoder: Any, origin: str) -> Path:
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
        "fmri": _digest(examples.fmri),
        "clips": _digest(examples.clip),
        "encoder": origin,
        **_stage_two_facts(profile),
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


def _stage_two_facts(profile: Profile) -> dict[str, Any]:
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


# --- without a decoder ---------------------------------------------------------------------------------------


def lag_curve(profile: Profile, subject: int, lags: Sequence[int] = LAGS) -> pd.DataFrame:
    """How well a linear reader that is trained anew at each lag tells test clips apart: where is the film in the brain?

    Ridge regression (`nfx.evaluation.references.linear_reader`) from the windows `lag` volumes after a clip to CLIP's
    image embedding of the clip (mean of its frames'), scored on the test film by 2-way identification. The same clips
    at every lag, in training as in test: those with a recording at all of them. The prepared recordings already lie 4 s
    behind the film (the official trimming), so that the curve must peak at lag 0 or within a volume of it. Neighbouring
    volumes go together, and so do neighbouring clips, which makes it wide.

    Kept in ``work/<profile>/controls/lag_curve_subject<k>``.

    Returns
    -------
    DataFrame
        A row a lag: subject, lag (volumes), mean, low and high (95 % block-bootstrap interval), chance, clips.
    """
    from nfx.evaluation.references import linear_reader

    folder = paths.work(profile, "controls", f"lag_curve_subject{subject}")
    data, targets = paths.work(profile, f"subject{subject}"), paths.work(profile, "targets")
    facts = {
        "lags": list(lags),
        "window": profile.data.window,
        "validation_segments": list(profile.data.validation_segments),
        "fmri": files.identity(data),
        "targets": files.identity(targets, "train_image_embeddings", "test_image_embeddings"),
        "code": files.source_digest("evaluation/interventions.py", "evaluation/references.py"),
    }
    if files.finished(folder, facts):
        return pd.read_csv(folder / "curve.csv")
    arrays = files.load_arrays(data) | files.load_arrays(targets, "train_image_embeddings", "test_image_embeddings")
    segment = {part: np.asarray(arrays[f"{part}_segment"]) for part in ("train", "test")}
    common = {part: recorded_at_all(numbers, lags) for part, numbers in segment.items()}
    held_out = np.isin(segment["train"], profile.data.validation_segments)
    shown = {part: _clip_embedding(arrays[f"{part}_image_embeddings"]) for part in segment}
    used = {"train": common["train"] & ~held_out, "validation": common["train"] & held_out, "test": common["test"]}
    rows = []
    for lag in lags:
        moved = {part: _lagged_windows(profile, arrays[f"{part}_fmri"], segment[part], lag) for part in segment}
        fit, check = ((moved["train"][used[x]], {"clip": shown["train"][used[x]]}) for x in ("train", "validation"))
        read = linear_reader(fit, check, moved["test"][used["test"]])["clip"]
        found = identification(embedding_similarity(shown["test"][used["test"]][:, None], read[:, None]))
        numbers = segment["test"][used["test"]]
        interval = block_bootstrap(found, numbers, block_length(numbers))
        rows.append({"subject": subject, "lag": lag, **interval._asdict(), "chance": 0.5, "clips": len(found)})
    with files.write_atomically(folder / "curve.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    files.write_manifest(folder, facts, ["curve.csv"])
    return pd.read_csv(folder / "curve.csv")


def _lagged_windows(profile: Profile, fmri: np.ndarray, segment: np.ndarray, lag: int) -> np.ndarray:
    from nfx.data import windows

    return windows(*lagged(np.asarray(fmri), segment, lag), profile.data.window)


def _clip_embedding(frames: np.ndarray) -> np.ndarray:
    """Mean of a clip's normalised frame embeddings: (clips, frames, dim) to (clips, dim)."""
    frames = np.asarray(frames, dtype=np.float64)
    return (frames / np.linalg.norm(frames, axis=-1, keepdims=True)).mean(axis=1)


# --- tables and figure ---------------------------------------------------------------------------------------


def control_table(profile: Profile, subject: int) -> pd.DataFrame:
    """Scores of the untouched decoder and of every control that is there, and how far each falls below the untouched.

    A control that lacks clips is compared with the untouched decoder on the clips that it has; then identification of
    both is among these. All comparisons of a subject are one family for Holm's correction.

    Returns
    -------
    DataFrame
        A row for each control (title) and score of `MEASURED`: subject, control, metric, mean, low, high (95 %
        block-bootstrap interval), chance (missing for SSIM), clips; difference (control less untouched, clip by clip)
        with difference_low, difference_high, p and holm, missing for the untouched decoder.

    Raises
    ------
    FileNotFoundError
        If the headline row has not been decoded.
    ValueError
        If a control has decoded clips that the untouched decoder has not.
    """
    untouched = load_run(profile, subject, profile.headline_row)
    name, chance = TITLES["untouched"], n_way_chance(profile.evaluation.n_way, profile.evaluation.top_k, 1)
    chances = {"ssim": np.nan, "image_top1_1": chance, "video_top1_1": chance, "pixels_2way": 0.5, "clip_2way": 0.5}
    known, rows, compared = _similarities(profile, untouched), [], []
    for title, run in {name: untouched, **decoded(profile, subject)}.items():
        clips = np.flatnonzero(np.isin(untouched.test.clip, run.test.clip))
        if not np.array_equal(untouched.test.clip[clips], run.test.clip):
            raise ValueError(
                f"'{title}' has decoded clips that the untouched decoder has not: run it again with {COMMAND}"
            )
        own = known if run is untouched else _similarities(profile, run)
        scores = _scores(run, own, np.arange(len(clips)))
        same = _scores(untouched, known, clips)
        segment = run.test.segment
        for column, metric in MEASURED.items():
            interval = block_bootstrap(scores[column], segment, block_length(segment))
            rows.append(
                {"subject": subject, "control": title, "metric": metric, **interval._asdict(),
                 "chance": chances[column], "clips": len(clips)}
            )  # fmt: skip
            if run is not untouched:
                pair = {title: scores[column], name: same[column]}
                compared.append(compare(pair, segment, block_length(segment), metric=metric))
    table = pd.DataFrame(rows)
    if not compared:
        return table.assign(**dict.fromkeys(("difference", "difference_low", "difference_high", "p", "holm"), np.nan))
    differences = holm_over(compared).rename(
        columns={"a": "control", "low": "difference_low", "high": "difference_high"}
    )
    columns = ["control", "metric", "difference", "difference_low", "difference_high", "p", "holm"]
    return table.merge(differences[columns], on=["control", "metric"], how="left")


def figure_controls(tables: Sequence[pd.DataFrame], curves: Sequence[pd.DataFrame], profile: Profile) -> Figure:
    """Scores under every control, one panel a score, and the lag curves below.

    Parameters
    ----------
    tables : of `control_table`, one a subject
    curves : of `lag_curve`, one a subject; may be empty
    profile : for the labels
    """
    table = pd.concat(tables, ignore_index=True)
    order = [title for title in TITLES.values() if title in set(table["control"])]
    anew = {TITLES[name] for name in TRAINED_ANEW} | {TITLES["time_averaged"]}
    group = [0 if title == TITLES["untouched"] else 2 if title in anew else 1 for title in order]
    order = [title for _, title in sorted(zip(group, order, strict=True), key=lambda pair: pair[0])]
    place = {title: row + 0.6 * kind for row, (title, kind) in enumerate(zip(order, sorted(group), strict=True))}
    subjects = sorted({*table["subject"], *(int(curve["subject"].iloc[0]) for curve in curves)})
    fig = new_figure(14, 1.9 + 0.5 * len(order) + (3.4 if curves else 0))
    upper, lower = fig.subfigures(2, 1, height_ratios=[1.9 + 0.5 * len(order), 3.4]) if curves else (fig, None)
    axes = upper.subplots(1, len(MEASURED), sharey=True)
    n_way = f"{profile.evaluation.n_way}-way "
    labels = {"image": f"{n_way}image", "video": f"{n_way}video"}
    for letter, ax, metric in zip("abcde", axes, MEASURED.values(), strict=True):
        _draw_scores(ax, table[table["metric"].eq(metric)], place, subjects)
        ax.set_xlabel("SSIM" if metric == "SSIM" else "accuracy" if metric in labels else "identified")
        panel_letter(ax, letter, labels.get(metric, metric))
    axes[0].set_yticks(list(place.values()), list(place))
    axes[0].set_ylim(max(place.values()) + 0.6, -0.6)
    for kind, text in ((1, "decoding alone"), (2, "trained anew")):
        rows = [place[title] for title in order if (title in anew) == (kind == 2) and title != TITLES["untouched"]]
        if rows:
            axes[0].annotate(
                text, (0, min(rows) - 0.5), (-4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="center", fontsize=9, fontstyle="italic",
            )  # fmt: skip
    if lower is not None:
        _draw_curves(lower.subplots(), curves, subjects, "simulated data" if profile.simulated else "")
    shown = {}
    for ax in fig.get_axes():
        handles, names = ax.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    fig.legend([shown[name] for name in sorted(shown)], sorted(shown), loc="outside upper right", ncols=len(shown))
    return fig


def _subject_style(number: int) -> dict[str, Any]:
    colours = [COLOURS[name] for name in ("ours", "second", "third")]
    return {"color": colours[number % 3], "marker": "osD^v"[number % 5], "markersize": 5.5}


def _draw_scores(ax: Axes, table: pd.DataFrame, place: dict[str, float], subjects: list[int]) -> None:
    for number, subject in enumerate(subjects):
        part = table[table["subject"].eq(subject)]
        y = part["control"].map(place) + 0.22 * (number - (len(subjects) - 1) / 2)
        reach = np.clip([part["mean"] - part["low"], part["high"] - part["mean"]], 0, None)
        ax.errorbar(
            part["mean"], y, xerr=reach, linestyle="none", elinewidth=1.2, capsize=2, label=f"subject {subject}",
            **_subject_style(number),
        )  # fmt: skip
    chance = table["chance"].iloc[0]
    if np.isfinite(chance):
        ax.axvline(chance, color=COLOURS["chance"], linestyle="--", linewidth=1.1)
        ax.annotate(
            f"chance {chance:.2g}", (chance, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=9,
        )  # fmt: skip
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.12)


def _draw_curves(ax: Axes, curves: Sequence[pd.DataFrame], subjects: list[int], note: str) -> None:
    for curve in curves:
        subject = int(curve["subject"].iloc[0])
        style = _subject_style(subjects.index(subject))
        ax.plot(curve["lag"], curve["mean"], label=f"subject {subject}", **style)
        ax.fill_between(curve["lag"], curve["low"], curve["high"], color=style["color"], alpha=0.15, linewidth=0)
    ax.axhline(curves[0]["chance"].iloc[0], color=COLOURS["chance"], linestyle="--", linewidth=1.1)
    ax.axvline(0, color=COLOURS["control"], linewidth=1)
    ax.set_xticks(sorted(set(curves[0]["lag"])))
    ax.set(
        xlabel="lag of the recordings in volumes; at 0 as prepared, 4 s after the film; positive: later",
        ylabel="2-way CLIP",
    )
    panel_letter(ax, "f", "A linear reader trained anew at each lag" + (f", {note}" if note else ""))


def _similarities(profile: Profile, run: DecodedRun) -> dict[str, np.ndarray]:
    """How alike every true and every decoded test clip are, by pixels and by CLIP: (clips, clips) each."""
    from nfx.evaluation.methods import embed

    truth, decoded_clips = np.asarray(run.test.truth), np.asarray(run.test.decoded)
    embedded = (embed(clips, profile) for clips in (truth, decoded_clips))
    return {"pixels_2way": pixel_similarity(truth, decoded_clips), "clip_2way": embedding_similarity(*embedded)}


def _scores(run: DecodedRun, similarities: dict[str, np.ndarray], clips: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of some of a run's test clips, by their place; identification is among these."""
    table = of_part(run.scores, "test")
    plain = {name: table[name].to_numpy()[clips] for name in MEASURED if name not in similarities}
    return plain | {name: identification(pairs[np.ix_(clips, clips)]) for name, pairs in similarities.items()}


# --- the command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: one control, or the lag curve, of one subject."""
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(prog=COMMAND, description="Run one control of a subject's decoder.")
    parser.add_argument("name", help=f"{', '.join(NAMES)}, or lag_curve")
    parser.add_argument("subject", type=int)
    parser.add_argument("--profile", default="demo", help="demo, paper, or a YAML file; default: demo")
    given: Any = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        if given.subject not in profile.data.subjects:
            raise ValueError(f"subject is {given.subject}, expected one of {list(profile.data.subjects)}")
        if given.name == "lag_curve":
            print(lag_curve(profile, given.subject).to_string(index=False))
        else:
            print(decode(profile, given.name, given.subject))
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"{COMMAND}: {error}")


if __name__ == "__main__":
    main()
