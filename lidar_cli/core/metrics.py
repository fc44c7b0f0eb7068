"""The equations of the metrics: each has a value, a gradient, and an entry of METRICS below.

To add a metric, add its entry; tables, files, `--metrics`, `--by`, intervals, correlations and
charts take it from there. `spectra` computes the spectra that the functions get. Symbols: n
samples, q views of each, d dimensions; lambda the LDA spectrum [d], lambda^c the same less its
noise floor, sigma singular values, e covariance eigenvalues, T the metric. Logarithms are natural,
and 0 log 0 = 0. If the input does not determine a metric, its function raises DegenerateFeatures
with the reason; it never returns NaN or a placeholder.

Torch is imported when a metric is computed, so that a wrong name is refused before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lidar_cli.core import subset_metrics
from lidar_cli.errors import DegenerateFeatures, SettingsError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.moments import SphereMoments, ViewCounts

ALL_ZERO = "every eigenvalue is 0: the embedding is constant or collapsed"
FIT_RANKS = (11, 100)  # of alpha-ReQ's power law, counted from 1, both included
READ_FROM_LDA = ("lda", "noise", "edge", "signal")  # values of `reads` that need the LDA spectrum
READ_FROM_SCATTERS = (*READ_FROM_LDA, "augmented")  # that need the scatters of views
READ_FROM_ROWS = ("gram", "covariance")  # values of `reads` that need one row a sample
READ_FROM_SUBSET = ("subset", "halves")  # that need a subset of the samples

IS_A_COUNT = "a count has no derivative, and so no interval"

Reads = Literal[
    "lda",
    "noise",
    "edge",
    "signal",
    "gram",
    "augmented",
    "covariance",
    "sphere",
    "subset",
    "halves",
    "group",
]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues [d], largest first, and the other numbers that a metric of them depends on.

    n: samples, or rows. q: views of each, or samples by their number of views. epsilon: entropy
    guard. edge: of view noise, for metrics that read "edge" or "signal".
    """

    eigenvalues: Tensor
    n: int
    q: ViewCounts
    epsilon: float
    edge: float | None = None


@dataclass(frozen=True)
class Metric:
    """A metric: its input, which of two values is better, and the functions that compute it.

    reads: the input of `value`, `gradient` and `details`: the `Spectrum` of one of these, or else
    `SphereMoments`, `ComparedViews` or `HalfMeans`.

        lda         Sb relative to Sw, lambda                                 [d]
        noise       lambda, if view noise can be measured
        edge        lambda, with the edge of view noise
        signal      lambda^c, lambda less its noise floor
        gram        Z^T Z of one row a sample, not centred                    [min(N, d)]
        augmented   Z^T Z of all views, not centred                           [min(n q, d)]
        covariance  centred covariance of one row a sample                    [min(N, d)]
        sphere      `SphereMoments` of unit rows
        subset      `ComparedViews` of at most 1,000 samples
        halves      `HalfMeans` of the same
        group       all checkpoints of a group (`ranking.group_metrics`)

    definition: one paragraph with the source.
    gradient: dT / d lambda_k for each eigenvalue of the spectrum; the influences of samples and the
    interval follow from it.
    influence: up to a constant, for a metric of the sphere the influences [c] of the samples of a
    block [c, q, d], given also `sphere`; for one of the subset those of its samples [m].
    no_interval: the reason of a metric with neither function.
    companions: fields that follow the metric in a score, with their values if it is not computed.
    details: values of companions, from the same input as the value.
    interval_from: the interval needs more samples than this many times d.
    is_default: whether it is computed without being named.
    compares_views: whether it needs two views of a sample, although it does not read the LDA pair.
    """

    name: str
    reads: Reads
    better: Literal["higher", "lower", "target"]
    definition: str
    value: Callable[[Any], float]
    gradient: Callable[[Spectrum], Tensor] | None = None
    influence: Callable[..., Tensor] | None = None
    target: float | None = None
    companions: Mapping[str, Any] = field(default_factory=dict)
    details: Callable[[Any], Mapping[str, Any]] | None = None
    interval_from: int = 2
    no_interval: str | None = None
    is_default: bool = True
    compares_views: bool = False

    def sort_key(self, value: float) -> float:
        """A number that is smaller for a better value, to order checkpoints by."""
        if self.better == "target":
            assert self.target is not None
            return abs(value - self.target)
        return -value if self.better == "higher" else value

    @property
    def direction(self) -> str:
        """`higher`, `lower`, or `nearest 1`."""
        return self.better if self.target is None else f"nearest {self.target:g}"

    @property
    def higher_is_better(self) -> bool | None:
        """True or False by `better`; None for a metric with a target."""
        return {"higher": True, "lower": False}.get(self.better)

    @property
    def reads_rows(self) -> bool:
        """Whether it reads one row a sample instead of all views."""
        return self.reads in READ_FROM_ROWS

    @property
    def reads_lda(self) -> bool:
        """Whether it reads the eigenvalues of the LDA pair."""
        return self.reads in READ_FROM_LDA

    @property
    def reads_subset(self) -> bool:
        """Whether it compares the samples of a subset."""
        return self.reads in READ_FROM_SUBSET

    @property
    def needs_two_views(self) -> bool:
        """Whether it has no value where a sample has a single view."""
        return self.reads_lda or self.compares_views

    @property
    def has_interval(self) -> bool:
        """Whether it can have an interval: it is smooth, so that samples have influences on it."""
        return self.gradient is not None or self.influence is not None


