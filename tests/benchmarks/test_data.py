"""Reading and cleaning a run, and the frames of a film, at the published size."""

from pathlib import Path

import av
import floors
import numpy as np
import plain_data
import pytest
from helpers_dataset import surface_sample, write_cifti
from nibabel.cifti2 import BrainModelAxis

from nfx.data import read_cifti, read_clips
from nfx.data.cleaning import clean_run
from nfx.data.stimuli import opened
from nfx.data.voxels import _atlases

VOLUMES, GRAYORDINATES = 245, 91282


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick):
    """A recording of the published form: (path, its data)."""
    size = GRAYORDINATES // 10 if quick else GRAYORDINATES
    info = _atlases().vertex_info
    brain = surface_sample(info.grayl[: size // 4], info.grayr[: size // 4])
    rest = np.ones((size - len(brain), 1, 1), bool)
    brain += BrainModelAxis.from_mask(rest, name="OTHER", affine=np.eye(4))
    bold = 1e4 + 100 * np.random.default_rng(0).standard_normal((VOLUMES, size), dtype=np.float32)
    bold += np.linspace(0, 300, VOLUMES, dtype=np.float32)[:, None] ** 2 / 100
    return write_cifti(tmp_path_factory.mktemp("run") / "seg1_1_Atlas.dtseries.nii", bold, brain), bold


def test_reading_a_run(run, row, tmp_path):
    path, bold = run
    np.testing.assert_array_equal(read_cifti(path).data, bold)
    np.testing.assert_array_equal(plain_data.read_run(path), bold)
    row(
        f"read a run of {bold.shape[1]:,} x {VOLUMES}",
        lambda: read_cifti(path),
        floor=floors.seconds_for_bytes(2 * bold.nbytes),
        plain=lambda: plain_data.read_run(path),
        notes="floor: its float32 values read and written once. Plain: nibabel's float64 array. Equal. From the cache "
        "of the file system",
    )


def test_cleaning_a_run(run, row):
    bold = run[1]
    share = 32  # of the voxels, for the plain loop
    some = np.ascontiguousarray(bold[:, ::share])
    half, quarter = (np.ascontiguousarray(bold[:, : bold.shape[1] // part]) for part in (2, 4))
    trimmed = some[1:-4]
    np.testing.assert_allclose(clean_run(some), plain_data.clean_by_voxel(trimmed), rtol=0, atol=1e-4)
    row(
        f"clean a run of {bold.shape[1]:,} x {VOLUMES}",
        lambda: clean_run(bold),
        floor=floors.seconds_for_bytes(4 * bold.nbytes),
        plain=lambda: plain_data.clean_by_voxel(trimmed),
        plain_scale=share,
        plain_rounds=2,
        grown_from=lambda: clean_run(quarter),
        grown=(lambda: clean_run(half), lambda: clean_run(bold)),
        notes="trimmed, detrended, z-scored. Floor: four float32 passes over it. Plain: np.polyfit voxel by voxel, on "
        "one in 32 and scaled. Equal within 1e-4 standard deviations. Doubled: voxels, from a quarter of them",
    )


PIECE = 8  # s


def write_piece(path: Path, height: int, width: int) -> Path:
    """Eight seconds of moving texture at 30 frames a second, H.264."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 8 + 32, width // 8 + 32, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20"}
        for number in range(30 * PIECE):
            part = texture[number : number + height, number // 2 : number // 2 + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repeat_piece(piece: Path, path: Path, times: int) -> Path:
    """A longer film: the packets of a piece, again and again, without encoding them anew."""
    with av.open(str(path), "w") as container:
        copy = None
        for turn in range(times):
            with av.open(str(piece)) as source:
                stream = source.streams.video[0]
                copy = container.add_stream_from_template(stream) if copy is None else copy
                shift = round(turn * PIECE / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is not None:  # the last is empty
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        container.mux(packet)
    return path


def decode_only(film: Path) -> int:
    """Go through a film as `read_clips` does, and do nothing with its frames."""
    with opened(film) as stream:
        return sum(1 for _ in stream.container.decode(stream))


def test_frames_of_a_film(row, tmp_path, quick):
    seconds, height, width, size = (32, 240, 320, 64) if quick else (480, 768, 1024, 256)
    piece = write_piece(tmp_path / "piece.mp4", height, width)
    quarter, half, film = (
        repeat_piece(piece, tmp_path / f"{part}.mp4", seconds // part // PIECE) for part in (4, 2, 1)
    )
    count = 24
    clips = read_clips(film, size, seconds // 2)
    assert decode_only(film) == seconds * 30
    np.testing.assert_array_equal(
        clips[: count // 6].reshape(count, size, size, 3), plain_data.frames_by_seeking(film, size, count)
    )
    row(
        f"frames at 3 Hz of a film of {seconds} s, {width} x {height}",
        lambda: read_clips(film, size, seconds // 2),
        floor=lambda: decode_only(film),
        plain=lambda: plain_data.frames_by_seeking(film, size, count),
        plain_scale=seconds * 3 / count,
        grown_from=lambda: read_clips(quarter, size),
        grown=(lambda: read_clips(half, size), lambda: read_clips(film, size)),
        rounds=3,
        notes=f"H.264, 30 FPS, to {size} x {size}. Floor: the decoder alone goes through the film. Plain: sought frame "
        f"by frame, for {count} frames and scaled. Equal. Doubled: seconds, from a quarter of the film",
    )
