"""A ranking compared with downstream accuracies: how well each metric agrees, and what it selects.

The accuracies come from a CSV file or from linear probes of the ranked checkpoints. The order does
not depend on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lidar_cli.data.tables import Table, Unmatched, accuracies_of, match, read_table
from lidar_cli.errors import InputError
from lidar_cli.probing.run import ProbeResult, probe_files
from lidar_cli.ranking.correlation import Correlation, correlate
from lidar_cli.ranking.few_labels import (
    FewLabels,
    FewLabelsComparison,
    compare_few_labels,
    probe_few_labels,
)
from lidar_cli.ranking.group_metrics import with_value
from lidar_cli.ranking.hyperparameters import (
    Hyperparameters,
    columns_of,
    from_checkpoints,
    from_table,
    slices,
    varying,
    with_names,
)
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import PROBE, PROBED_LAYER, Ranking, open_probe_session
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import ProbeSettings, RankSettings


@dataclass(frozen=True)
class GroupComparison:
    """One comparable group against the accuracies.

    selection: None if no checkpoint of the group has an accuracy.
    """

    correlations: tuple[Correlation, ...]
    selection: Selection | None
    hyperparameters: tuple[HyperparameterSelection, ...]
    few_labels: FewLabelsComparison | None = None  # with --labels-per-class


class Accuracies(NamedTuple):
    """Accuracies between 0 and 1 by path, and how they were read or measured, in words.

    standard_error: the largest of them; None if unknown.
    """

    shares: dict[str, float]
    method: str
    standard_error: float | None = None


@dataclass(frozen=True)
class Oracle:
    """A ranking against downstream accuracies, which are between 0 and 1, by checkpoint path."""

    source: str  # the file, or `probe`
    method: str  # how the accuracies were read or measured, in words
    level: float  # of the intervals
    accuracies: Mapping[str, float]
    comparisons: tuple[GroupComparison, ...]  # one for each group of the ranking, in its order
    without: tuple[str, ...]  # ranked checkpoints that have no accuracy
    unmatched: tuple[Unmatched, ...]  # lines of the files that name no ranked checkpoint
    few_labels: FewLabels | None = None  # with --labels-per-class, of which accuracies are means
    standard_error: float | None = None  # the largest of the accuracies; None if unknown


def compare_with_oracle(
    ranking: Ranking, settings: RankSettings, progress: Progress | None = None
) -> Oracle:
    """The ranking compared with the accuracies that `--oracle` names.

    Raises InputError if a file cannot be used, no line of it names a ranked checkpoint, or the data
    has no labels to probe with.
    """
    assert settings.oracle is not None
    rows = [row for group in ranking.groups for row in group.rows]
    unmatched: list[Unmatched] = []
    few: FewLabels | None = None
    if settings.labels_per_class is not None:
        few, unmatched = _probe_few_labels(ranking, rows, settings, progress or Progress())
        accuracies = Accuracies(few.means, few.method)
    elif settings.oracle == PROBE:
        accuracies, unmatched = _probe(ranking, rows, settings, progress or Progress())
    else:
        table = read_table(Path(settings.oracle), ("path", "accuracy"))
        table, lines, unmatched = _matched(table, rows, ranking)
        shares, method = accuracies_of(table)
        by_path = {
            path: shares[line["path"]] for path, line in lines.items() if line["path"] in shares
        }
        accuracies = Accuracies(by_path, method)
    hyperparameters, more = hyperparameters_of(ranking, settings, progress or Progress())
    comparisons = [
        _compare_group(group, accuracies.shares, hyperparameters, settings, few)
        for group in ranking.groups
    ]
    return Oracle(
        source=settings.oracle,
        method=accuracies.method,
        level=settings.confidence,
        accuracies=accuracies.shares,
        comparisons=tuple(comparisons),
        without=tuple(row.path for row in rows if row.path not in accuracies.shares),
        unmatched=(*unmatched, *more),
        few_labels=few,
        standard_error=accuracies.standard_error,
    )


def _probe_few_labels(
    ranking: Ranking, rows: Sequence[Row], settings: RankSettings, progress: Progress
) -> tuple[FewLabels, list[Unmatched]]:
    """Probes of the rows' backbones with a few labels, by path, and the rows that failed.

    If there are labels enough, the full probe that judges them is among them.
    Raises InputError if the data has no labels, or nothing could be probed.
    """
    rows_by_file, failed = _embed(ranking, rows, settings, progress)
    files = [Path(file) for file in rows_by_file]
    if not files:
        raise _nothing_probed(failed)
    few, reasons = probe_few_labels(files, PROBED_LAYER, settings, progress)
    failed += [Unmatched(rows_by_file[file], reason) for file, reason in reasons.items()]
    few = replace(few, results={rows_by_file[file]: one for file, one in few.results.items()})
    if few.has_full:
        full, failed_too = _probe_files(rows_by_file, settings, progress)
        few = replace(few, full=full.shares, full_method=full.method)
        failed += [line for line in failed_too if line.path in few.results]
    return few, failed


def _probe(
    ranking: Ranking, rows: Sequence[Row], settings: RankSettings, progress: Progress
) -> tuple[Accuracies, list[Unmatched]]:
    """Top-1 accuracies of the rows' backbones, and the rows that failed.

    Raises InputError if the data has no labels, or nothing could be probed.
    """
    rows_by_file, failed = _embed(ranking, rows, settings, progress)
    accuracies, failed_too = _probe_files(rows_by_file, settings, progress)
    failed += failed_too
    if not accuracies.shares:
        raise _nothing_probed(failed)
    return accuracies, failed


def _embed(
    ranking: Ranking, rows: Sequence[Row], settings: RankSettings, progress: Progress
) -> tuple[dict[str, str], list[Unmatched]]:
    """Paths of the rows by feature file of their backbones, and the rows that failed.

    The backbone is probed whichever layer is ranked, since downstream tasks use the backbone.
    All checkpoints see the same labelled un-augmented samples. A row without a checkpoint is a
    feature file.
    Raises InputError if the data has no labels.
    """
    checkpoints = ranking.checkpoints
    features = {row.path: row.path for row in rows if row.path not in checkpoints}
    failed: list[Unmatched] = []
    to_embed = [checkpoints[row.path] for row in rows if row.path in checkpoints]
    if to_embed:
        session = open_probe_session(ranking.selection, settings, progress)
        scorer = session.open_scorer(PROBED_LAYER)
        for task, path in scorer.results(scorer.plans(to_embed), scorer.embed):
            features[str(task.checkpoint.path)] = str(path)
        failed += [Unmatched(file.path, file.reason) for file in session.scan.failed]
    return {features[row.path]: row.path for row in rows if row.path in features}, failed


def _probe_files(
    rows_by_file: Mapping[str, str], settings: RankSettings, progress: Progress
) -> tuple[Accuracies, list[Unmatched]]:
    """Top-1 accuracies by row, and the rows that failed.

    All are split alike and probed with the default protocol of `lidar probe`.
    """
    files = [Path(file) for file in rows_by_file]
    protocol = ProbeSettings(device=settings.device, layer=PROBED_LAYER, seed=settings.seed)
    probes = probe_files(files, [None] * len(files), protocol, progress)
    failed = [Unmatched(rows_by_file[file.train], file.reason) for file in probes.failed]
    for warning in dict.fromkeys(text for probed in probes.probed for text in probed.warnings):
        progress.note(f"warning: --oracle probe: {warning}")
    if not probes.probed:
        return Accuracies({}, ""), failed
    shares = {rows_by_file[probed.train]: probed.top1 for probed in probes.probed}
    error = max(probed.standard_error for probed in probes.probed)
    return Accuracies(shares, _describe_probes(probes.probed), error), failed


def _nothing_probed(failed: Sequence[Unmatched]) -> InputError:
    first = f"{failed[0].path}: {failed[0].reason}" if failed else "no checkpoint"
    return InputError(
        f"--oracle probe: nothing could be probed; the first: {first}", code="nothing-probed"
    )


def _describe_probes(probed: Sequence[ProbeResult]) -> str:
    first = probed[0]
    sizes = {(one.n_train, one.n_test, one.n_classes) for one in probed}
    error = 100 * max(one.standard_error for one in probed)
    return (
        f"linear probe of the {PROBED_LAYER}, {first.n_train} training and {first.n_test} test "
        f"images of {first.n_classes} classes, standard error up to {error:.1f} points"
        + ("" if len(sizes) == 1 else "; some have other images and cannot be compared")
    )


def hyperparameters_of(
    ranking: Ranking, settings: RankSettings, progress: Progress
) -> tuple[dict[str, Hyperparameters], list[Unmatched]]:
    """Hyperparameters by checkpoint, and the lines of --params that name no ranked checkpoint.

    They are read from --params if given, else from the checkpoints. The columns that are used are
    noted where the headings do not say it.
    Raises InputError if the file cannot be used.
    """
    rows = [row for group in ranking.groups for row in group.rows]
    if settings.params is None:
        return from_checkpoints([row.path for row in rows]), []
    table = read_table(settings.params, ("path",))
    table, lines, unmatched = _matched(table, rows, ranking)
    if origin := table.origin():
        names = ", ".join(columns_of(table)) or "none"
        progress.note(f"--params {settings.params}: {origin}; hyperparameters: {names}")
    return from_table(lines, table), unmatched


def hyperparameters_for_page(
    ranking: Ranking, settings: RankSettings, progress: Progress
) -> dict[str, Hyperparameters]:
    """Hyperparameters by checkpoint, and the numbers in the checkpoints' names, such as a step."""
    by_path, unmatched = hyperparameters_of(ranking, settings, progress)
    for line in unmatched:
        progress.note(f"{settings.params}: {line.path}: {line.reason}")
    paths = [row.path for group in ranking.groups for row in group.rows]
    return with_names(by_path, paths, ranking.directory)


