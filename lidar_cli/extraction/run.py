"""Checkpoint and images to a feature file: decode once, view q times, embed, write."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from lidar_cli.checkpoints.models.embedder import Loaded
from lidar_cli.checkpoints.models.user_module import restored
from lidar_cli.checkpoints.open import open_checkpoint, wrap_module
from lidar_cli.checkpoints.reading.read import sha256, stamp
from lidar_cli.data.dataset import Samples, told
from lidar_cli.data.open import open_samples
from lidar_cli.errors import CheckpointError, SettingsError
from lidar_cli.extraction.batch_size import at_size_that_fits, find_batch_size
from lidar_cli.extraction.batches import Pass
from lidar_cli.extraction.engine import compile_backbone, embed_all
from lidar_cli.extraction.plan import Plan, identity, make_plan, with_assumed_in_use
from lidar_cli.extraction.sharded import check_shared, embed_share
from lidar_cli.extraction.view_cache import ViewStore
from lidar_cli.features.reader import read_interrupted, read_provenance
from lidar_cli.features.schema import format_size
from lidar_cli.features.writer import FeatureWriter, check_absent
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.distributed import RankInfo
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import EMBEDDED, ExtractSettings, ModelSettings
from lidar_cli.views.lookup import find_recipe

BATCHES_UNTIL = 8  # at least, so that the last holds few samples that were not asked for
SAID = 2**30  # bytes on a disk, above which a run says beforehand what it takes
CHECKPOINT_SUFFIXES = (".pth.tar", ".pt", ".pth", ".ckpt", ".safetensors", ".torch", ".bin")


@dataclass(frozen=True)
class Extraction:
    """What `extract` did.

    tells: whether, of several processes, this is the one to say that the file is there.
    """

    path: Path
    widths: dict[str, int]  # layer -> d
    n_samples: int
    n_views: int
    n_clean: int
    batch_size: int
    embedded: int  # samples embedded now; fewer than n_clean after a resume
    seconds: float
    tells: bool = True


def extract(model: torch.nn.Module, data: str, output: str | Path, **settings: Any) -> Extraction:
    """Embed the images of `data` with the user's own module and write a feature file.

    model: images [b, 3, S, S] -> embeddings [b, d], or a dict of layer -> embeddings. It is put in
    eval mode and on the device while it works, and given back as it was.
    settings: fields of ExtractSettings, such as n_samples, n_views, seed, image_size, device.
    Raises what `extract_checkpoint` raises.
    """
    known = ExtractSettings(data=data, output=Path(output), **settings)
    device = find_device(known.device)
    samples = open_samples(known)
    digest = _digest(model)
    with restored(model):
        loaded = wrap_module(model).to(device)
        if known.compile:
            compile_backbone(loaded, device)
        plan = make_plan(loaded.description, "", digest, samples, known, device)
        return run(plan, loaded, samples, known, Path(output), device, Progress())


def _digest(model: torch.nn.Module) -> str:
    """SHA-256 of a module's state. Raises SettingsError for weights that have no shape yet."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if is_lazy(value):
            raise SettingsError(
                f"the module {type(model).__name__}: {name} has no shape yet; pass a batch of "
                "images through the module first"
            )
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        else:  # what get_extra_state returned
            digest.update(repr(value).encode())
    return digest.hexdigest()


def extract_checkpoint(
    checkpoint: Path,
    settings: ExtractSettings,
    progress: Progress | None = None,
    rank_info: RankInfo | None = None,
) -> Extraction:
    """Embed the samples that the settings name with a checkpoint and write a feature file.

    rank_info: among processes that do this together, each its share; None for one alone.
    Raises CheckpointError, InputError, FeatureFileError or SettingsError, each before anything is
    computed where that can be.
    """
    progress, rank_info = progress or Progress(), rank_info or RankInfo()
    output = settings.output or Path(f"{stem(checkpoint)}.h5")
    shared = rank_info.ranks > 1
    # Else the one that joins the shards tells, be it before this one has looked.
    tells = rank_info.is_main and output.exists() and not rank_info.restarted
    if shared:
        check_shared(settings, output)
        progress.note(
            f"{rank_info.ranks} processes make {output} together, as RANK and WORLD_SIZE say; "
            "unset these to work alone"
        )
    elif not settings.resume:
        check_absent(output, settings.overwrite)
    settings = rank_info.with_device(settings)
    device = find_device(settings.device)
    # Before the work: a mistyped name, or an unknown key of a [recipe] table, is told at once.
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    before = stamp(checkpoint)
    loaded = open_with(checkpoint, settings, device)
    samples = open_samples(settings)
    tell_of(samples, progress)
    digest = sha256(checkpoint)
    if stamp(checkpoint) != before:
        raise changed(checkpoint)
    plan = make_plan(loaded.description, str(checkpoint), digest, samples, settings, device)
    found = loaded.description
    assumed = with_assumed_in_use(found, settings).assumed_text
    remarks = [found.note, found.branch_reason, plan.provenance["layer_reason"]]
    for remark in [*remarks, f"assumed {assumed}" if assumed else None]:
        if remark:
            progress.note(f"{checkpoint}: {remark}")
    if not settings.resume:
        say_room(f"{output}: will take", plan.layout.nbytes, output.parent, progress)
    if not shared:
        return run(plan, loaded, samples, settings, output, device, progress)
    begun = time.monotonic()
    loaded.set_image_size(plan.views.image_size)
    work = Pass(plan, loaded, samples, device, settings.workers)
    done = embed_share(work, settings, output, rank_info, progress)
    record = _record(output, plan, done.batch_size, done.embedded, begun)
    return replace(record, tells=done.joined or tells)


