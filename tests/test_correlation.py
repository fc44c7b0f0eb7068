"""Rank correlations with an oracle: a case worked by hand, ties, nulls, directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from lidar_cli.ranking import correlation as correlate_module
from lidar_cli.ranking.correlation import Correlation, correlate, draws, resampled
from lidar_cli.scoring.compute import Score


def score(**metrics: float | None) -> Score:
    return Score.of("f.h5", "backbone", 10, 2, 4, 1e-4, 1e-7, False, **metrics)


def correlation_of(name: str, scores: list[Score], oracle: list[float]) -> Correlation:
    return next(row for row in correlate(scores, oracle) if row.metric == name)


def test_worked_example_without_ties() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: sum of squared gaps 4, rho = 1 - 6*4/(4*15) = 0.6; of the 6
    # pairs 2 are discordant, tau = (4 - 2)/6.
    scores = [score(lidar=value) for value in (10.0, 20.0, 30.0, 40.0)]
    row = correlation_of("lidar", scores, [0.2, 0.1, 0.4, 0.3])
    assert row.spearman == pytest.approx(0.6)
    assert row.kendall == pytest.approx(1 / 3)
    assert row.count == 4


def test_ties_are_averaged() -> None:
    # Ranks 1.5 1.5 3 against 1 2 3: rho is their Pearson correlation, sqrt(3)/2; tau-b has 2
    # concordant pairs of 3, one tied: 2 / sqrt(2 * 3).
    row = correlation_of("lidar", [score(lidar=v) for v in (5.0, 5.0, 9.0)], [0.1, 0.2, 0.3])
    assert row.spearman == pytest.approx(math.sqrt(3) / 2)
    assert row.kendall == pytest.approx(2 / math.sqrt(6))


def test_a_lower_is_better_metric_that_falls_with_accuracy_agrees() -> None:
    scores = [score(alignment=value) for value in (3.0, 2.0, 1.0)]
    assert correlation_of("alignment", scores, [0.1, 0.2, 0.3]).spearman == pytest.approx(1.0)


def test_a_target_metric_is_read_by_its_distance_to_the_target() -> None:
    scores = [score(alpha_req=value) for value in (0.2, 1.5, 0.9)]
    assert correlation_of("alpha_req", scores, [0.1, 0.2, 0.3]).kendall == pytest.approx(1.0)


def test_nulls_do_not_take_part() -> None:
    scores = [score(pillai=v) for v in (1.0, None, 2.0, 3.0)]
    row = correlation_of("pillai", scores, [0.1, 0.9, 0.2, 0.3])
    assert (row.spearman, row.count) == (pytest.approx(1.0), 3)


@pytest.mark.parametrize("values", [(1.0, 2.0), (1.0, 1.0, 1.0), (None, None, 1.0)])
def test_too_little_to_correlate_is_null(values: tuple[float | None, ...]) -> None:
    scores = [score(lidar=value) for value in values]
    row = correlation_of("lidar", scores, [0.1, 0.2, 0.3][: len(values)])
    assert row.spearman is None
    assert row.kendall is None


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and accuracies with ties, correlated."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=count)
    return x.round(1), (x + generator.normal(size=count)).round(1)


@pytest.mark.parametrize("count", [5, 20, 61])
def test_each_resample_is_what_scipy_says_of_it(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlate_module, "BLOCK", 16)
    x, y = drawn(count, seed=count)
    times = draws(count, seed=0)[:40]
    assert (times.sum(1) == count).all()
    rhos, taus = resampled(x, y, times)
    for m, rho, tau in zip(times, rhos, taus, strict=True):
        at = np.repeat(np.arange(count), m.astype(int))
        if len(set(x[at])) < 2 or len(set(y[at])) < 2:
            assert np.isnan([rho, tau]).all()
            continue
        assert rho == pytest.approx(spearmanr(x[at], y[at]).statistic, abs=1e-12)
        assert tau == pytest.approx(kendalltau(x[at], y[at]).statistic, abs=1e-12)


def test_intervals_are_percentiles_over_seeded_resamples() -> None:
    x, y = drawn(30, seed=1)
    scores = [score(lidar=float(value), pillai=float(value)) for value in x]
    rows = {row.metric: row for row in correlate(scores, list(y), level=0.9, seed=3)}
    rhos, taus = resampled(x, y, draws(30, seed=3))
    row = rows["lidar"]
    assert row.spearman_interval == pytest.approx(np.quantile(rhos, [0.05, 0.95]))
    assert row.kendall_interval == pytest.approx(np.quantile(taus, [0.05, 0.95]))
    assert row.spearman_interval[0] < row.spearman < row.spearman_interval[1]
    assert rows["pillai"].spearman_interval == row.spearman_interval  # the same draws
    other = next(r for r in correlate(scores, list(y), level=0.9, seed=4) if r.metric == "lidar")
    assert other.spearman == row.spearman
    assert other.spearman_interval != row.spearman_interval


def test_an_interval_of_independent_values_covers_zero_at_about_its_level() -> None:
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=(2, 25))
        rhos, _ = resampled(x, y, draws(25, seed))
        low, high = np.quantile(rhos, [0.025, 0.975])
        covered += low <= 0 <= high
    assert 180 <= covered <= 198  # 95 % of 200, less what a percentile bootstrap of 25 falls short


def test_few_checkpoints_have_no_interval() -> None:
    scores = [score(lidar=float(value)) for value in range(4)]
    row = correlation_of("lidar", scores, [0.1, 0.2, 0.4, 0.3])
    assert row.spearman == pytest.approx(0.8)
    assert (row.spearman_interval, row.kendall_interval) == (None, None)


def test_resamples_that_leave_it_undefined_are_dropped_and_too_many_give_null() -> None:
    # One checkpoint differs in both: it is missing from (7/8)^8 = 34 % of the resamples, in which
    # nothing varies, and in the others the agreement is whole.
    row = correlation_of("lidar", [score(lidar=float(k == 0)) for k in range(8)], [0.2, *[0.1] * 7])
    assert row.spearman_interval == pytest.approx((1.0, 1.0))
    # Another differs in the one than in the other: both are in a resample in about 41 %.
    row = correlation_of(
        "lidar", [score(lidar=float(k == 0)) for k in range(9)], [0.1, 0.2, *[0.1] * 7]
    )
    assert row.spearman == pytest.approx(-1 / 8)
    assert row.spearman_interval is None
    assert row.reason == "most resamples leave the correlation undefined"
