"""A ranking against downstream accuracies: agreement of every metric, and what its pick is worth.

The accuracies come from a CSV file or from linear probes of the ranked checkpoints. They judge the
order and never enter it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.core.metrics import METRICS
from lidar_cli.data.tables import Table, Unmatched, match, read_table
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.ranking.correlation import Correlation, correlate
from lidar_cli.ranking.hyperparameters import (
    Value,
    from_checkpoints,
    from_table,
    slices,
    telling,
    with_names,
)
from lidar_cli.ranking.oracle_probe import PROBE, probe_rows
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import Ranking
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import RankSettings


@dataclass(frozen=True)
class Verdict:
    """One comparable group against the oracle; None of it where no checkpoint has an accuracy."""

    correlations: tuple[Correlation, ...]
    selection: Selection | None
    hyperparameters: tuple[Varied, ...]


@dataclass(frozen=True)
class Oracle:
    """What the oracle says about a ranking. Accuracies are shares of 1, by checkpoint path."""

    source: str  # the file, or `probe`
    told: str  # how the accuracies were read or made, in words
    level: float  # of the intervals
    accuracies: Mapping[str, float]
    verdicts: tuple[Verdict, ...]  # a group of the ranking each, in its order
    without: tuple[str, ...]  # ranked checkpoints of which the oracle says nothing
    unmatched: tuple[Unmatched, ...]  # lines of the files that mean no ranked checkpoint


def check_tables(settings: RankSettings, report: bool = False) -> None:
    """Raise InputError or SettingsError for an --oracle or --params that cannot be used.

    Before the work: a mistyped name is told at once.
    report: whether there is one, which draws hyperparameters without an oracle too.
    """
    if settings.oracle is None and settings.params is not None and not report:
        raise SettingsError(
            "--params groups accuracies by hyperparameter, name them with --oracle; or draws "
            "metrics against it in a --report"
        )
    if settings.oracle not in (None, PROBE):
        _accuracies(read_table(Path(settings.oracle or ""), ("path", "accuracy")))
    if settings.params is not None:
        read_table(settings.params, ("path",))


def judge(ranking: Ranking, settings: RankSettings, progress: Progress | None = None) -> Oracle:
    """A ranking against the oracle that the settings name.

    Raises InputError if a file cannot be used, no line of it means a ranked checkpoint, or the data
    has no labels to probe with.
    """
    assert settings.oracle is not None
    rows = [row for group in ranking.groups for row in group.rows]
    unmatched: list[Unmatched] = []
    if settings.oracle == PROBE:
        probed = probe_rows(
            rows, ranking.checkpoints, ranking.directory, settings, progress or Progress()
        )
        accuracies, told, unmatched = probed.accuracies, probed.told, list(probed.failed)
    else:
        table = read_table(Path(settings.oracle), ("path", "accuracy"))
        lines, unmatched = _matched(table, rows, ranking)
        shares, told = _accuracies(table)
        accuracies = {path: shares[line["path"]] for path, line in lines.items()}
    known, more = trained_with(ranking, settings)
    return Oracle(
        source=settings.oracle,
        told=told,
        level=settings.confidence,
        accuracies=accuracies,
        verdicts=tuple(_verdict(group, accuracies, known, settings) for group in ranking.groups),
        without=tuple(row.path for row in rows if row.path not in accuracies),
        unmatched=(*unmatched, *more),
    )


def trained_with(
    ranking: Ranking, settings: RankSettings
) -> tuple[dict[str, dict[str, Value]], list[Unmatched]]:
    """Hyperparameters by checkpoint, and lines of --params that mean none.

    From that file, else what checkpoints carry. Raises InputError if the file cannot be used.
    """
    rows = [row for group in ranking.groups for row in group.rows]
    if settings.params is None:
        return from_checkpoints([row.path for row in rows]), []
    table = read_table(settings.params, ("path",))
    lines, unmatched = _matched(table, rows, ranking)
    return from_table(lines, table), unmatched


def told_of_training(
    ranking: Ranking, settings: RankSettings, progress: Progress
) -> dict[str, dict[str, Value]]:
    """The same for a report: beside the numbers in the names of files, which say the step."""
    known, unmatched = trained_with(ranking, settings)
    for line in unmatched:
        progress.note(f"{settings.params}: {line.path}: {line.reason}")
    paths = [row.path for group in ranking.groups for row in group.rows]
    return with_names(known, paths, ranking.directory)


def _matched(
    table: Table, rows: Sequence[Row], ranking: Ranking
) -> tuple[dict[str, dict[str, str]], list[Unmatched]]:
    lines, unmatched = match(table, [(row.path, row.aliases) for row in rows], ranking.directory)
    if not lines:
        first = f", the first {unmatched[0].path}: {unmatched[0].reason}" if unmatched else ""
        raise InputError(
            f"{table.path}: none of its {len(table.rows)} lines means a ranked checkpoint{first}; "
            f"expected paths below {ranking.directory}, such as "
            f"{Path(rows[0].path).name if len(rows) == 1 else rows[0].path}"
        )
    return lines, unmatched


def _accuracies(table: Table) -> tuple[dict[str, float], str]:
    """Text of a line's path -> accuracy as a share of 1, and how the numbers were understood.

    Percent where one of them has the sign or exceeds 1. Raises InputError for what is neither.
    """
    numbers: dict[str, float] = {}
    percent = False
    for row in table.rows:
        text = row["accuracy"]
        try:
            numbers[row["path"]] = float(text.removesuffix("%"))
        except ValueError as error:
            raise InputError(
                f"{table.path}: {row['path'][:100]}: accuracy {text[:50]!r} is not a number"
            ) from error
        percent |= text.endswith("%") or numbers[row["path"]] > 1
    for path, number in numbers.items():
        if not 0 <= number <= (100 if percent else 1):
            raise InputError(
                f"{table.path}: {path[:100]}: accuracy {number:g}; expected 0 to 1, or 0 to 100 %"
            )
    scale = 100 if percent else 1
    told = f"read as {'percent' if percent else 'shares of 1'}"
    return {path: number / scale for path, number in numbers.items()}, told


def _verdict(
    group: Group,
    accuracies: Mapping[str, float],
    known: Mapping[str, Mapping[str, Value]],
    settings: RankSettings,
) -> Verdict:
    judged = {
        row.path: (row.score, accuracies[row.path]) for row in group.rows if row.path in accuracies
    }
    scores, found = [score for score, _ in judged.values()], [a for _, a in judged.values()]
    return Verdict(
        correlate(scores, found, level=settings.confidence, seed=settings.seed),
        select(judged) if judged else None,
        by_hyperparameter(judged, known),
    )


@dataclass(frozen=True)
class Pick:
    """The checkpoint that a metric finds best; several where its best value is shared."""

    metric: str
    paths: tuple[str, ...]  # empty where no checkpoint has a value
    accuracy: float | None  # their mean


@dataclass(frozen=True)
class Selection:
    """What each metric picks among some checkpoints, beside the best and the median of them."""

    count: int
    best: Pick  # by the oracle itself
    median: float
    picks: tuple[Pick, ...]  # a metric each


@dataclass(frozen=True)
class Varied:
    """Selection among checkpoints that differ in one hyperparameter alone.

    A random search has no two such checkpoints: count is 0 and the accuracies are None. A metric's
    is None too where it has no value in one of the sets.
    """

    name: str
    sets: int  # of checkpoints that agree in all other hyperparameters
    count: int  # checkpoints in them
    best: float | None  # means over the sets, as are the others
    median: float | None
    picks: Mapping[str, float | None]  # metric -> accuracy


Judged = Mapping[str, tuple[Score, float]]  # path -> score, accuracy


def select(judged: Judged) -> Selection:
    """The accuracy of each metric's pick among some checkpoints, of which there is one at least."""
    accuracies = {path: accuracy for path, (_, accuracy) in judged.items()}
    picks = []
    for name, metric in METRICS.items():
        values = {path: score.value(name) for path, (score, _) in judged.items()}
        merits = {path: -metric.sort_key(v) for path, v in values.items() if v is not None}
        picks.append(_pick(name, merits, accuracies))
    return Selection(
        len(judged),
        _pick("oracle", accuracies, accuracies),
        statistics.median(accuracies.values()),
        tuple(picks),
    )


