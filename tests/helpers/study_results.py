"""Files of the study as a measurement leaves them, with planted numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from study.records import ACCURACY_COLUMNS, ACCURACY_FILE, LAYERS, METRICS_FILE, append_rows

DIRECTIONS = {"lidar": "higher", "rankme": "lower", "alpha_req": "nearest 1"}
COLUMNS = (
    *("set", "name", "layer", "q", "n", "d", "failed"),
    *(f"{name}:{direction}" for name, direction in DIRECTIONS.items()),
    "lidar:se",
)
Values = Mapping[str, float | None]


def plant(
    folder: Path,
    name: str,
    accuracy: float,
    values: Callable[[str], Values],
    *,
    data: str = "fashion",
    method: str = "simclr",
    kind: str = "search",
    index: int | None = None,
    varied: str | None = None,
    failed: str | None = None,
    **hyperparameters: float,
) -> None:
    """A checkpoint in both files, as if measured; values: by metric, of each layer."""
    run = {"set": data, "name": name, "method": method, "kind": kind, "index": index}
    run |= {"varied": varied, "hyperparameters": json.dumps(hyperparameters)}
    probe = {} if failed else {"lbfgs": accuracy, "paper": accuracy - 0.01, "strength": 1.0}
    probe |= {"failed": failed} if failed else {"iterations": 10}
    rows = [run | probe | {"layer": layer} for layer in LAYERS]
    append_rows(folder / ACCURACY_FILE, ACCURACY_COLUMNS, rows)
    measured = [
        {"set": data, "name": name, "layer": layer, "q": 10, "n": 640, "d": 128, "failed": failed}
        | {f"{metric}:{DIRECTIONS[metric]}": value for metric, value in values(layer).items()}
        | {"lidar:se": 0.5}
        for layer in LAYERS
    ]
    append_rows(folder / METRICS_FILE, COLUMNS, measured)
