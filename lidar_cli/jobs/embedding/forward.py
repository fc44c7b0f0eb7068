"""One batch through the model: images to embeddings by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lidar_cli.checkpoints import Loaded
from lidar_cli.errors import CheckpointError
from lidar_cli.features import Layout
from lidar_cli.jobs.embedding.batches import Batch
from lidar_cli.jobs.embedding.plan import Plan


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
