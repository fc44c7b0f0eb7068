"""A ranking as tables, JSON, CSV, Markdown or paths alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from lidar_cli.errors import SettingsError, printable
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.group_metrics import GROUP_METRICS, ORDERS, with_value
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import Ranking, toy_data_note
from lidar_cli.report import baseline as baseline_report
from lidar_cli.report import depth as depth_report
from lidar_cli.report import group_metrics as group_report
from lidar_cli.report import oracle as oracle_report
from lidar_cli.report import runs as runs_report
from lidar_cli.report.remarks import facts, heading, remarks
from lidar_cli.report.scores import record
from lidar_cli.report.text import (
    CAUTIONS,
    INDENT,
    SafeConsole,
    broken_header,
    column_widths,
    command_lines,
    console,
    counted,
    csv_path,
    csv_table,
    error_console,
    format_percent,
    format_ties,
    format_with_interval,
    markdown_table,
    path_lines,
    print_columns,
    print_labelled,
    print_wrapped,
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
    comparison_command,
    constant_text,
    differing,
    group_verdict,
    has_option,
    second_choice,
    verdict,
    with_one_command,
)
from lidar_cli.scoring.intervals import Interval

SKIPPED_BY_NAME = 4  # skipped files that are printed if they were named, as runs/* names many


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
        "data": ranking.data or None,
        "toy_data": toy_data_note(ranking.data) is not None,
        "data_note": toy_data_note(ranking.data),
        "verdict": verdict(ranking, oracle),
        "trust": _trust_records(ranking),
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
        "group_metrics": group_report.to_records(ranking),
        "second_opinion": group_report.choice_records(ranking),
        "warnings": list(ranking.warnings),
        "correlation": oracle_report.to_record(oracle) if oracle else None,
        **({"depth": depth_report.to_records(ranking)} if ranking.depth else {}),
        **({"runs": runs_report.to_records(ranking)} if ranking.runs else {}),
        **({"baseline": baseline_report.to_records(ranking)} if ranking.baseline else {}),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_json_of(ranking: Ranking, oracle: Oracle | None, view: View) -> str:
    """The JSON of what a view shows: the best of all, or with `per_run` the runs."""
    if view.per_run:
        return to_json(runs_report.top(ranking, view.top), oracle)
    return to_json(ranking, oracle, view.top)


def _trust_records(ranking: Ranking) -> list[dict[str, Any]]:
    """Whether each group is to be believed; those with one checkpoint are left out."""
    return [
        {
            "group": at + 1,
            "believe": trust.believe,
            "reasons": [reason._asdict() for reason in trust.reasons],
            "sentence": trust.sentence or None,
        }
        for at, trust in enumerate(ranking.trust)
        if trust is not None
    ]


def value_record(row: Row) -> dict[str, Any]:
    """The value that orders, its interval, or the reason why it is missing."""
    interval = {"ci_low": row.interval.ci_low, "ci_high": row.interval.ci_high}
    return {"value": row.value, "reason": row.reason, **interval}


def metrics_record(row: Row) -> dict[str, Any]:
    """All metrics of a checkpoint and what they depend on, as JSON-ready values."""
    formed = {name: row.score.value(name) for name in GROUP_METRICS if name in row.score.values}
    fields = record(row.score) | formed
    return {
        key: value for key, value in fields.items() if key not in ("file", "data", "convergence")
    }


def to_csv(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A header and a line per checkpoint; the last columns are its accuracy, if known, and name."""
    names = ["n_samples", "n_views", "dim", "layer", "delta"]
    headers = ["group", "rank", "path", "by", "value", "ci_low", "ci_high", "tied_with", *names]
    headers += ORDERS
    rows = [
        [
            *(at + 1, row.rank, csv_path(row.path), ranking.by.name),
            *(row.value, row.interval.ci_low, row.interval.ci_high, "; ".join(row.tied_with)),
            *(getattr(row.score, name) for name in names),
            *(row.score.value(name) for name in ORDERS),
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
        metrics = [metric.name for metric in with_value([row.score for row in group.rows])]
        for row in group.rows:
            ties = format_ties(row, group.rows)
            rank = f"{row.rank}, tied with {ties}" if ties else str(row.rank)
            rows.append([rank, row.path, *(metric_cell(row, name, ranking) for name in metrics)])
        table = markdown_table(["rank", "checkpoint", *metrics], rows, left=[1])
        trust = ranking.trust_of(group)
        doubt = f"{trust.sentence}\n\n" if trust and trust.sentence else ""
        blocks.append(f"{printable(heading(group, ranking))}\n\n{doubt}{table}")
        if ranking.depth:
            by_depth = markdown_table(*depth_report.table(group.rows, ranking), left=[0])
            blocks.append(f"{printable(depth_report.caption(group, ranking))}\n\n{by_depth}")
    blocks += [oracle_report.to_markdown(oracle, ranking)] if oracle else []
    blocks += [printable(f"Failed: {file.path}: {file.reason}") for file in ranking.failed]
    return "\n\n".join(blocks)


def to_paths(ranking: Ranking) -> bytes:
    """Paths alone, best first, one per line."""
    return path_lines([row.path for group in ranking.groups for row in group.rows])


# For people


@dataclass(frozen=True)
class View:
    """What a person sees of a ranking.

    columns: metrics after the one that orders; None for the second opinion, or with `everything`
    for all.
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

    Cautions and what comes next go to stderr, the rest to stdout.
    accuracies: between 0 and 1, by path; by default those of the oracle.
    """
    out, err = console(), error_console()
    if toy := toy_data_note(ranking.data):
        out.print_line(toy, style="yellow")
    several = len(ranking.groups) > 1
    if several:
        cure = common_ground(ranking)
        print_wrapped(out, f"{apart(ranking.groups)} {cure.text}")
        if cure.command:
            for line in command_lines(cure.command, out.width - 2):
                out.print(Text(printable(f"  {line}")), soft_wrap=True)
    shares = accuracies if accuracies is not None else oracle.accuracies if oracle else {}
    for at, group in enumerate(ranking.groups):
        if view.per_run:
            shared = ", ".join(facts(group, ranking))
            runs_report.print_runs(out, err, at, ranking, shared)
        elif len(group.rows) > 1 or not several:
            if several and out.is_terminal:
                out.print_line("")
            print_wrapped(out, group_verdict(group, ranking, oracle), style="bold")
            print_group(out, group, ranking, view, shares)
            depth_report.print_depth(out, group, group.rows[: view.top], ranking)
    if not view.per_run:
        _print_single_rows(out, ranking)
    if oracle is not None:
        oracle_report.print_oracle(out, oracle, ranking)
    by_name = [file for file in ranking.skipped if file.path in ranking.command]
    skipped = ranking.skipped if view.verbose else by_name[:SKIPPED_BY_NAME]
    print_left_out(err, ranking.failed, skipped, ranking.name)
    _print_remarks(err, ranking, view)
    if out.is_terminal:
        _print_next(err, ranking, view)
    elif hidden := _hidden(ranking) if not view.verbose else 0:
        err.print_line(f"{counted(hidden, 'more remark')}: --verbose")


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
    columns, base = group_columns(group, ranking, view, accuracies)
    if out.is_terminal:
        _fit(columns, out.width, base if view.columns is None and not view.everything else None)
    headers = [name if out.is_terminal else name.replace(" ", "_") for name in columns]
    print_columns(out, headers, list(zip(*columns.values(), strict=True)), fixed=2)


def group_columns(
    group: Group,
    ranking: Ranking,
    view: View = View(),
    accuracies: Mapping[str, float] | None = None,
) -> tuple[dict[str, list[str]], int]:
    """The cells of a table by header, and how many first columns a narrow table has too.

    accuracies: as for `print_group`.
    """
    by, shares = ranking.by.name, accuracies or {}
    rows = group.rows[: view.top]
    ties = [tied_text(row, group.rows) for row in rows]
    best = max((shares[row.path] for row in group.rows if row.path in shares), default=None)
    columns: dict[str, list[str]] = {
        "#": [str(row.rank) for row in rows],
        "checkpoint": [ranking.name(row.path) for row in rows],
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
    return columns, base


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
        metrics = with_value([row.score for row in group.rows])
        return [metric.name for metric in metrics if metric != ranking.by]
    return companions(group, ranking.by)


def _print_single_rows(out: SafeConsole, ranking: Ranking) -> None:
    """One table of the checkpoints that are alone in their group, with what sets them apart."""
    groups = [group for group in ranking.groups if len(group.rows) == 1]
    if len(ranking.groups) == 1 or not groups:
        return
    names = [name for name in differing(ranking.groups) if name != "samples"]
    rows = [
        [
            ranking.name(group.rows[0].path),
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
    out: SafeConsole,
    failed: Iterable[Skipped],
    skipped: Iterable[Skipped],
    name_of: Callable[[str], str],
) -> None:
    """Print a line per file that has no rank, with the reason."""
    for label, files, style in (("failed", failed, "red"), ("skipped", skipped, "dim")):
        for file in files:
            text = f"{label}: {name_of(file.path)}: {file.reason}"
            if " with: " in file.reason:  # a command, which is copied as one line
                out.print(Text(printable(text), style=style), soft_wrap=True)
            else:
                out.print_line(text, style=style)


def _print_remarks(err: SafeConsole, ranking: Ranking, view: View) -> None:
    """Untrained networks and two cautions; with `verbose` all cautions, and every remark."""
    for group in () if view.verbose or view.per_run or view.top is not None else ranking.groups:
        for text in baseline_report.remarks(group, ranking):
            print_wrapped(err, text)
        for text in group_report.main_remarks(group, ranking):
            print_wrapped(err, text)
    advice = cautions(ranking)
    if err.is_terminal and advice:
        err.print_line("")
    for label, one in with_one_command(advice if view.verbose else advice[:CAUTIONS], ranking):
        print_advice(err, label, one)
    if view.verbose:
        for group in ranking.groups:
            for remark in remarks(group, ranking):
                err.print_line(str(remark), style="dim")


def _print_next(err: SafeConsole, ranking: Ranking, view: View) -> None:
    """What else can be asked for: first to compare what the two metrics select, if that differs."""
    page = command_with(ranking.command or ("rank", ranking.directory), {}, "--report page.html")
    has_page = has_option(ranking.command, "--report")
    lines = []
    choice = second_choice(ranking.groups[0], ranking)
    if choice is not None and choice.theirs is not None:
        command = comparison_command(ranking, ranking.groups[0].rows[0].path, choice.theirs)
        lines += command_lines(command, err.width - INDENT)
    lines += [] if has_page else command_lines(page, err.width - INDENT)
    texts = []
    if view.columns is None and not view.everything:
        metrics = with_value([row.score for row in ranking.groups[0].rows])
        texts.append(f"all {len(metrics)} metrics: --all")
    hidden = _hidden(ranking) if not view.verbose else 0
    texts += [f"{counted(hidden, 'more remark')}: --verbose"] if hidden else []
    for text in texts:
        if lines and INDENT + len(lines[-1]) + 4 + len(text) <= err.width:
            lines[-1] += f"    {text}"
        else:
            lines.append(text)
    err.print_line("")
    print_labelled(err, "next", lines)


def print_advice(err: SafeConsole, label: str, advice: Advice) -> None:
    """Print a caution, the command that cures it, and what the command takes."""
    lines, cost = [advice.text] if advice.text else [], f"({advice.cost})" if advice.cost else ""
    if err.is_terminal:
        lines = wrapped(advice.text, err.width - INDENT)
    if advice.command:
        lines += command_lines(advice.command, err.width - INDENT)
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


def metric_cell(row: Row, name: str, ranking: Ranking) -> str:
    """The value of a metric; the one that orders has its interval."""
    interval = row.interval if name == ranking.by.name else Interval()
    return format_with_interval(name, row.score.value(name), interval)
