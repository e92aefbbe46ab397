"""MinD-Video, after Chen et al. 2023, with the encoder, the models and the training length of this project.

Z. Chen, J. Qing and J. H. Zhou, "Cinematic mindscapes: high-quality video reconstruction from brain activity",
arXiv:2305.11675, 2023. Their inference code is public, their training code is not; this is written from the
description.

What makes it theirs and not NeuralFlix:

- The encoder is trained by the contrast with CLIP's text and image embeddings alone, without the two augmentations:
  row 0 of Table 1, which is reused if it is there.
- The link between frames is a sparse causal attention: the spatial self-attention of frame i takes its keys and values
  from frames i-2 and i-1, and not from frame i. Frames before the first are the first: frame 0 sees itself, frame 1
  sees frame 0. At the end of each block stands a temporal attention of a location to itself in all frames of the clip.
- The frames' noise is independent, in training and at the start of sampling.
- Adversarial guidance: what sampling is guided away from is the encoder's output for a mean recording.

Simplified, and our choice:

- The temporal attention starts as a copy of the spatial one with a zero output, weight and bias, so that the UNet for
  videos starts as that for images; theirs starts at random with a zero output weight.
- Their negative condition is the mean of the *test* recordings, which is a leak. Ours is the mean of the training
  windows. As each run is z-scored by itself, that is zero but for the volume that is repeated at the end of a
  segment, and so nearly the null condition of NeuralFlix here.
- Trained are the same modules as in NeuralFlix (spatial self-attention, cross-attention, temporal attention), in the
  same two stages, as long and at the same learning rates; the encoder trains on in the second, as theirs does
  ("co-training"). Conditions are dropped in training as in NeuralFlix. Their training code is not public.
- The encoder is the one of this project, pre-trained by DC-MAE; theirs by a masked autoencoder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nfx import files, paths
from nfx.baselines import baseline_folder, shared
from nfx.diffusion.inflation import VideoUNet, as_image_unet

if TYPE_CHECKING:
    from nfx.diffusion import NeuralFlixPipeline
    from nfx.profile import Profile
    from nfx.training import Loss

NAME = "chen2023"
CODE = (
    *shared.CODE, "baselines/chen2023.py", "diffusion/noise.py", "diffusion/inflation.py", "diffusion/fine_tuning.py",
    "encoder/model.py", "training.py",
)  # fmt: skip
INDEPENDENT = 0.0  # beta of Eq. 7
WARMUP = 0.05  # share of the steps, as in nfx.diffusion.fine_tuning


# --- sparse causal attention ---------------------------------------------------------------------------------


class SparseCausalBlock(nn.Module):
    """A transformer block of Stable Diffusion that links frames twice.

    In the spatial self-attention (``attn1``) a location of frame i attends to all locations of frames i-2 and i-1, and
    of frame 0 in the place of those before it. At the end of the block (``attn_temp``) it attends to itself in all
    frames. The output of that is zero until it is trained: a clip whose frames are all alike then passes the block as
    its frame passes the image block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff
        self.start_temporal()

    def start_temporal(self) -> None:
        """(Re)build the temporal attention from the spatial one, with a zero output."""
        self.norm_temp, self.attn_temp = copy.deepcopy(self.norm1), copy.deepcopy(self.attn1)
        for parameter in self.attn_temp.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """(batch * frames, locations, dim) to the same; arguments as in `nfx.diffusion.inflation`."""
        assert cross_attention_kwargs is not None  # `VideoUNet.forward` gives them
        frames = cross_attention_kwargs["frames"]
        normed = self.norm1(hidden_states)
        hidden = hidden_states + self.attn1(normed, encoder_hidden_states=previous_frames(normed, frames))
        # A clip's frames share its tokens: side by side as queries they need those keys and values only once.
        clips = hidden.reshape(-1, frames * hidden.shape[1], hidden.shape[2])
        clips = clips + self.attn2(self.norm2(clips), encoder_hidden_states=encoder_hidden_states)
        hidden = clips.reshape(hidden.shape)
        hidden = hidden + self.ff(self.norm3(hidden))
        across = hidden.unflatten(0, (-1, frames)).transpose(1, 2)  # (batch, locations, frames, dim)
        mixed = self.attn_temp(self.norm_temp(across).flatten(0, 1)).view_as(across)
        return (across + mixed).transpose(1, 2).flatten(0, 1)


