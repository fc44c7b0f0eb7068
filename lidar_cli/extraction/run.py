"""Runs `lidar extract`: embeds images with a checkpoint and writes a feature file."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.checkpoints.models.user_module import restored
from lidar_cli.checkpoints.open import open_checkpoint, wrap_module
from lidar_cli.checkpoints.reading.folder import CHECKPOINT_SUFFIXES
from lidar_cli.checkpoints.reading.read import sha256, stamp
from lidar_cli.checkpoints.shapes.inner import pooling_texts
from lidar_cli.data.dataset import Samples, describe_bad
from lidar_cli.data.factory import input_shape
from lidar_cli.data.open import open_samples
from lidar_cli.errors import CheckpointError, FeatureFileError, SettingsError, first_line
from lidar_cli.extraction.engine import (
    EmbeddingModel,
    ViewSource,
    at_size_that_fits,
    embed_all,
    find_batch_size,
    measure_dense,
)
from lidar_cli.extraction.plan import (
    Plan,
    image_size,
    make_plan,
    set_image_size,
    with_assumed_in_use,
)
from lidar_cli.extraction.sharded import check_shared, embed_share, finished_batch_size
from lidar_cli.features.reader import read_interrupted
from lidar_cli.features.schema import format_size
from lidar_cli.features.writer import FeatureWriter, check_absent
from lidar_cli.runtime.device import RankInfo, cpu_multiplies_in, find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import (
    EMBEDDED,
    PATCHES,
    ExtractSettings,
    ModelSettings,
    SampleSettings,
)
from lidar_cli.views.methods import find_recipe

BATCHES_UNTIL = 8  # at least, so that the last batch exceeds `until` by few samples
NOTED_BYTES = 2**30  # a run that takes more disk space than this says so beforehand
UNNAMED = re.compile(r"checkpoints?|ckpts?|weights|models?|lightning_logs|version_\d+|/")


@dataclass(frozen=True)
class Extraction:
    """The feature file that `extract` wrote.

    reports_result: whether this is the process, of several, that prints that the file is complete.
    """

    path: Path
    widths: dict[str, int]  # layer -> d
    n_samples: int
    n_views: int
    n_clean: int
    batch_size: int
    embedded: int  # samples embedded now; fewer than n_clean after a resume
    seconds: float
    reports_result: bool = True


def extract(model: torch.nn.Module, data: str, output: str | Path, **settings: Any) -> Extraction:
    """Embed augmented views of the images of `data` with a module, into a feature file.

    Args:
        model: images [b, 3, S, S] -> embeddings [b, d], or a dict of layer -> embeddings. It is in
            eval mode and on the device while it works, and restored afterwards.
        data: an image folder, a .tar file, wds/NAME, hfds/NAME, torch/NAME or "embedded".
        output: the HDF5 file to write; NAME.partial until it is complete.
        settings: fields of `ExtractSettings`, such as n_samples, n_views, seed, image_size, device.

    Returns:
        An `Extraction`: the path, the width of each layer, the numbers of samples and views.

    Raises:
        SettingsError: a setting is wrong, or the module embeds no images.
        InputError: the data cannot be read, or holds too few images.
        FeatureFileError: the output exists or cannot be written.
        CheckpointError: a layer or the masks of the views do not fit the module, or memory does
            not hold a batch.
        DegenerateFeatures: an embedding is not finite.

    Example:
        >>> import tempfile, torch
        >>> from lidar_cli import extract
        >>> model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = extract(
        ...         model, "embedded", f"{folder}/features.h5", n_samples=8, n_views=2, device="cpu"
        ...     )
        >>> done.n_samples, done.n_views, done.widths
        (8, 2, {'backbone': 48})
    """
    parsed = ExtractSettings(data=data, output=Path(output), **settings)
    device = find_device(parsed.device)
    samples = open_samples(parsed)
    digest = _digest(model)
    with restored(model):
        embedder = wrap_module(model, parsed.layer, input_shape(parsed)).to(device)
        if parsed.compile:
            compile_backbone(embedder, device)
        plan = make_plan(embedder.description, "", digest, samples, parsed, device)
        source = ViewSource(plan, samples, device, embedder.memory_format, parsed.workers)
        return run(EmbeddingModel(plan, embedder, device), source, parsed, Path(output), Progress())


def _digest(model: torch.nn.Module) -> str:
    """SHA-256 of a module's state. Raises SettingsError for lazy weights, which have no shape."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if is_lazy(value):
            raise SettingsError(
                f"the module {type(model).__name__}: {name} has no shape yet; pass a batch of "
                "images through the module first",
                code="lazy-module",
            )
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        else:  # from get_extra_state
            digest.update(repr(value).encode())
    return digest.hexdigest()


