"""Run an iterator one step ahead of its consumer, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(source: Generator[T, None, None] | Iterator[T]) -> Iterator[Iterator[T]]:
    """The items of `source`, the next one being made while the consumer works on the last.

    An exception in `source` is raised at the consumer. Leaving the block, also by an exception or
    an interrupt, stops the thread after the item in hand and closes `source`.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in source:
                put((item, None))
                if stop.is_set():
                    break
            else:
                put((None, StopIteration()))
        except BaseException as error:
            put((None, error))
        finally:
            if isinstance(source, Generator):
                source.close()

    def consume() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
            del item  # before the next is waited for: the consumer alone decides how long it lives

    thread = threading.Thread(target=produce, name="lidar-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
