"""Precision and recall of the rule that says when no metric is to be believed.

A setting is misleading if the metric's correlation with the probe is below 0, or the checkpoint
that it selects loses more than half of the spread of accuracies. The rule abstains on facts that
need no labels. Its bound on disagreement is chosen with each image set left out in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from lidar_cli.ranking.trust import BOUNDS, CHECKS, DOUBTS, Bounds, Facts, Merits, judge

MOST_LOST = 0.5  # share of the spread of accuracies
CANDIDATES = (-0.2, 0.0, 0.2, 0.4, 0.6)  # on the rank correlation with the second opinion


@dataclass(frozen=True)
class Judged:
    """A setting: what is known without labels, and what the labels say.

    data: the image set. correlation: Spearman's of the metric and the probe; None if undefined.
    lost: share of the spread of accuracies that the selected checkpoint loses.
    """

    data: str
    facts: Facts
    correlation: float | None
    lost: float

    @property
    def misleading(self) -> bool:
        """Whether the metric was not to be believed."""
        return is_misleading(self.correlation, self.lost)


@dataclass(frozen=True)
class Abstention:
    """How often a rule abstains, and how often the setting is then misleading."""

    rule: str
    settings: int
    misleading: int
    abstained: int
    right: int  # abstained, and misleading

    @property
    def precision(self) -> float | None:
        """The share of misleading settings among those abstained on; None if there are none."""
        return self.right / self.abstained if self.abstained else None

    @property
    def recall(self) -> float | None:
        """The share of the misleading settings that were abstained on; None if there are none."""
        return self.right / self.misleading if self.misleading else None

    @property
    def f1(self) -> float:
        """2 right / (abstained + misleading), the harmonic mean of both; 0 if both are empty."""
        total = self.abstained + self.misleading
        return 2 * self.right / total if total else 0.0


@dataclass(frozen=True)
class ChosenBound:
    """The bound on disagreement of the highest F1, and the rule judged on sets left out.

    bound: chosen on all sets. left_out: by set, the bound chosen on the others. rule: all sets,
    each abstained on with the bound of the others.
    """

    bound: float
    left_out: Mapping[str, float]
    rule: Abstention


def is_misleading(correlation: float | None, lost: float, most_lost: float = MOST_LOST) -> bool:
    """Whether a metric that agrees and loses so much was not to be believed."""
    return (correlation is not None and correlation < 0) or lost > most_lost


def loss_share(values: Merits, accuracies: Sequence[float]) -> float:
    """The accuracy that the selected checkpoint loses, as a share of the spread of accuracies.

    Several with the same best merit count by their mean; a metric without a value loses all.
    """
    spread = max(accuracies) - min(accuracies)
    if spread == 0:
        return 0.0
    best = max((value for value in values if value is not None), default=None)
    if best is None:
        return 1.0
    selected = [a for value, a in zip(values, accuracies, strict=True) if value == best]
    return (max(accuracies) - statistics.fmean(selected)) / spread


def evaluate(judged: Sequence[Judged], bounds: Bounds = BOUNDS) -> list[Abstention]:
    """The rule, all reasons, each of them alone, and the rules that always and never abstain."""
    codes = [reasons(one.facts, bounds) for one in judged]
    rows = [abstention("rule", judged, [not {*DOUBTS}.isdisjoint(each) for each in codes])]
    rows += [abstention("all reasons", judged, [bool(each) for each in codes])]
    rows += [abstention(code, judged, [code in each for each in codes]) for code in CHECKS]
    rows.append(abstention("always", judged, [True] * len(judged)))
    rows.append(abstention("never", judged, [False] * len(judged)))
    return rows


def reasons(
    facts: Facts, bounds: Bounds = BOUNDS, codes: Collection[str] = tuple(CHECKS)
) -> list[str]:
    """Those of the codes that are reasons not to believe a setting."""
    trust = judge(facts, bounds, codes)
    return [] if trust is None else [reason.code for reason in trust.reasons]


def choose_bound(
    judged: Sequence[Judged], candidates: Sequence[float] = CANDIDATES, others: Bounds = BOUNDS
) -> ChosenBound:
    """The bound on disagreement, of the highest F1 of the whole rule; of equal ones the lowest.

    others: the bounds of the other reasons.
    """

    def abstains(bound: float) -> Callable[[Judged], bool]:
        return lambda one: bool(reasons(one.facts, replace(others, agreement=bound), DOUBTS))

    def best(settings: Sequence[Judged]) -> float:
        rows = {
            bound: abstention("", settings, list(map(abstains(bound), settings)))
            for bound in sorted(candidates)
        }
        return max(rows, key=lambda bound: rows[bound].f1)

    names = dict.fromkeys(one.data for one in judged)
    left_out = {name: best([one for one in judged if one.data != name]) for name in names}
    said = [abstains(left_out[one.data])(one) for one in judged]
    return ChosenBound(best(judged), left_out, abstention("left out", judged, said))


def abstention(rule: str, judged: Sequence[Judged], abstains: Sequence[bool]) -> Abstention:
    """How often a rule that abstains on these of the settings is right."""
    pairs = list(zip(judged, abstains, strict=True))
    return Abstention(
        rule,
        settings=len(judged),
        misleading=sum(one.misleading for one in judged),
        abstained=sum(abstains),
        right=sum(one.misleading and said for one, said in pairs),
    )
