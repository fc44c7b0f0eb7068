"""Checkpoint and images to a feature file: decode once, view q times, embed, write.

Decoding threads run ahead; one thread makes views while the model works on the batch before; one
thread writes. Batches lie on the global sample index and the last is padded, so that a resumed run
passes the very same batches through the model as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar_cli.checkpoints import Description, Loaded, open_checkpoint, sha256, wrap_module
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.features import FeatureWriter, Layout, check_absent, partial_path, read_provenance
from lidar_cli.jobs.ahead import ahead
from lidar_cli.jobs.device import find_device
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import ExtractSettings, ModelSettings, SampleSettings
from lidar_cli.views import Recipe, Views, find_recipe

DEFAULT_IMAGE_SIZE = 224
MOST_WORKERS = 16
# Pixels that pass through the model at a time: enough images to fill the device at 224 px.
BATCH_PIXELS = {"cpu": 64 * 224**2, "cuda": 1024 * 224**2}
MOST_SAMPLES_A_BATCH = 256


@dataclass(frozen=True)
class Extraction:
    """What `extract` did."""

    path: Path
    widths: dict[str, int]  # layer -> d
    n_samples: int
    n_views: int
    n_clean: int
    batch_size: int
    embedded: int  # samples embedded now; fewer than n_clean after a resume
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of a feature file, before any is computed."""

    views: Views
    layout: Layout
    batch_size: int
    precision: str
    provenance: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What the embeddings mean: equal for files that are interchangeable in a ranking.

        Batch size, device and library versions change rounding only, and paths nothing at all.
        """
        return identity(self.provenance)

    @property
    def key(self) -> str:
        """A file name for the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]


def identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """The part of a provenance that says what the embeddings mean, as JSON gives it back."""
    told: dict[str, Any] = json.loads(json.dumps(provenance))
    for name in ("checkpoint", "batch_size", "device", "versions", "layer_reason"):
        told.pop(name, None)
    return told


def extract(model: torch.nn.Module, data: str, output: str | Path, **settings: Any) -> Extraction:
    """Embed the images of `data` with the user's own module and write a feature file.

    model: images [b, 3, S, S] -> embeddings [b, d], or a dict of layer -> embeddings.
    settings: fields of ExtractSettings, such as n_samples, n_views, seed, image_size, device.
    Raises what `extract_checkpoint` raises.
    """
    known = ExtractSettings(data=data, output=Path(output), **settings)
    device = find_device(known.device)
    samples = open_samples(known)
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    loaded = wrap_module(model).to(device)
    plan = make_plan(loaded, "", digest.hexdigest(), samples, known, device)
    return run(plan, loaded, samples, known, Path(output), device, Watcher())


def extract_checkpoint(
    checkpoint: Path, settings: ExtractSettings, watcher: Watcher | None = None
) -> Extraction:
    """Embed the samples that the settings name with a checkpoint and write a feature file.

    Raises CheckpointError, InputError, FeatureFileError or SettingsError, each before anything is
    computed where that can be.
    """
    watcher = watcher or Watcher()
    output = settings.output or Path(checkpoint.name.split(".")[0] + ".h5")
    if not settings.resume:
        check_absent(output, settings.overwrite)
    device = find_device(settings.device)
    find_recipe(settings.views, settings.pixel_stats)  # a mistyped name is told before the work
    loaded = open_with(checkpoint, settings).to(device)
    samples = open_samples(settings)
    plan = make_plan(loaded, str(checkpoint), sha256(checkpoint), samples, settings, device)
    if plan.provenance["layer_reason"]:
        watcher.note(f"{checkpoint}: {plan.provenance['layer_reason']}")
    return run(plan, loaded, samples, settings, output, device, watcher)


def open_with(checkpoint: Path, settings: ModelSettings) -> Loaded:
    """A checkpoint, opened as the settings say; raises what `open_checkpoint` raises."""
    return open_checkpoint(
        checkpoint,
        arch=settings.arch,
        model=settings.model,
        activation=settings.activation,
        format=settings.format,
        branch=settings.branch,
    )