def effective_rank(spectrum: Tensor, epsilon: float) -> float:
    """exp of the entropy of the normalised spectrum.

        p_k = spectrum_k / sum(spectrum) + epsilon,   exp(- sum_k p_k log p_k)

    Source: Roy and Vetterli 2007; epsilon as in RankMe and LiDAR.
    Raises DegenerateFeatures if the spectrum is all zero.
    """
    import torch

    total = spectrum.sum()
    if not total > 0:
        raise DegenerateFeatures(ALL_ZERO, code="collapsed")
    shares = spectrum / total + epsilon
    return float(torch.special.entr(shares).sum().exp())


def effective_rank_gradient(spectrum: Tensor, epsilon: float) -> Tensor:
    """T / S (sum_l (s_l / S) log p_l - log p_k), with S = sum(s) and p = s / S + epsilon."""
    total = spectrum.sum()
    shares = spectrum / total
    logs = (shares + epsilon).log().where(spectrum > 0, 0.0)
    value = effective_rank(spectrum, epsilon)
    return (((shares * logs).sum() - logs) * (value / total)).where(spectrum > 0, 0.0)


def rankme(gram: Tensor, epsilon: float) -> float:
    """The effective rank of the singular values sigma_k, the roots of the Gram's eigenvalues.

    Source: Garrido et al., ICML 2023, arXiv 2210.02885, eq. 3. Raises DegenerateFeatures as
    `effective_rank`.
    """
    return effective_rank(gram.sqrt(), epsilon)


def rankme_gradient(gram: Tensor, epsilon: float) -> Tensor:
    """dT/d sigma_k / (2 sigma_k)."""
    sigma = gram.sqrt()
    return (effective_rank_gradient(sigma, epsilon) / (2.0 * sigma)).where(sigma > 0, 0.0)


def noise_fraction(eigenvalues: Tensor, n: int, q: ViewCounts) -> float:
    """The share of the LDA trace that is view noise: d / (q h sum(lambda)); 1 for noise alone.

    For unequal q_i the mean of 1/q_i replaces 1/q.
    Raises DegenerateFeatures as `inverse_bias`, and if the spectrum is all zero.
    """
    from lidar_cli.core.moments import noise_floor
    from lidar_cli.core.noise import inverse_bias

    d, total = len(eigenvalues), float(eigenvalues.sum())
    h = inverse_bias(n, q, d)
    if total <= 0:
        raise DegenerateFeatures(ALL_ZERO, code="collapsed")
    return d * noise_floor(n, q) / (h * total)


def noise_fraction_gradient(eigenvalues: Tensor, n: int, q: ViewCounts) -> Tensor:
    """- T / sum(lambda), the same for every k."""
    slope = -noise_fraction(eigenvalues, n, q) / eigenvalues.sum()
    return slope.expand(len(eigenvalues))