def by_hyperparameter(
    judged: Judged, known: Mapping[str, Mapping[str, Value]]
) -> tuple[Varied, ...]:
    """A column for each hyperparameter that differs, as in the tables of RankMe and LiDAR.

    known: hyperparameters by checkpoint; those that are not judged do not count.
    """
    known = {path: values for path, values in known.items() if path in judged}
    return tuple(_varied(name, judged, slices(known, name)) for name in telling(known))


def _varied(name: str, judged: Judged, sets: Sequence[Sequence[str]]) -> Varied:
    if not sets:
        return Varied(name, 0, 0, None, None, dict.fromkeys(METRICS))
    found = [select({path: judged[path] for path in paths}) for paths in sets]
    picks: dict[str, float | None] = {}
    for at, metric in enumerate(METRICS):
        picked = [selection.picks[at].accuracy for selection in found]
        known = [accuracy for accuracy in picked if accuracy is not None]
        picks[metric] = statistics.fmean(known) if len(known) == len(picked) else None
    return Varied(
        name,
        len(sets),
        sum(selection.count for selection in found),
        statistics.fmean(selection.best.accuracy or 0.0 for selection in found),
        statistics.fmean(selection.median for selection in found),
        picks,
    )


def _pick(name: str, merits: Mapping[str, float], accuracies: Mapping[str, float]) -> Pick:
    if not merits:
        return Pick(name, (), None)
    most = max(merits.values())
    paths = tuple(path for path, merit in merits.items() if merit == most)
    return Pick(name, paths, statistics.fmean(accuracies[path] for path in paths))
