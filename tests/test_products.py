import pytest
import torch

from lidar_cli.core.moments import HELD_NUMBERS, Moments, RowMoments
from lidar_cli.core.pieces import pieces
from lidar_cli.core.products import LEAST_STRIP, STRIPS, add_products, mirrored


@pytest.mark.parametrize(
    "d", [1, LEAST_STRIP, LEAST_STRIP + 1, 300, STRIPS * LEAST_STRIP, STRIPS * LEAST_STRIP + 7]
)
def test_the_upper_triangle_mirrored_is_the_whole_product(d):
    rows, more = torch.randn(2, 20, d, dtype=torch.float64)
    scatter = torch.zeros(d, d, dtype=torch.float64)
    add_products(scatter, rows)
    torch.testing.assert_close(mirrored(scatter), rows.T @ rows, rtol=0, atol=1e-12)
    add_products(scatter, more)  # what was mirrored may be added to
    expected = rows.T @ rows + more.T @ more
    assert mirrored(scatter) is scatter
    torch.testing.assert_close(scatter, expected, rtol=0, atol=1e-12)
    assert torch.equal(scatter, scatter.T)


def test_an_upper_triangle_alone_is_not_symmetric_where_it_has_strips():
    d = 2 * LEAST_STRIP
    scatter = torch.zeros(d, d, dtype=torch.float64)
    add_products(scatter, torch.ones(1, d, dtype=torch.float64))
    assert not scatter[LEAST_STRIP:, :LEAST_STRIP].any()


D = 1024
HELD = HELD_NUMBERS // D  # rows


@pytest.mark.parametrize("size", [100, 10_000])
def test_rows_held_over_several_products_are_all_counted(size):
    rows = 5 + torch.randn(D + HELD + 50, D)
    moments = RowMoments(D)
    for chunk in rows.split(size):
        moments.update(chunk)
    centred = rows.double() - rows.double().mean(dim=0)
    expected = centred.T @ centred
    assert moments.n == len(rows)
    assert moments.rows() is None
    torch.testing.assert_close(moments.mean, rows.double().mean(dim=0), rtol=1e-13, atol=0)
    torch.testing.assert_close(moments.scatter, expected, rtol=0, atol=1e-9)
    assert float(moments.scatter_trace()) == pytest.approx(float(expected.trace()), rel=1e-12)
    doubled = moments.merge(moments)
    torch.testing.assert_close(doubled.scatter, 2 * expected, rtol=0, atol=1e-9)
    assert doubled.n == 2 * len(rows)


@pytest.mark.parametrize("size", [7, 10_000])
def test_views_held_over_several_products_are_all_counted(size):
    z = 5 + torch.randn(HELD // 4 + 100, 4, D)
    moments = Moments(4, D)
    for chunk in z.split(size):
        moments.update(chunk)
    residuals = (z.double() - z.double().mean(dim=1, keepdim=True)).flatten(0, 1)
    expected = residuals.T @ residuals
    torch.testing.assert_close(moments.within, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(moments.merge(moments).within, 2 * expected, rtol=0, atol=1e-9)


def test_what_is_not_wanted_stays_empty_and_the_rest_is_the_same():
    z = torch.randn(30, 3, 8)
    whole = Moments.of(z)
    scatters, sphere = Moments(3, 8, sphere=False), Moments(3, 8, scatters=False)
    for moments in (scatters, sphere):
        moments.update(z)
        assert moments.n == 30
        assert moments.merge(moments).n == 60
    assert torch.equal(scatters.within, whole.within)
    assert torch.equal(scatters.class_means.scatter, whole.class_means.scatter)
    assert (scatters.sphere.n_rows, scatters.merge(whole).sphere.n_rows) == (0, 0)
    assert torch.equal(sphere.sphere.squares, whole.sphere.squares)
    assert torch.equal(sphere.sphere.distances, whole.sphere.distances)
    assert (sphere.class_means.n, sphere.within.numel()) == (0, 0)


@pytest.mark.parametrize("shape", [(1000, 10, 64), (7, 3000), (5, 4, 8192), (1, 2, 3), (0, 2, 3)])
def test_pieces_are_whole_samples_that_torch_does_not_divide(shape):
    chunk = torch.randn(shape)
    parts = list(pieces(chunk, chunk.device))
    assert torch.equal(torch.cat([chunk[:0], *parts]), chunk)
    assert all(part.numel() < 2**15 or len(part) == 1 for part in parts)
