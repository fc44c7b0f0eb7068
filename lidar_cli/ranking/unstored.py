"""Scores of embeddings that are never stored: each batch is added to moments and dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core.noise import contrast_samples
from lidar_cli.data.dataset import Samples
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    at_size_that_fits,
    embed_all,
    find_batch_size,
    measure_dense,
)
from lidar_cli.extraction.plan import Plan, set_image_size
from lidar_cli.features.embeddings import Chunk, Embeddings, Names, StoredArray
from lidar_cli.features.writer import as_storage_type
from lidar_cli.runtime.device import MEMORY_SHARE, free_memory, scoring_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, ranked_metrics
from lidar_cli.scoring.intervals import Grouping
from lidar_cli.scoring.run import score_moments, with_intervals
from lidar_cli.scoring.saved import ScoreWithoutIntervals
from lidar_cli.scoring.streaming import LayerMoments, enough_memory
from lidar_cli.settings import PATCHES, OrderSettings, RankSettings


def score_unstored(
    model: EmbeddingModel, source: ViewSource, settings: RankSettings, progress: Progress
) -> ScoreWithoutIntervals:
    """The score of one checkpoint, without a feature file.

    Raises what `embed_all` and `score_layer` raise.
    """
    plan, device = model.plan, scoring_device(model.device)
    name, wanted = plan.provenance["checkpoint"], ranked_metrics(settings)
    set_image_size(model.embedder, plan)

    def attempt(batch_size: int) -> tuple[MomentSink, int]:
        sink = MomentSink(plan, name, settings, device, int(free_memory() * MEMORY_SHARE))
        embed_all(model, source, batch_size, sink, progress)
        return sink, batch_size

    fixed = settings.batch_size
    size = fixed or find_batch_size(model)
    sink, batch_size = at_size_that_fits(size, attempt, fixed is not None)
    embeddings = sink.embeddings
    if PATCHES in plan.layout.widths:
        dense = measure_dense(model, source, batch_size, progress)
        embeddings = replace(embeddings, dense=dense)
    with enough_memory(embeddings):
        scored = score_moments(
            embeddings, settings, sink.moments, wanted, progress, settings.confidence
        )
    provenance = plan.provenance | {"batch_size": batch_size}
    return ScoreWithoutIntervals(scored, provenance, embeddings.once)


def add_intervals(
    computed: ScoreWithoutIntervals,
    samples: Samples,
    settings: RankSettings,
    groups: Grouping | None,
) -> Score:
    """The score with intervals at the settings' level. groups: as in `score_layer`."""
    score = replace(computed.score, provenance=computed.provenance)
    rows = score.rankme_rows
    assert rows is not None
    numbers = None
    if groups is not None:
        names = Names(samples.ids[:rows], samples.labels and samples.labels[:rows])
        numbers = groups.of_names(samples.data, names)
    reason = computed.why_no_influences
    level = settings.confidence
    return with_intervals(score, score.computed, score.influences, rows, level, reason, numbers)


class MomentSink:
    """Adds the embeddings of a plan's one layer to their moments, on the `device`.

    If all embeddings fit into `room` bytes of main memory, they are kept there too, for statistics
    that need a second pass; otherwise only the samples that the noise edge reads again are stored.
    name: of the embeddings, in messages.
    """

    def __init__(
        self, plan: Plan, name: str, settings: OrderSettings, device: torch.device, room: int
    ) -> None:
        layout = plan.layout
        ((self._layer, d),) = layout.widths.items()
        self._storage = layout.storage
        self._memory, self._device = parse_size(settings.memory), device
        shapes = (layout.n_samples, layout.n_views, d), (layout.n_clean, d)
        dtype: torch.dtype = getattr(torch, layout.storage)
        size = sum(dtype.itemsize * int(np.prod(shape)) for shape in shapes)
        fits = size <= room
        self._rows = [torch.empty(shape, dtype=dtype) for shape in shapes] if fits else None
        self._contrasts = None
        if layout.n_views and not fits:
            self._contrasts = _ContrastSamples(*shapes[0], dtype)
        views, clean = (self._part(at, shape, dtype) for at, shape in enumerate(shapes))
        self.embeddings = Embeddings(
            name,
            self._layer,
            views if layout.n_views else None,
            clean,
            provenance=plan.provenance,
            once=None
            if fits
            else f"a second pass needs the embeddings, {size / 2**30:,.2f} GB, in memory, where "
            f"{room / 2**30:,.2f} GB may be used; leave out --no-store",
        )
        self.moments = LayerMoments(self.embeddings, settings, device, ranked_metrics(settings))
        self.span = range(layout.n_clean)
        self.done = np.zeros(layout.n_clean, bool)
        # Number of the first sample, views [c, q, d], clean [b, d], of consecutive runs of samples.
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    def write(
        self, samples: Sequence[int], views: Mapping[str, Tensor], clean: Mapping[str, Tensor]
    ) -> None:
        """Add a contiguous run of samples, from any device.

        views: layer -> [c, q, d], for the samples below n; clean: layer -> [b, d].
        Raises DegenerateFeatures for numbers that a feature file would refuse.
        """
        first, last = samples[0], samples[-1] + 1
        embedded, images = (
            as_storage_type(part[self._layer], self._storage, self._layer, first).to(self._device)
            for part in (views, clean)
        )
        for rows, part in zip(self._rows or (), (embedded, images), strict=bool(self._rows)):
            rows[first : first + len(part)] = part
        if self._contrasts is not None:
            self._contrasts.store(first, embedded)
        self._waiting.append((first, embedded, images))
        if sum(view.nbytes + one.nbytes for _, view, one in self._waiting) >= self._memory:
            self._add()
        self.done[first:last] = True
        if self.done.all():
            self._add()

    def _add(self) -> None:
        # Many samples at a time, since each addition reads and writes complete [d, d] scatters.
        if self._waiting:
            (first, *_), *parts = zip(*self._waiting, strict=True)
            views, clean = map(torch.cat, parts)
            self._waiting.clear()
            chunk = Chunk(first, first + len(clean), views if len(views) else None, clean)
            self.moments.update(chunk)

    def _part(self, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> StoredArray:
        def read(start: int, stop: int) -> Tensor:
            if self._rows is not None:
                return self._rows[at][start:stop]
            assert self._contrasts is not None
            return self._contrasts.read(start, stop)

        return StoredArray(shape, dtype.itemsize, read)


class _ContrastSamples:
    """Views [m, q, d] of the m of n samples that `contrast_samples` selects."""

    def __init__(self, n: int, q: int, d: int, dtype: torch.dtype) -> None:
        self._numbers = contrast_samples(n, q, d)
        self._views = torch.empty(len(self._numbers), q, d, dtype=dtype)

    def store(self, first: int, views: Tensor) -> None:
        """Store the contrast samples among a run of samples that begins with number `first`."""
        low, high = torch.searchsorted(self._numbers, torch.tensor([first, first + len(views)]))
        self._views[low:high] = views[self._numbers[low:high] - first]

    def read(self, start: int, stop: int) -> Tensor:
        """The views of samples start .. stop - 1, all of them contrast samples."""
        at = int(torch.searchsorted(self._numbers, start))
        return self._views[at : at + stop - start]
