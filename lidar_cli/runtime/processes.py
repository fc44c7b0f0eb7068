"""Runs training in parallel processes, and finds out whether a process of this host has ended."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from lidar_cli.errors import InputError
from lidar_cli.runtime.files import write_atomic
from lidar_cli.runtime.progress import Progress

PR_SET_PDEATHSIG = 1
POLL = 0.2  # seconds between checks for a signal, and of the parent where its end is no signal


def run_parallel(
    work: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    name: str,
    progress: Progress,
    done: int = 0,
    processes: int | None = None,
) -> None:
    """work(*task) for every task, in any order: one process per core, one thread each.

    One thread is fastest for small networks, and makes weights independent of the core count.
    work: a module-level function, so that it can be pickled. name: of the task in `progress`. done:
    tasks that an earlier run completed; the progress includes them. processes: if not one per core.
    Raises what `work` raises, and InputError if a process was killed.
    """
    from lidar_cli.runtime.device import cpu_count

    total = done + len(tasks)
    progress.update(name, done, total)
    if not tasks:
        return
    workers = max(1, min(processes or cpu_count(), len(tasks)))
    with _deferred_signals() as received:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(),))
        pending: set[Future[None]] = set()
        try:
            pending = _submit(pool, work, tasks)
            while pending and not received:
                completed, pending = wait(pending, POLL, FIRST_COMPLETED)
                for future in completed:
                    future.result()
                    done += 1
                    progress.update(name, done, total)
        except BrokenProcessPool as error:
            raise InputError(
                "a training process was killed, perhaps for want of memory; "
                "run again, finished checkpoints are kept"
            ) from error
        finally:
            if pending or received:
                for child in active_children():
                    child.terminate()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Handle SIGINT and SIGTERM after the block; gives the list of those received within it.

    An exception that a handler raises within the executor can leave a lock held, or a process
    that nothing ends. Only the main thread runs handlers.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, _: received.append(number))
        yield received
    finally:
        for deferred, handler in handlers.items():
            signal.signal(deferred, handler)
        for deferred in received:
            signal.raise_signal(deferred)


def _submit(
    pool: ProcessPoolExecutor, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]
) -> set[Future[None]]:
    """Submit the tasks. The processes that this starts inherit that SIGINT is blocked.

    The parent handles an interrupt for all; a process that is still starting would print a
    traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return {pool.submit(work, *task) for task in tasks}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return {pool.submit(work, *task) for task in tasks}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a checkpoint atomically. Raises InputError if it cannot be written."""
    import torch

    content = io.BytesIO()  # torch.save to a full disk would raise an internal error of torch
    torch.save(checkpoint, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getbuffer())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _start_worker(parent: int) -> None:
    import torch

    _end_with_parent(parent)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt for all


def _end_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, even if the parent is killed.

    parent: its process id, read in the parent. On Linux the kernel sends the signal; elsewhere a
    thread polls the parent's id.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)
    elif hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(parent,), name="lidar-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def process_identity() -> dict[str, Any]:
    """Host, process id and start time: unique across hosts, reboots and reused process ids."""
    pid, began = os.getpid(), None
    with suppress(OSError):  # a /proc mounted from another pid namespace describes other processes
        if Path("/proc/self").readlink() == Path(str(pid)):
            _, began = _status(pid)
    return {"host": _host(), "process": pid, "began": began}


def has_ended(other: Mapping[str, Any], this: Mapping[str, Any]) -> bool:
    """Whether the process of an identity has certainly ended; False if that cannot be determined.

    this: the identity of the calling process. Only processes of the same host can be checked.
    """
    pid = other.get("process")
    if os.name != "posix" or other.get("host") != this["host"]:
        return False
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it runs as another user, or the number cannot be a process id
    if this["began"] is None:
        return False
    is_zombie, began = _status(pid)
    # Another start time: the process id was reused, which is frequent in containers.
    is_reused = None not in (began, other.get("began")) and began != other["began"]
    return is_zombie or is_reused


def _host() -> str:
    """Host name, boot id, and the pid and time namespaces of the container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        for namespace in ("pid", "time"):
            parts.append(str(Path(f"/proc/self/ns/{namespace}").readlink()))
    return " ".join(parts)


def _status(pid: int) -> tuple[bool, int | None]:
    """Whether a process is a zombie, and its start time in clock ticks since boot (or None).

    Ticks since boot do not change when the system clock is set, as seconds since the epoch do. The
    boot time is read before and after, since it changes with that clock; psutil before 7.1 adds the
    one that was read last.
    """
    import psutil

    try:
        booted = psutil.boot_time()
        process = psutil.Process(pid)
        began = round((process.create_time() - booted) * os.sysconf("SC_CLK_TCK"))
        is_zombie = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return is_zombie, began if psutil.boot_time() == booted else None
    except (psutil.Error, OSError, ValueError, RuntimeError):  # RuntimeError: no boot time
        return False, None
