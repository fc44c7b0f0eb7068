"""What the callbacks log: metrics of the embeddings, and their fall from the running peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lidar_cli.core.drawdown import Drawdown, drawdown
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import DegenerateFeatures


class LoggedValues:
    """The values of a collection, each with its fall from the peak of the training so far.

        NAME             NaN if it cannot be computed
        NAME_drawdown    share of the peak; NaN without a value, or below a peak of 0
        NAME_alarm       with `alarm`: 1 if the fall exceeds it, or if the value is lost, else 0

    A metric with no better direction has neither of the last two.

    Args:
        metrics: the torchmetrics objects.
        alarm: share of the peak.
        warn: called with the reason of a value that is missing, and with each alarm.
    """

    def __init__(
        self, metrics: MetricCollection, alarm: float | None, warn: Callable[[str], object]
    ) -> None:
        self._metrics = metrics
        self._alarm = alarm
        self._warn = warn
        self.peaks: dict[str, float] = {}  # by logged name

    def compute(self, prefix: str = "") -> dict[str, Tensor | float]:
        """The values by logged name, over all processes. prefix: of the names."""
        logged: dict[str, Tensor | float] = {}
        for name, metric in self._metrics.items():
            name = f"{prefix}{name}"
            try:
                value = metric.compute()
            except DegenerateFeatures as error:
                # Without a value for this epoch a trainer would use that of an earlier one.
                value = torch.tensor(math.nan, dtype=torch.float64, device=metric.device)
                self._warn(f"no {name}: {error}")
            logged[name] = value
            fall = self._fall(name, metric, float(value))
            if fall is None:
                continue
            logged[f"{name}_drawdown"] = math.nan if fall.share is None else fall.share
            if self._alarm is not None:
                is_alarm = fall.exceeds(self._alarm)
                logged[f"{name}_alarm"] = float(is_alarm)
                if is_alarm:
                    self._warn(_alarm_text(name, float(value), fall))
        return logged

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Set the peaks to those of logged values, with any prefix."""
        self.peaks.clear()
        for record in records:
            for key, value in record.items():
                for name, metric in self._metrics.items():
                    if f"_{key}".endswith(f"_{name}") and isinstance(value, float):
                        self._fall(key, metric, value)

    def _fall(self, name: str, metric: Metric, value: float) -> Drawdown | None:
        """The fall of a value; the peak is updated. None for a metric with no better direction."""
        sort_key = _sort_key(metric)
        if sort_key is None:
            return None
        fall = drawdown(value, [self.peaks[name]] if name in self.peaks else [], sort_key)
        if fall.peak is not None:
            self.peaks[name] = fall.peak
        return fall


def _sort_key(metric: Metric) -> Callable[[float], float] | None:
    """A function that is smaller for a better value; None if none is better."""
    if (name := getattr(metric, "metric_name", None)) in METRICS:
        return METRICS[name].sort_key
    if metric.higher_is_better is None:
        return None
    sign = -1.0 if metric.higher_is_better else 1.0
    return lambda value: sign * value


def _alarm_text(name: str, value: float, fall: Drawdown) -> str:
    if fall.share is None:
        return f"alarm: {name} has no value; its best value so far is {fall.peak:.4g}"
    return (
        f"alarm: {name} {value:.4g} is {100 * fall.share:.1f} % worse than its best value so far, "
        f"{fall.peak:.4g}"
    )
