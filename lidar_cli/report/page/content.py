"""The content of a page about a ranking, and of a page about scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.group_metrics import ORDERS
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group
from lidar_cli.ranking.session import Ranking
from lidar_cli.report import depth as depth_report
from lidar_cli.report import oracle as oracle_report
from lidar_cli.report import remarks as remarks_report
from lidar_cli.report import scores as scores_report
from lidar_cli.report.page.charts import Figures
from lidar_cli.report.page.document import Page
from lidar_cli.report.page.markup import (
    BREAKS,
    Markup,
    broken,
    bullet_list,
    element,
    folded,
    joined,
    text_table,
)
from lidar_cli.report.page.table import Entry, Listing, explanations, tables
from lidar_cli.report.text import CAUTIONS, MISSING, counted, tied_ranks
from lidar_cli.report.verdict import cautions, group_verdict, verdict, with_one_command
from lidar_cli.scoring.compute import Score

MARKED = (
    "Spearman",
    "Kendall",
    "full probe",
    "selected",
)  # columns of accuracy whose best is marked
Parameters = Mapping[str, Mapping[str, Value]]  # hyperparameters by path or file


def ranking_page(
    ranking: Ranking, oracle: Oracle | None = None, parameters: Parameters | None = None
) -> Page:
    """A page with order, ties, charts, accuracies and provenance of each group, and what failed."""
    listings = [
        _listing(at, ranking, oracle, parameters or {}) for at, _ in enumerate(ranking.groups)
    ]
    count = counted(sum(len(group.rows) for group in ranking.groups), "checkpoint")
    title = f"{count} in {ranking.directory}"
    body = [_head(title, verdict(ranking, oracle), _lead(ranking)), _cautions(ranking)]
    for at, (group, listing) in enumerate(zip(ranking.groups, listings, strict=True)):
        several = len(ranking.groups) > 1
        count = counted(len(group.rows), "checkpoint")
        remarks = list(remarks_report.remarks(group, ranking))
        notes = [remark.text for remark in remarks if remark.kind != "warning"]
        body.append(
            section(
                listing,
                f"Group {at + 1}: {count}" if several else "",
                group_verdict(group, ranking, oracle) if several else "",
                remarks_report.constants(group, ranking),
                tables(listing),
                Figures(listing, f"s{at}").to_markup(),
                [remark.text for remark in remarks if remark.kind == "warning"],
                joined(
                    _depth_section(group, ranking),
                    _accuracy_section(oracle, at, ranking) if oracle else Markup(),
                ),
                [note.replace("+-", "\u00b1") for note in notes],
            )
        )
    skipped = bullet_list(_left_out(ranking.skipped, ranking), "notes")
    body += [
        bullet_list(_left_out(ranking.failed, ranking), "failed", f"Failed: {len(ranking.failed)}"),
        folded(f"Skipped: {len(ranking.skipped)}", skipped),
    ]
    if oracle is not None:
        body.append(bullet_list(_without_accuracy(oracle, ranking), "notes", "Without an accuracy"))
    return Page(title, [*body, explanations(listings)])


def scores_page(scores: Sequence[Score], parameters: Parameters | None = None) -> Page:
    """A page with values, intervals and charts of each file; the advice of `--converge` first."""
    layers = {score.layer for score in scores}
    entries = [
        Entry(
            name=f"{score.file}:{score.layer}" if len(layers) > 1 else score.file,
            path=f"{score.file}, layer {score.layer}",
            score=score,
            parameters=(parameters or {}).get(score.file, {}),
        )
        for score in scores
    ]
    listing = Listing(entries)
    prefixes = [f"{entry.name}: " if len(entries) > 1 else "" for entry in entries]
    prefixed = list(zip(prefixes, scores, strict=True))
    count = len({score.file for score in scores})
    title = Path(scores[0].file).name if count == 1 else f"{count} files"
    lead = "Metrics of stored embeddings."
    if scores[0].confidence:
        lead += f" Intervals of {100 * scores[0].confidence.level:g}\u00a0% over samples."
    advice = [f"{prefix}{s.convergence.advice}" for prefix, s in prefixed if s.convergence]
    constants = [scores_report.constants(score) for score in scores]
    names = [name for name in METRICS if name in listing.metrics]
    page_section = section(
        listing,
        "",
        "",
        [text for text in constants[0] if all(text in others for others in constants)],
        tables(listing)
        if len(scores) > 1
        else text_table(*scores_report.metric_table(scores[0], names)),
        Figures(listing, "s0").to_markup(),
        [f"{prefix}{text}" for prefix, score in prefixed for text in score.warnings.values()],
        joined(*(_convergence(score, prefix, names) for prefix, score in prefixed)),
        [f"{prefix}{text}" for prefix, s in prefixed for text in scores_report.remarks(s)],
    )
    advice_list = bullet_list(advice, "advice", "Are n and q enough?")
    body = [_head("", title, lead), advice_list, page_section, explanations([listing])]
    return Page(title, body)


def section(
    listing: Listing,
    title: str,
    lead: str,
    constants: Iterable[str],
    entries: Markup,
    figures: Markup,
    warnings: Iterable[str],
    analysis: Markup,
    notes: Iterable[str],
) -> Markup:
    """One group of comparable entries.

    constants: the settings of its values. entries: its table. figures: its charts. analysis:
    content below its charts.
    """
    care = "Read with care"
    alone = listing.by is None  # the page of a ranking begins with the cautions that matter most
    spaced = [piece for text in constants for piece in (element("span", None, text), " ")]
    return element(
        "section",
        {"class": "listing"},
        element("h2", None, title) if title else "",
        element("p", None, lead.replace("+-", "\u00b1")) if lead else "",
        element("p", {"class": "constants"}, *spaced),
        entries,
        figures,
        analysis,
        bullet_list(warnings, "warnings", care)
        if alone
        else folded(care, bullet_list(warnings, "warnings")),
        bullet_list(notes, "notes", "Notes"),
        provenance(listing.entries),
    )


def provenance(entries: Sequence[Entry]) -> Markup:
    """The provenance that all entries share as a list, then a table of what differs."""
    sources = [entry.score.provenance for entry in entries]
    names = dict.fromkeys(k for source in sources for k, v in source.items() if v is not None)
    texts = {name: [_text(source.get(name)) for source in sources] for name in names}
    shared = [name for name in names if len({repr(source.get(name)) for source in sources}) == 1]
    content = []
    if shared:
        pairs = [
            joined(element("dt", None, broken(name, "_")), element("dd", None, texts[name][0]))
            for name in shared
        ]
        content.append(element("dl", None, *pairs))
    if differing := [name for name in names if name not in shared]:
        columns = [texts[name] for name in differing]
        rows = zip((entry.name for entry in entries), *columns, strict=True)
        content.append(text_table(["", *differing], list(rows)))
    return folded("Provenance", *content)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


def _head(kicker: str, title: str, lead: str) -> Markup:
    above = element("p", {"class": "kicker"}, broken(kicker, BREAKS)) if kicker else ""
    title = title.replace("+-", "\u00b1")
    return element("header", None, above, element("h1", None, title), element("p", None, lead))


def _cautions(ranking: Ranking) -> Markup:
    """The most important cautions, each with the command that cures it."""
    items = [
        element(
            "li",
            None,
            one.text or f"{label}:",
            element("code", None, one.command) if one.command else "",
        )
        for label, one in with_one_command(cautions(ranking)[:CAUTIONS], ranking)
    ]
    return element("div", {"class": "warnings"}, element("ul", None, *items)) if items else Markup()


def _lead(ranking: Ranking) -> str:
    text = f"Ordered by {ranking.by.name}, {ranking.by.direction} is better"
    if any(map(remarks_report.has_intervals, ranking.groups)):
        text += f"; intervals of {100 * ranking.level:g}\u00a0% over samples"
    return f"{text}." + (f" {len(ranking.failed)} failed, see the end." if ranking.failed else "")


def _listing(at: int, ranking: Ranking, oracle: Oracle | None, parameters: Parameters) -> Listing:
    """The table and charts of one group. at: its index."""
    group = ranking.groups[at]
    positions = {row.path: place for place, row in enumerate(group.rows)}
    runs = [run for run in ranking.runs if run.group == at]
    axis = next((run.axis for run in runs if run.axis), None)
    places = {
        point.path: (run.name, point.x if run.axis == axis else None)
        for run in runs
        for point in run.points
    }
    entries = []
    for row in group.rows:
        run, step = places.get(row.path, ("", None))
        entries.append(
            Entry(
                name=ranking.name(row.path),
                path=row.path,
                score=row.score,
                rank=row.rank,
                tied=tied_ranks(row, group.rows),
                depth=ranking.depth.get(row.path),
                ties=tuple(sorted(positions[path] for path in row.tied_with if path in positions)),
                accuracy=oracle.accuracies.get(row.path) if oracle else None,
                parameters=parameters.get(row.path, {}),
                run=run,
                step=step,
            )
        )
    baselines = {
        one.name: {name: mean for name in METRICS if (mean := one.mean(name)) is not None}
        for one in ranking.baseline
        if one.group == at
    }
    return Listing(entries, ranking.by, axis or "", baselines)


def _depth_section(group: Group, ranking: Ranking) -> Markup:
    """The table of the metric at each layer of one group, as on the terminal."""
    if not depth_report.profiles_of(group.rows, ranking):
        return Markup()
    return joined(
        element("h3", None, f"{ranking.by.name} by depth"),
        element("p", None, depth_report.caption(group, ranking)),
        text_table(*depth_report.table(group.rows, ranking)),
    )


def _accuracy_section(oracle: Oracle, at: int, ranking: Ranking) -> Markup:
    """The table of correlations and selections of one group, as on the terminal."""
    comparison = oracle.comparisons[at]
    if comparison.selection is None:
        return Markup()
    headers, rows = oracle_report.table(oracle, comparison, comparison.selection, ranking)
    lead = (
        f"{oracle_report.source_text(oracle)}, {comparison.selection.count} checkpoints; "
        "accuracies in percent. A positive correlation: the better direction agrees. "
        "The best of a column is marked."
    )
    text = oracle_report.sets_text(comparison) if comparison.hyperparameters else ""
    few = oracle_report.few_labels_text(oracle, comparison, ranking)
    split = sum(not header.startswith("by ") for header in headers)
    by_sets = [[row[0], *row[split:]] for row in rows]
    return joined(
        element("h3", None, "Metrics against accuracy"),
        element("p", None, few) if few else "",
        element("p", None, lead),
        _best_marked(headers[:split], [row[:split] for row in rows]),
        *(element("p", None, line) for line in oracle_report.missing_intervals(comparison)),
        _best_marked([headers[0], *headers[split:]], by_sets) if split < len(headers) else "",
        element("p", {"class": "quiet"}, text) if text else "",
    )


def _best_marked(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose best correlations and accuracies of metrics are marked."""
    best = set()
    for column, header in enumerate(headers):
        if header in MARKED or header.endswith(" a class") or header.startswith("by "):
            values = {
                at: float(row[column])
                for at, row in enumerate(rows)
                if row[0] in ORDERS and row[column] != MISSING
            }
            best |= {(at, column) for at in values if values[at] == max(values.values())}
    return text_table(headers, rows, best)


def _convergence(score: Score, prefix: str, names: Sequence[str]) -> Markup:
    if score.convergence is None:
        return Markup()
    title = f"{prefix or 'Metrics '}against n and q"
    content = text_table(*scores_report.convergence_table(score.convergence, names))
    return joined(element("h3", None, title), content)


def _without_accuracy(oracle: Oracle, ranking: Ranking) -> Iterator[str]:
    for path in oracle.without:
        yield f"{ranking.name(path)}: no accuracy"
    for line in oracle.unmatched:
        yield f"{ranking.name(line.path)}: not matched, {line.reason}"


def _left_out(files: Iterable[Skipped], ranking: Ranking) -> Iterator[str]:
    return (f"{ranking.name(file.path)}: {file.reason}" for file in files)
