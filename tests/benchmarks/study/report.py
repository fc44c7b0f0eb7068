"""Prints the study as tables and writes it as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from lidar_cli.core.metrics import METRICS
from lidar_cli.report.text import MISSING, console, print_columns
from lidar_cli.runtime.files import write_atomic
from study.runs import BACKBONES, LAYERS
from study.study import Study
from study.summary import POOLED, Agreement, MetricSummary

NAME = "study"  # of the files, before their suffix
CSV_COLUMNS = (
    "data", "layer", "q", "method", "metric", "checkpoints", "with_value",
    "spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high",
    "pick_loses",
)  # fmt: skip


class Table(NamedTuple):
    """One table with its title."""

    title: str
    headers: list[str]
    rows: list[list[str]]


def print_study(study: Study, written: Sequence[Path]) -> None:
    """Print the summary tables and the paths of the files that have all of them."""
    out = console()
    out.print(Text(introduction(study)))
    for table in tables(study)[:3]:
        out.print()
        out.print(Text(table.title))
        print_columns(out, table.headers, table.rows, fixed=1)
    out.print()
    out.print(Text(f"{duration_text(study)}; every setting: {', '.join(map(str, written))}"))
    out.print(Text(study.attribution, style="dim"))


def write_study(study: Study, directory: Path, command: str) -> list[Path]:
    """Write the study as Markdown, CSV and JSON. Raises OSError if the disk refuses.

    command: the command that makes the same study again.
    """
    texts = {
        ".md": to_markdown(study, command),
        ".csv": to_csv(study),
        ".json": to_json(study, command),
    }
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, text in texts.items():
        path = directory / f"{NAME}{suffix}"
        write_atomic(path, text.encode())
        written.append(path)
    return written


def introduction(study: Study) -> str:
    """A description of the study in a few sentences."""
    size = study.size
    *first, last = map(str, size.views)
    views = f"{', '.join(first)}{' and ' if first else ''}{last}"
    return (
        f"{size.runs} checkpoints of each of SimCLR, VICReg, DINO and I-JEPA by random search on "
        f"each image set ({', '.join(size.sets)}), seed {study.seed}, {size.epochs[0]} to "
        f"{size.epochs[1]} epochs; n = {size.n_samples}, q = {views}, SimCLR's views for all. "
        "Accuracy is that of a linear probe of the backbone on other images. Layer projector is "
        "I-JEPA's predictor. A correlation is positive where a metric's better direction agrees "
        f"with the accuracy, a null ranks last, intervals are {100 * study.level:g} % of a "
        "bootstrap over checkpoints."
    )


def duration_text(study: Study) -> str:
    """The number of runs and the time they took."""
    there = len(study.measured) - study.now
    earlier = f", {there} were there already" if there else ""
    return f"{study.now} runs in {study.seconds:.0f} s{earlier}"


def tables(study: Study) -> list[Table]:
    """The tables: accuracies, two of metric summaries, then one for each set and layer."""
    return [
        _accuracies(study),
        _summary_table(
            "All methods together: each metric's mean and worst case over the settings "
            "(set x layer x q), and the points that its selected checkpoint loses against the best",
            study.pooled,
        ),
        _summary_table(
            "Each method alone: the same over the settings and methods",
            study.within,
        ),
        *(
            _full(study, data, layer)
            for data in study.size.sets
            for layer in LAYERS
            if any(a.setting.data == data and a.setting.layer == layer for a in study.agreements)
        ),
    ]


def _accuracies(study: Study) -> Table:
    methods = list(dict.fromkeys(method for s in study.spreads for method in s.by_method))
    headers = ["set", "checkpoints", "least", "median", "most", "spread"]
    headers += methods + [f"{name} untrained" for name in BACKBONES]
    rows = []
    for spread in study.spreads:
        ends = [spread.by_method.get(method) for method in methods]
        bare = [spread.untrained.get(method) for method in BACKBONES.values()]
        rows.append(
            [
                spread.data,
                str(spread.count),
                *(_points(value) for value in (spread.least, spread.median, spread.most)),
                _points(spread.most - spread.least),
                *(MISSING if e is None else f"{_points(e[0])} to {_points(e[1])}" for e in ends),
                *map(_points, bare),
            ]
        )
    return Table("Accuracy of linear probes of the backbone, in percent", headers, rows)


def _summary_table(title: str, summaries: Sequence[MetricSummary]) -> Table:
    headers = ["metric", "Spearman mean", "worst", "Kendall mean", "worst"]
    headers += ["selected loses", "at most", "defined in", "nulls %", "worst Spearman at"]
    rows = [
        [
            s.metric,
            _signed(s.spearman_mean),
            _signed(s.spearman_worst),
            _signed(s.kendall_mean),
            _signed(s.kendall_worst),
            _points(s.lost_mean),
            _points(s.lost_worst),
            str(s.defined),
            f"{100 * s.nulls:.0f}",
            s.worst_at or MISSING,
        ]
        for s in summaries
    ]
    return Table(title, headers, rows)


def _full(study: Study, data: str, layer: str) -> Table:
    cells: dict[str, list[str]] = {name: [] for name in METRICS}
    headers = ["metric"]
    for agreement in study.agreements:
        at = agreement.setting
        if agreement.method != POOLED or (at.data, at.layer) != (data, layer):
            continue
        headers += [f"Spearman q = {at.n_views}", f"Kendall q = {at.n_views}", "with a value"]
        for c in agreement.correlations:
            cells[c.metric] += [
                _with_interval(c.spearman, c.spearman_interval),
                _with_interval(c.kendall, c.kendall_interval),
                str(agreement.known[c.metric]),
            ]
    rows = [[name, *values] for name, values in cells.items()]
    return Table(f"{data}, {layer}, all methods together", headers, rows)


def to_markdown(study: Study, command: str) -> str:
    """The study as Markdown: command, introduction, every table."""
    parts = ["# A study of label-free metrics", f"    {command}", introduction(study)]
    for table in tables(study):
        lines = ["| " + " | ".join(row) + " |" for row in table.rows]
        head = "| " + " | ".join(table.headers) + " |"
        rule = "| :--- |" + " ---: |" * (len(table.headers) - 1)
        parts.append("\n".join([f"**{table.title}**", "", head, rule, *lines]))
    parts += [f"{duration_text(study)}.", study.attribution]
    return "\n\n".join(parts) + "\n"


def to_csv(study: Study) -> str:
    """The study as CSV: a line for each setting, method and metric; accuracies are shares of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for agreement in study.agreements:
        writer.writerows(_lines(agreement))
    return text.getvalue()


