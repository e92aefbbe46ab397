"""One step of everything at the paper's sizes, with random weights; test_full_size.py runs it and looks at the result.

    NFX_ROOT=EMPTY_FOLDER python tests/full_size.py

Snapshots have the architectures of the models that the profile `paper` names, saved in float16 as ordinary snapshots
and read by the functions that the notebooks call. Batches are smaller than the paper's: 2 cores make one step of each.
What is no longer needed is deleted, to do with 15 GB of disk. Prints one JSON object.
"""

import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from nfx import paths
from nfx.files import save_arrays, write_manifest
from nfx.profile import load_profile

VOXELS, CLIPS = 6000, 4
SNAPSHOTS = paths.ROOT / "models"
seconds: dict[str, float] = {}


def timed(name, function, *arguments, **options):
    begin = time.time()
    result = function(*arguments, **options)
    seconds[name] = round(time.time() - begin, 1)
    return result


def clip_tokenizer(folder: Path) -> None:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    CLIPTokenizer(**files, model_max_length=77).save_pretrained(folder)


def stable_diffusion(folder: Path) -> None:
    """Stable Diffusion v1-5."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(**UNET)
    counts["unet"] = unet.num_parameters()
    unet.half().save_pretrained(folder / "unet")
    vae = AutoencoderKL(**VAE)
    counts["vae"] = vae.num_parameters()
    vae.half().save_pretrained(folder / "vae")
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    counts["text encoder"] = text.num_parameters()
    text.half().save_pretrained(folder / "text_encoder")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    clip_tokenizer(folder / "tokenizer")


UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
    "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
counts: dict[str, int] = {}


def clip(folder: Path) -> None:
    """CLIP ViT-L/14."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    vision = LARGE | {"image_size": 224, "patch_size": 14, "projection_dim": 768}
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=768))
    counts["clip"] = model.num_parameters()
    model.half().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    clip_tokenizer(folder / "tokenizer")
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)


