"""Sums of products over many rows: which shapes, how many at a time, and in which threads.

`Scatter` is the one class of it. Whatever the number of threads, each bit of a sum is the same.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

HELD_NUMBERS = 2**21  # of rows held for one product, 16 MB; but for the product's sake at least
LEAST_HELD_ROWS = 1024
STRIPS = 4  # more leave out more of the product, in shapes that a processor multiplies slower
LEAST_STRIP = 64
# On a CPU a small scatter is summed in lanes, each by one thread from its own share of the rows:
# torch's threads gain little from a product that small, and lose where a core is taken. How many
# there are does not depend on the threads, and so neither does any bit of the sum.
LANES = 8
LANE_NUMBERS = 2**18  # of the largest such scatter, 2 MB
LEAST_LANE_ROWS = 256
# Numbers of a piece, on which all elementwise work is done in float64. On a CPU it stays in the
# cache of a core. A GPU wants more to do at a time.
CPU_NUMBERS = 2**17
GPU_NUMBERS = 2**21


class Scatter:
    """The sum of row row^T over rows [d] that arrive in blocks, [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        lanes = LANES if device.type == "cpu" and dim**2 <= LANE_NUMBERS else 1
        self._lanes = torch.zeros(lanes, dim, dim, dtype=torch.float64, device=device)
        self._held = self._lanes.new_empty(0, dim)  # room for rows whose product is still due
        self._n_held = 0

    def add(self, rows: Tensor) -> None:
        """Add rows [c, d]."""
        count = len(self._lanes)
        if count == 1:
            add_products(self._lanes[0], rows)
            return
        shares = torch.split(rows, max(LEAST_LANE_ROWS, -(-len(rows) // count)))
        map_parallel(lambda lane: add_products(self._lanes[lane], shares[lane]), range(len(shares)))

    def add_weighted(self, row: Tensor, weight: float) -> None:
        """Add weight row row^T of one row [d]."""
        self._lanes[0].addr_(row, row, alpha=weight)

    def add_scatter(self, scatter: Tensor) -> None:
        """Add another sum [d, d]."""
        self._lanes[0].add_(scatter)

    def add_rows_left_by(self, work: Callable[[Tensor], R], block: Tensor) -> list[R]:
        """Add the rows that some work leaves of a block [c, q, d]; returns its results in order.

        The work is called with each piece [k, q, d] in float64, which it changes in place. The
        product follows once many rows are held, or when the sum is asked for.
        """
        room = self._room(block.shape[0] * block.shape[1]).view(block.shape)
        numbers = block.shape[1] * block.shape[2]
        return map_pieces(
            lambda some: work(room[some].copy_(block[some])), len(block), numbers, room.device
        )

    def sum(self) -> Tensor:
        """The sum itself, [d, d]."""
        self._multiply()
        for lane in self._lanes[1:]:
            self._lanes[0].add_(lane)
            lane.zero_()
        return mirrored(self._lanes[0])

    def _room(self, rows: int) -> Tensor:
        """Memory [rows, d] for the next rows to hold."""
        if self._n_held + rows > len(self._held):
            self._multiply()
            dim = self._held.shape[1]
            if rows > len(self._held):
                self._held = self._held.new_empty(max(rows, held_rows(dim)), dim)
        self._n_held += rows
        return self._held[self._n_held - rows : self._n_held]

    def _multiply(self) -> None:
        self.add(self._held[: self._n_held])
        self._n_held = 0


def held_rows(dim: int) -> int:
    """How many rows [d] make one product."""
    return max(LEAST_HELD_ROWS, HELD_NUMBERS // dim)


def centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d] of rows [c, d] in float64, and the rows less it."""
    shape = (len(rows), rows.shape[1], rows.device)
    residuals = torch.empty_like(rows)
    sums = map_pieces(lambda some: rows[some].sum(dim=0), *shape)
    mean = torch.stack(sums).sum(dim=0) / len(rows)
    map_pieces(lambda some: torch.sub(rows[some], mean, out=residuals[some]), *shape)
    return mean, residuals


def add_products(scatter: Tensor, rows: Tensor) -> None:
    """Add the sum of row row^T over rows [c, d] to the upper triangle of the scatter [d, d].

    In strips from the diagonal to the right, which leaves out up to 3/8 of the product; entries
    below the diagonal are not valid until `mirrored`.
    """
    d = len(scatter)
    width = max(LEAST_STRIP, -(-d // STRIPS))
    for a in range(0, d, width):
        scatter[a : a + width, a:].addmm_(rows[:, a : a + width].T, rows[:, a:])


def mirrored(scatter: Tensor) -> Tensor:
    """The same tensor, its upper triangle copied to the lower."""
    for a in range(0, len(scatter), LEAST_STRIP):
        b = a + LEAST_STRIP
        scatter[a:b, a:b] = scatter[a:b, a:b].triu() + scatter[a:b, a:b].triu(1).T
        scatter[b:, a:b] = scatter[a:b, b:].T
    return scatter


def map_pieces(
    work: Callable[[slice], R], count: int, numbers: int, device: torch.device
) -> list[R]:
    """The results of the work for each piece of `count` samples of so many numbers, in order.

    On a CPU several threads work on one piece each; the pieces are the same however many there are.
    """
    on_cpu = device.type == "cpu"
    most = max(1, (CPU_NUMBERS if on_cpu else GPU_NUMBERS) // max(1, numbers))
    pieces = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    return map_parallel(work, pieces) if on_cpu else [work(piece) for piece in pieces]


def map_parallel(work: Callable[[T], R], portions: Iterable[T]) -> list[R]:
    """The results of the work for each portion, in order, by as many threads as torch uses here.

    Raises the first error of the work.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(portion) for portion in portions]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def in_modes(portion: T) -> R:
        # modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(portion)

    return list(_pool(threads).map(in_modes, portions))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the life of the process.

    torch.set_num_threads affects the calling thread and threads created later, so it is called
    once more when all of these have begun.
    """
    pool = ThreadPoolExecutor(threads, "lidar-portions", _use_one_thread)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # not on every system
    # A forked process has none of the threads of its parent, and would wait for them.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread takes over the number set last in any
