"""Derivatives of the metrics by the eigenvalues of the spectrum that they read.

Each of the first functions is the derivative of its namesake in `metrics` and takes what that
takes; `of_lda`, `of_gram` and `of_covariance` gather them by the metrics' names. All are [d], one
number an eigenvalue. Where an eigenvalue is 0 no sample has a part in it, and the derivative is
given as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lidar_cli.core import metrics


def effective_rank(spectrum: Tensor, epsilon: float) -> Tensor:
    """T / S (sum_l (s_l / S) log p_l - log p_k), with S = sum(s), p = s / S + epsilon."""
    total = spectrum.sum()
    shares = spectrum / total
    logs = (shares + epsilon).log().where(spectrum > 0, 0.0)
    value = metrics.effective_rank(spectrum, epsilon)
    return (((shares * logs).sum() - logs) * (value / total)).where(spectrum > 0, 0.0)


def rankme(gram: Tensor, epsilon: float) -> Tensor:
    """dT/d sigma_k / (2 sigma_k), with sigma_k the root of the Gram's eigenvalue."""
    sigma = gram.sqrt()
    return (effective_rank(sigma, epsilon) / (2.0 * sigma)).where(sigma > 0, 0.0)


def noise_fraction(eigenvalues: Tensor, n: int, q: int) -> Tensor:
    """- T / sum(lambda), the same for every k."""
    slope = -metrics.noise_fraction(eigenvalues, n, q) / eigenvalues.sum()
    return slope.expand(len(eigenvalues))


def pillai(corrected: Tensor) -> Tensor:
    """d rho_k / d lambda^c_k = 1 / (1 + lambda^c_k)^2."""
    return (1.0 + corrected).square().reciprocal()


def information(corrected: Tensor) -> Tensor:
    """1 / (2 (1 + lambda^c_k))."""
    return 0.5 / (1.0 + corrected)


def reliable_rank(corrected: Tensor, epsilon: float) -> Tensor:
    """The effective rank's, of rho, times that of rho_k by lambda^c_k."""
    return effective_rank(corrected / (1.0 + corrected), epsilon) * pillai(corrected)


def alpha_req(covariance: Tensor, ranks: tuple[int, int] = metrics.FIT_RANKS) -> Tensor:
    """- w_k x_k / (e_k sum_l w_l x_l^2) inside the fit, 0 outside; x is log k less its w-mean."""
    first, last = ranks
    k = torch.arange(first, last + 1, dtype=torch.float64, device=covariance.device)
    weight = 1.0 / k
    gap = k.log() - (weight * k.log()).sum() / weight.sum()
    slope = torch.zeros_like(covariance)
    inside = slice(first - 1, last)
    slope[inside] = -weight * gap / (weight * gap.square()).sum() / covariance[inside]
    return slope


def participation_ratio(covariance: Tensor) -> Tensor:
    """2 T (1 / sum(e) - e_k / sum(e^2))."""
    shares = covariance / covariance[0]  # the squares of e itself could vanish
    value = metrics.participation_ratio(covariance)
    return 2.0 * value * (1.0 / shares.sum() - shares / shares.square().sum()) / covariance[0]


def stable_rank(covariance: Tensor) -> Tensor:
    """1 / e_1, and for the first 1 / e_1 - sum(e) / e_1^2."""
    slope = covariance[0].reciprocal().repeat(len(covariance))
    slope[0] -= metrics.stable_rank(covariance) / covariance[0]
    return slope


def of_lda(
    eigenvalues: Tensor,
    n: int,
    q: int,
    epsilon: float,
    wanted: Collection[str],
    edge: float | None = None,
) -> dict[str, Tensor]:
    """By lambda_k, of the wanted metrics that read the LDA spectrum.

    The corrected readings go through lambda^c_k = max(h lambda_k - 1/q, 0): their derivative is h
    times the one above, 0 where clipped, and halfway to its mean in the noise's bulk (`_halved`):
    the eigenvalues that `n_above_noise` does not count. The null rule asks more of the largest at
    few samples (`largest_of_noise`, above 1.1 edges below n = 5 d at q = 2); that bound for the
    bulk, too, changes no simulated coverage by more than a draw in a hundred.
    edge: of view noise, Wachter's if None.
    Raises DegenerateFeatures where the metrics do.
    """
    found = {}
    if "lidar" in wanted:
        found["lidar"] = effective_rank(eigenvalues, epsilon)
    if "noise_fraction" in wanted:
        found["noise_fraction"] = noise_fraction(eigenvalues, n, q)
    readings: dict[str, Callable[[Tensor], Tensor]] = {
        "lidar_corrected": lambda signal: effective_rank(signal, epsilon),
        "pillai": pillai,
        "information": information,
        "reliable_rank": lambda signal: reliable_rank(signal, epsilon),
    }
    if readings.keys().isdisjoint(wanted):
        return found
    d = len(eigenvalues)
    signal = metrics.corrected_spectrum(eigenvalues, n, q, edge)
    clipped = metrics.inverse_bias(n, q, d) * (signal > 0).to(signal)
    edge = metrics.noise_edge(n, q, d) if edge is None else edge
    bulk = eigenvalues <= metrics.EDGE_MARGIN * edge
    for name in readings.keys() & wanted:
        found[name] = _halved(clipped * readings[name](signal), bulk)
    return found


def of_gram(gram: Tensor, epsilon: float, name: str) -> dict[str, Tensor]:
    """By the eigenvalues of a Gram matrix, of the RankMe called `name`."""
    return {name: rankme(gram, epsilon)}


def of_covariance(covariance: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """By e_k, of the wanted metrics that read the covariance spectrum."""
    known = {
        "alpha_req": alpha_req,
        "participation_ratio": participation_ratio,
        "stable_rank": stable_rank,
    }
    return {name: known[name](covariance) for name in known.keys() & wanted}


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
