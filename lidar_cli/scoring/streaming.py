"""One pass over stored embeddings, which computes the moments that the wanted metrics read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core.accumulate import map_pieces, parallel_in_portions_alone
from lidar_cli.core.metrics import METRICS, READ_FROM_ROWS, READ_FROM_SCATTERS, READ_FROM_SUBSET
from lidar_cli.core.moments import Moments, RowMoments, unit_rows
from lidar_cli.core.subset import MOST_VIEWS, ComparedViews, HalfMeans, SampleSubset, half_means
from lidar_cli.errors import BadRows, InputError
from lidar_cli.features.embeddings import Chunk, Embeddings, StoredArray
from lidar_cli.runtime.device import free_memory
from lidar_cli.runtime.prefetch import copy_to_device, prefetch
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import MetricSettings

CHUNKS_IN_MEMORY = 3  # one being read, one ready, one being summed
LEAST_MATRICES = 2  # [d, d] matrices in float64 at a time: moments, and what is added to them
BLOCK_NUMBERS = 2**21  # numbers in a float64 copy of normalised rows, 16 MB
# The most that one step allocates in float64: [d, d] matrices of an eigendecomposition, numbers a
# sample of the influences; and bytes of a chunk.
WORK_MATRICES, WORK_NUMBERS, WORK_CHUNK = 4, 16, 2**26


class State(Protocol):
    """An object that accumulates chunks of samples, in order."""

    def update(self, chunk: Chunk) -> None:
        """Add a chunk."""


class LayerMoments:
    """The moments of one layer: of its views, if it has any, and of the rows that RankMe reads.

    row_source: what these rows are: "clean", "view 0" or "rows".
    subsets: what the metrics of a subset of samples read, by `reads`; none if there are no views.
    noise_edge: the edge of view noise; None until `compute_score` sets it.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        settings: MetricSettings,
        device: torch.device,
        wanted: Collection[str],
    ) -> None:
        _, q, d = embeddings.shape  # of unequal q_i the smallest
        reads = {METRICS[name].reads for name in wanted}
        scatters, sphere = not reads.isdisjoint(READ_FROM_SCATTERS), "sphere" in reads
        self.views = (
            Moments(
                q if embeddings.counts is None else None,
                *(d, device),
                scatters=scatters,
                sphere=sphere,
            )
            if q > 0 and (scatters or sphere)
            else None
        )
        select = {"subset": None, "halves": partial(half_means, normalize=settings.normalize)}
        self.subsets: dict[str, SampleSubset] = {
            name: SampleSubset(select[name]) for name in READ_FROM_SUBSET if name in reads and q > 0
        }
        self.rows = RowMoments(d, device)
        self.row_source = embeddings.clean_name if embeddings.clean else "view 0"
        self.noise_edge: float | None = None
        self._reads_rows = not reads.isdisjoint(READ_FROM_ROWS)
        self._normalize = settings.normalize
        self._views_read = min(q, MOST_VIEWS)
        self._compared: dict[str, ComparedViews | HalfMeans] = {}

    def update(self, chunk: Chunk) -> None:
        """Add a chunk of samples."""
        self._compared = {}
        with parallel_in_portions_alone(self.rows.dim, self.rows.device):
            self._update(chunk)

    def _update(self, chunk: Chunk) -> None:
        if self.views is not None and chunk.views is not None:
            self.views.note_type(chunk.views.dtype)
        for block, samples in chunk.blocks():
            first = block if chunk.counts is None else block[:, : self._views_read].clone()
            for subset in self.subsets.values():
                subset.add(chunk.start + samples, first)
            if self.views is not None:
                for part in self._prepared(block):
                    self.views.update(part)
        clean = chunk.first_views() if chunk.clean is None else chunk.clean
        if clean is not None and self._reads_rows:
            for part in self._prepared(clean):
                self.rows.update(part)

    def merge(self, other: LayerMoments) -> LayerMoments:
        """The moments of both sets of samples together; neither operand changes."""
        both = copy(self)
        both._compared = {}
        both.rows = self.rows.merge(other.rows)
        if self.views is not None and other.views is not None:
            both.views = self.views.merge(other.views)
        both.subsets = {
            name: subset.merge(other.subsets[name]) for name, subset in self.subsets.items()
        }
        return both

    def compared(self, reads: str) -> ComparedViews | HalfMeans:
        """What the metrics of this `reads` read of the subset. Raises DegenerateFeatures as it."""
        if reads not in self._compared:
            subset = self.subsets[reads]
            collected = subset.collected().to(self.rows.device)
            if reads == "halves":
                halves = HalfMeans(collected, self._views_read, subset.unit_roundoff)
                self._compared[reads] = halves
            else:
                views = unit_rows(collected.double()) if self._normalize else collected
                self._compared[reads] = ComparedViews(views, subset.unit_roundoff)
        return self._compared[reads]

    def _prepared(self, part: Tensor) -> Iterator[Tensor]:
        if not self._normalize or not len(part):
            yield part
            return
        device, numbers = self.rows.device, part[:1].numel()
        for block in torch.split(part, max(1, BLOCK_NUMBERS // max(1, numbers))):
            (block,) = copy_to_device([block], device)
            unit = map_pieces(partial(_unit, block), len(block), numbers, device)
            yield torch.cat(unit)


def read_moments(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: Collection[str],
    progress: Progress,
) -> LayerMoments:
    """The moments of all samples, from one pass. Raises InputError as `read_into`."""
    moments = LayerMoments(embeddings, settings, device, wanted)
    read_into(moments, embeddings, settings, progress)
    return moments


def read_into(
    state: State, embeddings: Embeddings, settings: MetricSettings, progress: Progress
) -> None:
    """Update a state with all samples, read once in chunks that fit into `--memory`.

    Raises InputError if a number is not finite, with the count over the complete file.
    """
    read_span(state, embeddings, settings, progress, embeddings.span).refuse()


def read_span(
    state: State, embeddings: Embeddings, settings: MetricSettings, progress: Progress, span: range
) -> NonFinite:
    """Update a state with the samples of a span; returns the count of NaN and Inf.

    After a chunk with NaN or Inf the others are only checked. The next chunk is read while one is
    summed.
    """
    bad = NonFinite(embeddings)
    memory = parse_size(settings.memory) // CHUNKS_IN_MEMORY
    with prefetch(embeddings.chunks(memory, span)) as chunks:
        for chunk in chunks:
            if not bad.check(chunk):
                state.update(chunk)
            done = chunk.stop - span.start
            progress.update("reading", done, len(span))
            del chunk  # frees its memory before the next is read
    return bad


@contextmanager
def enough_memory(embeddings: Embeddings) -> Iterator[None]:
    """Raises InputError if memory is too small for a sample, the moments or the spectra."""
    _check_memory(embeddings)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        n, d = len(embeddings.span), embeddings.shape[2]
        # Of main memory, torch raises a plain RuntimeError. Its traceback still holds all matrices.
        is_typed = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_typed and _can_allocate(8 * (WORK_MATRICES * d * d + WORK_NUMBERS * n)):
            raise
        raise InputError(
            f"{embeddings.file}: {embeddings.layer}: not enough memory for moments of d = {d}, "
            f"{8 * d * d / 2**30:,.1f} GB each; fewer --metrics, or a larger machine"
        ) from error


def _can_allocate(size: int) -> bool:
    """Whether so many bytes, and a chunk of samples in addition, can be allocated now."""
    try:
        np.empty(size + WORK_CHUNK, np.uint8)
    except MemoryError:
        return False
    return True


def _check_memory(embeddings: Embeddings) -> None:
    """Raise InputError, before a row is read, if less memory is free than is needed in any case."""
    d, free = embeddings.shape[2], free_memory()
    parts = [part for part in (embeddings.views, embeddings.clean) if part is not None]
    for what, size in {
        f"moments of d = {d:,}": LEAST_MATRICES * 8 * d * d,
        "a single sample": max(_sample_bytes(embeddings, part) for part in parts),
        "the whole array": embeddings.in_memory,
    }.items():
        if size > free:
            raise InputError(
                f"{embeddings.file}: {embeddings.layer}: not enough memory for {what}: "
                f"{size / 2**30:,.1f} GB, of which {free / 2**30:,.1f} GB are free; expected "
                "embeddings [n, q, d] of fewer numbers a sample; or use a larger machine"
            )


def _sample_bytes(embeddings: Embeddings, part: StoredArray) -> int:
    """Bytes of a sample; of unequal numbers of views of the one with the most."""
    counts = embeddings.counts if part is embeddings.views else None
    rows = 1 if counts is None else int(counts.max())
    return rows * math.prod(part.shape[1:]) * part.item_size


def _unit(block: Tensor, some: slice) -> Tensor:
    return unit_rows(block[some].double())


class NonFinite:
    """Counts the samples with NaN or Inf in a file, for one error about all of them."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._of = f"{embeddings.file}: {embeddings.layer}"
        self._samples = 0
        self._values = 0
        self._first: int | None = None

    def check(self, chunk: Chunk) -> bool:
        """Whether this chunk or an earlier one has NaN or Inf."""
        bad = torch.zeros(chunk.stop - chunk.start, dtype=torch.int64)  # bad values in each sample
        for part in (chunk.views, chunk.clean):
            if part is not None and not _sums_finite(part):
                each = (~part.isfinite()).flatten(1).sum(dim=1)
                if part is chunk.views and chunk.counts is not None:
                    samples = torch.arange(len(bad)).repeat_interleave(chunk.counts)
                    each = torch.zeros_like(bad).index_add_(0, samples, each)
                bad += each
        if bad.any():
            if self._first is None:
                self._first = chunk.start + int(bad.nonzero()[0])
            self._samples += int((bad > 0).sum())
            self._values += int(bad.sum())
        return self._first is not None

    def merge(self, other: NonFinite) -> NonFinite:
        """The count over two parts of a file; neither operand changes."""
        both = copy(self)
        both._samples += other._samples
        both._values += other._values
        firsts = [one._first for one in (self, other) if one._first is not None]
        both._first = min(firsts, default=None)
        return both

    def refuse(self) -> None:
        """Raise BadRows if a chunk had NaN or Inf."""
        if self._first is not None:
            raise BadRows(
                f"{self._of}: {self._values} values are NaN or Inf, in {self._samples} samples, "
                f"the first is sample {self._first}; check the checkpoint or its precision"
            )


def _sums_finite(part: Tensor) -> bool:
    """True if sums of the numbers are finite, so that all numbers are; takes one read of them.

    False also if a sum of finite numbers overflows. The sums are in the type of the numbers, since
    torch would copy the numbers to sum them in another type.
    """
    numbers, device = part[:1].numel(), part.device
    return all(
        map_pieces(lambda some: bool(part[some].sum().isfinite()), len(part), numbers, device)
    )
