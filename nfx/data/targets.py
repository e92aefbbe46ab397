"""What the stimuli become for the two phases: BLIP captions, CLIP embeddings, and latents (Sections 3.1.3 and 3.2.1).

The frozen models run once over the data; trainings read arrays. Hugging Face classes throughout, from a folder or a
repository name in the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nfx import files, paths
from nfx.data import pieces
from nfx.profile import Profile
from nfx.weights import file_digests

BATCH = 128  # frames at once
PIECE = 4 * BATCH  # frames, or captions, whose results are kept together until all are there
PARTS = ("train", "test")


def prepare_targets(profile: Profile) -> Path:
    """Write captions, embeddings and latents of every clip to work/<profile>/targets; reused when it is there.

    For each part (train, test): `<part>_latents` (clips, 6, channels, height, width), `<part>_image_embeddings` and
    `<part>_text_embeddings` (clips, 6, dim), projected and not normalised, and `<part>_caption` (clips, 6), which
    counts rows of `caption_tokens` (captions, tokens, dim), the last hidden states of the text encoder. captions.json
    lists the captions; the last one is the empty caption, for guidance. An interrupted call goes on where it was; until
    the end it needs twice the disk, at the paper's size some 10 GB.

    Raises
    ------
    FileNotFoundError
        If the stimuli are not prepared, or a model's snapshot is not there.
    """
    folder = paths.work(profile, "targets")
    stimuli = paths.work(profile, "stimuli")
    models = profile.models.model_dump(include={"clip", "blip", "stable_diffusion"})
    facts = {
        "stimuli": files.identity(stimuli),
        "models": models,
        "weights": {name: _weights(model) for name, model in models.items()},
    }
    if files.finished(folder, facts):
        return folder
    clips = files.load_arrays(stimuli, *(f"{part}_clips" for part in PARTS))
    kept = pieces.open_pieces(folder, facts)
    arrays: dict[str, np.ndarray | Path] = {}
    sentences: dict[str, list[str]] = {}
    for part in PARTS:
        frames = clips[f"{part}_clips"]
        shape = frames.shape[:2]
        flat = frames.reshape(-1, *frames.shape[2:])
        spoken = _in_pieces(kept, f"{part}_captions", flat, partial(_captioner, profile.models.blip))
        sentences[part] = [str(caption) for piece in spoken for caption in np.load(piece)]
        for name, start in {
            "image_embeddings": partial(_image_embedder, profile.models.clip),
            "latents": partial(_latent_encoder, profile.models.stable_diffusion),
        }.items():
            parts = _in_pieces(kept, f"{part}_{name}", flat, start)
            arrays[f"{part}_{name}"] = pieces.join(kept / f"{part}_{name}.npy", parts, shape)
    captions = [*sorted(set(sentences["train"]) | set(sentences["test"]) - {""}), ""]
    embedded = _in_pieces(kept, "text_embeddings", captions, partial(_text_embedder, profile.models.clip))
    text = np.concatenate([np.load(piece) for piece in embedded])
    states = _in_pieces(kept, "caption_tokens", captions, partial(_text_encoder, profile.models.stable_diffusion))
    arrays["caption_tokens"] = pieces.join(kept / "caption_tokens.npy", states)
    row = {caption: i for i, caption in enumerate(captions)}
    for part in PARTS:
        index = np.array([row[s] for s in sentences[part]]).reshape(clips[f"{part}_clips"].shape[:2])
        arrays[f"{part}_caption"] = index
        arrays[f"{part}_text_embeddings"] = text[index]
    files.write_json(folder / "captions.json", captions)
    files.save_arrays(folder, arrays, facts)
    pieces.discard(folder)
    return folder


def _in_pieces(
    kept: Path, name: str, items: np.ndarray | list[str], start: Callable[[], Callable[[Any], np.ndarray]]
) -> list[Path]:
    """Files of what a model makes of frames or captions, in order; `start` loads it, if anything is left to do."""
    model = cache(start)
    begins = tqdm(range(0, len(items), PIECE), desc=name.replace("_", " "), leave=False, mininterval=5)
    inputs = items if isinstance(items, list) else []  # frames are among the facts

    def made(begin: int) -> np.ndarray:
        return model()(items[begin : begin + PIECE])

    return [pieces.keep(kept, f"{name}_{i:07d}", inputs[i : i + PIECE], partial(made, i)) for i in begins]


def load_targets(profile: Profile, *names: str) -> Mapping[str, Any]:
    """The arrays of :func:`prepare_targets`, memory-mapped, all or the named ones, and the list `captions`."""
    folder = paths.work(profile, "targets")
    if not names:
        names = tuple(files.read_manifest(folder)["arrays"])
    return {**files.load_arrays(folder, *names), "captions": files.read_json(folder / "captions.json")}


def caption_frames(frames: np.ndarray, model: str) -> list[str]:
    """One BLIP caption a frame, by greedy decoding. frames: uint8 (n, height, width, 3)."""
    return [str(caption) for caption in _captioner(model)(frames)]


def _captioner(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """Frames to captions, an array of str (n,)."""
    from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

    processor = BlipImageProcessorPil.from_pretrained(paths.snapshot(model))
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model))
    blip = _frozen(BlipForConditionalGeneration, model)
    longest = min(20, blip.config.text_config.max_position_embeddings - 1)  # tokens; a BLIP caption has about ten

    def captions(pixels: Tensor) -> list[str]:
        words = blip.generate(pixel_values=pixels, max_new_tokens=longest, num_beams=1, do_sample=False)
        return [sentence.strip() for sentence in tokenizer.batch_decode(words, skip_special_tokens=True)]

    return lambda frames: np.array([c for batch in _batches(frames, processor) for c in captions(batch)], dtype=str)


def image_embeddings(frames: np.ndarray, model: str) -> np.ndarray:
    """CLIP's projected image embeddings, float32 (n, dim). frames: uint8 (n, height, width, 3)."""
    return _image_embedder(model)(frames)


