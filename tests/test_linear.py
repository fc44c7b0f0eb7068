"""The linear probe on embeddings in memory and in files, against a literal loop."""

import dataclasses
import math

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lidar_cli.data.builtin import embedded_images
from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.probing import data as rows_module
from lidar_cli.probing import linear
from lidar_cli.probing.data import rows_of_file, rows_of_tensor, split
from lidar_cli.probing.linear import fit, linear_probe, memory_of, row_windows
from lidar_cli.settings import ProbeSettings


def blobs(n: int, d: int, classes: int, seed: int, spread: float = 1.0):
    """Overlapping classes around random centres: rows [n, d] and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def top1(*arguments, settings=None):
    return [accuracy.top1 for accuracy in linear_probe(*arguments, settings=settings)]


def minibatches(n_rows, epoch, settings):
    for window in row_windows(n_rows, epoch, settings):
        yield from window.split(settings.minibatch)


def fit_literally(train, train_labels, settings, rate):
    """One checkpoint in float64: gradient of the softmax by hand, Adam by hand; [C, d + 1]."""
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    x = (train.double() - mean) / std
    classes = int(train_labels.max()) + 1
    w = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64)  # bias last
    first, second, step = torch.zeros_like(w), torch.zeros_like(w), 0
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    for epoch in range(settings.epochs):
        if epoch == settings.drop_epoch:
            rate /= settings.drop_factor
        for rows in minibatches(len(x), epoch, settings):
            gradient = torch.zeros_like(w)
            for i in rows.tolist():
                p = torch.softmax(w @ x[i], dim=0)
                p[train_labels[i]] -= 1
                gradient += torch.outer(p, x[i]) / len(rows)
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            unbiased = (second / (1 - 0.999**step)).sqrt() + 1e-8
            w = w - rate * (first / (1 - 0.9**step)) / unbiased
    return w


@pytest.mark.parametrize("drop_epoch", [2, 99])
def test_equals_the_literal_loop(drop_epoch):
    train, labels = blobs(120, 6, 4, seed=0, spread=1.5)
    train = torch.stack([train, 7 * train.flip(1) ** 2 + 3])  # two checkpoints
    settings = ProbeSettings(epochs=4, minibatch=50, drop_epoch=drop_epoch, drop_factor=50.0)
    rates = (0.1, 0.01)
    fitted = fit([rows_of_tensor(rows) for rows in train], labels, 4, rates, settings)
    for k, rows in enumerate(train):
        for r, rate in enumerate(rates):
            expected = fit_literally(rows, labels, settings, rate)
            actual = torch.cat([fitted.weight[k, r], fitted.bias[k, r, :, None]], 1)
            assert expected.abs().max() > rate  # it has moved by more than one step
            assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-5)
            x = (rows.double() - rows.double().mean(0)) / rows.double().std(0, correction=0)
            scores = x @ expected[:, :-1].T + expected[:, -1]
            ours = fitted.classifier(k)(rows)[r]
            assert torch.allclose(ours.double(), scores, rtol=0, atol=1e-4)


def test_side_by_side_equals_one_at_a_time():
    sets = [(blobs(300, 16, 5, seed, s), blobs(200, 16, 5, seed + 50, s)) for seed, s in
            [(0, 1.0), (1, 2.0), (2, 4.0)]]  # fmt: skip
    labels, test_labels = sets[0][0][1], sets[0][1][1]
    train = torch.stack([a[0] for a, _ in sets])
    test = torch.stack([b[0] for _, b in sets])
    together = top1(train, labels, test, test_labels)
    alone = [top1(train[k], labels, test[k], test_labels)[0] for k in range(3)]
    assert together == pytest.approx(alone, abs=1.01 / 200)
    assert together[0] > together[1] > together[2]


def test_one_checkpoint_does_not_disturb_another():
    (train, labels), (test, test_labels) = blobs(300, 16, 5, 0, 2.0), blobs(200, 16, 5, 1, 2.0)
    noise = torch.randn(300, 16, generator=torch.Generator().manual_seed(7))
    pair = top1(torch.stack([train, 1e4 * noise]), labels, torch.stack([test, test]), test_labels)
    assert pair[0] == top1(train, labels, test, test_labels)[0]


def test_close_to_logistic_regression_on_real_images():
    images = embedded_images(0)
    pixels = torch.as_tensor(images.images[:, 2::4, 2::4].mean(axis=3)).flatten(1)  # [N, 64]
    mask, labels = torch.as_tensor(images.train), torch.as_tensor(images.labels)
    (ours,) = top1(pixels[mask], labels[mask], pixels[~mask], labels[~mask])
    train, test = pixels[mask].numpy(), pixels[~mask].numpy()
    mean, std = train.mean(0), train.std(0)
    theirs = LogisticRegression(tol=1e-2)
    theirs.fit((train - mean) / std, labels[mask].numpy())
    assert ours == pytest.approx(theirs.score((test - mean) / std, labels[~mask].numpy()), abs=0.03)
    assert ours > 0.5


def test_random_embeddings_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.randn(1000, 10, generator=generator),
        torch.randn(1000, 10, generator=generator),
    )
    labels = torch.arange(1000) % 4
    (accuracy,) = top1(train, labels, test, labels)
    assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_scale_and_shift_of_the_embedding_do_not_matter():
    (train, labels), (test, test_labels) = blobs(300, 8, 5, 0, 2.0), blobs(300, 8, 5, 1, 2.0)
    (plain,) = top1(train, labels, test, test_labels)
    (moved,) = top1(1e-4 * train - 2e-4, labels, 1e-4 * test - 2e-4, test_labels)
    assert moved == pytest.approx(plain, abs=2.01 / 300)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_dimension_is_ignored(constant):
    (train, labels), (test, test_labels) = blobs(300, 8, 5, 0, 2.0), blobs(300, 8, 5, 1, 2.0)
    plain = top1(train, labels, test, test_labels)
    extra = torch.full((300, 1), constant)
    leaving = torch.cat([test, extra + 1000 * torch.arange(300)[:, None]], 1)  # at test time only
    wider = top1(torch.cat([train, extra], 1), labels, leaving, test_labels)
    assert wider == pytest.approx(plain, abs=1.01 / 300)


def test_the_seed_orders_the_rows_and_nothing_else_is_random():
    (train, labels), (test, test_labels) = blobs(500, 8, 5, 0, 2.0), blobs(999, 8, 5, 1, 2.0)
    short = ProbeSettings(epochs=1, minibatch=20, learning_rates="0.3")
    state = torch.random.get_rng_state()
    first = linear_probe(train, labels, test, test_labels, settings=short)
    assert first == linear_probe(train, labels, test, test_labels, settings=short)
    assert torch.equal(state, torch.random.get_rng_state())
    other = dataclasses.replace(short, seed=1)
    assert linear_probe(train, labels, test, test_labels, settings=other) != first


def test_every_row_is_seen_once_in_an_epoch_in_a_new_order_each():
    settings = ProbeSettings(minibatch=30)
    orders = [torch.cat(list(minibatches(100, e, settings))) for e in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(*orders)


def test_beyond_a_window_whole_runs_are_shuffled_and_then_their_rows(monkeypatch):
    monkeypatch.setattr(linear, "WINDOW", 128)
    monkeypatch.setattr(linear, "RUN", 8)
    windows = list(row_windows(1000, 3, ProbeSettings(minibatch=50)))
    assert [len(window) for window in windows] == [100] * 10  # whole minibatches
    assert sorted(torch.cat(windows).tolist()) == list(range(1000))
    for window in windows:
        assert not torch.equal(window, window.sort().values)
        pieces = 1 + int((window.sort().values.diff() > 1).sum())
        assert 5 < pieces <= 14  # of 8 neighbouring rows each, not rows strewn everywhere
    other = torch.cat(list(row_windows(1000, 4, ProbeSettings(minibatch=50))))
    assert not torch.equal(torch.cat(windows), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": torch.zeros(5, 3)}, "same K and d"),
        ({"train": torch.zeros(2, 6, 4), "test": torch.zeros(3, 5, 4)}, "same K and d"),
        ({"train_labels": torch.zeros(5, dtype=torch.long)}, "one label for each train row"),
        ({"test_labels": torch.tensor([0, 1, -1, 0, 0])}, "unknown"),
        ({"train": torch.full((6, 4), np.nan)}, "not finite"),
    ],
)
def test_refuses_what_cannot_be_probed(change, message):
    good = {
        "train": torch.zeros(6, 4),
        "train_labels": torch.arange(6) % 2,
        "test": torch.zeros(5, 4),
        "test_labels": torch.arange(5) % 2,
    }
    linear_probe(**good)
    with pytest.raises(InputError, match=message):
        linear_probe(**(good | change))


def file_of(path, clean, n_views=0, labels=None):
    """A feature file whose backbone has these clean embeddings, all of them labelled or none."""
    n = len(clean) if n_views else 0
    layout = Layout({"backbone": clean.shape[1]}, n, n_views, len(clean))
    ids = [str(i) for i in range(len(clean))]
    with FeatureWriter.create(path, layout, ids, labels, {"sha256": "0"}) as writer:
        views = clean[:n, None].expand(n, n_views, -1)
        writer.write(range(len(clean)), {"backbone": views}, {"backbone": clean})
        return writer.finish()


@pytest.mark.parametrize("n_views", [1, 3])
def test_rows_of_a_file_are_those_of_the_array(tmp_path, monkeypatch, n_views):
    clean, _ = blobs(500, 6, 4, seed=0)
    (embeddings,) = read_hdf5(file_of(tmp_path / "f.h5", clean, n_views))
    index = split(500, 0.2, seed=0)[0]
    monkeypatch.setattr(rows_module, "CHUNK", 1000)
    rows = rows_of_file(embeddings, index)
    assert (rows.count, rows.dim, rows.size) == (400, 6, 400 * 6 * 4)
    assert len(list(rows.chunks())) > 10
    assert torch.equal(torch.cat(list(rows.chunks())), clean[index])
    for gap in (0, 3, 1000):
        monkeypatch.setattr(rows_module, "WIDEST_GAP", gap)
        at = torch.randperm(400)[:150]
        assert torch.equal(rows.gather(at), clean[index][at])


def test_reading_from_the_file_in_each_epoch_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "WINDOW", 128)
    monkeypatch.setattr(linear, "RUN", 8)
    clean, labels = blobs(700, 6, 4, seed=0, spread=1.5)
    (embeddings,) = read_hdf5(file_of(tmp_path / "f.h5", clean, 1))
    index = torch.arange(0, 700, 2)
    settings = ProbeSettings(epochs=3, minibatch=50)
    members = [rows_of_file(embeddings, index)]
    whole = fit(members, labels[index], 4, (0.1,), settings)
    windows = fit(members, labels[index], 4, (0.1,), settings, in_memory=False)
    assert torch.equal(whole.weight, windows.weight)
    assert torch.equal(whole.bias, windows.bias)


def test_a_damaged_row_stops_the_probe(tmp_path):
    clean, labels = blobs(50, 6, 4, seed=0)
    path = file_of(tmp_path / "f.h5", clean, 1)
    with h5py.File(path, "r+") as file:
        file["embeddings/backbone/clean"][7, 2] += 1.0
    (embeddings,) = read_hdf5(path)
    with pytest.raises(FeatureFileError, match="sample 7 does not match its checksum"):
        fit([rows_of_file(embeddings, torch.arange(50))], labels, 4, (0.1,), ProbeSettings())


def test_a_split_is_exact_disjoint_and_by_seed():
    first, second = split(101, 0.2, seed=3)
    assert len(second) == 20
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(101))
    assert torch.equal(first, first.sort().values)
    assert torch.equal(second, split(101, 0.2, seed=3)[1])
    assert not torch.equal(second, split(101, 0.2, seed=4)[1])
    assert [len(part) for part in split(2, 0.01, seed=0)] == [1, 1]


def test_memory_counts_rows_and_weights():
    rows = rows_of_tensor(torch.zeros(1000, 10))
    # 40,000 bytes of rows; the weights of 3 classes at 2 rates are 60 numbers, six times over.
    assert memory_of(rows, 3, 2) == (40_000 + 6 * 240, 80_000 + 6 * 240)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_a_cuda_device():
    (train, labels), (test, test_labels) = blobs(300, 16, 5, 0, 2.0), blobs(200, 16, 5, 1, 2.0)
    expected = top1(train, labels, test, test_labels)
    actual = top1(train.cuda(), labels, test.cuda(), test_labels)
    assert actual == pytest.approx(expected, abs=1.01 / 200)
