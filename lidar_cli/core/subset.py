"""A fixed subset of samples, for metrics that compare every sample with every other.

Such a metric takes O(m^2 d), so it reads m of the n samples, at most 1,000, and of each its first
q' views, at most 10; where samples have unequal numbers of views, as many as each of the n has. The
subset is the same for every file of the same n: the m samples whose
numbers have the smallest hashes. So it does not depend on chunks or processes, and the subset of
the first samples of a file follows from what was collected of them.

Axes: i, j, l of m samples, a, b of q' views, d dimensions. x are the views less their mean over the
subset; samples are compared by the cosine, so that no metric here depends on location or scale.
"""

from __future__ import annotations

from collections.abc import Callable
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
NEIGHBOURS = 10  # of each sample
TIE = 1e-9  # cosines that differ by less are equal
LEAST_SIZE, MOST_SIZE = 1e-100, 1e100  # lengths of all views together, whose squares are ordinary
WORD = 2**32 - 1  # mask of 32 bits


class SampleSubset:
    """Collects the samples of the subset from chunks in any order.

    select: what is collected of the first views [c, q', d] of c samples; all, if it is None.
    n: samples seen. unit_roundoff: of the type in which the views are stored.
    """

    def __init__(self, select: Callable[[Tensor], Tensor] | None = None) -> None:
        self.n = 0
        self.unit_roundoff = EPS
        self._select = select
        self._numbers = torch.empty(0, dtype=torch.int64)  # of the samples in `_blocks`
        self._blocks: list[Tensor] = []  # [c, ...]

    def add(self, numbers: Tensor, views: Tensor) -> None:
        """Add a chunk of views [c, q, d] of the samples with these numbers [c]."""
        limit = _limit(torch.cat([self._numbers, numbers]))
        chosen = _hash(numbers) <= limit
        self.n += len(views)
        self.unit_roundoff = torch.finfo(views.dtype).eps if views.is_floating_point() else EPS
        if not chosen.any():
            return
        # Memory of a chunk that is chosen entirely is not copied: nothing changes a chunk.
        is_whole = bool(chosen.all()) and views.shape[1] <= MOST_VIEWS
        block = views if is_whole else views[chosen.to(views.device), :MOST_VIEWS]
        block = block if self._select is None else self._select(block)
        self._numbers = torch.cat([self._numbers, numbers[chosen]])
        self._blocks.append(block.cpu())
        if len(self._numbers) > 2 * MOST_SAMPLES:
            self._collect()

    def merge(self, other: SampleSubset) -> SampleSubset:
        """The subset of both sets of samples together; neither operand changes."""
        both = SampleSubset(self._select)
        both.n = self.n + other.n
        both.unit_roundoff = max(self.unit_roundoff, other.unit_roundoff)
        both._numbers = torch.cat([self._numbers, other._numbers])
        both._blocks = [*self._blocks, *other._blocks]
        return both

    def collected(self) -> Tensor:
        """What is selected of the samples of the subset [m, ...], in the order of samples."""
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


def half_means(views: Tensor, normalize: bool = False) -> Tensor:
    """The means over the first q' // 2 views and over the others [c, 2, d], in float64.

    views: [c, q', d]; of q' = 1 the view itself is returned, [c, 1, d].
    normalize: whether views are scaled to unit length first.
    """
    half = views.shape[1] // 2
    means = []
    for part in (views[:, :half], views[:, half:]):
        if part.shape[1]:
            mean = torch.zeros_like(part[:, 0], dtype=torch.float64)
            for view in part.unbind(dim=1):
                numbers = view.to(torch.float64)
                # Each is divided, because their sum could overflow.
                mean += (unit_rows(numbers) if normalize else numbers) / part.shape[1]
            means.append(mean)
    return torch.stack(means, dim=1)


