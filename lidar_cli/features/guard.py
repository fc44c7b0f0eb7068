"""What is read of an HDF5 file beside its rows, read in a child process first.

HDF5 walks trees and lists whose addresses the file itself gives. Where these are damaged it may go
round in circles or crash, inside a call that nothing in Python interrupts; a child can be lost.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from lidar_cli.errors import FeatureFileError

P = ParamSpec("P")
Found = TypeVar("Found")
SECONDS = 20  # of processor time, where a sound file takes less than one


def guarded(
    read: Callable[Concatenate[Path, P], Found],
) -> Callable[Concatenate[Path, P], Found]:
    """A reader of a file that runs in a child process first.

    It additionally raises FeatureFileError if that does not end by itself.
    """

    @wraps(read)
    def guarded_read(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> Found:
        if told := fatal(lambda: read(path, *args, **kwargs)):
            raise FeatureFileError(f"{path}: {told}; extract it again")
        return read(path, *args, **kwargs)

    return guarded_read


def fatal(read: Callable[[], object]) -> str | None:
    """What happens to a process that reads a damaged file; None if it returns, or raises.

    On a system without `fork` that is not found out.
    """
    ended = _signal_that_ends(read) if hasattr(os, "fork") else 0
    if not ended:
        return None
    if ended == signal.SIGXCPU:
        return f"damaged: HDF5 comes to no end with it within {SECONDS} s"
    return f"damaged: HDF5 crashes on it ({signal.Signals(ended).name})"


def _signal_that_ends(read: Callable[[], object]) -> int:
    """The signal that ends a child process that reads; 0 if it returns or raises there."""
    import resource  # of systems that fork

    with warnings.catch_warnings():
        # From 3.12 on of threads that hold a lock; h5py's is taken over by the child, and no other
        # is asked for there.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = resource.getrlimit(resource.RLIMIT_CPU)[1]
            limit = SECONDS if most == resource.RLIM_INFINITY else min(SECONDS, most)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, most))
            read()
        finally:
            os._exit(0)
    status = None
    try:
        _, status = os.waitpid(child, 0)
    finally:
        if status is None:  # interrupted
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
