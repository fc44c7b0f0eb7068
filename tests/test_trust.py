"""When no metric is to be believed: the rule on facts, its bounds, and its judgement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import lidar_here
from scipy.stats import spearmanr
from study.abstain import Judged, choose_bound, evaluate, is_misleading, loss_share

from lidar_cli.core.metrics import METRICS
from lidar_cli.explain.topics import explain
from lidar_cli.ranking.baseline import Baseline
from lidar_cli.ranking.correlation import MIN_CHECKPOINTS
from lidar_cli.ranking.group_metrics import AGREEMENT_OF, ORDERS, agreement
from lidar_cli.ranking.order import comparable_groups, unranked_row
from lidar_cli.ranking.session import Ranking
from lidar_cli.ranking.trust import (
    BOUNDS,
    CHECKS,
    COLLAPSED_FIRST,
    DOUBTS,
    Bounds,
    Facts,
    Trust,
    correlation_of_opinions,
    facts_of_group,
    judge,
    merits,
)
from lidar_cli.report.page.content import ranking_page
from lidar_cli.report.ranking import to_json, to_markdown, top
from lidar_cli.report.verdict import cautions, verdict
from lidar_cli.scoring.compute import MUCH_NOISE, Score

RISING = tuple(map(float, range(8)))
SOUND = Facts(
    by="lidar",
    merits=RISING,
    n=1000,
    q=10,
    d=128,
    tied=6,
    noise=(0.4,) * 8,
    second=("rankme", RISING),
    untrained=(6.5, 3.0),
)


def codes(facts: Facts, bounds: Bounds = BOUNDS) -> list[str]:
    trust = judge(facts, bounds, CHECKS)
    assert trust is not None
    return [reason.code for reason in trust.reasons]


def test_facts_without_a_reason_are_believed() -> None:
    assert judge(SOUND) == Trust()
    assert judge(SOUND).believe
    assert judge(SOUND).sentence == ""


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"untrained": (3.0, 7.5)}, "below-untrained", "an untrained network has a better lidar"),
        ({"is_collapsed": True}, "collapsed", "the first checkpoint is constant or nearly so"),
        ({"tied": 7}, "all-tied", "lidar cannot separate any checkpoint from the first"),
        (
            {"merits": (*RISING[:3], *[None] * 5), "tied": 1, "untrained": ()},
            "null-values",
            "5 of 8 checkpoints have no lidar",
        ),
        ({"q": 2, "d": 501}, "few-degrees", "1000 images with 2 views each are too few at d = 501"),
        (
            {"noise": (0.6,) * 5 + (None, 0.1, 0.1)},
            "view-noise",
            "more than half of what lidar counts in 5 of 8 checkpoints is view noise (q = 10)",
        ),
        (
            {"second": ("rankme", RISING[::-1])},
            "disagreement",
            "lidar and rankme order the checkpoints differently (rank correlation -1.00)",
        ),
    ],
)
def test_each_fact_alone_is_a_reason(changed: dict, code: str, words: str) -> None:
    trust = judge(replace(SOUND, **changed), codes=CHECKS)
    assert [reason.code for reason in trust.reasons] == [code]
    assert not trust.believe
    assert words in trust.sentence
    assert trust.sentence.startswith("Believe no metric here: ")
    assert trust.sentence.endswith(".")


@pytest.mark.parametrize(
    "changed",
    [
        {"untrained": (7.0,)},  # equal to the best
        {"tied": 6},
        {"merits": (*RISING[:4], *[None] * 4), "untrained": (), "tied": 2},  # half
        {"q": 2, "d": 500},  # n (q - 1) = 2 d
        {"q": 2, "d": 4000, "reads_views": False},  # a metric that divides by no within covariance
        {"noise": (0.6,) * 4 + (0.5,) * 4},
        {"noise": (0.6,) * 8, "reads_views": False},
        {"second": ("rankme", (5.0,) * 8)},  # orders nothing
        {"second": None},
    ],
)
def test_a_fact_at_its_bound_is_no_reason(changed: dict) -> None:
    assert codes(replace(SOUND, **changed)) == []


def test_bounds_are_those_of_the_warnings() -> None:
    assert Bounds(degrees=2.0, noise=MUCH_NOISE, nulls=0.5, agreement=0.4) == BOUNDS
    loose = Bounds(degrees=0, noise=2.0, nulls=1.0, agreement=-1.0)
    bad = replace(SOUND, q=2, d=900, noise=(1.0,) * 8, second=("rankme", RISING[::-1]))
    assert codes(bad) == ["few-degrees", "view-noise", "disagreement"]
    assert codes(bad, loose) == []
    assert "more than 75%" in judge(bad, Bounds(noise=0.75), CHECKS).reasons[1].text


def test_view_noise_alone_is_a_caution_and_no_doubt() -> None:
    assert judge(replace(SOUND, noise=(0.9,) * 8)) == Trust()
    bad = replace(SOUND, noise=(0.9,) * 8, tied=7)
    assert [reason.code for reason in judge(bad).reasons] == ["all-tied"]
    assert {*DOUBTS} == CHECKS.keys() - {"view-noise"}


def test_a_sentence_names_two_reasons_and_the_record_all() -> None:
    bad = replace(SOUND, tied=7, q=2, d=900, second=("rankme", RISING[::-1]))
    trust = judge(bad)
    assert [reason.code for reason in trust.reasons] == ["all-tied", "few-degrees", "disagreement"]
    assert trust.sentence == (
        "Believe no metric here: lidar cannot separate any checkpoint from the first; "
        "1000 images with 2 views each are too few at d = 900 (n (q - 1) is less than 2 d)."
    )


def test_fewer_than_two_checkpoints_are_not_judged() -> None:
    assert judge(replace(SOUND, merits=(1.0,), noise=(0.9,), second=None)) is None


def test_disagreement_is_spearmans_over_the_checkpoints_that_have_both() -> None:
    ours = (3.0, 1.0, None, 2.0, 2.0, 9.0, 8.0, 0.0, 4.0, 7.0)
    theirs = (1.0, 2.0, 5.0, 2.0, 8.0, None, 4.0, 3.0, 0.0, 7.0)
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    expected = spearmanr(*zip(*both, strict=True)).statistic
    facts = replace(SOUND, merits=ours, noise=(), second=("rankme", theirs))
    assert correlation_of_opinions(facts) == pytest.approx(expected)
    seven = replace(facts, merits=(*ours[:8], None, 7.0))
    assert correlation_of_opinions(seven) is None  # too few for a correlation to mean anything


def test_merits_are_higher_for_the_better() -> None:
    assert merits(METRICS["lidar"], [2.0, None]) == (2.0, None)
    assert merits(METRICS["noise_fraction"], [0.25, None]) == (-0.25, None)
    assert merits(METRICS["alpha_req"], [0.75, 2.0]) == (-0.25, -1.0)


def test_the_explanation_names_every_code_and_bound() -> None:
    text = explain("trust")
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == [
        COLLAPSED_FIRST.code,
        *DOUBTS,
    ]
    assert f"less than {BOUNDS.degrees:g} d" in text
    assert (BOUNDS.nulls, BOUNDS.agreement, MIN_CHECKPOINTS) == (0.5, 0.4, 8)
    assert "below 0.4, over 8 checkpoints" in text
    assert explain("believe") == text


# In a ranking


def ranking_of(*scores: Score, **more: Any) -> Ranking:
    by = METRICS["lidar"]
    rows = [unranked_row(Path(one.file), (), one, by) for one in scores]
    groups = comparable_groups(rows, by, 0.95)
    trust = tuple(judge(facts_of_group(group, by)) for group in groups)
    return Ranking("runs", by, 0.95, "images", groups, trust=trust, **more)


def checkpoint(name: str, n: int, **values: Any) -> Score:
    views = {"name": "simclr", "mean": [0.5], "std": [0.5]}
    facts = {"views": views, "samples_sha256": "a", "image_size": 32}
    return Score.of(f"{name}.pt", "backbone", n, 2, 4, 1e-4, 1e-7, False, provenance=facts,
                    **values)  # fmt: skip


def parts(*values: float) -> dict[str, float]:
    """Values of the first metrics whose ranks `agreement` averages."""
    return dict(zip(AGREEMENT_OF, values, strict=False))


def test_facts_of_a_group_are_those_of_its_rows() -> None:
    scores = [
        checkpoint("a", 100, lidar=1.0, noise_fraction=0.6, **parts(3.0, 3.0, 0.1)),
        checkpoint("b", 100, lidar=3.0, noise_fraction=0.9, ridge_share=0.6, **parts(2.0, 4.0)),
        checkpoint("c", 100, lidar=3.0, noise_fraction=0.8, normalized_std=0.01, **parts(5.0)),
        checkpoint("d", 100, **parts(9.0, 1.0, 0.2)),
    ]
    (group,) = ranking_of(*scores).groups
    untrained = [Baseline("", "", "", 0, scores=(scores[0], scores[1])), Baseline("", "", "", 0)]
    assert facts_of_group(group, METRICS["lidar"], untrained) == Facts(
        by="lidar",
        merits=(3.0, 3.0, 1.0, None),  # best first
        n=100,
        q=2,
        d=4,
        tied=1,
        noise=(None, None, 0.6, None),  # of the others delta, a collapse or nothing is the cause
        # Ranks of b, c, a, d: 4, 2, 3, 1; 1, -, 2, 3; -, -, 2, 1; a lower mean is better.
        second=("agreement", (-2.5, None, -7 / 3, -5 / 3)),
        untrained=(2.0,),
    )
    by_noise = facts_of_group(group, METRICS["noise_fraction"])
    assert by_noise.second == facts_of_group(group, METRICS["lidar"]).second
    assert not by_noise.reads_views
    by_agreement = facts_of_group(group, ORDERS["agreement"], untrained)
    assert by_agreement.second is None  # it does not doubt itself
    assert facts_of_group(group, METRICS["retrieval"]).second is None
    assert by_agreement.untrained == ()  # an untrained network has no rank


def test_the_second_opinion_is_formed_without_the_metric_that_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    three = agreement(("lidar", "rankme", "pillai"))
    monkeypatch.setitem(ORDERS, "agreement", three)
    scores = [
        checkpoint("a", 100, lidar=3.0, rankme=1.0, pillai=1.0),
        checkpoint("b", 100, lidar=2.0, rankme=2.0, pillai=3.0),
        checkpoint("c", 100, lidar=1.0, rankme=3.0, pillai=2.0),
    ]
    (group,) = ranking_of(*scores).groups
    facts = facts_of_group(group, METRICS["lidar"])
    # Ranks of a, b, c by rankme: 3, 2, 1; by pillai: 3, 1, 2.
    assert facts.second == ("the mean rank by rankme and pillai", (-3.0, -1.5, -1.5))


SENTENCE = (
    "Believe no metric here: 7 images with 2 views each are too few at d = 4 (n (q - 1) is less "
    "than 2 d)."
)


def test_every_form_of_a_ranking_says_it() -> None:
    ranking = ranking_of(checkpoint("a", 7, lidar=1.0), checkpoint("b", 7, lidar=2.0))
    assert verdict(ranking).startswith("b.pt is best by lidar")
    assert verdict(ranking).endswith(SENTENCE)
    assert json.loads(to_json(ranking))["trust"] == [
        {
            "group": 1,
            "believe": False,
            "reasons": [{"code": "few-degrees", "text": SENTENCE[24:-1]}],
            "sentence": SENTENCE,
        }
    ]
    first_alone = top(ranking, 1)  # judged before rows are left out
    for text in (to_markdown(ranking), to_markdown(first_alone)):
        assert text.split("\n\n")[1] == SENTENCE
    assert SENTENCE in str(ranking_page(ranking).body[0])


def test_a_script_gets_the_doubt_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """50 images with 2 views at d = 32: 50 (2 - 1) < 2 x 32. At q = 3 there is no doubt."""
    rng = np.random.default_rng(0)
    for name, scale in (("a", 1.0), ("b", 2.0)):
        z = rng.normal(size=(50, 1, 32)) * np.linspace(1, scale, 32) + rng.normal(size=(50, 3, 32))
        for q in (2, 3):
            (tmp_path / f"{q}").mkdir(exist_ok=True)
            np.save(tmp_path / f"{q}/{name}.npy", 3 * z[:, :q])

    def run(q: int, form: str) -> list[str]:
        done = lidar_here("rank", tmp_path / f"{q}", form, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 2 + (form == "--csv")
        return [line for line in done.stderr.splitlines() if "Believe no metric here: " in line]

    for form in ("--quiet", "--csv"):
        (line,) = run(2, form)
        assert "50 images with 2 views each are too few at d = 32" in line
    assert not run(3, "--quiet")


def test_an_order_without_a_reason_is_not_doubted() -> None:
    ranking = ranking_of(checkpoint("a", 100, lidar=1.0), checkpoint("b", 100, lidar=2.0))
    assert "Believe" not in verdict(ranking) + to_markdown(ranking)
    assert json.loads(to_json(ranking))["trust"] == [
        {"group": 1, "believe": True, "reasons": [], "sentence": None}
    ]
    assert json.loads(to_json(ranking_of(checkpoint("a", 7, lidar=1.0))))["trust"] == []
    assert not any("LABELLED" in one.command for one in cautions(ranking))


def test_an_order_with_much_view_noise_has_its_caution_alone() -> None:
    noisy = {"noise_fraction": 0.7}
    scores = [checkpoint(f"c{at}", 100, lidar=float(at), **noisy) for at in range(3)]
    ranking = ranking_of(*scores)
    assert "Believe" not in verdict(ranking)
    (advice,) = cautions(ranking)
    assert "more than half of what lidar counts in 3 of 3 checkpoints" in advice.text


def test_what_to_do_instead_is_a_command() -> None:
    scores = checkpoint("a", 7, lidar=1.0), checkpoint("b", 7, lidar=2.0)
    command = ("rank", "runs", "--data", "photos", "-n", "10")
    advice = cautions(ranking_of(*scores, command=command))[0]
    assert "label a hundred images" in advice.text
    assert advice.command == (
        "lidar rank runs --data LABELLED -n 100 --oracle probe --labels-per-class 5"
    )
    labelled = cautions(ranking_of(*scores, command=command, has_labels=True))[0]
    assert labelled.command == (
        "lidar rank runs --data photos -n 10 --oracle probe --labels-per-class 5"
    )
    used = ranking_of(*scores, command=(*command, "--oracle", "probe"), has_labels=True)
    assert not any("order by" in one.text for one in cautions(used))


# Judged by labels


def test_a_setting_is_misleading_by_correlation_or_by_loss() -> None:
    assert is_misleading(-0.01, 0.0)
    assert is_misleading(0.9, 0.51)
    assert not is_misleading(0.0, 0.5)
    assert is_misleading(None, 0.6)
    assert not is_misleading(None, 0.2)


def test_the_loss_is_a_share_of_the_spread() -> None:
    accuracies = (0.2, 0.5, 0.7, 0.6)
    assert loss_share((1.0, 3.0, 2.0, None), accuracies) == pytest.approx((0.7 - 0.5) / 0.5)
    # Several that share the best value are selected alike.
    assert loss_share((1.0, 3.0, 3.0, None), accuracies) == pytest.approx((0.7 - 0.6) / 0.5)
    assert loss_share((None,) * 4, accuracies) == 1.0  # nothing selected
    assert loss_share((1.0, 2.0), (0.5, 0.5)) == 0.0  # nothing to lose


def case(data: str, rho: float, misleading: bool, **changed: object) -> Judged:
    """A setting whose two metrics correlate by about rho."""
    order = {1.0: RISING, -1.0: RISING[::-1], 0.5: (2.0, 0.0, 3.0, 1.0, 6.0, 4.0, 7.0, 5.0)}[rho]
    facts = replace(SOUND, second=("rankme", order), **changed)
    return Judged(data, facts, -0.1 if misleading else 0.4, 0.0)


def test_precision_and_recall_next_to_the_rules_that_always_and_never_abstain() -> None:
    judged = [
        case("a", 1.0, False),
        case("a", -1.0, True),
        case("a", -1.0, False),
        case("b", 1.0, True),
        case("b", 1.0, True, tied=7),
        case("b", 1.0, False),
    ]
    rows = {row.rule: row for row in evaluate(judged)}
    rule = rows["rule"]
    assert (rule.settings, rule.misleading, rule.abstained, rule.right) == (6, 3, 3, 2)
    assert (rule.precision, rule.recall) == pytest.approx((2 / 3, 2 / 3))
    assert rule.f1 == pytest.approx(2 / 3)
    always, never = rows["always"], rows["never"]
    assert (always.abstained, always.right, always.precision, always.recall) == (6, 3, 0.5, 1.0)
    assert (never.abstained, never.precision, never.recall, never.f1) == (0, None, 0.0, 0.0)
    assert (rows["disagreement"].abstained, rows["disagreement"].right) == (2, 1)
    assert (rows["all-tied"].abstained, rows["all-tied"].right) == (1, 1)
    assert rows["view-noise"].abstained == 0


def test_the_bound_is_chosen_without_the_set_that_it_is_judged_on() -> None:
    # In `a` and `b` a correlation of 0.5 misleads, in `c` it does not.
    judged = [case(data, 0.5, data != "c") for data in "abc"]
    judged += [case(data, 1.0, False) for data in "abc"]
    assert spearmanr(RISING, judged[0].facts.second[1]).statistic == pytest.approx(0.7619, abs=1e-4)
    bounds = (0.0, 0.8)
    chosen = choose_bound(judged, bounds)
    assert chosen.bound == 0.8
    assert chosen.left_out == {"a": 0.8, "b": 0.8, "c": 0.8}
    # Precision and recall are summed over the sets, each judged by the others' bound.
    assert (chosen.rule.abstained, chosen.rule.right, chosen.rule.misleading) == (3, 2, 2)
    alone = [one for one in judged if one.data == "c"] + [case("d", 0.5, True)]
    turned = choose_bound(alone, bounds)
    # Without d nothing misleads, so that both bounds are as good and the lower one is taken.
    assert turned.left_out == {"c": 0.8, "d": 0.0}
