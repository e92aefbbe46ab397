"""Reference decoders that see little or nothing, and what the recordings could give at best.

From below: a mid-grey frame, the mean training frame (`nfx.evaluation.controls`), and retrieval, which answers each
test window with the training clip whose recording was most alike. Retrieved clips are real film, sharp and moving, so
a decoder that generates must beat them to have been worth it.

From above: the autoencoder (`nfx.evaluation.decoded.autoencoder_ceiling`) bounds the pixels. In the simulation, where
the truth is known, two more bound the recordings: the explainable variance of every voxel, and a linear reader that is
told the true attributes of the training clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from nfx.evaluation.controls import block_bootstrap, block_pairs, nearest_training_clip, permutation_test

if TYPE_CHECKING:
    from nfx.profile import Profile

PENALTIES = 10.0 ** np.arange(-3, 4)  # of the ridge regression, in units of a feature's mean summed square


class Retrieved(NamedTuple):
    """Training clips given as answers to test windows.

    Attributes
    ----------
    clips : uint8 (test clips, frames, height, width, 3)
    index : int (test clips,), rows of the training examples
    cosine : float (test clips,), how alike the two recordings are
    """

    clips: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    cosine: np.ndarray


def retrieve(train_features: np.ndarray, test_features: np.ndarray, train_clips: np.ndarray) -> Retrieved:
    """Nearest training clip: for every test example that of the training example of the highest cosine.

    With the fMRI windows as they are, z-scored by run, as features it is a decoder without a model: whatever it scores,
    any decoder could have had without training. With the encoder's embeddings of those windows
    (`nfx.encoder.contrastive.embed`) it shows what phase 2 adds to phase 1.

    Parameters
    ----------
    train_features, test_features : (clips, ...), such as windows (clips, window, voxels) or embeddings (clips, dim)
        The rest of the axes is one vector.
    train_clips : uint8 (training examples, frames, height, width, 3), the film of the training examples, in order

    Raises
    ------
    ValueError
        If features differ in shape or have no direction, or if there is not one clip for each training example.
    """
    train, test = (np.asarray(x, dtype=np.float32).reshape(len(x), -1) for x in (train_features, test_features))
    if train.shape[1] != test.shape[1] or len(train) == 0:
        raise ValueError(f"training features {train.shape} and test features {test.shape}: expected the same columns")
    if len(train_clips) != len(train):
        raise ValueError(f"{len(train_clips)} training clips for {len(train)} training examples: expected one each")
    for name, features in (("training", train), ("test", test)):
        bad = int((~(np.linalg.norm(features, axis=1) > 0)).sum())
        if bad:
            raise ValueError(f"{bad} {name} features are zero or NaN: a cosine needs vectors with a direction")
    index, cosine = nearest_training_clip(train, test)
    return Retrieved(np.asarray(train_clips[index]), index, cosine)


# --- the simulation's ceilings --------------------------------------------------------------------------------


def explainable_variance(profile: Profile, subject: int) -> pd.DataFrame:
    """The noise ceiling of every voxel that the decoder reads, from the simulator's truth.

    With s the share of a single trial's variance that the film explains, the mean of r repeats has r s / (r s + 1 - s)
    (`nfx.data.simulator.brain.noise_ceiling`). No reader of a voxel, linear or not, explains more of its variance, and
    none correlates with it above the root. The share is that of the training film after cleaning; another film may
    excite a voxel more or less.

    Parameters
    ----------
    profile : of simulated data
    subject : int

    Returns
    -------
    DataFrame
        A row a voxel, in the order of the recordings: grayordinate, carries (what it answers to, "nothing" too),
        share (single trial), test and train (explainable variance of the averaged repeats), correlation (highest with
        the test average).

    Raises
    ------
    ValueError
        If the data are not simulated, or the truth does not hold a voxel.
    FileNotFoundError
        If notebook 01 has not been run.
    """
    from nfx.files import load_arrays
    from nfx.paths import data_set, work

    _require_simulated(profile)
    vertex = np.asarray(load_arrays(work(profile, f"subject{subject}"), "vertex")["vertex"])
    truth = load_arrays(data_set(profile) / "truth" / f"subject{subject}")
    place = {int(number): row for row, number in enumerate(truth["grayordinate"])}
    missing = [int(v) for v in vertex if int(v) not in place]
    if missing:
        raise ValueError(
            f"{len(missing)} voxels of subject {subject}, grayordinate {missing[0]} first, are not in the simulator's "
            "truth: the recordings are of other settings, run notebook 01 again"
        )
    rows = np.array([place[int(v)] for v in vertex])
    columns = {"carries": "carries", "share": "share", "test": "noise_ceiling", "train": "noise_ceiling_train"}
    table = pd.DataFrame({name: np.asarray(truth[array])[rows] for name, array in columns.items()})
    return table.assign(correlation=np.sqrt(table["test"])).set_axis(pd.Index(vertex, name="grayordinate"))


def true_attributes(profile: Profile, part: str) -> pd.DataFrame:
    """What every clip of "train" or "test" shows, from the simulator's truth: a row a clip of the film, in order.

    Returns
    -------
    DataFrame
        object, colour, background, motion (int, indices into the simulator's lists), frame_class and video_class (int,
        of the stand-in classifiers' classes), x and y (centre of the object, mean over the clip's frames, in pixels of
        a frame of 64).
    """
    from nfx.data.simulator.scenes import BACKGROUNDS, COLOURS, DIRECTION, MOTIONS, OBJECTS, SPEED
    from nfx.files import read_json
    from nfx.paths import data_set

    _require_simulated(profile)
    if part not in ("train", "test"):
        raise ValueError(f"part is '{part}', expected 'train' or 'test'")
    kind, count = {"train": ("seg", profile.data.train_segments), "test": ("test", profile.data.test_segments)}[part]
    segments = read_json(data_set(profile) / "truth" / "movie.json")["segments"]
    levels = {"object": OBJECTS, "colour": COLOURS, "background": BACKGROUNDS, "motion": MOTIONS}
    middle = np.mean(np.arange(profile.data.frames) / 3)  # s into a clip
    rows = []
    for shot in (shot for number in range(1, count + 1) for shot in segments[f"{kind}{number}"]):
        known = {name: values.index(shot[name]) for name, values in levels.items()}
        known |= {"frame_class": shot["frame_class"], "video_class": shot["video_class"]}
        across, down = DIRECTION[shot["motion"]]
        for later in range(shot["length"]):
            moved = SPEED * (later * profile.data.repetition_time + middle)
            rows.append(known | {"x": shot["x"] + moved * across, "y": shot["y"] + moved * down})
    return pd.DataFrame(rows)


def indicators(level: np.ndarray, levels: int) -> np.ndarray:
    """1 for a clip's level and 0 for the others: int (clips,) to float64 (clips, levels).

    A level that is not in 0..levels - 1 is a ValueError.
    """
    level = np.asarray(level)
    if level.min() < 0 or level.max() >= levels:
        raise ValueError(f"levels run from {level.min()} to {level.max()}, expected 0 to {levels - 1}")
    return np.eye(levels)[level]


def linear_reader(
    train: tuple[np.ndarray, Mapping[str, np.ndarray]],
    validation: tuple[np.ndarray, Mapping[str, np.ndarray]],
    test: np.ndarray,
) -> dict[str, np.ndarray]:
    """Ridge regression from fMRI windows to what the clips truly show, for every test window.

    Fitted on the training part alone. Each target has a penalty of its own, the one of `PENALTIES` with the least
    squared error on the validation segments. The reader is told what no decoder is, the true attributes, and reads the
    same windows of the same voxels. It is the ceiling of linear reading at this amount of training, not of all reading:
    more data, a longer window, or a reader that knows the film's statistics may do better.

    Parameters
    ----------
    train, validation : (windows (clips, window, voxels), target -> (clips, outputs))
    test : windows (clips, window, voxels)

    Returns
    -------
    dict of target to float64 (test clips, outputs)

    Raises
    ------
    ValueError
        If windows and targets do not match.
    """
    from sklearn.linear_model import Ridge

    names = list(train[1])
    (x, y), (x_validation, y_validation) = (_design(windows, shown, names) for windows, shown in (train, validation))
    new = np.asarray(test, dtype=np.float64).reshape(len(test), -1)
    if new.shape[1] != x.shape[1] or x_validation.shape[1] != x.shape[1]:
        raise ValueError(
            f"windows of {x.shape[1]}, {x_validation.shape[1]} and {new.shape[1]} numbers: expected the same voxels in "
            "training, validation and test"
        )
    unit = x.var(axis=0).mean() * len(x)  # the mean summed square of a feature
    columns = np.split(np.arange(y.shape[1]), np.cumsum([np.shape(train[1][name])[1] for name in names])[:-1])
    least = dict.fromkeys(names, np.inf)
    read: dict[str, np.ndarray] = {}
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty * unit).fit(x, y)
        squared, predicted = (model.predict(x_validation) - y_validation) ** 2, model.predict(new)
        for name, own in zip(names, columns, strict=True):
            if (error := squared[:, own].mean()) < least[name]:
                least[name], read[name] = error, predicted[:, own]
    return read


def reader_scores(profile: Profile, subject: int) -> dict[str, np.ndarray]:
    """`linear_reader` for every attribute of the simulated film: the ceiling of reading a subject's recordings.

    Returns
    -------
    dict of str to float64 (test clips, levels)
        object, colour, background, motion; position, (test clips, 2), x and y; and frame (128 classes) and video (128),
        the sums of the scores of the attributes that make the class, in the order of the stand-in classifiers: logits
        for the n-way test. Clips are all of the test film; take those that were decoded by their `clip`.
    """
    from nfx.data import load_subject
    from nfx.data.simulator.scenes import BACKGROUNDS, COLOURS, MOTIONS, OBJECTS

    data, shown = load_subject(profile, subject), true_attributes(profile, "train")
    counts = {"object": len(OBJECTS), "colour": len(COLOURS), "background": len(BACKGROUNDS), "motion": len(MOTIONS)}

    def known(clip: np.ndarray) -> dict[str, np.ndarray]:
        targets = {name: indicators(shown[name].to_numpy()[clip], count) for name, count in counts.items()}
        return targets | {"position": shown[["x", "y"]].to_numpy()[clip]}

    train, validation = ((part.fmri, known(part.clip)) for part in (data.train, data.validation))
    scores = linear_reader(train, validation, data.test.fmri)
    return scores | {
        "frame": class_scores(scores["object"], scores["colour"], scores["background"]),
        "video": class_scores(scores["object"], scores["motion"], scores["background"]),
    }


def class_scores(*attributes: np.ndarray) -> np.ndarray:
    """Scores of all combinations of levels, the last attribute varying fastest: the sum of the levels' scores.

    Parameters
    ----------
    *attributes : (clips, levels), one or more

    Returns
    -------
    (clips, product of the levels)
    """
    total = np.asarray(attributes[0])
    for scores in attributes[1:]:
        total = (total[:, :, None] + np.asarray(scores)[:, None, :]).reshape(len(total), -1)
    return total


def reader_table(
    scores: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    segment: np.ndarray,
    length: int,
    n_way: int = 50,
    **columns: object,
) -> pd.DataFrame:
    """How often the best level is the true one, and for classes the n-way test with one correct class.

    Parameters
    ----------
    scores : of `reader_scores`, at the same clips as `labels`
    labels : attribute -> true level (clips,), for frame and video the class; others are left out of the table
    segment : (clips,)
    length : clips a block
    n_way : of the test of frame and video, whose classes are too many to name
    **columns : put in front

    Returns
    -------
    DataFrame
        A row an attribute: n (levels, or `n_way`), accuracy with low and high of its 95 % block-bootstrap interval,
        shuffled (mean over permuted blocks), p, chance (1/n).
    """
    from nfx.evaluation.n_way import n_way_pairs

    rows = []
    for name, true in labels.items():
        true, found = np.asarray(true), scores[name]
        if len(true) != len(found):
            raise ValueError(f"{name}: {len(found)} scored clips and {len(true)} labels, expected one each")
        if name in ("frame", "video"):
            n, pairs = n_way, n_way_pairs(np.eye(found.shape[1])[true], found, n_way)
        else:
            n, pairs = found.shape[1], (true[:, None] == found.argmax(axis=1)).astype(float)
        interval = block_bootstrap(pairs.diagonal(), segment, length)
        null = permutation_test(block_pairs(lambda i, j, pairs=pairs: pairs[i, j], segment, length))  # type: ignore[misc]
        rows.append(
            {**columns, "attribute": name, "n": n, "accuracy": interval.mean, "low": interval.low,
             "high": interval.high, "shuffled": null.null_mean, "p": null.p, "chance": 1 / n}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _design(windows: np.ndarray, shown: Mapping[str, np.ndarray], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    windows, targets = np.asarray(windows, dtype=np.float64), [np.asarray(shown[name], dtype=float) for name in names]
    wrong = [f"{name} {y.shape}" for name, y in zip(names, targets, strict=True) if len(y) != len(windows)]
    if wrong or len(windows) == 0:
        raise ValueError(f"{len(windows)} windows and targets {', '.join(wrong)}: expected one each, at least one")
    return windows.reshape(len(windows), -1), np.concatenate(targets, axis=1)


def _require_simulated(profile: Profile) -> None:
    if not profile.simulated:
        raise ValueError(f"profile '{profile.name}' is of real data, whose truth nobody knows: use a simulated one")
