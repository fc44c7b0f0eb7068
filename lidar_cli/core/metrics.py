"""Spectra to numbers, each with the direction in which it is better.

Symbols: n samples, q views of each, d dimensions; lambda the LDA spectrum [d], sigma singular
values, e covariance eigenvalues. Natural logarithms, 0 log 0 = 0. A number that the input does not
determine raises DegenerateFeatures with the reason; it is never NaN and never a placeholder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lidar_cli.core.moments import SphereMoments
from lidar_cli.errors import DegenerateFeatures

EDGE_MARGIN = 1.1  # finite samples blur Wachter's edge; at usual sizes noise stays below 1.1 of it
TRACY_WIDOM_99 = 2.0234  # 99 % point of the Tracy-Widom law of real matrices (beta = 1)
FIT_RANKS = (11, 100)  # of alpha-ReQ's power law, counted from 1, both included


@dataclass(frozen=True)
class Metric:
    """A metric's name, what it reads, and how two values of it compare."""

    name: str
    reads: Literal["lda", "rows", "views", "covariance", "sphere"]
    better: Literal["higher", "lower", "target"]
    target: float | None = None

    def sort_key(self, value: float) -> float:
        """Smaller is better: for ordering checkpoints."""
        if self.better == "target":
            assert self.target is not None
            return abs(value - self.target)
        return -value if self.better == "higher" else value

    @property
    def direction(self) -> str:
        """`higher`, `lower`, or `nearest 1`."""
        return self.better if self.target is None else f"nearest {self.target:g}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("lidar", "lda", "higher"),
        Metric("noise_fraction", "lda", "lower"),
        Metric("n_above_noise", "lda", "higher"),
        Metric("lidar_corrected", "lda", "higher"),
        Metric("pillai", "lda", "higher"),
        Metric("information", "lda", "higher"),
        Metric("reliable_rank", "lda", "higher"),
        Metric("rankme", "rows", "higher"),
        Metric("rankme_augmented", "views", "higher"),
        Metric("alpha_req", "covariance", "target", 1.0),
        Metric("participation_ratio", "covariance", "higher"),
        Metric("stable_rank", "covariance", "higher"),
        Metric("normalized_std", "sphere", "higher"),
        Metric("alignment", "sphere", "lower"),
    )
}


def effective_rank(spectrum: Tensor, epsilon: float) -> float:
    """exp of the entropy of the normalised spectrum.

        p_k = spectrum_k / sum(spectrum) + epsilon,   exp(- sum_k p_k log p_k)

    Source: Roy and Vetterli 2007; epsilon as in RankMe and LiDAR.
    Raises DegenerateFeatures if the spectrum is all zero.
    """
    total = spectrum.sum()
    if not total > 0:
        raise DegenerateFeatures("every eigenvalue is 0: the embedding is constant or collapsed")
    shares = spectrum / total + epsilon
    return float(torch.special.entr(shares).sum().exp())


def lidar_from_spectrum(eigenvalues: Tensor, epsilon: float) -> float:
    """LiDAR: the effective rank of the LDA matrix, over all d eigenvalues, the zero ones too.

    Source: Thilak et al., ICLR 2024, arXiv 2312.04000. Raises DegenerateFeatures as
    `effective_rank`.
    """
    return effective_rank(eigenvalues, epsilon)


def rankme_from_spectrum(gram: Tensor, epsilon: float) -> float:
    """RankMe: the effective rank of the singular values, the roots of the Gram's eigenvalues.

    Source: Garrido et al., ICML 2023, arXiv 2210.02885, eq. 3. Raises DegenerateFeatures as
    `effective_rank`.
    """
    return effective_rank(gram.sqrt(), epsilon)


