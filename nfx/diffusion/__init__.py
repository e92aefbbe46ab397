"""Section 3.2: dependent noise, the video UNet, its two-stage fine-tuning, and the fMRI-to-video pipeline."""

from nfx.diffusion.fine_tuning import decode, stage_one, stage_two, trainable_parameters
from nfx.diffusion.inflation import VideoUNet, inflate
from nfx.diffusion.long_video import decode_long, seam_ratio
from nfx.diffusion.noise import add_noise, denoising_loss, dependent_noise, training_target
from nfx.diffusion.pipeline import NeuralFlixPipeline, NeuralFlixPipelineOutput
from nfx.diffusion.solvers import SOLVERS, make_solver, sampled_by

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
