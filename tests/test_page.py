"""The page as text: escaped, complete in itself, written whole; what its charts draw."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from make import lidar
from raising import raises
from scores import score

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.hyperparameters import from_names
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.page.charts import chart_data, parameters_of, thinned
from lidar_cli.report.page.content import ranking_page, scores_page
from lidar_cli.report.page.document import Page, check_page, to_html, write_page
from lidar_cli.report.page.markup import Markup, broken, element, joined, script_data
from lidar_cli.report.page.table import Entry, Listing
from lidar_cli.scoring.intervals import Confidence, Interval

NASTY = "</script><script>alert('x')</script>\"'&lt;<img src=x onerror=alert(1)>"
COMMON = {
    **{"samples": "ab", "seed": 0, "views": {"name": "simclr"}, "image size": 24, "n": 10, "q": 2},
    **{"d": 4, "layer": "backbone", "delta": 1e-4, "normalised": False},
}
EMPTY = Page("", [], [])


class Elements(HTMLParser):
    """Every element with its attributes, and the text of table cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def interval(low: float, high: float) -> Confidence:
    intervals = {name: Interval() for name in METRICS}
    return Confidence(0.95, intervals | {"lidar": Interval((high - low) / 4, low, high)})


def ranking(*rows: Row, **more: Any) -> Ranking:
    groups = (Group(COMMON, rows),)
    return Ranking("runs", METRICS["lidar"], 0.95, "toy", groups, **more)


def row(path: str, rank: int, value: float | None, *tied: str, **more: Any) -> Row:
    row_score = score(path, lidar=value, **more)
    if value is None:
        return Row(
            path, (), replace(row_score, notes={"lidar": "too few"}), None, "too few", rank=rank
        )
    confidence = interval(value - 1, value + 1)
    row_score = replace(row_score, confidence=confidence)
    return Row(path, (), row_score, value, None, confidence.intervals["lidar"], rank, tied)


# Markup


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", None, "<1>")
    assert inner == "<b>&lt;1&gt;</b>"
    assert element("p", {"title": '"<'}, "a & ", inner) == (
        '<p title="&quot;&lt;">a &amp; <b>&lt;1&gt;</b></p>'
    )
    assert element("input", {"hidden": True, "value": None, "disabled": False}) == "<input hidden>"
    assert joined("<", Markup("<")) == "&lt;<"
    assert broken("a/<b>", "/") == "a/<wbr>&lt;b&gt;"


@pytest.mark.parametrize("text", [NASTY, "<!--", "]]>", "\u2028 é 🙂", "\udcff"])
def test_data_in_a_script_cannot_end_it_and_comes_back_the_same(text: str) -> None:
    data = script_data({text: [text, 1.5, None]})
    assert not set("<>&") & set(data)
    assert json.loads(data) == {text: [text, 1.5, None]}


def test_data_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_data(float("nan"))


# The page


def hostile() -> str:
    rows = (row(f"runs/{NASTY}", 1, 5.0, f"runs/b{NASTY}"), row(f"runs/b{NASTY}", 2, 4.5))
    lines = (Skipped(f"runs/c{NASTY}", NASTY),)
    more = {"failed": lines, "skipped": lines, "warnings": (NASTY,)}
    nasty_score = replace(rows[0].score, warnings={"noise": NASTY}, provenance={NASTY: NASTY})
    nasty_ranking = ranking(replace(rows[0], score=nasty_score, aliases=(NASTY,)), rows[1], **more)
    return to_html(ranking_page(replace(nasty_ranking, directory="runs", data=NASTY), None, {}))


def test_names_from_files_stay_text() -> None:
    page = Elements(hostile())
    assert len(page.named("script")) == 3  # data, plotly and ours
    assert page.named("img") == []
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    first, second = page.rows[1:3]
    assert first[:2] == ["1", NASTY]
    assert second[:2] == ["2", f"b{NASTY}"]


def test_the_page_asks_for_nothing() -> None:
    page = hostile()
    parsed = Elements(page)
    for _, attributes in parsed.elements:
        assert not attributes.keys() & {"src", "href", "action", "srcset"}
    (policy,) = (m for m in parsed.named("meta") if m.get("http-equiv"))
    assert policy["content"] is not None
    assert policy["content"].startswith("default-src 'none'; ")
    assert "http" not in policy["content"]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_notice_of_what_is_embedded_is_in_the_page() -> None:
    page = to_html(EMPTY)
    assert "plotly.js v" in page
    assert "Permission is hereby granted, free of charge" in page
    assert "above copyright notice and this permission notice shall be included" in page


def test_rows_show_order_values_reach_ties_and_nulls() -> None:
    rows = (
        row("runs/a.pt", 1, 50.0, "runs/b.pt", pillai=3.0),
        row("runs/b.pt", 2, 49.5, "runs/a.pt", pillai=3.5),
        row("runs/c.pt", 3, None, pillai=1.0),
    )
    page = Elements(to_html(ranking_page(ranking(*rows))))
    head, *cells = page.rows
    assert head == ["#", "checkpoint", "lidar", "interval", "ties with", "pillai"]
    thin = "\u2009±\u2009"
    assert cells[0] == ["1", "a.pt", f"50.00{thin}1.00", "", "2", "3.000"]
    assert cells[1] == ["2", "b.pt", f"49.50{thin}1.00", "", "1", "3.500"]
    assert cells[2] == ["3", "c.pt", "-", "", "", "1.000"]
    firsts = [at.get("class") for at in page.named("tr")[1:]]
    assert firsts == ["first", "first", None]
    # The scale is from 48.5 to 51: 49 is at a fifth, 50 at three fifths.
    whiskers = [at["style"] for at in page.named("span") if at.get("class") == "whisker"]
    assert whiskers == [
        "--low:20.00%;--high:100.00%;--at:60.00%",
        "--low:0.00%;--high:80.00%;--at:40.00%",
    ]


