"""What notebook 06 gathers: encoders of all stages, their attention, the categories of clips, the simulated truth
(Sections 3.3 and 5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from nfx.attention.maps import AttentionMaps, attention_maps, critical_layers, patch_means, to_cortex, to_voxels
from nfx.attention.networks import BODY_AREA, FUSIFORM, category_contrast, in_region, network_means
from nfx.attention.statistics import RankCorrelation, block_means, category_means, rank_correlation, two_sample_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nfx.encoder import FMRIEncoder
    from nfx.profile import Profile

STAGES = ("pre-trained", "contrastive", "full")


class Contrast(NamedTuple):
    """A region, two categories, and the words that name them in a caption (Figure 6d)."""

    region: str
    parcels: tuple[str, ...]
    first: str
    second: str


CONTRASTS = (
    Contrast("fusiform", FUSIFORM, "cat", "food"),
    Contrast("body area", BODY_AREA, "person", "airplane"),
)
WORDS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cats", "kitten", "kittens"),
    "food": ("burger", "food", "pizza", "cake", "sandwich", "bread", "meat", "fruit", "vegetables", "meal"),
    "person": ("person", "man", "woman", "people", "boy", "girl", "men", "women", "child", "children"),
    "airplane": ("airplane", "plane", "airplanes", "planes", "jet", "jets"),
}


def stage_encoders(profile: Profile, subject: int) -> dict[str, FMRIEncoder]:
    """The headline encoder of a subject before, between and after the two trainings.

    The pre-trained encoder was made for other voxels and single volumes. It is brought to the subject's as the
    contrastive training does when it starts; the head that this draws anew has no part in attention.

    Returns
    -------
    dict of `STAGES`, in evaluation mode

    Raises
    ------
    OSError, FileNotFoundError
        If notebook 02 or 03 has not been run for this subject and row.
    """
    from nfx.encoder import FMRIEncoder, interpolate_encoder
    from nfx.files import verified
    from nfx.paths import work
    from nfx.training import device

    row = profile.headline_row
    homes = {
        "pre-trained": (work(profile, "pretraining"), "encoder"),
        "contrastive": (work(profile, "encoder", f"subject{subject}_row{profile.encoder_row(row)}"), "encoder"),
        "full": (work(profile, "decoder", f"subject{subject}_row{row}", "pipeline"), "fmri_encoder"),
    }
    encoders = {stage: FMRIEncoder.from_pretrained(verified(*home)) for stage, home in homes.items()}
    own = encoders["full"].config
    encoders["pre-trained"] = interpolate_encoder(encoders["pre-trained"], own.voxels, own.window)
    return {stage: encoder.to(device()).eval() for stage, encoder in encoders.items()}


def attention_of_stages(encoders: Mapping[str, FMRIEncoder], bold: np.ndarray) -> dict[str, dict[str, AttentionMaps]]:
    """Attention of every stage in the first, the middle and the last layer.

    Parameters
    ----------
    encoders : stage -> FMRIEncoder
    bold : float32 (clips, window, voxels)

    Returns
    -------
    stage -> layer ("first", "middle", "last") -> AttentionMaps of the clips
    """
    return {
        stage: {
            name: attention_maps(encoder, bold, layer) for name, layer in critical_layers(encoder.config.depth).items()
        }
        for stage, encoder in encoders.items()
    }


def voxel_values(maps: AttentionMaps, encoder: FMRIEncoder) -> np.ndarray:
    """Attention received by the voxels, clip by clip: (clips, voxels)."""
    return to_voxels(maps.received, encoder.config.voxels, encoder.config.patch_size)


def mean_map(values: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Mean over clips on the cortex: (clips, voxels) to (59412,), NaN where no voxel was chosen."""
    return to_cortex(values.mean(axis=0), vertex)


def network_blocks(values: np.ndarray, network: np.ndarray, segment: np.ndarray, length: int) -> pd.DataFrame:
    """Mean attention of every network in every block of clips: DataFrame (blocks, networks)."""
    means = network_means(values, network)
    return pd.DataFrame(block_means(means.to_numpy(), segment, length), columns=means.columns)


def clip_categories(captions: Sequence[str]) -> np.ndarray:
    """Category of each clip, of `WORDS`, by the words of its caption; "" where none or several of them occur.

    The simulator's captions name the true object; for real films BLIP's captions are taken.
    """
    found = []
    for caption in captions:
        words = set(caption.lower().replace(",", " ").replace(".", " ").split())
        named = [category for category, names in WORDS.items() if words & set(names)]
        found.append(named[0] if len(named) == 1 else "")
    return np.array(found)