def _lines(agreement: Agreement) -> list[list[object]]:
    at = agreement.setting
    where = [at.data, at.layer, at.n_views, agreement.method]
    lines = []
    for c in agreement.correlations:
        spearman = [c.spearman, *(c.spearman_interval or (None, None))]
        kendall = [c.kendall, *(c.kendall_interval or (None, None))]
        numbers = [*spearman, *kendall, agreement.lost[c.metric]]
        texts = ["" if number is None else f"{number:.4f}" for number in numbers]
        lines.append([*where, c.metric, agreement.count, agreement.known[c.metric], *texts])
    return lines


def to_json(study: Study, command: str) -> str:
    """The study as JSON: hyperparameters, scores and accuracy of each checkpoint; all summaries."""
    record = {
        "command": command,
        "seed": study.seed,
        "size": dataclasses.asdict(study.size),
        "versions": study.versions,
        "level": study.level,
        "checkpoints": [
            {
                "path": f"{m.run.name}/checkpoint.pt",
                "trained": m.run.index is not None,
                "hyperparameters": m.hyperparameters,
                "losses": m.losses,
                "accuracy": m.accuracy,
                "failed": m.failed,
                "metrics": [
                    {"layer": layer, "n_views": q, **{name: s.value(name) for name in METRICS}}
                    for (layer, q), s in m.scores.items()
                ],
            }
            for m in study.measured
        ],
        "accuracies": [dataclasses.asdict(spread) for spread in study.spreads],
        "agreements": [dataclasses.asdict(agreement) for agreement in study.agreements],
        "pooled": [dataclasses.asdict(standing) for standing in study.pooled],
        "within": [dataclasses.asdict(standing) for standing in study.within],
        "attribution": study.attribution,
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _points(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return _signed(value)
    return f"{value:+.2f} ({interval[0]:+.2f} {interval[1]:+.2f})"
