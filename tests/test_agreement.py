"""Metrics of a checkpoint among the others of its group: agreement, DSE, their ties."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make import lidar_here
from raising import raises
from scores import score

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import DegenerateFeatures, SettingsError
from lidar_cli.features.schema import Layout
from lidar_cli.features.writer import FeatureWriter
from lidar_cli.ranking import group_metrics, joint_resamples
from lidar_cli.ranking.baseline import Baseline
from lidar_cli.ranking.comparison import compare_files
from lidar_cli.ranking.correlation import correlate
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
    needed_parts,
    stability,
    table_of,
)
from lidar_cli.ranking.joint_resamples import (
    are_tied,
    fixed_parts,
    intervals_of,
    resample,
    tied_with,
)
from lidar_cli.ranking.order import Row, comparable_groups, unranked_row
from lidar_cli.ranking.race import race_directory
from lidar_cli.ranking.session import Ranking
from lidar_cli.ranking.watch import follow
from lidar_cli.report.baseline import value_text
from lidar_cli.report.group_metrics import main_remarks, remarks
from lidar_cli.report.ranking import View, _print_next, to_csv, to_json, to_markdown
from lidar_cli.report.text import SafeConsole
from lidar_cli.report.verdict import companions, second_choice, verdict
from lidar_cli.scoring.compute import DEFAULT_METRICS, Score
from lidar_cli.scoring.intervals import ties
from lidar_cli.settings import CompareSettings, RankSettings

Rows = dict[str, list[float | None]]
NAN = float("nan")
TWO = agreement(("lidar", "rankme"))


def of(metric: GroupMetric, **rows: list[float | None]) -> list[float | None]:
    """The values of checkpoints with these values of parts, by the name of the part."""
    return [one.value(metric.name) for one in form(metric, scores(**rows))]


def scores(**rows: list[float | None]) -> list[Score]:
    count = len(next(iter(rows.values())))
    return [score(str(at), **{name: row[at] for name, row in rows.items()}) for at in range(count)]


def literal_ranks(keys: list[float | None]) -> list[float | None]:
    """1 + how many are smaller + half of the others that are equal."""
    present = [key for key in keys if key is not None]
    return [
        None if key is None else 1 + sum(k < key for k in present) + (present.count(key) - 1) / 2
        for key in keys
    ]


def literal_agreement(names: tuple[str, ...], rows: Rows) -> list[Any]:
    keys = {
        "lidar": lambda v: -v,
        "rankme": lambda v: -v,
        "alpha_req": lambda v: abs(v - 1),
        "alignment": lambda v: v,
    }
    ranks = [literal_ranks([None if v is None else keys[n](v) for v in rows[n]]) for n in names]
    values = []
    for of_one in zip(*ranks, strict=True):
        present = [rank for rank in of_one if rank is not None]
        nulls = len(names) - len(present)
        values.append(None if nulls > len(names) / 2 else sum(present) / len(present))
    return values


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
    noted = replace(parted(None, None, None), notes={"dse": "a convnet has no patch tokens"})
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
        found = of(agreement(names), **rows)
        assert [v is None for v in found] == [v is None for v in expected]
        assert [v for v in found if v] == pytest.approx([v for v in expected if v])


def test_only_order_counts() -> None:
    """Any increasing map of a metric leaves the ranks as they are."""
    keys = torch.tensor([[3.0, -1.0, NAN, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(average_ranks(keys).nan_to_num(), average_ranks(keys.exp()).nan_to_num())
    assert average_ranks(keys).nan_to_num().tolist() == [[4.0, 1.0, 0.0, 2.5, 2.5]]


def test_dse_weighs_the_dimension_by_the_ratio_of_spreads() -> None:
    inter, intra, dim = [1.0, 3.0, 2.0, 9.0], [0.5, 0.5, 1.0, 1.0], [0.1, 0.3, 0.8, None]
    gaps = np.array(inter[:3]) - np.array(intra[:3])  # the one without M_dim counts for nothing
    weight = gaps.std() / np.array(dim[:3], float).std()
    parts = table_of(
        [parted(*one) for one in zip(inter, intra, dim, strict=True)], group_metrics.DSE_OF
    )
    values = dse(parts)
    assert values[:3].tolist() == pytest.approx(gaps + weight * np.array(dim[:3], float))
    assert math.isnan(values[3])


def test_dse_of_one_checkpoint_or_of_equal_dimensions_is_the_separation() -> None:
    alone = table_of([parted(3.0, 1.0, 0.7)], group_metrics.DSE_OF)
    assert dse(alone).tolist() == [2.0]
    equal = table_of([parted(3.0, 1.0, 0.5), parted(1.0, 0.5, 0.5)], group_metrics.DSE_OF)
    assert dse(equal).tolist() == [2.0, 0.5]


def parted(inter: float | None, intra: float | None, dim: float | None) -> Score:
    parts = {"dse_inter": inter, "dse_intra": intra, "dse_dim": dim}
    one = score("x")
    return Score(**{**vars(one), "values": {**one.values, **parts}})


# Ties


def drawn(
    values: list[float], spread: float, n: int, seed: int, name: str = "lidar"
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    columns = torch.from_numpy(rng.normal(size=(len(values), n)) * spread)
    return {name: (values, list(columns - columns.mean(dim=1, keepdim=True)))}


def with_influences(**parts: tuple[list[float], list[torch.Tensor]]) -> list[Score]:
    count = len(next(iter(parts.values()))[0])
    return [
        score(str(at), **{name: values[at] for name, (values, _) in parts.items()},
              influences={name: columns[at] for name, (_, columns) in parts.items() if columns})
        for at in range(count)
    ]  # fmt: skip


def test_resamples_are_those_of_the_literal_loops() -> None:
    """The same samples are drawn for both metrics, and RankMe reads more of them."""
    n, more, count = 7, 9, 3
    parts = drawn([3.0, 2.5, 2.0], 2.0, n, 1) | drawn([5.0, 5.5, 5.2], 2.0, more, 2, "rankme")
    members = with_influences(**parts)
    found = resample(TWO, members)
    assert found is not None
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
        assert found[at].tolist() == literal_agreement(("lidar", "rankme"), rows)
    assert len(found[0]) == count


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
    found = resample(TWO, members)
    assert found is not None
    assert set(found[:, 0].tolist()) == {(1 + 2) / 2, (2 + 2) / 2}  # of lidar 1 or 2, of rankme 2
    members[0].influences["rankme"] = torch.ones(50)
    assert fixed_parts(TWO, members) == ["rankme"]
    fixed = with_influences(lidar=([1.0, 2.0], []), rankme=([1.0, 2.0], []))
    assert resample(TWO, fixed) is None


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 1.5, 1.9, 2.1, 3.0])
def test_with_one_metric_ties_are_those_of_the_paired_difference(gap: float) -> None:
    """Gaps in units of the critical difference: at 1 the draw of resamples decides."""
    n = 400
    (columns,) = (drawn([0.0, 0.0], 1.0, n, 5)["lidar"][1],)
    critical = 1.96 * float((columns[0] - columns[1]).std()) / n**0.5
    values = [10.0 + gap * critical, 10.0]
    members = with_influences(lidar=(values, columns))
    resamples = resample(agreement(("lidar",)), members)
    assert resamples is not None
    found = [bool(others) for others in tied_with(resamples, 0.95)]
    expected = [bool(others) for others in ties(values, columns, METRICS["lidar"], 0.95)]
    assert found[0] == found[1]
    if gap != 1.0:
        assert found == expected


def test_ties_are_joint() -> None:
    """What a sample does to both checkpoints cancels, however wide each interval is."""
    (columns,) = (drawn([0.0], 50.0, 200, 3)["lidar"][1],)
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
    for level in (0.9,):
        found = tied_with(resamples, level)
        for at in range(len(members)):
            for other in range(len(members)):
                ahead = sum(float(row[at]) < float(row[other]) for row in resamples) / 1000
                behind = sum(float(row[at]) > float(row[other]) for row in resamples) / 1000
                null = 5 in (at, other)
                tied = max(ahead, behind) < (1 + level) / 2 and at != other and not null
                assert (other in found[at]) == tied
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
    (columns,) = (drawn([0.0, 0.0], 1.0, 100, 5)["lidar"][1],)
    near, far = (with_influences(lidar=([10.0 + gap, 10.0], columns)) for gap in (0.01, 5.0))
    lidar = METRICS["lidar"]
    assert are_tied(lidar, near, (0, 1), 0.95)
    assert not are_tied(lidar, far, (0, 1), 0.95)
    counts = [score("a", n_above_noise=3.0), score("b", n_above_noise=3.0), score("c")]
    assert are_tied(METRICS["n_above_noise"], counts, (0, 1), 0.95)
    assert not are_tied(METRICS["n_above_noise"], counts, (0, 2), 0.95)


# Stability


def literal_stability(names: tuple[str, ...], rows: Rows) -> Any:
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
    assert stability(TWO, scores(**rows)) == literal_stability(("lidar", "rankme"), rows) == (3, 1)


def test_stability_is_that_of_the_literal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names, changed = ("lidar", "rankme", "alignment"), 0
    monkeypatch.setattr(group_metrics, "NUMBERS", 60)  # a few at a time
    for _ in range(25):
        count = int(rng.integers(2, 9))
        rows = {
            name: [None if rng.random() < 0.15 else float(rng.integers(0, 6)) for _ in range(count)]
            for name in names
        }
        expected = literal_stability(names, rows)
        if any(value is not None for value in literal_agreement(names, rows)):
            assert stability(agreement(names), scores(**rows)) == expected
            changed += expected[1]
    assert changed > 5


def test_without_values_nothing_is_left_out() -> None:
    assert stability(TWO, scores(lidar=[None, None], rankme=[None, None])) == (0, 0)


def test_dse_can_change_its_first_because_its_weight_does() -> None:
    """Without the last, the spread of M_dim is small, and so its weight is large."""
    members = [parted(1.15, 0.0, 0.50), parted(1.2, 0.0, 0.47), parted(0.8, 0.0, 0.48),
               parted(0.9, 0.0, 0.1)]  # fmt: skip
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
    assert stability(metric, members) == (3, changes)


# In a ranking


def rows_of(members: list[Score], by: str) -> list[Row]:
    return [unranked_row(Path(one.file), (), one, ORDERS[by]) for one in members]


def ranking_of(members: list[Score], by: str = "lidar", **more: Any) -> Ranking:
    """The ranking of scores that form one group."""
    rows = rows_of(members, by)
    groups = comparable_groups(rows, ORDERS[by], 0.95)
    return Ranking("", ORDERS[by], 0.95, "images", groups, **more)


APART = {"lidar": [9.0, 8.0, 7.0, 6.0], "rankme": [2.0, 9.0, 3.0, 1.0]}  # ranks 1-4; 3, 1, 2, 4


def test_a_group_is_ordered_by_it_and_an_equal_value_ties() -> None:
    (group,) = ranking_of(scores(**APART), "agreement").groups
    assert [(row.path, row.value, row.rank) for row in group.rows] == [
        ("1", 1.5, 1), ("0", 2.0, 2), ("2", 2.5, 3), ("3", 4.0, 4),
    ]  # fmt: skip
    assert group.rows[0].interval.reason == "no influences of samples on lidar, rankme"
    (equal,) = ranking_of(scores(lidar=[2.0, 1.0], rankme=[1.0, 2.0]), "agreement").groups
    assert [(row.rank, row.tied_with) for row in equal.rows] == [(1, ("1",)), (1, ("0",))]


def test_each_group_has_ranks_of_its_own() -> None:
    wide = [replace(one, dim=9, file=f"wide {one.file}") for one in scores(**APART)[:2]]
    first, second = ranking_of([*scores(**APART), *wide], "agreement").groups
    assert [row.value for row in first.rows] == [1.5, 2.0, 2.5, 4.0]
    assert [row.value for row in second.rows] == [1.5, 1.5]


def test_an_incomplete_group_has_none() -> None:
    rows = rows_of(scores(**APART), "lidar")
    (group,) = comparable_groups(rows, ORDERS["lidar"], 0.95, complete=False)
    assert all(row.score.value("agreement") is None for row in group.rows)
    assert companions(group, ORDERS["lidar"]) == ["rankme"]


def test_the_verdict_names_what_the_second_opinion_selects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("rank", "runs", "-q", "4")
    ranking = ranking_of(scores(**APART), command=words)
    assert verdict(ranking).endswith(
        " lidar and agreement choose different checkpoints: compare 0 with 1."
    )
    assert companions(ranking.groups[0], ORDERS["lidar"]) == ["agreement"]
    (record,) = json.loads(to_json(ranking))["second_opinion"]
    assert record == {
        "group": 1, "metric": "agreement", "first": ["1"], "differs": True,
        "command": "lidar compare 0 1 -q 4",
    }  # fmt: skip
    swapped = ranking_of(scores(**APART), "agreement")
    assert "agreement and lidar choose different checkpoints: compare 1 with 0." in verdict(swapped)
    same = ranking_of(scores(lidar=[9.0, 8.0], rankme=[9.0, 8.0]))
    assert "choose different" not in verdict(same)
    shared = ranking_of(scores(lidar=[9.0, 8.0], rankme=[8.0, 9.0]))  # agreement 1.5 of both
    assert "choose different" not in verdict(shared)
    for module in ("verdict", "group_metrics"):
        monkeypatch.setattr(f"lidar_cli.report.{module}.SECOND_OPINION", "rankme")
    assert "lidar and rankme choose different checkpoints: compare 0 with 1." in verdict(ranking)


def test_checkpoints_that_tie_by_either_metric_are_no_disagreement() -> None:
    (columns,) = (drawn([0.0] * 3, 1.0, 100, 5)["lidar"][1],)
    lidar, wide = [9.0, 8.0, 7.0], [column * 100 for column in columns]
    rankme = [2.0, 9.0, 8.5]  # agreement 2.0, 1.5, 2.5
    clear = with_influences(lidar=(lidar, columns), rankme=(rankme, columns))
    assert "choose different" in verdict(ranking_of(clear))
    unclear = with_influences(lidar=(lidar, columns), rankme=(rankme, wide))
    assert "choose different" not in verdict(ranking_of(unclear))


def test_one_of_several_that_the_second_opinion_selects_may_tie_with_the_first() -> None:
    same, other = (drawn([0.0], 1.0, 100, seed)["lidar"][1][0] for seed in (5, 6))
    lidar = ([8.0, 9.0, 9.0, 7.0, 6.0], [])  # ranks 3, 1.5, 1.5, 4, 5
    rankme = ([50.0, 20.0, 10.0, 40.0, 30.0], [same, same, other * 1000, same, same])
    ranking = ranking_of(with_influences(lidar=lidar, rankme=rankme), "agreement")
    first = ranking.groups[0].rows[0]
    assert (first.path, first.value) == ("0", 2.0)
    assert "2" in first.tied_with
    assert "1" not in first.tied_with
    choice = second_choice(ranking.groups[0], ranking)
    assert (choice.metric, choice.first, choice.theirs) == ("lidar", ("1", "2"), None)


def test_json_says_what_it_was_computed_over_and_how_stable_it_is() -> None:
    rows: Rows = {"lidar": [4.0, 3.0, 1.0, 2.0], "rankme": [2.0, 4.0, 3.0, 1.0]}
    document = json.loads(to_json(ranking_of(scores(**rows))))
    assert document["group_metrics"] == [
        {
            "group": 1, "metric": "agreement", "of": ["lidar", "rankme"], "checkpoints": 4,
            "paths": ["0", "1", "3", "2"], "first": ["1"], "left_out": 3, "first_changes": 1,
            "not_resampled": "no influences of samples on lidar, rankme",
        }
    ]  # fmt: skip
    assert [row["metrics"]["agreement"] for row in document["checkpoints"]] == [2.0, 1.5, 3.5, 3.0]
    dense = [parted(*one) for one in ((1.0, 0.0, 0.5), (3.0, 1.0, 0.9), (2.0, 0.5, 0.2))]
    dense = [replace(one, file=str(at)) for at, one in enumerate(dense)]
    document = json.loads(to_json(ranking_of(dense, "dse")))
    (record,) = document["group_metrics"]
    assert record["of"] == ["dse_inter", "dse_intra", "dse_dim"]
    assert record["weight"] == pytest.approx(np.std([1.0, 2.0, 1.5]) / np.std([0.5, 0.9, 0.2]))
    assert [row["path"] for row in document["checkpoints"]] == ["1", "2", "0"]


def test_a_terminal_shows_the_command_that_compares_the_two() -> None:
    out = SafeConsole(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    _print_next(out, ranking_of(scores(**APART), command=("rank", "runs")), View())
    first, second = out.file.getvalue().strip().splitlines()
    assert first.split() == ["next", "lidar", "compare", "0", "1"]
    assert second.endswith("all 15 metrics: --all")
    out = SafeConsole(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    _print_next(out, ranking_of(scores(lidar=[2.0, 1.0], rankme=[2.0, 1.0])), View())
    assert "compare" not in out.file.getvalue()


def test_csv_markdown_and_correlations_have_it() -> None:
    ranking = ranking_of(scores(**APART), "agreement")
    header, *lines = to_csv(ranking).splitlines()
    at = header.split(",").index("agreement")
    assert [line.split(",")[at] for line in lines] == ["1.5", "2.0", "2.5", "4.0"]
    assert "| agreement |" in to_markdown(ranking).splitlines()[2]
    members = [row.score for row in ranking.groups[0].rows]
    found = {one.metric: one for one in correlate(members, [0.4, 0.3, 0.2, 0.1])}
    assert found["agreement"].spearman == pytest.approx(1.0)  # lower is better
    assert "agreement" not in {one.metric for one in correlate(scores(**APART), [4.0, 3, 2, 1])}


def test_an_untrained_network_has_no_value_of_a_group() -> None:
    one = Baseline("untrained", "resnet18", "projector", 0, scores=(score("x", lidar=2.0),) * 3)
    assert value_text(one, "agreement") == "untrained: no agreement: it has no rank"
    assert value_text(one, "lidar").startswith("an untrained resnet18 has lidar 2.000")


def test_how_stable_the_first_is_is_printed() -> None:
    rows: Rows = {"lidar": [4.0, 3.0, 1.0, 2.0], "rankme": [2.0, 4.0, 3.0, 1.0]}
    expected = (
        "the first by agreement depends on the others: without one of them it is another in 1 of 3 "
        "cases"
    )
    for by in ("lidar", "agreement"):
        ranking = ranking_of(scores(**rows), by)
        assert list(main_remarks(ranking.groups[0], ranking)) == [expected]
    stable = {"lidar": [4.0, 3.0, 2.0], "rankme": [4.0, 3.0, 2.0]}
    calm = {by: ranking_of(scores(**stable), by) for by in ("lidar", "agreement")}
    assert not list(main_remarks(calm["lidar"].groups[0], calm["lidar"]))
    (text,) = main_remarks(calm["agreement"].groups[0], calm["agreement"])
    assert text == "the first by agreement stays first without any one of the other 2"


def test_a_part_that_is_not_resampled_is_named() -> None:
    parts = drawn([3.0, 2.9], 5.0, 50, 1)
    members = with_influences(**parts, rankme=([1.0, 2.0], []))
    ranking = ranking_of(members, "agreement")
    (text,) = [text for text in remarks(ranking.groups[0], ranking) if "ties by" in text]
    assert text == (
        "ties by agreement: no influences of samples on rankme, so the order by these is always "
        "the same"
    )


# In a process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three feature files; one has more noise, one less signal."""
    folder = tmp_path_factory.mktemp("agreement")
    rng = np.random.default_rng(3)
    signal, noise = rng.normal(size=(90, 1, 5)), rng.normal(size=(90, 4, 5))
    scales = {"one": (3.0, 1.0), "two": (3.0, 2.5), "three": (0.3, 1.0)}
    for name, (a, b) in scales.items():
        layout = Layout({"backbone": 5}, 90, 4, 90)
        path, ids = folder / "runs" / f"{name}.h5", [str(i) for i in range(90)]
        path.parent.mkdir(exist_ok=True)
        with FeatureWriter.create(path, layout, ids, None, {"seed": 0, "data": "x"}) as writer:
            views = torch.from_numpy(a * signal * np.arange(1, 6) + b * noise).float()
            writer.write(range(90), {"backbone": views}, {"backbone": views[:, 0]})
            writer.finish()
    return folder


