"""A released encoder in place of our own pre-training: DC-MAE's and MinD-Vis' phase 1 (Section 3.1.1).

    python -m nfx.encoder.conversion CHECKPOINT.pth FOLDER [--voxels N]

The paper starts from DC-MAE's encoder. It is published as a pickle that names a class of its authors' code, and
unpickling runs whatever a file names; so here only tensors and plain values are read, and a file that asks for
anything else is refused. Which classes and keys there are was taken from the public sources of both projects; neither
checkpoint itself was at hand.

What the conversion changes:

- Their encoder was trained, and is used, with a class token before the patches, to which every patch attends. Ours has
  none, so it computes what theirs computes when that token is taken out of the sequence. With weights as they are
  before training, of the released size, this changes the patches by 0.5 % (root mean square, against their standard
  deviation); with the trained ones it is not known.
- Their normalisations add 1e-5 to the variance, ours 1e-6: 0.001 %, measured in the same way.
- They saw voxels in their own order and 8 s averages; ours come along the visual hierarchy, a volume at a time.
- Temporal attention (without effect at first) and the head are not in the checkpoint. The head is drawn from a seed.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nfx.encoder.model import FMRIEncoder, interpolate_positions
from nfx.files import sha256, write_json

HEAD_SEED = 0
# Names that these checkpoints may ask for, beside tensors: their configurations, and the scalars that may be in them.
INERT_NAMES = (
    "config.Config_MAE_fMRI",  # MinD-Vis, early
    "config.Config_MBM_fMRI",  # MinD-Vis
    "config.Config_MBM_fMRI_contrast",  # DC-MAE
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
LAYER_PARTS = {  # theirs, below blocks.<i>, to ours, below layers.<i>
    "norm1": "spatial_norm",
    "attn.qkv": "spatial_attention.qkv",
    "attn.proj": "spatial_attention.out",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
LEFT_OUT = {  # beginning of a key: why
    "cls_token": "class token, ours has none",
    "mask_token": "decoder of the pre-training",
    "decoder_": "decoder of the pre-training",
    "nature_img_": "decoder of images",
    "conv_up.": "distillation",
    "linear_up.": "distillation",
}


class Inert:
    """Stands for every class that a checkpoint names: takes what a pickle gives it, keeps attributes, does nothing."""

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a released checkpoint without running anything that is in it.

    Parameters
    ----------
    path : path
        A file written by ``torch.save``: a dict with the keys model (name -> tensor) and config.

    Returns
    -------
    dict
        As in the file; objects of the classes in `INERT_NAMES` are `Inert`, with their attributes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it asks for a class or function beyond tensors and `INERT_NAMES`, which the message names, is damaged, or
        holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a checkpoint of DC-MAE or MinD-Vis (.pth)")
    try:
        lazily = zipfile.is_zipfile(path)  # the optimiser's states, most of the file, are then never read
        with torch.serialization.safe_globals([(Inert, name) for name in INERT_NAMES]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]}" if asked else "does more than a checkpoint needs"
        raise ValueError(
            f"{path} {what}: refused, and nothing of it was run; expected a checkpoint of tensors and a configuration"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or was not written by torch.save; "
            "download it again"
        ) from error
    expected = {"model": dict, "config": Inert}
    for key, kind in expected.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
            raise ValueError(
                f"{path} has no '{key}': expected a checkpoint of the first phase of DC-MAE or MinD-Vis, a dict with "
                f"the keys {' and '.join(expected)}"
            )
    return checkpoint


def encoder_sizes(config: Any) -> dict[str, int]:
    """Sizes of the encoder of a checkpoint's configuration, as arguments of `FMRIEncoder`.

    Raises
    ------
    ValueError
        If one is missing or not a positive integer, or if mlp_ratio is not 1.
    """
    sizes = {}
    for ours, theirs in {
        "patch_size": "patch_size",
        "dim": "embed_dim",
        "depth": "depth",
        "heads": "num_heads",
    }.items():
        value = getattr(config, theirs, None)
        if type(value) is not int or value < 1:
            raise ValueError(f"the checkpoint's config.{theirs} is {value!r}, expected a positive integer")
        sizes[ours] = value
    ratio = getattr(config, "mlp_ratio", None)
    if type(ratio) not in (int, float) or ratio != 1:
        raise ValueError(
            f"the checkpoint's config.mlp_ratio is {ratio!r}, expected 1: the layers of FMRIEncoder have no wider MLP"
        )
    return sizes


def weight_names(depth: int) -> dict[str, str]:
    """Every key of theirs that an encoder of so many layers is made of, with its name in `FMRIEncoder`."""
    modules = {"patch_embed.proj": "embed", "norm": "norm"}
    for layer in range(depth):
        modules |= {f"blocks.{layer}.{theirs}": f"layers.{layer}.{ours}" for theirs, ours in LAYER_PARTS.items()}
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    return {"pos_embed": "positions"} | names


def key_table(weights: Mapping[str, Any], depth: int) -> pd.DataFrame:
    """What becomes of every key of a checkpoint's model.

    Returns
    -------
    DataFrame
        Columns key, shape, use (used, left out, missing, unexpected) and note (the name in `FMRIEncoder`, or why).
    """
    names = weight_names(depth)
    rows = []
    for key, value in ((str(key), value) for key, value in weights.items()):
        why = next((reason for start, reason in LEFT_OUT.items() if key.startswith(start)), None)
        shape = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
        if key in names:
            rows.append((key, shape, "used", names[key]))
        else:
            rows.append((key, shape, "left out" if why else "unexpected", why or ""))
    rows += [(key, "", "missing", name) for key, name in names.items() if key not in weights]
    return pd.DataFrame(rows, columns=["key", "shape", "use", "note"])


def converted(checkpoint: Mapping[str, Any], voxels: int | None = None) -> FMRIEncoder:
    """The encoder of a checkpoint, for single volumes (window 1).

    Parameters
    ----------
    checkpoint : dict of `read_checkpoint`
    voxels : int, optional
        To which the positions are interpolated linearly; by default as many as the checkpoint's patches hold.

    Raises
    ------
    ValueError
        If a key is missing or unexpected, a shape is not that of the configuration, a weight is not finite, or the
        configuration is none that `FMRIEncoder` has.
    """
    sizes, weights = encoder_sizes(checkpoint["config"]), checkpoint["model"]
    table = key_table(weights, sizes["depth"])
    wrong = [
        f"{len(keys)} {use} ({', '.join(keys)})"
        for use in ("missing", "unexpected")
        if (keys := table.loc[table["use"] == use, "key"].tolist())
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint's keys are not those of an encoder of DC-MAE or MinD-Vis with {sizes['depth']} layers: "
            f"{'; '.join(wrong)}"
        )
    if voxels is not None and voxels < 1:
        raise ValueError(f"voxels is {voxels}, expected a positive integer")
    rows = weights["pos_embed"].shape[1] if _is_cube(weights["pos_embed"]) else 0  # the class token's is the first
    patches = max(1, rows - 1)
    with torch.random.fork_rng():
        torch.manual_seed(HEAD_SEED)
        encoder = FMRIEncoder(voxels or patches * sizes["patch_size"], window=1, **sizes)
    state = encoder.state_dict()
    for theirs, ours in weight_names(sizes["depth"]).items():
        wanted, value = list(state[ours].shape), weights[theirs]
        if theirs == "pos_embed":
            wanted = [1, patches + 1, sizes["dim"]]
        elif theirs == "patch_embed.proj.weight":
            wanted.insert(1, 1)  # a convolution whose kernel and stride are a patch
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found != wanted:
            raise ValueError(f"the checkpoint's {theirs} is {found}, expected {wanted} by its configuration")
        if not value.isfinite().all():
            raise ValueError(f"the checkpoint's {theirs} holds NaN or infinity: it is damaged, download it again")
        value = interpolate_positions(value[0, 1:].float(), encoder.patches) if theirs == "pos_embed" else value
        state[ours] = value.float().reshape(state[ours].shape)
    encoder.load_state_dict(state)
    return encoder.eval()


def convert(path: str | os.PathLike[str], folder: str | os.PathLike[str], voxels: int | None = None) -> Path:
    """Write the encoder of a released checkpoint as a snapshot, and print what became of every key.

    Parameters
    ----------
    path : path
        The checkpoint.
    folder : path
        For ``FMRIEncoder.from_pretrained``. Beside the snapshot, ``conversion.json`` tells the checkpoint's file name
        and sha256, its sizes, the head's seed, and what was left out.
    voxels : int, optional
        As in `converted`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_checkpoint` and `converted`; also if the folder already holds something. Nothing is then written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: name a new folder, or remove it")
    checkpoint = read_checkpoint(path)
    sizes = encoder_sizes(checkpoint["config"])
    table = key_table(checkpoint["model"], sizes["depth"])
    print(table.to_markdown(index=False, tablefmt="simple"))
    encoder = converted(checkpoint, voxels)
    left_out = table[table["use"] == "left out"]
    facts = {
        "source": Path(path).name,
        "sha256": sha256(path),
        "sizes": sizes,
        "voxels": encoder.config.voxels,
        "voxels_of_the_source": (checkpoint["model"]["pos_embed"].shape[1] - 1) * sizes["patch_size"],
        "head_seed": HEAD_SEED,
        "left_out": dict(zip(left_out["key"], left_out["note"], strict=True)),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        new = Path(staging, "encoder")
        encoder.save_pretrained(new)
        write_json(new / "conversion.json", facts)
        new.replace(folder)
    counts = ", ".join(f"{count} {use}" for use, count in table["use"].value_counts().items())
    print(f"{counts}\n{facts['source']}: sha256 {facts['sha256']}")
    print(f"{folder}: FMRIEncoder for {facts['voxels']} voxels (the checkpoint's: {facts['voxels_of_the_source']})")
    return folder


def _is_cube(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error is one sentence on standard error, and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m nfx.encoder.conversion",
        description="Convert a released encoder of DC-MAE or MinD-Vis (phase 1) to a snapshot of FMRIEncoder.",
    )
    parser.add_argument("checkpoint", help="the .pth file; only tensors and plain values are read from it")
    parser.add_argument("folder", help="where the snapshot goes: a new folder")
    parser.add_argument("--voxels", type=int, help="interpolate the positions to so many (default: the checkpoint's)")
    given = parser.parse_args(arguments)
    try:
        convert(given.checkpoint, given.folder, given.voxels)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
