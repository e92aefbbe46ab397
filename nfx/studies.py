"""Studies around a profile: other seeds, other signal-to-noise, fewer training segments, and what they show together.

A study is a profile derived from another one, written to ``work/<profile>/studies/<name>.yaml``. It has a name of its
own, hence its own ``work/<name>``, and differs in what is listed here and in nothing else:

- **seeds**: the next two seeds; the first subject, all rows of Table 1. In a simulated profile the seed also makes
  another film, brain and noise, so that each seed replicates the whole study. With real data the trainings alone
  differ, pre-training included, and every seed decodes the same clips.
- **signal** (simulated profiles): five subjects of one film, each with another signal-to-noise, headline row. Subject k
  has the maps of the profile's subject k, and the five differ among themselves; a subject's signal is that of all its
  vertices, so that fewer voxels pass the choice where it is weak.
- **size**: fewer training segments, headline row. The others are held out as validation, so that voxels are chosen on
  fewer segments too. The data set is the profile's own. A simulated one is of all its subjects together (with others
  the simulator would write it anew in the place of the profile's), so all are trained; of real data the first.

The unlabelled recordings of a simulated study are as strong as its subjects on average, as everywhere.

``python -m nfx.studies PROFILE`` writes the studies and prints their files, one a line;
``python -m nfx.studies PROFILE --measure`` measures those that have run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.evaluation.ablations import CLAIMS
from nfx.evaluation.claims import verdict
from nfx.evaluation.comparisons import over_seeds, variance_split
from nfx.evaluation.controls import block_bootstrap, blocks, holm
from nfx.evaluation.decoded import PARTS, load_run, model_digest, run_folder
from nfx.evaluation.tables import METRICS, block_length, of_part
from nfx.profile import Profile, load_profile

COMMAND = "python -m nfx.studies"
MORE_SEEDS = 2
# Single-trial explained variance, as simulation.signal_to_noise. Below 0.03 hardly a voxel of the demo passes the
# choice, and notebook 01 ends where none does; 0.225 and more the simulator refuses.
SIGNALS = (0.03, 0.04, 0.06, 0.08, 0.2)
# Of the segments that are trained on: 6, 8 and 11 of 14. With 5 of them the choice keeps one voxel of the demo's second
# subject, with 4 none: a t-test over so few segments, corrected for thousands of vertices, finds nothing.
SHARES = (0.4, 0.6, 0.8)
ONE_CORRECT = {name: metric for name, (metric, correct) in METRICS.items() if correct != 3}  # SSIM, image, video
READERS = ("decoded clips", "ridge regression", "true film", "one value a subject")
CODE = (
    "studies.py", "evaluation/truth_recovery.py", "evaluation/references.py", "evaluation/identification.py",
    "evaluation/controls.py", "evaluation/n_way.py", "evaluation/ssim.py", "attention/analysis.py", "attention/maps.py",
    "attention/statistics.py",
)  # fmt: skip


# --- the profiles --------------------------------------------------------------------------------------------


def studies(profile: Profile) -> dict[str, list[Profile]]:
    """The studies of a profile by kind: "seeds", "size" and, if it is simulated, "signal"."""
    found = {"seeds": seed_studies(profile), "size": size_studies(profile)}
    return found | {"signal": [signal_study(profile)]} if profile.simulated else found


def seed_studies(profile: Profile) -> list[Profile]:
    """The profile with each of the next `MORE_SEEDS` seeds: first subject, all rows, no time-averaged control."""
    first = profile.data.subjects[0]
    found = []
    for seed in range(profile.seed + 1, profile.seed + 1 + MORE_SEEDS):
        changes: dict[str, Any] = {"seed": seed, "data": {"subjects": [first]}, "averaged_subjects": []}
        if profile.simulation is not None:
            changes["data"]["root"] = f"{profile.data.root}-seed{seed}"
            changes["simulation"] = {"signal_to_noise": list(profile.simulation.signal_to_noise[:1])}
        found.append(_derived(profile, f"{profile.name}-seed{seed}", changes))
    return found


def signal_study(profile: Profile) -> Profile:
    """The profile with a subject for each of `SIGNALS`, of the same film; ValueError if it is not simulated."""
    if not profile.simulated:
        raise ValueError(f"profile '{profile.name}' is of real data: the signal-to-noise of a simulated one can be set")
    changes = {
        "data": {"root": f"{profile.data.root}-signal", "subjects": list(range(1, len(SIGNALS) + 1))},
        "simulation": {"signal_to_noise": list(SIGNALS)},
    }
    return _derived(profile, f"{profile.name}-signal", changes | _headline_alone(profile))


def size_studies(profile: Profile) -> list[Profile]:
    """The profile with the first `SHARES` of its training segments, and the others held out as validation."""
    trained = trained_segments(profile)
    found = []
    for count in dict.fromkeys(round(share * len(trained)) for share in SHARES):
        if not 0 < count < len(trained):
            continue
        held_out = sorted({*profile.data.validation_segments, *trained[count:]})
        data: dict[str, Any] = {"validation_segments": held_out}
        if not profile.simulated:
            data["subjects"] = [profile.data.subjects[0]]
        found.append(_derived(profile, f"{profile.name}-size{count}", {"data": data} | _headline_alone(profile)))
    return found


def trained_segments(profile: Profile) -> list[int]:
    """The training segments that are not held out."""
    return sorted(set(range(1, profile.data.train_segments + 1)) - set(profile.data.validation_segments))


def study_file(profile: Profile, study: Profile) -> Path:
    """``work/<profile>/studies/<name>.yaml``."""
    return paths.work(profile, "studies", f"{study.name}.yaml")


def write_studies(profile: Profile) -> list[Path]:
    """Write every study's YAML, for `./run_all.sh FILE.yaml` and the notebooks; files of the same content stay.

    What a study would make again just as the profile has it is given to it: film and targets where the data set is the
    same, and the pre-trained encoder where the seed is too. At the paper's size that is most of a study's time.
    """
    written = []
    for study in (study for kind in studies(profile).values() for study in kind):
        path, text = study_file(profile, study), _yaml(profile, study)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with files.write_atomically(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if study.data.root == profile.data.root:
            for folder in ("stimuli", "targets", *(["pretraining"] if study.seed == profile.seed else [])):
                _give(paths.work(profile, folder), paths.work(study, folder))
        written.append(path)
    return written


def _give(source: Path, target: Path) -> None:
    """Copy a finished folder to where there is none; large files, which are only ever replaced whole, by a link."""
    if not (source / files.MANIFEST).is_file() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def copy(path: str, to: str) -> None:
        if path.endswith((".npy", ".safetensors")):
            with suppress(OSError):  # a disk without links
                os.link(path, to)
                return
        shutil.copy2(path, to)

    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
        shutil.copytree(source, Path(unfinished, target.name), copy_function=copy)
        os.replace(Path(unfinished, target.name), target)


def is_current(profile: Profile, study: Profile) -> bool:
    """Whether the study was last run as it would be now: its file is there and of the profile as it is."""
    path = study_file(profile, study)
    return path.is_file() and path.read_text(encoding="utf-8") == _yaml(profile, study)


def _headline_alone(profile: Profile) -> dict[str, Any]:
    row = profile.headline_row
    return {"averaged_subjects": [], "rows": {row: profile.row(row).model_dump(mode="json")}}


def _content(profile: Profile) -> dict[str, Any]:
    """A profile as its YAML file has it: lists for tuples, and rows by number."""
    content = profile.model_dump(mode="json")
    return content | {"rows": {int(row): settings for row, settings in content["rows"].items()}}


def _derived(profile: Profile, name: str, changes: dict[str, Any]) -> Profile:
    """The profile under another name, with some values of sections, and rows as a whole, replaced, and checked."""
    content = _content(profile) | {"name": name}
    for key, value in changes.items():
        content[key] = {**content[key], **value} if key in ("data", "simulation") else value
    return Profile.model_validate(content)


def _yaml(profile: Profile, study: Profile) -> str:
    import yaml

    return f"# A study of profile '{profile.name}', written by {COMMAND}.\n" + yaml.safe_dump(
        _content(study), sort_keys=False, allow_unicode=True
    )


# --- seeds: Table 1 again ------------------------------------------------------------------------------------


def seed_runs(profile: Profile) -> dict[int, dict[int, pd.DataFrame]]:
    """Scores of the first subject in every row that has been decoded: seed -> row -> scores, both parts.

    The profile's own seed stands first. A seed of which nothing has been decoded, or not with the profile as it is, is
    left out.
    """
    runs = {}
    for study in (profile, *(s for s in seed_studies(profile) if is_current(profile, s))):
        found = {row: _scores(study, study.data.subjects[0], row) for row in sorted(study.rows)}
        if any(scores is not None for scores in found.values()):
            runs[study.seed] = {row: scores for row, scores in found.items() if scores is not None}
    return runs


def seed_table(profile: Profile) -> pd.DataFrame | None:
    """Table 1 over seeds: the first subject's scores in each row, with the interval that holds over seeds.

    Returns
    -------
    DataFrame or None
        A row for each part ("validation", "test"), row of Table 1 and metric (SSIM; image and video, one correct
        class): a column "seed <n>" for each seed; mean, low and high (`nfx.evaluation.comparisons.over_seeds`), spread,
        the standard deviation of single seeds, and seeds, their number. Where the clips are the same in all seeds (real
        data) also the variance of a clip's score: between seeds, between clips, and the rest (`variance_split`). None
        if there are not two seeds.
    """
    runs = seed_runs(profile)
    lines = []
    for part in PARTS:
        for row in sorted(profile.rows):
            tables = {seed: of_part(rows[row], part) for seed, rows in runs.items() if row in rows}
            if len(tables) < 2:
                continue
            for column, metric in ONE_CORRECT.items():
                means = {f"seed {seed}": table[column].mean() for seed, table in tables.items()}
                line = {"part": part, "row": row, "metric": metric, **means}
                line |= over_seeds(np.array(list(means.values())))._asdict()
                if not profile.simulated:
                    segment = next(iter(tables.values()))["segment"].to_numpy()
                    values = np.stack([table[column] for table in tables.values()])
                    split = variance_split(values, segment, block_length(segment))
                    line |= {f"variance, {name}": value for name, value in split._asdict().items()}
                lines.append(line)
    return pd.DataFrame(lines) if lines else None


def seed_directions(profile: Profile) -> pd.DataFrame | None:
    """Each reading of Section 5.2 (`nfx.evaluation.ablations.CLAIMS`) over seeds: does its direction hold?

    The difference of two rows is paired within a seed: both decode the same clips. Seeds are the unit, so that the
    interval is for another training or, in a simulated profile, for another study altogether. With three seeds it is
    wide (t of 2 degrees of freedom: 4.3 standard errors), and only large differences can be told.

    Returns
    -------
    DataFrame or None
        A row for each part and claim of which two seeds have both rows: claim, better, worse (rows), paper (difference
        of the quoted SSIM), a column "seed <n>" for each seed, mean, low, high, spread, seeds, p (two-sided t-test),
        holm (over the claims of a part), and verdict, `nfx.evaluation.claims.verdict` of the interval and the corrected
        p. None if there are not two seeds.
    """
    from scipy.stats import ttest_1samp

    runs, tables = seed_runs(profile), []
    for part in PARTS:
        lines = []
        for claim, better, worse in CLAIMS:
            if not {better, worse} <= profile.rows.keys():
                continue
            found = {
                f"seed {seed}": of_part(rows[better], part)["ssim"].mean() - of_part(rows[worse], part)["ssim"].mean()
                for seed, rows in runs.items()
                if better in rows and worse in rows
            }
            if len(found) < 2:
                continue
            values = np.array(list(found.values()))
            paper = profile.row(better).paper_ssim - profile.row(worse).paper_ssim
            line = {"part": part, "claim": claim, "better": better, "worse": worse, "paper": paper, **found}
            lines.append(line | over_seeds(values)._asdict() | {"p": float(ttest_1samp(values, 0).pvalue)})
        if lines:
            table = pd.DataFrame(lines)
            tables.append(table.assign(holm=holm(table["p"])))
    if not tables:
        return None
    table = pd.concat(tables, ignore_index=True)
    judged = zip(table["low"], table["high"], table["holm"], strict=True)
    return table.assign(verdict=[verdict(low, high, p) for low, high, p in judged])


def _scores(profile: Profile, subject: int, row: int) -> pd.DataFrame | None:
    """scores.csv of a decoder, None if it has not decoded its clips to the end."""
    folder = run_folder(profile, subject, row)
    there = (folder / files.MANIFEST).is_file() and (folder / "scores.csv").is_file()
    return pd.read_csv(folder / "scores.csv") if there else None


# --- signal and size: curves ---------------------------------------------------------------------------------


class Point(NamedTuple):
    """A subject of the profile or of a study, and where it stands on the axis of the study's kind."""

    study: str  # "signal" or "size"
    x: float
    profile: Profile
    subject: int


