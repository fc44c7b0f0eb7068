"""Feature files with labels as training and test rows.

Classes are numbered in the order of the labels in the training rows, without gaps. Samples of
unknown label are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.reader import labels_to_probe, read_hdf5
from lidar_cli.views.recipes import QUARTER_TURNS

TEST_SHARE = 0.2  # of a single file
HELD_OUT_SHARE = 0.1  # of the training rows, for the choice of the learning rate


@dataclass(frozen=True)
class Member:
    """One layer of one checkpoint: its training and test rows, with class numbers."""

    train_file: str
    test_file: str
    layer: str
    provenance: dict[str, Any]
    train: Rows
    train_labels: Tensor  # [n] class numbers 0 .. C - 1
    held_out: Rows | None  # training rows used only to choose the learning rate
    held_out_labels: Tensor
    test: Rows
    test_labels: Tensor  # [m], -1 for a class that no training row has
    n_classes: int
    n_unknown: int
    warnings: tuple[str, ...]
    rows_per_image: int = 1


def open_members(
    train: Path, test: Path | None, layers: str, seed: int, *, hold_out: bool, device: torch.device
) -> list[Member]:
    """The layers of a training and a test file, or of one file that is split by seed.

    layers: as in `read_hdf5`. hold_out: whether to hold out a tenth of the training rows. device:
    of the labels; the probe computes there.
    Raises InputError if the files have no or too few labels, or differ in checkpoint or settings;
    FeatureFileError if one is not a complete feature file.
    """
    labels = _labels(train)
    test_labels = labels if test is None else _labels(test)
    n_unknown = int((labels < 0).sum())
    train_index, test_index = (_labelled(each) for each in (labels, test_labels))
    if test is None:
        train_index, test_index = _split_index(train_index, TEST_SHARE, seed)
    else:
        n_unknown += int((test_labels < 0).sum())
    held_out_index = train_index[:0]
    if hold_out and len(train_index) > 1:
        train_index, held_out_index = _split_index(train_index, HELD_OUT_SHARE, seed)
    classes = torch.from_numpy(np.unique(labels[train_index].numpy()))
    if len(classes) < 2 or not len(test_index):
        raise InputError(
            f"{train}: {len(train_index)} training rows of {len(classes)} classes and "
            f"{len(test_index)} test rows with a label; expected two classes at least, and test "
            "rows",
            code="too-few-labels",
        )
    numbers, held_out_numbers, test_numbers = (
        _numbered(every[index], classes).to(device)
        for every, index in (
            (labels, train_index),
            (labels, held_out_index),
            (test_labels, test_index),
        )
    )
    members = []
    unseen = int((test_numbers < 0).sum())
    for embeddings in read_hdf5(train, layers):
        test_side = embeddings
        if test is not None:
            (test_side,) = read_hdf5(test, embeddings.layer)
            _check_pair(embeddings, test_side)
        for side, every in ((embeddings, labels), (test_side, test_labels)):
            _check_rows(side, every)
        members.append(
            Member(
                str(train),
                str(test or train),
                embeddings.layer,
                embeddings.provenance,
                rows_of_file(embeddings, train_index),
                numbers,
                rows_of_file(embeddings, held_out_index) if len(held_out_index) else None,
                held_out_numbers,
                rows_of_file(test_side, test_index),
                test_numbers,
                len(classes),
                n_unknown,
                (f"{unseen} test rows are of classes that no training row has",) if unseen else (),
            )
        )
    return members


def open_labelled(file: Path, layer: str, device: torch.device) -> tuple[Rows, Tensor, int]:
    """The labelled samples of one layer of a file: n rows, class numbers [n], number of classes.

    Raises InputError if the file has no labels, FeatureFileError if it is not complete.
    """
    every = _labels(file)
    index = _labelled(every)
    classes = torch.from_numpy(np.unique(every[index].numpy()))
    (embeddings,) = read_hdf5(file, layer)
    _check_rows(embeddings, every)
    numbers = _numbered(every[index], classes).to(device) if len(classes) else every[index]
    return rows_of_file(embeddings, index), numbers, len(classes)


def open_turned(
    path: Path, layers: str, seed: int, *, hold_out: bool, device: torch.device
) -> list[Member]:
    """The layers of a file of images in four turns, split by image; the turn is the class.

    The four rows of an image are consecutive and in one part. Other arguments: as `open_members`.
    Raises InputError if the views are no turned images, or of one image alone; FeatureFileError if
    it is not a complete feature file.
    """
    members = []
    for embeddings in read_hdf5(path, layers):
        n, q, _ = embeddings.shape
        recipe = embeddings.provenance.get("views") or {}
        if q != QUARTER_TURNS or not recipe.get("quarter_turns"):
            raise InputError(
                f"{path}: its {q} views are of the recipe {recipe.get('name')}; --pretext rotation "
                "reads images in four turns: lidar extract CKPT --views rotations",
                code="not-turned",
            )
        if n < 2:
            raise InputError(
                f"{path}: one image; a split into training and test needs two: a larger -n",
                code="one-image",
            )
        train, test = split(n, TEST_SHARE, seed)
        held_out = train[:0]
        if hold_out and len(train) > 1:
            train, held_out = _split_index(train, HELD_OUT_SHARE, seed)
        turns = torch.arange(QUARTER_TURNS, device=device)
        members.append(
            Member(
                str(path),
                str(path),
                embeddings.layer,
                embeddings.provenance,
                rows_of_views(embeddings, train),
                turns.repeat(len(train)),
                rows_of_views(embeddings, held_out) if len(held_out) else None,
                turns.repeat(len(held_out)),
                rows_of_views(embeddings, test),
                turns.repeat(len(test)),
                QUARTER_TURNS,
                0,
                (),
                rows_per_image=QUARTER_TURNS,
            )
        )
    return members


def _labels(path: Path) -> Tensor:
    """Class numbers [N], -1 unknown. Raises as `labels_to_probe`."""
    return torch.from_numpy(labels_to_probe(path).astype("int64"))


def _labelled(labels: Tensor) -> Tensor:
    """The numbers of the samples whose label is known."""
    return (labels >= 0).nonzero().flatten()


def _numbered(labels: Tensor, classes: Tensor) -> Tensor:
    """Indices of the labels among the sorted classes, -1 for a label that is none of them."""
    index = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
    return torch.where(classes[index] == labels, index, -1)


def _check_pair(train: Embeddings, test: Embeddings) -> None:
    """Raise InputError if two files are of different checkpoints, or of the same samples."""
    for key, meaning in (
        ("sha256", "another checkpoint"),
        ("branch", "another branch"),
        ("prefix", "the backbone at another prefix"),
        ("projector_prefix", "the projector at another prefix"),
        ("image_size", "another image size"),
        ("bands", "other bands"),
        ("embedding_revision", "another embedding revision"),
    ):
        if train.provenance.get(key) != test.provenance.get(key):
            raise InputError(
                f"{train.file}: {test.file} is of {meaning} ({train.provenance.get(key)} and "
                f"{test.provenance.get(key)}); extract both with the same settings"
            )
    samples = train.provenance.get("samples_sha256")
    if samples is not None and samples == test.provenance.get("samples_sha256"):
        raise InputError(
            f"{train.file}: {test.file} holds the same samples; give one file alone to split it"
        )
    if train.shape[2] != test.shape[2]:
        raise InputError(
            f"{train.file}: d = {train.shape[2]}, and {test.file} has d = {test.shape[2]}"
        )


def _check_rows(embeddings: Embeddings, labels: Tensor) -> None:
    if embeddings.clean is None:
        raise InputError(
            f"{embeddings.file}: layer {embeddings.layer}: views alone, and a probe is of "
            "un-augmented embeddings; write them as `clean`, or extract with -q 0",
            code="no-clean",
        )
    if embeddings.clean.shape[0] != len(labels):
        raise FeatureFileError(
            f"{embeddings.file}: damaged: {len(labels)} labels for other samples; extract it again"
        )


CHUNK = 64 * 2**20  # bytes read at a time
ROWS_A_CHUNK = 8192  # of a tensor in memory; limits the memory that computing on a chunk takes
WIDEST_GAP = 64  # consecutive unwanted rows that are read too, instead of starting another read


@dataclass(frozen=True)
class Rows:
    """n embeddings of d dimensions, float32, on the CPU or where their tensor is."""

    count: int
    dim: int
    chunks: Callable[[], Iterator[Tensor]]  # all rows in order: [c, d], ...
    gather: Callable[[Tensor], Tensor]  # row numbers [w] -> those rows [w, d]

    @property
    def size(self) -> int:
        """Bytes of memory for all rows."""
        return 4 * self.count * self.dim


def rows_of_tensor(rows: Tensor) -> Rows:
    """A tensor [n, d] as rows."""
    rows = rows.float()
    return Rows(
        rows.shape[0],
        rows.shape[1],
        lambda: iter(torch.split(rows, ROWS_A_CHUNK)),
        lambda at: rows[at],
    )


def rows_of_file(embeddings: Embeddings, index: Tensor) -> Rows:
    """The clean embeddings of some samples of a file.

    index: sample numbers [n], ascending. Reading `chunks` verifies the file's checksums and raises
    FeatureFileError if one does not match.
    """
    assert embeddings.clean is not None
    read = embeddings.clean.read

    def chunks() -> Iterator[Tensor]:
        for chunk in embeddings.chunks(CHUNK):
            assert chunk.clean is not None
            first, last = torch.searchsorted(index, torch.tensor([chunk.start, chunk.stop]))
            if last > first:
                yield chunk.clean[index[first:last] - chunk.start].float()

    def gather(at: Tensor) -> Tensor:
        wanted, order = index[at].sort()
        out = torch.empty(len(at), embeddings.shape[2])
        begins = 1 + (wanted.diff() > WIDEST_GAP).nonzero().flatten()
        for run, targets in zip(
            wanted.tensor_split(begins), order.tensor_split(begins), strict=True
        ):
            first = int(run[0])
            rows = read(first, int(run[-1]) + 1).index_select(0, run - first)
            out.index_copy_(0, targets, rows.float())
        return out

    return Rows(len(index), embeddings.shape[2], chunks, gather)


def rows_of_views(embeddings: Embeddings, index: Tensor) -> Rows:
    """All views of some samples of a file, those of a sample after each other; as `rows_of_file`.

    index: numbers of samples with views, ascending.
    """
    assert embeddings.views is not None
    _, q, d = embeddings.shape
    read = embeddings.views.read

    def chunks() -> Iterator[Tensor]:
        for chunk in embeddings.chunks(CHUNK):
            first, last = torch.searchsorted(index, torch.tensor([chunk.start, chunk.stop]))
            if last > first:
                assert chunk.views is not None
                yield chunk.views[index[first:last] - chunk.start].flatten(0, 1).float()

    def gather(at: Tensor) -> Tensor:
        samples, views = index[at // q].tolist(), (at % q).tolist()
        rows = [read(i, i + 1)[0, j].float() for i, j in zip(samples, views, strict=True)]
        return torch.stack(rows) if rows else torch.empty(0, d)

    return Rows(q * len(index), d, chunks, gather)


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random split by seed of 0 .. count - 1, both parts ascending; the second has `share`.

    Neither part is empty if count is at least two.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    second = min(max(1, round(share * count)), count - 1)
    return order[second:].sort().values, order[:second].sort().values


def _split_index(index: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A split of sample numbers as by `split`; a single sample is in both parts."""
    if len(index) < 2:
        return index, index
    first, second = split(len(index), share, seed)
    return index[first], index[second]
