import pytest
import torch

from lidar_cli.core import accumulate as pieces
from lidar_cli.core import accumulate as products
from lidar_cli.core.accumulate import (
    CPU_NUMBERS,
    HELD_NUMBERS,
    LEAST_PARTIAL_ROWS,
    LEAST_STRIP,
    PARTIAL_NUMBERS,
    PARTIAL_SUMS,
    STRIPS,
    Scatter,
    add_products,
    map_pieces,
    mirrored,
)
from lidar_cli.core.moments import Moments, RowMoments

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    "count", [1, LEAST_PARTIAL_ROWS, PARTIAL_SUMS * LEAST_PARTIAL_ROWS + 1, 5000]
)
@pytest.mark.parametrize("d", [3, int(PARTIAL_NUMBERS**0.5), int(PARTIAL_NUMBERS**0.5) + 1])
def test_a_scatter_of_rows_that_come_in_blocks_is_their_product(count, d):
    rows, more = torch.randn(count, d, dtype=torch.float64), torch.randn(7, d, dtype=torch.float64)
    scatter = Scatter(d, CPU)
    scatter.add(rows)
    torch.testing.assert_close(scatter.sum(), rows.T @ rows, rtol=0, atol=1e-10)
    scatter.add(more)  # what was asked for may be added to
    scatter.add_weighted(more[0], 0.5)
    scatter.add_scatter(torch.eye(d))
    expected = rows.T @ rows + more.T @ more + 0.5 * more[0].outer(more[0]) + torch.eye(d)
    torch.testing.assert_close(scatter.sum(), expected, rtol=0, atol=1e-10)
    assert torch.equal(scatter.sum(), scatter.sum().T)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "numbers"), [(1000, 640), (7, 3000), (5, 2**20), (1, 6), (0, 6), (4, 0)]
)
def test_pieces_are_whole_samples_in_order_whatever_the_threads(
    with_threads, threads, count, numbers
):
    with_threads(threads)
    found = map_pieces(lambda some: list(range(count))[some], count, numbers, CPU)
    assert [i for piece in found for i in piece] == list(range(count))
    most = CPU_NUMBERS
    assert all(len(piece) * numbers <= most or len(piece) == 1 for piece in found)


def test_a_device_of_any_other_kind_works_on_pieces_in_turn():
    numbers = pieces.GPU_NUMBERS // 2
    found = map_pieces(lambda some: (some.start, some.stop), 5, numbers, torch.device("meta"))
    assert found == [(0, 2), (2, 4), (4, 5)]


def state(n, q, d):
    """All that is summed, of the same n samples each time."""
    z = 3 + torch.randn(n, q, d, generator=torch.Generator().manual_seed(1))
    moments = Moments(q, d)
    for chunk in z.split(2000):
        moments.update(chunk)
    means, sphere = moments.class_means, moments.sphere
    return {
        "within": moments.within,
        "mean": means.mean,
        "between": means.scatter,
        "sphere mean": sphere.mean,
        "sphere squares": sphere.squares,
        "sphere distances": sphere.distances,
    }


# More than a block and than a piece, kept means and folded ones; the last samples fill no piece.
@pytest.mark.parametrize(
    ("n", "q", "d"), [(4500, 10, 64), (1000, 3, 512), (300, 2, 512), (9000, 1, 128), (40, 3, 5)]
)
def test_no_bit_of_the_moments_depends_on_the_number_of_threads(with_threads, n, q, d):
    with_threads(1)
    alone = state(n, q, d)
    for threads in (2, 3):
        with_threads(threads)
        for name, found in state(n, q, d).items():
            assert torch.equal(found, alone[name]), name


def test_bits_depend_on_pieces_and_partial_sums_so_that_the_comparison_can_fail(monkeypatch):
    before = state(4500, 10, 64)
    monkeypatch.setattr(pieces, "CPU_NUMBERS", 2**14)
    monkeypatch.setattr(products, "PARTIAL_SUMS", 3)
    after = state(4500, 10, 64)
    for name in ("within", "between", "sphere squares"):
        assert not torch.equal(before[name], after[name]), name
        torch.testing.assert_close(before[name], after[name], rtol=1e-9, atol=1e-9)
