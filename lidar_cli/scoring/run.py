"""One streaming pass over stored embeddings, all metrics from its moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lidar_cli.checkpoints.reading.arrays import read_tensors
from lidar_cli.configuration import parse_size
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, SettingsError, nearest
from lidar_cli.features.arrays import check_not_sparse, read_npy, read_npz, with_size_note
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.hdf5 import is_hdf5
from lidar_cli.features.reader import read_hdf5
from lidar_cli.runtime.device import check_free_memory, find_device
from lidar_cli.runtime.distributed import RankInfo
from lidar_cli.runtime.files import NotAFile, open_regular
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import EVERY_METRIC, Score, compute_score
from lidar_cli.scoring.influences import influences
from lidar_cli.scoring.intervals import Grouping, confidence, summed, without_interval
from lidar_cli.scoring.process_group import ProcessGroup, gather_on_all_ranks
from lidar_cli.scoring.streaming import Gathered, enough_memory, gather
from lidar_cli.settings import MetricSettings, RankSettings, ScoreSettings


def score_file(
    path: Path,
    settings: ScoreSettings,
    progress: Progress | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """A score for each layer of a feature file, or for the array of another file.

    process_group: processes that read a part each; every one returns the same scores.
    groups: those of the settings, for callers that open them once for several files.
    Raises InputError or FeatureFileError if the file cannot be used, SettingsError for an unknown
    metric or device.
    """
    progress = progress or Progress()
    wanted = parse_metrics(settings.metrics)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    device = find_device(settings.device)
    groups = groups or open_groups(settings)
    with process_group.raise_on_any_rank() if process_group else nullcontext():
        layers = open_embeddings(path, settings)
    return [
        score(
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
    """The processes that torchrun started, None for a process alone. Raises InputError."""
    if rank_info.ranks == 1:
        yield None
        return
    process_group = ProcessGroup(rank_info)
    try:
        yield process_group
    finally:
        process_group.close()


def open_groups(settings: ScoreSettings | RankSettings) -> Grouping | None:
    """The groups of samples that the settings name, if any. A pipe can be read only once.

    Raises InputError if their table cannot be used, SettingsError where no interval is asked for.
    """
    if settings.groups is None:
        return None
    if settings.confidence is None:
        raise SettingsError("--groups concerns intervals; add --confidence 0.95")
    return Grouping(settings.groups)


def open_embeddings(path: Path, settings: ScoreSettings) -> list[Embeddings]:
    """The embeddings that a file offers, not yet read.

    Raises InputError or FeatureFileError.
    """
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
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    check_not_sparse(path)
    if hdf5:
        layers = read_hdf5(path, settings.layer, settings.dataset, settings.views_per_sample)
    else:
        layers = [_read_array(path, start, settings.dataset, settings.views_per_sample)]
    return [with_size_note(embeddings) for embeddings in layers]


def _read_array(path: Path, start: bytes, dataset: str | None, q: int | None) -> Embeddings:
    """The embeddings in a file of arrays, by the format of its first bytes, not of its name."""
    embeddings = None
    if start.startswith(b"\x93NUMPY"):
        return read_npy(path, dataset, q)
    if start.startswith(b"PK"):
        embeddings = read_npz(path, dataset, q)
    if embeddings is not None:
        return embeddings
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    if start.startswith((b"PK", b"\x80")) or is_safetensors:
        return read_tensors(path, dataset, q)
    raise InputError(
        f"{path}: not a format that is known here (expected HDF5, .npy, .npz, .pt or .safetensors)"
    )


def parse_metrics(text: str) -> frozenset[str]:
    """Metric names from a comma-separated list, or all of them. Raises SettingsError."""
    if text == "all":
        return EVERY_METRIC
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise SettingsError(
                f"--metrics: no metric {name!r}; {nearest(name, list(METRICS))}",
                code="unknown-metric",
            )
    if not names:
        raise SettingsError(f"--metrics is empty; known: {', '.join(METRICS)}")
    return frozenset(names)


def score(
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

    level: adds intervals at that level, in a second pass over the chunks.
    cache: a folder to store the results of the second pass in.
    process_group, groups: as in `score_file`.
    Raises InputError if a number in the file is not finite, or memory does not suffice.
    """
    if embeddings.note:
        progress.note(embeddings.note)
    with enough_memory(embeddings):
        if process_group is None:
            state = gather(embeddings, settings, device, wanted, progress)
        else:
            state = gather_on_all_ranks(
                embeddings, settings, device, wanted, progress, process_group
            )
        return score_gathered(
            embeddings, settings, state, wanted, progress, level, cache, process_group, groups
        )


def score_gathered(
    embeddings: Embeddings,
    settings: MetricSettings,
    state: Gathered,
    wanted: AbstractSet[str],
    progress: Progress,
    level: float | None = None,
    cache: Path | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> Score:
    """The wanted metrics of one layer from its moments, as `score` gives them."""
    with (
        process_group.raise_on_any_rank() if process_group else nullcontext(),
        enough_memory(embeddings),
    ):
        scored = compute_score(embeddings, settings, state, wanted)
    if level is None:
        return scored
    missing = _without_interval(scored, wanted, state.rows.n)
    with_one = [name for name in METRICS if name in wanted and name not in missing]
    by_metric: dict[str, Tensor] = {}
    if with_one and embeddings.once is None:
        by_metric = influences(
            embeddings, settings, state, with_one, progress, cache, process_group
        )
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
    without_influences: str | None = None,
    groups: Tensor | None = None,
) -> Score:
    """A score with the intervals that its influences, by metric, give at a level.

    n_rows: how many rows the metrics of one row a sample read.
    without_influences: why metrics that could have influences have none.
    groups: of samples [N], within which influences are summed.
    """
    values = {name: scored.value(name) for name in METRICS if name in wanted}
    count = len(torch.unique(groups[: scored.n_samples])) if groups is not None else None
    missing = _without_interval(scored, wanted, n_rows, count)
    if without_influences is not None:
        missing = {name: missing.get(name, without_influences) for name in values}
    of_groups = {
        name: each if groups is None else summed(each, groups[: len(each)])
        for name, each in by_metric.items()
    }
    intervals = confidence(values, of_groups, missing, level, count)
    return replace(scored, confidence=intervals, influences=of_groups)


def _without_interval(
    scored: Score, wanted: AbstractSet[str], n_rows: int, groups: int | None = None
) -> dict[str, str]:
    values = {name: scored.value(name) for name in METRICS if name in wanted}
    return without_interval(values, scored.notes, scored.n_samples, n_rows, scored.dim, groups)
