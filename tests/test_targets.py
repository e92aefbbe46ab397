"""Targets on tiny untrained snapshots of the Hugging Face classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nfx.data import targets
from nfx.stand_ins import generation, language


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Untrained snapshots of CLIP, BLIP and Stable Diffusion, in the layout of their originals."""
    from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("snapshots")
    size = {"height": 64, "width": 64}
    tokenizer = language.clip_tokenizer(folder / "clip")
    language.clip(len(tokenizer)).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=size).save_pretrained(folder / "clip")
    language.blip(len(language.bert_tokenizer(folder / "blip"))).save_pretrained(folder / "blip")
    BlipImageProcessorPil(size=size).save_pretrained(folder / "blip")
    generation.autoencoder().save_pretrained(folder / "sd" / "vae")
    CLIPTextModel.from_pretrained(folder / "clip").save_pretrained(folder / "sd" / "text_encoder")
    tokenizer.save_pretrained(folder / "sd" / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_every_word_of_the_captions_is_one_token(tmp_path):
    tokenizer = language.clip_tokenizer(tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in language.WORDS)
    assert (
        language.bert_tokenizer(tmp_path / "bert").unk_token_id
        not in language.bert_tokenizer(tmp_path)(" ".join(language.WORDS)).input_ids
    )


def test_captions_do_not_depend_on_the_batch(snapshots, frames):
    together = targets.caption_frames(frames, str(snapshots / "blip"))
    alone = [targets.caption_frames(frame[None], str(snapshots / "blip"))[0] for frame in frames]
    assert together == alone


def test_image_embeddings_have_the_projected_size_and_follow_the_frame(snapshots, frames):
    embeddings = targets.image_embeddings(frames, str(snapshots / "clip"))
    assert embeddings.shape == (5, 64) and embeddings.dtype == np.float32
    np.testing.assert_allclose(
        targets.image_embeddings(frames[3:4], str(snapshots / "clip"))[0], embeddings[3], atol=1e-5
    )


def test_text_embedding_is_the_model_s_own(snapshots):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(snapshots / "clip").eval()
    tokens = CLIPTokenizer.from_pretrained(snapshots / "clip")(["a red cat on grass"], return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output.numpy()
    ours = targets.text_embeddings(["", "a red cat on grass"], str(snapshots / "clip"))
    np.testing.assert_allclose(ours[1:], expected, atol=1e-5)


def test_text_states_fill_the_model_s_length(snapshots):
    states = targets.text_states(["a red cat on grass", ""], str(snapshots / "sd"))
    assert states.shape == (2, language.TOKENS, 64)
    assert not np.allclose(states[0], states[1])


def test_latents_are_scaled_posterior_means(snapshots, frames):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(snapshots / "sd" / "vae").eval()
    x = torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
    latents = targets.encode_latents(frames, str(snapshots / "sd"))
    np.testing.assert_allclose(latents, expected.numpy(), atol=1e-5)
    decoded = targets.decode_latents(latents, str(snapshots / "sd"))
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8


def test_missing_weights_are_an_error_that_names_the_snapshot(snapshots, tmp_path, frames):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "clip"
    shutil.copytree(snapshots / "clip", broken)
    weights = load_file(broken / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"clip lacks weights.*visual_projection"):
        targets.image_embeddings(frames, str(broken))
