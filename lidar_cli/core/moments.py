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

Device = torch.device | str

BLOCK_NUMBERS = 2**21  # of a block's float64 copy, 16 MB; but for the products' sake at least
LEAST_BLOCK_ROWS = 1024


class RowMoments:
    """Count, mean and scatter of rows [d] that arrive in blocks.

    While no more than d rows have been seen they are kept as they are, since they are then the
    smaller side: the spectra solve an [n, n] problem instead of a [d, d] one. From row d + 1 on
    they are folded into the mean [d] and the centred scatter [d, d].
    """

    def __init__(self, dim: int, device: Device = "cpu") -> None:
        self.dim = dim
        self.device = torch.device(device)
        self.n = 0
        self._kept: list[Tensor] = []  # blocks [c, d], their lengths adding up to n; or
        self._folded: tuple[Tensor, Tensor] | None = None  # mean [d], centred scatter [d, d]

    def update(self, rows: Tensor) -> None:
        """Add rows [c, d] of any float type."""
        rows = rows.to(self.device, torch.float64)
        if len(rows) == 0:
            return
        if self._folded is None and self.n + len(rows) <= self.dim:
            self._kept.append(rows.clone())
            self.n += len(rows)
            return
        self._fold()
        self._add(len(rows), *_mean_and_scatter(rows))

    def merge(self, other: RowMoments) -> RowMoments:
        """The moments of both sets of rows together; neither operand changes."""
        both = RowMoments(self.dim, self.device)
        for part in (self, other):
            if part._folded is not None:
                both._fold()
                both._add(part.n, *(tensor.to(self.device) for tensor in part._folded))
            else:
                for block in part._kept:
                    both.update(block)
        return both

    @property
    def mean(self) -> Tensor:
        """The mean row [d]."""
        return self._folded[0] if self._folded is not None else self._rows().mean(dim=0)

    @property
    def scatter(self) -> Tensor:
        """Sum over rows of (row - mean)(row - mean)^T, [d, d]."""
        if self._folded is not None:
            return self._folded[1]
        centred = self.centred_rows()
        assert centred is not None
        return centred.T @ centred

    def scatter_trace(self) -> Tensor:
        """Sum over rows of |row - mean|^2."""
        centred = self.centred_rows()
        return self.scatter.trace() if centred is None else centred.square().sum()

    def rows(self) -> Tensor | None:
        """All rows [n, d] while n <= d, else None."""
        return self._rows() if self._folded is None else None

    def centred_rows(self) -> Tensor | None:
        """All rows less their mean [n, d] while n <= d, else None."""
        return self._rows() - self.mean if self._folded is None else None

    def _rows(self) -> Tensor:
        if len(self._kept) != 1:
            empty = torch.empty(0, self.dim, dtype=torch.float64, device=self.device)
            self._kept = [torch.cat([empty, *self._kept])]
        return self._kept[0]

    def _fold(self) -> None:
        if self._folded is None:
            kept, n = self._rows(), self.n
            self._kept, self.n = [], 0
            zero = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
            self._folded = zero, torch.zeros_like(zero.expand(self.dim, self.dim)).contiguous()
            if n:
                self._add(n, *_mean_and_scatter(kept))

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        assert self._folded is not None
        own_mean, own_scatter = self._folded
        total = self.n + n
        gap = mean - own_mean
        own_scatter = own_scatter.add_(scatter).addr_(gap, gap, alpha=self.n * n / total)
        self._folded = own_mean + gap * (n / total), own_scatter
        self.n = total


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
        if views > 1:
            # The mean over pairs of |u_j - u_k|^2 is 2/(q-1) times the sum of |u_j - u_mean|^2.
            spread = (unit - unit.mean(dim=1, keepdim=True)).square().sum()
            self.distances += 2.0 / (views - 1) * spread
        rows = unit.flatten(0, 1)
        mean = rows.mean(dim=0)
        self._add(len(rows), mean, (rows - mean).square().sum(dim=0))
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

    n_views: q, the same for every sample. `merge` is associative and commutative to rounding, so
    chunks, files and machines combine alike.
    """

    def __init__(self, n_views: int, dim: int, device: Device = "cpu") -> None:
        self.n_views = n_views
        self.dim = dim
        self.device = torch.device(device)
        self.class_means = RowMoments(dim, device)
        self.within = torch.zeros(dim, dim, dtype=torch.float64, device=self.device)
        self.sphere = SphereMoments(dim, self.device)

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

    @property
    def n(self) -> int:
        """Samples seen."""
        return self.class_means.n

    def update(self, chunk: Tensor) -> None:
        """Add a chunk [c, q, d] of any float type: whole samples, all their views.

        Raises ValueError if q or d differ from this state's.
        """
        if chunk.ndim != 3 or chunk.shape[1:] != (self.n_views, self.dim):
            raise ValueError(
                f"expected a chunk [c, {self.n_views}, {self.dim}], got {tuple(chunk.shape)}"
            )
        # In blocks, so that the float64 copies stay small beside a chunk of any size.
        rows = max(LEAST_BLOCK_ROWS, BLOCK_NUMBERS // self.dim)
        for block in torch.split(chunk, max(1, rows // self.n_views)):
            if len(block):
                self._add(block.to(self.device, torch.float64))

    def _add(self, block: Tensor) -> None:
        means = block.mean(dim=1)
        if self.n_views > 1:
            residuals = (block - means[:, None]).flatten(0, 1)
            self.within.addmm_(residuals.T, residuals)
        self.class_means.update(means)
        self.sphere.update(block)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples together; neither operand changes.

        Raises ValueError if q or d differ.
        """
        if (self.n_views, self.dim) != (other.n_views, other.dim):
            raise ValueError(
                f"cannot merge moments of q, d = {other.n_views}, {other.dim} "
                f"into those of q, d = {self.n_views}, {self.dim}"
            )
        both = Moments(self.n_views, self.dim, self.device)
        both.within = self.within + other.within.to(self.device)
        both.class_means = self.class_means.merge(other.class_means)
        both.sphere = self.sphere.merge(other.sphere)
        return both


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [..., d] over their length; a zero row stays 0.

    Divided by the largest entry first, so that no square overflows or vanishes.
    """
    tiny = torch.finfo(rows.dtype).tiny
    unit: Tensor = rows / torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True).clamp_min(
        tiny
    )
    unit /= torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(tiny)
    return unit


def _mean_and_scatter(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred
