"""The device that a job runs on."""

from __future__ import annotations

import os

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
