"""Score the stand-ins on held-out renders, write their model cards, and check what is shipped.

`python -m nfx.stand_ins.scores` measures everything again from the shipped snapshots, takes a few minutes, and writes
`scores.json` and the cards; `check_snapshots` compares the shipped files with the digests in `sha256.json`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nfx import files
from nfx.data.simulator.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAME_CLASSES,
    MOTIONS,
    OBJECTS,
    Scene,
    caption,
    frame_class,
    video_class,
)  # fmt: skip
from nfx.stand_ins import SNAPSHOTS, renders

COUNT = 1024  # held-out renders of each test
TARGETS = {
    "vae recognised": 0.90, "vit accuracy": 0.95, "videomae accuracy": 0.90, "clip zero-shot": 0.90,
    "blip all four right": 0.90, "text-to-image recognised": 0.80,
}  # fmt: skip


def held_out_frames(count: int = COUNT) -> tuple[np.ndarray, list[Scene]]:
    """uint8 (count, 64, 64, 3) and their scenes, from a seed that no training draws."""
    drawn = renders.frames(count, renders.HELD_OUT)
    return to_uint8(drawn.pixels[:, 0]), drawn.scenes


def held_out_clips(count: int = COUNT) -> tuple[np.ndarray, list[Scene]]:
    """uint8 (count, 6, 64, 64, 3) and their scenes."""
    drawn = renders.clips(count, renders.HELD_OUT + 1)
    return to_uint8(drawn.pixels), drawn.scenes


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """float (..., 3, height, width) in [-1, 1] to uint8 (..., height, width, 3)."""
    return ((pixels.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def score_recognition() -> dict[str, float]:
    """Accuracy of the two classifiers, joint and by attribute."""
    from nfx.evaluation.classifiers import image_logits, video_logits

    frames, scenes = held_out_frames()
    chosen = image_logits(frames, str(SNAPSHOTS / "vit")).argmax(-1)
    scores = {"vit accuracy": _share(chosen, [frame_class(s) for s in scenes])}
    scores |= _by_attribute(
        "vit", chosen, renders.FRAME_SHAPE, renders.frame_attributes(scenes), "object colour background"
    )
    clips, scenes = held_out_clips()
    chosen = video_logits(clips, str(SNAPSHOTS / "videomae")).argmax(-1)
    scores |= {"videomae accuracy": _share(chosen, [video_class(s) for s in scenes])}
    shape, truth = renders.VIDEO_SHAPE, renders.video_attributes(scenes)
    return scores | _by_attribute("videomae", chosen, shape, truth, "object motion background")


def score_language() -> dict[str, float]:
    """CLIP zero-shot over the 128 frame classes; BLIP captions with every attribute right, and by attribute."""
    from nfx.data.targets import caption_frames, image_embeddings, text_embeddings

    frames, scenes = held_out_frames()
    images = image_embeddings(frames, str(SNAPSHOTS / "clip"))
    texts = text_embeddings([f"a {name}" for name in FRAME_CLASSES], str(SNAPSHOTS / "clip"))
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    scores = {"clip zero-shot": _share((images @ texts.T).argmax(-1), [frame_class(s) for s in scenes])}
    sentences = caption_frames(frames, str(SNAPSHOTS / "blip"))
    scores["blip all four right"] = _share(np.array(sentences), [caption(s) for s in scenes])
    for name, words in {"object": OBJECTS, "colour": COLOURS, "background": BACKGROUNDS, "motion": MOTIONS}.items():
        named = [words[getattr(s, name)] in c.split() for s, c in zip(scenes, sentences, strict=True)]
        scores[f"blip {name}"] = float(np.mean(named))
    return scores


def score_generation(guidance: float = 3.0, steps: int = 20) -> dict[str, float]:
    """Reconstructions and text-to-image samples that the ViT stand-in recognises; PSNR of the reconstructions, dB."""
    from diffusers import StableDiffusionPipeline

    from nfx.data.targets import decode_latents, encode_latents
    from nfx.evaluation.classifiers import image_logits

    folder = str(SNAPSHOTS / "stable_diffusion")
    frames, scenes = held_out_frames()
    decoded = decode_latents(encode_latents(frames, folder), folder)
    error = ((decoded.astype(np.float64) - frames) ** 2).mean(axis=(1, 2, 3))
    truth = [frame_class(s) for s in scenes]
    scores = {
        "vae recognised": _share(image_logits(decoded, str(SNAPSHOTS / "vit")).argmax(-1), truth),
        "vae psnr": float((20 * np.log10(255 / np.sqrt(error))).mean()),
    }
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, 2 * len(FRAME_CLASSES), 64):
        names = [f"a {FRAME_CLASSES[i % len(FRAME_CLASSES)]}" for i in range(start, start + 64)]
        generators = [torch.Generator().manual_seed(start + i) for i in range(64)]
        images.append(
            pipeline(
                names, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
            ).images
        )
    drawn = (np.concatenate(images) * 255).round().astype(np.uint8)
    chosen = image_logits(drawn, str(SNAPSHOTS / "vit")).argmax(-1)
    wanted = np.arange(len(drawn)) % len(FRAME_CLASSES)
    scores["text-to-image recognised"] = _share(chosen, wanted)
    attributes = torch.from_numpy(np.stack(np.unravel_index(wanted, renders.FRAME_SHAPE), -1))
    return scores | _by_attribute("text-to-image", chosen, renders.FRAME_SHAPE, attributes, "object colour background")


def check_snapshots(folder: Path = SNAPSHOTS) -> None:
    """Compare the shipped snapshots with `sha256.json`; ValueError names the first file that differs or is missing."""
    for name, expected in files.read_json(folder / "sha256.json").items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; restore it with git, or train again: ./run_all.sh stand-ins")
        if files.sha256(path) != expected:
            raise ValueError(
                f"{path} is not the shipped file (its sha256 differs); restore it, or run ./run_all.sh stand-ins"
            )


def write_digests(folder: Path = SNAPSHOTS) -> None:
    """Record the sha256 of every shipped file."""
    shipped = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name not in ("sha256.json", ".DS_Store")]
    files.write_json(folder / "sha256.json", {f.relative_to(folder).as_posix(): files.sha256(f) for f in shipped})


def _share(chosen: np.ndarray, truth: list | np.ndarray) -> float:
    return float(np.mean(np.asarray(chosen) == np.asarray(truth)))


def _by_attribute(prefix: str, chosen: np.ndarray, shape: tuple, truth: torch.Tensor, names: str) -> dict[str, float]:
    parts = np.stack(np.unravel_index(chosen, shape), -1) == truth.numpy()
    return {f"{prefix} {name}": float(parts[:, i].mean()) for i, name in enumerate(names.split())}


CARDS = {
    "vit": ("ViTForImageClassification", "ViT-B/16 on ImageNet", "vit", ["vit"]),
    "videomae": ("VideoMAEForVideoClassification", "VideoMAE on Kinetics-400", "videomae", ["videomae"]),
    "clip": ("CLIPModel", "CLIP ViT-L/14", "clip", ["clip"]),
    "blip": ("BlipForConditionalGeneration", "BLIP", "blip", ["blip"]),
    "stable_diffusion": (
        "StableDiffusionPipeline", "Stable Diffusion v1-5", "vae, decoder, unet", ["vae", "text-to-image"]
    ),
}  # fmt: skip


REMARKS = {
    "stable_diffusion": "The first round of the UNet that is shipped was run before its loss repeated the ends of "
    "sentences (`nfx.stand_ins.generation.unet_loss`); trained again, both rounds have them.",
}


def write_cards(scores: dict[str, float], folder: Path = SNAPSHOTS) -> None:
    """A README.md in each snapshot: what it stands in for, data, seed, command, and scores on held-out renders."""
    from nfx.stand_ins.train import ROUNDS, SEED

    for name, (kind, original, trained, prefixes) in CARDS.items():
        size = sum(f.stat().st_size for f in (folder / name).rglob("*.safetensors")) / 1e6
        rows = [
            f"| {key} | {value:.3f} | {TARGETS.get(key, '')} |"
            for key, value in scores.items()
            if key.startswith(tuple(prefixes))
        ]
        rounds = [(part, steps, rate) for part in trained.split(", ") for steps, rate in ROUNDS[part]]
        steps = ", ".join(f"{part}: {steps} steps, learning rate {rate:g}" for part, steps, rate in rounds)
        text = (
            f"""# {name}: a stand-in for {original}

A small `{kind}`, trained from nothing on rendered scenes (`nfx/data/simulator/scenes.py`), for runs
without a model hub. It knows nothing of real images: what it says of them has no meaning. {size:.1f} MB in float16.

- Data: fresh renders at every step, 8 objects x 4 colours x 4 backgrounds x 4 motions; none from the simulated movie.
- Seed {SEED}; {steps}.
- Command: `./run_all.sh stand-ins` (all of them), or `python -m nfx.stand_ins.train {trained.replace(",", "")}`.

Scores on held-out renders (`python -m nfx.stand_ins.scores`):

| score | measured | target |
|---|---|---|
"""
            + "\n".join(rows)
            + "\n"
            + (f"\n{REMARKS[name]}\n" if name in REMARKS else "")
        )
        with files.write_atomically(folder / name / "README.md") as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    measured = score_recognition() | score_language() | score_generation()
    files.write_json(SNAPSHOTS / "scores.json", measured)
    write_cards(measured)
    write_digests()
    for key, value in measured.items():
        print(f"{key:32s} {value:.3f}   {TARGETS.get(key, '')}")
