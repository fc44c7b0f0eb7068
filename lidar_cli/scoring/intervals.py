"""Standard errors, intervals and ties, computed from influences.

With u_i the influence of sample i on a metric T, minus the mean influence (`core.influence`):

    se(T)      = sd(u) / sqrt(n)
    interval   = T -+ t se(T),   t the Student quantile of (1 + level) / 2
    degrees    = 2 n / (kurtosis(u) - 1), at most n - 1
    se(T - T') = sd(u - u') / sqrt(n)     of two checkpoints with the same samples and views

If a few samples have most of the influence, the standard error is itself uncertain: sd(u)^2 has the
variance of a chi-square with these degrees of freedom (Satterthwaite 1946). Normal influences have
n - 1 degrees of freedom, for which t is close to the normal quantile.

An interval is for the expectation of T at this n and q, over the draw of samples. It does not cover
the bias of T at finite n and q, which is the same for every checkpoint of a comparable group, nor
the change of T under another training seed.

Samples are assumed to be independent. If they form groups (frames of a clip, photographs of a
patient, near-duplicates), influences are summed within each: with U_g the sum over the samples of
group g, G groups and n samples, a metric minus its expectation is sum_g U_g / n. If groups are
drawn independently,

    var = G / (G - 1) sum_g U_g^2 / n^2 = var(v) / G,   v_g = U_g G / n

so that v [G] replaces the influences [n] in every interval and tie (`sum_by_group`).

Simulated (tests/benchmarks/intervals.py, with its results, n >= 10 d, 1,000 draws): 95 % intervals
cover 93 to 98 % for pillai, information and noise_fraction, at least 93 % elsewhere, up to 99.8 %
where few directions have all the signal. Coverage is too low at n of 100 and 200 with d = 8, if
samples are of very unequal strength: 92 to 93 % for participation_ratio and rankme_augmented, and
86 % for reliable_rank at n = 100, whose distribution is skewed near its bound d. If the strength of
samples is heavy-tailed, coverage is too low at any n: 76 to 85 % for lidar and rankme at n of 1,000
and 2,000 with a signal from Student's t distribution of 3 degrees of freedom. Then the influences
have few degrees of freedom, and below 10 a note says so. The test of ties errs in 3.5 % of cases on
average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.data.tables import groups_of, read_table
from lidar_cli.errors import InputError
from lidar_cli.features.embeddings import Embeddings, Names

FEWEST_GROUPS = 10  # groups of samples, below which their spread is too uncertain
PAIRS = 2**18  # pairs of checkpoints compared at a time: 2 MB for each number of a pair
CANCELLED = 1e-5  # a difference below this share of two variances has lost its digits
TINY = torch.finfo(torch.float64).tiny
OVERFLOW = "beyond the range of float64: the embedding's scale is extreme"
FEWEST_DEGREES = 10.0  # degrees of freedom, below which an interval is likely too short
FEW_CARRY = "few samples carry this interval; it may be too short"
LABELS = "labels"  # the value of --groups that names the stored labels


@dataclass(frozen=True)
class Interval:
    """A standard error and the ends of an interval; if they are None, the reason.

    degrees: of freedom of the standard error. note: a warning about the interval.
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

    groups: the number of independent groups of samples; None if each sample is independent.
    """

    level: float
    intervals: dict[str, Interval]
    groups: int | None = None


def reasons_for_no_interval(
    values: Mapping[str, float | None],
    notes: Mapping[str, str],
    n_samples: int,
    n_rows: int,
    dim: int,
    groups: int | None = None,
) -> dict[str, str]:
    """The metrics that get no interval, and why: no value, a count, or too few samples.

    n_rows: the number of rows that RankMe and alpha-ReQ read, including clean embeddings.
    groups: the number of groups that the samples with views form, None without groups.

    alpha_req needs n above 5 d. It reads sorted eigenvalues at fixed ranks, which repel each other,
    so that their errors cancel; leaving samples out does not show this. Simulated at d = 128, its
    standard error is 1.2 to 2.7 times the true one for n from 2 d to 5 d, and 0.9 to 1.3 times for
    larger n, but 2.3 times at any n if all eigenvalues are equal.
    """
    reasons = {}
    for name, value in values.items():
        metric = METRICS[name]
        n, least = n_rows if metric.reads_rows else n_samples, metric.interval_from
        if value is None:
            reasons[name] = notes[name]
        elif not metric.has_interval:
            assert metric.no_interval is not None
            reasons[name] = metric.no_interval
        elif n <= min(2, least) * dim:
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
    """The interval of every metric of `values`, from its influences [n].

    missing: the metrics that get no interval, and why.
    groups: the number of groups, if the influences are those of groups of samples.
    """
    intervals = {}
    for name, value in values.items():
        if name in missing or value is None:
            intervals[name] = Interval(reason=missing[name])
            continue
        intervals[name] = interval_of(value, influences[name], level)
    return Confidence(level, intervals, groups)


def interval_of(value: float, influences: Tensor, level: float) -> Interval:
    """The interval of a value from the influences [n] of samples on it.

    The interval of a difference T - T' follows from the influences u - u'.
    """
    n = len(influences)
    se = float(influences.std() / n**0.5)
    if not math.isfinite(se):
        return Interval(reason=OVERFLOW)
    freedom = degrees(influences.square().sum(), influences.pow(4).sum(), n)
    half_width = float(quantile(level, freedom)) * se
    # Equal influences, as where every sample is recognised, say nothing about the spread.
    note = FEW_CARRY if freedom < FEWEST_DEGREES or se == 0 else None
    ends = value - half_width, value + half_width
    return Interval(se, *ends, degrees=float(freedom), note=note)


def ties(
    values: Sequence[float], influences: Sequence[Tensor], by: Metric, level: float
) -> list[list[int]]:
    """For each checkpoint, the positions of those that do not differ significantly from it.

    Two tie if the interval of the difference of their values contains 0. For a metric with a target
    the hypothesis is |T - target| = |T' - target|, that is T - T' = 0 or T + T' - 2 target = 0: two
    tie if the interval of either contains 0, so that neither is rejected too often when it is true.

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
        """Whether the interval of T + sign T' contains 0, from the powers of u + sign u'."""
        products, paired = columns[rows] @ columns.T, 6.0 * squares[rows] @ squares.T
        cubed = cubes[rows] @ columns.T + columns[rows] @ cubes.T
        second = (sums[rows, None] + sums + 2.0 * sign * products).clamp_min(0.0)
        power = fourth[rows, None] + fourth + paired + 4.0 * sign * cubed
        # For nearly equal influences these sums have lost their digits and are computed directly.
        close = (second < CANCELLED * (sums[rows, None] + sums)).nonzero()
        for at, other in (pairs.T for pairs in torch.split(close, max(1, PAIRS // n))):
            gap = (columns[rows[at]] + sign * columns[other]).square()
            second[at, other], power[at, other] = gap.sum(dim=1), gap.square().sum(dim=1)
        se, size = (second / (n * (n - 1))).sqrt(), difference.abs()
        held: Tensor = size <= least * se
        open_pairs = ~held & (size <= most * se)  # only these need the quantile of their degrees
        half_width = quantile(level, degrees(second[open_pairs], power[open_pairs], n))
        held[open_pairs] = size[open_pairs] <= half_width * se[open_pairs]
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

    At least 2, since a kurtosis is at most n.
    """
    kurtosis = n * fourth / second.square().clamp_min(TINY)
    return (2.0 * n / (kurtosis - 1.0).clamp_min(2.0)).clamp(2.0, max(2.0, n - 1.0))


def quantile(level: float, degrees: Tensor) -> Tensor:
    """t such that Student's t of these degrees of freedom is in [-t, t] with probability level."""
    from scipy.special import stdtrit  # takes 0.15 s, and only intervals need it

    return torch.as_tensor(-stdtrit(degrees.double().numpy(), (1.0 - level) / 2.0))


class Grouping:
    """The groups of samples that `--groups` defines.

    source: a CSV file with the columns id and group, or "labels". Ids that no file has are allowed,
    so that one table can be used with every draw of samples.
    Raises InputError if the table cannot be used, or if it has a sample in two groups.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._groups: dict[str, str] | None = None
        if source == LABELS:
            return
        self._groups = groups_of(read_table(Path(source), ("id", "group")))

    def of(self, embeddings: Embeddings) -> Tensor:
        """The group of each sample of a layer [N], as a number. Raises as `of_names`."""
        count = len(embeddings.span)
        names = embeddings.names() if embeddings.names else Names([*map(str, range(count))], None)
        return self.of_names(embeddings.file, names)[:count]

    def of_names(self, file: str, names: Names) -> Tensor:
        """The group of each sample [N], as a number; groups are numbered as they occur.

        Raises InputError if a sample is in no group, or if the file has no labels to group by.
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


def sum_by_group(influences: Tensor, groups: Tensor) -> Tensor:
    """v [G] of the equations above, from influences [n] and the group of each sample [n]."""
    numbers, at = torch.unique(groups, return_inverse=True)
    count = len(numbers)
    sums = influences.new_zeros(count).index_add(0, at, influences)
    return sums * (count / len(influences))
