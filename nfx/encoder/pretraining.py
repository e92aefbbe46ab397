"""Pre-training of the encoder on unlabelled fMRI: double-contrastive masked autoencoding, DC-MAE (Section 3.1.1).

Volumes are seen one at a time (window 1), so the temporal attention stays as it was initialised, at zero effect.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nfx.encoder.losses import info_nce_one_way
from nfx.encoder.model import FMRIEncoder, Layer, sin_cos_positions
from nfx.out_of_memory import lower_training
from nfx.training import WHOLE, Share, finish, first_process, first_process_first, step_generator, train

if TYPE_CHECKING:
    from nfx.profile import Profile

WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.95)  # as the masked autoencoder's and DC-MAE's
HELD_OUT = 0.1  # share of the volumes, the last ones in one block, on which reconstruction is scored
EVALUATIONS = 10  # times it is scored during training


class MaskedAutoencoder(nn.Module):
    """The encoder on visible patches, and a light Transformer decoder that fills in the masked ones.

    Parameters
    ----------
    encoder : FMRIEncoder
        Its head is not used.
    decoder_dim, decoder_depth, decoder_heads : int
        DC-MAE: 512, 8, 16.
    """

    def __init__(self, encoder: FMRIEncoder, decoder_dim: int, decoder_depth: int, decoder_heads: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(encoder.config.dim, decoder_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_dim))
        self.layers = nn.ModuleList(Layer(decoder_dim, decoder_heads, temporal=False) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.predict = nn.Linear(decoder_dim, encoder.config.patch_size)
        self.register_buffer("positions", sin_cos_positions(encoder.patches, decoder_dim))

    def forward(self, bold: Tensor, masked: Tensor) -> Tensor:
        """Predict all voxels from the visible patches.

        Parameters
        ----------
        bold : Tensor of shape (batch, voxels)
        masked : bool Tensor of shape (batch, patches)
            True where hidden, as often in every row.

        Returns
        -------
        Tensor of shape (batch, voxels)
        """
        tokens = self.encoder.tokenize(bold[:, None])[:, 0] + self.encoder.positions  # (batch, patches, dim)
        count = int((~masked[0]).sum())
        visible = masked.int().argsort(dim=1, stable=True)[:, :count, None]  # indices of the visible patches, in order
        encoded = self.encoder.transform(tokens.gather(1, visible.expand(-1, -1, tokens.shape[2]))[:, None])
        encoded = self.project(encoded[:, 0])
        filled = self.mask_token.to(encoded.dtype).expand(*masked.shape, -1)
        decoded = (filled.scatter(1, visible.expand(-1, -1, encoded.shape[2]), encoded) + self.positions)[:, None]
        for layer in self.layers:
            decoded = layer(decoded)
        return self.predict(self.norm(decoded[:, 0])).flatten(1)[:, : bold.shape[1]]  # padding dropped


def random_mask(batch: int, patches: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Patches to hide: bool (batch, patches) on the generator's device, floor(ratio * patches) True in every row,
    drawn per row.

    Raises
    ------
    ValueError
        If nothing would be hidden, or nothing left.
    """
    count = math.floor(ratio * patches)
    if not 0 < count < patches:
        raise ValueError(
            f"mask ratio {ratio} of {patches} patches hides {count}; at least one must be hidden and one be left"
        )
    noise = torch.rand((batch, patches), generator=generator, device=None if generator is None else generator.device)
    return noise.argsort(dim=1).argsort(dim=1) < count


def dc_mae_loss(
    model: MaskedAutoencoder,
    bold: Tensor,
    mask_ratio: float,
    contrast_weight: float,
    temperature: float,
    generator: torch.Generator | None = None,
    share: Share = WHOLE,
) -> dict[str, Tensor]:
    """Loss of DC-MAE: reconstruction + contrast_weight * (self / 2 + cross / 2).

    Two views are made by two independent masks. Reconstruction is the mean squared error over masked voxels. Both
    contrasts are one-way InfoNCE in voxel space, on the decoder's output: self finds the original from a prediction
    (mean of the two views), cross finds one view's prediction from the other's.

    Parameters
    ----------
    model : MaskedAutoencoder
    bold : Tensor of shape (batch, voxels), z-scored
    mask_ratio : float (paper: 0.75)
    contrast_weight, temperature : float (DC-MAE: 0.5, 0.1)
    generator : torch.Generator, optional
    share : Share
        Of several processes, the rows that pass the network here. The losses are the whole batch's.

    Returns
    -------
    dict of scalar Tensors
        loss, reconstruction, self_contrast, cross_contrast, and explained_variance of the masked voxels (0: no better
        than zero, the mean of z-scored data).
    """
    batch = len(bold)
    masked = random_mask(2 * batch, model.encoder.patches, mask_ratio, generator).to(bold.device)
    rows = share.rows(batch)
    mine = model(bold[rows].repeat(2, 1), torch.cat([view[rows] for view in masked.chunk(2)]))
    first, second = (share.gather(view, batch) for view in mine.chunk(2))
    predicted, twice = torch.cat([first, second]), bold.repeat(2, 1)
    voxels = _masked_voxels(model, masked, bold.shape[1])
    reconstruction = (predicted - twice)[voxels].square().mean()
    self_contrast = (info_nce_one_way(first, bold, temperature) + info_nce_one_way(second, bold, temperature)) / 2
    cross_contrast = info_nce_one_way(first, second, temperature)
    return {
        "loss": reconstruction + contrast_weight * (0.5 * self_contrast + 0.5 * cross_contrast),
        "reconstruction": reconstruction,
        "self_contrast": self_contrast,
        "cross_contrast": cross_contrast,
        "explained_variance": 1 - reconstruction / twice[voxels].square().mean(),
    }


