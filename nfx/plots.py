"""One style for all figures, and files that are the same, byte by byte, whenever they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from nfx.profile import Profile

STYLE = Path(__file__).parent / "templates" / "nfx.mplstyle"
BRAIN_CMAP = "plasma"  # from dark blue to light yellow: lightness alone, and so print, tells low from high
FRAMES_PER_SECOND = 3  # of clips; Section 4.2
COLOURS = {  # colour-blind safe; the same thing has the same colour in every figure
    "ours": "#0072B2",
    "second": "#56B4E9",
    "third": "#009E73",
    "control": "#999999",
    "published": "#D55E00",
    "chance": "#222222",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of lines, as in the style file


def set_style() -> None:
    """The style of all figures, of the one file ``nfx/templates/nfx.mplstyle``."""
    import matplotlib.style

    matplotlib.style.use(STYLE)
    _show_as_jpeg()


def _show_as_jpeg() -> None:
    """In a notebook, figures are shown as JPEG: of textured frames it is a fifth of the PNG. Saved files stay PNG."""
    from IPython import get_ipython

    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the common style with constrained layout; sizes in inches."""
    import matplotlib.pyplot as plt

    set_style()
    return plt.figure(figsize=(width, height), layout="constrained")


def panel_letter(panel: Axes | SubFigure, letter: str, title: str = "") -> None:
    """Bold letter at the upper left of an axes or a sub-figure, followed by a title."""
    text = rf"$\bf{{{letter}}}$   {title}"
    if hasattr(panel, "set_title"):
        panel.set_title(text, loc="left", pad=10)
    else:
        panel.suptitle(text, x=0.01, ha="left", fontsize=12)


def save_figure(fig: Figure, profile: Profile, name: str, dpi: int = 200) -> Path:
    """Write a figure as PNG and PDF under ``figures/<profile>/``; figures of simulated data say so.

    Parameters
    ----------
    fig : Figure
    profile : Profile
        Its ``simulated`` decides on the stamp, outside the drawing, at the lower right.
    name : str
        File name without a suffix.
    dpi : int
        Of the PNG, and of what is rasterised in the PDF.

    Returns
    -------
    Path of the PNG
    """
    from nfx.paths import figures

    if Path(name).suffix in {".png", ".pdf"} or "/" in name:
        raise ValueError(f"figure name {name!r}: expected a plain name without folder and suffix, e.g. 'figure_2'")
    folder = figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        write_figure(fig, folder / f"{name}.{suffix}", profile.simulated, dpi)
    return folder / f"{name}.png"


def write_figure(fig: Figure, path: Path, simulated: bool, dpi: int = 200) -> None:
    """Write a figure as PNG or PDF, as the name ends, with the stamp of simulated data where it is due."""
    from nfx.files import write_atomically

    suffix = path.suffix.removeprefix(".")
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}}[suffix]
    stamp = None
    if simulated:
        # Below the lower edge: the tight bounding box takes it in, and it can overlap nothing.
        stamp = fig.text(
            1, -0.01, "simulated data", ha="right", va="top", fontsize=11, color="#B00020", fontweight="bold"
        )
    try:
        with write_atomically(path) as temporary:
            fig.savefig(temporary, format=suffix, dpi=dpi, metadata=metadata, bbox_inches="tight", facecolor="white")
    finally:
        if stamp is not None:
            stamp.remove()


