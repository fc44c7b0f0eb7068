"""The equations of the metrics of a subset of samples; `subset` has its definition and symbols.

Torch is imported when a metric is computed, as in `metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.subset import ComparedViews

NEIGHBOURS = 10


def retrieval(compared: ComparedViews) -> float:
    """The share of rank 1 among `ranks`. Raises DegenerateFeatures as `ComparedViews.nearer`."""
    return float((compared.ranks == 1).double().mean())


def retrieval_influence(compared: ComparedViews) -> Tensor:
    """m - 1 times the change if a sample is left out, up to a constant: [m], exact.

    Its own share of hits, less the samples that are recognised only without it.
    """
    hit, second = ((compared.ranks == rank).double() for rank in (1, 2))
    return (hit - compared.lost_to(second)).mean(dim=0)


def stability(compared: ComparedViews) -> float:
    """The share of the 10 nearest neighbours that the means over two halves of the views share.

    The halves are the first q' // 2 views and the others.
    Raises DegenerateFeatures if q < 2, or if there are too few samples.
    """
    compared.check_views("two halves of the views")
    half = compared.views // 2
    first, second = (
        compared.neighbours(part.mean(dim=1), NEIGHBOURS)
        for part in (compared.x[:, :half], compared.x[:, half:])
    )
    return float((first & second).sum()) / (NEIGHBOURS * compared.samples)
