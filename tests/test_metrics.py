import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from raising import raises

from lidar_cli import Moments, alpha_req, lidar, rankme
from lidar_cli.core import metrics, noise, spectra
from lidar_cli.core.metrics import METRICS
from lidar_cli.core.moments import RowMoments
from lidar_cli.errors import DegenerateFeatures
from lidar_cli.settings import MetricSettings

DELTA, EPSILON = MetricSettings.delta, MetricSettings.epsilon
NOTHING = "nothing above view noise: "


def draw_embeddings(n, q, d, seed, signal=0.0, directions=None):
    """Unit view noise in d dimensions, plus class centres of std `signal` in the first few."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, q, d, dtype=torch.float64, generator=generator)
    centres = signal * torch.randn(n, 1, d, dtype=torch.float64, generator=generator)
    z[..., : directions or d] += centres[..., : directions or d]
    return z


@st.composite
def embeddings(draw, min_n=2, min_q=2):
    """[n, q, d] of float16, float32 or float64, wider and narrower than it is long."""
    q = draw(st.sampled_from([q for q in (1, 2, 3, 10, 50) if q >= min_q]))
    n = draw(st.integers(min_n, 6 if q == 50 else 25))
    d = draw(st.integers(1, 14))
    signal = draw(st.sampled_from([0.0, 1.0, 5.0]))
    dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    return draw_embeddings(n, q, d, draw(st.integers(0, 2**31)), signal).to(dtype)


def lda(z, delta=DELTA):
    return spectra.lda_spectrum(Moments.of(z), delta).eigenvalues


def rows_of(rows):
    moments = RowMoments(rows.shape[1])
    moments.update(rows)
    return moments


@given(embeddings())
def test_lidar_is_its_twin(z):
    expected = reference.lidar(z.double().numpy(), DELTA, EPSILON)
    assert lidar(z) == pytest.approx(expected, rel=1e-8)


@given(embeddings())
def test_noise_readings_are_their_twins(z):
    n, q, d = z.shape
    array = z.double().numpy()
    if n * (q - 1) <= d + 1:
        for reading in (metrics.noise_fraction, noise.n_above_noise, noise.corrected_spectrum):
            with raises(DegenerateFeatures, "within-singular"):
                reading(lda(z), n, q)
        return
    expected = reference.noise_fraction(array, DELTA)
    assert metrics.noise_fraction(lda(z), n, q) == pytest.approx(expected, rel=1e-8)
    assert noise.noise_edge(n, q, d) == pytest.approx(reference.edge(n, q, d), rel=1e-13)
    above = reference.n_above_noise(array, DELTA)
    assert noise.n_above_noise(lda(z), n, q) == above
    limit = reference.largest_of_noise(n, q, d)
    assert noise.largest_of_noise(n, q, d) == pytest.approx(limit, rel=1e-9)
    if above == 0 or reference.lda_spectrum(array, DELTA)[0] <= limit:
        with raises(DegenerateFeatures, "nothing-above-noise"):
            noise.corrected_spectrum(lda(z), n, q)
        return
    corrected = noise.corrected_spectrum(lda(z), n, q)
    found = [
        metrics.effective_rank(corrected, EPSILON),
        metrics.pillai(corrected),
        metrics.information(corrected),
        metrics.reliable_rank(corrected, EPSILON),
    ]
    assert found == pytest.approx(
        [
            reference.lidar_corrected(array, DELTA, EPSILON),
            reference.pillai(array, DELTA),
            reference.information(array, DELTA),
            reference.reliable_rank(array, DELTA, EPSILON),
        ],
        rel=1e-8,
    )


@given(embeddings(min_n=1, min_q=1))
def test_rankme_of_rows_and_of_views_are_their_twins(z):
    array = z.double().numpy()
    gram = spectra.augmented_gram_spectrum(Moments.of(z))
    expected = reference.rankme_augmented(array, EPSILON)
    # a Gram matrix halves the digits of the small singular values
    assert rankme(z[:, 0]) == pytest.approx(reference.rankme(array[:, 0], EPSILON), rel=1e-5)
    assert metrics.rankme(gram, EPSILON) == pytest.approx(expected, rel=1e-5)


@given(embeddings(min_n=3), st.integers(1, 3), st.integers(3, 6))
def test_covariance_readings_are_their_twins(z, first, last):
    rows = z[:, 0]
    array = rows.double().numpy()
    covariance = spectra.covariance_spectrum(rows_of(rows))
    found = [metrics.participation_ratio(covariance), metrics.stable_rank(covariance)]
    expected = [reference.participation_ratio(array), reference.stable_rank(array)]
    assert found == pytest.approx(expected, rel=1e-9)
    if first == last:
        with pytest.raises(ValueError, match="1 <= first < last"):
            alpha_req(rows, ranks=(first, last))
    elif min(len(covariance), len(rows) - 1) < last:
        with pytest.raises(
            DegenerateFeatures, match=f"the fit reads eigenvalues {first} to {last}"
        ):
            alpha_req(rows, ranks=(first, last))
    else:
        law = alpha_req(rows, ranks=(first, last))
        assert law == pytest.approx(reference.alpha_req(array, first, last), rel=1e-6, abs=1e-6)


@given(embeddings(min_n=1))
def test_sphere_readings_are_their_twins(z):
    array = z.double().numpy()
    sphere = Moments.of(z).sphere
    expected = reference.normalized_std(array)
    assert metrics.normalized_std(sphere) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    expected = reference.alignment(array)
    assert metrics.alignment(sphere) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(embeddings())
def test_effective_ranks_lie_between_1_and_the_rank_at_epsilon_0(z):
    n, q, d = z.shape
    rounding = 1e-9
    assert 1 - rounding <= lidar(z, epsilon=0.0) <= min(d, n - 1) + rounding
    assert 1 - rounding <= rankme(z[:, 0], epsilon=0.0) <= min(d, n) + rounding
    covariance = spectra.covariance_spectrum(rows_of(z[:, 0]))
    for reading in (metrics.participation_ratio, metrics.stable_rank):
        assert 1 - rounding <= reading(covariance) <= min(d, n - 1) + rounding
    if n * (q - 1) > d + 1 and reason_for_no_correction(lda(z), n, q) is None:
        corrected = noise.corrected_spectrum(lda(z), n, q)
        assert 0 < metrics.pillai(corrected) < d
        assert 1 - rounding <= metrics.reliable_rank(corrected, 0.0) <= d + rounding


@given(embeddings(min_n=3), st.sampled_from([0.5, 3.0, 40.0]))
def test_a_shift_changes_rankme_only(z, shift):
    z = z.double()
    moved = z + shift
    assert lidar(moved) == pytest.approx(lidar(z), rel=1e-7)
    one, two = (spectra.covariance_spectrum(rows_of(rows[:, 0])) for rows in (z, moved))
    assert metrics.participation_ratio(two) == pytest.approx(metrics.participation_ratio(one), 1e-8)
    assert metrics.stable_rank(two) == pytest.approx(metrics.stable_rank(one), 1e-8)
    if z.shape[2] >= 4 and z.shape[0] >= 4 and shift == 40.0:
        assert abs(rankme(moved[:, 0]) / rankme(z[:, 0]) - 1) > 0.05


def invertible(d, seed):
    """A matrix [d, d] of condition number 50."""
    generator = torch.Generator().manual_seed(seed)
    a, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    b, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    return a @ torch.diag(torch.logspace(0, math.log10(50), d, dtype=torch.float64)) @ b


@given(embeddings(), st.integers(0, 2**31))
def test_lidar_ignores_invertible_linear_maps_at_delta_0(z, seed):
    n, q, d = z.shape
    assume(n * (q - 1) > d + 1)  # else the within covariance is singular, or nearly so
    z = z.double()
    mapped = z @ invertible(d, seed)
    assert lidar(mapped, delta=0.0) == pytest.approx(lidar(z, delta=0.0), rel=1e-6)


def test_a_ridge_ends_that_invariance():
    z = draw_embeddings(50, 4, 6, seed=0, signal=2.0)
    mapped = z @ invertible(6, 0)
    assert lidar(mapped, delta=1.0) != pytest.approx(lidar(z, delta=1.0), rel=1e-3)


@given(embeddings(min_n=1), st.sampled_from([1e-20, 0.1, 3.0, 1e20]))
def test_rankme_ignores_scale(z, scale):
    z = z.double()
    assert rankme(scale * z[:, 0]) == pytest.approx(rankme(z[:, 0]), rel=1e-6)


def test_lidar_holds_at_a_mean_of_1e8_where_raw_sums_fail():
    """Raw sums: Sb = (sum m_i m_i^T - n m m^T) / (n - 1), and W0 alike; eps times 1e16 is 2."""
    noise = draw_embeddings(500, 5, 8, seed=0, signal=1.0)
    z = 1e8 + noise
    n, q, d = z.shape
    exact = lidar(z - 1e8)
    class_means, flat = z.mean(dim=1), z.reshape(n * q, d)
    mean = class_means.mean(dim=0)
    sb = (class_means.T @ class_means - n * torch.outer(mean, mean)) / (n - 1)
    w0 = (flat.T @ flat - q * class_means.T @ class_means) / (n * (q - 1))
    solved = torch.linalg.eigvals(torch.linalg.solve(w0 + DELTA * torch.eye(d), sb)).real
    shares = solved.clamp_min(0) / solved.clamp_min(0).sum() + EPSILON
    naive = float(torch.special.entr(shares).sum().exp())
    assert not abs(naive / exact - 1) < 1e-2
    assert lidar(z) == pytest.approx(exact, rel=1e-6)


def reason_for_no_correction(eigenvalues, n, q):
    try:
        noise.corrected_spectrum(eigenvalues, n, q)
    except DegenerateFeatures as error:
        return str(error)
    return None


SIZES = [(200, 4, 16), (1000, 2, 64), (300, 10, 64), (300, 3, 128)]
# Down to n (q - 1) just above 2 d, and d above n. A fixed margin on the edge fails at most of them.
SMALL_SIZES = [(100, 3, 8), (50, 2, 8), (30, 2, 10), (20, 10, 4), (20, 50, 64), (100, 2, 45)]


@pytest.mark.parametrize(("n", "q", "d"), SIZES + SMALL_SIZES)
def test_pure_gaussian_noise_is_nothing_above_view_noise(n, q, d):
    """At least 98 % of seeds; an embedding that carries nothing must not get a number."""
    seeds, refused = 100, 0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, q, d, generator=generator)
        refused += (reason_for_no_correction(lda(z), n, q) or "").startswith(NOTHING)
    assert refused >= 0.98 * seeds


def test_noise_exceeds_its_limit_once_in_a_hundred_draws():
    """Of 1,500 draws 15 are expected; fewer than 4 or more than 27 come once in a thousand."""
    n, q, d = 50, 2, 8
    limit = noise.largest_of_noise(n, q, d)
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(n, q, d, generator=generator) for _ in range(1500))
    assert 4 <= sum(float(lda(z)[0]) > limit for z in draws) <= 27


@pytest.mark.parametrize("seed", range(3))
def test_sixteen_planted_directions_of_256_are_counted(seed):
    z = draw_embeddings(1000, 10, 256, seed, signal=2.0, directions=16)
    eigenvalues = lda(z)
    assert noise.n_above_noise(eigenvalues, 1000, 10) == 16
    # rho = 4 / (4 + 1) in each of the sixteen, and a little noise beside them
    corrected = noise.corrected_spectrum(eigenvalues, 1000, 10)
    assert float((corrected / (1 + corrected))[:16].sum()) == pytest.approx(16 * 0.8, rel=0.03)


@pytest.mark.parametrize("planted", [1, 5, 16])
def test_planted_directions_are_counted_in_smaller_embeddings(planted):
    for seed in range(10):
        z = draw_embeddings(500, 10, 64, seed, signal=2.0, directions=planted)
        assert noise.n_above_noise(lda(z), 500, 10) == planted


def test_the_noise_edge_is_where_noise_ends():
    """The largest eigenvalue of pure noise lies within a few per cent of Wachter's edge."""
    n, q, d = 2000, 3, 100
    largest = [float(lda(torch.randn(n, q, d), 0.0)[0]) for _ in range(3)]
    assert np.mean(largest) == pytest.approx(noise.noise_edge(n, q, d), rel=0.03)


