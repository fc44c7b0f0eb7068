"""Compares metrics and mean ranks of metrics with the accuracies of the study, by its protocol.

Needs only numpy and scipy. In a group of compared checkpoints a null ranks last, and values that
are all equal, or all null, order nothing: their correlation is 0.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from lidar_cli.errors import InputError
from lidar_cli.ranking.correlation import MIN_CHECKPOINTS, draws, resampled
from study.records import LAYERS, Checkpoint, Results, best_accuracy

Numbers = NDArray[np.float64]
Candidate = tuple[str, ...]  # one metric, or several whose ranks are averaged

POOLED = "all"  # the method of a group of checkpoints of all methods
DENSE = ("rankme_dense", "dse")  # of patch tokens, which one method of five has: no candidates
MEMBERS = (  # of mean ranks of two or three
    *("lidar", "rankme", "alpha_req", "stable_rank", "lidar_corrected", "pillai", "signal_rank"),
    *("identification", "stability", "gaussianity", "hubness", "persistence", "normalized_std"),
)
SIZES = (2, 3)  # of these sets
GOAL_POOLED, GOAL_WITHIN = 0.5, 0.3  # worst correlations
EQUAL_MARGIN = 0.02  # below the best margin, within which fewer metrics are preferred
FEWEST_WITHIN = 10  # passing runs of a method, from which its correlation counts
FEWEST = 3  # checkpoints of a correlation
ARCHITECTURE = {  # method -> the one whose untrained network has its architecture
    **dict.fromkeys(("simclr", "vicreg", "byol", "dino"), "simclr"),  # a ResNet
    "ijepa": "ijepa",  # a ViT
}


@dataclass(frozen=True)
class Method:
    """The runs of the search of one method on a set.

    accuracies: by the name of the run, of its backbone. untrained: that of the untrained network.
    """

    data: str
    method: str
    accuracies: Mapping[str, float]
    untrained: float
    failed: int = 0  # runs whose embeddings are not finite

    @property
    def passing(self) -> frozenset[str]:
        """Names of the runs that are more accurate than the untrained network."""
        return frozenset(name for name, a in self.accuracies.items() if a > self.untrained)

    @property
    def counts(self) -> bool:
        """Whether at least half of the runs pass; otherwise training failed, and none counts."""
        return 2 * len(self.passing) >= len(self.accuracies) + self.failed

    @property
    def counts_within(self) -> bool:
        """Whether there are enough passing runs for a correlation within the method."""
        return self.counts and len(self.passing) >= FEWEST_WITHIN


@dataclass(frozen=True)
class Group:
    """Checkpoints that are compared in one setting: of one method, or of all.

    accuracies: [K]. merits: [K] by metric, higher is better, NaN for a null.
    """

    data: str
    layer: str
    q: int
    method: str
    names: tuple[str, ...]
    accuracies: Numbers
    merits: Mapping[str, Numbers]

    def __str__(self) -> str:
        alone = "" if self.method == POOLED else f"{self.method}, "
        return f"{alone}{self.data}, {self.layer}, q = {self.q}"


@dataclass(frozen=True)
class Agreement:
    """How one candidate orders the checkpoints of a group, against their accuracies.

    nulls: number of checkpoints without a value. lost: accuracy of the best checkpoint less that of
    the selected one, the mean over equal best values; None if all are null.
    Intervals are of a bootstrap over checkpoints; None below MIN_CHECKPOINTS.
    """

    group: Group
    candidate: Candidate
    nulls: int
    spearman: float
    kendall: float
    lost: float | None
    spearman_interval: tuple[float, float] | None = None
    kendall_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """Spearman's correlation of one candidate in one group, for the rule of choice."""

    candidate: Candidate
    data: str
    method: str
    spearman: float


@dataclass(frozen=True)
class LeftOut:
    """The candidate chosen without one set, and its worst correlations on that set.

    None where the set has no group of that kind.
    """

    data: str
    chosen: Candidate
    pooled: float | None
    within: float | None


# Which checkpoints are compared