def save_table(table: pd.DataFrame, profile: Profile, name: str, digits: int = 3) -> Path:
    """Write a DataFrame as CSV (all digits) and Markdown (rounded); tables of simulated data say so.

    The CSV has a leading comment line, the Markdown a line below the table: read the CSV with ``comment="#"``.

    Returns
    -------
    Path of the CSV
    """
    from nfx.files import write_atomically
    from nfx.paths import figures

    folder = figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    note = "our numbers: simulated data" if profile.simulated else ""
    with write_atomically(folder / f"{name}.csv") as path:
        path.write_text((f"# {note}\n" if note else "") + table.to_csv())
    with write_atomically(folder / f"{name}.md") as path:
        path.write_text(markdown(table, digits) + (f"\n*{note}*\n" if note else ""))
    return folder / f"{name}.csv"


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A DataFrame as a Markdown table; floats are rounded, but nothing small to 0; what is missing is left empty."""
    import pandas as pd

    least = 10.0**-digits

    def cell(value: Any) -> str:
        if isinstance(value, (float, np.floating)) and 0 < abs(float(value)) < least / 2:
            return f"< {least:.{digits}f}" if value > 0 else f"> {-least:.{digits}f}"
        if isinstance(value, (float, np.floating)):
            return "" if np.isnan(value) else f"{value:.{digits}f}"
        return "" if value is None or value is pd.NA else str(value).replace("|", "\\|")

    flat = table.reset_index() if table.index.name or table.index.nlevels > 1 else table
    header = ["" if name == "index" else str(name) for name in flat.columns]
    rows = [[cell(value) for value in row] for row in flat.itertuples(index=False)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw_curves(
    ax: Axes,
    own: pd.DataFrame,
    columns: Mapping[str, str],
    others: Sequence[pd.DataFrame] = (),
    levels: Mapping[str, float] | None = None,
    smooth: int = 1,
) -> None:
    """Curves of a training with curves and levels to compare them with.

    Parameters
    ----------
    ax : Axes
    own : DataFrame with a column "step"
    columns : column of `own` -> what it is called
    others : the same of other trainings, e.g. of the other rows and subjects; drawn thin and grey
    levels : name -> value that a reader should know: chance, a blind guess, another method; drawn dashed
    smooth : steps of the running mean; 1 draws the values themselves
    """
    dashes = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
    for number, other in enumerate(others):
        for column in columns:
            value = other[column].rolling(smooth, min_periods=1).mean()
            label = "other trainings" if number == 0 and column == next(iter(columns)) else None
            ax.plot(other["step"], value, color="0.8", linewidth=0.8, zorder=1, label=label)
    for (column, name), colour in zip(columns.items(), CYCLE, strict=False):
        if smooth > 1:
            ax.plot(own["step"], own[column], color=colour, alpha=0.25, linewidth=0.5, zorder=2)
        value = own[column].rolling(smooth, min_periods=1).mean()
        ax.plot(own["step"], value, color=colour, linewidth=1.6, zorder=3, label=name)
    for (name, level), dash in zip((levels or {}).items(), dashes, strict=False):
        ax.axhline(level, color=COLOURS["chance"], linestyle=dash, linewidth=1.1, zorder=2, label=name)
    ax.set_xlabel("step")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)


def contact_sheet(
    rows: dict[str, np.ndarray], titles: list[str] | None = None, clips_per_line: int = 2, frame_inches: float = 0.62
) -> Figure:
    """Frames of several versions of the same clips, one version a row.

    Parameters
    ----------
    rows : label -> uint8 (clips, frames, height, width, 3)
        The same clips in every row; the first row is the truth.
    titles : one for each clip
    clips_per_line : clips side by side
    frame_inches : size of a frame

    Returns
    -------
    Figure
    """
    fig = new_figure(*sheet_size(rows, clips_per_line, frame_inches))
    draw_sheet(fig, rows, titles, clips_per_line)
    return fig


def sheet_size(rows: dict[str, np.ndarray], clips_per_line: int, frame_inches: float = 0.62) -> tuple[float, float]:
    """Width and height in inches of a `draw_sheet` of these rows."""
    clips, frames = next(iter(rows.values())).shape[:2]
    lines = -(-clips // clips_per_line)
    width = min(clips, clips_per_line) * (frames * frame_inches + 0.25) + 1.2
    return width, lines * (len(rows) * frame_inches + 0.42) + 0.1


def draw_sheet(
    fig: Figure | SubFigure, rows: dict[str, np.ndarray], titles: list[str] | None = None, clips_per_line: int = 2
) -> None:
    """Draw a `contact_sheet` into a figure or a sub-figure."""
    shapes = {label: np.shape(clips) for label, clips in rows.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 5:
        raise ValueError(f"rows have shapes {shapes}, expected the same (clips, frames, height, width, 3) in every row")
    clips = next(iter(shapes.values()))[0]
    if titles is not None and len(titles) != clips:
        raise ValueError(f"{len(titles)} titles for {clips} clips: give one for each")
    columns, lines = min(clips, clips_per_line), -(-clips // clips_per_line)
    axes = fig.subplots(lines * len(rows), columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for row, (label, stack) in enumerate(rows.items()):
        for clip in range(clips):
            line, column = divmod(clip, clips_per_line)
            ax = axes[line * len(rows) + row, column]
            ax.imshow(film_strip(stack[clip]), interpolation="nearest")
            if row == 0 and titles is not None:
                ax.set_title(titles[clip], fontsize=10, loc="left", pad=3)
            if column == 0:
                ax.text(-0.015, 0.5, label, transform=ax.transAxes, ha="right", va="center", fontsize=10)


def film_strip(clip: np.ndarray, gap: int | None = None) -> np.ndarray:
    """Frames of a clip side by side with white gaps: (frames, height, width, 3) to (height, wide, 3) uint8."""
    frames, height, width, channels = clip.shape
    gap = max(1, width // 24) if gap is None else gap
    strip = np.full((height, frames * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for k, frame in enumerate(clip):
        strip[:, k * (width + gap) : k * (width + gap) + width] = frame
    return strip


def upscale(frames: np.ndarray, smallest: int = 256) -> np.ndarray:
    """Repeat pixels by the least whole factor that brings the smaller side to `smallest`: (..., height, width, 3)."""
    factor = max(1, -(-smallest // min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_video(
    clips: np.ndarray, path: str | Path, fps: int = FRAMES_PER_SECOND, smallest: int = 256, crf: int = 18
) -> Path:
    """Write clips, one after the other, as an MP4 that browsers play (H.264, yuv420p).

    Parameters
    ----------
    clips : uint8 (frames, height, width, 3) or (clips, frames, height, width, 3)
    path : file to write; its folder is made
    fps : frames per second
    smallest : pixels; smaller frames are enlarged by whole factors, odd sizes repeat their last row or column
    crf : x264's quality: 18 is as good as lossless, 28 a third of its size, for a film that is kept in a notebook

    Returns
    -------
    Path
    """
    import av

    from nfx.files import write_atomically

    frames = upscale(_frames(clips), smallest)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"crf": str(crf), "threads": "1"}
        if -(-frames.shape[2] // 16) % 2:  # of an odd number of blocks across, x264's macroblock tree reads memory that
            options["x264-params"] = "mbtree=0"  # nobody wrote (valgrind, x264 165): the same film had other bytes
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_gif(clips: np.ndarray, path: str | Path, fps: int = FRAMES_PER_SECOND, smallest: int = 256) -> Path:
    """Write clips, one after the other, as an endless GIF. Its 256 colours are for show: never score a GIF.

    Parameters
    ----------
    clips : uint8 (frames, height, width, 3) or (clips, frames, height, width, 3)
    path, fps, smallest : as in `write_video`
    """
    from PIL import Image

    from nfx.files import write_atomically

    images = [Image.fromarray(frame) for frame in upscale(_frames(clips), smallest)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
        )
    return path


def side_by_side(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Clips of several versions next to each other, for one video: (clips, frames, height, wide, 3)."""
    return np.concatenate(list(rows.values()), axis=-2)


