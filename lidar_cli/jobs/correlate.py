"""How well each metric orders checkpoints as an oracle does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lidar_cli.core.metrics import METRICS
from lidar_cli.jobs.sheet import Score


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of one metric with an oracle over `count` checkpoints.

    Positive where the metric's better direction agrees with the oracle. None where fewer than
    three checkpoints have a value, or all values are equal.
    """

    metric: str
    spearman: float | None
    kendall: float | None
    count: int


def correlate(scores: Sequence[Score], accuracies: Sequence[float]) -> tuple[Correlation, ...]:
    """Spearman's rho and Kendall's tau-b of every metric with the oracle's accuracies.

    A checkpoint whose metric is null does not take part in that metric's correlation.
    """
    from scipy.stats import kendalltau, spearmanr

    found = []
    for name, metric in METRICS.items():
        pairs = [
            (-metric.sort_key(value), accuracy)
            for score, accuracy in zip(scores, accuracies, strict=True)
            if (value := score.value(name)) is not None
        ]
        merits, oracle = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if len(pairs) < 3 or len(set(merits)) < 2 or len(set(oracle)) < 2:
            found.append(Correlation(name, None, None, len(pairs)))
            continue
        rho = float(spearmanr(merits, oracle).statistic)
        tau = float(kendalltau(merits, oracle).statistic)
        found.append(Correlation(name, rho, tau, len(pairs)))
    return tuple(found)
