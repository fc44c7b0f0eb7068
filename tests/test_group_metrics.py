"""Metrics of a checkpoint among the others of its group: values, ties, changes, names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from groups import (
    TWO,
    Rows,
    dense_score,
    drawn,
    literal_agreement,
    scores,
    with_influences,
)
from raising import raises
from scores import score

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import DegenerateFeatures, SettingsError
from lidar_cli.ranking import group_metrics, joint_resamples
from lidar_cli.ranking.group_metrics import (
    AGREEMENT_OF,
    GROUP_METRICS,
    ORDERS,
    SECOND_OPINION,
    GroupMetric,
    agreement,
    average_ranks,
    dse,
    find_order,
    form,
    leave_one_out,
    needed_parts,
    table_of,
)
from lidar_cli.ranking.joint_resamples import (
    are_tied,
    fixed_parts,
    intervals_of,
    resample,
    tied_with,
)
from lidar_cli.scoring.compute import DEFAULT_METRICS
from lidar_cli.scoring.intervals import ties


def of(metric: GroupMetric, **rows: list[float | None]) -> list[float | None]:
    """The values of checkpoints with these values of parts, by the name of the part."""
    return [one.value(metric.name) for one in form(metric, scores(**rows))]


# Values


def test_the_mean_of_ranks_by_hand() -> None:
    # lidar ranks c, a, b; rankme ranks a, c, b.
    assert of(TWO, lidar=[5.0, 1.0, 9.0], rankme=[7.0, 2.0, 3.0]) == [1.5, 3.0, 1.5]


def test_equal_values_share_the_average_of_their_ranks() -> None:
    # rankme: the two largest share ranks 1 and 2, the three smallest 3, 4 and 5.
    values = of(TWO, lidar=[5.0, 4.0, 3.0, 2.0, 1.0], rankme=[2.0, 8.0, 2.0, 8.0, 2.0])
    assert values == [(1 + 4) / 2, (2 + 1.5) / 2, (3 + 4) / 2, (4 + 1.5) / 2, (5 + 4) / 2]


def test_each_metric_ranks_by_its_direction() -> None:
    """Higher, lower, and nearest to a target from either side."""
    names = ("lidar", "alignment", "alpha_req")
    values = of(agreement(names), lidar=[3.0, 2.0, 1.0], alignment=[0.1, 0.2, 0.3],
                alpha_req=[1.5, 0.9, 1.2])  # fmt: skip
    assert values == pytest.approx([(1 + 1 + 3) / 3, (2 + 2 + 1) / 3, (3 + 3 + 2) / 3])


def test_a_null_drops_out_of_the_mean_and_more_than_half_make_it_null() -> None:
    names = ("lidar", "rankme", "alignment")
    values = of(agreement(names), lidar=[4.0, 3.0, None, None], rankme=[1.0, 2.0, 3.0, None],
                alignment=[0.4, None, None, 0.1])  # fmt: skip
    # Ranks of lidar 1, 2, -, -; of rankme 3, 2, 1, -; of alignment 2, -, -, 1.
    assert values == [(1 + 3 + 2) / 3, (2 + 2) / 2, None, None]
    half = of(TWO, lidar=[4.0, None, None], rankme=[1.0, 2.0, None])
    assert half == [(1 + 2) / 2, 1.0, None]  # one of two is not more than half


def test_a_null_has_a_reason() -> None:
    one = score("a", lidar=2.0, rankme=1.0)
    two = score("b", notes={"lidar": "it has one view"})
    noted = replace(dense_score(None, None, None), notes={"dse": "a convnet has no patch tokens"})
    assert (
        form(GROUP_METRICS["dse"], [noted])[0]
        .notes["dse"]
        .endswith("; no dse_inter, dse_intra, dse_dim: a convnet has no patch tokens")
    )
    whole, null = form(TWO, [one, two])
    assert "agreement" not in whole.notes
    assert null.notes == {
        "lidar": "it has one view",
        "agreement": "it is formed from lidar, rankme; no lidar, rankme: it has one view",
    }


@pytest.mark.parametrize("names", [("lidar", "rankme"), ("lidar", "rankme", "alpha_req"),
                                   ("alignment", "lidar", "alpha_req", "rankme")])  # fmt: skip
def test_values_are_those_of_the_literal_loops(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(names))
    for _ in range(20):
        count = int(rng.integers(1, 9))
        rows = {
            name: [None if rng.random() < 0.3 else float(rng.integers(0, 5)) for _ in range(count)]
            for name in names
        }
        expected = literal_agreement(names, rows)
        actual = of(agreement(names), **rows)
        assert [v is None for v in actual] == [v is None for v in expected]
        assert [v for v in actual if v] == pytest.approx([v for v in expected if v])


def test_only_order_counts() -> None:
    """Any increasing map of a metric leaves the ranks as they are."""
    keys = torch.tensor([[3.0, -1.0, math.nan, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(average_ranks(keys).nan_to_num(), average_ranks(keys.exp()).nan_to_num())
    assert average_ranks(keys).nan_to_num().tolist() == [[4.0, 1.0, 0.0, 2.5, 2.5]]


def test_dse_weighs_the_dimension_by_the_ratio_of_spreads() -> None:
    inter, intra, dim = [1.0, 3.0, 2.0, 9.0], [0.5, 0.5, 1.0, 1.0], [0.1, 0.3, 0.8, None]
    gaps = np.array(inter[:3]) - np.array(intra[:3])  # the one without M_dim counts for nothing
    weight = gaps.std() / np.array(dim[:3], float).std()
    parts = table_of(
        [dense_score(*one) for one in zip(inter, intra, dim, strict=True)], group_metrics.DSE_OF
    )
    values = dse(parts)
    assert values[:3].tolist() == pytest.approx(gaps + weight * np.array(dim[:3], float))
    assert math.isnan(values[3])


def test_dse_of_one_checkpoint_or_of_equal_dimensions_is_the_separation() -> None:
    alone = table_of([dense_score(3.0, 1.0, 0.7)], group_metrics.DSE_OF)
    assert dse(alone).tolist() == [2.0]
    equal = table_of([dense_score(3.0, 1.0, 0.5), dense_score(1.0, 0.5, 0.5)], group_metrics.DSE_OF)
    assert dse(equal).tolist() == [2.0, 0.5]


# Ties


def test_resamples_are_those_of_the_literal_loops() -> None:
    """The same samples are drawn for both metrics, and RankMe reads more of them."""
    n, more, count = 7, 9, 3
    parts = drawn([3.0, 2.5, 2.0], 2.0, n, 1) | drawn([5.0, 5.5, 5.2], 2.0, more, 2, "rankme")
    members = with_influences(**parts)
    actual = resample(TWO, members)
    assert actual is not None
    generator = torch.Generator().manual_seed(joint_resamples.SEED)
    ones = torch.ones(joint_resamples.RESAMPLES, more, dtype=torch.float64)
    times = torch.poisson(ones, generator).numpy()
    for at in range(0, joint_resamples.RESAMPLES, 97):
        rows: Rows = {}
        for name, (values, columns) in parts.items():
            rows[name] = []
            for value, column in zip(values, columns, strict=True):
                shift = sum((times[at][i] - 1) * float(u) for i, u in enumerate(column))
                rows[name].append(value + shift / len(column))
        assert actual[at].tolist() == literal_agreement(("lidar", "rankme"), rows)
    assert len(actual[0]) == count


def test_the_mean_of_influences_does_not_count() -> None:
    lidar = agreement(("lidar",))
    values, columns = drawn([3.0, 2.9, 2.0], 2.0, 20, 1)["lidar"]
    shifted = [column + 9.0 * at for at, column in enumerate(columns)]
    centred = resample(lidar, with_influences(lidar=(values, columns)))
    assert torch.equal(resample(lidar, with_influences(lidar=(values, shifted))), centred)


def test_resamples_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    members = with_influences(**drawn([3.0, 2.9, 2.0], 2.0, 20, 1))
    whole = resample(agreement(("lidar",)), members)
    monkeypatch.setattr(joint_resamples, "NUMBERS", 7 * 20)
    parts = resample(agreement(("lidar",)), members)
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole, parts)


def test_a_part_without_influences_keeps_its_ranks() -> None:
    """rankme has influences on one checkpoint alone, so none of it is resampled."""
    parts = drawn([3.0, 2.9], 5.0, 50, 1)
    members = with_influences(**parts, rankme=([1.0, 2.0], []))
    assert fixed_parts(TWO, members) == ["rankme"]
    actual = resample(TWO, members)
    assert actual is not None
    assert set(actual[:, 0].tolist()) == {(1 + 2) / 2, (2 + 2) / 2}  # of lidar 1 or 2, of rankme 2
    members[0].influences["rankme"] = torch.ones(50)
    assert fixed_parts(TWO, members) == ["rankme"]
    fixed = with_influences(lidar=([1.0, 2.0], []), rankme=([1.0, 2.0], []))
    assert resample(TWO, fixed) is None


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 1.5, 1.9, 2.1, 3.0])
def test_with_one_metric_ties_are_those_of_the_paired_difference(gap: float) -> None:
    """Gaps in units of the critical difference: at 1 the draw of resamples decides."""
    n = 400
    _, columns = drawn([0.0, 0.0], 1.0, n, 5)["lidar"]
    critical = 1.96 * float((columns[0] - columns[1]).std()) / n**0.5
    values = [10.0 + gap * critical, 10.0]
    members = with_influences(lidar=(values, columns))
    resamples = resample(agreement(("lidar",)), members)
    assert resamples is not None
    actual = [bool(others) for others in tied_with(resamples, 0.95)]
    expected = [bool(others) for others in ties(values, columns, METRICS["lidar"], 0.95)]
    assert actual[0] == actual[1]
    if gap != 1.0:
        assert actual == expected


def test_ties_are_joint() -> None:
    """What a sample does to both checkpoints cancels, however wide each interval is."""
    _, columns = drawn([0.0], 50.0, 200, 3)["lidar"]
    apart = with_influences(lidar=([10.1, 10.0], [columns[0], columns[0]]))
    both = with_influences(lidar=([10.1, 10.0], [columns[0], -columns[0]]))
    one = agreement(("lidar",))
    for members, tied in ((apart, [[], []]), (both, [[1], [0]])):
        resamples = resample(one, members)
        assert resamples is not None
        assert tied_with(resamples, 0.95) == tied
        assert are_tied(one, form(one, members), (0, 1), 0.95) is bool(tied[0])


def test_ties_are_those_of_the_literal_loops_and_a_null_has_none() -> None:
    parts = drawn([3.0, 2.9, 2.0, 1.0, 2.95], 3.0, 60, 1)
    members = with_influences(**parts)
    members.append(score("null"))
    resamples = resample(agreement(("lidar",)), members)
    assert resamples is not None
    level = 0.9
    actual = tied_with(resamples, level)
    for at in range(len(members)):
        for other in range(len(members)):
            ahead = sum(float(row[at]) < float(row[other]) for row in resamples) / 1000
            behind = sum(float(row[at]) > float(row[other]) for row in resamples) / 1000
            null = 5 in (at, other)
            tied = max(ahead, behind) < (1 + level) / 2 and at != other and not null
            assert (other in actual[at]) == tied
    assert intervals_of(resamples, 0.95)[5].se is None


def test_an_interval_is_that_of_percentiles() -> None:
    ranks = torch.tensor([1.0] * 20 + [2.0] * 950 + [3.0] * 30, dtype=torch.float64)[:, None]
    (wide,) = intervals_of(ranks, 0.95)
    assert (wide.ci_low, wide.ci_high) == (2.0, 3.0)  # 25 on each side are outside
    (narrow,) = intervals_of(ranks, 0.9)
    assert (narrow.ci_low, narrow.ci_high) == (2.0, 2.0)
    assert wide.se == pytest.approx(np.std(ranks.numpy(), ddof=1))


def test_two_checkpoints_that_are_equal_are_rarely_separated() -> None:
    """Of equal expected values at level 0.9: by one metric 10 %, by two at most that."""
    n, draws, apart = 50, 60, {1: 0, 2: 0}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        lidar, rankme = rng.normal(size=(2, 2, n))
        columns = {"lidar": lidar, "rankme": rankme}
        parts = {
            name: (list(z.mean(axis=1)), list(torch.from_numpy(z - z.mean(axis=1, keepdims=True))))
            for name, z in columns.items()
        }
        members = with_influences(**parts)
        for count, names in ((1, ("lidar",)), (2, ("lidar", "rankme"))):
            metric = agreement(names)
            tied = are_tied(metric, form(metric, members), (0, 1), 0.9)
            apart[count] += not tied
    deviation = (0.1 * 0.9 / draws) ** 0.5
    assert abs(apart[1] / draws - 0.1) < 3.5 * deviation
    assert apart[2] / draws < 0.1 + 2 * deviation


def test_values_by_a_plain_metric_tie_by_its_own_test() -> None:
    _, columns = drawn([0.0, 0.0], 1.0, 100, 5)["lidar"]
    near, far = (with_influences(lidar=([10.0 + gap, 10.0], columns)) for gap in (0.01, 5.0))
    lidar = METRICS["lidar"]
    assert are_tied(lidar, near, (0, 1), 0.95)
    assert not are_tied(lidar, far, (0, 1), 0.95)
    counts = [score("a", n_above_noise=3.0), score("b", n_above_noise=3.0), score("c")]
    assert are_tied(METRICS["n_above_noise"], counts, (0, 1), 0.95)
    assert not are_tied(METRICS["n_above_noise"], counts, (0, 2), 0.95)


# The first with one checkpoint left out


def literal_leave_one_out(names: tuple[str, ...], rows: Rows) -> Any:
    def firsts(without: int | None) -> set[int]:
        count = len(next(iter(rows.values())))
        at = [i for i in range(count) if i != without]
        values = literal_agreement(
            names, {name: [row[i] for i in at] for name, row in rows.items()}
        )
        best = min((v for v in values if v is not None), default=None)
        return {i for i, v in zip(at, values, strict=True) if v == best} if best else set()

    first = firsts(None)
    others = [i for i in range(len(next(iter(rows.values())))) if i not in first]
    return len(others), sum(firsts(i) != first for i in others)


def test_an_irrelevant_checkpoint_can_change_the_first() -> None:
    """By lidar a, b, d, c and by rankme b, c, a, d: without c, a is as good as b."""
    rows: Rows = {"lidar": [4.0, 3.0, 1.0, 2.0], "rankme": [2.0, 4.0, 3.0, 1.0]}
    assert of(TWO, **rows) == [2.0, 1.5, 3.0, 3.5]
    expected = literal_leave_one_out(("lidar", "rankme"), rows)
    assert leave_one_out(TWO, scores(**rows)) == expected == (3, 1)


def test_changes_are_those_of_the_literal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names, changed = ("lidar", "rankme", "alignment"), 0
    monkeypatch.setattr(group_metrics, "NUMBERS", 60)  # a few at a time
    for _ in range(25):
        count = int(rng.integers(2, 9))
        rows = {
            name: [None if rng.random() < 0.15 else float(rng.integers(0, 6)) for _ in range(count)]
            for name in names
        }
        expected = literal_leave_one_out(names, rows)
        if any(value is not None for value in literal_agreement(names, rows)):
            assert leave_one_out(agreement(names), scores(**rows)) == expected
            changed += expected[1]
    assert changed > 5


def test_without_values_nothing_is_left_out() -> None:
    assert leave_one_out(TWO, scores(lidar=[None, None], rankme=[None, None])) == (0, 0)


def test_dse_can_change_its_first_because_its_weight_does() -> None:
    """Without the last, the spread of M_dim is small, and so its weight is large."""
    rows = [(1.15, 0.50), (1.2, 0.47), (0.8, 0.48), (0.9, 0.1)]
    members = [dense_score(inter, 0.0, dim) for inter, dim in rows]
    metric = GROUP_METRICS["dse"]
    changes = 0
    for without in (None, 0, 1, 2, 3):
        part = [one for at, one in enumerate(members) if at != without]
        gaps = np.array([one.values["dse_inter"] for one in part])
        dims = np.array([one.values["dse_dim"] for one in part])
        values = gaps + gaps.std() / dims.std() * dims
        best = members.index(part[int(values.argmax())])
        if without is None:
            first = best
        elif without != first:
            changes += best != first
    assert changes > 0
    assert leave_one_out(metric, members) == (3, changes)


# Names


def test_the_set_and_the_second_opinion_are_metrics() -> None:
    assert set(AGREEMENT_OF) <= METRICS.keys()
    assert set(AGREEMENT_OF) <= DEFAULT_METRICS  # others would be null in every ranking
    assert SECOND_OPINION in ORDERS
    assert SECOND_OPINION != "lidar"
    assert GROUP_METRICS["agreement"].of == AGREEMENT_OF
    assert all(name in GROUP_METRICS["agreement"].definition for name in AGREEMENT_OF)
    assert needed_parts("pillai") >= {"pillai"}
    assert needed_parts("agreement") >= set(AGREEMENT_OF)


@pytest.mark.parametrize("metric", GROUP_METRICS.values(), ids=GROUP_METRICS)
def test_a_metric_of_a_group_has_a_definition_and_no_value_alone(metric: GroupMetric) -> None:
    assert metric.definition.endswith(".")
    assert "\n" not in metric.definition
    assert metric.direction in ("higher", "lower")
    assert not metric.has_interval
    with raises(DegenerateFeatures, "of-a-group"):
        metric.value(None)


def test_a_name_is_found_or_refused() -> None:
    assert find_order("agreement") is GROUP_METRICS["agreement"]
    assert find_order("lidar", "--race") is METRICS["lidar"]
    with raises(SettingsError, "no-such-metric") as raised:
        find_order("agrement")
    assert "did you mean agreement?" in str(raised.value)
    with raises(SettingsError, "of-a-group") as raised:
        find_order("agreement", "--race")
    assert str(raised.value) == (
        "--by agreement: it is formed from all checkpoints of a complete group, which --race does "
        "not have; leave out --by, or order them all:  lidar rank FOLDER --by agreement"
    )
