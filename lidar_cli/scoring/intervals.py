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
has for being computed at finite n and q is no part of it: that one is alike for every checkpoint of
a comparable group. How another training seed would move T is no part either.

Samples are taken for independent. Where they come in groups (frames of a clip, photographs of a
patient, near-duplicates), influences add up: with U_g the sum over the samples of group g, G groups
and n samples, a metric less its expectation is sum_g U_g / n, and where groups are drawn
independently

    var = G / (G - 1) sum_g U_g^2 / n^2 = var(v) / G,   v_g = U_g G / n

so that v [G] takes the place of the influences [n] in every interval and tie (`summed`).

Simulated (tests/benchmarks/intervals.py, with its results, n >= 10 d, 1,000 draws): 95 % intervals
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
from pathlib import Path

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.data.tables import read_table
from lidar_cli.errors import InputError
from lidar_cli.features.embeddings import Embeddings, Names

FEWEST_GROUPS = 10  # of samples, below which their spread says nothing
PAIRS = 2**18  # of checkpoints, which are compared at a time: 2 MB for each number of theirs
CLOSE = 1e-5  # of the sum of two variances: what below it is left of them has lost its digits
TINY = torch.finfo(torch.float64).tiny
BEYOND = "beyond the range of float64: the embedding's scale is extreme"
COUNT = "a count has no derivative, and so no interval"
FEWEST_DEGREES = 10.0  # of freedom, below which an interval is likely too short
FEW_CARRY = "few samples carry this interval; it may be too short"
LABELS = "labels"  # the value of --groups that names the stored labels


@dataclass(frozen=True)
class Interval:
    """A standard error and the ends of an interval, or None and the reason.

    degrees: of freedom of the standard error; note: a doubt about the interval.
    """

    se: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None
    degrees: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Confidence:
    """The interval of each metric by name, at a level such as 0.95.

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

    n_rows: how many rows the metrics of one row a sample read, clean embeddings among them.
    groups: how many the samples with views form, if they form any.

    alpha_req needs n above 5 d. It reads sorted eigenvalues at fixed ranks, which repel each other:
    their errors cancel over one another, and leaving samples out does not show that. Simulated at
    d = 128, its standard error is 1.2 to 2.7 times the true one from 2 d to 5 d; 0.9 to 1.3 times
    above it, but 2.3 where the whole spectrum is flat, at any n.
    """
    reasons = {}
    for name, value in values.items():
        metric = METRICS[name]
        n, least = n_rows if metric.of_rows else n_samples, metric.interval_from
        if value is None:
            reasons[name] = notes[name]
        elif not metric.has_interval:
            reasons[name] = COUNT
        elif n <= 2 * dim:
            reasons[name] = f"n = {n} is not above 2 d = {2 * dim}: too few samples for an interval"
        elif n <= least * dim:
            reasons[name] = (
                f"n = {n} is not above {least} d = {least * dim}, below which an interval of "
                f"{name} is several times too wide"
            )
        elif groups is not None and groups < FEWEST_GROUPS:
            reasons[name] = f"{groups} groups: an interval over groups of samples needs 10"
    return reasons


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
        of_samples, n = influences[name], len(influences[name])
        se = float(of_samples.std() / n**0.5)
        if not math.isfinite(se):
            intervals[name] = Interval(reason=BEYOND)
            continue
        freedom = degrees(of_samples.square().sum(), of_samples.pow(4).sum(), n)
        reach = float(quantile(level, freedom)) * se
        note = FEW_CARRY if freedom < FEWEST_DEGREES else None
        ends = value - reach, value + reach
        intervals[name] = Interval(se, *ends, degrees=float(freedom), note=note)
    return Confidence(level, intervals, groups)


