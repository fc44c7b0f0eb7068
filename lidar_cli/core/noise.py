"""View noise: its floor in the LDA spectrum, the largest eigenvalue that it explains (its edge).

Symbols: n samples, q views of each, d dimensions; lambda the LDA spectrum [d].

**Noise of equal strength in all samples.** The class mean m_i is a mean of q views and has 1/q of
their noise, so that without any signal the eigenvalues spread about 1/q, up to Wachter's edge
(`noise_edge`). `corrected_spectrum` is the spectrum less this floor of 1/q.

**Noise of uneven strength** spreads the eigenvalues further at any n, and would count as signal.
The test for it (`dispersion`) uses the residual energy of each sample, r_i = sum_j |z_ij - m_i|^2.
Under Gaussian noise of covariance W in all samples it is a sum of q - 1 squared lengths, so that

    E r = (q - 1) tr W,   var r = 2 (q - 1) tr W^2,   kappa_4(r) = 48 (q - 1) tr W^4

The sample variance of r over 2 (q - 1) tr W^2 has mean 1 and, since tr W^4 <= (tr W^2)^2, at most
the variance 2/(n - 1) + 12/(n (q - 1)). It is compared with the chi-square over its degrees of
freedom f that has this variance, 2/f (Box 1954, "Some theorems on quadratic forms", I), at a
level of 1 in 1,000 or less.

**The edge of uneven noise** (`contrast_edge`). A contrast is u_i = sum_j c_ij z_ij, with
sum_j c_ij = 0 and |c_i| = 1. If the views of a sample are exchangeable, it has the distribution of
q^1/2 (m_i - E m_i) under noise alone, for any distribution and strength of the noise of sample i.
In the pair

    Bc = 1/(q (n - 1)) sum_i u_i u_i^T                                              [d, d]
    Wc = 1/(n (q - 2)) sum_i (sum_j (z_ij - m_i)(z_ij - m_i)^T - u_i u_i^T)         [d, d]

the largest eigenvalue is therefore one draw of the largest that noise alone gives, except that a
sample has q - 2 degrees of freedom within it instead of q - 1. The factor between the two is the
ratio of Wachter's edges at these degrees of freedom, and at n and at the number of samples used
(simulated with log-normal strengths of sd 0 to 1, the mean of both agrees to 3 %, or errs on the
safe side). Half of the c_ij are positive and half negative, or as nearly as q allows. With
T = sum_i u_i u_i^T whitened by all residuals, Bc and Wc are both functions of T: an eigenvalue t of
T gives n (q - 2)/(q (n - 1)) t/(1 - t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.moments import Moments
from lidar_cli.errors import DegenerateFeatures

EDGE_MARGIN = 1.1  # Wachter's edge is a limit; at usual sizes noise stays below 1.1 times it
TRACY_WIDOM_99 = 2.0234  # 99 % point of the Tracy-Widom law of real matrices (beta = 1)
NORMAL_999 = 3.0902  # 99.9 % point of the normal law
CONTRASTS = 32  # drawn for each sample; the largest eigenvalue over all draws gives the edge
MOST_SAMPLES = 2000  # used for contrasts
MOST_NUMBERS = (
    2**26
)  # in the embeddings of these samples, which are read again for every few contrasts
LEAST_DEGREES = 4  # n (q - 1) / d, below which Wc is too poorly determined
KRYLOV = 32  # dimensions of the Krylov space that approximates the largest eigenvalue
SEED = 0

Blocks = Callable[[], Iterable[Tensor]]  # samples [c, q, d] in float64, the same ones at each call


def inverse_bias(n: int, q: int, d: int) -> float:
    """h = 1 - (d + 1) / (n (q - 1)): W0^-1 is too large by 1 / h on average.

    Source: mean of the inverse Wishart distribution; Mardia, Kent, Bibby 1979, section 3.4.
    Raises DegenerateFeatures if n (q - 1) <= d + 1, where that mean does not exist.
    """
    degrees = n * (q - 1)
    if degrees <= d + 1:
        raise DegenerateFeatures(
            f"the within covariance is singular: raise q or n "
            f"(n (q - 1) = {degrees}, it must exceed d + 1 = {d + 1})",
            code="within-singular",
        )
    return 1.0 - (d + 1) / degrees


def noise_edge(n: int, q: int, d: int) -> float:
    """The largest eigenvalue of the LDA matrix that view noise alone explains.

        edge = (1/q) ((1 + sqrt(c1 + c2 - c1 c2)) / (1 - c2))^2,  c1 = d/(n-1),  c2 = d/(n(q-1))

    Source: Wachter 1980, the limit law of the F matrix. Raises DegenerateFeatures as
    `inverse_bias`.
    """
    inverse_bias(n, q, d)
    return wachter_edge(n, n * (q - 1), d) / q


def wachter_edge(n: int, degrees: int, d: int) -> float:
    """The edge of the spectrum of an F matrix with n - 1 and `degrees` degrees of freedom."""
    c1, c2 = d / (n - 1), d / degrees
    return ((1 + math.sqrt(c1 + c2 - c1 * c2)) / (1 - c2)) ** 2


def n_above_noise(eigenvalues: Tensor, n: int, q: int, edge: float | None = None) -> int:
    """The number of eigenvalues above 1.1 times the edge, which view noise does not explain.

    edge: `noise_edge` if None.
    """
    edge = noise_edge(n, q, len(eigenvalues)) if edge is None else edge
    return int((eigenvalues > EDGE_MARGIN * edge).sum())


def largest_of_noise(n: int, q: int, d: int) -> float:
    """The limit that the largest eigenvalue of Gaussian view noise exceeds in 1 draw of 100.

        b = n - 1,  w = n (q - 1)                                       degrees of freedom
        sin^2(g/2) = (min(d, b) - 1/2) / (b + w - 1),   sin^2(f/2) = (max(d, b) - 1/2) / (b + w - 1)
        mu = 2 log tan((f + g)/2)
        sigma^3 = 16 / ((b + w - 1)^2 sin^2(f + g) sin f sin g)
        limit = w / (q b) exp(mu + sigma t),   t the 99 % point of the Tracy-Widom law

    Unlike a fixed margin on Wachter's edge it grows as n falls.
    Source: Johnstone 2008, "Multivariate analysis and Jacobi ensembles", theorem 1, for the largest
    root of a double Wishart pair. Raises DegenerateFeatures as `inverse_bias`.
    """
    inverse_bias(n, q, d)
    b, w = n - 1, n * (q - 1)
    few, many = sorted((d, b))
    g = 2 * math.asin(math.sqrt((few - 0.5) / (b + w - 1)))
    f = 2 * math.asin(math.sqrt((many - 0.5) / (b + w - 1)))
    spread = math.sin(f + g) ** 2 * math.sin(f) * math.sin(g)
    sigma = (16 / ((b + w - 1) ** 2 * spread)) ** (1 / 3)
    return w / (q * b) * math.tan((f + g) / 2) ** 2 * math.exp(sigma * TRACY_WIDOM_99)


def corrected_spectrum(eigenvalues: Tensor, n: int, q: int, edge: float | None = None) -> Tensor:
    """lambda^c = max(h lambda - 1/q, 0) [d]: the LDA spectrum less its noise floor.

    A class mean of q views has 1/q of the view noise, so that every direction of noise alone has an
    eigenvalue near 1/q. About half of these are above 1/q and remain, so that sums over the
    spectrum are too large, the more so the fewer the views.

    edge: as in `n_above_noise`.
    Raises DegenerateFeatures as `inverse_bias`, and "nothing above view noise" if no eigenvalue is
    above 1.1 times the edge and above `largest_of_noise`: metrics of the spectrum would then
    measure noise.
    """
    d = len(eigenvalues)
    h = inverse_bias(n, q, d)
    if n_above_noise(eigenvalues, n, q, edge) == 0:
        raise DegenerateFeatures(
            "nothing above view noise: no eigenvalue clears the noise edge",
            code="nothing-above-noise",
        )
    if not bool(eigenvalues[0] > largest_of_noise(n, q, d)):
        raise DegenerateFeatures(
            f"nothing above view noise: at n = {n} noise alone reaches the largest eigenvalue in "
            "more than one draw of a hundred; raise n",
            code="nothing-above-noise",
        )
    return (h * eigenvalues - 1.0 / q).clamp_min(0.0)


class Dispersion(NamedTuple):
    """Variance of the residual energies over that under equal noise, and its 99.9 % point."""

    ratio: float
    limit: float

    @property
    def is_uneven(self) -> bool:
        """Whether the test rejects equal Gaussian noise; False if the numbers overflow."""
        return math.isfinite(self.ratio) and self.ratio > self.limit


def dispersion(moments: Moments) -> Dispersion | None:
    """How unevenly view noise is spread over the samples; None if the moments do not determine it.

    tr W^2 is estimated without bias from W0, which has f = n (q - 1) degrees of freedom:
    (tr W0^2 - (tr W0)^2 / f) f^2 / ((f - 1)(f + 2)).
    """
    n, q, degrees = moments.n, moments.n_views, moments.n * (moments.n_views - 1)
    if moments.energies.n != n or n < 2 or degrees < 2:
        return None
    within = moments.within / degrees
    squares = within.square().sum() - within.trace().square() / degrees
    squares = squares * degrees**2 / ((degrees - 1) * (degrees + 2))
    if not squares > 0:
        return None
    variance = float(moments.energies.scatter[0, 0]) / (n - 1)
    half = 1.0 / (n - 1) + 6.0 / degrees  # half the variance: 1/f of the chi-square
    limit = (1.0 - 2.0 / 9.0 * half + NORMAL_999 * math.sqrt(2.0 / 9.0 * half)) ** 3
    return Dispersion(variance / (2.0 * (q - 1) * float(squares)), limit)


@dataclass(frozen=True)
class ViewNoise:
    """The edge of view noise, how it was computed, and a remark about it.

    law: "wachter", or "contrasts" if noise is uneven and theirs is the larger edge.
    dispersion: variance of the samples' residual energies over that of equal Gaussian noise.
    """

    edge: float
    law: Literal["wachter", "contrasts"]
    dispersion: float | None = None
    remark: str | None = None


def measure_view_noise(moments: Moments, blocks: Blocks, delta: float, room: int) -> ViewNoise:
    """The edge of view noise: Wachter's from the moments, or if noise is uneven that of contrasts.

    blocks, delta, room: as in `contrast_edge`. Raises DegenerateFeatures as `noise_edge`.
    """
    wachter = noise_edge(moments.n, moments.n_views, moments.dim)
    spread = dispersion(moments)
    if spread is None or not spread.is_uneven:
        return ViewNoise(wachter, "wachter", spread.ratio if spread else None)
    uneven = (
        f"view noise is of unequal strength among samples: their residual energies vary "
        f"{spread.ratio:.3g} times as much as equal Gaussian noise would have them"
    )
    try:
        contrasts = contrast_edge(blocks, moments.n, delta, room)
    except DegenerateFeatures as error:
        remark = f"{uneven}; {error}, so directions of noise may count as signal"
        return ViewNoise(wachter, "wachter", spread.ratio, remark)
    if contrasts <= wachter:
        return ViewNoise(wachter, "wachter", spread.ratio)
    remark = (
        f"{uneven}; so the noise edge is that of contrasts between the views of a sample, "
        f"{contrasts:.3g}, and not Wachter's, {wachter:.3g}"
    )
    return ViewNoise(contrasts, "contrasts", spread.ratio, remark)


def contrast_samples(n: int, q: int, d: int) -> Tensor:
    """Numbers of the samples used for contrasts, ascending: all, or a subset by a fixed seed."""
    count = max(1, min(n, MOST_SAMPLES, MOST_NUMBERS // max(1, q * d)))
    if count == n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(n, generator=generator)[:count].sort().values


def contrast_edge(blocks: Blocks, n: int, delta: float, room: int = 2**26) -> float:
    """The largest eigenvalue that view noise explains, for any distribution and strengths of it.

    blocks: the samples of `contrast_samples`. n: the number of all samples. delta: as in
    `lda_spectrum`.
    room: bytes that contrasts may occupy; with fewer, `blocks` is called more often, and the value
    is the same.
    Raises DegenerateFeatures if q < 3, or if the within covariance of the samples of `blocks` is
    singular or has fewer than 4 d degrees of freedom.
    """
    factor, count, q = _within_factor(blocks, delta)
    d = len(factor)
    generator = torch.Generator().manual_seed(SEED)
    at_once = max(1, min(CONTRASTS, room // (4 * count * d)))
    largest = 0.0
    for first in range(0, CONTRASTS, at_once):
        some = range(first, min(first + at_once, CONTRASTS))
        weights = torch.stack([_weights(count, q, generator) for _ in some], dim=1)
        for rows in _contrasts(blocks, weights, factor):
            largest = max(largest, _largest(rows.double()))
    share = largest / (count * (q - 1))
    edge = count * (q - 2) / (q * (count - 1)) * share / (1.0 - share)
    return edge * wachter_edge(n, n * (q - 1), d) / wachter_edge(count, count * (q - 2), d)


def _within_factor(blocks: Blocks, delta: float) -> tuple[Tensor, int, int]:
    """The Cholesky factor L [d, d] of W0 + delta I, the number of samples, and q."""
    scatter: Tensor | float = 0.0
    count = q = d = 0
    for block in blocks():
        residuals = _residuals(block).flatten(0, 1)
        scatter = scatter + residuals.T @ residuals
        count, (_, q, d) = count + len(block), block.shape
    if q < 3:
        raise DegenerateFeatures("no edge allows for that at q = 2, and it takes 3 views")
    if LEAST_DEGREES * d > count * (q - 1):
        raise DegenerateFeatures(
            f"no edge allows for that above d = {count * (q - 1) // LEAST_DEGREES}, a quarter of "
            "the degrees of freedom within samples"
        )
    assert isinstance(scatter, Tensor)
    within = scatter.div_(count * (q - 1))
    within.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        raise DegenerateFeatures("no edge allows for that with a singular within covariance")
    return factor, count, q


def _residuals(block: Tensor) -> Tensor:
    """z_ij - m_i, [c, q, d]."""
    return block - block.mean(dim=1, keepdim=True)


def _weights(count: int, q: int, generator: torch.Generator) -> Tensor:
    """The c_ij of one random contrast a sample, [count, q]."""
    order = torch.rand(count, q, generator=generator).argsort(dim=1)
    signs = torch.where(order < q // 2, 1.0, -1.0)
    signs = signs - signs.mean(dim=1, keepdim=True)
    weights: Tensor = signs / torch.linalg.vector_norm(signs, dim=1, keepdim=True)
    return weights


def _contrasts(blocks: Blocks, weights: Tensor, factor: Tensor) -> Tensor:
    """L^-1 u_i of k contrasts, in float32 [k, n, d]; weights: [n, k, q]."""
    count, k, _ = weights.shape
    rows = torch.empty(k, count, len(factor), dtype=torch.float32, device=factor.device)
    start = 0
    for block in blocks():
        some = slice(start, start + len(block))
        contrasts = weights[some].to(block) @ _residuals(block)  # [c, k, d]
        solved = torch.linalg.solve_triangular(factor, contrasts.flatten(0, 1).T, upper=False)
        rows[:, some] = solved.T.view(contrasts.shape).transpose(0, 1).float()
        start += len(block)
    return rows


def _largest(rows: Tensor) -> float:
    """The largest eigenvalue of rows^T rows, from a Krylov space; exact up to d = KRYLOV.

    For larger d it is too small by about (log d / 2 KRYLOV)^2, relatively, if the largest
    eigenvalue is not separate from the bulk.
    Source: Lanczos with full reorthogonalisation; Golub and Van Loan 2013, section 10.3.
    """
    d = rows.shape[1]
    generator = torch.Generator().manual_seed(SEED)
    vector = torch.randn(d, dtype=rows.dtype, generator=generator).to(rows.device)
    basis = rows.new_zeros(min(d, KRYLOV), d)
    for at in range(len(basis)):
        for _ in range(2):  # rounding in the first pass leaves a part of the earlier vectors
            vector = vector - basis[:at].T @ (basis[:at] @ vector)
        length = torch.linalg.vector_norm(vector)
        if not length > 0:
            break
        basis[at] = vector / length
        vector = rows.T @ (rows @ basis[at])
    projected = rows @ basis.T
    return float(torch.linalg.eigvalsh(projected.T @ projected)[-1])