def hold_out(fmri: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split volumes (volumes, voxels) into those that are trained on and the last tenth, which is scored."""
    first, last = np.split(fmri, [len(fmri) - max(1, round(HELD_OUT * len(fmri)))])
    return first, last


@torch.no_grad()
def explained_variance(
    model: MaskedAutoencoder, bold: np.ndarray, mask_ratio: float, generator: torch.Generator, batch_size: int = 256
) -> float:
    """Explained variance of masked voxels in (volumes, voxels), against predicting zero, the mean of z-scored data."""
    was_training, where = model.training, next(model.parameters()).device
    model.eval()
    error = total = 0.0
    for start in range(0, len(bold), batch_size):
        batch = torch.from_numpy(np.array(bold[start : start + batch_size], dtype=np.float32)).to(where)
        masked = random_mask(len(batch), model.encoder.patches, mask_ratio, generator).to(where)
        voxels = _masked_voxels(model, masked, batch.shape[1])
        error += (model(batch, masked) - batch)[voxels].square().sum().item()
        total += batch[voxels].square().sum().item()
    model.train(was_training)
    return 1 - error / total


def linear_explained_variance(
    training: np.ndarray, held_out: np.ndarray, mask_ratio: float, patch_size: int, seed: int, masks: int = 5
) -> float:
    """`explained_variance` of ridge regression from the visible voxels to the masked ones: what the network must beat.

    Fitted anew for each of `masks` random masks, with as many units of penalty as there are training volumes.

    Parameters
    ----------
    training, held_out : arrays of shape (volumes, voxels), z-scored
    """
    voxels = training.shape[1]
    patches, generator = math.ceil(voxels / patch_size), torch.Generator().manual_seed(seed)
    shares = []
    for mask in random_mask(masks, patches, mask_ratio, generator).numpy():
        hidden = mask.repeat(patch_size)[:voxels]
        x, y = training[:, ~hidden], training[:, hidden]
        weights = np.linalg.solve(x.T @ x + len(x) * np.eye(x.shape[1]), x.T @ y)
        error = held_out[:, hidden] - held_out[:, ~hidden] @ weights
        shares.append(1 - np.square(error).sum() / np.square(held_out[:, hidden]).sum())
    return float(np.mean(shares))


def pretrain(profile: Profile) -> Path:
    """Pre-train the encoder on unlabelled recordings, or return at once if that is done.

    Writes under ``work/<profile>/pretraining/``: ``encoder/`` (snapshot), ``curve.csv``, ``scores.csv`` (explained
    variance of masked voxels in held-out volumes, by step) and the manifest. Resumes after an interruption. A profile
    that names a ``pretraining.snapshot`` gets that encoder instead, see `adopt`.

    Returns
    -------
    Path
        The snapshot, for ``FMRIEncoder.from_pretrained``.
    """
    from nfx.data import prepare_pretraining
    from nfx.files import finished, load_arrays, read_manifest, source_digest, write_manifest
    from nfx.paths import work

    folder, settings = work(profile, "pretraining"), profile.pretraining
    if settings.snapshot is not None:
        return adopt(profile)
    with first_process_first():
        prepared = prepare_pretraining(profile)
    facts = {
        "encoder": profile.encoder.model_dump(mode="json"),
        "pretraining": settings.model_dump(mode="json", exclude={"snapshot", "recordings", "volumes_averaged"}),
        "precision": profile.training.precision,
        "seed": profile.seed,
        "data": array_digests(read_manifest(prepared)),
        "code": source_digest("encoder/model.py", "encoder/losses.py", "encoder/pretraining.py", "training.py"),
    }
    if finished(folder, facts):
        print("pre-training is finished and reused")
        return folder / "encoder"

    fmri = load_arrays(prepared, "fmri")["fmri"]
    training, held_out = hold_out(fmri)
    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        encoder = FMRIEncoder(voxels=fmri.shape[1], window=1, **profile.encoder.model_dump())
        model = MaskedAutoencoder(encoder, settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)
    for name, parameter in encoder.named_parameters():  # what volumes seen one at a time cannot teach
        parameter.requires_grad_(not name.startswith("head.") and ".temporal_" not in name)
    if profile.training.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()

    def score(step: int) -> None:
        value = explained_variance(model, held_out, settings.mask_ratio, step_generator(profile.seed, 0))
        record_scores(folder / "scores.csv", step, {"held_out_explained_variance": value})

    def loss(model: nn.Module, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        if step % math.ceil(settings.steps / EVALUATIONS) == 0:
            score(step)
        chosen = torch.randperm(len(training), generator=generator)[: settings.batch_size].sort().values.numpy()
        bold = torch.from_numpy(np.array(training[chosen], dtype=np.float32)).to(model.mask_token.device)
        return dc_mae_loss(
            model, bold, settings.mask_ratio, settings.contrast_weight, settings.temperature, generator, share
        )

    train(
        model, loss, steps=settings.steps, learning_rate=settings.learning_rate, seed=profile.seed, folder=folder,
        warmup=settings.steps // 10, weight_decay=WEIGHT_DECAY, betas=BETAS, facts=facts, description="pre-training",
        checkpoint_every=profile.training.checkpoint_every, precision=profile.training.precision,
        lower=lower_training(profile, "pretraining", passes=False),
    )  # fmt: skip
    score(settings.steps)
    if first_process():
        encoder.save_pretrained(folder / "encoder")
        write_manifest(folder, facts, files=result_files(folder))
    finish(folder)
    return folder / "encoder"


def adopt(profile: Profile) -> Path:
    """Take the encoder at ``profile.pretraining.snapshot`` in place of one that is pre-trained here.

    Writes ``work/<profile>/pretraining/encoder`` (snapshot) and the manifest, as `pretrain` does; no curve and no
    scores. The part of the head whose shape is not the profile's is drawn anew.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the profile names none, or its sizes are not those of profile.encoder.
    """
    from nfx.encoder.model import interpolate_encoder
    from nfx.files import finished, sha256, source_digest, write_manifest
    from nfx.paths import ROOT, work

    if profile.pretraining.snapshot is None:
        raise ValueError(
            f"pretraining.snapshot of profile '{profile.name}' is null: expected the folder of an encoder to adopt"
        )
    source, folder, wanted = ROOT / profile.pretraining.snapshot, work(profile, "pretraining"), profile.encoder
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} does not exist: pretraining.snapshot of profile '{profile.name}' must name a folder, such as "
            "python -m nfx.encoder.conversion writes"
        )
    facts = {
        "encoder": wanted.model_dump(mode="json"),
        "snapshot": {file.name: sha256(file) for file in sorted(source.iterdir()) if file.is_file()},
        "seed": profile.seed,
        "code": source_digest("encoder/model.py", "encoder/pretraining.py"),
    }
    if finished(folder, facts):
        print("the pre-trained encoder is there and reused")
        return folder / "encoder"
    encoder = FMRIEncoder.from_pretrained(source)
    for name in ("patch_size", "dim", "depth", "heads"):
        if encoder.config[name] != getattr(wanted, name):
            raise ValueError(
                f"the encoder at {source} has {name} {encoder.config[name]}, but encoder.{name} of profile "
                f"'{profile.name}' is {getattr(wanted, name)}; they must be equal"
            )
    with torch.random.fork_rng():
        torch.manual_seed(profile.seed)
        encoder = interpolate_encoder(encoder, encoder.config.voxels, 1, wanted.tokens, wanted.token_dim)
    if first_process():
        encoder.save_pretrained(folder / "encoder")
        write_manifest(folder, facts, files=[p.relative_to(folder) for p in sorted((folder / "encoder").iterdir())])
    finish(folder)
    return folder / "encoder"


def record_scores(path: Path, step: int, scores: dict[str, float]) -> None:
    """Write a row (step, scores) to a CSV; rows of this step and later ones, of a run since resumed, are dropped."""
    from nfx.files import write_atomically

    if not first_process():
        return
    row = pd.DataFrame([{"step": step, **scores}])
    if step > 0 and path.is_file():
        earlier = pd.read_csv(path)
        row = pd.concat([earlier[earlier["step"] < step], row], ignore_index=True)
    with write_atomically(path) as temporary:
        row.to_csv(temporary, index=False)


def array_digests(manifest: dict) -> dict[str, str]:
    """sha256 of every array of a manifest: what a training on them depends on."""
    return {name: entry["sha256"] for name, entry in manifest["arrays"].items()}


def result_files(folder: Path) -> list[Path]:
    """The files a training of this module leaves in its folder, relative to it: snapshot, curve and scores."""
    snapshot = sorted(path for path in (folder / "encoder").iterdir() if path.is_file())
    return [path.relative_to(folder) for path in (*snapshot, folder / "curve.csv", folder / "scores.csv")]


def _masked_voxels(model: MaskedAutoencoder, masked: Tensor, voxels: int) -> Tensor:
    """bool (batch, patches) to (batch, voxels); the padding of the last patch is dropped and never scored."""
    return masked.repeat_interleave(model.encoder.config.patch_size, dim=1)[:, :voxels]