def ties(
    values: Sequence[float], influences: Sequence[Tensor], by: Metric, level: float
) -> list[list[int]]:
    """For each of some checkpoints, the positions of those that do not differ from it.

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
    sums, fourth = squares.sum(dim=1), squares.square().sum(dim=1)
    numbers = torch.tensor(values, dtype=torch.float64)
    least, most = quantile(level, torch.tensor([max(2.0, n - 1.0), 2.0])).tolist()

    def holds_zero(rows: Tensor, difference: Tensor, sign: float) -> Tensor:
        """Whether the interval does, for u + sign u', whose powers are sums of products."""
        products, paired = columns[rows] @ columns.T, 6.0 * squares[rows] @ squares.T
        cubed = cubes[rows] @ columns.T + columns[rows] @ cubes.T
        second = (sums[rows, None] + sums + 2.0 * sign * products).clamp_min(0.0)
        power = fourth[rows, None] + fourth + paired + 4.0 * sign * cubed
        # Of influences all but equal these sums have lost their digits.
        close = (second < CLOSE * (sums[rows, None] + sums)).nonzero()
        for at, other in (pairs.T for pairs in torch.split(close, max(1, PAIRS // n))):
            gap = (columns[rows[at]] + sign * columns[other]).square()
            second[at, other], power[at, other] = gap.sum(dim=1), gap.square().sum(dim=1)
        se, size = (second / (n * (n - 1))).sqrt(), difference.abs()
        held: Tensor = size <= least * se
        open_pairs = ~held & (size <= most * se)  # those alone need their own quantile
        reach = quantile(level, degrees(second[open_pairs], power[open_pairs], n))
        held[open_pairs] = size[open_pairs] <= reach * se[open_pairs]
        return held

    tied: list[list[int]] = []
    for rows in torch.split(torch.arange(count), max(1, PAIRS // count)):
        held = holds_zero(rows, numbers[rows, None] - numbers, -1.0)
        if by.target is not None:
            gap = numbers - by.target
            held |= holds_zero(rows, gap[rows, None] + gap, 1.0)
        held[torch.arange(len(rows)), rows] = False
        tied += [row.nonzero().flatten().tolist() for row in held]
    return tied


def degrees(second: Tensor, fourth: Tensor, n: int) -> Tensor:
    """Degrees of freedom of a standard error, from the sums of u^2 and u^4 over n samples.

    Above 2, since a kurtosis is at most n.
    """
    kurtosis = n * fourth / second.square().clamp_min(TINY)
    return (2.0 * n / (kurtosis - 1.0).clamp_min(2.0)).clamp(2.0, max(2.0, n - 1.0))


def quantile(level: float, degrees: Tensor) -> Tensor:
    """t such that Student's variable of these degrees is within -+t with this probability."""
    from scipy.special import stdtrit  # 0.15 s, which a score without intervals does not pay

    return torch.as_tensor(-stdtrit(degrees.double().numpy(), (1.0 - level) / 2.0))


class Grouping:
    """Which samples belong together, by the value of `--groups`.

    source: a CSV file with the columns id and group, or "labels". A line whose id no file holds
    is no error: one table serves every draw of samples.
    Raises InputError if the table cannot be used, or gives a sample two groups.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._groups: dict[str, str] | None = None
        if source == LABELS:
            return
        self._groups = {}
        for row in read_table(Path(source), ("id", "group")).rows:
            if self._groups.setdefault(row["id"], row["group"]) != row["group"]:
                raise InputError(
                    f"{source}: the sample {row['id'][:100]!r} is in two groups",
                    code="sample-in-two-groups",
                )

    def of(self, embeddings: Embeddings) -> Tensor:
        """The number of the group of each sample of a layer [N]. Raises as `of_names`."""
        count = len(embeddings.span)
        names = embeddings.names() if embeddings.names else Names([*map(str, range(count))], None)
        return self.of_names(embeddings.file, names)[:count]

    def of_names(self, file: str, names: Names) -> Tensor:
        """The number of the group of each sample [N], groups counted as they come.

        Raises InputError if one is in no group, or labels are asked for and lack.
        """
        groups: list[str] | list[int]
        if self._groups is None:
            if names.labels is None:
                raise InputError(
                    f"{file}: stores no labels for --groups {LABELS}; give a CSV file with the "
                    "columns id and group",
                    code="no-labels",
                )
            groups = list(names.labels)
            without = [name for name, group in zip(names.ids, groups, strict=True) if group < 0]
        else:
            without = [name for name in names.ids if not self._groups.get(name)]
            groups = [self._groups.get(name, "") for name in names.ids]
        if without:
            raise InputError(
                f"{file}: {len(without)} of {len(names.ids)} samples are in no group of "
                f"--groups {self._source}, the first is {without[0][:100]!r}; the ids are those of "
                "/samples/id, or where a file has none the numbers of samples from 0",
                code="samples-without-group",
            )
        numbers: dict[str | int, int] = {}
        return torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups])


def summed(influences: Tensor, groups: Tensor) -> Tensor:
    """v [G] of influences [n] and the group of each of their samples [n]. See the equations."""
    numbers, at = torch.unique(groups, return_inverse=True)
    count = len(numbers)
    sums = influences.new_zeros(count).index_add(0, at, influences)
    return sums * (count / len(influences))
