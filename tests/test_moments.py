import itertools
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from fake_cuda import fake_cuda
from hypothesis import given
from hypothesis import strategies as st

from lidar_cli.core.moments import Moments, RowMoments, SphereMoments, sphere_sums, unit_rows

DEVICE = os.environ.get("DEVICE", "cpu")  # that of the moments


@st.composite
def clouds(draw, max_n: int = 24, max_d: int = 9):
    """Embeddings [n, q, d] in float64 whose mean lies up to 100 standard deviations from 0."""
    n, q, d = draw(st.integers(1, max_n)), draw(st.integers(1, 5)), draw(st.integers(1, max_d))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shift = draw(st.sampled_from([0.0, 1.0, 100.0]))
    centre = shift * torch.randn(d, dtype=torch.float64, generator=generator).sign()
    return centre + torch.randn(n, q, d, dtype=torch.float64, generator=generator)


def cut(z, data):
    """A chunking of samples, with empty chunks allowed."""
    at = sorted(data.draw(st.lists(st.integers(0, len(z)), max_size=6)))
    return [z[a:b] for a, b in zip([0, *at], [*at, len(z)], strict=True)]


def streamed(chunks):
    moments = Moments(*chunks[0].shape[1:], DEVICE)
    for chunk in chunks:
        moments.update(chunk)
    return moments


def relative(found, expected):
    """Relative Frobenius distance; exact equality where the expected matrix is 0."""
    found, expected = found.cpu(), expected.cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def parts(moments):
    sphere = moments.sphere
    tensors = {
        "mean": moments.class_means.mean,
        "scatter": moments.class_means.scatter,
        "within": moments.within,
        "sphere mean": sphere.mean,
        "sphere squares": sphere.squares,
        "sphere distances": sphere.distances,
    }
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def assert_same(found, expected, scale=1.0, tolerance=1e-12):
    """Equal to `tolerance`, relative to each part, or to the `scale` that it was summed from."""
    assert (found.n, found.sphere.n_rows) == (expected.n, expected.sphere.n_rows)
    assert found.sphere.n_samples == expected.sphere.n_samples
    for (name, left), right in zip(parts(found).items(), parts(expected).values(), strict=True):
        assert float((left - right).norm()) <= tolerance * max(float(right.norm()), scale), name


def literal_state(z):
    array = z.numpy()
    class_means = array.mean(axis=1)
    mean = class_means.mean(axis=0)
    scatter = sum(np.outer(m - mean, m - mean) for m in class_means)
    spread = sum(
        np.outer(v - m, v - m) for m, views in zip(class_means, array, strict=True) for v in views
    )
    return torch.from_numpy(mean), torch.from_numpy(scatter), torch.from_numpy(spread)


@given(clouds(), st.data())
def test_any_chunking_gives_the_state_of_the_definition(z, data):
    moments = streamed(cut(z, data))
    mean, scatter, spread = literal_state(z)
    assert moments.n == len(z)
    assert relative(moments.class_means.mean, mean) < 1e-12
    for found, expected in ((moments.class_means.scatter, scatter), (moments.within, spread)):
        # A scatter of one sample or one view is 0 up to the rounding of a mean of 100.
        assert float((found.cpu() - expected).norm()) <= 1e-12 * max(float(expected.norm()), 1.0)


@given(clouds(), st.data())
def test_any_merge_tree_gives_the_same_state(z, data):
    whole = streamed([z])
    states = [streamed([chunk]) for chunk in cut(z, data)]
    states = data.draw(st.permutations(states))
    while len(states) > 1:  # join two neighbours, wherever the draw says
        at = data.draw(st.integers(0, len(states) - 2))
        states[at : at + 2] = [states[at].merge(states[at + 1])]
    assert_same(states[0], whole)


@given(clouds(), clouds(), st.data())
def test_merge_commutes_and_associates(a, b, data):
    q, d = a.shape[1:]
    b = b.repeat(1, q, d)[:, :q, :d]  # of a's width, with other numbers
    one, two, three = streamed([a]), streamed([b]), streamed([a.flip(0) + 1])
    assert_same(one.merge(two), two.merge(one))
    assert_same(one.merge(two).merge(three), one.merge(two.merge(three)))


@given(clouds(), st.data())
def test_merge_leaves_its_operands_alone(z, data):
    at = data.draw(st.integers(0, len(z)))
    first, second = streamed([z[:at]]), streamed([z[at:]])
    before = [{k: v.clone() for k, v in parts(m).items()} for m in (first, second) if m.n]
    both = first.merge(second)
    both.update(z)
    both.within.add_(1.0)
    both.class_means.update(z.mean(dim=1))
    after = [parts(m) for m in (first, second) if m.n]
    assert (first.n, second.n) == (at, len(z) - at)
    for old, new in zip(before, after, strict=True):
        for name, tensor in old.items():
            assert torch.equal(tensor, new[name]), name


