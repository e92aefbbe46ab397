"""Ten-line models for the tests of `nfx.diffusion`, untrained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from nfx.diffusion import NeuralFlixPipeline, VideoUNet, inflate

VOXELS, WINDOW, TOKENS, TOKEN_DIM = 20, 2, 5, 12


def image_unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    config = dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=TOKEN_DIM, norm_num_groups=4,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return UNet2DConditionModel(**(config | changes)).eval()


def video_unet(seed: int = 0) -> VideoUNet:
    """An inflated UNet whose temporal attention has, as after training, an output."""
    unet = inflate(image_unet(seed))
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return unet


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        sample_size=16, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    ).eval()  # fmt: skip


def fmri_encoder():
    from nfx.encoder.model import FMRIEncoder

    torch.manual_seed(2)
    return FMRIEncoder(
        VOXELS, window=WINDOW, patch_size=4, dim=8, depth=1, heads=2, tokens=TOKENS, token_dim=TOKEN_DIM
    ).eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def pipeline(beta: float = 0.5, frames: int = 6) -> NeuralFlixPipeline:
    made = NeuralFlixPipeline(autoencoder(), video_unet(), fmri_encoder(), scheduler(), beta=beta, frames=frames)
    made.set_progress_bar_config(disable=True)
    return made


def stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion snapshot in diffusers' layout."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    image_unet().save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    vocabulary = {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    CLIPTokenizer(**files, model_max_length=TOKENS).save_pretrained(folder / "tokenizer")
    torch.manual_seed(3)
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=TOKEN_DIM, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder
