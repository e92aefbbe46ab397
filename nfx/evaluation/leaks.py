"""Do test or validation data touch anything that is trained? One function a leak, on what lies in ``work/<profile>``.

What can be made again is made again, from the recordings of the trained-on segments alone, and compared; the losses
draw from data in which everything held out is NaN; the rest is read off the manifests. `check_leaks` asks them all.
"""

from __future__ import annotations

import filecmp
import hashlib
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from nfx.evaluation.controls import category_overlap, nearest_training_clip
from nfx.files import load_arrays, read_json, read_manifest
from nfx.paths import data_set, work

if TYPE_CHECKING:
    from nfx.profile import Profile

SPOKEN_AGAIN = 48  # trained-on frames that BLIP describes anew
VISITS = 60  # batches drawn of each loss
SAME = 1e-3  # largest difference of what is made again: sums of float32 in another order
MOST_ALIKE = 0.999  # quantile of the cosines of training clips of different segments


class Leak(NamedTuple):
    """What was found of one leak: `ok` if there is none, the number that decides, and a sentence that says what it is.

    `subject` is 0 where the check is of the film or of other people.
    """

    name: str
    ok: bool
    number: float
    sentence: str
    subject: int = 0


def check_leaks(profile: Profile) -> pd.DataFrame:
    """All leak checks on what is prepared and, as far as it is there, trained.

    Returns
    -------
    DataFrame with columns name, ok, number, sentence and subject, one line a check; ``["ok"].all()`` is what to assert

    Raises
    ------
    FileNotFoundError
        If stimuli, targets or a subject are not prepared; the message names the notebook.
    """
    found = [categories(profile), near_duplicates(profile), copied_clips(profile), captions(profile)]
    found += [caption_draws(profile)]
    for subject in profile.data.subjects:
        again = prepare_again(profile, subject)
        found += [voxel_choice(profile, subject, again), normalisation(profile, subject, again)]
        found += [held_out_windows(profile, subject), window_draws(profile, subject)]
    found += [trainings(profile)]
    if (work(profile, "pretraining", "data") / "manifest.json").is_file():
        found.append(pretraining_people(profile))
    return pd.DataFrame(found)


def sentences(table: pd.DataFrame, width: int = 100) -> list[str]:
    """The table of `check_leaks`, to be read: the film first, then each subject; no line is longer than `width`."""
    told = []
    for subject, checks in table.groupby("subject", sort=False):
        told.append(f"subject {subject}" if subject else "film, captions and trainings")
        for check in checks.itertuples():
            text = f"{'ok' if check.ok else 'LEAK':6s}{check.name}: {check.sentence}"
            told += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
    return told


# --- the film ------------------------------------------------------------------------------------------------


def categories(profile: Profile) -> Leak:
    """Does the test film show categories that were never trained on? The number is the overlap of the two sets.

    Some overlap is part of the data (the paper measures 0.56, Section 4.2) and no leak. It is one if the test film
    has nothing new: then every score could be had by telling apart what was trained on. Categories are the simulator's
    frame classes, or the image classifier's label of the third frame of each clip for real films.
    """
    train, test = (_categories(profile, part) for part in ("train", "test"))
    seen, shown = set(train[trained_on(profile)].tolist()), set(test.tolist())
    new = len(shown - seen)
    sentence = f"{new} of {len(shown)} categories of the test film are never trained on"
    return Leak("categories", new > 0, category_overlap(seen, shown), sentence)


def near_duplicates(profile: Profile) -> Leak:
    """How many test clips are nearly the same as a trained-on clip, by CLIP?

    Two clips are compared frame by frame, in order (mean cosine of the image embeddings). Training clips of different
    segments (validation among them) show different film, so how alike these get says what needs no copying: the limit
    is half as far from 1 as the 99.9 % quantile of their largest cosines.
    """
    targets = load_arrays(work(profile, "targets"), "train_image_embeddings", "test_image_embeddings")
    segment = load_arrays(work(profile, "stimuli"), "train_segment")["train_segment"]
    train, test = (np.asarray(targets[f"{part}_image_embeddings"]) for part in ("train", "test"))
    return compare_embeddings(train, test, np.asarray(segment), trained_on(profile))


