"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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


ENDED = ("Z", "X")  # states of what stays of a process until its parent has asked for its end


def card() -> dict[str, Any]:
    """What tells this process from every other, also of another host or another time."""
    number, began = os.getpid(), None
    with suppress(OSError):  # a /proc of other process numbers than ours speaks of others
        if Path("/proc/self").readlink() == Path(str(number)):
            _, began = _told(number)
    return {"host": _host(), "process": number, "began": began}


def gone(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the process of a card is known to have ended: one of this host, as `own` has it."""
    number = other.get("process")
    if os.name != "posix" or other.get("host") != own["host"]:
        return False
    if not isinstance(number, int) or number <= 0:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it runs, for another user; or who knows
    if own["began"] is None:
        return False
    state, began = _told(number)
    # Another's begin: the number was free, and was given again, as in containers it soon is.
    given_again = None not in (began, other.get("began")) and began != other["began"]
    return state in ENDED or given_again


def _host() -> str:
    """This host and boot, and the spaces of process numbers and times that containers have."""
    found = [socket.gethostname()]
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        for space in ("pid", "time"):
            found.append(str(Path(f"/proc/self/ns/{space}").readlink()))
    return " ".join(found)


def _told(number: int) -> tuple[str | None, int | None]:
    """State of a process, and when it began, in clock ticks: fields 3 and 22 of its /proc stat.

    None where the system does not tell.
    """
    try:
        text = Path(f"/proc/{number}/stat").read_bytes()
        fields = text.rpartition(b")")[2].split()  # field 2, its name, may hold spaces and brackets
        return fields[0].decode("ascii"), int(fields[19])
    except (OSError, ValueError, LookupError):
        return None, None
