"""Embeddings of one layer, read in chunks of whole samples, independent of the file format.

Only what reads numbers imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from lidar_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.core.dense import DenseParts
    from lidar_cli.core.moments import ViewCounts

ReadRows: TypeAlias = "Callable[[int, int], Tensor]"


class StoredArray(NamedTuple):
    """An array on disk whose first axis is samples."""

    shape: tuple[int, ...]
    item_size: int  # bytes per number
    read: ReadRows  # (start, stop) -> samples start .. stop - 1
    rows: ReadRows | None = None  # the same of the array as rows [N, d], if these are contiguous


class Names(NamedTuple):
    """Ids [N] of samples, and class numbers [N], -1 unknown, if the data has labels.

    named: whether the file names its samples; else the ids are their numbers.
    """

    ids: Sequence[str]
    labels: Sequence[int] | None
    named: bool = True


class Chunk(NamedTuple):
    """Samples start .. stop - 1: their views [c, q, d] and clean embeddings [c, d].

    counts: q_i [c] if samples have unequal numbers of views, which are then rows [sum q_i, d].
    """

    start: int
    stop: int
    views: Tensor | None
    clean: Tensor | None
    counts: Tensor | None = None

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Views [k, q, d] of samples with equal numbers of views, and the samples' numbers [k].

        A number is counted from the first sample of the chunk.
        """
        if self.views is None:
            return
        import torch

        if self.counts is None:
            yield self.views, torch.arange(len(self.views))
            return
        ends = self.counts.cumsum(0)
        for q in torch.unique(self.counts).tolist():
            samples = (self.counts == q).nonzero().flatten()
            rows = (ends[samples] - q)[:, None] + torch.arange(q)
            yield self.views[rows], samples

    def by_sample(self) -> np.ndarray | list[np.ndarray]:
        """The views of each sample: [c, q, d], or c arrays [q_i, d]."""
        assert self.views is not None
        rows = self.views.numpy()
        return rows if self.counts is None else np.split(rows, self.counts.cumsum(0)[:-1].numpy())

    def first_views(self) -> Tensor | None:
        """The first view of each sample [c, d]."""
        if self.views is None or self.counts is None:
            return None if self.views is None else self.views[:, 0]
        return self.views[self.counts.cumsum(0) - self.counts]


def with_names(embeddings: Embeddings, read: Callable[[str], Sequence[Any] | None]) -> Embeddings:
    """Embeddings with the ids and labels of their file.

    read: the values of the array `ids` or `labels`, None if the file has none. Labels may be class
    numbers, -1 unknown, or class names. Raises InputError if there are more or fewer than samples.
    """
    values = {name: read(name) for name in ("ids", "labels")}
    count, q = len(embeddings.span), embeddings.shape[1]
    for name, some in values.items():
        if some is not None and q > 1 and len(some) == q * count:  # of rows that are views
            differ = any(some[k::q] != some[::q] for k in range(1, q))
            if differ and name == "ids":
                raise InputError(
                    f"{embeddings.file}: {len(some)} ids of rows, which differ within a sample of "
                    f"{q} rows; expected the views of a sample one after another; or group rows by "
                    "their ids: --group-by ids"
                )
            values[name] = some = None if differ else some[::q]
        if some is not None and len(some) != count:
            raise InputError(
                f"{embeddings.file}: {len(some)} {name} for {count} samples; expected one for each"
            )
    ids, labels = values["ids"], values["labels"]
    if ids is None and labels is None:
        return embeddings
    numbers = labels and class_numbers(labels)
    texts = list(map(str, range(count) if ids is None else ids))
    if len(set(texts)) < count and embeddings.views is not None:
        raise InputError(f"{embeddings.file}: an id belongs to several samples; expected distinct")
    return replace(embeddings, names=lambda: Names(texts, numbers, named=ids is not None))


def class_numbers(labels: Sequence[Any]) -> list[int]:
    """Class numbers themselves, or indices of class names in sorted order."""
    try:
        return [int(label) for label in labels]
    except ValueError:
        index = {name: at for at, name in enumerate(sorted(set(map(str, labels))))}
        return [index[str(label)] for label in labels]


