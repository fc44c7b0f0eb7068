"""Rank correlation of each metric with downstream accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lidar_cli.ranking.group_metrics import with_value

if TYPE_CHECKING:
    from lidar_cli.scoring.compute import Score

Numbers = NDArray[np.float64]
Span = tuple[float, float]

RESAMPLES = 1000
MIN_CHECKPOINTS = 8  # with fewer, a bootstrap interval covers far less than its level
BLOCK = 512  # checkpoints per block of pairwise comparisons


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of one metric with accuracy over `count` checkpoints.

    Positive if better values go with higher accuracy. None if fewer than three checkpoints have a
    value, or all values are equal.
    reason: why there is no interval.
    """

    metric: str
    spearman: float | None
    kendall: float | None
    count: int
    spearman_interval: Span | None = None
    kendall_interval: Span | None = None
    reason: str | None = None


def correlate(
    scores: Sequence[Score],
    accuracies: Sequence[float],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Correlation, ...]:
    """Spearman's rho and Kendall's tau-b of every metric with the accuracies.

    A checkpoint without a value of a metric is left out of that metric's correlation. The intervals
    are percentiles of the statistic over checkpoints drawn with replacement (bootstrap); draws in
    which it is undefined are dropped. Metrics with equally many values use the same draws.
    """
    from scipy.stats import kendalltau, spearmanr

    rows = []
    for metric in with_value(scores):
        name = metric.name
        pairs = [
            (-metric.sort_key(value), accuracy)
            for score, accuracy in zip(scores, accuracies, strict=True)
            if (value := score.value(name)) is not None
        ]
        merits, accuracy = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if len(pairs) < 3 or len(set(merits)) < 2 or len(set(accuracy)) < 2:
            undefined = "fewer than 3 checkpoints have a value, or all values are equal"
            rows.append(Correlation(name, None, None, len(pairs), reason=undefined))
            continue
        rho = float(spearmanr(merits, accuracy).statistic)
        tau = float(kendalltau(merits, accuracy).statistic)
        rho_interval: Span | None = None
        tau_interval: Span | None = None
        reason = f"{len(pairs)} checkpoints: an interval by resampling them needs {MIN_CHECKPOINTS}"
        if len(pairs) >= MIN_CHECKPOINTS:
            both = resampled(np.array(merits), np.array(accuracy), draws(len(pairs), seed))
            rho_interval, tau_interval = (_interval(statistics, level) for statistics in both)
            reason = "most resamples leave the correlation undefined"
        intervals = rho_interval, tau_interval
        without = reason if None in intervals else None
        rows.append(Correlation(name, rho, tau, len(pairs), *intervals, without))
    return tuple(rows)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho; None with fewer than three pairs, or if all values of a side are equal."""
    from scipy.stats import spearmanr

    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(spearmanr(x, y).statistic)


def interval_over_draws(
    x: Sequence[Sequence[float]], y: Sequence[float], level: float, seed: int
) -> Span | None:
    """The interval of Spearman's rho of one draw of x [R, K] and y [K].

    Percentiles over checkpoints drawn with replacement, each time with one of the draws of x, all
    of them equally often: it covers both. None with fewer than MIN_CHECKPOINTS.
    """
    if len(y) < MIN_CHECKPOINTS:
        return None
    times = draws(len(y), seed)
    each = [
        resampled(np.array(row), np.array(y), times[at :: len(x)])[0] for at, row in enumerate(x)
    ]
    return _interval(np.concatenate(each), level)


def draws(count: int, seed: int) -> Numbers:
    """How often each of `count` checkpoints is in each resample [RESAMPLES, count]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def resampled(x: Numbers, y: Numbers, times: Numbers) -> tuple[Numbers, Numbers]:
    """Spearman's rho and Kendall's tau-b of each resample [B], NaN where one is undefined.

    m_i counts how often checkpoint i is in a resample; Sx, Sy are the signs of differences [K, K].

        r_i = sum_j m_j Sx_ij         twice the centred average rank of i: the number below it minus
                                      the number above it; s_i likewise from Sy
        rho = sum_i m_i r_i s_i / sqrt(sum_i m_i r_i^2  sum_i m_i s_i^2)
        tau = m^T (Sx Sy) m / sqrt(m^T Sx^2 m  m^T Sy^2 m)          products element by element

    times: m [B, K]. Copies of a checkpoint are ties, as if the resample were written out.
    """
    sums = np.zeros((6, len(times)))
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        m = times[:, block]
        sx = np.sign(x[block, None] - x[None, :])
        sy = np.sign(y[block, None] - y[None, :])
        r, s = times @ sx.T, times @ sy.T
        products = [r * s, r**2, s**2, *(times @ z.T for z in (sx * sy, sx**2, sy**2))]
        sums += [(m * product).sum(1) for product in products]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / np.sqrt(sums[1] * sums[2]), sums[3] / np.sqrt(sums[4] * sums[5])


def _interval(statistics: Numbers, level: float) -> Span | None:
    defined = statistics[np.isfinite(statistics)]
    if 2 * len(defined) < len(statistics):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
