"""A tiny data set in the published layout, written with nibabel and PyAV alone."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import av
import nibabel
import numpy as np
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

SURFACE = 32492  # vertices of an fsLR-32k hemisphere


def surface_sample(left: np.ndarray, right: np.ndarray) -> BrainModelAxis:
    """A brain-model axis of some vertices of both hemispheres."""
    axes = [
        BrainModelAxis.from_surface(np.asarray(vertices), SURFACE, name=f"CORTEX_{side}")
        for side, vertices in (("LEFT", left), ("RIGHT", right))
    ]
    return axes[0] + axes[1]


def write_cifti(path: Path, data: np.ndarray, brain: BrainModelAxis) -> Path:
    """Write (volumes, grayordinates) float32. The header's time step is wrong, as in the published files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    series = SeriesAxis(start=0, step=1.0, size=len(data))
    nibabel.save(Cifti2Image(data.astype(np.float32), header=(series, brain)), path)
    return path


def claiming(content: bytes, lengths: tuple[int, int], datatype: int | None = None, offset: int | None = None) -> bytes:
    """A recording of `write_cifti`, whose headers claim other (volumes, grayordinates); its data stay as they are.

    Parameters
    ----------
    datatype : code of NIfTI for the data's type, if another is to be claimed
    offset : where the data are to begin, if elsewhere than they do
    """
    start, end = content.index(b"<CIFTI"), content.index(b"</CIFTI>") + len(b"</CIFTI>")
    xml = re.sub(rb'NumberOfSeriesPoints="\d+"', b'NumberOfSeriesPoints="%d"' % lengths[0], content[start:end])
    counts = iter([lengths[1] - 20, 20])  # of the two hemispheres
    xml = re.sub(rb'IndexCount="\d+"', lambda match: b'IndexCount="%d"' % next(counts), xml)
    (data,) = struct.unpack_from("<q", content, 168)
    xml += b"\0" * ((-544 - 8 - len(xml)) % 16)
    changed = bytearray(content[:544] + struct.pack("<ii", 8 + len(xml), 32) + xml + content[data:])
    struct.pack_into("<q", changed, 168, 552 + len(xml) if offset is None else offset)
    struct.pack_into("<8q", changed, 16, 6, 1, 1, 1, 1, *lengths, 1)
    if datatype is not None:
        struct.pack_into("<h", changed, 12, datatype)
    return bytes(changed)


def numbered_frame(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A frame that shows its number in binary, as 4 x 4 black and white squares; survives compression."""
    bits = np.array([(number >> bit) & 1 for bit in range(16)]).reshape(4, 4)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    grey = np.where(bits[rows[:, None], columns[None]], 235, 20).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def frame_number(frame: np.ndarray) -> int:
    """Read the number of `numbered_frame` off a square frame of any size."""
    step = len(frame) // 4
    bits = frame[step // 2 :: step, step // 2 :: step].mean(axis=-1)[:4, :4] > 128
    return int((bits.ravel() << np.arange(16)).sum())


def write_film(path: Path, numbers: range, rate: int = 30, height: int = 64, width: int = 64) -> Path:
    """Write an H.264 film of numbered frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "ultrafast"}
        for number in numbers:
            image = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def write_dataset(
    root: Path, *, segments: int, tests: int, volumes: int, test_repeats: int, seed: int = 0, subject: int = 1
) -> dict[str, np.ndarray]:
    """Write one subject and the films under `root`: 40 vertices, of which the first 8 of each hemisphere respond.

    Returns the responding vertices' signal per segment, {"seg1": (volumes, 16), ...}, already where the trimming
    should find it, and `brain`'s vertex numbers.
    """
    rng = np.random.default_rng(seed)
    left, right = np.arange(0, 2000, 100), np.arange(50, 2050, 100)
    brain = surface_sample(left, right)
    signals = {}
    names = [f"seg{n}" for n in range(1, segments + 1)] + [f"test{n}" for n in range(1, tests + 1)]
    for name in names:
        first = 2 if name.startswith("test") and name != "test1" else 1
        signals[name] = rng.standard_normal((volumes, 16))
        for repeat in range(1, (2 if name.startswith("seg") else test_repeats) + 1):
            data = rng.standard_normal((first + volumes + 4, 40))
            data[first : first + volumes, np.r_[0:8, 20:28]] += 3 * signals[name]
            drift = np.linspace(0, 1, len(data))[:, None] ** 2 * 20
            folder = root / f"subject{subject}" / "fmri" / name / "cifti"
            write_cifti(folder / f"{name}_{repeat}_Atlas.dtseries.nii", 1000 + 5 * data + drift, brain)
        write_film(root / "stimuli" / f"{name}.mp4", range(60 * volumes))
    return {**signals, "left": left, "right": right}
