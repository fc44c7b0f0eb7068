"""What the charts of a page draw, as plain data; colours and axes are the script's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.converge import AXES, shares
from lidar_cli.report.page.markup import Markup, element
from lidar_cli.report.page.table import Entry, Listing
from lidar_cli.report.plot import PANELS, ROUNDING
from lidar_cli.scoring.compute import Score

POINTS = 64  # of a spectrum that are drawn: even in the logarithm of the rank
MOST_CURVES = 200  # spectra of the first entries that are drawn
DIGITS = 5


def chart_data(listing: Listing) -> dict[str, Any]:
    """Numbers of every chart of a listing, JSON-ready."""
    return {
        "by": listing.by.name if listing.by else None,
        "entries": [_entry(at, entry, listing) for at, entry in enumerate(listing.entries)],
    }


def charts(listing: Listing) -> list[Markup]:
    """Places for the charts that have something to draw, each with what can be chosen in it."""
    found = []
    panels = {
        name: title
        for name, title in PANELS.items()
        if any(entry.score.spectra.get(name) for entry in listing.entries)
    }
    if panels:
        more = "" if len(listing.entries) <= MOST_CURVES else f" of the first {MOST_CURVES}"
        found.append(_chart("spectra", f"Spectra{more}", {"matrix": panels}))
    metrics = {name: name for name in listing.metrics}
    if parameters := parameters_of(listing):
        named = {name: name for name in parameters}
        title = "A metric against how it was trained"
        found.append(_chart("parameter", title, {"metric": metrics, "against": named}))
    if listing.judged:
        found.append(_chart("oracle", "A metric against the oracle", {"metric": metrics}))
    if any(entry.score.convergence for entry in listing.entries):
        title = "Metrics of a part of the file, as a share of all of it"
        choices: dict[str, Mapping[str, str]] = (
            {"metric": metrics} if len(listing.entries) > 1 else {}
        )
        choices["against"] = AXES
        found.append(_chart("convergence", title, choices))
    return found


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

    Those that are rounding beside the largest are left out.
    """
    kept = [value for value in spectrum if value > ROUNDING * spectrum[0]]
    if not kept:
        return [], []
    steps = max(1, min(POINTS, len(kept)) - 1)
    ranks = sorted({round(len(kept) ** (step / steps)) for step in range(steps + 1)} | {1})
    return ranks, [_short(kept[rank - 1]) for rank in ranks]


def _entry(at: int, entry: Entry, listing: Listing) -> dict[str, Any]:
    score = entry.score
    return {
        "name": entry.name,
        "values": {name: _ends(entry, name) for name in listing.metrics},
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


def _ends(entry: Entry, name: str) -> list[float] | None:
    value, interval = entry.score.value(name), entry.interval(name)
    if value is None:
        return None
    low, high = interval.ci_low, interval.ci_high
    return [value] if low is None or high is None else [value, _short(low), _short(high)]


def _convergence(score: Score) -> dict[str, Any] | None:
    """Axis -> metric -> counts and shares of the value of the whole file."""
    if score.convergence is None:
        return None
    return {
        axis: {
            name: ([count for count, _ in line], [_short(share) for _, share in line])
            for name, line in shares(score.convergence, axis).items()
        }
        for axis in AXES
    }


def _plain(value: Value) -> Value:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _chart(kind: str, title: str, choices: Mapping[str, Mapping[str, str]]) -> Markup:
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
        for name, options in choices.items()
    ]
    return element(
        "figure",
        {"data-chart": kind},
        element("figcaption", None, element("h3", None, title), *selects),
        element("div", {"class": "plot"}),
    )
