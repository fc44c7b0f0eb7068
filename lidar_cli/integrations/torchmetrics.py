"""The metrics as torchmetrics objects: update by batch, merge over processes, compute at the end.

    >>> import torch
    >>> from lidar_cli import LiDAR
    >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
    >>> centres = axes * torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt()
    >>> metric = LiDAR(n_views=8, dim=4)
    >>> for batch in (centres[:3], centres[3:]):
    ...     metric.update(batch[:, None] + axes)  # [b, q, d]: q views of each of b samples
    >>> round(metric.compute().item(), 4)  # 2^(7/4): Sb is diag(4, 2, 1, 1) and Sw is the identity
    3.3636

The state of an object is one matrix of float64, so that processes exchange one tensor of O(d^2):

    row 0             n, in every entry
    row 1             mean of the rows, or of the samples' means
    rows 2 .. d + 1   scatter about that mean                      [d, d]
    the next d rows   scatter of views about their sample's mean   [d, d], for metrics of views

Before any update, and where an embedding was NaN or Inf, `compute` warns and returns NaN, as the
metrics of torchmetrics do. Finite data that does not determine a metric, such as a collapsed
embedding, raises DegenerateFeatures, as the functions of `lidar_cli` do.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lidar_cli.core import metrics, noise, spectra
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.errors import DegenerateFeatures, MissingExtra
from lidar_cli.settings import MetricSettings

try:
    import torchmetrics
    from torchmetrics.utilities import rank_zero_warn
except ImportError as error:
    raise MissingExtra("train", "torchmetrics", "a metric while training") from error

_DEFAULT = MetricSettings()


def merged(states: Tensor) -> Tensor:
    """The state of all the data of several states [w, r, d] together, [r, d].

        m = sum_w n_w m_w / n,   scatter = sum_w scatter_w + n_w (m_w - m)(m_w - m)^T

    Source: Chan, Golub, LeVeque 1983, eq. 2.1, for w parts at once.
    """
    counts, means = states[:, 0], states[:, 1]
    both = states.sum(dim=0)
    both[1] = (counts * means).sum(dim=0) / both[0].clamp_min(1.0)
    gaps = means - both[1]
    both[2 : 2 + states.shape[2]] += gaps.T @ (counts * gaps)
    return both


class _Streaming(torchmetrics.Metric):
    """Holds a state of dimension `dim`; options are those of torchmetrics.Metric."""

    full_state_update = False
    is_differentiable = False
    moments: Tensor

    def __init__(self, dim: int, matrices: int, **options: Any) -> None:
        super().__init__(**options)
        self.dim = dim
        empty = torch.zeros(2 + matrices * dim, dim, dtype=torch.float64)
        self.add_state("moments", default=empty, dist_reduce_fx=merged)

    def compute(self) -> Tensor:
        """The metric of all data so far, a scalar in float64; of all processes where they sync.

        NaN, with a warning, before any update or where an embedding was NaN or Inf.
        Raises DegenerateFeatures where finite data does not determine the metric.
        """
        try:
            value = self._metric() if self._has_numbers() else math.nan
        except DegenerateFeatures:
            if self._is_synced:  # torchmetrics unsyncs after a value only
                self.unsync()
            raise
        return torch.tensor(value, dtype=torch.float64, device=self.moments.device)

    @abstractmethod
    def _metric(self) -> float:
        """The metric of the state. Raises DegenerateFeatures where that does not determine it."""

    def _has_numbers(self) -> bool:
        """Whether the state is of at least one sample and finite; warns otherwise."""
        finite = bool(self.moments.isfinite().all())
        if finite and self.moments[0, 0] > 0:
            return True
        if self.update_called:  # else torchmetrics itself warns
            why = "no embedding was added" if finite else "an embedding was NaN or Inf"
            rank_zero_warn(f"{type(self).__name__} is NaN: {why}", UserWarning)
        return False

    def _add(self, rows: RowMoments, *within: Tensor) -> None:
        if rows.n:
            count = torch.full_like(rows.mean, rows.n)
            state = torch.cat([torch.stack([count, rows.mean]), rows.scatter, *within])
            self.moments = merged(torch.stack([self.moments.to(state), state]))

    def _rows(self) -> RowMoments:
        count, mean, scatter = self.moments[0, 0], self.moments[1], self.moments[2 : 2 + self.dim]
        return RowMoments.of_sums(int(count), mean, scatter)


class _OfViews(_Streaming):
    """Reads the between and the within scatter of embeddings [b, q, d]."""

    def __init__(self, n_views: int, dim: int, *, delta: float, **options: Any) -> None:
        super().__init__(dim, 2, **options)
        self.n_views = n_views
        self.delta = delta

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings [b, q, d]: whole samples, all their views.

        Raises ValueError for another q or d.
        """
        batch = Moments(self.n_views, self.dim, self.moments.device, sphere=False)
        batch.update(embeddings)
        self._add(batch.class_means, batch.within)

    def _eigenvalues(self) -> Tensor:
        within = self.moments[2 + self.dim :]
        moments = Moments.of_sums(self.n_views, self._rows(), within)
        return spectra.lda_spectrum(moments, self.delta).eigenvalues


