"""Evaluation (Sections 4.1 and 5): scores, controls, published numbers and figures."""

from nfx.evaluation.classifiers import image_logits, score_clips, video_logits
from nfx.evaluation.n_way import n_way_chance, n_way_pairs, n_way_top_k
from nfx.evaluation.published import published
from nfx.evaluation.ssim import ssim

__all__ = [
    "image_logits",
    "n_way_chance",
    "n_way_pairs",
    "n_way_top_k",
    "published",
    "score_clips",
    "ssim",
    "video_logits",
]