def inverse_bias(n: int, q: int, d: int) -> float:
    """h = 1 - (d + 1) / (n (q - 1)): W0^-1 is too large by 1 / h on average.

    Source: mean of the inverse Wishart distribution; Mardia, Kent, Bibby 1979, section 3.4.
    Raises DegenerateFeatures if n (q - 1) <= d + 1, where that mean does not exist.
    """
    degrees = n * (q - 1)
    if degrees <= d + 1:
        raise DegenerateFeatures(
            f"the within covariance is singular: raise q or n "
            f"(n (q - 1) = {degrees}, it must exceed d + 1 = {d + 1})"
        )
    return 1.0 - (d + 1) / degrees


def noise_fraction(eigenvalues: Tensor, n: int, q: int) -> float:
    """Share of the LDA trace that is view noise: d / (q h sum(lambda)); 1 under pure noise.

    Raises DegenerateFeatures as `inverse_bias`, and if the spectrum is all zero.
    """
    d, total = len(eigenvalues), float(eigenvalues.sum())
    h = inverse_bias(n, q, d)
    if total <= 0:
        raise DegenerateFeatures("every eigenvalue is 0: the embedding is constant or collapsed")
    return d / (q * h * total)


def noise_edge(n: int, q: int, d: int) -> float:
    """The largest eigenvalue of the LDA matrix that view noise alone explains.

        edge = (1/q) ((1 + sqrt(c1 + c2 - c1 c2)) / (1 - c2))^2,  c1 = d/(n-1),  c2 = d/(n(q-1))

    Source: Wachter 1980, the limit law of the F matrix. Raises DegenerateFeatures as
    `inverse_bias`.
    """
    inverse_bias(n, q, d)
    return wachter_edge(n, n * (q - 1), d) / q


def wachter_edge(n: int, degrees: int, d: int) -> float:
    """The edge of the F matrix of n - 1 degrees of freedom over so many."""
    c1, c2 = d / (n - 1), d / degrees
    return ((1 + math.sqrt(c1 + c2 - c1 * c2)) / (1 - c2)) ** 2


def n_above_noise(eigenvalues: Tensor, n: int, q: int, edge: float | None = None) -> int:
    """Directions that view noise alone does not explain: those above 1.1 times the edge.

    edge: `noise_edge` if None, else that of `noise.contrast_edge`.
    """
    edge = noise_edge(n, q, len(eigenvalues)) if edge is None else edge
    return int((eigenvalues > EDGE_MARGIN * edge).sum())


def largest_of_noise(n: int, q: int, d: int) -> float:
    """What the largest eigenvalue of Gaussian view noise exceeds in one draw of a hundred.

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

    A class mean of q views still carries 1/q of the view noise, so that every direction keeps an
    eigenvalue near 1/q. Where the noise is alone, half of its bulk stays above 1/q, so that sums
    over the spectrum are too large, the more so the fewer the views.
    edge: as in `n_above_noise`.
    Raises DegenerateFeatures as `inverse_bias`, and "nothing above view noise" if no eigenvalue
    clears both the noise edge and what noise reaches at this n: the readings below would then
    report noise.
    """
    d = len(eigenvalues)
    h = inverse_bias(n, q, d)
    if n_above_noise(eigenvalues, n, q, edge) == 0:
        raise DegenerateFeatures("nothing above view noise: no eigenvalue clears the noise edge")
    if not bool(eigenvalues[0] > largest_of_noise(n, q, d)):
        raise DegenerateFeatures(
            f"nothing above view noise: at n = {n} noise alone reaches the largest eigenvalue in "
            "more than one draw of a hundred; raise n"
        )
    return (h * eigenvalues - 1.0 / q).clamp_min(0.0)


def pillai(corrected: Tensor) -> float:
    """sum_k rho_k, rho = lambda^c / (1 + lambda^c): a soft count of identifying dimensions, 0..d.

    Source: Pillai's trace, of the corrected pair.
    """
    return float(_reliability(corrected).sum())


def information(corrected: Tensor) -> float:
    """1/2 sum_k log(1 + lambda^c_k): nats about the sample in one view, if both are Gaussian.

    Source: minus half the log of Wilks' Lambda, of the corrected pair.
    """
    return 0.5 * float(corrected.log1p().sum())


