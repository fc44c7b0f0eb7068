"""A ranking as tables with remarks, JSON, CSV, Markdown or paths alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from rich.text import Text

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError, printable
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group, Row, noise_warnings
from lidar_cli.ranking.session import Ranking, toy_data_note
from lidar_cli.report import baseline as baseline_report
from lidar_cli.report import oracle as oracle_report
from lidar_cli.report import runs as runs_report
from lidar_cli.report.scores import BIAS, record
from lidar_cli.report.text import (
    CAUTIONS,
    INDENT,
    SafeConsole,
    broken_header,
    by_remark,
    column_widths,
    console,
    csv_path,
    csv_table,
    error_console,
    first_and_more,
    format_percent,
    format_ties,
    format_with_interval,
    markdown_table,
    path_lines,
    print_columns,
    print_labelled,
    print_wrapped,
    relative,
    tied_ranks,
    wrapped,
)
from lidar_cli.report.verdict import (
    Advice,
    apart,
    cautions,
    command_with,
    common_ground,
    companions,
    constant_text,
    count_ties,
    differing,
    group_verdict,
    name_of,
    verdict,
)
from lidar_cli.scoring.compute import CORRECTED
from lidar_cli.scoring.intervals import Interval
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


def check_single_group(ranking: Ranking) -> None:
    """Raise SettingsError if no single checkpoint is the best, because groups differ."""
    if len(ranking.groups) > 1:
        raise SettingsError(verdict(ranking), code="several-groups")


def top(ranking: Ranking, count: int | None) -> Ranking:
    """The ranking with the first `count` rows of each group; all if None."""
    groups = tuple(replace(group, rows=group.rows[:count]) for group in ranking.groups)
    return replace(ranking, groups=groups)


# For programs


def to_json(ranking: Ranking, oracle: Oracle | None = None, count: int | None = None) -> str:
    """A JSON object: the order of each group, what was left out, and the correlations.

    count: how many checkpoints of each group are listed; None for all.
    """
    document = {
        "by": ranking.by.name,
        "direction": ranking.by.direction,
        "data": ranking.data,
        "toy_data": toy_data_note(ranking.data) is not None,
        "data_note": toy_data_note(ranking.data),
        "verdict": verdict(ranking, oracle),
        "groups": len(ranking.groups),
        "checkpoints": [
            {
                "group": at + 1,
                "rank": row.rank,
                "name": ranking.name(row.path),
                "path": row.path,
                "aliases": list(row.aliases),
                **value_record(row),
                "tied_with": list(row.tied_with),
                "metrics": metrics_record(row),
            }
            for at, group in enumerate(ranking.groups)
            for row in group.rows[:count]
        ],
        "skipped": [dataclasses.asdict(file) for file in ranking.skipped],
        "failed": [dataclasses.asdict(file) for file in ranking.failed],
        "warnings": list(ranking.warnings),
        "correlation": oracle_report.to_record(oracle) if oracle else None,
        **({"runs": runs_report.to_records(ranking)} if ranking.runs else {}),
        **({"baseline": baseline_report.to_records(ranking)} if ranking.baseline else {}),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def value_record(row: Row) -> dict[str, Any]:
    """The value that orders, its interval, or the reason why it is missing."""
    interval = {"ci_low": row.interval.ci_low, "ci_high": row.interval.ci_high}
    return {"value": row.value, "reason": row.reason, **interval}


def metrics_record(row: Row) -> dict[str, Any]:
    """All metrics of a checkpoint and what they depend on, as JSON-ready values."""
    fields = record(row.score)
    return {
        key: value for key, value in fields.items() if key not in ("file", "data", "convergence")
    }


def to_csv(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A header and a line per checkpoint; the last columns are its accuracy, if known, and name."""
    names = ["n_samples", "n_views", "dim", "layer", "delta", *METRICS]
    headers = ["group", "rank", "path", "by", "value", "ci_low", "ci_high", "tied_with", *names]
    rows = [
        [
            *(at + 1, row.rank, csv_path(row.path), ranking.by.name),
            *(row.value, row.interval.ci_low, row.interval.ci_high, "; ".join(row.tied_with)),
            *(getattr(row.score, name) for name in names),
            *([oracle.accuracies.get(row.path)] if oracle else []),
            ranking.name(row.path),
        ]
        for at, group in enumerate(ranking.groups)
        for row in group.rows
    ]
    return csv_table([*headers, *(["accuracy"] if oracle else []), "name"], rows)


