"""Comparable groups of scored checkpoints, each ordered by one metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lidar_cli.core.metrics import Metric
from lidar_cli.features.schema import revision_of
from lidar_cli.ranking.group_metrics import GroupMetric, form_all
from lidar_cli.ranking.joint_resamples import fixed_parts, intervals_of, resample, tied_with
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.intervals import Interval, ties
from lidar_cli.views.recipes import statistics_text


@dataclass(frozen=True)
class Row:
    """A scored checkpoint and its rank by one metric.

    value: of that metric; None, with a reason, where it has none. interval: of the value, over
    samples. tied_with: paths of the checkpoints that do not differ significantly from this one;
    they need not be neighbours in the order.
    """

    path: str
    aliases: tuple[str, ...]
    score: Score
    value: float | None
    reason: str | None = None
    interval: Interval = Interval()
    rank: int = 0
    tied_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Checkpoints that can be compared, best first, and the settings that they share."""

    common: dict[str, Any]
    rows: tuple[Row, ...]


def unranked_row(path: Path, aliases: Sequence[str], score: Score, by: Metric) -> Row:
    """A scored checkpoint as a row without a rank."""
    value, reason, interval = (
        score.value(by.name),
        score.notes.get(by.name),
        score.interval(by.name),
    )
    return Row(str(path), tuple(aliases), score, value, reason, interval)


def comparable_groups(
    rows: Iterable[Row], by: Metric, level: float, complete: bool = True
) -> tuple[Group, ...]:
    """Rows grouped by `comparable`, each group ordered; the largest group first.

    level: confidence level of the test for ties. complete: whether all checkpoints are scored, so
    that the metrics of a group can be formed.
    """
    groups: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row in rows:
        common = comparable(row.score)
        groups.setdefault(repr(sorted(common.items())), (common, []))[1].append(row)
    if complete:
        groups = {key: (common, formed(of_group, by)) for key, (common, of_group) in groups.items()}
    ordered = (Group(common, order(members, by, level)) for common, members in groups.values())
    return tuple(sorted(ordered, key=lambda group: -len(group.rows)))


def formed(rows: Sequence[Row], by: Metric) -> list[Row]:
    """The rows of a group with the metrics of the group (`ranking.group_metrics`)."""
    scores = form_all([row.score for row in rows], by)
    if not isinstance(by, GroupMetric):
        return [replace(row, score=score) for row, score in zip(rows, scores, strict=True)]
    return [
        unranked_row(Path(row.path), row.aliases, score, by)
        for row, score in zip(rows, scores, strict=True)
    ]


def comparable(score: Score) -> dict[str, Any]:
    """The settings that must be equal for two scores to be compared."""
    provenance = score.provenance
    views, statistics = views_and_statistics(provenance.get("views"))
    return {
        "samples": provenance.get("samples_sha256"),
        "seed": provenance.get("seed"),
        "views": views,
        "pixel statistics": statistics,
        "image size": provenance.get("image_size"),
        "mask grid": provenance.get("mask_grid"),  # determines which parts of a view are masked
        "n": score.n_samples,
        "q": score.n_views,
        "numbers of views": score.view_counts,
        "d": score.dim,
        "layer": score.layer,
        "delta": score.delta,
        "normalised": score.normalized,
        "precision": provenance.get("precision"),
        "storage": provenance.get("storage"),
        "embedding revision": revision_of(provenance),
    }


def q_text(common: Mapping[str, Any]) -> str:
    """q of comparable scores, or the smallest and the largest number of views."""
    counts = common.get("numbers of views")
    return f"{common['q']} to {counts['most']}" if counts else f"{common['q']}"


def is_constant(score: Score, by: Metric | GroupMetric) -> bool:
    """Whether the embedding is constant or nearly so, and `by` not the metric that measures it."""
    return score.is_collapsed and by.name != "normalized_std"


def mean_views(common: Mapping[str, Any]) -> float:
    """q of comparable scores, or the mean number of views."""
    counts = common.get("numbers of views")
    return float(counts["rows"] / common["n"] if counts else common["q"])


