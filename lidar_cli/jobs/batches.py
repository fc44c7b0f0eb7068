"""Batches of views and what a model makes of them; the last batch is padded, see `extract`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.checkpoints import Loaded
from lidar_cli.errors import CheckpointError
from lidar_cli.features import Layout
from lidar_cli.jobs.plan import Plan
from lidar_cli.samples import Samples
from lidar_cli.views import Mask
from lidar_cli.views.masked import together

MOST_WORKERS = 16
# Pixels that pass through the model at a time: enough images to fill the device at 224 px.
BATCH_PIXELS = {"cpu": 64 * 224**2, "cuda": 1024 * 224**2}
MOST_SAMPLES_A_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """Samples start .. stop - 1, padded to the batch size: views (None if past n) and clean."""

    start: int
    stop: int
    views: Tensor | None  # [b, q, 3, S, S]; [b, 1, 3, S, S] where masks alone differ
    masks: list[Mask] | None  # of each view
    clean: Tensor  # [b, 3, S, S]


def make_batches(
    plan: Plan,
    size: int,
    samples: Samples,
    starts: Sequence[int],
    device: torch.device,
    workers: int | None,
) -> Iterator[Batch]:
    """The padded batches that begin at `starts`, decoded by threads that stay one batch ahead."""
    total = plan.layout.n_clean
    workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    try:
        decoding: list[list[Future[Tensor]]] = []
        coming = iter(starts)

        def decode_next() -> None:
            for start in coming:
                stop = min(start + size, total)
                decoding.append([pool.submit(samples.decode, i) for i in range(start, stop)])
                return

        decode_next()
        for start in starts:
            decode_next()
            images = [future.result().to(device, non_blocking=True) for future in decoding.pop(0)]
            stop = start + len(images)
            padded = [*images, *[images[-1]] * (size - len(images))]
            indices = [*range(start, stop), *[stop - 1] * (size - len(images))]
            views, masks = None, None
            if start < plan.layout.n_samples:
                views, masks = plan.views.views(padded, indices), _masks(plan, indices, device)
            yield Batch(start, stop, views, masks, plan.views.clean(padded))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _masks(plan: Plan, samples: Sequence[int], device: torch.device) -> list[Mask] | None:
    masks = plan.views.masks(samples)
    return None if masks is None else [mask.to(device) for mask in masks]


def embed(
    plan: Plan, loaded: Loaded, batch: Batch, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of one batch by layer: views [c, q, d] of the samples below n, clean [b, d]."""
    with torch.inference_mode(), arithmetic(plan.precision, device):
        views, clean = _forward(loaded, batch, plan.layout)
    filled, below_n = batch.stop - batch.start, 0
    if batch.views is not None:
        below_n = min(batch.stop, plan.layout.n_samples) - batch.start
    return (
        {layer: rows[:below_n].float().cpu() for layer, rows in views.items()},
        {layer: rows[:filled].float().cpu() for layer, rows in clean.items()},
    )


def _forward(
    loaded: Loaded, batch: Batch, layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of the padded batch by layer: views [b, q, d], none past n, and clean [b, d].

    Without masks views and clean images go through the model together.
    """
    layers, q = list(layout.widths), layout.n_views
    images, masked = batch.clean, {}
    if batch.views is not None and batch.masks is not None:
        masked = loaded.embed_masked(batch.views, batch.masks, layers)
    elif batch.views is not None:
        images = torch.cat([batch.views.flatten(0, 1), batch.clean])
    rows = loaded.embed(images, layers)
    views, clean = {}, {}
    for layer, width in layout.widths.items():
        _check_shape(layer, rows[layer], len(images), width)
        of_views, clean[layer] = rows[layer].tensor_split([len(images) - len(batch.clean)])
        views[layer] = masked[layer] if masked else of_views.reshape(-1, q, width)
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
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    reduced = precision != "float32"
    dtype = getattr(torch, precision) if reduced else None
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=reduced):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def find_batch_size(plan: Plan, loaded: Loaded, device: torch.device) -> int:
    """Samples a batch: as many as keep the device busy, halved until they fit its memory."""
    size, masks = plan.views.image_size, plan.views.masks([0])
    images = plan.layout.n_views + 1
    if masks is not None and plan.views.alike:  # clean images go alone, as do masks of one length
        images = max(map(len, together(masks)))
    most = math.floor(BATCH_PIXELS[device.type] / (size**2 * images))
    batch = max(1, min(MOST_SAMPLES_A_BATCH, most, plan.layout.n_clean))
    while device.type == "cuda" and batch > 1:
        try:
            embed(plan, loaded, _blank(plan, batch, device), device)
            break
        except torch.OutOfMemoryError:
            batch //= 2
            torch.cuda.empty_cache()
    return batch


def _blank(plan: Plan, b: int, device: torch.device) -> Batch:
    """A batch of black images, to try whether it fits."""
    views = 1 if plan.views.alike else plan.layout.n_views
    clean = torch.zeros(b, 3, plan.views.image_size, plan.views.image_size, device=device)
    expanded = clean[:, None].repeat(1, views, 1, 1, 1)
    return Batch(0, b, expanded, _masks(plan, [0] * b, device), clean)