def compare_embeddings(train: np.ndarray, test: np.ndarray, segment: np.ndarray, trained: np.ndarray) -> Leak:
    """`near_duplicates`, of image embeddings.

    Parameters
    ----------
    train, test : (clips, frames, dim)
    segment : (training clips,)
    trained : int, the training clips that are trained on
    """
    train, test = _frame_by_frame(train), _frame_by_frame(test)
    cosine = train @ train.T
    cosine[segment[:, None] == segment[None]] = -1
    limit = 1 - (1 - float(np.quantile(cosine.max(axis=1), MOST_ALIKE))) / 2
    nearest = nearest_training_clip(train[trained], test)[1]
    count = int((nearest > limit).sum())
    if limit > 1 - 1e-9:
        told = "training segments repeat each other, so that CLIP cannot tell near-duplicates from repeats"
        return Leak("near-duplicates", False, count, told)
    told = f"{count} of {len(test)} test clips have a trained-on clip at a cosine above {limit:.5f}"
    return Leak("near-duplicates", count == 0, count, f"{told}; the largest is {nearest.max():.5f}")


def copied_clips(profile: Profile) -> Leak:
    """How many validation or test clips are, to the pixel, a trained-on clip? Clips of a single colour do not count."""
    arrays = load_arrays(work(profile, "stimuli"), "train_clips", "test_clips")
    chosen = trained_on(profile)
    held_out = np.setdiff1d(np.arange(len(arrays["train_clips"])), chosen)
    seen = set(_digests(arrays["train_clips"][i] for i in chosen))
    others = [arrays["train_clips"][i] for i in held_out] + list(arrays["test_clips"])
    count = sum(digest in seen for digest in _digests(others))
    told = f"{count} of {len(others)} validation and test clips are to the pixel a trained-on clip"
    return Leak("copied clips", count == 0, count, told)


# --- captions ------------------------------------------------------------------------------------------------


def captions(profile: Profile, spoken_again: int = SPOKEN_AGAIN) -> Leak:
    """Does a trained-on frame point to a caption that is not its own?

    Captions and caption tokens of all clips stand in one list, those that occur in the test film alone among them. A
    trained-on frame has its own only if the embedding kept with the frame is the one that the caption's other frames
    have, and if BLIP, asked again about some evenly spaced frames, says the same.
    """
    from nfx.data.targets import caption_frames, load_targets

    names = [f"{part}_{what}" for part in ("train", "test") for what in ("caption", "text_embeddings")]
    targets = load_targets(profile, *names)
    chosen = trained_on(profile)
    row, text = np.asarray(targets["train_caption"])[chosen], np.asarray(targets["train_text_embeddings"])[chosen]
    others = np.asarray(targets["test_caption"]), np.asarray(targets["test_text_embeddings"])
    wrong = {(int(clip), int(frame)) for clip, frame in zip(*_not_their_own(row, text, *others), strict=True)}

    clips = load_arrays(work(profile, "stimuli"), "train_clips")["train_clips"]
    places = np.unravel_index(np.linspace(0, row.size - 1, min(spoken_again, row.size)).astype(int), row.shape)
    frames = np.stack([clips[chosen[clip], frame] for clip, frame in zip(*places, strict=True)])
    for clip, frame, said in zip(*places, caption_frames(frames, profile.models.blip), strict=True):
        if said != targets["captions"][row[clip, frame]]:
            wrong.add((int(clip), int(frame)))
    alone = len(np.setdiff1d(others[0], row))
    told = f"{len(wrong)} of {row.size} trained-on frames point to a caption that is not their own"
    return Leak("captions", not wrong, len(wrong), f"{told}; {alone} captions occur in the test film alone")


def caption_draws(profile: Profile, visits: int = VISITS) -> Leak:
    """How many batches of stage one's loss hold anything of a clip that is not trained on?

    The loss is that of the training, with its choice of clips; latents of held-out clips, and the tokens of captions
    that no trained-on frame has, are NaN, and an output that is the condition itself shows them.
    """
    from nfx.diffusion import fine_tuning

    caption = np.asarray(load_arrays(work(profile, "targets"), "train_caption")["train_caption"])
    count = len(read_json(work(profile, "targets") / "captions.json"))
    tokens = np.full((count, 1, 1), np.nan, np.float32)
    tokens[np.unique(caption[trained_on(profile)])] = 0
    latents, training = (
        _poisoned(profile, (caption.shape[1], 1, 1, 1)),
        fine_tuning._training_clips(profile, len(caption)),
    )
    loss = fine_tuning.caption_loss(
        latents[training], caption[training], tokens, _zeros(1, 1), _scheduler(profile),
        beta=0.0, batch_size=profile.stage_one.batch_size, dropout=0.0,
    )  # fmt: skip
    bad = _bad_batches(_echo(), loss, visits)
    told = f"{bad} of {visits} batches of stage one hold a latent or a caption of clips that are not trained on"
    return Leak("caption draws", bad == 0, bad, told)


