"""What a run reached, on one screen: `./run_all.sh` ends with it. All numbers are read from the tables of the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from nfx import paths
from nfx.profile import load_profile

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.summary"
Line = tuple[str, list[str]]  # what, and a value for each subject


def summary(profile: Profile) -> str:
    """The headline row's test scores, each with what it is to be held against, of every subject, as text.

    Parameters
    ----------
    profile : Profile
        Whose notebooks 04 and 06 have run.

    Raises
    ------
    FileNotFoundError
        If a table of notebook 04 is missing.
    """
    simulated = "simulated data" if profile.simulated else "recorded data"
    title = f"{simulated}, row {profile.headline_row} of Table 1, test clips [95 % interval over blocks of clips]"
    columns = [f"subject {subject}" for subject in profile.data.subjects]
    lines = dict([*_accuracies(profile), *_similarity(profile), *_truth(profile)])
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    return f"{title}\n{table.to_string(line_width=148)}"


def _accuracies(profile: Profile) -> Iterator[Line]:
    scores, reached = _scores(profile), _table(profile, "references").set_index(["method", "metric", "subject"])["mean"]
    shuffled = _table(profile, "shuffled_pairings").set_index(["metric", "correct", "subject"])
    way, subjects = profile.evaluation.n_way, profile.data.subjects
    for metric in ("image", "video"):
        chance = scores.loc[(metric, 1), "chance"].iloc[0]
        pairs = [shuffled.loc[(metric, 1, k)] for k in subjects]
        yield f"{way}-way {metric}, chance {chance:.3g}", [_interval(scores.loc[(metric, 1, k)]) for k in subjects]
        means = [_with_p(pair["shuffled"], pair["p, blocks"]) for pair in pairs]
        yield f"  {metric}: shuffled pairings", means
        for ceiling in ("oracle (true caption)", "autoencoder"):
            yield f"  {metric}: {ceiling}", [f"{reached[ceiling, metric, k]:.3f}" for k in subjects]


def _similarity(profile: Profile) -> Iterator[Line]:
    scores, subjects = _scores(profile), profile.data.subjects
    held = _table(profile, "ssim_controls").set_index("subject").loc[list(subjects)]
    yield "SSIM", [_interval(scores.loc[("SSIM", 0, k)]) for k in subjects]
    pairs = zip(held["permuted pairs"], held["p"], strict=True)
    yield "  SSIM: permuted pairs", [_with_p(value, p) for value, p in pairs]
    for frame in ("mid-grey frame", "training-mean frame"):
        yield f"  SSIM: {frame}", [f"{value:.3f}" for value in held[frame]]


def _truth(profile: Profile) -> Iterator[Line]:
    """What only a simulation can say; notebook 06 may not have run yet."""
    subjects = list(profile.data.subjects)
    if profile.simulated:
        chosen = _table(profile, "auc").set_index("subject").loc[subjects].iloc[:, 0]
        yield "voxel choice against the truth, AUC", [f"{value:.3f}" for value in chosen]
    if profile.simulated and paths.figures(profile, "attention_share.csv").is_file():
        share = _table(profile, "attention_share")
        trained = share[share["stage"].eq("full") & share["layer"].eq("last")].set_index("subject")
        found = [trained.loc[subject] for subject in subjects]
        yield "attention with true signal, rank correlation", [_with_p(row["rho"], row["p"]) for row in found]


def _scores(profile: Profile) -> pd.DataFrame:
    """Of the headline row, by metric, number of correct classes (0 for SSIM) and subject."""
    table = _table(profile, "scores")
    ours = table[table["method"].eq(f"row {profile.headline_row}")].fillna({"correct": 0})
    return ours.astype({"correct": int}).set_index(["metric", "correct", "subject"]).sort_index()


def _table(profile: Profile, name: str) -> pd.DataFrame:
    path = paths.figures(profile, f"{name}.csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: notebook 04 writes it, ./run_all.sh runs that")
    return pd.read_csv(path, comment="#")


def _interval(row: pd.Series) -> str:
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _with_p(value: float, p: float) -> str:
    return f"{value:.3f} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m nfx.summary [PROFILE]``: prints the summary; an error is one sentence."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Print what a run reached, from its tables.")
    parser.add_argument("profile", nargs="?", default="demo", metavar="PROFILE", help="demo (default) or a YAML file")
    given = parser.parse_args(arguments)
    try:
        print(summary(load_profile(given.profile)))
    except (OSError, ValueError) as error:
        sys.exit(f"{COMMAND}: {error}")


if __name__ == "__main__":
    main()
