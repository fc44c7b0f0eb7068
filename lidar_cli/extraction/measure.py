"""What an extraction will take, from batches that are measured and dropped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lidar_cli.data.open import open_samples
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    at_size_that_fits,
    find_batch_size,
)
from lidar_cli.extraction.plan import Plan, make_plan, set_image_size
from lidar_cli.extraction.run import note_data, note_precision, open_with
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings
from lidar_cli.views.methods import find_recipe


@dataclass(frozen=True)
class Measured:
    """Seconds per sample, with all its views, and bytes of memory with a batch of this size.

    drawing: how many of the seconds the views take, which a later checkpoint that sees the same
    views does not need. memory: the peak on the device, or what the process takes if that computes
    on the CPU.
    """

    seconds: float
    drawing: float
    memory: int
    batch_size: int


def measure(model: EmbeddingModel, source: ViewSource, batch_size: int | None) -> Measured:
    """Embed the first two batches, or the only one; the last of them counts.

    Raises as `extract`.
    """
    plan, device = model.plan, model.device
    set_image_size(model.embedder, plan)

    def attempt(size: int) -> Measured:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        starts = [start for start in (0, size) if start < plan.layout.n_clean]
        seconds, drawing, begun = 0.0, 0.0, time.monotonic()
        for batch in source.batches(size, starts):
            batch.wait_event()
            drawn = _now(device)
            model.forward(batch)
            now, samples = _now(device), batch.stop - batch.start
            seconds, drawing, begun = (now - begun) / samples, (drawn - begun) / samples, now
        return Measured(seconds, drawing, _memory(device), size)

    size = batch_size or find_batch_size(model)
    return at_size_that_fits(size, attempt, batch_size is not None)


def _now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


def measure_checkpoint(
    checkpoint: Path, settings: ExtractSettings, progress: Progress
) -> tuple[Plan, Measured]:
    """The plan of an extraction and what it takes; nothing is written. Raises as `extract`."""
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    device = find_device(settings.device)
    embedder = open_with(checkpoint, settings, device)
    samples = open_samples(settings)
    note_data(samples, settings, progress)
    note_precision(settings, device, progress)
    plan = make_plan(embedder.description, str(checkpoint), "", samples, settings, device)
    source = ViewSource(plan, samples, device, embedder.memory_format, settings.workers)
    return plan, measure(EmbeddingModel(plan, embedder, device), source, settings.batch_size)
