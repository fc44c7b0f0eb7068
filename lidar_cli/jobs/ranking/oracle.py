"""A ranking against downstream accuracies: agreement of every metric, and what its pick is worth.

The accuracies come from a CSV file or from linear probes of the ranked checkpoints. They judge the
order and never enter it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.errors import InputError, SettingsError
from lidar_cli.jobs.rank import Ranking
from lidar_cli.jobs.ranking.correlate import Correlation, correlate
from lidar_cli.jobs.ranking.hyperparameters import Value, from_checkpoints, from_table, with_names
from lidar_cli.jobs.ranking.oracle_probe import PROBE, probe_rows
from lidar_cli.jobs.ranking.order import Group, Row
from lidar_cli.jobs.ranking.selection import Selection, Varied, by_hyperparameter, select
from lidar_cli.jobs.ranking.tables import Table, Unmatched, match, read_table
from lidar_cli.jobs.watch import Watcher
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


def judge(ranking: Ranking, settings: RankSettings, watcher: Watcher | None = None) -> Oracle:
    """A ranking against the oracle that the settings name.

    Raises InputError if a file cannot be used, no line of it means a ranked checkpoint, or the data
    has no labels to probe with.
    """
    assert settings.oracle is not None
    rows = [row for group in ranking.groups for row in group.rows]
    unmatched: list[Unmatched] = []
    if settings.oracle == PROBE:
        probed = probe_rows(
            rows, ranking.checkpoints, ranking.directory, settings, watcher or Watcher()
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
    ranking: Ranking, settings: RankSettings, watcher: Watcher
) -> dict[str, dict[str, Value]]:
    """The same for a report: beside the numbers in the names of files, which say the step."""
    known, unmatched = trained_with(ranking, settings)
    for line in unmatched:
        watcher.note(f"{settings.params}: {line.path}: {line.reason}")
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
