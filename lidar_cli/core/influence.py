"""Influence of each sample on each metric: n times the change if it is left out, to second order.

A metric T is a function of the eigenvalues of a matrix, to which sample i contributes E_i, of size
1/n. With E_kl the entries of E_i in the basis of the matrix's eigenvectors v_k,

    n (T - T without i) = n (sum_k g_k E_kk - 1/2 sum_kl F_kl E_kl^2) + const
    g_k  = dT/d lambda_k                                            `Metric.gradient`, [d]
    F_kl = (g_k - g_l) / (lambda_k - lambda_l)                      [d, d]

The standard error of T is the standard deviation of these influences over sqrt(n). This is the
jackknife without n eigenvalue problems (Efron 1982, "The jackknife, the bootstrap and other
resampling plans", ch. 3 and 6). The first sum alone is the infinitesimal jackknife, which fails
where n is only about 10 d, because v_k is fitted to each sample that it was computed from, by about
d/n. The sum with F corrects for this.

For E = x x^T, E_kl^2 = y_k y_l with y_k = (v_k . x)^2. Let e_k be the mean of y_k over the samples
and t the scale of one sample, so that y = t e + u with u small. To first order in u

    1/2 y^T F y = t y . phi - 1/2 t^2 e . phi,   phi = F e          [d]
    t = sum_k e_k^1/2 (y_k / e_k) / sum_k e_k^1/2

so that a sample needs only its d projections. A sample contributes the mean of its views, and
residuals with q - 1 degrees of freedom, which are treated as independent vectors of the same scale.
`Expansion` is this sum for one of the two. Only g and phi depend on the metric.

**Unequal numbers of views.** Views and their number q_i are one draw of a sample. W0 =
sum_i S_i / f with f = sum_i (q_i - 1), so that sample i contributes n/f (S_i - (q_i - 1) W0): its
residuals weigh as much as their degrees of freedom. The noise floor r, the mean of 1/q_i, and the
bias h = 1 - (d + 1)/f depend on q_i too (`_count_slopes`):

    dT/dr (1/q_i - r) + dT/dh (d + 1) n (q_i - 1) / f^2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lidar_cli.core.metrics import METRICS, Spectrum
from lidar_cli.core.moments import Moments, RowMoments, noise_floor
from lidar_cli.core.noise import EDGE_MARGIN, corrected_spectrum, inverse_bias, noise_edge
from lidar_cli.core.spectra import EPS

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Expansion:
    """Influences through the mean of the views or through the residuals, as a function of y.

        y . g - (t y . phi - 1/2 t^2 e . phi) / count           y: squared projections [c, d]

    energy: e, the mean of y over samples [d]. first_order, second_order: g and phi [d, metrics].
    count: the number of vectors whose mean the matrix is.
    """

    energy: Tensor
    first_order: Tensor
    second_order: Tensor
    count: int

    def influences(self, squares: Tensor) -> Tensor:
        """Influences [c, metrics] of the squared projections y [c, d]."""
        # Roots as weights, so that small directions count; those of rounding alone do not.
        root = self.energy.sqrt()
        counted = root > len(root) * EPS * root.max()
        scale = squares @ (counted / root.where(counted, 1.0)) / root.sum().clamp_min(TINY)
        cross = scale[:, None] * (squares @ self.second_order)
        constant = 0.5 * torch.outer(scale.square(), self.energy @ self.second_order)
        return squares @ self.first_order - (cross - constant) / self.count


@dataclass(frozen=True)
class SpectralInfluence:
    """Computes the influences of samples on the metrics of one spectrum.

    names: of the metrics. vectors: the v_k as columns [d, d]. origin: [d], subtracted from the mean
    of a sample's views before it is projected.
    of_residuals: of the mean of a sample's y over its q_i - 1 degrees of freedom, each of which has
    the weight `share`, after `centre` [metrics] is subtracted.
    counts_views: whether the mean of a sample has the weight q_i.
    of_count: influences [metrics] of a sample's number of views alone.
    """

    names: Sequence[str]
    origin: Tensor
    vectors: Tensor
    of_means: Expansion
    of_residuals: Expansion | None = None
    share: float = 1.0
    centre: Tensor | float = 0.0
    counts_views: bool = False
    of_count: Callable[[int], Tensor] | None = None

    def influences(self, block: Tensor) -> Tensor:
        """Influences [c, metrics] of the samples of a float64 block [c, q, d], up to a constant."""
        q = block.shape[1]
        means = block.mean(dim=1)
        squares = ((means - self.origin) @ self.vectors).square()
        total = self.of_means.influences(q * squares if self.counts_views else squares)
        if self.of_residuals is not None and q > 1:
            residuals = ((block - means[:, None]) @ self.vectors).square().sum(dim=1) / (q - 1)
            weight = self.share * (q - 1)
            total += weight * (self.of_residuals.influences(residuals) - self.centre)
        return total if self.of_count is None else total + self.of_count(q)


def lda_influence(
    moments: Moments,
    names: Sequence[str],
    delta: float,
    epsilon: float,
    edge: float | None = None,
) -> SpectralInfluence:
    """The influence on metrics of the LDA pair: Sb v_k = lambda_k Sw v_k, v_k^T Sw v_k = 1.

        b_k = (v_k . (m_i - m))^2,   w_k = sum_j (v_k . (z_ij - m_i))^2 / (q - 1)
        n (T - T without i) = sum_k g_k b_k - g_k lambda_k w_k - second order

    The second order follows from whitening Sb - E_b by Sw - E_w. The means have the F of g; for the
    residuals the three terms in E_w^2 sum to the F of lambda^2 g. The product of E_b and E_w is
    left out, because its mean is 0: a view's residual is as likely to point along the class mean as
    against it. The mean of w_k is 1 - delta |v_k|^2, the part of v_k^T Sw v_k that is not ridge.

    edge: of view noise; Wachter's if None.
    Raises torch.linalg.LinAlgError if Sw is not positive definite, for which `lda_spectrum` raises
    DegenerateFeatures.
    """
    n, q, degrees = moments.n, moments.views, moments.degrees
    within = moments.within / degrees
    within.diagonal().add_(delta)
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, moments.class_means.scatter, upper=False)
    small = torch.linalg.solve_triangular(factor, half.T, upper=False) / (n - 1)
    eigenvalues, rotated = _eigenpairs(small)
    vectors = torch.linalg.solve_triangular(factor.T, rotated, upper=True)
    spectrum = Spectrum(eigenvalues, n, q, epsilon, edge)
    g = gradients(names, spectrum)
    kernel, column = _kernel(eigenvalues, n), eigenvalues[:, None]
    view_noise = (1.0 - delta * vectors.square().sum(dim=0)).clamp_min(0.0)
    means = Expansion(eigenvalues, g, _second_order(kernel, g, eigenvalues), n)
    second_order = _second_order(kernel, g * column.square(), view_noise)
    residuals = Expansion(view_noise, -g * column, second_order, degrees)
    terms = SpectralInfluence(
        names, moments.class_means.mean, vectors, means, residuals, share=n / degrees
    )
    if isinstance(q, int):
        return terms
    of_floor, of_bias = _count_slopes(names, g, spectrum)
    of_bias = of_bias * (len(eigenvalues) + 1) * n / degrees**2
    return replace(
        terms,
        centre=view_noise @ residuals.first_order,
        of_count=lambda q: of_floor / q + of_bias * (q - 1),
    )


def _count_slopes(names: Sequence[str], g: Tensor, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """dT/dr and dT/dh [metrics], of the noise floor r and the bias h at a fixed LDA spectrum.

    For a metric of lambda^c = h lambda - r they follow from its gradient by lambda, h dT/dlambda^c;
    noise_fraction is d r / (h sum(lambda)).
    """
    eigenvalues, n, q = spectrum.eigenvalues, spectrum.n, spectrum.q
    h = inverse_bias(n, q, len(eigenvalues)) if any(map(_reads_noise, names)) else 1.0
    of_floor, of_bias = torch.zeros_like(g[0]), torch.zeros_like(g[0])
    for at, name in enumerate(names):
        if METRICS[name].reads == "signal":
            of_floor[at], of_bias[at] = -g[:, at].sum() / h, eigenvalues @ g[:, at] / h
        elif METRICS[name].reads == "noise":
            value = METRICS[name].value(spectrum)
            of_floor[at], of_bias[at] = value / noise_floor(n, q), -value / h
    return of_floor, of_bias


def _reads_noise(name: str) -> bool:
    return METRICS[name].reads in ("noise", "signal")


def gram_influence(rows: RowMoments, names: Sequence[str], epsilon: float) -> SpectralInfluence:
    """The influence on metrics of the uncentred Gram matrix of rows, Z^T Z / N."""
    gram = torch.addr(rows.scatter, rows.mean, rows.mean, alpha=rows.n) / rows.n
    return _of_rows(gram, torch.zeros_like(rows.mean), rows.n, names, epsilon)


def covariance_influence(
    rows: RowMoments, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    """The influence on metrics of the centred covariance of rows, scatter / N."""
    return _of_rows(rows.scatter / rows.n, rows.mean, rows.n, names, epsilon)


def augmented_influence(
    moments: Moments, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    """The influence on metrics of the uncentred Gram matrix of all views, sum_ij z_ij z_ij^T / n.

    Leaving a sample out removes its q_i rows together: q_i m_i m_i^T and the scatter of its
    residuals. The metrics depend on shares of the spectrum alone, so that nothing is centred.
    """
    n, q = moments.n, moments.views
    means, weight = moments.class_means, q
    if not isinstance(q, int):
        means, weight = moments.weighted_means, 1
    assert isinstance(weight, int)
    total = moments.within + weight * means.scatter
    gram = torch.addr(total, means.mean, means.mean, alpha=n * weight) / n
    eigenvalues, vectors = _eigenpairs(gram)
    g = gradients(names, Spectrum(eigenvalues, n, q, epsilon))
    kernel = _kernel(eigenvalues, n)
    view_noise = ((moments.within @ vectors) * vectors).sum(dim=0).clamp_min(0.0) / n
    between = (eigenvalues - view_noise).clamp_min(0.0)
    of_means = Expansion(between, g, _second_order(kernel, g, between), n)
    of_residuals = None
    if moments.degrees:
        of_one = view_noise * (n / moments.degrees)
        of_residuals = Expansion(of_one, g, _second_order(kernel, g, of_one), n)
    origin = torch.zeros_like(means.mean)
    return SpectralInfluence(names, origin, vectors, of_means, of_residuals, counts_views=True)


def gradients(names: Sequence[str], spectrum: Spectrum) -> Tensor:
    """dT/d lambda_k for each of some metrics and each eigenvalue of the spectrum, [d, metrics].

    For a metric of lambda^c_k = max(h lambda_k - 1/q, 0) this is h times the metric's gradient,
    and 0 where lambda^c_k is clipped to 0. In the bulk of noise, the eigenvalues that
    `n_above_noise` does not count, the gradient is moved towards its mean (`_shrink_in_bulk`).
    With few samples `largest_of_noise` is above that limit (below n = 5 d at q = 2); using it as
    the limit of the bulk changes no simulated coverage by more than one draw in a hundred.
    Raises DegenerateFeatures if a metric cannot be computed.
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
        columns.append(
            _shrink_in_bulk(clipped * gradient(replace(spectrum, eigenvalues=signal)), bulk)
        )
    return torch.stack(columns, dim=1)


