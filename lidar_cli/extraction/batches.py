"""Samples to batches of normalised images, in the order and memory format that the model takes.

Decoding threads run ahead. Batches lie on the global sample index and the last is padded, so that a
resumed run passes the very same batches through the model as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.checkpoints.models.embedder import Loaded
from lidar_cli.data.dataset import Samples
from lidar_cli.errors import CheckpointError
from lidar_cli.extraction.plan import Plan
from lidar_cli.extraction.view_cache import ViewStore
from lidar_cli.runtime.cuda_streams import SideStream, record_event, wait_event
from lidar_cli.runtime.device import cpu_count, free_memory
from lidar_cli.views.masks import Mask

MOST_WORKERS = 16
COPIES = 2  # of a batch: as its views are drawn, and as the model takes them


@dataclass(frozen=True)
class Pass:
    """All that takes part when the samples of a plan go through one model.

    store: views that other passes drew, and that they will read; None to draw them here.
    """

    plan: Plan
    loaded: Loaded
    samples: Samples
    device: torch.device
    workers: int | None = None  # decoding threads
    store: ViewStore | None = None


@dataclass(frozen=True)
class Batch:
    """Samples start .. stop - 1, padded to b; b is the batch size.

    images: all views of sample start, of the next, ..., then the clean ones: [b v + b, 3, S, S]
    with v = q, or 1 where masks alone differ, or 0 past n.
    """

    start: int
    stop: int
    images: Tensor
    masks: list[Mask] | None  # of each of the q views
    size: int  # b
    made: torch.cuda.Event | None = None

    def wait_event(self) -> None:
        """Let the work that this thread queues from now on read the batch."""
        masks = (
            tensor
            for mask in self.masks or ()
            for tensor in (mask.seen, mask.targets, mask.compared)
            if tensor is not None
        )
        wait_event([self.images, *masks], self.made)

    @property
    def clean(self) -> Tensor:
        """Un-augmented images [b, 3, S, S]."""
        return self.images[len(self.images) - self.size :]

    @property
    def views(self) -> Tensor:
        """Views [b, v, 3, S, S]."""
        views = self.images[: len(self.images) - self.size]
        return views.reshape(self.size, -1, *views.shape[1:])


def batches(work: Pass, size: int, starts: Sequence[int]) -> Iterator[Batch]:
    """The batches that begin at `starts`, decoded by threads that stay one batch ahead.

    On CUDA they are copied and drawn in a lane of their own.
    Raises InputError if an image cannot be decoded, CheckpointError if a batch does not fit into
    main memory.
    """
    total = work.plan.layout.n_clean
    _check_memory(work, size)
    lane = SideStream(work.device)
    pool = ThreadPoolExecutor(work.workers or min(MOST_WORKERS, cpu_count()))
    try:
        decoding: list[dict[int, Future[Tensor]]] = []
        coming = iter(starts)

        def decode_next() -> None:
            for start in coming:
                absent = (i for i in range(start, min(start + size, total)) if not _kept(work, i))
                decoding.append({i: pool.submit(_decode, work, i) for i in absent})
                return

        decode_next()
        for start in starts:
            decode_next()
            futures = decoding.pop(0)
            with lane.entered():
                fresh = {
                    i: future.result().to(work.device, non_blocking=True)
                    for i, future in futures.items()
                }
                batch = _assemble(work, start, min(start + size, total), size, fresh)
            yield batch
            del batch  # before the next is made: one batch here, not two
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lane.finish()


def _check_memory(work: Pass, size: int) -> None:
    """Raise CheckpointError if a batch would take more main memory than is free."""
    views = work.plan.views
    images = size * (2 if views.alike else views.n_views + 1)
    need, free = COPIES * images * 3 * views.image_size**2 * 4, free_memory()
    if work.device.type == "cpu" and need > free:
        raise CheckpointError(
            f"{images:,} images of {views.image_size} px, those of a batch of {size}, take "
            f"{need / 2**30:,.2f} GB in memory and {free / 2**30:,.2f} GB are free; lower -q, "
            "--image-size or --batch-size"
        )


def _kept(work: Pass, sample: int) -> bool:
    return work.store is not None and sample in work.store


def _decode(work: Pass, sample: int) -> Tensor:
    image = work.samples.decode(sample)
    return image.pin_memory() if work.device.type == "cuda" else image


def _assemble(work: Pass, start: int, stop: int, size: int, fresh: dict[int, Tensor]) -> Batch:
    """One batch from decoded images by sample; those that are not among them are in the store."""
    drawn = _draw(work, fresh)
    parts = [drawn[i] if i in drawn else _stored(work, i) for i in range(start, stop)]
    with_views = max(0, min(stop, work.plan.layout.n_samples) - start)
    first, clean = parts[0]
    v = len(first)
    images = torch.empty(
        (size * (v + 1), *clean.shape),
        device=work.device,
        memory_format=work.loaded.memory_format,
    )
    for at in range(size):
        if with_views:
            views, _ = parts[min(at, with_views - 1)]
            images[at * v : (at + 1) * v].copy_(views, non_blocking=True)
        _, clean = parts[min(at, stop - start - 1)]
        images[size * v + at].copy_(clean, non_blocking=True)
    masks = None
    if with_views:
        masks = work.plan.views.masks([min(start + at, stop - 1) for at in range(size)])
    if masks is not None:
        masks = [mask.to(work.device) for mask in masks]
    return Batch(start, stop, images, masks, size, record_event(work.device))


def _draw(work: Pass, fresh: dict[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """Views [v, 3, S, S], v = 0 past n, and clean image [3, S, S] by sample; kept for others."""
    if not fresh:
        return {}
    below = [i for i in fresh if i < work.plan.layout.n_samples]
    maker, lie = work.plan.views, work.loaded.memory_format
    views = maker.views([fresh[i] for i in below], below, memory_format=lie) if below else ()
    clean = maker.clean(list(fresh.values()), memory_format=lie)
    of_views = dict(zip(below, views, strict=True))
    drawn = {i: (of_views.get(i, one[None][:0]), one) for i, one in zip(fresh, clean, strict=True)}
    if work.store is not None:
        for i, (some, one) in drawn.items():
            work.store.keep(i, torch.cat([some, one[None]]))
    return drawn


def _stored(work: Pass, sample: int) -> tuple[Tensor, Tensor]:
    assert work.store is not None
    images = work.store.images(sample)
    return images[:-1], images[-1]
