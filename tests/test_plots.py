import hashlib
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from nfx import paths, plots  # noqa: E402


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return SimpleNamespace(name="tiny", simulated=True)


def clips(count=2, height=9, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, height, width, 3), dtype=np.uint8)


def line():
    fig = plots.new_figure(3, 2)
    fig.subplots().plot([0, 1])
    return fig


def test_saved_files_are_the_same_every_time(profile):
    digests = []
    for _ in range(2):
        png = plots.save_figure(line(), profile, "line", dpi=50)
        digests.append([hashlib.sha256(png.with_suffix(s).read_bytes()).hexdigest() for s in (".png", ".pdf")])
    assert digests[0] == digests[1]
    assert png == paths.ROOT / "figures" / "tiny" / "line.png"
    assert sorted(path.name for path in png.parent.iterdir()) == ["line.pdf", "line.png"]


def test_simulated_figures_are_stamped_and_real_ones_not(profile):
    from PIL import Image

    fig = line()
    stamped = np.asarray(Image.open(plots.save_figure(fig, profile, "a", dpi=50)).convert("RGB")).astype(int)
    assert fig.texts == []  # the figure itself is left as it was
    profile.simulated = False
    plain = np.asarray(Image.open(plots.save_figure(fig, profile, "b", dpi=50)).convert("RGB")).astype(int)

    def reddish(image):
        return int(((image[..., 0] > 140) & (image[..., 1] < 60)).sum())

    assert stamped.shape[0] > plain.shape[0]  # below the drawing, not on it
    assert reddish(stamped) > 20 and reddish(plain) == 0


def test_names_without_folder_and_suffix(profile):
    for name in ("figure.png", "sub/figure"):
        with pytest.raises(ValueError, match="plain name"):
            plots.save_figure(line(), profile, name)


def test_tables(profile):
    table = pd.DataFrame({"a": [0.12345, np.nan], "b": ["x|y", None], "n": [1, 2]}, index=pd.Index([0, 8], name="row"))
    path = plots.save_table(table, profile, "table")
    pd.testing.assert_frame_equal(pd.read_csv(path, comment="#", index_col="row"), table, check_dtype=False)
    text = path.with_suffix(".md").read_text()
    assert "simulated" in text and "| 0 | 0.123 | x\\|y | 1 |" in text and "| 8 |  |  | 2 |" in text
    profile.simulated = False
    assert "simulated" not in plots.save_table(table, profile, "table").read_text()


def test_missing_values_are_left_empty():
    table = pd.DataFrame({"whole": pd.array([1, None], "Int64"), "real": [None, 0.5], "text": ["a|b", None]})
    assert plots.markdown(table).splitlines()[2:] == ["| 1 |  | a\\|b |", "|  | 0.500 |  |"]


def test_no_small_number_is_rounded_to_zero():
    table = pd.DataFrame({"p": [0.0001, 0.0006, 0.0, -0.0001]})
    assert plots.markdown(table).splitlines()[2:] == ["| < 0.001 |", "| 0.001 |", "| 0.000 |", "| > -0.001 |"]


def test_film_strip_holds_the_frames():
    clip = clips()[0]
    strip = plots.film_strip(clip, gap=2)
    assert strip.shape == (9, 6 * 12 + 5 * 2, 3)
    np.testing.assert_array_equal(strip[:, 14:26], clip[1])
    assert (strip[:, 12:14] == 255).all()


def test_contact_sheet_draws_every_row_of_every_clip():
    rows = {"truth": clips(3), "decoded": clips(3, seed=1)}
    fig = plots.contact_sheet(rows, titles=["a", "b", "c"], clips_per_line=2)
    drawn = [ax for ax in fig.axes if ax.images]
    assert len(drawn) == 6
    assert {text.get_text() for ax in fig.axes for text in ax.texts} == {"truth", "decoded"}
    with pytest.raises(ValueError, match="same"):
        plots.contact_sheet({"truth": clips(3), "decoded": clips(2)})
    with pytest.raises(ValueError, match="titles"):
        plots.contact_sheet(rows, titles=["a"])


def test_upscale_by_whole_factors():
    frames = clips()[0]
    large = plots.upscale(frames, 256)
    assert large.shape == (6, 9 * 29, 12 * 29, 3)
    np.testing.assert_array_equal(large[:, ::29, ::29], frames)
    assert plots.upscale(frames, 4) is not None and plots.upscale(frames, 4).shape == frames.shape


def test_video_is_read_back(tmp_path):
    import av

    colours = np.zeros((2, 6, 9, 11, 3), np.uint8)
    colours[0, :, :, :, 1], colours[1] = 200, 90
    path = plots.write_video(colours, tmp_path / "new" / "clip.mp4", smallest=30)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 3
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert frames.shape == (12, 36, 44, 3)
    np.testing.assert_allclose(frames[[0, 11]].mean(axis=(1, 2)), [[0, 200, 0], [90, 90, 90]], atol=8)


def test_video_of_odd_size_and_bytes(tmp_path):
    first = plots.write_video(clips(1), tmp_path / "a.mp4", smallest=1).read_bytes()
    assert first == plots.write_video(clips(1), tmp_path / "b.mp4", smallest=1).read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        plots.write_video(clips(1) / 255, tmp_path / "c.mp4")


def test_gif(tmp_path):
    from PIL import Image

    path = plots.write_gif(clips(1), tmp_path / "clip.gif", smallest=18)
    with Image.open(path) as image:
        assert image.n_frames == 6 and image.size == (24, 18) and image.info["loop"] == 0
        assert image.info["duration"] == pytest.approx(333, abs=10)


def test_side_by_side():
    both = plots.side_by_side({"a": clips(), "b": clips(seed=1)})
    np.testing.assert_array_equal(both[..., 12:, :], clips(seed=1))
