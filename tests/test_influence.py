"""Influences against the exact leave-one-out, derivatives against differences, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from raising import raises
from torch import Tensor

from lidar_cli.core import influence, metrics, noise
from lidar_cli.core.metrics import METRICS, Spectrum
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.errors import DegenerateFeatures

N, Q, D = 120, 3, 8
DELTA, EPSILON = 1e-4, 1e-7


@pytest.fixture(scope="module")
def embeddings() -> Tensor:
    """[N, Q, D]: signal in four directions of falling strength, noise in all, a mean far off."""
    generator = torch.Generator().manual_seed(7)
    signal = torch.randn(N, 1, D, dtype=torch.float64, generator=generator)
    noise = torch.randn(N, Q, D, dtype=torch.float64, generator=generator)
    return signal * torch.tensor([4.0, 3, 2, 1, 0, 0, 0, 0]) + noise + 1.5


def lda(z: Tensor, *names: str) -> influence.SpectralInfluence:
    return influence.lda_influence(Moments.of(z), names, DELTA, EPSILON)


def rows_of(z: Tensor) -> RowMoments:
    rows = RowMoments(z.shape[2])
    rows.update(z[:, 0])
    return rows


def influences(z: Tensor, name: str) -> Tensor:
    """Of all samples on one metric [n], as a second pass would have them."""
    metric = METRICS[name]
    if metric.influence is not None:
        return metric.influence(z, Moments.of(z).sphere)
    if metric.reads_lda:
        return lda(z, name).influences(z)[:, 0]
    if metric.reads == "augmented":
        augmented = influence.augmented_influence(Moments.of(z), [name], EPSILON)
        return augmented.influences(z)[:, 0]
    expand = {"gram": influence.gram_influence, "covariance": influence.covariance_influence}
    return expand[metric.reads](rows_of(z), [name], EPSILON).influences(z[:, :1])[:, 0]


LITERAL: dict[str, Callable[[np.ndarray], float]] = {
    "lidar": lambda z: reference.lidar(z, DELTA, EPSILON),
    "noise_fraction": lambda z: reference.noise_fraction(z, DELTA),
    "lidar_corrected": lambda z: reference.lidar_corrected(z, DELTA, EPSILON),
    "pillai": lambda z: reference.pillai(z, DELTA),
    "information": lambda z: reference.information(z, DELTA),
    "reliable_rank": lambda z: reference.reliable_rank(z, DELTA, EPSILON),
    "rankme": lambda z: reference.rankme(z[:, 0], EPSILON),
    "rankme_augmented": lambda z: reference.rankme_augmented(z, EPSILON),
    "participation_ratio": lambda z: reference.participation_ratio(z[:, 0]),
    "stable_rank": lambda z: reference.stable_rank(z[:, 0]),
    "normalized_std": reference.normalized_std,
    "alignment": reference.alignment,
}
# The clip at the noise floor has a corner, and `_halved` departs from the jackknife on purpose.
CLIPPED = {"lidar_corrected", "pillai", "information", "reliable_rank"}


@pytest.mark.parametrize("name", LITERAL)
def test_an_influence_is_what_the_metric_loses_without_the_sample(
    embeddings: Tensor, name: str
) -> None:
    z, metric = embeddings.numpy(), LITERAL[name]
    without = np.array([metric(np.delete(z, i, axis=0)) for i in range(N)])
    exact = (N - 1) * (metric(z) - without)
    found = influences(embeddings, name).numpy()
    exact, found = exact - exact.mean(), found - found.mean()
    assert np.corrcoef(found, exact)[0, 1] > (0.95 if name in CLIPPED else 0.999)
    # The third order is left out: a few parts in n, that is some percent at n = 120.
    assert found.std() / exact.std() == pytest.approx(1.0, abs=0.2 if name in CLIPPED else 0.05)


def test_the_second_order_is_needed(embeddings: Tensor) -> None:
    """At n (q - 1) = 7.5 d the first order alone is off by about d over that."""
    z = embeddings[:60, :2]
    without = [reference.noise_fraction(np.delete(z.numpy(), i, axis=0), DELTA) for i in range(60)]
    exact = 59 * np.std(without)
    whole = lda(z, "noise_fraction")
    first = [
        influence.Expansion(
            part.energy, part.first_order, torch.zeros_like(part.second_order), part.count
        )
        for part in (whole.of_means, whole.of_residuals)
        if part is not None
    ]
    plain = influence.SpectralInfluence(whole.names, whole.origin, whole.vectors, *first)
    assert float(whole.influences(z).std(correction=0)) / exact == pytest.approx(1.0, abs=0.04)
    assert float(plain.influences(z).std(correction=0)) / exact < 0.9


def test_eigenvectors_solve_the_pair(embeddings: Tensor) -> None:
    """V^T Sw V = 1 and V^T Sb V = diag(lambda), with both matrices from their loops."""
    found = lda(embeddings, "lidar")
    vectors = found.vectors.numpy()
    within = reference.within(embeddings.numpy()) + DELTA * np.eye(D)
    between = vectors.T @ reference.between(embeddings.numpy()) @ vectors
    np.testing.assert_allclose(vectors.T @ within @ vectors, np.eye(D), atol=1e-12)
    np.testing.assert_allclose(between, np.diag(found.of_means.energy.numpy()), atol=1e-10)
    expected = reference.lda_spectrum(embeddings.numpy(), DELTA)
    np.testing.assert_allclose(found.of_means.energy.numpy(), expected, rtol=1e-10)


def test_the_second_order_of_one_vector_is_the_sum_over_pairs() -> None:
    """With y = t e exactly, the sum is g . y - y^T F y / 2n, F the divided differences of g."""
    spectrum = torch.tensor([5.0, 3.0, 2.0, 0.5], dtype=torch.float64)
    g, n, t = spectrum.sqrt(), 40, 1.7
    total = 0.0
    for k in range(4):
        for other in range(4):
            if k != other:
                gap = float(spectrum[k] - spectrum[other])
                # What `_kernel` allows for one sample's reach, a part in n^2.
                held = gap**2 + float(spectrum[k] * spectrum[other]) / n**2
                difference = float(g[k] - g[other]) * gap / held
                total += 0.5 * difference * t**2 * float(spectrum[k] * spectrum[other])
    kernel = influence._kernel(spectrum, n)
    second_order = influence._second_order(kernel, g[:, None], spectrum)
    found = influence.Expansion(spectrum, g[:, None], second_order, n).influences(
        t * spectrum[None]
    )
    assert float(found) == pytest.approx(float(t * (g * spectrum).sum()) - total / n, rel=1e-12)


def test_equal_eigenvalues_are_no_obstacle() -> None:
    """Signed axes: every sample is another's mirror image, and all influences are the same."""
    corners = torch.eye(4, dtype=torch.float64)
    means = torch.cat([2.0 * corners, -2.0 * corners])
    views = torch.cat([corners, -corners])
    z = means[:, None] + views[None]  # [8, 8, 4]
    found = lda(z, "lidar", "noise_fraction").influences(z)
    assert found.isfinite().all()
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-9, atol=1e-9)


