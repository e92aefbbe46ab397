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


@pytest.mark.parametrize(("width", "tree"), [(12, b"=0"), (20, b"=1"), (33, b"=0"), (64, b"=1")])
def test_a_film_of_an_odd_number_of_blocks_has_no_macroblock_tree(tmp_path, width, tree):
    assert b"mbtree" + tree in plots.write_video(clips(1, width=width), tmp_path / "a.mp4", smallest=1).read_bytes()


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


def test_a_band_holds_each_frames_caption():
    film = np.zeros((3, 10, 200, 3), np.uint8)
    wide = plots.caption_band(film, [(0, ["one", "two", "one"]), (100, ["same"] * 3)], height=20)
    assert wide.shape == (3, 30, 200, 3) and (wide[:, 20:] == 0).all()
    band = wide[:, :20]
    np.testing.assert_array_equal(band[0], band[2])
    assert (band[0, :, :100] != band[1, :, :100]).any()
    np.testing.assert_array_equal(band[0, :, 100:], band[1, :, 100:])
    assert (band.min(axis=(1, 3))[:, :60] < 100).any() and (band[:, 0] == 255).all()  # letters, not cut off


def test_the_player_shows_every_version_of_every_clip_in_order():
    rows = {"truth": clips(2, 8, 8), "decoded": clips(2, 8, 8, seed=1)}
    film = plots.player(rows, ["first", "second"], smallest=16)
    assert film.shape == (12, 16 + 2 * 22, 2 * 16, 3)
    picture = film[:, -16:]
    np.testing.assert_array_equal(picture[7, ::2, :16:2], rows["truth"][1, 1])
    np.testing.assert_array_equal(picture[7, ::2, 16::2], rows["decoded"][1, 1])
    title = film[:, :22]
    assert (title[0] == title[5]).all() and (title[5] != title[6]).any()
    assert plots.player(rows, smallest=16).shape[1] == 16 + 22
    with pytest.raises(ValueError, match="same"):
        plots.player({"truth": clips(2), "decoded": clips(1)})
    with pytest.raises(ValueError, match="titles"):
        plots.player(rows, ["one"])


def test_a_video_is_shown_from_within_the_notebook_and_only_a_small_one(tmp_path, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    path = plots.write_video(clips(1), tmp_path / "clip.mp4", smallest=1)
    plots.show_video(path)
    html = shown[0]._repr_html_()
    assert "<video" in html and "data:video/mp4;base64," in html and "controls loop" in html
    path.write_bytes(bytes(300_001))
    with pytest.raises(ValueError, match="300 KB|fewer clips"):
        plots.show_video(path)


def test_curves_stand_before_others_and_levels():
    own = pd.DataFrame({"step": range(4), "loss": [4.0, 3.0, 2.0, 1.0]})
    ax = plots.new_figure(3, 2).subplots()
    plots.draw_curves(ax, own, {"loss": "this one"}, [own.assign(loss=9.0)] * 2, {"chance": 0.5}, smooth=2)
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["other trainings", "this one", "chance"]  # the others are named once
    assert lines["this one"].get_ydata().tolist() == [4, 3.5, 2.5, 1.5]
    assert lines["chance"].get_ydata()[0] == 0.5
    order = [lines[name].get_zorder() for name in ("other trainings", "chance", "this one")]
    assert order == sorted(order) and len(set(order)) == 3


def test_one_style_file_says_how_all_figures_look():
    import matplotlib.style

    wanted = matplotlib.rc_params_from_file(plots.STYLE, use_default_template=False)
    matplotlib.rcdefaults()
    plots.set_style()
    assert wanted and all(matplotlib.rcParams[name] == value for name, value in wanted.items())
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.CYCLE)


# Colours as people see them who lack a kind of cone: Machado, Oliveira and Fernandes 2009, severity 1, linear RGB.
EYES = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen_lab(colours, eye):
    """Colours, sRGB in [0, 1] (colours, 3), as an eye sees them, in CIELAB."""
    from skimage.color import rgb2lab

    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(EYES[eye]).T, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_and_a_grey_print_order_the_colours_of_the_brain(eye):
    from matplotlib import colormaps

    lightness = seen_lab(colormaps[plots.BRAIN_CMAP](np.linspace(0, 1, 32))[:, :3], eye)[:, 0]
    assert (np.diff(lightness) > 0).all() and np.ptp(lightness) > 60
    both_ends_dark = seen_lab(colormaps["RdYlBu_r"](np.linspace(0, 1, 32))[:, :3], eye)[:, 0]
    assert (np.diff(both_ends_dark) < 0).any()  # what this test is there to find


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_tells_the_lines_of_a_figure_apart(eye):
    from matplotlib.colors import to_rgb
    from skimage.color import deltaE_ciede2000

    lab = seen_lab(np.array([to_rgb(colour) for colour in plots.CYCLE]), eye)
    apart = deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(len(lab), 1)]
    assert apart.min() > 8  # 1 is just noticeable, side by side
