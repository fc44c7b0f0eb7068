"""What a page shows a line of: one score, with its place where there is an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.jobs.ranking.hyperparameters import Value
from lidar_cli.jobs.scoring.confidence import Interval
from lidar_cli.jobs.scoring.sheet import Score


@dataclass(frozen=True)
class Entry:
    """A line of a table and a curve of its charts.

    name: as shown; path: whole. ties: places, counted from 0, of those it cannot be told from.
    """

    name: str
    path: str
    score: Score
    rank: int | None = None
    tied: str = ""
    ties: tuple[int, ...] = ()
    accuracy: float | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)

    def interval(self, metric: str) -> Interval:
        """Of a metric, an empty one where it has none."""
        sure = self.score.confidence
        return sure.intervals.get(metric, Interval()) if sure else Interval()


@dataclass(frozen=True)
class Listing:
    """Entries that stand in one table. by: the metric that orders them, if one does."""

    entries: Sequence[Entry]
    by: Metric | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of metrics with a value somewhere, the ordering one first."""
        first = [self.by.name] if self.by else []
        known = [
            name
            for name in METRICS
            if any(entry.score.value(name) is not None for entry in self.entries)
        ]
        return list(dict.fromkeys([*first, *known]))

    @property
    def judged(self) -> bool:
        """Whether an oracle knows any entry."""
        return any(entry.accuracy is not None for entry in self.entries)
