import os

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from lidar_cli.core import spectra
from lidar_cli.core.moments import Moments, RowMoments
from lidar_cli.errors import DegenerateFeatures

DEVICE = os.environ.get("DEVICE", "cpu")  # that of the moments


def rows_of(rows):
    moments = RowMoments(rows.shape[1], DEVICE)
    moments.update(rows)
    return moments


def moments_of(z):
    return Moments.of(z.to(DEVICE))


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 9), (10, 9), (30, 9)])
@pytest.mark.parametrize("delta", [1e-4, 0.3])
def test_lda_spectrum_from_either_side_is_the_inverse_roots(n, d, delta):
    z = normal(n, 4, d) + 2 * normal(n, 1, d)
    found = spectra.lda_spectrum(moments_of(z), delta).eigenvalues.cpu()
    expected = reference.lda_spectrum(z.numpy(), delta)
    assert found.shape == (d,)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * expected[0])
    assert int((found > 1e-9 * found[0]).sum()) == min(n - 1, d)  # Sb has n - 1 directions


@pytest.mark.parametrize("delta", [1e-4, 1.0, 50.0])
def test_ridge_share_is_the_trace_of_the_inverse(delta):
    z = normal(40, 3, 12)
    within = reference.within(z.numpy()) + delta * np.eye(12)
    exact = delta * np.trace(np.linalg.inv(within)) / 12
    assert spectra.lda_spectrum(moments_of(z), delta).ridge_share == pytest.approx(exact, rel=1e-9)


def test_ridge_share_of_a_wide_embedding_is_within_its_probing_error():
    scale = torch.logspace(-3, 0, 100, dtype=torch.float64)
    z = normal(200, 3, 100) * scale
    within = reference.within(z.numpy()) + 1e-4 * np.eye(100)
    exact = 1e-4 * np.trace(np.linalg.inv(within)) / 100
    found = spectra.lda_spectrum(moments_of(z), 1e-4).ridge_share
    assert found == pytest.approx(exact, rel=3 * 0.18)
    assert found == spectra.lda_spectrum(moments_of(z), 1e-4).ridge_share
    assert spectra.lda_spectrum(moments_of(z), 0.0).ridge_share == 0.0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_gram_spectrum_is_the_squared_singular_values(n, d, seed):
    rows = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = spectra.gram_spectrum(rows_of(rows + 3)).cpu()
    expected = np.linalg.svd((rows + 3).numpy(), compute_uv=False) ** 2
    assert found.shape == (min(n, d),)
    np.testing.assert_allclose(found, expected, atol=1e-12 * expected[0])


@pytest.mark.parametrize(("n", "q", "d"), [(3, 2, 20), (12, 2, 20), (40, 2, 20)])
def test_augmented_gram_spectrum_is_that_of_all_views_as_rows(n, q, d):
    z = normal(n, q, d) + 1
    found = spectra.augmented_gram_spectrum(moments_of(z)).cpu()
    expected = np.linalg.svd(z.reshape(n * q, d).numpy(), compute_uv=False) ** 2
    assert found.shape == (min(n * q, d),)
    np.testing.assert_allclose(found, expected, atol=1e-12 * expected[0])


