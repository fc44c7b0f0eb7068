"""When no metric of a ranking is to be believed: a rule on facts that need no labels.

The order of a ranking answers a question that labels alone can check. Some facts, all of them known
beforehand, say that the answer is likely wrong; one of them is enough. The study chooses the bound
on disagreement, and which of the facts are worth a doubt (tests/benchmarks/study/protocol.md): it
judges all of CHECKS, a ranking those in DOUBTS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lidar_cli.core.metrics import Metric
from lidar_cli.ranking.correlation import MIN_CHECKPOINTS, spearman
from lidar_cli.ranking.group_metrics import ORDERS, SECOND_OPINION, agreement, form, parts_of
from lidar_cli.ranking.order import Group, is_constant, mean_views
from lidar_cli.scoring.compute import MUCH_NOISE, MUCH_RIDGE, Score
from lidar_cli.scoring.convergence import LITTLE_NOISE, MOST_VIEWS, round_up, views_for

if TYPE_CHECKING:  # loads timm, which `lidar score` does not need
    from lidar_cli.ranking.baseline import Baseline

SENTENCE_REASONS = 2  # that the sentence names; the record has all
Merits = tuple[float | None, ...]  # of each checkpoint, higher is better; None for a null


@dataclass(frozen=True)
class Bounds:
    """Where each fact becomes a reason not to believe.

    degrees: of n (q - 1) over d, below which the inverse of the within covariance is on average
    more than twice that of its expectation: n (q - 1) / (n (q - 1) - d - 1) times.
    noise: of the share of view noise in the LDA trace, exceeded in more than half the checkpoints.
    nulls: of the share of checkpoints without a value, exceeded.
    agreement: of Spearman's rho of the ordering metric and the second opinion, not reached.
    """

    degrees: float = 2.0
    noise: float = MUCH_NOISE
    nulls: float = 0.5
    agreement: float = 0.4


BOUNDS = Bounds()


@dataclass(frozen=True)
class Facts:
    """What is known of K comparable checkpoints without a label.

    merits: of the ordering metric `by` [K]. tied: how many checkpoints are tied with the first.
    noise: shares of view noise [K], None where it cannot be measured or has another cause.
    second: name and merits [K] of the second opinion; None where that is the ordering metric.
    untrained: merit of `by` for each untrained network of the group, the mean over its seeds; empty
    if none was scored.
    reads_views: whether `by` depends on how well the views determine the within covariance.
    is_collapsed: whether the embedding of the first checkpoint is constant or nearly so.
    """

    by: str
    merits: Merits
    n: int
    q: float  # the mean of unequal numbers of views
    d: int
    tied: int = 0
    noise: Merits = ()
    second: tuple[str, Merits] | None = None
    untrained: tuple[float, ...] = ()
    reads_views: bool = True
    is_collapsed: bool = False


class Reason(NamedTuple):
    """Why no metric is to be believed: a stable code, and the fact in words."""

    code: str
    text: str


@dataclass(frozen=True)
class Trust:
    """Whether a ranking is to be believed, and every reason against it."""

    reasons: tuple[Reason, ...] = ()

    @property
    def believe(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons

    @property
    def sentence(self) -> str:
        """One sentence with the first reasons; empty if there is none."""
        texts = [reason.text for reason in self.reasons[:SENTENCE_REASONS]]
        return f"Believe no metric here: {'; '.join(texts)}." if texts else ""


def _below_untrained(facts: Facts, bounds: Bounds) -> str | None:
    best = max(_present(facts.merits), default=None)
    if best is None or not facts.untrained or best >= max(facts.untrained):
        return None
    return f"an untrained network has a better {facts.by} than every checkpoint"


def _all_tied(facts: Facts, bounds: Bounds) -> str | None:
    others = len(_present(facts.merits)) - 1
    if others < 1 or facts.tied < others:
        return None
    return f"{facts.by} cannot separate any checkpoint from the first"


def _null_values(facts: Facts, bounds: Bounds) -> str | None:
    count = len(facts.merits)
    nulls = count - len(_present(facts.merits))
    if nulls <= bounds.nulls * count:
        return None
    return f"{nulls} of {count} checkpoints have no {facts.by}"


def _few_degrees(facts: Facts, bounds: Bounds) -> str | None:
    n, q, d = facts.n, facts.q, facts.d
    if not facts.reads_views or n * (q - 1) >= bounds.degrees * d:
        return None
    few = f"n (q - 1) is less than {bounds.degrees:g} d"
    return f"{n} images with {q:.4g} views each are too few at d = {d} ({few})"


def _view_noise(facts: Facts, bounds: Bounds) -> str | None:
    count = len(facts.merits)
    noisy = sum(share > bounds.noise for share in _present(facts.noise))
    if not facts.reads_views or 2 * noisy <= count:
        return None
    share = "more than half" if bounds.noise == 0.5 else f"more than {bounds.noise:.0%}"
    of = f"{share} of what {facts.by} counts in {noisy} of {count} checkpoints"
    return f"{of} is view noise (q = {facts.q:.4g})"


def _disagreement(facts: Facts, bounds: Bounds) -> str | None:
    rho = correlation_of_opinions(facts)
    if facts.second is None or rho is None or rho >= bounds.agreement:
        return None
    text = f"{facts.by} and {facts.second[0]} order the checkpoints differently"
    return f"{text} (rank correlation {rho:+.2f})"


# By code; each check returns the fact in words, or None if its bound is not reached.
CHECKS: dict[str, Callable[[Facts, Bounds], str | None]] = {
    "below-untrained": _below_untrained,
    "all-tied": _all_tied,
    "null-values": _null_values,
    "few-degrees": _few_degrees,
    "view-noise": _view_noise,
    "disagreement": _disagreement,
}
# The study does not judge this fact.
COLLAPSED_FIRST = Reason(
    "collapsed", "the embedding of the first checkpoint is constant or nearly so"
)
# In the study view noise is a weak sign: lidar misleads in 57 % of the groups where it applies and
# in 50 % of all. It concerns lidar alone; a caution names more views as its cure.
DOUBTS = tuple(code for code in CHECKS if code != "view-noise")


def judge(facts: Facts, bounds: Bounds = BOUNDS, codes: Collection[str] = DOUBTS) -> Trust | None:
    """Whether an order with these facts is to be believed; None if it has no two checkpoints.

    codes: of the checks that count.
    """
    if len(facts.merits) < 2:
        return None
    texts = {code: check(facts, bounds) for code, check in CHECKS.items() if code in codes}
    reasons = [Reason(code, text) for code, text in texts.items() if text is not None]
    return Trust((*([COLLAPSED_FIRST] if facts.is_collapsed else []), *reasons))


def correlation_of_opinions(facts: Facts) -> float | None:
    """Spearman's rho of the ordering metric and the second opinion.

    None if fewer than MIN_CHECKPOINTS have both, or one of the two is the same for all.
    """
    if facts.second is None:
        return None
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(facts.merits, facts.second[1], strict=True)
        if ours is not None and theirs is not None
    ]
    if len(pairs) < MIN_CHECKPOINTS:
        return None
    return spearman([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def _present(merits: Merits) -> list[float]:
    return [merit for merit in merits if merit is not None]


# From a ranking


def facts_of_group(group: Group, by: Metric, baselines: Iterable[Baseline] = ()) -> Facts:
    """The facts of a comparable group; baselines: those of this group."""
    rows, common = group.rows, group.common
    means = (baseline.mean(by.name) for baseline in baselines)
    return Facts(
        by=by.name,
        merits=merits(by, [row.value for row in rows]),
        n=common["n"],
        q=mean_views(common),
        d=common["d"],
        tied=len(rows[0].tied_with),
        noise=tuple(view_noise_share(row.score) for row in rows),
        second=_second_opinion(by, [row.score for row in rows]),
        untrained=tuple(-by.sort_key(mean) for mean in means if mean is not None),
        reads_views=by.reads == "lda",
        is_collapsed=is_constant(rows[0].score, by),
    )


def _second_opinion(by: Metric, scores: Sequence[Score]) -> tuple[str, Merits] | None:
    """Name and merits of the second opinion, formed without the ordering metric.

    A mean of ranks agrees by construction with each metric that it is the mean of. None where a
    disagreement is no reason to abstain: in the study the second opinion misleads in 8 of the 38
    groups where it and LiDAR disagree, and `retrieval` in 2 of the 5 where those two do.
    """
    if by.name in (SECOND_OPINION, "retrieval"):
        return None
    name, metric = SECOND_OPINION, ORDERS[SECOND_OPINION]
    others = [part for part in parts_of(metric) if part != by.name]
    if len(others) == 1:
        name, metric = others[0], ORDERS[others[0]]
    elif len(others) < len(parts_of(metric)):
        metric = agreement(others)
        name, scores = f"the mean rank by {' and '.join(others)}", form(metric, scores)
    return name, merits(metric, [score.value(metric.name) for score in scores])


def view_noise_share(score: Score) -> float | None:
    """The share of view noise in the LDA trace; None if unknown, or delta or a collapse causes it.

    With a large ridge share delta decides what counts as noise; a constant embedding has no other
    variance.
    """
    if score.is_collapsed or (score.ridge_share or 0.0) > MUCH_RIDGE:
        return None
    return score.value("noise_fraction")


class MuchNoise(NamedTuple):
    """Checkpoints in which LiDAR mostly counts view noise.

    typical: the median of their shares. views: q that leaves little; None if samples have unequal
    numbers of views.
    """

    checkpoints: int
    typical: float
    views: int | None


def much_noise(group: Group, by: Metric) -> MuchNoise | None:
    """Those of a group that LiDAR orders, if they are more than half of it; else None."""
    shares = (view_noise_share(row.score) for row in group.rows)
    noisy = [share for share in shares if share is not None and share > MUCH_NOISE]
    if by.name != "lidar" or 2 * len(noisy) <= len(group.rows):
        return None
    q, typical = group.common["q"], median(noisy)
    if group.common.get("numbers of views"):
        return MuchNoise(len(noisy), typical, None)
    views = round_up(views_for(min(typical, 0.9), q, LITTLE_NOISE))
    return MuchNoise(len(noisy), typical, min(views, max(MOST_VIEWS, 2 * q)))


def noise_warnings(groups: Iterable[Group], by: Metric) -> Iterator[str]:
    """A warning for each group whose order by LiDAR mostly reflects view noise."""
    for group in groups:
        if (noise := much_noise(group, by)) is not None:
            yield (
                f"view noise is more than half of the LDA trace in {noise.checkpoints} of "
                f"{len(group.rows)} checkpoints, and lidar counts it as rank; more views reduce it"
                f"{f': -q {noise.views}' if noise.views else ''}"
            )


def merits(metric: Metric, values: Sequence[float | None]) -> Merits:
    """Values as numbers of which the higher is better."""
    return tuple(None if value is None else -metric.sort_key(value) for value in values)
