"""Portions of work on a CPU over threads of ours, in each of which torch keeps to one.

torch's own threads meet after every operation, and all of them wait for one whose core is taken by
other work, such as the model beside: where cores are taken that was six times the work itself. Ours
meet once, at the end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def spread(work: Callable[[T], None], portions: Iterable[T]) -> None:
    """Do the work on each portion, over as many threads as torch has for the calling one.

    Raises what the work raises.
    """
    inference = torch.is_inference_mode_enabled()

    def done(portion: T) -> None:
        with torch.inference_mode(inference):  # a mode belongs to a thread
            work(portion)

    for _ in _pool(torch.get_num_threads()).map(done, portions):
        pass


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the life of the process.

    What one thread tells torch holds for that thread, and for those that have yet to ask. So torch
    is told again once all of ours have begun.
    """
    pool = ThreadPoolExecutor(threads, "lidar-views", _keep_to_one)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool


def _keep_to_one() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first to ask in a thread gets what was told last in any
