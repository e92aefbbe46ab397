"""The fMRI-to-video pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file, save_file

from nfx.diffusion import NeuralFlixPipeline, dependent_noise


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def windows():
    return torch.randn(3, tiny.WINDOW, tiny.VOXELS, generator=generator(0))


def test_the_kinds_of_output(pipeline, windows):
    def run(kind):
        return pipeline(windows[:2], 2, generator=generator(0), output_type=kind).frames

    pixels, tensor, images, latents = (run(kind) for kind in ("np", "pt", "pil", "latent"))
    assert pixels.shape == (2, 6, 16, 16, 3) and pixels.dtype == np.float32
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0
    np.testing.assert_array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), pixels)
    assert len(images) == 2 and len(images[0]) == 6 and images[0][0].size == (16, 16)
    np.testing.assert_array_equal(np.asarray(images[1][5]), np.rint(pixels[1, 5] * 255).astype(np.uint8))
    assert latents.shape == (2, 4, 6, 8, 8)


def test_decoding_latents_is_the_autoencoder_frame_by_frame(pipeline):
    latents = torch.randn(2, 4, 6, 8, 8, generator=generator(3))
    pixels = pipeline.decode_latents(latents)
    expected = pipeline.vae.decode(latents[1, :, 4][None] / pipeline.vae.config.scaling_factor).sample[0]
    torch.testing.assert_close(pixels[1, :, 4], expected.detach(), rtol=0, atol=1e-5)


def test_a_folder_returns_as_it_was(pipeline, windows, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = NeuralFlixPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert (again.config.beta, again.config.frames, again.config.frame_size) == (0.5, 6, 16)
    assert not list(tmp_path.rglob("*.bin")) and len(list(tmp_path.rglob("*.safetensors"))) == 3
    ours, theirs = (p(windows, 3, generator=generator(1)).frames for p in (pipeline, again))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("part", ["unet", "fmri_encoder", "vae"])
@pytest.mark.parametrize("damage", ["missing", "unexpected"])
def test_a_snapshot_with_other_weights_is_refused(pipeline, tmp_path, part, damage):
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        del weights[sorted(weights)[-1]]
    else:
        weights["surplus"] = torch.zeros(1)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=part):
        NeuralFlixPipeline.from_pretrained(tmp_path)


def test_an_empty_folder_is_an_error_that_names_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="03_diffusion_fine_tuning"):
        NeuralFlixPipeline.from_pretrained(tmp_path)


def test_a_clip_depends_neither_on_the_batch_nor_on_the_order(pipeline, windows):
    def run(order):
        return pipeline(windows[order], 3, generator=[generator(s) for s in order]).frames

    batch = run([0, 1, 2])
    np.testing.assert_allclose(run([2, 0]), batch[[2, 0]], rtol=0, atol=1e-4)
    np.testing.assert_allclose(run([1]), batch[[1]], rtol=0, atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 0.01


def test_conditions_are_encoded_once_and_both_branches_are_one_batch(pipeline, windows):
    calls = []
    hooks = [
        pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(("unet", len(args[0])))),
        pipeline.fmri_encoder.register_forward_pre_hook(lambda _, args: calls.append(("encoder", len(args[0])))),
    ]
    pipeline(windows, 2, guidance_scale=3.0)
    assert calls == [("encoder", 3), ("encoder", 1), ("unet", 6), ("unet", 6)]
    calls.clear()
    pipeline(windows, 2, guidance_scale=1.0)
    assert [size for name, size in calls if name == "unet"] == [3, 3]
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_one_step_is_guidance_and_ddim(pipeline, windows):
    start = torch.randn(3, 4, 6, 8, 8, generator=generator(2))
    given = pipeline.fmri_encoder(windows)
    null = pipeline.fmri_encoder(torch.zeros(1, tiny.WINDOW, tiny.VOXELS)).expand_as(given)
    scheduler = tiny.scheduler()
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    conditional, unconditional = (pipeline.unet(start, t, c).sample for c in (given, null))
    noise = unconditional + 3.0 * (conditional - unconditional)
    now, before = scheduler.alphas_cumprod[t], scheduler.final_alpha_cumprod  # Eq. 12 of the DDIM paper, eta 0
    clean = (start - (1 - now).sqrt() * noise) / now.sqrt()
    expected = before.sqrt() * clean + (1 - before).sqrt() * noise
    decoded = pipeline(windows, 1, guidance_scale=3.0, latents=start, output_type="latent").frames
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


def test_a_ready_made_condition_stands_in_for_fmri(pipeline, windows):
    given, null = pipeline.encode_fmri(windows)
    from_fmri = pipeline(windows, 2, generator=generator(0)).frames
    np.testing.assert_array_equal(pipeline(condition=given, null_condition=null, num_inference_steps=2,
                                           generator=generator(0)).frames, from_fmri)  # fmt: skip
    np.testing.assert_array_equal(pipeline(condition=given, null_condition=null[0], num_inference_steps=2,
                                           generator=generator(0)).frames, from_fmri)  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 0.75])
def test_sampling_starts_from_dependent_noise(windows, beta):
    pipeline, seen = tiny.pipeline(beta), []
    pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    pipeline(windows, 2, guidance_scale=1.0, generator=generator(5))
    assert torch.equal(seen[0], dependent_noise(seen[0].shape, beta, generator(5)))


def test_callbacks_are_those_of_diffusers(pipeline, windows):
    steps = []

    def stop_moving(_, step, timestep, tensors):
        steps.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    frames = pipeline(windows, 2, callback_on_step_end=stop_moving, output_type="latent").frames
    assert [step for step, _ in steps] == [0, 1] and steps[0][1] > steps[1][1]
    assert not frames.any()


def test_eta_adds_noise_that_the_frames_share(windows):
    pipeline = tiny.pipeline(beta=1.0)
    for name, parameter in pipeline.unet.named_parameters():
        if "attn_temp.to_out" in name:
            parameter.data.zero_()  # so that only the noise can tell frames apart
    still = pipeline(windows, 3, eta=1.0, generator=generator(0)).frames
    np.testing.assert_allclose(still, np.broadcast_to(still[:, :1], still.shape), rtol=0, atol=1e-4)
    assert np.abs(still - pipeline(windows, 3, generator=generator(0)).frames).max() > 0.01


def test_errors_of_the_user(pipeline, windows):
    condition = torch.zeros(1, tiny.TOKENS, tiny.TOKEN_DIM)
    with pytest.raises(ValueError, match="either fmri"):
        pipeline()
    with pytest.raises(ValueError, match="either fmri"):
        pipeline(windows, condition=condition)
    with pytest.raises(ValueError, match="null_condition"):
        pipeline(condition=condition, num_inference_steps=1)
    with pytest.raises(ValueError, match="gif"):
        pipeline(windows, 1, output_type="gif")
    with pytest.raises(ValueError, match="NaN"):
        pipeline(windows * float("nan"), 1)
    with pytest.raises(ValueError, match="batch, window, voxels"):
        pipeline(windows[0], 1)
    with pytest.raises(ValueError, match="latents"):
        pipeline(windows, 1, latents=torch.zeros(3, 4, 5, 8, 8))
    with pytest.raises(ValueError, match="2 generators for 3 clips"):
        pipeline(windows, 1, generator=[generator(0), generator(1)])
