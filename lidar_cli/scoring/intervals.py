"""Influences to standard errors, intervals and ties.

With u_i the influence of sample i on a metric T, less their mean (`core.influence`):

    se(T)      = sd(u) / sqrt(n)
    interval   = T -+ t se(T),   t the Student quantile of (1 + level) / 2
    degrees    = 2 n / (kurtosis(u) - 1), at most n - 1
    se(T - T') = sd(u - u') / sqrt(n)     of two checkpoints that saw the same samples and views

Where few samples carry much of a metric, the standard error is itself uncertain: the variance of
sd(u)^2 is that of a chi-square of these degrees (Satterthwaite 1946). For normal influences they
are n - 1, and t is hardly the normal quantile.

An interval is for the expectation of T at this n and q, over the draw of samples. The bias that T
has for being read at finite n and q is no part of it: that one is alike for every checkpoint of a
comparable group. Samples are taken for independent; where they come in groups, `groups.summed`
makes u, and n is the number of groups. How another training seed would move T is no part either.

Simulated (tests/benchmarks/intervals.py, results beside it, n >= 10 d, 1,000 draws): 95 % intervals
cover 93 to 98 % for pillai, information and noise_fraction, at least 93 % elsewhere, up to 99.8 %
where few directions carry all signal. They fall short at n of 100 and 200 with d = 8: 92 to 93 %
for participation_ratio and rankme_augmented where samples are of very unequal strength, and there
86 % for reliable_rank at n = 100, which is skewed so near its bound d. Where the strength of
samples is heavy-tailed they fall short at any n: with a signal of Student's law of 3 degrees 76 to
85 % for lidar and rankme at n of 1,000 and 2,000. The degrees of freedom show it: below 10 a note
says so. The test of ties errs in 3.5 % on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Metric

FEWEST_GROUPS = 10  # of samples, below which their spread says nothing
PAIRS = 2**18  # of checkpoints, which are compared at a time: 2 MB for each number of theirs
CLOSE = 1e-5  # of the sum of two variances: what below it is left of them has lost its digits
TINY = torch.finfo(torch.float64).tiny
BEYOND = "beyond the range of float64: the embedding's scale is extreme"
COUNT = "a count has no derivative, and so no interval"
FEWEST_DEGREES = 10.0  # of freedom, below which an interval is likely too short
FEW_CARRY = "few samples carry this interval; it may be too short"
OF_EIGENVALUES = 5  # times d: fewer samples leave alpha-ReQ's fixed ranks to the noise of the rest


@dataclass(frozen=True)
class Interval:
    """A standard error and the ends of an interval, or None and the reason.

    degrees: of freedom of the standard error; note: what is to be said of an interval.
    """

    se: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None
    degrees: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Confidence:
    """How sure each metric is: its interval, by name, at a level such as 0.95.

    groups: how many groups of samples were taken for independent, None if each sample was.
    """

    level: float
    intervals: dict[str, Interval]
    groups: int | None = None


def without_interval(
    values: Mapping[str, float | None],
    notes: Mapping[str, str],
    n_samples: int,
    n_rows: int,
    dim: int,
    groups: int | None = None,
) -> dict[str, str]:
    """Metrics that get no interval, with the reason: no value, a count, or too few samples.

    n_rows: what the metrics of one row a sample read, clean embeddings among them.
    groups: that the samples with views form, if they form any.

    alpha_req needs 5 d. It reads sorted eigenvalues at fixed ranks, which repel each other: their
    errors cancel over one another, and leaving samples out does not show that. Simulated at
    d = 128, its standard error is 1.2 to 2.7 times the true one from 2 d to 5 d; 0.9 to 1.3 times
    above it, but 2.3 where the whole spectrum is flat, at any n.
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
        elif name == "alpha_req" and n <= OF_EIGENVALUES * dim:
            found[name] = (
                f"n = {n} is not above {OF_EIGENVALUES} d = {OF_EIGENVALUES * dim}, below which an "
                "interval of alpha_req is several times too wide"
            )
        elif groups is not None and groups < FEWEST_GROUPS:
            found[name] = f"{groups} groups: an interval over groups of samples needs 10"
    return found


