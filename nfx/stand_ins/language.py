"""The stand-ins for CLIP ViT-L/14 (text and image embeddings, the text encoder of Stable Diffusion) and for BLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nfx.data.simulator.scenes import BACKGROUNDS, COLOURS, MOTIONS, OBJECTS, Scene, caption
from nfx.stand_ins import renders

if TYPE_CHECKING:
    from transformers import BertTokenizer, CLIPTokenizer

TOKENS = 16  # length of a tokenised caption; CLIP: 77
WORDS = ("a", "moving", "on", *COLOURS, *OBJECTS, *MOTIONS, *BACKGROUNDS)


def short_caption(scene: Scene) -> str:
    """'a red cat on grass': the name of a frame class, without the motion."""
    return f"a {COLOURS[scene.colour]} {OBJECTS[scene.object]} on {BACKGROUNDS[scene.background]}"


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIPTokenizer whose byte-pair merges make each word of the captions one token, written to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(
        [" ".join(WORDS)] * 2, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    tokenizer = CLIPTokenizer(**files, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """A BertTokenizer that knows the captions' words, written to and read from `folder`."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), bos_token="[DEC]", model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def clip(vocabulary: int) -> nn.Module:
    """A CLIPModel with 64-dimensional text states and embeddings."""
    from transformers import CLIPConfig, CLIPModel

    text = dict(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=TOKENS, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1, projection_dim=64,
    )  # fmt: skip
    vision = dict(
        image_size=64, patch_size=8, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, projection_dim=64,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def clip_loss(
    model: nn.Module, tokenizer: CLIPTokenizer, step: int, generator: torch.Generator, batch: int = 128
) -> dict[str, Tensor]:
    """CLIP's symmetric cross-entropy over a batch; equal captions in a batch share the target."""
    seed = renders.training_seed(generator)
    rng = np.random.default_rng(seed + 1)
    drawn = renders.frames(batch, seed)
    pixels = renders.degrade(drawn.pixels, rng)[:, 0]
    sentences = [short_caption(s) if rng.random() < 0.3 else caption(s) for s in drawn.scenes]
    tokens = tokenizer(sentences, padding="max_length", max_length=TOKENS, return_tensors="pt")
    logits = model(input_ids=tokens.input_ids, pixel_values=pixels).logits_per_image.float()
    names = np.unique(sentences, return_inverse=True)[1]
    target = torch.from_numpy((names[:, None] == names[None]).astype(np.float32))
    target = target / target.sum(-1, keepdim=True)
    return {"loss": (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2}


def blip(vocabulary: int) -> nn.Module:
    """A BlipForConditionalGeneration with a two-layer text decoder."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = dict(
        vocab_size=vocabulary, hidden_size=64, encoder_hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=64, bos_token_id=5, eos_token_id=3,
        sep_token_id=3, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        image_size=64, patch_size=8, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4
    )
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=64))


@torch.no_grad()
def start_as_vit(vision: nn.Module, vit: nn.Module) -> None:
    """Copy a ViT's weights into BLIP's image encoder of the same size."""
    vision.embeddings.class_embedding.copy_(vit.embeddings.cls_token)
    vision.embeddings.position_embedding.copy_(vit.embeddings.position_embeddings)
    vision.embeddings.patch_embedding.load_state_dict(vit.embeddings.patch_embeddings.projection.state_dict())
    for mine, its in zip(vision.encoder.layers, vit.layers, strict=True):
        heads = [its.attention.q_proj, its.attention.k_proj, its.attention.v_proj]
        mine.self_attn.qkv.weight.copy_(torch.cat([head.weight for head in heads]))
        mine.self_attn.qkv.bias.copy_(torch.cat([head.bias for head in heads]))
        mine.self_attn.projection.load_state_dict(its.attention.o_proj.state_dict())
        mine.layer_norm1.load_state_dict(its.layernorm_before.state_dict())
        mine.layer_norm2.load_state_dict(its.layernorm_after.state_dict())
        mine.mlp.load_state_dict(its.mlp.state_dict())
    vision.post_layernorm.load_state_dict(vit.layernorm.state_dict())


def blip_loss(
    model: nn.Module, tokenizer: BertTokenizer, step: int, generator: torch.Generator, batch: int = 64
) -> dict[str, Tensor]:
    """Next-word cross-entropy of the caption given one frame."""
    seed = renders.training_seed(generator)
    drawn = renders.frames(batch, seed)
    pixels = renders.degrade(drawn.pixels, np.random.default_rng(seed + 1))[:, 0]
    tokens = tokenizer([caption(s) for s in drawn.scenes], padding=True, return_tensors="pt")
    tokens.input_ids[:, 0] = model.config.text_config.bos_token_id
    labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)
    output = model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=labels)
    return {"loss": output.loss.float()}
