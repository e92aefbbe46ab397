"""Section 3.2: dependent noise, the video UNet, its two-stage fine-tuning, and the fMRI-to-video pipeline."""

from diffusers import SchedulerMixin

from nfx.diffusion import solvers
from nfx.diffusion.fine_tuning import decode, stage_one, stage_two, trainable_parameters
from nfx.diffusion.inflation import VideoUNet, inflate
from nfx.diffusion.long_video import decode_long, seam_ratio
from nfx.diffusion.noise import add_noise, denoising_loss, dependent_noise, training_target
from nfx.diffusion.pipeline import NeuralFlixPipeline, NeuralFlixPipelineOutput
from nfx.diffusion.solvers import SOLVERS, make_solver, sampled_by

# diffusers reads a pipeline's sampler only if its base class has a name in the sampler's own module. It is given one
# here because a line there would change the digest that finished clips and studies carry.
solvers.SchedulerMixin = SchedulerMixin  # type: ignore[attr-defined]

__all__ = [
    "SOLVERS",
    "NeuralFlixPipeline",
    "NeuralFlixPipelineOutput",
    "VideoUNet",
    "add_noise",
    "decode",
    "decode_long",
    "denoising_loss",
    "dependent_noise",
    "inflate",
    "make_solver",
    "sampled_by",
    "seam_ratio",
    "stage_one",
    "stage_two",
    "trainable_parameters",
    "training_target",
]
