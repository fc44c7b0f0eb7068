"""What each sample does to each metric: n times the change when it is left out, to second order.

A metric T of a spectrum changes with the matrix behind it. Sample i adds E_i to that matrix, of
size 1/n, and in the basis v_k of its eigenvectors

    n (T - T without i) = n (sum_k g_k E_kk - 1/2 sum_kl F_kl E_kl^2) + const
    g_k  = dT/d lambda_k                                            `Metric.gradient`, [d]
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

so that no sample needs more than its d projections. A sample acts by two parts: the mean of its
views, and its q - 1 residual degrees of freedom, which are taken for independent vectors of one
scale. `Part` is this sum for either; metrics share everything but g and phi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Spectrum
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.core.noise import EDGE_MARGIN, corrected_spectrum, inverse_bias, noise_edge
from lidar_cli.core.spectra import EPS

TINY = torch.finfo(torch.float64).tiny


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
        counted = root > len(root) * EPS * root.max()
        scale = squares @ (counted / root.where(counted, 1.0)) / root.sum().clamp_min(TINY)
        bent = squares @ self.bend
        whole = 0.5 * torch.outer(scale.square(), self.energy @ self.bend)
        return squares @ self.slope - (scale[:, None] * bent - whole) / self.count


@dataclass(frozen=True)
class SpectralInfluence:
    """The influence of samples on the metrics of one spectrum.

    names: of the metrics. vectors: v_k in the columns of a matrix [d, d]; origin [d]: subtracted
    from the means of the views before they are projected.
    """

    names: Sequence[str]
    origin: Tensor
    vectors: Tensor
    of_means: Part
    of_residuals: Part | None

    def influences(self, block: Tensor) -> Tensor:
        """Influences [c, metrics] of the samples of a float64 block [c, q, d], up to a constant."""
        means = block.mean(dim=1)
        total = self.of_means.influences(((means - self.origin) @ self.vectors).square())
        if self.of_residuals is not None:
            residuals = ((block - means[:, None]) @ self.vectors).square().sum(dim=1)
            total += self.of_residuals.influences(residuals)
        return total


def lda_influence(
    moments: Moments,
    names: Sequence[str],
    delta: float,
    epsilon: float,
    edge: float | None = None,
) -> SpectralInfluence:
    """On metrics of the LDA pair, with Sb v_k = lambda_k Sw v_k and v_k^T Sw v_k = 1.

        b_k = (v_k . (m_i - m))^2,   w_k = sum_j (v_k . (z_ij - m_i))^2 / (q - 1)
        n (T - T without i) = sum_k g_k b_k - g_k lambda_k w_k - second order

    To second order in both, whiten Sb - E_b by Sw - E_w. For the means F is that of g; for the
    residuals the three terms in E_w^2 come to the divided differences of lambda^2 g in the same
    way. The product of E_b and E_w has no mean and is left out: a view's residual is as likely
    along the class mean as against it.
    The mean of w_k is 1 - delta |v_k|^2, what the ridge leaves of v_k^T Sw v_k.
    edge: of view noise, Wachter's if None.
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
    slope = slopes(names, Spectrum(eigenvalues, n, q, epsilon, edge))
    kernel, column = _kernel(eigenvalues, n), eigenvalues[:, None]
    view_noise = (1.0 - delta * vectors.square().sum(dim=0)).clamp_min(0.0)
    means = Part(eigenvalues, slope, _bend(kernel, slope, eigenvalues), n)
    bend = _bend(kernel, slope * column.square(), view_noise) / (q - 1)
    residuals = Part(view_noise * (q - 1), -slope * column / (q - 1), bend, n * (q - 1))
    return SpectralInfluence(names, moments.class_means.mean, vectors, means, residuals)


def gram_influence(rows: RowMoments, names: Sequence[str], epsilon: float) -> SpectralInfluence:
    """On metrics of the uncentred Gram matrix of rows, Z^T Z / N."""
    gram = torch.addr(rows.scatter, rows.mean, rows.mean, alpha=rows.n) / rows.n
    return _of_rows(gram, torch.zeros_like(rows.mean), rows.n, names, epsilon)


