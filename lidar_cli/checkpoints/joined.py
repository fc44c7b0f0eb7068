"""Tensors that one project stores apart and another stacked, such as q, k and v: joined unread.

A layout's map of names gives the parts of `name` the names `name@0`, `name@1` and `name@2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lidar_cli.checkpoints.lazy import LazyTensor
from lidar_cli.checkpoints.weights import Weight, materialised

if TYPE_CHECKING:
    from torch import Tensor

PART = re.compile(r"(.+)@([012])")
PARTS = 3


class JoinedTensor(LazyTensor):
    """Several tensors along their first axis."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Weight, ...]) -> None:
        dtype = str(parts[0].dtype).removeprefix("torch.")
        rows = sum(part.shape[0] for part in parts)
        problems = [p.problem for p in parts if isinstance(p, LazyTensor) and p.problem]
        shape = (rows, *parts[0].shape[1:])
        super().__init__(dtype, shape, problem=problems[0] if problems else "")
        self.parts = parts

    def materialise(self) -> Tensor:
        """All parts in one tensor; raises CheckpointError if the file cannot give them."""
        import torch

        return torch.cat([materialised(part) for part in self.parts])


def join(tensors: Mapping[str, Weight]) -> tuple[dict[str, Weight], dict[str, tuple[str, ...]]]:
    """The tensors with all parts joined, and by the same names those that each was made of.

    Parts stay as they are where one is missing, or their shapes do not fit: then the name is
    missing, and what expects it says so.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in tensors:
        if match := PART.fullmatch(name):
            groups.setdefault(match[1], {})[int(match[2])] = name
    joined: dict[str, Weight] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for name, numbered in groups.items():
        names = tuple(numbered[i] for i in sorted(numbered))
        parts = tuple(tensors[part] for part in names)
        fits = len(parts) == PARTS and len({tuple(part.shape[1:]) for part in parts}) == 1
        if fits and all(len(part.shape) for part in parts) and name not in tensors:
            joined[name], sources[name] = JoinedTensor(parts), names
    used = {part for names in sources.values() for part in names}
    for name, tensor in tensors.items():
        if name not in used:
            joined[name], sources[name] = tensor, (name,)
    return joined, sources