def previous_frames(hidden: Tensor, frames: int) -> Tensor:
    """Locations of frames i-2 and i-1 beside each other: (batch * frames, locations, dim) to twice the locations."""
    clips = hidden.unflatten(0, (-1, frames))
    index = torch.arange(frames, device=hidden.device)
    seen = [clips[:, (index - back).clamp(min=0)] for back in (2, 1)]
    return torch.cat(seen, dim=2).flatten(0, 1)


class SparseCausalUNet(VideoUNet):
    """Stable Diffusion's UNet for videos with `SparseCausalBlock`; what it adds has ``temp`` in its name."""

    _no_split_modules = ["SparseCausalBlock", "ResnetBlock2D", "CrossAttnUpBlock2D"]

    @as_image_unet
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in [m for m in self.modules() if hasattr(m, "transformer_blocks")]:
            module.transformer_blocks = nn.ModuleList(SparseCausalBlock(b) for b in module.transformer_blocks)


def inflate(unet2d: UNet2DConditionModel) -> SparseCausalUNet:
    """An image UNet's weights in a `SparseCausalUNet`; nothing is shared with it."""
    config = {k: v for k, v in unet2d.config.items() if not k.startswith("_")}
    with torch.device("meta"):  # no memory for, and no random draws in, weights that are replaced at once
        video = SparseCausalUNet(**config)
    video.load_state_dict({k: v.clone() for k, v in unet2d.state_dict().items()}, strict=False, assign=True)
    for module in video.modules():
        if isinstance(module, SparseCausalBlock):
            module.start_temporal()
    return video.train(unet2d.training)


# --- training ------------------------------------------------------------------------------------------------


def train_captions(profile: Profile) -> Path:
    """Stage one, as `nfx.diffusion.stage_one`: the UNet learns the training clips from their captions.

    Returns
    -------
    Path
        ``work/<profile>/baselines/chen2023_captions`` with ``unet/``; the same for all subjects.
    """
    from filelock import FileLock

    from nfx.data.targets import text_states
    from nfx.diffusion.fine_tuning import caption_loss, load_scheduler, trainable_parameters
    from nfx.training import finish

    folder, targets = paths.work(profile, "baselines", f"{NAME}_captions"), paths.work(profile, "targets")
    names = ("train_latents", "train_caption", "caption_tokens")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # subjects run side by side and share it: the first trains it, the others wait
        facts = {
            "settings": profile.stage_one.model_dump(),
            "condition_dropout": profile.stage_two.condition_dropout,
            "precision": profile.training.precision,
            "seed": profile.seed,
            "validation_segments": list(profile.data.validation_segments),
            "targets": files.identity(targets, *names),
            "stable_diffusion": _base_digest(profile),
            "code": files.source_digest(*CODE),
        }
        if files.finished(folder, facts):
            print(f"{folder.name}: finished and reused")
            return folder
        base = paths.snapshot(profile.models.stable_diffusion)
        image_unet, report = UNet2DConditionModel.from_pretrained(
            base, subfolder="unet", torch_dtype=torch.float32, output_loading_info=True
        )
        files.require_exact_weights(report, base, "UNet2DConditionModel")
        unet = inflate(image_unet)
        trainable_parameters(unet)
        if profile.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        arrays = files.load_arrays(targets, *names)
        training = _training_clips(profile)
        loss = caption_loss(
            arrays["train_latents"][training], arrays["train_caption"][training], np.asarray(arrays["caption_tokens"]),
            torch.from_numpy(text_states([""], profile.models.stable_diffusion)[0]), load_scheduler(base),
            beta=INDEPENDENT, batch_size=profile.stage_one.batch_size, dropout=profile.stage_two.condition_dropout,
        )  # fmt: skip
        _train(unet, loss, profile, "stage_one", folder, facts, "Chen 2023, captions")
        unet.save_pretrained(folder / "unet")
        files.write_manifest(folder, facts)
        finish(folder)
    return folder


