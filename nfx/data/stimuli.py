"""The film as clips of 2 s and six frames, 3 frames a second (Section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAME_RATE = 30.0  # frames per second of the film
CLIP_SECONDS = 2.0  # one volume
CLIP_FRAMES = 6  # at 3 frames per second
RATE_TOLERANCE = 0.1  # 29.97 passes: frames are picked by their time
LENGTH_TOLERANCE = 0.25  # s by which a film may miss the expected number of clips


def read_clips(mp4: str | Path, size: int, clips: int | None = None) -> np.ndarray:
    """Read a film as clips: the frames at 0, 1/3, ..., 5/3 s of every 2 s (0, 10, ..., 50 of 60).

    Frames are picked by presentation time, counted from the first frame shown, and only those six are kept.
    The whole frame is squeezed to a square (bicubic, with antialiasing), nothing is cropped: the peers do not
    say what they did, and cropping would remove what the subjects saw.

    Parameters
    ----------
    mp4 : path of a film at 30 frames per second
    size : int
        Height and width of the result, pixels.
    clips : int, optional
        Expected number of clips. With it the film may be up to 0.25 s longer or shorter than 2 s each (some
        films end a few frames late); without it, its length must be a whole number of clips.

    Returns
    -------
    array of shape (clips, 6, size, size, 3), uint8

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no readable film, has another frame rate or length, or lacks a frame.
    """
    path = Path(mp4)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a film of the stimuli (.mp4)")
    if size < 1:
        raise ValueError(f"The size of a frame is 1 pixel or more, not {size}")
    step, frame_time = CLIP_SECONDS / CLIP_FRAMES, 1 / FRAME_RATE
    picked: list[np.ndarray] = []
    time = -frame_time
    for time, frame in _frames(path):
        wanted = len(picked) * step
        if time < wanted - frame_time / 2 or (clips is not None and len(picked) == clips * CLIP_FRAMES):
            continue  # between two picks, or after the last; decoded all the same, for the film's length
        if time > wanted + frame_time:
            raise ValueError(f"{path} lacks a frame at {wanted:.2f} s (the next: {time:.2f} s); fetch or make it again")
        picked.append(_squeeze(frame.to_ndarray(format="rgb24"), size))
    _check_length(path, time + frame_time, clips)
    count = round((time + frame_time) / CLIP_SECONDS) if clips is None else clips
    if len(picked) != count * CLIP_FRAMES:
        raise ValueError(f"{path} gave {len(picked)} frames at 3 per second; {count * CLIP_FRAMES} were expected")
    return np.stack(picked).reshape(count, CLIP_FRAMES, size, size, 3)


def _frames(path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with their time in seconds from the first one; one frame in memory at a time."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream; expected a film at {FRAME_RATE:g} frames per second")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            if abs(rate - FRAME_RATE) > RATE_TOLERANCE:
                raise ValueError(f"{path} runs at {rate:g} frames per second; {FRAME_RATE:g} were expected")
            first = None
            for frame in container.decode(stream):
                if frame.time is None:
                    raise ValueError(f"{path} has a frame without a presentation time; expected a constant-rate film")
                first = frame.time if first is None else first
                yield frame.time - first, frame
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a film ({error}); fetch or make it again") from error


def _check_length(path: Path, seconds: float, clips: int | None) -> None:
    """Refuse a film that is not a whole number of clips, or not the expected number."""
    if clips is not None and abs(seconds - clips * CLIP_SECONDS) > LENGTH_TOLERANCE:
        raise ValueError(f"{path} lasts {seconds:.2f} s; {clips} clips of {CLIP_SECONDS:g} s were expected")
    whole = round(seconds / CLIP_SECONDS)
    if clips is None and (whole < 1 or abs(seconds - whole * CLIP_SECONDS) > 0.5 / FRAME_RATE):
        raise ValueError(f"{path} lasts {seconds:.2f} s, which is not a whole number of {CLIP_SECONDS:g}-s clips")


def _squeeze(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (height, width, 3) uint8 as (size, size, 3), untouched if it has that size."""
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
