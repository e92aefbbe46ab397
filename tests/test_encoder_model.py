import json
import math

import pytest
import torch
import torch.nn.functional as F

from nfx.encoder import FMRIEncoder, interpolate_encoder
from nfx.encoder.model import interpolate_positions, sin_cos_positions, weight_count


def encoder(voxels=30, window=2, seed=0, **sizes):
    torch.manual_seed(seed)
    model = FMRIEncoder(
        voxels, window, **({"patch_size": 8, "dim": 16, "depth": 2, "heads": 4, "tokens": 5, "token_dim": 6} | sizes)
    )
    return model.eval()


def bold(batch=3, window=2, voxels=30, seed=1):
    return torch.randn(batch, window, voxels, generator=torch.Generator().manual_seed(seed))


def make_temporal(model):
    """Give the temporal attention an effect, as training does."""
    for layer in model.layers:
        torch.nn.init.normal_(layer.temporal_attention.out.weight)
    return model


def test_shapes_of_the_paper():
    with torch.device("meta"):
        model = FMRIEncoder(3731)  # the paper's sizes are the defaults
        assert model.patches == 234 and model(torch.empty(2, 2, 3731)).shape == (2, 77, 768)
    in_layers = sum(p.numel() for p in model.layers.parameters())
    assert in_layers == pytest.approx(
        24 * 10 * 1024**2, rel=0.01
    )  # mlp_ratio 1: 8 dim^2 in the attentions, 2 dim^2 in the MLP


@pytest.mark.parametrize("damage", ["missing", "unexpected"])
def test_a_snapshot_with_other_weights_is_refused(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    encoder().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        del weights["embed.weight"]
    else:
        weights["surplus"] = torch.zeros(1)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of a FMRIEncoder: 1 {damage}"):
        FMRIEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("window, voxels, dim, depth", [(2, 30, 16, 2), (1, 32, 8, 1), (3, 17, 32, 4)])
def test_weights_are_counted(window, voxels, dim, depth):
    model = encoder(voxels, window, dim=dim, depth=depth)
    sizes = {name: model.config[name] for name in ("patch_size", "heads", "tokens", "token_dim")}
    assert weight_count(voxels, window, dim=dim, depth=depth, **sizes) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size, value, told", [
    ("depth", 10**30, "more weights than"), ("dim", 10**6, "more weights than"), ("tokens", -1, "gives no tokens"),
    ("window", "2", "gives no window"),
])  # fmt: skip
def test_what_a_config_claims_is_compared_with_the_file_before_memory_is_taken(tmp_path, size, value, told):
    encoder().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {size: value}))
    with pytest.raises(ValueError, match=told):
        FMRIEncoder.from_pretrained(tmp_path)


def test_round_trip_is_exact(tmp_path):
    model = make_temporal(encoder())
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = FMRIEncoder.from_pretrained(tmp_path)
    assert torch.equal(again(bold()), model(bold())) and not again.training
    assert torch.equal(again.positions, model.positions)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }


def test_last_patch_is_padded_with_zeros_and_a_whole_one_is_not_padded():
    model = encoder(voxels=30)
    whole = encoder(voxels=32)
    whole.load_state_dict(model.state_dict())
    assert model.patches == whole.patches == 4
    torch.testing.assert_close(model(bold()), whole(F.pad(bold(), (0, 2))))


def test_temporal_attention_starts_without_effect():
    model = encoder()
    x = bold()
    other = torch.stack([x[:, 0], bold(seed=2)[:, 1]], dim=1)

    def first_frame(x):
        return model.transform(model.tokenize(x) + model.positions)[:, 0]

    assert torch.equal(first_frame(x), first_frame(other))  # blind to the other frame
    torch.testing.assert_close(first_frame(x), model.transform(model.tokenize(x[:, :1]) + model.positions)[:, 0])
    make_temporal(model)
    assert not torch.allclose(first_frame(x), first_frame(other))


