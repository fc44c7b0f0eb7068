"""The equations of the metrics of a subset of samples; `subset` has its definition and symbols.

Torch is imported when a metric is computed, as in `metrics`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lidar_cli.errors import DegenerateFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.subset import ComparedViews

NEIGHBOURS = 10
GAUSSIANITY_WEIGHT = 0.05  # lambda in LeJEPA's loss


def retrieval(compared: ComparedViews) -> float:
    """The share of rank 1 among `ranks`. Raises DegenerateFeatures as `ComparedViews.nearer`."""
    return float((compared.ranks == 1).double().mean())


def retrieval_influence(compared: ComparedViews) -> Tensor:
    """m - 1 times the change if a sample is left out, up to a constant: [m], exact.

    Its own share of hits, less the samples that are recognised only without it.
    """
    hit, second = ((compared.ranks == rank).double() for rank in (1, 2))
    return (hit - compared.lost_to(second)).mean(dim=0)


def identification(compared: ComparedViews) -> float:
    """log2(m) - mean log2(rank): the bits about the sample that a view gives, 0 to log2(m).

    Raises DegenerateFeatures as `ComparedViews.nearer`.
    """
    return math.log2(compared.samples) - float(compared.ranks.log2().mean())


def identification_influence(compared: ComparedViews) -> Tensor:
    """As `retrieval_influence`: a sample also costs log2(rank / (rank - 1)) where it is nearer."""
    ranks = compared.ranks
    cost = (ranks / (ranks - 1).clamp_min(1)).log2()
    return (-ranks.log2() - compared.lost_to(cost)).mean(dim=0)


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


def hubness(compared: ComparedViews) -> float:
    """The skewness over samples of how often one is among the 10 nearest neighbours of others.

    Of the means over views. Raises DegenerateFeatures if there are too few samples, or if all are
    equally often neighbours.
    """
    counts = compared.neighbours(compared.x.mean(dim=1), NEIGHBOURS).sum(dim=0).double()
    gaps = counts - counts.mean()
    variance = gaps.square().mean()
    if not variance > 0:
        raise DegenerateFeatures(
            "all samples are equally often neighbours: a skewness needs a spread",
            code="equal-counts",
        )
    return float(gaps.pow(3).mean() / variance.pow(1.5))


def persistence(compared: ComparedViews) -> float:
    """The sum of the edges of the minimum spanning tree over the largest distance, of first views.

    By Prim's algorithm: of the samples outside the tree, the nearest to it is added.
    """
    import torch

    rows = compared.x[:, 0]
    rows = rows - rows[0]  # cdist forms |a|^2 - 2 a.b + |b|^2, and a common offset would cancel
    distances = torch.cdist(rows, rows)
    largest = distances.max()
    if not largest > 0:
        raise DegenerateFeatures("the first views are all the same", code="collapsed")
    nearest = distances[0].clone()  # the distance of each sample to the tree
    nearest[0] = torch.inf
    length = distances.new_zeros(())
    for _ in range(len(rows) - 1):
        edge, added = nearest.min(dim=0)
        length += edge
        outside = nearest.isfinite()
        nearest = torch.minimum(nearest, distances[added]).where(outside, torch.inf)
        nearest[added] = torch.inf
    return float(length / largest)


def gaussianity(compared: ComparedViews) -> float:
    """SIGReg, the distance of the rows from a standard Gaussian; 0 is Gaussian."""
    return compared.sigreg


def lejepa(compared: ComparedViews) -> float:
    """LeJEPA's loss in form, 0.05 m gaussianity + 0.95 invariance.

    invariance: the mean of (x - its sample's mean over views)^2 over rows and dimensions. As the
    mean of x^2 is 1, it is 1 less the mean square of these means.
    Raises DegenerateFeatures if q < 2.
    """
    compared.check_views("the distance between views")
    invariance = 1.0 - float(compared.x.mean(dim=1).square().mean())
    shape = GAUSSIANITY_WEIGHT * compared.samples * gaussianity(compared)
    return shape + (1.0 - GAUSSIANITY_WEIGHT) * invariance
