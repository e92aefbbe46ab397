"""One page with all that a run of a profile shows: ``python -m nfx.report [PROFILE]`` (demo if not given).

``figures/<profile>/report.html`` is made from the figures, tables and films that the notebooks wrote there, and from
nothing else. It needs no network, no other file and no script. The order, the titles and the sentences on how to read
things are in ``nfx/templates/report.yaml``; what is not named there comes last, so that nothing written is lost.
The same inputs give the same bytes: its date is that of the newest input.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from nfx import __version__
from nfx.evaluation.claims import DIRECTIONS, HOLDS, NOT_RUN, OPPOSITE, RULES, UNCLEAR, Claim, claims
from nfx.evaluation.published import published
from nfx.files import is_inside, read_json, read_manifest, read_yaml, write_atomically
from nfx.paths import figures, work

if TYPE_CHECKING:
    from nfx.profile import Profile

COMMAND = "python -m nfx.report"
HELP = """\
Put all figures, tables and films of a run on one page, in the paper's order,
with what the paper states beside what the tables say of it. The page needs no
other file and no network.
"""
HELP_END = """\
reads    figures/<profile>/, what the notebooks wrote there; manifests of the
         decoders in work/<profile>/
writes   figures/<profile>/report.html, and prints its name and size

examples:
  {command}
  {command} paper

exit status: 0 written; 1 there is nothing to show, or a file is damaged or
gone, said in one sentence; 2 wrong options
"""
TEMPLATES = Path(__file__).parent / "templates"
REPORT = "report.html"
SHOWN = {".png": "picture", ".mp4": "film", ".csv": "table"}
SAME_THING = {".pdf": ".png", ".gif": ".mp4", ".md": ".csv"}  # another format of what is shown
PAGE_WIDTH = 1024  # pixels of the style sheet
PICTURE_WIDTH = 1600  # pixels; more than the page's, for fine displays and print
QUALITY = 88  # of WebP; at 88 the letters and lines of a chart are as clear as in its PNG
SHORT = 36  # characters that are not broken over lines
FOLDED_ABOVE = 40  # rows of a table that stands open
LONGEST, HEAD = 400, 20  # rows of a table on the page; of a longer one, such as every clip's scores, its first
RUN = "./run_all.sh {profile}"
KINDS = {HOLDS: "good", OPPOSITE: "bad", UNCLEAR: "open", NOT_RUN: "none"}  # classes of the style sheet


class Column(NamedTuple):
    """Heading of a column, whether it holds numbers, and whether its words are short enough to keep on one line."""

    title: str
    number: bool
    short: bool


class Table(NamedTuple):
    """A table as text: `total` rows, of which `rows` are on the page."""

    columns: list[Column]
    rows: list[list[str]]
    total: int


def write_report(profile: Profile) -> Path:
    """Write ``figures/<profile>/report.html``.

    Returns
    -------
    Path of the page

    Raises
    ------
    FileNotFoundError
        If there is no figure, table or film, or one that a notebook lists is gone; the message names the command.
    ValueError
        If a file is damaged, or a table has not the columns that a verdict needs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = figures(profile)
    listings = _listings(folder)
    listed = {name for outputs in listings.values() for name in outputs}
    inputs = _inputs(profile, folder, listings)
    tables = {path.relative_to(folder).with_suffix("").as_posix(): read_table(path)
              for path in inputs if path.suffix == ".csv"}  # fmt: skip
    told = read_yaml(TEMPLATES / "report.yaml")
    found = claims(tables, published(), profile.headline_row)
    words = DIRECTIONS if profile.simulated else {word: word for word in DIRECTIONS}
    names = told["columns"]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        profile=profile.name,
        simulated=profile.simulated,
        facts=_facts(profile, inputs),
        ours="ours (simulated)" if profile.simulated else "ours",
        topics=_by_topic(found, words),
        counts=[(words[word], sum(line.verdict == word for line in found)) for word in KINDS],
        kinds={words[word]: kind for word, kind in KINDS.items()},
        rules=RULES,
        same=DIRECTIONS[HOLDS],
        opposite=DIRECTIONS[OPPOSITE],
        shown={name: _anchor(f"{name}.csv") for name in tables},
        sections=_sections(told["sections"], folder, inputs, tables, listed, names, profile),
        quoted=as_text(published().reset_index(drop=True), names, None),
        folded_above=FOLDED_ABOVE,
    )
    with write_atomically(folder / REPORT) as path:
        path.write_text(page, encoding="utf-8")
    return folder / REPORT


# --- what is there ---------------------------------------------------------------------------------------------


