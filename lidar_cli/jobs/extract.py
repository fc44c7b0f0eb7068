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

from lidar_cli.checkpoints import (
    Description,
    Loaded,
    open_checkpoint,
    sha256,
    wrap_module,
)
from lidar_cli.checkpoints.own_module import source as own_source
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.features import (
    FeatureWriter,
    Layout,
    check_absent,
    read_interrupted,
    read_provenance,
)
from lidar_cli.jobs.ahead import ahead
from lidar_cli.jobs.device import find_device
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import EMBEDDED, ExtractSettings, ModelSettings, SampleSettings
from lidar_cli.views import Mask, Recipe, Views, find_recipe
from lidar_cli.views.masked import together
from lidar_cli.views.methods import RECIPES

CHECKPOINT_SUFFIXES = (".pth.tar", ".pt", ".pth", ".ckpt", ".safetensors", ".torch", ".bin")
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
    precision: str
    provenance: dict[str, Any]  # all of it but the batch size, which needs the model to be found

    @property
    def identity(self) -> dict[str, Any]:
        """What the embeddings mean: equal for files that are interchangeable in a ranking."""
        return identity(self.provenance)

    @property
    def key(self) -> str:
        """A file name for the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]


def identity(provenance: dict[str, Any]) -> dict[str, Any]:
    """The part of a provenance that says what the embeddings mean, as JSON gives it back.

    Batch size, device and library versions change rounding only, and paths nothing: the checkpoint
    and the samples are known by their content. Our own version stays, since it may change a view.
    """
    told: dict[str, Any] = json.loads(json.dumps(provenance))
    for name in ("checkpoint", "data", "assumptions", "layer_reason", "batch_size", "device"):
        told.pop(name, None)
    versions = told.pop("versions", None)
    if isinstance(versions, dict):
        told["version"] = versions.get("lidar-cli")
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
    plan = make_plan(loaded.description, "", digest.hexdigest(), samples, known, device)
    return run(plan, loaded, samples, known, Path(output), device, Watcher())


def extract_checkpoint(
    checkpoint: Path, settings: ExtractSettings, watcher: Watcher | None = None
) -> Extraction:
    """Embed the samples that the settings name with a checkpoint and write a feature file.

    Raises CheckpointError, InputError, FeatureFileError or SettingsError, each before anything is
    computed where that can be.
    """
    watcher = watcher or Watcher()
    output = settings.output or Path(f"{stem(checkpoint)}.h5")
    if not settings.resume:
        check_absent(output, settings.overwrite)
    device = find_device(settings.device)
    # Before the work: a mistyped name, or an unknown key of a [recipe] table, is told at once.
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    loaded = open_with(checkpoint, settings).to(device)
    samples = open_samples(settings)
    tell_if_embedded(samples, watcher)
    digest = sha256(checkpoint)
    plan = make_plan(loaded.description, str(checkpoint), digest, samples, settings, device)
    for reason in (loaded.description.branch_reason, plan.provenance["layer_reason"]):
        if reason:
            watcher.note(f"{checkpoint}: {reason}")
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
        layer=settings.layer,
    )


def stem(checkpoint: Path) -> str:
    """A checkpoint's name without the suffix that checkpoints have; other dots are kept."""
    name = checkpoint.name
    for suffix in CHECKPOINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def tell_if_embedded(samples: Samples, watcher: Watcher) -> None:
    """Say that no data was named, so that nobody takes small digits for their own images."""
    if samples.data == EMBEDDED:
        watcher.note(
            "data: embedded (small images made from scikit-learn's); name your own with --data"
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

    Raises SettingsError for a name or a [recipe] key that is not known.
    """
    stats: str = settings.pixel_stats
    if stats == "auto" and description.pixel_stats != "imagenet":
        stats = description.pixel_stats
    name = settings.views
    if name == "auto" and settings.recipe is None and description.recipe is not None:
        name = description.recipe
    return find_recipe(name, stats, settings.recipe)


def check_masks(views: Views, description: Description, path: str) -> None:
    """Raise CheckpointError unless the checkpoint can be embedded under the masks of the views."""
    rule = views.recipe.masks
    if rule is None:
        return
    crops = f"{views.recipe.name.removesuffix(' (changed)')}-crop"
    others = f"--views simclr or {crops}" if crops in RECIPES else "--views simclr"
    origin = f"{path or description.arch}: "
    if rule.rule not in description.masks:
        takes = f"takes {', '.join(description.masks)} masks" if description.masks else "takes none"
        raise CheckpointError(
            f"{origin}the {description.arch} {takes}, the views {views.recipe.name} have "
            f"{rule.rule} masks; choose other views, such as {others}"
        )
    try:
        views.masks([0])
    except SettingsError as error:  # of this checkpoint's grid of patches
        raise CheckpointError(f"{origin}{error}, or other views, such as {others}") from error


def layer_reason(asked: str, available: Sequence[str]) -> str | None:
    """Why another layer than the projector was chosen, None if nothing need be said."""
    if asked != "auto" or "projector" in available:
        return None
    return "holds no projector, so the backbone is embedded"


def make_plan(
    description: Description,
    path: str,
    digest: str,
    samples: Samples,
    settings: ExtractSettings,
    device: torch.device,
) -> Plan:
    """Settings, checkpoint and samples brought together.

    path, digest: of the checkpoint. No model is needed yet: whether the features exist already is
    known from the plan alone.
    Raises CheckpointError for a layer that the checkpoint has not or masks that it cannot take,
    SettingsError for an unknown recipe or clean samples fewer than n.
    """
    n, q = settings.n_samples, settings.n_views
    clean = n if settings.clean_samples is None else settings.clean_samples
    if clean < n:
        raise SettingsError(f"--clean-samples {clean} is less than -n {n}; give at least n")
    recipe = choose_recipe(settings, description)
    size = _image_size(settings, description.image_size, samples)
    views = Views(recipe, settings.seed, q, size, description.patch)
    check_masks(views, description, path)
    layers = choose_layers(settings.layer, list(description.widths))
    widths = {layer: description.widths[layer] for layer in layers}
    provenance = {
        "checkpoint": path,
        "sha256": digest,
        "model_format": description.format,
        "architecture": description.arch,
        "branch": description.branch,
        "activation": settings.activation,
        "assumptions": list(description.assumptions),
        "source_sha256": own_source(settings.model),
        "layers": layers,
        "layer_reason": layer_reason(settings.layer, list(description.widths)),
        "data": samples.data,
        "samples_sha256": samples.fingerprint,
        "n_samples": n,
        "n_views": q,
        "n_clean": clean,
        "seed": settings.seed,
        "views": recipe.describe(),
        "image_size": size,
        "precision": settings.precision,
        "storage": settings.storage,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {name: version(name) for name in ("lidar-cli", "torch", "timm", "numpy")},
    }
    return Plan(
        views=views,
        layout=Layout(widths, n, q, clean, settings.storage),
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
    DegenerateFeatures if an embedding is not finite, CheckpointError if the model cannot take
    images of this size; what was done stays in the .partial file.
    """
    begun = time.monotonic()
    layout = plan.layout
    recorded = read_interrupted(output) if settings.resume else {}
    if settings.resume and output.exists() and not settings.overwrite:
        told = read_provenance(output)
        if identity(told) == plan.identity:
            return _record(output, plan, told["batch_size"], 0, begun)
        check_absent(output, overwrite=False)
    loaded.set_image_size(plan.views.image_size)
    batch_size = (
        settings.batch_size or recorded.get("batch_size") or _batch_size(plan, loaded, device)
    )
    provenance = plan.provenance | {"batch_size": batch_size}
    if recorded:
        writer = FeatureWriter.resume(output, provenance, overwrite=settings.overwrite)
    else:
        writer = FeatureWriter.create(
            output,
            layout,
            samples.ids[: layout.n_clean],
            samples.labels[: layout.n_clean] if samples.labels is not None else None,
            provenance,
            overwrite=settings.overwrite,
        )
    with writer:
        count = _embed_all(plan, batch_size, loaded, samples, settings, writer, device, watcher)
        writer.finish()
    return _record(output, plan, batch_size, count, begun)


def _record(output: Path, plan: Plan, batch_size: int, count: int, begun: float) -> Extraction:
    layout = plan.layout
    return Extraction(
        output,
        dict(layout.widths),
        layout.n_samples,
        layout.n_views,
        layout.n_clean,
        batch_size,
        count,
        time.monotonic() - begun,
    )


@dataclass(frozen=True)
class _Batch:
    """Samples start .. stop - 1, padded to the batch size: views (None if past n) and clean."""

    start: int
    stop: int
    views: Tensor | None  # [b, q, 3, S, S]; [b, 1, 3, S, S] where masks alone differ
    masks: list[Mask] | None  # of each view
    clean: Tensor  # [b, 3, S, S]


def _embed_all(
    plan: Plan,
    size: int,
    loaded: Loaded,
    samples: Samples,
    settings: ExtractSettings,
    writer: FeatureWriter,
    device: torch.device,
    watcher: Watcher,
) -> int:
    total = plan.layout.n_clean
    todo = [start for start in range(0, total, size) if not writer.done[start : start + size].all()]
    count = 0
    task = f"embedding {writer.path.name}"
    watcher.progress(task, total - _samples_in(todo, size, total), total)
    with ThreadPoolExecutor(1) as pen:
        writing: Future[None] | None = None
        with ahead(_batches(plan, size, samples, todo, device, settings.workers)) as batches:
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
    size: int,
    samples: Samples,
    starts: Sequence[int],
    device: torch.device,
    workers: int | None,
) -> Iterator[_Batch]:
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
            yield _Batch(start, stop, views, masks, plan.views.clean(padded))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _masks(plan: Plan, samples: Sequence[int], device: torch.device) -> list[Mask] | None:
    masks = plan.views.masks(samples)
    return None if masks is None else [mask.to(device) for mask in masks]