def methods(results: Results) -> list[Method]:
    """The search of every method on every set.

    Raises InputError if the untrained network of a set is not measured.
    """
    backbones = [row for row in results.accuracies if row["layer"] == LAYERS[0]]
    untrained = {
        (row["set"], row["method"]): best_accuracy(row)
        for row in backbones
        if row["kind"] == "untrained" and not row["failed"]
    }
    searches = []
    searched = [row for row in backbones if row["kind"] == "search"]
    for data, method in dict.fromkeys((row["set"], row["method"]) for row in searched):
        rows = [row for row in searched if (row["set"], row["method"]) == (data, method)]
        finite = [row for row in rows if (data, row["name"]) not in results.failed]
        bare = untrained.get((data, ARCHITECTURE[method]))
        if bare is None:
            raise InputError(f"{data}: the untrained network is not measured yet; measure again")
        accuracies = {row["name"]: best_accuracy(row) for row in finite}
        searches.append(Method(data, method, accuracies, bare, len(rows) - len(finite)))
    return searches


def trained_by(untrained: str) -> list[str]:
    """The methods that train the architecture of an untrained network, named by its method."""
    return [method for method, other in ARCHITECTURE.items() if other == untrained]


def groups(
    results: Results, runs: Mapping[tuple[str, str], Iterable[str]], *, of_layer: bool = False
) -> list[Group]:
    """The groups of every setting: all methods together, then each; of at least FEWEST.

    runs: names by set and method. of_layer: whether the accuracies are those of the layer's probe.
    """
    chosen = {(data, name) for (data, _), names in runs.items() for name in names}
    by_setting: dict[tuple[str, str, int], list[Checkpoint]] = {}
    for c in results.checkpoints:
        if (c.data, c.name) in chosen:
            by_setting.setdefault((c.data, c.layer, c.q), []).append(c)
    formed = []
    for (data, layer, q), some in sorted(by_setting.items()):
        for method in (POOLED, *(m for d, m in runs if d == data)):
            these = [c for c in some if method in (POOLED, c.method)]
            if len(these) >= FEWEST:
                formed.append(group_of(data, layer, q, method, these, results.directions, of_layer))
    return formed


def group_of(
    data: str,
    layer: str,
    q: int,
    method: str,
    checkpoints: Sequence[Checkpoint],
    directions: Mapping[str, str],
    of_layer: bool = False,
) -> Group:
    """The group of these checkpoints; arguments as the fields of `Group`, and as in `groups`."""
    accuracies = [c.layer_accuracy if of_layer else c.accuracy for c in checkpoints]
    return Group(
        *(data, layer, q, method),
        tuple(c.name for c in checkpoints),
        np.array(accuracies),
        {
            name: np.array([merit(c.values[name], direction) for c in checkpoints])
            for name, direction in directions.items()
        },
    )


def merit(value: float | None, direction: str) -> float:
    """A number that is higher for a better value; NaN for a null."""
    if value is None:
        return np.nan
    if direction.startswith("nearest"):
        return -abs(value - float(direction.split()[1]))
    return value if direction == "higher" else -value


# How a candidate orders them


def average_places(merits: Numbers) -> Numbers:
    """The places [..., K] of merits, 1 for the best; equal ones share their average, NaN is NaN."""
    places: Numbers = rankdata(-merits, axis=-1, nan_policy="omit")
    return places


def mean_places(group: Group, candidates: Sequence[Candidate]) -> Numbers:
    """The mean place [C, K] of each checkpoint by each candidate, lower is better.

    A null drops out of the mean; nulls in more than half of the metrics are a null, NaN.
    """
    names = sorted({name for candidate in candidates for name in candidate})
    places = average_places(np.stack([group.merits[name] for name in names]))
    means = np.empty((len(candidates), len(group.names)))
    for row, candidate in zip(means, candidates, strict=True):
        of = places[[names.index(name) for name in candidate]]
        present = (~np.isnan(of)).sum(axis=0)
        enough = 2 * present >= len(candidate)
        row[:] = np.where(enough & (present > 0), np.nansum(of, axis=0) / present.clip(1), np.nan)
    return means


def spearman(means: Numbers, accuracies: Numbers) -> Numbers:
    """Spearman's rho [C] of mean places [C, K] with accuracies, positive if the best come first."""
    x = rankdata(_nulls_last(means), axis=1)
    y = rankdata(accuracies)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean()
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum())
    rho: Numbers = np.divide(x @ y, scale, out=np.zeros(len(x)), where=scale > 0)
    return rho


def _nulls_last(means: Numbers) -> Numbers:
    """Merits from mean places, a null worse than all."""
    return np.where(np.isnan(means), -np.inf, -means)


