"""The fall of a metric from its running peak, the best value of a run so far.

    drawdown = (key(value) - key(peak)) / |peak|

key: `Metric.sort_key`, which is smaller for a better value: -value if higher is better, value if
lower is, and the distance to the target of a metric that has one. The drawdown is 0 at a new peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Drawdown:
    """A value against the running peak.

    peak: the best value so far, with this one; None before the first. share: of |peak|, 0 or more;
    None without a value, and below a peak of 0. is_lost: whether there is no value although an
    earlier checkpoint of the run had one, as after a collapse.
    """

    peak: float | None
    share: float | None
    is_lost: bool = False

    def exceeds(self, share: float) -> bool:
        """Whether the fall is larger than a share of the peak; a value that is lost always is."""
        return self.is_lost or (self.share is not None and self.share > share)


def drawdown(
    value: float | None, earlier: Iterable[float], sort_key: Callable[[float], float]
) -> Drawdown:
    """The fall of a value from the best of it and the earlier values of its run.

    value: None or NaN if the metric cannot be computed. sort_key: `Metric.sort_key`.
    """
    has_value = value is not None and math.isfinite(value)
    values = [*earlier, *([value] if value is not None and has_value else [])]
    if not values:
        return Drawdown(None, None)
    peak = min(values, key=sort_key)
    if value is None or not has_value:
        return Drawdown(peak, None, is_lost=True)
    fall = sort_key(value) - sort_key(peak)
    share = 0.0 if fall == 0 else fall / abs(peak) if peak else None
    return Drawdown(peak, share)