def _embed(
    plan: Plan, loaded: Loaded, batch: _Batch, device: torch.device
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
    loaded: Loaded, batch: _Batch, layout: Layout
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


def _image_size(settings: SampleSettings, natural: int | None, samples: Samples) -> int:
    return settings.image_size or natural or samples.image_size or DEFAULT_IMAGE_SIZE


def _batch_size(plan: Plan, loaded: Loaded, device: torch.device) -> int:
    """Samples a batch: as many as keep the device busy, halved until they fit its memory."""
    size, masks = plan.views.image_size, plan.views.masks([0])
    images = plan.layout.n_views + 1
    if masks is not None and plan.views.alike:  # clean images go alone, as do masks of one length
        images = max(map(len, together(masks)))
    most = math.floor(BATCH_PIXELS[device.type] / (size**2 * images))
    batch = max(1, min(MOST_SAMPLES_A_BATCH, most, plan.layout.n_clean))
    while device.type == "cuda" and batch > 1:
        try:
            _embed(plan, loaded, _blank(plan, batch, device), device)
            break
        except torch.OutOfMemoryError:
            batch //= 2
            torch.cuda.empty_cache()
    return batch


def _blank(plan: Plan, b: int, device: torch.device) -> _Batch:
    """A batch of black images, to try whether it fits."""
    views = 1 if plan.views.alike else plan.layout.n_views
    clean = torch.zeros(b, 3, plan.views.image_size, plan.views.image_size, device=device)
    expanded = clean[:, None].repeat(1, views, 1, 1, 1)
    return _Batch(0, b, expanded, _masks(plan, [0] * b, device), clean)