def _of_rows(
    matrix: Tensor, origin: Tensor, n: int, names: Sequence[str], epsilon: float
) -> SpectralInfluence:
    eigenvalues, vectors = _eigenpairs(matrix)
    g = gradients(names, Spectrum(eigenvalues, n, 1, epsilon))
    part = Expansion(
        eigenvalues,
        g,
        _second_order(_kernel(eigenvalues, n), g, eigenvalues),
        n,
    )
    return SpectralInfluence(names, origin, vectors, part)


def _eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], largest first, 0 where they are rounding, and eigenvectors in columns."""
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.T) / 2.0)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    floor = len(eigenvalues) * EPS * eigenvalues[0]
    return eigenvalues.where(eigenvalues >= floor, 0.0), vectors


def _kernel(eigenvalues: Tensor, n: int) -> Tensor:
    """1 / (lambda_k - lambda_l) [d, d], bounded where two eigenvalues nearly coincide.

    One sample changes them by |E_kl|, about sqrt(lambda_k lambda_l) / n. If the gap is smaller, the
    expansion in E_kl over the gap is not valid.
    """
    gap = eigenvalues[:, None] - eigenvalues
    moved = torch.outer(eigenvalues, eigenvalues) / n**2
    kernel: Tensor = gap / (gap.square() + moved).clamp_min(TINY)
    return kernel


def _second_order(kernel: Tensor, values: Tensor, energy: Tensor) -> Tensor:
    """phi_k = sum_l (a_k - a_l) / (lambda_k - lambda_l) e_l, for columns a of values [d, M]."""
    return values * (kernel @ energy)[:, None] - kernel @ (energy[:, None] * values)


def _shrink_in_bulk(gradient: Tensor, bulk: Tensor) -> Tensor:
    """The gradient g with mean(g) + (g - mean(g)) / sqrt(2) in place of g inside the bulk.

    max(h lambda - 1/q, 0) clips within the bulk of noise eigenvalues, where its derivative jumps,
    and which directions of the bulk are above the clip depends on the draw of samples. Write
    Var T = V1 + V2, with V1 from single samples and V2 from pairs of them. Leave-one-out influences
    have the variance V1 + 2 V2 (Efron and Stein 1981, "The jackknife estimate of variance", theorem
    2). If all directions of the bulk, which are interchangeable, had the mean derivative, it would
    be V1. The deviations from the mean contribute 2 V2; divided by sqrt(2) they contribute V2.
    """
    if not bulk.any():
        return gradient
    mean = gradient[bulk].mean()
    return gradient.where(~bulk, mean + (gradient - mean) / 2**0.5)
