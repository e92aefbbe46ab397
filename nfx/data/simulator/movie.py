"""The simulated movie: which scenes follow each other in each segment, and the film that is made of them.

Every scene fills whole clips of 2 s, so that cuts fall on clip boundaries and a clip has one label; within a scene the
object moves on without a jump. Real film cuts anywhere: the published clips straddle cuts, the simulated ones do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from nfx.data.simulator.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAME,
    MOTIONS,
    OBJECTS,
    Scene,
    caption,
    centre,
    frame_class,
    random_scene,
    render,
    video_class,
)
from nfx.files import write_atomically

if TYPE_CHECKING:
    from nfx.profile import Profile, Simulation

CLIP_SECONDS = 2.0  # one clip per volume; paper, Section 4.2
FILM_RATE = 30  # frames a second of the published film
FILM_FRAMES = round(CLIP_SECONDS * FILM_RATE)  # per clip
CLASS_OVERLAP = 0.56  # train and test categories, |both| / |either|; paper, Section 5.1
NOVEL_SHARE = 1 / 6  # of the test classes that the training movie never shows; ours
MOST_TEST_CLASSES = 64  # half of the 128: leaves room for classes that only the training movie shows

FrameClass = tuple[int, int, int]  # object, colour, background
ALL_CLASSES: tuple[FrameClass, ...] = tuple(
    (o, c, b) for o in range(len(OBJECTS)) for c in range(len(COLOURS)) for b in range(len(BACKGROUNDS))
)


class Shot(NamedTuple):
    """A scene on screen from clip `start` of its segment, for `length` clips."""

    scene: Scene
    start: int
    length: int


Movie = dict[str, list[Shot]]


def generator(seed: int, *names: object) -> np.random.Generator:
    """A random generator of its own for whatever `names` name, the same on every machine and in any order of use."""
    return np.random.default_rng([seed, *(crc32(str(name).encode()) for name in names)])


def shot_lengths(rng: np.random.Generator, volumes: int, shortest: int, longest: int) -> list[int]:
    """Lengths of consecutive scenes, `shortest` to `longest` clips each where that can be, that fill `volumes`."""
    if not 1 <= shortest <= longest:
        raise ValueError(f"simulation.scene_volumes must be [from, to] with 1 <= from <= to; got {[shortest, longest]}")
    lengths: list[int] = []
    while (left := volumes - sum(lengths)) > 0:
        fitting = [n for n in range(shortest, longest + 1) if n == left or n + shortest <= left]
        lengths.append(int(rng.choice(fitting)) if fitting else min(left, longest))
    return lengths


def balanced_choice(
    rng: np.random.Generator, candidates: Sequence[FrameClass], count: int, beside: Sequence[FrameClass] = ()
) -> list[int]:
    """Choose `count` candidates so that, with the classes `beside` them, attributes and their pairs are balanced.

    Returns
    -------
    list of int
        Indices into `candidates`, each at most once.
    """
    levels = (len(OBJECTS), len(COLOURS), len(BACKGROUNDS))
    keys, used, weight = [], [], []
    for places, first in (((0,), 8), ((1,), 4), ((2,), 4), ((0, 1), 1), ((0, 2), 1), ((1, 2), 1)):
        shape = [levels[i] for i in places]  # single attributes weigh as many as they have levels, pairs least
        for classes in (candidates, beside):
            columns = np.array(classes, int).reshape(-1, 3)[:, places].T
            keys.append(np.ravel_multi_index(tuple(columns), shape))
        used.append(np.bincount(keys.pop(), minlength=math.prod(shape)))
        weight.append(first)
    chance = rng.uniform(0, 0.5, len(candidates))
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        cost = chance + sum(w * u[k] for w, u, k in zip(weight, used, keys, strict=True))
        best = int(cost.argmin())
        for u, k in zip(used, keys, strict=True):
            u[k[best]] += 1
        chance[best] = np.inf  # taken
        chosen.append(best)
    return chosen


def choose_classes(
    rng: np.random.Generator, train_scenes: int, test_scenes: int
) -> tuple[list[FrameClass], list[FrameClass]]:
    """Frame classes of the training and of the test movie, overlapping by about CLASS_OVERLAP.

    With t test classes of which u are novel, i = t - u are in both, and i / (r + u) = CLASS_OVERLAP gives r, the number
    of training classes. Objects, colours and backgrounds are balanced in both sets.
    """
    t = min(test_scenes, MOST_TEST_CLASSES)
    u = round(t * NOVEL_SHARE)
    r = min(round((t - u) / CLASS_OVERLAP) - u, train_scenes, len(ALL_CLASSES) - u)
    test = [ALL_CLASSES[i] for i in balanced_choice(rng, ALL_CLASSES, t)]
    novel = {test[i] for i in balanced_choice(rng, test, u)}
    both = [one for one in test if one not in novel]
    rest = [one for one in ALL_CLASSES if one not in set(test)]
    return both + [rest[i] for i in balanced_choice(rng, rest, r - len(both), beside=both)], test


def class_overlap(train: set, test: set) -> float:
    """Shared classes over all classes, |train & test| / |train | test|."""
    return len(train & test) / len(train | test)


def simulation_of(profile: Profile) -> Simulation:
    """The profile's section `simulation`; ValueError if it has none."""
    if profile.simulation is None:
        raise ValueError(f"profile '{profile.name}' has no section 'simulation': nothing can be simulated for it")
    return profile.simulation


