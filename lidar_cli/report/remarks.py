"""What the values of a ranking depend on, and remarks about them, as on terminal and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lidar_cli.ranking.order import Group, Row, q_text
from lidar_cli.ranking.session import Ranking
from lidar_cli.ranking.trust import noise_warnings
from lidar_cli.report import baseline as baseline_report
from lidar_cli.report import group_metrics as group_report
from lidar_cli.report.scores import BIAS
from lidar_cli.report.text import by_remark, counted, first_and_more
from lidar_cli.report.verdict import count_ties, differing
from lidar_cli.scoring.compute import BIASED
from lidar_cli.settings import MetricSettings

# Printed in a heading only where groups differ in them.
SHOWN_IF_DIFFERENT = (
    "pixel statistics",
    "seed",
    "normalised",
    "precision",
    "storage",
    "embedding revision",
)


def facts(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each in a few words, for the line below the answer."""
    common, ties = group.common, count_ties(group)
    copies = sum(len(row.aliases) for row in group.rows)
    differ = differing(ranking.groups)
    return [
        counted(len(group.rows), "checkpoint"),
        *([counted(ties, "tie")] if ties else []),
        *([f"{copies} cop{'ies' if copies > 1 else 'y'} left out"] if copies else []),
        str(common["layer"]),
        f"n = {common['n']}",
        f"q = {q_text(common)}",
        f"d = {common['d']}",
        *_views(common, "{} views"),
        *([f"delta = {common['delta']:g}"] if common["delta"] != MetricSettings.delta else []),
        *(f"{name} {common[name]}" for name in SHOWN_IF_DIFFERENT if name in differ),
        f"data {_data(group)}",
        *([f"+- {100 * ranking.level:g} %"] if has_intervals(group) else []),
    ]


def has_intervals(group: Group) -> bool:
    """Whether any value has an interval."""
    return any(row.interval.ci_low is not None for row in group.rows)


def heading(group: Group, ranking: Ranking) -> str:
    """What the checkpoints of a group have in common, in one line."""
    by = f"by {ranking.by.name} ({ranking.by.direction} is better)"
    return "  ".join([f"{counted(len(group.rows), 'checkpoint')} {by}", *constants(group, ranking)])


def constants(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each in a few words."""
    common = group.common
    return [
        f"layer {common['layer']}",
        f"n = {common['n']}",
        f"q = {q_text(common)}",
        f"d = {common['d']}",
        *_views(common, "views {}"),
        f"delta = {common['delta']:g}",
        *(
            f"{name} {common[name]}"
            for name in SHOWN_IF_DIFFERENT
            if name in differing(ranking.groups)
        ),
        f"data: {_data(group)}",
    ]


def _views(common: Mapping[str, Any], words: str) -> list[str]:
    """The recipe and size of views, as far as files record them."""
    recipe, size = common["views"], common["image size"]
    parts = [words.format(recipe["name"])] if recipe else []
    return [" ".join([*parts, *([f"{size} px"] if size else [])])] if recipe or size else []


def _data(group: Group) -> str:
    """The data of the rows, each once, or that no file records them."""
    return ", ".join(dict.fromkeys(row.score.data or "not recorded" for row in group.rows))


# Remarks


class Remark(NamedTuple):
    """One line about the rows of a group."""

    kind: Literal["same", "missing", "interval", "warning"]
    text: str

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.kind == "warning" else self.text


def remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """Aliases, reasons of missing values, what intervals and ties mean, and warnings; each once."""
    for row in group.rows:
        if row.aliases:
            aliases = ", ".join(map(ranking.name, row.aliases))
            yield Remark("same", f"{ranking.name(row.path)}: the same weights as {aliases}")
    notes = ((note, (row, name)) for row in group.rows for name, note in row.score.notes.items())
    for note, pairs in by_remark(notes).items():
        rows = list({row.path: row for row, _ in pairs}.values())
        names = dict.fromkeys(name for _, name in pairs)
        yield Remark("missing", f"{_names(rows, ranking)}: no {', '.join(names)}: {note}")
    yield from _interval_remarks(group, ranking)
    warnings = by_remark((kind, row) for row in group.rows for kind in row.score.warnings)
    if any(noise_warnings([group], ranking.by)):
        warnings.pop("noise", None)  # the warnings of the ranking include it
    for kind, rows in warnings.items():
        yield Remark("warning", f"{_names(rows, ranking)}: {rows[0].score.warnings[kind]}")
    for report in (baseline_report, group_report):
        for text in report.remarks(group, ranking):
            yield Remark("interval", text)


def _interval_remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """What +- and ties mean, and why values have no interval or a doubtful one."""
    name, level = ranking.by.name, f"{100 * ranking.level:g} %"
    counts = [row.score.confidence.groups for row in group.rows if row.score.confidence]
    sample_groups = next((count for count in counts if count is not None), None)
    over = "samples" if sample_groups is None else f"{sample_groups} groups of samples"
    are_resampled = any(row.interval.se is not None for row in group.rows)
    if has_intervals(group):
        bias = f"; the value itself is {BIAS}" if name in BIASED else ""
        text = f"+-: the {level} interval of {name} over {over}, at this n and q{bias}"
        yield Remark("interval", text)
    elif are_resampled:
        yield Remark(
            "interval",
            f"{name} has ties but no interval, because it is of ranks: lidar explain {name}",
        )
    if are_resampled and any(row.tied_with for row in group.rows):
        unit = "sample" if sample_groups is None else "group"
        yield Remark(
            "interval",
            f"tied: the {level} interval of the difference, {unit} by {unit}, holds 0; it covers "
            "the draw of images, not the training seed",
        )
    for note, rows in by_remark((row.interval.note, row) for row in group.rows).items():
        yield Remark("interval", f"{_names(rows, ranking)}: {name}: {note}")
    reasons = ((row.interval.reason, row) for row in group.rows if row.value is not None)
    for reason, rows in by_remark(reasons).items():
        text = f"{_names(rows, ranking)}: no interval of {name}, and no ties: {reason}"
        yield Remark("interval", text)


def _names(rows: Sequence[Row], ranking: Ranking) -> str:
    return first_and_more([ranking.name(row.path) for row in rows])
