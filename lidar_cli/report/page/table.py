"""The table of a page: sorted by a click on a header, filtered by name, intervals drawn beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.page.markup import Markup, broken, element, joined
from lidar_cli.report.probe import percent
from lidar_cli.report.text import MISSING, between, metric_text, text_of, with_reach
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import Interval

BREAKS = "/_="  # characters of a path after which its line may break
LONG = 30  # rows above which the table scrolls in its frame, its header in sight
SHAPE = {"n": "n_samples", "q": "n_views", "d": "dim"}  # columns where entries may differ in them


def table(listing: Listing) -> Markup:
    """The table in a frame that scrolls, with the box that filters it."""
    head = element("thead", None, element("tr", None, *_headers(listing)))
    scale = _Scale(listing)
    rows = [_row(at, entry, listing, scale) for at, entry in enumerate(listing.entries)]
    whole = element("table", None, head, element("tbody", None, *rows))
    frame = framed(whole, len(rows) > LONG)
    return joined(_filter(len(listing.entries)), frame)


def framed(table: Markup, long: bool = False) -> Markup:
    """A table in a frame of its own, which scrolls where it is too wide, or long."""
    attributes = {"class": "frame long" if long else "frame", "tabindex": 0, "role": "region"}
    return element("div", attributes | {"aria-label": "Table"}, table)


def _filter(count: int) -> Markup:
    if count < 2:
        return Markup()
    told = {"type": "search", "class": "filter", "placeholder": "part of a name"}
    box = element("input", told | {"autocomplete": "off"})
    shown = element("output", None, f"{count} of {count}")
    return element("label", {"class": "tools"}, element("span", None, "Filter"), box, shown)


def _headers(listing: Listing) -> Iterator[Markup]:
    if listing.by:
        yield _header("#", "place by " + listing.by.name, sorted_=True)
    yield _header("checkpoint" if listing.by else "file", "name", left=True)
    if listing.by is None:
        yield from (_header(name, name) for name in SHAPE)
    for name in listing.metrics:
        of_order = listing.by is not None and name == listing.by.name
        yield _header(name, f"{METRICS[name].direction} is better", of_order)
        if of_order:
            yield element("th", {"scope": "col", "class": "reach"}, "interval")
            if any(entry.tied for entry in listing.entries):
                yield _header("ties with", "ranks that it cannot be told from", left=True)
            if listing.judged:
                yield _header("accuracy", "of the oracle, percent")


def _header(
    name: str, title: str, leading: bool = False, *, left: bool = False, sorted_: bool = False
) -> Markup:
    classes = " ".join([*(["leading"] if leading else []), *(["left"] if left else [])])
    order = "ascending" if sorted_ else "none"
    button = element("button", {"type": "button", "title": title}, broken(name, "_"))
    return element("th", {"scope": "col", "class": classes or None, "aria-sort": order}, button)


def _row(at: int, entry: Entry, listing: Listing, scale: _Scale) -> Markup:
    has_value = listing.by is not None and entry.score.value(listing.by.name) is not None
    attributes = {
        "data-at": at,
        "data-ties": " ".join(map(str, entry.ties)) or None,
        "data-name": entry.name,
        "class": "first" if has_value and (at == 0 or 0 in entry.ties) else None,
    }
    return element("tr", attributes, *_cells(entry, listing, scale))


def _cells(entry: Entry, listing: Listing, scale: _Scale) -> Iterator[Markup]:
    if listing.by:
        yield element("td", {"data-key": entry.rank, "class": "place"}, str(entry.rank))
    named = {"scope": "row", "data-key": entry.name, "title": entry.path}
    yield element("th", named, broken(entry.name, BREAKS))
    if listing.by is None:
        for field in SHAPE.values():
            value = getattr(entry.score, field)
            yield element("td", {"data-key": value}, text_of(value))
    for name in listing.metrics:
        of_order = listing.by is not None and name == listing.by.name
        yield _value(entry, name, of_order)
        if of_order:
            yield element("td", {"class": "reach"}, scale.drawn(entry))
            if any(other.tied for other in listing.entries):
                key = min(entry.ties) if entry.ties else None
                told = entry.tied.removeprefix("ranks ").removeprefix("rank ")
                yield element("td", {"class": "left ties", "data-key": key}, told)
            if listing.judged:
                shown = percent(entry.accuracy)
                yield element("td", {"data-key": entry.accuracy}, shown)


def _value(entry: Entry, name: str, leading: bool) -> Markup:
    value, interval = entry.score.value(name), entry.interval(name)
    if value is None:
        reason = entry.score.notes.get(name)
        return element("td", {"class": "null", "data-key": None, "title": reason}, MISSING)
    text = metric_text(name, value)
    reach = with_reach(name, value, interval).removeprefix(text).replace(" +- ", "\u2009±\u2009")
    shown = joined(text, element("small", None, reach)) if reach else joined(text)
    attributes = {"data-key": repr(float(value)), "title": between(interval) or None}
    return element("td", attributes | {"class": "leading" if leading else None}, shown)


class _Scale:
    """Where values of the ordering metric lie between the least and the largest, in percent."""

    def __init__(self, listing: Listing) -> None:
        self._name = listing.by.name if listing.by else ""
        ends = [end for entry in listing.entries for end in self._ends(entry)]
        self._low, self._high = (min(ends), max(ends)) if ends else (0.0, 0.0)

    def drawn(self, entry: Entry) -> Markup:
        """A line from one end of the interval to the other, and a point at the value."""
        ends = self._ends(entry)
        if not ends or self._high <= self._low:
            return Markup()
        low, value, high = (100 * (end - self._low) / (self._high - self._low) for end in ends)
        style = f"--low:{low:.2f}%;--high:{high:.2f}%;--at:{value:.2f}%"
        label = f"{text_of(ends[0])} to {text_of(ends[2])}"
        return element(
            "span", {"class": "whisker", "style": style, "role": "img", "aria-label": label}
        )

    def _ends(self, entry: Entry) -> Sequence[float]:
        value = entry.score.value(self._name) if self._name else None
        if value is None:
            return ()
        interval: Interval = entry.interval(self._name)
        low, high = interval.ci_low, interval.ci_high
        return (value if low is None else low, value, value if high is None else high)


@dataclass(frozen=True)
class Entry:
    """A line of a table and a curve of its charts.

    name: as shown; path: whole. ties: places, counted from 0, of those it cannot be told from.
    """

    name: str
    path: str
    score: Score
    rank: int | None = None
    tied: str = ""
    ties: tuple[int, ...] = ()
    accuracy: float | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)

    def interval(self, metric: str) -> Interval:
        """Of a metric, an empty one where it has none."""
        sure = self.score.confidence
        return sure.intervals.get(metric, Interval()) if sure else Interval()


@dataclass(frozen=True)
class Listing:
    """Entries that stand in one table. by: the metric that orders them, if one does."""

    entries: Sequence[Entry]
    by: Metric | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of metrics with a value somewhere, the ordering one first."""
        first = [self.by.name] if self.by else []
        known = [
            name
            for name in METRICS
            if any(entry.score.value(name) is not None for entry in self.entries)
        ]
        return list(dict.fromkeys([*first, *known]))

    @property
    def judged(self) -> bool:
        """Whether an oracle knows any entry."""
        return any(entry.accuracy is not None for entry in self.entries)
