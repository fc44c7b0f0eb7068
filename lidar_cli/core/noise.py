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

**Unequal numbers of views.** The noise of m_i is 1/q_i of a view's, so that even equal noise gives
class means of unequal strength, and Wachter's law does not hold. With t_i = 1/q_i, c1 = d/(n - 1)
and c2 = d/sum_i (q_i - 1), the limit law of the spectrum has its edge at the minimum of

    x(w) = (1 + z) / (w (1 - c2 - c2 z)),   z = w mean_i t_i/(1 - c1 t_i w),   0 < w < 1/(c1 max t)

(`unequal_edge`). x(w) is the inverse of the Stieltjes transform: that of sum_i t_i x_i x_i^T / n
(Marchenko and Pastur 1967, "Distribution of eigenvalues for some sets of random matrices"),
multiplied by the S-transform 1 - c2 - c2 z of an inverse Wishart matrix (Voiculescu 1987,
"Multiplication of certain non-commuting random variables"). At equal q it is Wachter's edge. The
largest eigenvalue fluctuates about it by the Tracy-Widom law, scaled by the curvature of x at its
minimum (El Karoui 2007, "Tracy-Widom limit for the largest eigenvalue of a large class of complex
sample covariance matrices").

With r_i the residual energies, the test for uneven noise is of (r_i - (q_i - 1) mean) /
(q_i - 1)^1/2, whose variance is 2 tr W^2 for every q_i. A contrast divided by q_i^1/2 has the
distribution of m_i - E m_i, so that Bc = 1/(n - 1) sum_i u_i u_i^T / q_i, and Wc has
sum_i (q_i - 2) degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.moments import Moments, ViewCounts, degrees_within, noise_floor
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


def inverse_bias(n: int, q: ViewCounts, d: int) -> float:
    """h = 1 - (d + 1) / (n (q - 1)): W0^-1 is too large by 1 / h on average.

    For unequal q_i, here and below, sum_i (q_i - 1) replaces n (q - 1).
    Source: mean of the inverse Wishart distribution; Mardia, Kent, Bibby 1979, section 3.4.
    Raises DegenerateFeatures if n (q - 1) <= d + 1, where that mean does not exist.
    """
    degrees = degrees_within(n, q)
    if degrees <= d + 1:
        name = "n (q - 1)" if isinstance(q, int) else "sum(q_i - 1)"
        raise DegenerateFeatures(
            f"the within covariance is singular: raise q or n "
            f"({name} = {degrees}, it must exceed d + 1 = {d + 1})",
            code="within-singular",
        )
    return 1.0 - (d + 1) / degrees


def noise_edge(n: int, q: ViewCounts, d: int) -> float:
    """The largest eigenvalue of the LDA matrix that view noise alone explains.

        edge = (1/q) ((1 + sqrt(c1 + c2 - c1 c2)) / (1 - c2))^2,  c1 = d/(n-1),  c2 = d/(n(q-1))

    Source: Wachter 1980, the limit law of the F matrix; for unequal q_i `unequal_edge`.
    Raises DegenerateFeatures as `inverse_bias`.
    """
    inverse_bias(n, q, d)
    degrees = degrees_within(n, q)
    if isinstance(q, int):
        return wachter_edge(n, degrees, d) / q
    return unequal_edge(q, degrees, d).edge


def wachter_edge(n: int, degrees: int, d: int) -> float:
    """The edge of the spectrum of an F matrix with n - 1 and `degrees` degrees of freedom."""
    c1, c2 = d / (n - 1), d / degrees
    return ((1 + math.sqrt(c1 + c2 - c1 * c2)) / (1 - c2)) ** 2


class Edge(NamedTuple):
    """The edge of a spectrum of noise, and the scale of the largest eigenvalue about it."""

    edge: float
    scale: float


def unequal_edge(q: Mapping[int, int], degrees: int, d: int) -> Edge:
    """The edge of the LDA spectrum of noise for samples with unequal numbers of views.

    The minimum of x(w), in the notation above; its scale is (x'' / (2 d^2))^1/3, with x as a
    function of the Stieltjes transform (1 + z)/x.
    q: samples by their number of views. degrees: of freedom of the within covariance.
    """
    n = sum(q.values())
    c1, c2 = d / (n - 1), d / degrees
    t = torch.tensor([1.0 / views for views in q], dtype=torch.float64)
    share = torch.tensor(list(q.values()), dtype=torch.float64) / n

    def derivatives(w: float) -> tuple[float, float, float, float]:
        """z and its derivative by w, and the first two of log x."""
        poles = 1.0 / (1.0 - c1 * w * t)
        mean, slope, curve = (
            factor * c1**k * float((share * t ** (k + 1) * poles ** (k + 1)).sum())
            for k, factor in enumerate((1.0, 1.0, 2.0))
        )
        z, dz, ddz = w * mean, mean + w * slope, 2.0 * slope + w * curve
        left = 1.0 - c2 - c2 * z  # positive below the pole of x
        if left <= 0:
            return z, dz, math.inf, math.inf
        first = dz / (1 + z) - 1 / w + c2 * dz / left
        second = ddz / (1 + z) - (dz / (1 + z)) ** 2 + w**-2
        return z, dz, first, second + c2 * ddz / left + (c2 * dz / left) ** 2

    low, high = 0.0, 1.0 / (c1 * float(t.max()))
    for _ in range(100):  # to all digits of float64
        middle = (low + high) / 2
        low, high = (middle, high) if derivatives(middle)[2] < 0 else (low, middle)
    z, dz, _, second = derivatives(low)
    edge = (1 + z) / (low * (1 - c2 - c2 * z))
    return Edge(edge, (second * edge**3 / (2 * d**2 * dz**2)) ** (1 / 3))


def n_above_noise(eigenvalues: Tensor, n: int, q: ViewCounts, edge: float | None = None) -> int:
    """The number of eigenvalues above 1.1 times the edge, which view noise does not explain.

    edge: `noise_edge` if None.
    """
    edge = noise_edge(n, q, len(eigenvalues)) if edge is None else edge
    return int((eigenvalues > EDGE_MARGIN * edge).sum())


def largest_of_noise(n: int, q: ViewCounts, d: int) -> float:
    """The limit that the largest eigenvalue of Gaussian view noise exceeds in 1 draw of 100.

        b = n - 1,  w = n (q - 1)                                       degrees of freedom
        sin^2(g/2) = (min(d, b) - 1/2) / (b + w - 1),   sin^2(f/2) = (max(d, b) - 1/2) / (b + w - 1)
        mu = 2 log tan((f + g)/2)
        sigma^3 = 16 / ((b + w - 1)^2 sin^2(f + g) sin f sin g)
        limit = w / (q b) exp(mu + sigma t),   t the 99 % point of the Tracy-Widom law

    Unlike a fixed margin on Wachter's edge it grows as n falls. For unequal q_i it is the edge of
    `unequal_edge` plus t times its scale.
    Source: Johnstone 2008, "Multivariate analysis and Jacobi ensembles", theorem 1, for the largest
    root of a double Wishart pair. Raises DegenerateFeatures as `inverse_bias`.
    """
    inverse_bias(n, q, d)
    if not isinstance(q, int):
        edge, scale = unequal_edge(q, degrees_within(n, q), d)
        return edge + TRACY_WIDOM_99 * scale
    b, w = n - 1, n * (q - 1)
    few, many = sorted((d, b))
    g = 2 * math.asin(math.sqrt((few - 0.5) / (b + w - 1)))
    f = 2 * math.asin(math.sqrt((many - 0.5) / (b + w - 1)))
    spread = math.sin(f + g) ** 2 * math.sin(f) * math.sin(g)
    sigma = (16 / ((b + w - 1) ** 2 * spread)) ** (1 / 3)
    return w / (q * b) * math.tan((f + g) / 2) ** 2 * math.exp(sigma * TRACY_WIDOM_99)


def corrected_spectrum(
    eigenvalues: Tensor, n: int, q: ViewCounts, edge: float | None = None
) -> Tensor:
    """lambda^c = max(h lambda - 1/q, 0) [d]: the LDA spectrum less its noise floor.

    For unequal q_i the floor is the mean of 1/q_i.
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
    return (h * eigenvalues - noise_floor(n, q)).clamp_min(0.0)


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

    tr W^2 is estimated without bias from W0, which has f = sum_i (q_i - 1) degrees of freedom:
    (tr W0^2 - (tr W0)^2 / f) f^2 / ((f - 1)(f + 2)).
    """
    n, degrees = moments.n, moments.degrees
    if sum(energies.n for energies in moments.energies.values()) != n or n < 2 or degrees < 2:
        return None
    within = moments.within / degrees
    trace = within.trace()
    squares = within.square().sum() - trace.square() / degrees
    squares = squares * degrees**2 / ((degrees - 1) * (degrees + 2))
    if not squares > 0:
        return None
    scatter, inverse = 0.0, 0.0  # of (r_i - (q_i - 1) tr W0) / (q_i - 1)^1/2; sum of 1/(q_i - 1)
    for q, energies in moments.energies.items():
        gap = energies.mean[0] - (q - 1) * trace
        scatter += float(energies.scatter[0, 0] + energies.n * gap.square()) / (q - 1)
        inverse += energies.n / (q - 1)
    half = 1.0 / (n - 1) + 6.0 * inverse / n**2  # half the variance: 1/f of the chi-square
    limit = (1.0 - 2.0 / 9.0 * half + NORMAL_999 * math.sqrt(2.0 / 9.0 * half)) ** 3
    return Dispersion(scatter / (n - 1) / (2.0 * float(squares)), limit)


@dataclass(frozen=True)
class ViewNoise:
    """The edge of view noise, how it was computed, and a remark about it.

    law: "wachter", "unequal" for unequal numbers of views, or "contrasts" if noise is uneven and
    theirs is the larger edge.
    dispersion: variance of the samples' residual energies over that of equal Gaussian noise.
    """

    edge: float
    law: Literal["wachter", "unequal", "contrasts"]
    dispersion: float | None = None
    remark: str | None = None


def measure_view_noise(moments: Moments, blocks: Blocks, delta: float, room: int) -> ViewNoise:
    """The edge of view noise from the moments, or if noise is uneven that of contrasts.

    blocks, delta, room: as in `contrast_edge`. Raises DegenerateFeatures as `noise_edge`.
    """
    views = moments.views
    equal = ViewNoise(
        noise_edge(moments.n, views, moments.dim),
        "wachter" if isinstance(views, int) else "unequal",
    )
    spread = dispersion(moments)
    if spread is None:
        return equal
    equal = replace(equal, dispersion=spread.ratio)
    if not spread.is_uneven:
        return equal
    uneven = (
        f"view noise is of unequal strength among samples: their residual energies vary "
        f"{spread.ratio:.3g} times as much as equal Gaussian noise would have them"
    )
    try:
        contrasts = contrast_edge(blocks, moments.n, delta, room, views)
    except DegenerateFeatures as error:
        remark = f"{uneven}; {error}, so directions of noise may count as signal"
        return replace(equal, remark=remark)
    if contrasts <= equal.edge:
        return equal
    law = "Wachter's" if isinstance(views, int) else "that of equal noise"
    remark = (
        f"{uneven}; so the noise edge is that of contrasts between the views of a sample, "
        f"{contrasts:.3g}, and not {law}, {equal.edge:.3g}"
    )
    return ViewNoise(contrasts, "contrasts", spread.ratio, remark)


def contrast_samples(n: int, q: ViewCounts, d: int) -> Tensor:
    """Numbers of the samples used for contrasts, ascending: all, or a subset by a fixed seed."""
    mean = (n + degrees_within(n, q)) // max(1, n)
    count = max(1, min(n, MOST_SAMPLES, MOST_NUMBERS // max(1, mean * d)))
    if count == n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(n, generator=generator)[:count].sort().values


def contrast_edge(
    blocks: Blocks, n: int, delta: float, room: int = 2**26, q: ViewCounts = 0
) -> float:
    """The largest eigenvalue that view noise explains, for any distribution and strengths of it.

    blocks: the samples of `contrast_samples`, those of a block with equal numbers of views.
    n: the number of all samples. delta: as in `lda_spectrum`.
    room: bytes that contrasts may occupy; with fewer, `blocks` is called more often, and the value
    is the same.
    q: samples by their number of views, if these are unequal.
    Raises DegenerateFeatures if q < 3, or if the within covariance of the samples of `blocks` is
    singular or has fewer than 4 d degrees of freedom.
    """
    factor, counts = _within_factor(blocks, delta)
    d, count, degrees = len(factor), sum(counts.values()), degrees_within(0, counts)
    left = degrees - count  # degrees of freedom of Wc
    generator = torch.Generator().manual_seed(SEED)
    at_once = max(1, min(CONTRASTS, room // (4 * count * d)))
    largest = 0.0
    for first in range(0, CONTRASTS, at_once):
        drawn = [
            {views: _weights(samples, views, generator) for views, samples in counts.items()}
            for _ in range(first, min(first + at_once, CONTRASTS))
        ]
        weights = {views: torch.stack([one[views] for one in drawn], dim=1) for views in counts}
        contrasts, floors = _contrasts(blocks, weights, factor)
        for rows in contrasts:
            if isinstance(q, int):
                largest = max(largest, _largest(rows.double()))
            else:
                largest = max(largest, _largest_of_pair(rows.double(), floors, degrees))
    if isinstance(q, int):
        (views,) = counts
        share = largest / degrees
        edge = left / (views * (count - 1)) * share / (1.0 - share)
        return edge * wachter_edge(n, n * (views - 1), d) / wachter_edge(count, left, d)
    whole = unequal_edge(q, degrees_within(n, q), d)
    return largest / (count - 1) * left * whole.edge / unequal_edge(counts, left, d).edge


def _within_factor(blocks: Blocks, delta: float) -> tuple[Tensor, dict[int, int]]:
    """The Cholesky factor L [d, d] of W0 + delta I, and the samples by their number of views."""
    scatter: Tensor | float = 0.0
    counts: dict[int, int] = {}
    d = 0
    for block in blocks():
        residuals = _residuals(block).flatten(0, 1)
        scatter = scatter + residuals.T @ residuals
        samples, q, d = block.shape
        counts[q] = counts.get(q, 0) + samples
    degrees, count = degrees_within(0, counts), sum(counts.values())
    if degrees <= count:
        raise DegenerateFeatures("no edge allows for that at q = 2, and it takes 3 views")
    if LEAST_DEGREES * d > degrees or (
        len(counts) > 1 and LEAST_DEGREES * d > 2 * (degrees - count)
    ):
        raise DegenerateFeatures(
            f"no edge allows for that above d = {degrees // LEAST_DEGREES}, a quarter of "
            "the degrees of freedom within samples"
        )
    assert isinstance(scatter, Tensor)
    within = scatter.div_(degrees)
    within.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        raise DegenerateFeatures("no edge allows for that with a singular within covariance")
    return factor, counts


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


def _contrasts(
    blocks: Blocks, weights: Mapping[int, Tensor], factor: Tensor
) -> tuple[Tensor, Tensor]:
    """L^-1 u_i of k contrasts, in float32 [k, n, d], and 1/q_i [n].

    weights: [n', k, q] of the n' samples of each number of views q.
    """
    count, k = sum(map(len, weights.values())), next(iter(weights.values())).shape[1]
    rows = torch.empty(k, count, len(factor), dtype=torch.float32, device=factor.device)
    floors = torch.empty(count, dtype=torch.float64, device=factor.device)
    start, used = 0, dict.fromkeys(weights, 0)
    for block in blocks():
        samples, q, _ = block.shape
        some = slice(start, start + samples)
        part = weights[q][used[q] : used[q] + samples].to(block)
        contrasts = part @ _residuals(block)  # [c, k, d]
        solved = torch.linalg.solve_triangular(factor, contrasts.flatten(0, 1).T, upper=False)
        rows[:, some] = solved.T.view(contrasts.shape).transpose(0, 1).float()
        floors[some] = 1.0 / q
        start, used[q] = start + samples, used[q] + samples
    return rows, floors


def _largest_of_pair(rows: Tensor, floors: Tensor, degrees: int) -> float:
    """The largest eigenvalue of sum_i u_i u_i^T / q_i against sum_i (S_i - u_i u_i^T).

    rows: L^-1 u_i [n, d], in which sum_i S_i is the identity times `degrees`. floors: 1/q_i [n].
    """
    within = -(rows.T @ rows)
    within.diagonal().add_(degrees)
    factor, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        raise DegenerateFeatures("no edge allows for that with a singular within covariance")
    weighted = floors.sqrt()[:, None] * rows
    return _largest(torch.linalg.solve_triangular(factor, weighted.T, upper=False).T)


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