def test_temporal_attention_mixes_frames_of_a_patch_only():
    model = make_temporal(encoder(depth=1))
    layer = model.layers[0]
    torch.nn.init.zeros_(layer.spatial_attention.out.weight)
    x = torch.randn(2, 3, 4, 16)
    changed = x.clone()
    changed[:, 1, 2] += 1
    difference = (layer(x) != layer(changed)).any(dim=3)
    assert difference[:, :, 2].all() and not difference[:, :, [0, 1, 3]].any()
    torch.testing.assert_close(layer(x.flip(1)), layer(x).flip(1))  # no position in time inside the layer


def test_order_of_frames_and_of_patches_matters():
    model = encoder(voxels=32)
    x = bold(voxels=32)
    assert not torch.allclose(model(x), model(x.flip(1)))
    moved = x.unflatten(2, (4, 8)).flip(2).flatten(2)
    assert not torch.allclose(model(x), model(moved))


def test_attention_maps_are_those_of_the_forward_pass():
    model = make_temporal(encoder())
    maps = model.attention(bold(), 1)
    assert maps.shape == (3, 2, 4, 4, 4)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 2, 4, 4))
    layer = model.layers[1]
    normed = layer.spatial_norm(model.layers[0](model.tokenize(bold()) + model.positions))
    values = (
        layer.spatial_attention.qkv(normed)[..., 32:].unflatten(-1, (4, 4)).transpose(2, 3)
    )  # (batch, window, heads, patches, 4)
    by_maps = layer.spatial_attention.out((maps @ values).transpose(2, 3).flatten(3))
    torch.testing.assert_close(by_maps, layer.spatial_attention(normed), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="layers 0 to 1"):
        model.attention(bold(), 2)


def test_gradients_reach_every_parameter_that_is_trained():
    model = make_temporal(encoder()).train()
    model(bold()).square().mul(torch.randn(3, 5, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert "positions" not in dict(model.named_parameters())


def test_sine_cosine_positions():
    positions = sin_cos_positions(7, 8)
    assert positions[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert positions[3, 0].item() == pytest.approx(math.sin(3)) and positions[3, 5].item() == pytest.approx(
        math.cos(3 / 10)
    )


def test_interpolating_positions():
    positions = sin_cos_positions(7, 8)
    assert torch.equal(interpolate_positions(positions, 7), positions)
    finer = interpolate_positions(positions, 13)
    torch.testing.assert_close(finer[::2], positions)
    torch.testing.assert_close(finer[1], (positions[0] + positions[1]) / 2)


def test_interpolated_encoder_is_the_same_one_at_the_same_size():
    model = make_temporal(encoder())
    assert torch.equal(interpolate_encoder(model, 30)(bold()), model(bold()))


def test_interpolated_encoder_keeps_what_does_not_depend_on_the_voxels():
    model = make_temporal(encoder(window=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = interpolate_encoder(model, 50, window=2)
    assert new.patches == 7 and new(bold(voxels=50)).shape == (3, 5, 6)
    torch.testing.assert_close(new.positions[[0, -1]], model.positions[[0, -1]])
    for name, tensor in new.state_dict().items():
        if name not in ("positions", "head.mapper.weight"):
            assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert interpolate_encoder(model, 50, tokens=3, token_dim=9)(bold(window=1, voxels=50)).shape == (3, 3, 9)


def test_map_over_tokens_is_new_even_where_its_shape_happens_to_fit():
    model = encoder(voxels=32, window=1)
    new = interpolate_encoder(model, 16, window=2)  # 1 x 4 and 2 x 2 positions
    assert new.head.mapper.weight.shape == model.head.mapper.weight.shape
    assert not torch.equal(new.head.mapper.weight, model.head.mapper.weight)


def test_refused():
    model = encoder()
    for wrong in (bold(voxels=31), bold()[0]):
        with pytest.raises(ValueError, match=r"\(batch, window, 30\)"):
            model(wrong)
    with pytest.raises(ValueError, match=r"\(batch, 2, 4, 16\)"):
        model(bold(window=3))
    with pytest.raises(ValueError, match="multiple of heads"):
        encoder(dim=18)
    with pytest.raises(ValueError, match="even dim"):
        encoder(dim=15, heads=1)
    with pytest.raises(ValueError, match="voxels must be at least 1"):
        encoder(voxels=0)
