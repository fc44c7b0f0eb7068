"""The order by a few labels a class, next to the label-free orders and that of a full probe.

A user has one set of labelled images: each draw is one such set, and what differs between draws is
what the luck of labelling decides.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar_cli.errors import LidarError, NoProcess
from lidar_cli.probing.few_shot import (
    DRAWS,
    FULL_PROBE_LABELS,
    FewShotResult,
    allows_full_probe,
    few_shot_file,
)
from lidar_cli.ranking.correlation import Span, correlate, interval_over_draws, spearman
from lidar_cli.ranking.group_metrics import ORDERS
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import RankSettings

Accuracies = Mapping[str, tuple[float, ...]]  # one a draw, by checkpoint


@dataclass(frozen=True)
class FewLabels:
    """Probes with k labelled images a class: accuracies between 0 and 1, by file or checkpoint.

    results: equally many draws of each. has_full: whether a full probe can judge them, on test
    images that no draw uses. full: its accuracies, empty without it. full_method: in words how it
    was measured, or why there is none.
    """

    per_class: int
    results: Mapping[str, FewShotResult]
    has_full: bool
    full: Mapping[str, float]
    full_method: str

    @property
    def accuracies(self) -> Accuracies:
        """The accuracy of each draw."""
        return {path: result.accuracies for path, result in self.results.items()}

    @property
    def means(self) -> dict[str, float]:
        """The mean accuracy over draws."""
        return {path: statistics.fmean(each) for path, each in self.accuracies.items()}

    @property
    def method(self) -> str:
        """How the accuracies were measured, in words."""
        first = next(iter(self.results.values()))
        sizes = {(one.n_train, one.n_test, one.n_classes) for one in self.results.values()}
        return (
            f"nearest class mean of the backbone, {self.per_class} labelled images of each of "
            f"{first.n_classes} classes, mean of {DRAWS} draws, tested on {first.n_test} others"
            + ("" if len(sizes) == 1 else "; some have other images and cannot be compared")
        )


@dataclass(frozen=True)
class MetricAgainstLabels:
    """One metric and the full probe, over `count` checkpoints.

    accuracy: of the checkpoint that it selects, by the full probe. labels_win: in how many draws
    the few labels have a larger correlation with the full probe, over the same checkpoints; None
    where the metric has no correlation.
    """

    metric: str
    spearman: float | None
    interval: Span | None
    count: int
    accuracy: float | None
    labels_win: int | None


@dataclass(frozen=True)
class FewLabelsComparison:
    """One comparable group by a few labels.

    spans: between which accuracies a draw is, by checkpoint, at the level of the intervals. best:
    the first by mean. tied_with_best: whose paired difference from the best holds 0 at this level.
    spearman: with the full probe, the mean over draws; interval: of one draw, over checkpoints
    too. accuracy: by the full probe, of the checkpoint that a draw selects, the mean over draws.
    win_all: in how many draws the few labels agree with the full probe better than every metric,
    each over the checkpoints of which it has a value.
    All of these are None, and metrics empty, without a full probe.
    """

    best: str
    tied_with_best: tuple[str, ...]
    spans: Mapping[str, Span]
    spearman: float | None = None
    interval: Span | None = None
    by_draw: tuple[float | None, ...] = ()
    accuracy: float | None = None
    metrics: tuple[MetricAgainstLabels, ...] = ()
    win_all: int | None = None


def probe_few_labels(
    files: Sequence[Path], layer: str, settings: RankSettings, progress: Progress
) -> tuple[FewLabels, dict[str, str]]:
    """Probes of feature files with a few labels, and the reasons of files that failed, by file.

    Raises the first error if every file fails.
    """
    assert settings.labels_per_class is not None
    k, seed, device = settings.labels_per_class, settings.seed, find_device(settings.device)
    results: dict[str, FewShotResult] = {}
    errors: dict[str, LidarError] = {}
    has_full: bool | None = None
    for at, file in enumerate(files):
        try:
            if has_full is None:
                has_full = allows_full_probe(file, layer, k, seed, device)
            result = few_shot_file(file, layer, k, seed, device, of_training=has_full)
            results[str(file)] = result
        except NoProcess:
            raise
        except LidarError as error:
            errors[str(file)] = error
        progress.update("probing with few labels", at + 1, len(files))
    if not results and errors:
        raise next(iter(errors.values()))
    reasons = {file: str(error).removeprefix(f"{file}: ") for file, error in errors.items()}
    return FewLabels(k, results, bool(has_full), {}, _why_no_full_probe(k, results)), reasons


def _why_no_full_probe(per_class: int, results: Mapping[str, FewShotResult]) -> str:
    for one in results.values():
        labels, needed = one.n_train + one.n_test, FULL_PROBE_LABELS * one.n_train
        if labels < needed:
            return f"no full probe judges this: it takes {needed} labelled images, of {labels} here"
    return f"no full probe judges this: it needs more than {per_class} training images of a class"


def compare_few_labels(
    scores: Mapping[str, Score], few: FewLabels, level: float, seed: int
) -> FewLabelsComparison | None:
    """A group by a few labels; None if fewer than two of its checkpoints were probed.

    scores: of the group, by checkpoint.
    """
    accuracies = {path: few.accuracies[path] for path in scores if path in few.results}
    if len(accuracies) < 2:
        return None
    ends = [(1 - level) / 2, (1 + level) / 2]

    def span(values: Sequence[float]) -> Span:
        low, high = np.quantile(values, ends)
        return float(low), float(high)

    best = max(accuracies, key=lambda path: statistics.fmean(accuracies[path]))
    gaps = {
        path: [b - a for b, a in zip(accuracies[best], each, strict=True)]
        for path, each in accuracies.items()
        if path != best
    }
    tied = tuple(path for path, each in gaps.items() if span(each)[0] <= 0)
    spans = {path: span(each) for path, each in accuracies.items()}
    judged = [path for path in accuracies if path in few.full]
    if len(judged) < 2:
        return FewLabelsComparison(best, tied, spans)
    full = [few.full[path] for path in judged]
    draws = list(zip(*(accuracies[path] for path in judged), strict=True))
    by_draw = tuple(spearman(draw, full) for draw in draws)
    defined = [rho for rho in by_draw if rho is not None]
    metrics, wins = _metrics_against_full(judged, scores, few, level, seed)
    return FewLabelsComparison(
        best,
        tied,
        spans,
        spearman=statistics.fmean(defined) if defined else None,
        interval=interval_over_draws(draws, full, level, seed),
        by_draw=by_draw,
        accuracy=statistics.fmean(_selected(draw, full) for draw in draws),
        metrics=metrics,
        win_all=sum(map(all, zip(*wins, strict=True))) if wins else None,
    )


def _metrics_against_full(
    judged: Sequence[str], scores: Mapping[str, Score], few: FewLabels, level: float, seed: int
) -> tuple[tuple[MetricAgainstLabels, ...], list[list[bool]]]:
    """Each metric, and of each that has a correlation, in which draws the few labels win."""
    full = [few.full[path] for path in judged]
    rows, wins = [], []
    for one in correlate([scores[path] for path in judged], full, level=level, seed=seed):
        metric = ORDERS[one.metric]
        values = {
            path: -metric.sort_key(value)
            for path in judged
            if (value := scores[path].value(one.metric)) is not None
        }
        of_these = [few.full[path] for path in values]
        labels_win = None
        if one.spearman is not None:
            draws = zip(*(few.accuracies[path] for path in values), strict=True)
            rhos = (spearman(draw, of_these) for draw in draws)
            wins.append([rho is not None and rho > one.spearman for rho in rhos])
            labels_win = sum(wins[-1])
        accuracy = _selected(list(values.values()), of_these) if values else None
        rows.append(
            MetricAgainstLabels(
                one.metric, one.spearman, one.spearman_interval, one.count, accuracy, labels_win
            )
        )
    return tuple(rows), wins


def _selected(merits: Sequence[float], accuracies: Sequence[float]) -> float:
    """The accuracy of the checkpoint with the best merit; the mean of several that share it."""
    best = max(merits)
    pairs = zip(merits, accuracies, strict=True)
    return statistics.fmean(accuracy for merit, accuracy in pairs if merit == best)