def _image_embedder(model: str) -> Callable[[np.ndarray], np.ndarray]:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    processor = CLIPImageProcessorPil.from_pretrained(paths.snapshot(model))
    clip = _frozen(CLIPVisionModelWithProjection, model)
    return lambda frames: _stack(lambda x: clip(pixel_values=x).image_embeds, _batches(frames, processor))


def text_embeddings(captions: list[str], model: str) -> np.ndarray:
    """CLIP's projected text embeddings, float32 (n, dim)."""
    return _text_embedder(model)(captions)


def _text_embedder(model: str) -> Callable[[list[str]], np.ndarray]:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    clip = _frozen(CLIPTextModelWithProjection, model)
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model))
    return lambda captions: _stack(lambda x: clip(input_ids=x).text_embeds, _tokens(captions, tokenizer))


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
    return _text_encoder(model)(captions)


def _text_encoder(model: str) -> Callable[[list[str]], np.ndarray]:
    from transformers import AutoTokenizer, CLIPTextModel

    encoder = _frozen(CLIPTextModel, model, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(paths.snapshot(model), subfolder="tokenizer")
    return lambda captions: _stack(lambda x: encoder(input_ids=x).last_hidden_state, _tokens(captions, tokenizer))


def encode_latents(frames: np.ndarray, model: str) -> np.ndarray:
    """z_0 = E(x_0) (Section 3.2.1): means of the KL-VAE's posterior times its scaling factor, float32 (n, c, h, w)."""
    return _latent_encoder(model)(frames)


def _latent_encoder(model: str) -> Callable[[np.ndarray], np.ndarray]:
    from diffusers import AutoencoderKL

    vae = _frozen(AutoencoderKL, model, subfolder="vae")

    def batches(frames: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(frames), BATCH):
            yield torch.from_numpy(np.array(frames[start : start + BATCH])).movedim(-1, 1) / 127.5 - 1

    scale = vae.config.scaling_factor
    return lambda frames: _stack(lambda x: vae.encode(x).latent_dist.mean * scale, batches(frames))


def decode_latents(latents: np.ndarray, model: str) -> np.ndarray:
    """x_0 = D(z_0): uint8 frames (n, height, width, 3) of scaled latents (n, c, h, w); the autoencoder's ceiling."""
    from diffusers import AutoencoderKL

    vae = _frozen(AutoencoderKL, model, subfolder="vae")
    batches = (torch.from_numpy(np.array(latents[i : i + BATCH])) for i in range(0, len(latents), BATCH))
    pixels = _stack(lambda z: vae.decode(z / vae.config.scaling_factor).sample, batches)
    return (np.clip(pixels.transpose(0, 2, 3, 1) + 1, 0, 2) * 127.5).round().astype(np.uint8)


def _frozen(kind: Any, model: str, **options: Any) -> Any:
    """A model of class `kind` in evaluation mode, in float32; missing weights are an error, not a warning.

    Weights that the class does not have are no error: CLIP's two towers lie in one file with its logit scale, and older
    snapshots hold `position_ids`, which are counted now.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # loading one tower of CLIP reports every weight of the other
    logging.disable_progress_bar()
    dtype = "torch_dtype" if kind.__module__.startswith("diffusers") else "dtype"
    options |= {dtype: torch.float32, "output_loading_info": True, "use_safetensors": True}
    folder = paths.snapshot(model)
    try:
        loaded, info = kind.from_pretrained(folder, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"{folder} holds no complete snapshot of {kind.__name__} in safetensors ({str(error).splitlines()[0]}): "
            "copy or download it again, or make the stand-ins anew with ./run_all.sh stand-ins"
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[:3]
        raise ValueError(
            f"the snapshot {model} lacks weights of a {kind.__name__}, or has them in another shape: {wrong} ...; "
            "expected a complete snapshot; download it again, or train the stand-ins again"
        )
    return loaded.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def _weights(model: str) -> dict[str, str]:
    """Digests of a snapshot's weights but the UNet's, which makes no targets: a new snapshot makes new targets."""
    return file_digests(model, lambda file: file.endswith(".safetensors") and not file.startswith("unet/"))


def _batches(frames: np.ndarray, processor: Any) -> Iterator[Tensor]:
    for start in range(0, len(frames), BATCH):
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
