"""All samples through one model into a sink: decode, view, embed and take in, overlapping.

Decoding threads run ahead; one thread makes views while the model works on the batch before; one
thread takes the embeddings in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.models.embedder import Loaded
from lidar_cli.errors import CheckpointError, SettingsError, first_line
from lidar_cli.extraction.batches import Batch, Pass, batches
from lidar_cli.extraction.plan import Plan
from lidar_cli.features.schema import Layout
from lidar_cli.runtime.cuda_streams import SideStream, record_event, wait_event
from lidar_cli.runtime.prefetch import prefetch
from lidar_cli.runtime.progress import Progress


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
    work: Pass, batch_size: int, sink: Sink, task: str, progress: Progress, until: int | None = None
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
    lane = SideStream(work.device)
    progress.update(task, total - left, total)
    with ThreadPoolExecutor(1) as taking:
        taken: Future[None] | None = None
        with prefetch(batches(work, batch_size, todo)) as coming:
            for batch in coming:
                batch.wait_event()
                views, clean = forward(work.plan, work.loaded, batch, work.device)
                made = record_event(work.device)
                if taken is not None:
                    taken.result()
                indices = range(batch.start, batch.stop)
                taken = taking.submit(_take, lane, sink, indices, views, clean, made)
                count += len(indices)
                progress.update(task, total - left + count, total)
        if taken is not None:
            taken.result()
    return count


def _take(
    lane: SideStream,
    sink: Sink,
    samples: Sequence[int],
    views: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    made: torch.cuda.Event | None,
) -> None:
    with lane.activate():
        wait_event([*views.values(), *clean.values()], made)
        sink.write(samples, views, clean)
    lane.synchronize()


def forward(
    plan: Plan, loaded: Loaded, batch: Batch, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings by layer, float32 on the device: views [c, q, d] of samples below n, clean [b, d].

    Raises CheckpointError if a layer gives something else.
    """
    with torch.inference_mode(), arithmetic(plan.precision, device):
        views, clean = _padded(loaded, batch, plan.layout)
        filled = batch.stop - batch.start
        below_n = max(0, min(batch.stop, plan.layout.n_samples) - batch.start)
        return (
            {layer: rows[:below_n].float() for layer, rows in views.items()},
            {layer: rows[:filled].float() for layer, rows in clean.items()},
        )


def _padded(
    loaded: Loaded, batch: Batch, layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of the padded batch by layer: views [b, q, d], none past n, and clean [b, d].

    Without masks views and clean images go through the model together.
    """
    layers, q = list(layout.widths), layout.n_views
    images, masked = batch.images, {}
    if batch.masks is not None:
        images, masked = batch.clean, loaded.embed_masked(batch.views, batch.masks, layers)
    rows = loaded.embed(images, layers)
    views, clean = {}, {}
    for layer, width in layout.widths.items():
        _check_shape(layer, rows[layer], len(images), width)
        of_views, clean[layer] = rows[layer].tensor_split([len(images) - batch.size])
        views[layer] = masked[layer] if masked else of_views.reshape(-1, max(1, q), width)
    return views, clean


def _check_shape(layer: str, rows: Tensor, count: int, width: int) -> None:
    if tuple(rows.shape) != (count, width):
        raise CheckpointError(
            f"layer {layer} came out as {tuple(rows.shape)} for {count} images; "
            f"expected ({count}, {width}), one embedding an image"
        )


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """The number format of the forward pass; float32 means it, without TF32."""
    # Not by `allow_tf32`, which torch refuses to read once a caller has set one of these.
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    )
    was = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    reduced = precision != "float32"
    dtype = getattr(torch, precision) if reduced else None
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=reduced):
            yield
    finally:
        for backend, precision_before in zip(backends, was, strict=True):
            backend.fp32_precision = precision_before


def compile_backbone(loaded: Loaded, device: torch.device) -> None:
    """Have torch compile the backbone when the first batch passes; views under masks are not.

    Raises SettingsError where torch finds no compiler for the device, or the module is the user's.
    """
    backbones = [module for module in loaded.modules.values() if isinstance(module, Backbone)]
    if not backbones:
        raise SettingsError(
            "--compile: is for architectures that lidar builds; compile a module of your own "
            "where you make it, and leave out --compile"
        )
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:  # torch's compilers have no common base of their errors
        raise SettingsError(
            f"--compile: torch cannot compile for {device} here: {first_line(error)}; install a "
            "compiler that torch knows (g++ for the CPU, triton for CUDA), or leave out --compile"
        ) from error
    for module in backbones:
        module.compile(dynamic=False)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
