"""The metrics as torchmetrics objects: update by batch, merge over processes, compute at the end.

The state of an object is one float64 matrix, so that processes exchange one tensor of O(d^2):

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
from typing import Any

import torch
from torch import Tensor

from lidar_cli.core import metrics, spectra
from lidar_cli.core.metrics import METRICS, Spectrum
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.core.noise import corrected_spectrum
from lidar_cli.errors import DegenerateFeatures, MissingExtra
from lidar_cli.settings import MetricSettings

try:
    import torchmetrics
    from torchmetrics.utilities import rank_zero_warn
except ImportError as error:
    raise MissingExtra("train", "torchmetrics", "a metric while training") from error

_DEFAULT = MetricSettings()


def merge_states(states: Tensor) -> Tensor:
    """The state [r, d] of the data of w states [w, r, d] together.

        m = sum_w n_w m_w / n,   scatter = sum_w scatter_w + n_w (m_w - m)(m_w - m)^T

    Source: Chan, Golub, LeVeque 1983, eq. 2.1, for w parts at once.
    """
    counts, means = states[:, 0], states[:, 1]
    both = states.sum(dim=0)
    both[1] = (counts * means).sum(dim=0) / both[0].clamp_min(1.0)
    gaps = means - both[1]
    both[2 : 2 + states.shape[2]] += gaps.T @ (counts * gaps)
    return both


class EmbeddingMetric(torchmetrics.Metric):
    """Any metric of a spectrum, by its name in `lidar score`, of embeddings that come in batches.

    The edge of view noise is Wachter's, which assumes that noise is equally strong in all samples,
    since the state does not have the noise of each sample. For uneven noise `lidar score` uses the
    edge of contrasts, and may give null for embeddings that have a value here.

    Args:
        name: of the metric; not `normalized_std` or `alignment`, which read no spectrum.
        dim: d.
        n_views: q, for metrics of views; metrics of rows read one row a sample.
        delta: ridge on the within covariance, in squared embedding units.
        epsilon: entropy guard, added to each share of a spectrum.
        options: those of torchmetrics.Metric.

    Raises:
        ValueError: if no metric of a spectrum has this name.

    Example:
        Sb is diag(4, 2, 1, 1) and Sw the identity, so that the LDA trace is 8.

        >>> import torch
        >>> from lidar_cli.integrations import EmbeddingMetric
        >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
        >>> centres = axes * torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt()
        >>> metric = EmbeddingMetric("noise_fraction", dim=4, n_views=8)
        >>> metric.update(centres[:, None] + axes)
        >>> round(metric.compute().item(), 4)  # d / (q h sum), h = 1 - 5/56: 4 / (8 51/56 8)
        0.0686

    References:
        Nicki Skafte Detlefsen et al., "TorchMetrics", Journal of Open Source Software 7, 2022.
    """

    full_state_update = False
    is_differentiable = False
    moments: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        n_views: int = 1,
        *,
        delta: float = _DEFAULT.delta,
        epsilon: float = _DEFAULT.epsilon,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if name not in METRICS or METRICS[name].reads_subset or METRICS[name].reads == "sphere":
            raise ValueError(f"no metric of a spectrum is called {name!r}")
        # Most torchmetrics classes have it as a constant, and torchmetrics forbids to assign it.
        self.__dict__["higher_is_better"] = METRICS[name].higher_is_better
        self.metric_name = name
        self.dim = dim
        self.n_views = n_views
        self.delta = delta
        self.epsilon = epsilon
        matrices = 1 if METRICS[name].reads_rows else 2
        empty = torch.zeros(2 + matrices * dim, dim, dtype=torch.float64)
        self.add_state("moments", default=empty, dist_reduce_fx=merge_states)

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings [b, q, d]: whole samples, all their views.

        A metric of rows also takes [b, d], preferably of un-augmented images; of [b, q, d] it
        reads view 0.

        Raises:
            ValueError: if q or d differ from those of the metric.
        """
        if METRICS[self.metric_name].reads_rows:
            self._add(self._row_moments(embeddings))
            return
        batch = Moments(self.n_views, self.dim, self.moments.device, sphere=False)
        batch.update(embeddings)
        self._add(batch.class_means, batch.within)

    def compute(self) -> Tensor:
        """The metric of all data so far, of all processes if they are synchronised.

        Returns:
            A scalar in float64; NaN, with a warning, before any update or if an embedding was NaN
            or Inf.

        Raises:
            DegenerateFeatures: if the metric cannot be computed from data that is finite.
        """
        try:
            value = self._value(self._spectrum()) if self._has_numbers() else math.nan
        except DegenerateFeatures:
            if self._is_synced:  # torchmetrics unsyncs only if compute returns
                self.unsync()
            raise
        return torch.tensor(value, dtype=torch.float64, device=self.moments.device)

    def _value(self, spectrum: Spectrum) -> float:
        return METRICS[self.metric_name].value(spectrum)

    def _spectrum(self) -> Spectrum:
        reads, n, d = METRICS[self.metric_name].reads, int(self.moments[0, 0]), self.dim
        rows = RowMoments.of_sums(n, self.moments[1], self.moments[2 : 2 + d])
        if reads == "gram":
            eigenvalues = spectra.gram_spectrum(rows)
        elif reads == "covariance":
            eigenvalues = spectra.covariance_spectrum(rows)
        else:
            moments = Moments.of_sums(self.n_views, rows, self.moments[2 + d :])
            if reads == "augmented":
                eigenvalues = spectra.augmented_gram_spectrum(moments)
            else:
                eigenvalues = spectra.lda_spectrum(moments, self.delta).eigenvalues
            if reads == "signal":
                eigenvalues = corrected_spectrum(eigenvalues, n, self.n_views)
        return Spectrum(eigenvalues, n, self.n_views, self.epsilon)

    def _row_moments(self, embeddings: Tensor) -> RowMoments:
        rows = embeddings[:, 0] if embeddings.ndim == 3 else embeddings
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"expected embeddings [b, {self.dim}] or [b, q, {self.dim}], "
                f"got shape {tuple(embeddings.shape)}"
            )
        batch = RowMoments(self.dim, self.moments.device)
        batch.update(rows)
        return batch

    def _has_numbers(self) -> bool:
        """Whether the state is finite and has at least one sample; warns if not."""
        finite = bool(self.moments.isfinite().all())
        if finite and self.moments[0, 0] > 0:
            return True
        if self.update_called:  # before any update torchmetrics itself warns
            why = "no embedding was added" if finite else "an embedding was NaN or Inf"
            rank_zero_warn(f"{type(self).__name__} is NaN: {why}", UserWarning)
        return False

    def _add(self, rows: RowMoments, *within: Tensor) -> None:
        if rows.n:
            count = torch.full_like(rows.mean, rows.n)
            state = torch.cat([torch.stack([count, rows.mean]), rows.scatter, *within])
            self.moments = merge_states(torch.stack([self.moments.to(state), state]))


