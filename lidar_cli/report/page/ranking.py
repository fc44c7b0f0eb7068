"""A ranking as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group
from lidar_cli.ranking.session import Ranking
from lidar_cli.report import oracle as against
from lidar_cli.report.page.charts import chart_data
from lidar_cli.report.page.document import Page
from lidar_cli.report.page.markup import Markup, element, joined
from lidar_cli.report.page.parts import folded, provenance, said, section, text_table
from lidar_cli.report.page.table import Entry, Listing, table
from lidar_cli.report.ranking import constants, differing
from lidar_cli.report.remarks import remarks
from lidar_cli.report.text import shown, tied_ranks


def ranking_page(
    ranking: Ranking,
    oracle: Oracle | None = None,
    parameters: Mapping[str, Mapping[str, Value]] | None = None,
) -> Page:
    """Order and ties of each group, its charts, the oracle, where numbers come from, what failed.

    parameters: what checkpoints were trained with, by path.
    """
    listings = [
        Listing(_entries(group, ranking, oracle, parameters or {}), ranking.by)
        for group in ranking.groups
    ]
    count = sum(len(group.rows) for group in ranking.groups)
    title = f"{_number(count)} in {ranking.directory}"
    lead = element("p", None, _lead(ranking))
    head = element("header", None, element("h1", None, title), lead)
    body = [head, said(ranking.warnings, "warnings")]
    for at, (group, listing) in enumerate(zip(ranking.groups, listings, strict=True)):
        body.append(_section(at, group, listing, ranking, oracle))
    body += [
        said(_left(ranking.failed, ranking), "failed", f"Failed: {len(ranking.failed)}"),
        folded(f"Skipped: {len(ranking.skipped)}", said(_left(ranking.skipped, ranking), "notes")),
    ]
    if oracle is not None:
        body.append(said(_unjudged(oracle, ranking), "notes", "Without an accuracy"))
    return Page(title, body, [chart_data(listing) for listing in listings])


def _lead(ranking: Ranking) -> str:
    level = f"{100 * ranking.level:g}\u00a0%"
    told = (
        f"Ordered by {ranking.by.name}, {ranking.by.direction} is better; "
        f"intervals of {level} over samples."
    )
    if len(ranking.groups) > 1:
        told += (
            f" They form {len(ranking.groups)} groups that cannot be compared: "
            f"they differ in {', '.join(differing(ranking.groups))}."
        )
    if ranking.failed:
        told += f" {len(ranking.failed)} failed, see the end."
    return told


def _section(
    at: int, group: Group, listing: Listing, ranking: Ranking, oracle: Oracle | None
) -> Markup:
    several = len(ranking.groups) > 1
    title = f"Group {at + 1}: {_number(len(group.rows))}" if several else ""
    told = list(remarks(group, ranking))
    warnings = [remark.text for remark in told if remark.kind == "warning"]
    others = [remark.text.replace("+-", "\u00b1") for remark in told if remark.kind != "warning"]
    verdict = _verdict(oracle, at, ranking) if oracle else Markup()
    return section(
        [title, *constants(group, ranking)],
        table(listing),
        said(warnings, "warnings", "Read with care"),
        listing,
        verdict,
        said(others, "notes", "Notes"),
        provenance(listing.entries),
    )


def _entries(
    group: Group,
    ranking: Ranking,
    oracle: Oracle | None,
    parameters: Mapping[str, Mapping[str, Value]],
) -> list[Entry]:
    places = {row.path: at for at, row in enumerate(group.rows)}
    return [
        Entry(
            name=shown(row.path, ranking.directory),
            path=row.path,
            score=row.score,
            rank=row.rank,
            tied=tied_ranks(row, group.rows),
            ties=tuple(sorted(places[path] for path in row.tied_with if path in places)),
            accuracy=oracle.accuracies.get(row.path) if oracle else None,
            parameters=parameters.get(row.path, {}),
        )
        for row in group.rows
    ]


def _verdict(oracle: Oracle, at: int, ranking: Ranking) -> Markup:
    """The table of agreement and selection of one group, as the terminal shows it."""
    verdict = oracle.verdicts[at]
    if verdict.selection is None:
        return Markup()
    headers, rows = against.table(oracle, verdict, verdict.selection, ranking.directory)
    told = (
        f"Against {oracle.source} ({oracle.method}), {verdict.selection.count} checkpoints; "
        "accuracies in percent. A positive correlation: the better direction agrees."
    )
    explained = against.explained(verdict) if verdict.hyperparameters else ""
    return joined(
        element("h3", None, "Metrics against the oracle"),
        element("p", None, told),
        text_table(headers, rows),
        *(element("p", None, line) for line in against.without_intervals(verdict)),
        element("p", {"class": "quiet"}, explained) if explained else "",
    )


def _unjudged(oracle: Oracle, ranking: Ranking) -> Iterator[str]:
    for path in oracle.without:
        yield f"{shown(path, ranking.directory)}: no accuracy"
    for line in oracle.unmatched:
        yield f"{shown(line.path, ranking.directory)}: not matched, {line.reason}"


def _left(files: tuple[Skipped, ...], ranking: Ranking) -> Iterator[str]:
    return (f"{shown(left.path, ranking.directory)}: {left.reason}" for left in files)


def _number(count: int) -> str:
    return f"{count} checkpoint{'' if count == 1 else 's'}"
