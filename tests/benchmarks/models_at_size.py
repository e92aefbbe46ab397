"""The models of a profile and a step of each training, by this package and as peers write it, for the benchmarks.

The demo's are its stand-ins; the paper's have its architectures (`tests/full_size.py`) and random weights.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import plain_models as plain
import torch
from full_size import LARGE, TEXT, UNET, VAE
from torch import Tensor, nn

from nfx.data.targets import _frozen
from nfx.diffusion import NeuralFlixPipeline, inflate, trainable_parameters
from nfx.diffusion.fine_tuning import caption_loss, fmri_loss
from nfx.encoder import FMRIEncoder, MaskedAutoencoder, contrastive_loss, dc_mae_loss
from nfx.encoder.contrastive import ContrastiveModel, draw_frame
from nfx.encoder.pretraining import BETAS, WEIGHT_DECAY, random_mask
from nfx.memory import LiveBytes
from nfx.profile import Profile
from nfx.training import WHOLE, Loss, _parameter_groups, step_generator

BETA = 0.75  # of the dependent noise: row 10 of Table 1


class Case(NamedTuple):
    """At which sizes and where a row is measured.

    Attributes
    ----------
    name : str
        For the row's name.
    profile : Profile
    voxels : int
        Of a volume.
    device : str
        cpu or cuda. On the latter steps run in bf16 (autocast).
    unet_layers : int
        Residual blocks per level of the paper's UNet; Stable Diffusion has 2.
    """

    name: str
    profile: Profile
    voxels: int
    device: str = "cpu"
    unet_layers: int = 2

    @property
    def kind(self) -> torch.dtype:
        """In which the matrices are multiplied."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16


class Steps(NamedTuple):
    """One training step, ready to be repeated: by this package, and as peers write it; on the same weights.

    ``losses`` are both losses at the draws of step 0, ``trained`` the parameters of ``model`` that this package trains.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    losses: tuple[Callable[[], Tensor], Callable[[], Tensor]]
    model: nn.Module
    trained: list[nn.Parameter]


# Models


def open_temporal(model: nn.Module) -> nn.Module:
    """Give temporal attention an output, as training does: it starts at zero, which would hide an error in it."""
    for name, parameter in model.named_parameters():
        if "temporal_attention.out" in name or "attn_temp.to_out" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def fmri_encoder(case: Case, window: int) -> FMRIEncoder:
    torch.manual_seed(0)
    sizes = case.profile.encoder.model_dump()
    return open_temporal(FMRIEncoder(case.voxels, window, **sizes)).to(case.device)


def clip_towers(case: Case) -> tuple[Any, Any]:
    """CLIP's text and image tower, frozen, with attention written out (of the time before fused attention)."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    kinds = (CLIPTextModelWithProjection, CLIPVisionModelWithProjection)
    if case.profile.simulated:
        text, image = (_frozen(kind, case.profile.models.clip, attn_implementation="eager") for kind in kinds)
    else:
        vision = LARGE | {"image_size": 224, "patch_size": 14, "projection_dim": 768}
        text = kinds[0](CLIPTextConfig(**TEXT, attn_implementation="eager"))
        image = kinds[1](CLIPVisionConfig(**vision, attn_implementation="eager"))
    return tuple(tower.eval().requires_grad_(False).to(case.device) for tower in (text, image))


