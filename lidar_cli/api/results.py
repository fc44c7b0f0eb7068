"""What the functions give: the records of the commands' JSON, with a table and a picture.

Modules that load torch are imported inside methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from lidar_cli.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lidar_cli.checkpoints.inspect import Inspection
    from lidar_cli.features.inspect import FeatureInspection
    from lidar_cli.ranking.comparison import Comparison
    from lidar_cli.ranking.oracle import Oracle
    from lidar_cli.ranking.session import Ranking
    from lidar_cli.report.ranking import View
    from lidar_cli.scoring.compute import Score


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A table with a row a record. Raises MissingExtra without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra("pandas", "pandas", "to_pandas") from error
    return pd.DataFrame(rows)


def _html(headers: Sequence[str], rows: Sequence[Sequence[str]], *lines: str) -> str:
    """A table below some lines."""
    from lidar_cli.report.page.markup import element, joined, text_table

    return joined(*(element("p", None, line) for line in lines), text_table(headers, rows))


@dataclass(frozen=True, repr=False)
class ScoreResult(Sequence["Score"]):
    """What `score` gives: a sequence of one score per file and layer.

    Each metric is an attribute of a score (`result[0].lidar`), None if it cannot be computed; then
    `notes` has the reason. `confidence` and `convergence` are there if they were asked for.
    """

    scores: tuple[Score, ...]
    metrics: tuple[str, ...]  # that were asked for

    @overload
    def __getitem__(self, at: int) -> Score: ...
    @overload
    def __getitem__(self, at: slice) -> ScoreResult: ...
    def __getitem__(self, at: int | slice) -> Score | ScoreResult:
        if isinstance(at, slice):
            return ScoreResult(self.scores[at], self.metrics)
        return self.scores[at]

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> list[dict[str, Any]]:
        """The JSON of `lidar score --json`: a dict per file and layer."""
        from lidar_cli.report.scores import to_json

        records: list[dict[str, Any]] = json.loads(to_json(self.scores))
        return records

    def to_pandas(self) -> pd.DataFrame:
        """A row per file and layer. Raises MissingExtra without pandas."""
        return _frame([_flat(record) for record in self.to_dict()])

    def plot(self) -> Figure:
        """The spectra, and convergence if there is any. Raises MissingExtra without matplotlib."""
        from lidar_cli.report.plot import spectra_figure

        return spectra_figure(self.scores)

    def _repr_html_(self) -> str:
        from lidar_cli.report.scores import constants, metric_table, score_table

        if len(self.scores) == 1:
            score = self.scores[0]
            title = f"{score.file}  layer {score.layer}  {'  '.join(constants(score))}"
            return _html(*metric_table(score, self.metrics), title)
        headers, rows = score_table(self.scores, self.metrics)
        order = [3, 0, 1, 2, *range(4, len(headers))]  # the file names the row
        return _html([headers[at] for at in order], [[row[at] for at in order] for row in rows])

    def __repr__(self) -> str:
        from lidar_cli.report.text import first_and_more, format_metric

        if not self.scores:
            return "ScoreResult()"
        first = self.scores[0]
        values = [f"{name} {format_metric(name, first.value(name))}" for name in self.metrics[:3]]
        sizes = f"n = {first.n_samples}, q = {first.n_views}, d = {first.dim}"
        names = first_and_more([score.file for score in self.scores])
        return f"ScoreResult({names}: {', '.join([*values, sizes])})"


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its intervals as columns, without what no cell can hold."""
    intervals = (record.get("confidence") or {}).get("intervals", {})
    return {
        key: value for key, value in record.items() if key not in ("confidence", "convergence")
    } | {
        f"{name}_{end}": one[end]
        for name, one in intervals.items()
        for end in ("ci_low", "ci_high")
    }


@dataclass(frozen=True)
class RankedCheckpoint:
    """One checkpoint, feature file or array of a ranking, as in `lidar rank --json`.

    value: of the metric that orders; None with a `reason` if it has none. tied_with: paths of
    those whose value does not differ significantly. metrics: all metrics and sizes by name.
    """

    group: int
    rank: int
    name: str
    path: str
    aliases: list[str]
    value: float | None
    reason: str | None
    ci_low: float | None
    ci_high: float | None
    tied_with: list[str]
    metrics: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, repr=False)
