"""The scores of a feature file: one pass computes the moments, and all metrics come from them.

From a printed number to its equation: `compute_score` in `compute` calls `core.spectra` for the
eigenvalues and METRICS in `core.metrics` for the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core.accumulate import one_thread_if_small
from lidar_cli.core.metrics import METRICS, parse_metrics
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.features.arrays import (
    ArrayForm,
    check_not_sparse,
    read_npy,
    read_npz,
    with_size_note,
)
from lidar_cli.features.embeddings import Embeddings, Names
from lidar_cli.features.reader import read_hdf5
from lidar_cli.features.schema import OWN_LAYER, ids_digest
from lidar_cli.runtime.device import RankInfo, check_free_memory, find_scoring_device
from lidar_cli.runtime.files import NotAFile, did_you_mean, is_hdf5, open_regular
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, compute_score
from lidar_cli.scoring.grouped import group_rows, read_ids
from lidar_cli.scoring.influences import influences, subset_influences
from lidar_cli.scoring.intervals import Grouping, confidence, reasons_for_no_interval, sum_by_group
from lidar_cli.scoring.process_group import ProcessGroup, read_moments_on_all_ranks
from lidar_cli.scoring.streaming import LayerMoments, enough_memory, read_moments
from lidar_cli.settings import MetricSettings, OrderSettings, RankSettings, ScoreSettings


def score_file(
    path: Path | Embeddings,
    settings: ScoreSettings,
    progress: Progress | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """A score for each layer of a feature file, or one for the array of a file of another format.

    path: a file, or embeddings in memory.
    process_group: processes that each read a part of the file; all return the same scores.
    groups: the result of `open_groups`, if the caller scores several files with it.
    Raises InputError or FeatureFileError if the file cannot be used, SettingsError for an unknown
    metric or device.
    """
    progress = progress or Progress()
    wanted = parse_metrics(settings.metrics)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    device = find_scoring_device(settings.device)
    groups = groups or open_groups(settings)
    with process_group.raise_on_any_rank() if process_group else nullcontext():
        layers = open_embeddings(path, settings)
    return [
        score_layer(
            embeddings,
            settings,
            device,
            wanted,
            progress,
            settings.confidence,
            process_group=process_group,
            groups=groups,
        )
        for embeddings in layers
    ]


@contextmanager
def open_process_group(rank_info: RankInfo) -> Iterator[ProcessGroup | None]:
    """The processes that torchrun started; None if there is only this one. Raises InputError."""
    if rank_info.ranks == 1:
        yield None
        return
    process_group = ProcessGroup(rank_info)
    try:
        yield process_group
    finally:
        process_group.close()


def open_groups(settings: ScoreSettings | RankSettings) -> Grouping | None:
    """The groups of samples for `--groups`, None without it.

    The table may be a pipe, which can be read only once: call this once for all files.
    Raises InputError if the table cannot be used, SettingsError if no intervals are requested.
    """
    if settings.groups is None:
        return None
    if settings.confidence is None:
        raise SettingsError("--groups concerns intervals; add --confidence 0.95")
    return Grouping(settings.groups)


def open_embeddings(
    path: Path | Embeddings, settings: ScoreSettings | OrderSettings
) -> list[Embeddings]:
    """The embeddings of each chosen layer of a file; their numbers are not read yet.

    path: a file, or embeddings in memory. Raises InputError or FeatureFileError.
    """
    layers = [path] if isinstance(path, Embeddings) else _read_file(path, settings)
    named = [with_ids(embeddings, settings.ids) for embeddings in layers]
    if settings.group_by is not None:
        named = [group_rows(embeddings) for embeddings in named]
    return [with_size_note(embeddings) for embeddings in named]


def _read_file(path: Path, settings: ScoreSettings | OrderSettings) -> list[Embeddings]:
    """The embeddings in a file by its format. Raises InputError or FeatureFileError."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; score takes files, rank takes directories")
    try:
        hdf5 = is_hdf5(path)
        with open_regular(path) as file:
            start = file.read(9)
    except NotAFile as error:
        raise InputError(
            f"{path}: {error.strerror}; expected HDF5, .npy, .npz, .pt or .safetensors"
        ) from error
    except FileNotFoundError as error:
        message = f"{path}: no such file{did_you_mean(path)}"
        raise InputError(message, code="no-such-file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    check_not_sparse(path)
    form = ArrayForm(settings.dataset, settings.views_per_sample, settings.axes)
    return read_hdf5(path, settings.layer, form) if hdf5 else [_read_array(path, start, form)]


def open_array(path: Path | Embeddings, settings: OrderSettings) -> Embeddings:
    """An array, of another program or in memory, as `rank` takes it: one layer, `embedding`.

    Raises InputError if the file holds no array of embeddings.
    """
    (embeddings,) = open_embeddings(path, settings)
    record: dict[str, Any] = {"layers": [OWN_LAYER], "storage": "float32"}
    names = embeddings.names() if embeddings.names else None
    if names is not None and names.named:
        record["samples_sha256"] = ids_digest(names.ids)
    return replace(embeddings, layer=OWN_LAYER, provenance=record)


def open_layer(path: Path | Embeddings, settings: OrderSettings) -> Embeddings:
    """One layer of a feature file, or an array. Raises as `read_hdf5` and `open_array`."""
    if isinstance(path, Path) and settings.dataset is None and is_hdf5(path):
        form = ArrayForm(None, settings.views_per_sample, settings.axes)
        (embeddings,) = read_hdf5(path, settings.layer, form)
        if embeddings.provenance:
            return embeddings
    return open_array(path, settings)


def with_ids(embeddings: Embeddings, file: Path | None) -> Embeddings:
    """Embeddings whose samples have the names in `file`, if it is given.

    Raises InputError if it cannot be read, or holds another number of names, or one twice.
    """
    if file is None or embeddings.provenance:
        return embeddings
    ids = read_ids(file)
    count = len(embeddings.span)
    distinct = len(set(ids))
    if len(ids) != count or (distinct < count and embeddings.views is not None):
        raise InputError(
            f"--ids {file}: {len(ids)} ids, {distinct} of them distinct; expected one for "
            f"each of the {count} samples of {embeddings.file}"
        )
    labels = embeddings.names().labels if embeddings.names else None
    return replace(embeddings, names=lambda: Names(ids, labels))


def _read_array(path: Path, start: bytes, form: ArrayForm) -> Embeddings:
    """The embeddings of a .npy, .npz, .pt or .safetensors file, recognised by its first bytes."""
    embeddings = None
    if start.startswith(b"\x93NUMPY"):
        return read_npy(path, form)
    if start.startswith(b"PK"):
        embeddings = read_npz(path, form)
    if embeddings is not None:
        return embeddings
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    if start.startswith((b"PK", b"\x80")) or is_safetensors:
        from lidar_cli.checkpoints.reading.arrays import read_tensors

        return read_tensors(path, form)
    raise InputError(
        f"{path}: not a format that is known here (expected HDF5, .npy, .npz, .pt or .safetensors)"
    )


def score_layer(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: AbstractSet[str],
    progress: Progress,
    level: float | None = None,
    cache: Path | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> Score:
    """The wanted metrics of one layer, in one pass over its chunks.

    level: of the intervals, for which the chunks are read a second time; None for no intervals.
    cache: a folder that stores the influences computed in the second pass.
    process_group, groups: as in `score_file`.
    Raises InputError if a number in the file is not finite, or if memory is too small.
    """
    if embeddings.note:
        progress.note(embeddings.note)
    _, q, d = embeddings.shape
    rows = len(embeddings.span) * max(1, q)
    with enough_memory(embeddings), one_thread_if_small(rows, d):
        if process_group is None:
            state = read_moments(embeddings, settings, device, wanted, progress)
        else:
            state = read_moments_on_all_ranks(
                embeddings, settings, device, wanted, progress, process_group
            )
        return score_moments(
            embeddings, settings, state, wanted, progress, level, cache, process_group, groups
        )


def score_moments(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: LayerMoments,
    wanted: AbstractSet[str],
    progress: Progress,
    level: float | None = None,
    cache: Path | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> Score:
    """The wanted metrics of one layer from its moments; arguments as in `score_layer`."""
    with (
        process_group.raise_on_any_rank() if process_group else nullcontext(),
        enough_memory(embeddings),
    ):
        scored = compute_score(embeddings, settings, state, wanted)
    if level is None:
        return scored
    missing = _reasons_for_no_interval(scored, wanted, state.rows.n)
    names = [name for name in METRICS if name in wanted and name not in missing]
    of_subset = [name for name in names if METRICS[name].reads_subset]
    by_metric = subset_influences(state, of_subset, scored.n_samples)
    others = [name for name in names if name not in by_metric]
    if others and embeddings.once is None:
        by_metric |= influences(embeddings, settings, state, others, progress, cache, process_group)
    of_samples = groups.of(embeddings) if groups else None
    return with_intervals(
        scored, wanted, by_metric, state.rows.n, level, embeddings.once, of_samples
    )


def with_intervals(
    scored: Score,
    wanted: AbstractSet[str],
    by_metric: Mapping[str, Tensor],
    n_rows: int,
    level: float,
    why_no_influences: str | None = None,
    groups: Tensor | None = None,
) -> Score:
    """The score with an interval for each wanted metric, or the reason why it has none.

    by_metric: the influences on each metric that has them.
    n_rows: the number of rows that RankMe and alpha-ReQ read.
    why_no_influences: the reason if influences could not be computed for the others.
    groups: the group of each sample [N]; influences are summed within groups.
    """
    values = {name: scored.value(name) for name in METRICS if name in wanted}
    count = len(torch.unique(groups[: scored.n_samples])) if groups is not None else None
    missing = _reasons_for_no_interval(scored, wanted, n_rows, count)
    if why_no_influences is not None:
        without = {name: why_no_influences for name in values if name not in by_metric}
        missing = without | missing
    independent = {
        name: each if groups is None else sum_by_group(each, groups[: len(each)])
        for name, each in by_metric.items()
    }
    intervals = confidence(values, independent, missing, level, count)
    return replace(scored, confidence=intervals, influences=independent)


def _reasons_for_no_interval(
    scored: Score, wanted: AbstractSet[str], n_rows: int, groups: int | None = None
) -> dict[str, str]:
    values = {name: scored.value(name) for name in METRICS if name in wanted}
    return reasons_for_no_interval(
        values, scored.notes, scored.n_samples, n_rows, scored.dim, groups
    )