def points(profile: Profile) -> list[Point]:
    """The subjects that have been decoded in the headline row, of the profile itself (first) and of its studies.

    x is the single-trial explained variance for "signal", the number of training clips for "size". A kind of study of
    which nothing has run is left out: the profile's own subjects alone make no curve.
    """
    found = []
    for kind, derived in studies(profile).items():
        if kind == "seeds":
            continue
        of_kind = []
        for study in (profile, *(s for s in derived if is_current(profile, s))):
            for place, subject in enumerate(study.data.subjects):
                if _scores(study, subject, study.headline_row) is None:
                    continue
                signal = study.simulation.signal_to_noise[place] if study.simulation else np.nan
                clips = len(trained_segments(study)) * study.data.train_volumes
                of_kind.append(Point(kind, signal if kind == "signal" else clips, study, subject))
        if any(point.profile.name != profile.name for point in of_kind):
            found += of_kind
    return found


def curves(profile: Profile) -> pd.DataFrame | None:
    """What is decoded, chosen and attended to, as a function of signal-to-noise and of training size; headline row.

    Returns
    -------
    DataFrame or None
        A row for each point of `points`, score and reader: study ("signal", "size"), x, profile, subject, and the
        columns of `measure`. None if no study has run.
    """
    tables = []
    for point in points(profile):
        labels = {"study": point.study, "x": point.x, "profile": point.profile.name, "subject": point.subject}
        table = measure(point.profile, point.subject)
        tables.append(table.assign(**labels)[[*labels, *table.columns]])
    return pd.concat(tables, ignore_index=True) if tables else None


