"""Embeds samples with one model and writes the embeddings; decoding, views and writing overlap.

While the model computes one batch, `ViewSource` decodes and augments the next, and another thread
writes the embeddings of the previous one. Batches are aligned to the global sample index and the
last is padded, so that a resumed run has the same batches as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.core.dense import MOST_IMAGES, DenseParts, TokenStructure
from lidar_cli.data.dataset import Samples
from lidar_cli.data.factory import Items
from lidar_cli.errors import CheckpointError, DegenerateFeatures, LidarError, first_line
from lidar_cli.extraction.plan import Plan
from lidar_cli.extraction.view_cache import ViewCache
from lidar_cli.runtime.device import cpu_count, free_memory, scoring_device
from lidar_cli.runtime.prefetch import (
    SideStream,
    copy_to_device,
    prefetch,
    record_event,
    wait_event,
)
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import PATCHES
from lidar_cli.views.masks import Mask, group_by_length, masks_on
from lidar_cli.views.parameters import draw_patches

T = TypeVar("T")
Embedded = tuple[dict[str, Tensor], dict[str, Tensor]]  # views and clean images, by layer


class Sink(Protocol):
    """A destination of embeddings, such as a feature file."""

    span: range  # the samples that it takes; its start is also the start of a batch
    done: np.ndarray  # [len(span)], whether a sample has been written

    def write(
        self, samples: Sequence[int], views: Mapping[str, Tensor], clean: Mapping[str, Tensor]
    ) -> None:
        """Write the embeddings of consecutive samples, from any device.

        views: layer -> [c, q, d], of the c samples with an index below n. clean: layer -> [b, d].
        """


@dataclass(frozen=True)
class EmbeddingModel:
    """A model on its device, with the layers, image size and precision of a plan."""

    plan: Plan
    embedder: Embedder
    device: torch.device

    def forward(self, batch: Batch) -> Embedded:
        """Float32 embeddings on the device: views [c, q, d] of samples below n, clean [b, d].

        Raises CheckpointError if a layer's shape differs from the checkpoint's description.
        """
        rows = self.plan.layout.within(range(batch.start, batch.stop))
        with torch.inference_mode(), forward_precision(self.plan.precision, self.device):
            views, clean = self._forward_padded(batch)
            return (
                {layer: values[: rows.n_samples].float() for layer, values in views.items()},
                {layer: values[: rows.n_clean].float() for layer, values in clean.items()},
            )

    def _forward_padded(self, batch: Batch) -> Embedded:
        """Embeddings of the padded batch: views [b, q, d], none past n, and clean [b, d].

        Without masks, views and clean images pass through the model together.
        """
        layout = self.plan.layout
        layers = list(layout.widths)
        images, masked = batch.images, {}
        if batch.masks is not None:
            images = batch.clean
            masked = self.embedder.embed_masked(batch.views, batch.masks, layers)
        draws = self._patch_draws(batch, len(images)) if PATCHES in layers else None
        rows = self._embed(images, layers, draws)
        views, clean = {}, {}
        for layer, width in layout.widths.items():
            shape = tuple(rows[layer].shape)
            if shape != (len(images), width):
                raise CheckpointError(
                    f"layer {layer} came out as {shape} for {len(images)} inputs; "
                    f"expected ({len(images)}, {width}), one embedding an input",
                    code="layer-shape",
                )
            n_clean = batch.size if layout.has_clean else 0
            plain, clean[layer] = rows[layer].tensor_split([len(images) - n_clean])
            views[layer] = (
                masked[layer] if masked else plain.reshape(-1, max(1, layout.n_views), width)
            )
        return views, clean

    def _embed(
        self, images: Tensor, layers: Sequence[str], draws: Tensor | None
    ) -> dict[str, Tensor]:
        """As `Embedder.embed`; raises CheckpointError for items that the model cannot take."""
        try:
            return self.embedder.embed(images, layers, draws)
        except (LidarError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch and timm refuse shapes by errors of many kinds
            if self.plan.item_shape is None:
                raise
            raise CheckpointError(
                f"the {self.embedder.description.arch} cannot embed items of shape "
                f"{list(self.plan.item_shape)}: {first_line(error)}; expected images [3, S, S] or, "
                "of a video model, clips [3, T, S, S]",
                code="item-shape",
            ) from error

    def _patch_draws(self, batch: Batch, count: int) -> Tensor:
        """Which patch of each of the batch's images is embedded, in the order of the images."""
        samples = range(batch.start, batch.start + batch.size)
        draws = draw_patches(self.plan.views.seed, samples, self.plan.layout.n_views)
        of_views = draws[:, :-1].ravel()[: count - batch.size]
        host = torch.from_numpy(np.concatenate([of_views, draws[:, -1]]))
        return copy_to_device([host], self.device)[0]


