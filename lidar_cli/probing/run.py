"""Feature files with labels to accuracies: the oracle that judges a ranking.

Files with the same labels and width are probed side by side, as many at a time as `--memory` holds.
Nothing about the test rows enters a choice: a learning rate is chosen on training rows held out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lidar_cli.errors import LidarError, NoProcess, SettingsError
from lidar_cli.probing.classify import Accuracy, Classifier, measure
from lidar_cli.probing.data import Member, held, open_members
from lidar_cli.probing.knn import nearest_neighbours
from lidar_cli.probing.linear import fit, memory_of
from lidar_cli.probing.ridge import ridge_regression
from lidar_cli.runtime.device import check_free_memory, find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ProbeSettings, parse_rates, parse_size

# On the demo's backbones 120 steps read up to 12 points below logistic regression to its end.
FEW_STEPS = 1000


@dataclass(frozen=True)
class Tried:
    """One learning rate of a sweep."""

    learning_rate: float
    held_out: float | None  # top-1 on the training rows held out; None without a sweep
    top1: float
    top5: float | None


@dataclass(frozen=True)
class Probed:
    """Accuracy of one layer of one checkpoint on the test rows, and on what it rests."""

    train: str
    test: str
    layer: str
    checkpoint: str | None
    method: str
    dim: int
    n_classes: int
    n_train: int  # rows that were learned from
    n_held_out: int
    n_test: int
    n_unknown: int  # samples of unknown label, left out
    top1: float
    top5: float | None  # None where there are at most five classes
    learning_rate: float | None  # the one that counts
    rates: tuple[Tried, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def standard_error(self) -> float:
        """Of top1: sqrt(p (1 - p) / m), the test rows taken as draws."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.n_test)


@dataclass(frozen=True)
class Unprobed:
    """A pair of files that could not be probed, and why."""

    train: str
    reason: str


@dataclass(frozen=True)
class Probes:
    """All that `probe` found, in the order of the files."""

    probed: tuple[Probed, ...]
    failed: tuple[Unprobed, ...] = ()


def probe_files(
    trains: Sequence[Path],
    tests: Sequence[Path | None],
    settings: ProbeSettings,
    progress: Progress | None = None,
) -> Probes:
    """Accuracies on the clean embeddings of feature files.

    tests: the file of test rows for each of training rows; None splits the training file.
    A pair that cannot be probed is among the failed and stops no other.
    Raises SettingsError for settings that do not fit together, or too little --memory.
    """
    progress = progress or Progress()
    device = find_device(settings.device)
    rates = parse_rates(settings.learning_rates)
    if settings.memory != ProbeSettings.memory:  # less than which small files need anyway
        check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    sweep = settings.method == "linear" and len(rates) > 1
    members: list[Member] = []
    failed: list[Unprobed] = []
    for train, test in zip(trains, tests, strict=True):
        try:
            members += open_members(
                train, test, settings.layer, settings.seed, hold_out=sweep, device=device
            )
        except NoProcess:
            raise
        except LidarError as error:
            failed.append(Unprobed(str(train), _reason(train, error)))
    found: dict[int, Probed] = {}
    by_labels: dict[Any, list[Member]] = {}
    for member in members:
        key = member.train.dim, member.train_labels.cpu().numpy().tobytes()
        by_labels.setdefault(key, []).append(member)
    for alike in by_labels.values():
        for group in _groups(alike, settings, progress):
            found |= _probe(*group, settings, failed, progress)
    return Probes(tuple(found[id(m)] for m in members if id(m) in found), tuple(failed))


def _groups(
    alike: list[Member], settings: ProbeSettings, progress: Progress
) -> Iterator[tuple[Sequence[Member], bool]]:
    """Members that are probed together, and whether their training rows are held in memory."""
    memory, first = parse_size(settings.memory), alike[0]
    if settings.method != "linear":
        for member in alike:
            yield [member], member.train.size <= memory
        return
    rates = parse_rates(settings.learning_rates)
    whole, window = memory_of(first.train, first.n_classes, len(rates))
    least = min(whole, window)
    if least > memory:
        raise SettingsError(
            f"--memory {settings.memory}: {first.train_file} needs "
            f"{math.ceil(least / 2**20):,} MB at the least ({first.train.dim} dimensions, "
            f"{first.n_classes} classes, {len(rates)} learning rates)"
        )
    hold = whole <= memory
    if not hold:
        progress.note(
            f"{first.train_file}: its rows take {first.train.size / 2**20:,.0f} MB, more than "
            f"--memory {settings.memory} holds: they are read from the file in each epoch"
        )
    size = memory // (whole if hold else window)
    for start in range(0, len(alike), size):
        yield alike[start : start + size], hold


def _probe(
    group: Sequence[Member],
    hold: bool,
    settings: ProbeSettings,
    failed: list[Unprobed],
    progress: Progress,
) -> dict[int, Probed]:
    """Results by the id of the member; a member alone is failed where a whole group is."""
    try:
        classifiers = _classifiers(group, hold, settings, progress)
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
            failed.append(Unprobed(group[0].train_file, _reason(Path(group[0].train_file), error)))
            return {}
    return {
        key: value
        for member in group
        for key, value in _probe([member], hold, settings, failed, progress).items()
    }


def _classifiers(
    group: Sequence[Member], hold: bool, settings: ProbeSettings, progress: Progress
) -> list[Classifier]:
    """One for each member of the group, which is a single one unless the method is linear."""
    first, labels, n_classes = group[0], group[0].train_labels, group[0].n_classes
    if settings.method == "ridge":
        return [ridge_regression(first.train, labels, n_classes, settings.ridge)]
    if settings.method == "knn":
        train = first.train
        if hold:
            train = held(torch.cat(list(train.chunks())).to(labels.device))
        k, temperature = settings.neighbours, settings.temperature
        return [nearest_neighbours(train, labels, n_classes, k, temperature)]
    name = f"probing {len(group)} side by side" if len(group) > 1 else "probing"
    fitted = fit(
        [member.train for member in group],
        labels,
        n_classes,
        parse_rates(settings.learning_rates),
        settings,
        hold=hold,
        step=lambda epoch: progress.update(name, epoch, settings.epochs),
    )
    return [fitted.classifier(at) for at in range(len(group))]


def _record(member: Member, classifier: Classifier, settings: ProbeSettings) -> Probed:
    tested = measure(classifier, member.test, member.test_labels)
    tried: tuple[Tried, ...] = ()
    best = 0
    if settings.method == "linear":
        rates = parse_rates(settings.learning_rates)
        kept: Sequence[Accuracy | None] = [None] * len(rates)
        if member.held_out is not None:
            kept = measure(classifier, member.held_out, member.held_out_labels)
        tried = tuple(
            Tried(rate, before.top1 if before else None, *after)
            for rate, before, after in zip(rates, kept, tested, strict=True)
        )
        best = max(range(len(tried)), key=lambda at: tried[at].held_out or 0.0)
    return Probed(
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
        top1=tested[best].top1,
        top5=tested[best].top5,
        learning_rate=tried[best].learning_rate if tried else None,
        rates=tried,
        warnings=(*member.warnings, *_few_steps(member, settings)),
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
