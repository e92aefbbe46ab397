"""How few evaluations of the UNet give the clips that DDIM gives in 200? Solvers and numbers of steps compared.

The first subject's decoder of the headline row decodes the same clips from the same first noise with every solver of
`nfx.diffusion.solvers` and every number of steps of `STEPS`, and with the reference, DDIM in 200 steps (MinD-Video's
number, and the profile ``paper``'s). A step is one evaluation of the UNet, which both branches of the guidance share.

Two answers are given, each with its margin, which was set before anything was decoded:

- *the same scores*: the 95 % interval of the mean difference to the reference, clip by clip, lies within the margin of
  every score of `MARGINS`;
- *the same clip*: the lower limit of the mean SSIM between the clip and the reference's clip is at least `SAME_CLIP`.

This is a test of equivalence: too few clips fail it, and no absence of a difference passes it. Each solver's numbers of
steps are tested from the largest down and the first to fail ends it, so that the level needs no correction for how many
there are. Validation clips choose; test clips are then decoded with what was chosen, and report.

What is decoded goes to ``work/<profile>/solvers/subject<k>``, tables and figure to ``figures/<profile>``. One command:
``python -m nfx.evaluation.solver_study SUBJECT [--profile demo]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfx import files, paths
from nfx.diffusion.solvers import SOLVERS, TITLES
from nfx.evaluation.controls import block_bootstrap
from nfx.evaluation.decoded import (
    Decoded,
    decode_and_score,
    decode_windows,
    evenly_spaced,
    load_parts,
    load_pipeline,
    run_folder,
    sampling_facts,
)
from nfx.evaluation.ssim import ssim
from nfx.evaluation.tables import block_length
from nfx.plots import COLOURS, new_figure, panel_letter, save_figure, save_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nfx.profile import Profile

COMMAND = "python -m nfx.evaluation.solver_study"
CODE = ("evaluation/solver_study.py", "evaluation/controls.py", "evaluation/ssim.py")
STEPS = (4, 6, 8, 12, 16, 25, 50)
REFERENCE = ("ddim", 200)
CLIPS = 40  # of each part, evenly spaced
# The largest difference to the reference that is taken for none. SSIM: less than lies between rows 8 and 9 of Table 1
# (0.012); accuracies: 2 of 40 clips; the change from frame to frame: a share of the reference's.
MARGINS = {"SSIM": 0.01, "image": 0.05, "video": 0.05, "change": 0.1}
SAME_CLIP = 0.95
COLUMNS = {"SSIM": "ssim", "image": "image_top1_1", "video": "video_top1_1"}  # of scores.csv; one correct class
SIMILARITY = "SSIM to reference"
SCORES, CLIP = "same scores", "same clip"  # the two answers


# --- decoding ------------------------------------------------------------------------------------------------


def study_folder(profile: Profile, subject: int) -> Path:
    """``work/<profile>/solvers/subject<k>``."""
    return paths.work(profile, "solvers", f"subject{subject}")


def decode(profile: Profile, subject: int, solver: str, steps: int, part: str) -> Path:
    """Decode and score `CLIPS` clips of "validation" or "test" with a solver in so many steps; finished ones are kept.

    Noise, guidance and decoder are those of `nfx.evaluation.decoded.decode_run` with the headline row.

    Returns
    -------
    Path
        ``<study folder>/<solver>_<steps>_<part>``; read it with `nfx.evaluation.decoded.load_parts`.

    Raises
    ------
    FileNotFoundError
        If the stimuli, the subject or the decoder are missing.
    """
    from nfx.data import load_subject

    changed = _with_sampling(profile, solver, steps)
    data = load_subject(profile, subject)
    split = getattr(data, part)
    chosen = evenly_spaced(len(split.clip), CLIPS)
    clips, fmri = split.clip[chosen], split.fmri[chosen]
    # As in `decode_run`: test clips are counted after the training clips.
    numbers = clips + (len(data.train.clip) + len(data.validation.clip) if part == "test" else 0)
    trained = run_folder(profile, subject, profile.headline_row) / "pipeline"
    film = "test" if part == "test" else "train"
    facts = {
        "pipeline": files.identity(trained),
        "fmri": files.identity(paths.work(profile, f"subject{subject}"), f"{film}_fmri", f"{film}_segment"),
        "clips": clips,
        **sampling_facts(changed),
    }
    pipeline = cache(lambda: load_pipeline(trained))  # a finished one needs none

    def decoder(block: slice) -> np.ndarray:
        return decode_windows(changed, pipeline(), numbers[block], fmri=fmri[block])

    folder = study_folder(profile, subject) / f"{solver}_{steps}_{part}"
    return decode_and_score(changed, folder, {part: clips}, {part: decoder}, facts)


def _with_sampling(profile: Profile, solver: str, steps: int) -> Profile:
    sampling = profile.sampling.model_copy(update={"solver": solver, "steps": steps})
    return profile.model_copy(update={"sampling": sampling})


# --- measuring -----------------------------------------------------------------------------------------------


def frame_change(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of consecutive frames, in grey levels.

    What too few steps leave undone shows as flicker, or as frames that are all alike. It knows nothing of the truth.

    Parameters
    ----------
    clips : uint8 (clips, frames, height, width, 3)

    Returns
    -------
    float64 (clips,)
    """
    return np.abs(np.diff(clips.astype(np.int16), axis=1)).mean(axis=(1, 2, 3, 4))


