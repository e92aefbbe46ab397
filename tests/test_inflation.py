"""The video UNet (Section 3.2.2, Eq. 6)."""

from __future__ import annotations

import copy
import math

import pytest
import tiny_diffusion as tiny
import torch
from diffusers import UNet2DConditionModel

from nfx.diffusion import VideoUNet, inflate
from nfx.diffusion.inflation import TemporalAttention, VideoTransformerBlock, temporal_mask

BATCH, FRAMES = 2, 6


@pytest.fixture
def inputs():
    torch.manual_seed(7)
    return torch.randn(BATCH, 4, FRAMES, 8, 8), torch.tensor([10, 700]), torch.randn(BATCH, tiny.TOKENS, tiny.TOKEN_DIM)


@torch.no_grad()
def test_inflated_equals_the_image_unet_frame_by_frame(inputs):
    sample, timestep, condition = inputs
    image = tiny.image_unet()
    video = inflate(image)
    predicted = video(sample, timestep, condition).sample
    assert predicted.shape == sample.shape
    for frame in range(FRAMES):
        expected = image(sample[:, :, frame], timestep, condition).sample
        torch.testing.assert_close(predicted[:, :, frame], expected, rtol=0, atol=2e-6)
    # To the bit, if the image UNet is given the frames as one batch too.
    folded = image(
        sample.transpose(1, 2).flatten(0, 1), timestep.repeat_interleave(FRAMES), condition.repeat_interleave(FRAMES, 0)
    ).sample
    assert torch.equal(predicted, folded.unflatten(0, (BATCH, FRAMES)).transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("timestep", [500, torch.tensor(500), torch.tensor([500])])
def test_one_timestep_serves_all_clips(inputs, timestep):
    sample, _, condition = inputs
    video = tiny.video_unet()
    expected = video(sample, torch.tensor([500, 500]), condition).sample
    assert torch.equal(video(sample, timestep, condition).sample, expected)
    assert torch.equal(video(sample, timestep, condition, return_dict=False)[0], expected)


def test_added_parameters_have_temp_in_their_name_and_the_given_unet_is_untouched():
    image = tiny.image_unet()
    before = copy.deepcopy(image.state_dict())
    video = inflate(image)
    added = set(video.state_dict()) - set(before)
    assert added and all("temp" in name for name in added)
    assert not set(before) - set(video.state_dict())
    blocks = [m for m in video.modules() if isinstance(m, VideoTransformerBlock)]
    assert len(blocks) == 4  # one down, one middle, two up
    with torch.no_grad():
        for parameter in video.parameters():
            parameter.add_(1)
    assert type(image) is UNet2DConditionModel
    assert all(torch.equal(before[name], value) for name, value in image.state_dict().items())
    assert {p.data_ptr() for p in image.parameters()}.isdisjoint({p.data_ptr() for p in video.parameters()})


def test_inflation_is_the_same_every_time_and_keeps_type_and_mode():
    image = tiny.image_unet().to(torch.bfloat16)
    first, second = inflate(image), inflate(image)
    other = second.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.state_dict().items())
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16} and not first.training
    assert all(p.requires_grad for p in first.parameters())


def test_output_starts_at_zero_and_learns_first(inputs):
    video = inflate(tiny.image_unet())
    video(*inputs).sample.square().mean().backward()
    parameters = dict(video.named_parameters())
    outputs = [name for name in parameters if "attn_temp.to_out" in name]
    assert len(outputs) == 2 * 4
    for name in outputs:
        assert not parameters[name].any()
        assert parameters[name].grad.abs().max() > 0
    for name in parameters:
        if "attn_temp.to_v" in name:  # no gradient passes a zero output; it does after the first step
            assert not parameters[name].grad.any()


@torch.no_grad()
def test_no_frame_sees_a_later_one_and_clips_do_not_mix(inputs):
    sample, timestep, condition = inputs
    video = tiny.video_unet()
    before = video(sample, timestep, condition).sample
    changed = sample.clone()
    changed[0, :, 3] += 1
    after = video(changed, timestep, condition).sample
    difference = (after - before).abs().amax(dim=(1, 3, 4))
    assert torch.equal(difference[0, :3], torch.zeros(3)) and torch.equal(difference[1], torch.zeros(FRAMES))
    assert (difference[0, 3:] > 1e-6).all()


def temporal_attention() -> TemporalAttention:
    block = next(m for m in tiny.video_unet().modules() if isinstance(m, VideoTransformerBlock))
    return block.attn_temp


@torch.no_grad()
def test_a_layer_sees_this_and_the_previous_two_frames():
    layer = temporal_attention()
    hidden = torch.randn(FRAMES, 3, 8)
    before = layer(hidden, FRAMES)
    for frame in range(FRAMES):
        changed = hidden.clone()
        changed[frame] += 1
        difference = (layer(changed, FRAMES) - before).abs().amax(dim=(1, 2))
        touched = set(torch.nonzero(difference > 1e-7)[:, 0].tolist())
        assert touched == {frame, frame + 1, frame + 2} & set(range(FRAMES))


