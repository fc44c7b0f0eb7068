"""The scores of a feature file: one pass computes the moments, and all metrics come from them.

From a printed number to its equation: `compute_score` in `compute` calls `core.spectra` for the
eigenvalues and METRICS in `core.metrics` for the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lidar_cli.configuration import parse_size
from lidar_cli.core.accumulate import one_thread_if_small
from lidar_cli.core.metrics import METRICS, parse_metrics
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.runtime.device import check_free_memory, find_scoring_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, compute_score
from lidar_cli.scoring.influences import influences, subset_influences
from lidar_cli.scoring.intervals import Grouping, confidence, reasons_for_no_interval, sum_by_group
from lidar_cli.scoring.open import open_groups, open_on_all_ranks
from lidar_cli.scoring.process_group import ProcessGroup, read_moments_on_all_ranks
from lidar_cli.scoring.streaming import LayerMoments, enough_memory, read_moments
from lidar_cli.settings import MetricSettings, ScoreSettings


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
    groups = groups or open_groups(settings)
    layers = open_on_all_ranks(path, settings, process_group)
    return score_layers(layers, settings, progress, process_group, groups)


def score_layers(
    layers: Sequence[Embeddings],
    settings: ScoreSettings,
    progress: Progress | None = None,
    process_group: ProcessGroup | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """A score for each layer of a file that is open; arguments and errors as of `score_file`."""
    progress = progress or Progress()
    wanted = parse_metrics(settings.metrics)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    device = find_scoring_device(settings.device)
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