# --- recordings ----------------------------------------------------------------------------------------------


class Again(NamedTuple):
    """Made again from the recordings of the trained-on segments: t of every cortical vertex, `vertex`, and rows `fmri`.

    `fmri` (clips, voxels) are the means over repeats at the voxels that were chosen, clips as `trained_on`.
    """

    vertex: np.ndarray
    t: np.ndarray
    fmri: np.ndarray


def prepare_again(profile: Profile, subject: int) -> Again:
    """Clean a subject's trained-on recordings anew and correlate their repeats; no other recording is opened."""
    from nfx.data import clean_film, grayordinate, read_cifti, subject_runs
    from nfx.data.voxels import correlation, t_test_of_correlations

    data = profile.data
    chosen = np.asarray(load_arrays(work(profile, f"subject{subject}"), "vertex")["vertex"])
    runs = [run for run in subject_runs(profile, subject) if run.repeat <= data.train_repeats]
    correlations, means, places = [], [], np.zeros(0, int)
    numbers = [n for n in range(1, data.train_segments + 1) if n not in data.validation_segments]
    for number in tqdm(numbers, desc=f"recordings, subject {subject}", leave=False, mininterval=5):
        cleaned = []
        for run in (r for r in runs if r.segment == f"seg{number}"):
            if f"subject{subject}/{run.segment}_{run.repeat}" in data.exclude_runs:
                continue
            cifti = read_cifti(run.path)
            everywhere = grayordinate(*cifti[1:])
            cortex = np.flatnonzero(everywhere >= 0)
            places = everywhere[cortex]
            with warnings.catch_warnings():  # of constant vertices, which the preparation has counted
                warnings.simplefilter("ignore")
                cleaned.append(clean_film(run, cifti.data[:, cortex], data.train_volumes))
        if len(cleaned) >= 2:
            correlations.append(correlation(cleaned[0], cleaned[1]))
        if cleaned:
            means.append(np.stack(cleaned).mean(axis=0, dtype=np.float64)[:, _places_of(chosen, places)])
    return Again(places, t_test_of_correlations(np.stack(correlations))[0], np.concatenate(means))


def voxel_choice(profile: Profile, subject: int, again: Again | None = None) -> Leak:
    """Were voxels chosen on the trained-on segments alone? The number is the largest difference of t from theirs."""
    from nfx.data import choose_voxels

    again = again or prepare_again(profile, subject)
    names = ("vertex", "reproducibility_vertex", "reproducibility_t", "reproducibility_p")
    vertex, places, t, p = (np.asarray(a) for a in load_arrays(work(profile, f"subject{subject}"), *names).values())
    if not np.array_equal(places, again.vertex):
        return Leak("voxel choice", False, np.inf, "the reproducibility belongs to other vertices", subject)
    difference = float(np.abs(t - again.t).max())
    same = set(vertex.tolist()) == set(places[choose_voxels(t, p, profile.data.alpha, profile.data.keep)].tolist())
    told = f"t of {len(t)} vertices differs by {difference:.1g} at most from that of the trained-on recordings alone"
    told += "" if same else "; the voxels are not those that t chooses"
    return Leak("voxel choice", difference < SAME * max(1, np.abs(t).max()) and same, difference, told, subject)


def normalisation(profile: Profile, subject: int, again: Again | None = None) -> Leak:
    """Do other recordings have a part in the training data's mean or scale?

    Each run is z-scored by itself. So the trained-on rows, made again from their own recordings with no other file
    opened, must come out the same; the number is the largest difference.
    """
    again = again or prepare_again(profile, subject)
    fmri = load_arrays(work(profile, f"subject{subject}"), "train_fmri")["train_fmri"][trained_on(profile)]
    difference = float(np.abs(fmri - again.fmri).max()) if fmri.shape == again.fmri.shape else np.inf
    told = f"trained-on recordings differ by {difference:.1g} at most from what they alone give, run by run"
    return Leak("normalisation", difference < SAME, difference, told, subject)


