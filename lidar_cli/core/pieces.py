"""Elementwise work a piece at a time: every step over a whole chunk would go through memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers of a piece, on which all elementwise work is done in float64. On a CPU it stays in the
# cache, and below 2**15, from which on torch shares a step with other threads (at::internal::
# GRAIN_SIZE): a step takes 20 microseconds, and where other work holds the cores waking a second
# thread for each took eight times as long. A GPU wants more to do at a time.
PIECE_NUMBERS = {"cpu": 2**15 - 1, "cuda": 2**21}


def pieces(chunk: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A chunk [c, ...] on the device, in pieces of whole samples that the cache holds."""
    numbers_a_sample = max(1, chunk[:1].numel())
    most = max(1, PIECE_NUMBERS[device.type] // numbers_a_sample)
    return (part for part in torch.split(chunk.to(device), most) if len(part))
