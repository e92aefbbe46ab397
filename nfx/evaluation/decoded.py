"""Decoded clips and their scores: of a subject and a row of Table 1, of the captions, and of the autoencoder alone.

The last two bound the first from above: clips decoded from true captions show what the diffusion model makes of perfect
semantics, and reconstructions what the latent space can hold at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.evaluation.classifiers import score_clips
from nfx.out_of_memory import memory_told
from nfx.weights import file_digests

if TYPE_CHECKING:
    from nfx.profile import Profile

PARTS = ("validation", "test")
CODE = ("diffusion/pipeline.py", "diffusion/noise.py", "diffusion/inflation.py", "encoder/model.py")
SCORING = ("evaluation/ssim.py", "evaluation/n_way.py", "evaluation/classifiers.py")
Decoder = Callable[[slice], np.ndarray]  # a block of a part's clips to uint8 (clips, frames, height, width, 3)


class Decoded(NamedTuple):
    """Decoded clips of one part, and the clips that were shown.

    Attributes
    ----------
    decoded, truth : uint8 (clips, frames, height, width, 3)
    clip : int (clips,), rows of `train_clips` (validation) or of `test_clips`
    segment : int (clips,), number of the film segment, from 1
    """

    decoded: np.ndarray
    truth: np.ndarray
    clip: np.ndarray
    segment: np.ndarray


class DecodedRun(NamedTuple):
    """What `decode_run` and its like have written; `validation` is None where only test clips are decoded.

    `scores` has a row per clip: part, clip, segment and the columns of `nfx.evaluation.classifiers.SCORES`.
    """

    validation: Decoded | None
    test: Decoded
    scores: pd.DataFrame


def run_folder(profile: Profile, subject: int, row: int, time_averaged: bool = False) -> Path:
    """``work/<profile>/decoder/subject<k>_row<r>[_averaged]``, the folder of a decoder and of what it decodes."""
    return paths.work(profile, "decoder", f"subject{subject}_row{row}" + "_averaged" * time_averaged)


def decode_run(profile: Profile, subject: int, row: int, time_averaged: bool = False) -> Path:
    """Decode a subject's validation and test clips with the decoder of a row, and score them (Sections 4.1 and 5).

    Of the validation and of the test clips as many as `profile.sampling` says are taken, evenly spaced.
    Decoding goes on after an interruption from its last finished block of clips, and is not repeated when only the
    scoring changes.

    Returns
    -------
    Path
        `run_folder`, with arrays validation_decoded and test_decoded, uint8 (clips, frames, height, width, 3),
        validation_clip and test_clip, int (clips,), and scores.csv. Read them with `load_run`.

    Raises
    ------
    FileNotFoundError
        If the stimuli, the subject or the decoder are missing; the message names the notebook that makes them.
    """
    from nfx.data import load_subject, time_average

    folder, sampling = run_folder(profile, subject, row, time_averaged), profile.sampling
    data = load_subject(profile, subject)
    chosen = {
        "validation": evenly_spaced(len(data.validation.clip), sampling.validation_clips),
        "test": evenly_spaced(len(data.test.clip), sampling.test_clips),
    }
    average = time_average if time_averaged else np.asarray
    windows = {part: average(getattr(data, part).fmri[index]) for part, index in chosen.items()}
    clips = {part: getattr(data, part).clip[index] for part, index in chosen.items()}
    # The number that a clip's noise is drawn from; test clips are counted after the training clips.
    films = len(data.train.clip) + len(data.validation.clip)
    numbers = {"validation": clips["validation"], "test": films + clips["test"]}
    facts = {
        "pipeline": files.identity(folder / "pipeline"),
        "fmri": files.identity(paths.work(profile, f"subject{subject}"), "train_fmri", "test_fmri"),
        "time_averaged": time_averaged,
        "clips": clips,
        **sampling_facts(profile),
    }
    # Models are loaded when they are first asked for: a finished run needs none.
    pipeline = cache(lambda: load_pipeline(folder / "pipeline"))

    def decoder(part: str) -> Decoder:
        return lambda block: decode_windows(profile, pipeline(), numbers[part][block], fmri=windows[part][block])

    return decode_and_score(profile, folder, clips, {part: decoder(part) for part in PARTS}, facts)


def load_run(profile: Profile, subject: int, row: int, time_averaged: bool = False) -> DecodedRun:
    """The clips and scores that `decode_run` has written.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 03 has not been run with these parameters, or files are damaged.
    """
    return load_decoded(profile, run_folder(profile, subject, row, time_averaged))


def decode_segment(profile: Profile, subject: int, row: int, clips: int = 6) -> dict[str, np.ndarray]:
    """The first clips of the first test segment decoded to one video, and the same clips decoded one by one.

    Returns
    -------
    dict of str to uint8 array (clips * frames, height, width, 3)
        "film" is the true one, "clip by clip" joins what each window gives by itself, "one video" is that of
        `nfx.diffusion.decode_long`, by the profile's solver, steps and guidance. Nothing is saved.

    Raises
    ------
    FileNotFoundError, ValueError
        If the stimuli, the subject or the decoder are missing or damaged, or the segment has fewer clips.
    """
    from nfx.data import load_subject
    from nfx.diffusion import decode_long, sampled_by
    from nfx.diffusion.fine_tuning import clip_generator

    data = load_subject(profile, subject)
    test = data.test
    first = np.flatnonzero(test.segment == test.segment[0])[:clips]
    if len(first) < clips:
        raise ValueError(f"the first test segment has {len(first)} clips, not {clips}: ask for fewer")
    pipeline = load_pipeline(run_folder(profile, subject, row) / "pipeline")
    numbers = len(data.train.clip) + len(data.validation.clip) + test.clip[first]  # as in `decode_run`
    apart = decode_windows(profile, pipeline, numbers, fmri=test.fmri[first])
    with sampled_by(pipeline, profile.sampling.solver):
        together = decode_long(
            pipeline,
            test.fmri[first],
            steps=profile.sampling.steps,
            guidance=profile.sampling.guidance,
            generator=clip_generator(profile.seed, int(numbers[0])),
        )
    film = _clips_of(profile, "test")[test.clip[first]]
    return {"film": np.concatenate(film), "clip by clip": np.concatenate(apart), "one video": together}


def decode_captions(profile: Profile) -> Path:
    """Decode the test clips of `decode_run` from their true captions instead of fMRI: the oracle of the semantics.

    Stage one's UNet for the headline row's beta is conditioned on the text encoder's states of the caption: the
    simulator's own where there is one, BLIP's caption of the third frame otherwise. Noise, steps and guidance are those
    of `decode_run`; the null condition is the empty caption.

    Returns
    -------
    Path
        ``work/<profile>/decoder/captions``, with test_decoded, test_clip and scores.csv.
    """
    from nfx.data.targets import text_states

    beta = profile.row(profile.headline_row).beta
    stage_one = paths.work(profile, "stage1", f"beta_{'none' if beta is None else beta}")
    shown = true_captions(profile, "test")
    chosen = evenly_spaced(len(shown), profile.sampling.test_clips)
    sentences = [shown[clip] for clip in chosen]
    captions = sorted(set(sentences))
    facts = {
        "unet": files.identity(stage_one),
        "captions": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "stable_diffusion": model_digest(profile.models.stable_diffusion),
        **sampling_facts(profile),
    }
    states = cache(lambda: text_states([*captions, ""], profile.models.stable_diffusion))
    pipeline = cache(lambda: _caption_pipeline(profile, files.verified(stage_one, "unet"), beta or 0.0))
    row_of = np.array([captions.index(sentence) for sentence in sentences])
    numbers = len(_clips_of(profile, "train")) + chosen

    def decoder(block: slice) -> np.ndarray:
        import torch

        condition, empty = torch.from_numpy(states()[row_of[block]]), torch.from_numpy(states()[-1])
        return decode_windows(profile, pipeline(), numbers[block], condition=condition, null_condition=empty)

    folder = paths.work(profile, "decoder", "captions")
    return decode_and_score(profile, folder, {"test": chosen}, {"test": decoder}, facts)


def load_captions_run(profile: Profile) -> DecodedRun:
    """The clips and scores that `decode_captions` has written; `validation` is None."""
    return load_decoded(profile, paths.work(profile, "decoder", "captions"))


def autoencoder_ceiling(profile: Profile) -> Path:
    """Encode and decode the test clips of `decode_run` with the autoencoder alone: what no decoder can exceed.

    Returns
    -------
    Path
        ``work/<profile>/decoder/autoencoder``, with test_decoded, test_clip and scores.csv.
    """
    from nfx.data.targets import decode_latents, load_targets

    latents = load_targets(profile, "test_latents")["test_latents"]
    chosen = evenly_spaced(len(latents), profile.sampling.test_clips)
    facts = {
        "latents": files.identity(paths.work(profile, "targets"), "test_latents"),
        "stable_diffusion": model_digest(profile.models.stable_diffusion),
        "code": files.source_digest("data/targets.py"),
    }

    def decoder(block: slice) -> np.ndarray:
        part = latents[chosen[block]]
        frames = decode_latents(part.reshape(-1, *part.shape[2:]), profile.models.stable_diffusion)
        return frames.reshape(*part.shape[:2], *frames.shape[1:])

    folder = paths.work(profile, "decoder", "autoencoder")
    return decode_and_score(profile, folder, {"test": chosen}, {"test": decoder}, facts)


def load_autoencoder_run(profile: Profile) -> DecodedRun:
    """The clips and scores that `autoencoder_ceiling` has written; `validation` is None."""
    return load_decoded(profile, paths.work(profile, "decoder", "autoencoder"))


def evenly_spaced(count: int, wanted: int | None) -> np.ndarray:
    """Indices of `wanted` of `count` clips, evenly spaced from the first to the last; all if None or not fewer."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted).round().astype(int)


