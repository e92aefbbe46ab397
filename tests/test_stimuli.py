import numpy as np
import pytest
from helpers_dataset import frame_number, numbered_frame, write_film
from PIL import Image

from nfx.data import read_clips


def test_picks_every_tenth_frame_of_thirty_a_second(tmp_path):
    clips = read_clips(write_film(tmp_path / "film.mp4", range(180)), 64)
    assert clips.shape == (3, 6, 64, 64, 3) and clips.dtype == np.uint8
    assert [[frame_number(frame) for frame in clip] for clip in clips] == [
        list(range(start, start + 60, 10)) for start in (0, 60, 120)
    ]
    assert np.abs(clips[1, 2].astype(int) - numbered_frame(80)).mean() < 12  # colours, up to compression


def test_resizes_by_squeezing_the_whole_frame(tmp_path):
    path = write_film(tmp_path / "film.mp4", range(21, 81), height=48, width=96)
    small = read_clips(path, 32)
    assert small.shape == (1, 6, 32, 32, 3)
    assert [frame_number(frame) for frame in small[0]] == list(range(21, 81, 10))
    whole = read_clips(write_film(tmp_path / "square.mp4", range(21, 81)), 64)[0, 0]
    expected = np.asarray(Image.fromarray(whole).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_clips(tmp_path / "square.mp4", 32)[0, 0], expected)


@pytest.mark.parametrize("frames", [30, 59, 61, 90])
def test_a_length_that_is_no_whole_number_of_clips(tmp_path, frames):
    with pytest.raises(ValueError, match="whole number"):
        read_clips(write_film(tmp_path / "film.mp4", range(frames)), 64)


@pytest.mark.parametrize("frames", [118, 120, 123])
def test_an_expected_length_forgives_a_few_frames(tmp_path, frames):
    clips = read_clips(write_film(tmp_path / "film.mp4", range(frames)), 64, clips=2)
    assert frame_number(clips[1, 5]) == 110


@pytest.mark.parametrize("frames", [60, 100, 180])
def test_an_unexpected_length(tmp_path, frames):
    with pytest.raises(ValueError, match="2 clips of 2 s were expected"):
        read_clips(write_film(tmp_path / "film.mp4", range(frames)), 64, clips=2)


def test_a_wrong_frame_rate(tmp_path):
    with pytest.raises(ValueError, match="25 frames per second; 30"):
        read_clips(write_film(tmp_path / "film.mp4", range(50), rate=25), 64)


@pytest.mark.parametrize("rate", [3, 24, 25, 50, 60])
@pytest.mark.parametrize("clips", [None, 3])
def test_films_of_any_rate_are_read_where_that_is_wanted(tmp_path, rate, clips):
    film = write_film(tmp_path / "film.mp4", range(6 * rate), rate=rate)
    found = [frame_number(frame) for frame in read_clips(film, 64, clips, rate=None).reshape(-1, 64, 64, 3)]
    np.testing.assert_allclose(found, np.arange(18) / 3 * rate, atol=0.5)  # the nearest frame


def test_fewer_frames_than_a_clip_needs(tmp_path):
    with pytest.raises(ValueError, match="2 frames per second; 3 or more"):
        read_clips(write_film(tmp_path / "film.mp4", range(12), rate=2), 64, rate=None)


def test_a_film_of_a_slightly_other_rate_is_picked_by_time(tmp_path):
    # 29.97 frames per second: after 100 s, 3 frames behind one that counts frames.
    from fractions import Fraction

    path = write_film(tmp_path / "film.mp4", range(1800), rate=Fraction(30000, 1001), height=16, width=16)
    clips = read_clips(path, 16, clips=30)
    assert clips.shape == (30, 6, 16, 16, 3)
    times = np.arange(180) / 3
    expected = np.round(times * 30000 / 1001)
    found = np.array([frame_number(frame) for frame in clips.reshape(180, 16, 16, 3)])
    assert np.abs(found - expected).max() <= 1 and found[-1] < 1790


def test_files_that_are_no_film(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        read_clips(tmp_path / "nothing.mp4", 64)
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    with pytest.raises(ValueError, match="text.mp4 cannot be read"):
        read_clips(text, 64)
    cut = write_film(tmp_path / "cut.mp4", range(120))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut.mp4"):
        read_clips(cut, 64)
    with pytest.raises(ValueError, match="size"):
        read_clips(write_film(tmp_path / "film.mp4", range(60)), 0)
