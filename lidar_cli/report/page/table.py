"""The tables of a page, and what their columns mean; the script sorts and filters them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lidar_cli.core.metrics import Metric
from lidar_cli.ranking.depth import DepthProfile
from lidar_cli.ranking.group_metrics import ORDERS, SECOND_OPINION
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.page.markup import (
    BREAKS,
    Markup,
    broken,
    element,
    folded,
    framed,
    joined,
)
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
MOST_METRICS = 6  # that fit next to the one that orders; with more there is a second table
FIRST_METRICS = ("lidar", SECOND_OPINION, "lidar_corrected", "rankme", "alpha_req")
COLUMNS = {  # columns that are no metric
    "#": "The rank by the metric that orders. Equal values share a rank.",
    "checkpoint": "The part of the path in which it differs from the others.",
    "file": "The feature file.",
    "n": "Samples: source images.",
    "q": "Augmented views of each sample.",
    "d": "Dimensions of an embedding.",
    "accuracy": "Downstream accuracy in percent. The order does not depend on it.",
    "interval": "The confidence interval over samples, from the lowest end to the highest of all.",
    "tied with": "Ranks whose difference from this one may be chance in the draw of images.",
}


@dataclass(frozen=True)
class Entry:
    """A row of the table and a curve of the charts.

    name: as displayed. path: complete. tied: ranks of the tied entries, as text; ties: their
    positions. depth: one metric at several layers, if they were named. run, step: where in which
    training it is from, None if that is unknown.
    """

    name: str
    path: str
    score: Score
    rank: int | None = None
    tied: str = ""
    ties: tuple[int, ...] = ()
    depth: DepthProfile | None = None
    accuracy: float | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    run: str = ""
    step: float | None = None


@dataclass(frozen=True)
class Listing:
    """The entries of one table.

    by: the metric that orders them; None if they have no order. step: what the steps of the entries
    count. baselines: name of an untrained network -> metric -> value.
    """

    entries: Sequence[Entry]
    by: Metric | None = None
    step: str = ""
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def order(self) -> str:
        """The name of the metric that orders, empty if none does."""
        return self.by.name if self.by else ""

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that have a value in any entry, the one that orders first."""
        valued = (
            name
            for name in ORDERS
            if any(entry.score.value(name) is not None for entry in self.entries)
        )
        return list(dict.fromkeys([*([self.order] if self.by else []), *valued]))

    @property
    def has_accuracies(self) -> bool:
        """Whether the accuracy of any entry is given."""
        return any(entry.accuracy is not None for entry in self.entries)

    @property
    def has_intervals(self) -> bool:
        """Whether any value of the metric that orders has an interval."""
        return any(one.score.interval(self.order).ci_low is not None for one in self.entries)

    @property
    def has_ties(self) -> bool:
        """Whether any entry ties with another."""
        return any(entry.tied for entry in self.entries)

    @property
    def first_metrics(self) -> list[str]:
        """Names of the metrics of the first table: the one that orders, and as many as fit."""
        first, *others = self.metrics or [""]
        if len(others) > MOST_METRICS:
            others = [name for name in others if name in FIRST_METRICS]
        return [first, *others] if first else []


def tables(listing: Listing) -> Markup:
    """The table, below the box that filters it; then all metrics, if they do not all fit."""
    low, high = _range(listing)
    first = [
        _row(at, entry, listing, _cells(entry, listing, low, high))
        for at, entry in enumerate(listing.entries)
    ]
    is_long = len(first) > LONG
    content = [_filter(len(first)), framed(_headers(listing), first, long=is_long)]
    if len(listing.first_metrics) < len(listing.metrics):
        every = [
            _row(at, entry, listing, _metric_cells(entry, listing.metrics))
            for at, entry in enumerate(listing.entries)
        ]
        headers = [_header(_name_column(listing), kind="left"), *map(_header, listing.metrics)]
        table = framed(headers, every, kind="all", long=is_long)
        content.append(folded(f"All {len(listing.metrics)} metrics", table))
    return joined(*content)


def explanations(listings: Sequence[Listing]) -> Markup:
    """What each column of the tables means, opened by the button in its head."""
    metrics = dict.fromkeys(name for listing in listings for name in listing.metrics)
    texts = {name: joined(element("p", None, text)) for name, text in COLUMNS.items()}
    for name in metrics:
        metric = ORDERS[name]
        texts[name] = joined(
            element("p", None, element("b", None, f"{metric.direction} is better"), "."),
            element("p", None, metric.definition),
            element("p", None, "More: ", element("code", None, f"lidar explain {name}")),
        )
    popovers = (
        element("div", {"id": _identity(name), "popover": True}, element("h3", None, name), text)
        for name, text in texts.items()
    )
    return joined(*popovers)


def _identity(column: str) -> str:
    return "about-" + {"#": "rank"}.get(column, column.replace(" ", "-"))


