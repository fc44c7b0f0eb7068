"""Spectra on log axes, and metrics against n and q, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, MissingExtra, SettingsError, printable
from lidar_cli.ranking.comparison import Comparison
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.ranking import View
from lidar_cli.report.scores import AXES, convergence_shares, depth
from lidar_cli.runtime.files import is_stream, write_atomic
from lidar_cli.runtime.streams import write_remark
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1e-11  # eigenvalues below this share of the largest are not drawn
MOST_NAMES = 12  # scores above which there is no legend
PANELS = {
    "lda": "LDA (LiDAR)",
    "gram": "squared singular values (RankMe)",
    "covariance": "covariance (alpha-ReQ)",
}


def check_plot(path: Path) -> None:
    """Raise SettingsError or MissingExtra if no plot can be written to `path`, before the work."""
    if not is_stream(path):
        if path.suffix.lower() not in (".png", ".svg"):
            message = f"--plot {path}: expected a name that ends in .png or .svg"
            raise SettingsError(message, code="wrong-suffix")
        if not path.parent.is_dir():
            raise SettingsError(f"--plot {path}: no folder {path.parent}", code="no-such-folder")
    _check_matplotlib("--plot")


def _check_matplotlib(purpose: str) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("plot", "matplotlib", purpose) from error


def plot_spectra(scores: Sequence[Score], path: Path) -> None:
    """Write the picture of `spectra_figure`. Raises InputError if the file cannot be written."""
    picture = _picture(spectra_figure(scores), "svg" if path.suffix.lower() == ".svg" else "png")
    try:
        write_atomic(path, picture)
    except OSError as error:
        message = f"--plot {path}: cannot be written: {error.strerror}"
        raise InputError(message, code="unwritable") from error
    write_remark(f"wrote {path}")


def spectra_figure(scores: Sequence[Score]) -> Figure:
    """One panel per matrix, with a line per score and the noise edge dashed; then convergence."""
    panels = [name for name in PANELS if any(name in score.spectra for score in scores)]
    converging = [score for score in scores if score.convergence is not None]
    metric, profiles = depth_profiles(scores)
    count = len(panels) + 2 * bool(converging) + bool(profiles)
    figure = _figure(4.2 * max(1, count), 3.8)
    all_axes = figure.subplots(1, count, squeeze=False)[0] if count else []
    labels = _labels(scores)
    for axes, name in zip(all_axes, panels, strict=False):
        for at, score in enumerate(scores):
            spectrum = score.spectra.get(name, [])
            least = ROUNDING * max(spectrum, default=0.0)
            spectrum = [value for value in spectrum if value > least]
            colour = f"C{at % 10}"
            ranks = range(1, len(spectrum) + 1)
            axes.loglog(ranks, spectrum, color=colour, lw=1.4, label=labels[at])
            if name == "lda" and score.noise_edge is not None:
                axes.axhline(score.noise_edge, color=colour, ls="--", lw=0.8, alpha=0.7)
        _style(axes, PANELS[name], "rank of the eigenvalue")
    if converging:
        _draw_convergence(figure, all_axes[len(panels) : len(panels) + 2], converging)
    if profiles:
        _draw_depth(all_axes[-1], metric, profiles)
    if panels:
        edge = " (dashed: edge of view noise)" if panels[0] == "lda" else ""
        all_axes[0].set_ylabel(f"eigenvalue{edge}")
        if len(scores) <= MOST_NAMES:
            all_axes[len(panels) - 1].legend(fontsize=7, frameon=False, loc="lower left")
    return figure


def ranking_figure(ranking: Ranking, view: View) -> Figure:
    """A point per checkpoint with its interval, best on top, a panel per comparable group."""
    groups = [group.rows[: view.top] for group in ranking.groups]
    figure = _figure(6.4, 1.2 + 0.3 * sum(map(len, groups)))
    sizes = {"height_ratios": [len(rows) for rows in groups]}
    for axes, rows in zip(
        figure.subplots(len(groups), 1, squeeze=False, gridspec_kw=sizes)[:, 0], groups, strict=True
    ):
        names = [ranking.name(row.path) for row in rows]
        _draw_points(axes, names, [(row.value, row.interval) for row in rows])
        _style(axes, "", ranking.by.name)
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """The difference of each metric in percent of the second value, with its interval."""
    points: dict[str, tuple[float, Interval]] = {}
    for one in comparison.differences:
        unit = abs(one.values[1] or 0.0) / 100
        if one.difference is not None and unit:
            low, high = one.interval.ci_low, one.interval.ci_high
            ends = Interval(ci_low=low and low / unit, ci_high=high and high / unit)
            points[one.metric.name] = one.difference / unit, ends
    figure = _figure(6.4, 1.2 + 0.3 * len(points))
    axes = figure.subplots()
    _draw_points(axes, list(points), list(points.values()))
    axes.axvline(0.0, color="0.5", lw=0.8)
    first, second = comparison.names
    _style(axes, "", f"{first} minus {second}, % of {second}".replace("$", r"\$"))
    return figure


def _draw_points(
    axes: Any, names: Sequence[str], points: Sequence[tuple[float | None, Interval]]
) -> None:
    """A line per name, the first on top: a point, and its interval if it has one."""
    for at, (value, interval) in enumerate(points):
        if value is not None:
            axes.plot(value, at, "o", color="C0", ms=4)
        if interval.ci_low is not None:
            axes.plot([interval.ci_low, interval.ci_high], [at, at], color="C0", lw=1.2)
    labels = [printable(name).replace("$", r"\$") for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that a notebook shows. Raises MissingExtra without matplotlib."""
    _check_matplotlib("plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    setattr(figure, "_repr_png_", lambda: _picture(figure, "png"))  # noqa: B010 (not of its class)
    return figure


def _picture(figure: Figure, kind: str) -> bytes:
    picture = io.BytesIO()  # in memory, since a pipe cannot seek
    figure.savefig(picture, format=kind, dpi=160)
    return picture.getvalue()


def _draw_convergence(figure: Any, pair: Any, scores: Sequence[Score]) -> None:
    """Draw each metric against n and against q, divided by its value on the complete file."""
    styles = {
        name: {"color": f"C{at % 10}", "ls": "-" if at < 10 else "--"}
        for at, name in enumerate(METRICS)
    }
    lines = {}
    for axes, axis in zip(pair, AXES, strict=True):
        counts: set[int] = set()
        for score in scores:
            assert score.convergence is not None
            for name, points in convergence_shares(score.convergence, axis).items():
                x, y = zip(*points, strict=True)
                (lines[name],) = axes.semilogx(x, y, marker=".", lw=1, **styles[name])
                counts |= set(x)
        _style(axes, "share of the value on all data", AXES[axis])
        axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
        axes.minorticks_off()
    names = [name for name in METRICS if name in lines]
    figure.legend(
        [lines[name] for name in names],
        names,
        fontsize=7,
        frameon=False,
        loc="outside right center",
    )


def depth_profiles(scores: Sequence[Score]) -> tuple[str, dict[str, dict[str, float]]]:
    """The first metric with a value; file -> layer -> its value, in order of depth.

    Files with a single layer are left out.
    """
    metric = next((m for m in METRICS if any(s.value(m) is not None for s in scores)), "")
    files: dict[str, dict[str, float]] = {}
    for score in sorted(scores, key=lambda one: depth(one) or 0):
        if (value := score.value(metric)) is not None:
            files.setdefault(score.file, {})[score.layer] = value
    return metric, {file: values for file, values in files.items() if len(values) > 1}


def _draw_depth(axes: Any, metric: str, profiles: dict[str, dict[str, float]]) -> None:
    """Draw the metric of each file against the layer."""
    names = short_names(list(profiles))
    for at, (file, values) in enumerate(profiles.items()):
        label = printable(names[file]).replace("$", r"\$")
        layers = [printable(layer).replace("$", r"\$") for layer in values]
        axes.plot(layers, list(values.values()), marker=".", color=f"C{at % 10}", label=label)
    _style(axes, f"{metric} by depth", "layer")
    axes.tick_params(axis="x", labelrotation=60, labelsize=7)
    if 1 < len(profiles) <= MOST_NAMES:
        axes.legend(fontsize=7, frameon=False)


def _style(axes: Any, title: str, x: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.grid(True, which="major", alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _labels(scores: Sequence[Score]) -> list[str]:
    """The short name of each score's file, and its layer where there are several."""
    names = short_names([score.file for score in scores])
    several = len({score.layer for score in scores}) > 1
    labels = (names[one.file] + (f" {one.layer}" if several else "") for one in scores)
    # With a $ matplotlib would read a formula.
    return [printable(label).replace("$", r"\$") for label in labels]
