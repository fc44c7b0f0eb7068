"""The linear probe: softmax classifiers trained with labels on frozen embeddings.

The accuracies are compared with a ranking and never change it. Many checkpoints are probed together
as one batched model; its members share only the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.configuration import parse_rates
from lidar_cli.errors import InputError
from lidar_cli.probing.classifiers import Accuracy, Classifier, Scaling, measure, standardise
from lidar_cli.probing.data import Rows, rows_of_tensor
from lidar_cli.settings import ProbeSettings

WINDOW = 65_536  # rows that are shuffled together; only these are in memory if not all fit
RUN = 256  # consecutive rows that are always in the same window
WORKING_COPIES = 6  # of the weights: the parameter, its copy, two gradients, Adam's two moments


@dataclass(frozen=True)
class LinearClassifiers:
    """Trained linear classifiers of F checkpoints, one for each of R learning rates."""

    weight: Tensor  # [F, R, C, d]
    bias: Tensor  # [F, R, C]
    scalings: tuple[Scaling, ...]  # F

    def classifier(self, member: int) -> Classifier:
        """The R classifiers of one checkpoint."""
        weight, bias = self.weight[member], self.bias[member]
        scaling = self.scalings[member]
        return lambda rows: torch.einsum("nd,rcd->rnc", scaling(rows), weight) + bias[:, None]


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    settings: ProbeSettings | None = None,
) -> list[Accuracy]:
    """Linear-probe accuracies of K checkpoints from embeddings in memory, at the first rate.

    train, test: [K, n, d] and [K, m, d], or [n, d] and [m, d] for a single checkpoint (K = 1).
    train_labels, test_labels: [n] and [m], integers 0 .. C - 1.
    Raises InputError if shapes disagree, a label is negative or an embedding is not finite.
    """
    settings = settings or ProbeSettings()
    if train.ndim == 2 and test.ndim == 2:
        train, test = train[None], test[None]
    _check(train, train_labels, test, test_labels)
    labels = train_labels.to(train.device, torch.long)
    n_classes = 1 + max(int(labels.max()), int(test_labels.max()))
    rates = parse_rates(settings.learning_rates)[:1]
    fitted = fit([rows_of_tensor(rows) for rows in train], labels, n_classes, rates, settings)
    return [
        measure(fitted.classifier(k), rows_of_tensor(test[k]), test_labels.to(train.device))[0]
        for k in range(len(test))
    ]


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


def fit(
    members: Sequence[Rows],
    labels: Tensor,
    n_classes: int,
    rates: Sequence[float],
    settings: ProbeSettings,
    *,
    in_memory: bool = True,
    step: Callable[[int], None] = lambda epoch: None,
) -> LinearClassifiers:
    """Softmax classifiers of F checkpoints at R learning rates, trained together.

        x' = (x - mean) / std                          of the training rows, each dimension
        p  = softmax(x' W^T + b)                       W [C, d], b [C], zero at the start
        loss = sum_fr mean_i -log p[f, r, i, label_i]  Adam, at the rate of r

    Each term of the loss depends on one classifier and Adam works element by element, so each
    result is the same as if the classifier was trained alone.

    members: F checkpoints, each with the same n samples. labels: [n] on the device that computes.
    in_memory: whether all rows are on the device, or one window; the result is the same.
    step: called after each epoch with its number, counted from 1.
    Raises InputError if an embedding is not finite.
    """
    device, dim = labels.device, members[0].dim
    scalings = tuple(standardise(rows, device) for rows in members)
    shape = (len(members), n_classes, dim)
    weights = [torch.zeros(shape, device=device, requires_grad=True) for _ in rates]
    biases = [torch.zeros(shape[:2], device=device, requires_grad=True) for _ in rates]
    groups = [
        {"params": pair, "lr": rate} for *pair, rate in zip(weights, biases, rates, strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    take = _from_memory(members, scalings) if in_memory else _from_files(members, scalings)
    for epoch in range(settings.epochs):
        drop = settings.drop_factor if epoch >= settings.drop_epoch else 1.0
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / drop
        for window in row_windows(len(labels), epoch, settings):
            x, at = take(window)
            y = labels[window.to(device)]
            for batch in torch.split(torch.arange(len(window), device=device), settings.minibatch):
                # Classes before rows: a softmax along the last, short axis is several times slower.
                logits = torch.baddbmm(
                    torch.cat(biases, 1)[:, :, None],
                    torch.cat(weights, 1),
                    x.index_select(1, at[batch]).mT,
                ).view(-1, n_classes, len(batch))  # [F R, C, b]
                target = y[batch].expand(len(logits), -1)
                loss = F.cross_entropy(logits, target, reduction="sum")
                optimizer.zero_grad()
                torch.autograd.backward(loss / len(batch))
                optimizer.step()
            del x  # frees the window before the next is read
        step(epoch + 1)
    weight = torch.stack([w.detach() for w in weights], 1)
    return LinearClassifiers(weight, torch.stack([b.detach() for b in biases], 1), scalings)


# From row numbers [w] to rows [F, ., d] of all members, and the index [w] of each number in them.
ReadWindow = Callable[[Tensor], tuple[Tensor, Tensor]]


def _from_memory(members: Sequence[Rows], scalings: Sequence[Scaling]) -> ReadWindow:
    device = scalings[0].mean.device
    rows = torch.empty(len(members), members[0].count, members[0].dim, device=device)
    for target, member, scaling in zip(rows, members, scalings, strict=True):
        start = 0
        for chunk in member.chunks():
            target[start : start + len(chunk)] = scaling(chunk.to(device))
            start += len(chunk)
    return lambda window: (rows, window.to(device))


def _from_files(members: Sequence[Rows], scalings: Sequence[Scaling]) -> ReadWindow:
    device = scalings[0].mean.device

    def take(window: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.empty(len(members), len(window), members[0].dim, device=device)
        for target, member, scaling in zip(x, members, scalings, strict=True):
            target.copy_(member.gather(window)).sub_(scaling.mean).mul_(scaling.factor)
        return x, torch.arange(len(window), device=device)

    return take


def row_windows(n_rows: int, epoch: int, settings: ProbeSettings) -> Iterator[Tensor]:
    """Windows of at most WINDOW row numbers, in the order of one epoch; the same for all members.

    Up to WINDOW rows they are one random permutation. Otherwise runs of RUN consecutive rows are
    permuted, and then the rows in each window, so that a window is read from a file in few pieces.
    Every window but the last is a multiple of the minibatch.
    """
    generator = torch.Generator().manual_seed(settings.seed * settings.epochs + epoch)
    if n_rows <= WINDOW:
        yield torch.randperm(n_rows, generator=generator)
        return
    runs = torch.split(torch.arange(n_rows), RUN)
    order = torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()])
    for window in torch.split(order, max(1, WINDOW // settings.minibatch) * settings.minibatch):
        yield window[torch.randperm(len(window), generator=generator)]


def memory_of(member: Rows, n_classes: int, n_rates: int) -> tuple[int, int]:
    """The bytes that one checkpoint takes in `fit`, with all rows in memory and with a window."""
    working = 4 * WORKING_COPIES * n_rates * n_classes * member.dim
    # A window is in memory twice: as it is read, and standardised.
    return member.size + working, 8 * min(WINDOW, member.count) * member.dim + working
