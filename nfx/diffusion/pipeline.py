"""The decoder as a diffusers pipeline: fMRI windows in, videos out (Section 3.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from nfx.diffusion.inflation import VideoUNet
from nfx.diffusion.noise import Generators, dependent_noise

OUTPUT_TYPES = ("np", "pil", "pt", "latent")


@dataclass
class NeuralFlixPipelineOutput(BaseOutput):
    """Decoded videos.

    ``frames`` follows the ``output_type``: "np", float32 (batch, frames, height, width, 3) in [0, 1]; "pt", a tensor
    (batch, frames, 3, height, width) in [0, 1]; "pil", a list of a list of images per clip; "latent", a tensor
    (batch, channels, frames, height / 8, width / 8) before the autoencoder (8 in Stable Diffusion).
    """

    frames: np.ndarray | Tensor | list[list[Any]]


class NeuralFlixPipeline(DiffusionPipeline):
    """Generate videos from fMRI windows with a video UNet that the fMRI encoder conditions.

    Parameters
    ----------
    vae
        Stable Diffusion's autoencoder.
    unet
        The fine-tuned video UNet.
    fmri_encoder
        An `nfx.encoder.FMRIEncoder`: (batch, window, voxels) to (batch, tokens, token dim).
    scheduler
        The DDIM sampler.
    beta
        Shared variance of the noise from which sampling starts; that with which the UNet was trained (Eq. 7).
    frames
        Frames of a clip.
    frame_size
        Height and width of a frame in pixels; default: what the UNet's configuration says.
    """

    model_cpu_offload_seq = "fmri_encoder->unet->vae"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: VideoUNet,
        fmri_encoder: ModelMixin,
        scheduler: DDIMScheduler,
        beta: float = 0.0,
        frames: int = 6,
        frame_size: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, fmri_encoder=fmri_encoder, scheduler=scheduler)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        frame_size = frame_size or unet.config.sample_size * self.vae_scale_factor
        if frame_size % self.vae_scale_factor:
            raise ValueError(f"frame_size is {frame_size}, expected a multiple of {self.vae_scale_factor}.")
        self.register_to_config(beta=float(beta), frames=frames, frame_size=frame_size)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> NeuralFlixPipeline:
        """Load a folder that ``save_pretrained`` wrote.

        Raises
        ------
        FileNotFoundError
            If the folder holds no pipeline.
        ValueError
            If a model's weights are not exactly those that its class has: diffusers would warn and go on with random
            ones.
        """
        import nfx.encoder.model  # noqa: F401  diffusers takes a component's class only from a module that is imported

        folder = Path(pretrained_model_name_or_path)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no decoder (no model_index.json). Give the folder 'pipeline' that notebook "
                "03_diffusion_fine_tuning writes, or run that notebook."
            )
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name, component in pipeline.components.items():
            if isinstance(component, torch.nn.Module) and name not in kwargs:
                check_weights(folder / name, component)
        return pipeline

    @torch.no_grad()
    def encode_fmri(self, fmri: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Condition of each window and the null condition, the encoder's output for zeros.

        Windows are z-scored per voxel, so zero is the mean recording. (batch, window, voxels) to (batch, tokens, token
        dim) and (1, tokens, token dim).

        Raises
        ------
        ValueError
            If the windows have another number of axes, or hold NaN or infinite values.
        """
        fmri = torch.as_tensor(np.asarray(fmri) if not isinstance(fmri, Tensor) else fmri)
        if fmri.ndim != 3 or not len(fmri):
            raise ValueError(f"fmri has shape {tuple(fmri.shape)}, expected (batch, window, voxels).")
        if not torch.isfinite(fmri).all():
            raise ValueError("fmri holds NaN or infinite values; clean the recordings with nfx.data.clean_run first.")
        fmri = fmri.to(self._execution_device, self.fmri_encoder.dtype)
        return self.fmri_encoder(fmri), self.fmri_encoder(torch.zeros_like(fmri[:1]))

    @torch.no_grad()
    def __call__(
        self,
        fmri: Tensor | np.ndarray | None = None,
        num_inference_steps: int = 200,
        guidance_scale: float = 12.5,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        condition: Tensor | None = None,
        null_condition: Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> NeuralFlixPipelineOutput | tuple[Any]:
        """Decode fMRI windows.

        Parameters
        ----------
        fmri
            Windows, z-scored, (batch, window, voxels).
        num_inference_steps
            DDIM steps; 200 after Chen et al., as the paper does not say.
        guidance_scale
            Weight of the condition against the null condition; 12.5 after Chen et al. 1 leaves the null condition out.
        eta
            0 is deterministic from the first noise on. Above it, DDIM adds noise at each step, dependent as at the
            start.
        generator
            One, or one per clip: then a clip depends neither on its place in the batch nor on the batch's size.
        latents
            The noise to start from, (batch, channels, frames, height, width); default: dependent noise.
        output_type
            "np", "pil", "pt" or "latent"; see `NeuralFlixPipelineOutput`.
        condition, null_condition
            In place of ``fmri``: ready-made tokens (batch, tokens, token dim), such as a caption's, and what stands for
            none, (tokens, token dim), (1, tokens, token dim) or one per clip.
        callback_on_step_end, callback_on_step_end_tensor_inputs
            As in diffusers: ``callback(pipeline, step, timestep, {"latents": ...})`` after each step; a "latents" that
            it returns replaces them.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"Callbacks can be given {self._callback_tensor_inputs}, not {sorted(unknown)}.")
        guided = guidance_scale != 1
        device, dtype = self._execution_device, self.unet.dtype
        condition, null_condition = self._conditions(fmri, condition, null_condition, guided)
        conditions = torch.cat([null_condition, condition]) if guided else condition
        conditions = conditions.to(device, dtype)

        size = self.config.frame_size // self.vae_scale_factor
        shape = (len(condition), self.unet.config.in_channels, self.config.frames, size, size)
        if latents is None:
            latents = dependent_noise(shape, self.config.beta, generator, device, dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}.")
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                noisy = self.scheduler.scale_model_input(latents, timestep)
                # Both branches of the guidance are one batch.
                predicted = self.unet(torch.cat([noisy, noisy]) if guided else noisy, timestep, conditions).sample
                if guided:
                    without, given = predicted.chunk(2)
                    predicted = without + guidance_scale * (given - without)
                added = dependent_noise(shape, self.config.beta, generator, device, dtype) if eta > 0 else None
                latents = self.scheduler.step(predicted, timestep, latents, eta=eta, variance_noise=added).prev_sample
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(
                        self, step, timestep, {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                    )
                    latents = (returned or {}).get("latents", latents)
                bar.update()

        frames = latents
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        return NeuralFlixPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (batch, channels, frames, h, w) to pixels (batch, 3, frames, height, width) around [-1, 1].

        One clip at a time, which bounds the memory and makes a clip's pixels independent of its batch.
        """
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return torch.stack([self.vae.decode(clip.transpose(0, 1)).sample.transpose(0, 1) for clip in latents]).float()

    def _conditions(
        self, fmri: Tensor | np.ndarray | None, condition: Tensor | None, null_condition: Tensor | None, guided: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The condition and, if guided, the null condition, each (batch, tokens, token dim)."""
        if (fmri is None) == (condition is None):
            raise ValueError("Give either fmri, (batch, window, voxels), or condition, (batch, tokens, token dim).")
        if fmri is not None:
            condition, null_condition = self.encode_fmri(fmri)
        assert condition is not None  # one of the two is there, as checked above
        if condition.ndim != 3:
            raise ValueError(f"condition has shape {tuple(condition.shape)}, expected (batch, tokens, token dim).")
        if not guided:
            return condition, None
        if null_condition is None:
            raise ValueError("Guidance needs a null_condition beside the condition; or set guidance_scale=1.")
        return condition, null_condition.to(condition).expand_as(condition)


def check_weights(folder: Path, model: torch.nn.Module) -> None:
    """ValueError unless the safetensors of a snapshot hold exactly the weights of the model that was loaded from it."""
    from safetensors import safe_open

    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= set(tensors.keys())
    expected = set(model.state_dict())
    if stored != expected:
        raise ValueError(
            f"{folder} does not fit {type(model).__name__}: {len(expected - stored)} weights are missing and "
            f"{len(stored - expected)} are unexpected, e.g. {min(stored ^ expected)}. The snapshot is damaged or of "
            "another version; make it again with the notebook that wrote it."
        )
