"""A fixed subset of samples, for metrics that compare every sample with every other.

Such a metric takes O(m^2 d), so it reads m of the n samples, at most 1,000, and of each its first
q' views, at most 10. The subset is the same for every file of the same n: the m samples whose
numbers have the smallest hashes. So it does not depend on chunks or processes, and the subset of
the first samples of a file follows from what was collected of them.

Axes: i, l of m samples, a, b of q' views, d dimensions. x are the views centred by their mean over
the subset and scaled to unit mean variance; no metric here depends on location or scale.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from lidar_cli.core.moments import unit_rows
from lidar_cli.core.spectra import EPS
from lidar_cli.errors import DegenerateFeatures

MOST_SAMPLES = 1000
MOST_VIEWS = 10
PAIRED_VIEWS = 4  # the first views of each sample, of which all ordered pairs are compared
TIE = 1e-9  # cosines that differ by less are equal
LEAST_SIZE, MOST_SIZE = 1e-100, 1e100  # lengths of all views together, whose squares are ordinary
WORD = 2**32 - 1  # mask of 32 bits


class SampleSubset:
    """Collects the samples of the subset from chunks in any order, in the type they are stored in.

    n: samples seen.
    """

    def __init__(self) -> None:
        self.n = 0
        self._numbers = torch.empty(0, dtype=torch.int64)  # of the samples in `_blocks`
        self._blocks: list[Tensor] = []  # [c, q', d]

    def add(self, first: int, views: Tensor) -> None:
        """Add a chunk of views [c, q, d], whose first sample has this number."""
        numbers = torch.arange(first, first + len(views))
        limit = _limit(torch.cat([self._numbers, numbers]))
        chosen = _hash(numbers) <= limit
        self.n += len(views)
        if not chosen.any():
            return
        # Memory of a chunk that is chosen entirely is not copied: nothing changes a chunk.
        is_whole = bool(chosen.all()) and views.shape[1] <= MOST_VIEWS
        block = (views if is_whole else views[chosen.to(views.device), :MOST_VIEWS]).cpu()
        self._numbers = torch.cat([self._numbers, numbers[chosen]])
        self._blocks.append(block)
        if len(self._numbers) > 2 * MOST_SAMPLES:
            self._collect()

    def merge(self, other: SampleSubset) -> SampleSubset:
        """The subset of both sets of samples together; neither operand changes."""
        both = SampleSubset()
        both.n = self.n + other.n
        both._numbers = torch.cat([self._numbers, other._numbers])
        both._blocks = [*self._blocks, *other._blocks]
        return both

    def views(self) -> Tensor:
        """The first views of the samples of the subset [m, q', d], in the order of samples."""
        return self._collect() if self._blocks else torch.empty(0, 0, 0)

    def numbers(self) -> Tensor:
        """The numbers of the samples of the subset [m], ascending."""
        if self._blocks:
            self._collect()
        return self._numbers

    def _collect(self) -> Tensor:
        """Join the blocks to one, ordered by sample, without those that left the subset."""
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        order = self._numbers.argsort()
        order = order[_hash(self._numbers[order]) <= _limit(self._numbers)]
        if not torch.equal(self._numbers[order], self._numbers):
            self._blocks = [self._blocks[0][order]]
            self._numbers = self._numbers[order]
        return self._blocks[0]


def _limit(numbers: Tensor) -> int:
    """The largest hash in the subset of samples of these numbers."""
    if len(numbers) <= MOST_SAMPLES:
        return WORD
    return int(_hash(numbers).kthvalue(MOST_SAMPLES).values)


def _hash(numbers: Tensor) -> Tensor:
    """A number of 32 bits for each sample number, another for each one below 2^32.

    Source: Wellons 2018, "Prospecting for hash functions", lowbias32.
    """
    bits = numbers & WORD
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = ((bits ^ (bits >> shift)) * factor) & WORD
    return bits ^ (bits >> 16)


class ComparedViews:
    """x, from the views [m, q', d] of the subset, and what several metrics compute from it.

    unit_roundoff: of the type in which the views were stored.
    Raises DegenerateFeatures if the embedding is constant.
    """

    def __init__(self, views: Tensor, unit_roundoff: float = EPS) -> None:
        self.samples, self.views, self.dim = views.shape
        if self.samples < 2:
            raise DegenerateFeatures(
                f"{self.samples} sample: a comparison of samples needs 2", code="one-sample"
            )
        x = views.to(torch.float64, copy=True)
        size = torch.linalg.vector_norm(x)
        if not LEAST_SIZE < size < MOST_SIZE:  # whose square leaves the range of float64
            largest = torch.linalg.vector_norm(x, torch.inf)
            size = torch.linalg.vector_norm(x.div_(largest.where(largest > 0, 1.0)))
        x.sub_(x.mean(dim=(0, 1)))
        spread = torch.linalg.vector_norm(x)
        rounding = 2 * unit_roundoff if unit_roundoff > EPS else 16 * EPS
        if not spread > rounding * size:
            raise DegenerateFeatures(
                "every row is the same: the embedding is constant or collapsed", code="collapsed"
            )
        self.x = x.mul_(x.numel() ** 0.5 / spread)

    def check_views(self, what: str) -> None:
        """Raise DegenerateFeatures if q < 2. what: needs two views."""
        if self.views < 2:
            raise DegenerateFeatures(f"{self.views} view a sample: {what} needs 2", code="one-view")

    def neighbours(self, rows: Tensor, count: int) -> Tensor:
        """Whether l is one of the nearest neighbours of i by the cosine of rows [m, d], [m, m].

        Raises DegenerateFeatures if all the others would be neighbours.
        """
        if self.samples < count + 2:
            raise DegenerateFeatures(
                f"{self.samples} samples: {count} neighbours of each need {count + 2}",
                code="few-samples",
            )
        unit = unit_rows(rows)
        cosines = unit @ unit.T
        cosines.fill_diagonal_(-torch.inf)
        nearest = cosines.topk(count, dim=1).indices
        return torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, nearest, True)

    @cached_property
    def nearer(self) -> Tensor:
        """Whether view b of sample l is no farther from view a of sample i than i's own view b.

        By the cosine; for each ordered pair of views a, b a matrix [m, m] of i, l; False for l = i.
        Raises DegenerateFeatures if q < 2.
        """
        self.check_views("to recognise a sample by another view")
        unit = unit_rows(self.x[:, :PAIRED_VIEWS])
        matrices = []
        for a, b in combinations(range(unit.shape[1]), 2):
            cosines = unit[:, a] @ unit[:, b].T
            same = cosines.diagonal()[:, None] - TIE
            matrices += [cosines >= same, cosines.T.ge(same)]
        nearer = torch.stack(matrices)
        nearer.diagonal(dim1=1, dim2=2).fill_(False)
        return nearer

    @cached_property
    def ranks(self) -> Tensor:
        """The rank of the own view among all samples' views, 1 to m, for each pair, [pairs, m]."""
        return (1 + self.nearer.sum(dim=2, dtype=torch.int32)).to(torch.float64)

    def lost_to(self, weights: Tensor) -> Tensor:
        """For each sample l the sum over i of weights [pairs, m] where l is nearer, [pairs, m]."""
        pairs = zip(weights, self.nearer, strict=True)
        return torch.stack([weight @ nearer.to(weight) for weight, nearer in pairs])
