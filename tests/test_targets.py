"""Targets on tiny untrained snapshots of the Hugging Face classes."""

from __future__ import annotations

import json

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


@pytest.fixture
def profile(snapshots, tmp_path, monkeypatch):
    """A profile of those snapshots, with stimuli of 12 and 2 clips of noise."""
    from nfx.files import save_arrays
    from nfx.profile import load_profile

    monkeypatch.setattr("nfx.paths.ROOT", tmp_path)
    models = {name: str(snapshots / name) for name in ("clip", "blip")} | {"stable_diffusion": str(snapshots / "sd")}
    demo = load_profile("demo")
    rng = np.random.default_rng(0)
    shapes = {"train_clips": (12, 6, 64, 64, 3), "test_clips": (2, 6, 64, 64, 3)}
    clips = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    save_arrays(tmp_path / "work/demo/stimuli", clips, {})
    return demo.model_copy(update={"models": demo.models.model_copy(update=models)})


@pytest.mark.slow
def test_targets_go_on_where_they_were(profile, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "BATCH", 8)
    monkeypatch.setattr(targets, "PIECE", 16)  # 5 pieces of training frames, 1 of test frames
    folder = targets.prepare_targets(profile)
    expected = {path.name: path.read_bytes() for path in folder.glob("*") if path.name != "manifest.json"}
    assert np.load(folder / "train_latents.npy").shape[:2] == (12, 6)
    captions = targets.load_targets(profile)["captions"]
    frames = np.load(tmp_path / "work/demo/stimuli/train_clips.npy")[3]
    spoken = [captions[row] for row in np.load(folder / "train_caption.npy")[3]]
    assert spoken == targets.caption_frames(frames, profile.models.blip)
    latents = targets.encode_latents(frames, profile.models.stable_diffusion)
    np.testing.assert_allclose(np.load(folder / "train_latents.npy")[3], latents, atol=1e-5)
    assert len(np.load(folder / "caption_tokens.npy", mmap_mode="r")) == len(captions)

    folder.rename(tmp_path / "whole")
    real, kept, stop_at = targets.pieces.keep, [], [4, 9, 15, 10**9]

    def counted(pieces, name, inputs, make):
        def noted():
            if len(kept) == stop_at[0]:
                raise KeyboardInterrupt
            kept.append(name)
            return make()

        return real(pieces, name, inputs, noted)

    monkeypatch.setattr(targets.pieces, "keep", counted)
    while len(stop_at) > 1:
        with pytest.raises(KeyboardInterrupt):
            targets.prepare_targets(profile)
        assert not (folder / "manifest.json").exists()
        stop_at.pop(0)
    targets.prepare_targets(profile)
    assert len(kept) == len(set(kept)) >= 20  # each piece once, whatever came between
    assert {path.name: path.read_bytes() for path in folder.glob("*") if path.name != "manifest.json"} == expected


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


# --- the layouts in which the published snapshots were saved, years before this version of the classes ----------


def rewrite(path, change):
    """Replace the weights of a safetensors file by `change` of them."""
    from safetensors.torch import load_file, save_file

    weights = change(load_file(path))
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, path, metadata={"format": "pt"})


def with_positions(weights, **counts):
    return weights | {name: torch.arange(count)[None] for name, count in counts.items()}


def only_vocabulary(folder, tokenizer, model_max_length):
    """A tokenizer as saved before tokenizer.json: its words and merges, and its special tokens as they were written."""
    for file in folder.glob("*"):
        file.unlink()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    end = {"content": tokenizer.eos_token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = end | {"content": tokenizer.bos_token}
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": tokenizer.eos_token}))
    old = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}
    old |= {"model_max_length": model_max_length, "pad_token": tokenizer.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(old | typed))


