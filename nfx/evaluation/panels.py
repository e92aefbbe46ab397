"""What Figures 1 and 2 are drawn from (Sections 3.1.2, 3.2.2 and 5.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from nfx.profile import Profile

SHOWN_BETAS = (0.0, 0.25, 0.5, 0.75)  # independent noise, and the ratios of Table 1


def augmented_views(profile: Profile, subject: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One test window as the trained encoder embeds it, masked (Section 3.1.2), and with its last volume interpolated.

    Returns
    -------
    tokens, masked, interpolated : float32 (window, patches, dim)
    """
    import torch

    from nfx.data import load_subject
    from nfx.encoder import FMRIEncoder, interpolate_frame, spatial_mask
    from nfx.files import verified
    from nfx.paths import work

    row = profile.row(profile.headline_row)
    name = f"subject{subject}_row{profile.encoder_row(profile.headline_row)}"
    encoder = FMRIEncoder.from_pretrained(verified(work(profile, "encoder", name), "encoder"))
    windows = load_subject(profile, subject).test.fmri
    window = torch.from_numpy(np.array(windows[len(windows) // 2][None], dtype=np.float32))
    with torch.inference_mode():
        tokens = encoder.tokenize(window)
        masked = spatial_mask(tokens, row.spatial_ratio or 0.0, torch.Generator().manual_seed(profile.seed))
        last = tokens.shape[1] - 1
        interpolated = tokens.clone()
        interpolated[:, last] = interpolate_frame(tokens, last)
    return tokens[0].numpy(), masked[0].numpy(), interpolated[0].numpy()


def noise_panels(profile: Profile, betas: Sequence[float] = SHOWN_BETAS) -> dict[float, np.ndarray]:
    """One channel of dependent noise (Eq. 7) for several beta: beta -> (frames, height, width)."""
    import torch

    from nfx.diffusion import dependent_noise

    side = max(profile.data.frame_size // 8, 8)
    shape = (1, 1, profile.data.frames, side, side)
    generators = (torch.Generator().manual_seed(profile.seed) for _ in betas)
    return {
        beta: dependent_noise(shape, beta, generator)[0, 0].numpy()
        for beta, generator in zip(betas, generators, strict=True)
    }


def ssim_bars(scores: pd.DataFrame, controls: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """SSIM of `nfx.evaluation.figures.figure_2`: ours by method, and the controls as "control: ...".

    Parameters
    ----------
    scores : `nfx.evaluation.tables.score_table` of all runs, with columns subject and method
    controls : rows of `nfx.evaluation.tables.ssim_controls`
    """
    bars = scores.loc[scores["metric"].eq("SSIM"), ["subject", "method", "mean", "low", "high"]]
    marks = [
        {"subject": row["subject"], "method": f"control: {name}", "mean": row[name]}
        for row in controls
        for name in ("permuted pairs", "mid-grey frame", "training-mean frame")
    ]
    return pd.concat([bars, pd.DataFrame(marks)], ignore_index=True)


def accuracy_bars(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracies with one correct class of all runs, for `nfx.evaluation.figures.figure_2`."""
    chosen = scores["correct"].eq(1).fillna(False)
    return scores.loc[chosen, ["subject", "method", "metric", "mean", "low", "high"]].reset_index(drop=True)
