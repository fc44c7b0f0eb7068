"""The page as text: escaped, complete in itself, written whole; what its charts draw."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from make import lidar
from raising import raises
from scores import score

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.ranking.baseline import Baseline
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.hyperparameters import from_names
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.runs import find_runs
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.page.chart import LINE, Chart, shortened
from lidar_cli.report.page.charts import Figures, colour_groups, parameters_of, thinned
from lidar_cli.report.page.content import ranking_page, scores_page
from lidar_cli.report.page.document import Page, check_page, to_html, write_page
from lidar_cli.report.page.markup import Markup, broken, element, joined
from lidar_cli.report.page.table import Entry, Listing
from lidar_cli.report.verdict import cautions, verdict
from lidar_cli.scoring.intervals import Confidence, Interval

NASTY = "</script><script>alert('x')</script>\"'&lt;<img src=x onerror=alert(1)>"
COMMON = {
    **{"samples": "ab", "seed": 0, "views": {"name": "simclr"}, "image size": 24, "n": 10, "q": 2},
    **{"d": 4, "layer": "backbone", "delta": 1e-4, "normalised": False},
}
EMPTY = Page("", [])


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


class Charts(Elements):
    """Kind of chart -> the classes, entries and titles of its marks, and its texts."""

    def __init__(self, text: str) -> None:
        self.marks: dict[str, list[tuple[str, str, str]]] = {}
        self.texts: dict[str, list[str]] = {}
        self._kind, self._open = "", ""
        super().__init__(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        attributes = {name: value or "" for name, value in attrs}
        self._kind = attributes.get("data-chart", self._kind)
        self._open = tag
        if tag == "g" and "data-at" in attributes:
            mark = (attributes["class"], attributes["data-at"], "")
            self.marks.setdefault(self._kind, []).append(mark)

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if self._open == "title" and self._kind:
            classes, at, _ = self.marks[self._kind].pop()
            self.marks[self._kind].append((classes, at, data))
        elif self._open == "text":
            self.texts.setdefault(self._kind, []).append(data)
        self._open = ""


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
    assert len(page.named("script")) == 1
    assert page.named("img") == []
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    first, second = page.rows[1:3]
    assert first[:2] == ["1", NASTY]
    assert second[:2] == ["2", f"b{NASTY}"]


def test_the_page_asks_for_nothing() -> None:
    page = hostile()
    parsed = Elements(page)
    for _, attributes in parsed.elements:
        assert not attributes.keys() & {"src", "action", "srcset"}
        assert (attributes.get("href") or "#").startswith("#")  # a mark of the same chart
    (policy,) = (m for m in parsed.named("meta") if m.get("http-equiv"))
    assert policy["content"] is not None
    assert policy["content"].startswith("default-src 'none'; ")
    assert "http" not in policy["content"]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_script_of_the_page_alone() -> None:
    page = to_html(EMPTY)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page


def test_identities_are_unique_and_every_reference_has_one() -> None:
    rows = [row(f"runs/{at}.pt", at, 5.0 - at, spectra={"lda": [2.0, 1.0]}) for at in (1, 2)]
    page = Elements(to_html(ranking_page(ranking(*rows))))
    identities = [at["id"] for _, at in page.elements if "id" in at]
    assert len(identities) == len(set(identities))
    targets = {at["popovertarget"] for at in page.named("button")}
    targets |= {(at["href"] or "").removeprefix("#") for at in page.named("use")}
    assert len(targets) > 3
    assert targets <= set(identities)


def test_rows_show_order_values_reach_ties_and_nulls() -> None:
    rows = (
        row("runs/a.pt", 1, 50.0, "runs/b.pt", pillai=3.0),
        row("runs/b.pt", 2, 49.5, "runs/a.pt", pillai=3.5),
        row("runs/c.pt", 3, None, pillai=1.0),
    )
    page = Elements(to_html(ranking_page(ranking(*rows))))
    head, *cells = page.rows
    names = ["#", "checkpoint", "lidar", "interval", "tied with", "pillai"]
    assert head == [f"{name}?" for name in names]  # the button that explains it
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
    assert "two groups that cannot be compared" in page
    assert page.count('<section class="listing">') == 2
    assert "Group 2: 1 checkpoint</h2>" in page


def test_a_ranking_draws_its_runs_and_untrained_networks_under_short_names() -> None:
    paths = [f"runs/{run}/epoch={epoch}.pt" for run in "ab" for epoch in (1, 2)]
    plain = ranking(*(row(path, at + 1, 5.0 - at) for at, path in enumerate(paths)))
    seeds = (score("untrained", lidar=2.0),) * 3
    untrained = Baseline("untrained", "ResNet-18", "backbone", 0, scores=seeds)
    page = ranking_page(
        replace(
            plain,
            names={path: path.removeprefix("runs/").removesuffix(".pt") for path in paths},
            runs=find_runs(plain.groups, plain.by, {}),
            baseline=(untrained,),
        )
    )
    text = to_html(page)
    charts = Charts(text)
    titles = [title for _, _, title in charts.marks["step"]]
    assert {"run a", "a/epoch=1 (rank 1): lidar 5.000 \u00b1 1.000, epoch 1"} < set(titles)
    assert "untrained, 2.000" in charts.texts["step"]
    assert charts.rows[1][1] == "a/epoch=1"


def test_the_verdict_is_the_heading_and_cautions_come_with_their_commands() -> None:
    rows = (row("runs/a.pt", 1, 50.0, noise_fraction=0.9), row("runs/b.pt", 2, 10.0))
    many = ranking(*rows)
    page = to_html(ranking_page(many))
    assert f"<h1>{verdict(many)}</h1>".replace("+-", "\u00b1") in page
    advice = cautions(many)
    assert advice
    for each in [one for one in advice[:2] if one.command]:
        assert element("code", None, each.command) in page


def test_without_intervals_none_is_promised() -> None:
    plain = [
        replace(one, score=replace(one.score, confidence=None), interval=Interval())
        for one in (row("runs/a.pt", 1, 50.0), row("runs/b.pt", 2, 10.0))
    ]
    page = to_html(ranking_page(ranking(*plain)))
    assert Elements(page).rows[0] == ["#?", "checkpoint?", "lidar?"]
    assert "95\u00a0%" not in page
    assert "95\u00a0%" in to_html(ranking_page(ranking(plain[0], row("runs/b.pt", 2, 10.0))))


def test_a_caution_without_a_command_is_a_sentence_alone() -> None:
    rows = (row("runs/a.pt", 1, 50.0), row("runs/b.pt", 2, 10.0))
    seeds = (score("untrained", lidar=60.0),) * 3
    untrained = Baseline("untrained", "ResNet-18", "backbone", 0, scores=seeds)
    page = to_html(ranking_page(ranking(*rows, baseline=(untrained,))))
    assert "<li>an untrained ResNet-18 has a better lidar" in page
    assert "<code></code>" not in page


def test_provenance_separates_what_is_shared() -> None:
    a, b = (
        replace(score(f"{name}.h5", lidar=2.0), provenance={"seed": 3, "arch": name})
        for name in ("vit", "resnet")
    )
    page = to_html(scores_page([a, b]))
    assert "<dt>seed</dt><dd>3</dd>" in page
    rows = Elements(page).rows
    assert ["vit.h5", "vit"] in rows
    assert ["resnet.h5", "resnet"] in rows


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of `#rrggbb`."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_and_curves_are_legible_on_light_and_on_dark_paper() -> None:
    style = (files("lidar_cli.report.page") / "page.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", scheme))
        for name in (
            "ink",
            "quiet",
            "accent",
            "care",
            "bad",
            "floor",
            *(f"c{at}" for at in range(8)),
        ):
            lower, higher = sorted(luminance(colours[key]) for key in ("paper", name))
            assert (higher + 0.05) / (lower + 0.05) >= 4.5, name  # WCAG 2.2, level AA


# What is drawn


def test_a_spectrum_is_thinned_evenly_in_the_logarithm() -> None:
    assert thinned([8.0, 4.0, 2.0]) == ([1, 2, 3], [8.0, 4.0, 2.0])
    ranks, values = thinned([1 / k for k in range(1, 5001)])
    assert ranks[0] == 1
    assert ranks[-1] == 5000
    assert len(ranks) <= 40
    assert values == [1 / k for k in ranks]
    steps = [after / before for before, after in itertools.pairwise(ranks[30:])]
    assert max(steps) < 1.25  # 5000 ** (1 / 39) = 1.244


def test_rounding_and_zeros_are_not_drawn() -> None:
    assert thinned([1.0, 1e-3, 1e-14, 0.0]) == ([1, 2], [1.0, 1e-3])
    assert thinned([0.0, 0.0]) == ([], [])


def listing(count: int, **more: Any) -> Listing:
    entries = [
        Entry(
            name=f"e{at}",
            path=f"e{at}",
            score=replace(
                score(f"e{at}", lidar=5.0 + at, pillai=1.0),
                confidence=interval(4.0 + at, 6.0 + at),
                spectra={"lda": [2.0 + at, 1.0]},
            ),
            rank=at + 1,
            accuracy=0.1 * at,
            parameters={"width": 2.0**at},
        )
        for at in range(count)
    ]
    return Listing(entries, METRICS["lidar"], **more)


def charts_of(drawn: Listing) -> Charts:
    return Charts(Figures(drawn, "s").to_markup())


def test_every_chart_marks_the_selected_checkpoint_and_names_each_mark() -> None:
    charts = charts_of(listing(3))
    assert set(charts.marks) == {"accuracy", "parameter", "spectra"}
    for kind, marks in charts.marks.items():
        # `lidar` and, folded, `pillai` against accuracy; one hyperparameter; one spectrum
        assert len(marks) == (6 if kind == "accuracy" else 3)
        assert {at for _, at, _ in marks} == {"0", "1", "2"}
        assert {at for classes, at, _ in marks if "selected" in classes} == {"0"}
        assert {"e0", "e1", "e2"} <= set(charts.texts[kind])
        assert all(title.startswith(f"e{at}") for _, at, title in marks)
    titles = [title for _, _, title in charts.marks["accuracy"]]
    assert "e2 (rank 3): lidar 7.000 \u00b1 1.000, accuracy 20.0 %" in titles


def test_of_many_checkpoints_only_the_selected_is_labelled() -> None:
    charts = charts_of(listing(100))
    for kind, marks in charts.marks.items():
        labels = [text for text in charts.texts[kind] if re.fullmatch(r"e\d+", text)]
        assert set(labels) == {"e0"}
        assert {title.partition(" ")[0] for _, _, title in marks} == {f"e{at}" for at in range(100)}


def test_curves_of_runs_and_an_untrained_network_are_drawn_over_training() -> None:
    plain = listing(4)
    entries = [
        replace(entry, run="ab"[at % 2], step=10.0 * at) for at, entry in enumerate(plain.entries)
    ]
    charts = charts_of(
        replace(plain, entries=entries, step="epoch", baselines={"untrained": {"lidar": 2.5}})
    )
    curves = [mark for mark in charts.marks["step"] if mark[0].startswith("curve")]
    assert [(at, title) for _, at, title in curves[:2]] == [("0 2", "run a"), ("1 3", "run b")]
    assert "e3 (rank 4): lidar 8.000 \u00b1 1.000, epoch 30.00" in [
        title for _, _, title in charts.marks["step"]
    ]
    for kind in ("step", "accuracy"):
        assert "untrained, 2.500" in charts.texts[kind]


def test_colours_distinguish_methods_then_runs_then_names() -> None:
    entries = [replace(entry, run=f"run {at // 2}") for at, entry in enumerate(listing(4).entries)]
    methods = [
        replace(entry, parameters={"method": "ab"[at % 2]}) for at, entry in enumerate(entries)
    ]
    assert colour_groups(Listing(methods)) == ("method", ["a", "b", "a", "b"])
    assert colour_groups(Listing(entries)) == ("run", ["run 0", "run 0", "run 1", "run 1"])
    assert colour_groups(listing(4)) == ("", ["e0", "e1", "e2", "e3"])
    assert colour_groups(listing(9)) == ("", [""] * 9)


def test_the_labels_of_two_levels_are_apart() -> None:
    chart = Chart("c", "x", "y")
    for y, label in ((2.0, "high"), (1.0, "low")):
        chart.level(y, label)
    labels = [at for at in Elements(chart.to_markup("")).named("text") if at.get("class")]
    assert [at["text-anchor"] for at in labels] == ["end", "start"]
    high, low = (float(at["y"] or "") for at in labels)
    assert low > high + LINE


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shortened("vicreg-05", 9) == "vicreg-05"
    assert shortened("vicreg-05/epoch=9", 9) == "vicr\u2026ch=9"


def test_parameters_that_differ_are_drawn() -> None:
    entries = [
        Entry(name, name, score(name), parameters={"step": step, "d": 8.0, "t": t})
        for name, step, t in (("a", 1.0, None), ("b", 2.0, 0.1))
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
    (tmp_path / "blocked" / "matplotlib.py").write_text("raise ImportError('not installed')\n")
    block = os.pathsep.join([str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")])
    done = lidar("score", "z.npy", "--report", "out.html", cwd=tmp_path, PYTHONPATH=block)
    assert done.returncode == 2
    assert "pip install 'lidar-cli[plot]'" in done.stderr


def test_overwrite_belongs_to_a_report(tmp_path: Path) -> None:
    done = lidar("score", "z.npy", "--overwrite", cwd=tmp_path)
    assert done.returncode == 2
    assert "--overwrite replaces an existing --report; name one" in done.stderr
