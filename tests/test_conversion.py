"""Released checkpoints as encoders. Theirs were not at hand: the files here are made to their public description."""

import argparse
import itertools
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nfx.encoder import FMRIEncoder
from nfx.encoder.conversion import HEAD_SEED, convert, converted, key_table, main, read_checkpoint, weight_names
from nfx.encoder.model import interpolate_positions, sin_cos_positions
from nfx.files import sha256

DIM, DEPTH, HEADS, PATCH, PATCHES = 16, 3, 2, 4, 5
SIZES = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "mlp_ratio": 1.0}


class Block(nn.Module):
    """One layer as in vision transformers: z = x + attention(norm(x)); z + mlp(norm(z))."""

    def __init__(self, eps):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=eps), nn.LayerNorm(DIM, eps=eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, DIM), "fc2": nn.Linear(DIM, DIM)})

    def forward(self, x):
        """One head after another, from the definition; x (batch, length, DIM)."""
        size, attended = DIM // HEADS, []
        q, k, v = self.attn["qkv"](self.norm1(x)).split(DIM, dim=-1)
        for head in range(HEADS):
            of = slice(head * size, (head + 1) * size)
            scores = torch.einsum("bic,bjc->bij", q[..., of], k[..., of]) / size**0.5
            attended.append(torch.einsum("bij,bjc->bic", scores.softmax(-1), v[..., of]))
        x = x + self.attn["proj"](torch.cat(attended, dim=-1))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Theirs(nn.Module):
    """The encoder half of their masked autoencoder, all patches visible, and keys of the other half."""

    def __init__(self, eps=1e-5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv1d(1, DIM, kernel_size=PATCH, stride=PATCH)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        positions = torch.cat([torch.zeros(1, DIM), sin_cos_positions(PATCHES, DIM)])
        self.pos_embed = nn.Parameter(positions[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(eps) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.decoder_embed = nn.Linear(DIM, 8)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, PATCHES + 1, 8), requires_grad=False)
        for name, weight in self.named_parameters():  # nothing at its initial one or zero
            if name != "pos_embed":
                nn.init.normal_(weight, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)

    def forward(self, bold, class_token):
        """Patches (batch, PATCHES, DIM) of volumes (batch, voxels), with or without the class token before them."""
        x = self.patch_embed["proj"](bold[:, None]).transpose(1, 2) + self.pos_embed[:, 1:]
        if class_token:
            first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, int(class_token) :]


def write_checkpoint(path, weights, class_name="Config_MBM_fMRI", legacy=False, **config):
    """A .pth as theirs, with an instance of a class of a module `config` that nobody can import afterwards."""
    module = types.ModuleType("config")
    kind = type(class_name, (), {"__module__": "config"})
    setattr(module, class_name, kind)
    instance = kind()
    instance.__dict__ |= {**SIZES, "lr": np.float64(2.5e-4), "roi": "VC", "focus_range": None, **config}
    sys.modules["config"] = module
    try:
        content = {"model": weights, "optimizer": {"state": {}}, "epoch": 499, "scaler": {"scale": 2.0}}
        torch.save(content | {"config": instance}, path, _use_new_zipfile_serialization=not legacy)
    finally:
        del sys.modules["config"]
    return path


