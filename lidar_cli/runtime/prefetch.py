"""An iterator that runs in a background thread, ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2  # items computed ahead of the consumer: one is ready, one in progress
END: Any = object()


@contextmanager
def prefetch(source: Generator[T, None, None] | Iterator[T]) -> Iterator[Iterator[T]]:
    """The items of `source`; the next one is computed while the consumer uses the last.

    An exception in `source` is raised at the consumer. Leaving the block, also by an exception or
    an interrupt, stops the thread after its current item and closes `source`.
    """
    with ThreadPoolExecutor(1, "lidar-prefetch") as pool:
        items = deque(pool.submit(next, source, END) for _ in range(DEPTH))

        def consume() -> Iterator[T]:
            while (item := items.popleft().result()) is not END:
                items.append(pool.submit(next, source, END))
                yield item
                del item  # so that the consumer alone decides how long it stays in memory

        try:
            yield consume()
        finally:
            for future in items:
                future.cancel()
            if isinstance(source, Generator):
                pool.submit(source.close)
