"""A race: a checkpoint leaves a ranking once it is surely not the best, before all its views.

At looks n_1 < n_2 < ... <= n every checkpoint that is still in is embedded up to there, on the same
samples and views as the others. It is put out if one that is better differs from it by more than
the paired interval of their difference (`confidence.ties`).

The interval allows for the number of pairs and for looking again. With K entrants and R looks its
level is 1 - 2 alpha / (R (K - 1)), so that each of the R (K - 1) comparisons that could put the
best one out errs, on its one side, with probability alpha / (R (K - 1)), and all of them together
with at most alpha = 1 - confidence (Bonferroni). That is said of expectations at the n of a look.

A metric's expectation grows or falls with n, and not alike for all: a gap may close before the last
look. So both values are carried on to n, each along a line in 1/n through this look and the one at
half its samples, and the better one must be the better there too. This part is no test: it has no
level, and a gap that closes late can still be missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.core.metrics import Metric
from lidar_cli.errors import FILE_ERRORS, InputError, InUse, SettingsError, first_line
from lidar_cli.extraction.run import BATCHES_UNTIL
from lidar_cli.ranking.cache import Cache, Task
from lidar_cli.ranking.cache_folder import CacheFolder
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import DirectoryScan, Skipped, survey
from lidar_cli.ranking.order import Row, order, tied_pairs, views_and_statistics
from lidar_cli.ranking.session import checked, one_layer, open_cache, row_of
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.intervals import COUNT
from lidar_cli.scoring.run import open_groups
from lidar_cli.settings import RankSettings

LEAST_SAMPLES = 50  # for a difference to be near normal, as its interval has it


@dataclass(frozen=True)
class Look:
    """What one look did. views: that the entrants needed beyond the look before, batches whole."""

    n: int
    entrants: int
    put_out: int
    views: int


@dataclass(frozen=True)
class Race:
    """How a race went.

    winners: never put out, best first: the winner, or all that may be the best.
    others: put out, the latest first, each as the look found it that did it.
    n, q: of a ranking without a race.
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

    @property
    def spent(self) -> int:
        """Views that were needed."""
        return sum(look.views for look in self.looks)

    @property
    def full(self) -> int:
        """Views that a ranking of the same entrants needs."""
        return self.looks[0].entrants * self.n * self.q


def race_directory(
    directory: Path, settings: RankSettings, progress: Progress | None = None
) -> Race:
    """The best checkpoint under a directory, or those that may be it, for a share of the views.

    What is embedded stays in the cache as interrupted work, which a later race or ranking goes on
    with.
    Raises SettingsError where the checkpoints are not comparable or n is too small for an early
    look, InputError if the directory or the data cannot be used or nothing has a value.
    """
    progress = progress or Progress()
    by = checked(directory, settings)
    check_race(settings)
    folder = CacheFolder(directory, settings.cache)
    found = survey(directory, settings, progress, Digests(directory, folder.path))
    known = list(found.checkpoints.values())
    layer = one_layer(settings.layer, [set(one.description.widths) for one in known], progress)
    device = find_device(settings.device)
    groups = open_groups(settings)
    cache = open_cache(folder, settings, found.features, layer, device, progress, groups)
    tasks = cache.plans(known, found.fail)
    if not tasks:
        failed = found.failed[:1]
        first = f"; {failed[0].path}: {failed[0].reason}" if failed else ""
        raise InputError(f"{directory}: no checkpoint for a race{first}")
    check_alike(tasks)
    at = looks_of(settings.n_samples, _width(tasks), settings.race_budget, settings.batch_size)
    looks, winners, others = _run(cache, tasks, at, by, settings, found)
    if all(row.value is None for row in winners):
        first = "".join(f"; {row.path}: {row.reason}" for row in winners[:1])
        first = first or "".join(f"; {left.path}: {left.reason}" for left in found.failed[:1])
        raise InputError(f"{directory}: nothing could be ranked, no checkpoint has a value{first}")
    alone = [Skipped(str(file.path), "a feature file: nothing to save") for file in found.alone]
    return Race(
        directory=str(directory),
        by=by,
        level=settings.confidence,
        data=str(tasks[0][1].provenance["data"]),
        n=settings.n_samples,
        q=settings.n_views,
        looks=tuple(looks),
        winners=tuple(winners),
        others=tuple(others),
        skipped=(*found.skipped, *alone),
        failed=tuple(found.failed),
    )


