"""Controls: take something away from the headline row's decoder, and see whether what is decoded goes with it.

The paper claims that its clips come from the brain and not from the diffusion prior. Each control here breaks one link
between brain and film; its clips are decoded from the same noise, scored against their own truth, and compared clip by
clip with those of the untouched decoder. The time-averaged control of Section 5.2 is that of
`nfx.evaluation.decoded.decode_run`.

Decoding alone, with the trained decoder as it is:

- ``shuffled``: blocks of clips exchange their recordings, so that every clip is decoded from those of another block.
- ``other_subject``: the recordings of the next subject, at this subject's own vertices.
- ``condition_dropped``: the null condition alone. Windows of zeros are decoded: then condition and null condition are
  the same, and guidance, which weighs their difference, has nothing to weigh.

Trained anew, all else equal:

- ``untrained_encoder``: an encoder of fresh weights, neither pre-trained nor contrastively trained, that stays as it is
  while stage two trains the UNet. Its tokens are a random projection of the recordings, in which what they hold is
  mixed but not lost: this asks what the UNet's cross-attention learns to read by itself in those steps, and need not
  destroy the decoding.
- ``non_visual``: as many voxels outside visual cortex, in phase 1 and phase 2.
- ``lag_-2``, ``lag_2``: recordings two volumes too early or too late for their clips, in phase 1 and phase 2. A
  response lasts longer than that, so that these lower what can be read and need not destroy it: see
  `nfx.evaluation.lags.lag_curve`.

Recordings are altered, and decoders trained on them, in `nfx.evaluation.altered`; what comes out is compared in
`nfx.evaluation.control_tables`. What is trained goes to ``work/<profile>_<control>``, laid out as ``work/<profile>``,
and what is decoded to ``work/<profile>/controls/<control>_subject<k>``; nothing that stands in ``work/<profile>`` is
changed. One command a control: ``python -m nfx.evaluation.interventions NAME SUBJECT [--profile demo]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfx import files, paths
from nfx.evaluation.altered import altered_profile, array_digest, recordings_at, stage_two_facts, train_anew
from nfx.evaluation.controls import blocks
from nfx.evaluation.decoded import (
    DecodedRun,
    decode_and_score,
    decode_windows,
    evenly_spaced,
    load_decoded,
    load_pipeline,
    load_run,
    run_folder,
    sampling_facts,
    warn_of_outdated,
)
from nfx.evaluation.lags import LAG, lag_curve, recorded_at_all
from nfx.evaluation.tables import block_length

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.evaluation.interventions"
NAMES = ("shuffled", "other_subject", "condition_dropped", "untrained_encoder", "non_visual", *LAG)  # cheap ones first
TRAINED_ANEW = NAMES[3:]
TITLES = {  # in plain words, in the order of tables and figures
    "untouched": "untouched decoder",
    "time_averaged": "time-averaged fMRI",
    "shuffled": "fMRI of other clips",
    "other_subject": "fMRI of another subject",
    "condition_dropped": "no fMRI (null condition)",
    "untrained_encoder": "untrained, frozen encoder",
    "non_visual": "non-visual voxels",
    "lag_-2": "fMRI 2 volumes too early",
    "lag_2": "fMRI 2 volumes too late",
}


# --- decoding ------------------------------------------------------------------------------------------------


def control_folder(profile: Profile, name: str, subject: int) -> Path:
    """``work/<profile>/controls/<name>_subject<k>``: a control's decoded clips and their scores."""
    return paths.work(profile, "controls", f"{name}_subject{subject}")


def decode(profile: Profile, name: str, subject: int) -> Path:
    """Decode a subject's test clips under one of the controls `NAMES`, training first where it must, and score them.

    Clips and noise are those of `nfx.evaluation.decoded.decode_run` with the headline row. The controls that move the
    recordings decode the clips that have a recording at both lags. A finished control is reused.

    Returns
    -------
    Path
        `control_folder`; read it with `load`.

    Raises
    ------
    FileNotFoundError
        If data, decoder or, of another subject, recordings are missing.
    ValueError
        If the name is unknown; or the control is impossible: a single subject, too few voxels or clips, a vertex that
        the other subject's files lack.
    """
    from nfx.data import load_subject, windows

    if name not in NAMES:
        raise ValueError(f"there is no control '{name}': expected one of {', '.join(NAMES)}")
    data = load_subject(profile, subject)
    chosen = evenly_spaced(len(data.test.clip), profile.sampling.test_clips)
    pipeline = run_folder(profile, subject, profile.headline_row) / "pipeline"
    if name == "shuffled":
        segment = data.test.segment[chosen]
        fmri = data.test.fmri[chosen][exchange_blocks(segment, block_length(segment), profile.seed)]
    elif name == "other_subject":
        recordings = recordings_at(profile, next_subject(profile, subject), "test", data.vertex)
        fmri = windows(recordings, data.test.segment, profile.data.window)[chosen]
    elif name == "condition_dropped":
        fmri = np.zeros_like(data.test.fmri[chosen])
    else:
        altered, pipeline = train_anew(profile, name, subject)
        if name in LAG:
            chosen = chosen[recorded_at_all(data.test.segment, tuple(LAG.values()))[chosen]]
        fmri = altered.test.fmri[chosen]
    numbers = len(data.train.clip) + len(data.validation.clip) + chosen  # of the clips' noise, as in `decode_run`
    facts = {
        "control": name,
        "pipeline": files.identity(pipeline),
        "fmri": array_digest(fmri),
        "clips": chosen,
        **sampling_facts(profile),
    }
    # Models are loaded when they are first asked for: a finished control needs none.
    loaded = cache(lambda: load_pipeline(pipeline))

    def decoder(block: slice) -> np.ndarray:
        return decode_windows(profile, loaded(), numbers[block], fmri=fmri[block])

    return decode_and_score(profile, control_folder(profile, name, subject), {"test": chosen}, {"test": decoder}, facts)