def open_with(checkpoint: Path, settings: ModelSettings, device: torch.device) -> Loaded:
    """A checkpoint, opened on the device as the settings say.

    Raises what `open_checkpoint` and `compile_backbone` raise.
    """
    loaded = open_checkpoint(
        checkpoint,
        arch=settings.arch,
        model=settings.model,
        activation=settings.activation,
        format=settings.format,
        branch=settings.branch,
        layer=settings.layer,
        assume=settings.assume,
    ).to(device)
    if settings.compile:
        compile_backbone(loaded, device)
    return loaded


def changed(checkpoint: Path) -> CheckpointError:
    """The error of weights that may be others than those that were hashed."""
    return CheckpointError(f"{checkpoint}: changed while it was read; run again")


def stem(checkpoint: Path) -> str:
    """A checkpoint's name without the suffix that checkpoints have; other dots are kept."""
    name = checkpoint.name
    for suffix in CHECKPOINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def tell_of(samples: Samples, progress: Progress) -> None:
    """Say what nobody should learn late: that no data was named, or what is odd about it."""
    for remark in samples.remarks:
        progress.note(f"{samples.data}: {remark}")
    if samples.bad:
        progress.note(f"{samples.data}: left out {told(samples.bad)}")
    if samples.data == EMBEDDED:
        progress.note(
            "data: embedded (small images made from scikit-learn's); name your own with --data"
        )


def run(
    plan: Plan,
    loaded: Loaded,
    samples: Samples,
    settings: ExtractSettings,
    output: Path,
    device: torch.device,
    progress: Progress,
    store: ViewStore | None = None,
    until: int | None = None,
) -> Extraction:
    """Carry out a plan: the feature file at `output`, complete.

    until: ends at the first batch that holds so many samples, in batches small beside that, and
    leaves the .partial file.

    Raises InputError if an image cannot be decoded, FeatureFileError if the output is in the way,
    DegenerateFeatures if an embedding is not finite, CheckpointError if the model cannot take
    images of this size; what was done stays in the .partial file.
    """
    begun = time.monotonic()
    recorded = read_interrupted(output) if settings.resume else {}
    if settings.resume and output.exists() and not settings.overwrite:
        found = read_provenance(output)
        if identity(found) == plan.identity:
            return _record(output, plan, found["batch_size"], 0, begun)
        check_absent(output, overwrite=False)
    loaded.set_image_size(plan.views.image_size)
    work = Pass(plan, loaded, samples, device, settings.workers, store)
    fixed: int | None = settings.batch_size or recorded.get("batch_size")

    def write(batch_size: int) -> Extraction:
        with _writer(output, plan, samples, settings, batch_size, recorded) as writer:
            task = f"embedding {output.name}"
            try:
                count = embed_all(work, batch_size, writer, task, progress, until)
            except torch.OutOfMemoryError:
                if fixed is None:
                    writer.discard()
                raise
            if until is None or writer.done.all():
                writer.finish()
        return _record(output, plan, batch_size, count, begun)

    size = fixed or find_batch_size(work)
    if until is not None and not fixed:
        size = min(size, max(1, until // BATCHES_UNTIL))
    return at_size_that_fits(size, write, fixed is not None)


def say_room(what: str, size: int, folder: Path, progress: Progress) -> None:
    """Say what a run is about to take on a disk, where that is much, or more than is free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # writing there says why
        return
    if size > min(free, SAID):
        progress.note(f"{what} {format_size(size)} on the disk, {format_size(free)} are free")


def _writer(
    output: Path,
    plan: Plan,
    samples: Samples,
    settings: ExtractSettings,
    batch_size: int,
    recorded: dict[str, Any],
) -> FeatureWriter:
    """A new partial file, or the one that was recorded to go on with."""
    provenance = plan.provenance | {"batch_size": batch_size}
    if recorded:
        return FeatureWriter.resume(output, plan.layout, provenance, overwrite=settings.overwrite)
    count = plan.layout.n_clean
    labels = samples.labels[:count] if samples.labels is not None else None
    return FeatureWriter.create(
        output,
        plan.layout,
        samples.ids[:count],
        labels,
        provenance,
        bad=[(bad.id, bad.reason) for bad in samples.bad],
        overwrite=settings.overwrite,
    )


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