def confidence(
    values: Mapping[str, float | None],
    influences: Mapping[str, Tensor],
    missing: Mapping[str, str],
    level: float,
    groups: int | None = None,
) -> Confidence:
    """The interval of every metric of `values`: from its influences [n], or `missing` and why.

    groups: how many there are, where the influences are those of groups of samples.
    """
    intervals = {}
    for name, value in values.items():
        if name in missing or value is None:
            intervals[name] = Interval(reason=missing[name])
            continue
        found, n = influences[name], len(influences[name])
        se = float(found.std() / n**0.5)
        if not math.isfinite(se):
            intervals[name] = Interval(reason=BEYOND)
            continue
        freedom = degrees(found.square().sum(), found.pow(4).sum(), n)
        reach = float(quantile(level, freedom)) * se
        note = FEW_CARRY if freedom < FEWEST_DEGREES else None
        ends = value - reach, value + reach
        intervals[name] = Interval(se, *ends, degrees=float(freedom), note=note)
    return Confidence(level, intervals, groups)


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
    count, n = columns.shape
    squares = columns.square()
    cubes = columns * squares
    own, fourth = squares.sum(dim=1), squares.square().sum(dim=1)
    apart = torch.tensor(values, dtype=torch.float64)

    def holds_zero(rows: Tensor, difference: Tensor, sign: float) -> Tensor:
        """Whether the interval does, for u + sign u', whose powers are sums of products."""
        products, paired = columns[rows] @ columns.T, 6.0 * squares[rows] @ squares.T
        cubed = cubes[rows] @ columns.T + columns[rows] @ cubes.T
        second = (own[rows, None] + own + 2.0 * sign * products).clamp_min(0.0)
        power = fourth[rows, None] + fourth + paired + 4.0 * sign * cubed
        # Of influences all but equal these sums have lost their digits.
        close = (second < CLOSE * (own[rows, None] + own)).nonzero()
        for at, other in (pairs.T for pairs in torch.split(close, max(1, PAIRS // n))):
            gap = (columns[rows[at]] + sign * columns[other]).square()
            second[at, other], power[at, other] = gap.sum(dim=1), gap.square().sum(dim=1)
        reach = quantile(level, degrees(second, power, n))
        return difference.abs() <= reach * (second / (n * (n - 1))).sqrt()

    found: list[list[int]] = []
    for rows in torch.split(torch.arange(count), max(1, PAIRS // count)):
        tied = holds_zero(rows, apart[rows, None] - apart, -1.0)
        if by.target is not None:
            gap = apart - by.target
            tied |= holds_zero(rows, gap[rows, None] + gap, 1.0)
        tied[torch.arange(len(rows)), rows] = False
        found += [row.nonzero().flatten().tolist() for row in tied]
    return found


def degrees(second: Tensor, fourth: Tensor, n: int) -> Tensor:
    """Degrees of freedom of a standard error, from the sums of u^2 and u^4 over n samples.

    Above 2, since a kurtosis is at most n.
    """
    kurtosis = n * fourth / second.square().clamp_min(TINY)
    return (2.0 * n / (kurtosis - 1.0).clamp_min(2.0)).clamp(2.0, max(2.0, n - 1.0))


def quantile(level: float, degrees: Tensor) -> Tensor:
    """t, so that Student's variable lies within -+t with this probability; from 2 degrees on.

    By an expansion about the normal quantile near the middle, and one in the power 2/degrees of the
    probability outside in the tails: to a thousandth of t.
    Source: Hill 1970, "Student's t-quantiles", CACM algorithm 396.
    """
    outside = 1.0 - level
    z = NormalDist().inv_cdf(outside / 2.0)
    nu = degrees.to(torch.float64)
    a = 1.0 / (nu - 0.5)
    b = 48.0 / a.square()
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * (a * math.pi / 2.0).sqrt() * nu
    y = (d * outside) ** (2.0 / nu)

    near = c + torch.where(nu < 5.0, 0.3 * (nu - 4.5) * (z + 0.6), 0.0)
    near = (((0.05 * d * z - 5.0) * z - 7.0) * z - 2.0) * z + b + near
    square = z * z
    middle = (
        ((((0.4 * square + 6.3) * square + 36.0) * square + 94.5) / near - square - 3.0) / b + 1.0
    ) * z
    middle = torch.expm1(a * middle.square())

    tail = 1.0 / (((nu + 6.0) / (nu * y) - 0.089 * d - 0.822) * (nu + 2.0) * 3.0) + 0.5 / (nu + 4.0)
    tail = (tail * y - 1.0) * (nu + 1.0) / (nu + 2.0) + 1.0 / y
    return (nu * torch.where(y > 0.05 + a, middle, tail)).sqrt()
