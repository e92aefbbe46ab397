"""nfx.diffusion.long_video: several windows, one video."""

import numpy as np
import pytest
import tiny_diffusion as tiny
import torch

from nfx.diffusion.long_video import blend, clip_starts, decode_long, seam_ratio, tokens_at
from nfx.diffusion.noise import dependent_noise

SETTINGS = {"steps": 4, "guidance": 3.0}


def windows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, tiny.WINDOW, tiny.VOXELS)).astype(np.float32)


def seeded():
    return torch.Generator().manual_seed(5)


def by_pipeline(pipeline, fmri, latents):
    frames = pipeline(fmri, num_inference_steps=4, guidance_scale=3.0, latents=latents).frames
    return np.rint(frames * 255).astype(int).reshape(-1, *frames.shape[2:])


@pytest.mark.parametrize("overlap", [0, 3, 5])
def test_one_window_is_what_the_pipeline_decodes(overlap):
    pipeline, fmri = tiny.pipeline(), windows(1)
    noise = dependent_noise((1, 4, 6, 8, 8), 0.5, seeded())
    video = decode_long(pipeline, fmri, overlap=overlap, generator=seeded(), **SETTINGS)
    assert video.shape == (6, 16, 16, 3) and video.dtype == np.uint8 and video.std() > 0
    assert np.abs(video - by_pipeline(pipeline, fmri, noise)).max() <= 1


def test_without_overlap_clips_share_nothing_but_their_noise():
    pipeline, fmri = tiny.pipeline(), windows(3)
    noise = dependent_noise((1, 4, 18, 8, 8), 0.5, seeded())
    video = decode_long(pipeline, fmri, overlap=0, generator=seeded(), **SETTINGS)
    assert np.abs(video - by_pipeline(pipeline, fmri, torch.cat(noise.split(6, dim=2)))).max() <= 1


def test_overlap_carries_a_window_into_its_neighbours_only():
    pipeline, fmri = tiny.pipeline(), windows(4)
    changed = fmri.copy()
    changed[0] += 1
    video, other = (decode_long(pipeline, f, overlap=3, generator=seeded(), **SETTINGS) for f in (fmri, changed))
    difference = np.abs(video.astype(int) - other).mean(axis=(1, 2, 3))
    assert difference[:6].min() > 0 and difference[6:9].max() > 0


def test_clips_cover_the_video_and_overlap_as_asked():
    assert clip_starts(18, 6, 3) == [0, 3, 6, 9, 12]
    assert clip_starts(18, 6, 0) == [0, 6, 12]
    assert clip_starts(12, 6, 1) == [0, 5, 6]  # the last one ends with the video
    assert clip_starts(6, 6, 4) == [0]


def test_a_clip_between_windows_has_the_tokens_of_both():
    tokens = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    for position, expected in ((0, 0), (0.5, 0.5), (1.25, 1.25), (2, 2)):
        assert torch.equal(tokens_at(tokens, position), torch.full((2, 4), float(expected)))


def test_blending_leaves_agreement_alone_and_weights_the_middle_of_a_clip():
    video = torch.randn(1, 2, 12, 3, 3, generator=seeded())
    starts = clip_starts(12, 6, 4)
    torch.testing.assert_close(blend(torch.cat([video[:, :, s : s + 6] for s in starts]), starts, 12), video)
    clips = torch.stack([torch.zeros(1, 6, 1, 1), torch.ones(1, 6, 1, 1)])
    found = blend(clips, [0, 3], 9).flatten()
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1]))


def test_seams_are_seen():
    steady = np.arange(24, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    assert seam_ratio(steady, 6) == pytest.approx(1)
    jumping = steady + 10 * (np.arange(24) // 6)[:, None, None, None].astype(np.uint8)
    assert seam_ratio(jumping, 6) == pytest.approx(11)
    assert np.isnan(seam_ratio(np.zeros((12, 2, 2, 3)), 6))


@pytest.mark.parametrize("overlap", [-1, 6])
def test_an_impossible_overlap_is_an_error(overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap}, expected 0 to 5"):
        decode_long(tiny.pipeline(), windows(2), overlap=overlap)
