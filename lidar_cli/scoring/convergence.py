"""How metrics change with n and q: those of parts of a file, from one pass, and advice.

The advice uses two rules.

More views. On average h sum(lambda) = S + d/q: S comes from the samples and does not depend on q,
d/q comes from view noise. With f = (d/q) / (S + d/q), the noise fraction at q views,

    f / (1 - f) = d / (q S),   so at q' views   f' / (1 - f') = (q / q') f / (1 - f)

More samples. To first order a smooth metric is T(n) = T(inf) - c/n on average, so that
T(n) - T(n/2) = c/n: what is missing at n is what the last doubling added, and at n' it is n/n' of
that. T also changes by chance. Since the first n/2 samples are half of the n,

    var(T(n) - T(n/2)) = s^2 (2/n - 1/n) = s^2/n = se(T(n))^2

so the interval of T(n) - T(n/2) is as wide as that of T(n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

import torch

from lidar_cli.core.metrics import METRICS, parse_metrics
from lidar_cli.errors import InputError
from lidar_cli.features.embeddings import Chunk, Embeddings
from lidar_cli.runtime.device import find_scoring_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import (
    DEGREES,
    MUCH_NOISE,
    Convergence,
    Point,
    Score,
    noise_clause,
)
from lidar_cli.scoring.intervals import Grouping
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.run import score_moments
from lidar_cli.scoring.streaming import LayerMoments, enough_memory, read_into
from lidar_cli.settings import MetricSettings, ScoreSettings

Values = Mapping[str, float | None]

LITTLE_NOISE = 0.25  # the noise fraction that the advised number of views should give
MOST_VIEWS = 500  # more than these are not advised
STEADY = 0.05  # relative change of a metric that is too small to matter


def converge_file(
    path: Path | Embeddings,
    settings: ScoreSettings,
    progress: Progress | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """The scores of `score_file`, each with its `convergence`. Raises as `score_file`."""
    return converge_layers(open_embeddings(path, settings), settings, progress, groups)


def converge_layers(
    layers: Sequence[Embeddings],
    settings: ScoreSettings,
    progress: Progress | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """The scores of `score_layers`, each with its `convergence`. Raises as `score_layers`."""
    progress = progress or Progress()
    wanted = parse_metrics(settings.metrics)
    device = find_scoring_device(settings.device)
    return [
        converge(embeddings, settings, device, wanted, progress, settings.confidence, groups)
        for embeddings in layers
    ]


def converge(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: AbstractSet[str],
    progress: Progress,
    level: float | None = None,
    groups: Grouping | None = None,
) -> Score:
    """The result of `score_layer`, to rounding, with its `convergence`.

    Memory: the moments of five states instead of one. Raises InputError as `score_layer`.
    """
    if embeddings.counts is not None:
        raise InputError(
            f"{embeddings.file}: samples have unequal numbers of views, and --converge compares "
            "equal parts of them; leave the option out",
            code="unequal-views",
        )
    if embeddings.note:
        progress.note(embeddings.note)
    with enough_memory(embeddings):
        parts = _PartMoments(embeddings, settings, device, wanted)
        read_into(parts, embeddings, settings, progress)
        *firsts, (_, state) = parts.merged()
        whole = score_moments(embeddings, settings, state, wanted, progress, level, groups=groups)
        n_rows = state.rows.n
        last = _point(whole, n_rows, wanted)
        samples = [
            _point(score_moments(part, settings, its, wanted, progress), its.rows.n, wanted)
            for part, its in firsts
        ]
        of_views = parts.of_views
        views = [
            _point(score_moments(part, settings, its, of_views, progress), n_rows, of_views)
            for part, its in parts.by_views
        ]
    intervals = whole.confidence.intervals if whole.confidence else {}
    half_widths = {
        name: interval.ci_high - value
        for name, interval in intervals.items()
        if interval.ci_high is not None and (value := whole.value(name)) is not None
    }
    by_samples = (*samples, last)
    advice = advise(by_samples, embeddings.shape[2], half_widths)
    convergence = Convergence(by_samples, (*views, last) if whole.n_views else (), advice)
    return replace(whole, convergence=convergence)


def _point(score: Score, n_rows: int, wanted: AbstractSet[str]) -> Point:
    values = {name: score.value(name) for name in METRICS if name in wanted}
    return Point(score.n_samples, score.n_views, n_rows, values)


class _PartMoments:
    """Moments of the samples up to n/4, then to n/2, then to n, and of q/4 and q/2 views of all.

    The moments of these segments of samples are merged. Those of views cannot be merged, so each
    number of views has separate moments.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        settings: MetricSettings,
        device: torch.device,
        wanted: AbstractSet[str],
    ) -> None:
        n, q, _ = embeddings.shape
        self._embeddings = embeddings
        self._rows = embeddings.clean.shape[0] if embeddings.clean is not None else n
        self._ends = [(count, count * self._rows // max(1, n)) for count in parts_of(n)]
        self._segments = [LayerMoments(embeddings, settings, device, wanted) for _ in self._ends]
        self.of_views = frozenset(name for name in wanted if not METRICS[name].reads_rows)
        counts = parts_of(q)[:-1] if q and self.of_views else ()
        parts = [embeddings.first(n, count, self._rows) for count in counts]
        self.by_views = [(p, LayerMoments(p, settings, device, self.of_views)) for p in parts]

    def update(self, chunk: Chunk) -> None:
        """Add a chunk of samples, each sample to its segment."""
        first = (0, 0)
        for end, state in zip(self._ends, self._segments, strict=True):
            views, clean = (
                part[max(0, low - chunk.start) : max(0, high - chunk.start)]
                if part is not None
                else None
                for part, low, high in zip((chunk.views, chunk.clean), first, end, strict=True)
            )
            begin = max(first[0], chunk.start)  # the number of the first of these samples
            state.update(Chunk(begin, chunk.stop, views, clean))
            first = end
        if chunk.views is not None:
            for part, state in self.by_views:
                views = chunk.views[:, : part.shape[1]]
                state.update(Chunk(chunk.start, chunk.stop, views, None))

    def merged(self) -> list[tuple[Embeddings, LayerMoments]]:
        """A quarter, half and all of the samples, each with its moments."""
        q, state = self._embeddings.shape[1], self._segments[0]
        parts = []
        for (n, rows), segment in zip(self._ends, self._segments, strict=True):
            state = state if segment is state else state.merge(segment)
            parts.append((self._embeddings.first(n, q, rows), state))
        return parts


def parts_of(count: int) -> tuple[int, ...]:
    """A quarter, half and all of a count of samples or views; no part is of fewer than 2."""
    return tuple(sorted({max(2, count // 4), max(2, count // 2), count} - set(range(count + 1, 3))))


def noise_fraction_at(fraction: float, q: int, more: int) -> float:
    """The noise fraction to expect at another number of views. See the equations above."""
    if fraction >= 1:
        return 1.0
    odds = fraction / (1 - fraction) * q / more
    return odds / (1 + odds)


def views_for(fraction: float, q: int, wanted: float) -> float:
    """The number of views that should bring the noise fraction down to `wanted`."""
    if fraction >= 1:
        return math.inf
    return q * fraction / (1 - fraction) * (1 - wanted) / wanted


def advise(by_samples: Sequence[Point], dim: int, half_widths: Mapping[str, float]) -> str:
    """One sentence of advice, about the first of these conditions that is true.

    View noise cannot be measured; no eigenvalue is above it; it is more than half of the LDA trace;
    the within covariance is poorly determined; a metric still changes with n; n and q are enough.

    by_samples: points of increasing n, all samples last. dim: d. half_widths: half the width of the
    interval of each metric that has one.
    """
    whole = by_samples[-1]
    n, q, values = whole.n_samples, whole.n_views, whole.values
    fraction = values.get("noise_fraction")
    if q > 0 and "noise_fraction" in values:
        if fraction is None:
            return _unknown_noise(n, q, dim)
        if values.get("n_above_noise") == 0:
            return (
                f"no direction clears the edge of view noise at n = {n} and q = {q}: as far as "
                "these views show, lidar counts noise; more views may still show a direction"
            )
        if fraction > MUCH_NOISE:
            return _much_noise(fraction, n, q, dim, values.get("lidar_corrected") is not None)
    if q > 1 and n * (q - 1) < DEGREES * dim:
        return (
            f"n (q - 1) = {n * (q - 1)} is below 5 d = {DEGREES * dim}, so the within covariance "
            f"is poorly determined: take {_enough_degrees(n, q, dim)}"
        )
    return _samples(by_samples, fraction, half_widths)


def _unknown_noise(n: int, q: int, dim: int) -> str:
    if n * (q - 1) > dim + 1:
        return "view noise cannot be measured in this embedding: see the reason of each metric"
    return (
        f"n (q - 1) = {n * (q - 1)} does not exceed d + 1 = {dim + 1}, so view noise cannot be "
        f"measured: take {_enough_degrees(n, q, dim)}"
    )


def _much_noise(fraction: float, n: int, q: int, dim: int, corrected: bool) -> str:
    share = noise_clause(fraction, q)
    needed = max(views_for(fraction, q, LITTLE_NOISE), 1 + DEGREES * dim / n)
    most = max(MOST_VIEWS, 2 * q)
    if needed > most:
        left = noise_fraction_at(fraction, q, most)
        return f"{share}, and even q = {most} would leave {100 * left:.0f} %: " + (
            "read lidar_corrected" if corrected else "other views may have more in common"
        )
    more = round_up(needed)
    left = noise_fraction_at(fraction, q, more)
    instead = ", or read lidar_corrected" if corrected else ""
    return f"{share}: take q = {more} ({100 * left:.0f} % expected){instead}"


def _enough_degrees(n: int, q: int, dim: int) -> str:
    views, samples = math.ceil(1 + DEGREES * dim / n), math.ceil(DEGREES * dim / max(1, q - 1))
    return f"q = {views}, or n = {samples}" if q > 1 else f"q = {max(2, views)}"


def _samples(
    by_samples: Sequence[Point], fraction: float | None, half_widths: Mapping[str, float]
) -> str:
    whole = by_samples[-1]
    noise = (
        "" if fraction is None else f"view noise is {100 * fraction:.0f} % of the LDA trace, and "
    )
    views = f" and q = {whole.n_views}" if whole.n_views else ""
    if len(by_samples) < 2:
        return f"n = {whole.n_samples} is too few to be divided: take more samples"
    half = by_samples[-2]
    steps = _steps(half.values, whole.values)
    moving = {
        name: step
        for name, step in steps.items()
        if abs(step) > STEADY
        and abs(step) * abs(whole.values[name] or 0.0) > half_widths.get(name, 0.0)
    }
    if not moving:
        largest = max(map(abs, steps.values()), default=0.0)
        return (
            f"n = {whole.n_samples}{views} suffice: {noise}no metric moves by more than "
            f"{100 * max(largest, STEADY):.0f} % from n = {half.n_samples} beyond chance"
        )
    name = max(moving, key=lambda name: abs(moving[name]))
    rows = METRICS[name].reads_rows
    at, before = (whole.n_rows, half.n_rows) if rows else (whole.n_samples, half.n_samples)
    what = "rows" if rows and whole.n_rows != whole.n_samples else "n"
    others = f" (and {len(moving) - 1} more)" if len(moving) > 1 else ""
    more = round_up(at * abs(moving[name]) / STEADY)
    return (
        f"{name}{others} still moves by {100 * moving[name]:+.0f} % from {what} = {before} to "
        f"{at}, and about as much is missing: take {what} = {more}, or compare at equal {what} "
        "alone"
    )


def _steps(half: Values, whole: Values) -> dict[str, float]:
    """The relative change of each smooth metric that has both values, except noise_fraction.

    Metrics of the subset are left out: they depend on its size by their definition.
    """
    return {
        name: (value - before) / abs(value)
        for name, value in whole.items()
        if name != "noise_fraction"
        and METRICS[name].has_interval
        and not METRICS[name].reads_subset
        and value
        and (before := half.get(name)) is not None
    }


def round_up(count: float) -> int:
    """A count rounded up: to a multiple of ten above 20, and to two digits above 100."""
    step = 10 ** max(0, math.floor(math.log10(count)) - 1) if count > 100 else 10
    return math.ceil(count) if count <= 20 else math.ceil(count / step) * step
