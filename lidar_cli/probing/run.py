"""Accuracies of linear, k-NN or ridge classifiers on feature files with labels.

Files with the same labels and width are probed together, as many at a time as fit into `--memory`.
Test rows are used for no choice: the learning rate is chosen on held-out training rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lidar_cli.configuration import parse_rates, parse_size
from lidar_cli.errors import LidarError, NoProcess, SettingsError
from lidar_cli.probing.classifiers import (
    Accuracy,
    Classifier,
    error_over_images,
    measure,
    nearest_neighbours,
    ridge_regression,
)
from lidar_cli.probing.data import Member, open_members, open_turned, rows_of_tensor
from lidar_cli.probing.linear import fit, memory_of
from lidar_cli.runtime.device import check_free_memory, find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ProbeSettings

# On the backbones of `lidar demo`, accuracy after 120 steps is up to 12 points below convergence.
FEW_STEPS = 1000


@dataclass(frozen=True)
class RateResult:
    """The accuracies at one learning rate."""

    learning_rate: float
    held_out: float | None  # top-1 on the held-out training rows; None without a sweep
    top1: float
    top5: float | None


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of one layer of one checkpoint on the test rows, and how it was measured."""

    train: str
    test: str
    layer: str
    checkpoint: str | None
    method: str
    dim: int
    n_classes: int
    n_train: int  # without the held-out rows
    n_held_out: int
    n_test: int
    n_unknown: int  # samples of unknown label, left out
    pretext: str | None  # what stood in for labels
    top1: float
    top5: float | None  # None where there are at most five classes
    learning_rate: float | None  # the chosen one
    rates: tuple[RateResult, ...] = ()
    warnings: tuple[str, ...] = ()
    error_over_images: float | None = None  # where an image has several rows

    @property
    def standard_error(self) -> float:
        """The standard error of top1: over images, or binomial, sqrt(p (1 - p) / m)."""
        if self.error_over_images is not None:
            return self.error_over_images
        return math.sqrt(self.top1 * (1 - self.top1) / self.n_test)


@dataclass(frozen=True)
class ProbeFailure:
    """A pair of files that could not be probed, and why."""

    train: str
    reason: str


@dataclass(frozen=True)
class Probes:
    """All results of `probe`, in the order of the files."""

    probed: tuple[ProbeResult, ...]
    failed: tuple[ProbeFailure, ...] = ()


def probe_files(
    trains: Sequence[Path],
    tests: Sequence[Path | None],
    settings: ProbeSettings,
    progress: Progress | None = None,
) -> Probes:
    """The accuracy on the clean embeddings of each layer of feature files.

    tests: the file of test rows for each file of training rows; None splits the training file.
    A pair that cannot be probed is recorded as failed, and the others are probed.
    Raises SettingsError if settings exclude each other, or if --memory is too small.
    """
    progress = progress or Progress()
    settings = with_method(settings)
    device = find_device(settings.device)
    rates = parse_rates(settings.learning_rates)
    if settings.memory != ProbeSettings.memory:  # the default is not checked
        check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    sweep = settings.method == "linear" and len(rates) > 1
    members: list[Member] = []
    failed: list[ProbeFailure] = []
    for train, test in zip(trains, tests, strict=True):
        try:
            layer, seed = settings.layer, settings.seed
            members += (
                open_members(train, test, layer, seed, hold_out=sweep, device=device)
                if settings.pretext is None
                else open_turned(train, layer, seed, hold_out=sweep, device=device)
            )
        except NoProcess:
            raise
        except LidarError as error:
            failed.append(ProbeFailure(str(train), _reason(train, error)))
    results: dict[int, ProbeResult] = {}
    by_labels: dict[Any, list[Member]] = {}
    for member in members:
        key = member.train.dim, member.train_labels.cpu().numpy().tobytes()
        by_labels.setdefault(key, []).append(member)
    for same_labels in by_labels.values():
        for group, in_memory in _groups(same_labels, settings, progress):
            results |= _probe(group, in_memory, settings, failed, progress)
    return Probes(tuple(results[id(m)] for m in members if id(m) in results), tuple(failed))


def with_method(settings: ProbeSettings) -> ProbeSettings:
    """The settings with the method that `auto` means."""
    if settings.method != "auto":
        return settings
    return replace(settings, method="linear" if settings.pretext is None else "ridge")