def true_captions(profile: Profile, part: str) -> list[str]:
    """A caption of every clip of "train" or "test": the simulator's truth, or BLIP's of the third frame for real films.

    Raises
    ------
    FileNotFoundError
        If notebook 01 has not written the truth, or the targets.
    """
    from nfx.data.targets import load_targets

    if not profile.simulated:
        targets = load_targets(profile, f"{part}_caption")
        return [targets["captions"][row] for row in targets[f"{part}_caption"][:, 2]]
    segments = files.read_json(paths.data_set(profile) / "truth" / "movie.json")["segments"]
    count = profile.data.train_segments if part == "train" else profile.data.test_segments
    names = [f"{'seg' if part == 'train' else 'test'}{number}" for number in range(1, count + 1)]
    return [shot["caption"] for name in names for shot in segments[name] for _ in range(shot["length"])]


def model_digest(model: str) -> str:
    """Digest of a snapshot's weights, so that another snapshot under the same name is noticed."""
    weights = file_digests(model, lambda file: file.endswith(".safetensors"))
    return hashlib.sha256("".join(file + digest for file, digest in weights.items()).encode()).hexdigest()


def load_pipeline(folder: Path) -> Any:
    """The `NeuralFlixPipeline` saved in a folder, on `nfx.training.device`, if its files are as they were saved."""
    from diffusers.utils import logging

    from nfx.diffusion import NeuralFlixPipeline
    from nfx.training import device

    logging.disable_progress_bar()
    files.verify(folder)
    return NeuralFlixPipeline.from_pretrained(folder).to(device())


