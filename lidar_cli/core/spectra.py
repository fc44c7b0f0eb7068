"""The spectra that the metrics read: eigenvalues of a matrix of the moments, largest first.

    lda_spectrum             Sb against Sw, the matrix of LiDAR                 [d]
    gram_spectrum            Z^T Z, not centred: squared singular values of Z   [min(N, d)]
    augmented_gram_spectrum  the same of all n q views                          [min(n q, d)]
    covariance_spectrum      centred covariance                                 [min(N, d)]

All matrices are symmetric and in float64. Negative eigenvalues are rounding errors and set to 0.
Every function raises DegenerateFeatures if the squares of the embedding overflow float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.moments import Moments, RowMoments, noise_floor
from lidar_cli.errors import DegenerateFeatures

EPS = torch.finfo(torch.float64).eps
RIDGE_PROBES = 64


class LdaSpectrum(NamedTuple):
    """Eigenvalues of the LDA pair [d], and how far they can be trusted."""

    eigenvalues: Tensor
    ridge_share: float  # delta tr(Sw^-1) / d: 0 without a ridge, 1 if Sw is the ridge alone
    singular: bool  # Sw is singular to rounding: some eigenvalues are rounding


def lda_spectrum(moments: Moments, delta: float) -> LdaSpectrum:
    """Eigenvalues of the whitened between-class covariance.

        Sb = scatter of the class means / (n - 1)     [d, d]
        W0 = within / sum_i (q_i - 1)                 [d, d]
        Sw = W0 + delta I = L L^T
        eig(Sw^-1/2 Sb Sw^-1/2) = eig(X X^T),  X = L^-1 [m_1 - m ... m_n - m] / sqrt(n - 1)

    The Cholesky factor L replaces the matrix root, and the eigenvalues are those of the smaller of
    X X^T [d, d] and X^T X [n, n]. With delta = 0 any invertible linear map of the embeddings leaves
    the result unchanged.

    delta: ridge, in squared embedding units.
    Source: Thilak et al., "LiDAR", ICLR 2024, section 4; arXiv 2312.04000.
    Raises DegenerateFeatures if n < 2, q < 2, Sw is not positive definite, or the class means
    differ by no more than the rounding of the views.
    """
    is_constant = _check_means(moments)
    n, d, degrees = moments.n, moments.dim, moments.degrees
    within = moments.within
    within = torch.zeros_like(within) if is_constant else within / degrees
    within.diagonal().add_(delta)
    factor, singular = _cholesky(within, delta, degrees)
    means = moments.class_means.centred_rows()
    if means is not None:
        whitened = torch.linalg.solve_triangular(factor, means.T, upper=False)  # [d, n]
        small = whitened.T @ whitened / (n - 1)
    else:
        half = torch.linalg.solve_triangular(factor, moments.class_means.scatter, upper=False)
        small = torch.linalg.solve_triangular(factor, half.T, upper=False) / (n - 1)
    eigenvalues = _eigenvalues(small)
    padded = torch.nn.functional.pad(eigenvalues, (0, d - len(eigenvalues)))
    return LdaSpectrum(padded, _ridge_share(factor, delta), singular)


def gram_spectrum(rows: RowMoments) -> Tensor:
    """Squared singular values of the rows Z [N, d], not centred.

    They are eigenvalues of a Gram matrix: those below d eps(float64) times the largest are rounding
    errors and set to 0. The resulting error of the effective rank is about 1e-5 for a Z of rank
    one, 1e-6 otherwise, and larger only if the mean is far larger than the spread (2e-4 at a
    million times).
    """
    stored = rows.rows()
    if stored is not None:
        return _above_rounding(_eigenvalues(stored @ stored.T), rows.dim)
    eigenvalues = _eigenvalues(_uncentred(rows.scatter, rows.n, rows.mean))
    return _above_rounding(eigenvalues[: rows.n], rows.dim)


def augmented_gram_spectrum(moments: Moments) -> Tensor:
    """Squared singular values of all n q views as rows, not centred.

    With B the scatter of the class means and mu their mean: within + q B + n q mu mu^T. For
    unequal q_i, with both of q_i^1/2 m_i: within + B + n mu mu^T. Each view counts once.
    """
    q = moments.views
    if isinstance(q, int):
        means, rows = moments.class_means, moments.n * q
    else:
        means, rows, q = moments.weighted_means, moments.degrees + moments.n, 1
    total = torch.add(moments.within, means.scatter, alpha=q)
    eigenvalues = _eigenvalues(total.addr_(means.mean, means.mean, alpha=means.n * q))
    return _above_rounding(eigenvalues[:rows], moments.dim)


def covariance_spectrum(rows: RowMoments) -> Tensor:
    """Eigenvalues of the centred covariance of the rows, scatter / (N - 1).

    Those below d eps(float64) times the largest eigenvalue of the scatter matrix are rounding
    errors and set to 0, as are those that the rounding of equal rows explains (`_rounding`).
    Raises DegenerateFeatures if N < 2.
    """
    if rows.n < 2:
        raise DegenerateFeatures(f"{rows.n} row: a covariance needs at least 2", code="one-row")
    centred = rows.centred_rows()
    small = rows.scatter if centred is None else centred @ centred.T
    eigenvalues = _above_rounding(_eigenvalues(small)[: rows.n], rows.dim)
    return eigenvalues.where(eigenvalues > _rounding(rows), 0.0) / (rows.n - 1)


def _check_means(moments: Moments) -> bool:
    """Whether all views of a sample are the same.

    Raises DegenerateFeatures if n < 2, q < 2, or the class means differ by no more than rounding.
    """
    n, q = moments.n, moments.views
    if n < 2:
        raise DegenerateFeatures(
            f"{n} sample: the between covariance needs at least 2", code="one-sample"
        )
    if isinstance(q, int) and q < 2:
        raise DegenerateFeatures(
            f"{q} view a sample: the within covariance needs at least 2", code="one-view"
        )
    if not isinstance(q, int) and 1 in q:
        raise DegenerateFeatures(
            f"{q[1]} of {n} samples have a single view: the within covariance needs at least 2 of "
            "each; leave these samples out, or add views of them",
            code="one-view",
        )
    within = moments.within
    rounding = _rounding_of_views(moments, within)
    is_constant = bool(within.trace() * noise_floor(n, q) <= rounding)
    if moments.class_means.scatter_trace() <= rounding:
        raise DegenerateFeatures(
            "every eigenvalue is 0: the embedding is constant or collapsed"
            if is_constant
            else "every eigenvalue is rounding: the means of the samples' views are all the same",
            code="collapsed" if is_constant else "equal-class-means",
        )
    return is_constant


def _cholesky(within: Tensor, delta: float, degrees: int) -> tuple[Tensor, bool]:
    _check_finite(within.diagonal())
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(within)
    pivots = factor.diagonal().square()
    d = len(within)
    # Rounding can let a singular matrix pass Cholesky. A pivot divided by its diagonal entry is the
    # share of that dimension's variance that the earlier dimensions do not explain.
    unexplained = (pivots / within.diagonal()).min()
    singular = bool(failed) or bool(unexplained <= 64 * d * EPS)
    if delta == 0 and (singular or degrees < d):
        raise DegenerateFeatures(
            f"the within covariance is singular ({degrees} degrees of freedom, d = {d}) "
            "and delta is 0: raise q, n or delta",
            code="within-singular",
        )
    if bool(failed):
        raise DegenerateFeatures(
            f"the within covariance plus delta = {delta:g} is not positive definite: raise delta",
            code="delta-too-small",
        )
    return factor, singular


def _ridge_share(factor: Tensor, delta: float) -> float:
    """delta tr(Sw^-1) / d, with tr(Sw^-1) = E |L^-1 v|^2 over random signs v.

    Exact up to d = 64, where the vectors v are the unit vectors. For larger d the exact trace would
    take as long as the eigenvalues, while 64 random vectors have a relative standard error of at
    most 18 % (Hutchinson 1990), enough for a warning at 5 %. The seed is fixed: same input, same
    number.
    """
    d = len(factor)
    if delta == 0:
        return 0.0
    if d <= RIDGE_PROBES:
        probes = torch.eye(d, dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (d, RIDGE_PROBES), generator=generator)
        probes = (2.0 * signs - 1.0).double() / RIDGE_PROBES**0.5
    solved = torch.linalg.solve_triangular(factor, probes.to(factor.device), upper=False)
    return min(1.0, delta * float(solved.square().sum()) / d)


def _uncentred(scatter: Tensor, n: int, mean: Tensor) -> Tensor:
    return torch.addr(scatter, mean, mean, alpha=n)


def _eigenvalues(symmetric: Tensor) -> Tensor:
    # If the diagonal of a positive semidefinite matrix is finite, so are all its entries.
    _check_finite(symmetric.diagonal())
    eigenvalues: Tensor = torch.linalg.eigvalsh(symmetric)
    return eigenvalues.flip(0).clamp_min(0.0)


def _check_finite(numbers: Tensor) -> None:
    if not numbers.isfinite().all():
        raise DegenerateFeatures(
            "the embedding holds NaN or Inf, or its squares overflow float64: scale it down",
            code="overflow",
        )


def _rounding(rows: RowMoments) -> float:
    """The largest scatter trace that rounding gives equal rows: (16 eps)^2 sum_i |row_i|^2."""
    squares = rows.scatter_trace() + rows.n * rows.mean.square().sum()
    _check_finite(squares)
    return float((16 * EPS) ** 2 * squares)


def _rounding_of_views(moments: Moments, within: Tensor) -> float:
    """The largest trace of the class means' scatter that the rounding of views alone explains.

    Views are rounded relative to their own size, which can be far larger than their mean's: the
    squared lengths of the class means plus those of the residuals / q. Numbers stored in a type
    coarser than float64 are rounded to it, by about half a unit each.
    """
    coarse = moments.unit_roundoff > EPS
    floor = noise_floor(moments.n, moments.views)
    squares = _rounding(moments.class_means) / (16 * EPS) ** 2 + within.trace() * floor
    return float((2 * moments.unit_roundoff if coarse else 16 * EPS) ** 2 * squares)


def _above_rounding(eigenvalues: Tensor, dim: int) -> Tensor:
    if len(eigenvalues) == 0:
        return eigenvalues
    return eigenvalues.where(eigenvalues >= dim * EPS * eigenvalues[0], 0.0)
