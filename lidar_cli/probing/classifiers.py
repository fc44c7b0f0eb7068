"""k-NN and ridge classifiers on frozen embeddings, and the accuracy of any classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.errors import DegenerateFeatures, InputError
from lidar_cli.probing.data import Rows

TOP = 5  # classes that count as a hit for the second accuracy
QUERIES = 1024  # rows that are compared with a chunk of training rows at a time
Classifier = Callable[[Tensor], Tensor]  # rows [c, d] -> scores of M classifiers [M, c, C]


class Accuracy(NamedTuple):
    """The shares of rows whose class has the highest, or one of the five highest scores."""

    top1: float
    top5: float | None  # None if there are at most five classes


class Scaling(NamedTuple):
    """The mean and factor [d] that standardise each dimension on the training rows."""

    mean: Tensor
    factor: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [..., d] -> (rows - mean) * factor."""
        return (rows - self.mean) * self.factor


def standardise(rows: Rows, device: torch.device) -> Scaling:
    """The mean and 1 / std of each dimension, from one pass over the rows in float64.

    A dimension whose std is within the rounding of its values counts as constant and gets the
    factor 0, since scaling would only amplify the rounding.
    Raises InputError if a row is not finite.
    """
    count = 0
    mean = torch.zeros(rows.dim, dtype=torch.float64, device=device)
    squares = torch.zeros_like(mean)
    for chunk in rows.chunks():
        chunk = chunk.to(device, torch.float64)
        gap = chunk.mean(0) - mean
        squares += (chunk - chunk.mean(0)).square().sum(0)
        squares += gap.square() * (count * len(chunk) / (count + len(chunk)))
        count += len(chunk)
        mean += gap * (len(chunk) / count)
    std = (squares / count).sqrt()
    _check_finite(std)
    varies = std > torch.finfo(torch.float32).eps * mean.abs()
    return Scaling(mean.float(), torch.where(varies, 1 / std, 0.0).float())


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "some embeddings are not finite, so they cannot be probed", code="not-finite"
        )


def measure(classifier: Classifier, rows: Rows, labels: Tensor) -> list[Accuracy]:
    """The accuracy of each of M classifiers on labelled rows.

    labels: [n], -1 for a class that the classifier does not have.
    Raises InputError if a row is not finite.
    """
    hits: Tensor | None = None
    start, n_classes = 0, 0
    for chunk in rows.chunks():
        _check_finite(chunk)
        scores = classifier(chunk.to(labels.device))
        n_classes = scores.shape[2]
        top = scores.topk(min(TOP, n_classes), dim=2)
        right = top.indices == labels[start : start + len(chunk), None]
        right &= top.values > -torch.inf  # a class without a vote is not a prediction
        hits_of_chunk = torch.stack([right[..., 0].sum(1), right.any(2).sum(1)])  # [2, M]
        hits = hits_of_chunk if hits is None else hits + hits_of_chunk
        start += len(chunk)
    assert hits is not None
    top1, top5 = (hits.double() / start).tolist()
    wide = n_classes > TOP
    return [Accuracy(one, five if wide else None) for one, five in zip(top1, top5, strict=True)]


def error_over_images(
    classifier: Classifier, rows: Rows, labels: Tensor, rows_per_image: int
) -> float:
    """The standard error of the share of right rows, from the images, which are independent.

        a_i = share of the rows of image i that are right;  sqrt(mean_i (a_i - mean(a))^2 / images)

    rows: those of an image follow each other.
    """
    right, start = [], 0
    for chunk in rows.chunks():
        scores = classifier(chunk.to(labels.device))[0]
        right.append(scores.argmax(dim=1) == labels[start : start + len(chunk)])
        start += len(chunk)
    shares = torch.cat(right).double().reshape(-1, rows_per_image).mean(dim=1)
    return float(shares.std(correction=0) / math.sqrt(len(shares)))


def nearest_neighbours(
    train: Rows, labels: Tensor, n_classes: int, neighbours: int, temperature: float
) -> Classifier:
    """A k-NN classifier: votes of the k training rows with the highest cosine similarity.

        s_i = cos(x, x_i);  score_c = sum over the k largest s_i with label_i = c of exp(s_i / T)

    A class without a vote scores -inf. Embeddings are not standardised, as in the source.
    labels: [n] on the device that computes.
    Source: DINO (Caron et al. 2021), k = 20, T = 0.07; the weighting is Wu et al.'s (2018).
    Raises InputError if there are fewer than k training rows.
    """
    if train.count < neighbours:
        raise InputError(
            f"{neighbours} neighbours asked for, and only {train.count} training rows; "
            "lower --neighbours",
            code="too-few-rows",
        )

    def votes(queries: Tensor) -> Tensor:
        queries = F.normalize(queries, dim=1)
        best = queries.new_full((len(queries), 0), 0.0)
        classes = labels.new_empty((len(queries), 0))
        start = 0
        for chunk in train.chunks():
            near = queries @ F.normalize(chunk.to(queries.device), dim=1).T
            near, at = near.topk(min(neighbours, len(chunk)), dim=1)
            classes = torch.cat([classes, labels[start + at]], 1)
            candidates = torch.cat([best, near], 1)
            best, at = candidates.topk(min(neighbours, candidates.shape[1]), dim=1)
            classes = classes.gather(1, at)
            start += len(chunk)
        scores = best.new_zeros(len(queries), n_classes)
        # Subtracting the largest of each row leaves the order as it is and bounds exp.
        scores.scatter_add_(1, classes, ((best - best[:, :1]) / temperature).exp())
        return torch.where(scores > 0, scores, -torch.inf)

    return lambda rows: torch.cat([votes(part) for part in torch.split(rows, QUERIES)])[None]


def ridge_regression(train: Rows, labels: Tensor, n_classes: int, ridge: float) -> Classifier:
    """A ridge classifier: least squares from standardised embeddings to class indicators.

        Y [n, C] = 1 where label_i = c, else 0;  b = mean_i Y_i
        W = (X'^T X' + ridge I)^-1 X'^T (Y - b)                        [d, C]
        scores = x' W + b

    Takes two passes over the rows, and memory for a [d, d] matrix in float64 at any n.
    labels: [n] on the device that computes. ridge: added to each eigenvalue of X'^T X'.
    Raises DegenerateFeatures if the matrix cannot be inverted.
    """
    scaling = standardise(train, labels.device)
    gram = torch.zeros(train.dim, train.dim, dtype=torch.float64, device=labels.device)
    cross = gram.new_zeros(train.dim, n_classes)
    counts = labels.bincount(minlength=n_classes).double()
    start = 0
    for chunk in train.chunks():
        x = scaling(chunk.to(labels.device)).double()
        y = F.one_hot(labels[start : start + len(x)], n_classes).double()
        gram += x.T @ x
        cross += x.T @ (y - counts / len(labels))
        start += len(x)
    gram.diagonal().add_(ridge)
    root, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise DegenerateFeatures(
            f"the covariance of {train.count} rows of {train.dim} dimensions is singular; "
            "raise --ridge",
            code="singular",
        )
    weight = torch.cholesky_solve(cross, root).float()
    bias = (counts / len(labels)).float()
    return lambda rows: (scaling(rows) @ weight + bias)[None]
