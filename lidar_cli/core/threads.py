"""Portions of work on a CPU over threads of ours, in each of which torch keeps to one.

torch's own threads meet after every operation, and all of them wait for one whose core is taken by
other work, such as the model beside: where cores are taken that was six times the work itself. Ours
meet once, at the end. What one thread computes has the same bits however many others there are.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], portions: Iterable[T]) -> list[R]:
    """What the work gives for each portion, in order, by as many threads as torch has for this one.

    Raises what the work raises.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(portion) for portion in portions]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def done(portion: T) -> R:
        # modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(portion)

    return list(_pool(threads).map(done, portions))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the life of the process.

    What one thread tells torch holds for that thread, and for those that have yet to ask. So torch
    is told again once all of ours have begun.
    """
    pool = ThreadPoolExecutor(threads, "lidar-portions", _keep_to_one)
    begun = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # not on every system
    # A forked process has none of the threads of its parent, and would wait for them.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _keep_to_one() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first to ask in a thread gets what was told last in any