def pillai(corrected: Tensor) -> float:
    """sum_k rho_k, rho = lambda^c / (1 + lambda^c): a soft count of identifying dimensions, 0..d.

    Source: Pillai 1955, the trace, here of the corrected spectrum.
    """
    return float(_reliability(corrected).sum())


def pillai_gradient(corrected: Tensor) -> Tensor:
    """d rho_k / d lambda^c_k = 1 / (1 + lambda^c_k)^2."""
    return (1.0 + corrected).square().reciprocal()


def information(corrected: Tensor) -> float:
    """1/2 sum_k log(1 + lambda^c_k): nats about the sample in one view, if both are Gaussian.

    Source: Wilks 1932, minus half the log of his Lambda, here of the corrected spectrum.
    """
    return 0.5 * float(corrected.log1p().sum())


def information_gradient(corrected: Tensor) -> Tensor:
    """1 / (2 (1 + lambda^c_k))."""
    return 0.5 / (1.0 + corrected)


def reliable_rank(corrected: Tensor, epsilon: float) -> float:
    """Effective rank of rho_k, the share of direction k's variance that belongs to the sample."""
    return effective_rank(_reliability(corrected), epsilon)


def reliable_rank_gradient(corrected: Tensor, epsilon: float) -> Tensor:
    """The gradient of the effective rank by rho_k, times d rho_k / d lambda^c_k."""
    slope = effective_rank_gradient(_reliability(corrected), epsilon)
    return slope * pillai_gradient(corrected)


class PowerLaw(NamedTuple):
    """A power law fitted to a spectrum: its exponent, and the R2 of the fit."""

    alpha: float
    r2: float


def alpha_req(covariance: Tensor, n_rows: int, ranks: tuple[int, int] = FIT_RANKS) -> PowerLaw:
    """The decay exponent of the covariance eigenvalues, by weighted least squares.

        log e_k = b - alpha log k,  k = first .. last of `ranks`, weights 1/k

    n_rows: N, the rows whose covariance it is; at most N - 1 of its eigenvalues are not 0.
    Source: Agrawal et al., "alpha-ReQ", NeurIPS 2022. Ranks 11 to 100 and weights 1/k are the fit
    of Stringer et al., "High-dimensional geometry of population responses in visual cortex",
    Nature 571, 2019, as alpha-ReQ's authors coded it in their package reptrix (`get_powerlaw`).
    Raises DegenerateFeatures if d or N - 1 is less than the last rank, or e_last is 0; ValueError
    if `ranks` is not a range.
    """
    import torch

    first, last = ranks
    if not 1 <= first < last:
        raise ValueError(f"expected ranks (first, last) with 1 <= first < last, got {ranks}")
    if len(covariance) < last or n_rows - 1 < last:
        raise DegenerateFeatures(
            f"the fit reads eigenvalues {first} to {last}, and there are "
            f"{min(len(covariance), n_rows - 1)}: it needs d >= {last} and {last + 1} rows",
            code="few-eigenvalues",
        )
    if not covariance[last - 1] > 0:
        raise DegenerateFeatures(
            f"the fit reads eigenvalues {first} to {last}, and eigenvalue {last} is rounding",
            code="eigenvalues-are-rounding",
        )
    k = torch.arange(first, last + 1, dtype=torch.float64, device=covariance.device)
    x, y, weight = k.log(), covariance[first - 1 : last].log(), 1.0 / k
    weight = weight / weight.sum()
    x_gap, y_gap = x - (weight * x).sum(), y - (weight * y).sum()
    slope = (weight * x_gap * y_gap).sum() / (weight * x_gap.square()).sum()
    spread = (weight * y_gap.square()).sum()
    residual = (weight * (y_gap - slope * x_gap).square()).sum()
    # A flat spectrum has no spread to explain, and its fit is exact.
    return PowerLaw(-float(slope), float(1.0 - residual / spread) if spread > 0 else 1.0)


