"""Processes that score one file together: each reads a part, and all return the same scores.

They exchange moments, in O(d^2) memory, after each has read its part, and n numbers a metric after
a second pass. Between two exchanges each process works inside `raise_on_any_rank`: an error in one
is raised in all, so that no process waits for one that has failed. If a process fails during an
exchange, the others can no longer match their messages, and ProcessGroupBroken is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from lidar_cli.errors import InputError, LidarError, ProcessGroupBroken, first_line
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.runtime.device import RankInfo, partition
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.streaming import LayerMoments, NonFinite, enough_memory, read_span
from lidar_cli.settings import MetricSettings

T = TypeVar("T")
# Errors that the input or the machine can cause in one process and not in the others.
ERRORS = (LidarError, OSError, RuntimeError, MemoryError)
TIMEOUT = timedelta(days=1)  # a process may read slowly; torchrun ends all if one dies


class ProcessGroup:
    """The processes that torchrun started, connected by its environment variables.

    Raises InputError if they cannot connect.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        self._rank_info = rank_info
        try:
            torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
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
        """Yields the part of each process in order of rank; every process must consume all of them.

        Raises ProcessGroupBroken if a process has ended, or this one cannot receive.
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

    def reduce(self, part: T, start: T, add: Callable[[T, T], T]) -> T:
        """The sum of the parts of all processes and `start`, added in order of rank.

        An error of `add` is raised after the last part was received, and in every process.
        """
        with self.raise_on_any_rank():
            total, error = start, None
            for received in self.gather(part):
                try:
                    total = total if error else add(total, received)
                except ERRORS as raised:
                    error = raised
            if error is not None:
                raise error
        return total

    @contextmanager
    def raise_on_any_rank(self) -> Iterator[None]:
        """Raises InputError if the `with` block raised one of ERRORS in another process."""
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
        """Disconnect from the other processes."""
        torch.distributed.destroy_process_group()


def read_moments_on_all_ranks(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: Collection[str],
    progress: Progress,
    process_group: ProcessGroup,
) -> LayerMoments:
    """The result of `read_moments`, to rounding; each process reads a part of the samples.

    Raises InputError as `read_moments` and `ProcessGroup.raise_on_any_rank`.
    """

    def empty(on: torch.device) -> LayerMoments:
        return LayerMoments(embeddings, settings, on, wanted)

    def add(total: LayerMoments, part: LayerMoments) -> LayerMoments:
        with enough_memory(embeddings):
            return total.merge(part)

    with process_group.raise_on_any_rank(), enough_memory(embeddings):
        part = empty(device)
        bad = read_span(part, embeddings, settings, progress, process_group.span(embeddings))
        # Exchanged on the CPU, since another process may have no device of this number, or another
        # device by it.
        part = add(empty(torch.device("cpu")), part)
        start = empty(device)
    process_group.reduce(bad, NonFinite(embeddings), NonFinite.merge).refuse()
    return process_group.reduce(part, start, add)
