"""The oracle: accuracy of a linear classifier trained with labels on frozen embeddings.

It judges a ranking and never enters one. Many checkpoints are probed side by side, as one batched
model whose members share nothing but the order in which they see the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.errors import InputError


@dataclass(frozen=True)
class ProbeSettings:
    """Protocol of the probe; accuracies at different settings are not comparable."""

    epochs: int = 20
    learning_rate: float = 0.01  # of Adam
    drop_epoch: int = 15  # epochs at the full learning rate
    drop_factor: float = 10.0  # what the learning rate is divided by after them
    batch_size: int = 256
    seed: int = 0  # of the order of the rows


@dataclass(frozen=True)
class Probe:
    """K linear probes on the same rows, one for each checkpoint."""

    accuracy: tuple[float, ...]  # share of the test rows that are classified rightly, one of K
    train_accuracy: tuple[float, ...]  # the same on the training rows
    n_classes: int
    n_train: int
    n_test: int
    settings: ProbeSettings


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    settings: ProbeSettings | None = None,
) -> Probe:
    """Accuracies of K softmax classifiers on standardised embeddings.

        x' = (x - mean) / std                         of the training rows, each dimension
        p  = softmax(x' W_k^T + b_k)                  W_k [C, d], b_k [C], zero at the start
        loss = sum_k mean_i -log p[k, i, label_i]     Adam

    No checkpoint appears in another's term of the loss and Adam works element by element, so each
    gets the result that it gets alone. A dimension that is constant on the training rows becomes
    zero and is thereby ignored.

    train, test: [K, n, d] and [K, m, d], or [n, d] and [m, d] for a single checkpoint (K = 1).
    train_labels, test_labels: [n] and [m], integers, all >= 0. C is the largest label plus one.
    Raises InputError if shapes disagree, a label is negative or an embedding is not finite.
    """
    settings = settings or ProbeSettings()
    if train.ndim == 2 and test.ndim == 2:
        train, test = train[None], test[None]
    _check(train, train_labels, test, test_labels)
    train, test = _standardise(train.float(), test.float())
    n_classes = 1 + max(int(train_labels.max()), int(test_labels.max()))
    labels = train_labels.to(train.device, torch.long)
    weight, bias = _fit(train, labels, n_classes, settings)
    return Probe(
        accuracy=_accuracy(test, test_labels, weight, bias),
        train_accuracy=_accuracy(train, train_labels, weight, bias),
        n_classes=n_classes,
        n_train=train.shape[1],
        n_test=test.shape[1],
        settings=settings,
    )


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    if train.ndim != 3 or test.ndim != 3 or train.shape[::2] != test.shape[::2]:
        raise InputError(
            "a linear probe needs training and test embeddings [K, n, d] and [K, m, d] or [n, d] "
            f"and [m, d] with the same K and d, found {list(train.shape)} and {list(test.shape)}"
        )
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != rows.shape[1:2] or len(labels) == 0:
            raise InputError(
                f"a linear probe needs one label for each {name} row, "
                f"found {rows.shape[1]} rows and labels of shape {list(labels.shape)}"
            )
        if labels.is_floating_point() or int(labels.min()) < 0:
            raise InputError(
                f"a linear probe needs integer labels >= 0, but some {name} labels are not; "
                "leave out samples whose label is unknown (-1)"
            )
        if not bool(torch.isfinite(rows).all()):
            raise InputError(f"some {name} embeddings are not finite, so they cannot be probed")


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both splits [K, n, d], [K, m, d], shifted and scaled by the moments of the training split."""
    mean = train.mean(dim=1, keepdim=True)
    std = train.std(dim=1, keepdim=True, correction=0)
    # Rounding leaves a constant dimension with a tiny spread, which must not be blown up.
    resolution = torch.finfo(train.dtype).eps * mean.abs() * math.sqrt(train.shape[1])
    scale = torch.where(std > resolution, 1 / std, 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _fit(
    train: Tensor, labels: Tensor, n_classes: int, settings: ProbeSettings
) -> tuple[Tensor, Tensor]:
    """Weights [K, C, d] and biases [K, 1, C]."""
    count, _, dim = train.shape
    weight = train.new_zeros(count, n_classes, dim, requires_grad=True)
    bias = train.new_zeros(count, 1, n_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        drop = settings.drop_factor if epoch >= settings.drop_epoch else 1.0
        optimizer.param_groups[0]["lr"] = settings.learning_rate / drop
        for rows in row_batches(len(labels), epoch, settings, train.device):
            logits = torch.baddbmm(bias, train[:, rows], weight.mT)
            target = labels[rows].repeat(count)
            loss = F.cross_entropy(logits.flatten(0, 1), target, reduction="sum") / len(rows)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return weight.detach(), bias.detach()


def row_batches(
    n_rows: int, epoch: int, settings: ProbeSettings, device: torch.device
) -> Iterator[Tensor]:
    """Batches of row numbers [<= batch_size] in the order of one epoch, the same for every K."""
    generator = torch.Generator().manual_seed(settings.seed * settings.epochs + epoch)
    order = torch.randperm(n_rows, generator=generator)
    for start in range(0, n_rows, settings.batch_size):
        yield order[start : start + settings.batch_size].to(device)


def _accuracy(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, ...]:
    guess = torch.baddbmm(bias, rows, weight.mT).argmax(dim=2)  # [K, n]
    right = guess == labels.to(rows.device)
    return tuple(right.double().mean(dim=1).tolist())