def choose_layers(asked: str, available: Sequence[str]) -> list[str]:
    """Layer names from `--layer`; auto is the projector if there is one.

    Raises CheckpointError if a layer is not there.
    """
    if asked == "auto":
        return ["projector" if "projector" in available else "backbone"]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in available:
            raise CheckpointError(
                f"no layer {name!r} in this checkpoint; it has {', '.join(available)}: "
                f"use --layer {available[0]}"
            )
    return list(dict.fromkeys(names))


def choose_recipe(settings: SampleSettings, description: Description) -> Recipe:
    """The recipe that is asked for; for auto that of the method which trained the checkpoint.

    Where this program does not have that one, the default stands in. Raises SettingsError for a
    name that is not known.
    """
    stats: str = settings.pixel_stats
    if stats == "auto" and description.pixel_stats != "imagenet":
        stats = description.pixel_stats
    if settings.views == "auto" and description.recipe is not None:
        try:
            return find_recipe(description.recipe, stats)
        except SettingsError:
            pass
    return find_recipe(settings.views, stats)


def layer_reason(asked: str, available: Sequence[str]) -> str | None:
    """Why another layer than the projector was chosen, None if nothing need be said."""
    if asked != "auto" or "projector" in available:
        return None
    return "holds no projector, so the backbone is embedded"


def make_plan(
    loaded: Loaded,
    path: str,
    digest: str,
    samples: Samples,
    settings: ExtractSettings,
    device: torch.device,
) -> Plan:
    """Settings, checkpoint and samples brought together.

    path, digest: of the checkpoint. Raises CheckpointError for a layer or image size that the
    model cannot have, SettingsError for an unknown recipe or clean samples fewer than n.
    """
    n, q = settings.n_samples, settings.n_views
    clean = n if settings.clean_samples is None else settings.clean_samples
    if clean < n:
        raise SettingsError(f"--clean-samples {clean} is less than -n {n}; give at least n")
    recipe = choose_recipe(settings, loaded.description)
    size = _image_size(settings, loaded.description.image_size, samples)
    loaded.set_image_size(size)
    layers = choose_layers(settings.layer, list(loaded.description.widths))
    widths = {layer: loaded.description.widths[layer] for layer in layers}
    batch_size = settings.batch_size or _batch_size(loaded, layers, size, q, clean, device)
    provenance = {
        "checkpoint": path,
        "sha256": digest,
        "model_format": loaded.description.format,
        "architecture": loaded.description.arch,
        "branch": loaded.description.branch,
        "assumptions": list(loaded.description.assumptions),
        "layers": layers,
        "layer_reason": layer_reason(settings.layer, list(loaded.description.widths)),
        "data": samples.data,
        "samples_sha256": samples.fingerprint,
        "n_samples": n,
        "n_views": q,
        "n_clean": clean,
        "seed": settings.seed,
        "views": recipe.describe(),
        "image_size": size,
        "batch_size": batch_size,
        "precision": settings.precision,
        "storage": settings.storage,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {name: version(name) for name in ("lidar-cli", "torch", "timm", "numpy")},
    }
    return Plan(
        views=Views(recipe, settings.seed, q, size),
        layout=Layout(widths, n, q, clean, settings.storage),
        batch_size=batch_size,
        precision=settings.precision,
        provenance=provenance,
    )


def run(
    plan: Plan,
    loaded: Loaded,
    samples: Samples,
    settings: ExtractSettings,
    output: Path,
    device: torch.device,
    watcher: Watcher,
) -> Extraction:
    """Carry out a plan: the feature file at `output`, complete.

    Raises InputError if an image cannot be decoded, FeatureFileError if the output is in the way,
    DegenerateFeatures if an embedding is not finite; what was done stays in the .partial file.
    """
    begun = time.monotonic()
    layout = plan.layout
    if settings.resume and output.exists() and not settings.overwrite:
        if read_provenance(output) == json.loads(json.dumps(plan.provenance)):
            return _record(output, plan, 0, begun)
        check_absent(output, overwrite=False)
    if settings.resume and partial_path(output).exists():
        writer = FeatureWriter.resume(output, plan.provenance, overwrite=settings.overwrite)
    else:
        writer = FeatureWriter.create(
            output,
            layout,
            samples.ids[: layout.n_clean],
            samples.labels[: layout.n_clean] if samples.labels is not None else None,
            plan.provenance,
            overwrite=settings.overwrite,
        )
    with writer:
        count = _embed_all(plan, loaded, samples, settings, writer, device, watcher)
        writer.finish()
    return _record(output, plan, count, begun)