def _listings(folder: Path) -> dict[Path, list[str]]:
    """Listing (`nfx.evaluation.tables.write_listing`) -> what a notebook has written, relative to the folder."""
    found = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    listings = {path: obj["outputs"] for path, obj in found.items() if isinstance(obj, dict) and "outputs" in obj}
    for path, outputs in listings.items():
        if not isinstance(outputs, list) or not all(isinstance(name, str) and is_inside(name) for name in outputs):
            raise ValueError(f"{path} is no list of what a notebook wrote: {_again(path)}")
    return listings


def _inputs(profile: Profile, folder: Path, listings: Mapping[Path, Sequence[str]]) -> list[Path]:
    """Everything written for the profile, but listings, hidden files and the page itself, in order."""
    for listing, outputs in listings.items():
        for name in outputs:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} does not exist, but {listing.name} lists it: run notebooks/{listing.stem}.ipynb "
                    f"again with profile='{profile.name}'"
                )
    found = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    hidden = [path for path in found if any(part.startswith(".") for part in path.relative_to(folder).parts)]
    inputs = sorted({*found} - {*hidden, *listings, folder / REPORT, folder / "pipeline.mmd"}, key=_natural)
    if not any(path.suffix in SHOWN for path in inputs):
        raise FileNotFoundError(
            f"{folder} holds no figure, table or film of profile '{profile.name}': make them first with "
            f"{RUN.format(profile=profile.name)}"
        )
    return inputs


def _facts(profile: Profile, inputs: Sequence[Path]) -> list[tuple[str, str]]:
    newest = datetime.fromtimestamp(max(path.stat().st_mtime for path in inputs), UTC)
    facts = [
        ("profile", profile.name),
        ("data", "simulated" if profile.simulated else "recorded"),
        ("newest figure or table", f"{newest:%Y-%m-%d %H:%M} UTC"),
        ("software", f"nfx {__version__}"),
    ]
    revisions = set()
    for manifest in sorted(work(profile, "decoder").glob("*/manifest.json")):
        revisions.add(read_manifest(manifest.parent).get("git_revision"))
    known = sorted(str(revision) for revision in revisions - {None})
    return [*facts, ("decoders trained at git revision", ", ".join(known))] if known else facts


