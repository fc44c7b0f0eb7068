"""The device to compute on, and the cores and memory that are available."""

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


def cpu_count() -> int:
    """Cores that this process may use, which a batch system may limit."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MEMORY_SHARE = 0.25  # largest fraction of the free memory for one buffer
CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes of main memory that can be allocated without swapping.

    The minimum of the machine's available memory and of what remains in this process's control
    group. Pages that only cache files count as free.
    """
    import psutil

    free: int = psutil.virtual_memory().available
    match = re.search(r"^0::/(.*)$", _read(Path("/proc/self/cgroup")), re.MULTILINE)
    for group in {CGROUPS / (match[1] if match else ""), CGROUPS}:
        free = min(free, _free_in_cgroup(group, free))
    return max(0, free)


def check_free_memory(option: str, size: int) -> None:
    """Raise SettingsError if an option asks for more memory than is free."""
    free = free_memory()
    if size > free:
        raise SettingsError(
            f"{option}: asks for {size / 2**30:,.2f} GB of memory, {free / 2**30:,.2f} GB are "
            "free; give less"
        )


def _free_in_cgroup(group: Path, unlimited: int) -> int:
    """Bytes that remain in a control group; `unlimited` if the group has no limit."""
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return unlimited
    cached = re.search(r"^inactive_file (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)


def _read(path: Path) -> str:
    """The text of a file, '' if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
