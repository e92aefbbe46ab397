"""Logits of the image and the video classifier, and all scores of a set of decoded clips (Section 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx.evaluation.n_way import n_way_top_k
from nfx.evaluation.ssim import ssim
from nfx.files import (
    read_array,
    read_json,
    require_exact_weights,
    sha256,
    source_digest,
    write_atomically,
    write_json,
)
from nfx.weights import file_digests

if TYPE_CHECKING:
    from torch import Tensor

SCORES = ("ssim", "image_top1_1", "image_top1_3", "video_top1_1", "video_top1_3")


def image_logits(frames: np.ndarray, folder: str | Path, batch_size: int = 64, cache: Path | None = None) -> np.ndarray:
    """Logits of a ViT image classifier.

    Parameters
    ----------
    frames : uint8 (frames, height, width, 3)
    folder : snapshot folder of a ``ViTForImageClassification``, or the name of a fetched hub model
    batch_size : frames at a time
    cache : folder of `kept`, for stimuli that are asked about again

    Returns
    -------
    float32 (frames, classes)
    """
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (frames, height, width, 3)")

    def logits() -> np.ndarray:
        model = _load_model(ViTForImageClassification, folder)
        processor = _load(ViTImageProcessorPil, folder)
        return _logits(
            model, lambda part: processor(list(part), return_tensors="pt")["pixel_values"], frames, batch_size
        )

    return kept(logits, frames, folder, cache)


def video_logits(clips: np.ndarray, folder: str | Path, batch_size: int = 16, cache: Path | None = None) -> np.ndarray:
    """Logits of a VideoMAE classifier. It is set to the clips' own number of frames, six, as the paper's peers do.

    Parameters
    ----------
    clips : uint8 (clips, frames, height, width, 3)
    folder : snapshot folder of a ``VideoMAEForVideoClassification``, or the name of a fetched hub model
    batch_size : clips at a time
    cache : folder of `kept`

    Returns
    -------
    float32 (clips, classes)
    """
    import torch
    from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessorPil

    if clips.dtype != np.uint8 or clips.ndim != 5:
        raise ValueError(f"clips are {clips.dtype} {clips.shape}, expected uint8 (clips, frames, height, width, 3)")

    def logits() -> np.ndarray:
        # VideoMAE's position codes are computed, not learnt: another number of frames needs no new weights.
        model = _load_model(VideoMAEForVideoClassification, folder, num_frames=clips.shape[1])
        processor = _load(VideoMAEImageProcessorPil, folder)

        def pixels(part: np.ndarray) -> torch.Tensor:
            flat = processor([list(clip) for clip in part], return_tensors="pt")["pixel_values"]
            return flat.reshape(len(part), clips.shape[1], *flat.shape[-3:])

        return _logits(model, pixels, clips, batch_size)

    return kept(logits, clips, folder, cache)


def kept(make: Callable[[], np.ndarray], stimuli: np.ndarray, model: str | Path, cache: Path | None) -> np.ndarray:
    """What a model makes of stimuli, from a file of an earlier call if there is one.

    True clips are judged beside every decoder's, and decoded ones for several scores: each once is enough. A file
    goes by the digest of the pixels, of the model's weights and of this code; a damaged one is made again.

    Parameters
    ----------
    make : gives the array
    stimuli : uint8, any shape
    model : snapshot folder or name on the hub
    cache : folder of the files; None keeps nothing
    """
    if cache is None:
        return make()
    weights = file_digests(str(model), lambda file: file.endswith((".safetensors", ".json")))
    about = f"{stimuli.shape} {sorted(weights.items())} {source_digest('evaluation/classifiers.py')}"
    digest = hashlib.sha256(about.encode())
    for part in stimuli:  # a part at a time: the stimuli may be mapped from a file
        digest.update(np.ascontiguousarray(part).data)
    path = cache / f"{digest.hexdigest()[:32]}.npy"
    found = _whole(path)
    if found is None:
        found = make()
        with write_atomically(path) as temporary:
            np.save(temporary, found, allow_pickle=False)
        write_json(path.with_suffix(".json"), sha256(path))
    return found


def _whole(path: Path) -> np.ndarray | None:
    """An array that was kept with its digest beside it, unless it is damaged."""
    try:
        whole = read_json(path.with_suffix(".json")) == sha256(path)
        return np.array(read_array(path)) if whole else None
    except (FileNotFoundError, ValueError):
        return None


def score_clips(
    truth: np.ndarray,
    decoded: np.ndarray,
    image_folder: str | Path,
    video_folder: str | Path,
    seed: int,
    n_way: int = 50,
    top_k: int = 1,
    trials: int = 100,
    cache: Path | None = None,
) -> pd.DataFrame:
    """All scores of every decoded clip (Section 4.1).

    SSIM and the image test are computed frame by frame and averaged over a clip's frames; the video test takes the
    clip as a whole. The last digit of a column's name is the number of correct classes (see `nfx.evaluation.n_way`).

    Parameters
    ----------
    truth, decoded : uint8 (clips, frames, height, width, 3)
    image_folder, video_folder : snapshots of the two classifiers
    seed : of the classes drawn
    n_way, top_k, trials : of the test
    cache : folder of `kept`

    Returns
    -------
    DataFrame with one row a clip and the columns of `SCORES`
    """
    clips, frames = truth.shape[:2]
    scores = {"ssim": ssim(truth, decoded).mean(axis=1)}
    flat = (-1, *truth.shape[2:])
    frames_shown, frames_decoded = (image_logits(x.reshape(flat), image_folder, cache=cache) for x in (truth, decoded))
    clips_shown, clips_decoded = (video_logits(x, video_folder, cache=cache) for x in (truth, decoded))
    for correct in (1, 3):
        by_frame = n_way_top_k(frames_shown, frames_decoded, n_way, top_k, trials, correct, seed)
        scores[f"image_top1_{correct}"] = by_frame.reshape(clips, frames).mean(axis=1)
        by_clip = n_way_top_k(clips_shown, clips_decoded, n_way, top_k, trials, correct, seed)
        scores[f"video_top1_{correct}"] = by_clip
    return pd.DataFrame(scores)[list(SCORES)]


def _load_model(cls: Any, folder: str | Path, **config: Any) -> Any:
    """As `_load`; ValueError if the snapshot lacks weights or holds others: random ones would judge at random."""
    model, report = _load(cls, folder, output_loading_info=True, use_safetensors=True, **config)
    require_exact_weights(report, folder, cls.__name__)
    return model


def _load(cls: Any, folder: str | Path, **config: Any) -> Any:
    """A snapshot by its class; what cannot be loaded is a FileNotFoundError that names it."""
    from transformers.utils import logging

    from nfx.paths import snapshot

    logging.disable_progress_bar()  # a bar a model, of milliseconds
    found = snapshot(str(folder))
    try:
        return cls.from_pretrained(found, **config)
    except OSError as error:
        raise FileNotFoundError(
            f"{found} holds no complete snapshot of {cls.__name__} ({str(error).splitlines()[0]}): copy it again, "
            "or make the stand-ins anew with ./run_all.sh stand-ins"
        ) from error


def _logits(model: Any, pixels: Callable[[np.ndarray], Tensor], stimuli: np.ndarray, batch_size: int) -> np.ndarray:
    import torch

    from nfx.training import device

    model = model.to(device()).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(stimuli), batch_size):
            batch = pixels(stimuli[start : start + batch_size]).to(device(), model.dtype)
            parts.append(model(pixel_values=batch).logits.float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, model.config.num_labels), np.float32)