def load(profile: Profile, name: str, subject: int) -> DecodedRun:
    """The clips and scores that `decode` has written; `validation` is None.

    Raises
    ------
    FileNotFoundError, ValueError
        If they are not there, were decoded with a decoder that has since been trained anew, or files are damaged.
    """
    folder, again = control_folder(profile, name, subject), f"{COMMAND} {name} {subject} --profile {profile.name}"
    if not _is_there(folder):
        raise FileNotFoundError(f"{folder} holds no decoded clips: run {again}")
    if _is_outdated(profile, name, subject):
        raise ValueError(f"{folder} was decoded with an earlier decoder than there is now: run {again}")
    return load_decoded(profile, folder)


def decoded(profile: Profile, subject: int) -> dict[str, DecodedRun]:
    """The subject's controls that are there, the time-averaged one among them: title -> clips and scores.

    A control of an earlier decoder is left out, with a warning: what is trained anew must not stop what shows it.
    """
    runs = {}
    if _is_there(run_folder(profile, subject, profile.headline_row, time_averaged=True)):
        runs[TITLES["time_averaged"]] = load_run(profile, subject, profile.headline_row, time_averaged=True)
    there = [name for name in NAMES if _is_there(control_folder(profile, name, subject))]
    outdated = [name for name in there if _is_outdated(profile, name, subject)]
    warn_of_outdated(outdated, f"subject {subject}'s decoder is newer")
    current = [name for name in there if name not in outdated]
    return runs | {TITLES[name]: load_decoded(profile, control_folder(profile, name, subject)) for name in current}


def _is_outdated(profile: Profile, name: str, subject: int) -> bool:
    """Whether a control that is there was made from an earlier decoder, or with other settings of training."""
    if name not in TRAINED_ANEW:
        made_with = files.read_manifest(control_folder(profile, name, subject))["facts"]["decoding"]["pipeline"]
        return made_with != files.identity(run_folder(profile, subject, profile.headline_row) / "pipeline")
    decoder = run_folder(altered_profile(profile, name), subject, profile.headline_row) / "pipeline"
    if not (decoder / files.MANIFEST).is_file():  # deleted to make room: the clips count on
        return False
    made_with = files.read_manifest(decoder)["facts"]
    return any(made_with.get(key) != value for key, value in files.as_json(stage_two_facts(profile)).items())


def _is_there(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (files.MANIFEST, "scores.csv"))


# --- what is taken away --------------------------------------------------------------------------------------


def exchange_blocks(segment: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Which clip's recording each clip is decoded from when whole blocks exchange theirs; none keeps its own.

    A derangement of the blocks of `nfx.evaluation.controls.blocks`, drawn at random. The k-th clip of a block gets the
    k-th recording of the other; where that block is shorter, its last one again.

    Parameters
    ----------
    segment : (clips,)
    length : clips a block
    seed : of the derangement

    Returns
    -------
    int (clips,)

    Raises
    ------
    ValueError
        If all clips are one block.
    """
    number = blocks(segment, length)
    members = [np.flatnonzero(number == block) for block in range(number[-1] + 1)]
    if len(members) < 2:
        raise ValueError(f"{len(number)} clips are one block of {length}: exchanging recordings needs two or more")
    generator, itself = np.random.default_rng(seed), np.arange(len(members))
    giver = generator.permutation(len(members))
    while (giver == itself).any():
        giver = generator.permutation(len(members))
    given = [
        members[other][np.minimum(np.arange(len(own)), len(members[other]) - 1)]
        for own, other in zip(members, giver, strict=True)
    ]
    return np.concatenate(given)


def next_subject(profile: Profile, subject: int) -> int:
    """The subject after this one in the profile, the first after the last; ValueError if there is no other."""
    subjects = profile.data.subjects
    if len(subjects) < 2:
        raise ValueError(f"profile '{profile.name}' has subject {subject} alone: this control needs another")
    return subjects[(subjects.index(subject) + 1) % len(subjects)]


# --- the command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: one control, or the lag curve, of one subject."""
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(prog=COMMAND, description="Run one control of a subject's decoder.")
    parser.add_argument("name", help=f"{', '.join(NAMES)}, or lag_curve")
    parser.add_argument("subject", type=int)
    parser.add_argument("--profile", default="demo", help="demo, paper, or a YAML file; default: demo")
    given: Any = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        if given.subject not in profile.data.subjects:
            raise ValueError(f"subject is {given.subject}, expected one of {list(profile.data.subjects)}")
        if given.name == "lag_curve":
            print(lag_curve(profile, given.subject).to_string(index=False))
        else:
            print(decode(profile, given.name, given.subject))
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"{COMMAND}: {error}")


if __name__ == "__main__":
    main()