def measure(profile: Profile, subject: int) -> pd.DataFrame:
    """The scores of a subject's test clips in the headline row that `curves` shows.

    They are kept in ``work/<profile>/curves/subject<k>`` and measured again when what they are made from has changed.

    Returns
    -------
    DataFrame
        Columns score, reader, value, low, high (95 % block bootstrap, where there is one), chance. Scores:

        - object, colour, background, motion, position (simulated; `nfx.evaluation.truth_recovery`): share of clips of
          which the attribute is right; readers "decoded clips", "ridge regression" of the same recordings, "true film"
        - 50-way image, 50-way video (n of the profile, one correct class): decoded clips and, in a simulated profile,
          ridge regression, for which the true class is the simulator's and not the classifier's of the true clip
        - SSIM above permuted pairs: the mean of the permuted pairs is taken as known
        - CLIP 2-way: identification by CLIP embeddings, rivals of other blocks
        - voxels: how many were chosen; and simulated, voxel choice: area under the ROC curve
        - attention (simulated): rank correlation of the attention received in the last layer, after full training, with
          the patches' true signal share; missing where there are fewer than three patches

    Raises
    ------
    FileNotFoundError, ValueError
        If the subject has not been decoded, or files are damaged.
    """
    row = profile.headline_row
    folder, models = paths.work(profile, "curves", f"subject{subject}"), profile.models
    facts = {
        "decoded": files.identity(run_folder(profile, subject, row)),
        "pipeline": files.identity(run_folder(profile, subject, row) / "pipeline"),
        "subject": files.identity(paths.work(profile, f"subject{subject}")),
        "targets": files.identity(paths.work(profile, "targets"), "test_image_embeddings"),
        "models": [model_digest(name) for name in (models.clip, models.image_classifier, models.video_classifier)],
        "split": profile.data.model_dump(mode="json", include={"validation_segments", "window"}),
        "evaluation": profile.evaluation.model_dump(mode="json"),
        "code": files.source_digest(*CODE),
    }
    if not files.finished(folder, facts):
        table = pd.DataFrame(_measured(profile, subject))
        with files.write_atomically(folder / "scores.csv") as temporary:
            table.to_csv(temporary, index=False)
        files.write_manifest(folder, facts, ["scores.csv"])
    return pd.read_csv(folder / "scores.csv")


