"""Numbers known in advance: two independent literal computations of the equations agree on them."""

import math

import pytest
import reference
import torch

from lidar_cli import Moments, alpha_req, lidar, rankme
from lidar_cli.core import metrics, noise, spectra

EXACT = 1e-6  # relative error allowed to every value of the table


@pytest.fixture(scope="module")
def graded():
    """S of the table: 256 directions whose signal decays as 4/k under unit view noise."""
    torch.manual_seed(0)
    centres, views = torch.randn(1000, 1, 256), torch.randn(1000, 10, 256)
    return 2 * torch.arange(1, 257.0).rsqrt() * centres + views


@pytest.fixture(scope="module")
def graded_lda(graded):
    return spectra.lda_spectrum(Moments.of(graded), 1e-4).eigenvalues


def test_graded_signal_lda_readings(graded, graded_lda):
    n, q, d = graded.shape
    corrected = noise.corrected_spectrum(graded_lda, n, q)
    found = {
        "lidar": lidar(graded),
        "noise_fraction": metrics.noise_fraction(graded_lda, n, q),
        "lidar_corrected": metrics.effective_rank(corrected, 1e-7),
        "pillai": metrics.pillai(corrected),
        "information": metrics.information(corrected),
        "reliable_rank": metrics.reliable_rank(corrected, 1e-7),
        "edge": noise.noise_edge(n, q, d),
    }
    expected = {
        "lidar": 149.576933,
        "noise_fraction": 0.50618883,
        "lidar_corrected": 62.812218,
        "pillai": 18.017099,
        "information": 10.751545,
        "reliable_rank": 103.257685,
        "edge": 0.24692863,
    }
    assert found == pytest.approx(expected, rel=EXACT)
    assert noise.n_above_noise(graded_lda, n, q) == 40


def test_graded_signal_row_readings(graded):
    gram = spectra.augmented_gram_spectrum(Moments.of(graded))
    assert rankme(graded[:, 0]) == pytest.approx(245.801083, rel=EXACT)
    assert metrics.rankme(gram, 1e-7) == pytest.approx(254.006206, rel=EXACT)
    assert alpha_req(graded[:, 0]).alpha == pytest.approx(0.26414219, rel=EXACT)


def test_the_twins_give_the_same_golden_values(graded):
    z = graded.double().numpy()
    assert reference.lidar(z, 1e-4, 1e-7) == pytest.approx(149.576933, rel=EXACT)
    assert reference.rankme(z[:, 0], 1e-7) == pytest.approx(245.801083, rel=EXACT)
    assert reference.alpha_req(z[:, 0])[0] == pytest.approx(0.26414219, rel=EXACT)


def test_gaussian_noise_lidar():
    """A peer that takes PCA variance ratios of the finished matrix prints 348.088 here."""
    torch.manual_seed(0)
    moments = Moments.of(torch.randn(1000, 10, 1024))
    for delta, epsilon, expected in ((1e-6, 0.0, 588.557510), (1e-4, 1e-7, 588.991230)):
        eigenvalues = spectra.lda_spectrum(moments, delta).eigenvalues
        found = metrics.effective_rank(eigenvalues, epsilon)
        assert found == pytest.approx(expected, rel=EXACT)


def test_gaussian_noise_rows():
    """A peer that takes centred eigenvalues for singular values prints 613.473 for RankMe."""
    torch.manual_seed(0)
    rows = torch.randn(1000, 1024)
    assert rankme(rows) == pytest.approx(814.356952, rel=EXACT)
    assert rankme(rows, epsilon=0.0) == pytest.approx(813.851847, rel=EXACT)
    assert alpha_req(rows).alpha == pytest.approx(0.14893665, rel=EXACT)


def signed_axes(spectrum):
    """Embeddings [2d, 2d, d] with Sw = I and Sb = diag(spectrum).

    Two centres +-a_k e_k an axis have mean 0 and Sb_kk = 2 a_k^2 / (2d - 1); each centre has two
    views +-b e_k an axis about it, so that W0_kk = 2d 2 b^2 / (2d (2d - 1)). Hence
    a_k^2 = (2d - 1) spectrum_k / 2 and b^2 = (2d - 1) / 2.
    """
    d = len(spectrum)
    half = (2 * d - 1) / 2
    axes = torch.eye(d, dtype=torch.float64)
    a = (half * torch.tensor(spectrum, dtype=torch.float64)).sqrt()[:, None] * axes
    b = math.sqrt(half) * axes
    return torch.cat([a, -a])[:, None] + torch.cat([b, -b])


@pytest.mark.parametrize("delta", [0.0, 1e-4, 1.0, 100.0])
def test_signed_axes_lidar_is_2_to_the_7_4_at_any_delta(delta):
    """Shares 4, 2, 1, 1 of 8: the entropy is (1/2 + 2/4 + 3/8 + 3/8) log 2 = 7/4 log 2."""
    z = signed_axes([4.0, 2.0, 1.0, 1.0])
    assert lidar(z, delta=delta, epsilon=0.0) == pytest.approx(2**1.75, rel=1e-12)