def test_a_numberless_spectrum_says_why():
    zero = torch.zeros(120, dtype=torch.float64)
    constant = "every eigenvalue is 0: the embedding is constant or collapsed"
    with pytest.raises(DegenerateFeatures, match=constant):
        metrics.effective_rank(zero, EPSILON)
    with pytest.raises(DegenerateFeatures, match=constant):
        metrics.noise_fraction(zero, 1000, 10)
    for reading in (metrics.participation_ratio, metrics.stable_rank):
        with pytest.raises(DegenerateFeatures, match="the covariance is 0"):
            reading(zero)
    with pytest.raises(DegenerateFeatures, match="eigenvalues 11 to 100, and eigenvalue 100 is"):
        metrics.alpha_req(zero, 1000)
    with pytest.raises(DegenerateFeatures, match=r"n \(q - 1\) = 9, it must exceed d \+ 1 = 121"):
        noise.inverse_bias(9, 2, 120)


@pytest.mark.parametrize(("n_rows", "d", "there"), [(100, 200, 99), (1000, 99, 99), (2, 3, 1)])
def test_alpha_req_needs_a_hundred_eigenvalues_with_data(n_rows, d, there):
    with pytest.raises(DegenerateFeatures, match=f"there are {there}: it needs d >= 100 and 101"):
        alpha_req(torch.randn(n_rows, d))


