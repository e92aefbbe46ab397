"""What the stimuli become for the two phases: BLIP captions, CLIP embeddings, and latents (Sections 3.1.3 and 3.2.1).

The frozen models run once over the data; trainings read arrays. Hugging Face classes throughout, from a folder or a
repository name in the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nfx import files, paths
from nfx.profile import Profile

BATCH = 128  # frames at once
PARTS = ("train", "test")


def prepare_targets(profile: Profile) -> Path:
    """Write captions, embeddings and latents of every clip to work/<profile>/targets; reused when it is there.

    For each part (train, test): `<part>_latents` (clips, 6, channels, height, width), `<part>_image_embeddings` and
    `<part>_text_embeddings` (clips, 6, dim), projected and not normalised, and `<part>_caption` (clips, 6), which
    counts rows of `caption_tokens` (captions, tokens, dim), the last hidden states of the text encoder. captions.json
    lists the captions; the last one is the empty caption, for guidance.

    Raises
    ------
    FileNotFoundError
        If the stimuli are not prepared, or a model's snapshot is not there.
    """
    folder = paths.work(profile, "targets")
    stimuli = paths.work(profile, "stimuli")
    facts = {
        "stimuli": files.identity(stimuli),
        "models": profile.models.model_dump(include={"clip", "blip", "stable_diffusion"}),
        "weights": {name: _weights(folder) for name, folder in _local_models(profile).items()},
    }
    if files.finished(folder, facts):
        return folder
    clips = files.load_arrays(stimuli, *(f"{part}_clips" for part in PARTS))
    arrays: dict[str, np.ndarray] = {}
    sentences: dict[str, list[str]] = {}
    for part in PARTS:
        frames = clips[f"{part}_clips"]
        shape = frames.shape[:2]
        flat = frames.reshape(-1, *frames.shape[2:])
        sentences[part] = caption_frames(flat, profile.models.blip)
        for name, values in {
            "image_embeddings": image_embeddings(flat, profile.models.clip),
            "latents": encode_latents(flat, profile.models.stable_diffusion),
        }.items():
            arrays[f"{part}_{name}"] = values.reshape(*shape, *values.shape[1:])
    captions = [*sorted(set(sentences["train"]) | set(sentences["test"]) - {""}), ""]
    text = text_embeddings(captions, profile.models.clip)
    arrays["caption_tokens"] = text_states(captions, profile.models.stable_diffusion)
    row = {caption: i for i, caption in enumerate(captions)}
    for part in PARTS:
        index = np.array([row[s] for s in sentences[part]]).reshape(clips[f"{part}_clips"].shape[:2])
        arrays[f"{part}_caption"] = index
        arrays[f"{part}_text_embeddings"] = text[index]
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "captions.json", captions)
    files.save_arrays(folder, arrays, facts)
    return folder


def load_targets(profile: Profile, *names: str) -> Mapping[str, Any]:
    """The arrays of :func:`prepare_targets`, memory-mapped, all or the named ones, and the list `captions`."""
    folder = paths.work(profile, "targets")
    if not names:
        names = tuple(files.read_manifest(folder)["arrays"])
    return {**files.load_arrays(folder, *names), "captions": files.read_json(folder / "captions.json")}


def caption_frames(frames: np.ndarray, model: str) -> list[str]:
    """One BLIP caption a frame, by greedy decoding. frames: uint8 (n, height, width, 3)."""
    from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

    processor = BlipImageProcessorPil.from_pretrained(paths.snapshot(model))
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model))
    blip = _frozen(BlipForConditionalGeneration, model)
    longest = min(20, blip.config.text_config.max_position_embeddings - 1)  # tokens; a BLIP caption has about ten

    def captions(pixels: Tensor) -> list[str]:
        words = blip.generate(pixel_values=pixels, max_new_tokens=longest, num_beams=1, do_sample=False)
        return [sentence.strip() for sentence in tokenizer.batch_decode(words, skip_special_tokens=True)]

    return [c for batch in _batches(frames, processor, "captions") for c in captions(batch)]


def image_embeddings(frames: np.ndarray, model: str) -> np.ndarray:
    """CLIP's projected image embeddings, float32 (n, dim). frames: uint8 (n, height, width, 3)."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    processor = CLIPImageProcessorPil.from_pretrained(paths.snapshot(model))
    clip = _frozen(CLIPVisionModelWithProjection, model)
    return _stack(lambda x: clip(pixel_values=x).image_embeds, _batches(frames, processor, "image embeddings"))


