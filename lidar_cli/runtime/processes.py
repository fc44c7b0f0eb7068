"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
LOOK = 1.0  # seconds between two looks at the parent, where the system does not watch it


def end_with_parent(parent: int) -> None:
    """Have this process killed once its parent is gone, whatever ended that.

    parent: its number, taken in the parent. On Linux the system watches the thread that started
    this process; elsewhere a thread looks who the parent is.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    elif hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(parent,), name="lidar-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
