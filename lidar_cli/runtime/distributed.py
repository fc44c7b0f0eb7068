"""The rank of this process in a torchrun job, and the part of the work of each rank.

Only the command line reads the environment variables: in a training script that calls functions of
this package, RANK describes the processes of the script, which do not share this work.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from lidar_cli.errors import SettingsError
from lidar_cli.settings import DeviceSettings

D = TypeVar("D", bound=DeviceSettings)


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process among `ranks`; by default a single process.

    local: rank on this host, None without torchrun. restarted: whether torchrun restarted the job
    after a failure.
    """

    rank: int = 0
    ranks: int = 1
    local: int | None = None
    restarted: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which shows progress and remarks."""
        return self.rank == 0

    def with_device(self, settings: D) -> D:
        """The settings with the device of this rank."""
        return replace(settings, device=self.device(settings.device))

    def device(self, requested: str) -> str:
        """The device of this rank: for auto and cuda, the CUDA device of the local rank."""
        if self.local is None or requested not in ("auto", "cuda"):
            return requested
        import torch

        count = torch.cuda.device_count()  # 1 if each process sees only its own device
        return f"cuda:{self.local % count}" if count else requested


def read_rank_info(environment: Mapping[str, str] | None = None) -> RankInfo:
    """The rank given by RANK, WORLD_SIZE and LOCAL_RANK; a single process unless all are set.

    Raises SettingsError if they are not numbers or contradict each other.
    """
    environment = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in environment for name in names):
        return RankInfo()
    try:
        rank, ranks, local = (int(environment[name]) for name in names)
        restarted = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    except ValueError:
        rank, ranks, local, restarted = -1, 0, -1, False
    if not 0 <= rank < ranks or local < 0:
        values = ", ".join(f"{name}={environment[name]}" for name in names)
        raise SettingsError(
            f"the environment holds {values}; expected numbers as torchrun gives them: unset these "
            "to work alone"
        )
    return RankInfo(rank, ranks, local, restarted)


def partition(total: int, heavy: int, weight: int, parts: int, step: int = 1) -> list[range]:
    """Contiguous ranges of 0 .. total - 1, one per part, of about equal work.

    The first `heavy` items cost `weight` each, the others 1. Every range begins at a multiple of
    `step`; with more parts than steps, some ranges are empty.
    """

    def work(stop: int) -> int:
        return min(stop, heavy) * weight + max(0, stop - heavy)

    ends = [*range(0, total, step), total]
    cuts = [ends[bisect_left(ends, work(total) * part / parts, key=work)] for part in range(parts)]
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], total], strict=True)]
