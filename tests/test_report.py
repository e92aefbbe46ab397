"""The page made from a few made-up figures, tables and films."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from nfx import paths, report
from nfx.evaluation.claims import DIRECTIONS
from nfx.evaluation.tables import write_listing
from nfx.plots import save_table, write_video
from nfx.profile import load_profile

VERDICTS = {"subject": [2], "correct": [1], "difference": [-0.1], "low": [-0.2], "high": [-0.05], "percent": [-50.0]}


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside != "style":
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return load_profile("demo").model_copy(update={"name": "tiny"})


@pytest.fixture
def folder(profile):
    """A picture, two films and three tables, one known by name of each and one not, and their listing."""
    folder = paths.figures(profile)
    written = [picture(folder / f"{name}.png") for name in ("figure_2", "figure_new")]
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    written += [write_video(frames, folder / "clips" / f"{name}.mp4", smallest=16) for name in ("subject1", "other")]
    tables = {"time_averaged": pd.DataFrame(VERDICTS), "brand_new": pd.DataFrame({"what": ["<b>&"], "x": [0.25]})}
    written += [save_table(table, profile, name) for name, table in tables.items()]
    write_listing(profile, "04_evaluation", written)
    return folder


def picture(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    Image.fromarray(x.astype(np.uint8)).save(path)
    return path


def page_of(profile) -> Page:
    return Page(report.write_report(profile).read_text(encoding="utf-8"))


def test_page_is_self_contained_and_readable_without_scripts(profile, folder):
    page = page_of(profile)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    links = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "poster")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", html)
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_every_picture_has_words_and_every_film_plays_by_itself(profile, folder):
    page = page_of(profile)
    assert len(page.all("img")) == 2 and all(len(found["alt"]) > 10 for found in page.all("img"))
    films = page.all("video")
    assert len(films) == 2
    for found in films:
        assert {"muted", "loop", "autoplay", "controls", "playsinline"} <= found.keys() and found["aria-label"]
    data = base64.b64decode(films[0]["src"].removeprefix("data:video/mp4;base64,"))
    assert data == (folder / "clips" / "subject1.mp4").read_bytes()


def test_nothing_written_is_lost(profile, folder):
    (folder / "notes.txt").write_text("by hand\n")
    (folder / "beside.json").write_text(json.dumps({"no": "listing"}))
    picture(folder / "stale.png")
    text = page_of(profile).text
    named, rest = text.rsplit("Everything else", 1)
    assert "figure_2.png" in named and "clips/subject1.mp4" in named and "time_averaged.csv" in named
    for name in ("figure_new.png", "clips/other.mp4", "brand_new.csv", "notes.txt", "beside.json", "stale.png"):
        assert name in rest, name
    assert text.count("No notebook lists this file") == 1  # stale.png
    assert "04_evaluation.json" not in text and ".md" not in text  # listings, and the same table in another format


def test_same_inputs_same_bytes_and_the_date_is_theirs(profile, folder):
    for path in folder.rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))
    os.utime(folder / "brand_new.csv", (1.75e9, 1.75e9))
    first = report.write_report(profile).read_bytes()
    assert b"2025-06-15 15:06 UTC" in first
    assert report.write_report(profile).read_bytes() == first


def test_simulated_data_are_said_to_be_and_judged_by_direction_alone(profile, folder):
    page = page_of(profile)
    banner = "Simulated data and stand-in models: no number here is the paper's"
    assert banner in page.text and f"1 {DIRECTIONS['holds']}" in page.text
    assert "ours (simulated)" in page.text
    real = page_of(profile.model_copy(update={"simulated": False})).text
    assert banner not in real and "1 holds" in real and DIRECTIONS["holds"] not in real


def test_what_is_missing_is_named_with_its_command(profile, folder):
    text = page_of(profile).text
    assert re.search(r"Not there: [^.]*table_1[^.]*\. To make: ./run_all.sh tiny", text)
    assert re.search(r"Not there: [^.]*seed_directions[^.]*\. To make: ./run_all.sh evidence", text)
    absent = " ".join(re.findall(r"Not there: ([^.]*)\.", text))
    assert "time_averaged," not in absent.replace("figure_time_averaged", "") and "figure_2" not in absent
    real = page_of(profile.model_copy(update={"simulated": False})).text
    assert "curves" in absent and "figure_curves" not in real and "auc" not in real


def test_text_is_escaped(profile, folder):
    html = report.write_report(profile).read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in html and "<b>&" not in html


def test_without_figures_it_says_what_to_run(profile):
    with pytest.raises(FileNotFoundError, match=r"no figure, table or film of profile 'tiny'.*\./run_all\.sh tiny"):
        report.write_report(profile)


def test_a_listed_file_that_is_gone_is_an_error(profile, folder):
    (folder / "figure_2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"figure_2.png does not exist, but 04_evaluation.json lists it"):
        report.write_report(profile)
    assert not (folder / "report.html").exists()


WHOLE = "# note\na,b\n1,2\n3,4\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# note\n",
        WHOLE[:-3],
        WHOLE[:-1],
        WHOLE + "5,6,7\n",
        'a,b\n"1,2\n',
        "a,b\n1\x00,2\n3\n",
        b"\xff\xfe\x00a,b\n",
    ],
)
def test_a_damaged_table_is_one_clear_sentence(profile, folder, text):
    (folder / "controls.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"controls.csv is not a whole table .*: delete controls.csv and run"):
        report.write_report(profile)


@pytest.mark.parametrize(("name", "words"), [("figure_2.png", "picture"), ("clips/subject1.mp4", "film")])
def test_a_damaged_picture_or_film_is_named(profile, folder, name, words):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name} is not a .*{words}"):
        report.write_report(profile)


def test_stamps_and_counted_indices_are_not_columns(profile, tmp_path):
    table = pd.DataFrame({"x": [1, 2], "none": ["NA", "#1"]})
    assert report.read_table(save_table(table, profile, "plain")).equals(table)
    named = report.read_table(save_table(table.set_index("none"), profile, "named"))
    assert list(named.columns) == ["none", "x"]


def test_pictures_are_reduced_and_stay_the_same_to_the_eye(tmp_path):
    uri, width, height = report.picture(picture(tmp_path / "wide.png", 3200, 400))
    assert (width, height) == (1024, 128)
    shown = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
    assert shown.format == "WEBP" and shown.size == (1600, 200)
    with Image.open(tmp_path / "wide.png") as opened:
        expected = np.asarray(opened.resize(shown.size), dtype=float)
    assert np.abs(np.asarray(shown.convert("RGB"), dtype=float) - expected).mean() < 4
    transparent = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    transparent.save(tmp_path / "empty.png")
    uri, *_ = report.picture(tmp_path / "empty.png")
    shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert np.asarray(shown.convert("RGB")).min() > 250  # white, not black


def test_numbers_as_they_are_shown():
    table = pd.DataFrame(
        {
            "clips": [160.0, 40.0],
            "mean": [0.12415, -0.5],
            "low": [0.108, np.nan],
            "high": [0.14, np.nan],
            "difference": [0.0012345, -0.00001],
            "difference_low": [-0.001, -0.002],
            "difference_high": [0.002, 0.002],
            "p": [9.999e-05, 0.0604],
            "value": [2880.0, 0.0558],
            "ok": [True, False],
            "nothing": [np.nan, np.nan],
            "why_not": [None, "few"],
        }
    )
    shown = report.as_text(table, {"ok": "no leak"})
    assert [column.title for column in shown.columns] == [
        "clips", "mean [low, high]", "difference [low, high]", "p", "value", "no leak", "why not"
    ]  # fmt: skip
    assert [column.number for column in shown.columns] == [True] * 5 + [False] * 2
    assert shown.rows == [
        ["160", "0.124 [0.108, 0.140]", "0.00123 [\u22120.00100, 0.00200]", "< 0.001", "2880", "yes", ""],
        ["40", "\u22120.500", "\u22120.00001 [\u22120.00200, 0.00200]", "0.060", "0.0558", "no", "few"],
    ]


def test_counts_and_correlations_of_one_column_keep_their_own_decimals():
    table = pd.DataFrame({"value": [321.0, 0.0125], "low": [np.nan, -0.1], "high": [np.nan, 0.11]})
    assert [row for (row,) in report.as_text(table, {}).rows] == ["321", "0.013 [\u22120.100, 0.110]"]


def test_long_tables_are_cut_and_say_so(profile, folder):
    long = pd.DataFrame({"clip": np.arange(report.LONGEST + 1)})
    assert (shown := report.as_text(long, {})).total == len(long) and len(shown.rows) == report.HEAD
    assert len(report.as_text(long.head(report.LONGEST), {}).rows) == report.LONGEST
    save_table(long, profile, "clip_scores")
    assert f"The first {report.HEAD} of {len(long)} rows; all are in clip_scores.csv" in page_of(profile).text


def test_scores_stand_a_metric_a_column_in_the_given_order():
    line = {"subject": 1, "mean": 0.2, "low": 0.1, "high": 0.3, "clips": 160}
    rows = [
        line | {"method": method, "metric": metric, "correct": correct, "chance": chance}
        for method in ("row 10", "after Chen 2023")
        for metric, correct, chance in (("SSIM", np.nan, np.nan), ("image", 1, 0.02), ("image", 3, 0.0577))
    ]
    found, left_out = report.wide(pd.DataFrame(rows), ["subject", "method"])
    columns = ["SSIM", "image, 1 correct (chance 0.02)", "image, 3 correct (chance 0.0577)"]
    assert list(found.columns) == ["subject", "method", *columns] and left_out == ["clips"]
    assert found["method"].tolist() == ["row 10", "after Chen 2023"]
    assert found["SSIM"].tolist() == ["0.200 [0.100, 0.300]"] * 2
    twice = pd.DataFrame(rows + rows[:1])
    assert report.wide(twice, ["subject", "method"])[0] is twice  # never a score in place of another


def test_scores_without_a_subject_keep_their_row():
    line = {"mean": 0.2, "low": 0.1, "high": 0.3}
    of_whom = [{"subject": 1.0, "method": "ours"}, {"subject": np.nan, "method": "oracle"}]
    rows = [line | whom | {"metric": metric} for whom in of_whom for metric in ("SSIM", "image")]
    found, _ = report.wide(pd.DataFrame(rows), ["subject", "method"])
    assert report.as_text(found, {}).rows == [
        [subject, method, "0.200 [0.100, 0.300]", "0.200 [0.100, 0.300]"]
        for subject, method in (("1", "ours"), ("", "oracle"))
    ]


def test_page_text_names_nothing_twice_and_leaves_no_picture_without_words():
    told = yaml.safe_load((report.TEMPLATES / "report.yaml").read_text(encoding="utf-8"))
    items = [item for section in told["sections"] for item in section["items"]]
    names = [item["name"] for item in items]
    assert len(names) == len(set(names))
    assert len({section["id"] for section in told["sections"]}) == len(told["sections"])
    for item in items:
        is_picture = item["name"].startswith(("figure_", "clips/"))
        assert item["title"] and item["read"] and ("alt" in item) == is_picture, item["name"]


def test_the_template_is_installed_with_the_package():
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["nfx"]
    for name in ("report.html", "report.yaml"):
        assert (report.TEMPLATES / name).is_file()
        assert any(fnmatch(f"templates/{name}", pattern) for pattern in patterns)


def test_command(profile, folder, monkeypatch, capsys):
    monkeypatch.setattr("nfx.profile.load_profile", lambda name: profile)
    report.main(["tiny"])
    assert capsys.readouterr().out.startswith(str(folder / "report.html"))
    (folder / "figure_2.png").unlink()
    with pytest.raises(SystemExit, match="python -m nfx.report: .*figure_2.png does not exist"):
        report.main(["tiny"])
