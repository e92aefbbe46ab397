"""From Stable Diffusion's image UNet to a video UNet (Section 3.2.2).

"Pseudo-3D" convolution means a kernel of 1x3x3, that is the image UNet's own convolution applied to each frame. So the
frames are folded into the batch, every layer of the image UNet works on frames as on images, its normalisation
included, and only the added temporal attention unfolds them.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar, overload

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

__all__ = [
    "ModelMixin",
    "TemporalAttention",
    "VideoTransformerBlock",
    "VideoUNet",
    "as_image_unet",
    "inflate",
    "temporal_mask",
]
# diffusers looks for `ModelMixin` in the module of a pipeline's component, to learn how to load it.

Init = TypeVar("Init", bound=Callable[..., None])
PREVIOUS_FRAMES = 2  # "each visual token [attends] to tokens from the previous two frames"


def temporal_mask(frames: int, device: torch.device | str | None = None) -> Tensor:
    """(frames, frames), true where frame i (row) may see frame j (column): ``max(0, i - 2) <= j <= i``."""
    index = torch.arange(frames, device=device)
    distance = index[:, None] - index[None, :]
    return (distance >= 0) & (distance <= PREVIOUS_FRAMES)


class TemporalAttention(nn.Module):
    """Attention of a location to itself in this and the previous two frames (Eq. 6).

    The queries, keys and values start as those of the spatial self-attention before it, the output weight and bias at
    zero: the layer then adds nothing, and the video UNet equals the image UNet exactly. The start is a copy rather than
    a random draw, so inflation is the same every time.

    A frame's index is added to the normalised input as a sinusoid, which has no parameters. Attention treats what it
    sees as a set: without an index it could not know which of two frames came first, so neither whether an object moves
    left or right. The paper does not mention one.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.heads = attention.heads
        self.to_q = copy.deepcopy(attention.to_q)
        self.to_k = copy.deepcopy(attention.to_k)
        self.to_v = copy.deepcopy(attention.to_v)
        weight = attention.to_q.weight
        self.to_out = nn.Linear(weight.shape[0], weight.shape[1], device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """(batch * frames, locations, dim) to the same; the frames of a clip stand together."""
        folded, locations, dim = hidden.shape
        hidden = hidden.reshape(folded // frames, frames, locations, dim)
        index = torch.arange(frames, device=hidden.device)
        hidden = hidden + get_timestep_embedding(index, dim, downscale_freq_shift=0)[:, None].to(hidden.dtype)

        # (batch, frames, locations, heads * d) -> (batch, locations, heads, frames, d)
        q, k, v = (
            layer(hidden).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        # Written out: frames x frames is tiny and the locations are many, which fused kernels are not made for.
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        scores = scores.masked_fill(~temporal_mask(frames, hidden.device), -math.inf)
        mixed = scores.softmax(dim=-1) @ v
        return self.to_out(mixed.permute(0, 3, 1, 2, 4).reshape(folded, locations, -1))


class VideoTransformerBlock(nn.Module):
    """A transformer block of Stable Diffusion with a temporal attention after its spatial self-attention.

    Order: spatial self-attention (``attn1``), temporal attention (``attn_temp``, with its own norm), cross-attention
    (``attn2``), feed-forward. The layers of the image block keep their names, so its weights load unchanged.
    """

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        if block.norm_type != "layer_norm" or block.attn2 is None or block.only_cross_attention or block.pos_embed:
            raise ValueError(
                "Only the transformer blocks of Stable Diffusion can be inflated (layer norm, self-attention, then "
                f"cross-attention), but this one has norm_type {block.norm_type!r}."
            )
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff
        self.start_temporal()

    def start_temporal(self) -> None:
        """(Re)build the temporal attention from the spatial one, with a zero output."""
        self.norm_temp = copy.deepcopy(self.norm1)
        self.attn_temp = TemporalAttention(self.attn1)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """(batch * frames, locations, dim) to the same. ``encoder_hidden_states`` is (batch, tokens, token dim).

        The arguments are those with which diffusers calls a block. The number of frames comes with
        ``cross_attention_kwargs``, which diffusers hands down to every block, so that no module has to remember it.
        """
        assert cross_attention_kwargs is not None  # `VideoUNet.forward` gives them
        frames = cross_attention_kwargs["frames"]
        hidden = self.attn1(self.norm1(hidden_states)) + hidden_states
        hidden = hidden + self.attn_temp(self.norm_temp(hidden), frames)
        # A clip's frames share its tokens: side by side as queries they need those keys and values only once.
        clips = hidden.reshape(-1, frames * hidden.shape[1], hidden.shape[2])
        clips = clips + self.attn2(self.norm2(clips), encoder_hidden_states=encoder_hidden_states)
        hidden = clips.reshape(hidden.shape)
        return hidden + self.ff(self.norm3(hidden))


def as_image_unet(init: Init) -> Init:
    """A constructor with the signature of the image UNet's, from which diffusers reads what the configuration holds."""
    functools.update_wrapper(init, UNet2DConditionModel.__init__)
    return init


class VideoUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet for videos; made by `inflate`, saved and loaded as any diffusers model.

    Its configuration is that of the image UNet. Every parameter that the image UNet lacks has ``temp`` in its name.
    """

    _no_split_modules = ["VideoTransformerBlock", "ResnetBlock2D", "CrossAttnUpBlock2D"]

    @as_image_unet
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lists = [m for m in self.modules() if hasattr(m, "transformer_blocks")]
        if not lists:
            raise ValueError("This UNet has no transformer blocks, so there is no place for temporal attention.")
        for module in lists:
            module.transformer_blocks = nn.ModuleList(VideoTransformerBlock(b) for b in module.transformer_blocks)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict the noise (or v) of a video.

        Parameters
        ----------
        sample
            Noisy latents, (batch, channels, frames, height, width).
        timestep
            Diffusion step, one number or (batch,).
        encoder_hidden_states
            Condition, (batch, tokens, token dim), the same for all frames of a clip.

        Returns
        -------
        An object with ``.sample``, of the shape of ``sample``; with ``return_dict=False`` a tuple that holds it.
        """
        if sample.ndim != 5:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, expected (batch, channels, frames, height, width)."
            )
        batch, _, frames, _, _ = sample.shape
        if len(encoder_hidden_states) != batch:
            raise ValueError(f"{len(encoder_hidden_states)} conditions for {batch} clips: give one per clip.")
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.ndim == 1:
            timestep = timestep.expand(batch).repeat_interleave(frames)
        predicted = super().forward(
            sample.transpose(1, 2).flatten(0, 1),
            timestep,
            encoder_hidden_states,
            cross_attention_kwargs={"frames": frames},
            return_dict=False,
        )[0]
        predicted = predicted.unflatten(0, (batch, frames)).transpose(1, 2)
        return UNet2DConditionOutput(sample=predicted) if return_dict else (predicted,)

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, output_loading_info: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @overload
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self: ...

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a snapshot, as in diffusers, but refuse one whose weights are not exactly those of this model.

        diffusers only warns and leaves the rest at random, for instance when the snapshot is an image UNet.
        """
        wanted = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        problems = [f"{len(info[k])} {k.replace('_', ' ')}, e.g. {sorted(info[k])[0]}"
                    for k in ("missing_keys", "unexpected_keys") if info[k]]  # fmt: skip
        if problems:
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a snapshot of a VideoUNet ({'; '.join(problems)}). "
                "Load an image UNet as UNet2DConditionModel, and turn it into a video UNet with nfx.diffusion.inflate."
            )
        return (model, info) if wanted else model


def inflate(unet2d: UNet2DConditionModel) -> VideoUNet:
    """Turn an image UNet into a video UNet that equals it, frame by frame, until it is trained (Section 3.2.2).

    ``unet2d`` is left as it was; nothing is shared. The result has its weights, device and type, and in each
    transformer block a `TemporalAttention` whose output is zero.
    """
    config = {k: v for k, v in unet2d.config.items() if not k.startswith("_")}
    with torch.device("meta"):  # no memory for, and no random draws in, weights that are replaced at once
        video = VideoUNet(**config)
    video.load_state_dict({k: v.clone() for k, v in unet2d.state_dict().items()}, strict=False, assign=True)
    for module in video.modules():
        if isinstance(module, VideoTransformerBlock):
            module.start_temporal()
    left = [name for name, parameter in video.named_parameters() if parameter.is_meta]
    if left:
        raise ValueError(f"The image UNet lacks {len(left)} weights of its own configuration, e.g. {left[0]}.")
    return video.train(unet2d.training)
