"""The three metrics on tensors in memory; the equations live in `spectra` and `metrics`."""

from __future__ import annotations

from torch import Tensor

from lidar_cli.core import metrics, spectra
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.settings import MetricSettings

_DEFAULT = MetricSettings()

__all__ = ["Moments", "alpha_req", "lidar", "rankme"]


def lidar(
    embeddings: Tensor, *, delta: float = _DEFAULT.delta, epsilon: float = _DEFAULT.epsilon
) -> float:
    """LiDAR of embeddings [n, q, d]: q views of each of n samples.

    delta: ridge on the within covariance, in squared embedding units.
    Source: Thilak et al., ICLR 2024. Raises ValueError on another shape, DegenerateFeatures if
    n < 2, q < 2, the embedding is constant, or delta is 0 and the within covariance singular.
    """
    spectrum = spectra.lda_spectrum(Moments.of(embeddings), delta)
    return metrics.effective_rank(spectrum.eigenvalues, epsilon)


def rankme(embeddings: Tensor, *, epsilon: float = _DEFAULT.epsilon) -> float:
    """RankMe of embeddings [N, d], one row a sample.

    Source: Garrido et al., ICML 2023. Raises ValueError on another shape, DegenerateFeatures if
    all rows are 0.
    """
    return metrics.rankme(spectra.gram_spectrum(_rows(embeddings)), epsilon)


def alpha_req(
    embeddings: Tensor, *, ranks: tuple[int, int] = metrics.FIT_RANKS
) -> metrics.PowerLaw:
    """alpha-ReQ of embeddings [N, d]: the exponent of the covariance spectrum, and the fit's R2.

    ranks: first and last eigenvalue of the fit, counted from 1.
    Source: Agrawal et al., NeurIPS 2022. Raises ValueError on another shape, DegenerateFeatures
    if the spectrum is shorter than the fit range.
    """
    rows = _rows(embeddings)
    return metrics.alpha_req(spectra.covariance_spectrum(rows), rows.n, ranks)


def _rows(embeddings: Tensor) -> RowMoments:
    if embeddings.ndim != 2:
        raise ValueError(f"expected embeddings [N, d], got shape {tuple(embeddings.shape)}")
    rows = RowMoments(embeddings.shape[1], embeddings.device)
    rows.update(embeddings)
    return rows