def _caption_pipeline(profile: Profile, unet: Path, beta: float) -> Any:
    """Stage one's UNet between Stable Diffusion's autoencoder and sampler, without an fMRI encoder."""
    import torch
    from diffusers import AutoencoderKL

    from nfx.diffusion import NeuralFlixPipeline, VideoUNet
    from nfx.diffusion.fine_tuning import load_scheduler
    from nfx.training import device

    base = paths.snapshot(profile.models.stable_diffusion)
    return NeuralFlixPipeline(
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32),
        unet=VideoUNet.from_pretrained(unet),
        fmri_encoder=None,
        scheduler=load_scheduler(base),
        beta=beta,
        frames=profile.data.frames,
        frame_size=profile.data.frame_size,
    ).to(device())


def decode_windows(profile: Profile, pipeline: Any, numbers: np.ndarray, **conditions: Any) -> np.ndarray:
    """A block of clips, uint8; `numbers` give each clip's noise, `conditions` go to the pipeline."""
    from nfx.diffusion import sampled_by
    from nfx.diffusion.fine_tuning import clip_generator

    pipeline.set_progress_bar_config(disable=True)
    with sampled_by(pipeline, profile.sampling.solver):
        frames = pipeline(
            **conditions,
            num_inference_steps=profile.sampling.steps,
            guidance_scale=profile.sampling.guidance,
            generator=[clip_generator(profile.seed, int(number)) for number in numbers],
        ).frames
    return np.rint(frames * 255).astype(np.uint8)


