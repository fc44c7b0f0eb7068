"""The equations of the metrics of a subset of samples; `subset` has its definition and symbols.

Where samples have unequal numbers of views, q' is the smallest of them, so that no sample is
compared by a mean that is noisier than others.

Torch is imported when a metric is computed, as in `metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.subset import ComparedViews, HalfMeans

NEIGHBOURS = 10  # of each sample, as in `subset`


def retrieval(compared: ComparedViews) -> float:
    """The share of rank 1 among `ranks`. Raises DegenerateFeatures as `ComparedViews.nearer`."""
    return float((compared.ranks == 1).double().mean())


def retrieval_influence(compared: ComparedViews) -> Tensor:
    """m - 1 times the change if a sample is left out, up to a constant: [m], exact.

    Its own share of hits, less the samples that are recognised only without it.
    """
    hit, second = ((compared.ranks == rank).double() for rank in (1, 2))
    return (hit - compared.lost_to(second)).mean(dim=0)


def stability(means: HalfMeans) -> float:
    """The share of the 10 nearest neighbours of a sample that both halves of its views share.

    Raises DegenerateFeatures as `HalfMeans.nearest`.
    """
    first, second = means.are_neighbours
    return float((first & second).sum()) / (NEIGHBOURS * means.samples)


def stability_influence(means: HalfMeans) -> Tensor:
    """As `retrieval_influence`: the shared neighbours of a sample, less what the others gain.

    With F_j and S_j the 10 neighbours of sample j in either half, and f_j and s_j the next ones,
    which take the place of i if it is left out, j gains

        [f_j in S_j] if i in F_j  +  [s_j in F_j] if i in S_j  +  [f_j = s_j] - 1 if i in both
    """
    first, second = means.are_neighbours.double()
    shared = first * second
    next_first, next_second = means.nearest[:, :, NEIGHBOURS:]  # [m, 1] each
    enters = second.gather(1, next_first).T @ first + first.gather(1, next_second).T @ second
    leaves = (next_first != next_second).double().T @ shared
    influence: Tensor = (shared.sum(dim=1) - (enters - leaves)[0]) / NEIGHBOURS
    return influence
