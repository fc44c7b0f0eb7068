"""Embeddings of one layer, read in chunks of whole samples, independent of the file format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from lidar_cli.core.dense import DenseParts
from lidar_cli.errors import InputError

ReadRows = Callable[[int, int], Tensor]


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
    """Samples start .. stop - 1: their views [c, q, d] and clean embeddings [c, d]."""

    start: int
    stop: int
    views: Tensor | None
    clean: Tensor | None


def with_names(embeddings: Embeddings, read: Callable[[str], Sequence[Any] | None]) -> Embeddings:
    """Embeddings with the ids and labels of their file.

    read: the values of the array `ids` or `labels`, None if the file has none. Labels may be class
    numbers, -1 unknown, or class names. Raises InputError if there are more or fewer than samples.
    """
    values = {name: read(name) for name in ("ids", "labels")}
    count, q = len(embeddings.span), embeddings.shape[1]
    for name, some in values.items():
        if some is not None and q and len(some) == q * count:  # of rows that are views
            values[name] = some = some[::q]
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
    """One layer of one file: views [n, q, d], clean [N, d] with N >= n, or only one of them."""

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, q, d); q = 0 where there are no views."""
        if self.views is not None:
            n, q, d = self.views.shape
            return n, q, d
        assert self.clean is not None
        return self.clean.shape[0], 0, self.clean.shape[1]

    @property
    def span(self) -> range:
        """All samples, including those with only a clean embedding."""
        return range(max(part.shape[0] for part in (self.views, self.clean) if part is not None))

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
        with_views = self.views.shape[0] if self.views is not None else 0
        span = self.span if span is None else span
        start, total = span.start, span.stop
        while start < total:
            has_views = start < with_views
            parts = [part for part in (self.views if has_views else None, self.clean) if part]
            stop = min(
                start + max(1, memory // max(1, sum(_sample_bytes(part) for part in parts))),
                min(with_views, total) if has_views else total,
            )
            chunk = Chunk(
                start,
                stop,
                self.views.read(start, stop) if has_views and self.views else None,
                self.clean.read(start, stop) if self.clean else None,
            )
            if self.verify is not None:
                self.verify(chunk)
            yield chunk
            del chunk  # free its memory before the next is read
            start = stop


def _read_first_views(stored: StoredArray, q: int) -> ReadRows:
    return lambda start, stop: stored.read(start, stop)[:, :q]


def _sample_bytes(part: StoredArray) -> int:
    return part.item_size * math.prod(part.shape[1:])
