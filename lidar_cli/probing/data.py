"""Feature files with labels as training and test rows.

The labels number the classes of the training rows; whatever else a label says, such as that it is
unknown, leaves its sample out and is counted.
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
from lidar_cli.features.blocks import Embeddings
from lidar_cli.features.reader import read_hdf5, read_labels

TEST_SHARE = 0.2  # of a single file
HELD_OUT_SHARE = 0.1  # of the training rows, where learning rates are compared


@dataclass(frozen=True)
class Member:
    """One layer of one checkpoint: its training and test rows, with class numbers."""

    train_file: str
    test_file: str
    layer: str
    provenance: dict[str, Any]
    train: Rows
    train_labels: Tensor  # [n] class numbers 0 .. C - 1
    held_out: Rows | None  # training rows that learn nothing but which learning rate is best
    held_out_labels: Tensor
    test: Rows
    test_labels: Tensor  # [m], -1 for a class that no training row has
    n_classes: int
    n_unknown: int
    warnings: tuple[str, ...]


def open_members(
    train: Path, test: Path | None, layers: str, seed: int, *, hold_out: bool, device: torch.device
) -> list[Member]:
    """The layers of a pair of files, or of one file that is split by seed.

    layers: as `read_hdf5` takes them. hold_out: put a tenth of the training rows aside.
    device: of the labels, and so of the probe.
    Raises InputError if the files have no labels, too few of them, or do not belong together;
    FeatureFileError if one is not a complete feature file.
    """
    labels = _labels(train)
    known = (labels >= 0).nonzero().flatten()
    n_unknown = len(labels) - len(known)
    if test is None:
        test_labels, where = labels, str(train)
        parts = split(len(known), TEST_SHARE, seed) if len(known) > 1 else (known, known)
        known, test_known = known[parts[0]], known[parts[1]]
    else:
        test_labels, where = _labels(test), str(test)
        test_known = (test_labels >= 0).nonzero().flatten()
        n_unknown += len(test_labels) - len(test_known)
    held_out = known[:0]
    if hold_out and len(known) > 1:
        parts = split(len(known), HELD_OUT_SHARE, seed)
        known, held_out = known[parts[0]], known[parts[1]]
    classes = torch.from_numpy(np.unique(labels[known].numpy()))
    if len(classes) < 2 or not len(test_known):
        raise InputError(
            f"{train}: {len(known)} training rows of {len(classes)} classes and {len(test_known)} "
            "test rows with a label; expected two classes at least, and test rows"
        )
    numbers, held_out_numbers, test_numbers = (
        _numbered(every[index], classes).to(device)
        for every, index in ((labels, known), (labels, held_out), (test_labels, test_known))
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
                where,
                embeddings.layer,
                embeddings.provenance,
                stored(embeddings, known),
                numbers,
                stored(embeddings, held_out) if len(held_out) else None,
                held_out_numbers,
                stored(test_side, test_known),
                test_numbers,
                len(classes),
                n_unknown,
                (f"{unseen} test rows are of classes that no training row has",) if unseen else (),
            )
        )
    return members


def _labels(path: Path) -> Tensor:
    """Class numbers [N], -1 unknown. Raises InputError if the file has none."""
    labels = read_labels(path)
    if labels is None:
        raise InputError(
            f"{path}: holds no labels, so it cannot be probed; extract it from data with classes, "
            "such as a folder with a subfolder a class"
        )
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise FeatureFileError(
            f"{path}: damaged: labels are {labels.dtype} {labels.shape}; extract it again"
        )
    return torch.from_numpy(labels.astype("int64"))


def _numbered(labels: Tensor, classes: Tensor) -> Tensor:
    """Places of the labels among the sorted classes, -1 where a label is none of them."""
    place = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
    return torch.where(classes[place] == labels, place, -1)


def _check_pair(train: Embeddings, test: Embeddings) -> None:
    """Raise InputError if two files are not of one checkpoint, or are of the same samples."""
    for key, meaning in (
        ("sha256", "another checkpoint"),
        ("branch", "another branch"),
        ("image_size", "another image size"),
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
    if embeddings.clean is None or embeddings.clean.shape[0] != len(labels):
        raise FeatureFileError(
            f"{embeddings.file}: damaged: {len(labels)} labels for other samples; extract it again"
        )


CHUNK = 64 * 2**20  # bytes read at a time
ROWS_A_CHUNK = 8192  # of a tensor in memory, which bounds what is computed at a time
WIDEST_GAP = 64  # unwanted rows that are read along rather than reading twice


@dataclass(frozen=True)
class Rows:
    """n embeddings of d dimensions, float32, on the CPU unless they were held elsewhere."""

    count: int
    dim: int
    chunks: Callable[[], Iterator[Tensor]]  # all rows in order: [c, d], ...
    gather: Callable[[Tensor], Tensor]  # row numbers [w] -> those rows [w, d]

    @property
    def size(self) -> int:
        """Bytes that they take in memory."""
        return 4 * self.count * self.dim


def held(rows: Tensor) -> Rows:
    """Rows [n, d] that are in memory."""
    rows = rows.float()
    return Rows(
        rows.shape[0],
        rows.shape[1],
        lambda: iter(torch.split(rows, ROWS_A_CHUNK)),
        lambda at: rows[at],
    )


def stored(embeddings: Embeddings, index: Tensor) -> Rows:
    """The clean embeddings of some samples of a file.

    index: sample numbers [n], ascending. Reading in order verifies the file's checksums and raises
    FeatureFileError where one does not match.
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
        wanted, place = index[at].sort()
        out = torch.empty(len(at), embeddings.shape[2])
        begins = 1 + (wanted.diff() > WIDEST_GAP).nonzero().flatten()
        for run, places in zip(
            wanted.tensor_split(begins), place.tensor_split(begins), strict=True
        ):
            first = int(run[0])
            found = read(first, int(run[-1]) + 1).index_select(0, run - first)
            out.index_copy_(0, places, found.float())
        return out

    return Rows(len(index), embeddings.shape[2], chunks, gather)


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers 0 .. count - 1 in two parts by seed, each ascending; the second has `share` of them.

    Neither part is empty where count is at least two.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    second = min(max(1, round(share * count)), count - 1)
    return order[second:].sort().values, order[:second].sort().values