def blip(folder: Path) -> None:
    """BLIP, large."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

    text = {"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "bos_token_id": 5, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=LARGE | {"image_size": 384, "patch_size": 16})
    model = BlipForConditionalGeneration(config)
    counts["blip"] = model.num_parameters()
    model.half().save_pretrained(folder)
    BlipImageProcessorPil().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a"]) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt"), bos_token="[DEC]").save_pretrained(folder)


def classifiers(folder: Path) -> None:
    """ViT-B/16 and VideoMAE-B."""
    from transformers import (
        VideoMAEConfig,
        VideoMAEForVideoClassification,
        VideoMAEImageProcessorPil,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    vit = ViTForImageClassification(ViTConfig(num_labels=1000))
    videomae = VideoMAEForVideoClassification(VideoMAEConfig(num_labels=400))
    counts["vit"], counts["videomae"] = vit.num_parameters(), videomae.num_parameters()
    vit.half().save_pretrained(folder / "vit")
    ViTImageProcessorPil().save_pretrained(folder / "vit")
    videomae.half().save_pretrained(folder / "videomae")
    VideoMAEImageProcessorPil().save_pretrained(folder / "videomae")


def profile_of_one_step():
    paper = load_profile("paper")
    one = {"steps": 1, "batch_size": 1}
    models = {name: str(SNAPSHOTS / name) for name in ("clip", "blip", "stable_diffusion")}
    models |= {"image_classifier": str(SNAPSHOTS / "vit"), "video_classifier": str(SNAPSHOTS / "videomae")}
    data = {"subjects": (1,), "train_segments": 2, "validation_segments": (2,)}
    return paper.model_copy(update={
        "data": paper.data.model_copy(update=data), "models": paper.models.model_copy(update=models),
        "contrastive": paper.contrastive.model_copy(update=one | {"batch_size": 2}),
        "stage_one": paper.stage_one.model_copy(update=one), "stage_two": paper.stage_two.model_copy(update=one),
        "training": paper.training.model_copy(update={"precision": "no"}),
    })  # fmt: skip


def targets_of_one_frame(profile) -> dict[str, list[int]]:
    """Shapes of what each frozen model makes of a frame or a clip of noise."""
    from nfx.data import targets
    from nfx.evaluation.classifiers import image_logits, video_logits

    clip = np.random.default_rng(0).integers(0, 256, (1, 6, 256, 256, 3)).astype(np.uint8)
    models = profile.models
    made = {
        "captions": np.array(timed("BLIP", targets.caption_frames, clip[0, :1], models.blip)),
        "text embeddings": timed("CLIP text", targets.text_embeddings, ["a", ""], models.clip),
        "image embeddings": timed("CLIP image", targets.image_embeddings, clip[0, :2], models.clip),
        "text states": timed("text states", targets.text_states, ["a", ""], models.stable_diffusion),
        "latents": timed("autoencoder", targets.encode_latents, clip[0, :2], models.stable_diffusion),
        "image logits": timed("ViT", image_logits, clip[0, :2], models.image_classifier),
        "video logits": timed("VideoMAE", video_logits, clip, models.video_classifier),
    }
    assert all(np.isfinite(array).all() for name, array in made.items() if name != "captions")
    return {name: list(array.shape) for name, array in made.items()}


def prepared(profile) -> None:
    """What notebook 01 would have prepared, of noise."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.normal(size=shape).astype(np.float32)

    segment = np.repeat([1, 2], CLIPS // 2)
    save_arrays(paths.work(profile, "stimuli"), {"train_segment": segment}, {})
    fmri = {"train_fmri": noise(CLIPS, VOXELS), "test_fmri": noise(2, VOXELS), "train_segment": segment,
            "test_segment": np.ones(2, int), "vertex": np.arange(VOXELS)}  # fmt: skip
    save_arrays(paths.work(profile, "subject1"), fmri, {})
    targets = {"train_latents": noise(CLIPS, 6, 4, 32, 32), "train_caption": np.zeros((CLIPS, 6), int),
               "caption_tokens": noise(1, 77, 768), "train_text_embeddings": noise(CLIPS, 6, 768),
               "train_image_embeddings": noise(CLIPS, 6, 768)}  # fmt: skip
    save_arrays(paths.work(profile, "targets"), targets, {})
    (paths.work(profile, "targets") / "captions.json").write_text('[""]')


def pretraining_step(profile) -> None:
    """One step of DC-MAE on V1-V4, and its encoder saved where phase 1 looks for it."""
    from nfx.encoder import FMRIEncoder, MaskedAutoencoder, dc_mae_loss
    from nfx.training import train

    settings, voxels = profile.pretraining, 4183
    encoder = FMRIEncoder(voxels=voxels, window=1, **profile.encoder.model_dump())
    counts["encoder"] = encoder.num_parameters()
    model = MaskedAutoencoder(encoder, settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)

    def loss(model, step, generator, share):
        bold = torch.randn(2, voxels, generator=generator)
        values = dc_mae_loss(
            model, bold, settings.mask_ratio, settings.contrast_weight, settings.temperature, generator
        )
        return values | {"loss": values["loss"] + 0 * sum(p.sum() for p in model.encoder.head.parameters())}

    folder = paths.work(profile, "pretraining")
    train(model, loss, steps=1, learning_rate=settings.learning_rate, seed=0, folder=folder)
    shutil.rmtree(folder / "checkpoint")
    encoder.save_pretrained(folder / "encoder")
    write_manifest(folder, {})


def main() -> None:
    from nfx.diffusion import NeuralFlixPipeline, decode, stage_two
    from nfx.encoder import train_encoder

    torch.manual_seed(0)
    for make in (stable_diffusion, clip, blip):
        timed(f"make {make.__name__}", make, SNAPSHOTS / make.__name__)
    timed("make classifiers", classifiers, SNAPSHOTS)
    profile = profile_of_one_step()
    shapes = targets_of_one_frame(profile)
    for name in ("blip", "vit", "videomae"):
        shutil.rmtree(SNAPSHOTS / name)
    prepared(profile)
    timed("pre-training step", pretraining_step, profile)
    timed("encoder step", train_encoder, profile, 1, 10)
    folder = timed("both fine-tuning steps", stage_two, profile, 1, 10)
    shutil.rmtree(paths.work(profile, "stage1"))
    pipeline = NeuralFlixPipeline.from_pretrained(folder / "pipeline")
    counts["video unet"] = sum(p.numel() for p in pipeline.unet.parameters())
    window = np.random.default_rng(1).normal(size=(1, 2, VOXELS)).astype(np.float32)
    clips = timed("sampling step", decode, pipeline, window, clip_ids=[0], seed=0, steps=1, batch_size=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"shapes": shapes, "clips": clips.shape, "range": [int(clips.min()), int(clips.max())],
                      "parameters": counts, "seconds": seconds, "peak_bytes": peak}))  # fmt: skip


if __name__ == "__main__":
    main()