def test_several_groups_say_what_keeps_them_apart() -> None:
    one = ranking(row("runs/a.pt", 1, 50.0))
    other = Group(COMMON | {"d": 8, "n": 20}, (row("runs/b.pt", 1, 10.0),))
    page = to_html(ranking_page(replace(one, groups=(*one.groups, other))))
    assert "They form 2 groups that cannot be compared: they differ in n, d." in page
    assert page.count('<section class="listing">') == 2
    assert "Group 2: 1 checkpoint</h2>" in page


def test_provenance_tells_apart_what_is_shared() -> None:
    a, b = (
        replace(score(f"{name}.h5", lidar=2.0), provenance={"seed": 3, "arch": name})
        for name in ("vit", "resnet")
    )
    page = to_html(scores_page([a, b]))
    assert "<dt>seed</dt><dd>3</dd>" in page
    rows = Elements(page).rows
    assert ["vit.h5", "vit"] in rows
    assert ["resnet.h5", "resnet"] in rows


# What is drawn


def test_a_spectrum_is_thinned_evenly_in_the_logarithm() -> None:
    assert thinned([8.0, 4.0, 2.0]) == ([1, 2, 3], [8.0, 4.0, 2.0])
    ranks, values = thinned([1 / k for k in range(1, 5001)])
    assert ranks[0] == 1
    assert ranks[-1] == 5000
    assert len(ranks) <= 64
    assert values == [float(f"{1 / k:.5g}") for k in ranks]
    steps = [after / before for before, after in itertools.pairwise(ranks[30:])]
    assert max(steps) < 1.2  # 5000 ** (1 / 63) = 1.145


def test_rounding_and_zeros_are_not_drawn() -> None:
    assert thinned([1.0, 1e-3, 1e-14, 0.0]) == ([1, 2], [1.0, 1e-3])
    assert thinned([0.0, 0.0]) == ([], [])


def test_charts_draw_values_with_the_ends_of_their_intervals() -> None:
    confidence = interval(4.0, 6.0)
    lda = {"lda": [2.0, 1.0]}
    a_score = replace(
        score("a", lidar=5.0, pillai=1.0, noise_edge=0.7), confidence=confidence, spectra=lda
    )
    entry = Entry("a", "a", a_score, accuracy=0.5, parameters={"step": 3.0})
    (drawn,) = chart_data(Listing([entry], METRICS["lidar"]))["entries"]
    assert drawn["values"] == {"lidar": [5.0, 4.0, 6.0], "pillai": [1.0]}
    assert drawn["spectra"] == {"lda": ([1, 2], [2.0, 1.0])}
    assert (drawn["floor"], drawn["edge"], drawn["accuracy"]) == (0.5, 0.7, 0.5)
    assert drawn["parameters"] == {"step": 3.0}


def test_parameters_that_differ_are_drawn() -> None:
    entries = [
        Entry(name, name, score(name), parameters={"step": step, "d": 8.0})
        for name, step in (("a", 1.0), ("b", 2.0))
    ]
    assert parameters_of(Listing(entries)) == ["step"]


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("runs/epoch=3-step=500.ckpt", {"epoch": 3.0, "step": 500.0}),
        ("runs/checkpoint0099.pth", {"checkpoint": 99.0}),
        ("runs/lr_0.05/wd1e-4/0010.pt", {"lr": 0.05, "wd": 1e-4, "number": 10.0}),
        ("runs/ckpt-100/model.safetensors", {"ckpt": 100.0}),
        ("runs/model_step.2000", {"step": 2000.0}),
        ("elsewhere/last.pt", {}),
    ],
)
def test_numbers_in_names(path: str, numbers: dict[str, float]) -> None:
    assert from_names([path], "runs") == {path: numbers}


# The file


def test_a_page_that_exists_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    write_page(EMPTY, path, overwrite=False)
    first = path.read_text(encoding="utf-8")
    with raises(SettingsError, "exists") as raised:
        write_page(replace(EMPTY, title="second"), path, overwrite=False)
    assert str(raised.value) == (f"--report {path}: exists already; add --overwrite to replace it")
    assert path.read_text(encoding="utf-8") == first
    write_page(replace(EMPTY, title="second"), path, overwrite=True)
    assert "<title>second</title>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with raises(SettingsError, "wrong-suffix"):
        check_page(tmp_path / "out.pdf", overwrite=False)
    with raises(SettingsError, "no-such-folder"):
        check_page(tmp_path / "no" / "out.html", overwrite=False)
    (tmp_path / "dir.html").mkdir()
    with raises(SettingsError, "exists"):
        check_page(tmp_path / "dir.html", overwrite=True)
    done = lidar("score", "missing.npy", "--report", "out.pdf", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --report out.pdf: expected")


def test_a_full_disk_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with raises(InputError, "unwritable") as raised:
        write_page(EMPTY, tmp_path / "out.html", overwrite=False)
    assert "cannot be written: No space left on device" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_its_extra_names_it(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "plotly.py").write_text("raise ImportError('not installed')\n")
    block = os.pathsep.join([str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")])
    done = lidar("score", "z.npy", "--report", "out.html", cwd=tmp_path, PYTHONPATH=block)
    assert done.returncode == 2
    assert "pip install 'lidar-cli[report]'" in done.stderr


def test_overwrite_belongs_to_a_report(tmp_path: Path) -> None:
    done = lidar("score", "z.npy", "--overwrite", cwd=tmp_path)
    assert done.returncode == 2
    assert "--overwrite replaces an existing --report; name one" in done.stderr