class RankResult(Sequence[RankedCheckpoint]):
    """What `rank` gives: a sequence of the ranked checkpoints, best first."""

    ranking: Ranking
    view: View
    oracle: Oracle | None = None

    @property
    def checkpoints(self) -> tuple[RankedCheckpoint, ...]:
        """The ranked checkpoints of each comparable group, best first."""
        return tuple(RankedCheckpoint(**record) for record in self.to_dict()["checkpoints"])

    @property
    def best(self) -> str:
        """The path, or the name of the array, that is first. Raises SettingsError for two groups.

        Checkpoints of two groups cannot be compared.
        """
        from lidar_cli.report.ranking import check_single_group

        check_single_group(self.ranking)
        return self.ranking.groups[0].rows[0].path

    @property
    def verdict(self) -> str:
        """Which is first, and whether that is more than chance, in a sentence."""
        return str(self.to_dict()["verdict"])

    @property
    def failed(self) -> dict[str, str]:
        """The files that could not be scored, with the reason."""
        return {file.path: file.reason for file in self.ranking.failed}

    @overload
    def __getitem__(self, at: int) -> RankedCheckpoint: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[RankedCheckpoint, ...]: ...
    def __getitem__(self, at: int | slice) -> RankedCheckpoint | tuple[RankedCheckpoint, ...]:
        return self.checkpoints[at]

    def __iter__(self) -> Iterator[RankedCheckpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return sum(len(group.rows[: self.view.top]) for group in self.ranking.groups)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `lidar rank --json`."""
        from lidar_cli.report.ranking import to_json_of

        document: dict[str, Any] = json.loads(to_json_of(self.ranking, self.oracle, self.view))
        return document

    def to_pandas(self) -> pd.DataFrame:
        """A row per checkpoint, best first. Raises MissingExtra without pandas."""
        return _frame(
            [
                {key: value for key, value in record.items() if key != "metrics"}
                | _flat(record["metrics"])
                for record in self.to_dict()["checkpoints"]
            ]
        )

    def plot(self) -> Figure:
        """Each value with its interval. Raises MissingExtra without matplotlib."""
        from lidar_cli.report.plot import ranking_figure

        return ranking_figure(self.ranking, self.view)

    def _repr_html_(self) -> str:
        from lidar_cli.report.page.markup import joined
        from lidar_cli.report.ranking import group_columns
        from lidar_cli.report.remarks import facts
        from lidar_cli.report.verdict import group_verdict

        accuracies = self.oracle.accuracies if self.oracle else None
        tables = []
        for group in self.ranking.groups:
            columns, _ = group_columns(group, self.ranking, self.view, accuracies)
            rows = list(zip(*columns.values(), strict=True))
            answer = group_verdict(group, self.ranking, self.oracle)
            text = ", ".join(facts(group, self.ranking))
            tables.append(_html(list(columns), rows, answer, text))
        return joined(*tables)

    def __repr__(self) -> str:
        by, groups = self.ranking.by.name, self.ranking.groups
        several = f" in {len(groups)} groups" if len(groups) > 1 else ""
        first = self.ranking.name(groups[0].rows[0].path)
        return f"RankResult({len(self)} by {by}{several}, first {first})"


@dataclass(frozen=True)
class MetricDifference:
    """The difference of one metric, the first minus the second, as in `lidar compare --json`.

    better: the path of the better one. reason: why there is no difference or no interval.
    """

    metric: str
    direction: str
    values: list[float | None]
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    se: float | None
    tied: bool | None
    better: str | None
    reason: str | None


@dataclass(frozen=True, repr=False)
class CompareResult(Sequence[MetricDifference]):
    """What `compare` gives: a sequence of the differences in every metric."""

    comparison: Comparison

    @property
    def differences(self) -> tuple[MetricDifference, ...]:
        """The difference of every metric, the first minus the second."""
        return tuple(MetricDifference(**record) for record in self.to_dict()["metrics"])

    @property
    def sentence(self) -> str:
        """Which of the two is above the other, and whether that is more than chance."""
        from lidar_cli.report.comparison import sentence

        return sentence(self.comparison)

    @overload
    def __getitem__(self, at: int) -> MetricDifference: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[MetricDifference, ...]: ...
    def __getitem__(self, at: int | slice) -> MetricDifference | tuple[MetricDifference, ...]:
        return self.differences[at]

    def __len__(self) -> int:
        return len(self.comparison.differences)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `lidar compare --json`."""
        from lidar_cli.report.comparison import to_json

        document: dict[str, Any] = json.loads(to_json(self.comparison))
        return document

    def to_pandas(self) -> pd.DataFrame:
        """A row per metric. Raises MissingExtra without pandas."""
        return _frame(self.to_dict()["metrics"])

    def plot(self) -> Figure:
        """Each difference in percent, with its interval. Raises MissingExtra without matplotlib."""
        from lidar_cli.report.plot import comparison_figure

        return comparison_figure(self.comparison)

    def _repr_html_(self) -> str:
        from lidar_cli.report.comparison import difference_rows

        rows = difference_rows(self.comparison)
        level = f"{100 * self.comparison.level:g} %"
        headers = ["metric", *self.comparison.names, f"difference, {level}", ""]
        return _html(headers[: len(rows[0])] if rows else headers, rows, self.sentence)

    def __repr__(self) -> str:
        return f"CompareResult({self.sentence})"


@dataclass(frozen=True, repr=False)
class InspectResult(Sequence["Inspection | FeatureInspection"]):
    """What `inspect` gives: a sequence of one report per file."""

    inspections: tuple[Inspection | FeatureInspection, ...]

    @overload
    def __getitem__(self, at: int) -> Inspection | FeatureInspection: ...
    @overload
    def __getitem__(self, at: slice) -> InspectResult: ...
    def __getitem__(self, at: int | slice) -> Inspection | FeatureInspection | InspectResult:
        if isinstance(at, slice):
            return InspectResult(self.inspections[at])
        return self.inspections[at]

    def __len__(self) -> int:
        return len(self.inspections)

    def to_dict(self) -> list[dict[str, Any]]:
        """The JSON of `lidar inspect --json`: a dict per file."""
        from lidar_cli.report.inspect import to_json

        records: list[dict[str, Any]] = json.loads(to_json(self.inspections))
        return records

    def to_pandas(self) -> pd.DataFrame:
        """A row per file. Raises MissingExtra without pandas."""
        return _frame(self.to_dict())

    def _repr_html_(self) -> str:
        from lidar_cli.report.inspect import facts
        from lidar_cli.report.page.markup import joined

        return joined(
            *(
                _html(["", one.file], [[label, text] for label, text in facts(one).items() if text])
                for one in self.inspections
            )
        )

    def __repr__(self) -> str:
        from lidar_cli.report.text import first_and_more

        return (
            f"InspectResult({first_and_more([one.file for one in self.inspections] or ['none'])})"
        )