def text_encoder(case: Case) -> Any:
    """Stable Diffusion's."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if case.profile.simulated:
        options = {"subfolder": "text_encoder", "attn_implementation": "eager"}
        model = _frozen(CLIPTextModel, case.profile.models.stable_diffusion, **options)
    else:
        model = CLIPTextModel(CLIPTextConfig(**TEXT, attn_implementation="eager"))
    return model.eval().requires_grad_(False).to(case.device)


def autoencoder(case: Case) -> Any:
    from diffusers import AutoencoderKL

    if case.profile.simulated:
        model = _frozen(AutoencoderKL, case.profile.models.stable_diffusion, subfolder="vae")
    else:
        model = AutoencoderKL(**VAE)
    return model.eval().requires_grad_(False).to(case.device)


def video_unet(case: Case) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    if case.profile.simulated:
        image_unet = _frozen(UNet2DConditionModel, case.profile.models.stable_diffusion, subfolder="unet")
    else:
        image_unet = UNet2DConditionModel(**UNET, layers_per_block=case.unet_layers)
    return open_temporal(inflate(image_unet).train()).to(case.device)


def scheduler() -> Any:
    """Stable Diffusion's noise schedule with the DDIM sampler; the stand-in's is the same."""
    from nfx.stand_ins.generation import scheduler

    return scheduler()


def pipeline(case: Case) -> NeuralFlixPipeline:
    data = case.profile.data
    made = NeuralFlixPipeline(
        autoencoder(case), video_unet(case).eval(), fmri_encoder(case, data.window).eval(), scheduler(), beta=BETA,
        frames=data.frames, frame_size=data.frame_size,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


# Data: noise of the right shapes


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def film(case: Case, clips: int) -> np.ndarray:
    """uint8 (clips, frames, height, width, 3)."""
    data = case.profile.data
    shape = (clips, data.frames, data.frame_size, data.frame_size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def words(tower: Any, *shape: int) -> np.ndarray:
    """Token ids of sentences that end at the last place, (*shape, length)."""
    config = tower.config
    ids = np.random.default_rng(2).integers(3, 100, (*shape, config.max_position_embeddings))
    ids[..., -1] = config.eos_token_id
    return ids


# Steps


def training_step(
    model: nn.Module, loss: Loss, trained: list[nn.Parameter], *, learning_rate: float, weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999), bf16: bool = False, watched: bool = False,
) -> Callable[[], float | Tensor]:  # fmt: skip
    """A step as `nfx.training.train` takes it, which a test holds to it; ``trained`` are the parameters it changes.

    ``watched``: the loss leaves the device in every step, as in peers' loops, and not once in ten.
    """
    chosen = {id(parameter) for parameter in trained}
    flags = [(parameter, id(parameter) in chosen) for parameter in model.parameters()]

    def freeze() -> None:  # steps of several kinds share the weights
        for parameter, trains in flags:
            parameter.requires_grad_(trains)

    freeze()
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=learning_rate, betas=betas)
    device = trained[0].device.type
    numbers = itertools.count()

    def step() -> float | Tensor:
        freeze()
        number = next(numbers)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss(model, number, step_generator(0, number), WHOLE)["loss"]
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item() if watched else value.detach()

    return step


def steps_of(
    case: Case, model: nn.Module, ours: Loss, plainly: Loss, trained: list[nn.Parameter], **options: Any
) -> Steps:
    """Both steps of a training; the plain one gives every parameter gradients and keeps it in the optimizer."""
    options["bf16"] = case.kind is torch.bfloat16

    return Steps(
        training_step(model, ours, trained, **options),
        training_step(model, plainly, list(model.parameters()), watched=True, **options),
        tuple(lambda loss=loss: loss(model, 0, step_generator(0, 0), WHOLE)["loss"] for loss in (ours, plainly)),
        model,
        trained,
    )


def encoder_steps(case: Case, clips: int) -> Callable[[int], Steps]:
    """Phase 1 over as many clips as a batch may have: steps by the size of the batch.

    A frame of each clip. The images are ready-made pixel values: what peers' loaders do on other cores is not counted.
    """
    settings, row = case.profile.contrastive, case.profile.row(case.profile.headline_row)
    text_tower, image_tower = clip_towers(case)
    windows, captions = noise(clips, case.profile.data.window, case.voxels), words(text_tower, clips)
    size = image_tower.config.image_size
    images = noise(clips, 3, size, size)
    with torch.no_grad():
        text = text_tower(input_ids=torch.from_numpy(captions).to(case.device)).text_embeds.cpu().numpy()
        parts = torch.from_numpy(images).split(16)
        image = np.concatenate([image_tower(pixel_values=p.to(case.device)).image_embeds.cpu().numpy() for p in parts])
    encoder = fmri_encoder(case, case.profile.data.window)
    projection = text_tower.text_projection.weight
    model = ContrastiveModel(encoder, settings.temperature, projection).to(case.device)

    def steps(batch: int) -> Steps:
        def drawn(generator: torch.Generator, *arrays: np.ndarray) -> list[Tensor]:
            chosen = torch.randperm(clips, generator=generator)[:batch].numpy()
            draw_frame(1, batch, generator)
            return [torch.from_numpy(array[chosen]).to(case.device) for array in arrays]

        def ours(model: Any, step: int, generator: torch.Generator, share: Any) -> dict[str, Tensor]:
            model.clip_temperature()
            examples = drawn(generator, windows, text, image)
            return contrastive_loss(model.encoder, *examples, model.log_temperature, row, model.projection, generator)

        def plainly(model: Any, step: int, generator: torch.Generator, share: Any) -> dict[str, Tensor]:
            model.clip_temperature()
            examples = drawn(generator, windows, captions, images)
            return {"loss": plain.contrastive_loss(model, text_tower, image_tower, *examples, row, generator)}

        return steps_of(
            case, model, ours, plainly, list(model.parameters()), learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )  # fmt: skip

    return steps


def pretraining_steps(case: Case, volumes: int) -> Callable[[int], Steps]:
    """DC-MAE over as many volumes as a batch may have: steps by the size of the batch."""
    settings = case.profile.pretraining
    encoder = fmri_encoder(case, 1)
    sizes = (settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)
    model = MaskedAutoencoder(encoder, *sizes).to(case.device)
    head = {id(p) for name, p in encoder.named_parameters() if name.startswith("head.") or ".temporal_" in name}
    trained = [p for p in model.parameters() if id(p) not in head]
    fmri = noise(volumes, case.voxels)

    def steps(batch: int) -> Steps:
        def ours(model: Any, step: int, generator: torch.Generator, share: Any) -> dict[str, Tensor]:
            chosen = torch.randperm(volumes, generator=generator)[:batch].sort().values.numpy()
            bold = torch.from_numpy(fmri[chosen]).to(case.device)
            return dc_mae_loss(
                model, bold, settings.mask_ratio, settings.contrast_weight, settings.temperature, generator
            )

        def plainly(model: Any, step: int, generator: torch.Generator, share: Any) -> dict[str, Tensor]:
            chosen = torch.randperm(volumes, generator=generator)[:batch].sort().values.numpy()
            bold = torch.from_numpy(fmri[chosen]).to(case.device)
            masked = random_mask(2 * batch, model.encoder.patches, settings.mask_ratio, generator).to(case.device)
            views = masked.unflatten(0, (2, batch))
            return {"loss": plain.dc_mae_loss(model, bold, views, settings.contrast_weight, settings.temperature)}

        return steps_of(
            case, model, ours, plainly, trained, learning_rate=settings.learning_rate, weight_decay=WEIGHT_DECAY,
            betas=BETAS,
        )  # fmt: skip

    return steps


def latents_of(vae: Any, clips: np.ndarray) -> np.ndarray:
    """What notebook 01 keeps of the clips: float32 (clips, frames, channels, height, width), scaled."""
    where = next(vae.parameters()).device
    pixels = (torch.from_numpy(clip).to(where).movedim(-1, 1) / 127.5 - 1 for clip in clips)
    with torch.no_grad():
        return np.stack([(vae.encode(x).latent_dist.mean * vae.config.scaling_factor).cpu().numpy() for x in pixels])


def caption_steps(case: Case, clips: int) -> Callable[[int], Steps]:
    """Fine-tuning, stage one: steps by the size of the batch."""
    settings, dropout = case.profile.stage_one, case.profile.stage_two.condition_dropout
    vae, text, unet, schedule = autoencoder(case), text_encoder(case), video_unet(case), scheduler()
    seen = film(case, clips)
    sentences, empty = words(text, clips, seen.shape[1]), words(text)
    every = torch.from_numpy(np.concatenate([sentences.reshape(-1, len(empty)), [empty]]))
    latents = latents_of(vae, seen)
    with torch.no_grad():
        states = torch.cat([text(input_ids=ids.to(case.device)).last_hidden_state.cpu() for ids in every.split(16)])
    caption = np.arange(clips * seen.shape[1]).reshape(clips, -1)
    trained = trainable_parameters(unet)

    def steps(batch: int) -> Steps:
        options = {"beta": BETA, "batch_size": batch, "dropout": dropout}
        ours = caption_loss(latents, caption, states.numpy(), states[-1], schedule, **options)
        plainly = plain.caption_loss(seen, sentences, empty, vae, text, schedule, **options)
        return steps_of(case, unet, ours, plainly, trained, learning_rate=settings.learning_rate)

    return steps


def fmri_steps(case: Case, clips: int, compiled: bool = False) -> Callable[[int], Steps]:
    """Fine-tuning, stage two: steps by the size of the batch; with ``compiled``, of a compiled UNet and encoder."""
    settings = case.profile.stage_two
    vae, schedule, unet = autoencoder(case), scheduler(), video_unet(case)
    encoder = fmri_encoder(case, case.profile.data.window)
    seen, windows = film(case, clips), noise(clips, case.profile.data.window, case.voxels)
    latents = latents_of(vae, seen)
    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder})
    if compiled:
        for module in model.values():
            module.compile()
    trained = [*trainable_parameters(unet), *encoder.parameters()]

    def steps(batch: int) -> Steps:
        options = {"beta": BETA, "batch_size": batch, "dropout": settings.condition_dropout}
        ours = fmri_loss(latents, windows, schedule, **options)
        plainly = plain.fmri_loss(seen, windows, vae, schedule, **options)
        return steps_of(case, model, ours, plainly, trained, learning_rate=settings.learning_rate)

    return steps


def evaluations(made: NeuralFlixPipeline, clips: int, steps: int) -> Callable[[], None]:
    """The UNet's evaluations of sampling with guidance, and nothing else."""
    size = made.config.frame_size // made.vae_scale_factor
    where, unet, encoder = made.device, made.unet, made.fmri_encoder.config
    latents = torch.randn(2 * clips, unet.config.in_channels, made.config.frames, size, size, device=where)
    conditions = torch.randn(2 * clips, encoder.tokens, encoder.token_dim, device=where)

    @torch.no_grad()
    def evaluate() -> None:
        for step in range(steps):
            unet(latents, step, conditions)

    return evaluate


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a piece of work, which is done."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    fused = {  # of the CPU, which torch's counter does not know
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        work()
    return counter.get_total_flops()


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Most bytes in use while a piece of work is done; on the CPU, of tensors that it makes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as count:
        work()
    return count.peak


