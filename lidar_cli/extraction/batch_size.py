"""How many samples pass through the model at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from lidar_cli.errors import CheckpointError
from lidar_cli.extraction.batches import Batch, Pass
from lidar_cli.extraction.engine import forward
from lidar_cli.runtime.cuda_streams import record_event
from lidar_cli.views.masks import group_by_length

# Pixels that pass through the model at a time: enough images to fill the device at 224 px.
BATCH_PIXELS = {"cpu": 64 * 224**2, "cuda": 1024 * 224**2}
MOST_SAMPLES_A_BATCH = 256
# Of free device memory: the rest is for views in the making and for what an allocator cannot use.
MARGIN = 0.6
AHEAD = 2  # batches beside the one in the model: one that is ready, one in the making
T = TypeVar("T")


def find_batch_size(work: Pass) -> int:
    """Samples a batch: as many as keep the device busy and fit its memory.

    On CUDA one sample goes through the model, and what it took at most tells how many will fit.
    """
    plan, device = work.plan, work.device
    size, masks = plan.views.image_size, plan.views.masks([0])
    images = plan.layout.n_views + 1
    if masks is not None and plan.views.differ_by_masks:
        images = max(map(len, group_by_length(masks)))
    most = math.floor(BATCH_PIXELS[device.type] / (size**2 * images))
    most = max(1, min(MOST_SAMPLES_A_BATCH, most, plan.layout.n_clean))
    if device.type != "cuda" or most == 1:
        return most
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    blank = _blank(work)
    try:
        with torch.compiler.set_stance("force_eager"):  # one compilation, at the size that is used
            forward(plan, work.loaded, blank, device)
    except torch.OutOfMemoryError:
        return 1
    one = torch.cuda.max_memory_allocated(device) - before + AHEAD * blank.images.nbytes
    del blank
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return samples_that_fit(free, one, most)


def samples_that_fit(free: int, one: int, most: int) -> int:
    """Samples a batch, at most `most`, of which each takes `one` bytes, in `free` bytes."""
    return max(1, min(most, math.floor(free * MARGIN / max(1, one))))


def at_size_that_fits(size: int, attempt: Callable[[int], T], fixed: bool) -> T:
    """What `attempt` gives at the first of size, size / 2, ... that memory suffices for.

    fixed: at `size` alone. Raises CheckpointError if memory does not suffice, not even for a single
    sample.
    """
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError as error:
            if fixed and size > 1:
                raise CheckpointError(
                    f"the device's memory does not hold a batch of {size} samples, all their views "
                    "together; give a smaller --batch-size"
                ) from error
            if size == 1:
                raise CheckpointError(
                    "the device's memory does not hold one sample, all its views together; "
                    "lower -q or --image-size, use --precision bfloat16, or --device cpu"
                ) from error
        size //= 2
        torch.cuda.empty_cache()


def _blank(work: Pass) -> Batch:
    """A batch of one sample, black, of all the images that a sample has."""
    views, side = work.plan.views, work.plan.views.image_size
    images = 2 if views.differ_by_masks else views.n_views + 1
    masks = views.masks([0])
    return Batch(
        0,
        1,
        torch.zeros(images, 3, side, side, device=work.device),
        None if masks is None else [mask.to(work.device) for mask in masks],
        1,
        record_event(work.device),
    )
