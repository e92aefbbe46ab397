"""Train the stand-ins from nothing and save them as ordinary snapshots: `./run_all.sh stand-ins`.

Each model is trained with the loop of `nfx.training` (checkpoints, resumes), converted to float16, and saved with its
processor or tokenizer in the layout of its Hugging Face original. Scores are measured on held-out renders by
`nfx.stand_ins.scores`, which also writes the model cards.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nfx import paths, training
from nfx.data.simulator.scenes import caption
from nfx.files import read_json, write_json
from nfx.stand_ins import SNAPSHOTS, generation, language, recognition, renders
from nfx.weights import SHIPPED

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SEED = 7
# Rounds of (steps, peak learning rate), each a cosine with its own warm-up: a later round goes on from the weights of
# those before. The first round of the UNet that is shipped was run before `unet_loss` repeated sentences' ends.
ROUNDS = {
    "vae": [(3600, 2e-3)],
    "decoder": [(2400, 1e-3)],
    "clip": [(2400, 1e-3)],
    "unet": [(5000, 1e-3), (5000, 1e-3)],
    "vit": [(2000, 1e-3)],
    "videomae": [(1200, 1e-3), (1800, 1e-3)],
    "blip": [(2500, 1e-3)],
}
PRECISION = {"vae": "bf16", "decoder": "bf16"}  # halves the autoencoder's time on a CPU; slows the others
POOL = 30_000  # renders whose latents the UNet is trained on


def main(names: list[str] | None = None) -> None:
    """Train the named stand-ins, by default all that are shipped, in an order in which each finds what it needs."""
    (SNAPSHOTS / SHIPPED).unlink(missing_ok=True)  # of those before; nfx.stand_ins.scores writes it anew
    for name in names or ["vae", "clip", "decoder", "unet", "vit", "videomae", "blip"]:
        _TRAIN[name]()


def _fit(name: str, model: nn.Module, loss: Callable, seed: int = SEED) -> nn.Module:
    for number, (steps, learning_rate) in enumerate(ROUNDS[name]):
        torch.manual_seed(seed + 100 * number)
        training.train(
            model, lambda model, step, generator, share: loss(model, step, generator),  # one process, whole batches
            steps=steps, learning_rate=learning_rate, seed=seed + 100 * number,
            folder=work(name) / f"round{number + 1}", warmup=100, weight_decay=0.01,
            precision=PRECISION.get(name, "no"), checkpoint_every=500, description=name,
        )  # fmt: skip
    return model.eval()


def work(name: str) -> Path:
    """Where a stand-in's checkpoints and curve live while it is trained."""
    return paths.ROOT / "work" / "stand_ins" / name


def save(model: nn.Module, folder: Path) -> None:
    """Save in float16, replacing what was there."""
    staged = folder.with_name(f".{folder.name}.new")
    model.half().save_pretrained(staged)
    model.float()
    config = read_json(staged / "config.json")
    config.pop("_name_or_path", None)  # where a model that is trained on was read from: a folder of this machine
    write_json(staged / "config.json", config)
    folder.mkdir(parents=True, exist_ok=True)
    for file in staged.iterdir():
        file.replace(folder / file.name)
    shutil.rmtree(staged)


def vit() -> None:
    from transformers import ViTImageProcessorPil

    torch.manual_seed(SEED)
    save(_fit("vit", recognition.vit(), recognition.vit_loss), SNAPSHOTS / "vit")
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(SNAPSHOTS / "vit")


def videomae() -> None:
    from transformers import VideoMAEImageProcessorPil

    torch.manual_seed(SEED)
    save(_fit("videomae", recognition.videomae(), recognition.videomae_loss), SNAPSHOTS / "videomae")
    VideoMAEImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(SNAPSHOTS / "videomae")


def clip() -> None:
    from transformers import CLIPImageProcessorPil

    tokenizer = language.clip_tokenizer(SNAPSHOTS / "clip")
    torch.manual_seed(SEED)
    model = language.clip(len(tokenizer))
    _fit("clip", model, lambda m, step, g: language.clip_loss(m, tokenizer, step, g))
    save(model, SNAPSHOTS / "clip")
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(SNAPSHOTS / "clip")


