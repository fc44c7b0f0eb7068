"""Runs that stop in the middle, and what must be equal afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lidar_cli.runtime.progress import Progress


def contents(path: Path) -> dict[str, Any]:
    """Every dataset and attribute of a feature file."""
    entries: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: entries.update({name: item[()]} if hasattr(item, "shape") else {})
        )
        entries |= {f"attribute {name}": value for name, value in file.attrs.items()}
    return entries


def assert_same(one: Path, two: Path, but: tuple[str, ...] = ()) -> None:
    """Equal bit for bit; `but` names fields of the provenance that may differ."""
    a, b = contents(one), contents(two)
    assert a.keys() == b.keys()
    for name in a:
        if name == "attribute provenance":
            records = [json.loads(entries[name]) for entries in (a, b)]
            for key in but:
                assert records[0].pop(key) != records[1].pop(key)
            assert records[0] == records[1]
        else:
            assert np.array_equal(a[name], b[name]), name


class Stop(Exception):
    """Ends a run from inside."""


class StopAfter(Progress):
    """Interrupts when so many samples were embedded."""

    def __init__(self, count: int) -> None:
        self.count = count

    def update(self, task: str, done: int, total: int) -> None:
        if done >= self.count:
            raise Stop