def contrast_table(
    values: np.ndarray, parcel: np.ndarray, category: np.ndarray, clip: np.ndarray, segment: np.ndarray
) -> pd.DataFrame:
    """The two contrasts of Figure 6d: a region's attention for two categories, over runs of neighbouring clips.

    Parameters
    ----------
    values : (clips, voxels)
    parcel : (voxels,) of str
    category, clip, segment : (clips,)

    Returns
    -------
    DataFrame
        A row for each of `CONTRASTS`: region, first, second, scenes of each, and those of
        `nfx.attention.statistics.MeanTest`, NaN where the region holds no voxel or a category has less than two scenes.
    """
    rows = []
    for contrast in CONTRASTS:
        row: dict[str, Any] = {"region": contrast.region, "first": contrast.first, "second": contrast.second}
        try:
            means = category_contrast(values, in_region(parcel, contrast.parcels), category, *contrast[2:])
            chosen = [category == name for name in contrast[2:]]
            first, second = (
                category_means(mean, clip[own], segment[own]) for mean, own in zip(means, chosen, strict=True)
            )
            row |= {"scenes of first": len(first), "scenes of second": len(second)}
            row |= two_sample_test(first, second)._asdict()
        except ValueError as error:
            row["why not"] = str(error)
        rows.append(row)
    columns = ["region", "first", "second", "scenes of first", "scenes of second"]
    columns += ["difference", "t", "df", "p", "permutation_p", "effect", "why not"]
    return pd.DataFrame(rows).reindex(columns=columns)


def category_maps(values: np.ndarray, vertex: np.ndarray, category: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Maps of Figure 6d: region -> category -> (59412,); a category without a clip shows nothing."""
    maps: dict[str, dict[str, np.ndarray]] = {}
    for contrast in CONTRASTS:
        chosen = {name: values[category == name] for name in contrast[2:]}
        if all(len(part) for part in chosen.values()):
            maps[contrast.region] = {name: mean_map(part, vertex) for name, part in chosen.items()}
    return maps


def true_share(profile: Profile, subject: int, vertex: np.ndarray) -> np.ndarray:
    """True share of a single trial's variance that the film explains in each voxel, of the simulator: (voxels,).

    Parameters
    ----------
    vertex : int (voxels,), grayordinates

    Raises
    ------
    ValueError
        If the simulator wrote no truth for a voxel.
    """
    from nfx.files import load_arrays
    from nfx.paths import data_set

    truth = load_arrays(data_set(profile) / "truth" / f"subject{subject}", "grayordinate", "share")
    order = np.argsort(truth["grayordinate"])
    place = np.searchsorted(truth["grayordinate"], vertex, sorter=order)
    if not np.array_equal(truth["grayordinate"][order[np.minimum(place, len(order) - 1)]], vertex):
        raise ValueError(f"subject {subject}: voxels that the simulator did not write; run notebook 01 again")
    return np.asarray(truth["share"])[order[place]]


def share_table(maps: Mapping[str, Mapping[str, AttentionMaps]], share: np.ndarray, patch_size: int) -> pd.DataFrame:
    """Rank correlation of received attention with the patches' true share, for every stage and layer.

    Parameters
    ----------
    maps : of `attention_of_stages`
    share : (voxels,), of `true_share`

    Returns
    -------
    DataFrame with columns stage, layer, rho, p, shifts
    """
    truth = patch_means(share, patch_size)
    rows = []
    for stage, layers in maps.items():
        for layer, found in layers.items():
            result: RankCorrelation = rank_correlation(found.received.mean(axis=0), truth)
            rows.append({"stage": stage, "layer": layer, **result._asdict()})
    return pd.DataFrame(rows)


def figure_share(maps: Mapping[str, Mapping[str, AttentionMaps]], share: np.ndarray, patch_size: int) -> Figure:
    """Received attention of every patch in the last layer over its true signal share, a panel a stage."""
    from nfx.attention.figures import STAGE_COLOURS
    from nfx.plots import new_figure

    truth = patch_means(share, patch_size)
    fig = new_figure(3.6 * len(maps) + 0.4, 3.6)
    axes = np.atleast_1d(fig.subplots(1, len(maps), sharex=True))
    for k, (ax, (stage, layers)) in enumerate(zip(axes, maps.items(), strict=True)):
        received = layers["last"].received.mean(axis=0)
        result = rank_correlation(received, truth)
        ax.scatter(truth, received, s=16, color=STAGE_COLOURS[k % len(STAGE_COLOURS)], edgecolor="#444444", lw=0.3)
        ax.set(title=f"{stage}\nrho {result.rho:.2f}, p {result.p:.3f}", xlabel="true signal share of the patch")
    axes[0].set_ylabel("attention received, last layer")
    return fig


def total_blocks(
    maps: Mapping[str, Mapping[str, AttentionMaps]], segment: np.ndarray, length: int
) -> dict[str, pd.DataFrame]:
    """Total attention in the last layer of every block of clips: stage -> DataFrame (blocks, "total")."""
    return {
        stage: pd.DataFrame({"total": block_means(layers["last"].total, segment, length)})
        for stage, layers in maps.items()
    }