def blip() -> None:
    """Needs the stand-in `vit`: BLIP's image encoder starts as a ViT (Li et al. 2022, Section 4.1)."""
    from transformers import BlipImageProcessorPil, ViTForImageClassification

    tokenizer = language.bert_tokenizer(SNAPSHOTS / "blip")
    torch.manual_seed(SEED)
    model = language.blip(len(tokenizer))
    trained = ViTForImageClassification.from_pretrained(SNAPSHOTS / "vit", dtype=torch.float32)
    language.start_as_vit(model.vision_model, trained.vit)
    _fit("blip", model, lambda m, step, g: language.blip_loss(m, tokenizer, step, g))
    save(model, SNAPSHOTS / "blip")
    BlipImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        SNAPSHOTS / "blip"
    )


def vae() -> None:
    torch.manual_seed(SEED)
    model = _fit("vae", generation.autoencoder(), generation.autoencoder_loss)
    with torch.no_grad():
        latents = torch.cat([model.encode(_pixels(64, i)).latent_dist.mean for i in range(8)])
    model.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    save(model, SNAPSHOTS / "stable_diffusion" / "vae")


def decoder() -> None:
    """Train the decoder of the stand-in `vae` on, for objects that are recognised; its latents stay as they are.

    Needs the stand-in `clip`, whose image tower is the perceptual part of the loss; the judge, `vit`, has no part.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModel

    folder = SNAPSHOTS / "stable_diffusion" / "vae"
    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    vision = CLIPVisionModel.from_pretrained(SNAPSHOTS / "clip", dtype=torch.float32).requires_grad_(False)
    _fit("decoder", model, lambda m, step, g: generation.decoder_loss(m, vision, step, g), seed=SEED + 1)
    save(model, folder)


def unet() -> None:
    """Needs the stand-ins `vae` and `clip`, whose text encoder becomes Stable Diffusion's."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    target = SNAPSHOTS / "stable_diffusion"
    text_encoder = CLIPTextModel.from_pretrained(SNAPSHOTS / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(SNAPSHOTS / "clip")
    latents, states, ends = _pool(
        AutoencoderKL.from_pretrained(target / "vae", torch_dtype=torch.float32), text_encoder, tokenizer
    )
    scheduler = generation.scheduler()
    alpha_bar = scheduler.alphas_cumprod
    torch.manual_seed(SEED)
    model = generation.unet()
    _fit("unet", model, lambda m, step, g: generation.unet_loss(m, latents, states, ends, alpha_bar, g))
    save(model, target / "unet")
    save(text_encoder, target / "text_encoder")
    tokenizer.save_pretrained(target / "tokenizer")
    scheduler.save_pretrained(target / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False,
        "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    write_json(target / "model_index.json", index)


def _pixels(count: int, seed: int) -> torch.Tensor:
    return renders.frames(count, renders.HELD_OUT // 2 + seed).pixels[:, 0]


@torch.no_grad()
def _pool(
    vae: nn.Module, text_encoder: nn.Module, tokenizer: CLIPTokenizer
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of POOL renders (POOL, 8, 8, 8); states of their captions (POOL + 1, tokens, dim) and of the captions'
    ends (POOL + 1, dim), those of the empty caption last."""
    latents, sentences = [], []
    for i in range(POOL // 100):
        drawn = renders.frames(100, renders.HELD_OUT // 2 + 1000 + i)
        latents.append(vae.encode(drawn.pixels[:, 0]).latent_dist.mean * vae.config.scaling_factor)
        sentences += [
            language.short_caption(s) if np.random.default_rng(i).random() < 0.1 else caption(s) for s in drawn.scenes
        ]
    unique, index = np.unique([*sentences, ""], return_inverse=True)
    tokens = tokenizer(list(unique), padding="max_length", max_length=language.TOKENS, return_tensors="pt")
    states = text_encoder(tokens.input_ids).last_hidden_state
    ends = states[torch.arange(len(unique)), (tokens.input_ids == tokenizer.eos_token_id).int().argmax(-1)]
    return torch.cat(latents), states[torch.from_numpy(index)], ends[torch.from_numpy(index)]


_TRAIN = {"vae": vae, "decoder": decoder, "clip": clip, "unet": unet, "vit": vit, "videomae": videomae, "blip": blip}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*_TRAIN, []], help="which stand-ins; all by default")
    main(parser.parse_args().names)
