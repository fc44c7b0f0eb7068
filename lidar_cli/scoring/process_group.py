"""Processes that score one file together: each reads its samples, all come to the same result.

They exchange moments, in O(d^2) memory, when each has read its part, and n numbers a metric after a
second pass. An error in one of them is raised in all, so that none waits for another that gave up:
between two exchanges each works inside `raise_on_any_rank`. One that fails during an exchange is
out of step, and the group breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from lidar_cli.errors import InputError, LidarError, ProcessGroupBroken, first_line
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.runtime.distributed import RankInfo, partition
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.streaming import Gathered, NonFinite, enough_memory, read_span
from lidar_cli.settings import MetricSettings

T = TypeVar("T")
# What the user or the machine may cause in one process alone.
ERRORS = (LidarError, OSError, RuntimeError, MemoryError)
PATIENCE = timedelta(days=1)  # with one that reads slowly; the engine ends all if one dies


class ProcessGroup:
    """The processes that torchrun started, connected by its environment variables.

    Raises InputError if they do not reach each other.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        self._rank_info = rank_info
        try:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{rank_info.ranks} processes, as WORLD_SIZE says, do not reach each other: "
                f"{first_line(error)}; start them with torchrun, or unset it to work alone"
            ) from error

    def span(self, embeddings: Embeddings) -> range:
        """The samples that this process reads."""
        n, q, _ = embeddings.shape
        total = len(embeddings.span)
        heavy = n if embeddings.views is not None else 0
        return partition(total, heavy, q + 1, self._rank_info.ranks)[self._rank_info.rank]

    def gather(self, part: T) -> Iterator[T]:
        """The part of each process, in order of rank, one at a time; every process must take all.

        Raises ProcessGroupBroken if one of them is gone, or this one cannot receive.
        """
        for rank in range(self._rank_info.ranks):
            box = [part if rank == self._rank_info.rank else None]
            try:
                torch.distributed.broadcast_object_list(box, src=rank)
            except (RuntimeError, MemoryError) as error:
                raise ProcessGroupBroken(
                    f"process {self._rank_info.rank} of {self._rank_info.ranks} is out of step "
                    f"with the others: {first_line(error)}; run again, with fewer processes a "
                    "host where memory lacks"
                ) from error
            assert box[0] is not None
            yield box[0]

    def reduce(self, own_part: T, start: T, add: Callable[[T, T], T]) -> T:
        """The parts of all processes, added to a start in order of rank, one at a time.

        An error of `add` is raised after the last part, and as in `raise_on_any_rank`.
        """
        with self.raise_on_any_rank():
            whole, error = start, None
            for part in self.gather(own_part):
                try:
                    whole = whole if error else add(whole, part)
                except ERRORS as raised:
                    error = raised
            if error is not None:
                raise error
        return whole

    @contextmanager
    def raise_on_any_rank(self) -> Iterator[None]:
        """Raises InputError here too if the block raised an error of ERRORS in another process."""
        error: Exception | None = None
        try:
            yield
        except ProcessGroupBroken:
            raise
        except ERRORS as raised:
            error = raised
        messages = list(self.gather(first_line(error) if error else ""))
        if error is not None:
            raise error
        for text in filter(None, messages):
            raise InputError(text)

    def close(self) -> None:
        """Leave the others."""
        torch.distributed.destroy_process_group()


def gather_on_all_ranks(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: Collection[str],
    progress: Progress,
    process_group: ProcessGroup,
) -> Gathered:
    """The moments that `gather` returns, to rounding, each process having read a part.

    Raises InputError as `gather` and `ProcessGroup.raise_on_any_rank`.
    """

    def empty(on: torch.device) -> Gathered:
        return Gathered(embeddings, settings, on, wanted)

    def add(whole: Gathered, part: Gathered) -> Gathered:
        with enough_memory(embeddings):
            return whole.merge(part)

    with process_group.raise_on_any_rank(), enough_memory(embeddings):
        part = empty(device)
        bad = read_span(part, embeddings, settings, progress, process_group.span(embeddings))
        # Through main memory: another process may have another device, or another one by that
        # number.
        part = add(empty(torch.device("cpu")), part)
        whole = empty(device)
    process_group.reduce(bad, NonFinite(embeddings), NonFinite.merge).refuse()
    return process_group.reduce(part, whole, add)