def agreements(group: Group, candidates: Sequence[Candidate], level: float) -> list[Agreement]:
    """Every candidate against the accuracies of a group. level: of the intervals."""
    means = mean_places(group, candidates)
    rho = spearman(means, group.accuracies)
    count = len(group.names)
    times = draws(count, 0)
    compared = []
    for at, candidate in enumerate(candidates):
        merits = _nulls_last(means[at])
        ranks = rankdata(merits)
        tau = float(np.nan_to_num(kendalltau(ranks, group.accuracies).statistic))
        nulls = int(np.isnan(means[at]).sum())
        selected = group.accuracies[merits == merits.max()]
        lost = None if nulls == count else float(group.accuracies.max() - selected.mean())
        intervals: list[tuple[float, float] | None] = [None, None]
        if count >= MIN_CHECKPOINTS and len(set(ranks)) > 1:
            both = resampled(ranks, group.accuracies, times)
            intervals = [_interval(statistic, level) for statistic in both]
        compared.append(Agreement(group, candidate, nulls, float(rho[at]), tau, lost, *intervals))
    return compared


def _interval(statistic: Numbers, level: float) -> tuple[float, float]:
    low, high = np.quantile(np.nan_to_num(statistic), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# The rule of choice


def candidates(measured: Sequence[str]) -> list[Candidate]:
    """Every metric alone, then the mean ranks of two or three of MEMBERS.

    measured: names of the metrics that any checkpoint has a value of.
    """
    members = [name for name in MEMBERS if name in measured]
    alone = [(name,) for name in measured if name not in DENSE]
    return alone + [some for size in SIZES for some in itertools.combinations(members, size)]


def outcomes(some: Sequence[Group], among: Sequence[Candidate]) -> list[Outcome]:
    """Spearman's correlation of every candidate in every group."""
    return [
        Outcome(candidate, group.data, group.method, float(rho))
        for group in some
        for candidate, rho in zip(
            among, spearman(mean_places(group, among), group.accuracies), strict=True
        )
    ]


def worst(rows: Iterable[Outcome], *, pooled: bool) -> float | None:
    """The lowest correlation over pooled groups, or over those within a method."""
    return min((r.spearman for r in rows if (r.method == POOLED) == pooled), default=None)


def margin(rows: Sequence[Outcome]) -> float:
    """min(worst pooled - 0.5, worst within - 0.3) of one candidate, of the kinds that there are."""
    ends = [(worst(rows, pooled=True), GOAL_POOLED), (worst(rows, pooled=False), GOAL_WITHIN)]
    return min(end - goal for end, goal in ends if end is not None)


def choose(rows: Sequence[Outcome]) -> Candidate:
    """The candidate of the largest margin, by the rule of protocol.md.

    Among those at most EQUAL_MARGIN below it, that of fewest metrics, then that of the largest mean
    pooled correlation.
    """
    by_candidate = _by_candidate(rows)
    margins = {candidate: margin(some) for candidate, some in by_candidate.items()}
    bound = max(margins.values()) - EQUAL_MARGIN
    near = [candidate for candidate, value in margins.items() if value >= bound]
    return min(near, key=lambda c: (len(c), -mean_pooled(by_candidate[c])))


def mean_pooled(rows: Iterable[Outcome]) -> float:
    """The mean of the correlations over pooled groups."""
    return statistics.fmean(r.spearman for r in rows if r.method == POOLED)


def _by_candidate(rows: Iterable[Outcome]) -> dict[Candidate, list[Outcome]]:
    by_candidate: dict[Candidate, list[Outcome]] = {}
    for row in rows:
        by_candidate.setdefault(row.candidate, []).append(row)
    return by_candidate


def ordered_by_margin(rows: Sequence[Outcome]) -> list[tuple[Candidate, list[Outcome]]]:
    """Every candidate with its outcomes, by descending margin."""
    return sorted(_by_candidate(rows).items(), key=lambda item: -margin(item[1]))


def leave_one_out(rows: Sequence[Outcome]) -> list[LeftOut]:
    """For each set the choice without it, and the worst correlations of the choice on it."""
    left_out = []
    for data in dict.fromkeys(row.data for row in rows):
        others = [row for row in rows if row.data != data]
        if not others:
            continue
        chosen = choose(others)
        theirs = [row for row in rows if row.data == data and row.candidate == chosen]
        ends = (worst(theirs, pooled=pooled) for pooled in (True, False))
        left_out.append(LeftOut(data, chosen, *ends))
    return left_out