@pytest.mark.parametrize(("n", "d"), [(6, 10), (11, 10), (50, 10)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_covariance_spectrum_is_centred(n, d, shift):
    rows = normal(n, d) + shift
    found = spectra.covariance_spectrum(rows_of(rows)).cpu()
    expected = reference.covariance_spectrum(rows.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-11 * expected[0])


@pytest.mark.parametrize("n", [6, 60])
def test_eigenvalues_that_are_rounding_are_exactly_0(n):
    rank_two = normal(n, 2) @ normal(2, 10)
    gram, covariance = rows_of(rank_two), rows_of(rank_two)
    assert int((spectra.gram_spectrum(gram) > 0).sum()) == 2
    assert int((spectra.covariance_spectrum(covariance) > 0).sum()) == 2


@pytest.mark.parametrize("n", [3, 7, 100])
@pytest.mark.parametrize("value", [0.1, 1e-30, 1e30])
def test_a_constant_embedding_in_float64_is_seen_through_its_rounding(n, value):
    """A mean of equal numbers need not be that number: 0.1 seven times averages to another."""
    z = torch.full((n, 3, 5), value, dtype=torch.float64)
    with raises(DegenerateFeatures, "collapsed"):
        spectra.lda_spectrum(moments_of(z), 1e-4)
    with raises(DegenerateFeatures, "collapsed"):
        spectra.lda_spectrum(moments_of(z), 0.0)
    assert not spectra.covariance_spectrum(rows_of(z[:, 0])).any()


@pytest.mark.parametrize("q", [3, 7])
def test_equal_views_in_float64_have_a_singular_within_covariance(q):
    z = (normal(50, 1, 4) + 0.1).expand(-1, q, -1)
    with raises(DegenerateFeatures, "within-singular"):
        spectra.lda_spectrum(moments_of(z), 0.0)


def test_one_part_in_1e13_is_not_taken_for_rounding():
    z = 1.0 + 1e-13 * normal(50, 4, 3)
    assert spectra.lda_spectrum(moments_of(z), 0.0).eigenvalues.min() > 0
    assert spectra.covariance_spectrum(rows_of(z[:, 0])).min() > 0


def test_dimensions_of_unlike_scale_are_not_singular():
    z = normal(200, 5, 6)
    expected = spectra.lda_spectrum(moments_of(z), 0.0).eigenvalues
    scaled = z * torch.logspace(-10, 10, 6, dtype=torch.float64)
    found = spectra.lda_spectrum(moments_of(scaled), 0.0).eigenvalues
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("shape", "delta", "message"),
    [
        ((1, 4, 3), 1e-4, "1 sample: the between covariance needs at least 2"),
        ((5, 1, 3), 1e-4, "1 view a sample: the within covariance needs at least 2"),
        (
            (3, 2, 8),
            0.0,
            r"singular \(3 degrees of freedom, d = 8\) and delta is 0: raise q, n or delta",
        ),
    ],
)
def test_what_does_not_determine_the_lda_spectrum_says_so(shape, delta, message):
    with pytest.raises(DegenerateFeatures, match=message):
        spectra.lda_spectrum(moments_of(normal(*shape)), delta)


@pytest.mark.parametrize("seed", range(30))
def test_a_dimension_that_repeats_others_is_singular_even_where_cholesky_passes(seed):
    torch.manual_seed(seed)  # rounding decides whether it does: in about half of the seeds
    z = normal(200, 5, 6)
    doubled = torch.cat([z, z @ normal(6, 1)], dim=2)
    with pytest.raises(DegenerateFeatures, match=r"singular \(800 degrees of freedom, d = 7\)"):
        spectra.lda_spectrum(moments_of(doubled), 0.0)
    assert spectra.lda_spectrum(moments_of(doubled), 1e-4).eigenvalues.isfinite().all()


@pytest.mark.parametrize("n", [4, 40])
def test_squares_beyond_float64_are_a_reason_not_a_failed_solver(n):
    z = 1e200 * normal(n, 3, 6)
    for attempt in (
        lambda: spectra.lda_spectrum(moments_of(z), 1e-4),
        lambda: spectra.gram_spectrum(rows_of(z[:, 0])),
        lambda: spectra.augmented_gram_spectrum(moments_of(z)),
        lambda: spectra.covariance_spectrum(rows_of(z[:, 0])),
    ):
        with raises(DegenerateFeatures, "overflow"):
            attempt()


def test_one_row_has_no_covariance():
    with raises(DegenerateFeatures, "one-row"):
        spectra.covariance_spectrum(rows_of(normal(1, 4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_means_that_differ_by_the_rounding_of_their_views_are_all_the_same(dtype):
    """Views -v and v cancel to 0 in any type; those less their mean, to its rounding."""
    views = torch.randn(50, 4, 6, dtype=torch.float64)
    opposite = torch.cat([views, -views], dim=1).to(dtype)
    centred = (views - views.mean(dim=1, keepdim=True) + 3.0).to(dtype)
    for z in (opposite, centred):
        with pytest.raises(DegenerateFeatures, match="the means of the samples' views are all"):
            spectra.lda_spectrum(moments_of(z), 1e-4)
    scattered = centred + 64 * torch.finfo(dtype).eps * torch.randn(50, 1, 6).to(dtype)
    assert float(spectra.lda_spectrum(moments_of(scattered), 1e-4).eigenvalues[0]) > 0


def test_merged_moments_remember_the_coarsest_type():
    coarse, fine = moments_of(torch.ones(3, 2, 1)), moments_of(torch.ones(3, 2, 1).double())
    assert coarse.merge(fine).unit_roundoff == fine.merge(coarse).unit_roundoff
    assert coarse.unit_roundoff == torch.finfo(torch.float32).eps