@dataclass(frozen=True)
class Embeddings:
    """One layer of one file: views [n, q, d], clean [N, d] with N >= n, or only one of them.

    counts: q_i [n] if samples have unequal numbers of views; `views` is then [sum q_i, d], the rows
    of the first sample first.
    """

    file: str
    layer: str
    views: StoredArray | None
    clean: StoredArray | None
    clean_name: str = "clean"  # "rows" for a two-dimensional array, whose rows may be anything
    provenance: dict[str, Any] = field(default_factory=dict)
    note: str | None = None  # remark to show to the user
    verify: Callable[[Chunk], None] | None = None  # raises if a chunk fails its checksums
    in_memory: int = 0  # bytes that stay in memory while chunks are read
    once: str | None = None  # why chunks can be read only once, except those of `contrast_samples`
    content: str | None = None  # a digest of all numbers, if the file has checksums
    names: Callable[[], Names] | None = None  # None if samples have only numbers
    dense: DenseParts | str | None = None  # the parts of DSE, or why they could not be measured
    counts: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, q, d); q = 0 where there are no views, the smallest where they are unequal."""
        if self.views is not None and self.counts is not None:
            return len(self.counts), int(self.counts.min()), self.views.shape[1]
        if self.views is not None:
            n, q, d = self.views.shape
            return n, q, d
        assert self.clean is not None
        return self.clean.shape[0], 0, self.clean.shape[1]

    @property
    def span(self) -> range:
        """All samples, including those with only a clean embedding."""
        return range(max(self.shape[0], self.clean.shape[0] if self.clean else 0))

    @property
    def view_counts(self) -> ViewCounts:
        """q, or where they are unequal how many samples have each number of views."""
        if self.counts is None:
            return self.shape[1]
        import torch

        views, samples = torch.unique(self.counts, return_counts=True)
        return dict(zip(views.tolist(), samples.tolist(), strict=True))

    @cached_property
    def _first_rows(self) -> Tensor:
        """The number of the first row of each sample, and that of all rows [n + 1]."""
        import torch

        assert self.counts is not None
        return torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def read_views(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Views of samples start .. stop - 1 as in `Chunk`, and their `counts`."""
        assert self.views is not None
        if self.counts is None:
            return self.views.read(start, stop), None
        first, last = self._first_rows[start], self._first_rows[stop]
        return self.views.read(int(first), int(last)), self.counts[start:stop]

    def first(self, n: int, q: int, n_rows: int) -> Embeddings:
        """The first n samples with q views each, and n_rows clean embeddings, without checksums."""
        views, clean = self.views, self.clean
        return replace(
            self,
            views=views
            and StoredArray((n, q, *views.shape[2:]), views.item_size, _read_first_views(views, q)),
            clean=clean and StoredArray((n_rows, *clean.shape[1:]), clean.item_size, clean.read),
            verify=None,
            content=None,
        )

    def chunks(self, memory: int, span: range | None = None) -> Iterator[Chunk]:
        """Chunks of whole samples in order, each of about `memory` bytes on disk.

        span: the samples to read, all if None.
        Samples with only a clean embedding come last, in separate chunks.
        """
        with_views = self.shape[0] if self.views is not None else 0
        span = self.span if span is None else span
        start, total = span.start, span.stop
        while start < total:
            has_views = start < with_views
            stop = min(
                self._stop(start, memory, has_views),
                min(with_views, total) if has_views else total,
            )
            views, counts = self.read_views(start, stop) if has_views else (None, None)
            clean = self.clean.read(start, stop) if self.clean else None
            chunk = Chunk(start, stop, views, clean, counts)
            if self.verify is not None:
                self.verify(chunk)
            yield chunk
            del chunk, views, clean  # free its memory before the next is read
            start = stop

    def _stop(self, start: int, memory: int, has_views: bool) -> int:
        """The end of a chunk of about `memory` bytes that begins with sample `start`."""
        if has_views and self.views is not None and self.counts is not None:
            import torch

            size = _sample_bytes(self.views)
            clean = 0 if self.clean is None else _sample_bytes(self.clean)
            begins = self._first_rows * size + torch.arange(len(self._first_rows)) * clean
            end = torch.searchsorted(begins, begins[start] + memory, right=True)
            return max(start + 1, int(end) - 1)
        parts = [part for part in (self.views if has_views else None, self.clean) if part]
        return start + max(1, memory // max(1, sum(_sample_bytes(part) for part in parts)))


def with_equal_views(rows: StoredArray, q: int) -> StoredArray:
    """Rows [n*q, d] as views [n, q, d], those of a sample contiguous."""
    d = rows.shape[1]

    def read(start: int, stop: int) -> Tensor:
        return rows.read(start * q, stop * q).view(-1, q, d)

    return StoredArray((rows.shape[0] // q, q, d), rows.item_size, read)


def check_counts(file: str, counts: Tensor, what: str = "view") -> None:
    """Raise InputError if some samples have fewer than 2 views (or rows), given q_i [n]."""
    single = int((counts < 2).sum())
    if single:
        raise InputError(
            f"{file}: {single:,} of {len(counts):,} samples have a single {what}, and a spread "
            f"within samples needs 2: leave these samples out, or add {what}s of them",
            code="single-view",
        )


def _read_first_views(stored: StoredArray, q: int) -> ReadRows:
    return lambda start, stop: stored.read(start, stop)[:, :q]


def _sample_bytes(part: StoredArray) -> int:
    return part.item_size * math.prod(part.shape[1:])