def extract_checkpoint(
    checkpoint: Path,
    settings: ExtractSettings,
    progress: Progress | None = None,
    rank_info: RankInfo | None = None,
) -> Extraction:
    """Embed the samples of the settings with a checkpoint and write a feature file.

    rank_info: this process among several that embed a share each; None for a single process.
    Raises the errors of `extract`, where possible before anything is computed, and CheckpointError
    for a checkpoint that cannot be opened.
    """
    progress, rank_info = progress or Progress(), rank_info or RankInfo()
    output = settings.output or Path(f"{stem(checkpoint)}.h5")
    shared = rank_info.ranks > 1
    # If the output is not there yet, the rank that joins the shards reports, even if it ends before
    # this rank looks.
    reports_result = rank_info.is_main and output.exists() and not rank_info.restarted
    if shared:
        check_shared(settings, output)
        progress.note(
            f"{rank_info.ranks} processes make {output} together, as RANK and WORLD_SIZE say; "
            "unset these to work alone"
        )
    elif not settings.resume:
        _check_absent(output, checkpoint, settings)
    settings = rank_info.with_device(settings)
    device = find_device(settings.device)
    # Before the work, so that a mistyped name or [recipe] key is refused at once.
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    before = stamp(checkpoint)
    embedder = open_with(checkpoint, settings, device)
    samples = open_samples(settings)
    note_data(samples, settings, progress)
    note_precision(settings, device, progress)
    digest = sha256(checkpoint)
    if stamp(checkpoint) != before:
        raise changed_error(checkpoint)
    description = embedder.description
    plan = make_plan(description, str(checkpoint), digest, samples, settings, device)
    assumed = with_assumed_in_use(description, settings).assumed_text
    notes = [description.stand_ins_text, description.branch_reason, plan.provenance["layer_reason"]]
    notes += pooling_texts(description.inner)
    _, size = (None, None) if plan.item_shape else image_size(settings, description, samples)
    texts = [assumed, size.text("image_size") if size else ""]
    assumed = "; ".join(filter(None, texts))
    for note in [*notes, f"assumed {assumed}" if assumed else None]:
        if note:
            progress.note(f"{checkpoint}: {note}")
    if not settings.resume:
        note_disk_use(f"{output}: will take", plan.layout.nbytes, output.parent, progress)
    model = EmbeddingModel(plan, embedder, device)
    source = ViewSource(plan, samples, device, embedder.memory_format, settings.workers)
    if not shared:
        return run(model, source, settings, output, progress)
    begun = time.monotonic()
    set_image_size(embedder, plan)
    share = embed_share(model, source, settings, output, rank_info, progress)
    record = _record(output, plan, share.batch_size, share.embedded, begun)
    return replace(record, reports_result=share.joined or reports_result)


def open_with(checkpoint: Path, settings: ModelSettings, device: torch.device) -> Embedder:
    """A checkpoint, opened with the settings and moved to the device.

    Raises CheckpointError or SettingsError as `open_checkpoint` and `compile_backbone` do.
    """
    embedder = open_checkpoint(checkpoint, settings).to(device)
    if settings.compile:
        compile_backbone(embedder, device)
    return embedder


def compile_backbone(embedder: Embedder, device: torch.device) -> None:
    """Make torch compile the backbone at the first batch; views under masks run uncompiled.

    Raises SettingsError if torch has no compiler for the device, if the module is the user's, or
    if layers inside the backbone are wanted.
    """
    if inner := embedder.description.inner:
        raise SettingsError(
            f"--compile: a compiled backbone gives no outputs of layers inside it, and --layer "
            f"names {', '.join(inner)}; leave one of the two out",
            code="compile-inner-layers",
        )
    backbones = [module for module in embedder.modules.values() if isinstance(module, Backbone)]
    if not backbones:
        raise SettingsError(
            "--compile: is for architectures that lidar builds; compile a module of your own "
            "where you make it, and leave out --compile",
            code="compile-user-module",
        )
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # torch's compilers have no common base of their errors
        raise SettingsError(
            f"--compile: torch cannot compile for {device} here: {first_line(error)}; install a "
            "compiler that torch knows (g++ for the CPU, triton for CUDA), or leave out --compile",
            code="no-compiler",
        ) from error
    for module in backbones:
        module.compile(dynamic=False)


def changed_error(checkpoint: Path) -> CheckpointError:
    """The error for a checkpoint whose file changed between reading and hashing it."""
    return CheckpointError(f"{checkpoint}: changed while it was read; run again", code="changed")


