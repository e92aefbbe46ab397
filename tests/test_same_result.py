"""The same clip whatever it is computed with: threads, batches, order. The tolerance is one grey level of 255.

That the same seed gives the same bytes twice, on one machine with as many threads, is in `test_kills.py`: every job and
the whole run, once undisturbed and once killed and resumed, in other processes.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_diffusion as tiny
import torch

from nfx import paths
from nfx.data import targets
from nfx.diffusion import NeuralFlixPipeline, inflate
from nfx.diffusion.fine_tuning import decode, load_scheduler
from nfx.encoder.model import FMRIEncoder
from nfx.training import train

SNAPSHOT = "nfx/stand_ins/snapshots/stable_diffusion"
GREY_LEVEL = 1
CLIPS, WINDOW, VOXELS = 8, 2, 320


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo_pipeline():
    """The demo's models and sizes; the fMRI encoder as drawn, and temporal attention with an effect."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    base = paths.snapshot(SNAPSHOT)
    torch.manual_seed(0)
    unet = inflate(UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32))
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    encoder = FMRIEncoder(VOXELS, window=WINDOW, patch_size=16, dim=64, depth=4, heads=4, tokens=16, token_dim=64)
    return NeuralFlixPipeline(
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32), unet=unet.eval(),
        fmri_encoder=encoder.eval(), scheduler=load_scheduler(base), beta=0.75, frames=6, frame_size=64,
    )  # fmt: skip


def far_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.slow
def test_a_clip_of_the_demo_does_not_depend_on_threads_batch_or_order(demo_pipeline, threads):
    windows = np.random.default_rng(0).normal(size=(CLIPS, WINDOW, VOXELS)).astype(np.float32)
    ids, settings = np.arange(CLIPS), {"seed": 2024, "steps": 8, "guidance": 4.0}

    def decoded(order, batch_size, count):
        threads(count)
        clips = decode(demo_pipeline, windows[order], clip_ids=ids[order], batch_size=batch_size, **settings)
        return clips[np.argsort(order)]

    backwards = ids[::-1]
    reference = decoded(ids, 8, 1)
    assert np.array_equal(reference, decoded(ids, 8, 1)), "the same twice is the same in every bit"
    assert far_apart(reference[0], reference[1]) > 20 * GREY_LEVEL, "the clips differ"
    found = {
        "two threads": decoded(ids, 8, 2), "batches of 1": decoded(ids, 1, 1), "backwards": decoded(backwards, 8, 1),
        "all of it": decoded(backwards, 3, 2),
    }  # fmt: skip
    apart = {name: (far_apart(reference, clips), float((reference != clips).mean())) for name, clips in found.items()}
    print(apart)
    assert all(most <= GREY_LEVEL for most, _ in apart.values()), apart


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand to compare with the CPU")
def test_a_gpu_decodes_the_clips_that_the_cpu_does(demo_pipeline):
    """In float32; a GPU adds up in another order, so by the rounding of 8 steps with guidance: 2 grey levels."""
    windows = np.random.default_rng(0).normal(size=(CLIPS, WINDOW, VOXELS)).astype(np.float32)
    settings = {"clip_ids": np.arange(CLIPS), "seed": 2024, "steps": 8, "guidance": 4.0}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        on_cpu = decode(demo_pipeline, windows, **settings)
        on_gpu = decode(demo_pipeline.to("cuda"), windows, **settings)
    finally:
        demo_pipeline.to("cpu")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert far_apart(on_cpu[0], on_cpu[1]) > 20 * GREY_LEVEL, "the clips differ"
    assert far_apart(on_cpu, on_gpu) <= 2 * GREY_LEVEL


def test_latents_do_not_depend_on_batch_or_threads(threads, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    threads(1)
    reference = targets.encode_latents(frames, SNAPSHOT)
    assert np.array_equal(reference, targets.encode_latents(frames, SNAPSHOT))
    threads(2)
    np.testing.assert_allclose(targets.encode_latents(frames, SNAPSHOT), reference, atol=1e-4)
    monkeypatch.setattr(targets, "BATCH", 1)
    np.testing.assert_allclose(targets.encode_latents(frames[::-1], SNAPSHOT)[::-1], reference, atol=1e-4)


def test_a_training_with_two_threads_agrees_with_one_within_rounding(tmp_path, threads):
    def run(count: int, name: str) -> tuple[torch.nn.Module, np.ndarray]:
        threads(count)
        model = tiny.video_unet()

        def loss(unet, step, generator, share):
            x = torch.randn(2, 4, 6, 8, 8, generator=generator)
            condition = torch.randn(2, tiny.TOKENS, tiny.TOKEN_DIM, generator=generator)
            return {"loss": (unet(x, 10, condition).sample - x).square().mean()}

        curve = train(model, loss, steps=4, learning_rate=1e-3, seed=1, folder=tmp_path / name)
        return model, curve["loss"].to_numpy()

    (one, curve), (two, curve_of_two), (again, curve_again) = run(1, "one"), run(2, "two"), run(1, "again")
    assert np.array_equal(curve, curve_again)
    np.testing.assert_allclose(curve_of_two, curve, rtol=1e-4)
    for first, second, third in zip(one.parameters(), two.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, third)
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
