"""The class `Scatter`, a sum of outer products over many rows, and the threads that compute it.

The result is the same bit for bit with any number of threads.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

# Numbers in one piece: all elementwise work on a piece is done at once, in float64, and its rows
# are multiplied with the next. On a CPU a piece fits into the cache, and is large enough that
# threads compute more than they wait for each other; a GPU needs larger pieces to be busy.
CPU_NUMBERS = 2**18
GPU_NUMBERS = 2**21
BLOCK_NUMBERS = 2**23  # of the views whose sums are joined at once
HELD_NUMBERS = 2**21  # of the rows whose means and products are computed together, 16 MB
LEAST_HELD_ROWS = 1024  # the fewest rows held, whatever d: a product of fewer is slow
STRIPS = 4  # with more strips fewer entries are computed twice, but each product is slower
LEAST_STRIP = 32
# On a CPU a small scatter is the sum of several partial sums, each computed by one thread from its
# share of the rows: torch's threads gain little within steps that small, and lose time when another
# process occupies a core. The number of partial sums does not depend on the number of threads, so
# the result is the same bit for bit.
PARTIAL_SUMS = 8
PARTIAL_NUMBERS = 2**18  # entries of the largest such scatter, 2 MB
LEAST_PARTIAL_ROWS = 256
SMALL_NUMBERS, SMALL_DIM = 2**20, 256  # of embeddings that one thread scores as fast as several
_CALLER = threading.local()  # `portion_threads`: how many work for it, if it computes with one


class Sums:
    """Sums that are refused after an error or an interrupt while they changed."""

    _is_broken = False

    def check(self) -> None:
        """Raise RuntimeError if a change did not end, so that the sums are of unknown samples."""
        if self._is_broken:
            raise RuntimeError(
                "a change of these moments was interrupted, and they hold a part of it; begin "
                "again with new Moments"
            )

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Wraps all that changes the sums, and changes which a method that reads them makes."""
        self.check()
        try:
            yield
        except BaseException:
            self._is_broken = True
            raise