def covariance_influence(
    rows: RowMoments, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    """On metrics of the centred covariance of rows, scatter / N."""
    return _of_rows(rows.scatter / rows.n, rows.mean, rows.n, names, epsilon)


def augmented_influence(
    moments: Moments, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    """On metrics of the uncentred Gram matrix of all views, sum_ij z_ij z_ij^T / n.

    A sample adds q m_i m_i^T and the scatter of its residuals: its q rows come and go together.
    """
    means, n, q = moments.class_means, moments.n, moments.n_views
    total = moments.within + q * means.scatter
    gram = torch.addr(total, means.mean, means.mean, alpha=n * q) / n
    eigenvalues, vectors = _eigenpairs(gram)
    slope = slopes(names, Spectrum(eigenvalues, n, q, epsilon))
    kernel = _kernel(eigenvalues, n)
    view_noise = ((moments.within @ vectors) * vectors).sum(dim=0).clamp_min(0.0) / n
    between = (eigenvalues - view_noise).clamp_min(0.0)
    of_means = Part(between / q, q * slope, q * _bend(kernel, slope, between), n)
    of_residuals = (
        Part(view_noise, slope, _bend(kernel, slope, view_noise), n * (q - 1)) if q > 1 else None
    )
    origin = torch.zeros_like(means.mean)
    return SpectralInfluence(names, origin, vectors, of_means, of_residuals)


def slopes(names: Sequence[str], spectrum: Spectrum) -> Tensor:
    """dT/d lambda_k of some metrics by the eigenvalues that an influence expands in, [d, metrics].

    A metric of lambda^c_k = max(h lambda_k - 1/q, 0) has h times its gradient, 0 where clipped, and
    halfway to its mean in the noise's bulk (`_halved`): the eigenvalues that `n_above_noise` does
    not count. The null rule asks more of the largest at few samples (`largest_of_noise`, above 1.1
    edges below n = 5 d at q = 2); that bound for the bulk, too, changes no simulated coverage by
    more than a draw in a hundred.
    Raises DegenerateFeatures where the metrics do.
    """
    eigenvalues, n, q, edge = spectrum.eigenvalues, spectrum.n, spectrum.q, spectrum.edge
    columns = []
    for name in names:
        gradient = METRICS[name].gradient
        assert gradient is not None
        if METRICS[name].reads != "signal":
            columns.append(gradient(spectrum))
            continue
        d = len(eigenvalues)
        signal = corrected_spectrum(eigenvalues, n, q, edge)
        clipped = inverse_bias(n, q, d) * (signal > 0).to(signal)
        bulk = eigenvalues <= EDGE_MARGIN * (noise_edge(n, q, d) if edge is None else edge)
        columns.append(_halved(clipped * gradient(replace(spectrum, eigenvalues=signal)), bulk))
    return torch.stack(columns, dim=1)


def _of_rows(
    matrix: Tensor, origin: Tensor, n: int, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    eigenvalues, vectors = _eigenpairs(matrix)
    slope = slopes(names, Spectrum(eigenvalues, n, 1, epsilon))
    part = Part(eigenvalues, slope, _bend(_kernel(eigenvalues, n), slope, eigenvalues), n)
    return SpectralInfluence(names, origin, vectors, part, None)


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


def _halved(gradient: Tensor, bulk: Tensor) -> Tensor:
    """Inside the bulk g becomes mean(g) + (g - mean(g)) / sqrt(2).

    The clip cuts through the bulk of noise eigenvalues, and there the derivative jumps. Which of
    the bulk's directions lie above the cut belongs to this draw alone. Write Var T = V1 + V2, of
    what a sample does alone and of what two do together. Leave-one-out influences have the
    variance V1 + 2 V2 (Efron and Stein 1981, "The jackknife estimate of variance", theorem 2);
    with the mean derivative for the whole bulk, whose directions are interchangeable, V1 is left.
    The deviations from that mean hold 2 V2, and over sqrt(2) half of it.
    """
    if not bulk.any():
        return gradient
    mean = gradient[bulk].mean()
    return gradient.where(~bulk, mean + (gradient - mean) / 2**0.5)