@pytest.fixture
def lidar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    monkeypatch.chdir(folder)
    return partial(lidar_here, monkeypatch=monkeypatch, capfd=capfd)


def test_rank_orders_by_it_with_ties_of_the_stored_influences(lidar: Callable[..., Any]) -> None:
    words = ["rank", "runs", "--device", "cpu", "--by", "agreement"]
    done = lidar(*words, "--json")
    document = json.loads(done.stdout)
    rows = document["checkpoints"]
    metrics = {row["path"]: row["metrics"] for row in rows}
    columns = [{path: one[name] for path, one in metrics.items()} for name in AGREEMENT_OF]
    for row in rows:
        better = [sum(v > column[row["path"]] for v in column.values()) for column in columns]
        assert row["value"] == row["metrics"]["agreement"] == 1 + sum(better) / len(better)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    (record,) = document["group_metrics"]
    assert (record["of"], record["checkpoints"]) == (list(AGREEMENT_OF), 3)
    assert record["not_resampled"] is None
    again = lidar(*words, "--json")  # from the influences that are stored
    assert json.loads(again.stdout)["checkpoints"] == rows
    paths = [row["path"] for row in rows]
    assert lidar(*words, "--quiet", "--top", 2).stdout.split() == paths[:2]
    table = lidar(*words)
    assert table.stdout.splitlines()[1].split()[:3] == ["#", "checkpoint", "agreement"]
    assert "the first by agreement stays first without any one of the other 2" in table.stderr
    default = lidar("rank", "runs", "--device", "cpu")
    assert default.stdout.splitlines()[1].split()[-1] == "agreement"


