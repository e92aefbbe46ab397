"""fMRI encoder: augmentations, Vision Transformer, DC-MAE pre-training and contrastive mapping (Section 3.1)."""

from nfx.encoder.augmentation import interpolate_frame, interpolation_weights, spatial_mask, temporal_interpolation
from nfx.encoder.contrastive import contrastive_loss, embed, retrieval_scores, train_encoder
from nfx.encoder.losses import info_nce, info_nce_one_way, retrieval
from nfx.encoder.model import FMRIEncoder, interpolate_encoder
from nfx.encoder.pretraining import MaskedAutoencoder, dc_mae_loss, explained_variance, pretrain

__all__ = [
    "FMRIEncoder",
    "MaskedAutoencoder",
    "contrastive_loss",
    "dc_mae_loss",
    "embed",
    "explained_variance",
    "info_nce",
    "info_nce_one_way",
    "interpolate_encoder",
    "interpolate_frame",
    "interpolation_weights",
    "pretrain",
    "retrieval",
    "retrieval_scores",
    "spatial_mask",
    "temporal_interpolation",
    "train_encoder",
]