def _matched(
    table: Table, rows: Sequence[Row], ranking: Ranking
) -> tuple[Table, dict[str, dict[str, str]], list[Unmatched]]:
    """The table by the first heading that names checkpoints, their lines, and the other lines."""
    checkpoints = [(row.path, row.aliases) for row in rows]
    unmatched: list[Unmatched] = []
    for each in table.by_heading():
        lines, others = match(each, checkpoints, ranking.directory, ranking.names)
        if lines:
            return each, lines, others
        unmatched = unmatched or others
    first = f", the first {unmatched[0].path}: {unmatched[0].reason}" if unmatched else ""
    raise InputError(
        f"{table.path}: none of its {len(table.rows)} lines names a ranked checkpoint{first}; "
        f"expected names as in the table, such as {ranking.names[rows[0].path]}, or paths "
        f"below {ranking.directory}",
        code="no-line-matches",
    )


def _compare_group(
    group: Group,
    accuracies: Mapping[str, float],
    hyperparameters: Mapping[str, Hyperparameters],
    settings: RankSettings,
    few: FewLabels | None,
) -> GroupComparison:
    checkpoints = {
        row.path: (row.score, accuracies[row.path]) for row in group.rows if row.path in accuracies
    }
    scores, shares = (
        [score for score, _ in checkpoints.values()],
        [a for _, a in checkpoints.values()],
    )
    by_path = {path: score for path, (score, _) in checkpoints.items()}
    level, seed = settings.confidence, settings.seed
    return GroupComparison(
        correlate(scores, shares, level=level, seed=seed),
        select(checkpoints) if checkpoints else None,
        by_hyperparameter(checkpoints, hyperparameters),
        None if few is None else compare_few_labels(by_path, few, level, seed),
    )


