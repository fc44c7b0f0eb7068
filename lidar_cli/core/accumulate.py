"""The class `Scatter`, a sum of outer products over many rows, and the threads that compute it.

The result is the same bit for bit with any number of threads.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

HELD_NUMBERS = 2**21  # of the rows held for one product, 16 MB
LEAST_HELD_ROWS = 1024  # the fewest rows held, whatever d: a product of fewer is slow
STRIPS = 4  # with more strips fewer entries are computed twice, but each product is slower
LEAST_STRIP = 64
# On a CPU a small scatter is the sum of several partial sums, each computed by one thread from its
# share of the rows: torch's threads gain little within a product that small, and lose time when
# another process occupies a core. The number of partial sums does not depend on the number of
# threads, so the result is the same bit for bit.
PARTIAL_SUMS = 8
PARTIAL_NUMBERS = 2**18  # entries of the largest such scatter, 2 MB
LEAST_PARTIAL_ROWS = 256
# Numbers in one piece: all elementwise work on a piece is done at once, in float64. On a CPU a
# piece fits into the cache of a core; a GPU needs larger pieces to be busy.
CPU_NUMBERS = 2**17
GPU_NUMBERS = 2**21
SMALL_NUMBERS, SMALL_DIM = 2**20, 256  # of embeddings that one thread scores as fast as several


class Scatter:
    """The sum of row row^T over rows [d] that arrive in blocks, [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        count = PARTIAL_SUMS if device.type == "cpu" and dim**2 <= PARTIAL_NUMBERS else 1
        self._sums = torch.zeros(count, dim, dim, dtype=torch.float64, device=device)
        self._held = self._sums.new_empty(0, dim)  # buffer of rows not multiplied yet
        self._n_held = 0

    def add(self, rows: Tensor) -> None:
        """Add rows [c, d]."""
        count = len(self._sums)
        if count == 1:
            add_products(self._sums[0], rows)
            return
        shares = torch.split(rows, max(LEAST_PARTIAL_ROWS, -(-len(rows) // count)))
        map_parallel(lambda i: add_products(self._sums[i], shares[i]), range(len(shares)))

    def add_weighted(self, row: Tensor, weight: float) -> None:
        """Add weight row row^T of one row [d]."""
        self._sums[0].addr_(row, row, alpha=weight)

    def add_scatter(self, scatter: Tensor) -> None:
        """Add another sum [d, d]."""
        self._sums[0].add_(scatter)

    def transform_and_add(self, work: Callable[[Tensor], R], block: Tensor) -> list[R]:
        """Change a block [c, q, d] in place, piece by piece, and add the rows that result.

        `work` receives a float64 copy of each piece [k, q, d] and changes it; the results that it
        returns are returned in order. The rows are multiplied once many are held, or when the sum
        is requested.
        """
        room = self._room(block.shape[0] * block.shape[1]).view(block.shape)
        numbers = block.shape[1] * block.shape[2]
        return map_pieces(
            lambda some: work(room[some].copy_(block[some])), len(block), numbers, room.device
        )

    def sum(self) -> Tensor:
        """The sum itself, [d, d]."""
        self._multiply()
        for partial in self._sums[1:]:
            self._sums[0].add_(partial)
            partial.zero_()
        return mirrored(self._sums[0])

    def _room(self, rows: int) -> Tensor:
        """The part [rows, d] of the buffer for the next rows."""
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
    """The number of rows [d] that are multiplied at once."""
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

    Each strip of rows is computed from the diagonal to the right, which saves up to 3/8 of the
    product. Entries below the diagonal are invalid until `mirrored` is called.
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
    """The results of `work` for consecutive slices of `count` samples, in order.

    numbers: in one sample; determines how many samples a slice has.
    On a CPU several threads work on one slice each; the slices do not depend on how many threads.
    """
    on_cpu = device.type == "cpu"
    most = max(1, (CPU_NUMBERS if on_cpu else GPU_NUMBERS) // max(1, numbers))
    pieces = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    return map_parallel(work, pieces) if on_cpu else [work(piece) for piece in pieces]


def map_parallel(work: Callable[[T], R], portions: Iterable[T]) -> list[R]:
    """The results of `work` for each portion, in order, from as many threads as torch uses here.

    Raises the first error that `work` raises.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(portion) for portion in portions]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def in_modes(portion: T) -> R:
        # these modes are set for each thread separately
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(portion)

    return list(_pool(threads).map(in_modes, portions))


@contextmanager
def one_thread_if_small(rows: int, dim: int) -> Iterator[None]:
    """Compute with one thread of torch what takes less time than other threads take to start.

    rows, dim: of all embeddings together, [rows, dim].
    """
    threads = torch.get_num_threads()
    if rows * dim <= SMALL_NUMBERS and dim <= SMALL_DIM:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that exist until the process ends.

    torch.set_num_threads affects the calling thread and threads created later, so the calling
    thread sets its number again after all threads of the pool have started.
    """
    pool = ThreadPoolExecutor(threads, "lidar-portions", _use_one_thread)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # not on every system
    # A forked process has none of the threads of its parent; with this pool it would wait forever.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread applies the number set last in any thread
