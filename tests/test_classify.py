"""Nearest neighbours, ridge and the count of hits, against literal loops and scikit-learn."""

import math

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import NearestNeighbors

from lidar_cli.errors import DegenerateFeatures, InputError
from lidar_cli.probing import classifiers
from lidar_cli.probing import data as rows_module
from lidar_cli.probing.classifiers import (
    Accuracy,
    measure,
    nearest_neighbours,
    ridge_regression,
    standardise,
)
from lidar_cli.probing.data import rows_of_tensor

CPU = torch.device("cpu")


def drawn(n, d, classes, seed):
    """Overlapping classes of unlike scales and an offset: rows [n, d] and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    rows = centres[labels] + 1.5 * torch.randn(n, d, generator=generator)
    return rows * torch.logspace(-1, 1, d) + 3, labels


def test_hits_are_counted_over_chunks(monkeypatch):
    monkeypatch.setattr(rows_module, "ROWS_A_CHUNK", 2)
    # Scores of 7 classes are the rows themselves; the best five are 0 .. 4, the best is 0.
    rows = torch.arange(7.0).flip(0).repeat(5, 1)
    labels = torch.tensor([0, 4, 5, -1, 0])
    actual = measure(lambda chunk: torch.stack([chunk, -chunk]), rows_of_tensor(rows), labels)
    assert actual == [Accuracy(2 / 5, 3 / 5), Accuracy(0.0, 2 / 5)]


def test_the_fifth_place_of_five_classes_is_no_achievement():
    (actual,) = measure(lambda chunk: chunk[None], rows_of_tensor(torch.eye(5)), torch.arange(5))
    assert actual == Accuracy(1.0, None)


def test_moments_are_those_of_all_rows_at_any_chunk_size(monkeypatch):
    rows, _ = drawn(101, 6, 3, seed=0)
    rows = torch.cat([rows + 1e4, torch.full((101, 1), 0.1)], 1)
    for size in (1, 7, 1000):
        monkeypatch.setattr(rows_module, "ROWS_A_CHUNK", size)
        scaling = standardise(rows_of_tensor(rows), CPU)
        x = scaling(rows).double()
        assert torch.allclose(scaling.mean.double(), rows.double().mean(0), rtol=1e-7)
        # Near 1e4 a float32 has steps of 1e-3, which no arithmetic after it can undo.
        assert torch.allclose(x[:, :6].std(0, correction=0), torch.ones(6).double(), atol=1e-2)
        assert torch.equal(x[:, 6], torch.zeros(101).double())  # constant


@pytest.mark.parametrize("sizes", [(1000, 1000), (7, 3)])
def test_nearest_neighbours_vote_as_the_equation_says(monkeypatch, sizes):
    monkeypatch.setattr(rows_module, "ROWS_A_CHUNK", sizes[0])
    monkeypatch.setattr(classifiers, "QUERIES", sizes[1])
    train, labels = drawn(80, 6, 8, seed=0)
    test, _ = drawn(30, 6, 8, seed=1)
    (actual,) = nearest_neighbours(rows_of_tensor(train), labels, 8, 5, 0.5)(test)
    tree = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train.numpy())
    for scores, query in zip(actual, test, strict=True):
        distances, at = tree.kneighbors(query[None].numpy())
        votes = torch.zeros(8, dtype=torch.float64)
        for distance, i in zip(distances[0], at[0], strict=True):
            votes[labels[i]] += math.exp((1 - distance) / 0.5)
        voted = votes > 0
        assert torch.equal(torch.isfinite(scores), voted)
        shares = scores[voted].double() / scores[voted].double().sum()  # up to a common factor
        assert torch.allclose(shares, votes[voted] / votes.sum(), atol=1e-5)


def test_a_class_without_a_vote_is_never_among_the_five():
    train = torch.eye(8)
    classifier = nearest_neighbours(rows_of_tensor(train), torch.arange(8), 8, 1, 0.07)
    (actual,) = measure(classifier, rows_of_tensor(train), torch.arange(8).roll(1))
    assert actual == Accuracy(0.0, 0.0)


def test_a_sharp_temperature_stays_finite():
    train, labels = drawn(80, 6, 3, seed=0)
    (scores,) = nearest_neighbours(rows_of_tensor(train), labels, 3, 20, 1e-4)(train)
    assert torch.equal(scores.argmax(1), labels)  # each row is its own nearest


def test_more_neighbours_than_rows_are_refused():
    train, labels = drawn(10, 6, 3, seed=0)
    with pytest.raises(InputError, match="20 neighbours asked for, and only 10 training rows"):
        nearest_neighbours(rows_of_tensor(train), labels, 3, 20, 0.07)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 100.0])
def test_ridge_is_that_of_scikit_learn(monkeypatch, ridge):
    monkeypatch.setattr(rows_module, "ROWS_A_CHUNK", 33)
    (train, labels), (test, _) = drawn(200, 12, 4, seed=0), drawn(100, 12, 4, seed=1)
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    theirs = RidgeClassifier(alpha=ridge)
    theirs.fit(((train - mean) / std).numpy(), labels.numpy())
    (scores,) = ridge_regression(rows_of_tensor(train), labels, 4, ridge)(test)
    # Theirs regresses onto -1 and 1, ours onto 0 and 1.
    expected = (theirs.decision_function(((test - mean) / std).numpy()) + 1) / 2
    assert torch.allclose(scores.double(), torch.from_numpy(expected), atol=1e-5)


def test_ridge_needs_more_than_nothing_where_rows_are_few():
    train, labels = drawn(10, 20, 2, seed=0)
    train[:, 3] = 1.0
    ridge_regression(rows_of_tensor(train), labels, 2, 1.0)
    with pytest.raises(DegenerateFeatures, match="10 rows of 20 dimensions is singular; raise"):
        ridge_regression(rows_of_tensor(train), labels, 2, 0.0)