def _natural(path: Path) -> list[Any]:
    """subject2 before subject10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.as_posix())]


# --- the page --------------------------------------------------------------------------------------------------


def _by_topic(found: Sequence[Claim], words: Mapping[str, str]) -> list[tuple[str, list[Claim]]]:
    topics: dict[str, list[Claim]] = {}
    for line in found:
        topics.setdefault(line.topic, []).append(line._replace(verdict=words[line.verdict]))
    return list(topics.items())


def _sections(
    wanted: Sequence[dict[str, Any]],
    folder: Path,
    inputs: Sequence[Path],
    tables: Mapping[str, pd.DataFrame],
    listed: Collection[str],
    names: Mapping[str, str],
    profile: Profile,
) -> list[dict[str, Any]]:
    """The sections in order, with what there is to show, and a last one with all that none of them names."""
    shown = {path: SHOWN[path.suffix] for path in inputs if path.suffix in SHOWN}
    left = dict.fromkeys(shown)
    sections = []
    for section in wanted:
        items: list[dict[str, Any]] = []
        absent: dict[str, list[str]] = {}
        for entry in section["items"]:
            met = [path for path in left if fnmatch(_stem(path, folder), entry["name"])]
            if not met and "*" not in entry["name"] and (profile.simulated or not entry.get("simulated")):
                absent.setdefault(entry.get("made_by", RUN), []).append(entry["name"])
            for path in met:
                # A figure and a table may bear one name; an entry with an alternative text is of a picture or film.
                if (shown[path] == "table") == ("alt" in entry):
                    continue
                del left[path]
                items.append(_item(path, folder, entry, tables, listed, names))
        if items or absent:
            missing = [(command.format(profile=profile.name), met) for command, met in absent.items()]
            sections.append(section | {"runs": _runs(items), "absent": missing, "files": []})
    rest = [_item(path, folder, _unknown(path, folder), tables, listed, names) for path in left]
    others = [path.relative_to(folder).as_posix() for path in inputs if path not in shown and not _same(path, shown)]
    if rest or others:
        intro = "What the notebooks wrote and no section above names."
        last = {"id": "else", "title": "Everything else", "intro": intro, "absent": []}
        sections.append(last | {"runs": _runs(rest), "files": others})
    return sections


def _runs(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Films that follow each other stand together; all else by itself."""
    runs: list[list[dict[str, Any]]] = []
    for item in items:
        if runs and item["kind"] == "film" == runs[-1][-1]["kind"]:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _anchor(file: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", file.lower())


def _same(path: Path, shown: Mapping[Path, str]) -> bool:
    return path.suffix in SAME_THING and path.with_suffix(SAME_THING[path.suffix]) in shown


def _unknown(path: Path, folder: Path) -> dict[str, str]:
    title = _stem(path, folder).replace("_", " ")
    return {"title": title[0].upper() + title[1:], "alt": f"{title}, as the file {path.name} has it", "read": ""}


def _item(
    path: Path,
    folder: Path,
    entry: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    listed: Collection[str],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """What the template needs of one picture, film or table."""
    file, kind = path.relative_to(folder).as_posix(), SHOWN[path.suffix]
    stem = re.sub(r"(?<=[a-z])(?=\d)", " ", path.stem.replace("_", " "))
    item = {
        "kind": kind,
        "id": _anchor(file),
        "file": file,
        "title": entry["title"].format(stem=stem),
        "read": entry["read"],
        "note": "" if file in listed else "No notebook lists this file: it may be of an older run.",
    }
    if kind == "table":
        table = tables[_stem(path, folder)]
        left_out: list[str] = []
        if set(entry.get("rows", ["none"])) | {"metric", "mean", "low", "high"} <= set(table.columns):
            table, left_out = wide(table, entry["rows"])
        return item | {"table": as_text(table, names), "left_out": ", ".join(left_out)}
    uri, width, height = picture(path) if kind == "picture" else film(path)
    return item | {"alt": entry["alt"], "uri": uri, "width": width, "height": height}


# --- pictures and films ----------------------------------------------------------------------------------------


def picture(path: Path) -> tuple[str, int, int]:
    """PNG as a data URI (WebP, at most `PICTURE_WIDTH` wide), and the width and height to show it at: half its own."""
    from PIL import Image

    from nfx.data.stimuli import MOST_PIXELS

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it announces {opened.width} x {opened.height} pixels")
            opened.load()
            image = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}): {_again(path)}") from error
    size = image.size
    flat = Image.new("RGB", size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    if flat.width > PICTURE_WIDTH:
        flat = flat.resize((PICTURE_WIDTH, round(flat.height * PICTURE_WIDTH / flat.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", quality=QUALITY, method=4)
    width = min(size[0] // 2, PAGE_WIDTH)
    return _uri("image/webp", buffer.getvalue()), width, round(size[1] * width / size[0])


def film(path: Path) -> tuple[str, int, int]:
    """An MP4 as a data URI, with its width and height."""
    from nfx.data.stimuli import opened

    try:
        with opened(path) as stream:
            next(stream.container.decode(stream))
            size = stream.width, stream.height
    except (ValueError, StopIteration) as error:
        raise ValueError(f"{path} is not a film that can be played ({error}): {_again(path)}") from error
    return _uri("video/mp4", path.read_bytes()), *size


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _again(path: Path) -> str:
    return f"delete {path.name} and run the notebook that writes it again"


# --- tables ----------------------------------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    """A CSV of `nfx.plots.save_table`, without its stamp and the index that pandas counts by itself.

    Raises
    ------
    ValueError
        If it is no CSV, or ends before its end.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        body = re.sub(r"\A(#[^\n]*\n)+", "", text)
        lines = list(csv.reader(io.StringIO(body), strict=True))
        widths = {len(line) for line in lines if line}
        if len(widths) != 1 or 0 in widths or not text.endswith("\n"):
            raise ValueError("it is empty" if not lines else f"lines of {sorted(widths)} fields, or a cut last line")
        table = pd.read_csv(io.StringIO(body), keep_default_na=False, na_values=[""])
    except (ValueError, OverflowError, csv.Error) as error:  # pandas' and unicode's errors are ValueErrors
        raise ValueError(f"{path} is not a whole table ({error}): {_again(path)}") from error
    first = table.columns[0]
    counted = str(first).startswith("Unnamed") and table[first].equals(pd.Series(range(len(table))))
    return table.drop(columns=first) if counted else table.rename(columns={"Unnamed: 0": "line"})


def as_text(table: pd.DataFrame, names: Mapping[str, str], longest: int | None = LONGEST) -> Table:
    """A table as it is shown: rounded, an interval beside what it is of, columns that are all empty left out.

    Parameters
    ----------
    table : DataFrame
    names : column -> what to call it
    longest : rows to keep; None for all
    """
    table = table.dropna(axis=1, how="all")
    total = len(table)
    table = table if longest is None or total <= longest else table.head(HEAD)
    columns, cells = [], []
    for heading, number, texts in _columns(table):
        title = names.get(heading, heading.replace("_", " "))
        columns.append(Column(title, number, all(len(text) <= SHORT for text in texts)))
        cells.append(texts)
    return Table(columns, [list(row) for row in zip(*cells, strict=True)], total)


def wide(table: pd.DataFrame, index: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """A table of scores with a row for each value of `index` and a column a metric, "mean [low, high]" in the cells.

    Returns
    -------
    DataFrame, and the columns that are not in it. The chance level, where a metric has one, goes to its heading.
    """
    heading = table["metric"].astype(str)
    if "correct" in table:
        heading += ["" if pd.isna(n) else f", {n:.0f} correct" for n in table["correct"]]
    if "chance" in table:
        heading += ["" if pd.isna(level) else f" (chance {level:.3g})" for level in table["chance"]]
    cells = pd.Series("", index=table.index)
    for _, part in table.groupby(heading, sort=False):
        numbers = part[["mean", "low", "high"]].to_numpy(dtype=float)
        decimals = _decimals(numbers)
        cells[part.index] = [_with_interval(mean, low, high, decimals) for mean, low, high in numbers]
    keys = table[list(index)].astype(object).where(table[list(index)].notna(), "")  # NaN is not equal to itself
    shown = keys.assign(heading=heading, cell=cells)
    if shown.duplicated([*index, "heading"]).any():
        return table, []
    found = shown.pivot(index=list(index), columns="heading", values="cell")[list(dict.fromkeys(heading))]
    order = list(dict.fromkeys(zip(*(shown[name] for name in index), strict=True)))
    found = found.loc[order if len(index) > 1 else [key for (key,) in order]]
    used = {*index, "metric", "mean", "low", "high", "correct", "chance"}
    return found.rename_axis(columns=None).reset_index(), [str(name) for name in table.columns if name not in used]


def _columns(table: pd.DataFrame) -> Iterator[tuple[str, bool, list[str]]]:
    """Heading, whether it holds numbers, and cells; low and high go with the column before them."""
    headings = [str(column) for column in table.columns]
    skip = 0
    for k, heading in enumerate(headings):
        if skip:
            skip -= 1
            continue
        values = table.iloc[:, k]
        number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        if number and headings[k + 1 : k + 3] in (["low", "high"], [f"{heading}_low", f"{heading}_high"]):
            middle, low, high = (table.iloc[:, k + side].to_numpy(dtype=float) for side in (0, 1, 2))
            common = None if _no_scale(middle) else _decimals(np.concatenate([middle, low, high]))
            texts = [_with_interval(*line, common) for line in zip(middle, low, high, strict=True)]
            yield f"{heading} [low, high]", True, texts
            skip = 2
        elif number:
            yield heading, True, _numbers(heading, values.to_numpy(dtype=float))
        else:
            yield heading, False, [_word(value) for value in values]


def _numbers(heading: str, values: np.ndarray) -> list[str]:
    """Numbers of one column, all with as many decimals; p-values as is usual."""
    if heading.startswith(("p,", "holm", "largest_")) or heading == "p" or heading.endswith("_p"):
        return ["" if np.isnan(p) else "< 0.001" if 0 <= p < 0.001 else f"{p:.3f}" for p in values]
    if _no_scale(values):
        return ["" if np.isnan(value) else f"{value:.4g}".replace("-", "\u2212") for value in values]
    decimals = _decimals(values)
    return [_fixed(value, decimals) for value in values]


def _no_scale(values: np.ndarray) -> bool:
    """Whether a column holds things as different as counts and correlations, which no number of decimals suits."""
    known = np.abs(values[np.isfinite(values) & (values != 0)])
    return len(known) > 0 and bool(known.max() / known.min() > 1e4 and (known % 1 > 0).any())


def _decimals(values: np.ndarray) -> int:
    """So many that a typical value has three digits that count; none where all are whole."""
    values = np.abs(values[np.isfinite(values)])
    if not (values % 1 > 0).any():
        return 0
    typical = np.median(values[values > 0])
    return int(np.clip(2 - np.floor(np.log10(typical)), 1, 5))


def _fixed(value: float, decimals: int) -> str:
    if np.isnan(value):
        return ""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


def _with_interval(value: float, low: float, high: float, decimals: int | None) -> str:
    """Of as many decimals; None: as many as these three need."""
    decimals = _decimals(np.array([value, low, high])) if decimals is None else decimals
    if np.isnan([low, high]).all():
        return _fixed(value, decimals)
    return f"{_fixed(value, decimals)} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def _word(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)


# --- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None, command: str = COMMAND) -> None:
    """The command: writes the page and says where it is."""
    from nfx.profile import load_profile

    parser = argparse.ArgumentParser(
        prog=command,
        description=HELP,
        epilog=HELP_END.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", nargs="?", default="demo", help="demo (default), paper, or a YAML file")
    given = parser.parse_args(arguments)
    try:
        path = write_report(load_profile(given.profile))
    except (OSError, ValueError) as error:
        sys.exit(f"{command}: {error}")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
