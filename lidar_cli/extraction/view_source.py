"""Decodes samples and makes batches of normalised views on the device.

Batches are aligned to the global sample index and the last is padded, so that a resumed run has
the same batches as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.data.dataset import Samples
from lidar_cli.errors import CheckpointError
from lidar_cli.extraction.plan import Plan
from lidar_cli.extraction.view_cache import ViewCache
from lidar_cli.runtime.cuda_streams import SideStream, record_event, wait_event
from lidar_cli.runtime.device import cpu_count, free_memory
from lidar_cli.views.masks import Mask

MOST_WORKERS = 16
BATCH_COPIES = 2  # of the pixels: one when views are made, one as the input of the model


@dataclass(frozen=True)
class Batch:
    """Images of samples start .. stop - 1, padded to the batch size b.

    images: the views of sample start, those of the next, ..., then the clean images:
    [b v + b, 3, S, S] with v = q, or 1 where views differ by their masks alone, or 0 past n.
    ready: the CUDA event that completes when the images can be read.
    """

    start: int
    stop: int
    images: Tensor
    masks: list[Mask] | None  # one for each of the q views
    size: int  # b
    ready: torch.cuda.Event | None = None

    def wait_event(self) -> None:
        """Make later work on the current stream wait until the batch can be read."""
        masks = (
            tensor
            for mask in self.masks or ()
            for tensor in (mask.seen, mask.targets, mask.compared)
            if tensor is not None
        )
        wait_event([self.images, *masks], self.ready)

    @property
    def clean(self) -> Tensor:
        """Un-augmented images [b, 3, S, S]."""
        return self.images[len(self.images) - self.size :]

    @property
    def views(self) -> Tensor:
        """Views [b, v, 3, S, S]."""
        views = self.images[: len(self.images) - self.size]
        return views.reshape(self.size, -1, *views.shape[1:])


@dataclass(frozen=True)
class ViewSource:
    """Makes the batches of views of one plan from its samples.

    memory_format: that of the images, as the model expects it.
    cache: views that other extractions made or will read; None for none.
    """

    plan: Plan
    samples: Samples
    device: torch.device
    memory_format: torch.memory_format
    workers: int | None = None  # decoding threads
    cache: ViewCache | None = None

    def batches(self, size: int, starts: Sequence[int]) -> Iterator[Batch]:
        """The batches that begin at `starts`; threads decode one batch ahead.

        On CUDA batches are copied and augmented on a side stream.
        Raises InputError if an image cannot be decoded, CheckpointError if a batch does not fit
        into main memory.
        """
        total = self.plan.layout.n_clean
        self._check_memory(size)
        stream = SideStream(self.device)
        pool = ThreadPoolExecutor(self.workers or min(MOST_WORKERS, cpu_count()))
        try:
            decoding: list[dict[int, Future[Tensor]]] = []
            coming = iter(starts)

            def decode_next() -> None:
                for start in coming:
                    missing = (
                        i
                        for i in range(start, min(start + size, total))
                        if self.cache is None or i not in self.cache
                    )
                    decoding.append({i: pool.submit(self._decode, i) for i in missing})
                    return

            decode_next()
            for start in starts:
                decode_next()
                futures = decoding.pop(0)
                with stream.activate():
                    decoded = {
                        i: future.result().to(self.device, non_blocking=True)
                        for i, future in futures.items()
                    }
                    batch = self._assemble(start, min(start + size, total), size, decoded)
                yield batch
                del batch  # before the next is assembled: one batch here, not two
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stream.synchronize()

    def _check_memory(self, size: int) -> None:
        """Raise CheckpointError if a batch would take more main memory than is free."""
        views = self.plan.views
        images = size * (2 if views.differ_by_masks else views.n_views + 1)
        need, free = BATCH_COPIES * images * 3 * views.image_size**2 * 4, free_memory()
        if self.device.type == "cpu" and need > free:
            raise CheckpointError(
                f"{images:,} images of {views.image_size} px, those of a batch of {size}, take "
                f"{need / 2**30:,.2f} GB in memory and {free / 2**30:,.2f} GB are free; lower -q, "
                "--image-size or --batch-size",
                code="batch-too-large",
            )

    def _decode(self, sample: int) -> Tensor:
        image = self.samples.decode(sample)
        return image.pin_memory() if self.device.type == "cuda" else image

    def _assemble(self, start: int, stop: int, size: int, decoded: dict[int, Tensor]) -> Batch:
        """One batch. decoded: image by sample; the views of all other samples are in the cache."""
        fresh = self._make_views(decoded)
        parts = [fresh[i] if i in fresh else self._cached(i) for i in range(start, stop)]
        n_with_views = self.plan.layout.within(range(start, stop)).n_samples
        v, *shape = parts[0][0].shape
        images = torch.empty(
            (size * (v + 1), *shape), device=self.device, memory_format=self.memory_format
        )
        for at in range(size):
            if n_with_views:
                views, _ = parts[min(at, n_with_views - 1)]
                images[at * v : (at + 1) * v].copy_(views, non_blocking=True)
            _, clean = parts[min(at, stop - start - 1)]
            images[size * v + at].copy_(clean, non_blocking=True)
        masks = None
        if n_with_views:
            masks = self.plan.views.masks([min(start + at, stop - 1) for at in range(size)])
        if masks is not None:
            masks = [mask.to(self.device) for mask in masks]
        return Batch(start, stop, images, masks, size, record_event(self.device))

    def _make_views(self, decoded: dict[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        """Sample -> views [v, 3, S, S], v = 0 past n, and clean image [3, S, S]; caches both."""
        if not decoded:
            return {}
        below_n = [i for i in decoded if i < self.plan.layout.n_samples]
        maker, memory_format = self.plan.views, self.memory_format
        views: Iterable[Tensor] = ()
        if below_n:
            images = [decoded[i] for i in below_n]
            views = maker.views(images, below_n, memory_format=memory_format)
        clean = maker.clean(list(decoded.values()), memory_format=memory_format)
        views_of = dict(zip(below_n, views, strict=True))
        pairs = {
            i: (views_of.get(i, image[None][:0]), image)
            for i, image in zip(decoded, clean, strict=True)
        }
        if self.cache is not None:
            for i, (of_sample, image) in pairs.items():
                self.cache.add(i, torch.cat([of_sample, image[None]]))
        return pairs

    def _cached(self, sample: int) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        images = self.cache.images(sample)
        return images[:-1], images[-1]