def looks_of(n: int, d: int, budget: float, batch: int | None = None) -> list[int]:
    """Samples at each look, each twice those before, n the last.

    The first is where intervals begin, above 2 d, or a sixteenth of n.
    budget: the share of all views that may be spent, in whole batches; batch: their size, None if
    it is found, and then no more than BATCHES_UNTIL to the first look. What an interrupted ranking
    left is gone on with in its own batches, whatever they spend.
    Raises SettingsError if the first look alone might spend more.
    """
    need, most = max(2 * d + 1, LEAST_SAMPLES), affordable(n, budget)
    # The last batch may hold all but one that were not asked for.
    allowed = most - batch + 1 if batch else most * BATCHES_UNTIL // (BATCHES_UNTIL + 1)
    if need > allowed:
        dear = need + batch - 1 if batch else math.ceil(need * (1 + 1 / BATCHES_UNTIL))
        raise SettingsError(
            f"--race: the first look needs {need} samples, more than 2 d = {2 * d} and at least "
            f"{LEAST_SAMPLES}, in whole batches up to {dear}, and --race-budget {budget:g} allows "
            f"{most} of n = {n} for all checkpoints; give -n {math.ceil(dear / budget)} or more, "
            "or rank without it"
        )
    looks = [max(need, min(n // 16, allowed))]
    while looks[-1] < n:
        looks.append(min(n, 2 * looks[-1]))
    return looks


def affordable(n: int, budget: float) -> int:
    """Samples of each checkpoint, of n, that a share of all views pays for."""
    return int(budget * n + 1e-9)  # a share of 0.3 of 170 is 51, and not below it


def corrected(confidence: float, looks: int, entrants: int) -> float:
    """The level of each interval, so that the best stays in at all looks with this confidence."""
    return 1.0 - 2.0 * (1.0 - confidence) / (looks * max(1, entrants - 1))


def check_race(settings: RankSettings) -> None:
    """Raise SettingsError for what a race cannot be about."""
    if settings.n_views == 0:
        raise SettingsError("--race saves views, and -q 0 has none; rank without it")
    if settings.by == "n_above_noise":
        raise SettingsError(f"--race by {settings.by}: {COUNT}; choose another metric with --by")
    if settings.clean_samples not in (None, settings.n_samples):
        raise SettingsError(
            "--race looks at as many un-augmented images as samples; leave out --clean-samples"
        )


def check_alike(tasks: Sequence[Task]) -> None:
    """Raise SettingsError unless all see the same views and have the same width."""
    seen = ("image_size", "mask_grid")
    split = [views_and_statistics(plan.provenance["views"]) for _, plan in tasks]
    for name, option, values in (
        (
            "views",
            "--views and --image-size",
            {
                repr([views, *map(plan.provenance.get, seen)])
                for (_, plan), (views, _) in zip(tasks, split, strict=True)
            },
        ),
        ("pixel statistics", "--pixel-stats", {statistics for _, statistics in split}),
        ("d", "--layer", {tuple(plan.layout.widths.items()) for _, plan in tasks}),
    ):
        if len(values) > 1:
            raise SettingsError(
                f"--race: the checkpoints differ in {name}, and only those alike can be compared; "
                f"make them alike with {option}, or race them apart"
            )


def put_out(
    rows: Sequence[Row], half: Sequence[float | None], n: int, by: Metric, level: float
) -> list[int]:
    """Places of the rows from which a better one can be told, at this level, now and at n samples.

    half: the value of each at half its samples.
    """
    tied = tied_pairs(rows, by, level)
    known = [at for at, row in enumerate(rows) if row.interval.se is not None]
    now = {at: by.sort_key(value) for at in known if (value := rows[at].value) is not None}
    then = {at: by.sort_key(_carried(rows[at], half[at], n)) for at in now}
    return [
        at
        for at in now
        if any(
            now[other] < now[at] and then[other] < then[at] and other not in tied[at]
            for other in now
        )
    ]


def _carried(row: Row, half: float | None, n: int) -> float:
    """The value at n on the line in 1/n; NaN, which is never better or worse, where half is None.

    With m the samples of the row, 1/m - 1/n is 1 - m/n times the way from 2/m to 1/m.
    """
    assert row.value is not None
    if half is None:
        return math.nan
    return row.value + (row.value - half) * (1.0 - row.score.n_samples / n)


def _run(
    cache: Cache,
    tasks: list[Task],
    looks: Sequence[int],
    by: Metric,
    settings: RankSettings,
    found: DirectoryScan,
) -> tuple[list[Look], list[Row], list[Row]]:
    """The looks that were held, the rows still in, and those put out."""
    n, q = settings.n_samples, settings.n_views
    level = corrected(settings.confidence, len(looks), len(tasks))
    room = affordable(n, settings.race_budget) * len(tasks) * q
    held: list[Look] = []
    rows: list[Row] = []
    others: list[Row] = []
    half: dict[str, float | None] = {}  # by path, the value at the look before
    batch: dict[str, int] = {}  # by path, known from the first look on
    before = 0
    for until in looks:
        if sum(_embedded(before, until, size, n) for size in batch.values()) * q > room:
            break
        seen, views = _look(cache, tasks, before, until, by, found, half, batch)
        if not before:  # those that failed by then count nowhere
            room = affordable(n, settings.race_budget) * len(seen) * q
        room, before = room - views, until
        rows = [row for _, row in seen]
        out = put_out(rows, [half[row.path] for row in rows], n, by, level)
        half = {row.path: row.value for row in rows}
        held.append(Look(until, len(rows), len(out), views))
        others = [*order([rows[at] for at in out], by, level), *others]
        tasks = [task for at, (task, _) in enumerate(seen) if at not in out]
        batch = {str(known.path): batch[str(known.path)] for known, _ in tasks}
        rows = [row for at, row in enumerate(rows) if at not in out]
        if len(rows) < 2:
            break
    winners = list(order(rows, by, level))
    if any(row.value is not None for row in winners):  # then who has none is not the best
        others = [*(row for row in winners if row.value is None), *others]
        winners = [row for row in winners if row.value is not None]
    return held, winners, others


def _look(
    cache: Cache,
    tasks: Sequence[Task],
    before: int,
    until: int,
    by: Metric,
    found: DirectoryScan,
    half: dict[str, float | None],
    batch: dict[str, int],
) -> tuple[list[tuple[Task, Row]], int]:
    """The rows of all that are still in, and the views that they needed, in whole batches.

    half: gets, at the first look, the value of each at half the samples; batch: the batch size.
    Raises InputError if one fails after the first look: whom it put out, nobody could tell.
    """
    seen: list[tuple[Task, Row]] = []
    views = 0
    with cache.shared_views(tasks) as store:
        for task in tasks:
            checkpoint, plan = task
            path = checkpoint.path
            try:
                scored = cache.score_first(checkpoint, plan, until, store)
                if not before:
                    part = cache.score_part(scored.path, until // 2)
                    half[str(path)] = part.score.value(by.name)
            except (InputError, SettingsError, InUse):
                raise
            except FILE_ERRORS as error:
                if before:
                    raise InputError(
                        f"{path}: failed at the look at n = {until}: {first_line(error)}; "
                        "rank without --race"
                    ) from error
                found.fail(path, error)
                continue
            size = batch[str(path)] = int(scored.provenance["batch_size"])
            layout = plan.layout
            views += _embedded(before, until, size, layout.n_samples) * layout.n_views
            seen.append((task, row_of(path, tuple(checkpoint.aliases), scored, by)))
    return seen, views


def _width(tasks: Sequence[Task]) -> int:
    return next(iter(tasks[0][1].layout.widths.values()))


def _embedded(before: int, until: int, batch: int, n: int) -> int:
    """Samples that are embedded to go on from one look to the next, in whole batches."""
    first, last = (min(n, math.ceil(at / batch) * batch) for at in (before, until))
    return last - first
