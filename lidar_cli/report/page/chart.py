"""One chart as an SVG element: matplotlib scales and draws, the style of the page colours.

Text from files never passes through matplotlib, which would read formulas in it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

from lidar_cli.report.page.markup import Markup, element

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 28, 40  # margins of the axes
NAME_WIDTH = 110  # of the right margin that names have
LETTER = 6.6  # the mean width of a letter
LONGEST = 26  # letters of a name
LINE = 12  # the least distance of two names
ANCHORS = re.compile("text-anchor: (start|middle|end)")
NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Mark:
    """How an entry is drawn and named in every chart, in the colour of a CSS class.

    at: its position in the table; a run has the positions of its checkpoints.
    """

    at: str
    colour: str
    name: str
    selected: bool = False


@dataclass
class Chart:
    """An x and a y axis with the curves, points and levels of entries.

    categories: labels of 0, 1, ... on the x axis, in place of numbers. named: whether all marks are
    labelled with their names; otherwise the selected one is. identity: unique on the page.
    """

    identity: str
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    categories: Sequence[str] = ()
    named: bool = False
    ticks: Sequence[float] = ()
    _axes: Any = field(init=False)
    _titles: dict[str, str] = field(init=False, default_factory=dict)  # by identity of the mark
    _named: list[tuple[float, float, Mark]] = field(init=False, default_factory=list)
    _levels: list[tuple[float, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        from matplotlib.figure import Figure

        width = WIDTH - LEFT - (NAME_WIDTH if self.named else RIGHT)
        box = (LEFT / WIDTH, BOTTOM / HEIGHT, width / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
        self._axes = Figure(figsize=(WIDTH / 72, HEIGHT / 72)).add_axes(box)
        self._axes.set_xscale("log" if self.log_x else "linear")
        self._axes.set_yscale("log" if self.log_y else "linear")

    def curve(
        self,
        mark: Mark,
        x: Sequence[float],
        y: Sequence[float],
        title: str,
        name_at: float | None = None,
    ) -> None:
        """A line through points, with its name at the end, or to the right of it at a height."""
        self._plot("curve", mark, x, y, title)
        self._name(mark, x[-1], y[-1] if name_at is None else name_at)

    def point(
        self, mark: Mark, x: float, ends: Sequence[float], title: str, *, has_name: bool = True
    ) -> None:
        """A point at the second of three values, on a line from the first to the last."""
        style = {"marker": "o", "markersize": 6, "markevery": [1]}
        self._plot("point", mark, [x] * len(ends), ends, title, **style)
        if has_name:
            self._name(mark, x, ends[1])

    def level(self, y: float, label: str) -> None:
        """A dotted line over the full width, labelled above; of two the lower one below.

        The label is at the left; of two levels the higher one has it at the right.
        """
        if y > 0 or not self.log_y:
            self._axes.axhline(y, gid="level")
            self._levels.append((y, label))

    def _plot(
        self,
        kind: str,
        mark: Mark,
        x: Sequence[float],
        y: Sequence[float],
        title: str,
        **style: Any,
    ) -> None:
        chosen = " selected" if mark.selected else ""
        identity = f"{kind}|{kind} {mark.colour}{chosen}|{mark.at}|{len(self._titles)}"
        self._titles[identity] = title
        self._axes.plot(x, y, gid=identity, zorder=3 if mark.selected else 2, **style)

    def _name(self, mark: Mark, x: float, y: float) -> None:
        if self.named or mark.selected:
            self._named.append((x, y, mark))

    def to_markup(self, description: str) -> Markup:
        """The SVG element. description: in words, for those who do not see it."""
        root = ElementTree.fromstring(self._svg())
        namespace = root.tag.removesuffix("svg")
        drawn = root.find(f"{namespace}g")
        assert drawn is not None
        labels = [
            _text(LEFT - 4, 14, self.y_label, "start"),
            _text(self._right, HEIGHT - 8, self.x_label, "end"),
            *self._category_labels(),
            *self._level_labels(),
            *self._names(),
        ]
        attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": description}
        return element("svg", attributes, *self._convert(drawn), *labels)

    @property
    def _right(self) -> float:
        return WIDTH - (NAME_WIDTH if self.named else RIGHT)

    def _svg(self) -> bytes:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes = self._axes
        axes.grid(True)
        axes.tick_params(left=False, bottom=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        axes.figure.patch.set_visible(False)
        for axis, log in ((axes.xaxis, self.log_x), (axes.yaxis, self.log_y)):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
            axis.set_minor_locator(NullLocator())
            if log:
                axis.set_major_locator(_log_locator(*axis.get_view_interval()))
            else:
                axis.get_major_locator().set_params(nbins=6)
        if self.ticks or self.categories:
            axes.set_xticks(self.ticks or range(len(self.categories)))
        if self.categories:
            axes.set_xlim(-0.5, len(self.categories) - 0.5)
            axes.xaxis.set_major_formatter(lambda *_: "")
        picture = io.BytesIO()
        canvas: Any = FigureCanvasSVG(axes.figure)
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.identity}):
            canvas.print_svg(picture, metadata={"Date": None})
        return picture.getvalue()

    def _convert(self, node: ElementTree.Element) -> Iterator[Markup]:
        """The children of an element, with classes in place of styles and short numbers."""
        for child in node:
            name = child.tag.rpartition("}")[2]
            if name == "g":
                yield from self._group(child)
            elif name == "defs":
                yield element("defs", None, *self._convert(child))
            elif name == "path":
                attributes = {"id": child.get("id"), "d": _short_path(child.get("d", ""))}
                yield element("path", attributes)
            elif name == "use":
                link = child.get("{http://www.w3.org/1999/xlink}href")
                place = {key: _short(child.get(key, "0")) for key in ("x", "y")}
                yield element("use", {"href": link, **place})
            elif name == "text":
                anchor = ANCHORS.search(child.get("style", ""))
                attributes = {key: _short(child.get(key, "0")) for key in ("x", "y")}
                attributes["text-anchor"] = anchor[1] if anchor else "start"
                yield element("text", attributes, child.text or "")

    def _group(self, group: ElementTree.Element) -> Iterator[Markup]:
        kind, *more = group.get("id", "").split("|")
        content = list(self._convert(group))
        if kind in ("curve", "point"):
            attributes = {"class": more[0], "data-at": more[1]}
            title = element("title", None, self._titles[group.get("id", "")])
            yield element("g", attributes, title, *content)
        elif kind == "level":
            yield element("g", {"class": kind}, *content)
        elif kind.startswith(("xtick", "ytick", "patch")):
            yield element("g", {"class": "tick" if "tick" in kind else "spine"}, *content)
        else:
            yield from content

    def _category_labels(self) -> Iterator[Markup]:
        room = int((self._right - LEFT) / max(1, len(self.categories)) / LETTER)
        for at, label in enumerate(self.categories):
            x, _ = self._place(at, self._axes.get_ylim()[0])
            yield _text(x, HEIGHT - BOTTOM + 15, shortened(label, max(3, room)), "middle")

    def _level_labels(self) -> Iterator[Markup]:
        highest = max((y for y, _ in self._levels), default=0.0)
        for y, label in self._levels:
            _, height = self._place(self._axes.get_xlim()[0], y)
            below = y < highest and height + LINE < HEIGHT - BOTTOM
            is_right = y == highest and len(self._levels) > 1  # where spectra are far below it
            x, anchor = (self._right - 4, "end") if is_right else (LEFT + 4, "start")
            position = _at(x, height + LINE if below else height - 4)
            yield element("text", {**position, "text-anchor": anchor, "class": "level"}, label)

    def _names(self) -> Iterator[Markup]:
        """Names at their marks, pushed apart."""
        placed = [(*self._place(x, y), mark) for x, y, mark in self._named]
        last = -float(LINE)
        for at, (x, y, mark) in enumerate(sorted(placed, key=lambda each: each[1])):
            lowest = HEIGHT - BOTTOM - LINE * (len(placed) - at - 1)
            last = max(last + LINE, min(y, lowest))
            beyond = not self.named and x > (LEFT + self._right) / 2
            start, anchor = (x - 8, "end") if beyond else (x + 8, "start")
            chosen = " selected" if mark.selected else ""
            attributes = {**_at(start, last + 4), "text-anchor": anchor}
            attributes |= {"class": f"name {mark.colour}{chosen}", "data-at": mark.at}
            letters = int((start if beyond else WIDTH - start) / LETTER)
            yield element("text", attributes, shortened(mark.name, min(letters, LONGEST)))

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """The position on the chart of a point in units of the data."""
        right, up = self._axes.transData.transform((x, y)) * 72 / self._axes.figure.dpi
        return float(right), HEIGHT - float(up)


def shortened(text: str, letters: int) -> str:
    """Text shortened in its middle to at most this many letters."""
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - max(1, letters - 1 - head) :]}"


def _text(x: float, y: float, text: str, anchor: Anchor) -> Markup:
    return element("text", {**_at(x, y), "text-anchor": anchor}, text)


def _at(x: float, y: float) -> dict[str, object]:
    return {"x": f"{x:.1f}", "y": f"{y:.1f}"}


def _log_locator(low: float, high: float) -> Any:
    """Ticks at decades, at few decades also at 2 and 5 between them."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8)


def _short_path(d: str) -> str:
    """A path with a tenth of a unit as its precision; a line after a line needs no letter."""
    return re.sub(r"\s*\bL\b\s*", " ", NUMBER.sub(lambda m: _short(m[0]), d)).strip()


def _short(number: str) -> str:
    return f"{float(number):.1f}".removesuffix(".0")
