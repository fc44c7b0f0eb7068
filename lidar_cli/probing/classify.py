"""What the oracle's classifiers have in common: standardised rows in, the share of hits out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lidar_cli.errors import InputError
from lidar_cli.probing.data import Rows

TOP = 5  # classes of the second accuracy
Classifier = Callable[[Tensor], Tensor]  # rows [c, d] -> scores of M members [M, c, C]


class Accuracy(NamedTuple):
    """Shares of rows whose class has the highest score, and one of the five highest."""

    top1: float
    top5: float | None  # None where there are at most five classes


class Scaling(NamedTuple):
    """Shift and factor [d] that standardise a dimension on the training rows."""

    mean: Tensor
    factor: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [..., d] -> (rows - mean) * factor."""
        return (rows - self.mean) * self.factor


def standardise(rows: Rows, device: torch.device) -> Scaling:
    """mean and 1 / std over the rows, in one pass in float64 that adds moments of chunks.

    A dimension whose spread does not exceed the rounding of its values gets the factor 0: it is
    constant, and blowing up its rounding would not make it less so.
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
    if not bool(torch.isfinite(std).all()):
        raise InputError("some embeddings are not finite, so they cannot be probed")
    varies = std > torch.finfo(torch.float32).eps * mean.abs()
    return Scaling(mean.float(), torch.where(varies, 1 / std, 0.0).float())


def measure(classifier: Classifier, rows: Rows, labels: Tensor) -> list[Accuracy]:
    """Accuracies of M members on labelled rows; labels [n], -1 for a class that none can know.

    Raises InputError if a row is not finite.
    """
    hits: Tensor | None = None
    start, n_classes = 0, 0
    for chunk in rows.chunks():
        if not bool(torch.isfinite(chunk).all()):
            raise InputError("some embeddings are not finite, so they cannot be probed")
        scores = classifier(chunk.to(labels.device))
        n_classes = scores.shape[2]
        top = scores.topk(min(TOP, n_classes), dim=2)
        right = top.indices == labels[start : start + len(chunk), None]
        right &= top.values > -torch.inf  # a class without a single vote is no guess
        found = torch.stack([right[..., 0].sum(1), right.any(2).sum(1)])  # [2, M]
        hits = found if hits is None else hits + found
        start += len(chunk)
    assert hits is not None
    top1, top5 = (hits.double() / start).tolist()
    wide = n_classes > TOP
    return [Accuracy(one, five if wide else None) for one, five in zip(top1, top5, strict=True)]
