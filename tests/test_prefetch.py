"""One step ahead, in order, with the source's errors, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from lidar_cli.runtime.prefetch import prefetch


class Source:
    """Counts what was made, and remembers that it was closed and where it ran."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count = count
        self.fail_at = fail_at
        self.made = 0
        self.closed = False
        self.threads: set[str] = set()

    def items(self) -> Iterator[int]:
        try:
            for item in range(self.count):
                self.threads.add(threading.current_thread().name)
                if item == self.fail_at:
                    raise ValueError(f"item {item} is bad")
                self.made += 1
                yield item
        finally:
            self.closed = True


def threads_left() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("lidar-prefetch")]


def wait_for(source: Source, made: int) -> None:
    until = time.monotonic() + 5
    while source.made < made and time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_items_in_order(count: int) -> None:
    source = Source(count)
    with prefetch(source.items()) as items:
        assert list(items) == list(range(count))
    assert source.closed
    assert threads_left() == []
    assert source.threads <= {"lidar-prefetch_0"}


def test_the_next_item_is_made_while_the_last_is_used() -> None:
    source = Source(20)
    with prefetch(source.items()) as items:
        assert next(items) == 0
        wait_for(source, 3)
        time.sleep(0.05)
        # In use, ready, and in the hand of the thread: no more are ever held.
        assert source.made == 3


def test_an_error_arrives_after_the_items_before_it() -> None:
    source = Source(5, fail_at=3)
    with prefetch(source.items()) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="item 3 is bad"):
            next(items)
    assert source.closed
    assert threads_left() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_leaving_early_stops_the_thread_and_closes_the_source(
    error: type[BaseException],
) -> None:
    source = Source(10**6)

    def leave() -> None:
        with prefetch(source.items()) as items:
            next(items)
            raise error

    with pytest.raises(error):
        leave()
    assert source.closed
    assert source.made < 10
    assert threads_left() == []


def test_leaving_without_taking_anything() -> None:
    source = Source(10**6)
    with prefetch(source.items()):
        pass
    assert source.closed
    assert threads_left() == []


def test_any_iterator_will_do() -> None:
    with prefetch(iter([3, 1, 2])) as items:
        assert list(items) == [3, 1, 2]
