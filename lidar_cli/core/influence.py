"""What each sample does to each metric: n times the change when it is left out, to second order.

A metric T of a spectrum changes with the matrix behind it. Sample i adds E_i to that matrix, of
size 1/n, and in the basis v_k of its eigenvectors

    n (T - T without i) = n (sum_k g_k E_kk - 1/2 sum_kl F_kl E_kl^2) + const
    g_k  = dT/d lambda_k                                            `gradients`, [d]
    F_kl = (g_k - g_l) / (lambda_k - lambda_l)                      [d, d]

The standard error of T is the standard deviation of these influences over sqrt(n): the jackknife,
without its n spectra (Efron 1982, "The jackknife, the bootstrap and other resampling plans", ch.
3 and 6). The first sum alone is the infinitesimal jackknife, and fails where n is only some 10 d:
v_k leans towards each sample that it was computed from, by d/n. F takes that back.

E_kl^2 is a product of two squares, (v_k . x)^2 (v_l . x)^2 for E = x x^T. With y_k = (v_k . x)^2,
its mean e_k over the samples, and t the sample's own scale, y = t e + u with u small, and to first
order in u

    1/2 y^T F y = t y . phi - 1/2 t^2 e . phi,   phi = F e          [d]
    t = sum_k e_k^1/2 (y_k / e_k) / sum_k e_k^1/2

so that no sample needs more than its d projections. Two parts of a sample act side by side: the
mean of its views, and its q - 1 residual degrees of freedom, which are taken for independent
vectors of one scale. `Part` is this sum for either; metrics share everything but g and phi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.core.spectra import EPS
from lidar_cli.core.sphere import SphereMoments, unit_rows

TINY = torch.finfo(torch.float64).tiny

Gradients = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Part:
    """y . slope - (t y . bend - 1/2 t^2 energy . bend) / count, for squared projections y [c, d].

    energy: mean of y over samples [d]; slope, bend: [d, metrics]; count: how many vectors the
    matrix is the mean of.
    """

    energy: Tensor
    slope: Tensor
    bend: Tensor
    count: int

    def influences(self, squares: Tensor) -> Tensor:
        """Influences [c, metrics] of the squared projections y [c, d]."""
        # Roots as weights: every direction counts, and those that hold rounding alone do not.
        root = self.energy.sqrt()
        known = root > len(root) * EPS * root.max()
        scale = squares @ (known / root.where(known, 1.0)) / root.sum().clamp_min(TINY)
        bent = squares @ self.bend
        whole = 0.5 * torch.outer(scale.square(), self.energy @ self.bend)
        return squares @ self.slope - (scale[:, None] * bent - whole) / self.count


@dataclass(frozen=True)
class SpectralInfluence:
    """The influence of samples on the metrics of one spectrum.

    vectors: v_k in the columns of a matrix [d, d]; origin [d]: what is taken from the means of the
    views before they are projected.
    """

    names: tuple[str, ...]
    origin: Tensor
    vectors: Tensor
    of_means: Part
    of_residuals: Part | None

    def influences(self, block: Tensor) -> Tensor:
        """Influences [c, metrics] of the samples of a float64 block [c, q, d], up to a constant."""
        means = block.mean(dim=1)
        found = self.of_means.influences(((means - self.origin) @ self.vectors).square())
        if self.of_residuals is not None:
            residuals = ((block - means[:, None]) @ self.vectors).square().sum(dim=1)
            found += self.of_residuals.influences(residuals)
        return found


def lda_influence(moments: Moments, delta: float, gradients: Gradients) -> SpectralInfluence:
    """On the metrics of the LDA pair, with Sb v_k = lambda_k Sw v_k and v_k^T Sw v_k = 1.

        b_k = (v_k . (m_i - m))^2,   w_k = sum_j (v_k . (z_ij - m_i))^2 / (q - 1)
        n (T - T without i) = sum_k g_k b_k - g_k lambda_k w_k - second order

    To second order in both, whiten Sb - E_b by Sw - E_w. For the means F is that of g; for the
    residuals the three terms in E_w^2 come to the divided differences of lambda^2 g in the same
    way. The product of E_b and E_w has no mean and is left out: a view's residual is as likely
    along the class mean as against it.
    The mean of w_k is 1 - delta |v_k|^2, what the ridge leaves of v_k^T Sw v_k.
    Raises torch.linalg.LinAlgError if Sw is not positive definite, where `lda_spectrum` refuses.
    """
    n, q = moments.n, moments.n_views
    within = moments.within / (n * (q - 1))
    within.diagonal().add_(delta)
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, moments.class_means.scatter, upper=False)
    small = torch.linalg.solve_triangular(factor, half.T, upper=False) / (n - 1)
    eigenvalues, rotated = _eigenpairs(small)
    vectors = torch.linalg.solve_triangular(factor.T, rotated, upper=True)
    found = gradients(eigenvalues)
    slope = torch.stack(list(found.values()), dim=1)
    kernel, column = _kernel(eigenvalues, n), eigenvalues[:, None]
    view_noise = (1.0 - delta * vectors.square().sum(dim=0)).clamp_min(0.0)
    means = Part(eigenvalues, slope, _bend(kernel, slope, eigenvalues), n)
    bend = _bend(kernel, slope * column.square(), view_noise) / (q - 1)
    residuals = Part(view_noise * (q - 1), -slope * column / (q - 1), bend, n * (q - 1))
    return SpectralInfluence(tuple(found), moments.class_means.mean, vectors, means, residuals)


def gram_influence(rows: RowMoments, gradients: Gradients) -> SpectralInfluence:
    """On the metrics of the uncentred Gram matrix of rows, Z^T Z / N."""
    gram = torch.addr(rows.scatter, rows.mean, rows.mean, alpha=rows.n) / rows.n
    return _of_rows(gram, torch.zeros_like(rows.mean), rows.n, gradients)


def covariance_influence(rows: RowMoments, gradients: Gradients) -> SpectralInfluence:
    """On the metrics of the centred covariance of rows, scatter / N."""
    return _of_rows(rows.scatter / rows.n, rows.mean, rows.n, gradients)


def augmented_influence(moments: Moments, gradients: Gradients) -> SpectralInfluence:
    """On the metrics of the uncentred Gram matrix of all views, sum_ij z_ij z_ij^T / n.

    A sample brings q m_i m_i^T and the scatter of its residuals: of its q rows none is alone.
    """
    means, n, q = moments.class_means, moments.n, moments.n_views
    total = moments.within + q * means.scatter
    gram = torch.addr(total, means.mean, means.mean, alpha=n * q) / n
    eigenvalues, vectors = _eigenpairs(gram)
    found = gradients(eigenvalues)
    slope = torch.stack(list(found.values()), dim=1)
    kernel = _kernel(eigenvalues, n)
    view_noise = ((moments.within @ vectors) * vectors).sum(dim=0).clamp_min(0.0) / n
    between = (eigenvalues - view_noise).clamp_min(0.0)
    of_means = Part(between / q, q * slope, q * _bend(kernel, slope, between), n)
    of_residuals = (
        Part(view_noise, slope, _bend(kernel, slope, view_noise), n * (q - 1)) if q > 1 else None
    )
    origin = torch.zeros_like(means.mean)
    return SpectralInfluence(tuple(found), origin, vectors, of_means, of_residuals)


def normalized_std_influence(block: Tensor, sphere: SphereMoments) -> Tensor:
    """On `metrics.normalized_std` [c], of samples [c, q, d]: sum_k (u_k - mean_k)^2 / (2 std_k).

    Averaged over the views, and over sqrt(d) as the metric is; a dimension without spread is
    without influence.
    """
    std = (sphere.squares / sphere.n_rows).sqrt()
    weight = (0.5 / std).where(std > 0, 0.0) / len(std) ** 0.5
    found: Tensor = (unit_rows(block) - sphere.mean).square().mean(dim=1) @ weight
    return found


def alignment_influence(block: Tensor) -> Tensor:
    """On `metrics.alignment` [c], the mean of just these: a sample's mean squared distance."""
    unit = unit_rows(block)
    spread = (unit - unit.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    return 2.0 / (block.shape[1] - 1) * spread


def _of_rows(matrix: Tensor, origin: Tensor, n: int, gradients: Gradients) -> SpectralInfluence:
    eigenvalues, vectors = _eigenpairs(matrix)
    found = gradients(eigenvalues)
    slope = torch.stack(list(found.values()), dim=1)
    part = Part(eigenvalues, slope, _bend(_kernel(eigenvalues, n), slope, eigenvalues), n)
    return SpectralInfluence(tuple(found), origin, vectors, part, None)


def _eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], largest first, 0 where they are rounding, and eigenvectors in columns."""
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.T) / 2.0)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    floor = len(eigenvalues) * EPS * eigenvalues[0]
    return eigenvalues.where(eigenvalues >= floor, 0.0), vectors


def _kernel(eigenvalues: Tensor, n: int) -> Tensor:
    """1 / (lambda_k - lambda_l) [d, d], held where the gap is below what one sample moves.

    That is |E_kl|, about sqrt(lambda_k lambda_l) / n: nearer than this two eigenvalues are one to
    the sample, and the expansion in E_kl over the gap has no meaning.
    """
    gap = eigenvalues[:, None] - eigenvalues
    moved = torch.outer(eigenvalues, eigenvalues) / n**2
    kernel: Tensor = gap / (gap.square() + moved).clamp_min(TINY)
    return kernel


def _bend(kernel: Tensor, values: Tensor, energy: Tensor) -> Tensor:
    """phi_k = sum_l (a_k - a_l) / (lambda_k - lambda_l) e_l, for columns a of values [d, M]."""
    return values * (kernel @ energy)[:, None] - kernel @ (energy[:, None] * values)