@pytest.fixture(scope="module")
def published(snapshots, tmp_path_factory):
    """The same weights as `snapshots`, laid out as on the hub."""
    import shutil

    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("published") / "all"
    shutil.copytree(snapshots, folder)
    positions = "embeddings.position_ids"
    clip = json.loads((folder / "clip" / "config.json").read_text())
    patches = (clip["vision_config"]["image_size"] // clip["vision_config"]["patch_size"]) ** 2 + 1
    counts = {f"text_model.{positions}": language.TOKENS, f"vision_model.{positions}": patches}
    rewrite(folder / "clip" / "model.safetensors", lambda weights: with_positions(weights, **counts))
    clip["text_config"]["eos_token_id"] = 2  # as in openai/clip-vit-large-patch14, whose end of text is 49407
    (folder / "clip" / "config.json").write_text(json.dumps(clip))
    old = {"crop_size": 64, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 64}
    new = json.loads((folder / "clip" / "preprocessor_config.json").read_text())
    old |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": new["image_mean"]}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(old | {"image_std": new["image_std"]}))

    def blip(weights):
        embeddings = "text_decoder.bert.embeddings"
        words, bias = weights[f"{embeddings}.word_embeddings.weight"], weights["text_decoder.cls.predictions.bias"]
        head = "text_decoder.cls.predictions.decoder"
        tied = {f"{head}.weight": words, f"{head}.bias": bias}
        positions = len(weights[f"{embeddings}.position_embeddings.weight"])
        return with_positions(weights | tied, **{f"{embeddings}.position_ids": positions})

    rewrite(folder / "blip" / "model.safetensors", blip)

    def text_encoder(weights):
        old = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in weights.items()}
        return with_positions(old, **{f"text_model.{positions}": language.TOKENS})

    def vae(weights):
        names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        return {replace(name, names): tensor for name, tensor in weights.items()}

    rewrite(folder / "sd" / "text_encoder" / "model.safetensors", text_encoder)
    rewrite(folder / "sd" / "vae" / "diffusion_pytorch_model.safetensors", vae)
    tokenizer = CLIPTokenizer.from_pretrained(snapshots / "sd" / "tokenizer")
    only_vocabulary(folder / "sd" / "tokenizer", tokenizer, language.TOKENS)
    return folder


def replace(name, names):
    for new, old in names.items():
        name = name.replace(new, old)
    return name


def test_clip_as_published_gives_the_same_embeddings(snapshots, published, frames):
    captions = ["a red cat on grass", "", "a blue car"]
    for function, given in ((targets.image_embeddings, frames), (targets.text_embeddings, captions)):
        expected = function(given, str(snapshots / "clip"))
        assert np.ptp(expected, axis=0).max() > 1e-3
        np.testing.assert_allclose(function(given, str(published / "clip")), expected, atol=1e-6)
    heads = [targets.text_head(str(folder / "clip")) for folder in (snapshots, published)]
    for ours, old in zip(*heads, strict=True):
        torch.testing.assert_close(ours, old)


def test_blip_as_published_gives_the_same_captions(snapshots, published, frames):
    assert targets.caption_frames(frames, str(published / "blip")) == targets.caption_frames(
        frames, str(snapshots / "blip")
    )


def test_stable_diffusion_as_published_gives_the_same_states_and_latents(snapshots, published, frames):
    captions = ["a red cat on grass", "", "a blue car moving left"]
    expected = targets.text_states(captions, str(snapshots / "sd"))
    np.testing.assert_allclose(targets.text_states(captions, str(published / "sd")), expected, atol=1e-6)
    latents = targets.encode_latents(frames, str(snapshots / "sd"))
    np.testing.assert_allclose(targets.encode_latents(frames, str(published / "sd")), latents, atol=1e-6)
    np.testing.assert_array_equal(
        targets.decode_latents(latents, str(published / "sd")), targets.decode_latents(latents, str(snapshots / "sd"))
    )


def test_pickled_weights_are_not_read(snapshots, tmp_path, frames):
    import shutil

    from safetensors.torch import load_file

    pickled = tmp_path / "clip"
    shutil.copytree(snapshots / "clip", pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="clip holds no complete snapshot of CLIPVision.* in safetensors"):
        targets.image_embeddings(frames, str(pickled))
