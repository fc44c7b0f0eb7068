"""The architectures of a ranking at random initialisation, as a level to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from lidar_cli.scoring.compute import Score

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Baseline:
    """One architecture at random initialisation, with the images, views and layer of one group.

    name: in tables and plots. group: index of the group. initialisation: in words. scores: one a
    seed of SEEDS; none, with a reason, if the architecture cannot be initialised or scored.
    """

    name: str
    architecture: str
    layer: str
    group: int
    initialisation: str
    scores: tuple[Score, ...] = ()
    reason: str | None = None

    def values(self, metric: str) -> tuple[float, ...]:
        """The value of each seed; empty if one of them has none."""
        values = [score.value(metric) for score in self.scores]
        present = tuple(value for value in values if value is not None)
        return present if len(present) == len(values) else ()

    def mean(self, metric: str) -> float | None:
        """The mean over seeds, None without values."""
        values = self.values(metric)
        return fmean(values) if values else None
