"""Summarises how well each metric agrees with the linear probe: mean and worst case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.correlation import Correlation, correlate
from lidar_cli.ranking.oracle import ScoresAndAccuracies, select
from lidar_cli.scoring.compute import Score
from study.runs import LAYERS, METHODS, Measured, Size

POOLED = "all"  # the method of an agreement over the checkpoints of all methods


@dataclass(frozen=True)
class Setting:
    """The image set, layer and q under which checkpoints are compared."""

    data: str
    layer: str
    n_views: int

    def __str__(self) -> str:
        return f"{self.data}, {self.layer}, q = {self.n_views}"


@dataclass(frozen=True)
class Agreement:
    """Every metric against the probe in one setting, over the checkpoints of one method or of all.

    A checkpoint whose metric is null ranks last by it, as in `lidar rank`.
    known: by metric, the number of checkpoints with a value.
    lost: by metric, the accuracy of the best checkpoint less that of the checkpoint that the metric
    selects; None if it selects none.
    """

    setting: Setting
    method: str
    count: int  # checkpoints
    correlations: tuple[Correlation, ...]
    known: Mapping[str, int]
    lost: Mapping[str, float | None]


@dataclass(frozen=True)
class MetricSummary:
    """One metric over many agreements; None if its correlation is undefined in all of them.

    A correlation is undefined if all checkpoints have the same value, or none has one. defined:
    number of agreements with a correlation. nulls: share of null values over all agreements.
    """

    metric: str
    defined: int
    nulls: float
    spearman_mean: float | None
    spearman_worst: float | None
    worst_at: str | None  # the agreement of the worst Spearman
    kendall_mean: float | None
    kendall_worst: float | None
    lost_mean: float | None
    lost_worst: float | None


@dataclass(frozen=True)
class Spread:
    """Accuracies of the trained checkpoints on one set, and of each untrained backbone."""

    data: str
    count: int
    least: float
    median: float
    most: float
    by_method: Mapping[str, tuple[float, float]]  # least and most
    untrained: Mapping[str, float]  # by the method that trains the backbone


def agreements(
    measured: Sequence[Measured], size: Size, level: float, seed: int
) -> list[Agreement]:
    """The agreements, setting by setting: all methods together, then each; trained runs only.

    level, seed: those of the bootstrap intervals over checkpoints.
    """
    results = []
    for data in size.sets:
        trained = [m for m in measured if m.run.data == data and m.run.index is not None]
        for layer in LAYERS:
            for q in size.views:
                for method in (POOLED, *METHODS):
                    judged = {
                        m.run.name: (m.scores[layer, q], m.accuracy)
                        for m in trained
                        if method in (POOLED, m.run.method)
                        if m.accuracy is not None
                    }
                    if judged:
                        setting = Setting(data, layer, q)
                        results.append(_agreement(setting, method, judged, level, seed))
    return results


def _agreement(
    setting: Setting, method: str, judged: ScoresAndAccuracies, level: float, seed: int
) -> Agreement:
    scores = [score for score, _ in judged.values()]
    accuracies = [accuracy for _, accuracy in judged.values()]
    lost = {
        pick.metric: None if pick.accuracy is None else max(accuracies) - pick.accuracy
        for pick in select(judged).picks
    }
    with_value = {name: sum(score.value(name) is not None for score in scores) for name in METRICS}
    correlations = correlate(nulls_last(scores), accuracies, level=level, seed=seed)
    return Agreement(setting, method, len(judged), correlations, with_value, lost)


def nulls_last(scores: Sequence[Score]) -> list[Score]:
    """The scores with every null of a metric replaced by one value worse than all others."""
    for name, metric in METRICS.items():
        values = [value for score in scores if (value := score.value(name)) is not None]
        if not values or len(values) == len(scores):
            continue
        step = -1.0 if metric.better == "higher" else 1.0  # with a target, beyond it is worse
        last = max(values, key=metric.sort_key)
        if metric.target is not None:
            last = metric.target + abs(last - metric.target)
        scores = [
            score.with_value(name, last + step) if score.value(name) is None else score
            for score in scores
        ]
    return list(scores)


def metric_summaries(compared: Sequence[Agreement]) -> list[MetricSummary]:
    """Summaries of every metric over these agreements, by descending worst case."""
    summaries = [_metric_summary(name, compared) for name in METRICS]
    return sorted(
        summaries,
        key=lambda s: -2.0 if s.spearman_worst is None else s.spearman_worst,
        reverse=True,
    )


def _metric_summary(metric: str, compared: Sequence[Agreement]) -> MetricSummary:
    cells = [
        (agreement, correlation)
        for agreement in compared
        for correlation in agreement.correlations
        if correlation.metric == metric
    ]
    rho = [(c.spearman, a) for a, c in cells if c.spearman is not None]
    tau = [c.kendall for _, c in cells if c.kendall is not None]
    lost = [loss for a, _ in cells if (loss := a.lost[metric]) is not None]
    worst, at = min(rho, key=lambda pair: pair[0], default=(None, None))
    total = sum(a.count for a, _ in cells)
    return MetricSummary(
        metric,
        defined=len(rho),
        nulls=1 - sum(a.known[metric] for a, _ in cells) / total if total else 0.0,
        spearman_mean=statistics.fmean(r for r, _ in rho) if rho else None,
        spearman_worst=worst,
        worst_at=None if at is None else _label(at),
        kendall_mean=statistics.fmean(tau) if tau else None,
        kendall_worst=min(tau, default=None),
        lost_mean=statistics.fmean(lost) if lost else None,
        lost_worst=max(lost, default=None),
    )


def _label(agreement: Agreement) -> str:
    alone = "" if agreement.method == POOLED else f"{agreement.method}, "
    return f"{alone}{agreement.setting}"


def spreads(measured: Sequence[Measured], size: Size) -> list[Spread]:
    """The spread of each set that has a trained checkpoint with an accuracy."""
    rows = []
    for data in size.sets:
        trained: dict[str, list[float]] = {}
        untrained = {}
        for m in measured:
            if m.run.data != data or m.accuracy is None:
                continue
            if m.run.index is None:
                untrained[m.run.method] = m.accuracy
            else:
                trained.setdefault(m.run.method, []).append(m.accuracy)
        every = [accuracy for accuracies in trained.values() for accuracy in accuracies]
        if every:
            ends = {method: (min(shares), max(shares)) for method, shares in trained.items()}
            middle = statistics.median(every)
            rows.append(Spread(data, len(every), min(every), middle, max(every), ends, untrained))
    return rows
