"""Scores of the checkpoints of a group, and literal forms of the mean of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scores import score

from lidar_cli.ranking.group_metrics import agreement
from lidar_cli.scoring.compute import Score

Rows = dict[str, list[float | None]]
TWO = agreement(("lidar", "rankme"))


def scores(**rows: list[float | None]) -> list[Score]:
    """Scores of checkpoints with these values of each metric."""
    count = len(next(iter(rows.values())))
    return [score(str(at), **{name: row[at] for name, row in rows.items()}) for at in range(count)]


def literal_ranks(keys: list[float | None]) -> list[float | None]:
    """1 + how many are smaller + half of the others that are equal."""
    present = [key for key in keys if key is not None]
    return [
        None if key is None else 1 + sum(k < key for k in present) + (present.count(key) - 1) / 2
        for key in keys
    ]


def literal_agreement(names: tuple[str, ...], rows: Rows) -> list[Any]:
    keys = {
        "lidar": lambda v: -v,
        "rankme": lambda v: -v,
        "alpha_req": lambda v: abs(v - 1),
        "alignment": lambda v: v,
    }
    ranks = [literal_ranks([None if v is None else keys[n](v) for v in rows[n]]) for n in names]
    values = []
    for of_one in zip(*ranks, strict=True):
        present = [rank for rank in of_one if rank is not None]
        nulls = len(names) - len(present)
        values.append(None if nulls > len(names) / 2 else sum(present) / len(present))
    return values


def dense_score(inter: float | None, intra: float | None, dim: float | None) -> Score:
    """A score with these parts of DSE."""
    parts = {"dse_inter": inter, "dse_intra": intra, "dse_dim": dim}
    one = score("x")
    return Score(**{**vars(one), "values": {**one.values, **parts}})


def drawn(
    values: list[float], spread: float, n: int, seed: int, name: str = "lidar"
) -> dict[str, Any]:
    """A metric's values, and normal influences of n samples on each."""
    rng = np.random.default_rng(seed)
    columns = torch.from_numpy(rng.normal(size=(len(values), n)) * spread)
    return {name: (values, list(columns - columns.mean(dim=1, keepdim=True)))}


def with_influences(**parts: tuple[list[float], list[torch.Tensor]]) -> list[Score]:
    """Scores of checkpoints with these values of each metric, and the influences on them."""
    count = len(next(iter(parts.values()))[0])
    return [
        score(str(at), **{name: values[at] for name, (values, _) in parts.items()},
              influences={name: columns[at] for name, (_, columns) in parts.items() if columns})
        for at in range(count)
    ]  # fmt: skip
