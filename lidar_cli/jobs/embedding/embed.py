"""All samples through one model into a sink: decode, view, embed and take in, overlapping.

Decoding threads run ahead; one thread makes views while the model works on the batch before; one
thread takes the embeddings in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lidar_cli.jobs.ahead import ahead
from lidar_cli.jobs.embedding.batches import Pass, batches
from lidar_cli.jobs.embedding.forward import forward
from lidar_cli.jobs.embedding.lane import Lane, mark, take_over
from lidar_cli.jobs.watch import Watcher


class Sink(Protocol):
    """Where embeddings go."""

    span: range  # the samples that it takes; it begins where a batch does
    done: np.ndarray  # [len(span)], whether a sample is in already

    def write(
        self, samples: Sequence[int], views: Mapping[str, Tensor], clean: Mapping[str, Tensor]
    ) -> None:
        """Take in a contiguous run of samples, from any device.

        views: layer -> [c, q, d] for those of the samples that are below n; clean: layer -> [b, d].
        """


def embed_all(
    work: Pass, batch_size: int, sink: Sink, task: str, watcher: Watcher, until: int | None = None
) -> int:
    """Put the embeddings of all samples that the sink lacks into it. How many these were.

    Batches lie on the index of all samples, whichever of them the sink takes.
    until: only whole batches, up to the one that holds so many samples.

    Raises InputError if an image cannot be decoded, CheckpointError if a layer's shape is not as
    described, torch.OutOfMemoryError if the batch does not fit, and what the sink raises.
    """
    first, stop = sink.span.start, sink.span.stop
    if until is not None:
        stop = min(stop, first + -(-(until - first) // batch_size) * batch_size)
    todo = [
        start
        for start in range(first, stop, batch_size)
        if not sink.done[start - first : start - first + batch_size].all()
    ]
    total = stop - first
    left = sum(min(start + batch_size, stop) - start for start in todo)
    count = 0
    lane = Lane(work.device)
    watcher.progress(task, total - left, total)
    with ThreadPoolExecutor(1) as taking:
        taken: Future[None] | None = None
        with ahead(batches(work, batch_size, todo)) as coming:
            for batch in coming:
                batch.take_over()
                views, clean = forward(work.plan, work.loaded, batch, work.device)
                made = mark(work.device)
                if taken is not None:
                    taken.result()
                indices = range(batch.start, batch.stop)
                taken = taking.submit(_take, lane, sink, indices, views, clean, made)
                count += len(indices)
                watcher.progress(task, total - left + count, total)
        if taken is not None:
            taken.result()
    return count


def _take(
    lane: Lane,
    sink: Sink,
    samples: Sequence[int],
    views: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    made: torch.cuda.Event | None,
) -> None:
    with lane.entered():
        take_over([*views.values(), *clean.values()], made)
        sink.write(samples, views, clean)
    lane.finish()