def _record(output: Path, plan: Plan, count: int, begun: float) -> Extraction:
    layout = plan.layout
    return Extraction(
        output,
        dict(layout.widths),
        layout.n_samples,
        layout.n_views,
        layout.n_clean,
        plan.batch_size,
        count,
        time.monotonic() - begun,
    )


@dataclass(frozen=True)
class _Batch:
    """Samples start .. stop - 1, padded to the batch size: views (None if past n) and clean."""

    start: int
    stop: int
    views: Tensor | None  # [b, q, 3, S, S]
    clean: Tensor  # [b, 3, S, S]


def _embed_all(
    plan: Plan,
    loaded: Loaded,
    samples: Samples,
    settings: ExtractSettings,
    writer: FeatureWriter,
    device: torch.device,
    watcher: Watcher,
) -> int:
    total, size = plan.layout.n_clean, plan.batch_size
    todo = [start for start in range(0, total, size) if not writer.done[start : start + size].all()]
    count = 0
    task = f"embedding {writer.path.name}"
    watcher.progress(task, total - _samples_in(todo, size, total), total)
    with ThreadPoolExecutor(1) as pen:
        writing: Future[None] | None = None
        with ahead(_batches(plan, samples, todo, device, settings.workers)) as batches:
            for batch in batches:
                views, clean = _embed(plan, loaded, batch, device)
                if writing is not None:
                    writing.result()
                indices = range(batch.start, batch.stop)
                writing = pen.submit(writer.write, indices, views, clean)
                count += len(indices)
                left = _samples_in(todo, size, total) - count
                watcher.progress(task, total - left, total)
        if writing is not None:
            writing.result()
    return count


def _samples_in(starts: Sequence[int], size: int, total: int) -> int:
    return sum(min(start + size, total) - start for start in starts)


def _batches(
    plan: Plan,
    samples: Samples,
    starts: Sequence[int],
    device: torch.device,
    workers: int | None,
) -> Iterator[_Batch]:
    """The padded batches that begin at `starts`, decoded by threads that stay one batch ahead."""
    total, size = plan.layout.n_clean, plan.batch_size
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
            views = plan.views.views(padded, indices) if start < plan.layout.n_samples else None
            yield _Batch(start, stop, views, plan.views.clean(padded))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _embed(
    plan: Plan, loaded: Loaded, batch: _Batch, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of one batch by layer: views [c, q, d] of the samples below n, clean [b, d]."""
    size, (n, q) = plan.batch_size, (plan.layout.n_samples, plan.layout.n_views)
    images = batch.clean
    if batch.views is not None:
        images = torch.cat([batch.views.flatten(0, 1), batch.clean])
    with torch.inference_mode(), arithmetic(plan.precision, device):
        embeddings = loaded.embed(images, list(plan.layout.widths))
    views, clean = {}, {}
    filled = batch.stop - batch.start
    for layer, rows in embeddings.items():
        _check_shape(layer, rows, len(images), plan.layout.widths[layer])
        rows = rows.float().cpu()
        clean[layer] = rows[len(images) - size :][:filled]
        below_n = min(batch.stop, n) - batch.start if batch.views is not None else 0
        views[layer] = rows[: below_n * q].reshape(below_n, q, rows.shape[1])
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


def _image_size(settings: SampleSettings, natural: int | None, samples: Samples) -> int:
    return settings.image_size or natural or samples.image_size or DEFAULT_IMAGE_SIZE


def _batch_size(
    loaded: Loaded, layers: list[str], size: int, q: int, total: int, device: torch.device
) -> int:
    """Samples a batch: as many as keep the device busy, halved until they fit its memory."""
    pixels = BATCH_PIXELS[device.type]
    most = math.floor(pixels / (size**2 * (q + 1)))
    batch = max(1, min(MOST_SAMPLES_A_BATCH, most, total))
    while device.type == "cuda" and batch > 1:
        try:
            loaded.embed(torch.zeros(batch * (q + 1), 3, size, size, device=device), layers)
            break
        except torch.OutOfMemoryError:
            batch //= 2
            torch.cuda.empty_cache()
    return batch
