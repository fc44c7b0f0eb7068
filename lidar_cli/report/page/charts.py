"""The data that the charts of a page draw; its script chooses colours and axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.page.markup import Markup, element
from lidar_cli.report.page.table import Entry, Listing
from lidar_cli.report.plot import PANELS, ROUNDING
from lidar_cli.report.scores import AXES, convergence_shares, interval_of
from lidar_cli.scoring.compute import Score

POINTS = 64  # drawn points of a spectrum, evenly spaced in the logarithm of the rank
MOST_CURVES = 200  # the first entries, whose spectra are drawn
DIGITS = 5  # significant digits of the data


def chart_data(listing: Listing) -> dict[str, Any]:
    """Numbers of every chart of a listing, JSON-ready."""
    return {
        "by": listing.order or None,
        "entries": [_entry(at, entry, listing) for at, entry in enumerate(listing.entries)],
    }


def charts(listing: Listing) -> list[Markup]:
    """An empty figure for each chart that has data, with its menus."""
    figures = []
    scores = [entry.score for entry in listing.entries]
    panels = {
        name: title
        for name, title in PANELS.items()
        if any(score.spectra.get(name) for score in scores)
    }
    if panels:
        limit = "" if len(scores) <= MOST_CURVES else f" of the first {MOST_CURVES}"
        figures.append(_figure("spectra", f"Spectra{limit}", {"matrix": panels}))
    metrics = {name: name for name in listing.metrics}
    if parameters := parameters_of(listing):
        against = {name: name for name in parameters}
        title = "A metric against how it was trained"
        figures.append(_figure("parameter", title, {"metric": metrics, "against": against}))
    if listing.has_accuracies:
        figures.append(_figure("oracle", "A metric against accuracy", {"metric": metrics}))
    if any(score.convergence for score in scores):
        title = "Metrics of a part of the file, as a share of all of it"
        by_metric = {"metric": metrics} if len(scores) > 1 else {}
        figures.append(_figure("convergence", title, {**by_metric, "against": AXES}))
    return figures


def parameters_of(listing: Listing) -> list[str]:
    """Hyperparameters in which entries differ."""
    names = dict.fromkeys(name for entry in listing.entries for name in entry.parameters)
    return [
        name
        for name in names
        if len({repr(entry.parameters.get(name)) for entry in listing.entries}) > 1
    ]


def thinned(spectrum: Sequence[float]) -> tuple[list[int], list[float]]:
    """Ranks from 1, evenly spaced in their logarithm, and the eigenvalues there.

    Eigenvalues within the rounding error of the largest are left out.
    """
    values = [value for value in spectrum if value > ROUNDING * spectrum[0]]
    if not values:
        return [], []
    steps = max(1, min(POINTS, len(values)) - 1)
    ranks = sorted({round(len(values) ** (step / steps)) for step in range(steps + 1)} | {1})
    return ranks, [_short(values[rank - 1]) for rank in ranks]


def _entry(at: int, entry: Entry, listing: Listing) -> dict[str, Any]:
    score = entry.score
    return {
        "name": entry.name,
        "values": {name: _ends(score, name) for name in listing.metrics},
        "parameters": {name: _plain(value) for name, value in entry.parameters.items()},
        "accuracy": entry.accuracy,
        "spectra": {
            name: thinned(score.spectra[name])
            for name in PANELS
            if score.spectra.get(name) and at < MOST_CURVES
        },
        "floor": 1 / score.n_views if score.n_views else None,
        "edge": score.noise_edge,
        "convergence": _convergence(score),
    }


def _ends(score: Score, name: str) -> list[float] | None:
    """The value and the ends of its interval, if it has one."""
    value, interval = score.value(name), interval_of(score, name)
    if value is None:
        return None
    low, high = interval.ci_low, interval.ci_high
    return [value] if low is None or high is None else [value, _short(low), _short(high)]


def _convergence(score: Score) -> dict[str, Any] | None:
    """Axis -> metric -> counts, and values as shares of the value on the complete file."""
    if score.convergence is None:
        return None
    return {
        axis: {
            name: ([count for count, _ in points], [_short(share) for _, share in points])
            for name, points in convergence_shares(score.convergence, axis).items()
        }
        for axis in AXES
    }


def _plain(value: Value) -> Value:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _figure(kind: str, title: str, menus: Mapping[str, Mapping[str, str]]) -> Markup:
    selects = [
        element(
            "label",
            None,
            element("span", None, name),
            element(
                "select",
                {"name": name},
                *(element("option", {"value": key}, text) for key, text in options.items()),
            ),
        )
        for name, options in menus.items()
    ]
    return element(
        "figure",
        {"data-chart": kind},
        element("figcaption", None, element("h3", None, title), *selects),
        element("div", {"class": "plot"}),
    )
