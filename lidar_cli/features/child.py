"""Work on an HDF5 file in a child process, which can be limited, and lost.

HDF5 walks trees and lists whose addresses the file itself gives, and takes as much memory as the
file says. Where these are damaged it may go round in circles, swell or crash, inside a call that
nothing in Python interrupts.
"""

from __future__ import annotations

import faulthandler
import math
import mmap
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from lidar_cli.errors import FeatureFileError, InputError, first_line
from lidar_cli.runtime.processes import end_with_parent

SECONDS = 20  # of processor time for one file, where a sound one takes less than one
BYTES_A_SECOND = 2**18  # of rows, for which chunks of far more bytes may have to be unpacked
CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")  # not all on every system
ROOM = 2**30  # bytes beyond our own; a chunk is packed, unpacked and reordered in less


def in_child(work: Callable[[int], None]) -> tuple[bytes, int]:
    """What a child process wrote to the descriptor it was given, and the signal that ended it or 0.

    An exception ends it too; nothing of it is told. Raises InputError if no child can be started.
    """
    # Ctrl-C must not find the child on its parent's way, whose work it would then wind up.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        parent = os.getpid()
        child, source, sink = _fork()
        if child == 0:
            try:
                end_with_parent(parent)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                faulthandler.disable()  # of a crash the parent tells, and of warnings
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                work(sink)
            finally:
                os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(sink)
    status = None
    try:
        with os.fdopen(source, "rb") as pipe:
            told = pipe.read()
        status = _status(child)
    finally:
        if status is None:  # interrupted
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _status(child)
    return told, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _fork() -> tuple[int, int, int]:
    """Number of the child, 0 in it, and the ends of a pipe to read and to write."""
    ends: tuple[int, ...] = ()
    try:
        ends = os.pipe()
        with warnings.catch_warnings():
            # From 3.12 on of threads that hold a lock; h5py's is taken over by the child, and no
            # other is asked for there.
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork(), *ends
    except OSError as error:
        for end in ends:
            os.close(end)
        raise InputError(
            f"no process can be started to read a file in: {error.strerror}; end others"
        ) from error


def _status(child: int) -> int:
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:  # where SIGCHLD is ignored nobody is told
        return 0


def limit(seconds: int, room: int) -> None:
    """Limit what this process may take from now on, within what the system allows it.

    seconds: of processor time; room: bytes of memory, which Linux alone limits.
    """
    import resource  # of systems that fork

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {resource.RLIMIT_CPU: int(used) + seconds}
    status = Path("/proc/self/status")
    taken = status.read_text().partition("VmData:")[2].split() if status.exists() else []
    if taken:  # which not every kernel tells
        limits[resource.RLIMIT_DATA] = int(taken[0]) * 1024 + room
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        within = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (within, hard))


def fault(path: Path, by: int, seconds: int) -> str:
    """What HDF5 did to a child that had so many seconds, by the signal that ended it.

    Raises InputError where that says nothing of the file: 0, and signals that others send.
    """
    name = signal.Signals(by).name if by else "nothing"
    if name == "SIGXCPU":
        return f"HDF5 comes to no end with it within {seconds} s"
    if name in CRASHES:
        return f"HDF5 crashes on it ({name})"
    told = f"was ended by {name}, perhaps for its memory or its time" if by else "failed"
    raise InputError(f"{path}: what was to read it first {told}; run it again, with more of both")


def handed_over(
    path: Path, name: str, read: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Numbers of a known shape and type that `read` returns in a child process, and there alone.

    name: of the array, for FeatureFileError, which is raised where `read` raises anything or the
    child does not end by itself. Without `fork` they are read here.
    """
    if not hasattr(os, "fork"):
        try:
            return read()
        except Exception as error:
            raise _unread(path, name, first_line(error)) from error
    size = math.prod(shape) * dtype.itemsize
    numbers: np.ndarray = np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)  # shared

    seconds = SECONDS + size // BYTES_A_SECOND

    def fill(sink: int) -> None:
        try:
            limit(seconds, ROOM + 2 * size)
            numbers[...] = read().reshape(shape)
            os.write(sink, b".")
        except Exception as error:
            os.write(sink, first_line(error).encode(errors="replace")[:4096])

    told, by = in_child(fill)
    if told == b".":
        return numbers
    raise _unread(path, name, told.decode(errors="replace") or fault(path, by, seconds))


def _unread(path: Path, name: str, why: str) -> FeatureFileError:
    return FeatureFileError(f"{path}: {name} cannot be read: {why}; extract it again")
