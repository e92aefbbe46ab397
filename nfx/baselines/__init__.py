"""The four baselines of the paper as small re-implementations that run; the module of each says what it simplifies.

    python -m nfx.baselines wang2022 1

None has been checked against its authors' results, and what a module's sources do not say is our choice, named so. All
learn from the same windows of the training part as our decoder, decode the same test clips, and are scored by the same
code. Each module has ``train(profile, subject)``, which trains what is missing and returns its folder, and
``load_decoder(profile, subject)``, which returns what makes clips of windows.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nfx import files, paths

if TYPE_CHECKING:
    import numpy as np

    from nfx.evaluation.decoded import DecodedRun
    from nfx.profile import Profile

TITLES = {
    "wen2018": "after Wen 2018",
    "wang2022": "after Wang 2022",
    "kupershmidt2022": "after Kupershmidt 2022",
    "chen2023": "after Chen 2023",
}
NAMES = tuple(TITLES)


def baseline_folder(profile: Profile, name: str, subject: int) -> Path:
    """``work/<profile>/baselines/<name>_subject<k>``: the decoded clips, and below ``model`` what was trained."""
    if name not in NAMES:
        raise ValueError(f"there is no baseline '{name}', expected one of {', '.join(NAMES)}")
    return paths.work(profile, "baselines", f"{name}_subject{subject}")


def decode(profile: Profile, name: str, subject: int) -> Path:
    """Train what is not there yet, decode the test clips that `nfx.evaluation.decoded.decode_run` decodes, score them.

    A clip's noise is drawn from the same number as there. Finished results are reused, interrupted ones gone on with.

    Returns
    -------
    Path
        `baseline_folder`, with the arrays test_decoded and test_clip, scores.csv, and ``model``. Read it with `load`.

    Raises
    ------
    ValueError
        If there is no such baseline or subject, or data are damaged or do not fit.
    FileNotFoundError
        If the stimuli, the targets, the subject or, for Chen 2023, the pre-trained encoder are missing.
    """
    import numpy as np

    from nfx.data import load_subject
    from nfx.evaluation.decoded import decode_and_score, evenly_spaced, model_digest, sampling_facts

    folder = baseline_folder(profile, name, subject)
    module, data = import_module(f"nfx.baselines.{name}"), load_subject(profile, subject)
    chosen = evenly_spaced(len(data.test.clip), profile.sampling.test_clips)
    windows, clip = data.test.fmri[chosen], data.test.clip[chosen]
    if not np.isfinite(windows).all():
        raise ValueError(
            f"test_fmri of subject {subject} holds NaN or infinite values: run notebook 01_data_preparation again"
        )
    numbers = len(data.train.clip) + len(data.validation.clip) + clip  # that noise is drawn from, as in `decode_run`
    facts = {
        "model": files.identity(module.train(profile, subject)),
        "fmri": _fmri(profile, subject),
        "clips": clip,
        "baseline": files.source_digest(*module.CODE),
        # Not all baselines depend on these; decoding anew is cheap.
        "stable_diffusion": model_digest(profile.models.stable_diffusion),
        **sampling_facts(profile),
    }
    decoder = cache(lambda: module.load_decoder(profile, subject))  # loaded when first asked for

    def decode_block(block: slice) -> np.ndarray:
        return decoder()(windows[block], numbers[block])

    return decode_and_score(profile, folder, {"test": clip}, {"test": decode_block}, facts)


def load(profile: Profile, name: str, subject: int) -> DecodedRun:
    """The clips and scores that `decode` has written; `validation` is None.

    Raises
    ------
    FileNotFoundError
        If the baseline has not been run to its end.
    ValueError
        If there is no such baseline, or files are damaged.
    """
    from nfx.evaluation.decoded import load_decoded

    folder = baseline_folder(profile, name, subject)
    remedy = f"run python -m nfx.baselines {name} {subject} --profile {profile.name}"
    if not (folder / files.MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no decoded clips: {remedy}")
    facts = files.read_manifest(folder)["facts"]
    if "scoring" not in facts:
        raise FileNotFoundError(f"the clips in {folder} are decoded but not scored: {remedy}")
    if not files.holds(folder, facts):
        raise ValueError(f"a file in {folder} is missing or damaged: {remedy}")
    return load_decoded(profile, folder)


def decoded(profile: Profile, subject: int) -> dict[str, DecodedRun]:
    """Title ("after Wen 2018") -> `load` of the baselines that have decoded, in the order of `NAMES`.

    One that was never run, or is still training, is left out; so is, with a warning, one of earlier recordings. One
    that is damaged is an error.
    """
    from nfx.evaluation.decoded import warn_of_outdated

    there = [name for name in NAMES if (baseline_folder(profile, name, subject) / files.MANIFEST).is_file()]
    runs = {name: load(profile, name, subject) for name in there}
    outdated = [name for name in runs if _is_outdated(profile, name, subject)]
    warn_of_outdated(outdated, f"subject {subject}'s recordings are newer")
    return {TITLES[name]: run for name, run in runs.items() if name not in outdated}


def _is_outdated(profile: Profile, name: str, subject: int) -> bool:
    decoded_from = files.read_manifest(baseline_folder(profile, name, subject))["facts"]["decoding"]["fmri"]
    return decoded_from != _fmri(profile, subject)


def _fmri(profile: Profile, subject: int) -> str:
    return files.identity(paths.work(profile, f"subject{subject}"), "test_fmri", "test_segment")
