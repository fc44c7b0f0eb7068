"""A race finds the best checkpoint without embedding all views of the others.

At looks n_1 < n_2 < ... <= n every checkpoint still in the race (an entrant) is embedded up to the
look's n, on the same samples and views as the others. It is eliminated if a better one differs from
it by more than the paired interval of their difference (`intervals.ties`).

The interval allows for the number of pairs and for repeated looks. With K entrants and R looks its
level is 1 - 2 alpha / (R (K - 1)). Each of the R (K - 1) comparisons that could eliminate the best
checkpoint then errs, one-sided, with probability alpha / (R (K - 1)), and any of them with at most
alpha = 1 - confidence (Bonferroni). This holds for the expected values at the n of each look.

The expected value of a metric changes with n, and differently for each checkpoint: a gap may close
before the last look. So both values are extrapolated to n, each along a line in 1/n through this
look and its value at half the samples, and the better one must be better there too. The
extrapolation is not a test: it has no level, and it can miss a gap that closes late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.errors import FILE_ERRORS, InputError, InUse, SettingsError, first_line
from lidar_cli.extraction.run import BATCHES_UNTIL
from lidar_cli.ranking.cache import Task
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.group_metrics import find_order
from lidar_cli.ranking.names import name_below
from lidar_cli.ranking.order import Row, order, tied_pairs, unranked_row, views_and_statistics
from lidar_cli.ranking.paths import Paths
from lidar_cli.ranking.scorer import Scorer, concerns_every_checkpoint
from lidar_cli.ranking.session import Session, open_session
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings

LEAST_SAMPLES = 50  # the interval assumes that the difference is nearly normal


@dataclass(frozen=True)
class Look:
    """One look. views: how many were embedded since the look before, in complete batches."""

    n: int
    entrants: int
    eliminated: int
    views: int


@dataclass(frozen=True)
class Race:
    """The course of a race.

    winners: the rows that were never eliminated, best first: one winner, or all that may be best.
    others: the eliminated rows, latest first, each scored at the look that eliminated it.
    n, q: samples and views of a ranking without a race.
    """

    directory: str
    by: Metric
    level: float
    data: str
    n: int
    q: int
    looks: tuple[Look, ...]
    winners: tuple[Row, ...]
    others: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    failed: tuple[Skipped, ...]
    names: Mapping[str, str] = field(default_factory=dict)  # short names, by path

    def name(self, path: str) -> str:
        """The short name of a checkpoint; of another file, its path below the directory."""
        return name_below(path, self.names, self.directory)

    @property
    def views_spent(self) -> int:
        """Views that were embedded."""
        return sum(look.views for look in self.looks)

    @property
    def views_without_race(self) -> int:
        """Views that a ranking of the same checkpoints embeds."""
        return self.looks[0].entrants * self.n * self.q


def race_directory(paths: Paths, settings: RankSettings, progress: Progress | None = None) -> Race:
    """The best checkpoint of a selection, or those that may be it, from a share of the views.

    Embeddings stay in the cache as partial files, which a later race or ranking resumes.
    Raises SettingsError if the checkpoints are not comparable or n is too small for an early look,
    InputError if the directory or the data cannot be used or nothing has a value.
    """
    session = open_session(paths, settings, progress)
    check_race(settings)
    session.scan_directory()
    scan = session.scan
    scorer = session.open_scorer(session.choose_layer())
    tasks = scorer.plans(scan.checkpoints.values())
    if not tasks:
        session.note_failed(scan.failed)
        failed = "".join(f"; {file.path}: {file.reason}" for file in scan.failed[:1])
        raise InputError(
            f"{session.selection}: no checkpoint for a race{failed}", code="no-checkpoint"
        )
    check_comparable(tasks)
    settings = replace(settings, n_samples=tasks[0].plan.layout.n_samples)
    counts = looks_of(settings.n_samples, _width(tasks), settings.race_budget, settings.batch_size)
    scorer.note_disk_space(tasks)
    looks, winners, others = _run_looks(session, scorer, tasks, counts)
    if all(row.value is None for row in winners):
        first = "".join(f"; {row.path}: {row.reason}" for row in winners[:1])
        first = first or "".join(f"; {file.path}: {file.reason}" for file in scan.failed[:1])
        raise InputError(
            f"{session.selection}: nothing could be ranked, no checkpoint has a value{first}",
            code="no-value",
        )
    lone = scan.features_without_checkpoint
    features = [
        Skipped(str(file.path), "a feature file: a race saves nothing on it") for file in lone
    ]
    return Race(
        directory=str(session.directory),
        by=session.by,
        level=settings.confidence,
        data=str(tasks[0].plan.provenance["data"]),
        n=settings.n_samples,
        q=settings.n_views,
        looks=tuple(looks),
        winners=tuple(winners),
        others=tuple(others),
        skipped=(*scan.skipped, *features),
        failed=tuple(scan.failed),
        names=session.names(),
    )


def looks_of(n: int, d: int, budget: float, batch: int | None = None) -> list[int]:
    """The number of samples at each look: each doubles the one before, and the last is n.

    The first is the least for which there are intervals, above 2 d, or a sixteenth of n if larger.
    budget: the share of all views that may be embedded, in complete batches. batch: their size; if
    None, a size that fits is used, with at least BATCHES_UNTIL batches in the first look. A look
    that resumes an interrupted ranking uses that ranking's batches, even beyond the budget.
    Raises SettingsError if the first look alone might exceed the budget.
    """
    need, most = max(2 * d + 1, LEAST_SAMPLES), samples_within_budget(n, budget)
    # Of the last batch, all samples but one may exceed those that are needed.
    allowed = most - batch + 1 if batch else most * BATCHES_UNTIL // (BATCHES_UNTIL + 1)
    if need > allowed:
        full = need + batch - 1 if batch else math.ceil(need * (1 + 1 / BATCHES_UNTIL))
        raise SettingsError(
            f"--race: the first look needs {need} samples, more than 2 d = {2 * d} and at least "
            f"{LEAST_SAMPLES}, in whole batches up to {full}, and --race-budget {budget:g} allows "
            f"{most} of n = {n} for all checkpoints; give -n {math.ceil(full / budget)} or more, "
            "or rank without it",
            code="race-budget",
        )
    looks = [max(need, min(n // 16, allowed))]
    while looks[-1] < n:
        looks.append(min(n, 2 * looks[-1]))
    return looks


def samples_within_budget(n: int, budget: float) -> int:
    """How many of its n samples each checkpoint may use if `budget` is the share of all views."""
    return int(budget * n + 1e-9)  # 0.3 of 170 is 51, which rounding must not make 50


def bonferroni_level(confidence: float, looks: int, entrants: int) -> float:
    """The level of each interval for which the best stays in at all looks with this confidence."""
    return 1.0 - 2.0 * (1.0 - confidence) / (looks * max(1, entrants - 1))


def check_race(settings: RankSettings) -> None:
    """Raise SettingsError for settings with which there can be no race."""
    find_order(settings.by, "--race")
    if settings.n_views == 0:
        raise SettingsError("--race saves views, and -q 0 has none; rank without it")
    reason = METRICS[settings.by].no_interval
    if reason is not None:
        raise SettingsError(f"--race by {settings.by}: {reason}; choose another metric with --by")
    if settings.clean_samples not in (None, settings.n_samples):
        raise SettingsError(
            "--race looks at as many un-augmented images as samples; leave out --clean-samples"
        )


def check_comparable(tasks: Sequence[Task]) -> None:
    """Raise SettingsError unless all tasks see the same views and have the same width."""
    provenances = [task.plan.provenance for task in tasks]
    split = [views_and_statistics(provenance["views"]) for provenance in provenances]
    views = {
        repr([views, provenance.get("image_size"), provenance.get("mask_grid")])
        for provenance, (views, _) in zip(provenances, split, strict=True)
    }
    widths = {tuple(task.plan.layout.widths.items()) for task in tasks}
    backbones = {task.checkpoint.description.widths.get("backbone") for task in tasks}
    for name, option, count in (
        ("views", "--views and --image-size", len(views)),
        ("pixel statistics", "--pixel-stats", len({statistics for _, statistics in split})),
        ("d", "--layer backbone" if len(backbones) == 1 else "", len(widths)),
    ):
        if count > 1:
            cure = f"make them equal with {option}, or " if option else ""
            raise SettingsError(
                f"--race: the checkpoints differ in {name} and cannot be compared; "
                f"{cure}race them separately",
                code="not-comparable",
            )


def eliminated(
    rows: Sequence[Row], half: Sequence[float | None], n: int, by: Metric, level: float
) -> list[int]:
    """Indices of the rows that are worse than another row, tested now and extrapolated to n.

    half: the value of each row at half its samples. level: of the test.
    """
    tied = tied_pairs(rows, by, level)
    with_interval = [at for at, row in enumerate(rows) if row.interval.se is not None]
    now = {at: by.sort_key(value) for at in with_interval if (value := rows[at].value) is not None}
    at_n = {at: by.sort_key(_extrapolated(rows[at], half[at], n)) for at in now}
    return [
        at
        for at in now
        if any(
            now[other] < now[at] and at_n[other] < at_n[at] and other not in tied[at]
            for other in now
        )
    ]


def _extrapolated(row: Row, half: float | None, n: int) -> float:
    """The value at n on the line in 1/n; NaN, which is never better or worse, if half is None.

    With m the samples of the row, the step from 1/m to 1/n is 1 - m/n times that from 2/m to 1/m.
    """
    assert row.value is not None
    if half is None:
        return math.nan
    return row.value + (row.value - half) * (1.0 - row.score.n_samples / n)


@dataclass(frozen=True)
class _Entrant:
    """A checkpoint still in the race. half: its value at half the samples of `row`."""

    task: Task
    row: Row
    half: float | None

    def views(self, before: int, count: int) -> int:
        """Views to embed from one number of samples to the next, in whole batches."""
        layout, batch = self.task.plan.layout, int(self.row.score.provenance["batch_size"])
        first, last = (
            min(layout.n_samples, math.ceil(at / batch) * batch) for at in (before, count)
        )
        return (last - first) * layout.n_views


def _run_looks(
    session: Session, scorer: Scorer, tasks: Sequence[Task], counts: Sequence[int]
) -> tuple[list[Look], list[Row], list[Row]]:
    """The looks that the budget allows, the rows never eliminated, and those eliminated."""
    settings, by = session.settings, session.by
    n, q = tasks[0].plan.layout.n_samples, settings.n_views
    level = bonferroni_level(settings.confidence, len(counts), len(tasks))
    looks: list[Look] = []
    others: list[Row] = []
    entrants: list[_Entrant] = []
    previous: dict[str, Row] = {}
    budget, before = 0, 0
    for count in counts:
        if sum(entrant.views(before, count) for entrant in entrants) > budget:
            break
        if before:
            tasks = [entrant.task for entrant in entrants]
        entrants = _look(session, scorer, tasks, count, previous)
        views = sum(entrant.views(before, count) for entrant in entrants)
        if not before:  # failed checkpoints add nothing to the budget
            budget = samples_within_budget(n, settings.race_budget) * len(entrants) * q
        budget, before = budget - views, count
        rows = [entrant.row for entrant in entrants]
        previous = {row.path: row for row in rows}
        losers = eliminated(rows, [entrant.half for entrant in entrants], n, by, level)
        looks.append(Look(count, len(rows), len(losers), views))
        others = [*order([rows[at] for at in losers], by, level), *others]
        entrants = [entrant for at, entrant in enumerate(entrants) if at not in losers]
        if len(entrants) < 2:
            break
    winners = list(order([entrant.row for entrant in entrants], by, level))
    if any(row.value is not None for row in winners):  # then a row without a value is not the best
        others = [*(row for row in winners if row.value is None), *others]
        winners = [row for row in winners if row.value is not None]
    return looks, winners, others


def _look(
    session: Session,
    scorer: Scorer,
    tasks: Sequence[Task],
    count: int,
    previous: Mapping[str, Row],
) -> list[_Entrant]:
    """Embed every task up to `count` samples and score it.

    previous: rows of the look before, by path; empty at the first look.
    Raises InputError if a checkpoint fails after the first look, because earlier eliminations may
    have depended on it.
    """
    by, entrants = session.by, []
    counts = [count] if previous else [count, count // 2]
    scorer.begin(tasks)
    with scorer.shared_views(tasks) as views:
        for task in tasks:
            path, begun = task.checkpoint.path, time.monotonic()
            session.progress.checkpoint(scorer.name(task))
            try:
                scores = scorer.score_first(task, counts, views)
            except FILE_ERRORS as error:
                if concerns_every_checkpoint(error) or isinstance(error, InUse):
                    raise
                if previous:
                    raise InputError(
                        f"{path}: failed at the look at n = {count}: {first_line(error)}; "
                        "rank without --race",
                        code="failed-in-race",
                    ) from error
                session.scan.fail(path, error)
                session.progress.failed(scorer.name(task))
                continue
            scorer.report_finished(task, scores[0], begun)
            row = unranked_row(path, task.checkpoint.aliases, scores[0], by)
            half = previous[row.path].value if previous else scores[1].value(by.name)
            entrants.append(_Entrant(task, row, half))
    return entrants


def _width(tasks: Sequence[Task]) -> int:
    return next(iter(tasks[0].plan.layout.widths.values()))
