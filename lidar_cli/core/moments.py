"""Streaming moments of embeddings, in float64: update by chunk, merge, read at the end.

Axes in this file: i of n samples, j of q views, and the d dimensions of one embedding. A chunk
[c, q, d] has all views of c samples. Samples with unequal numbers of views q_i arrive in chunks of
equal numbers, in any order. Since no sample is split between two chunks, the scatter of
views about their sample mean (`within`) is a plain sum over chunks. Only the scatter of the sample
means needs a correction when two states are merged (Chan, Golub, LeVeque 1983, "Algorithms for
computing the sample variance", eq. 2.1):

    mean    = mean_1 + gap n_2 / n,             gap = mean_2 - mean_1,   n = n_1 + n_2
    scatter = scatter_1 + scatter_2 + gap gap^T n_1 n_2 / n

No scatter is computed as a sum of squares minus a squared sum, which loses all digits if the mean
is large compared with the spread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.accumulate import BLOCK_NUMBERS, Scatter, Sums, held_rows, map_pieces
from lidar_cli.runtime.prefetch import copy_to_device

Device = torch.device | str
# q, the same for every sample, or how many samples have each number of views, {q: samples}.
ViewCounts = int | Mapping[int, int]


def degrees_within(n: int, q: ViewCounts) -> int:
    """Degrees of freedom of the within covariance: n (q - 1), or sum_i (q_i - 1)."""
    if isinstance(q, int):
        return n * (q - 1)
    return sum(samples * (views - 1) for views, samples in q.items())


def noise_floor(n: int, q: ViewCounts) -> float:
    """The share of a view's noise in the mean of a sample's views: 1/q, or the mean of 1/q_i."""
    if isinstance(q, int):
        return 1.0 / q
    return sum(samples / views for views, samples in q.items()) / n


class RowMoments(Sums):
    """Count, mean and scatter of rows [d] that arrive in blocks.

    Up to d rows are stored as they are, because the spectra can then be computed from an [n, n]
    matrix, smaller than [d, d]. From row d + 1 on the rows are replaced by ("folded into") their
    mean [d] and centred scatter [d, d], many rows at a time.
    """

    def __init__(self, dim: int, device: Device = "cpu") -> None:
        self.dim = dim
        self.device = torch.device(device)
        self.n = 0
        self._blocks: list[Tensor] = []  # [c, d], not folded yet
        self._n_folded = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=self.device)
        self._scatter: Scatter | None = None  # of the folded rows

    @classmethod
    def of_sums(cls, n: int, mean: Tensor, scatter: Tensor) -> RowMoments:
        """The moments of n rows from their mean [d] and scatter [d, d]."""
        rows = cls(len(mean), mean.device)
        if n:
            rows.n = rows._n_folded = n
            rows._mean = mean.to(torch.float64)
            rows._scatter = Scatter.of(scatter)
        return rows

    def update(self, rows: Tensor) -> None:
        """Add rows [c, d] of any float type."""
        with ExitStack() as changes:
            for block in torch.split(rows.detach(), held_rows(self.dim)):
                (copied,) = copy_to_device([block], self.device)
                added = in_float64(copied)
                changes.enter_context(self._change())  # not before memory is found for the first
                self.append(added)

    def append(self, rows: Tensor) -> None:
        """Add rows [c, d] in float64 on the device, without a copy of them."""
        with self._change():
            self._blocks.append(rows)
            self.n += len(rows)
            most = self.dim if self._scatter is None else held_rows(self.dim)
            if self.n - self._n_folded > most:
                self._fold()

    def merge(self, other: RowMoments) -> RowMoments:
        """The moments of both sets of rows together; neither operand changes."""
        both = RowMoments(self.dim, self.device)
        for part in (self, other):
            part.check()
            if part._scatter is not None:
                both._fold().add_scatter(part._scatter.sum().to(self.device))
                both._shift(part._n_folded, part._mean.to(self.device))
                both.n += part._n_folded
            for block in part._blocks:
                both.update(block)
        return both

    @property
    def mean(self) -> Tensor:
        """The mean row [d]."""
        if self._scatter is None:
            return self._rows().mean(dim=0)
        self._fold()
        return self._mean

    @property
    def scatter(self) -> Tensor:
        """Sum over rows of (row - mean)(row - mean)^T, [d, d]."""
        residuals = self.centred_rows()
        if residuals is None:
            return self._fold().sum()
        scatter = Scatter(self.dim, self.device)
        scatter.add(residuals)
        return scatter.sum()

    def scatter_trace(self) -> Tensor:
        """Sum over rows of |row - mean|^2."""
        residuals = self.centred_rows()
        return self._fold().sum().trace() if residuals is None else residuals.square().sum()

    def rows(self) -> Tensor | None:
        """All rows [n, d] if n <= d, else None."""
        return self._rows() if self._scatter is None else None

    def centred_rows(self) -> Tensor | None:
        """All rows minus their mean [n, d] if n <= d, else None."""
        return self._rows() - self.mean if self._scatter is None else None

    def _rows(self) -> Tensor:
        self.check()
        if len(self._blocks) != 1:
            empty = torch.empty(0, self.dim, dtype=torch.float64, device=self.device)
            self._blocks = [torch.cat([empty, *self._blocks])]
        return self._blocks[0]

    def _fold(self) -> Scatter:
        """Fold the stored rows into mean and scatter; returns the scatter of all rows."""
        with self._change():
            if self._scatter is None:
                self._scatter = Scatter(self.dim, self.device)
            blocks, self._blocks = self._blocks, []
            for n, mean in self._scatter.add_centred(blocks):
                self._shift(n, mean)
            return self._scatter

    def _shift(self, n: int, mean: Tensor) -> None:
        """Correct mean and scatter after the scatter of n rows about their `mean` was added."""
        assert self._scatter is not None
        total = self._n_folded + n
        gap = mean - self._mean
        self._scatter.add_weighted(gap, self._n_folded * n / total)
        self._mean = self._mean + gap * (n / total)
        self._n_folded = total


class Moments(Sums):
    """The moments of embeddings z [n, q, d] that the metrics are computed from, in O(d^2) memory.

        m_i      = mean_j z_ij                               `class_means`, RowMoments of rows [d]
        within   = sum_ij (z_ij - m_i)(z_ij - m_i)^T         [d, d]
        r_i      = sum_j |z_ij - m_i|^2                      `energies`, RowMoments of rows [1] by q
        z / |z|  spread and agreement on the unit sphere     `sphere`, SphereMoments

    `merge` is associative and commutative to rounding: the moments of chunks, of files or of
    machines can be merged in any order.

    Args:
        n_views: q, the same for every sample; None if samples have unequal numbers of views. Each
            sample then counts once among the class means, whatever its q_i, and
            q_i^1/2 m_i are added to `weighted_means`, for the sum over all views.
        dim: d.
        device: where the sums are held; chunks are moved there.
        scatters: whether to compute `class_means`, `within` and `energies`; if not, they are empty.
        sphere: whether to compute `sphere`; if not, it is empty.

    Example:
        Two samples of two views on one axis: means 2 and 6, each view 1 from its mean.

        >>> import torch
        >>> from lidar_cli import Moments
        >>> moments = Moments(n_views=2, dim=1)
        >>> for sample in ([[1.0], [3.0]], [[5.0], [7.0]]):
        ...     moments.update(torch.tensor([sample]))
        >>> moments.n, moments.class_means.mean.item()
        (2, 4.0)
        >>> round(moments.class_means.scatter.item(), 9), round(moments.within.item(), 9)
        (8.0, 4.0)
        >>> moments
        Moments(n_views=2, dim=1): 2 samples, on cpu
        >>> round(moments.lidar(), 4)  # one direction
        1.0

        Three recordings of 2, 2 and 3 segments have 1 + 1 + 2 degrees of freedom within.

        >>> recordings = [torch.zeros(2, 1), torch.ones(2, 1), torch.ones(3, 1)]
        >>> Moments.of(recordings).degrees
        4

    References:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American
        Statistician 37, 1983, eq. 2.1.
    """

    def __init__(
        self,
        n_views: int | None,
        dim: int,
        device: Device = "cpu",
        *,
        scatters: bool = True,
        sphere: bool = True,
    ) -> None:
        self.n_views = n_views
        self.dim = dim
        self.device = torch.device(device)
        self._n = 0  # samples seen
        self.class_means = RowMoments(dim, device)
        self.weighted_means = RowMoments(dim, device)  # empty if n_views is given
        self.energies: dict[int, RowMoments] = {}
        self.unit_roundoff = torch.finfo(torch.float64).eps  # of the coarsest type that was added
        self.sphere = SphereMoments(dim, self.device)
        self._counts: dict[int, int] = {}  # samples by their number of views
        self._wants_scatters, self._wants_sphere = scatters, sphere
        self._within = Scatter(dim if scatters else 0, self.device)

    @classmethod
    def of(cls, embeddings: Tensor | Sequence[Tensor]) -> Moments:
        """The moments of embeddings [n, q, d], or of n tensors [q_i, d], on their device.

        Raises:
            ValueError: if the tensor has not three axes, or one of several not two.
        """
        if not isinstance(embeddings, Tensor):
            return cls._of_samples(embeddings)
        if embeddings.ndim != 3:
            raise ValueError(f"expected embeddings [n, q, d], got shape {tuple(embeddings.shape)}")
        moments = cls(embeddings.shape[1], embeddings.shape[2], embeddings.device)
        moments.update(embeddings)
        return moments

    @classmethod
    def _of_samples(cls, samples: Sequence[Tensor]) -> Moments:
        by_count: dict[int, list[Tensor]] = {}
        for sample in samples:
            if sample.ndim != 2 or not len(sample) or sample.shape[1] != samples[0].shape[1]:
                shape = tuple(sample.shape)
                raise ValueError(f"expected the views [q_i, d] of each sample, got shape {shape}")
            by_count.setdefault(len(sample), []).append(sample)
        dim, device = (samples[0].shape[1], samples[0].device) if samples else (0, "cpu")
        moments = cls(None, dim, device)
        for equal in by_count.values():
            moments.update(torch.stack(equal))
        return moments

    @classmethod
    def of_sums(cls, n_views: int, class_means: RowMoments, within: Tensor) -> Moments:
        """The moments of samples from those of their means and from `within` [d, d]; no sphere."""
        moments = cls(n_views, class_means.dim, class_means.device, sphere=False)
        moments._n = class_means.n
        moments.class_means = class_means
        moments._within.add_scatter(within)
        return moments

    def __repr__(self) -> str:
        return (
            f"Moments(n_views={self.n_views}, dim={self.dim}): {self._n} samples, on {self.device}"
        )

    def lidar(self, **constants: float) -> float:
        """LiDAR of the samples so far, as `lidar_cli.lidar` computes it.

        constants: `delta` and `epsilon`, by default those of `lidar_cli.lidar`.

        Raises:
            DegenerateFeatures: as `lidar_cli.lidar`.
        """
        # By name, because `functional` imports this module.
        value: float = import_module("lidar_cli.core.functional").lidar_of(self, **constants)
        return value

    @property
    def n(self) -> int:
        """The number of samples so far. Raises RuntimeError as `update`."""
        self.check()
        return self._n

    @property
    def views(self) -> ViewCounts:
        """q, if all samples have the same number of views, else how many samples have each."""
        if self.n_views is not None:
            return self.n_views
        return self._counts if len(self._counts) > 1 else next(iter(self._counts), 0)

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the within covariance, sum_i (q_i - 1)."""
        return degrees_within(self.n, self.views)

    @property
    def within(self) -> Tensor:
        """Sum over views of (view - its sample's mean)(...)^T, [d, d].

        The tensor belongs to this state, which changes it: clone it to keep or to change it.
        Raises RuntimeError as `update`.
        """
        self.check()
        return self._within.sum()

    def update(self, chunk: Tensor) -> None:
        """Add a chunk [c, q, d] of any float type: whole samples, all their views.

        Raises:
            ValueError: if q or d differ from this state's, or the numbers are complex.
            RuntimeError: if an earlier update was interrupted, by an error or from the keyboard.
        """
        self.check()
        q = chunk.shape[1] if chunk.ndim == 3 else 0
        wrong_views = self.n_views != q if self.n_views is not None else q < 1
        if chunk.ndim != 3 or wrong_views or chunk.shape[2] != self.dim:
            expected = "q" if self.n_views is None else self.n_views
            raise ValueError(
                f"expected a chunk [c, {expected}, {self.dim}], got {tuple(chunk.shape)}"
            )
        if chunk.is_complex():
            raise ValueError("expected real numbers, got complex ones")
        self.note_type(chunk.dtype)
        most = max(1, BLOCK_NUMBERS // max(1, q * self.dim))
        with ExitStack() as changes:
            for block in torch.split(chunk.detach(), most):
                (copied,) = copy_to_device([block], self.device)
                changes.enter_context(self._change())  # not before memory is found for the first
                if len(block):
                    self._add(copied)

    def note_type(self, dtype: torch.dtype) -> None:
        """Record in which type numbers are stored, before a caller converts them."""
        if dtype.is_floating_point:
            self.unit_roundoff = max(self.unit_roundoff, torch.finfo(dtype).eps)

    def _add(self, block: Tensor) -> None:
        """Add a block [c, q, d] on the device."""
        q = block.shape[1]
        sphere: list[SphereSums] = []
        if self._wants_scatters:
            pieces = self._within.write_and_add(self._reflect, block, q - 1)
            for piece in pieces:
                self.class_means.append(piece.means)
                if self.n_views is None:
                    self.weighted_means.append(q**0.5 * piece.means)
            energies = torch.cat([piece.lengths for piece in pieces]).square_()[:, None]
            self.energies.setdefault(q, RowMoments(1, self.device)).append(energies)
            sphere = [piece.sphere for piece in pieces if piece.sphere is not None]
        elif self._wants_sphere:
            numbers = q * self.dim
            sphere = map_pieces(
                lambda some: sphere_sums(block[some].to(torch.float64, copy=True)),
                *(len(block), numbers, self.device),
            )
        if self._wants_sphere:
            self.sphere.add(q, sphere)
        self._n += len(block)
        self._counts[q] = self._counts.get(q, 0) + len(block)

    def _reflect(self, views: Tensor, rows: Tensor) -> _Piece:
        """Write q - 1 rows a sample whose scatter is that of its q views; returns the sums.

        views: [c, q, d], overwritten. rows: [c, q - 1, d], written.

        A Householder reflection across the views changes no scatter. Of views x_j = z_j - z_q, the
        last of which is 0, the reflection of 1 / sqrt(q) + e_q makes a row -sqrt(q) mean(x), which
        is left out, and the q - 1 rows

            y_j = x_j - mean(x) sqrt(q) / (1 + sqrt(q)),     sum_j y_j y_j^T = sum_j r_j r_j^T

        with the residuals r_j = z_j - mean(z). Differences come first, so that a mean that is large
        compared with the spread loses no digits.
        """
        q = views.shape[1]
        last = views[:, -1].clone()
        torch.sub(views[:, :-1], last[:, None], out=rows)
        offsets = rows.sum(dim=1).div_(q)
        rows.sub_(offsets[:, None] * (q**0.5 / (1 + q**0.5)))
        lengths = torch.linalg.vector_norm(rows.flatten(1), dim=1)
        sphere = sphere_sums(views) if self._wants_sphere else None
        return _Piece(offsets.add_(last), lengths, sphere)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples together; neither operand changes.

        Raises:
            ValueError: if q or d differ.
            RuntimeError: as `update`, of either.
        """
        if (self.n_views, self.dim) != (other.n_views, other.dim):
            raise ValueError(
                f"cannot merge moments of q, d = {other.n_views}, {other.dim} "
                f"into those of q, d = {self.n_views}, {self.dim}"
            )
        scatters = self._wants_scatters and other._wants_scatters
        sphere = self._wants_sphere and other._wants_sphere
        both = Moments(self.n_views, self.dim, self.device, scatters=scatters, sphere=sphere)
        both._n = self.n + other.n
        both.unit_roundoff = max(self.unit_roundoff, other.unit_roundoff)
        both._counts = dict(Counter(self._counts) + Counter(other._counts))
        if scatters:
            both._within.add_scatter(self.within)
            both._within.add_scatter(other.within.to(self.device))
            both.class_means = self.class_means.merge(other.class_means)
            both.weighted_means = self.weighted_means.merge(other.weighted_means)
            none = RowMoments(1, self.device)
            both.energies = {
                q: self.energies.get(q, none).merge(other.energies.get(q, none))
                for q in self.energies | other.energies
            }
        if sphere:
            both.sphere = self.sphere.merge(other.sphere)
        return both


class _Piece(NamedTuple):
    """Sums of c samples: the mean of each one's views, and the length of its residuals."""

    means: Tensor  # [c, d]
    lengths: Tensor  # [c]
    sphere: SphereSums | None


def in_float64(rows: Tensor) -> Tensor:
    """A copy of rows [c, d] of any float type."""
    copy = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    map_pieces(lambda some: copy[some].copy_(rows[some]), len(rows), rows.shape[1], rows.device)
    return copy


def unit_rows(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows [..., d] divided by their length; a zero row remains 0.

    out: where to write them, which may be `rows`.
    A row whose squares could overflow or underflow is divided by its largest entry first.
    """
    numbers = torch.finfo(rows.dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    least, most = numbers.tiny**0.5 / numbers.eps, numbers.max**0.5
    ordinary = (length > least) & (length < most)
    # On a GPU the question would wait for all queued work.
    if rows.device.type == "cpu" and bool(ordinary.all()):
        return torch.mul(rows, length.reciprocal_(), out=out)
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
    unit = torch.div(rows, largest.clamp_min(numbers.tiny).where(~ordinary, 1.0), out=out)
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(numbers.tiny)
    return unit.mul_(length.reciprocal())


class SphereSums(NamedTuple):
    """Sums over unit rows u [c, q, d], with the means m [c, d] over the views of each sample."""

    samples: int  # c
    mean: Tensor  # of m, [d]
    between: Tensor  # sum of squared deviations of m from `mean`, [d]
    within: Tensor  # sum of squared deviations of u from m, [d]


def sphere_sums(rows: Tensor) -> SphereSums:
    """The sums over rows [c, q, d] after projection to the unit sphere; overwrites the rows."""
    unit = unit_rows(rows, out=rows)
    means = unit.sum(dim=1).div_(rows.shape[1])
    within = unit.sub_(means[:, None]).square_().sum(dim=(0, 1))
    mean = means.sum(dim=0).div_(len(rows))
    return SphereSums(len(rows), mean, means.sub_(mean).square_().sum(dim=0), within)


class SphereMoments:
    """Spread and agreement of the embeddings projected to the unit sphere.

    mean, squares: of all unit rows the mean, and the sum of squared deviations from it, [d].
    distances: the mean squared distance between two views of a sample, summed over samples.
    A zero row is counted as a vector 0.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.n_rows = 0
        self.n_samples = 0
        self.fewest_views = 0  # of a sample
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        self.distances = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, views: int, pieces: Sequence[SphereSums]) -> None:
        """Add the sums of several pieces, whose samples have `views` views each."""
        sizes = torch.tensor([[piece.samples] for piece in pieces], dtype=torch.float64)
        (counts,) = copy_to_device([sizes], self.mean.device)
        means = torch.stack([piece.mean for piece in pieces])
        between = torch.stack([piece.between for piece in pieces])
        spread = torch.stack([piece.within for piece in pieces]).sum(dim=0)
        samples = sum(piece.samples for piece in pieces)
        mean = (counts * means).sum(dim=0) / samples
        squares = between.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
        if views > 1:
            # Over pairs of views, |u_j - u_k|^2 has the mean 2/(q - 1) sum_j |u_j - u_mean|^2.
            self.distances = self.distances + 2.0 / (views - 1) * spread.sum()
        self._add(samples * views, mean, spread + views * squares)
        self.fewest_views = min(views, self.fewest_views or views)
        self.n_samples += samples

    def merge(self, other: SphereMoments) -> SphereMoments:
        """The moments of both sets of rows together; neither operand changes."""
        both = SphereMoments(len(self.mean), self.mean.device)
        for part in (self, other):
            if part.n_rows:
                both._add(part.n_rows, part.mean.to(both.mean), part.squares.to(both.mean))
            both.n_samples += part.n_samples
            both.fewest_views = min(filter(None, (both.fewest_views, part.fewest_views)), default=0)
            both.distances = both.distances + part.distances.to(both.mean)
        return both

    def _add(self, n: int, mean: Tensor, squares: Tensor) -> None:
        total = self.n_rows + n
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.n_rows * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n_rows = total