def stem(checkpoint: Path) -> str:
    """The file name of a checkpoint without its suffix, such as .pth.tar; other dots stay."""
    name = checkpoint.name
    for suffix in CHECKPOINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _check_absent(output: Path, checkpoint: Path, settings: ExtractSettings) -> None:
    """`check_absent`; of the default name, which many runs share, one with the run's is advised."""
    try:
        check_absent(output, settings.overwrite)
    except FeatureFileError as error:
        if settings.output is not None or error.code != "exists":
            raise
        folders = reversed(checkpoint.absolute().parent.parts)
        run_name = next((one for one in folders if not UNNAMED.fullmatch(one)), "other").strip("/")
        raise FeatureFileError(
            f"{output}: exists already, perhaps of another checkpoint of this name; choose a name "
            f"with -o, such as -o {shlex.quote(f'{run_name}-{output.name}')}, or replace it with "
            "--overwrite",
            code="exists",
        ) from None


def note_data(samples: Samples, settings: SampleSettings, progress: Progress) -> None:
    """Report the remarks about the data, the bad images, and the use of the embedded images."""
    for remark in samples.remarks:
        progress.note(f"{samples.data}: {remark}")
    if samples.bad:
        progress.note(f"{samples.data}: left out {describe_bad(samples.bad)}")
    if samples.data == EMBEDDED:
        progress.note(
            f"data: embedded (toy pictures: small stand-in images), n = {settings.n_samples}, "
            f"q = {settings.n_views}; name your own with --data"
        )


def note_precision(settings: ModelSettings, device: torch.device, progress: Progress) -> None:
    """Report that a reduced precision costs time here, on a CPU without instructions for it."""
    if device.type == "cpu" and not cpu_multiplies_in(settings.precision):
        progress.note(
            f"--precision {settings.precision}: this CPU has no instructions for it, so that the "
            "forward pass takes several times as long as in float32; leave it out for speed"
        )


def run(
    model: EmbeddingModel,
    source: ViewSource,
    settings: ExtractSettings,
    output: Path,
    progress: Progress,
    until: int | None = None,
) -> Extraction:
    """Write the complete feature file of a plan to `output`.

    until: stop after the batch that brings the file to at least this many samples, and leave the
    .partial file; batches are small compared with this number.

    Raises InputError if an image cannot be decoded, FeatureFileError if the output exists already,
    DegenerateFeatures if an embedding is not finite, CheckpointError if the model cannot take
    images of this size; finished samples stay in the .partial file.
    """
    begun, plan, samples = time.monotonic(), model.plan, source.samples
    recorded = read_interrupted(output) if settings.resume else {}
    if settings.resume and not settings.overwrite:
        batch_size = finished_batch_size(plan.identity, output)
        if batch_size is not None:
            return _record(output, plan, batch_size, 0, begun)
    set_image_size(model.embedder, plan)
    fixed: int | None = settings.batch_size or recorded.get("batch_size")

    def write(batch_size: int) -> Extraction:
        with _writer(output, plan, samples, settings, batch_size, recorded) as writer:
            try:
                count = embed_all(model, source, batch_size, writer, progress, until)
            except torch.OutOfMemoryError:
                if fixed is None:
                    writer.discard()
                raise
            if until is None or writer.done.all():
                if PATCHES in plan.layout.widths:
                    writer.write_dense(measure_dense(model, source, batch_size, progress))
                writer.finish()
        return _record(output, plan, batch_size, count, begun)

    size = fixed or find_batch_size(model)
    if until is not None and not fixed:
        size = min(size, max(1, until // BATCHES_UNTIL))
    return at_size_that_fits(size, write, fixed is not None)


def note_disk_use(what: str, size: int, folder: Path, progress: Progress) -> None:
    """Report the disk space that a run will take if it is large, or more than is free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # writing to the folder reports the reason
        return
    if size > min(free, NOTED_BYTES):
        progress.note(f"{what} {format_size(size)} on the disk, {format_size(free)} are free")


def _writer(
    output: Path,
    plan: Plan,
    samples: Samples,
    settings: ExtractSettings,
    batch_size: int,
    recorded: dict[str, Any],
) -> FeatureWriter:
    """The writer of a new partial file, or of the interrupted one with provenance `recorded`."""
    provenance = plan.provenance | {"batch_size": batch_size}
    if recorded:
        return FeatureWriter.resume(output, plan.layout, provenance, overwrite=settings.overwrite)
    count = plan.layout.n_clean
    return FeatureWriter.create(
        output,
        plan.layout,
        samples.ids[:count],
        samples.labels[:count] if samples.labels is not None else None,
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
