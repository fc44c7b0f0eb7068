"""The tables of the study on worked examples."""

from __future__ import annotations

import pytest
from scipy.stats import spearmanr
from study.runs import Measured, Run, Size
from study.summary import (
    POOLED,
    Agreement,
    MetricSummary,
    Setting,
    agreements,
    metric_summaries,
    nulls_last,
    spreads,
)

from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.correlation import Correlation
from lidar_cli.scoring.compute import Score

SIZE = Size(sets=("digits",), runs=3, views=(2,))


def score(**values: float) -> Score:
    return Score.of("", "", 10, 2, 4, 1e-4, 1e-7, False, **values)


def measured(method: str, index: int | None, accuracy: float | None, **values: float) -> Measured:
    scores = {(layer, 2): score(**values) for layer in ("backbone", "projector")}
    if accuracy is None:
        return Measured(Run("digits", method, index), {}, (None,), None, {}, "not finite")
    return Measured(Run("digits", method, index), {}, (1.0,), accuracy, scores)


def agreement(data: str, method: str, rho: float | None, tau: float | None, **more: float):
    correlation = Correlation("pillai", rho, tau, 8)
    known, lost = {"pillai": int(more.get("known", 8))}, {"pillai": more.get("lost")}
    return Agreement(Setting(data, "backbone", 2), method, 8, (correlation,), known, lost)


def test_standing_is_the_mean_and_the_worst_case() -> None:
    actual = [
        agreement("digits", POOLED, 0.9, 0.6, lost=0.01),
        agreement("textures", POOLED, -0.3, -0.1, lost=0.10),
        agreement("plain", POOLED, 0.6, 0.4, known=6, lost=0.04),
        agreement("plain", "dino", None, None, known=0),
    ]
    (pillai,) = [s for s in metric_summaries(actual) if s.metric == "pillai"]
    assert pillai.defined == 3
    assert pillai.spearman_mean == pytest.approx(0.4)
    assert pillai.spearman_worst == -0.3
    assert pillai.worst_at == "textures, backbone, q = 2"
    assert pillai.kendall_mean == pytest.approx(0.3)
    assert pillai.kendall_worst == -0.1
    assert pillai.lost_mean == pytest.approx(0.05)
    assert pillai.lost_worst == 0.10
    assert pillai.nulls == pytest.approx(10 / 32)  # 2 of 8 and 8 of 8


def test_the_best_worst_case_comes_first_and_what_is_never_defined_last() -> None:
    actual = [
        Agreement(
            Setting("digits", "backbone", 2),
            POOLED,
            5,
            (Correlation("lidar", -0.5, -0.5, 5), Correlation("rankme", 0.1, 0.1, 5)),
            {"lidar": 5, "rankme": 5},
            dict.fromkeys(("lidar", "rankme")),
        )
    ]
    order = [
        s.metric for s in metric_summaries(actual) if s.metric in ("lidar", "rankme", "pillai")
    ]
    assert order == ["rankme", "lidar", "pillai"]
    never = metric_summaries(actual)[-1]
    assert never.spearman_worst is None
    assert never.spearman_mean is None
    assert never == MetricSummary(never.metric, 0, 0.0, *[None] * 7)  # type: ignore[arg-type]


def test_agreements_are_pooled_and_by_method_without_the_untrained() -> None:
    values = [(0.2, 1.0), (0.4, 3.0), (0.3, 2.5), (0.9, 2.0), (0.5, 4.0), (0.6, 5.0)]
    rows = [
        measured("simclr" if at < 3 else "dino", at % 3, accuracy, pillai=value)
        for at, (accuracy, value) in enumerate(values)
    ]
    rows += [measured("simclr", None, 0.99, pillai=0.0), measured("vicreg", 0, None)]
    actual = agreements(rows, SIZE, 0.95, 0)
    by_method = {a.method: a for a in actual if a.setting.layer == "projector"}
    assert {method: a.count for method, a in by_method.items()} == {
        POOLED: 6,
        "simclr": 3,
        "dino": 3,
    }

    def rho(method: str) -> float | None:
        (one,) = [c for c in by_method[method].correlations if c.metric == "pillai"]
        return one.spearman

    assert rho("simclr") == pytest.approx(1.0)  # 1, 3, 2.5 as 0.2, 0.4, 0.3
    assert rho("dino") == pytest.approx(-0.5)  # 2, 4, 5 against 0.9, 0.5, 0.6: ranks 1 2 3, 3 1 2
    expected = spearmanr([v for _, v in values], [a for a, _ in values]).statistic
    assert rho(POOLED) == pytest.approx(expected)
    # The largest value belongs to 0.6, the best checkpoint has 0.9.
    assert by_method[POOLED].lost["pillai"] == pytest.approx(0.3)
    assert by_method["simclr"].lost["pillai"] == 0.0
    assert by_method[POOLED].lost["rankme"] is None


def test_a_null_ranks_last_whatever_the_direction() -> None:
    values = {"pillai": 2.0, "alignment": 0.5, "alpha_req": 0.6}
    rows = nulls_last(
        [score(**values), score(pillai=-3.0, alignment=1.5, alpha_req=2.5), score(), score()]
    )
    for name in values:
        keys = [METRICS[name].sort_key(row.value(name)) for row in rows]
        assert keys[2] == keys[3] > max(keys[:2])
    assert all(row.lidar is None for row in rows)  # null for all: nothing to order
    assert rows[0] == score(**values)


def test_nulls_count_in_the_agreement() -> None:
    rows = [
        measured("simclr", at, accuracy, **({} if value is None else {"pillai": value}))
        for at, (accuracy, value) in enumerate([(0.1, None), (0.2, 1.0), (0.4, 3.0), (0.3, None)])
    ]
    actual = agreements(rows, SIZE, 0.95, 0)[0]
    (pillai,) = [c for c in actual.correlations if c.metric == "pillai"]
    assert actual.known["pillai"] == 2
    expected = spearmanr([0, 1, 3, 0], [0.1, 0.2, 0.4, 0.3]).statistic
    assert pillai.spearman == pytest.approx(expected)


def test_spread_is_of_the_trained_with_the_untrained_beside() -> None:
    rows = [
        measured("simclr", 0, 0.2),
        measured("simclr", 1, 0.5),
        measured("ijepa", 0, 0.3),
        measured("ijepa", None, 0.1),
        measured("vicreg", 0, None),
    ]
    (actual,) = spreads(rows, SIZE)
    assert (actual.count, actual.least, actual.median, actual.most) == (3, 0.2, 0.3, 0.5)
    assert actual.by_method == {"simclr": (0.2, 0.5), "ijepa": (0.3, 0.3)}
    assert actual.untrained == {"ijepa": 0.1}
    assert spreads(rows, Size(sets=("plain",))) == []
