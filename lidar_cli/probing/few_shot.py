"""Accuracy with a few labelled images a class, over draws of these images.

The classifier is the nearest class mean, as in SimpleShot: a ridge or a linear probe has a constant
to be chosen, which so few labels cannot choose, and a small ridge is at its worst where the number
of labels is near d. It has a closed form, so that draws are cheap: embeddings are read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_cli.errors import InputError
from lidar_cli.probing.classifiers import QUERIES, Scaling, standardise
from lidar_cli.probing.data import Rows, open_labelled, open_members

DRAWS = 20
FULL_PROBE_LABELS = 10  # times the labels of a draw, from which on a full probe judges the draws


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy of one layer of one file for each draw of k labelled images a class.

    n_train: images of one draw. n_test: the others, on which it is tested.
    """

    file: str
    accuracies: tuple[float, ...]
    n_classes: int
    n_train: int
    n_test: int


def allows_full_probe(
    file: Path, layer: str, per_class: int, seed: int, device: torch.device
) -> bool:
    """Whether a full probe can judge the draws of a file: on test images that they do not use.

    It needs FULL_PROBE_LABELS times as many labels as a draw, and k + 1 images of each class among
    its training images, to which the draws are then restricted.
    Raises InputError or FeatureFileError as `few_shot_file`.
    """
    _, labels, n_classes = open_labelled(file, layer, device)
    check_class_sizes(labels.bincount(minlength=n_classes), per_class)
    if len(labels) < FULL_PROBE_LABELS * per_class * n_classes:
        return False
    (member,) = open_members(file, None, layer, seed, hold_out=False, device=device)
    counts = member.train_labels.bincount(minlength=n_classes)
    return member.n_classes == n_classes and int(counts.min()) > per_class


def few_shot_file(
    file: Path, layer: str, per_class: int, seed: int, device: torch.device, *, of_training: bool
) -> FewShotResult:
    """The accuracy on the un-augmented embeddings of one layer of a file, one a draw.

    of_training: whether draws and their tests use only the training images of the full probe.
    Files with the same labels have the same draws, so that differences between them are paired.
    Raises InputError if the file has no labels or a class has too few; FeatureFileError if it is
    not a complete feature file.
    """
    if of_training:
        (member,) = open_members(file, None, layer, seed, hold_out=False, device=device)
        rows, labels, n_classes = member.train, member.train_labels, member.n_classes
    else:
        rows, labels, n_classes = open_labelled(file, layer, device)
    check_class_sizes(labels.bincount(minlength=n_classes), per_class)
    drawn = draw_images(labels, n_classes, per_class, DRAWS, seed)
    accuracies = nearest_mean_accuracies(rows, labels, n_classes, drawn)
    n_train = per_class * n_classes
    return FewShotResult(str(file), tuple(accuracies), n_classes, n_train, len(labels) - n_train)


def check_class_sizes(counts: Tensor, per_class: int) -> None:
    """Raise InputError if a class has fewer than k + 1 labelled images, or there is no second one.

    counts: of the labelled images of each class [C].
    """
    total, fewest = int(counts.sum()), int(counts.min()) if len(counts) else 0
    if len(counts) > 1 and fewest > per_class:
        return
    if len(counts) < 2:
        classes = "one class" if len(counts) else "no class"
        reason = f"the {total} labelled images are of {classes}; expected two: embed more"
    else:
        reason = (
            f"a class has {fewest} of the {total} labelled images; expected {per_class + 1} of "
            "every class, one more to test on: lower it, or embed more"
        )
    raise InputError(
        f"--labels-per-class {per_class}: {reason} with --oracle-samples", code="few-labels"
    )


def draw_images(labels: Tensor, n_classes: int, per_class: int, draws: int, seed: int) -> Tensor:
    """k images of each class, by seed, for each of R draws: numbers [R, C k], class by class."""
    generator = torch.Generator().manual_seed(seed)
    images = [(labels == each).nonzero().flatten().cpu() for each in range(n_classes)]
    rows = [
        torch.cat([of[torch.randperm(len(of), generator=generator)[:per_class]] for of in images])
        for _ in range(draws)
    ]
    return torch.stack(rows)


def nearest_mean_accuracies(
    rows: Rows, labels: Tensor, n_classes: int, drawn: Tensor
) -> Sequence[float]:
    """The share of the images outside each draw whose nearest class mean is that of their class.

        x' = (x - mean) / std of each dimension over all rows, then of unit length
        m_c = mean of the x' of class c in the draw                      [C, d]
        class of x = argmin_c |x' - m_c|

    drawn: [R, C k] row numbers, class by class, as `draw_images` returns them.
    Source: Wang et al. 2019, "SimpleShot", arXiv 1911.04623; it centres by the mean, and dividing
    by std is the scaling of the other probes here.
    Raises InputError if an embedding is not finite.
    """
    device = labels.device
    scaling = standardise(rows, device)
    means = torch.stack(  # [R, C, d]
        [
            _unit(rows.gather(at).to(device), scaling).view(n_classes, -1, rows.dim).mean(1)
            for at in drawn
        ]
    )
    offsets = means.square().sum(2, keepdim=True) / 2
    hits = torch.zeros(len(drawn), dtype=torch.int64, device=device)
    is_tested = torch.ones(len(drawn), rows.count, dtype=torch.bool, device=device)
    is_tested.scatter_(1, drawn.to(device), False)
    start = 0
    for chunk in rows.chunks():
        for part in torch.split(chunk, QUERIES):
            at = slice(start, start + len(part))
            scores = means @ _unit(part.to(device), scaling).T - offsets  # [R, C, c]
            hits += ((scores.argmax(1) == labels[at]) & is_tested[:, at]).sum(1)
            start += len(part)
    shares = hits.double() / is_tested.sum(1)
    return [float(share) for share in shares]


def _unit(rows: Tensor, scaling: Scaling) -> Tensor:
    return F.normalize(scaling(rows), dim=1)
