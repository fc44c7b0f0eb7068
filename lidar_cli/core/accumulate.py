"""A symmetric sum of products by its upper triangle: the other half is not worth computing."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

STRIPS = 4  # more leave out more of the product, in shapes that a processor multiplies slower
LEAST_STRIP = 64
# On a CPU a small scatter is summed in lanes, each by one thread from its own share of the rows:
# torch's threads gain little from a product that small, and lose where a core is taken. How many
# there are does not depend on the threads, and so neither does any bit of the sum.
LANES = 8
LANE_NUMBERS = 2**18  # of the largest such scatter, 2 MB
LEAST_LANE_ROWS = 256


class Scatter:
    """The sum of row row^T over rows [d] that arrive in blocks, [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        lanes = LANES if device.type == "cpu" and dim**2 <= LANE_NUMBERS else 1
        self._lanes = torch.zeros(lanes, dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows [c, d]."""
        count = len(self._lanes)
        if count == 1:
            add_products(self._lanes[0], rows)
            return
        shares = torch.split(rows, max(LEAST_LANE_ROWS, -(-len(rows) // count)))
        spread(lambda lane: add_products(self._lanes[lane], shares[lane]), range(len(shares)))

    def add_weighted(self, row: Tensor, weight: float) -> None:
        """Add weight row row^T of one row [d]."""
        self._lanes[0].addr_(row, row, alpha=weight)

    def add_sum(self, scatter: Tensor) -> None:
        """Add a sum [d, d] that was made elsewhere."""
        self._lanes[0].add_(scatter)

    def whole(self) -> Tensor:
        """The sum itself, [d, d]."""
        for lane in self._lanes[1:]:
            self._lanes[0].add_(lane)
            lane.zero_()
        return mirrored(self._lanes[0])


def add_products(scatter: Tensor, rows: Tensor) -> None:
    """Add the sum of row row^T over rows [c, d] to the upper triangle of the scatter [d, d].

    In strips from the diagonal to the right, which leaves out up to 3/8 of the product; what is
    below the diagonal is not valid until `mirrored`.
    """
    d = len(scatter)
    width = max(LEAST_STRIP, -(-d // STRIPS))
    for a in range(0, d, width):
        scatter[a : a + width, a:].addmm_(rows[:, a : a + width].T, rows[:, a:])


def mirrored(scatter: Tensor) -> Tensor:
    """The scatter itself, what is above its diagonal copied below."""
    for a in range(0, len(scatter), LEAST_STRIP):
        b = a + LEAST_STRIP
        scatter[a:b, a:b] = scatter[a:b, a:b].triu() + scatter[a:b, a:b].triu(1).T
        scatter[b:, a:b] = scatter[a:b, b:].T
    return scatter


T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], portions: Iterable[T]) -> list[R]:
    """What the work gives for each portion, in order, by as many threads as torch has for this one.

    Raises what the work raises.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(portion) for portion in portions]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def done(portion: T) -> R:
        # modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(portion)

    return list(_pool(threads).map(done, portions))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the life of the process.

    What one thread tells torch holds for that thread, and for those that have yet to ask. So torch
    is told again once all of ours have begun.
    """
    pool = ThreadPoolExecutor(threads, "lidar-portions", _keep_to_one)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # not on every system
    # A forked process has none of the threads of its parent, and would wait for them.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _keep_to_one() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first to ask in a thread gets what was told last in any


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