def plan_movie(profile: Profile) -> Movie:
    """The scenes of every segment, 'seg1'.. for training and 'test1'.. for testing, from the profile's seed alone.

    Each frame class shown comes equally often (within one); attributes are balanced within each segment, too.

    Parameters
    ----------
    profile : Profile
        Its `seed`, `data` (segments, volumes) and `simulation.scene_volumes`.

    Returns
    -------
    Movie
        Shots by segment; together they fill the segment's clips.
    """
    data, span = profile.data, simulation_of(profile).scene_volumes
    rng = generator(profile.seed, "movie")
    lengths = {
        name: shot_lengths(rng, volumes, *span)
        for name, volumes in [
            *((f"seg{n + 1}", data.train_volumes) for n in range(data.train_segments)),
            *((f"test{n + 1}", data.test_volumes) for n in range(data.test_segments)),
        ]
    }
    scenes = {p: [len(n) for s, n in lengths.items() if s.startswith(p)] for p in ("seg", "test")}
    train, test = choose_classes(rng, sum(scenes["seg"]), sum(scenes["test"]))
    arranged = [*_arrange(rng, train, scenes["seg"]), *_arrange(rng, test, scenes["test"])]
    movie: Movie = {}
    for (name, spans), attributes in zip(lengths.items(), arranged, strict=True):
        shots, start = [], 0
        for length, (o, c, b, m) in zip(spans, attributes.tolist(), strict=True):
            scene = random_scene(rng, CLIP_SECONDS * length, object=o, colour=c, background=b, motion=m)
            shots.append(Shot(scene, start, length))
            start += length
        movie[name] = shots
    return movie


def plan_other_movie(seed: int, name: str, volumes: int, span: tuple[int, int]) -> list[Shot]:
    """A movie of which nothing is asked: scenes of any class, one after the other (for the unlabelled recordings)."""
    rng = generator(seed, "other movie", name)
    shots, start = [], 0
    for length in shot_lengths(rng, volumes, *span):
        shots.append(Shot(random_scene(rng, CLIP_SECONDS * length), start, length))
        start += length
    return shots


def _arrange(rng: np.random.Generator, classes: list[FrameClass], scenes: list[int]) -> list[np.ndarray]:
    """Attributes (object, colour, background, motion) of the scenes of every segment, (scenes of it, 4) each.

    Classes come equally often (within one), and motions with each object and background. Then scenes are exchanged
    between segments until each segment is balanced by itself: cleaning makes a run relative to its own mean, so that a
    short run full of snow would look like one without.
    """
    rounds, rest = divmod(sum(scenes), len(classes))
    pool = classes * rounds + [classes[i] for i in balanced_choice(rng, classes, rest)]
    used: Counter = Counter()
    shown = []
    for o, c, b in pool:
        keys = [[("any", m), ("object", o, m), ("background", b, m), ("both", o, b, m)] for m in range(len(MOTIONS))]
        cost = [sum(used[key] for key in of_one) for of_one in keys] + rng.uniform(0, 0.5, len(MOTIONS))
        m = int(cost.argmin())
        used.update(keys[m])
        shown.append((o, c, b, m))
    arranged = rng.permutation(np.array(shown))
    _exchange(rng, arranged, np.repeat(np.arange(len(scenes)), scenes))
    return np.split(arranged, np.cumsum(scenes)[:-1])


