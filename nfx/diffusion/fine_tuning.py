"""Fine-tuning in two stages (Sections 3.2.2 and 4.3), and decoding with the result.

Stage one turns Stable Diffusion into a video model: the inflated UNet learns the training clips from their captions.
Stage two puts the fMRI encoder in the place of the text encoder and goes on with both. Stage one's conditions are
states of Stable Diffusion's text encoder; the contrastive training (Section 3.1.3) has brought the fMRI encoder's
tokens near them in CLIP's space, and nothing else bridges the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm import tqdm

from nfx import paths
from nfx.diffusion.inflation import VideoUNet, inflate
from nfx.diffusion.noise import add_noise, denoising_loss, dependent_noise, training_target
from nfx.diffusion.pipeline import NeuralFlixPipeline
from nfx.files import (
    finished,
    load_arrays,
    read_manifest,
    require_exact_weights,
    source_digest,
    verified,
    write_manifest,
)
from nfx.out_of_memory import lower_training, memory_told
from nfx.training import WHOLE, Loss, Share, finish, first_process, first_process_first, train
from nfx.weights import file_digests

if TYPE_CHECKING:
    from nfx.profile import Profile

# Spatial self-attention, cross-attention and temporal attention with its norm: whole modules.
TRAINED = re.compile(r"\.(attn1|attn2|attn_temp|norm_temp)\.")
CODE = ("diffusion/noise.py", "diffusion/inflation.py", "diffusion/fine_tuning.py", "training.py")
WARMUP = 0.05  # share of the steps; ours, as the paper does not say


def trainable_parameters(unet: VideoUNet) -> list[nn.Parameter]:
    """Freeze a video UNet but for what Section 4.3 trains, and return that.

    Trained are the whole modules of the spatial self-attention, the cross-attention and the temporal attention. All
    else gets no gradient: it stays as it was, bit by bit, and costs no memory for one.
    """
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(TRAINED.search(name) is not None)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def denoising_step(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    condition: Tensor,
    beta: float,
    generator: torch.Generator,
    share: Share = WHOLE,
) -> Tensor:
    """Eq. 5 at a random step of each clip, with dependent noise; a scalar.

    ``latents`` are scaled, (batch, channels, frames, height, width). The noise is drawn for all of them and on the
    CPU, so that a seed means the same numbers on every device and for every ``share`` of the batch. Only the share's
    rows pass the UNet; ``condition`` is theirs, (rows, tokens, token dim), and the scalar their part of the mean.
    """
    batch, rows = len(latents), share.rows(len(latents))
    t = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator)[rows]
    noise = dependent_noise(latents.shape, beta, generator).to(latents)[rows]
    alpha_bar = scheduler.alphas_cumprod.cpu()[t].to(latents.device)
    latents = latents[rows]
    predicted = unet(add_noise(latents, noise, alpha_bar), t.to(latents.device), condition).sample
    target = training_target(scheduler.config.prediction_type, latents, noise, alpha_bar)
    return share.mean(denoising_loss(predicted, target), batch)


def caption_loss(
    latents: np.ndarray,
    caption: np.ndarray,
    caption_tokens: np.ndarray,
    empty: Tensor,
    scheduler: Any,
    *,
    beta: float,
    batch_size: int,
    dropout: float,
) -> Loss:
    """Stage one's loss, for `nfx.training.train` of a video UNet.

    Parameters
    ----------
    latents
        Training clips, (clips, frames, channels, height, width), scaled.
    caption
        Row of ``caption_tokens`` of each frame, (clips, frames). One of a clip's captions is drawn for each visit.
    caption_tokens
        Text encoder's states, (captions, tokens, token dim).
    empty
        States of the empty caption, (tokens, token dim), which take a caption's place with probability ``dropout``.
    """

    def loss(unet: nn.Module, step: int, generator: torch.Generator, share: Share = WHOLE) -> dict[str, Tensor]:
        clip = torch.randint(len(latents), (batch_size,), generator=generator).numpy()
        frame = torch.randint(caption.shape[1], (batch_size,), generator=generator).numpy()
        dropped = torch.rand(batch_size, generator=generator) < dropout
        condition = torch.from_numpy(caption_tokens[caption[clip, frame]])
        condition = torch.where(dropped[:, None, None], empty, condition)[share.rows(batch_size)]
        target = next(unet.parameters()).device
        clips = _videos(latents[clip]).to(target)
        return {"loss": denoising_step(unet, scheduler, clips, condition.to(target), beta, generator, share)}

    return loss


def fmri_loss(
    latents: np.ndarray, windows: np.ndarray, scheduler: Any, *, beta: float, batch_size: int, dropout: float
) -> Loss:
    """Stage two's loss, for `nfx.training.train` of a ``ModuleDict`` of "unet" and "fmri_encoder".

    ``windows``, (clips, window, voxels), belong to ``latents``, which are as in `caption_loss`. With probability
    ``dropout`` a window is replaced with zeros, the mean after z-scoring: the encoder's output for zeros is the null
    condition of guidance.
    """

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share = WHOLE) -> dict[str, Tensor]:
        clip = torch.randint(len(latents), (batch_size,), generator=generator).numpy()
        dropped = torch.rand(batch_size, generator=generator) < dropout
        bold = torch.from_numpy(windows[clip]).masked_fill(dropped[:, None, None], 0.0)
        target = next(model.parameters()).device
        condition = model["fmri_encoder"](bold[share.rows(batch_size)].to(target))
        clips = _videos(latents[clip]).to(target)
        return {"loss": denoising_step(model["unet"], scheduler, clips, condition, beta, generator, share)}

    return loss


def stage_one(profile: Profile, beta: float | None) -> Path:
    """Fine-tune the inflated UNet on the training clips and their captions (Section 4.3).

    Parameters
    ----------
    profile
        Its ``stage_one`` holds steps, batch size and learning rate; the share of dropped captions is stage two's.
    beta
        Shared variance of the noise (Eq. 7); None for independent noise.

    Returns
    -------
    Path
        ``work/<profile>/stage1/beta_<beta or none>`` with ``unet/``, ``curve.csv`` and ``manifest.json``. A finished
        result of the same settings, data and code is kept as it is; an interrupted one is resumed.

    Raises
    ------
    FileNotFoundError
        If the stimuli, the targets or the Stable Diffusion snapshot are missing.
    """
    folder = paths.work(profile, "stage1", f"beta_{'none' if beta is None else beta}")
    folder.mkdir(parents=True, exist_ok=True)
    # Rows of Table 1 run side by side and share stage one: the first trains it, the others wait for it.
    with ExitStack() as held:
        with first_process_first():
            if first_process():
                held.enter_context(FileLock(folder / ".lock"))
        facts = {
            "training": "stage one: captions",
            "beta": beta,
            "seed": profile.seed,
            "settings": profile.stage_one.model_dump(),
            "condition_dropout": profile.stage_two.condition_dropout,
            "precision": profile.training.precision,
            "validation_segments": list(profile.data.validation_segments),
            "targets": _array_digests(
                paths.work(profile, "targets"), "train_latents", "train_caption", "caption_tokens"
            ),
            "stable_diffusion": _snapshot_digests(profile.models.stable_diffusion),
            "code": source_digest(*CODE),
        }
        if finished(folder, facts):
            print(f"{folder.name}: stage one is finished and reused")
            return folder

        from diffusers import UNet2DConditionModel

        from nfx.data.targets import text_states

        base = paths.snapshot(profile.models.stable_diffusion)
        image_unet, report = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", torch_dtype=torch.float32, output_loading_info=True
        )
        require_exact_weights(report, base, "UNet2DConditionModel")
        unet = inflate(image_unet)
        trainable_parameters(unet)
        if profile.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        targets = load_arrays(paths.work(profile, "targets"), "train_latents", "train_caption", "caption_tokens")
        training = _training_clips(profile, len(targets["train_latents"]))
        loss = caption_loss(
            targets["train_latents"][training],
            targets["train_caption"][training],
            np.asarray(targets["caption_tokens"]),
            torch.from_numpy(text_states([""], profile.models.stable_diffusion)[0]),
            load_scheduler(base),
            beta=beta or 0.0,
            batch_size=profile.stage_one.batch_size,
            dropout=profile.stage_two.condition_dropout,
        )
        _train(unet, loss, profile, "stage_one", folder, facts, f"stage one, beta {beta}")
        if first_process():
            unet.save_pretrained(folder / "unet")
            write_manifest(folder, facts, ["unet/config.json", *_weights(folder, "unet"), "curve.csv"])
        finish(folder)
    return folder


def stage_two(profile: Profile, subject: int, row: int, time_averaged: bool = False) -> Path:
    """Fine-tune the video UNet and the fMRI encoder on a subject's recordings (Sections 3.2.2 and 4.3).

    Starts from stage one of the row's beta, which is trained first if need be, and from the contrastively trained
    encoder. The encoder trains on with the UNet: Section 5.3 compares it before and after "full training".

    Parameters
    ----------
    profile
        Its ``stage_two`` holds steps, batch size, learning rate and the share of dropped conditions.
    subject, row
        Subject, and row of Table 1.
    time_averaged
        The control of Section 5.2: each window is replaced with its mean, in training as in decoding.

    Returns
    -------
    Path
        ``work/<profile>/decoder/subject<k>_row<r>[_averaged]`` with ``curve.csv`` and ``pipeline/``: a whole
        `NeuralFlixPipeline` and its manifest. Kept or resumed as in `stage_one`.

    Raises
    ------
    FileNotFoundError
        If the subject's data, the targets or the encoder are missing; the message names the notebook that makes them.
    ValueError
        If recordings and clips do not match.
    """
    from nfx.encoder import FMRIEncoder

    suffix = "_averaged" if time_averaged else ""
    beta = profile.row(row).beta
    folder = paths.work(profile, "decoder", f"subject{subject}_row{row}{suffix}")
    encoder_folder = paths.work(profile, "encoder", f"subject{subject}_row{profile.encoder_row(row)}{suffix}")
    encoder_files = _file_digests(encoder_folder, "encoder/")
    data = load_arrays(paths.work(profile, f"subject{subject}"), "train_fmri", "train_segment")
    first = stage_one(profile, beta)
    facts = {
        "training": "stage two: fMRI",
        "subject": subject,
        "beta": beta,
        "time_averaged": time_averaged,
        "seed": profile.seed,
        "settings": profile.stage_two.model_dump(),
        "precision": profile.training.precision,
        "window": profile.data.window,
        "validation_segments": list(profile.data.validation_segments),
        "fmri": _array_digests(paths.work(profile, f"subject{subject}"), "train_fmri", "train_segment"),
        "targets": _array_digests(paths.work(profile, "targets"), "train_latents"),
        "encoder": encoder_files,
        "stage_one": _file_digests(first, "unet/"),
        "code": source_digest(*CODE, "encoder/model.py"),
    }
    if finished(folder / "pipeline", facts):
        print(f"{folder.name}: stage two is finished and reused")
        return folder

    from diffusers import AutoencoderKL

    encoder = FMRIEncoder.from_pretrained(verified(encoder_folder, "encoder"))
    unet = VideoUNet.from_pretrained(verified(first, "unet"))
    trainable_parameters(unet)
    if profile.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        encoder.enable_gradient_checkpointing()
    base = paths.snapshot(profile.models.stable_diffusion)
    scheduler = load_scheduler(base)
    latents = load_arrays(paths.work(profile, "targets"), "train_latents")["train_latents"]
    if len(latents) != len(data["train_fmri"]):
        raise ValueError(
            f"Subject {subject} has {len(data['train_fmri'])} training volumes for {len(latents)} training clips: run "
            "notebook 01_data_preparation again."
        )
    training = _training_clips(profile, len(latents))
    loss = fmri_loss(
        latents[training],
        fmri_windows(data["train_fmri"], data["train_segment"], profile.data.window, time_averaged)[training],
        scheduler,
        beta=beta or 0.0,
        batch_size=profile.stage_two.batch_size,
        dropout=profile.stage_two.condition_dropout,
    )
    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    _train(model, loss, profile, "stage_two", folder, facts, f"stage two, subject {subject}, row {row}")

    if first_process():
        pipeline = NeuralFlixPipeline(
            vae=AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32),
            unet=unet,
            fmri_encoder=encoder,
            scheduler=scheduler,
            beta=beta or 0.0,
            frames=profile.data.frames,
            frame_size=profile.data.frame_size,
        )
        pipeline.save_pretrained(folder / "pipeline")
        write_manifest(folder / "pipeline", facts)
    finish(folder)
    return folder


def fmri_windows(fmri: np.ndarray, segment: np.ndarray, window: int, time_averaged: bool = False) -> np.ndarray:
    """Windows as training and decoding see them: (clips, voxels) to float32 (clips, window, voxels)."""
    from nfx.data.windows import time_average, windows

    cut = windows(np.asarray(fmri, dtype=np.float32), segment, window)
    return time_average(cut) if time_averaged else cut


def decode(
    pipeline: NeuralFlixPipeline,
    windows: np.ndarray,
    *,
    clip_ids: Sequence[int],
    seed: int,
    steps: int = 200,
    guidance: float = 12.5,
    batch_size: int = 16,
) -> np.ndarray:
    """Decode windows to clips; a clip depends on its window, its id and the seed, and not on the others or the order.

    Parameters
    ----------
    pipeline
        On the device where it should run.
    windows
        (clips, window, voxels).
    clip_ids
        Number of each clip, from 0. With the seed it gives the clip's noise, so that one clip starts from the same
        noise whatever decoder and batch it is decoded with.
    steps, guidance
        DDIM steps, and weight of the condition.
    batch_size
        Clips at a time; a matter of memory only.

    Returns
    -------
    uint8 array (clips, frames, height, width, 3)
    """
    if len(windows) != len(clip_ids):
        raise ValueError(f"{len(windows)} windows but {len(clip_ids)} clip ids: give one id per window.")
    size, frames = pipeline.config.frame_size, pipeline.config.frames
    clips = np.empty((len(windows), frames, size, size, 3), dtype=np.uint8)
    quiet = getattr(pipeline, "_progress_bar_config", {})
    advice = f"batch_size is {batch_size}: give a lower one; a clip does not depend on it, up to rounding"
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(total=len(windows), desc="decoding", leave=False, mininterval=5) as bar:
        for start in range(0, len(windows), batch_size):
            part = slice(start, start + batch_size)
            with memory_told(f"decoding clips {start} to {start + len(windows[part]) - 1}", advice):
                output = pipeline(
                    np.ascontiguousarray(windows[part]),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=[clip_generator(seed, int(clip)) for clip in clip_ids[part]],
                )
            clips[part] = np.rint(output.frames * 255).astype(np.uint8)
            bar.update(len(output.frames))
    pipeline.set_progress_bar_config(**quiet)
    return clips


def clip_generator(seed: int, clip: int) -> torch.Generator:
    """The generator, on the CPU, of a clip's noise: a function of the seed and the clip's number."""
    mixed = np.random.SeedSequence((seed, clip)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))


def load_scheduler(base: str) -> Any:
    """The DDIM sampler on the noise schedule of a Stable Diffusion snapshot, whichever sampler it names.

    Latents are no pixels, so the sampler must not clip them to [-1, 1].
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(base, subfolder="scheduler", clip_sample=False)


