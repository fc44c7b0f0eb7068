"""A race to a table, JSON or bare paths."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lidar_cli.ranking.order import Row
from lidar_cli.ranking.race import Race
from lidar_cli.report.text import console, lines, one_line, print_columns, shown, with_reach


def to_json(race: Race, count: int | None) -> str:
    """One object: the looks, what they cost, and the first `count` checkpoints, or all."""
    document = {
        "by": race.by.name,
        "direction": race.by.direction,
        "data": race.data,
        "race": {
            "confidence": race.level,
            "winner": race.winners[0].path if len(race.winners) == 1 else None,
            "tied": [row.path for row in race.winners] if len(race.winners) > 1 else [],
            "views": race.spent,
            "views_of_all": race.full,
            "looks": [
                {
                    "n_samples": look.n,
                    "entrants": look.entrants,
                    "put_out": look.eliminated,
                    "views": look.views,
                }
                for look in race.looks
            ],
        },
        "checkpoints": [
            {
                "rank": rank,
                "path": row.path,
                "aliases": list(row.aliases),
                "put_out": out,
                "n_samples": row.score.n_samples,
                "value": row.value,
                "reason": row.reason,
                "ci_low": row.interval.ci_low,
                "ci_high": row.interval.ci_high,
            }
            for rank, row, out in _placed(race, count)
        ],
        "skipped": [{"path": left.path, "reason": left.reason} for left in race.skipped],
        "failed": [{"path": left.path, "reason": left.reason} for left in race.failed],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_paths(race: Race, count: int | None, for_people: bool) -> bytes:
    """Paths alone, best first, one a line: as they are, or as a terminal may show them."""
    return lines([row.path for _, row, _ in _placed(race, count)], for_people)


def print_race(race: Race, count: int | None) -> None:
    """The looks, the order, and how sure the winner is."""
    out = console()
    first = race.winners[0].score
    out.print(
        one_line(
            f"race by {race.by.name} ({race.by.direction} is better)  layer {first.layer}  "
            f"n = {race.n}  q = {race.q}  d = {first.dim}  data: {race.data}"
        )
    )
    rows = [
        [
            str(rank),
            shown(row.path, race.directory),
            with_reach(race.by.name, row.value, row.interval),
            str(row.score.n_samples),
            "put out" if put_out else "",
        ]
        for rank, row, put_out in _placed(race, count)
    ]
    print_columns(out, ["rank", "checkpoint", race.by.name, "n", ""], rows, fixed=2)
    for look in race.looks:
        out.print(
            one_line(
                f"n = {look.n}: {look.entrants} checkpoints, {look.eliminated} put out, "
                f"{look.views:,} views",
                style="dim",
            )
        )
    for left in race.failed:
        where = shown(left.path, race.directory)
        out.print(one_line(f"failed: {where}: {left.reason}", style="red"))
    for left in race.skipped:
        where = shown(left.path, race.directory)
        out.print(one_line(f"skipped: {where}: {left.reason}", style="dim"))
    out.print(
        one_line(f"spent {race.spent:,} of {race.full:,} views ({race.spent / race.full:.0%})")
    )
    out.print(one_line(verdict(race)))


def verdict(race: Race) -> str:
    """Who won, at which confidence, in one sentence."""
    looks = f"{race.looks[0].n} to {race.looks[-1].n}" if len(race.looks) > 1 else race.looks[0].n
    told = f"at {race.level:.3g} confidence over all looks, each at its own n ({looks} of {race.n})"
    names = [shown(row.path, race.directory) for row in race.winners]
    if len(names) == 1:
        return f"{names[0]} is the best by {race.by.name}, {told}"
    return f"a tie: the best by {race.by.name} is one of {', '.join(names)}, {told}"


def _placed(race: Race, count: int | None) -> Iterator[tuple[int, Row, bool]]:
    """Rank, row, and whether it was put out."""
    rows = [(row, False) for row in race.winners] + [(row, True) for row in race.others]
    for at, (row, out) in enumerate(rows[:count]):
        yield at + 1, row, out
