"""The noise of the training seed: how much accuracies and metrics differ between repeated runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from study.records import Checkpoint, Results

ACCURACY = "accuracy"  # the name of the probe's row


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviations of one metric, or of the accuracy, at one layer and q.

    seeds: over training seeds of the same hyperparameters. images: the standard error of sampled
    images, root mean square; None if the metric has no interval. search: over the runs of the
    search on the same set, whose hyperparameters differ. runs: hyperparameters that are repeated.
    """

    data: str
    layer: str
    q: int
    metric: str
    runs: int
    seeds: float
    images: float | None
    search: float


def seed_noise(results: Results) -> list[SeedNoise]:
    """The noise of every metric in every setting with repeated runs; nulls are left out."""
    rows = []
    for data, layer, q in dict.fromkeys((c.data, c.layer, c.q) for c in results.checkpoints):
        here = [c for c in results.checkpoints if (c.data, c.layer, c.q) == (data, layer, q)]
        search = [c for c in here if c.kind == "search"]
        repeated = [c for c in here if c.kind == "seed"]
        runs = {(c.method, c.index) for c in repeated}
        if not runs:
            continue
        same = [
            [c for c in (*search, *repeated) if (c.method, c.index) == run] for run in sorted(runs)
        ]
        for name in (ACCURACY, *results.directions):
            rows.append(_noise(data, layer, q, name, same, search))
    return [row for row in rows if row is not None]


def _noise(
    data: str,
    layer: str,
    q: int,
    name: str,
    same: Sequence[Sequence[Checkpoint]],
    search: Sequence[Checkpoint],
) -> SeedNoise | None:
    def values(checkpoints: Sequence[Checkpoint]) -> list[float]:
        some = [c.accuracy if name == ACCURACY else c.values[name] for c in checkpoints]
        return [value for value in some if value is not None]

    variances = [statistics.variance(some) for one in same if len(some := values(one)) > 1]
    of_search = values(search)
    if not variances or len(of_search) < 2:
        return None
    errors = [c.errors[name] ** 2 for one in same for c in one if name in c.errors]
    return SeedNoise(
        *(data, layer, q, name, len(variances)),
        seeds=math.sqrt(statistics.fmean(variances)),
        images=math.sqrt(statistics.fmean(errors)) if errors else None,
        search=statistics.stdev(of_search),
    )
