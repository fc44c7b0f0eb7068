"""The device that a job runs on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from lidar_cli.errors import SettingsError


def find_device(name: str) -> torch.device:
    """The named device; `auto` is the first CUDA device, or the CPU where there is none.

    Raises SettingsError if it is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not a device that is supported here")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"--device {name}: {reason}; expected auto, cpu, cuda or cuda:N"
        ) from error
    return device


def cores() -> int:
    """Processor cores that this process may use: a batch system may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


SHARE = 0.25  # of what is free, that one use of memory may take
UNKNOWN = 4 * 2**30  # bytes taken for free where the system does not say
_GROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping.

    What the machine has available, or what the control group of a container or a batch job leaves,
    whichever is less. Pages that only cache files count as free.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    free = int(found[1]) * 1024 if found else UNKNOWN
    own = re.search(r"^0::/(.*)$", _text(Path("/proc/self/cgroup")), re.MULTILINE)
    for group in {_GROUPS / (own[1] if own else ""), _GROUPS}:
        free = min(free, _left_in(group, free))
    return max(0, free)


def check_free(option: str, size: int) -> None:
    """Raise SettingsError if an option asks for more memory than is free."""
    free = free_memory()
    if size > free:
        raise SettingsError(
            f"{option}: asks for {size / 2**30:,.2f} GB of memory, {free / 2**30:,.2f} GB are "
            "free; give less"
        )


def _left_in(group: Path, unlimited: int) -> int:
    most, taken = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if not (most.isdecimal() and taken.isdecimal()):
        return unlimited
    cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return int(most) - int(taken) + (int(cached[1]) if cached else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