def alpha_req_gradient(covariance: Tensor, ranks: tuple[int, int] = FIT_RANKS) -> Tensor:
    """- w_k x_k / (e_k sum_l w_l x_l^2) inside the fit, 0 outside; x is log k less its w-mean."""
    import torch

    first, last = ranks
    k = torch.arange(first, last + 1, dtype=torch.float64, device=covariance.device)
    weight = 1.0 / k
    gap = k.log() - (weight * k.log()).sum() / weight.sum()
    slope = torch.zeros_like(covariance)
    inside = slice(first - 1, last)
    slope[inside] = -weight * gap / (weight * gap.square()).sum() / covariance[inside]
    return slope


def participation_ratio(covariance: Tensor) -> float:
    """(sum e)^2 / sum e^2 of the covariance eigenvalues, 1..d.

    Raises DegenerateFeatures if all are 0.
    """
    shares = _positive(covariance) / covariance[0]  # the squares of e could underflow
    return float(shares.sum().square() / shares.square().sum())


def participation_ratio_gradient(covariance: Tensor) -> Tensor:
    """2 T (1 / sum(e) - e_k / sum(e^2))."""
    shares = covariance / covariance[0]  # the squares of e could underflow
    value = participation_ratio(covariance)
    return 2.0 * value * (1.0 / shares.sum() - shares / shares.square().sum()) / covariance[0]


def stable_rank(covariance: Tensor) -> float:
    """(sum e) / e_1 of the covariance eigenvalues, 1..d; also known as NESum.

    Raises DegenerateFeatures if all are 0.
    """
    return float(_positive(covariance).sum() / covariance[0])


def stable_rank_gradient(covariance: Tensor) -> Tensor:
    """1 / e_1 for k > 1, and 1 / e_1 - sum(e) / e_1^2 for k = 1."""
    slope = covariance[0].reciprocal().repeat(len(covariance))
    slope[0] -= stable_rank(covariance) / covariance[0]
    return slope


def normalized_std(sphere: SphereMoments) -> float:
    """Mean over dimensions of the std of unit rows, times sqrt(d). Each view counts once.

    1 for rows spread evenly over the sphere, 0 for a completely collapsed embedding.
    Source: Chen and He, "SimSiam", CVPR 2021, section 4.1.
    """
    std = (sphere.squares / sphere.n_rows).sqrt()
    return float(std.mean()) * math.sqrt(len(std))


def normalized_std_influence(block: Tensor, sphere: SphereMoments) -> Tensor:
    """sum_k (u_k - mean_k)^2 / (2 std_k sqrt(d)), averaged over the views of each sample, [c].

    For unequal q_i this less its mean over all views, times q_i over their mean, since each view
    counts once.
    u: unit rows of the block [c, q, d]. A dimension k with std 0 is left out.
    """
    from lidar_cli.core.moments import unit_rows

    std = (sphere.squares / sphere.n_rows).sqrt()
    weight = (0.5 / std).where(std > 0, 0.0) / len(std) ** 0.5
    influence: Tensor = (unit_rows(block) - sphere.mean).square().mean(dim=1) @ weight
    influence -= std.square() @ weight
    influence *= block.shape[1] * sphere.n_samples / sphere.n_rows
    return influence


def alignment(sphere: SphereMoments) -> float:
    """Mean squared distance between two views of a sample on the unit sphere, 0..4.

    The mean over pairs of views, then over samples, each of which counts once.
    Source: Wang and Isola 2020, alpha = 2. Raises DegenerateFeatures if q < 2.
    """
    if sphere.fewest_views < 2:
        raise DegenerateFeatures(
            f"{sphere.fewest_views} view a sample: a distance between views needs 2",
            code="one-view",
        )
    return float(sphere.distances) / sphere.n_samples


