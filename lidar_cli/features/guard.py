"""What is read of an HDF5 file that may be damaged, read in a child process.

HDF5 walks trees and lists whose addresses the file itself gives, and takes as much memory as the
file says. Where these are damaged it may go round in circles, swell or crash, inside a call that
nothing in Python interrupts; a child can be limited, and lost.
"""

from __future__ import annotations

import faulthandler
import math
import mmap
import os
import signal
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import numpy as np

from lidar_cli import errors
from lidar_cli.errors import FeatureFileError, LidarError

P = ParamSpec("P")
Found = TypeVar("Found")
SECONDS = 20  # of processor time, where what is read beside the rows takes less than one
BYTES_A_SECOND = 2**22  # of rows, which the slowest filter unpacks faster
ROOM = 2**30  # bytes; a chunk is packed, unpacked and reordered in less
RETURNED, TOLD, RAISED = 0, 1, 2  # how a child ends: well, with an error of ours, with another


def guarded(
    read: Callable[Concatenate[Path, P], Found],
) -> Callable[Concatenate[Path, P], Found]:
    """A reader of a file that runs in a child process first, in which alone it may come to harm.

    It additionally raises FeatureFileError if that child does not end by itself. Without `fork` it
    is the reader alone.
    """

    @wraps(read)
    def guarded_read(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> Found:
        if hasattr(os, "fork"):
            _returns(path, lambda: read(path, *args, **kwargs), SECONDS, ROOM + _on_disk(path))
        return read(path, *args, **kwargs)

    return guarded_read


def handed_over(
    path: Path, read: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """The rows of this shape and type that `read` returns in a child process, and there alone.

    Raises what `read` raises; FeatureFileError if the child does not end by itself.
    """
    size = math.prod(shape) * dtype.itemsize
    if not hasattr(os, "fork"):
        return read()
    rows: np.ndarray = np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)  # shared

    def fill() -> None:
        rows[...] = read().reshape(shape)

    ended = _returns(path, fill, SECONDS + size // BYTES_A_SECOND, ROOM + 2 * size)
    return rows if ended else read()


def _returns(path: Path, work: Callable[[], object], seconds: int, room: int) -> bool:
    """Whether the work returns in a child process, and does not raise what is no error of ours.

    seconds: of processor time; room: bytes beyond those that this process has.
    Raises the LidarError that it raises, FeatureFileError if the child is lost.
    """
    source, sink = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on of threads that hold a lock; h5py's is taken over by the child, and no other
        # is asked for there.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _child(work, sink, seconds, room)
    os.close(sink)
    status = None
    try:
        with os.fdopen(source, encoding="utf-8", errors="surrogateescape", newline="") as pipe:
            name, _, text = pipe.read().partition("\n")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if status is None:  # interrupted
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if status == TOLD:
        raise getattr(errors, name)(text)
    if status < 0:
        raise FeatureFileError(f"{path}: damaged: {_lost(-status, seconds)}; extract it again")
    return status == RETURNED


def _child(work: Callable[[], object], sink: int, seconds: int, room: int) -> NoReturn:
    status = RAISED
    try:
        faulthandler.disable()  # of a crash the parent tells, and of warnings
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _limit(seconds, room)
        work()
        status = RETURNED
    except LidarError as error:
        with os.fdopen(sink, "w", encoding="utf-8", errors="surrogateescape", newline="") as pipe:
            pipe.write(f"{type(error).__name__}\n{error}")
        status = TOLD
    finally:
        os._exit(status)


def _limit(seconds: int, room: int) -> None:
    """Limit this process, by no more than it may take already. Memory is limited on Linux alone."""
    import resource  # of systems that fork

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = {resource.RLIMIT_CPU: seconds}
    status = Path("/proc/self/status")
    if status.exists():
        taken = int(status.read_text().partition("VmData:")[2].split()[0]) * 1024
        limits[resource.RLIMIT_DATA] = taken + room
    for limit, most in limits.items():
        before, hard = resource.getrlimit(limit)
        known = [most, *(one for one in (before, hard) if one != resource.RLIM_INFINITY)]
        resource.setrlimit(limit, (min(known), hard))


def _lost(by: int, seconds: int) -> str:
    if by == signal.SIGXCPU:
        return f"HDF5 comes to no end with it, in {seconds} s or what the system allows"
    if by == signal.SIGKILL:
        return "the system ended what read it (SIGKILL), for its memory or its time"
    return f"HDF5 crashes on it ({signal.Signals(by).name})"


def _on_disk(path: Path) -> int:
    """Bytes that a file takes there, however long it says to be; 0 if it is not there."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