def train(profile: Profile, subject: int) -> Path:
    """Stage two, as `nfx.diffusion.stage_two`: UNet and encoder learn a subject's training part.

    Trains stage one and the encoder of row 0 first if they are missing; what is there is reused.

    Returns
    -------
    Path
        ``work/<profile>/baselines/chen2023_subject<k>/model`` with ``unet/``, ``fmri_encoder/`` and curve.csv.

    Raises
    ------
    FileNotFoundError, ValueError
        If the subject, the targets or the pre-trained encoder are missing, damaged, or do not fit.
    """
    from nfx.data import load_subject
    from nfx.diffusion.fine_tuning import fmri_loss, load_scheduler, trainable_parameters
    from nfx.encoder import FMRIEncoder, train_encoder
    from nfx.training import finish

    encoder_snapshot, captions = train_encoder(profile, subject, 0), train_captions(profile)
    folder = baseline_folder(profile, NAME, subject) / "model"
    facts = {
        **shared.training_facts(profile, subject, CODE),
        "settings": profile.stage_two.model_dump(),
        "precision": profile.training.precision,
        "latents": files.identity(paths.work(profile, "targets"), "train_latents"),
        "encoder": files.identity(encoder_snapshot.parent),
        "captions": files.identity(captions),
    }
    if files.finished(folder, facts):
        print(f"{folder.parent.name}: stage two is finished and reused")
        return folder
    part = load_subject(profile, subject).train
    latents = shared.training_rows(profile, "targets", "train_latents", part.clip)
    unet, encoder = SparseCausalUNet.from_pretrained(captions / "unet"), FMRIEncoder.from_pretrained(encoder_snapshot)
    trainable_parameters(unet)
    if profile.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        encoder.enable_gradient_checkpointing()
    loss = fmri_loss(
        latents[part.clip], part.fmri, load_scheduler(paths.snapshot(profile.models.stable_diffusion)),
        beta=INDEPENDENT, batch_size=profile.stage_two.batch_size, dropout=profile.stage_two.condition_dropout,
    )  # fmt: skip
    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    _train(model, loss, profile, "stage_two", folder, facts, f"Chen 2023, subject {subject}")
    for name, network in model.items():
        network.save_pretrained(folder / name)
    files.write_manifest(folder, facts)
    finish(folder)
    return folder


def _train(model: nn.Module, loss: Loss, profile: Profile, section: str, folder: Path, facts: Any, name: str) -> None:
    from nfx import training
    from nfx.out_of_memory import lower_training

    settings = getattr(profile, section)
    training.train(
        model, loss, steps=settings.steps, learning_rate=settings.learning_rate, warmup=int(WARMUP * settings.steps),
        seed=profile.seed, folder=folder, checkpoint_every=profile.training.checkpoint_every,
        precision=profile.training.precision, accumulate=profile.training.accumulate, description=name, facts=facts,
        lower=lower_training(profile, section, passes=True),
    )  # fmt: skip


def _training_clips(profile: Profile) -> np.ndarray:
    """Indices of the film's clips that are not held out for validation."""
    from nfx.data import split

    segment = files.load_arrays(paths.work(profile, "stimuli"), "train_segment")["train_segment"]
    return split(np.array(segment), profile.data.validation_segments)[0]


def _base_digest(profile: Profile) -> dict[str, str]:
    from nfx.weights import file_digests

    return file_digests(profile.models.stable_diffusion, lambda file: file.endswith((".safetensors", ".json", ".txt")))


# --- decoding ------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_pipeline(profile: Profile, subject: int) -> tuple[NeuralFlixPipeline, Tensor]:
    """The trained decoder, and its negative condition (tokens, token_dim): the encoded mean training window."""
    from diffusers import AutoencoderKL

    from nfx.data import load_subject
    from nfx.diffusion import NeuralFlixPipeline
    from nfx.diffusion.fine_tuning import load_scheduler
    from nfx.encoder import FMRIEncoder
    from nfx.training import device

    folder = baseline_folder(profile, NAME, subject) / "model"
    base = paths.snapshot(profile.models.stable_diffusion)
    pipeline = NeuralFlixPipeline(
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32),
        unet=SparseCausalUNet.from_pretrained(folder / "unet"),
        fmri_encoder=FMRIEncoder.from_pretrained(folder / "fmri_encoder"),
        scheduler=load_scheduler(base),
        beta=INDEPENDENT,
        frames=profile.data.frames,
        frame_size=profile.data.frame_size,
    ).to(device())
    mean = load_subject(profile, subject).train.fmri.mean(axis=0, dtype=np.float64).astype(np.float32)
    return pipeline, pipeline.encode_fmri(mean[None])[0][0]


def load_decoder(profile: Profile, subject: int) -> shared.Decoder:
    """Windows to clips, sampled with our decoder's steps and guidance, a clip's noise drawn from its number."""
    from nfx.evaluation.decoded import decode_windows

    pipeline, negative = load_pipeline(profile, subject)

    def decoder(windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        condition = pipeline.encode_fmri(windows)[0]
        return decode_windows(profile, pipeline, numbers, condition=condition, null_condition=negative)

    return decoder