def fine_tuning_bytes(profile: Profile) -> int:
    """Peak of a plain step of stage two, counted as `nfx.memory.stage_two_bytes` counts ours, on fake tensors.

    ``profile.models.stable_diffusion`` is a folder with the configurations of the UNet and the autoencoder.
    """
    from diffusers import AutoencoderKL

    from nfx.memory import _encoder, _stable_diffusion, _video_unet, _voxels, peak_of_training

    data, batch = profile.data, profile.stage_two.batch_size
    voxels = _voxels(profile)
    unet, encoder = _video_unet(profile).requires_grad_(True), _encoder(profile, voxels, data.window)
    folder = _stable_diffusion(profile)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")).requires_grad_(False)

    def loss() -> Tensor:
        condition = plain.encode(encoder, encoder.tokenize(torch.randn(batch, data.window, voxels)))
        latents = plain.latents_of(vae, torch.randn(batch, data.frames, 3, data.frame_size, data.frame_size))
        t, alpha_bar = torch.zeros(batch), torch.rand(batch)
        return plain.denoising_loss(unet, "epsilon", latents, torch.randn_like(latents), t, alpha_bar, condition)

    model = nn.ModuleDict({"unet": unet, "fmri_encoder": encoder, "vae": vae})
    return peak_of_training(model, loss, 1, profile.training.precision)


def held_bytes(profile: Profile) -> int:
    """What a step of stage two cannot do without: all weights, and gradients and Adam's moments of what it trains."""
    from nfx.memory import _encoder, _video_unet, _voxels

    unet, encoder = _video_unet(profile), _encoder(profile, _voxels(profile), profile.data.window)
    parameters = [*unet.parameters(), *encoder.parameters()]
    return sum(4 * math.prod(p.shape) * (4 if p.requires_grad else 1) for p in parameters)


def counted_bytes(profile: Profile, **counts: Callable[[Profile], int]) -> dict[str, int]:
    """What each function counts on tensors without content."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(), FakeTensorMode():
        return {name: count(profile) for name, count in counts.items()}


def measured_peaks(case: Case, batch: int) -> tuple[int, int]:
    """Bytes at the peak of a second step of stage two, ours and plain; each has the device for itself."""
    peaks = []
    for which in ("ours", "plain"):
        step = getattr(fmri_steps(case, batch)(batch), which)
        step()
        peaks.append(peak_bytes(step, case.device))
        del step
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()
    return peaks[0], peaks[1]
