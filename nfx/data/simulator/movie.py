"""The simulated movie: which scenes follow each other in each segment, and the film that is made of them.

Every scene fills whole clips of 2 s, so that cuts fall on clip boundaries and a clip has one label; within a scene the
object moves on without a jump. Real film cuts anywhere: the published clips straddle cuts, the simulated ones do not.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from nfx.data.simulator.scenes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    OBJECTS,
    Scene,
    caption,
    frame_class,
    random_scene,
    render,
    video_class,
)
from nfx.files import write_atomically

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
    rng: np.random.Generator, candidates: list[FrameClass], count: int, beside: list[FrameClass] = ()
) -> list[FrameClass]:
    """Choose `count` different candidates so that, with those in `beside`, attributes and their pairs are balanced."""
    chosen: list[FrameClass] = []
    used = Counter(key for one in beside for key in _attributes(one))
    pool = list(candidates)
    for _ in range(min(count, len(pool))):
        # Single attributes first (weighted by their number of levels), then pairs of attributes, then chance.
        cost = [
            sum(used[key] * (1.0 if len(key) == 2 else (8.0 if key[0][0] == 0 else 4.0)) for key in _attributes(one))
            for one in pool
        ]
        best = pool.pop(int(np.argmin(np.array(cost) + rng.uniform(0, 0.5, len(pool)))))
        used.update(_attributes(best))
        chosen.append(best)
    return chosen


def _attributes(one: FrameClass) -> list[tuple]:
    """Keys of a class: its three attributes as 1-tuples of (place, level), and their three pairs as 2-tuples."""
    singles = list(enumerate(one))
    return [(key,) for key in singles] + list(combinations(singles, 2))


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
    test = balanced_choice(rng, list(ALL_CLASSES), t)
    novel = set(balanced_choice(rng, test, u))
    both = [one for one in test if one not in novel]
    rest = [one for one in ALL_CLASSES if one not in set(test)]
    return both + balanced_choice(rng, rest, r - len(both), beside=both), test


def class_overlap(train: set, test: set) -> float:
    """Shared classes over all classes, |train & test| / |train | test|."""
    return len(train & test) / len(train | test)


def plan_movie(profile) -> Movie:
    """The scenes of every segment, 'seg1'.. for training and 'test1'.. for testing, from the profile's seed alone.

    Each frame class shown comes equally often (within one), and so do the motions of an object and of a background.

    Parameters
    ----------
    profile : Profile
        Its `seed`, `data` (segments, volumes) and `simulation.scene_volumes`.

    Returns
    -------
    Movie
        Shots by segment; together they fill the segment's clips.
    """
    data, span = profile.data, profile.simulation.scene_volumes
    rng = generator(profile.seed, "movie")
    lengths = {
        name: shot_lengths(rng, volumes, *span)
        for name, volumes in [
            *((f"seg{n + 1}", data.train_volumes) for n in range(data.train_segments)),
            *((f"test{n + 1}", data.test_volumes) for n in range(data.test_segments)),
        ]
    }
    scenes = {p: sum(len(n) for s, n in lengths.items() if s.startswith(p)) for p in ("seg", "test")}
    train, test = choose_classes(rng, scenes["seg"], scenes["test"])
    movie: Movie = {}
    for prefix, classes in (("seg", train), ("test", test)):
        coming = iter(_sequence(rng, classes, scenes[prefix]))
        for name in (s for s in lengths if s.startswith(prefix)):
            shots, start = [], 0
            for length in lengths[name]:
                o, c, b, m = next(coming)
                seconds = CLIP_SECONDS * length
                scene = random_scene(rng, seconds, object=o, colour=c, background=b, motion=m)
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


def _sequence(rng: np.random.Generator, classes: list[FrameClass], scenes: int) -> list[tuple[int, int, int, int]]:
    """Object, colour, background and motion of `scenes` scenes: rounds through the classes, each in a new order."""
    order: list[FrameClass] = []
    while len(order) < scenes:
        one_round = balanced_choice(rng, classes, scenes - len(order))
        order += [one_round[i] for i in rng.permutation(len(one_round))]
    used: Counter = Counter()
    out = []
    for o, c, b in order:
        cost = [used[m] + 2 * used["object", o, m] + used["background", b, m] for m in range(len(MOTIONS))]
        m = int(np.argmin(np.array(cost) + rng.uniform(0, 0.5, len(MOTIONS))))
        used.update([m, ("object", o, m), ("background", b, m)])
        out.append((o, c, b, m))
    return out


def clip_attributes(shots: list[Shot]) -> np.ndarray:
    """Object, colour, background and motion of every clip, int (clips, 4)."""
    return np.concatenate([np.tile(np.array(s.scene[:4]), (s.length, 1)) for s in shots])


def film(shots: list[Shot], size: int, rate: float = FILM_RATE) -> np.ndarray:
    """All frames of a segment at `rate` frames a second, uint8 (frames, size, size, 3)."""
    frames = round(CLIP_SECONDS * rate)
    return np.concatenate([render(s.scene, np.arange(s.length * frames) / rate, size) for s in shots])


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
