"""Embeddings projected to the unit sphere: their spread, and how well views of a sample agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [..., d] over their length; a zero row stays 0.

    Where a square could overflow or vanish, a row is divided by its largest entry first.
    """
    numbers = torch.finfo(rows.dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    least, most = numbers.tiny**0.5 / numbers.eps, numbers.max**0.5
    ordinary = (length > least) & (length < most)
    if rows.device.type == "cpu" and bool(ordinary.all()):  # a GPU would be waited for
        unit: Tensor = rows * length.reciprocal()
        return unit
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
    unit = rows / largest.clamp_min(numbers.tiny).where(~ordinary, 1.0)
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(numbers.tiny)
    return unit.mul_(length.reciprocal())


class SphereSums(NamedTuple):
    """Of unit rows u [c, q, d], whose means over the views of a sample are m [c, d]."""

    samples: int  # c
    mean: Tensor  # of m, [d]
    between: Tensor  # squared deviation of m from it, [d]
    within: Tensor  # squared deviation of u from m, [d]


def sphere_sums(rows: Tensor) -> SphereSums:
    """The sums of rows [c, q, d], projected to the unit sphere."""
    unit = unit_rows(rows)
    means = unit.sum(dim=1).div_(rows.shape[1])
    within = unit.sub_(means[:, None]).square_().sum(dim=(0, 1))
    mean = means.sum(dim=0).div_(len(rows))
    return SphereSums(len(rows), mean, means.sub_(mean).square_().sum(dim=0), within)


class SphereMoments:
    """Spread and agreement of the embeddings projected to the unit sphere.

    Per dimension the mean and squared deviation of all unit rows [d], and over samples the sum of
    the mean squared distance between two of its views. A zero row stays at the origin.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.n_rows = 0
        self.n_samples = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)
        self.distances = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, chunk: Tensor) -> None:
        """Add a chunk [c, q, d] in float64."""
        self.add(chunk.shape[1], [sphere_sums(chunk)])

    def add(self, views: int, pieces: Sequence[SphereSums]) -> None:
        """Add pieces of q views a sample by their sums."""
        counts = self.mean.new_tensor([[piece.samples] for piece in pieces])
        means = torch.stack([piece.mean for piece in pieces])
        between = torch.stack([piece.between for piece in pieces])
        spread = torch.stack([piece.within for piece in pieces]).sum(dim=0)
        samples = sum(piece.samples for piece in pieces)
        mean = (counts * means).sum(dim=0) / samples
        apart = between.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
        if views > 1:
            # The mean over pairs of |u_j - u_k|^2 is 2/(q-1) times the sum of |u_j - u_mean|^2.
            self.distances += 2.0 / (views - 1) * spread.sum()
        self._add(samples * views, mean, spread + views * apart)
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
