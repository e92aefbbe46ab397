"""Contrastive mapping of fMRI to CLIP's text and image embeddings (Section 3.1.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nfx.encoder.augmentation import spatial_mask, temporal_interpolation
from nfx.encoder.losses import info_nce, retrieval
from nfx.encoder.model import FMRIEncoder, interpolate_encoder
from nfx.encoder.pretraining import array_digests, record_scores, result_files
from nfx.out_of_memory import lower_training
from nfx.training import WHOLE, Share, finish, first_process, train

if TYPE_CHECKING:
    from nfx.profile import Profile, Row

SMALLEST_TEMPERATURE = 1 / 100  # CLIP clips its learnable temperature here
Examples = tuple[np.ndarray, np.ndarray]  # windows (clips, window, voxels), image embeddings (clips, frames, dim)
EVALUATIONS = 10  # times retrieval is scored during training


class ContrastiveModel(nn.Module):
    """The encoder, the one learnable temperature of all its losses, kept as a logarithm, and CLIP's text projection."""

    def __init__(self, encoder: FMRIEncoder, temperature: float, projection: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("projection", projection, persistent=False)  # frozen, and CLIP's own to keep
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @torch.no_grad()
    def clip_temperature(self) -> None:
        """Keep the temperature at 1/100 or above: the parameter itself, since a clamped loss has no gradient."""
        self.log_temperature.clamp_(min=math.log(SMALLEST_TEMPERATURE))


def pooled(tokens: Tensor, projection: Tensor) -> Tensor:
    """Mean over the tokens, through CLIP's frozen text projection: what is compared with CLIP's embeddings.

    The UNet of phase 2 reads states of CLIP's text encoder, while text and image embeddings are compared in the joint
    space, one frozen matrix further on. Pooling the fMRI tokens as if they were text states, with that same matrix,
    teaches the encoder to write what the UNet reads. The paper does not say how the two spaces meet.

    tokens (batch, tokens, token_dim), projection (dim, token_dim), to (batch, dim).
    """
    return tokens.mean(dim=1) @ projection.T


@torch.no_grad()
def start_as_text(encoder: FMRIEncoder, norm_weight: Tensor, norm_bias: Tensor) -> None:
    """Let the fMRI tokens start as text states do: with their scale and offset, and all alike.

    The contrastive losses see the mean of the tokens alone. Whatever differs between tokens at the start would stay,
    and be noise to the UNet; alike, each of them is what the losses have aligned, and phase 2 lets them part.

    norm_weight, norm_bias (token_dim,), of the LayerNorm in which CLIP's text encoder ends; they train on.
    """
    encoder.head.mapper.weight.copy_(encoder.head.mapper.weight[:1].expand_as(encoder.head.mapper.weight).clone())
    encoder.head.norm.weight.copy_(norm_weight)
    encoder.head.norm.bias.copy_(norm_bias)


def draw_frame(frames: int, clips: int, generator: torch.Generator | None = None) -> Tensor:
    """One of its frames for each clip, drawn at random: int (clips,)."""
    return torch.randint(frames, (clips,), generator=generator)


def contrastive_loss(
    encoder: FMRIEncoder,
    bold: Tensor,
    text_embedding: Tensor,
    image_embedding: Tensor,
    log_temperature: Tensor,
    row: Row,
    projection: Tensor,
    generator: torch.Generator | None = None,
    share: Share = WHOLE,
) -> dict[str, Tensor]:
    """Overall loss of phase 1, Eqs. 2 and 3: mu_spa L_spa + mu_tem L_tem + L_emb.

    L_spa pairs the windows with their spatially masked and L_tem with their temporally interpolated versions (Eq. 2
    as printed has the two the other way round). L_emb pairs them with the text and with the image embeddings. Every
    term is `info_nce` at one temperature. Windows and both augmentations pass the encoder as one batch, each once;
    there is no stop-gradient.

    Parameters
    ----------
    encoder : FMRIEncoder
    bold : Tensor of shape (batch, window, voxels)
    text_embedding, image_embedding : Tensor of shape (batch, dim)
        Projected CLIP embeddings of one frame of each clip and of its caption.
    log_temperature : scalar Tensor
    row : Row
        Row of Table 1: spatial_ratio, temporal_ratio, spatial_weight, temporal_weight; None switches a term off (row
        0: L_emb alone).
    projection : Tensor of shape (dim, token_dim)
        CLIP's text projection, see `pooled`.
    generator : torch.Generator, optional
    share : Share
        Of several processes, the rows that pass the encoder here. Everything else is the whole batch's.

    Returns
    -------
    dict of scalar Tensors
        loss, spatial, temporal, text, image (before weighting; 0 for a term that is off).
    """
    temperature = log_temperature.exp()
    tokens = encoder.tokenize(bold)
    views = {}
    if row.spatial_ratio is not None and row.spatial_weight is not None:
        views["spatial"] = spatial_mask(tokens, row.spatial_ratio, generator)
    if row.temporal_ratio is not None and row.temporal_weight is not None:
        views["temporal"] = temporal_interpolation(tokens, row.temporal_ratio, generator)
    encoded = encoder.encode(torch.cat([view[share.rows(len(bold))] for view in (tokens, *views.values())]))
    vectors = pooled(encoded, projection).chunk(1 + len(views))
    original, *augmented = (share.gather(rows, len(bold)) for rows in vectors)
    losses = {name: info_nce(original, view, temperature) for name, view in zip(views, augmented, strict=True)}
    losses["text"] = info_nce(original, text_embedding, temperature)
    losses["image"] = info_nce(original, image_embedding, temperature)

    zero = torch.zeros_like(losses["text"])
    spatial, temporal = losses.get("spatial", zero), losses.get("temporal", zero)
    total = (
        (row.spatial_weight or 0.0) * spatial
        + (row.temporal_weight or 0.0) * temporal
        + losses["text"]
        + losses["image"]
    )
    return {"loss": total, "spatial": spatial, "temporal": temporal, "text": losses["text"], "image": losses["image"]}


@torch.no_grad()
def embed(encoder: FMRIEncoder, windows: np.ndarray, projection: Tensor, batch_size: int = 128) -> Tensor:
    """Pooled embeddings (clips, dim), on the CPU, of windows (clips, window, voxels), in evaluation mode."""
    was_training, where = encoder.training, encoder.device
    encoder.eval()
    batches = (windows[start : start + batch_size] for start in range(0, len(windows), batch_size))
    vectors = [
        pooled(encoder(torch.from_numpy(np.array(batch, dtype=np.float32)).to(where)), projection.to(where))
        .float()
        .cpu()
        for batch in batches
    ]
    encoder.train(was_training)
    return torch.cat(vectors)


def clip_embedding(frames: np.ndarray) -> Tensor:
    """Embedding of a clip: the mean of its normalised frame embeddings; (clips, frames, dim) to (clips, dim)."""
    return nn.functional.normalize(torch.from_numpy(np.array(frames, dtype=np.float32)), dim=-1).mean(dim=1)


def retrieval_scores(
    encoder: FMRIEncoder,
    training: Examples,
    validation: Examples,
    projection: Tensor,
) -> dict[str, float]:
    """Retrieval of a clip's image embedding among all validation clips and, beside it, among as many training clips.

    Parameters
    ----------
    encoder : FMRIEncoder
    training, validation : pairs of arrays
        Windows (clips, window, voxels) and image embeddings (clips, frames, dim). As many training clips as there are
        validation clips are scored, the first ones: a contiguous block too (neighbouring clips share their scene and
        are confused), with the same chance level.
    projection : Tensor of shape (dim, token_dim)
        CLIP's text projection, see `pooled`.

    Returns
    -------
    dict
        train_top1, train_top5, validation_top1, validation_top5; chance_top1, chance_top5.
    """
    clips = len(validation[0])
    parts = {"train": (training[0][:clips], training[1][:clips]), "validation": validation}
    scores: dict[str, float] = {}
    for name, (windows, images) in parts.items():
        found = retrieval(embed(encoder, windows, projection), clip_embedding(images))
        scores |= {f"{name}_top1": found["top1"], f"{name}_top5": found["top5"]}
    return scores | {"chance_top1": found["chance1"], "chance_top5": found["chance5"]}


def train_encoder(profile: Profile, subject: int, row: int, time_averaged: bool = False) -> Path:
    """Train the encoder of one subject and one row of Table 1 from the pre-trained one, or return at once if that is
    done.

    Rows that differ in the diffusion alone share one encoder, that of ``profile.encoder_row(row)``. Writes under
    ``work/<profile>/encoder/subject<k>_row<r>[_averaged]/``: ``encoder/`` (snapshot), ``curve.csv`` (losses),
    ``scores.csv`` (`retrieval_scores`, by step) and the manifest. Resumes after an interruption. The last weights are
    kept, not the best on validation: all rows train equally long, and what validation decides is the row.

    Parameters
    ----------
    profile : Profile
    subject, row : int
    time_averaged : bool
        The control of Section 5.2: every window holds its mean, repeated.

    Returns
    -------
    Path
        The snapshot, for ``FMRIEncoder.from_pretrained``.

    Raises
    ------
    FileNotFoundError
        If the subject, the targets or the pre-trained encoder are not there.
    ValueError
        If their sizes do not fit.
    """
    from nfx.data.targets import text_head
    from nfx.files import finished, read_manifest, source_digest, verified, write_manifest
    from nfx.paths import work

    row = profile.encoder_row(row)
    folder = work(profile, "encoder", f"subject{subject}_row{row}" + "_averaged" * time_averaged)
    settings, augmentation = profile.contrastive, profile.row(row)
    facts = {
        "subject": subject,
        "augmentation": list(augmentation.encoder),
        "time_averaged": time_averaged,
        "window": profile.data.window,
        "validation_segments": list(profile.data.validation_segments),
        "encoder": profile.encoder.model_dump(mode="json"),
        "contrastive": settings.model_dump(mode="json"),
        "precision": profile.training.precision,
        "seed": profile.seed,
        "fmri": array_digests(read_manifest(work(profile, f"subject{subject}"))),
        "targets": array_digests(read_manifest(work(profile, "targets"))),
        "pretrained": read_manifest(work(profile, "pretraining"))["files"],
        "code": source_digest("encoder", "training.py", "data/dataset.py", "data/windows.py"),
    }
    if finished(folder, facts):
        print(f"{folder.name}: the encoder is finished and reused")
        return folder / "encoder"

    training, validation, text = _examples(profile, subject, time_averaged)
    windows, image = training
    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)  # for the new part of the head
        pretrained = FMRIEncoder.from_pretrained(verified(work(profile, "pretraining"), "encoder"))
        encoder = interpolate_encoder(pretrained, windows.shape[2], profile.data.window)
    head = text_head(profile.models.clip)
    if head.projection.shape[1] != profile.encoder.token_dim:
        raise ValueError(
            f"CLIP's text states have {head.projection.shape[1]} dimensions, but encoder.token_dim of profile "
            f"'{profile.name}' is {profile.encoder.token_dim}; the fMRI tokens take their place, so they must be equal"
        )
    start_as_text(encoder, head.norm_weight, head.norm_bias)
    if profile.training.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()
    model = ContrastiveModel(encoder, settings.temperature, head.projection)

    def score(step: int) -> None:
        record_scores(folder / "scores.csv", step, retrieval_scores(encoder, training, validation, head.projection))

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        if step % math.ceil(settings.steps / EVALUATIONS) == 0:
            score(step)
        model.clip_temperature()
        chosen = torch.randperm(len(windows), generator=generator)[: settings.batch_size].numpy()
        frame = draw_frame(image.shape[1], len(chosen), generator).numpy()
        arrays = windows[chosen], text[chosen, frame], image[chosen, frame]
        bold, sentence, picture = (torch.from_numpy(array).to(model.log_temperature.device) for array in arrays)
        values = contrastive_loss(
            model.encoder, bold, sentence, picture, model.log_temperature, augmentation, model.projection,
            generator, share,
        )  # fmt: skip
        return values | {"temperature": model.log_temperature.exp()}

    train(
        model, loss, steps=settings.steps, learning_rate=settings.learning_rate, seed=profile.seed, folder=folder,
        warmup=settings.steps // 10, weight_decay=settings.weight_decay, facts=facts,
        precision=profile.training.precision, checkpoint_every=profile.training.checkpoint_every,
        description=f"encoder, subject {subject}, row {row}",
        lower=lower_training(profile, "contrastive", passes=False),
    )  # fmt: skip
    score(settings.steps)
    if first_process():
        encoder.save_pretrained(folder / "encoder")
        write_manifest(folder, facts, files=result_files(folder))
    finish(folder)
    return folder / "encoder"


def _examples(profile: Profile, subject: int, time_averaged: bool) -> tuple[Examples, Examples, np.ndarray]:
    """Windows and image embeddings of training and of validation, and the text embeddings of training."""
    from nfx.data import load_subject, load_targets, time_average

    data = load_subject(profile, subject)
    targets = load_targets(profile, "train_text_embeddings", "train_image_embeddings")
    text, image = targets["train_text_embeddings"], targets["train_image_embeddings"]
    clips = len(data.train.clip) + len(data.validation.clip)
    if not clips == len(text) == len(image):
        raise ValueError(
            f"subject {subject} has {clips} training volumes, but there are targets for {len(text)} clips (text) and "
            f"{len(image)} (image); expected one clip for each volume. Run notebook 01 again."
        )
    average = time_average if time_averaged else np.asarray
    training, validation = (
        (average(part.fmri), np.asarray(image)[part.clip]) for part in (data.train, data.validation)
    )
    return training, validation, np.asarray(text)[data.train.clip]