class LiDAR(EmbeddingMetric):
    """LiDAR of embeddings [n, q, d] that come in batches; `lidar_cli.lidar` of all of them.

        lambda = eig(Sw^-1/2 Sb Sw^-1/2),  p = lambda / sum(lambda) + epsilon,  exp(- sum p log p)

    Args:
        n_views: q, the number of views of each sample.
        dim: d.
        delta: ridge on the within covariance, in squared embedding units.
        epsilon: entropy guard, added to each share of the spectrum.
        options: those of torchmetrics.Metric.

    Raises:
        DegenerateFeatures: from `compute`, if n < 2, q < 2 or the embedding is constant.

    Example:
        >>> import torch
        >>> from lidar_cli import LiDAR
        >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
        >>> centres = axes * torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt()
        >>> metric = LiDAR(n_views=8, dim=4)
        >>> for batch in (centres[:3], centres[3:]):
        ...     metric.update(batch[:, None] + axes)  # [b, q, d]: q views of each of b samples
        >>> round(metric.compute().item(), 4)  # 2^(7/4): Sb is diag(4, 2, 1, 1), Sw the identity
        3.3636

    References:
        Thilak et al., "LiDAR", ICLR 2024, arXiv 2312.04000.
    """

    higher_is_better = METRICS["lidar"].higher_is_better

    def __init__(
        self,
        n_views: int,
        dim: int,
        *,
        delta: float = _DEFAULT.delta,
        epsilon: float = _DEFAULT.epsilon,
        **options: Any,
    ) -> None:
        super().__init__("lidar", dim, n_views, delta=delta, epsilon=epsilon, **options)


