"""Processes that score one file together: each reads its samples, all come to the same result.

They meet when each has read its part, and again after a second pass, to exchange what O(d^2) memory
holds and n numbers a metric. What is wrong for one of them is wrong for all, so that none waits for
another that gave up: between two meetings each works inside `alike`. One that fails while they meet
is out of step, and all part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from lidar_cli.errors import InputError, LidarError, ProcessGroupBroken, first_line
from lidar_cli.features.blocks import Embeddings
from lidar_cli.runtime.distributed import RankInfo, partition
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.streaming import Gathered, NonFinite, enough_memory, read_span
from lidar_cli.settings import MetricSettings

T = TypeVar("T")
# What its user or its machine may cause in one process alone.
ERRORS = (LidarError, OSError, RuntimeError, MemoryError)
PATIENCE = timedelta(days=1)  # with one that reads slowly; the engine ends all if one dies


class ProcessGroup:
    """The processes of an engine, that reach each other as it told them.

    Raises InputError if they do not.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        self._rank_info = rank_info
        try:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{rank_info.ranks} processes, as WORLD_SIZE tells, do not reach each other: "
                f"{first_line(error)}; start them with torchrun, or unset it to work alone"
            ) from error

    def span(self, embeddings: Embeddings) -> range:
        """The samples that this process reads."""
        n, q, _ = embeddings.shape
        total = len(embeddings.span)
        heavy = n if embeddings.views is not None else 0
        return partition(total, heavy, q + 1, self._rank_info.ranks)[self._rank_info.rank]

    def gather(self, own: T) -> Iterator[T]:
        """What each process has, in order of rank, one at a time; all must take all.

        Raises ProcessGroupBroken if one of them is gone, or this one cannot receive.
        """
        for rank in range(self._rank_info.ranks):
            box = [own if rank == self._rank_info.rank else None]
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

    def reduce(self, own: T, start: T, add: Callable[[T, T], T]) -> T:
        """What each process has, added to a start in order of rank, one at a time.

        Raises what `add` raises, after the last of them and in all, as `alike`.
        """
        with self.raise_on_any_rank():
            whole, error = start, None
            for part in self.gather(own):
                try:
                    whole = whole if error else add(whole, part)
                except ERRORS as raised:
                    error = raised
            if error is not None:
                raise error
        return whole

    @contextmanager
    def raise_on_any_rank(self) -> Iterator[None]:
        """Raises InputError here as well if the block raised an error of its user's elsewhere."""
        error: Exception | None = None
        try:
            yield
        except ProcessGroupBroken:
            raise
        except ERRORS as raised:
            error = raised
        told = list(self.gather(first_line(error) if error else ""))
        if error is not None:
            raise error
        for text in filter(None, told):
            raise InputError(text)

    def close(self) -> None:
        """Leave the others."""
        torch.distributed.destroy_process_group()


@contextmanager
def open_process_group(rank_info: RankInfo) -> Iterator[ProcessGroup | None]:
    """The process_group of a rank_info, None for one alone."""
    if rank_info.ranks == 1:
        yield None
        return
    process_group = ProcessGroup(rank_info)
    try:
        yield process_group
    finally:
        process_group.close()


def gather_on_all_ranks(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: Collection[str],
    progress: Progress,
    process_group: ProcessGroup,
) -> Gathered:
    """What `gather` gives to rounding, each process having read a part. Raises what it raises."""

    def empty(on: torch.device) -> Gathered:
        return Gathered(embeddings, settings, on, wanted)

    def add(whole: Gathered, part: Gathered) -> Gathered:
        with enough_memory(embeddings):
            return whole.merge(part)

    with process_group.raise_on_any_rank(), enough_memory(embeddings):
        own = empty(device)
        bad = read_span(own, embeddings, settings, progress, process_group.span(embeddings))
        # Through main memory: another process may have another device, or call its own by that
        # number.
        own = add(empty(torch.device("cpu")), own)
        whole = empty(device)
    process_group.reduce(bad, NonFinite(embeddings), NonFinite.merge).refuse()
    return process_group.reduce(own, whole, add)