def alignment_influence(block: Tensor, sphere: SphereMoments) -> Tensor:
    """The mean squared distance between two views of each sample of a block [c, q, d], [c]."""
    from lidar_cli.core.moments import unit_rows

    unit = unit_rows(block)
    spread = (unit - unit.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    return 2.0 / (block.shape[1] - 1) * spread


def _n_above_noise(spectrum: Spectrum) -> float:
    from lidar_cli.core.noise import n_above_noise

    return n_above_noise(spectrum.eigenvalues, spectrum.n, spectrum.q, spectrum.edge)


def _reliability(corrected: Tensor) -> Tensor:
    return corrected / (1.0 + corrected)


def _positive(covariance: Tensor) -> Tensor:
    if not covariance[0] > 0:
        raise DegenerateFeatures(
            "the covariance is 0: the embedding is constant or collapsed", code="collapsed"
        )
    return covariance


# Ordered as files and tables list them. A definition is one paragraph.
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "lidar",
            "lda",
            "higher",
            "The effective rank of the LDA matrix Sw^-1/2 Sb Sw^-1/2: how many directions "
            "separate samples against the spread of their views. All d eigenvalues count, those of "
            "view noise too. Thilak et al., ICLR 2024, arXiv 2312.04000.",
            lambda s: effective_rank(s.eigenvalues, s.epsilon),
            lambda s: effective_rank_gradient(s.eigenvalues, s.epsilon),
        ),
        Metric(
            "noise_fraction",
            "noise",
            "lower",
            "The share of the LDA trace that is view noise, d / (q h sum(lambda)): a mean of q "
            "views carries 1/q of their noise in every direction. 1 under pure noise. h is the "
            "bias of an inverse Wishart matrix; Mardia, Kent, Bibby 1979, section 3.4.",
            lambda s: noise_fraction(s.eigenvalues, s.n, s.q),
            lambda s: noise_fraction_gradient(s.eigenvalues, s.n, s.q),
            companions=dict.fromkeys(("noise_edge", "noise_edge_law", "noise_dispersion")),
        ),
        Metric(
            "n_above_noise",
            "edge",
            "higher",
            "The number of eigenvalues of the LDA matrix above 1.1 times the largest that view "
            "noise alone explains: by Wachter's law (1980), by its like for unequal numbers of "
            "views, or by contrasts between the views of a sample where noise is of uneven "
            "strength. A count, so it has no interval.",
            _n_above_noise,
            no_interval=IS_A_COUNT,
        ),
        Metric(
            "lidar_corrected",
            "signal",
            "higher",
            "The effective rank of lambda^c = max(h lambda - 1/q, 0), the LDA spectrum less its "
            "noise floor. LiDAR (Thilak et al. 2024) corrected by the mean of the inverse Wishart.",
            lambda s: effective_rank(s.eigenvalues, s.epsilon),
            lambda s: effective_rank_gradient(s.eigenvalues, s.epsilon),
        ),
        Metric(
            "pillai",
            "signal",
            "higher",
            "The sum of rho = lambda^c / (1 + lambda^c), the share of each direction's variance "
            "that belongs to the sample and not to the view: a soft count of the dimensions that "
            "identify the sample. Pillai's trace (1955), of the corrected pair.",
            lambda s: pillai(s.eigenvalues),
            lambda s: pillai_gradient(s.eigenvalues),
        ),
        Metric(
            "information",
            "signal",
            "higher",
            "Half the sum of log(1 + lambda^c): nats about the sample's identity in one view, if "
            "samples and views are Gaussian. Minus half the log of Wilks' Lambda (1932), of the "
            "corrected pair.",
            lambda s: information(s.eigenvalues),
            lambda s: information_gradient(s.eigenvalues),
        ),
        Metric(
            "reliable_rank",
            "signal",
            "higher",
            "The effective rank (Roy and Vetterli 2007) of rho = lambda^c / (1 + lambda^c): over "
            "how many directions the identity of samples is spread.",
            lambda s: reliable_rank(s.eigenvalues, s.epsilon),
            lambda s: reliable_rank_gradient(s.eigenvalues, s.epsilon),
        ),
        Metric(
            "rankme",
            "gram",
            "higher",
            "The effective rank of the singular values of the embeddings, one row a sample, not "
            "centred: the un-augmented images where there are any, else view 0. Garrido et al., "
            "ICML 2023, arXiv 2210.02885, eq. 3.",
            lambda s: rankme(s.eigenvalues, s.epsilon),
            lambda s: rankme_gradient(s.eigenvalues, s.epsilon),
            companions=dict.fromkeys(("rankme_source", "rankme_rows")),
        ),
        Metric(
            "rankme_augmented",
            "augmented",
            "higher",
            "RankMe (Garrido et al. 2023) of all n q views, the rows that LiDAR reads.",
            lambda s: rankme(s.eigenvalues, s.epsilon),
            lambda s: rankme_gradient(s.eigenvalues, s.epsilon),
        ),
        Metric(
            "alpha_req",
            "covariance",
            "target",
            "The decay exponent of the covariance spectrum, fitted to eigenvalues 11 to 100 with "
            "weights 1/k; best near 1. Agrawal et al., alpha-ReQ, NeurIPS 2022; the fit is that of "
            "Stringer et al., Nature 571, 2019, as coded in reptrix.",
            lambda s: alpha_req(s.eigenvalues, s.n).alpha,
            lambda s: alpha_req_gradient(s.eigenvalues),
            target=1.0,
            companions={"alpha_req_r2": None, "alpha_req_ranks": FIT_RANKS},
            details=lambda s: {"alpha_req_r2": alpha_req(s.eigenvalues, s.n).r2},
            interval_from=5,
        ),
        Metric(
            "participation_ratio",
            "covariance",
            "higher",
            "(sum e)^2 / sum e^2 of the covariance eigenvalues: how many directions carry the "
            "variance, 1 to d. Gao and Ganguli, Current Opinion in Neurobiology 32, 2015.",
            lambda s: participation_ratio(s.eigenvalues),
            lambda s: participation_ratio_gradient(s.eigenvalues),
        ),
        Metric(
            "stable_rank",
            "covariance",
            "higher",
            "The sum of the covariance eigenvalues over the largest, 1 to d; also known as NESum "
            "(He and Ozay, ICML 2022).",
            lambda s: stable_rank(s.eigenvalues),
            lambda s: stable_rank_gradient(s.eigenvalues),
        ),
        Metric(
            "normalized_std",
            "sphere",
            "higher",
            "The standard deviation of unit rows, averaged over dimensions, times sqrt(d): 1 for "
            "rows spread evenly over the sphere, 0 for a constant embedding. Chen and He, SimSiam, "
            "CVPR 2021, section 4.1.",
            normalized_std,
            influence=normalized_std_influence,
        ),
        Metric(
            "alignment",
            "sphere",
            "lower",
            "The mean squared distance between two views of a sample on the unit sphere, 0 to 4. "
            "Wang and Isola, ICML 2020, with alpha = 2.",
            alignment,
            influence=alignment_influence,
            compares_views=True,
        ),
        Metric(
            "retrieval",
            "subset",
            "higher",
            "The share of samples whose view is nearest to their own other view among the other "
            "views of all samples, by the cosine of centred embeddings, averaged over pairs of "
            "views; at most 1,000 samples. Instance discrimination, Wu et al., CVPR 2018, as a "
            "score.",
            subset_metrics.retrieval,
            influence=subset_metrics.retrieval_influence,
            interval_from=0,
            is_default=False,
            compares_views=True,
        ),
        Metric(
            "stability",
            "halves",
            "higher",
            "The share of each sample's 10 nearest neighbours that is the same for the means over"
            " two halves of its views, by the cosine of centred embeddings; at most 1,000 "
            "samples. Defined by this project, 2026.",
            subset_metrics.stability,
            influence=subset_metrics.stability_influence,
            interval_from=0,
            compares_views=True,
        ),
    )
}


def default_metrics() -> frozenset[str]:
    """The names of the metrics that are computed without being named."""
    return frozenset(name for name, metric in METRICS.items() if metric.is_default)


def parse_metrics(text: str) -> frozenset[str]:
    """The metric names in a comma-separated list, in which "all" and "default" name several.

    Raises SettingsError.
    """
    names: set[str] = set()
    for name in (name.strip() for name in text.split(",")):
        if name == "all":
            names |= METRICS.keys()
        elif name == "default":
            names |= default_metrics()
        elif name in METRICS:
            names.add(name)
        elif name:
            raise SettingsError(
                f"--metrics: no metric {name!r}; {nearest(name, ['all', 'default', *METRICS])} "
                "(lidar explain metrics)",
                code="unknown-metric",
            )
    if not names:
        raise SettingsError(f"--metrics is empty; known: {', '.join(METRICS)}")
    return frozenset(names)