def test_alpha_req_of_101_rows_is_its_twin():
    rows = torch.randn(101, 100, dtype=torch.float64)
    assert alpha_req(rows) == pytest.approx(reference.alpha_req(rows.numpy()), rel=1e-8)


def test_one_view_has_no_alignment():
    with pytest.raises(DegenerateFeatures, match="1 view a sample: a distance between views needs"):
        metrics.alignment(Moments.of(torch.randn(5, 1, 3)).sphere)


def test_rankme_of_one_hot_rows_counts_them_and_epsilon_inflates_wide_spectra():
    assert rankme(torch.eye(7), epsilon=0.0) == pytest.approx(7.0, rel=1e-12)
    wide = torch.eye(256)
    assert rankme(wide, epsilon=1e-5) > 1.01 * rankme(wide, epsilon=1e-7)


@pytest.mark.parametrize("function", [rankme, alpha_req])
def test_rows_of_another_shape_are_refused(function):
    with pytest.raises(ValueError, match=r"expected embeddings \[N, d\], got shape \(2, 3, 4\)"):
        function(torch.zeros(2, 3, 4))


def test_every_metric_sorts_in_its_own_direction():
    best = {"higher": (3.0, 1.0), "lower": (1.0, 3.0), "target": (0.9, 1.2)}
    for metric in METRICS.values():
        good, poor = best[metric.better]
        assert metric.sort_key(good) < metric.sort_key(poor), metric.name
    assert METRICS["noise_fraction"].direction == "lower"
    assert METRICS["alignment"].direction == "lower"
    assert METRICS["lidar"].direction == "higher"
    assert METRICS["alpha_req"].direction == "nearest 1"
