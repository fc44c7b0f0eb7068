"""Scores to comparable groups, each in the order of one metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lidar_cli.core.metrics import Metric
from lidar_cli.scoring.compute import MUCH_NOISE, Score
from lidar_cli.scoring.intervals import Interval, ties
from lidar_cli.views.recipes import statistics_text

FIRST_REVISION = 1  # of the files that name none


@dataclass(frozen=True)
class Row:
    """One checkpoint in its place; `value` is None, with a reason, where the metric is.

    interval: of the value, over samples.
    tied_with: paths of those from which it cannot be told, whatever stands between them.
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
    """Checkpoints that can be compared, best first, and what they have in common."""

    common: dict[str, Any]
    rows: tuple[Row, ...]


def grouped(
    rows: Iterable[tuple[Row, dict[str, Any]]], by: Metric, level: float
) -> tuple[Group, ...]:
    """Rows with equal `comparable` put together and ordered; the largest group first.

    rows: each with the provenance of its embeddings; level: of the test that names ties.
    """
    groups: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row, provenance in rows:
        common = comparable(row.score, provenance)
        groups.setdefault(repr(sorted(common.items())), (common, []))[1].append(row)
    found = (Group(common, order(members, by, level)) for common, members in groups.values())
    return tuple(sorted(found, key=lambda group: -len(group.rows)))


def comparable(score: Score, provenance: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for two scores to be compared."""
    views, statistics = views_and_statistics(provenance.get("views"))
    return {
        "samples": provenance.get("samples_sha256"),
        "seed": provenance.get("seed"),
        "views": views,
        "pixel statistics": statistics,
        "image size": provenance.get("image_size"),
        "mask grid": provenance.get("mask_grid"),  # of which the masks are parts of the views
        "n": score.n_samples,
        "q": score.n_views,
        "d": score.dim,
        "layer": score.layer,
        "delta": score.delta,
        "normalised": score.normalized,
        "precision": provenance.get("precision"),
        "storage": provenance.get("storage"),
        # Of what embeds: it rises with each change of a row, a view or a label.
        "embedding revision": provenance.get("embedding_revision", FIRST_REVISION),
    }


def views_and_statistics(views: dict[str, Any] | None) -> tuple[dict[str, Any] | None, str | None]:
    """A recipe's constants without its pixel statistics, and these as `--pixel-stats` takes them.

    views: as a provenance has them.
    """
    if views is None:
        return None, None
    parts = [views.get("mean"), views.get("std")]
    mean, std = (tuple(part) if isinstance(part, list) else (part,) for part in parts)
    rest = {key: value for key, value in views.items() if key not in ("mean", "std")}
    return rest, statistics_text(mean, std)


def order(rows: Sequence[Row], by: Metric, level: float) -> tuple[Row, ...]:
    """Rows best first; equal values share a rank, ties name each other, nulls come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        return row.value is None, 0.0 if row.value is None else by.sort_key(row.value), row.path

    inside = sorted(rows, key=key)
    tied = tied_pairs(inside, by, level)
    ordered: list[Row] = []
    for at, row in enumerate(inside):
        same = at and key(ordered[-1])[:2] == key(row)[:2]
        ordered.append(
            replace(
                row,
                rank=ordered[-1].rank if same else at + 1,
                tied_with=tuple(inside[other].path for other in sorted(tied[at])),
            )
        )
    return tuple(ordered)


def tied_pairs(rows: Sequence[Row], by: Metric, level: float) -> list[set[int]]:
    """For each row the places of those with an equal value, or that `ties` cannot tell from it."""
    found: list[set[int]] = [set() for _ in rows]
    equal: dict[float, set[int]] = {}
    paired: dict[int, list[int]] = {}  # by the number of samples: only like lists pair up
    for at, row in enumerate(rows):
        if row.value is not None:
            equal.setdefault(row.value, set()).add(at)
            if row.interval.se is not None:
                paired.setdefault(len(row.score.influences[by.name]), []).append(at)
    for alike in equal.values():
        for at in alike:
            found[at] = alike - {at}
    for places in paired.values():
        values = [value for at in places if (value := rows[at].value) is not None]
        influences = [rows[at].score.influences[by.name] for at in places]
        for at, others in zip(places, ties(values, influences, by, level), strict=True):
            found[at] |= {places[other] for other in others}
    return found


def misleading(groups: Iterable[Group], by: Metric) -> Iterator[str]:
    """A remark for each group whose order by LiDAR is mostly that of view noise."""
    for group in groups:
        noisy = [
            row
            for row in group.rows
            if row.score.noise_fraction is not None and row.score.noise_fraction > MUCH_NOISE
        ]
        if by.name == "lidar" and 2 * len(noisy) > len(group.rows):
            yield (
                f"view noise is more than half of the LDA trace in {len(noisy)} of "
                f"{len(group.rows)} checkpoints, and lidar counts it as rank; more views make it "
                f"less: lidar rank ... -q {2 * noisy[0].score.n_views}"
            )
