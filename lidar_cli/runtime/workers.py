"""Many small trainings side by side: a process a core, one thread each.

Small networks use the cores best so, and their weights do not depend on how many cores there are.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from lidar_cli.errors import InputError
from lidar_cli.runtime.atomic import write_atomic
from lidar_cli.runtime.device import cores
from lidar_cli.runtime.processes import end_with_parent
from lidar_cli.runtime.progress import Progress


def side_by_side(
    work: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    name: str,
    progress: Progress,
    done: int = 0,
) -> None:
    """work(*task) for every task, in any order.

    work: a function of a module, which another process can find. name: of what is counted. done:
    tasks of an earlier run, which count as well.
    Raises what the work raises, and InputError if a process was killed.
    """
    total = done + len(tasks)
    progress.update(name, done, total)
    if not tasks:
        return
    workers = max(1, min(cores(), len(tasks)))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(),))
    try:
        for future in as_completed([pool.submit(work, *task) for task in tasks]):
            future.result()
            done += 1
            progress.update(name, done, total)
    except BrokenProcessPool as error:
        raise InputError(
            "a training process was killed, perhaps for want of memory; "
            "run again, finished checkpoints are kept"
        ) from error
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a checkpoint as a whole or not at all. Raises InputError if it cannot be written."""
    content = io.BytesIO()  # to a disk that is full torch would give an error of its own inside
    torch.save(checkpoint, content)
    write_whole(content.getbuffer(), path)


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write a file as a whole or not at all. Raises InputError if the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _begin(parent: int) -> None:
    end_with_parent(parent)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt for all