def text_embeddings(captions: list[str], model: str) -> np.ndarray:
    """CLIP's projected text embeddings, float32 (n, dim)."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    clip = _frozen(CLIPTextModelWithProjection, model)
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model))
    return _stack(lambda tokens: clip(input_ids=tokens).text_embeds, _tokens(captions, tokenizer))


class TextHead(NamedTuple):
    """The end of CLIP's text encoder: its last LayerNorm and the projection to the joint space with images.

    Attributes
    ----------
    norm_weight, norm_bias : float32 (hidden,)
    projection : float32 (dim, hidden)
    """

    norm_weight: Tensor
    norm_bias: Tensor
    projection: Tensor


def text_head(model: str) -> TextHead:
    """The frozen end of CLIP's text encoder, through which the fMRI tokens are compared too (Section 3.1.3)."""
    from transformers import CLIPTextModelWithProjection

    weights = _frozen(CLIPTextModelWithProjection, model).cpu().state_dict()
    ends = {name.rsplit("text_model.")[-1]: weight for name, weight in weights.items()}
    norm = "final_layer_norm"
    return TextHead(ends[f"{norm}.weight"], ends[f"{norm}.bias"], ends["text_projection.weight"])


def text_states(captions: list[str], model: str) -> np.ndarray:
    """Last hidden states of Stable Diffusion's text encoder, float32 (n, tokens, dim): its conditions c (Eq. 5)."""
    from transformers import AutoTokenizer, CLIPTextModel

    encoder = _frozen(CLIPTextModel, model, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model), subfolder="tokenizer")
    return _stack(lambda tokens: encoder(input_ids=tokens).last_hidden_state, _tokens(captions, tokenizer))


def encode_latents(frames: np.ndarray, model: str) -> np.ndarray:
    """z_0 = E(x_0) (Section 3.2.1): means of the KL-VAE's posterior times its scaling factor, float32 (n, c, h, w)."""
    from diffusers import AutoencoderKL

    vae = _frozen(AutoencoderKL, model, subfolder="vae")

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(frames), BATCH):
            yield torch.from_numpy(np.array(frames[start : start + BATCH])).movedim(-1, 1) / 127.5 - 1

    return _stack(lambda x: vae.encode(x).latent_dist.mean * vae.config.scaling_factor, batches())


def decode_latents(latents: np.ndarray, model: str) -> np.ndarray:
    """x_0 = D(z_0): uint8 frames (n, height, width, 3) of scaled latents (n, c, h, w); the autoencoder's ceiling."""
    from diffusers import AutoencoderKL

    vae = _frozen(AutoencoderKL, model, subfolder="vae")
    batches = (torch.from_numpy(np.array(latents[i : i + BATCH])) for i in range(0, len(latents), BATCH))
    pixels = _stack(lambda z: vae.decode(z / vae.config.scaling_factor).sample, batches)
    return (np.clip(pixels.transpose(0, 2, 3, 1) + 1, 0, 2) * 127.5).round().astype(np.uint8)


def _frozen(kind: Any, model: str, **options: Any) -> Any:
    """A model of class `kind` in evaluation mode, in float32; missing weights are an error, not a warning."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # loading one tower of CLIP reports every weight of the other
    logging.disable_progress_bar()
    dtype = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    options |= {dtype: torch.float32, "output_loading_info": True}
    loaded, info = kind.from_pretrained(paths.snapshot(model), **options)
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[:3]
        raise ValueError(
            f"the snapshot {model} lacks weights of a {kind.__name__}, or has them in another shape: {wrong} ...; "
            "expected a complete snapshot; download it again, or train the stand-ins again"
        )
    return loaded.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def _local_models(profile: Profile) -> dict[str, Path]:
    models = profile.models.model_dump(include={"clip", "blip", "stable_diffusion"})
    folders = {name: Path(paths.snapshot(model)) for name, model in models.items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def _weights(folder: Path) -> dict[str, str]:
    """Digests of a snapshot's weights but the UNet's, which makes no targets: a new snapshot makes new targets."""
    weights = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*.safetensors"))}
    return {name: files.sha256(file) for name, file in weights.items() if not name.startswith("unet/")}


def _batches(frames: np.ndarray, processor: Any, name: str) -> Iterator[Tensor]:
    starts = tqdm(range(0, len(frames), BATCH), desc=name, leave=False, mininterval=5)
    for start in starts:
        images = [np.asarray(frame) for frame in frames[start : start + BATCH]]
        yield processor(images=images, return_tensors="pt").pixel_values


def _tokens(captions: list[str], tokenizer: Any) -> Iterator[Tensor]:
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        yield tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def _stack(function: Callable[[Tensor], Tensor], batches: Iterator[Tensor]) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return np.concatenate([function(batch.to(device)).float().cpu().numpy() for batch in batches])
