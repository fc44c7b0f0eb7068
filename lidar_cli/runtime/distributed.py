"""Which of several equal processes this one is, as torchrun tells each that it starts.

The command line alone asks: the environment of a training script that calls our functions says
which of *its* processes calls them, and these do not share the work.
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
    """A process among `ranks` equal ones; by default one alone.

    local: its number on its host, None where no engine started it. restarted: whether the engine
    starts it again after one of them failed.
    """

    rank: int = 0
    ranks: int = 1
    local: int | None = None
    restarted: bool = False

    @property
    def is_main(self) -> bool:
        """Whether it shows progress and remarks; one of them does."""
        return self.rank == 0

    def with_device(self, settings: D) -> D:
        """The settings with the device to use."""
        return replace(settings, device=self.device(settings.device))

    def device(self, asked: str) -> str:
        """The device to use where `asked` is: for auto and cuda, that of the number on the host."""
        if self.local is None or asked not in ("auto", "cuda"):
            return asked
        import torch

        count = torch.cuda.device_count()  # one, where each process is shown its own alone
        return f"cuda:{self.local % count}" if count else asked


def read_rank_info(environment: Mapping[str, str] | None = None) -> RankInfo:
    """The place that RANK, WORLD_SIZE and LOCAL_RANK tell; alone unless all three are there.

    Raises SettingsError if they are no numbers, or no such rank can be.
    """
    told = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in told for name in names):
        return RankInfo()
    try:
        rank, ranks, local = (int(told[name]) for name in names)
        restarted = int(told.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    except ValueError:
        rank, ranks, local, restarted = -1, 0, -1, False
    if not 0 <= rank < ranks or local < 0:
        found = ", ".join(f"{name}={told[name]}" for name in names)
        raise SettingsError(
            f"the environment holds {found}; expected numbers as torchrun gives them: unset these "
            "to work alone"
        )
    return RankInfo(rank, ranks, local, restarted)


def partition(total: int, heavy: int, weight: int, parts: int, step: int = 1) -> list[range]:
    """Contiguous ranges of 0 .. total - 1, one a part, each of about the same work.

    The first `heavy` count `weight` each, the others one. Every range begins at a multiple of
    `step`; where there are more parts than steps, some are empty.
    """

    def work(stop: int) -> int:
        return min(stop, heavy) * weight + max(0, stop - heavy)

    ends = [*range(0, total, step), total]
    cuts = [ends[bisect_left(ends, work(total) * part / parts, key=work)] for part in range(parts)]
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], total], strict=True)]