def clip_measures(clips: Decoded, scores: pd.DataFrame, reference: Decoded) -> pd.DataFrame:
    """What is compared, a row a clip: "SSIM", "image" and "video" to the truth, "change", and "SSIM to reference".

    Raises
    ------
    ValueError
        If the reference has other clips.
    """
    if not np.array_equal(clips.clip, reference.clip):
        raise ValueError("the reference has other clips: run the study again, its folder holds two of them")
    decoded = np.asarray(clips.decoded)
    measured = {name: scores[column].to_numpy() for name, column in COLUMNS.items()}
    measured["change"] = frame_change(decoded)
    measured[SIMILARITY] = ssim(np.asarray(reference.decoded), decoded).mean(axis=1)
    return pd.DataFrame(measured)


def compare_with_reference(measured: pd.DataFrame, reference: pd.DataFrame, segment: np.ndarray) -> pd.DataFrame:
    """Every column of `clip_measures` with its interval, its difference to the reference, and whether that is none.

    Parameters
    ----------
    measured, reference : of `clip_measures`, the same clips
    segment : (clips,)

    Returns
    -------
    DataFrame
        A row a measure: metric, mean, low, high (95 % interval over blocks of clips), difference (less the reference,
        clip by clip), difference_low, difference_high, margin, equivalent, clips. The change from frame to frame has
        the margin's share of the reference's mean. SSIM to the reference has no difference, and `SAME_CLIP` as its
        margin, which its lower limit must reach.
    """
    length, rows = block_length(segment), []
    for metric in (*MARGINS, SIMILARITY):
        row = {"metric": metric, **block_bootstrap(measured[metric].to_numpy(), segment, length)._asdict()}
        if metric == SIMILARITY:
            row |= {"margin": SAME_CLIP, "equivalent": row["low"] >= SAME_CLIP}
        else:
            margin = MARGINS[metric] * (reference[metric].mean() if metric == "change" else 1)
            found = block_bootstrap((measured[metric] - reference[metric]).to_numpy(), segment, length)
            row |= {"difference": found.mean, "difference_low": found.low, "difference_high": found.high}
            row |= {"margin": margin, "equivalent": -margin <= found.low and found.high <= margin}
        rows.append(row)
    columns = ["metric", "mean", "low", "high", "difference", "difference_low", "difference_high", "margin"]
    return pd.DataFrame(rows)[[*columns, "equivalent"]].assign(clips=len(segment))


def fewest_steps(table: pd.DataFrame) -> pd.DataFrame:
    """The smallest number of steps of each solver that passes, and so do all larger ones, by each of the two answers.

    Parameters
    ----------
    table : of `study`, one part of the clips

    Returns
    -------
    DataFrame with a row a solver and answer: solver, answer (`SCORES` or `CLIP`), steps (missing: none passes)
    """
    rows = []
    for solver, own in table[~table["reference"]].groupby("solver", sort=False):
        same = own["metric"].eq(SIMILARITY)
        for answer, part in ((SCORES, own[~same]), (CLIP, own[same])):
            passes = part.groupby("steps")["equivalent"].all().sort_index(ascending=False)
            rows.append({"solver": solver, "answer": answer, "steps": passes.index[passes.cumprod().eq(1)].min()})
    return pd.DataFrame(rows).astype({"steps": "Int64"})