def _train(
    model: nn.Module, loss: Loss, profile: Profile, section: str, folder: Path, facts: dict[str, Any], description: str
) -> None:
    settings = getattr(profile, section)
    train(
        model,
        loss,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup=int(WARMUP * settings.steps),
        seed=profile.seed,
        folder=folder,
        checkpoint_every=profile.training.checkpoint_every,
        precision=profile.training.precision,
        accumulate=profile.training.accumulate,
        description=description,
        facts=facts,
        lower=lower_training(profile, section, passes=True),
    )


def _training_clips(profile: Profile, clips: int) -> np.ndarray:
    """Indices of the clips that are not held out for validation."""
    from nfx.data.windows import split

    segment = load_arrays(paths.work(profile, "stimuli"), "train_segment")["train_segment"]
    if len(segment) != clips:
        raise ValueError(
            f"There are {len(segment)} training clips in the stimuli and {clips} in the targets: run notebook "
            "01_data_preparation again."
        )
    return split(segment, profile.data.validation_segments)[0]


def _videos(clips: np.ndarray) -> Tensor:
    """(batch, frames, channels, height, width) to float32 (batch, channels, frames, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(clips.swapaxes(1, 2), dtype=np.float32))


def _weights(folder: Path, part: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in (folder / part).glob("*.safetensors*"))


def _array_digests(folder: Path, *names: str) -> dict[str, str]:
    arrays = read_manifest(folder)["arrays"]
    return {name: arrays[name]["sha256"] for name in names if name in arrays}


def _file_digests(folder: Path, prefix: str) -> dict[str, str]:
    """Digests of the weights under ``prefix``, from the manifest."""
    files = read_manifest(folder)["files"]
    found = {n: e["sha256"] for n, e in files.items() if n.startswith(prefix) and n.endswith(".safetensors")}
    if not found:
        raise FileNotFoundError(f"{folder / prefix} holds no weights (*.safetensors): make it again with its notebook.")
    return found


def _snapshot_digests(name: str) -> dict[str, str]:
    """Digests of the files that are used of a Stable Diffusion snapshot."""
    parts, kinds = {"unet", "vae", "scheduler", "text_encoder", "tokenizer"}, {".safetensors", ".json", ".txt"}

    def used(file: str) -> bool:
        return len(Path(file).parts) == 2 and Path(file).parts[0] in parts and Path(file).suffix in kinds

    return file_digests(name, used)
