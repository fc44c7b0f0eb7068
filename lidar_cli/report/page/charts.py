"""The charts of a page: which entries each draws, in which colours, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.page.chart import Chart, Mark
from lidar_cli.report.page.markup import Markup, element, folded, joined
from lidar_cli.report.page.table import Entry, Listing, ends_of
from lidar_cli.report.plot import PANELS, ROUNDING
from lidar_cli.report.scores import AXES, convergence_shares
from lidar_cli.report.text import format_percent, format_value, format_with_interval

POINTS = 40  # drawn points of a spectrum, evenly spaced in the logarithm of the rank
MOST_CURVES = 200  # the first entries, whose spectra are drawn
MANY_CURVES = 24  # entries from which curves are thin
MOST_NAMES = 8  # entries up to which all are labelled, and the number of colours
MOST_PARAMETERS = 9  # hyperparameters that are drawn
MOST_CATEGORIES = 12  # texts of a hyperparameter that is drawn
WIDE = 50  # the ratio of largest to smallest from which an axis is logarithmic


@dataclass(frozen=True)
class Figures:
    """The charts of a listing. identity: unique on the page."""

    listing: Listing
    identity: str

    def to_markup(self) -> Markup:
        """The charts of the metric that orders, the spectra, then the charts of other metrics."""
        leading = self.listing.metrics[:1]
        figures = [
            *self._over_training(leading),
            *self._against_accuracy(leading),
            *self._by_depth(),
            *self._parameters(),
            *self._spectra(),
            *self._convergence(),
        ]
        if not figures:
            return Markup()
        others = self.listing.metrics[1:]
        return joined(
            self._legend(),
            self._grid(figures),
            self._folded("Other metrics over training", list(self._over_training(others))),
            self._folded("Other metrics against accuracy", list(self._against_accuracy(others))),
        )

    def _grid(self, figures: Sequence[Markup]) -> Markup:
        many = len(self.marks) > MANY_CURVES
        return element("div", {"class": "charts many" if many else "charts"}, *figures)

    def _folded(self, title: str, figures: Sequence[Markup]) -> Markup:
        return folded(title, self._grid(figures)) if figures else Markup()

    @cached_property
    def marks(self) -> list[Mark]:
        """How each entry is drawn in every chart."""
        _, labels = colour_groups(self.listing)
        colours = {label: f"c{at % MOST_NAMES}" for at, label in enumerate(dict.fromkeys(labels))}
        return [
            Mark(str(at), colours[labels[at]], entry.name, self.listing.by is not None and at == 0)
            for at, entry in enumerate(self.listing.entries)
        ]

    def _chart(self, name: str, x_label: str, y_label: str, **more: Any) -> Chart:
        named = 1 < len(self.marks) <= MOST_NAMES
        return Chart(f"{self.identity}-{name}", x_label, y_label, **{"named": named} | more)

    def _over_training(self, metrics: Sequence[str]) -> Iterator[Markup]:
        runs: dict[str, list[int]] = {}
        for at, entry in enumerate(self.listing.entries):
            if entry.step is not None:
                runs.setdefault(entry.run, []).append(at)
        if max(map(len, runs.values()), default=0) < 2:
            return
        entries, axis = self.listing.entries, self.listing.step
        for metric in metrics:
            chart = self._chart(f"step-{metric}", axis, metric, named=len(runs) <= MOST_NAMES)
            for run, members in runs.items():
                valued = [at for at in members if entries[at].score.value(metric) is not None]
                path = sorted((entries[at].step or 0.0, at) for at in valued)
                if not path:
                    continue
                values = [ends_of(entries[at], metric)[1] for _, at in path]
                places = " ".join(str(at) for _, at in path)
                mark = Mark(places, self.marks[path[0][1]].colour, run)
                chart.curve(mark, [step for step, _ in path], values, f"run {run}")
                for step, at in path:
                    title = self._title(at, metric, f"{axis} {format_value(step)}")
                    selected = self.marks[at].selected
                    ends = ends_of(entries[at], metric)
                    chart.point(self.marks[at], step, ends, title, has_name=selected)
            self._add_baselines(chart, metric)
            yield _figure("step", f"{metric} over training", chart)

    def _against_accuracy(self, metrics: Sequence[str]) -> Iterator[Markup]:
        entries = self.listing.entries
        places = [at for at, entry in enumerate(entries) if entry.accuracy is not None]
        for metric in metrics if places else ():
            chart = self._chart(f"accuracy-{metric}", "accuracy, percent", metric)
            accuracies = [100 * (entries[at].accuracy or 0.0) for at in places]
            texts = [f"accuracy {format_percent(entries[at].accuracy)} %" for at in places]
            self._points(chart, metric, places, accuracies, texts)
            yield _figure("accuracy", f"{metric} against accuracy", chart)

    def _by_depth(self) -> Iterator[Markup]:
        """The metric that orders against the layers, where several were named."""
        profiles = [entry.depth for entry in self.listing.entries]
        layers = list(dict.fromkeys(layer for one in profiles if one for layer in one.values))
        metric = next((one.metric for one in profiles if one), "")
        if not layers:
            return
        chart = self._chart("depth", "layer", metric, categories=layers)
        for at, one in enumerate(profiles):
            values = {k: v for k, v in one.values.items() if v is not None} if one else {}
            if values:
                places = [float(layers.index(layer)) for layer in values]
                title = self._title(at, metric, "by depth")
                chart.curve(self.marks[at], places, list(values.values()), title)
        yield _figure("depth", f"{metric} by depth", chart)

    def _parameters(self) -> Iterator[Markup]:
        """The metric that orders, or else the first, against each hyperparameter."""
        metric = self.listing.metrics[0] if self.listing.metrics else ""
        for number, name in enumerate(parameters_of(self.listing)[:MOST_PARAMETERS]):
            values = [entry.parameters.get(name) for entry in self.listing.entries]
            places = [at for at, value in enumerate(values) if value is not None]
            numbers = [v for v in values if isinstance(v, float | int) and math.isfinite(v)]
            categories: list[str] = []
            if len(numbers) < len(places):
                categories = list(dict.fromkeys(_category(values[at]) for at in places))
                abscissae = [float(categories.index(_category(values[at]))) for at in places]
            else:
                abscissae = [float(number) for number in numbers]
            if len(categories) > MOST_CATEGORIES or not metric:
                continue
            wide = not categories and min(abscissae) > 0 and max(abscissae) >= WIDE * min(abscissae)
            chart = self._chart(
                f"parameter-{number}", name, metric, log_x=wide, categories=categories
            )
            texts = [f"{name} {_category(values[at])}" for at in places]
            self._points(chart, metric, places, abscissae, texts)
            yield _figure("parameter", f"{metric} against {name}", chart)

    def _points(
        self,
        chart: Chart,
        metric: str,
        places: Sequence[int],
        abscissae: Sequence[float],
        texts: Sequence[str],
    ) -> None:
        for at, x, text in zip(places, abscissae, texts, strict=True):
            if ends := ends_of(self.listing.entries[at], metric):
                chart.point(self.marks[at], x, ends, self._title(at, metric, text))
        self._add_baselines(chart, metric)

    def _add_baselines(self, chart: Chart, metric: str) -> None:
        for name, values in self.listing.baselines.items():
            if metric in values:
                chart.level(values[metric], f"{name}, {format_value(values[metric])}")

    def _spectra(self) -> Iterator[Markup]:
        entries = self.listing.entries[:MOST_CURVES]
        limit = f" of the first {MOST_CURVES}" if len(self.listing.entries) > MOST_CURVES else ""
        for matrix, title in PANELS.items():
            drawn = [
                (mark, *thinned(entry.score.spectra[matrix]))
                for mark, entry in zip(self.marks, entries, strict=False)
                if entry.score.spectra.get(matrix)
            ]
            drawn = [(mark, ranks, values) for mark, ranks, values in drawn if ranks]
            if not drawn:
                continue
            name = f"spectrum-{matrix}"
            chart = self._chart(
                name, "rank of the eigenvalue", "eigenvalue", log_x=True, log_y=True
            )
            for mark, ranks, values in drawn:
                chart.curve(mark, ranks, values, mark.name)
            score = entries[int(drawn[0][0].at)].score
            if matrix == "lda" and score.n_views:
                chart.level(score.noise_floor, "1/q, view noise")
                if score.noise_edge is not None:
                    chart.level(score.noise_edge, "edge of view noise")
            yield _figure("spectra", f"Spectrum: {title}{limit}", chart)

    def _convergence(self) -> Iterator[Markup]:
        """Each metric on parts of a file, as a share of its value on all of it."""
        for mark, entry in zip(self.marks, self.listing.entries, strict=True):
            for axis, label in AXES.items() if entry.score.convergence else ():
                assert entry.score.convergence is not None
                curves = convergence_shares(entry.score.convergence, axis)
                counts = sorted({count for points in curves.values() for count, _ in points})
                style = {"log_x": True, "named": True, "ticks": counts}
                name, share = f"{axis}-{mark.at}", "share of the value of all"
                chart = self._chart(name, label, share, **style)
                for place, (metric, points) in enumerate(curves.items()):
                    line = Mark(mark.at, f"c{place % MOST_NAMES}", metric)
                    x, y = zip(*points, strict=True)
                    chart.curve(line, x, y, metric, name_at=y[0])  # all are 1 at the end
                name = f"{entry.name}: " if len(self.marks) > 1 else ""
                yield _figure("convergence", f"{name}metrics against {label}", chart)

    def _title(self, at: int, metric: str, more: str) -> str:
        entry = self.listing.entries[at]
        value = format_with_interval(
            metric, entry.score.value(metric), entry.score.interval(metric)
        ).replace("+-", "\u00b1")
        rank = f" (rank {entry.rank})" if entry.rank else ""
        return f"{entry.name}{rank}: {metric} {value}, {more}"

    def _legend(self) -> Markup:
        """The meaning of colours and of marks that are not named where they are drawn."""
        title, labels = colour_groups(self.listing)
        items = []
        if title:
            items.append(element("span", None, f"Colour: {title}"))
            for at, label in enumerate(dict.fromkeys(labels)):
                swatch = element("i", {"class": f"c{at % MOST_NAMES}"})
                items.append(element("span", None, swatch, label))
        if self.listing.by and len(self.marks) > 1:
            chosen = element("i", {"class": "selected"})
            items.append(element("span", None, chosen, f"selected: {self.marks[0].name}"))
        spaced = [piece for item in items for piece in (item, " ")]
        return element("p", {"class": "legend"}, *spaced) if items else Markup()


def colour_groups(listing: Listing) -> tuple[str, list[str]]:
    """What colours distinguish, and each entry's group: its method, else its run, else its name.

    All entries are in one group if each of these has but one value or more than there are colours.
    """
    entries = listing.entries
    for title, labels in (
        ("method", [_method(entry) for entry in entries]),
        ("run", [entry.run for entry in entries]),
        ("", [entry.name for entry in entries]),
    ):
        if 1 < len(set(labels)) <= MOST_NAMES:
            return title, labels
    return "", [""] * len(entries)


def _method(entry: Entry) -> str:
    """The method that trained a checkpoint, as it records it, else its format."""
    method = entry.parameters.get("method")
    return method if isinstance(method, str) else str(entry.score.provenance.get("model_format"))


def parameters_of(listing: Listing) -> list[str]:
    """Hyperparameters that have two values or more, without the step of the chart of training."""
    names = dict.fromkeys(name for entry in listing.entries for name in entry.parameters)
    return [
        name
        for name in names
        if name != listing.step
        if len({repr(entry.parameters.get(name)) for entry in listing.entries} - {"None"}) > 1
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
    return ranks, [values[rank - 1] for rank in ranks]


def _category(value: Value) -> str:
    return format_value(value) if isinstance(value, float) else str(value)


def _figure(kind: str, title: str, chart: Chart) -> Markup:
    return element(
        "figure",
        {"data-chart": kind},
        element("figcaption", None, title),
        chart.to_markup(f"{title}; the table has the numbers"),
    )