def reliable_rank(corrected: Tensor, epsilon: float) -> float:
    """Effective rank of rho_k, the share of direction k's variance that belongs to the sample."""
    return effective_rank(_reliability(corrected), epsilon)


class PowerLaw(NamedTuple):
    """A power law fitted to a spectrum: its exponent and the share of variance it explains."""

    alpha: float
    r2: float


def alpha_req(covariance: Tensor, n_rows: int, ranks: tuple[int, int] = FIT_RANKS) -> PowerLaw:
    """The decay exponent of the covariance eigenvalues, by weighted least squares.

        log e_k = b - alpha log k,  k = first .. last of `ranks`, weights 1/k

    n_rows: N, the rows that the covariance came from; N - 1 of its eigenvalues carry data.
    Source: Agrawal et al., "alpha-ReQ", NeurIPS 2022; ranks and weights of Stringer et al. 2019.
    Raises DegenerateFeatures if d or N - 1 is less than the last rank, or e_last is 0, ValueError
    if the ranks are no range.
    """
    first, last = ranks
    if not 1 <= first < last:
        raise ValueError(f"expected ranks (first, last) with 1 <= first < last, got {ranks}")
    if len(covariance) < last or n_rows - 1 < last:
        raise DegenerateFeatures(
            f"the fit reads eigenvalues {first} to {last}, and there are "
            f"{min(len(covariance), n_rows - 1)}: it needs d >= {last} and {last + 1} rows"
        )
    if not covariance[last - 1] > 0:
        raise DegenerateFeatures(
            f"the fit reads eigenvalues {first} to {last}, and eigenvalue {last} is rounding"
        )
    k = torch.arange(first, last + 1, dtype=torch.float64, device=covariance.device)
    x, y, weight = k.log(), covariance[first - 1 : last].log(), 1.0 / k
    weight = weight / weight.sum()
    x_gap, y_gap = x - (weight * x).sum(), y - (weight * y).sum()
    slope = (weight * x_gap * y_gap).sum() / (weight * x_gap.square()).sum()
    spread = (weight * y_gap.square()).sum()
    left = (weight * (y_gap - slope * x_gap).square()).sum()
    # A flat spectrum has no spread to explain, and the fit of it is exact.
    return PowerLaw(-float(slope), float(1.0 - left / spread) if spread > 0 else 1.0)


def participation_ratio(covariance: Tensor) -> float:
    """(sum e)^2 / sum e^2 of the covariance eigenvalues, 1..d. Raises DegenerateFeatures if 0."""
    shares = _positive(covariance) / covariance[0]  # the squares of e itself could vanish
    return float(shares.sum().square() / shares.square().sum())


def stable_rank(covariance: Tensor) -> float:
    """(sum e) / e_1 of the covariance eigenvalues, 1..d; also known as NESum.

    Raises DegenerateFeatures if all are 0.
    """
    return float(_positive(covariance).sum() / covariance[0])


def normalized_std(sphere: SphereMoments) -> float:
    """Mean over dimensions of the std of unit rows, times sqrt(d).

    1 for rows spread evenly over the sphere, 0 for a completely collapsed embedding.
    Source: Chen and He, "SimSiam", CVPR 2021, section 4.1.
    """
    std = (sphere.squares / sphere.n_rows).sqrt()
    return float(std.mean()) * math.sqrt(len(std))


def alignment(sphere: SphereMoments, n_views: int) -> float:
    """Mean squared distance between two views of a sample on the unit sphere, 0..4.

    Source: Wang and Isola 2020, alpha = 2. Raises DegenerateFeatures if q < 2.
    """
    if n_views < 2:
        raise DegenerateFeatures(f"{n_views} view a sample: a distance between views needs 2")
    return float(sphere.distances) / sphere.n_samples


def _reliability(corrected: Tensor) -> Tensor:
    return corrected / (1.0 + corrected)


def _positive(covariance: Tensor) -> Tensor:
    if not covariance[0] > 0:
        raise DegenerateFeatures("the covariance is 0: the embedding is constant or collapsed")
    return covariance