def _measured(profile: Profile, subject: int) -> list[dict[str, Any]]:
    from nfx.data.targets import image_embeddings, load_targets
    from nfx.evaluation.controls import permuted_ssim
    from nfx.evaluation.identification import embedding_similarity, identification, identification_chance
    from nfx.evaluation.n_way import n_way_chance

    run = load_run(profile, subject, profile.headline_row)
    scores, test, n = of_part(run.scores, "test"), run.test, profile.evaluation.n_way
    segment, length = test.segment, block_length(test.segment)

    def line(score: str, values: np.ndarray, chance: float) -> dict[str, Any]:
        mean, low, high = block_bootstrap(values, segment, length)
        return _line(score, READERS[0], mean, chance, low, high)

    chance = n_way_chance(n, profile.evaluation.top_k, 1)
    rows = [line(f"{n}-way {m}", scores[f"{m}_top1_1"].to_numpy(), chance) for m in ("image", "video")]
    null = permuted_ssim(test.truth, test.decoded, segment, length, seed=profile.seed).null_mean
    rows.append(line("SSIM above permuted pairs", scores["ssim"].to_numpy() - null, 0.0))
    truth = load_targets(profile, "test_image_embeddings")["test_image_embeddings"][test.clip]
    seen = image_embeddings(test.decoded.reshape(-1, *test.decoded.shape[2:]), profile.models.clip)
    similarity = embedding_similarity(truth, seen.reshape(*truth.shape[:2], -1))
    by_clip = identification(similarity, 2, blocks(segment, length))
    rows.append(line("CLIP 2-way", by_clip, identification_chance(2)))
    vertex = files.load_arrays(paths.work(profile, f"subject{subject}"), "vertex")["vertex"]
    rows.append(_line("voxels", READERS[3], len(vertex), np.nan))
    return rows + (_against_truth(profile, subject, test.clip, segment) if profile.simulated else [])


