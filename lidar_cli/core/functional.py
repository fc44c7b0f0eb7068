"""LiDAR, RankMe and alpha-ReQ of tensors in memory; `spectra` and `metrics` compute them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lidar_cli.core import metrics, spectra
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.settings import MetricSettings

_DEFAULT = MetricSettings()


def lidar(
    embeddings: Tensor | Sequence[Tensor],
    *,
    delta: float = _DEFAULT.delta,
    epsilon: float = _DEFAULT.epsilon,
) -> float:
    """LiDAR: the effective rank of the between-sample covariance, whitened by that of views.

        m_i = mean_j z_ij,  m = mean_i m_i
        Sb = sum_i (m_i - m)(m_i - m)^T / (n - 1)                                   [d, d]
        Sw = sum_ij (z_ij - m_i)(z_ij - m_i)^T / (n (q - 1)) + delta I              [d, d]
        lambda = eig(Sw^-1/2 Sb Sw^-1/2),  p = lambda / sum(lambda) + epsilon       [d]
        LiDAR = exp(- sum_k p_k log p_k)

    Args:
        embeddings: z [n, q, d], q views of each of n samples, of any float type, taken before any
            normalisation inside the loss. Of samples with unequal numbers of views n tensors
            [q_i, d]: each counts once in Sb, and sum_i (q_i - 1) replaces n (q - 1).
        delta: ridge on the within covariance, in squared embedding units. At 0 any invertible
            linear map of the embeddings leaves LiDAR unchanged.
        epsilon: entropy guard, added to each share of the spectrum.

    Returns:
        A number from 1 to min(d, n - 1), up to epsilon. Values at unequal n, q, d or delta are not
        comparable.

    Raises:
        ValueError: if `embeddings` does not have three axes, or one of several tensors not two.
        DegenerateFeatures: if n < 2, q < 2, the embedding is constant, or delta is 0 and the within
            covariance is singular.

    Example:
        Centres and views on signed axes make Sb = diag(4, 2, 1, 1) and Sw the identity.

        >>> import torch
        >>> from lidar_cli import lidar
        >>> axes = 3.5**0.5 * torch.cat([torch.eye(4), -torch.eye(4)])  # [8, 4]
        >>> centres = axes * torch.tensor([4.0, 2.0, 1.0, 1.0]).sqrt()
        >>> round(lidar(centres[:, None] + axes), 4)  # shares 1/2, 1/4, 1/8, 1/8: 2^(7/4)
        3.3636

    References:
        Thilak et al., "LiDAR: Sensing linear probing performance in joint embedding SSL
        architectures", ICLR 2024, arXiv 2312.04000.
    """
    return lidar_of(Moments.of(embeddings), delta=delta, epsilon=epsilon)


def lidar_of(
    moments: Moments, *, delta: float = _DEFAULT.delta, epsilon: float = _DEFAULT.epsilon
) -> float:
    """`lidar` of moments. Raises DegenerateFeatures as it does."""
    spectrum = spectra.lda_spectrum(moments, delta)
    return metrics.effective_rank(spectrum.eigenvalues, epsilon)


def rankme(embeddings: Tensor, *, epsilon: float = _DEFAULT.epsilon) -> float:
    """RankMe: the effective rank of the embeddings' singular values.

        sigma = singular values of Z, not centred                                   [min(N, d)]
        p = sigma / sum(sigma) + epsilon,  RankMe = exp(- sum_k p_k log p_k)

    Args:
        embeddings: Z [N, d], one row a sample, of any float type; preferably of un-augmented
            images.
        epsilon: entropy guard, added to each share of the singular values.

    Returns:
        A number from 1 to min(N, d), up to epsilon. Values at unequal N or d are not comparable.

    Raises:
        ValueError: if `embeddings` does not have two axes.
        DegenerateFeatures: if all rows are 0.

    Example:
        >>> import torch
        >>> from lidar_cli import rankme
        >>> round(rankme(torch.eye(7)), 4)  # seven equal singular values
        7.0

    References:
        Garrido et al., "RankMe: Assessing the downstream performance of pretrained self-supervised
        representations by their rank", ICML 2023, arXiv 2210.02885.
    """
    return metrics.rankme(spectra.gram_spectrum(_rows(embeddings)), epsilon)


def alpha_req(
    embeddings: Tensor, *, ranks: tuple[int, int] = metrics.FIT_RANKS
) -> metrics.PowerLaw:
    """alpha-ReQ: the exponent of a power law fitted to the covariance spectrum, and the fit's R2.

        e = eigenvalues of the centred covariance, largest first                    [d]
        log e_k = b - alpha log k,  k = first .. last,  by least squares with weights 1/k

    Args:
        embeddings: [N, d], one row a sample, of any float type; usually the backbone's, of
            un-augmented images.
        ranks: first and last eigenvalue of the fit, counted from 1.

    Returns:
        A named tuple (alpha, r2). The best alpha is 1; larger and smaller values are worse.

    Raises:
        ValueError: if `embeddings` does not have two axes, or `ranks` is not a range.
        DegenerateFeatures: if d or N - 1 is less than the last rank, or the eigenvalue of that rank
            is a rounding error.

    Example:
        >>> import torch
        >>> from lidar_cli import alpha_req
        >>> axes = torch.diag(torch.arange(1, 129.0).rsqrt())  # squares 1/k: a law of exponent 1
        >>> law = alpha_req(torch.cat([axes, -axes]))
        >>> round(law.alpha, 4), round(law.r2, 4)
        (1.0, 1.0)

    References:
        Agrawal et al., "alpha-ReQ: Assessing representation quality in self-supervised learning by
        measuring eigenspectrum decay", NeurIPS 2022. Ranks and weights are those of Stringer et
        al., "High-dimensional geometry of population responses in visual cortex", Nature 571, 2019,
        as alpha-ReQ's authors coded them in their package reptrix.
    """
    rows = _rows(embeddings)
    return metrics.alpha_req(spectra.covariance_spectrum(rows), rows.n, ranks)


def _rows(embeddings: Tensor) -> RowMoments:
    if embeddings.ndim != 2:
        raise ValueError(f"expected embeddings [N, d], got shape {tuple(embeddings.shape)}")
    rows = RowMoments(embeddings.shape[1], embeddings.device)
    rows.update(embeddings)
    return rows