def to_markdown(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A table per group, the tables of the oracle, and the failed files, in Markdown."""
    toy = toy_data_note(ranking.data)
    blocks = [toy] if toy else []
    for group in ranking.groups:
        rows = []
        for row in group.rows:
            ties = format_ties(row, group.rows)
            rank = f"{row.rank}, tied with {ties}" if ties else str(row.rank)
            rows.append([rank, row.path, *(metric_cell(row, name, ranking) for name in METRICS)])
        table = markdown_table(["rank", "checkpoint", *METRICS], rows, left=[1])
        blocks.append(f"{printable(heading(group, ranking))}\n\n{table}")
    blocks += [oracle_report.to_markdown(oracle, ranking.directory)] if oracle else []
    blocks += [printable(f"Failed: {file.path}: {file.reason}") for file in ranking.failed]
    return "\n\n".join(blocks)


def to_paths(ranking: Ranking) -> bytes:
    """Paths alone, best first, one per line."""
    return path_lines([row.path for group in ranking.groups for row in group.rows])


# For people


@dataclass(frozen=True)
class View:
    """What a person sees of a ranking.

    columns: metrics after the one that orders; None for two of them, with `everything` for all.
    verbose: whether every remark is printed, not two cautions. top: rows of each group, or all.
    per_run: whether there is a line per run in place of one per checkpoint.
    """

    columns: tuple[str, ...] | None = None
    everything: bool = False
    verbose: bool = False
    top: int | None = None
    per_run: bool = False


def print_tables(
    ranking: Ranking,
    oracle: Oracle | None = None,
    view: View = View(),
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Print the answer, a table per group, the tables of the oracle, cautions and what comes next.

    The answer goes to stdout if that is a terminal, else to stderr as the cautions do.
    accuracies: between 0 and 1, by path; by default those of the oracle.
    """
    out, err = console(), error_console()
    if toy := toy_data_note(ranking.data):
        out.print_line(toy, style="yellow")
    answer = out if out.is_terminal else err
    several = len(ranking.groups) > 1
    if several:
        cure = common_ground(ranking)
        print_wrapped(answer, f"{apart(ranking)} {cure.text}")
        if cure.command:
            answer.print(Text(printable(f"  {cure.command}")), soft_wrap=True)
    shares = accuracies if accuracies is not None else oracle.accuracies if oracle else {}
    for at, group in enumerate(ranking.groups):
        if view.per_run:
            shared = ", ".join(facts(group, ranking))
            runs_report.print_runs(out, answer, err, at, ranking, shared)
        elif len(group.rows) > 1 or not several:
            answer.print_line("") if several and out.is_terminal else None
            print_wrapped(answer, group_verdict(group, ranking, oracle), style="bold")
            print_group(out, group, ranking, view, shares)
    if not view.per_run:
        _print_single_rows(out, ranking)
    if oracle is not None:
        oracle_report.print_oracle(out, oracle, ranking.directory)
    print_left_out(err, ranking.failed, ranking.skipped if view.verbose else (), ranking.directory)
    _print_remarks(err, ranking, view)
    if out.is_terminal:
        _print_next(err, ranking, view)


def print_group(
    out: SafeConsole,
    group: Group,
    ranking: Ranking,
    view: View = View(),
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Print what the values depend on, and a line per checkpoint.

    accuracies: between 0 and 1, by path.
    """
    print_wrapped(out, ", ".join(facts(group, ranking)))
    if out.is_terminal:
        out.print_line("")
    by, shares = ranking.by.name, accuracies or {}
    rows = group.rows[: view.top]
    ties = [tied_text(row, group.rows) for row in rows]
    best = max((shares[row.path] for row in group.rows if row.path in shares), default=None)
    columns: dict[str, list[str]] = {
        "#": [str(row.rank) for row in rows],
        "checkpoint": [name_of(row.path, ranking) for row in rows],
    }
    if best is not None:
        columns["accuracy"] = [_accuracy_cell(shares.get(row.path), best) for row in rows]
    columns[by] = [metric_cell(row, by, ranking) for row in rows]
    if any(ties):
        columns["tied with"] = ties
    base = len(columns)
    for name in shown_metrics(group, ranking, view):
        columns[name] = [metric_cell(row, name, ranking) for row in rows]
    for baseline in baseline_report.baselines_of(group, ranking) if view.top is None else ():
        for name, cells in columns.items():
            cells.append(baseline_report.cell_of(baseline, name))
    if out.is_terminal:
        _fit(columns, out.width, base if view.columns is None and not view.everything else None)
    headers = [name if out.is_terminal else name.replace(" ", "_") for name in columns]
    print_columns(out, headers, list(zip(*columns.values(), strict=True)), fixed=2)


def _fit(columns: dict[str, list[str]], width: int, base: int | None) -> None:
    """Narrow a table to a width: first its ties, then it loses columns, the last one first.

    base: how many first columns always stay; None if all do.
    """

    def is_too_wide() -> bool:
        headers = [broken_header(name) for name in columns]
        widths = column_widths(headers, list(zip(*columns.values(), strict=True)))
        return sum(widths) + 2 * (len(widths) - 1) > width

    if is_too_wide() and "tied with" in columns:
        columns["tied with"] = [_first_ties(text) for text in columns["tied with"]]
    while base is not None and len(columns) > base and is_too_wide():
        columns.popitem()


def _first_ties(text: str) -> str:
    first, comma, _ = text.partition(",")
    return f"{first}, ..." if comma and len(text) > len(first) + 5 else text


def tied_text(row: Row, rows: Sequence[Row]) -> str:
    """The ranks of the checkpoints that are tied with a row; `same` for an equal value."""
    others = [other for other in rows if other.path in row.tied_with]
    equal = any(other.rank == row.rank for other in others)
    ranks = tied_ranks(row, [other for other in others if other.rank != row.rank])
    return ", ".join(text for text in ("same" if equal else "", ranks) if text)


def _accuracy_cell(share: float | None, best: float) -> str:
    """An accuracy in percent; the best is marked."""
    return f"{format_percent(share)}{' *' if share == best else '  '}"


def shown_metrics(group: Group, ranking: Ranking, view: View) -> list[str]:
    """The metrics after the one that orders."""
    if view.columns is not None:
        return [name for name in view.columns if name != ranking.by.name]
    if view.everything:
        return [name for name in METRICS if name != ranking.by.name]
    return companions(group, ranking.by)


def _print_single_rows(out: SafeConsole, ranking: Ranking) -> None:
    """One table of the checkpoints that are alone in their group, with what sets them apart."""
    groups = [group for group in ranking.groups if len(group.rows) == 1]
    if len(ranking.groups) == 1 or not groups:
        return
    names = [name for name in differing(ranking.groups) if name != "samples"]
    rows = [
        [
            name_of(group.rows[0].path, ranking),
            metric_cell(group.rows[0], ranking.by.name, ranking),
            *(constant_text(name, group.common) for name in names),
        ]
        for group in groups
    ]
    if out.is_terminal:
        out.print_line("")
    out.print_line("not comparable with any other:")
    print_columns(out, ["checkpoint", ranking.by.name, *names], rows, fixed=1)


def print_left_out(
    out: SafeConsole, failed: Iterable[Skipped], skipped: Iterable[Skipped], directory: str
) -> None:
    """Print a line per file that has no rank, with the reason."""
    for label, files, style in (("failed", failed, "red"), ("skipped", skipped, "dim")):
        for file in files:
            out.print_line(f"{label}: {relative(file.path, directory)}: {file.reason}", style=style)


def _print_remarks(err: SafeConsole, ranking: Ranking, view: View) -> None:
    """Untrained networks and two cautions; with `verbose` all cautions, and every remark."""
    for group in () if view.verbose or view.per_run or view.top is not None else ranking.groups:
        for text in baseline_report.remarks(group, ranking):
            print_wrapped(err, text)
    advice = cautions(ranking)
    if err.is_terminal and advice:
        err.print_line("")
    for one in advice if view.verbose else advice[:CAUTIONS]:
        print_advice(err, "caution", one)
    if view.verbose:
        for group in ranking.groups:
            for remark in remarks(group, ranking):
                err.print_line(str(remark), style="dim")


def _print_next(err: SafeConsole, ranking: Ranking, view: View) -> None:
    """One line: what else can be asked for."""
    page = command_with(ranking.command or ("rank", ranking.directory), {}, "--report page.html")
    texts = [page] if "--report" not in ranking.command else []
    if view.columns is None and not view.everything:
        texts.append(f"all {len(METRICS)} metrics: --all")
    hidden = _hidden(ranking) if not view.verbose else 0
    texts += [f"{hidden} more remark{'s' if hidden > 1 else ''}: --verbose"] if hidden else []
    lines: list[str] = []
    for text in texts:
        if lines and INDENT + len(lines[-1]) + 4 + len(text) <= err.width:
            lines[-1] += f"    {text}"
        else:
            lines.append(text)
    err.print_line("")
    print_labelled(err, "next", lines)


def print_advice(err: SafeConsole, label: str, advice: Advice) -> None:
    """Print a caution, the command that cures it, and what the command takes."""
    lines, cost = [advice.text], f"({advice.cost})" if advice.cost else ""
    if err.is_terminal:
        lines = wrapped(advice.text, err.width - INDENT)
    if advice.command:
        lines.append(advice.command)
    if cost and err.is_terminal and INDENT + len(lines[-1]) + 4 + len(cost) <= err.width:
        lines[-1] += f"    {cost}"
    elif cost:
        lines.append(cost)
    print_labelled(err, label, lines, style="yellow")


def _hidden(ranking: Ranking) -> int:
    """How many remarks only `--verbose` prints."""
    kinds = [remark.kind for group in ranking.groups for remark in remarks(group, ranking)]
    explained = sum(kind in ("missing", "warning", "same") for kind in kinds)
    return explained + len(ranking.skipped) + max(0, len(cautions(ranking)) - CAUTIONS)


def facts(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each in a few words, for the line below the answer."""
    common, ties = group.common, count_ties(group)
    copies = sum(len(row.aliases) for row in group.rows)
    recipe = common["views"]["name"] if common["views"] else "unknown"
    differ = differing(ranking.groups)
    return [
        count_checkpoints(len(group.rows)),
        *([f"{ties} {'ties' if ties > 1 else 'tie'}"] if ties else []),
        *([f"{copies} cop{'ies' if copies > 1 else 'y'} left out"] if copies else []),
        str(common["layer"]),
        *(f"{name} = {common[name]}" for name in "nqd"),
        f"{recipe} views {common['image size']} px",
        *([f"delta = {common['delta']:g}"] if common["delta"] != MetricSettings.delta else []),
        *(f"{name} {common[name]}" for name in SHOWN_IF_DIFFERENT if name in differ),
        f"data {', '.join(dict.fromkeys(str(row.score.data) for row in group.rows))}",
        *([f"+- {100 * ranking.level:g} %"] if has_intervals(group) else []),
    ]


def has_intervals(group: Group) -> bool:
    """Whether any value has an interval."""
    return any(row.interval.se is not None for row in group.rows)


def heading(group: Group, ranking: Ranking) -> str:
    """What the checkpoints of a group have in common, in one line."""
    by = f"by {ranking.by.name} ({ranking.by.direction} is better)"
    return "  ".join([f"{count_checkpoints(len(group.rows))} {by}", *constants(group, ranking)])


def count_checkpoints(count: int) -> str:
    """`1 checkpoint`, `2 checkpoints`."""
    return f"{count} checkpoint{'' if count == 1 else 's'}"


def constants(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each in a few words."""
    common = group.common
    data = ", ".join(dict.fromkeys(str(row.score.data) for row in group.rows))
    recipe = common["views"]["name"] if common["views"] else "?"
    return [
        f"layer {common['layer']}",
        f"n = {common['n']}",
        f"q = {common['q']}",
        f"d = {common['d']}",
        f"views {recipe} {common['image size']} px",
        f"delta = {common['delta']:g}",
        *(
            f"{name} {common[name]}"
            for name in SHOWN_IF_DIFFERENT
            if name in differing(ranking.groups)
        ),
        f"data: {data}",
    ]


def metric_cell(row: Row, name: str, ranking: Ranking) -> str:
    """The value of a metric; the one that orders has its interval."""
    interval = row.interval if name == ranking.by.name else Interval()
    return format_with_interval(name, row.score.value(name), interval)


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
            aliases = ", ".join(relative(alias, ranking.directory) for alias in row.aliases)
            path = ranking.name(row.path)
            yield Remark("same", f"{path}: the same weights as {aliases}")
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
    for text in baseline_report.remarks(group, ranking):
        yield Remark("interval", text)


def _interval_remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """What +- and ties mean, and why values have no interval or a doubtful one."""
    name, level = ranking.by.name, f"{100 * ranking.level:g} %"
    counts = [row.score.confidence.groups for row in group.rows if row.score.confidence]
    sample_groups = next((count for count in counts if count is not None), None)
    over = "samples" if sample_groups is None else f"{sample_groups} groups of samples"
    if any(row.interval.se is not None for row in group.rows):
        bias = f"; the value itself is {BIAS}" if name in CORRECTED else ""
        text = f"+-: the {level} interval of {name} over {over}, at this n and q{bias}"
        yield Remark("interval", text)
    if has_intervals(group) and any(row.tied_with for row in group.rows):
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