def test_a_dimension_that_is_always_0_changes_nothing(embeddings: Tensor) -> None:
    for name in ("rankme", "participation_ratio", "normalized_std", "rankme_augmented"):
        padded = torch.cat([embeddings, torch.zeros(N, Q, 2, dtype=torch.float64)], dim=2)
        one, other = influences(embeddings, name), influences(padded, name)
        factor = math.sqrt(D / (D + 2)) if name == "normalized_std" else 1.0
        torch.testing.assert_close(
            other - other.mean(), factor * (one - one.mean()), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("name", ["lidar", "rankme", "rankme_augmented", "participation_ratio"])
def test_copied_dimensions_change_no_standard_error(
    embeddings: Tensor, name: str, rounding: float
) -> None:
    """Six of eight dimensions are copies, exact or as float32 leaves them: rank two."""
    noise = torch.randn(N, Q, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = embeddings[:, :, [0, 1, 0, 0, 0, 0, 0, 0]] * (1.0 + rounding * noise)
    z = z - z.mean(dim=(0, 1))
    found = influences(z, name).numpy()
    without = np.array([LITERAL[name](np.delete(z.numpy(), i, axis=0)) for i in range(N)])
    exact = (N - 1) * without.std()
    assert found.std() / exact == pytest.approx(1.0, abs=0.1)


# Derivatives


SPECTRUM = torch.tensor([9.0, 4.0, 2.5, 1.0, 0.8, 0.3], dtype=torch.float64)


def numeric(function: Callable[[Tensor], float], at: Tensor) -> Tensor:
    """Central differences of a function of a spectrum, [d]."""
    step = 1e-6
    found = []
    for k in range(len(at)):
        shift = torch.zeros_like(at)
        shift[k] = step * at[k]
        found.append((function(at + shift) - function(at - shift)) / float(2 * step * at[k]))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (
            lambda s: metrics.effective_rank(s, EPSILON),
            lambda s: metrics.effective_rank_gradient(s, EPSILON),
        ),
        (
            lambda s: metrics.rankme(s, EPSILON),
            lambda s: metrics.rankme_gradient(s, EPSILON),
        ),
        (
            lambda s: metrics.noise_fraction(s, 50, 3),
            lambda s: metrics.noise_fraction_gradient(s, 50, 3),
        ),
        (metrics.pillai, metrics.pillai_gradient),
        (metrics.information, metrics.information_gradient),
        (
            lambda s: metrics.reliable_rank(s, EPSILON),
            lambda s: metrics.reliable_rank_gradient(s, EPSILON),
        ),
        (metrics.participation_ratio, metrics.participation_ratio_gradient),
        (metrics.stable_rank, metrics.stable_rank_gradient),
        (
            lambda s: metrics.alpha_req(s, 200, (2, 5)).alpha,
            lambda s: metrics.alpha_req_gradient(s, (2, 5)),
        ),
    ],
)
def test_derivatives_are_those_of_the_metrics(
    function: Callable[[Tensor], float], derivative: Callable[[Tensor], Tensor]
) -> None:
    torch.testing.assert_close(
        derivative(SPECTRUM), numeric(function, SPECTRUM), rtol=1e-6, atol=1e-8
    )


def test_the_corrected_readings_go_through_the_floor() -> None:
    """Above the bulk h times the reading's slope; in it the deviations from the mean shrink."""
    n, q = 200, 4
    spectrum = torch.tensor([6.0, 3.0, 0.26, 0.25, 0.24, 0.2], dtype=torch.float64)
    signal = noise.corrected_spectrum(spectrum, n, q)
    h = noise.inverse_bias(n, q, 6)
    found = influence.gradients(["pillai"], Spectrum(spectrum, n, q, EPSILON))[:, 0]
    raw = [h / (1 + float(c)) ** 2 if c > 0 else 0.0 for c in signal]
    assert [float(c) > 0 for c in signal] == [True, True, True, False, False, False]
    mean = sum(raw[2:]) / 4
    expected = raw[:2] + [mean + (g - mean) / math.sqrt(2) for g in raw[2:]]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_gradient_refuses_what_its_metric_refuses() -> None:
    flat = torch.full((6,), 0.25, dtype=torch.float64)
    with raises(DegenerateFeatures, "nothing-above-noise"):
        influence.gradients(["pillai"], Spectrum(flat, 200, 4, EPSILON))
