"""How sure a value is, as text: its reach, its interval, and the ranks that it ties with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lidar_cli.jobs.ranking.order import Row
from lidar_cli.jobs.scoring.confidence import Interval
from lidar_cli.report.numbers import metric_text, text_of


def with_reach(name: str, value: float | None, interval: Interval) -> str:
    """`149.6 +- 2.1`, the reach with the decimals of the value; the value alone without one."""
    text = metric_text(name, value)
    if value is None or interval.ci_high is None or text != text_of(value):
        return text
    reach = interval.ci_high - value
    decimals = len(text.partition(".")[2])
    rounded = f"{reach:.{decimals}f}"
    if "e" in text or (float(rounded) == 0 and reach > 0):
        rounded = f"{reach:.1g}"
    return f"{text} +- {rounded}"


def between(interval: Interval) -> str:
    """`147.5 .. 151.7`, or nothing where there is no interval."""
    if interval.ci_low is None:
        return ""
    return f"{text_of(interval.ci_low)} .. {text_of(interval.ci_high)}"


def tied_ranks(row: Row, rows: Iterable[Row]) -> str:
    """The ranks of the checkpoints that a row ties with, as `rank 2` or `ranks 2-4, 7`."""
    tied = set(row.tied_with)
    ranks = sorted({other.rank for other in rows if other.path in tied})
    if not ranks:
        return ""
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(_runs(ranks))}"


def _runs(numbers: Sequence[int]) -> list[str]:
    """Ascending whole numbers as runs: 2, 3, 4, 7 as `2-4` and `7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