def caption_band(film: np.ndarray, captions: Sequence[tuple[int, Sequence[str]]], height: int = 22) -> np.ndarray:
    """A white band above a film with captions in it: (frames, height, width, 3) to (frames, height + band, width, 3).

    Parameters
    ----------
    film : uint8 (frames, height, width, 3)
    captions : pairs of the pixel where a caption begins and its text in each frame
    height : pixels of the band
    """
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", round(height * 0.6))
    bands: dict[tuple[str, ...], np.ndarray] = {}
    for texts in zip(*(texts for _, texts in captions), strict=True):
        if texts not in bands:
            image = Image.new("RGB", (film.shape[2], height), "white")
            for (left, _), text in zip(captions, texts, strict=True):
                ImageDraw.Draw(image).text((left, height // 2), text, fill="black", font=font, anchor="lm")
            bands[texts] = np.asarray(image)
    chosen = np.stack([bands[texts] for texts in zip(*(texts for _, texts in captions), strict=True)])
    return np.concatenate([chosen, film], axis=1)


def player(rows: dict[str, np.ndarray], titles: Sequence[str] | None = None, smallest: int = 128) -> np.ndarray:
    """Clips of several versions next to each other, each under its name, one clip after the other.

    Parameters
    ----------
    rows : label -> uint8 (clips, frames, height, width, 3); the truth first
    titles : one for each clip, shown with the first label
    smallest : pixels, as in `write_video`

    Returns
    -------
    uint8 (clips * frames, height, wide, 3), for `write_video` with ``smallest=1``
    """
    shapes = {label: np.shape(clips) for label, clips in rows.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 5:
        raise ValueError(f"rows have shapes {shapes}, expected the same (clips, frames, height, width, 3) in every row")
    clips, frames = next(iter(shapes.values()))[:2]
    if titles is not None and len(titles) != clips:
        raise ValueError(f"{len(titles)} titles for {clips} clips: give one for each")
    film = upscale(_frames(side_by_side(rows)), smallest)
    wide = film.shape[2] // len(rows)
    film = caption_band(film, [(k * wide + 4, [label] * len(film)) for k, label in enumerate(rows)])
    return film if titles is None else caption_band(film, [(4, [t for t in titles for _ in range(frames)])])


def show_video(path: str | Path, width: int = 640) -> None:
    """Show an MP4 in a notebook: it plays by itself, again and again, and can be stopped and looked at frame by frame.

    The file goes into the notebook; ValueError above 300 KB, which are 400 KB there.
    """
    from IPython.display import Video, display

    size = Path(path).stat().st_size
    if size > 300_000:
        raise ValueError(f"{path} has {size / 1000:.0f} KB, expected at most 300 in a notebook: show fewer clips")
    attributes = f'controls loop muted autoplay playsinline style="max-width: 100%" aria-label="{Path(path).stem}"'
    display(Video(path, embed=True, width=width, html_attributes=attributes))


def _frames(clips: np.ndarray) -> np.ndarray:
    """(clips, frames, ...) or (frames, ...) to (all frames, height, width, 3), checked."""
    if clips.dtype != np.uint8 or clips.ndim not in (4, 5) or clips.shape[-1] != 3 or clips.size == 0:
        raise ValueError(
            f"clips are {clips.dtype} {clips.shape}, expected uint8 (frames, height, width, 3) or (clips, frames, ...)"
        )
    return clips.reshape(-1, *clips.shape[-3:])


def show_saved(path: str | Path, width: int = 760) -> None:
    """Show a saved figure in a notebook, stamp and all, as a JPEG of `width` pixels, and close all open figures.

    Sheets of frames in full size would make a notebook of megabytes; the file has all pixels.
    """
    from io import BytesIO

    import matplotlib.pyplot as plt
    from IPython.display import Image as Shown
    from IPython.display import display
    from PIL import Image

    with Image.open(path) as saved:
        height = round(saved.height * width / saved.width)
        small = saved.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    data = BytesIO()
    small.save(data, "JPEG", quality=60, optimize=True, progressive=True)
    plt.close("all")  # else the notebook shows them once more, without the stamp
    display(Shown(data=data.getvalue(), format="jpeg"))
