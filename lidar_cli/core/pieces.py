"""Elementwise work a piece at a time: every step over a whole chunk would go through memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Numbers of a piece, on which all elementwise work is done in float64: 1 MB stays in the cache, and
# a GPU, which has no such need, wants more to do at a time.
PIECE_NUMBERS = {"cpu": 2**17, "cuda": 2**21}


def pieces(chunk: Tensor, device: torch.device) -> Iterator[Tensor]:
    """A chunk [c, ...] on the device, in pieces of whole samples that the cache holds."""
    numbers_a_sample = max(1, chunk[:1].numel())
    most = max(1, PIECE_NUMBERS[device.type] // numbers_a_sample)
    return (part for part in torch.split(chunk.to(device), most) if len(part))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what is inside on the calling thread alone, where that is a CPU's.

    A step over a piece takes some 50 microseconds. A second thread saves little of that, and where
    other work holds the cores, each step waits until it is woken: that took 15 times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
