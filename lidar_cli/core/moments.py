"""Streaming moments of embeddings, in float64: update by chunk, merge, read at the end.

Axes in this file: i of n samples, j of q views, and the d dimensions of one embedding; a chunk is
[c, q, d], the whole of c samples. Since no sample straddles two chunks, the scatter of views about
their sample mean (`within`) is a plain sum over chunks; only the scatter of the sample means needs
a correction when two states meet (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample
variance", eq. 2.1). Nothing is ever computed as a sum of squares minus a squared sum: that loses
all digits once the mean is large beside the spread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidar_cli.core.pieces import pieces
from lidar_cli.core.products import add_products, mirrored

Device = torch.device | str

HELD_NUMBERS = 2**21  # of rows held for one product, 16 MB; but for the product's sake at least
LEAST_HELD_ROWS = 1024


class RowMoments:
    """Count, mean and scatter of rows [d] that arrive in blocks.

    While no more than d rows have been seen they are kept as they are, since they are then the
    smaller side: the spectra solve an [n, n] problem instead of a [d, d] one. From row d + 1 on
    they are folded into the mean [d] and the centred scatter [d, d], many at a time.
    """

    def __init__(self, dim: int, device: Device = "cpu") -> None:
        self.dim = dim
        self.device = torch.device(device)
        self.n = 0
        self._kept: list[Tensor] = []  # blocks [c, d], not folded yet
        self._n_folded = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=self.device)
        self._scatter: Tensor | None = None  # [d, d] of the folded rows, its upper triangle valid

    @classmethod
    def of_sums(cls, n: int, mean: Tensor, scatter: Tensor) -> RowMoments:
        """The moments of n rows of which the mean [d] and the scatter [d, d] are left."""
        rows = cls(len(mean), mean.device)
        if n:
            rows.n = rows._n_folded = n
            rows._mean = mean.to(torch.float64)
            rows._scatter = scatter.to(torch.float64, copy=True)
        return rows

    def update(self, rows: Tensor) -> None:
        """Add rows [c, d] of any float type."""
        held = _held_rows(self.dim)
        for block in torch.split(rows.to(self.device), held):
            self._kept.append(block.to(torch.float64, copy=True))
            self.n += len(block)
            if self.n - self._n_folded > (self.dim if self._scatter is None else held):
                self._fold()

    def merge(self, other: RowMoments) -> RowMoments:
        """The moments of both sets of rows together; neither operand changes."""
        both = RowMoments(self.dim, self.device)
        for part in (self, other):
            if part._scatter is not None:
                both._fold().add_(part._scatter.to(self.device))
                both._shift(part._n_folded, part._mean.to(self.device))
                both.n += part._n_folded
            for block in part._kept:
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
        centred = self.centred_rows()
        if centred is None:
            return mirrored(self._fold())
        scatter = centred.new_zeros(self.dim, self.dim)
        add_products(scatter, centred)
        return mirrored(scatter)

    def scatter_trace(self) -> Tensor:
        """Sum over rows of |row - mean|^2."""
        centred = self.centred_rows()
        return self._fold().trace() if centred is None else centred.square().sum()

    def rows(self) -> Tensor | None:
        """All rows [n, d] while n <= d, else None."""
        return self._rows() if self._scatter is None else None

    def centred_rows(self) -> Tensor | None:
        """All rows less their mean [n, d] while n <= d, else None."""
        return self._rows() - self.mean if self._scatter is None else None

    def _rows(self) -> Tensor:
        if len(self._kept) != 1:
            empty = torch.empty(0, self.dim, dtype=torch.float64, device=self.device)
            self._kept = [torch.cat([empty, *self._kept])]
        return self._kept[0]

    def _fold(self) -> Tensor:
        """Fold the kept rows; the scatter [d, d] of all, its upper triangle valid."""
        if self._scatter is None:
            self._scatter = self._mean.new_zeros(self.dim, self.dim)
        rows, self._kept = self._rows(), []
        if len(rows):
            mean = rows.mean(dim=0)
            add_products(self._scatter, rows - mean)
            self._shift(len(rows), mean)
        return self._scatter

    def _shift(self, n: int, mean: Tensor) -> None:
        """Count n rows about their own `mean`, whose scatter was added, to the common mean."""
        assert self._scatter is not None
        total = self._n_folded + n
        gap = mean - self._mean
        self._scatter.addr_(gap, gap, alpha=self._n_folded * n / total)
        self._mean = self._mean + gap * (n / total)
        self._n_folded = total


class SphereMoments:
    """Spread and agreement of the embeddings projected to the unit sphere.

    Per dimension the mean and squared deviation of all unit rows [d], and over samples the sum of
    the mean squared distance between two of its views. A zero row stays at the origin.
    """

    def __init__(self, dim: int, device: Device = "cpu") -> None:
        self.n_rows = 0
        self.n_samples = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        self.distances = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, chunk: Tensor) -> None:
        """Add a chunk [c, q, d] in float64."""
        samples, views, _ = chunk.shape
        unit = unit_rows(chunk)
        means = unit.mean(dim=1)
        unit -= means[:, None]
        spread = unit.square_().sum(dim=(0, 1))  # of the views about their sample's mean, [d]
        if views > 1:
            # The mean over pairs of |u_j - u_k|^2 is 2/(q-1) times the sum of |u_j - u_mean|^2.
            self.distances += 2.0 / (views - 1) * spread.sum()
        mean = means.mean(dim=0)
        squares = spread + views * (means - mean).square().sum(dim=0)
        self._add(samples * views, mean, squares)
        self.n_samples += samples

    def merge(self, other: SphereMoments) -> SphereMoments:
        """Both together; neither operand changes."""
        both = SphereMoments(len(self.mean), self.mean.device)
        for part in (self, other):
            if part.n_rows:
                both._add(part.n_rows, part.mean.to(both.mean), part.squares.to(both.mean))
            both.n_samples += part.n_samples
            both.distances += part.distances.to(both.mean)
        return both

    def _add(self, n: int, mean: Tensor, squares: Tensor) -> None:
        total = self.n_rows + n
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.n_rows * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n_rows = total


class Moments:
    """All that the metrics need to know of embeddings z [n, q, d], in O(d^2) memory.

        m_i    = mean_j z_ij                                      `class_means`, rows [d]
        within = sum_ij (z_ij - m_i)(z_ij - m_i)^T                [d, d]

    n_views: q, the same for every sample. scatters, sphere: whether these are wanted; one that is
    not stays empty. `merge` is associative and commutative to rounding, so chunks, files and
    machines combine alike.
    """

    def __init__(
        self,
        n_views: int,
        dim: int,
        device: Device = "cpu",
        *,
        scatters: bool = True,
        sphere: bool = True,
    ) -> None:
        self.n_views = n_views
        self.dim = dim
        self.device = torch.device(device)
        self.n = 0  # samples seen
        self.class_means = RowMoments(dim, device)
        self.sphere = SphereMoments(dim, self.device)
        self._wants_scatters, self._wants_sphere = scatters, sphere
        numbers = self.sphere.mean
        self._within = numbers.new_zeros((dim, dim) if scatters else (0, 0))
        self._residuals = numbers.new_empty(0, dim)  # room for rows whose product is still due
        self._n_residuals = 0

    @classmethod
    def of(cls, embeddings: Tensor) -> Moments:
        """The moments of embeddings [n, q, d], on their own device.

        Raises ValueError if the tensor has not three axes.
        """
        if embeddings.ndim != 3:
            raise ValueError(f"expected embeddings [n, q, d], got shape {tuple(embeddings.shape)}")
        moments = cls(embeddings.shape[1], embeddings.shape[2], embeddings.device)
        moments.update(embeddings)
        return moments

    @classmethod
    def of_sums(cls, n_views: int, class_means: RowMoments, within: Tensor) -> Moments:
        """The moments of samples known by their means and by `within` [d, d]; no sphere."""
        moments = cls(n_views, class_means.dim, class_means.device, sphere=False)
        moments.n = class_means.n
        moments.class_means = class_means
        moments._within = within.to(torch.float64, copy=True)
        return moments

    @property
    def within(self) -> Tensor:
        """Sum over views of (view - its sample's mean)(...)^T, [d, d]."""
        self._multiply()
        return mirrored(self._within)

    def update(self, chunk: Tensor) -> None:
        """Add a chunk [c, q, d] of any float type: whole samples, all their views.

        Raises ValueError if q or d differ from this state's.
        """
        if chunk.ndim != 3 or chunk.shape[1:] != (self.n_views, self.dim):
            raise ValueError(
                f"expected a chunk [c, {self.n_views}, {self.dim}], got {tuple(chunk.shape)}"
            )
        for part in pieces(chunk, self.device):
            room = self._room(len(part)) if self._wants_scatters else None
            piece = part.to(torch.float64)
            if room is not None:
                means = piece.mean(dim=1)
                torch.sub(piece, means[:, None], out=room)
                self.class_means.update(means)
            if self._wants_sphere:
                self.sphere.update(piece)
            self.n += len(part)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples together; neither operand changes.

        Raises ValueError if q or d differ.
        """
        if (self.n_views, self.dim) != (other.n_views, other.dim):
            raise ValueError(
                f"cannot merge moments of q, d = {other.n_views}, {other.dim} "
                f"into those of q, d = {self.n_views}, {self.dim}"
            )
        scatters = self._wants_scatters and other._wants_scatters
        sphere = self._wants_sphere and other._wants_sphere
        both = Moments(self.n_views, self.dim, self.device, scatters=scatters, sphere=sphere)
        both.n = self.n + other.n
        if scatters:
            both._within = self.within + other.within.to(self.device)
            both.class_means = self.class_means.merge(other.class_means)
        if sphere:
            both.sphere = self.sphere.merge(other.sphere)
        return both

    def _room(self, samples: int) -> Tensor:
        """Where the residuals [c, q, d] of the next samples go; many make one product."""
        rows = samples * self.n_views
        if self._n_residuals + rows > len(self._residuals):
            self._multiply()
            if rows > len(self._residuals):
                self._residuals = self._within.new_empty(max(rows, _held_rows(self.dim)), self.dim)
        start = self._n_residuals
        self._n_residuals += rows
        return self._residuals[start : self._n_residuals].view(samples, self.n_views, self.dim)

    def _multiply(self) -> None:
        add_products(self._within, self._residuals[: self._n_residuals])
        self._n_residuals = 0


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [..., d] over their length; a zero row stays 0.

    Where a square could overflow or vanish, they are divided by their largest entry first.
    """
    numbers = torch.finfo(rows.dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    least, most = numbers.tiny**0.5 / numbers.eps, numbers.max**0.5
    if bool(((length > least) & (length < most)).all()):
        unit: Tensor = rows / length
        return unit
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
    unit = rows / largest.clamp_min(numbers.tiny)
    unit /= torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(numbers.tiny)
    return unit


def _held_rows(dim: int) -> int:
    return max(LEAST_HELD_ROWS, HELD_NUMBERS // dim)
