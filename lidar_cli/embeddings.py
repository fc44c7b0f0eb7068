"""Stored embeddings of one layer, read as chunks of whole samples, whatever the file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

ReadRows = Callable[[int, int], Tensor]


class Stored(NamedTuple):
    """An array on disk whose first axis is samples: its shape, item size, and how to read it."""

    shape: tuple[int, ...]
    item_size: int  # bytes a number
    read: ReadRows  # (start, stop) -> samples start .. stop - 1


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
    once: str | None = None  # why the chunks cannot be read a second time
    content: str | None = None  # a digest of every number, where the file vouches for them

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, q, d); n samples and q = 0 views where there are none."""
        if self.views is not None:
            n, q, d = self.views.shape
            return n, q, d
        assert self.clean is not None
        return self.clean.shape[0], 0, self.clean.shape[1]

    def chunks(self, memory: int) -> Iterator[Chunk]:
        """Chunks of whole samples in order, each of about `memory` bytes on disk.

        Samples that have only a clean embedding come last, in chunks of their own.
        """
        with_views = self.views.shape[0] if self.views is not None else 0
        start, total = 0, max(with_views, self.clean.shape[0] if self.clean is not None else 0)
        while start < total:
            has_views = start < with_views
            parts = [part for part in (self.views if has_views else None, self.clean) if part]
            stop = min(
                start + max(1, memory // max(1, sum(_bytes_a_sample(part) for part in parts))),
                with_views if has_views else total,
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


def _bytes_a_sample(part: Stored) -> int:
    size = part.item_size
    for length in part.shape[1:]:
        size *= length
    return size
