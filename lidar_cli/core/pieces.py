"""Elementwise work a piece at a time: every step over a whole chunk would go through memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from lidar_cli.core.threads import spread

R = TypeVar("R")

# Numbers of a piece, on which all elementwise work is done in float64. On a CPU it stays in the
# cache of a core. A GPU wants more to do at a time.
CPU_NUMBERS = 2**17
GPU_NUMBERS = 2**21


def each_piece(
    work: Callable[[slice], R], count: int, numbers: int, device: torch.device
) -> list[R]:
    """What the work gives for each piece of `count` samples of so many numbers each, in order.

    On a CPU several threads work, each on a piece of its own; the pieces are the same ones however
    many there are.
    """
    on_cpu = device.type == "cpu"
    most = max(1, (CPU_NUMBERS if on_cpu else GPU_NUMBERS) // max(1, numbers))
    pieces = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    return spread(work, pieces) if on_cpu else [work(piece) for piece in pieces]