@dataclass(frozen=True)
class Pick:
    """The checkpoint that a metric selects; several if they share its best value."""

    metric: str
    paths: tuple[str, ...]  # empty if no checkpoint has a value
    accuracy: float | None  # mean over the paths


@dataclass(frozen=True)
class Selection:
    """The checkpoint that each metric selects, with the best and the median accuracy."""

    count: int
    best: Pick  # by accuracy
    median: float
    picks: tuple[Pick, ...]  # one for each metric


@dataclass(frozen=True)
class HyperparameterSelection:
    """Selection among checkpoints that differ in only one hyperparameter.

    In a random search no two checkpoints do: count is 0 and the accuracies are None. The accuracy
    of a metric is None if it has no value in one of the sets.
    """

    name: str
    sets: int  # of checkpoints that agree in all other hyperparameters
    count: int  # checkpoints in them
    best: float | None  # mean over the sets, as are the others
    median: float | None
    picks: Mapping[str, float | None]  # metric -> accuracy


ScoresAndAccuracies = Mapping[str, tuple[Score, float]]  # path -> score, accuracy


def select(checkpoints: ScoresAndAccuracies) -> Selection:
    """The checkpoint that each metric selects. There must be at least one checkpoint."""
    accuracies = {path: accuracy for path, (_, accuracy) in checkpoints.items()}
    picks = []
    for metric in with_value([score for score, _ in checkpoints.values()]):
        values = {path: score.value(metric.name) for path, (score, _) in checkpoints.items()}
        merits = {path: -metric.sort_key(v) for path, v in values.items() if v is not None}
        picks.append(_pick(metric.name, merits, accuracies))
    return Selection(
        len(checkpoints),
        _pick("oracle", accuracies, accuracies),
        statistics.median(accuracies.values()),
        tuple(picks),
    )


