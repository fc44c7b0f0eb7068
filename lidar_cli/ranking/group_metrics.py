"""Metrics of a checkpoint among the others of its comparable group, which only a ranking has.

A `GroupMetric` is computed from numbers that the score of each checkpoint has, its parts, and its
value changes with the checkpoints that it is compared with. So it exists within one comparable
group, whose checkpoints are all scored.

Torch is imported when a metric is computed, so that a wrong option is refused before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.errors import DegenerateFeatures, SettingsError, nearest
from lidar_cli.settings import PATCHES

if TYPE_CHECKING:
    from torch import Tensor

    from lidar_cli.scoring.compute import Score

# The metrics whose ranks `agreement` averages.
AGREEMENT_OF = ("stable_rank", "lidar_corrected", "stability")
SECOND_OPINION = "agreement"  # any name in ORDERS but that of LiDAR, which it follows
DSE_OF = ("dse_inter", "dse_intra", "dse_dim")  # M_inter, M_intra, M_dim of a score
NUMBERS = 2**22  # numbers in a block, 32 MB
LEFT_OUT = 1000  # checkpoints, the best ones, that are left out in turn


@dataclass(frozen=True, kw_only=True)
class GroupMetric(Metric):
    """A metric whose value depends on the other checkpoints of the group.

    of: names of its parts: metrics, or other values of a score. layer: the only one that has them,
    empty if all have.
    values: the metric of K checkpoints [..., K] from the values of P parts [..., P, K]. NaN is a
    null: of a part that cannot be computed, or in all parts, of a checkpoint that is left out.
    of_ranks: whether it is a mean of ranks. Noise moves ranks towards their middle, in resamples as
    in the value, so that it has ties but no interval: none covers the ranks without noise as often
    as its level says (tests/benchmarks/rank_intervals.py).
    """

    of: tuple[str, ...]
    values: Callable[[Tensor], Tensor]
    layer: str = ""
    of_ranks: bool = False


def _no_value_alone(_: Any) -> float:
    raise DegenerateFeatures("it is formed from all checkpoints of a group", code="of-a-group")


def average_ranks(keys: Tensor) -> Tensor:
    """The rank of each key among the last dimension [..., K], 1 for the smallest.

    Equal keys share the average of their ranks. NaN has no rank, and is none of those ranked.
    """
    import torch

    numbers = keys.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).contiguous()
    ordered = numbers.sort(dim=-1).values
    below = torch.searchsorted(ordered, numbers)
    up_to = torch.searchsorted(ordered, numbers, right=True)
    return ((below + up_to + 1.0) / 2.0).double().where(~keys.isnan(), torch.nan)


def agreement(of: Sequence[str]) -> GroupMetric:
    """The mean of the ranks that these metrics give, each by its direction.

    A null drops out of a checkpoint's mean; more than half of the metrics null make it null.
    """
    metrics = [METRICS[name] for name in of]

    def mean_ranks(parts: Tensor) -> Tensor:
        import torch

        each: list[Any] = [parts[..., at, :] for at in range(len(metrics))]
        keys = [metric.sort_key(values) for metric, values in zip(metrics, each, strict=True)]
        ranks = average_ranks(torch.stack([torch.as_tensor(key) for key in keys], dim=-2))
        nulls = ranks.isnan().sum(dim=-2)
        return ranks.nanmean(dim=-2).where(2 * nulls <= len(metrics), torch.nan)

    names = " and ".join(filter(None, (", ".join(of[:-1]), of[-1])))
    definition = (
        f"The mean of the ranks that {names} give within one comparable group, 1 for the best: a "
        "checkpoint that all of them rank high is first. A null drops out of the mean, and nulls "
        "in more than half of the metrics make it null; equal values share the average of their "
        "ranks. It changes with the checkpoints that are compared. The mean of ranks is Borda's "
        "count (1781)."
    )
    return GroupMetric(
        "agreement",
        "group",
        "lower",
        definition,
        _no_value_alone,
        of=tuple(of),
        values=mean_ranks,
        of_ranks=True,
    )


def dse(parts: Tensor) -> Tensor:
    """M_inter - M_intra + lambda M_dim [..., K] of M_inter, M_intra, M_dim [..., 3, K]."""
    import torch

    inter, intra, dim = parts.unbind(dim=-2)
    value = inter - intra + dse_weight(parts).unsqueeze(-1) * dim
    return value.where(~parts.isnan().any(dim=-2), torch.nan)


def dse_weight(parts: Tensor) -> Tensor:
    """lambda = std(M_inter - M_intra) / std(M_dim) over the checkpoints that have all parts [...].

    0 if M_dim is the same for all, because it then orders nothing.
    """
    import torch

    complete = ~parts.isnan().any(dim=-2)
    inter, intra, dim = parts.unbind(dim=-2)

    def spread(values: Tensor) -> Tensor:
        present = values.where(complete, torch.nan)
        gaps = present - present.nanmean(dim=-1, keepdim=True)
        return gaps.square().nanmean(dim=-1).sqrt()

    ratio = spread(inter - intra) / spread(dim)
    return ratio.where(ratio.isfinite(), 0.0)


GROUP_METRICS = {
    metric.name: metric
    for metric in (
        agreement(AGREEMENT_OF),
        GroupMetric(
            "dse",
            "group",
            "higher",
            "M_inter - M_intra + lambda M_dim of patch tokens: how far clusters are apart, less "
            "how wide they are, plus the effective rank; lambda is the ratio of the standard "
            "deviations of M_inter - M_intra and of M_dim over the checkpoints of the group, so "
            "that the value changes with them. For dense tasks such as segmentation. Dai et al., "
            "NeurIPS 2025, arXiv 2510.17299.",
            _no_value_alone,
            of=DSE_OF,
            values=dse,
            layer=PATCHES,
        ),
    )
}
ORDERS: dict[str, Metric] = {**METRICS, **GROUP_METRICS}  # what --by takes


def find_order(name: str, alone: str = "") -> Metric:
    """The metric, or metric of a group, that has this name.

    alone: what scores checkpoints one at a time, such as `--race`, and so has no metric of a group.
    Raises SettingsError if there is none, or it cannot be used.
    """
    if name not in ORDERS:
        raise SettingsError(
            f"--by {name}: no such metric; {nearest(name, list(ORDERS))} (lidar explain metrics)",
            code="no-such-metric",
        )
    if alone and name in GROUP_METRICS:
        raise SettingsError(
            f"--by {name}: {_needs_group(alone)}; leave out --by, or order them all:  lidar rank "
            f"FOLDER --by {name}",
            code="of-a-group",
        )
    return ORDERS[name]


def refuse_group_metrics(text: str, alone: str = "") -> None:
    """Raise SettingsError if `--metrics` names a metric of a group. alone: as of `find_order`."""
    for name in (name.strip() for name in text.split(",")):
        if name in GROUP_METRICS:
            advice = (
                f"{_needs_group(alone)}; order them by it:  lidar rank FOLDER --by {name}"
                if alone
                else "rank forms it from other metrics even if it is not named; leave it out, or "
                f"show it: --columns {name}"
            )
            raise SettingsError(f"--metrics {name}: {advice}", code="of-a-group")


def _needs_group(alone: str) -> str:
    return f"it is formed from all checkpoints of a complete group, which {alone} does not have"


def check_layer_of(option: str, names: Iterable[str], layer: str) -> None:
    """Raise SettingsError if an option names a metric of a group that a layer does not have."""
    for name in names:
        needed = GROUP_METRICS[name].layer if name in GROUP_METRICS else ""
        if needed and layer != needed:
            raise SettingsError(
                f"{option} {name}: it is measured on patch tokens alone; add --layer {needed}",
                code="other-layer",
            )


def parts_of(metric: Metric) -> tuple[str, ...]:
    """Names of the values that a metric is formed from; of other metrics, its own."""
    return metric.of if isinstance(metric, GroupMetric) else (metric.name,)


def second_opinion(by: Metric) -> str:
    """The name of the metric that follows the one that orders."""
    return "lidar" if by.name == SECOND_OPINION else SECOND_OPINION


def needed_parts(by: str) -> frozenset[str]:
    """Names of the metrics whose influences decide ties by this one and by the second opinion."""
    return frozenset(parts_of(ORDERS[by]) + parts_of(ORDERS[SECOND_OPINION]))


# Values


def table_of(scores: Sequence[Score], names: Sequence[str]) -> Tensor:
    """Values of scores [len(names), len(scores)]; NaN for a null."""
    import torch

    rows = [[score.value(name) for score in scores] for name in names]
    numbers = [[float("nan") if value is None else value for value in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def form(metric: GroupMetric, scores: Sequence[Score]) -> list[Score]:
    """The scores of a group with the value of each, or the reason of a null in `notes`."""
    formed = []
    for score, number in zip(
        scores, metric.values(table_of(scores, metric.of)).tolist(), strict=True
    ):
        value = None if math.isnan(number) else number
        why = {} if value is not None else {metric.name: why_null(metric, score)}
        values = {**score.values, metric.name: value}
        formed.append(replace(score, values=values, notes=score.notes | why))
    return formed


def form_all(scores: Sequence[Score], by: Metric) -> list[Score]:
    """The scores of a group with every metric of the group that is `by`, or that one has."""
    formed = list(scores)
    for metric in GROUP_METRICS.values():
        with_it = form(metric, formed)
        if metric == by or any(score.value(metric.name) is not None for score in with_it):
            formed = with_it
    return formed


def with_value(scores: Sequence[Score]) -> list[Metric]:
    """The metrics of `listed_metrics`, and those metrics of the group that a score has."""
    from lidar_cli.scoring.compute import listed_metrics

    formed = [
        metric
        for name, metric in GROUP_METRICS.items()
        if any(score.value(name) is not None for score in scores)
    ]
    return [*(METRICS[name] for name in listed_metrics(scores)), *formed]


def why_null(metric: GroupMetric, score: Score) -> str:
    """Why a score has no value of a metric of the group: which of its parts are null, and why."""
    missing = [name for name in metric.of if score.value(name) is None]
    notes = (score.notes.get(name) for name in (metric.name, *missing))
    why = next((f": {note}" for note in notes if note), "")
    return f"it is formed from {', '.join(metric.of)}; no {', '.join(missing)}{why}"


# The first with one checkpoint left out


class LeaveOneOut(NamedTuple):
    """How many checkpoints that are not the first were left out in turn, and how often it changed.

    Of the rest without a checkpoint, and the whole with it, one has another first: so the count is
    as well that of changes if each of them is added to the rest.
    """

    left_out: int
    changes: int


def leave_one_out(metric: GroupMetric, scores: Sequence[Score]) -> LeaveOneOut:
    """How often the first of a group changes if one other checkpoint is left out.

    At most the LEFT_OUT best are left out, because only they are near the first.
    """
    import torch

    parts = table_of(scores, metric.of)
    keys = _keys(metric, parts)
    first = (keys == keys.amin()) & keys.isfinite()
    if not bool(first.any()):
        return LeaveOneOut(0, 0)
    best_first = keys.argsort(stable=True)
    others = best_first[~first[best_first]][:LEFT_OUT]
    changes = 0
    for left in torch.split(others, max(1, NUMBERS // parts.numel())):
        without = parts.repeat(len(left), 1, 1)
        without[torch.arange(len(left)), :, left] = torch.nan
        remaining = _keys(metric, without)
        firsts = remaining == remaining.amin(dim=-1, keepdim=True)
        changes += int((firsts != first).any(dim=-1).sum())
    return LeaveOneOut(len(others), changes)


def _keys(metric: GroupMetric, parts: Tensor) -> Tensor:
    """Smaller for a better value [..., K]; infinite for a null."""
    import torch

    values: Any = metric.values(parts)
    return torch.as_tensor(metric.sort_key(values)).nan_to_num(nan=torch.inf)
