"""The table of a page: a click on a header sorts it, a text box filters it, intervals are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.page.markup import BREAKS, Markup, broken, element, framed, joined
from lidar_cli.report.scores import interval_of
from lidar_cli.report.text import (
    MISSING,
    format_interval,
    format_metric,
    format_percent,
    format_value,
    format_with_interval,
)
from lidar_cli.scoring.compute import Score

LONG = 30  # rows above which the table scrolls in its frame, below a fixed header
SHAPE = {"n": "n_samples", "q": "n_views", "d": "dim"}  # columns if no metric orders the files


@dataclass(frozen=True)
class Entry:
    """A row of the table and a curve of the charts.

    name: as displayed. path: complete. tied: ranks of the tied entries, as text; ties: their
    positions.
    """

    name: str
    path: str
    score: Score
    rank: int | None = None
    tied: str = ""
    ties: tuple[int, ...] = ()
    accuracy: float | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The entries of one table. by: the metric that orders them; None if they have no order."""

    entries: Sequence[Entry]
    by: Metric | None = None

    @property
    def order(self) -> str:
        """The name of the metric that orders, empty if none does."""
        return self.by.name if self.by else ""

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that have a value in any entry, the one that orders first."""
        valued = (
            name
            for name in METRICS
            if any(entry.score.value(name) is not None for entry in self.entries)
        )
        return list(dict.fromkeys([*([self.order] if self.by else []), *valued]))

    @property
    def has_accuracies(self) -> bool:
        """Whether the accuracy of any entry is given."""
        return any(entry.accuracy is not None for entry in self.entries)

    @property
    def has_ties(self) -> bool:
        """Whether any entry ties with another."""
        return any(entry.tied for entry in self.entries)


def table(listing: Listing) -> Markup:
    """The table in a frame, below the box that filters it."""
    low, high = _range(listing)
    rows = []
    for at, entry in enumerate(listing.entries):
        has_value = listing.by is not None and entry.score.value(listing.order) is not None
        attributes = {
            "data-at": at,
            "data-ties": " ".join(map(str, entry.ties)) or None,
            "data-name": entry.name,
            "class": "first" if has_value and (at == 0 or 0 in entry.ties) else None,
        }
        rows.append(element("tr", attributes, *_cells(entry, listing, low, high)))
    return joined(_filter(len(rows)), framed(_headers(listing), rows, long=len(rows) > LONG))


def _filter(count: int) -> Markup:
    if count < 2:
        return Markup()
    attributes = {"type": "search", "class": "filter", "placeholder": "part of a name"}
    box = element("input", attributes | {"autocomplete": "off"})
    output = element("output", None, f"{count} of {count}")
    return element("label", {"class": "tools"}, element("span", None, "Filter"), box, output)


def _headers(listing: Listing) -> Iterator[Markup]:
    if listing.by:
        yield _header("#", "rank by " + listing.order, order="ascending")
    yield _header("checkpoint" if listing.by else "file", "name", kind="left")
    if listing.by is None:
        yield from (_header(name, name) for name in SHAPE)
    for name in listing.metrics:
        orders = name == listing.order
        direction = f"{METRICS[name].direction} is better"
        yield _header(name, direction, kind="leading" if orders else None)
        if orders:
            yield element("th", {"scope": "col", "class": "reach"}, "interval")
            if listing.has_ties:
                yield _header("ties with", "ranks whose difference may be chance", kind="left")
            if listing.has_accuracies:
                yield _header("accuracy", "percent")


def _header(name: str, title: str, *, kind: str | None = None, order: str = "none") -> Markup:
    button = element("button", {"type": "button", "title": title}, broken(name, "_"))
    return element("th", {"scope": "col", "class": kind, "aria-sort": order}, button)


def _cells(entry: Entry, listing: Listing, low: float, high: float) -> Iterator[Markup]:
    if listing.by:
        yield element("td", {"data-key": entry.rank, "class": "place"}, str(entry.rank))
    attributes = {"scope": "row", "data-key": entry.name, "title": entry.path}
    yield element("th", attributes, broken(entry.name, BREAKS))
    if listing.by is None:
        for name in SHAPE.values():
            size = getattr(entry.score, name)
            yield element("td", {"data-key": size}, format_value(size))
    for name in listing.metrics:
        orders = name == listing.order
        yield _metric(entry, name, orders)
        if orders:
            yield element("td", {"class": "reach"}, _whisker(entry, name, low, high))
            if listing.has_ties:
                key = min(entry.ties) if entry.ties else None
                ranks = entry.tied.removeprefix("ranks ").removeprefix("rank ")
                yield element("td", {"class": "left ties", "data-key": key}, ranks)
            if listing.has_accuracies:
                yield element("td", {"data-key": entry.accuracy}, format_percent(entry.accuracy))


def _metric(entry: Entry, name: str, orders: bool) -> Markup:
    value, interval = entry.score.value(name), interval_of(entry.score, name)
    if value is None:
        reason = entry.score.notes.get(name)
        return element("td", {"class": "null", "data-key": None, "title": reason}, MISSING)
    text = format_metric(name, value)
    reach = format_with_interval(name, value, interval).removeprefix(text)
    small = element("small", None, reach.replace(" +- ", "\u2009±\u2009")) if reach else ""
    attributes = {"data-key": repr(float(value)), "title": format_interval(interval) or None}
    return element("td", attributes | {"class": "leading" if orders else None}, text, small)


def _whisker(entry: Entry, name: str, low: float, high: float) -> Markup:
    """A line over the interval and a point at the value, between `low` and `high` in percent."""
    ends = _ends(entry, name)
    if not ends or high <= low:
        return Markup()
    left, point, right = (100 * (end - low) / (high - low) for end in ends)
    style = f"--low:{left:.2f}%;--high:{right:.2f}%;--at:{point:.2f}%"
    label = f"{format_value(ends[0])} to {format_value(ends[2])}"
    return element("span", {"class": "whisker", "style": style, "role": "img", "aria-label": label})


def _range(listing: Listing) -> tuple[float, float]:
    """The least and the largest end of an interval of the metric that orders."""
    if listing.by is None:
        return 0.0, 0.0
    ends = [end for entry in listing.entries for end in _ends(entry, listing.order)]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _ends(entry: Entry, name: str) -> Sequence[float]:
    """Lower end, value and upper end; all equal without an interval, none without a value."""
    value, interval = entry.score.value(name), interval_of(entry.score, name)
    if value is None:
        return ()
    low, high = interval.ci_low, interval.ci_high
    return (value if low is None else low, value, value if high is None else high)
