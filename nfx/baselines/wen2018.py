"""Linear decoding frame by frame, after Wen et al. 2018.

H. Wen, J. Shi, Y. Zhang, K.-H. Lu, J. Cao and Z. Liu, "Neural encoding and decoding with deep learning for dynamic
natural vision", Cerebral Cortex 28(12), 4136-4160, 2018.

What our sources say (its abstract; Section 2.1.2 of the NeuralFlix paper): features that a convolutional network for
images has of a frame are decoded from fMRI and turned back into an image, and a video is a sequence of such images.

Simplified, and our choice:

- The features are the latents of Stable Diffusion's autoencoder, not those of a network that recognises objects. They
  too are a convolutional network's features of a frame, and the autoencoder comes with the network that turns them back
  into an image. So no difference to the diffusion decoders can come from another image space.
- The map is a ridge regression from a window of volumes, the same that all decoders here see, to the latents of each of
  the clip's frames. Every frame has its own map, and nothing ties the frames of a clip together.
- One penalty for all maps, chosen by cross-validation over whole segments of the training part.
- No categories are decoded.

What a ridge regression cannot know it leaves at the mean, so its frames are blurred.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nfx import files, paths
from nfx.baselines import baseline_folder, shared

if TYPE_CHECKING:
    from nfx.profile import Profile

NAME = "wen2018"
CODE = (*shared.CODE, "baselines/wen2018.py", "data/targets.py")


def train(profile: Profile, subject: int) -> Path:
    """Ridge regression from windows to the latents of each frame, on the training part alone; reused if it is there.

    Returns
    -------
    Path
        ``work/<profile>/baselines/wen2018_subject<k>/model`` with the arrays weight (window * voxels, frames * channels
        * height * width), offset (frames, channels, height, width), the penalty, and errors, the cross-validated error
        at each penalty that was tried, relative to that of the training mean.

    Raises
    ------
    FileNotFoundError, ValueError
        If notebook 01 has not prepared the subject or the targets, or they are damaged.
    """
    from nfx.data import load_subject

    folder = baseline_folder(profile, NAME, subject) / "model"
    facts = {
        **shared.training_facts(profile, subject, CODE),
        "latents": files.identity(paths.work(profile, "targets"), "train_latents"),
    }
    if files.finished(folder, facts):
        print(f"{folder.parent.name}: the regression is finished and reused")
        return folder
    part = load_subject(profile, subject).train
    latents = shared.training_rows(profile, "targets", "train_latents", part.clip)
    x, y = (array.reshape(len(array), -1) for array in (part.fmri, np.asarray(latents[part.clip])))
    fitted, _ = shared.ridge(x, y, part.segment)
    arrays = {
        "weight": fitted.weight, "offset": fitted.offset.reshape(latents.shape[1:]),
        "penalty": np.array(fitted.penalty), "errors": fitted.errors,
    }  # fmt: skip
    files.save_arrays(folder, arrays, facts)
    return folder


def load_decoder(profile: Profile, subject: int) -> shared.Decoder:
    """Windows to frames, by the regression and the autoencoder; nothing is random."""
    from nfx.data.targets import decode_latents

    arrays = files.load_arrays(baseline_folder(profile, NAME, subject) / "model", "weight", "offset")
    weight, offset = arrays["weight"], arrays["offset"]

    def decoder(windows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        latents = (windows.reshape(len(windows), -1) @ weight).reshape(-1, *offset.shape) + offset
        frames = decode_latents(latents.reshape(-1, *offset.shape[1:]), profile.models.stable_diffusion)
        return frames.reshape(*latents.shape[:2], *frames.shape[1:])

    return decoder
