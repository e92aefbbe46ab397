"""How much GPU memory the trainings and the decoding of a profile need, counted without a GPU.

The models are built at their true sizes from their configurations, with tensors that have shapes and no content, and
take one step, in which every storage is counted from when it is made until it is freed. What is not counted: the CUDA
context, the allocator's gaps, workspaces of kernels; `MARGIN` stands for them. It is an estimate and no measurement.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfx import paths
from nfx.files import load_arrays

if TYPE_CHECKING:
    from nfx.profile import Profile

MARGIN = 1.15  # of the counted bytes; and 1 GB for the CUDA context
CONTEXT = 1e9
VOXELS = 6224  # of a subject that is not prepared yet: the largest of the three in Chen et al. (2023)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made inside it and still alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._seen:
            self._seen.add(key)
            weakref.finalize(storage, self._free, key, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_of_training(model: nn.Module, loss: Callable[[], Tensor], passes: int, precision: str) -> int:
    """Bytes at the peak of one optimisation step of AdamW, in `passes` passes of `loss`; weights and gradients counted.

    Tensors may be fake ones (`torch._subclasses.FakeTensorMode`). A first step with gradients of no content makes
    Adam's moments, which every later step finds there. Of several passes two are enough to count.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)
    with LiveBytes() as count:
        for tensor in (*model.parameters(), *model.buffers()):
            count.add(tensor)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(min(passes, 2)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            value.backward()
            del value
        optimizer.step()
    return count.peak


def estimate(profile: Profile) -> dict[str, float]:
    """Bytes of GPU memory of each training of a profile, and of decoding, with `MARGIN` and the CUDA context.

    Raises
    ------
    FileNotFoundError
        If Stable Diffusion's configuration is not there: fetch the weights first.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    steps = {
        "pretraining": pretraining_bytes,
        "encoder": contrastive_bytes,
        "stage one": stage_one_bytes,
        "stage two": stage_two_bytes,
        "decoding": decoding_bytes,
    }
    with torch.random.fork_rng(), FakeTensorMode():
        return {name: MARGIN * count(profile) + CONTEXT for name, count in steps.items()}


def pretraining_bytes(profile: Profile) -> int:
    """Peak of a step of DC-MAE.

    Its layers are called one by one: which patches are visible cannot be read from tensors without content.
    """
    from nfx.data import parcels
    from nfx.encoder import MaskedAutoencoder

    settings = profile.pretraining
    names = [f"{side}_V{n}" for side in "LR" for n in (1, 2, 3, 4)]
    voxels = int(np.isin(parcels(np.arange(59412)), names).sum())
    encoder = _encoder(profile, voxels, window=1)
    model = MaskedAutoencoder(encoder, settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(not name.startswith("head.") and ".temporal_" not in name)

    def loss() -> Tensor:
        tokens = encoder.tokenize(torch.randn(2 * settings.batch_size, 1, voxels))  # two views
        visible = encoder.patches - math.floor(settings.mask_ratio * encoder.patches)
        encoded = model.project(encoder.transform(tokens[:, :, :visible]))
        decoded = torch.cat([encoded, model.mask_token.expand(*tokens.shape[:2], encoder.patches - visible, -1)], dim=2)
        for layer in model.layers:
            decoded = layer(decoded)
        return model.predict(model.norm(decoded)).float().square().mean()

    return peak_of_training(model, loss, 1, profile.training.precision)


def contrastive_bytes(profile: Profile) -> int:
    """Peak of a step of the contrastive mapping, both augmentations on."""
    from nfx.encoder import contrastive_loss
    from nfx.encoder.contrastive import ContrastiveModel

    voxels, batch, dim = _voxels(profile), profile.contrastive.batch_size, profile.encoder.token_dim
    encoder = _encoder(profile, voxels, profile.data.window)
    model = ContrastiveModel(encoder, profile.contrastive.temperature, torch.randn(dim, dim))
    row = profile.row(profile.headline_row)

    def loss() -> Tensor:
        bold = torch.randn(batch, profile.data.window, voxels)
        text, image = torch.randn(2, batch, dim)
        return contrastive_loss(encoder, bold, text, image, model.log_temperature, row, model.projection)["loss"]

    return peak_of_training(model, loss, 1, profile.training.precision)


def stage_one_bytes(profile: Profile) -> int:
    """Peak of a step of fine-tuning with captions."""
    unet = _video_unet(profile)
    passes = profile.training.accumulate

    def loss() -> Tensor:
        condition = torch.randn(profile.stage_one.batch_size, profile.encoder.tokens, profile.encoder.token_dim)
        return _denoising(profile, unet, condition[: -(-len(condition) // passes)])

    return peak_of_training(unet, loss, passes, profile.training.precision)


def stage_two_bytes(profile: Profile) -> int:
    """Peak of a step of fine-tuning with fMRI, in which the encoder trains too."""
    voxels, window, passes = _voxels(profile), profile.data.window, profile.training.accumulate
    unet, encoder = _video_unet(profile), _encoder(profile, voxels, window)

    def loss() -> Tensor:
        return _denoising(
            profile, unet, encoder(torch.randn(-(-profile.stage_two.batch_size // passes), window, voxels))
        )

    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    return peak_of_training(model, loss, passes, profile.training.precision)


def decoding_bytes(profile: Profile) -> int:
    """Peak of a sampling step with guidance, in float32; the encoder and the autoencoder lie beside the UNet."""
    from diffusers import AutoencoderKL

    unet = _video_unet(profile).eval().requires_grad_(False)
    encoder = _encoder(profile, _voxels(profile), profile.data.window)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(_stable_diffusion(profile), subfolder="vae"))
    condition = torch.randn(2 * profile.sampling.batch_size, profile.encoder.tokens, profile.encoder.token_dim)
    with LiveBytes() as count, torch.no_grad():
        for module in (unet, encoder, vae):
            for tensor in (*module.parameters(), *module.buffers()):
                count.add(tensor)
        latents = torch.randn(_shape(profile, unet, len(condition)))
        unet(latents, torch.zeros(len(condition)), condition)
        vae.decode(torch.randn(profile.data.frames, *latents.shape[1:2], *latents.shape[3:]))
    return count.peak


def _denoising(profile: Profile, unet: nn.Module, condition: Tensor) -> Tensor:
    latents = torch.randn(_shape(profile, unet, len(condition)))
    return unet(latents, torch.zeros(len(condition)), condition).sample.float().square().mean()


def _shape(profile: Profile, unet: Any, clips: int) -> tuple[int, ...]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.load_config(_stable_diffusion(profile), subfolder="vae")
    size = profile.data.frame_size // 2 ** (len(vae["block_out_channels"]) - 1)
    return (clips, unet.config.in_channels, profile.data.frames, size, size)


def _stable_diffusion(profile: Profile) -> Path:
    return Path(paths.snapshot(profile.models.stable_diffusion))


def _video_unet(profile: Profile) -> Any:
    """The inflated UNet as stage one and two train it, from its configuration alone."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from nfx.diffusion import VideoUNet, trainable_parameters

    config = VideoUNet.load_config(_stable_diffusion(profile), subfolder="unet")
    with unset_fake_temporarily(), torch.device("meta"):  # inflation copies modules; fake tensors cannot be copied
        unet = VideoUNet.from_config(config).train()
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
    trainable_parameters(unet)
    if profile.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _encoder(profile: Profile, voxels: int, window: int) -> Any:
    from nfx.encoder import FMRIEncoder

    encoder = FMRIEncoder(voxels=voxels, window=window, **profile.encoder.model_dump()).train()
    if profile.training.gradient_checkpointing:
        encoder.enable_gradient_checkpointing()
    return encoder


def _voxels(profile: Profile) -> int:
    """Of the profile's subjects that notebook 01 has prepared, the most; else `VOXELS`."""
    folders = [paths.work(profile, f"subject{subject}") for subject in profile.data.subjects]
    counts = [len(load_arrays(f, "vertex")["vertex"]) for f in folders if (f / "manifest.json").is_file()]
    return max(counts, default=VOXELS)
