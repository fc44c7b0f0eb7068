"""Scalars that TensorBoard reads from a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from peers import package


def scalars(run: Path, name: str = "lidar/lidar") -> dict[int, float]:
    """What TensorBoard reads of one metric: step -> value, each step once."""
    reader = package("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run))
    events.Reload()
    points = events.Scalars(name) if name in events.Tags()["scalars"] else []
    assert all(count == 1 for count in Counter(event.step for event in points).values())
    return {event.step: event.value for event in points}
