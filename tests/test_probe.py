import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lidar_cli.embedded import embedded_images
from lidar_cli.errors import InputError
from lidar_cli.jobs.probe import ProbeSettings, linear_probe, row_batches


def blobs(n: int, d: int, classes: int, seed: int, spread: float = 1.0):
    """Overlapping classes around random centres: rows [n, d] and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def probe_literally(train, train_labels, test, test_labels, settings):
    """One checkpoint in float64: gradient of the softmax by hand, Adam by hand."""
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    x, y = ((rows.double() - mean) / std for rows in (train, test))
    classes = int(train_labels.max()) + 1
    w = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64)  # bias last
    first, second, step = torch.zeros_like(w), torch.zeros_like(w), 0
    x, y = (torch.cat([rows, torch.ones(len(rows), 1)], dim=1) for rows in (x, y))
    for epoch in range(settings.epochs):
        rate = settings.learning_rate
        if epoch >= settings.drop_epoch:
            rate /= settings.drop_factor
        for rows in row_batches(len(x), epoch, settings, torch.device("cpu")):
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
    return ((y @ w.T).argmax(1) == test_labels).double().mean().item()


@pytest.mark.parametrize("drop_epoch", [2, 99])
def test_equals_the_literal_loop(drop_epoch):
    train, train_labels = blobs(120, 6, 4, seed=0, spread=1.5)
    test, test_labels = blobs(400, 6, 4, seed=1, spread=1.5)
    settings = ProbeSettings(
        epochs=4, batch_size=50, drop_epoch=drop_epoch, learning_rate=0.1, drop_factor=50.0
    )
    expected = probe_literally(train * 7 + 3, train_labels, test * 7 + 3, test_labels, settings)
    probe = linear_probe(train * 7 + 3, train_labels, test * 7 + 3, test_labels, settings=settings)
    assert 0.4 < expected < 0.98
    assert probe.accuracy[0] == pytest.approx(expected, abs=1.01 / 400)  # a tie may turn


def test_side_by_side_equals_one_at_a_time():
    sets = [(blobs(300, 16, 5, seed, s), blobs(200, 16, 5, seed + 50, s)) for seed, s in
            [(0, 1.0), (1, 2.0), (2, 4.0)]]  # fmt: skip
    labels, test_labels = sets[0][0][1], sets[0][1][1]
    train = torch.stack([a[0] for a, _ in sets])
    test = torch.stack([b[0] for _, b in sets])
    together = linear_probe(train, labels, test, test_labels)
    alone = [linear_probe(train[k], labels, test[k], test_labels).accuracy[0] for k in range(3)]
    assert together.accuracy == pytest.approx(alone, abs=1.01 / 200)
    assert together.accuracy[0] > together.accuracy[1] > together.accuracy[2]


def test_one_checkpoint_does_not_disturb_another():
    (train, labels), (test, test_labels) = blobs(300, 16, 5, 0, 2.0), blobs(200, 16, 5, 1, 2.0)
    noise = torch.randn(300, 16, generator=torch.Generator().manual_seed(7))
    pair = linear_probe(
        torch.stack([train, 1e4 * noise]), labels, torch.stack([test, test]), test_labels
    )
    assert pair.accuracy[0] == linear_probe(train, labels, test, test_labels).accuracy[0]


def test_close_to_logistic_regression_on_real_images():
    images = embedded_images(0)
    pixels = torch.as_tensor(images.images[:, 2::4, 2::4].mean(axis=3)).flatten(1)  # [N, 64]
    mask, labels = torch.as_tensor(images.train), torch.as_tensor(images.labels)
    ours = linear_probe(pixels[mask], labels[mask], pixels[~mask], labels[~mask]).accuracy[0]
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
    accuracy = linear_probe(train, labels, test, labels).accuracy[0]
    assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_scale_and_shift_of_the_embedding_do_not_matter():
    (train, labels), (test, test_labels) = blobs(300, 8, 5, 0, 2.0), blobs(300, 8, 5, 1, 2.0)
    plain = linear_probe(train, labels, test, test_labels).accuracy[0]
    moved = linear_probe(1e-4 * train - 2e-4, labels, 1e-4 * test - 2e-4, test_labels).accuracy[0]
    assert moved == pytest.approx(plain, abs=2.01 / 300)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_dimension_is_ignored(constant):
    (train, labels), (test, test_labels) = blobs(300, 8, 5, 0, 2.0), blobs(300, 8, 5, 1, 2.0)
    plain = linear_probe(train, labels, test, test_labels)
    extra = torch.full((300, 1), constant)
    leaving = torch.cat([test, extra + 1000 * torch.arange(300)[:, None]], 1)  # at test time only
    wider = linear_probe(torch.cat([train, extra], 1), labels, leaving, test_labels)
    assert wider.accuracy == pytest.approx(plain.accuracy, abs=1.01 / 300)


def test_the_seed_orders_the_rows_and_nothing_else_is_random():
    (train, labels), (test, test_labels) = blobs(500, 8, 5, 0, 2.0), blobs(999, 8, 5, 1, 2.0)
    short = ProbeSettings(epochs=1, batch_size=20, learning_rate=0.3)
    state = torch.random.get_rng_state()
    first = linear_probe(train, labels, test, test_labels, settings=short)
    assert first == linear_probe(train, labels, test, test_labels, settings=short)
    assert torch.equal(state, torch.random.get_rng_state())
    other = dataclasses.replace(short, seed=1)
    assert linear_probe(train, labels, test, test_labels, settings=other).accuracy != first.accuracy


def test_every_row_is_seen_once_in_an_epoch_in_a_new_order_each():
    settings = ProbeSettings(batch_size=30)
    orders = [torch.cat(list(row_batches(100, e, settings, torch.device("cpu")))) for e in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(*orders)


def test_records_its_protocol():
    (train, labels), (test, test_labels) = blobs(50, 4, 3, 0), blobs(20, 4, 3, 1)
    probe = linear_probe(train, labels, test, test_labels)
    assert (probe.n_train, probe.n_test, probe.n_classes) == (50, 20, 3)
    assert probe.settings == ProbeSettings()


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
