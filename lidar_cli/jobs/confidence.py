"""Influences to standard errors, intervals and ties.

With u_i the influence of sample i on a metric T, less their mean (`core.influence`):

    se(T)      = sd(u) / sqrt(n)
    interval   = T -+ z se(T),   z the normal quantile of (1 + level) / 2
    se(T - T') = sd(u - u') / sqrt(n)     of two checkpoints that saw the same samples and views

An interval is for the expectation of T at this n and q, over the draw of samples. The bias that T
has for being read at finite n and q is no part of it: that one is alike for every checkpoint of a
comparable group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Metric

COUNT = "a count has no derivative, and so no interval"


@dataclass(frozen=True)
class Interval:
    """A standard error and the ends of an interval, or None and the reason."""

    se: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Confidence:
    """How sure each metric is: its interval, by name, at a level such as 0.95."""

    level: float
    intervals: dict[str, Interval]


def without_interval(
    values: Mapping[str, float | None],
    notes: Mapping[str, str],
    n_samples: int,
    n_rows: int,
    dim: int,
) -> dict[str, str]:
    """Metrics that get no interval, with the reason: no value, a count, or too few samples.

    n_rows: what the metrics of one row a sample read, clean embeddings among them.
    """
    found = {}
    for name, value in values.items():
        n = n_rows if METRICS[name].reads in ("rows", "covariance") else n_samples
        if value is None:
            found[name] = notes[name]
        elif name == "n_above_noise":
            found[name] = COUNT
        elif n <= 2 * dim:
            found[name] = f"n = {n} is not above 2 d = {2 * dim}: too few samples for an interval"
    return found


def confidence(
    values: Mapping[str, float | None],
    influences: Mapping[str, Tensor],
    missing: Mapping[str, str],
    level: float,
) -> Confidence:
    """The interval of every metric of `values`: from its influences [n], or `missing` and why."""
    intervals = {}
    for name, value in values.items():
        if name in missing or value is None:
            intervals[name] = Interval(reason=missing[name])
            continue
        found = influences[name]
        se = float(found.std() / len(found) ** 0.5)
        reach = quantile(level) * se
        intervals[name] = Interval(se, value - reach, value + reach)
    return Confidence(level, intervals)


def ties(
    values: Sequence[float], influences: Sequence[Tensor], by: Metric, level: float
) -> list[list[int]]:
    """For each of some checkpoints, which others it cannot be told from.

    Two tie if the interval of the difference of their values holds 0. For a metric with a target
    the question is |T - target| = |T' - target|, which is T - T' = 0 or T + T' - 2 target = 0:
    they tie if the interval of either holds 0, so that neither truth is denied too often.

    influences: [n] each, of the same samples in the same order.
    No correction is made for the number of pairs, and ties are not transitive.
    """
    columns = torch.stack([*influences])
    n = columns.shape[1]
    products = columns @ columns.T / (n * (n - 1))
    own = products.diagonal()
    apart = torch.tensor(values, dtype=torch.float64)
    z = quantile(level)

    def holds_zero(difference: Tensor, sign: float) -> Tensor:
        variance = own[:, None] + own + 2.0 * sign * products
        return difference.abs() <= z * variance.clamp_min(0.0).sqrt()

    tied = holds_zero(apart[:, None] - apart, -1.0)
    if by.target is not None:
        gap = apart - by.target
        tied |= holds_zero(gap[:, None] + gap, 1.0)
    tied.fill_diagonal_(False)
    return [row.nonzero().flatten().tolist() for row in tied]


def quantile(level: float) -> float:
    """z, so that a standard normal lies within -+z with this probability."""
    return NormalDist().inv_cdf((1.0 + level) / 2.0)