def study(profile: Profile, subject: int) -> Path:
    """Decode validation clips with everything, choose, decode test clips with what was chosen, and compare.

    Test clips are decoded with the fewest steps of each solver by each answer, with the profile's own solver and steps,
    and with the reference. A finished study is reused, an interrupted one gone on with.

    Returns
    -------
    Path
        `study_folder`, with comparison.csv and fewest_steps.csv; read them with `load_study`.

    Raises
    ------
    FileNotFoundError
        If the stimuli, the subject or the decoder are missing.
    """
    folder, facts = study_folder(profile, subject), _facts(profile, subject)
    if files.finished(folder, facts):
        print(f"{folder.parent.name}/{folder.name}: compared with these settings, reused")
        return folder
    everything = [(solver, steps) for steps in STEPS for solver in SOLVERS]
    validation = _compare(profile, subject, everything, "validation")
    fewest = fewest_steps(validation)
    known = fewest.dropna()
    own = (profile.sampling.solver, profile.sampling.steps)
    chosen = dict.fromkeys([*zip(known["solver"], known["steps"].astype(int), strict=True), own])
    test = _compare(profile, subject, [pair for pair in chosen if pair != REFERENCE], "test")
    written = {"comparison.csv": pd.concat([validation, test]), "fewest_steps.csv": fewest}
    for name, table in written.items():
        with files.write_atomically(folder / name) as temporary:
            table.assign(subject=subject).to_csv(temporary, index=False)
    files.write_manifest(folder, facts, list(written))
    return folder


