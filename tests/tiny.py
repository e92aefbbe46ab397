"""A whole project in miniature: a profile of seconds and untrained stand-ins of the shipped classes.

`make_root(folder)` writes both below a folder. With NFX_ROOT set to it, the notebooks and functions run there with the
same code as in the demo; the profile is the demo's, with smaller numbers.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from nfx.profile import PROFILES

# What differs from the demo. A strong signal and a lax level, so that voxels are found in short runs.
CHANGES = {
    "name": "tiny",
    "data": {
        "root": "data/tiny", "subjects": [1, 2], "frame_size": 32, "train_segments": 12, "test_segments": 2,
        "train_volumes": 24, "test_volumes": 10, "test_repeats": 2,
        "validation_segments": [11, 12], "alpha": 0.99, "keep": 1.0,
    },
    "simulation": {
        "signal_to_noise": [0.22, 0.22], "vertex_step": 16, "other_step": 160, "pretraining_subjects": 2,
        "pretraining_volumes": 20,
    },
    "models": {
        "clip": "models/clip", "blip": "models/blip", "stable_diffusion": "models/stable_diffusion",
        "image_classifier": "models/vit", "video_classifier": "models/videomae",
    },
    "encoder": {"patch_size": 8, "dim": 16, "depth": 3, "heads": 2},
    "pretraining": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "steps": 4, "batch_size": 8},
    "contrastive": {"steps": 4, "batch_size": 8},
    "stage_one": {"steps": 3, "batch_size": 2},
    "stage_two": {"steps": 3, "batch_size": 2},
    "sampling": {"steps": 2, "batch_size": 4, "validation_clips": 6, "test_clips": None},
    "evaluation": {"n_way": 5, "trials": 10},
    "training": {"checkpoint_every": 2},
    "averaged_subjects": [2],
}  # fmt: skip


def make_root(folder: str | Path, **changes: dict) -> Path:
    """Write `tiny.yaml` and `models/` to a folder and return the profile's path, for `load_profile` and papermill.

    Parameters
    ----------
    folder : path
        What NFX_ROOT must name when the profile is used.
    changes : dict
        Further changes of the profile, by section: ``data={"subjects": [1]}``.
    """
    folder = Path(folder)
    content = yaml.safe_load((PROFILES / "demo.yaml").read_text(encoding="utf-8"))
    for part in (CHANGES, changes):
        for key, value in part.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) and key != "rows" else value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    if not (folder / "models").is_dir():
        save_models(folder / "models")
    return path


def save_models(folder: Path) -> None:
    """Untrained stand-ins, each saved with its processor or tokenizer in the layout of its original."""
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import (
        BlipImageProcessorPil,
        CLIPImageProcessorPil,
        CLIPTextModel,
        VideoMAEImageProcessorPil,
        ViTImageProcessorPil,
    )

    from nfx.stand_ins import generation, language, recognition

    torch.manual_seed(0)
    size, edge, half = {"height": 64, "width": 64}, {"shortest_edge": 64}, [0.5] * 3
    tokenizer = language.clip_tokenizer(folder / "clip")
    shallow(language.clip(len(tokenizer))).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size=edge, crop_size=size, image_mean=half, image_std=half).save_pretrained(folder / "clip")
    shallow(language.blip(len(language.bert_tokenizer(folder / "blip")))).save_pretrained(folder / "blip")
    BlipImageProcessorPil(size=size, image_mean=half, image_std=half).save_pretrained(folder / "blip")
    shallow(recognition.vit()).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size=size).save_pretrained(folder / "vit")
    shallow(recognition.videomae()).save_pretrained(folder / "videomae")
    VideoMAEImageProcessorPil(size=edge, crop_size=size, image_mean=half, image_std=half).save_pretrained(
        folder / "videomae"
    )
    StableDiffusionPipeline(
        vae=generation.autoencoder(), text_encoder=CLIPTextModel.from_pretrained(folder / "clip"), tokenizer=tokenizer,
        unet=generation.unet(), scheduler=generation.scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "stable_diffusion")  # fmt: skip


def shallow(model):
    """A new model of the same class with one layer and patches of 16 pixels."""
    config = model.config
    for part in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
        for name, value in {"num_hidden_layers": 1, "patch_size": 16}.items():
            if hasattr(part, name):
                setattr(part, name, value)
    return type(model)(config)
