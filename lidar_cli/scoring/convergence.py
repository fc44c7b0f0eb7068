"""What a part of a file would have said, and what follows for n and q.

Two rules are derived, and `advise` uses no other.

More views. The LDA trace is h sum(lambda) = S + d/q on average: S of the samples, which q does not
change, and d/q of view noise. With f = (d/q) / (S + d/q), the noise fraction at q views,

    f / (1 - f) = d / (q S),   so at q' views   f' / (1 - f') = (q / q') f / (1 - f)

More samples. The bias of a smooth metric T is c/n to first order, so T(n) - T(n/2) = c/n: what is
still missing at n is as much as the last doubling added, and at n' it is n/n' of that. Chance alone
moves T as well: the first n/2 samples are half of the n, hence

    var(T(n) - T(n/2)) = s^2 (2/n - 1/n) = s^2/n = se(T(n))^2

so the reach of the interval at n is that of the step too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lidar_cli.core.metrics import METRICS

Values = Mapping[str, float | None]

MUCH_NOISE = 0.5  # share of the LDA trace above which LiDAR mostly counts view noise
LITTLE_NOISE = 0.25  # what more views should leave of it
MOST_VIEWS = 500  # that anyone would draw of an image
STEADY = 0.05  # relative change that still makes no difference to a choice
DEGREES = 5  # n (q - 1) over d, below which the within covariance is poorly determined
APART = ("noise_fraction", "n_above_noise")  # the first has its own rule, the second is a count


@dataclass(frozen=True)
class Point:
    """Metrics of the first samples of a file, or of the first views of each.

    n_rows: what RankMe and alpha-ReQ read. A metric is absent where the part does not change it,
    and None where it cannot be had.
    """

    n_samples: int
    n_views: int
    n_rows: int
    values: Values


@dataclass(frozen=True)
class Convergence:
    """Metrics against n and against q, the whole file last in both, and one sentence about them."""

    by_samples: tuple[Point, ...]
    by_views: tuple[Point, ...]
    advice: str


def parts_of(count: int) -> tuple[int, ...]:
    """A quarter, a half and all of so many samples or views; no part is of fewer than 2."""
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


def advise(by_samples: Sequence[Point], dim: int, reach: Mapping[str, float]) -> str:
    """One sentence: the first of these that is so.

    View noise cannot be told; nothing is above it; it is more than half of the LDA trace; the
    within covariance is poorly determined; a metric still moves with n; n and q are enough.

    by_samples: the whole file last; dim: d; reach: half of a metric's interval, where it has one.
    """
    whole = by_samples[-1]
    n, q, values = whole.n_samples, whole.n_views, whole.values
    fraction = values.get("noise_fraction")
    if q > 0 and "noise_fraction" in values:
        if fraction is None:
            return _unknown_noise(n, q, dim)
        if values.get("n_above_noise") == 0:
            return (
                f"no direction clears the edge of view noise at n = {n} and q = {q}, so lidar "
                "counts noise alone: the views of a sample have nothing of their own in common here"
            )
        if fraction > MUCH_NOISE:
            return _much_noise(fraction, n, q, dim, values.get("lidar_corrected") is not None)
    if q > 1 and n * (q - 1) < DEGREES * dim:
        return (
            f"n (q - 1) = {n * (q - 1)} is below 5 d = {DEGREES * dim}, so the within covariance "
            f"is poorly determined: take {_enough_degrees(n, q, dim)}"
        )
    return _samples(by_samples, fraction, reach)


def _unknown_noise(n: int, q: int, dim: int) -> str:
    if n * (q - 1) > dim + 1:
        return "view noise cannot be measured in this embedding: see the reasons beside its metrics"
    return (
        f"n (q - 1) = {n * (q - 1)} does not exceed d + 1 = {dim + 1}, so view noise cannot be "
        f"told: take {_enough_degrees(n, q, dim)}"
    )


def much_noise(fraction: float, q: int) -> str:
    """How much of the LDA trace is view noise; an estimate, which can exceed all of it."""
    if fraction >= 1:
        return f"view noise accounts for the whole LDA trace at q = {q}"
    return f"view noise is {100 * fraction:.0f} % of the LDA trace at q = {q}"


def _much_noise(fraction: float, n: int, q: int, dim: int, corrected: bool) -> str:
    found = much_noise(fraction, q)
    needed = max(views_for(fraction, q, LITTLE_NOISE), 1 + DEGREES * dim / n)
    if needed > MOST_VIEWS:
        left = noise_fraction_at(fraction, q, MOST_VIEWS)
        return f"{found}, and even q = {MOST_VIEWS} would leave {100 * left:.0f} %: " + (
            "read lidar_corrected" if corrected else "the views of a sample share next to nothing"
        )
    more = _round(needed)
    left = noise_fraction_at(fraction, q, more)
    instead = ", or read lidar_corrected" if corrected else ""
    return f"{found}: take q = {more} ({100 * left:.0f} % expected){instead}"


def _enough_degrees(n: int, q: int, dim: int) -> str:
    views, samples = math.ceil(1 + DEGREES * dim / n), math.ceil(DEGREES * dim / max(1, q - 1))
    return f"q = {views}, or n = {samples}" if q > 1 else f"q = {max(2, views)}"


def _samples(
    by_samples: Sequence[Point], fraction: float | None, reach: Mapping[str, float]
) -> str:
    whole = by_samples[-1]
    said = (
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
        if abs(step) > STEADY and abs(step) * abs(whole.values[name] or 0.0) > reach.get(name, 0.0)
    }
    if not moving:
        largest = max(map(abs, steps.values()), default=0.0)
        return (
            f"n = {whole.n_samples}{views} suffice: {said}no metric moves by more than "
            f"{100 * max(largest, STEADY):.0f} % from n = {half.n_samples} beyond chance"
        )
    name = max(moving, key=lambda name: abs(moving[name]))
    rows = METRICS[name].reads in ("rows", "covariance")
    at, before = (whole.n_rows, half.n_rows) if rows else (whole.n_samples, half.n_samples)
    what = "rows" if rows and whole.n_rows != whole.n_samples else "n"
    others = f" (and {len(moving) - 1} more)" if len(moving) > 1 else ""
    more = _round(at * abs(moving[name]) / STEADY)
    return (
        f"{name}{others} still moves by {100 * moving[name]:+.0f} % from {what} = {before} to "
        f"{at}, and about as much is missing: take {what} = {more}, or compare at equal {what} "
        "alone"
    )


def _steps(half: Values, whole: Values) -> dict[str, float]:
    """Relative change of each metric that has both values."""
    return {
        name: (value - before) / abs(value)
        for name, value in whole.items()
        if name not in APART and value and (before := half.get(name)) is not None
    }


def _round(count: float) -> int:
    """Up to a number that a person would give: two digits, whole tens above 20."""
    step = 10 ** max(0, math.floor(math.log10(count)) - 1) if count > 100 else 10
    return math.ceil(count) if count <= 20 else math.ceil(count / step) * step
