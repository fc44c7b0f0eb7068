"""Stored embeddings of one layer, read as chunks of whole samples, whatever the file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

ReadRows = Callable[[int, int], Tensor]


class Stored(NamedTuple):
    """An array on disk whose first axis is samples: its shape, item size, and how to read it."""

    shape: tuple[int, ...]
    item_size: int  # bytes a number
    read: ReadRows  # (start, stop) -> samples start .. stop - 1


class Names(NamedTuple):
    """Of samples: ids [N], and class numbers [N], -1 unknown, if the data has labels."""

    ids: Sequence[str]
    labels: Sequence[int] | None


class Chunk(NamedTuple):
    """Whole samples start .. stop - 1: their views [c, q, d] and clean embeddings [c, d]."""

    start: int
    stop: int
    views: Tensor | None
    clean: Tensor | None


@dataclass(frozen=True)
class Embeddings:
    """One layer of one file: views [n, q, d], clean [N, d] with N >= n, or only one of them."""

    file: str
    layer: str
    views: Stored | None
    clean: Stored | None
    clean_name: str = "clean"  # "rows" for a two-dimensional array of unknown origin
    provenance: dict[str, Any] = field(default_factory=dict)
    note: str | None = None  # what the reader should tell the user
    verify: Callable[[Chunk], None] | None = None  # raises if a chunk is not what was written
    in_memory: int = 0  # bytes that are held as long as any of it is read
    once: str | None = None  # why chunks cannot be read again; samples of `contrast_samples` can
    content: str | None = None  # a digest of every number, where the file vouches for them
    names: Callable[[], Names] | None = None  # None where samples have numbers alone

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, q, d); n samples and q = 0 views where there are none."""
        if self.views is not None:
            n, q, d = self.views.shape
            return n, q, d
        assert self.clean is not None
        return self.clean.shape[0], 0, self.clean.shape[1]

    @property
    def span(self) -> range:
        """All samples, those with views and those with a clean embedding alone."""
        return range(max(part.shape[0] for part in (self.views, self.clean) if part is not None))

    def first(self, n: int, q: int, n_rows: int) -> Embeddings:
        """The same layer as if it had only its first n samples, q views of each, and n_rows rows.

        Whether its chunks are what was written is not asked again.
        """
        views, clean = self.views, self.clean
        return replace(
            self,
            views=views and Stored((n, q, *views.shape[2:]), views.item_size, _views(views, q)),
            clean=clean and Stored((n_rows, *clean.shape[1:]), clean.item_size, clean.read),
            verify=None,
            content=None,
        )

    def chunks(self, memory: int, span: range | None = None) -> Iterator[Chunk]:
        """Chunks of whole samples in order, each of about `memory` bytes on disk.

        span: of the samples to read, all if None.
        Samples that have only a clean embedding come last, in chunks of their own.
        """
        with_views = self.views.shape[0] if self.views is not None else 0
        span = self.span if span is None else span
        start, total = span.start, span.stop
        while start < total:
            has_views = start < with_views
            parts = [part for part in (self.views if has_views else None, self.clean) if part]
            stop = min(
                start + max(1, memory // max(1, sum(_bytes_a_sample(part) for part in parts))),
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
            del chunk  # before the next is read: one chunk in memory, not two
            start = stop


def _views(stored: Stored, q: int) -> ReadRows:
    return lambda start, stop: stored.read(start, stop)[:, :q]


def _bytes_a_sample(part: Stored) -> int:
    size = part.item_size
    for length in part.shape[1:]:
        size *= length
    return size
