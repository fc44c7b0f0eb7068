"""An iterator that runs in a background thread, ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(source: Generator[T, None, None] | Iterator[T]) -> Iterator[Iterator[T]]:
    """The items of `source`; the next one is computed while the consumer uses the last.

    An exception in `source` is raised at the consumer. Leaving the block, also by an exception or
    an interrupt, stops the thread after its current item and closes `source`.
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
            del item  # before waiting for the next: only the consumer's reference keeps it alive

    thread = threading.Thread(target=produce, name="lidar-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