def sampling_facts(profile: Profile) -> dict[str, Any]:
    """What clips sampled by a `NeuralFlixPipeline` depend on beside the pipeline and its conditions."""
    facts = {
        "steps": profile.sampling.steps,
        "guidance": profile.sampling.guidance,
        "seed": profile.seed,
        "code": files.source_digest(*CODE),
    }
    if profile.sampling.solver == "ddim":  # as before there were others, so that clips decoded then are still valid
        return facts
    return facts | {"solver": profile.sampling.solver, "solvers": files.source_digest("diffusion/solvers.py")}


def decode_and_score(
    profile: Profile, folder: Path, clips: dict[str, np.ndarray], decoders: dict[str, Decoder], facts: Mapping[str, Any]
) -> Path:
    """Decode what is not there, score it, and write both with one manifest; every decoder here goes through this.

    Facts of decoding and of scoring are kept apart, so that a change of the scores costs no decoding.

    Parameters
    ----------
    folder : where to; `load_decoded` reads it
    clips : part ("validation", "test") -> int (clips,), rows of the part's film
    decoders : part -> what decodes a block of them, a slice, to uint8 (clips, frames, height, width, 3)
    facts : what the decoded clips depend on; clips decoded with others are replaced

    Returns
    -------
    Path
        `folder`, with <part>_decoded, <part>_clip and scores.csv.
    """
    decoding = files.as_json(facts)
    scoring = {
        "stimuli": files.identity(paths.work(profile, "stimuli")),
        "models": [model_digest(m) for m in (profile.models.image_classifier, profile.models.video_classifier)],
        "evaluation": profile.evaluation.model_dump(mode="json"),
        "seed": profile.seed,
        "code": files.source_digest(*SCORING),
    }
    everything = {"decoding": decoding, "scoring": scoring}
    name = folder.name
    if files.finished(folder, everything):
        print(f"{name}: decoded and scored with these settings, reused")
        return folder
    if _is_decoded(folder, decoding):
        print(f"{name}: decoded clips reused, scored anew")
    else:
        arrays = {f"{part}_clip": np.asarray(index) for part, index in clips.items()}
        for part, decoder in decoders.items():
            arrays[f"{part}_decoded"] = _in_blocks(folder, part, len(clips[part]), profile, decoder, decoding)
        (folder / "scores.csv").unlink(missing_ok=True)  # of other clips
        files.save_arrays(folder, arrays, {"decoding": decoding})
        shutil.rmtree(folder / "blocks")
    arrays = files.load_arrays(folder)
    tables = []
    for part, index in clips.items():
        truth, segment = _shown(profile, part, index)
        table = score_clips(
            truth, arrays[f"{part}_decoded"], profile.models.image_classifier, profile.models.video_classifier,
            profile.seed, profile.evaluation.n_way, profile.evaluation.top_k, profile.evaluation.trials,
            paths.work(profile, "judged"),
        )  # fmt: skip
        table.insert(0, "part", part)
        table.insert(1, "clip", index)
        table.insert(2, "segment", segment)
        tables.append(table)
    with files.write_atomically(folder / "scores.csv") as temporary:
        pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
    files.write_manifest(folder, everything, [*(f"{array}.npy" for array in arrays), "scores.csv"])
    return folder


def _is_decoded(folder: Path, decoding: dict[str, Any]) -> bool:
    """Whether the clips are there, decoded so; whatever their scores."""
    try:
        facts = files.read_manifest(folder)["facts"]
    except (FileNotFoundError, ValueError):
        return False
    return files.finished(folder, {**facts, "decoding": decoding})