def test_signed_axes_corrected_readings():
    """n = q = 8, d = 4: h = 1 - 5/56 = 51/56, so lambda^c = 51/56 (4, 2, 1, 1) - 1/8."""
    eigenvalues = spectra.lda_spectrum(Moments.of(signed_axes([4.0, 2.0, 1.0, 1.0])), 0.0)[0]
    # c1 = 4/7 and c2 = 1/14, so c1 + c2 - c1 c2 = 59/98.
    edge = ((1 + math.sqrt(59 / 98)) / (13 / 14)) ** 2 / 8
    lambdas = [394 / 112, 190 / 112, 88 / 112, 88 / 112]
    assert noise.noise_edge(8, 8, 4) == pytest.approx(edge, rel=1e-14)
    assert noise.n_above_noise(eigenvalues, 8, 8) == 4  # 1.1 edge = 0.50, below all of them
    assert metrics.noise_fraction(eigenvalues, 8, 8) == pytest.approx(4 / (64 * 51 / 56), rel=1e-12)
    corrected = noise.corrected_spectrum(eigenvalues, 8, 8)
    assert corrected.tolist() == pytest.approx(lambdas, rel=1e-12)
    pillai = 394 / 506 + 190 / 302 + 2 * 88 / 200
    assert metrics.pillai(corrected) == pytest.approx(pillai, rel=1e-12)
    information = math.log(506 / 112 * 302 / 112 * (200 / 112) ** 2) / 2
    assert metrics.information(corrected) == pytest.approx(information, rel=1e-12)


def test_known_singular_values_give_known_ranks():
    """sigma = 4, 2, 1, 1, whose squares are 16, 4, 1, 1: RankMe reads the roots, 2^(7/4)."""
    rows = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))
    assert rankme(rows, epsilon=0.0) == pytest.approx(2**1.75, rel=1e-12)
    assert rankme(torch.cat([rows, torch.zeros(3, 4)]), epsilon=0.0) == pytest.approx(2**1.75)


@pytest.mark.parametrize("shape", [(5, 9), (30, 9)])
def test_a_rank_one_matrix_has_rankme_1(shape):
    n, d = shape
    rows = torch.randn(n, 1, dtype=torch.float64) @ torch.randn(1, d, dtype=torch.float64)
    assert rankme(rows, epsilon=0.0) == pytest.approx(1.0, abs=1e-5)


def test_one_informative_direction_has_lidar_1():
    z = signed_axes([1.0, 0.0, 0.0, 0.0])
    assert lidar(z, delta=0.0, epsilon=0.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_an_exact_power_law_returns_its_exponent(exponent):
    """Rows +-a_k e_k have mean 0 and covariance diag(2 a_k^2 / (2d - 1)), here 5 k^-exponent."""
    d = 130
    spectrum = 5 * torch.arange(1, d + 1, dtype=torch.float64) ** -exponent
    rows = torch.diag((spectrum * (2 * d - 1) / 2).sqrt())
    alpha, r2 = alpha_req(torch.cat([rows, -rows]))
    assert alpha == pytest.approx(exponent, rel=1e-10)
    assert r2 == pytest.approx(1.0, abs=1e-10)


def test_companions_of_a_known_spectrum():
    """e = 4, 2, 1, 1: (sum e)^2 / sum e^2 = 64 / 22 and sum e / e_1 = 2."""
    spectrum = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert metrics.participation_ratio(spectrum) == pytest.approx(64 / 22, rel=1e-15)
    assert metrics.stable_rank(spectrum) == pytest.approx(2.0, rel=1e-15)


def test_spread_and_alignment_on_the_axes():
    """Rows +-e_k: each dimension has variance 1/d, so the std times sqrt(d) is 1.

    Views e_1, e_2 of one sample are at squared distance 2, views e_1, -e_1 at 4, equal ones at 0.
    """
    axes = torch.eye(4)
    sphere = Moments.of(torch.stack([axes, -axes])).sphere
    assert metrics.normalized_std(sphere) == pytest.approx(1.0, rel=1e-14)
    for views, distance in (([0, 1], 2.0), ([0, 0], 0.0)):
        pair = Moments.of(3 * axes[views][None]).sphere
        assert metrics.alignment(pair) == pytest.approx(distance, abs=1e-14)
    opposite = Moments.of(torch.stack([axes[0], -7 * axes[0]])[None]).sphere
    assert metrics.alignment(opposite) == pytest.approx(4.0, rel=1e-14)
    constant = Moments.of(axes[0].expand(5, 2, 4)).sphere
    assert metrics.normalized_std(constant) == 0.0