@given(clouds(), st.randoms(use_true_random=False))
def test_the_order_of_samples_and_of_views_is_irrelevant(z, random):
    samples, views = list(range(len(z))), list(range(z.shape[1]))
    random.shuffle(samples)
    random.shuffle(views)
    assert_same(streamed([z[samples][:, views]]), streamed([z]))


def test_update_does_not_touch_or_keep_the_callers_tensor():
    z = torch.randn(3, 2, 8, dtype=torch.float64)
    kept = z.clone()
    moments, rows = Moments.of(z), RowMoments(8)
    rows.update(z[:, 0])
    assert torch.equal(z, kept)
    before = moments.class_means.scatter.clone(), rows.rows().clone()
    z.zero_()
    assert torch.equal(moments.class_means.scatter, before[0])
    assert torch.equal(rows.rows(), before[1])


@pytest.mark.parametrize("n", [7, 8, 9])
def test_rows_are_kept_up_to_d_and_folded_from_there(n):
    rows = torch.randn(n, 8, dtype=torch.float64)
    moments = RowMoments(8)
    for row in rows:
        moments.update(row[None])
    centred = rows - rows.mean(dim=0)
    assert (moments.rows() is None) == (n > 8)
    assert relative(moments.scatter, centred.T @ centred) < 1e-13
    assert float(moments.scatter_trace()) == pytest.approx(float(centred.square().sum()), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_input_is_summed_in_float64(dtype):
    z = (100 + torch.randn(40, 3, 6)).to(dtype)
    assert_same(streamed([z]), streamed([z.double()]), tolerance=0.0)
    assert streamed([z]).within.dtype == torch.float64


def test_raw_sums_lose_everything_at_a_mean_of_1e8_and_moments_do_not():
    """Variance 1 at a mean of 1e8: the squares are 1e16, and eps(float64) times that is 2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 5, 8, dtype=torch.float64, generator=generator)
    z = 1e8 + noise
    exact = streamed([z - 1e8])  # the subtraction is exact: both lie within a factor of 2
    class_means = z.mean(dim=1)
    raw = class_means.T @ class_means - len(z) * torch.outer(
        class_means.mean(0), class_means.mean(0)
    )
    assert relative(raw, exact.class_means.scatter) > 1e-3
    for size in (1, 7, 400):
        ours = streamed(list(z.split(size)))
        # class means of 1e8 carry a rounding of 1e-8 each
        assert relative(ours.class_means.scatter, exact.class_means.scatter) < 1e-7
        assert relative(ours.within, exact.within) < 1e-7


@given(clouds())
def test_sphere_moments_are_those_of_the_pair_loops(z):
    sphere = SphereMoments(z.shape[2])
    for chunk in z.split(3):
        sphere.add(z.shape[1], [sphere_sums(chunk.double().clone())])
    rows = reference.on_sphere(z.numpy()).reshape(-1, z.shape[2])
    np.testing.assert_allclose(sphere.mean, rows.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(sphere.squares, rows.var(axis=0) * len(rows), atol=1e-12)
    if z.shape[1] > 1:
        found = float(sphere.distances) / len(z)
        assert found == pytest.approx(reference.alignment(z.numpy()), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1e-20, 1.0, 1e200, 1e300])
def test_unit_rows_at_any_scale(scale):
    rows = torch.tensor([[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64) * scale
    expected = torch.tensor([[0.6, -0.8], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(unit_rows(rows), expected, rtol=1e-12, atol=0)


def test_the_length_of_a_row_does_not_depend_on_its_neighbours():
    rows = torch.randn(50, 8, dtype=torch.float64)
    extreme = torch.cat([rows, torch.full((1, 8), 1e300, dtype=torch.float64)])
    assert torch.equal(unit_rows(extreme)[:-1], unit_rows(rows))


def test_moments_are_summed_on_a_gpu_without_waiting_for_it():
    with fake_cuda() as mode:
        moments = Moments(3, 4, "cuda")
        for chunk in torch.empty(20, 3, 4).split(10):
            moments.update(chunk)
        both = moments.merge(moments)
        assert (both.n, both.within.device.type) == (40, "cuda")
        assert both.class_means.scatter.shape == (4, 4)
    assert mode.copies == [10 * 3 * 4 * 4, 8] * 2  # a chunk, and the number of its samples


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected embeddings \[n, q, d\], got shape \(3, 4\)"):
        Moments.of(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"expected a chunk \[c, 2, 4\], got \(5, 3, 4\)"):
        Moments(2, 4).update(torch.zeros(5, 3, 4))
    with pytest.raises(ValueError, match=r"moments of q, d = 3, 4 into those of q, d = 2, 4"):
        Moments(2, 4).merge(Moments(3, 4))


@pytest.mark.parametrize("q", [2, 3, 10])
@pytest.mark.parametrize(
    ("mean", "between"), [(0.0, 1.0), (1e8, 1.0), (0.0, 1e5), (1e8, 1e5)], ids=str
)
def test_within_loses_no_digits_to_large_means(q, mean, between):
    """Against exact arithmetic; the covariance within samples has a condition of 1e8."""
    n, d = 7, 3
    generator = torch.Generator().manual_seed(q)
    spread = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)
    centres = mean + between * torch.randn(n, 1, d, generator=generator, dtype=torch.float64)
    z = centres + spread * torch.randn(n, q, d, generator=generator, dtype=torch.float64)
    expected = torch.zeros(d, d, dtype=torch.float64)
    samples = [[[Fraction(x) for x in view] for view in sample] for sample in z.tolist()]
    for a, b in itertools.product(range(d), repeat=2):
        exact = sum(
            sum(view[a] * view[b] for view in sample)
            - sum(view[a] for view in sample) * sum(view[b] for view in sample) / q
            for sample in samples
        )
        expected[a, b] = float(exact)
    scale = expected.diagonal().sqrt()
    error = (Moments.of(z).within - expected).abs() / torch.outer(scale, scale)
    assert error.max() < 1e-14


@pytest.mark.parametrize("d", [4, 600])
def test_a_pickled_state_goes_on_as_the_state_itself(d):
    z = torch.randn(700, 3, d, generator=torch.Generator().manual_seed(0))
    state = Moments.of(z[:650])
    again = pickle.loads(pickle.dumps(state))
    for one in (state, again):
        one.update(z[650:])
    assert torch.equal(again.within, state.within)
    assert torch.equal(again.class_means.scatter, state.class_means.scatter)


def test_numbers_with_gradients_are_summed_and_complex_ones_refused():
    z = torch.randn(5, 2, 3)
    assert torch.equal(Moments.of(z.clone().requires_grad_()).within, Moments.of(z).within)
    with pytest.raises(ValueError, match="complex"):
        Moments.of(z.to(torch.complex64))


@pytest.mark.parametrize("modes", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(("q", "dim"), [(1, 4), (3, 4), (3, 600)])
def test_chunks_may_arrive_in_and_outside_of_inference_mode(modes, q, dim):
    z = torch.randn(12, q, dim, generator=torch.Generator().manual_seed(0))
    expected = Moments.of(z)
    with torch.inference_mode(modes[0]):
        moments, copied = Moments(q, dim), Moments.of(z[:6])
    for mode, chunk in zip(modes[1:], z.split(6), strict=True):
        with torch.inference_mode(mode):
            moments.update(chunk.clone())
            if dim == 4:
                assert moments.within.isfinite().all()  # read in between, which adds held rows
    with torch.inference_mode(modes[1]):
        copied = pickle.loads(pickle.dumps(copied)).merge(Moments(q, dim))
    copied.update(z[6:])
    for name, part in parts(expected).items():
        assert relative(parts(moments)[name], part) < 1e-12, name
        assert relative(parts(copied)[name], part) < 1e-12, name


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("first", [0, 6])
@pytest.mark.parametrize(
    "where",
    ["moments.sphere_sums", "moments.RowMoments._shift", "accumulate.add_products",
     "accumulate.mirrored"],
)  # fmt: skip
def test_moments_that_were_interrupted_while_they_changed_are_refused(monkeypatch, first, where):
    """The first two are called by an update, the others by a read, which adds what is held."""
    z = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(z[:first]) if first else Moments(3, 4)

    def update_and_read():
        moments.update(z[first:])
        moments.lidar()

    with monkeypatch.context() as patch:
        patch.setattr(f"lidar_cli.core.{where}", stop)
        with pytest.raises(KeyboardInterrupt):
            update_and_read()
    for use in (
        moments.lidar,
        lambda: moments.merge(Moments(3, 4)),
        lambda: Moments(3, 4).merge(moments),
    ):
        with pytest.raises(RuntimeError, match="begin again with new Moments"):
            use()


def test_memory_that_is_missing_for_the_copy_of_a_chunk_breaks_nothing(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    z = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(z[:6])
    with monkeypatch.context() as patch:
        patch.setattr("lidar_cli.core.moments.copy_to_device", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            moments.update(z[6:])
    moments.update(z[6:])
    assert moments.lidar() == pytest.approx(Moments.of(z).lidar())