def held_out_windows(profile: Profile, subject: int) -> Leak:
    """Does a training window hold a volume of a validation or test run, and does each part keep to its segments?"""
    from nfx.data import load_subject

    data = load_subject(profile, subject)
    held_out = set(profile.data.validation_segments)
    wrong = (
        np.isin(data.train.segment, list(held_out)).sum() + (~np.isin(data.validation.segment, list(held_out))).sum()
    )
    wrong += len(np.intersect1d(data.train.clip, data.validation.clip))
    seen = set(_digests(data.train.fmri.reshape(-1, data.train.fmri.shape[-1])))
    others = np.concatenate([data.validation.fmri[:, 0], data.test.fmri[:, 0]])
    copied = sum(digest in seen for digest in _digests(others))
    told = f"{wrong} windows are in a part that their segment is not of, and {copied} of {len(others)} held-out volumes"
    return Leak("held-out windows", wrong + copied == 0, int(wrong + copied), f"{told} are trained on", subject)


def window_draws(profile: Profile, subject: int, visits: int = VISITS) -> Leak:
    """How many batches of stage two's loss hold anything that is not trained on? As `caption_draws`."""
    from torch import nn

    from nfx.diffusion import fine_tuning

    segment = np.asarray(load_arrays(work(profile, f"subject{subject}"), "train_segment")["train_segment"])
    fmri, latents = _poisoned(profile, (1,)), _poisoned(profile, (profile.data.frames, 1, 1, 1))
    training = fine_tuning._training_clips(profile, len(segment))
    windows = fine_tuning.fmri_windows(fmri, segment, profile.data.window)[training]
    loss = fine_tuning.fmri_loss(
        latents[training], windows, _scheduler(profile), beta=0.0, batch_size=profile.stage_two.batch_size, dropout=0.0
    )
    reach = int(np.isnan(windows).any(axis=(1, 2)).sum())
    bad = _bad_batches(nn.ModuleDict({"unet": _echo(), "fmri_encoder": nn.Identity()}), loss, visits)
    told = f"{bad} of {visits} batches of stage two hold a volume or a latent of clips that are not trained on"
    told += f", and {reach} of {len(windows)} training windows reach into a held-out segment"
    return Leak("window draws", bad + reach == 0, bad + reach, told, subject)


# --- trainings -----------------------------------------------------------------------------------------------


def trainings(profile: Profile) -> Leak:
    """Did every finished training hold out the validation segments, and read the arrays that are checked here?"""
    wrong, finished = [], 0
    for path in sorted(_training_manifests(profile)):
        finished += 1
        facts = read_manifest(path.parent)["facts"]
        kept = facts.get("validation_segments") == list(profile.data.validation_segments)
        digests = _digests_of(work(profile, "targets")) | _digests_of(
            work(profile, f"subject{facts.get('subject', 0)}")
        )
        used = {**facts.get("targets", {}), **facts.get("fmri", {})}
        if not kept or any(digests.get(name) != digest for name, digest in used.items()):
            wrong.append(path.parent.relative_to(work(profile)).as_posix())
    told = f"{len(wrong)} of {finished} trainings have other segments held out, or were made from other arrays"
    return Leak("trainings", not wrong, len(wrong), told + (f": {', '.join(wrong[:3])}" if wrong else ""))


def pretraining_people(profile: Profile) -> Leak:
    """Is a recording that the encoder is pre-trained on, to the byte, one of the data set's subjects?

    A recording that was written anew, with other bytes, is not seen.
    """
    from nfx.data import subject_runs

    root = data_set(profile).parent / "hcp"
    names = read_manifest(work(profile, "pretraining", "data"))["facts"]["recordings"]
    own: dict[int, list[Path]] = {}
    for run in (run for subject in profile.data.subjects for run in subject_runs(profile, subject)):
        own.setdefault(run.path.stat().st_size, []).append(run.path)
    shared = [
        name
        for name in names
        if any(filecmp.cmp(root / name, path, shallow=False) for path in own.get((root / name).stat().st_size, []))
    ]
    people = len({name.split("/")[0] for name in names})
    told = f"{len(shared)} of {len(names)} recordings of pre-training, of {people} people, are the data set's own"
    return Leak("pre-training people", not shared, len(shared), told + (f": {shared[0]}" if shared else ""))


