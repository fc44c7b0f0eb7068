"""Processes that score one file together: each reads its samples, all come to the same result.

They meet when each has read its part, and again after a second pass, to exchange what O(d^2) memory
holds and n numbers a metric. What is wrong for one of them is wrong for all, so that none waits for
another that gave up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from lidar_cli.embeddings import Embeddings
from lidar_cli.errors import InputError, LidarError, first_line
from lidar_cli.jobs.place import Place, shares
from lidar_cli.jobs.scoring.gather import Gathered, NonFinite, read_span
from lidar_cli.jobs.watch import Watcher
from lidar_cli.settings import MetricSettings

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # with one that reads slowly; the engine ends all if one dies


class Fellows:
    """The processes of an engine, that reach each other as it told them.

    Raises InputError if they do not.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        try:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{place.ranks} processes, as WORLD_SIZE tells, do not reach each other: "
                f"{first_line(error)}; start them with torchrun, or unset it to work alone"
            ) from error

    def span(self, embeddings: Embeddings) -> range:
        """The samples that this process reads."""
        n, q, _ = embeddings.shape
        total = len(embeddings.span)
        heavy = n if embeddings.views is not None else 0
        return shares(total, heavy, q + 1, self._place.ranks)[self._place.rank]

    def each(self, own: T) -> Iterator[T]:
        """What each process has, in order of rank, one at a time; all must take all."""
        for rank in range(self._place.ranks):
            box = [own if rank == self._place.rank else None]
            torch.distributed.broadcast_object_list(box, src=rank)
            assert box[0] is not None
            yield box[0]

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Raises InputError here as well if the block raised an error of its user's elsewhere."""
        error: Exception | None = None
        try:
            yield
        except (LidarError, OSError, RuntimeError, MemoryError) as raised:
            error = raised
        told = list(self.each(first_line(error) if error else ""))
        if error is not None:
            raise error
        for text in filter(None, told):
            raise InputError(text)

    def close(self) -> None:
        """Leave the others."""
        torch.distributed.destroy_process_group()


@contextmanager
def meeting(place: Place) -> Iterator[Fellows | None]:
    """The fellows of a place, None for one alone."""
    if place.ranks == 1:
        yield None
        return
    fellows = Fellows(place)
    try:
        yield fellows
    finally:
        fellows.close()


def gather_together(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: Collection[str],
    watcher: Watcher,
    fellows: Fellows,
) -> Gathered:
    """What `gather` gives to rounding, each process having read a part. Raises what it raises."""

    def empty(on: torch.device) -> Gathered:
        return Gathered(embeddings, settings, on, wanted)

    own = empty(device)
    with fellows.alike():
        bad = read_span(own, embeddings, settings, watcher, fellows.span(embeddings))
    every = NonFinite(embeddings)
    for other in fellows.each(bad):
        every = every.merge(other)
    every.refuse()
    # Through main memory: another process may have another device, or call its own by that number.
    whole = empty(device)
    for part in fellows.each(empty(torch.device("cpu")).merge(own)):
        whole = whole.merge(part)
    return whole