def embed_all(
    model: EmbeddingModel,
    source: ViewSource,
    batch_size: int,
    sink: Sink,
    progress: Progress,
    until: int | None = None,
) -> int:
    """Write the embeddings of all samples that the sink lacks; returns their number.

    until: stop after the batch that brings the sink to at least this many samples.

    Raises InputError if an image cannot be decoded, CheckpointError if a layer's shape differs from
    the checkpoint's description, torch.OutOfMemoryError if a batch does not fit, and the errors of
    `sink.write`.
    """
    first, stop = sink.span.start, sink.span.stop
    if until is not None:
        stop = min(stop, first + -(-(until - first) // batch_size) * batch_size)
    starts = [
        start
        for start in range(first, stop, batch_size)
        if not sink.done[start - first : start - first + batch_size].all()
    ]
    total, count = stop - first, 0
    missing = sum(min(start + batch_size, stop) - start for start in starts)
    stream = SideStream(model.device)
    progress.update("embedding", total - missing, total)
    with ThreadPoolExecutor(1) as writing:
        written: Future[None] | None = None
        with prefetch(source.batches(batch_size, starts)) as batches:
            for batch in batches:
                batch.wait_event()
                embedded = model.forward(batch)
                event = record_event(model.device)
                if written is not None:
                    written.result()
                samples = range(batch.start, batch.stop)
                written = writing.submit(_write, stream, sink, samples, embedded, event)
                count += len(samples)
                progress.update("embedding", total - missing + count, total)
        if written is not None:
            written.result()
    return count


def _write(
    stream: SideStream,
    sink: Sink,
    samples: Sequence[int],
    embedded: Embedded,
    event: torch.cuda.Event | None,
) -> None:
    views, clean = embedded
    with stream.activate():
        wait_event([*views.values(), *clean.values()], event)
        sink.write(samples, views, clean)
    stream.synchronize()


def measure_dense(
    model: EmbeddingModel, source: ViewSource, batch_size: int, progress: Progress
) -> DenseParts | str:
    """The parts of DSE from all patch tokens of the first clean images, or why there are none.

    A second pass, over MOST_IMAGES at most, so that a resumed run has the same parts.
    Raises InputError if an image cannot be decoded.
    """
    plan = model.plan
    count = min(plan.layout.n_clean, MOST_IMAGES)
    clean = replace(plan, layout=replace(plan.layout, n_samples=0, n_clean=count))
    structure = TokenStructure(plan.views.seed)
    starts = range(0, count, batch_size)
    try:
        with prefetch(
            replace(source, plan=clean, cache=None).batches(batch_size, starts)
        ) as batches:
            for batch in batches:
                batch.wait_event()
                samples = range(batch.start, batch.stop)
                with forward_precision(plan.precision, model.device):
                    tokens = model.embedder.patch_tokens(batch.clean)[: len(samples)].float()
                tokens = tokens.to(scoring_device(model.device))
                draws = torch.from_numpy(draw_patches(plan.views.seed, samples, 0)[:, 0])
                structure.update(tokens, draws)
                progress.update("patch tokens", batch.stop, count)
        return structure.parts()
    except DegenerateFeatures as error:
        return str(error)


@contextmanager
def forward_precision(precision: str, device: torch.device) -> Iterator[None]:
    """A context in which the forward pass runs in `precision`; float32 excludes TF32."""
    # Not `allow_tf32`: torch refuses to read it once a caller has set `fp32_precision`.
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    reduced = precision != "float32"
    dtype = getattr(torch, precision) if reduced else None
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=reduced):
            yield
    finally:
        for backend, fp32_precision in zip(backends, before, strict=True):
            backend.fp32_precision = fp32_precision


# Pixels in one forward pass: enough to keep the device busy.
BATCH_PIXELS = {"cpu": 64 * 224**2, "cuda": 1024 * 224**2}
MOST_SAMPLES_A_BATCH = 256
# Share of free device memory for a batch; the rest is for making views and for fragmentation.
USABLE_SHARE = 0.6
# Batches in memory in addition to that in the model: the next, and the one being assembled.
BATCHES_AHEAD = 2


def find_batch_size(model: EmbeddingModel) -> int:
    """The number of samples a batch that keeps the device busy and fits its memory.

    On CUDA it follows from the peak memory of a forward pass with one sample.
    """
    plan, device = model.plan, model.device
    size, masks = plan.views.image_size, plan.views.masks([0])
    images = plan.layout.n_views + 1
    if masks is not None and plan.views.differ_by_masks:  # one forward for each length of masks
        images = max(map(len, group_by_length(masks)))
    if plan.item_shape is not None:
        size, images = math.ceil(math.sqrt(math.prod(plan.item_shape) / 3)), max(1, images - 1)
    most = math.floor(BATCH_PIXELS[device.type] / (size**2 * images))
    most = max(1, min(MOST_SAMPLES_A_BATCH, most, plan.layout.n_clean))
    if device.type != "cuda" or most == 1:
        return most
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    blank = _blank(model)
    try:
        with torch.compiler.set_stance("force_eager"):  # compile once only, at the final size
            model.forward(blank)
    except torch.OutOfMemoryError:
        return 1
    sample_bytes = torch.cuda.max_memory_allocated(device) - before
    sample_bytes += BATCHES_AHEAD * blank.images.nbytes
    del blank
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return samples_that_fit(free, sample_bytes, most)


def samples_that_fit(free: int, sample_bytes: int, most: int) -> int:
    """The number of samples of `sample_bytes` each, 1 to `most`, that fit `free` bytes."""
    return max(1, min(most, math.floor(free * USABLE_SHARE / max(1, sample_bytes))))


def at_size_that_fits(size: int, attempt: Callable[[int], T], fixed: bool) -> T:
    """The result of `attempt`, called with size, size / 2, ... until one fits into memory.

    fixed: try `size` only. Raises CheckpointError if no size that is tried fits.
    """
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError as error:
            if fixed and size > 1:
                raise CheckpointError(
                    f"the device's memory does not hold a batch of {size} samples, all their views "
                    "together; give a smaller --batch-size",
                    code="batch-too-large",
                ) from error
            if size == 1:
                raise CheckpointError(
                    "the device's memory does not hold one sample, all its views together; "
                    "lower -q or --image-size, use --precision bfloat16, or --device cpu",
                    code="sample-too-large",
                ) from error
        size //= 2
        torch.cuda.empty_cache()


def _blank(model: EmbeddingModel) -> Batch:
    """A batch of one sample with all its images, black."""
    views, side = model.plan.views, model.plan.views.image_size
    images = 2 if views.differ_by_masks else views.n_views + 1
    masks = views.masks([0])
    shape: tuple[int, ...] = (views.channels, side, side)
    if model.plan.item_shape is not None:
        images, shape = max(1, views.n_views), model.plan.item_shape
    return Batch(
        0,
        1,
        torch.zeros(images, *shape, device=model.device),
        None if masks is None else masks_on(masks, model.device),
        1,
        record_event(model.device),
    )


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
        if isinstance(self.samples, Items):
            yield from self._own_batches(self.samples, size, starts)
            return
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
                images = [future.result() for future in futures.values()]
                with stream.activate():
                    decoded = dict(zip(futures, copy_to_device(images, self.device), strict=True))
                    batch = self._assemble(start, min(start + size, total), size, decoded)
                    batch = replace(batch, ready=record_event(self.device))
                yield batch
                del batch  # before the next is assembled: one batch here, not two
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stream.synchronize()

    def _own_batches(self, items: Items, size: int, starts: Sequence[int]) -> Iterator[Batch]:
        """As `batches`, of the user's samples: their own views, or the samples themselves."""
        stream = SideStream(self.device)
        blocks = items.batches(starts, size, self.workers or 0)
        try:
            for start, block in zip(starts, blocks, strict=True):
                padding = block[-1:].expand(size - len(block), *block.shape[1:])
                padded = torch.cat([block, padding])
                with stream.activate():
                    (inputs,) = copy_to_device([padded], self.device)
                    inputs = inputs.flatten(0, 1) if items.n_views else inputs
                    stop = start + len(block)
                    yield Batch(start, stop, inputs, None, size, record_event(self.device))
        finally:
            stream.synchronize()

    def _check_memory(self, size: int) -> None:
        """Raise CheckpointError if a batch would take more main memory than is free."""
        views = self.plan.views
        images = size * (2 if views.differ_by_masks else views.n_views + 1)
        pixels = views.channels * views.image_size**2
        need, free = BATCH_COPIES * images * pixels * 4, free_memory()
        if self.device.type == "cpu" and need > free:
            raise CheckpointError(
                f"{images:,} images of {views.image_size} px, those of a batch of {size}, take "
                f"{need / 2**30:,.2f} GB in memory and {free / 2**30:,.2f} GB are free; lower -q, "
                "--image-size or --batch-size",
                code="batch-too-large",
            )

    def _decode(self, sample: int) -> Tensor:
        return self.samples.decode(sample, self.plan.views.channels)

    def _assemble(self, start: int, stop: int, size: int, decoded: dict[int, Tensor]) -> Batch:
        """One batch. decoded: image by sample; the views of all other samples are in the cache."""
        views_of = self._make_views(decoded)
        views_of |= self._cached([i for i in range(start, stop) if i not in views_of])
        parts = [views_of[i] for i in range(start, stop)]
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
            masks = masks_on(masks, self.device)
        return Batch(start, stop, images, masks, size)

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

    def _cached(self, samples: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """As `_make_views`, of samples in the cache; those in main memory in one copy."""
        if self.cache is None:
            return {}
        images = copy_to_device([self.cache.images(i) for i in samples], self.device)
        return {i: (one[:-1], one[-1]) for i, one in zip(samples, images, strict=True)}