class Pillai(EmbeddingMetric):
    """A soft count, 0 .. d, of the dimensions that identify the sample, corrected for view noise.

        lambda^c = max(h lambda - 1/q, 0),  h = 1 - (d + 1) / (n (q - 1)),
        sum_k lambda^c_k / (1 + lambda^c_k)

    Args:
        n_views: q, the number of views of each sample.
        dim: d.
        delta: ridge on the within covariance, in squared embedding units.
        options: those of torchmetrics.Metric.

    Raises:
        DegenerateFeatures: from `compute`, as `LiDAR`, if n (q - 1) <= d + 1, or if no eigenvalue
            clears the edge of view noise.

    Example:
        Sb is diag(8000, 0, 0, 0) and Sw the identity: one dimension identifies the sample.

        >>> import torch
        >>> from lidar_cli import Pillai
        >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
        >>> centres = axes * torch.tensor([8000.0, 0.0, 0.0, 0.0]).sqrt()
        >>> metric = Pillai(n_views=8, dim=4)
        >>> metric.update(centres[:, None] + axes)
        >>> round(metric.compute().item(), 2)  # 1 - 1 / (1 + lambda^c), lambda^c about 7300
        1.0

    References:
        Pillai, "Some new test criteria in multivariate analysis", Annals of Mathematical
        Statistics 26, 1955: the trace, here of the corrected pair.
    """

    higher_is_better = METRICS["pillai"].higher_is_better

    def __init__(
        self, n_views: int, dim: int, *, delta: float = _DEFAULT.delta, **options: Any
    ) -> None:
        super().__init__("pillai", dim, n_views, delta=delta, **options)


class RankMe(EmbeddingMetric):
    """RankMe of embeddings [N, d] that come in batches; `lidar_cli.rankme` of all of them.

        sigma = singular values of Z,  p = sigma / sum(sigma) + epsilon,  exp(- sum p log p)

    Args:
        dim: d.
        epsilon: entropy guard, added to each share of the singular values.
        options: those of torchmetrics.Metric.

    Raises:
        DegenerateFeatures: from `compute`, if all rows are 0.

    Example:
        >>> import torch
        >>> from lidar_cli import RankMe
        >>> metric = RankMe(dim=7)
        >>> for row in torch.eye(7):  # seven equal singular values
        ...     metric.update(row[None])
        >>> round(metric.compute().item(), 4)
        7.0

    References:
        Garrido et al., "RankMe", ICML 2023, arXiv 2210.02885.
    """

    higher_is_better = METRICS["rankme"].higher_is_better

    def __init__(self, dim: int, *, epsilon: float = _DEFAULT.epsilon, **options: Any) -> None:
        super().__init__("rankme", dim, epsilon=epsilon, **options)


class AlphaReQ(EmbeddingMetric):
    """alpha-ReQ's exponent of embeddings [N, d] that come in batches; best near 1.

        log e_k = b - alpha log k,  k = first .. last,  weights 1/k

    Args:
        dim: d.
        ranks: first and last eigenvalue e_k of the fit, counted from 1.
        options: those of torchmetrics.Metric.

    Raises:
        DegenerateFeatures: from `compute`, if d or N - 1 is less than the last rank.

    Example:
        >>> import torch
        >>> from lidar_cli import AlphaReQ
        >>> axes = torch.diag(torch.arange(1, 129.0).rsqrt())  # squares 1/k
        >>> metric = AlphaReQ(dim=128)
        >>> metric.update(torch.cat([axes, -axes]))
        >>> round(metric.compute().item(), 4)
        1.0

    References:
        Agrawal et al., "alpha-ReQ", NeurIPS 2022; the fit of Stringer et al., Nature 571, 2019.
    """

    higher_is_better = METRICS["alpha_req"].higher_is_better

    def __init__(
        self, dim: int, *, ranks: tuple[int, int] = metrics.FIT_RANKS, **options: Any
    ) -> None:
        super().__init__("alpha_req", dim, **options)
        self.ranks = ranks

    def _value(self, spectrum: Spectrum) -> float:
        return metrics.alpha_req(spectrum.eigenvalues, spectrum.n, self.ranks).alpha