def _row(at: int, entry: Entry, listing: Listing, cells: Iterable[Markup]) -> Markup:
    has_value = listing.by is not None and entry.score.value(listing.order) is not None
    attributes = {
        "data-at": at,
        "data-ties": " ".join(map(str, entry.ties)) or None,
        "data-name": entry.name,
        "class": "first" if has_value and (at == 0 or 0 in entry.ties) else None,
    }
    return element("tr", attributes, *cells)


def _filter(count: int) -> Markup:
    if count < 2:
        return Markup()
    attributes = {"type": "search", "class": "filter", "placeholder": "part of a name"}
    box = element("input", attributes | {"autocomplete": "off"})
    output = element("output", None, f"{count} of {count}")
    label = element("label", None, element("span", None, "Filter"), box)
    return element("div", {"class": "tools", "hidden": True}, label, output)


def _name_column(listing: Listing) -> str:
    return "checkpoint" if listing.by else "file"


def _headers(listing: Listing) -> Iterator[Markup]:
    if listing.by:
        yield _header("#", order="ascending")
    yield _header(_name_column(listing), kind="left")
    if listing.by is None:
        yield from map(_header, SHAPE)
    elif listing.has_accuracies:
        yield _header("accuracy")
    for name in listing.first_metrics:
        orders = name == listing.order
        yield _header(name, kind="leading" if orders else None)
        if orders and listing.has_intervals:
            yield _header("interval", kind="reach", order=None)
        if orders and listing.has_ties:
            yield _header("tied with", kind="left")


def _header(name: str, kind: str | None = None, order: str | None = "none") -> Markup:
    """A head that can be sorted by, unless `order` is None, with a button that explains it."""
    metric = ORDERS.get(name)
    about = f"{metric.direction} is better: {metric.definition}" if metric else COLUMNS[name]
    attributes = {"type": "button", "class": "about", "popovertarget": _identity(name)}
    button = element("button", attributes | {"aria-label": f"What {name} means"}, "?")
    title = element("span", {"class": "head", "title": about}, broken(name, "_"))
    return element("th", {"scope": "col", "class": kind, "aria-sort": order}, title, button)


def _cells(entry: Entry, listing: Listing, low: float, high: float) -> Iterator[Markup]:
    if listing.by:
        yield element("td", {"data-key": entry.rank, "class": "place"}, str(entry.rank))
    yield _name_cell(entry)
    if listing.by is None:
        for name in SHAPE.values():
            size = getattr(entry.score, name)
            yield element("td", {"data-key": size}, format_value(size))
    elif listing.has_accuracies:
        accuracies = [each.accuracy for each in listing.entries if each.accuracy is not None]
        best = "best" if entry.accuracy == max(accuracies) else None
        attributes = {"data-key": entry.accuracy, "class": best}
        yield element("td", attributes, format_percent(entry.accuracy))
    for name in listing.first_metrics:
        orders = name == listing.order
        kind = "leading" if orders else None
        yield _metric(entry, name, kind, with_interval=orders or listing.by is None)
        if orders and listing.has_intervals:
            yield element("td", {"class": "reach"}, _whisker(entry, name, low, high))
        if orders and listing.has_ties:
            key = min(entry.ties) if entry.ties else None
            yield element("td", {"class": "left ties", "data-key": key}, entry.tied)


def _name_cell(entry: Entry) -> Markup:
    attributes = {"scope": "row", "data-key": entry.name, "title": entry.path}
    return element("th", attributes, broken(entry.name, BREAKS))


def _metric_cells(entry: Entry, metrics: Sequence[str]) -> Iterator[Markup]:
    yield _name_cell(entry)
    yield from (_metric(entry, name) for name in metrics)


def _metric(
    entry: Entry, name: str, kind: str | None = None, with_interval: bool = False
) -> Markup:
    value, interval = entry.score.value(name), entry.score.interval(name)
    if value is None:
        reason = entry.score.notes.get(name)
        return element("td", {"class": "null", "data-key": None, "title": reason}, MISSING)
    text = format_metric(name, value)
    reach = format_with_interval(name, value, interval).removeprefix(text) if with_interval else ""
    small = element("small", None, reach.replace(" +- ", "\u2009±\u2009")) if reach else ""
    attributes = {"data-key": repr(float(value)), "title": format_interval(interval) or None}
    return element("td", attributes | {"class": kind}, text, small)


def _whisker(entry: Entry, name: str, low: float, high: float) -> Markup:
    """A line over the interval and a point at the value, between `low` and `high` in percent."""
    ends = ends_of(entry, name)
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
    ends = [end for entry in listing.entries for end in ends_of(entry, listing.order)]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def ends_of(entry: Entry, name: str) -> Sequence[float]:
    """Lower end, value and upper end; all equal without an interval, none without a value."""
    value, interval = entry.score.value(name), entry.score.interval(name)
    if value is None:
        return ()
    low, high = interval.ci_low, interval.ci_high
    return (value if low is None else low, value, value if high is None else high)
