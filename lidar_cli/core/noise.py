"""View noise of uneven strength: the test that finds it, and the edge that allows for it.

Wachter's edge takes the noise of a view for Gaussian and alike in all samples. Noise that is strong
in some samples spreads the eigenvalues further, whatever n is, and would count as signal.

The test. Sample i has the residual energy r_i = sum_j |z_ij - m_i|^2. Under Gaussian noise of
covariance W in all samples it is a sum of q - 1 squared lengths, so that

    E r = (q - 1) tr W,   var r = 2 (q - 1) tr W^2,   kappa_4(r) = 48 (q - 1) tr W^4

The sample variance of r over 2 (q - 1) tr W^2 has mean 1 and, since tr W^4 <= (tr W^2)^2, at most
the variance 2/(n - 1) + 12/(n (q - 1)). It is compared with the chi-square over its degrees of
freedom f that has this variance, 2/f (Box 1954, "Some theorems on quadratic forms", I), at a
level of 1 in 1,000 or less.

The edge. A contrast u_i = sum_j c_ij z_ij, with sum_j c_ij = 0 and |c_i| = 1, has the law that
q^1/2 (m_i - E m_i) has under noise alone, if the views of a sample are exchangeable, whatever the
law and the strength of sample i. In the pair

    Bc = 1/(q (n - 1)) sum_i u_i u_i^T                                              [d, d]
    Wc = 1/(n (q - 2)) sum_i (sum_j (z_ij - m_i)(z_ij - m_i)^T - u_i u_i^T)         [d, d]

the largest eigenvalue is therefore one draw of the largest that noise alone gives, but for q - 2
degrees of freedom a sample within it in place of q - 1. Wachter's edges at either number, and at n
and the number of samples that are read, give the factor that takes it there (simulated with
log-normal strengths of sd 0 to 1 the mean of both agrees to 3 %, or is on the safe side). Half of
the c_ij are positive and half negative, as even as q lets them be. With T = sum_i u_i u_i^T
whitened by all residuals, both are functions of T: an eigenvalue t of it gives
n (q - 2)/(q (n - 1)) t/(1 - t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.metrics import wachter_edge
from lidar_cli.core.moments import Moments
from lidar_cli.errors import DegenerateFeatures

NORMAL_999 = 3.0902  # 99.9 % point of the normal law
CONTRASTS = 32  # drawn for a sample; the largest eigenvalue of all of them is the edge
MOST_SAMPLES = 2000  # that the contrasts are formed of
MOST_NUMBERS = 2**26  # of their embeddings, which are read again for every few contrasts
LEAST_DEGREES = 4  # n (q - 1) over d: below it the within covariance of a contrast is too poor
KRYLOV = 32  # dimensions of the space in which the largest eigenvalue is looked for
SEED = 0

Blocks = Callable[[], Iterable[Tensor]]  # samples [c, q, d] in float64, the same ones at each call


class Dispersion(NamedTuple):
    """Variance of the residual energies over that of equal Gaussian noise, and its 99.9 % point."""

    ratio: float
    limit: float

    @property
    def is_uneven(self) -> bool:
        """Whether equal Gaussian noise is refused; False where the numbers overflow."""
        return math.isfinite(self.ratio) and self.ratio > self.limit


def dispersion(moments: Moments) -> Dispersion | None:
    """How unevenly view noise is spread over the samples; None where the moments do not say.

    tr W^2 is taken from W0 with n (q - 1) degrees of freedom, without the bias of its square:
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
    half = 1.0 / (n - 1) + 6.0 / degrees  # 1/f
    limit = (1.0 - 2.0 / 9.0 * half + NORMAL_999 * math.sqrt(2.0 / 9.0 * half)) ** 3
    return Dispersion(variance / (2.0 * (q - 1) * float(squares)), limit)


def contrast_samples(n: int, q: int, d: int) -> Tensor:
    """Numbers of the samples that contrasts are formed of, ascending: all, or a seeded subset."""
    count = max(1, min(n, MOST_SAMPLES, MOST_NUMBERS // max(1, q * d)))
    if count == n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(n, generator=generator)[:count].sort().values


def contrast_edge(blocks: Blocks, n: int, delta: float, room: int = 2**26) -> float:
    """The largest eigenvalue that view noise alone explains, of whatever law and strengths.

    blocks: the samples of `contrast_samples`; n: all of them. delta: as in `lda_spectrum`.
    room: bytes that contrasts may take; less room is more calls of `blocks`, not another value.
    Raises DegenerateFeatures if q < 3, d exceeds a quarter of their degrees of freedom, or their
    within covariance is singular.
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
    """L [d, d] of L L^T = W0 + delta I, how many samples there are, and q."""
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

    Beyond, it falls short by about (log d / 2 KRYLOV)^2 where the spectrum ends in a bulk.
    Source: Lanczos with full reorthogonalisation; Golub and Van Loan 2013, section 10.3.
    """
    d = rows.shape[1]
    generator = torch.Generator().manual_seed(SEED)
    vector = torch.randn(d, dtype=rows.dtype, generator=generator).to(rows.device)
    basis = rows.new_zeros(min(d, KRYLOV), d)
    for at in range(len(basis)):
        for _ in range(2):  # once leaves what rounding puts back
            vector = vector - basis[:at].T @ (basis[:at] @ vector)
        length = torch.linalg.vector_norm(vector)
        if not length > 0:
            break
        basis[at] = vector / length
        vector = rows.T @ (rows @ basis[at])
    projected = rows @ basis.T
    return float(torch.linalg.eigvalsh(projected.T @ projected)[-1])