def volumes(batch=6, seed=1):
    return torch.randn(batch, PATCH * PATCHES, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def patches_of(encoder, bold):
    """What an FMRIEncoder makes of volumes (batch, voxels) before its head: (batch, patches, dim)."""
    return encoder.transform(encoder.tokenize(bold[:, None]) + encoder.positions)[:, 0]


@pytest.mark.parametrize("class_name", ["Config_MAE_fMRI", "Config_MBM_fMRI", "Config_MBM_fMRI_contrast"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_snapshot_computes_what_theirs_does_without_its_class_token(tmp_path, class_name, legacy):
    theirs = Theirs(eps=1e-6)  # our normalisations'
    path = write_checkpoint(tmp_path / "checkpoint.pth", theirs.state_dict(), class_name, legacy)
    encoder = FMRIEncoder.from_pretrained(convert(path, tmp_path / "encoder"))
    assert (encoder.config.voxels, encoder.config.window, encoder.patches) == (PATCH * PATCHES, 1, PATCHES)
    with torch.no_grad():
        expected = theirs(volumes(), class_token=False)
    torch.testing.assert_close(patches_of(encoder, volumes()), expected, rtol=1e-5, atol=1e-5)


def test_what_their_epsilon_and_their_class_token_change(tmp_path):
    theirs = Theirs()
    encoder = converted(read_checkpoint(write_checkpoint(tmp_path / "checkpoint.pth", theirs.state_dict())))
    with torch.no_grad():
        ours, without, whole = patches_of(encoder, volumes()), theirs(volumes(), False), theirs(volumes(), True)
    assert 0 < (ours - without).abs().max() < 1e-3 * without.std()
    assert (ours - whole).square().mean().sqrt() > 0.01 * whole.std()  # so the token must be told of


def test_the_head_and_the_temporal_attention_are_new_and_the_same_each_time(tmp_path):
    path = write_checkpoint(tmp_path / "checkpoint.pth", Theirs().state_dict())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = FMRIEncoder.from_pretrained(convert(path, tmp_path / "first"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(HEAD_SEED)
    fresh = FMRIEncoder(PATCH * PATCHES, 1, PATCH, DIM, DEPTH, HEADS)
    state, expected = first.state_dict(), fresh.state_dict()
    new = [name for name in state if name.startswith("head.") or ".temporal_" in name]
    assert len(new) == len(state) - len(weight_names(DEPTH)) > 0
    assert all(torch.equal(state[name], expected[name]) for name in new)
    assert not any(layer.temporal_attention.out.weight.any() for layer in first.layers)
    assert (first.config.tokens, first.config.token_dim) == (77, 768)


@pytest.mark.parametrize("voxels", [9, 20, 37])
def test_positions_are_interpolated_to_the_voxels_asked_for(tmp_path, voxels):
    theirs = Theirs()
    path = write_checkpoint(tmp_path / "checkpoint.pth", theirs.state_dict())
    encoder = FMRIEncoder.from_pretrained(convert(path, tmp_path / "encoder", voxels))
    expected = interpolate_positions(theirs.pos_embed[0, 1:], -(-voxels // PATCH))
    assert encoder.config.voxels == voxels and torch.equal(encoder.positions, expected)
    assert encoder(torch.zeros(1, 1, voxels)).isfinite().all()


def test_every_key_is_told(tmp_path, capsys):
    weights = Theirs().state_dict()
    path = write_checkpoint(tmp_path / "checkpoint.pth", weights)
    folder = convert(path, tmp_path / "new" / "encoder")
    printed = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()) for line in printed.splitlines() if line.strip()}
    assert weights.keys() <= rows.keys()
    for key, name in weight_names(DEPTH).items():
        assert " used " in rows[key] and rows[key].endswith(f" {name}")
    assert rows["patch_embed.proj.weight"].split()[1] == "16x1x4"
    assert rows["cls_token"].endswith("left out class token, ours has none")
    assert rows["decoder_embed.weight"].endswith("left out decoder of the pre-training")
    assert sha256(path) in printed and "41 used, 5 left out" in printed

    told = json.loads((folder / "conversion.json").read_text())
    assert told["source"] == "checkpoint.pth" and told["sha256"] == sha256(path)
    assert told["left_out"].keys() == weights.keys() - weight_names(DEPTH).keys()
    files = ["config.json", "conversion.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == files
    assert str(tmp_path) not in (folder / "config.json").read_text() + (folder / "conversion.json").read_text()
    assert [file.name for file in folder.parent.iterdir()] == ["encoder"]


def test_missing_and_unexpected_keys_are_refused_with_their_list(tmp_path, capsys):
    weights = Theirs().state_dict()
    del weights["blocks.1.mlp.fc2.bias"], weights["norm.weight"]
    weights["blocks.3.norm1.weight"] = weights["cross_attention.weight"] = torch.zeros(1)
    path = write_checkpoint(tmp_path / "checkpoint.pth", weights)
    with pytest.raises(ValueError) as refused:
        convert(path, tmp_path / "encoder")
    missing, unexpected = str(refused.value).split(";")
    assert "2 missing" in missing and "2 unexpected (blocks.3.norm1.weight, cross_attention.weight)" in unexpected
    assert "blocks.1.mlp.fc2.bias" in missing and "norm.weight" in missing
    assert "missing layers.1.mlp.2.bias" in " ".join(capsys.readouterr().out.split())
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_other_sizes_are_refused(tmp_path):
    weights = Theirs().state_dict()

    numbers = itertools.count()

    def refusal(changed=(), **config):  # a new file each time: what was read is still mapped into memory
        path = write_checkpoint(tmp_path / f"{next(numbers)}.pth", weights | dict(changed), **config)
        with pytest.raises(ValueError) as error:
            converted(read_checkpoint(path))
        return str(error.value)

    assert "config.mlp_ratio is 4.0, expected 1" in refusal(mlp_ratio=4.0)
    assert "config.mlp_ratio is None" in refusal(mlp_ratio=None)
    assert "config.depth is '3', expected a positive integer" in refusal(depth="3")
    assert "config.num_heads is 0" in refusal(num_heads=0)
    assert "dim must be a multiple of heads" in refusal(num_heads=3)
    assert "12 missing (blocks.3.norm1.weight" in refusal(depth=4)
    assert "12 unexpected (blocks.2.norm1.weight" in refusal(depth=2)
    assert "pos_embed is [1, 6, 16], expected [1, 6, 32]" in refusal(embed_dim=32)
    assert "patch_embed.proj.weight is [16, 1, 4], expected [16, 1, 8]" in refusal(patch_size=8)
    wide = {"blocks.0.mlp.fc1.weight": torch.zeros(4 * DIM, DIM)}
    assert "blocks.0.mlp.fc1.weight is [64, 16], expected [16, 16]" in refusal(wide)
    assert "pos_embed is [6, 16]" in refusal({"pos_embed": torch.zeros(6, 16)})
    assert "norm.bias is str" in refusal({"norm.bias": "zero"})
    assert "norm.bias holds NaN" in refusal({"norm.bias": torch.full((DIM,), torch.nan)})


class Planted:
    """Unpickling it the ordinary way calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("place", ["config", "model", "beside", "state"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [os.system, eval, pickle.loads])
def test_a_checkpoint_that_runs_something_is_refused_and_runs_nothing(tmp_path, place, legacy, function):
    trace = tmp_path / "it_ran"
    arguments = {
        os.system: f"touch '{trace}'",
        eval: f"__import__('pathlib').Path({str(trace)!r}).touch()",
        pickle.loads: pickle.dumps(Planted(os.system, f"touch '{trace}'")),
    }
    planted, path = Planted(function, arguments[function]), tmp_path / "checkpoint.pth"
    weights, config = Theirs().state_dict(), {}
    if place == "model":
        weights["norm.weight"] = planted
    if place == "state":
        config["lr"] = planted
    write_checkpoint(path, weights, legacy=legacy, **config)
    if place in ("config", "beside"):
        content = {"model": weights, "config": argparse.Namespace(**SIZES)}
        content |= {"config" if place == "config" else "wandb": planted}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)

    with pytest.raises(ValueError) as refused:
        convert(path, tmp_path / "encoder")
    named = {os.system: f"{os.system.__module__}.system", eval: "eval", pickle.loads: "pickle.loads"}[function]
    assert f"asks for {named}: refused" in str(refused.value) and "\n" not in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]

    pickled = torch.load(path, weights_only=False) if place == "beside" else None  # the bait is live
    assert trace.exists() == (place == "beside") and (pickled is None or "wandb" in pickled)


def test_the_class_in_their_place_does_nothing(tmp_path, monkeypatch):
    """Not even if a module of that name can be imported."""
    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\nclass Config_MBM_fMRI: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "checkpoint.pth", Theirs().state_dict()))
    assert not (tmp_path / "it_ran").exists() and "config" not in sys.modules
    config = checkpoint["config"]
    assert type(config).__module__ == "nfx.encoder.conversion"
    assert (config.embed_dim, config.mlp_ratio, config.roi, config.focus_range) == (DIM, 1.0, "VC", None)


def test_a_namespace_serves_as_configuration(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": Theirs().state_dict(), "config": argparse.Namespace(**SIZES)}, path)
    assert converted(read_checkpoint(path)).patches == PATCHES


def test_other_files_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(path)
    write_checkpoint(path, Theirs().state_dict())
    whole = path.read_bytes()
    several_disks = whole[:-26] + b"\x09" + whole[-25:]  # of the zip's locator, found by tests/test_fuzz.py
    for content in (b"", b"no pickle", whole[: len(whole) // 2], several_disks, pickle.dumps([1, 2])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint.pth") as refused:
            read_checkpoint(path)
        assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    for content in (Theirs().state_dict(), [1], {"model": {}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="has no '(model|config)'"):
            read_checkpoint(path)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    path = write_checkpoint(tmp_path / "checkpoint.pth", Theirs().state_dict())
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "kept").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        convert(path, tmp_path / "encoder")
    assert [file.name for file in (tmp_path / "encoder").iterdir()] == ["kept"]


def test_the_command(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "checkpoint.pth", Theirs().state_dict())
    main([str(path), str(tmp_path / "encoder"), "--voxels", "18"])
    assert "FMRIEncoder for 18 voxels (the checkpoint's: 20)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nfx.encoder.conversion: .*not empty"):
        main([str(path), str(tmp_path / "encoder")])
    with pytest.raises(SystemExit, match="voxels is 0"):
        main([str(path), str(tmp_path / "other"), "--voxels", "0"])


def test_the_table_of_the_released_sizes():
    """24 layers, and a decoder of 8 with its positions, mask token, embedding, norm and prediction."""
    keys = [*weight_names(24), "cls_token", "mask_token", "decoder_pos_embed"]
    for i in range(8):
        keys += [key.replace("blocks.0.", f"decoder_blocks.{i}.") for key in weight_names(1) if "blocks." in key]
    keys += [f"decoder_{part}.{kind}" for part in ("embed", "norm", "pred") for kind in ("weight", "bias")]
    counts = key_table({key: torch.empty(1) for key in keys}, 24)["use"].value_counts().to_dict()
    assert counts == {"used": 1 + 2 * (2 + 6 * 24), "left out": 3 + 8 * 12 + 6}