def _in_blocks(
    folder: Path, part: str, count: int, profile: Profile, decoder: Decoder, decoding: dict[str, Any]
) -> np.ndarray:
    """All clips of a part, block by block; finished blocks of the same settings are read and not decoded again."""
    from tqdm import tqdm

    size = profile.sampling.batch_size
    digest = hashlib.sha256(json.dumps(decoding, sort_keys=True).encode()).hexdigest()[:16]
    home = folder / "blocks" / digest
    for old in (folder / "blocks").glob("*"):
        if old != home:
            shutil.rmtree(old)
    blocks = []
    for start in tqdm(range(0, count, size), desc=f"decoding, {part}", leave=False, mininterval=5):
        block = slice(start, min(start + size, count))
        path = home / f"{part}_{block.start}_{block.stop}.npy"
        decoded = _block(path)
        if decoded is None:
            at_work = f"{folder.name}: decoding clips {block.start} to {block.stop - 1} of {count}, {part}"
            with memory_told(at_work, _lower(size)):
                decoded = decoder(block)
            with files.write_atomically(path) as temporary:
                np.save(temporary, decoded, allow_pickle=False)
            files.write_json(path.with_suffix(".json"), files.sha256(path))
        blocks.append(decoded)
    return np.concatenate(blocks)


def _lower(size: int) -> str:
    """What to lower if memory runs out while clips are decoded, and what is kept, as sentences."""
    change = "lower it, which changes results by rounding alone" if size > 1 else "use a machine with more memory"
    return (
        f"sampling.batch_size is {size}: {change}. Finished blocks of clips are kept, and the next run goes on from "
        "them; with another batch size they are decoded anew"
    )


def _block(path: Path) -> np.ndarray | None:
    """A block that was decoded before, unless it is damaged."""
    try:
        whole = files.read_json(path.with_suffix(".json")) == files.sha256(path)
        return np.array(files.read_array(path)) if whole else None
    except (FileNotFoundError, ValueError):
        return None


def _clips_of(profile: Profile, part: str) -> np.ndarray:
    return files.load_arrays(paths.work(profile, "stimuli"), f"{part}_clips")[f"{part}_clips"]


def _shown(profile: Profile, part: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clips that were shown, and their segments; validation clips are among the training film's."""
    film = "test" if part == "test" else "train"
    arrays = files.load_arrays(paths.work(profile, "stimuli"), f"{film}_clips", f"{film}_segment")
    return np.asarray(arrays[f"{film}_clips"][index]), np.asarray(arrays[f"{film}_segment"][index])


def warn_of_outdated(names: Sequence[str], newer: str) -> None:
    """Warn that results are left out, since what they were made from has been made anew; nothing if there are none."""
    if names:
        found = f"left out, since {newer} than these: {', '.join(names)}"
        warnings.warn(f"{found}. ./run_all.sh evidence makes them anew", stacklevel=3)


def load_decoded(profile: Profile, folder: Path) -> DecodedRun:
    """The clips and scores that `decode_and_score` has written into a folder, test clips among them.

    Raises
    ------
    FileNotFoundError, ValueError
        If they are not there, or files are damaged.
    """
    parts, scores = load_parts(profile, folder)
    return DecodedRun(parts.get("validation"), parts["test"], scores)


def load_parts(profile: Profile, folder: Path) -> tuple[dict[str, Decoded], pd.DataFrame]:
    """The clips of each part, "validation" or "test" or both, that `decode_and_score` has written, and the scores.

    Raises
    ------
    FileNotFoundError, ValueError
        If they are not there, or files are damaged.
    """
    arrays = files.load_arrays(folder)
    table = folder / "scores.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist: the clips are decoded but not scored. Run notebook 03 again")
    files.verify(folder, table.name)
    parts: dict[str, Decoded] = {}
    for part in PARTS:
        if f"{part}_decoded" in arrays:
            index = np.asarray(arrays[f"{part}_clip"])
            parts[part] = Decoded(arrays[f"{part}_decoded"], *_with_clip(_shown(profile, part, index), index))
    return parts, pd.read_csv(table)


def _with_clip(shown: tuple[np.ndarray, np.ndarray], index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, segment = shown
    return truth, index, segment