class Scatter(Sums):
    """The sum of row row^T over rows [d] that arrive in blocks, [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        count = partial_sums(dim, device)
        # In inference mode a tensor is made that could not be changed outside of it.
        with torch.inference_mode(False):
            self._sums = torch.zeros(count, dim, dim, dtype=torch.float64, device=device)
            self._held = [HeldRows(dim, device) for _ in self._sums]
            # Of pieces worked on at the same time; on other devices than a CPU one at a time.
            at_once = PARTIAL_SUMS if device.type == "cpu" else 1
            self._copies = [self._sums.new_empty(0)] * at_once

    @classmethod
    def of(cls, total: Tensor) -> Scatter:
        """A scatter that begins with a sum [d, d]."""
        scatter = cls(len(total), total.device)
        scatter.add_scatter(total)
        return scatter

    def __reduce__(self) -> tuple[Callable[[Tensor], Scatter], tuple[Tensor]]:
        """Pickles and copies hold the sum alone: buffers hold memory that was never written."""
        return Scatter.of, (self.sum(),)

    def add(self, rows: Tensor) -> None:
        """Add rows [c, d]."""
        with self._change():
            self._map_shares([rows], add_products)

    def add_centred(self, blocks: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Add the rows [c, d] of several blocks, each less the mean of its share of all rows.

        Returns the number of rows and the mean [d] of each share.
        """

        def add(total: Tensor, rows: Tensor) -> tuple[int, Tensor]:
            mean = rows.mean(dim=0)
            add_products(total, rows - mean)
            return len(rows), mean

        with self._change():
            return self._map_shares(blocks, add)

    def add_weighted(self, row: Tensor, weight: float) -> None:
        """Add weight row row^T of one row [d]."""
        with self._change():
            self._held[0].room(1, self._sums[0]).copy_(row * weight**0.5)

    def add_scatter(self, scatter: Tensor) -> None:
        """Add another sum [d, d]."""
        with self._change():
            self._sums[0].add_(scatter)

    def write_and_add(
        self, work: Callable[[Tensor, Tensor], R], block: Tensor, rows: int
    ) -> list[R]:
        """Add the rows that `work` writes for a block [c, q, d], `rows` of them for each sample.

        `work` receives a copy of each piece [k, q, d] in float64, which it may overwrite, and where
        to write its rows, [k, rows, d]; its results are returned in the order of the pieces.
        """
        with self._change():
            return self._write_and_add(work, block, rows)

    def _write_and_add(
        self, work: Callable[[Tensor, Tensor], R], block: Tensor, rows: int
    ) -> list[R]:
        _, q, d = block.shape
        pieces = torch.split(block, max(1, piece_numbers(block.device) // max(1, q * d)))
        count = len(self._held)

        def write(i: int, piece: Tensor, room: Tensor) -> R:
            return work(self._copy(i, piece), room.view(len(piece), rows, d))

        def share(i: int) -> list[R]:
            held, total = self._held[i], self._sums[i]
            return [
                write(i, piece, held.room(len(piece) * rows, total)) for piece in pieces[i::count]
            ]

        if count > 1:
            shares = map_parallel(share, range(min(count, len(pieces))))
            return [shares[i % count][i // count] for i in range(len(pieces))]
        results = []
        for start in range(0, len(pieces), len(self._copies)):
            group = pieces[start : start + len(self._copies)]
            sizes = [len(piece) * rows for piece in group]
            rooms = torch.split(self._held[0].room(sum(sizes), self._sums[0]), sizes)
            of_group = zip(range(len(group)), group, rooms, strict=True)
            results += map_parallel(lambda triple: write(*triple), of_group)
        return results

    def _copy(self, i: int, piece: Tensor) -> Tensor:
        """A copy in float64, in memory that copy i of the next piece overwrites."""
        if piece.numel() > len(self._copies[i]):
            self._copies[i] = buffer(self._sums, piece.numel())
        return self._copies[i][: piece.numel()].view(piece.shape).copy_(piece)

    def _map_shares(self, blocks: Sequence[Tensor], work: Callable[[Tensor, Tensor], R]) -> list[R]:
        """The results of `work` for each partial sum and its share of the rows of all blocks."""
        count, rows = len(self._sums), sum(map(len, blocks))
        size = max(1, rows if count == 1 else max(LEAST_PARTIAL_ROWS, -(-rows // count)))
        pieces = [piece for block in blocks for piece in torch.split(block, size) if len(piece)]

        def of_share(i: int) -> R:
            share = pieces[i::count]
            return work(self._sums[i], share[0] if len(share) == 1 else torch.cat(share))

        return map_parallel(of_share, range(min(count, len(pieces))))

    def sum(self) -> Tensor:
        """The sum itself, [d, d]."""
        with self._change():
            map_parallel(lambda i: self._held[i].multiply(self._sums[i]), range(len(self._held)))
            for partial in self._sums[1:]:
                self._sums[0].add_(partial)
                partial.zero_()
            return mirrored(self._sums[0])


class HeldRows:
    """Rows [d] that are held until they are many, then multiplied and added to a total [d, d]."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self._most = max(LEAST_HELD_ROWS, piece_numbers(device) // max(1, dim))
        self._rows = torch.empty(0, dim, dtype=torch.float64, device=device)
        self._count = 0

    def room(self, count: int, total: Tensor) -> Tensor:
        """Where to write the next rows [count, d], before `room` or `multiply` is called again."""
        if self._count + count > len(self._rows):
            self.multiply(total)
            if count > len(self._rows):
                self._rows = buffer(total, max(count, self._most), total.shape[1])
        self._count += count
        return self._rows[self._count - count : self._count]

    def multiply(self, total: Tensor) -> None:
        """Add the rows to the total."""
        if self._count:
            add_products(total, self._rows[: self._count])
            self._count = 0


def buffer(like: Tensor, *shape: int) -> Tensor:
    """Memory of the type and on the device of `like`, to write to in any mode of torch."""
    with torch.inference_mode(False):
        return like.new_empty(shape)


def partial_sums(dim: int, device: torch.device) -> int:
    """The number of partial sums of a scatter [dim, dim]."""
    return PARTIAL_SUMS if device.type == "cpu" and dim**2 <= PARTIAL_NUMBERS else 1


def held_rows(dim: int) -> int:
    """The number of rows [d] whose means and products are computed together."""
    return max(LEAST_HELD_ROWS, HELD_NUMBERS // max(1, dim))


def piece_numbers(device: torch.device) -> int:
    """The most numbers in one piece."""
    return CPU_NUMBERS if device.type == "cpu" else GPU_NUMBERS


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
    most = max(1, piece_numbers(device) // max(1, numbers))
    pieces = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    return map_parallel(work, pieces) if device.type == "cpu" else [work(piece) for piece in pieces]


def map_parallel(work: Callable[[T], R], portions: Iterable[T]) -> list[R]:
    """The results of `work` for each portion, in order, from as many threads as torch uses here.

    Raises the first error that `work` raises.
    """
    portions = list(portions)
    threads = getattr(_CALLER, "portion_threads", None) or torch.get_num_threads()
    if threads == 1 or len(portions) == 1:
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
    with _one_thread_if(rows * dim <= SMALL_NUMBERS and dim <= SMALL_DIM):
        yield


@contextmanager
def parallel_in_portions_alone(dim: int, device: torch.device) -> Iterator[None]:
    """Let torch use one thread for all that `map_parallel` does not divide.

    After a step by several threads, torch's other threads occupy their cores for a while, which the
    threads of `map_parallel` then lack. Applies where a scatter [dim, dim] is a sum of several.
    Another thread that calls torch for the first time meanwhile has one thread from then on.
    """
    before = getattr(_CALLER, "portion_threads", None)
    threads = before or torch.get_num_threads()
    with _one_thread_if(partial_sums(dim, device) > 1):
        _CALLER.portion_threads = threads
        try:
            yield
        finally:
            _CALLER.portion_threads = before


@contextmanager
def _one_thread_if(condition: bool) -> Iterator[None]:
    threads = torch.get_num_threads()
    is_main = threading.current_thread() is threading.main_thread()  # others would undo each other
    if is_main and condition:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_main:
            torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that exist until the process ends.

    torch.set_num_threads affects the calling thread and threads created later, so the calling
    thread sets its number again after all threads of the pool have started.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "lidar-portions", _use_one_thread)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # not on every system
    # A forked process has none of the threads of its parent; with this pool it would wait forever.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread applies the number set last in any thread