def _against_truth(profile: Profile, subject: int, clip: np.ndarray, segment: np.ndarray) -> list[dict[str, Any]]:
    """The lines of `measure` that need the simulator's truth."""
    from nfx.evaluation.references import reader_scores, reader_table, true_attributes
    from nfx.evaluation.tables import voxel_choice_auc
    from nfx.evaluation.truth_recovery import truth_recovery

    table = truth_recovery(profile, subject, profile.headline_row)
    rows = [_line(r.attribute, r.reader, r.right, r.chance, r.low, r.high) for r in table.itertuples()]
    shown, n = true_attributes(profile, "test").iloc[clip], profile.evaluation.n_way
    labels = {kind: shown[f"{kind}_class"].to_numpy() for kind in ("frame", "video")}
    read = {kind: found[clip] for kind, found in reader_scores(profile, subject).items() if kind in labels}
    names = {"frame": f"{n}-way image", "video": f"{n}-way video"}
    for r in reader_table(read, labels, segment, block_length(segment), n).itertuples():
        rows.append(_line(names[r.attribute], READERS[1], r.accuracy, r.chance, r.low, r.high))
    rows.append(_line("voxel choice", READERS[3], voxel_choice_auc(profile, subject), 0.5))
    return [*rows, _line("attention", READERS[3], _attention_rho(profile, subject, clip), 0.0)]


def _attention_rho(profile: Profile, subject: int, clip: np.ndarray) -> float:
    from nfx.attention.analysis import attention_of_stages, share_table, true_share
    from nfx.data import load_subject
    from nfx.encoder import FMRIEncoder
    from nfx.training import device

    pipeline = run_folder(profile, subject, profile.headline_row) / "pipeline"
    encoder = FMRIEncoder.from_pretrained(files.verified(pipeline, "fmri_encoder")).to(device()).eval()
    data = load_subject(profile, subject)
    maps = attention_of_stages({"full": encoder}, data.test.fmri[clip])
    share = true_share(profile, subject, data.vertex)
    if len(share) <= 2 * encoder.config.patch_size:  # two patches have no ranks to speak of
        return np.nan
    table = share_table(maps, share, encoder.config.patch_size)
    return float(table.set_index("layer").loc["last", "rho"])


def _line(score: str, reader: str, value: float, chance: float, low: float = np.nan, high: float = np.nan) -> dict:
    return {"score": score, "reader": reader, "value": value, "low": low, "high": high, "chance": chance}


# --- the command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: write the studies and print their files, or measure those that have run."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write the studies of a profile and print their files.")
    parser.add_argument("profile", help="demo, paper, or a YAML file")
    parser.add_argument("--measure", action="store_true", help="measure what has run, for the curves; write nothing")
    given = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        if given.measure:
            for point in points(profile):
                measure(point.profile, point.subject)
                print(f"{point.study}: {point.profile.name}, subject {point.subject} measured", flush=True)
        else:
            print(*write_studies(profile), sep="\n")
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"{COMMAND}: {error}")


if __name__ == "__main__":
    main()