@torch.no_grad()
def test_a_layer_is_equation_6_over_each_frame_once():
    layer = temporal_attention().double()
    hidden = torch.randn(BATCH * FRAMES, 3, 8, dtype=torch.float64)
    output = layer(hidden, FRAMES).view(BATCH, FRAMES, 3, 8)
    rate = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angle = torch.arange(FRAMES, dtype=torch.float64)[:, None] * rate
    positioned = hidden.view(BATCH, FRAMES, 3, 8) + torch.cat([angle.sin(), angle.cos()], dim=1)[:, None]
    width = 8 // layer.heads
    for clip, frame, location in [(0, 0, 0), (0, 1, 2), (1, 2, 1), (1, 5, 0)]:
        seen = positioned[clip, max(0, frame - 2) : frame + 1, location]
        q, k, v = layer.to_q(positioned[clip, frame, location]), layer.to_k(seen), layer.to_v(seen)
        heads = [
            torch.softmax(k[:, h] @ q[h] / math.sqrt(width), 0) @ v[:, h]
            for h in (slice(i * width, (i + 1) * width) for i in range(layer.heads))
        ]
        # diffusers computes the sinusoids in 32 bits
        torch.testing.assert_close(output[clip, frame, location], layer.to_out(torch.cat(heads)), rtol=0, atol=1e-6)


def test_the_mask_for_four_frames():
    assert temporal_mask(4).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


@torch.no_grad()
def test_a_layer_tells_the_order_of_the_frames():
    layer = temporal_attention()
    hidden = torch.randn(3, 3, 8)
    swapped = hidden[[1, 0, 2]]
    assert (layer(hidden, 3)[2] - layer(swapped, 3)[2]).abs().max() > 1e-3


@torch.no_grad()
def test_two_branches_in_one_batch_are_the_branches(inputs):
    sample, timestep, condition = inputs
    video = tiny.video_unet()
    both = video(torch.cat([sample, sample]), 500, torch.cat([torch.zeros_like(condition), condition])).sample
    torch.testing.assert_close(both[BATCH:], video(sample, 500, condition).sample, rtol=0, atol=2e-6)
    assert (both[:BATCH] - both[BATCH:]).abs().max() > 1e-4


def test_gradient_checkpointing_changes_nothing(inputs):
    video = tiny.video_unet().train()
    video(*inputs).sample.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in video.named_parameters()}
    video.zero_grad()
    video.enable_gradient_checkpointing()
    video(*inputs).sample.square().mean().backward()
    for name, parameter in video.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_snapshot_returns_as_it_was(tmp_path, inputs):
    video = tiny.video_unet()
    video.save_pretrained(tmp_path)
    again, info = VideoUNet.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    tuples = ("block_out_channels", "down_block_types", "up_block_types")  # lists in JSON
    for name, value in video.config.items():
        assert name.startswith("_") or again.config[name] == (list(value) if name in tuples else value)
    assert torch.equal(video(*inputs).sample, again(*inputs).sample)


def test_an_image_unet_is_not_loaded_as_a_video_unet(tmp_path):
    tiny.image_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="inflate"):
        VideoUNet.from_pretrained(tmp_path)


def test_the_configuration_of_stable_diffusion():
    config = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    with torch.device("meta"):
        video = VideoUNet(**config, block_out_channels=(320, 640, 1280, 1280))
    blocks = [m for m in video.modules() if isinstance(m, VideoTransformerBlock)]
    assert len(blocks) == 16  # 2 in each of 3 down blocks, 1 in the middle, 3 in each of 3 up blocks
    assert {(b.attn_temp.heads, b.attn_temp.to_q.in_features) for b in blocks} == {(8, 320), (8, 640), (8, 1280)}
    base = sum(p.numel() for n, p in video.named_parameters() if "temp" not in n)
    assert base == 859_520_964  # Stable Diffusion v1-5's


@torch.no_grad()
def test_linear_projections_are_inflated_too(inputs):
    image = tiny.image_unet(use_linear_projection=True, attention_head_dim=(2, 4))
    video = inflate(image)
    sample, timestep, condition = inputs
    expected = image(sample[:, :, 4], timestep, condition).sample
    torch.testing.assert_close(video(*inputs).sample[:, :, 4], expected, rtol=0, atol=2e-6)


def test_errors_of_the_user(inputs):
    sample, timestep, condition = inputs
    video = tiny.video_unet()
    with pytest.raises(ValueError, match="batch, channels, frames"):
        video(sample[:, :, 0], timestep, condition)
    with pytest.raises(ValueError, match="1 conditions for 2 clips"):
        video(sample, timestep, condition[:1])
    with pytest.raises(ValueError, match="no transformer blocks"):
        inflate(tiny.image_unet(
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
        ))  # fmt: skip
