"""Scores as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.hyperparameters import Value
from lidar_cli.report.converge import table as convergence_table
from lidar_cli.report.page.charts import chart_data
from lidar_cli.report.page.document import Page
from lidar_cli.report.page.markup import Markup, element, joined
from lidar_cli.report.page.parts import provenance, said, section, text_table
from lidar_cli.report.page.table import Entry, Listing, table
from lidar_cli.report.scores import constants, lines, reasons
from lidar_cli.scoring.compute import Score


def scores_page(
    scores: Sequence[Score], parameters: Mapping[str, Mapping[str, Value]] | None = None
) -> Page:
    """Values and intervals of each file, its charts, the advice of `--converge` first.

    parameters: numbers in the names of files, by file.
    """
    layers = {score.layer for score in scores}
    known = parameters or {}
    entries = [
        Entry(
            name=f"{score.file}:{score.layer}" if len(layers) > 1 else score.file,
            path=f"{score.file}, layer {score.layer}",
            score=score,
            parameters=known.get(score.file, {}),
        )
        for score in scores
    ]
    listing = Listing(entries)
    count = len({score.file for score in scores})
    title = Path(scores[0].file).name if count == 1 else f"{count} files"
    told = "Metrics of stored embeddings."
    if scores[0].confidence:
        told += f" Intervals of {100 * scores[0].confidence.level:g}\u00a0% over samples."
    advice = [
        f"{_prefix(entry, listing)}{entry.score.convergence.advice}"
        for entry in entries
        if entry.score.convergence
    ]
    shared = [text for text in constants(scores[0]) if all(text in constants(s) for s in scores)]
    return Page(
        title,
        [
            element("header", None, element("h1", None, title), element("p", None, told)),
            said(advice, "advice", "Are n and q enough?" if advice else ""),
            section(
                ["", *shared],
                _table(listing),
                said(_warnings(listing), "warnings", "Read with care"),
                listing,
                *(_convergence(entry, listing) for entry in entries),
                said(_notes(listing), "notes", "Notes"),
                provenance(entries),
            ),
        ],
        [chart_data(listing)],
    )


def _table(listing: Listing) -> Markup:
    """A line a file, or a line a metric where there is one file alone."""
    if len(listing.entries) > 1:
        return table(listing)
    score = listing.entries[0].score
    return text_table(*lines(score, [name for name in METRICS if name in listing.metrics]))


def _convergence(entry: Entry, listing: Listing) -> Markup:
    if entry.score.convergence is None:
        return Markup()
    names = [name for name in METRICS if name in listing.metrics]
    headers, rows = convergence_table(entry.score.convergence, names)
    title = f"{_prefix(entry, listing) or 'Metrics '}against n and q"
    return joined(element("h3", None, title), text_table(headers, rows))


def _warnings(listing: Listing) -> list[str]:
    return [
        f"{_prefix(entry, listing)}{warning}"
        for entry in listing.entries
        for warning in entry.score.warnings.values()
    ]


def _notes(listing: Listing) -> list[str]:
    return [
        f"{_prefix(entry, listing)}{line}"
        for entry in listing.entries
        for line in reasons(entry.score)
    ]


def _prefix(entry: Entry, listing: Listing) -> str:
    return f"{entry.name}: " if len(listing.entries) > 1 else ""