def _groups(
    members: list[Member], settings: ProbeSettings, progress: Progress
) -> Iterator[tuple[Sequence[Member], bool]]:
    """Groups of members to probe together, and whether their training rows fit into memory."""
    memory, first = parse_size(settings.memory), members[0]
    if settings.method != "linear":
        for member in members:
            yield [member], member.train.size <= memory
        return
    rates = parse_rates(settings.learning_rates)
    all_rows, window = memory_of(first.train, first.n_classes, len(rates))
    least = min(all_rows, window)
    if least > memory:
        raise SettingsError(
            f"--memory {settings.memory}: {first.train_file} needs "
            f"{math.ceil(least / 2**20):,} MB at the least ({first.train.dim} dimensions, "
            f"{first.n_classes} classes, {len(rates)} learning rates)"
        )
    in_memory = all_rows <= memory
    if not in_memory:
        progress.note(
            f"{first.train_file}: its rows take {first.train.size / 2**20:,.0f} MB, more than "
            f"--memory {settings.memory} holds: they are read from the file in each epoch"
        )
    size = memory // (all_rows if in_memory else window)
    for start in range(0, len(members), size):
        yield members[start : start + size], in_memory


def _probe(
    group: Sequence[Member],
    in_memory: bool,
    settings: ProbeSettings,
    failed: list[ProbeFailure],
    progress: Progress,
) -> dict[int, ProbeResult]:
    """Results by `id(member)`; if a group fails, its members are probed one by one."""
    try:
        classifiers = _classifiers(group, in_memory, settings, progress)
        return {
            id(member): _record(member, classifier, settings)
            for member, classifier in zip(group, classifiers, strict=True)
        }
    except torch.OutOfMemoryError as error:
        raise SettingsError(
            f"--memory {settings.memory}: the device has less; lower it: {str(error)[:80]}"
        ) from error
    except LidarError as error:
        if len(group) == 1:
            failed.append(
                ProbeFailure(group[0].train_file, _reason(Path(group[0].train_file), error))
            )
            return {}
    return {
        key: value
        for member in group
        for key, value in _probe([member], in_memory, settings, failed, progress).items()
    }


def _classifiers(
    group: Sequence[Member], in_memory: bool, settings: ProbeSettings, progress: Progress
) -> list[Classifier]:
    """A classifier for each member of the group, which has one member unless linear."""
    first, labels, n_classes = group[0], group[0].train_labels, group[0].n_classes
    if settings.method == "ridge":
        return [ridge_regression(first.train, labels, n_classes, settings.ridge)]
    if settings.method == "knn":
        train = first.train
        if in_memory:
            train = rows_of_tensor(torch.cat(list(train.chunks())).to(labels.device))
        k, temperature = settings.neighbours, settings.temperature
        return [nearest_neighbours(train, labels, n_classes, k, temperature)]
    name = f"probing {len(group)} side by side" if len(group) > 1 else "probing"
    fitted = fit(
        [member.train for member in group],
        labels,
        n_classes,
        parse_rates(settings.learning_rates),
        settings,
        in_memory=in_memory,
        step=lambda epoch: progress.update(name, epoch, settings.epochs),
    )
    return [fitted.classifier(at) for at in range(len(group))]


def _record(member: Member, classifier: Classifier, settings: ProbeSettings) -> ProbeResult:
    tested, error = measure(classifier, member.test, member.test_labels), None
    if member.rows_per_image > 1:
        error = error_over_images(
            classifier, member.test, member.test_labels, member.rows_per_image
        )
    tried: tuple[RateResult, ...] = ()
    best = 0
    if settings.method == "linear":
        rates = parse_rates(settings.learning_rates)
        held_out: Sequence[Accuracy | None] = [None] * len(rates)
        if member.held_out is not None:
            held_out = measure(classifier, member.held_out, member.held_out_labels)
        tried = tuple(
            RateResult(rate, before.top1 if before else None, *after)
            for rate, before, after in zip(rates, held_out, tested, strict=True)
        )
        best = max(range(len(tried)), key=lambda at: tried[at].held_out or 0.0)
    return ProbeResult(
        train=member.train_file,
        test=member.test_file,
        layer=member.layer,
        checkpoint=member.provenance.get("checkpoint"),
        method=settings.method,
        dim=member.train.dim,
        n_classes=member.n_classes,
        n_train=member.train.count,
        n_held_out=member.held_out.count if member.held_out is not None else 0,
        n_test=member.test.count,
        n_unknown=member.n_unknown,
        pretext=settings.pretext,
        top1=tested[best].top1,
        top5=tested[best].top5,
        learning_rate=tried[best].learning_rate if tried else None,
        rates=tried,
        warnings=(*member.warnings, *_few_steps(member, settings)),
        error_over_images=error,
    )


def _few_steps(member: Member, settings: ProbeSettings) -> Iterator[str]:
    steps = settings.epochs * math.ceil(member.train.count / settings.minibatch)
    if settings.method == "linear" and steps < FEW_STEPS:
        yield (
            f"{steps} steps of Adam, too few for an embedding that learns slowly: take more "
            "samples, or lidar probe with more --epochs or --method ridge"
        )


def _reason(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")
