"""Choosing a checkpoint by a metric: the accuracy that this recovers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lidar_cli.core.metrics import METRICS
from lidar_cli.jobs.ranking.hyperparameters import Value, slices, telling
from lidar_cli.jobs.scoring.sheet import Score


@dataclass(frozen=True)
class Pick:
    """The checkpoint that a metric finds best; several where its best value is shared."""

    metric: str
    paths: tuple[str, ...]  # empty where no checkpoint has a value
    accuracy: float | None  # their mean


@dataclass(frozen=True)
class Selection:
    """What each metric picks among some checkpoints, beside the best and the median of them."""

    count: int
    best: Pick  # by the oracle itself
    median: float
    picks: tuple[Pick, ...]  # a metric each


@dataclass(frozen=True)
class Varied:
    """Selection among checkpoints that differ in one hyperparameter alone.

    A random search has no two such checkpoints: count is 0 and the accuracies are None. A metric's
    is None too where it has no value in one of the sets.
    """

    name: str
    sets: int  # of checkpoints that agree in all other hyperparameters
    count: int  # checkpoints in them
    best: float | None  # means over the sets, as are the others
    median: float | None
    picks: Mapping[str, float | None]  # metric -> accuracy


Judged = Mapping[str, tuple[Score, float]]  # path -> score, accuracy


def select(judged: Judged) -> Selection:
    """The accuracy of each metric's pick among some checkpoints, of which there is one at least."""
    accuracies = {path: accuracy for path, (_, accuracy) in judged.items()}
    picks = []
    for name, metric in METRICS.items():
        values = {path: score.value(name) for path, (score, _) in judged.items()}
        merits = {path: -metric.sort_key(v) for path, v in values.items() if v is not None}
        picks.append(_pick(name, merits, accuracies))
    return Selection(
        len(judged),
        _pick("oracle", accuracies, accuracies),
        statistics.median(accuracies.values()),
        tuple(picks),
    )


def by_hyperparameter(
    judged: Judged, known: Mapping[str, Mapping[str, Value]]
) -> tuple[Varied, ...]:
    """A column for each hyperparameter that differs, as in the tables of RankMe and LiDAR.

    known: hyperparameters by checkpoint; those that are not judged do not count.
    """
    known = {path: values for path, values in known.items() if path in judged}
    return tuple(_varied(name, judged, slices(known, name)) for name in telling(known))


def _varied(name: str, judged: Judged, sets: Sequence[Sequence[str]]) -> Varied:
    if not sets:
        return Varied(name, 0, 0, None, None, dict.fromkeys(METRICS))
    found = [select({path: judged[path] for path in paths}) for paths in sets]
    picks: dict[str, float | None] = {}
    for at, metric in enumerate(METRICS):
        picked = [selection.picks[at].accuracy for selection in found]
        known = [accuracy for accuracy in picked if accuracy is not None]
        picks[metric] = statistics.fmean(known) if len(known) == len(picked) else None
    return Varied(
        name,
        len(sets),
        sum(selection.count for selection in found),
        statistics.fmean(selection.best.accuracy or 0.0 for selection in found),
        statistics.fmean(selection.median for selection in found),
        picks,
    )


def _pick(name: str, merits: Mapping[str, float], accuracies: Mapping[str, float]) -> Pick:
    if not merits:
        return Pick(name, (), None)
    most = max(merits.values())
    paths = tuple(path for path, merit in merits.items() if merit == most)
    return Pick(name, paths, statistics.fmean(accuracies[path] for path in paths))