def load_study(profile: Profile, subject: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The comparison and the fewest steps that `study` has written.

    Returns
    -------
    comparison : a row for each part, solver, number of steps and measure; see `compare_with_reference`
    fewest : of `fewest_steps`, chosen on validation clips

    Raises
    ------
    FileNotFoundError, ValueError
        If the study has not been run, or not with the decoder and settings that there are now.
    """
    folder, again = study_folder(profile, subject), f"run {COMMAND} {subject} --profile {profile.name}"
    if not (folder / files.MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no comparison of solvers: {again}")
    if not files.finished(folder, _facts(profile, subject)):
        raise ValueError(f"{folder} was made with another decoder or other settings, or is damaged: {again}")
    return pd.read_csv(folder / "comparison.csv"), pd.read_csv(folder / "fewest_steps.csv").astype({"steps": "Int64"})


def _facts(profile: Profile, subject: int) -> dict[str, Any]:
    """What the study depends on."""
    facts = {
        "pipeline": files.identity(run_folder(profile, subject, profile.headline_row) / "pipeline"),
        "fmri": files.identity(paths.work(profile, f"subject{subject}")),
        "stimuli": files.identity(paths.work(profile, "stimuli")),
        "evaluation": profile.evaluation.model_dump(mode="json"),
        "own": [profile.sampling.solver, profile.sampling.steps],
        "reference": sampling_facts(_with_sampling(profile, *REFERENCE)),
        "solvers": files.source_digest("diffusion/solvers.py"),
        "code": files.source_digest(*CODE),
    }
    return files.as_json(facts)


def _compare(profile: Profile, subject: int, settings: Sequence[tuple[str, int]], part: str) -> pd.DataFrame:
    """`compare_with_reference` of clips decoded with each solver and number of steps; the reference stands first."""
    runs = [load_parts(profile, decode(profile, subject, *pair, part)) for pair in (REFERENCE, *settings)]
    reference = runs[0][0][part]
    measured = [clip_measures(parts[part], scores, reference) for parts, scores in runs]
    tables = []
    for (solver, steps), own in zip((REFERENCE, *settings), measured, strict=True):
        labels = {"part": part, "solver": solver, "steps": steps, "reference": (solver, steps) == REFERENCE}
        table = compare_with_reference(own, measured[0], reference.segment)
        for place, (name, value) in enumerate(labels.items()):
            table.insert(place, name, value)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


# --- table and figure ----------------------------------------------------------------------------------------


def solver_table(comparison: pd.DataFrame, fewest: pd.DataFrame) -> pd.DataFrame:
    """What was chosen on validation clips, and whether test clips bear it out: a row a solver and answer.

    Parameters
    ----------
    comparison, fewest : of `load_study`

    Returns
    -------
    DataFrame
        Indexed by solver and answer: steps, how many times fewer than the reference, the differences on test clips with
        their intervals, SSIM to the reference, and whether these are within the margins.
    """
    test = comparison[comparison["part"].eq("test")]
    rows = []
    for line in fewest.itertuples():
        row: dict[str, Any] = {"solver": TITLES[line.solver], "answer": line.answer, "steps": line.steps}
        own = test[test["solver"].eq(line.solver) & test["steps"].eq(line.steps).fillna(False)].set_index("metric")
        if pd.isna(line.steps) or own.empty:
            rows.append(row)
            continue
        row["fewer"] = f"{REFERENCE[1] / line.steps:.3g} x"
        for metric in MARGINS:
            low, high = own["difference_low"][metric], own["difference_high"][metric]
            row[metric] = f"{own['difference'][metric]:+.3f} [{low:+.3f}, {high:+.3f}]"
        row[SIMILARITY] = f"{own['mean'][SIMILARITY]:.3f} [{own['low'][SIMILARITY]:.3f}, {own['high'][SIMILARITY]:.3f}]"
        needed = [SIMILARITY] if line.answer == CLIP else list(MARGINS)
        row["borne out"] = "yes" if own["equivalent"][needed].astype(bool).all() else "no"
        rows.append(row)
    return pd.DataFrame(rows).set_index(["solver", "answer"])


def figure_solvers(comparison: pd.DataFrame, fewest: pd.DataFrame, profile: Profile) -> Figure:
    """Scores against evaluations of the UNet above, their differences to the reference below; SSIM to it at the right.

    Parameters
    ----------
    comparison, fewest : of `load_study`
    profile : for the labels
    """
    fig = new_figure(17, 7)
    axes = fig.subplots(2, len(MARGINS) + 1)
    n_way = f"{profile.evaluation.n_way}-way "
    names = {
        "SSIM": "SSIM to truth",
        "image": f"{n_way}image",
        "video": f"{n_way}video",
        "change": "frame-to-frame change",
    }
    for column, (metric, title) in enumerate(names.items()):
        own = comparison[comparison["metric"].eq(metric)]
        upper, lower = axes[:, column]
        reference = own[own["reference"] & own["part"].eq("validation")].iloc[0]
        upper.axhspan(reference["low"], reference["high"], color=COLOURS["control"], alpha=0.25, linewidth=0)
        upper.axhline(reference["mean"], color=COLOURS["chance"], linewidth=1.1, label=_title(*REFERENCE))
        _draw(upper, own, fewest, ("mean", "low", "high"))
        lower.axhspan(-reference["margin"], reference["margin"], color=COLOURS["third"], alpha=0.15, linewidth=0)
        lower.axhline(0, color=COLOURS["chance"], linewidth=1.1)
        _draw(lower, own, fewest, ("difference", "difference_low", "difference_high"))
        panel_letter(upper, "abcd"[column], title)
        panel_letter(lower, "fghi"[column], "less the reference's")
        upper.set_ylabel("grey levels" if metric == "change" else "SSIM" if metric == "SSIM" else "accuracy")
    right, legend = axes[:, -1]
    right.axhspan(SAME_CLIP, 1, color=COLOURS["third"], alpha=0.15, linewidth=0)
    _draw(right, comparison[comparison["metric"].eq(SIMILARITY)], fewest, ("mean", "low", "high"))
    panel_letter(right, "e", "SSIM to the reference's clip")
    for ax in (*axes[1, :-1], right):
        ax.set_xlabel("evaluations of the UNet")
    for ax in (*axes[:, :-1].ravel(), right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(STEPS, [str(steps) for steps in STEPS])
        ax.minorticks_off()
    _draw_legend(legend, axes[0, 0], fewest)
    return fig


def _draw(ax: Axes, own: pd.DataFrame, fewest: pd.DataFrame, columns: tuple[str, str, str]) -> None:
    """Validation clips by solver with intervals; what was chosen is ringed, and test clips stand open beside it."""
    middle, low, high = columns
    validation = own[own["part"].eq("validation") & ~own["reference"]]
    for number, solver in enumerate(SOLVERS):
        style, shift = _style(number), 1.04 ** (number - 1)  # so that intervals do not cover each other
        part = validation[validation["solver"].eq(solver)].sort_values("steps")
        reach = np.clip([part[middle] - part[low], part[high] - part[middle]], 0, None)
        ax.errorbar(
            part["steps"] * shift, part[middle], yerr=reach, linewidth=1.3, elinewidth=1, capsize=2, markersize=5,
            label=TITLES[solver], **style,
        )  # fmt: skip
        steps = fewest["steps"][fewest["solver"].eq(solver) & fewest["answer"].eq(SCORES)]
        ringed = part[part["steps"].isin(steps.dropna())]
        ax.plot(ringed["steps"] * shift, ringed[middle], "o", markersize=12, fillstyle="none", color=style["color"])
        test = own[own["part"].eq("test") & ~own["reference"] & own["solver"].eq(solver)]
        if middle != "mean" or test["metric"].eq(SIMILARITY).all():  # test clips have a reference of their own
            reach = np.clip([test[middle] - test[low], test[high] - test[middle]], 0, None)
            ax.errorbar(
                test["steps"] * shift * 1.08, test[middle], yerr=reach, linestyle="none", elinewidth=1, capsize=2,
                markersize=6, marker="D", markerfacecolor="white", color=style["color"],
            )  # fmt: skip


def _draw_legend(ax: Axes, drawn: Axes, fewest: pd.DataFrame) -> None:
    """The legend, and in words what was chosen."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax.set_axis_off()
    handles, names = drawn.get_legend_handles_labels()
    handles += [
        Line2D([], [], color="black", marker="o", markersize=12, fillstyle="none", linestyle="none"),
        Line2D([], [], color="black", marker="D", markersize=6, markerfacecolor="white", linestyle="none"),
        Patch(color=COLOURS["third"], alpha=0.15, linewidth=0),
    ]
    told = ["fewest with the same scores", "test clips (e-i)", "no difference, by the margin"]
    ax.legend(handles, [*names, *told], loc="upper left")
    lines = [
        f"{TITLES[line.solver]}, {line.answer}: {'none' if pd.isna(line.steps) else line.steps}"
        for line in fewest.itertuples()
    ]
    ax.text(0.02, -0.1, "\n".join(["fewest evaluations (validation)", *lines]), transform=ax.transAxes, fontsize=9.5)


def _style(number: int) -> dict[str, Any]:
    return {"color": [COLOURS[name] for name in ("published", "ours", "third")][number], "marker": "sov"[number]}


def save_study(profile: Profile, subject: int) -> list[Path]:
    """Write ``solvers`` (all comparisons), ``fewest_steps`` and ``figure_solvers`` to ``figures/<profile>``.

    Raises
    ------
    FileNotFoundError, ValueError
        Of `load_study`.
    """
    comparison, fewest = load_study(profile, subject)
    return [
        save_table(comparison.set_index(["subject", "part", "solver", "steps", "metric"]), profile, "solvers"),
        save_table(solver_table(comparison, fewest), profile, "fewest_steps"),
        save_figure(figure_solvers(comparison, fewest, profile), profile, "figure_solvers"),
    ]


def _title(solver: str, steps: int) -> str:
    return f"{TITLES[solver]}-{steps}, 95 % interval"


# --- the command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: the study of one subject."""
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(prog=COMMAND, description="Compare solvers and numbers of steps with DDIM-200.")
    parser.add_argument("subject", type=int)
    parser.add_argument("--profile", default="demo", help="demo, paper, or a YAML file; default: demo")
    given: Any = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        if given.subject not in profile.data.subjects:
            raise ValueError(f"subject is {given.subject}, expected one of {list(profile.data.subjects)}")
        study(profile, given.subject)
        save_study(profile, given.subject)
        print(solver_table(*load_study(profile, given.subject)).to_string())
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(f"{COMMAND}: {error}")


if __name__ == "__main__":
    main()