def _centre(rows: Tensor, shares: Tensor, unit_roundoff: float) -> Tensor:
    """Rows [m, k, d] less their mean, in float64, at a scale at which squares are ordinary.

    shares: of each k in the mean [k]. unit_roundoff: of the type in which views were stored.
    Raises DegenerateFeatures if there is one sample, or if samples do not differ.
    """
    if len(rows) < 2:
        raise DegenerateFeatures(
            f"{len(rows)} sample: a comparison of samples needs 2", code="one-sample"
        )
    x = rows.to(torch.float64, copy=True)
    size = torch.linalg.vector_norm(x)
    if not LEAST_SIZE < size < MOST_SIZE:  # whose square leaves the range of float64
        largest = torch.linalg.vector_norm(x, torch.inf)
        size = torch.linalg.vector_norm(x.div_(largest.where(largest > 0, 1.0)))
    x.sub_(shares.to(x) @ x.mean(dim=0))
    rounding = 2 * unit_roundoff if unit_roundoff > EPS else 16 * EPS
    if not torch.linalg.vector_norm(x) > rounding * size:
        raise DegenerateFeatures(
            "every row is the same: the embedding is constant or collapsed", code="collapsed"
        )
    return x


class ComparedViews:
    """x, from the views [m, q', d] of the subset, and what is computed from it.

    unit_roundoff: of the type in which the views were stored.
    Raises DegenerateFeatures if the embedding is constant.
    """

    def __init__(self, views: Tensor, unit_roundoff: float = EPS) -> None:
        self.samples, self.views, self.dim = views.shape
        shares = torch.ones(self.views, dtype=torch.float64) / self.views
        self.x = _centre(views, shares, unit_roundoff)

    @cached_property
    def nearer(self) -> Tensor:
        """Whether view b of sample l is no farther from view a of sample i than i's own view b.

        By the cosine; for each ordered pair of views a, b a matrix [m, m] of i, l; False for l = i.
        Raises DegenerateFeatures if q < 2.
        """
        if self.views < 2:
            raise DegenerateFeatures(
                f"{self.views} view a sample: to recognise a sample by another view needs 2",
                code="one-view",
            )
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


class HalfMeans:
    """Means of x over two halves of the views, from those of the views [m, 2, d] of the subset.

    views: q', of which the means are those of `half_means`. unit_roundoff: as of `ComparedViews`.
    Raises DegenerateFeatures as `ComparedViews`, and if q < 2.
    """

    def __init__(self, means: Tensor, views: int, unit_roundoff: float = EPS) -> None:
        if views < 2:
            raise DegenerateFeatures(
                f"{views} view a sample: two halves of the views need 2", code="one-view"
            )
        self.samples = len(means)
        counts = torch.tensor([views // 2, views - views // 2], dtype=torch.float64)
        self.x = _centre(means, counts / views, unit_roundoff)

    @cached_property
    def nearest(self) -> Tensor:
        """The numbers of the 11 nearest others of each sample in both halves [2, m, 11].

        By the cosine, the nearest first. Raises DegenerateFeatures if m < 12.
        """
        if self.samples < NEIGHBOURS + 2:
            raise DegenerateFeatures(
                f"{self.samples} samples: {NEIGHBOURS} neighbours of each need {NEIGHBOURS + 2}",
                code="few-samples",
            )
        nearest = []
        for half in unit_rows(self.x).unbind(dim=1):
            cosines = half @ half.T
            cosines.fill_diagonal_(-torch.inf)
            nearest.append(cosines.topk(NEIGHBOURS + 1, dim=1).indices)
        return torch.stack(nearest)

    @cached_property
    def are_neighbours(self) -> Tensor:
        """Whether l is one of the 10 nearest of i, in both halves [2, m, m]."""
        nearest = self.nearest[:, :, :NEIGHBOURS]
        none = torch.zeros(2, self.samples, self.samples, dtype=torch.bool, device=nearest.device)
        return none.scatter_(2, nearest, True)
