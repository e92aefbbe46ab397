"""Trains one small model with each kind of loss; test_training.py runs it in one and in two processes.

torchrun --standalone --nproc_per_node 2 tests/two_processes.py FOLDER
"""

import sys
from pathlib import Path
from unittest import mock

import torch
import yaml
from safetensors.torch import save_file
from tiny_diffusion import TOKEN_DIM, TOKENS, scheduler, video_unet
from torch import nn

from nfx.diffusion.fine_tuning import denoising_step, trainable_parameters
from nfx.encoder import FMRIEncoder, MaskedAutoencoder, contrastive_loss, dc_mae_loss
from nfx.encoder.contrastive import ContrastiveModel
from nfx.profile import PROFILES, Row
from nfx.training import first_process, train

BATCH = 7  # not even between two processes
STEPS = 6
ENCODER = {"patch_size": 4, "dim": 16, "depth": 1, "heads": 2}


def contrastive():
    encoder = FMRIEncoder(voxels=22, window=2, tokens=3, token_dim=8, **ENCODER)
    model = ContrastiveModel(encoder, 0.07, torch.randn(5, 8))
    row = Row(**yaml.safe_load((PROFILES / "demo.yaml").read_text())["rows"][1])

    def loss(model, step, generator, share):
        bold, text, image = (torch.randn(BATCH, *shape, generator=generator) for shape in ((2, 22), (5,), (5,)))
        arguments = (model.log_temperature, row, model.projection, generator, share)
        return contrastive_loss(model.encoder, bold, text, image, *arguments)

    return model, loss


def pretraining():
    model = MaskedAutoencoder(FMRIEncoder(voxels=22, window=1, tokens=3, token_dim=8, **ENCODER), 8, 1, 2)
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(not name.startswith("head.") and ".temporal_" not in name)

    def loss(model, step, generator, share):
        return dc_mae_loss(model, torch.randn(BATCH, 22, generator=generator), 0.5, 0.5, 0.1, generator, share)

    return model, loss


def denoising():
    model = video_unet()
    trainable_parameters(model)

    def loss(model, step, generator, share):
        latents = torch.randn(BATCH, 4, 3, 8, 8, generator=generator)
        condition = torch.randn(BATCH, TOKENS, TOKEN_DIM, generator=generator)[share.rows(BATCH)]
        return {"loss": denoising_step(model, scheduler(), latents, condition, 0.5, generator, share)}

    return model, loss


def run(make, folder: Path, accumulate: int = 1) -> nn.Module:
    """Train with plain gradient descent, unclipped: Adam would divide a gradient of the wrong size by that size."""
    torch.manual_seed(0)
    model, loss = make()
    name = make.__name__
    with mock.patch("torch.optim.AdamW", lambda groups, lr, betas: torch.optim.SGD(groups, lr)):
        settings = {"learning_rate": 0.05, "clip": 1e9, "seed": 3, "accumulate": accumulate}
        train(model, loss, steps=STEPS, folder=folder / name, **settings)
    if first_process():
        save_file(dict(model.named_parameters()), folder / f"{name}.safetensors")
    return model


if __name__ == "__main__":
    for make, accumulate in ((contrastive, 1), (pretraining, 1), (denoising, 3)):
        run(make, Path(sys.argv[1]), accumulate)
