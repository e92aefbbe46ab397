"""The fMRI encoder E_f: a Vision Transformer over patches of voxels and frames of a window (Sections 3.1, 4.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from nfx.files import read_json, require_exact_weights


def sin_cos_positions(count: int, dim: int) -> Tensor:
    """Fixed 1-D sine-cosine positions, as the masked autoencoder's: (count, dim), first the sines, then the cosines."""
    if dim % 2:
        raise ValueError(f"sine-cosine positions need an even dim, got {dim}")
    frequency = 10_000.0 ** (-torch.arange(dim // 2) / (dim / 2))
    angle = torch.arange(count)[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def interpolate_positions(positions: Tensor, count: int) -> Tensor:
    """Positions (old count, dim) stretched linearly to (count, dim).

    Both ends stay: voxels are ordered along the visual hierarchy, so the first patch is early visual cortex whatever
    their number.
    """
    if count == len(positions):
        return positions.clone()
    return F.interpolate(positions.T[None], size=count, mode="linear", align_corners=True)[0].T.contiguous()


class Attention(nn.Module):
    """Multi-head self-attention over the second last axis."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # each (n, length, heads, dim / heads)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -3)  # one leading axis: the fused kernels take four axes with the heads
        attended = F.scaled_dot_product_attention(*self._split(flat))
        return self.out(attended.transpose(1, 2).flatten(2)).view_as(x)

    def maps(self, x: Tensor) -> Tensor:
        """Softmax maps (..., heads, length, length); a row holds what one position attends to and sums to 1."""
        q, k, _ = self._split(x.flatten(0, -3))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return weights.unflatten(0, x.shape[:-2])


class Layer(nn.Module):
    """Pre-norm attention over the patches of a frame, attention over the frames of a patch, and an MLP of ratio 1.

    The temporal attention's output weight and bias start at zero, so that the layer starts as the pre-trained, purely
    spatial one. A window of one frame has no other frame to attend to: the temporal attention is then left out.
    """

    def __init__(self, dim: int, heads: int, temporal: bool = True) -> None:
        super().__init__()
        self.spatial_norm = nn.LayerNorm(dim, eps=1e-6)
        self.spatial_attention = Attention(dim, heads)
        if temporal:
            self.temporal_norm = nn.LayerNorm(dim, eps=1e-6)
            self.temporal_attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.apply(_initialise)
        if temporal:
            nn.init.zeros_(self.temporal_attention.out.weight)
            nn.init.zeros_(self.temporal_attention.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.spatial_attention(self.spatial_norm(x))  # (batch, window, patches, dim)
        if x.shape[1] > 1:
            by_patch = self.temporal_norm(x).transpose(1, 2)  # (batch, patches, window, dim)
            x = x + self.temporal_attention(by_patch).transpose(1, 2)
        return x + self.mlp(self.mlp_norm(x))


class Head(nn.Module):
    """Projection head: (batch, window * patches, dim) to (batch, tokens, token_dim), after MinD-Video's.

    A linear map over the token axis, a linear map of the channels with a residual MLP, and a LayerNorm: CLIP's last
    hidden state, whose place these tokens take in the UNet's cross-attention, ends in one too, and the contrastive
    loss alone would leave their scale open.
    """

    def __init__(self, positions: int, dim: int, tokens: int, token_dim: int) -> None:
        super().__init__()
        self.mapper = nn.Linear(positions, tokens, bias=False)
        self.project = nn.Linear(dim, token_dim, bias=False)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(token_dim, token_dim, bias=False))
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.mapper(x.transpose(1, 2)).transpose(1, 2))
        return self.norm(x + self.residual(x))


class FMRIEncoder(ModelMixin, ConfigMixin):
    """fMRI encoder E_f: windows of voxels to the tokens that stand where CLIP's text tokens stood.

    Parameters
    ----------
    voxels : int
        Voxels of a volume, ordered along the visual hierarchy. Padded with zeros to whole patches here.
    window : int
        Volumes of a window, w (paper: 2).
    patch_size : int
        Voxels of a patch (paper: 16).
    dim, depth, heads : int
        Width, layers and attention heads (paper: 1024, 24; 16 in the model it starts from).
    tokens, token_dim : int
        Shape of the output (paper: 77 x 768).

    Raises
    ------
    ValueError
        If a size is not positive, or dim is not an even multiple of the heads.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        voxels: int,
        window: int = 2,
        patch_size: int = 16,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        tokens: int = 77,
        token_dim: int = 768,
    ) -> None:
        super().__init__()
        sizes = {
            "voxels": voxels,
            "window": window,
            "patch_size": patch_size,
            "dim": dim,
            "heads": heads,
            "tokens": tokens,
        }
        for name, size in (sizes | {"token_dim": token_dim}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {dim} and heads {heads}")
        self.patches = math.ceil(voxels / patch_size)
        self.embed = nn.Linear(patch_size, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.gradient_checkpointing = False  # set by diffusers' enable_gradient_checkpointing
        self.head = Head(window * self.patches, dim, tokens, token_dim)
        self.register_buffer("positions", sin_cos_positions(self.patches, dim))
        _initialise(self.embed)

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

        Raises
        ------
        ValueError
            If weights are missing, unexpected, or far fewer than the sizes in config.json ask for, which is told before
            memory is taken for them.
        """
        _refuse_claims(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        wanted = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        require_exact_weights(report, pretrained_model_name_or_path, cls.__name__)
        return (model, report) if wanted else model

    def tokenize(self, bold: Tensor) -> Tensor:
        """Patch embedding: (batch, window, voxels) to tokens v_t (batch, window, patches, dim), before positions."""
        if bold.ndim != 3 or bold.shape[2] != self.config.voxels:
            raise ValueError(
                f"expected fMRI windows of shape (batch, window, {self.config.voxels}), got {tuple(bold.shape)}: an "
                "encoder is made for one subject's voxels (nfx.encoder.interpolate_encoder makes others)"
            )
        padding = self.patches * self.config.patch_size - bold.shape[2]
        return self.embed(F.pad(bold, (0, padding)).unflatten(2, (self.patches, self.config.patch_size)))

    def transform(self, tokens: Tensor) -> Tensor:
        """The layers and the last norm, for tokens (batch, frames, patches, dim), any of them, with positions added."""
        for layer in self.layers:
            checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
            tokens = self._gradient_checkpointing_func(layer, tokens) if checkpointed else layer(tokens)
        return self.norm(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens v_t (batch, window, patches, dim), augmented or not, to (batch, tokens, token_dim).

        Raises
        ------
        ValueError
            If the shape is not that of this encoder's tokens.
        """
        expected = (self.config.window, self.patches, self.config.dim)
        if tokens.ndim != 4 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(
                f"expected tokens of shape (batch, {', '.join(map(str, expected))}), got {tuple(tokens.shape)}"
            )
        return self.head(self.transform(tokens + self.positions).flatten(1, 2))

    def forward(self, bold: Tensor) -> Tensor:
        """fMRI windows (batch, window, voxels), z-scored, to (batch, tokens, token_dim)."""
        return self.encode(self.tokenize(bold))

    def attention(self, bold: Tensor, layer: int) -> Tensor:
        """Spatial softmax maps of one layer (Section 3.3).

        Parameters
        ----------
        bold : Tensor of shape (batch, window, voxels)
        layer : int
            From 0: the paper's 1st, 12th and 24th layers are 0, 11 and 23.

        Returns
        -------
        Tensor of shape (batch, window, heads, patches, patches)
            Each row (a patch that attends) sums to 1 over the last axis.

        Raises
        ------
        ValueError
            If the encoder has no such layer.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer {layer} does not exist; this encoder has layers 0 to {len(self.layers) - 1}")
        tokens = self.tokenize(bold) + self.positions
        for earlier in self.layers[:layer]:
            tokens = earlier(tokens)
        chosen = self.layers[layer]
        return chosen.spatial_attention.maps(chosen.spatial_norm(tokens))


def weight_count(
    voxels: int, window: int, patch_size: int, dim: int, depth: int, heads: int, tokens: int, token_dim: int
) -> int:
    """How many weights an encoder of these sizes has."""
    attention, norm = 4 * dim * dim + 4 * dim, 2 * dim
    layer = 2 * attention + 2 * (dim * dim + dim) + 3 * norm
    patches = math.ceil(voxels / patch_size)
    head = window * patches * tokens + dim * token_dim + token_dim * token_dim + 2 * token_dim
    return patch_size * dim + dim + depth * layer + norm + head


def _refuse_claims(folder: Path) -> None:
    """ValueError if a snapshot's config.json asks for more weights than its files have bytes.

    A layer too many costs time and memory before anything is found missing, and a damaged or hostile number asks for
    more of them than there is memory.
    """
    config = folder / "config.json"
    if not config.is_file():  # a name on the hub, or the error is diffusers' to tell
        return
    given = read_json(config)
    names = ("voxels", "window", "patch_size", "dim", "depth", "heads", "tokens", "token_dim")
    sizes: dict[str, Any] = {name: given.get(name) for name in names} if isinstance(given, dict) else {}
    wrong = [name for name in names if not isinstance(sizes.get(name), int) or sizes[name] < 1]
    if wrong:
        raise ValueError(f"{config} gives no {wrong[0]}: expected the sizes of an fMRI encoder, whole numbers above 0")
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if weight_count(**sizes) > held:
        raise ValueError(
            f"{config} asks for more weights than the {held} bytes of *.safetensors beside it can be: the snapshot is "
            "damaged or of another model: copy, download or make it again"
        )


def interpolate_encoder(
    encoder: FMRIEncoder,
    voxels: int,
    window: int | None = None,
    tokens: int | None = None,
    token_dim: int | None = None,
) -> FMRIEncoder:
    """The encoder for another number of voxels, such as a pre-trained one for a subject (Section 3.1.1).

    Patch embedding, layers and norm are copied and positions are interpolated linearly. Of the head, what keeps its
    shape is copied. Its map over the token axis has a weight for every patch of every frame; where their number
    changes no interpolation of it means anything, and it is initialised anew from the global random state (pre-
    training does not train the head anyway).

    Parameters
    ----------
    encoder : FMRIEncoder
    voxels : int
    window, tokens, token_dim : int, optional
        Kept as they are if not given.

    Returns
    -------
    FMRIEncoder
        A new one, on the same device and of the same precision; at an unchanged shape it computes the same as the old
        one.
    """
    asked = {"voxels": voxels, "window": window, "tokens": tokens, "token_dim": token_dim}
    names = ("window", "patch_size", "dim", "depth", "heads", "tokens", "token_dim")
    config = {name: encoder.config[name] for name in names} | {
        name: size for name, size in asked.items() if size is not None
    }
    new = FMRIEncoder(**config).to(encoder.device)
    if new.dtype != encoder.dtype:  # diffusers warns at every cast, also where nothing changes
        new = new.to(encoder.dtype)
    same_grid = (new.config.window, new.patches) == (encoder.config.window, encoder.patches)
    weights = new.state_dict()
    for name, old in encoder.state_dict().items():
        if name == "positions":
            weights[name] = interpolate_positions(old, new.patches)
        elif old.shape == weights[name].shape and (same_grid or not name.startswith("head.mapper")):
            weights[name] = old.clone()
    new.load_state_dict(weights)
    return new


def _initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as in the masked autoencoder."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