class LiDAR(_OfViews):
    """LiDAR of embeddings [n, q, d] that come in batches; `lidar_cli.lidar` of all of them.

    n_views, dim: q and d. delta: ridge on the within covariance, in squared embedding units.
    options: those of torchmetrics.Metric. Source: Thilak et al., ICLR 2024.
    """

    higher_is_better = True

    def __init__(
        self,
        n_views: int,
        dim: int,
        *,
        delta: float = _DEFAULT.delta,
        epsilon: float = _DEFAULT.epsilon,
        **options: Any,
    ) -> None:
        super().__init__(n_views, dim, delta=delta, **options)
        self.epsilon = epsilon

    def _metric(self) -> float:
        return metrics.effective_rank(self._eigenvalues(), self.epsilon)


class Pillai(_OfViews):
    """A soft count of the dimensions that tell samples apart, less the noise of views; 0 .. d.

    Its state does not hold how strong the noise of each sample is: the edge of view noise is
    Wachter's, which takes the noise for alike in all samples. Where it is uneven, `lidar score`
    uses the edge of contrasts, and may give null for embeddings that have a value here.

    n_views, dim: q and d. delta: ridge on the within covariance, in squared embedding units.
    options: those of torchmetrics.Metric. Source: Pillai's trace, of the corrected pair.
    """

    higher_is_better = True

    def __init__(
        self, n_views: int, dim: int, *, delta: float = _DEFAULT.delta, **options: Any
    ) -> None:
        super().__init__(n_views, dim, delta=delta, **options)

    def _metric(self) -> float:
        eigenvalues, n = self._eigenvalues(), int(self.moments[0, 0])
        corrected = noise.corrected_spectrum(eigenvalues, n, self.n_views)
        return metrics.pillai(corrected)


class _OfRows(_Streaming):
    """Reads the mean and the scatter of one row a sample."""

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, 1, **options)

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings [b, d], best of un-augmented images; of [b, q, d] view 0 is read.

        Raises ValueError for another d.
        """
        rows = embeddings[:, 0] if embeddings.ndim == 3 else embeddings
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"expected embeddings [b, {self.dim}] or [b, q, {self.dim}], "
                f"got shape {tuple(embeddings.shape)}"
            )
        batch = RowMoments(self.dim, self.moments.device)
        batch.update(rows)
        self._add(batch)


class RankMe(_OfRows):
    """RankMe of embeddings [N, d] that come in batches; `lidar_cli.rankme` of all of them.

    dim: d. options: those of torchmetrics.Metric. Source: Garrido et al., ICML 2023.
    """

    higher_is_better = True

    def __init__(self, dim: int, *, epsilon: float = _DEFAULT.epsilon, **options: Any) -> None:
        super().__init__(dim, **options)
        self.epsilon = epsilon

    def _metric(self) -> float:
        return metrics.rankme(spectra.gram_spectrum(self._rows()), self.epsilon)


class AlphaReQ(_OfRows):
    """alpha-ReQ's exponent of embeddings [N, d] that come in batches; best near 1.

    dim: d. ranks: first and last eigenvalue of the fit, counted from 1. options: those of
    torchmetrics.Metric. Source: Agrawal et al., NeurIPS 2022.
    """

    higher_is_better = None

    def __init__(
        self, dim: int, *, ranks: tuple[int, int] = metrics.FIT_RANKS, **options: Any
    ) -> None:
        super().__init__(dim, **options)
        self.ranks = ranks

    def _metric(self) -> float:
        rows = self._rows()
        return metrics.alpha_req(spectra.covariance_spectrum(rows), rows.n, self.ranks).alpha