def test_the_page_and_an_oracle_have_it(folder: Path, lidar: Callable[..., Any]) -> None:
    (folder / "accuracy.csv").write_text("path,accuracy\none,0.5\ntwo,0.4\nthree,0.3\n")
    done = lidar("rank", "runs", "--device", "cpu", "--by", "agreement", "--oracle",
                 "accuracy.csv", "--report", "page.html", "--per-run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("agreement ") for line in done.stdout.splitlines())
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Ordered by agreement, lower is better" in page
    assert "lidar explain agreement" in page


@pytest.mark.parametrize(
    "words",
    [
        ("rank", "runs", "--race", "--by", "agreement"),
        ("rank", "runs", "--watch", "--by", "dse"),
        ("compare", "runs/one.h5", "runs/two.h5", "--by", "agreement"),
        ("compare", "runs/one.h5", "runs/two.h5", "--metrics", "agreement"),
        ("score", "runs/one.h5", "--metrics", "lidar,agreement"),
    ],
    ids=" ".join,
)
def test_what_has_no_complete_group_refuses_it(
    lidar: Callable[..., Any], words: tuple[str, ...]
) -> None:
    done = lidar(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert ": it is formed from all checkpoints of a " in line
    assert " does not have; " in line
    assert f": lidar rank ... --by {words[-1].split(',')[-1]}" in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--by", "dse"), "--by dse: it is measured on patch tokens alone; add --layer patches"),
        (
            ("--columns", "rankme,dse", "--layer", "backbone"),
            "--columns dse: it is measured on patch tokens alone; add --layer patches",
        ),
        (
            ("--metrics", "agreement"),
            "--metrics agreement: it is formed from other metrics, without being named; leave it "
            "out, or show it: --columns agreement",
        ),
        (
            ("--race", "--columns", "agreement"),
            "--columns and --race exclude each other; give one",
        ),
    ],
    ids=["by", "columns", "metrics", "race"],
)
def test_what_rank_cannot_form_is_refused_before_the_work(
    lidar: Callable[..., Any], words: tuple[str, ...], error: str
) -> None:
    done = lidar("rank", "runs", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {error}\n")


def test_functions_refuse_it_too(folder: Path) -> None:
    settings = {"by": "agreement", "device": "cpu"}
    with raises(SettingsError, "of-a-group"):
        race_directory([folder], RankSettings(**settings))
    with raises(SettingsError, "of-a-group"):
        next(follow([folder], RankSettings(**settings)))
    two = [folder / "runs/one.h5", folder / "runs/two.h5"]
    with raises(SettingsError, "of-a-group"):
        compare_files(two, CompareSettings(**settings))


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
        "not have; leave out --by, or order them all: lidar rank ... --by agreement"
    )
