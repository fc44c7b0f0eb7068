"""The CSV files of the study: appended to by measurement, read by the tables.

`accuracy.csv` has a row for each checkpoint and layer, `metrics.csv` one for each checkpoint, layer
and q. The columns of a metric are `NAME:DIRECTION`, and `NAME:se` for the standard error of the
sampled images. An empty cell is a null. A row that is there twice counts as the later one; a last
line without its end, which a killed process leaves, is dropped.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.errors import InputError

ACCURACY_FILE, METRICS_FILE = "accuracy.csv", "metrics.csv"
LAYERS = ("backbone", "projector")  # I-JEPA has no projector: its predictor is used
ACCURACY_KEY, METRICS_KEY = ("set", "name", "layer"), ("set", "name", "layer", "q")
ACCURACY_COLUMNS = (
    *("set", "name", "layer", "method", "kind", "index", "seed", "varied", "hyperparameters"),
    *("seconds", "threads", "lbfgs", "strength", "iterations", "paper", "failed"),
)
DIGITS = 7  # of floats
ERROR = "se"  # after the colon of a column of standard errors


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint at one layer and q, with its accuracies and metrics.

    accuracy, layer_accuracy: the higher of the two probes of the backbone, and of the layer.
    values: by metric, None for a null. errors: standard errors by metric, of those that have one.
    """

    data: str
    name: str
    layer: str
    q: int
    n: int
    d: int
    method: str
    kind: str
    index: int | None
    varied: str | None
    hyperparameters: dict[str, Any]
    accuracy: float
    layer_accuracy: float
    values: Mapping[str, float | None]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    accuracies: rows of accuracy.csv. directions: by metric, `higher`, `lower` or `nearest 1`.
    checkpoints: those with accuracies and metrics. failed: reasons by set and name.
    """

    accuracies: tuple[Mapping[str, str], ...]
    directions: Mapping[str, str]
    checkpoints: tuple[Checkpoint, ...]
    failed: Mapping[tuple[str, str], str]


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a CSV file in one write; the first call writes the header.

    Processes take turns. None is written as an empty cell, a float with DIGITS digits.
    Raises InputError if the file has other columns, OSError if it cannot be written.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole, _, torn = file.read().rpartition(b"\n")
        if torn:
            file.truncate(len(whole) + 1 if whole else 0)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not whole:
            writer.writeheader()
        elif whole.split(b"\n", 1)[0].decode() != ",".join(columns):
            raise InputError(
                f"{path}: has other columns than this version writes; move it away to measure again"
            )
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def _cell(value: object) -> object:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else value


def read_rows(path: Path, key: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of a CSV file by their key columns; none if there is no file."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return {tuple(row[name] for name in key): row for row in csv.DictReader(lines)}


def read_results(directory: Path) -> Results:
    """What both files of a folder hold. Raises InputError if there are no accuracies."""
    accuracies = read_rows(directory / ACCURACY_FILE, ACCURACY_KEY)
    metrics = read_rows(directory / METRICS_FILE, METRICS_KEY)
    if not accuracies:
        raise InputError(
            f"{directory / ACCURACY_FILE}: no rows; expected those of a measurement: "
            f"python tests/benchmarks/study measure {directory}"
        )
    columns = [name.split(":") for name in next(iter(metrics.values()), ()) if ":" in name]
    directions = {name: direction for name, direction in columns if direction != ERROR}
    failed = {
        (row["set"], row["name"]): row["failed"]
        for row in (*accuracies.values(), *metrics.values())
        if row["failed"]
    }
    checkpoints = [
        _checkpoint(accuracies, row, directions)
        for row in metrics.values()
        if (row["set"], row["name"]) not in failed
        and all((row["set"], row["name"], layer) in accuracies for layer in LAYERS)
    ]
    return Results(tuple(accuracies.values()), directions, tuple(checkpoints), failed)


def _checkpoint(
    accuracies: Mapping[tuple[str, ...], Mapping[str, str]],
    row: Mapping[str, str],
    directions: Mapping[str, str],
) -> Checkpoint:
    backbone, layer = (
        accuracies[row["set"], row["name"], name] for name in (LAYERS[0], row["layer"])
    )
    return Checkpoint(
        data=row["set"],
        name=row["name"],
        layer=row["layer"],
        q=int(row["q"]),
        n=int(row["n"]),
        d=int(row["d"]),
        method=backbone["method"],
        kind=backbone["kind"],
        index=int(backbone["index"]) if backbone["index"] else None,
        varied=backbone["varied"] or None,
        hyperparameters=json.loads(backbone["hyperparameters"]),
        accuracy=best_accuracy(backbone),
        layer_accuracy=best_accuracy(layer),
        values={name: _number(row[f"{name}:{to}"]) for name, to in directions.items()},
        errors={
            name: error
            for name in directions
            if (error := _number(row.get(f"{name}:{ERROR}", ""))) is not None
        },
    )


def best_accuracy(row: Mapping[str, str]) -> float:
    """The higher accuracy of the two probes of a row of accuracy.csv."""
    return max(float(row["lbfgs"]), float(row["paper"]))


def _number(text: str) -> float | None:
    return float(text) if text else None
