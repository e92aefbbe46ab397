"""The film as clips of 2 s and six frames, 3 frames a second (Section 4.2)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from nfx.files import one_line

FRAME_RATE = 30.0  # frames per second of the film
CLIP_SECONDS = 2.0  # one volume
CLIP_FRAMES = 6  # at 3 frames per second
RATE_TOLERANCE = 0.1  # 29.97 passes: frames are picked by their time
MOST_PIXELS = 1 << 26  # of a frame: 8K film has half of it
# What a film may be, and where its content may lie. FFmpeg goes by the content, not by the name: a playlist called
# film.mp4 would open whatever files and addresses it lists.
CONTAINERS = "mov,matroska,avi"
READ_WITH = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
AHEAD = 8  # frames decoded while earlier ones are made smaller
LENGTH_TOLERANCE = 0.25  # s by which a film may miss the expected number of clips


def read_clips(mp4: str | Path, size: int, clips: int | None = None, rate: float | None = FRAME_RATE) -> np.ndarray:
    """Read a film as clips: the frames at 0, 1/3, ..., 5/3 s of every 2 s (0, 10, ..., 50 of 60).

    Frames are picked by presentation time, counted from the first frame shown, and only those six are kept.
    The whole frame is squeezed to a square (bicubic, with antialiasing), nothing is cropped: the peers do not
    say what they did, and cropping would remove what the subjects saw.

    Parameters
    ----------
    mp4 : path of a film
    size : int
        Height and width of the result, pixels.
    clips : int, optional
        Expected number of clips. With it the film may be up to 0.25 s longer or shorter than 2 s each (some
        films end a few frames late); without it, its length must be a whole number of clips.
    rate : float, optional
        Frames per second that the film must have, 30 in the published data set; None: any from 3 on. The frame picked
        is the first that comes no earlier than half a frame before its time.

    Returns
    -------
    array of shape (clips, 6, size, size, 3), uint8

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no readable film (MP4, MOV, Matroska, AVI), has another frame rate or length, or lacks a frame.
    """
    path = Path(mp4)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a film of the stimuli (.mp4)")
    if size < 1:
        raise ValueError(f"The size of a frame is 1 pixel or more, not {size}")
    step, frame_time = CLIP_SECONDS / CLIP_FRAMES, 1 / _rate(path, rate)
    # Of a film of known length the clips are filled in place: at the paper's size they are 283 MB a segment.
    picked: Any = [] if clips is None else np.empty((clips * CLIP_FRAMES, size, size, 3), np.uint8)
    count, time = 0, -frame_time
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()

    def keep(most: int) -> None:
        """Take what was made smaller, until this many frames wait."""
        while len(waiting) > most:
            place, image = waiting.popleft()
            if clips is None:
                picked.append(image.result())
            else:
                picked[place] = image.result()

    with ThreadPoolExecutor(1) as beside:  # the decoder goes on meanwhile
        for number, (time, frame) in enumerate(_frames(path)):
            if clips is not None and max(time, number * frame_time / 2) > clips * CLIP_SECONDS + 1:
                raise ValueError(
                    f"{path} goes on after {time:.2f} s; {clips} clips of {CLIP_SECONDS:g} s were expected"
                )
            wanted = count * step
            if time < wanted - frame_time / 2 or (clips is not None and count == clips * CLIP_FRAMES):
                continue  # between two picks, or after the last; decoded all the same, for the film's length
            if time > wanted + frame_time:
                raise ValueError(
                    f"{path} lacks a frame at {wanted:.2f} s (the next: {time:.2f} s); fetch or make it again"
                )
            waiting.append((count, beside.submit(_smaller, frame, size)))
            count += 1
            keep(AHEAD)
        keep(0)
    _check_length(path, time + frame_time, clips, frame_time)
    expected = round((time + frame_time) / CLIP_SECONDS) if clips is None else clips
    if count != expected * CLIP_FRAMES:
        raise ValueError(f"{path} gave {count} frames at 3 per second; {expected * CLIP_FRAMES} were expected")
    return np.asarray(picked).reshape(expected, CLIP_FRAMES, size, size, 3)


def _rate(path: Path, expected: float | None) -> float:
    """Frames per second of a film, by its header; refused if they are not those expected."""
    with opened(path) as stream:
        rate = float(stream.average_rate or 0)
    if expected is not None and abs(rate - expected) > RATE_TOLERANCE:
        raise ValueError(f"{path} runs at {rate:g} frames per second; {expected:g} were expected")
    if rate < CLIP_FRAMES / CLIP_SECONDS:
        raise ValueError(f"{path} runs at {rate:g} frames per second; 3 or more were expected")
    return rate if expected is None else expected


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The video stream of a film; whatever else the file asks for is refused, as a ValueError that names it."""
    try:
        with av.open(f"file:{path}", options=READ_WITH, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream; expected a film")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError(f"{path} has a video stream of an unknown kind; expected a film such as H.264")
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield stream
    except av.FFmpegError as error:
        claims = error.errno == errno.ENOMEM  # FFmpeg refuses such a header itself
        reason = "it announces more than memory holds" if claims else one_line(error)
        raise ValueError(f"{path} cannot be read as a film ({reason}); fetch or make it again") from error


def _frames(path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with their time in seconds from the first one; one frame in memory at a time."""
    with opened(path) as stream:
        first = None
        for frame in stream.container.decode(stream):
            if frame.time is None:
                raise ValueError(f"{path} has a frame without a presentation time; expected a constant-rate film")
            first = frame.time if first is None else first
            yield frame.time - first, frame


def _check_length(path: Path, seconds: float, clips: int | None, frame_time: float) -> None:
    """Refuse a film that is not a whole number of clips, or not the expected number."""
    if clips is not None and abs(seconds - clips * CLIP_SECONDS) > LENGTH_TOLERANCE:
        raise ValueError(f"{path} lasts {seconds:.2f} s; {clips} clips of {CLIP_SECONDS:g} s were expected")
    whole = round(seconds / CLIP_SECONDS)
    if clips is None and (whole < 1 or abs(seconds - whole * CLIP_SECONDS) > 0.5 * frame_time):
        raise ValueError(f"{path} lasts {seconds:.2f} s, which is not a whole number of {CLIP_SECONDS:g}-s clips")


def _smaller(frame: av.VideoFrame, size: int) -> np.ndarray:
    return _squeeze(frame.to_ndarray(format="rgb24"), size)


def _squeeze(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (height, width, 3) uint8 as (size, size, 3), untouched if it has that size."""
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
