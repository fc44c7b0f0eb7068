"""The comparisons of the study on planted results, and its rule of choice written again."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from study.analysis import (
    POOLED,
    Candidate,
    Group,
    LeftOut,
    Method,
    Outcome,
    agreements,
    candidates,
    choose,
    groups,
    leave_one_out,
    margin,
    mean_places,
    merit,
    methods,
    outcomes,
    spearman,
)
from study.records import read_results
from study.seeds import seed_noise
from study.sweeps import EVERY, sweeps
from study.tables import analyse, judged_groups, opinion_left_out
from study_results import Values, plant

from lidar_cli.errors import InputError
from lidar_cli.ranking.trust import Facts


def group(accuracies: list[float], **merits: list[float]) -> Group:
    names = tuple(f"run-{at}" for at in range(len(accuracies)))
    arrays = {name: np.array(values) for name, values in merits.items()}
    return Group("fashion", "backbone", 10, POOLED, names, np.array(accuracies), arrays)


# Which checkpoints are compared


def test_a_method_counts_if_half_of_its_runs_pass_and_a_run_passes_above_the_untrained() -> None:
    half = Method("plain", "byol", {"a": 0.6, "b": 0.5, "c": 0.4, "d": 0.7}, untrained=0.5)
    assert half.passing == {"a", "d"}  # at the untrained network is not above it
    assert half.counts
    assert not half.counts_within
    diverged = Method("plain", "byol", half.accuracies, untrained=0.5, failed=1)
    assert not diverged.counts
    many = {str(at): 0.6 for at in range(10)}
    assert Method("plain", "byol", many, 0.5).counts_within
    assert not Method("plain", "byol", dict(list(many.items())[:9]), 0.5).counts_within


def test_methods_are_read_with_the_untrained_network_of_their_architecture(tmp_path: Path) -> None:
    def nothing(layer: str) -> Values:
        return {}

    plant(tmp_path, "simclr-untrained", 0.5, nothing, kind="untrained")
    plant(tmp_path, "ijepa-untrained", 0.3, nothing, kind="untrained", method="ijepa")
    for name, method, accuracy in [("byol-00", "byol", 0.4), ("ijepa-00", "ijepa", 0.4)]:
        plant(tmp_path, name, accuracy, nothing, method=method, index=0)
    plant(tmp_path, "byol-01", 0.0, nothing, method="byol", index=1, failed="not finite")
    byol, ijepa = methods(read_results(tmp_path))
    assert (byol.untrained, ijepa.untrained) == (0.5, 0.3)
    assert (byol.failed, dict(byol.accuracies)) == (1, {"byol-00": 0.4})
    assert (byol.counts, ijepa.counts) == (False, True)


def test_a_set_without_an_untrained_network_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "byol-00", 0.4, lambda layer: {}, method="byol", index=0)
    with pytest.raises(InputError, match="fashion: the untrained network is not measured yet"):
        methods(read_results(tmp_path))


def test_groups_are_pooled_and_by_method_with_either_probe(tmp_path: Path) -> None:
    for at in range(4):
        for method in ("simclr", "vicreg"):
            name, value = f"{method}-{at}", float(at)
            plant(tmp_path, name, 0.1 * at, lambda layer, v=value: {"lidar": v}, method=method)
    results = read_results(tmp_path)
    runs = {
        ("fashion", "simclr"): ["simclr-0", "simclr-1", "simclr-3"],
        ("fashion", "vicreg"): ["vicreg-2"],
    }
    backbone, alone, *_ = formed = groups(results, runs)
    assert [(g.layer, g.method, len(g.names)) for g in formed] == [
        ("backbone", POOLED, 4),
        ("backbone", "simclr", 3),
        ("projector", POOLED, 4),
        ("projector", "simclr", 3),  # one run of the other method is not a correlation
    ]
    assert sorted(alone.accuracies) == pytest.approx([0.0, 0.1, 0.3])
    assert backbone.merits["lidar"].tolist() == pytest.approx((10 * backbone.accuracies).tolist())
    assert np.isnan(backbone.merits["rankme"]).all()


# How a candidate orders them


def test_merits_are_higher_for_better_values() -> None:
    assert merit(3.0, "higher") == 3.0
    assert merit(3.0, "lower") == -3.0
    assert merit(0.5, "nearest 1") == merit(1.5, "nearest 1") == -0.5
    assert math.isnan(merit(None, "lower"))


def test_mean_places_share_ranks_and_leave_out_nulls() -> None:
    nan = math.nan
    here = group(
        [0.0, 0.0, 0.0, 0.0], a=[4.0, 3.0, 3.0, 1.0], b=[nan, 1.0, 2.0, nan], c=[nan, nan, 1.0, 9.0]
    )
    # Places: a 1, 2.5, 2.5, 4; b -, 2, 1, -; c -, -, 2, 1.
    actual = mean_places(here, [("a",), ("b",), ("a", "b"), ("a", "b", "c"), ("b", "c")])
    assert actual[0].tolist() == [1.0, 2.5, 2.5, 4.0]
    assert actual[1].tolist() == pytest.approx([nan, 2.0, 1.0, nan], nan_ok=True)
    assert actual[2].tolist() == [1.0, 2.25, 1.75, 4.0]  # one null of two drops out
    # Two nulls of three make the first null; one of three drops out.
    expected = [nan, 2.25, (2.5 + 1 + 2) / 3, 2.5]
    assert actual[3].tolist() == pytest.approx(expected, nan_ok=True)
    assert actual[4].tolist() == pytest.approx([nan, 2.0, 1.5, 1.0], nan_ok=True)


def test_a_null_ranks_last_and_equal_values_order_nothing() -> None:
    nan = math.nan
    here = group([0.3, 0.2, 0.1, 0.4], a=[3.0, nan, nan, 5.0], b=[7.0] * 4, c=[nan] * 4)
    rho = spearman(mean_places(here, [("a",), ("b",), ("c",)]), here.accuracies)
    expected = spearmanr([1.0, 0.0, 0.0, 2.0], here.accuracies).statistic
    assert rho.tolist() == pytest.approx([expected, 0.0, 0.0])


def test_agreements_have_what_is_lost_and_intervals_from_eight_checkpoints() -> None:
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    best_last = [float(at) for at in range(8)]
    two_best = [*best_last[:6], 9.0, 9.0]
    here = group(accuracies, a=best_last, b=best_last[::-1], c=two_best, d=[math.nan] * 8)
    right, wrong, equal, null = agreements(here, [("a",), ("b",), ("c",), ("d",)], 0.95)
    assert (right.spearman, right.kendall, right.lost) == (pytest.approx(1), pytest.approx(1), 0)
    assert right.spearman_interval == pytest.approx((1.0, 1.0))
    assert (wrong.spearman, wrong.lost) == (pytest.approx(-1), pytest.approx(0.7))
    assert equal.lost == pytest.approx(0.05)  # the mean of the two that share the best value
    assert (null.spearman, null.kendall, null.lost, null.nulls) == (0, 0, None, 8)
    few = group(accuracies[:7], a=best_last[:7])
    assert agreements(few, [("a",)], 0.95)[0].spearman_interval is None


# The rule of choice


def choose_literally(rows: list[Outcome]) -> Candidate:
    """protocol.md, Rule of choice, word by word."""
    names = {row.candidate for row in rows}
    margins = {}
    for name in names:
        worst_pooled, worst_within = 9.0, 9.0
        for row in rows:
            if row.candidate == name and row.method == "all":
                worst_pooled = min(worst_pooled, row.spearman)
            elif row.candidate == name:
                worst_within = min(worst_within, row.spearman)
        margins[name] = min(worst_pooled - 0.5, worst_within - 0.3)
    largest = max(margins.values())
    near = [name for name in names if largest - margins[name] <= 0.02]
    fewest = min(len(name) for name in near)
    best, best_mean = None, -9.0
    for name in near:
        pooled = [r.spearman for r in rows if r.candidate == name and r.method == "all"]
        if len(name) == fewest and sum(pooled) / len(pooled) > best_mean:
            best, best_mean = name, sum(pooled) / len(pooled)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_of_choice_equals_its_literal_form(seed: int) -> None:
    draw = np.random.default_rng(seed)
    names = [some for size in (1, 2, 3) for some in itertools.combinations("abcd", size)]
    places = [(data, method) for data in "xyz" for method in ("all", "simclr")][: 3 + seed % 4]
    rows = [
        # In steps of 0.01, so that margins are often within 0.02 of one another.
        Outcome(name, data, method, 0.5 + draw.integers(-5, 6) / 100)
        for name in names
        for data, method in places
    ]
    assert choose(rows) == choose_literally(rows)


def test_the_rule_of_choice_prefers_fewer_metrics_then_the_higher_mean() -> None:
    def rows(name: Candidate, *pooled: float, within: float = 0.9) -> list[Outcome]:
        every = [Outcome(name, str(at), POOLED, rho) for at, rho in enumerate(pooled)]
        return [*every, Outcome(name, "0", "byol", within)]

    best = rows(("a", "b"), 0.50, 0.90)
    assert margin(best) == pytest.approx(0.0)
    assert margin(rows(("a",), 0.9, within=0.1)) == pytest.approx(-0.2)
    assert choose(best + rows(("c",), 0.47, 0.99)) == ("a", "b")  # 0.03 below
    assert choose(best + rows(("c",), 0.49, 0.60)) == ("c",)  # within 0.02, and one metric
    alone = rows(("c",), 0.49, 0.60) + rows(("d",), 0.485, 0.70)
    assert choose(best + alone) == ("d",)


def test_each_set_is_judged_by_the_choice_of_the_others() -> None:
    by_set = {  # a is best on x and y, b on z
        ("a",): {"x": 0.9, "y": 0.8, "z": -0.4},
        ("b",): {"x": 0.1, "y": 0.2, "z": 0.7},
    }
    rows = [
        Outcome(name, data, POOLED, rho) for name, s in by_set.items() for data, rho in s.items()
    ]
    rows += [Outcome(name, "z", "byol", 0.25) for name in by_set]
    left = {one.data: one for one in leave_one_out(rows)}
    assert (left["z"].chosen, left["z"].pooled, left["z"].within) == (("a",), -0.4, 0.25)
    assert (left["x"].chosen, left["x"].pooled, left["x"].within) == (("b",), 0.1, None)


def test_candidates_are_each_metric_and_sets_of_the_measured_members() -> None:
    among = candidates(["lidar", "rankme", "alpha_req", "dse"])
    assert among[:3] == [("lidar",), ("rankme",), ("alpha_req",)]
    assert set(among[3:]) == {
        ("lidar", "rankme"),
        ("lidar", "alpha_req"),
        ("rankme", "alpha_req"),
        ("lidar", "rankme", "alpha_req"),
    }


def test_outcomes_are_spearmans_of_scipy() -> None:
    draw = np.random.default_rng(0)
    accuracies, a, b = draw.normal(size=(3, 15))
    here = group(accuracies.tolist(), a=a.tolist(), b=b.tolist())
    both, alone = outcomes([here], [("a", "b"), ("b",)])
    places = np.argsort(np.argsort(a)) + np.argsort(np.argsort(b))
    assert both.spearman == pytest.approx(spearmanr(places, accuracies).statistic)
    assert alone.spearman == pytest.approx(spearmanr(b, accuracies).statistic)


# When no metric is to be believed


def test_facts_of_a_group_are_formed_without_the_labels(tmp_path: Path) -> None:
    plant(tmp_path, "simclr-untrained", 0.2, lambda _: {"lidar": 2.5}, kind="untrained")
    plant(tmp_path, "ijepa-untrained", 0.2, lambda _: {"lidar": 9.0}, kind="untrained",
          method="ijepa")  # fmt: skip
    for at, (accuracy, lidar, rankme) in enumerate(
        [(0.3, 3.0, 1.0), (0.5, None, 2.0), (0.7, 2.0, 4.0)]
    ):
        values = {"lidar": lidar, "rankme": rankme}
        plant(tmp_path, f"simclr-{at}", accuracy, lambda _, v=values: v, index=at)
    results = read_results(tmp_path)
    study = replace(analyse(results), chosen=("lidar", "rankme"))
    names = {("fashion", "simclr"): [f"simclr-{at}" for at in range(3)]}
    some = agreements(groups(results, names)[1], [("lidar",)], 0.95)
    (one,) = judged_groups(study, some)
    assert some[0].group.method == "simclr"
    # Lower is better by `rankme` here, and the second opinion is its places alone.
    assert one.facts == Facts(
        "lidar", (3.0, None, 2.0), 640, 10, 128, second=("rankme", (-1.0, -2.0, -3.0)),
        untrained=(2.5,),
    )  # fmt: skip
    assert (one.data, one.correlation) == ("fashion", some[0].spearman)
    assert one.lost == pytest.approx(1.0)  # the least accurate is selected


def test_a_left_out_set_has_the_opinion_that_is_chosen_without_it(tmp_path: Path) -> None:
    plant(tmp_path, "simclr-untrained", 0.1, lambda _: {"lidar": 0.0}, kind="untrained")
    for at in range(10):
        values = {"lidar": -float(at), "rankme": -float(at), "alpha_req": 1.0 - at}
        plant(tmp_path, f"simclr-{at}", 0.2 + 0.05 * at, lambda _, v=values: v, index=at)
    study = analyse(read_results(tmp_path))
    # The lowest rankme is the best, and lidar's is the worst; alpha_req of 1 is, as lidar, wrong.
    for chosen, expected in (("rankme", (True, True, False)), ("alpha_req", (False, True, True))):
        left_out = [LeftOut("fashion", (chosen,), None, None)]
        said = opinion_left_out(replace(study, chosen=("lidar",), left_out=left_out))
        assert said.pairs == [expected] * 4  # pooled and within, of two layers
        assert said.rule.settings == said.rule.misleading == 4


# Repeated seeds and sweeps


def test_noise_of_seeds_is_the_pooled_deviation_of_repeated_runs(tmp_path: Path) -> None:
    # Variances (n - 1): of 1, 3 it is 2, of 10, 10, 16 it is 12. The search has 1, 10.
    for name, kind, index, value in [
        ("a", "search", 0, 1.0), ("a-1", "seed", 0, 3.0), ("b", "search", 1, 10.0),
        ("b-1", "seed", 1, 10.0), ("b-2", "seed", 1, 16.0),
    ]:  # fmt: skip
        plant(tmp_path, name, value / 100, lambda _, v=value: {"lidar": v}, kind=kind, index=index)
    rows = {r.metric: r for r in seed_noise(read_results(tmp_path)) if r.layer == "backbone"}
    assert set(rows) == {"accuracy", "lidar"}  # the others are null
    lidar = rows["lidar"]
    assert (lidar.runs, lidar.seeds) == (2, pytest.approx(math.sqrt((2 + 12) / 2)))
    assert (lidar.images, lidar.search) == (pytest.approx(0.5), pytest.approx(9 / math.sqrt(2)))
    assert rows["accuracy"].seeds == pytest.approx(lidar.seeds / 100)
    assert rows["accuracy"].images is None


def test_a_sweep_has_the_centre_and_what_one_hyperparameter_varies(tmp_path: Path) -> None:
    plant(tmp_path, "centre", 0.5, lambda _: {"lidar": 5.0}, kind="sweep")
    for at, (varied, accuracy, value) in enumerate(
        [("crop", 0.6, 4.0), ("crop", 0.7, 3.0), ("masked", 0.4, 4.0), ("masked", 0.8, 6.0)]
    ):
        values = {"lidar": value}
        plant(tmp_path, str(at), accuracy, lambda _, v=values: v, kind="sweep", varied=varied)
    crop, masked, every = sweeps(read_results(tmp_path), "backbone", 10, [("lidar",)])
    assert [s.hyperparameter for s in (crop, masked, every)] == ["crop", "masked", EVERY]
    assert [len(s.group.names) for s in (crop, masked, every)] == [3, 3, 5]
    assert (crop.best, masked.best, every.best) == (0.7, 0.8, 0.8)
    by_lidar = [s.by_candidate[("lidar",)] for s in (crop, masked)]
    assert [a.spearman for a in by_lidar] == pytest.approx([-1.0, 1.0])
    assert [a.lost for a in by_lidar] == pytest.approx([0.2, 0.0])