def trained_on(profile: Profile) -> np.ndarray:
    """Training clips that are not held out for validation: int (clips,)."""
    segment = np.asarray(load_arrays(work(profile, "stimuli"), "train_segment")["train_segment"])
    return np.flatnonzero(~np.isin(segment, profile.data.validation_segments))


# --- helpers -------------------------------------------------------------------------------------------------


def _categories(profile: Profile, part: str) -> np.ndarray:
    if profile.simulated:
        prefix = "seg" if part == "train" else "test"
        segments = read_json(data_set(profile) / "truth" / "movie.json")["segments"]
        count = profile.data.train_segments if part == "train" else profile.data.test_segments
        shots = [shot for number in range(1, count + 1) for shot in segments[f"{prefix}{number}"]]
        return np.concatenate([np.full(shot["length"], shot["frame_class"]) for shot in shots])
    from nfx.evaluation.classifiers import image_logits

    clips = load_arrays(work(profile, "stimuli"), f"{part}_clips")[f"{part}_clips"]
    return image_logits(np.asarray(clips[:, 2]), profile.models.image_classifier).argmax(axis=1)


def _frame_by_frame(embeddings: np.ndarray) -> np.ndarray:
    """Normalised frames after one another, so that the product of two clips is their frames' mean cosine."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return unit.reshape(len(unit), -1) / np.sqrt(unit.shape[1])


def _digests(arrays: Iterable[np.ndarray]) -> Iterator[bytes]:
    """SHA-256 of each array's bytes; what is all one value is left out."""
    for array in arrays:
        array = np.ascontiguousarray(array)
        if array.min() != array.max():
            yield hashlib.sha256(array.tobytes()).digest()


def _not_their_own(
    row: np.ndarray, text: np.ndarray, other_row: np.ndarray, other_text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places (clip, frame) in `row` whose embedding is not that of the caption's other frames, test frames first."""
    rows = np.concatenate([other_row.ravel(), row.ravel()])
    texts = np.concatenate([other_text.reshape(-1, other_text.shape[-1]), text.reshape(-1, text.shape[-1])])
    first = np.zeros(rows.max() + 1, int)
    unique, where = np.unique(rows, return_index=True)
    first[unique] = where
    same = np.isclose(texts[first[row.ravel()]], text.reshape(-1, text.shape[-1]), atol=1e-5).all(axis=-1)
    clip, frame = np.nonzero(~same.reshape(row.shape))
    return clip, frame


def _poisoned(profile: Profile, shape: tuple[int, ...]) -> np.ndarray:
    """One float32 array of `shape` for each training clip, 0 for those trained on and NaN for the rest."""
    segment = load_arrays(work(profile, "stimuli"), "train_segment")["train_segment"]
    values = np.full((len(segment), *shape), np.nan, np.float32)
    values[trained_on(profile)] = 0
    return values


def _echo() -> Any:
    """In place of a video UNet: its output is NaN where its input or its condition is."""
    import torch
    from torch import nn

    class Output(NamedTuple):
        sample: torch.Tensor

    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> Output:
            return Output(sample + self.scale * condition.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1))

    return Echo()


def _bad_batches(model: Any, loss: Any, visits: int) -> int:
    """In how many of `visits` batches the loss is NaN."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return sum(bool(loss(model, step, generator)["loss"].isnan()) for step in range(visits))


def _zeros(*shape: int) -> Any:
    import torch

    return torch.zeros(shape)


def _scheduler(profile: Profile) -> Any:
    from nfx import paths
    from nfx.diffusion.fine_tuning import load_scheduler

    return load_scheduler(paths.snapshot(profile.models.stable_diffusion))


def _places_of(chosen: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Columns of the chosen grayordinates in a recording's."""
    order = np.argsort(places)
    return order[np.searchsorted(places, chosen, sorter=order)]


def _training_manifests(profile: Profile) -> list[Path]:
    patterns = ("encoder/*/manifest.json", "stage1/*/manifest.json", "decoder/*/pipeline/manifest.json")
    return [path for pattern in patterns for path in work(profile).glob(pattern)]


def _digests_of(folder: Path) -> dict[str, str]:
    if not (folder / "manifest.json").is_file():
        return {}
    return {name: array["sha256"] for name, array in read_manifest(folder)["arrays"].items()}
