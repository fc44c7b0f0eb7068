"""Intervals and ties of the metrics of a group, by joint resamples of the samples.

With u_i the influence of sample i on a part T, minus the mean influence, and w_i independent
Poisson numbers of mean 1, which count how often sample i is drawn,

    T* = T + 1/n sum_i (w_i - 1) u_i

for every part of every checkpoint, with the same w. The metric of the T* is one resample of it, and
two checkpoints tie unless the difference of their resamples has one sign in (1 + level) / 2 of
them. A part without influences is not resampled: its values, and so its ranks, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lidar_cli.core.metrics import Metric
from lidar_cli.ranking.group_metrics import NUMBERS, GroupMetric, table_of

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.scoring.compute import Score
    from lidar_cli.scoring.intervals import Interval

RESAMPLES = 1000
SEED = 0


def fixed_parts(metric: GroupMetric, scores: Sequence[Score]) -> list[str]:
    """The parts that are not resampled: a checkpoint has a value of it without influences."""
    return [
        name
        for name in metric.of
        if any(score.value(name) is not None and name not in score.influences for score in scores)
    ]


def resample(metric: GroupMetric, scores: Sequence[Score]) -> Tensor | None:
    """The metric of each checkpoint in each joint resample of the samples [RESAMPLES, K].

    None if no part is resampled.
    """
    import torch

    fixed = fixed_parts(metric, scores)
    influences = {
        at: _divided(name, scores)
        for at, name in enumerate(metric.of)
        if name not in fixed and any(name in score.influences for score in scores)
    }
    if not influences:
        return None
    values, n = table_of(scores, metric.of), max(len(one) for one in influences.values())
    generator = torch.Generator().manual_seed(SEED)
    blocks = []
    for rows in torch.split(torch.arange(RESAMPLES), max(1, NUMBERS // max(n, values.numel()))):
        count = torch.ones(len(rows), n, dtype=torch.float64)
        weights = torch.poisson(count, generator) - 1.0
        drawn = values.repeat(len(rows), 1, 1)
        for at, one in influences.items():
            drawn[:, at] += weights[:, : len(one)] @ one
        blocks.append(metric.values(drawn))
    return torch.cat(blocks)


def _divided(name: str, scores: Sequence[Score]) -> Tensor:
    """u / n of each checkpoint [n of most, K]; 0 for samples that a checkpoint does not have.

    RankMe may read more images than have views, and the first are the same.
    """
    import torch

    columns = [score.influences.get(name, torch.zeros(1)).double() for score in scores]
    padded = torch.zeros(max(map(len, columns)), len(columns), dtype=torch.float64)
    for at, column in enumerate(columns):
        padded[: len(column), at] = (column - column.mean()) / len(column)
    return padded


def tied_with(resamples: Tensor, level: float) -> list[list[int]]:
    """For each checkpoint, the positions of those that resamples [B, K] do not separate from it.

    A null ties with none.
    """
    least, most = resamples.amin(dim=0), resamples.amax(dim=0)
    needed = (1.0 + level) / 2.0 * len(resamples)
    tied = []
    for at in range(resamples.shape[1]):
        near = ((least <= most[at]) & (most >= least[at])).nonzero().flatten()  # NaN is not
        near = near[near != at]
        gaps = resamples[:, near] - resamples[:, at, None]
        apart = ((gaps > 0).sum(dim=0) >= needed) | ((gaps < 0).sum(dim=0) >= needed)
        tied.append(near[~apart].tolist())
    return tied


def intervals_of(resamples: Tensor, level: float) -> list[Interval]:
    """The percentile interval of each checkpoint, of resamples [B, K]; empty for a null."""
    from lidar_cli.scoring.intervals import Interval

    ordered, outside = resamples.sort(dim=0).values, int((1.0 - level) / 2.0 * len(resamples))
    low, high = ordered[outside].tolist(), ordered[-1 - outside].tolist()
    return [
        Interval(se, a, b) if se == se else Interval()
        for se, a, b in zip(resamples.std(dim=0).tolist(), low, high, strict=True)
    ]


def are_tied(metric: Metric, scores: Sequence[Score], pair: tuple[int, int], level: float) -> bool:
    """Whether two checkpoints of a group have equal values, or tie by a metric."""
    from lidar_cli.scoring.intervals import ties

    first, second = (scores[at] for at in pair)
    a, b = first.value(metric.name), second.value(metric.name)
    if a is None or b is None or a == b:
        return a == b
    if isinstance(metric, GroupMetric):
        resamples = resample(metric, scores)
        return resamples is not None and bool(tied_with(resamples[:, list(pair)], level)[0])
    u, v = (score.influences.get(metric.name) for score in (first, second))
    if u is None or v is None or len(u) != len(v):
        return False
    return bool(ties([a, b], [u, v], metric, level)[0])
