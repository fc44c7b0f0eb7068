"""Embeddings of one checkpoint as rows, in memory or in a file too large for it.

A probe reads rows in two ways: all of them in order, a chunk at a time, and in windows of its own
order. Files are read by chunks that fit `CHUNK` bytes in the first case and by runs of neighbouring
rows in the second, so that memory is bounded whatever the file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.embeddings import Embeddings

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