def views_and_statistics(views: dict[str, Any] | None) -> tuple[dict[str, Any] | None, str | None]:
    """The constants of a recipe without its pixel statistics, and these as `--pixel-stats` text.

    views: the entry `views` of a provenance.
    """
    if views is None:
        return None, None
    parts = [views.get("mean"), views.get("std")]
    mean, std = (tuple(part) if isinstance(part, list) else (part,) for part in parts)
    rest = {key: value for key, value in views.items() if key not in ("mean", "std")}
    return rest, statistics_text(mean, std)


def order(rows: Sequence[Row], by: Metric, level: float) -> tuple[Row, ...]:
    """Rows ordered best first, with ranks and ties. Equal values share a rank; nulls come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        return row.value is None, 0.0 if row.value is None else by.sort_key(row.value), row.path

    best_first = sorted(rows, key=key)
    if isinstance(by, GroupMetric):
        best_first, tied = resampled(best_first, by, level)
    else:
        tied = tied_pairs(best_first, by, level)
    ranked: list[Row] = []
    for at, row in enumerate(best_first):
        is_equal = at and key(ranked[-1])[:2] == key(row)[:2]
        ranked.append(
            replace(
                row,
                rank=ranked[-1].rank if is_equal else at + 1,
                tied_with=tuple(best_first[other].path for other in sorted(tied[at])),
            )
        )
    return tuple(ranked)


def resampled(
    rows: Sequence[Row], by: GroupMetric, level: float
) -> tuple[list[Row], list[set[int]]]:
    """The rows with intervals, and for each the indices of those with an equal value or tied.

    Both are of joint resamples of the samples. A mean of ranks has a standard error alone.
    """
    scores = [row.score for row in rows]
    resamples = resample(by, scores)
    intervals = [Interval(reason=why_fixed(by, scores))] * len(rows)
    tied: list[set[int]] = [set() for _ in rows]
    if resamples is not None:
        intervals = intervals_of(resamples, level)
        if by.of_ranks:
            intervals = [Interval(one.se) for one in intervals]
        tied = [set(others) for others in tied_with(resamples, level)]
    for others in _equal(rows):
        for at in others:
            tied[at] |= others - {at}
    return [
        replace(row, score=_with_interval(row.score, by, one), interval=one)
        for row, one in zip(rows, intervals, strict=True)
    ], tied


def why_fixed(by: GroupMetric, scores: Sequence[Score]) -> str | None:
    """Why some of its parts are not resampled, or none is; None if all are."""
    fixed = fixed_parts(by, scores)
    reasons = (score.interval(name).reason for name in fixed for score in scores)
    why = next((f": {reason}" for reason in reasons if reason), "")
    return f"no influences of samples on {', '.join(fixed)}{why}" if fixed else None


def _with_interval(score: Score, by: Metric, interval: Interval) -> Score:
    if score.confidence is None:
        return score
    intervals = score.confidence.intervals | {by.name: interval}
    return replace(score, confidence=replace(score.confidence, intervals=intervals))


def _equal(rows: Sequence[Row]) -> Iterable[set[int]]:
    """The indices of the rows that have each value."""
    equal: dict[float, set[int]] = {}
    for at, row in enumerate(rows):
        if row.value is not None:
            equal.setdefault(row.value, set()).add(at)
    return equal.values()


def tied_pairs(rows: Sequence[Row], by: Metric, level: float) -> list[set[int]]:
    """For each row the indices of the rows with an equal value, or tied with it by `ties`."""
    tied: list[set[int]] = [set() for _ in rows]
    paired: dict[int, list[int]] = {}  # by the number of samples: the test needs equal ones
    for at, row in enumerate(rows):
        if row.value is not None and row.interval.se is not None:
            paired.setdefault(len(row.score.influences[by.name]), []).append(at)
    for indices in _equal(rows):
        for at in indices:
            tied[at] = indices - {at}
    for members in paired.values():
        values = [value for at in members if (value := rows[at].value) is not None]
        influences = [rows[at].score.influences[by.name] for at in members]
        for at, others in zip(members, ties(values, influences, by, level), strict=True):
            tied[at] |= {members[other] for other in others}
    return tied
