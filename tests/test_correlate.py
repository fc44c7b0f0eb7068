"""Rank correlations with an oracle: a case worked by hand, ties, nulls, directions."""

from __future__ import annotations

import math

import pytest

from lidar_cli.jobs.correlate import Correlation, correlate
from lidar_cli.jobs.sheet import Score


def score(**metrics: float | None) -> Score:
    return Score("f.h5", "backbone", 10, 2, 4, 1e-4, 1e-7, False, **metrics)  # type: ignore[arg-type]


def found(name: str, scores: list[Score], oracle: list[float]) -> Correlation:
    return next(row for row in correlate(scores, oracle) if row.metric == name)


def test_worked_example_without_ties() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: sum of squared gaps 4, rho = 1 - 6*4/(4*15) = 0.6; of the 6
    # pairs 2 are discordant, tau = (4 - 2)/6.
    scores = [score(lidar=value) for value in (10.0, 20.0, 30.0, 40.0)]
    row = found("lidar", scores, [0.2, 0.1, 0.4, 0.3])
    assert row.spearman == pytest.approx(0.6)
    assert row.kendall == pytest.approx(1 / 3)
    assert row.count == 4


def test_ties_are_averaged() -> None:
    # Ranks 1.5 1.5 3 against 1 2 3: rho is their Pearson correlation, sqrt(3)/2; tau-b has 2
    # concordant pairs of 3, one tied: 2 / sqrt(2 * 3).
    row = found("lidar", [score(lidar=v) for v in (5.0, 5.0, 9.0)], [0.1, 0.2, 0.3])
    assert row.spearman == pytest.approx(math.sqrt(3) / 2)
    assert row.kendall == pytest.approx(2 / math.sqrt(6))


def test_a_lower_is_better_metric_that_falls_with_accuracy_agrees() -> None:
    scores = [score(alignment=value) for value in (3.0, 2.0, 1.0)]
    assert found("alignment", scores, [0.1, 0.2, 0.3]).spearman == pytest.approx(1.0)


def test_a_target_metric_is_read_by_its_distance_to_the_target() -> None:
    scores = [score(alpha_req=value) for value in (0.2, 1.5, 0.9)]
    assert found("alpha_req", scores, [0.1, 0.2, 0.3]).kendall == pytest.approx(1.0)


def test_nulls_do_not_take_part() -> None:
    scores = [score(pillai=v) for v in (1.0, None, 2.0, 3.0)]
    row = found("pillai", scores, [0.1, 0.9, 0.2, 0.3])
    assert (row.spearman, row.count) == (pytest.approx(1.0), 3)


@pytest.mark.parametrize("values", [(1.0, 2.0), (1.0, 1.0, 1.0), (None, None, 1.0)])
def test_too_little_to_correlate_is_null(values: tuple[float | None, ...]) -> None:
    scores = [score(lidar=value) for value in values]
    row = found("lidar", scores, [0.1, 0.2, 0.3][: len(values)])
    assert row.spearman is None
    assert row.kendall is None