def by_hyperparameter(
    checkpoints: ScoresAndAccuracies, hyperparameters: Mapping[str, Hyperparameters]
) -> tuple[HyperparameterSelection, ...]:
    """A column for each hyperparameter that differs, as in the tables of RankMe and LiDAR.

    hyperparameters: by path; those of other checkpoints are ignored.
    """
    of_these = {path: values for path, values in hyperparameters.items() if path in checkpoints}
    return tuple(
        _select_in_sets(name, checkpoints, slices(of_these, name)) for name in varying(of_these)
    )


def _select_in_sets(
    name: str, checkpoints: ScoresAndAccuracies, sets: Sequence[Sequence[str]]
) -> HyperparameterSelection:
    metrics = [metric.name for metric in with_value([score for score, _ in checkpoints.values()])]
    if not sets:
        return HyperparameterSelection(name, 0, 0, None, None, dict.fromkeys(metrics))
    selections = [select({path: checkpoints[path] for path in paths}) for paths in sets]
    picks: dict[str, float | None] = {}
    for metric in metrics:
        accuracies = [
            next((pick.accuracy for pick in selection.picks if pick.metric == metric), None)
            for selection in selections
        ]
        values = [accuracy for accuracy in accuracies if accuracy is not None]
        picks[metric] = statistics.fmean(values) if len(values) == len(sets) else None
    return HyperparameterSelection(
        name,
        len(sets),
        sum(selection.count for selection in selections),
        statistics.fmean(selection.best.accuracy or 0.0 for selection in selections),
        statistics.fmean(selection.median for selection in selections),
        picks,
    )


def _pick(name: str, merits: Mapping[str, float], accuracies: Mapping[str, float]) -> Pick:
    if not merits:
        return Pick(name, (), None)
    best = max(merits.values())
    paths = tuple(path for path, merit in merits.items() if merit == best)
    return Pick(name, paths, statistics.fmean(accuracies[path] for path in paths))
