"""A race as a table, JSON or paths alone."""

from __future__ import annotations

import dataclasses
import json

from lidar_cli.ranking.order import Row, is_constant
from lidar_cli.ranking.race import Race
from lidar_cli.ranking.session import toy_data_note
from lidar_cli.report.ranking import print_left_out, value_record
from lidar_cli.report.text import (
    console,
    error_console,
    format_with_interval,
    joined_by_and,
    path_lines,
    print_columns,
    print_wrapped,
)


def to_json(race: Race, count: int | None) -> str:
    """A JSON object: the looks and their cost, and the first `count` checkpoints, or all."""
    winners = [row.path for row in race.winners]
    document = {
        "by": race.by.name,
        "direction": race.by.direction,
        "data": race.data,
        "toy_data": toy_data_note(race.data) is not None,
        "data_note": toy_data_note(race.data),
        "verdict": result_text(race),
        "race": {
            "confidence": race.level,
            "winner": winners[0] if len(winners) == 1 else None,
            "tied": winners if len(winners) > 1 else [],
            "views": race.views_spent,
            "views_of_all": race.views_without_race,
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
                "name": race.name(row.path),
                "path": row.path,
                "aliases": list(row.aliases),
                "put_out": eliminated,
                "n_samples": row.score.n_samples,
                **value_record(row),
            }
            for rank, row, eliminated in _rows(race, count)
        ],
        "skipped": [dataclasses.asdict(file) for file in race.skipped],
        "failed": [dataclasses.asdict(file) for file in race.failed],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_paths(race: Race, count: int | None) -> bytes:
    """Paths alone, best first, one per line."""
    return path_lines([row.path for _, row, _ in _rows(race, count)])


def print_race(race: Race, count: int | None) -> None:
    """Print the winner with its confidence, the order, the looks and their cost."""
    out, err = console(), error_console()
    by, first = race.by, race.winners[0].score
    print_wrapped(out, result_text(race), style="bold")
    if toy := toy_data_note(race.data):
        out.print_line(toy, style="yellow")
    spent, full = race.views_spent, race.views_without_race
    facts = [
        f"{race.looks[0].entrants} checkpoints by {by.name} ({by.direction} is better)",
        *(first.layer, f"n = {race.n}", f"q = {race.q}", f"d = {first.dim}"),
        f"data {race.data}",
        f"spent {spent:,} of {full:,} views ({spent / full:.0%})",
    ]
    print_wrapped(out, ", ".join(facts))
    if out.is_terminal:
        out.print_line("")
    rows = [
        [
            str(rank),
            race.name(row.path),
            format_with_interval(by.name, row.value, row.interval),
            str(row.score.n_samples),
            "eliminated" if eliminated else "",
        ]
        for rank, row, eliminated in _rows(race, count)
    ]
    print_columns(out, ["#", "checkpoint", by.name, "n", ""], rows, fixed=2)
    for look in race.looks:
        out.print_line(
            f"n = {look.n}: {look.entrants} checkpoints, {look.eliminated} eliminated, "
            f"{look.views:,} views",
            style="dim",
        )
    print_left_out(err, race.failed, race.skipped, race.name)


def result_text(race: Race) -> str:
    """The winner or the tie, and its confidence, in one sentence."""
    looks = f"{race.looks[0].n} to {race.looks[-1].n}" if len(race.looks) > 1 else race.looks[0].n
    basis = (
        f"at {race.level:.3g} confidence over all looks, each at its own n ({looks} of {race.n})"
    )
    names = [race.name(row.path) for row in race.winners]
    collapsed = [race.name(row.path) for row in race.winners if is_constant(row.score, race.by)]
    caution = ""
    if collapsed:
        caution = (
            f" But the embedding of {joined_by_and(collapsed)} is constant or nearly so "
            "(normalized_std near 0): order by that, or leave it out."
        )
    if len(names) == 1:
        return f"{names[0]} is best by {race.by.name}, {basis}.{caution}"
    return f"No single best by {race.by.name}: one of {', '.join(names)}, {basis}.{caution}"


def _rows(race: Race, count: int | None) -> list[tuple[int, Row, bool]]:
    """Rank, row, and whether it was eliminated, for the first `count` rows, or all."""
    rows = [*((row, False) for row in race.winners), *((row, True) for row in race.others)]
    return [(rank, row, eliminated) for rank, (row, eliminated) in enumerate(rows[:count], 1)]