def _exchange(rng: np.random.Generator, shown: np.ndarray, segment: np.ndarray, proposals: int = 40) -> None:
    """Exchange rows of `shown` (scenes, attributes) between segments, in place, wherever that lowers the sum of squared
    counts of the attributes' levels in the segments; `proposals` random pairs for every scene."""
    count = np.zeros((shown.shape[1], segment.max() + 1, shown.max() + 1), int)
    for attribute, levels in enumerate(shown.T):
        np.add.at(count[attribute], (segment, levels), 1)
    for i, j in rng.integers(len(shown), size=(proposals * len(shown), 2)):
        p, q = segment[i], segment[j]
        differ = np.flatnonzero(shown[i] != shown[j])
        a, b = shown[i, differ], shown[j, differ]
        gain = (count[differ, p, a] - count[differ, p, b] + count[differ, q, b] - count[differ, q, a] - 2).sum()
        if p != q and gain > 0:
            for at, lost, won in ((p, a, b), (q, b, a)):
                count[differ, at, lost] -= 1
                count[differ, at, won] += 1
            shown[[i, j]] = shown[[j, i]]


def clip_attributes(shots: list[Shot]) -> np.ndarray:
    """Object, colour, background and motion of every clip, int (clips, 4)."""
    return np.concatenate([np.tile(np.array(s.scene[:4]), (s.length, 1)) for s in shots])


def film(shots: list[Shot], size: int, rate: float = FILM_RATE) -> np.ndarray:
    """All frames of a segment at `rate` frames a second, uint8 (frames, size, size, 3)."""
    return np.concatenate(
        [_frames(s.scene, np.arange(round(s.length * CLIP_SECONDS * rate)) / rate, size) for s in shots]
    )


def _frames(scene: Scene, times: np.ndarray, size: int) -> np.ndarray:
    """The same as `render`, which puts objects on whole pixels: only frames that differ are rendered."""
    place = np.round(centre(scene, times) * size / FRAME)
    _, first, of = np.unique(place, axis=0, return_index=True, return_inverse=True)
    return render(scene, times[first], size)[of.ravel()]


def write_movie(path: Path, shots: list[Shot], size: int) -> Path:
    """Write a segment's film as the published ones are: H.264 at 30 frames a second, 2 s a clip exactly, atomically.

    Parameters
    ----------
    path : Path
        The mp4 file.
    shots : list of Shot
        Scenes of the segment.
    size : int
        Height and width in pixels; even, as yuv420p wants it.
    """
    import av

    if size % 2:
        raise ValueError(f"data.frame_size must be even for an H.264 film in yuv420p; got {size}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FILM_RATE)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast"}  # next to no loss; slower presets only save bytes
        stream.codec_context.thread_count = 1  # the same bytes on any machine
        for shot in shots:
            for frame in film([shot], size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def describe(movie: Movie) -> dict:
    """The truth about a movie, for movie.json: scenes by segment, and the frame classes that either set shows."""
    shown = {
        prefix: {frame_class(s.scene) for name, shots in movie.items() if name.startswith(prefix) for s in shots}
        for prefix in ("seg", "test")
    }
    return {
        "clip_seconds": CLIP_SECONDS,
        "class_overlap": class_overlap(shown["seg"], shown["test"]),
        "train_classes": sorted(shown["seg"]),
        "test_classes": sorted(shown["test"]),
        "segments": {name: [_describe_shot(s) for s in shots] for name, shots in movie.items()},
    }


def _describe_shot(shot: Shot) -> dict:
    s = shot.scene
    return {
        "start": shot.start,
        "length": shot.length,
        "object": OBJECTS[s.object],
        "colour": COLOURS[s.colour],
        "background": BACKGROUNDS[s.background],
        "motion": MOTIONS[s.motion],
        "caption": caption(s),
        "frame_class": frame_class(s),
        "video_class": video_class(s),
        "x": float(s.x),
        "y": float(s.y),
        "scale": int(s.scale),
        "texture_seed": int(s.texture_seed),
    }
