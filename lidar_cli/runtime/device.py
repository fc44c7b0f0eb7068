"""What this process computes with: device, cores, free memory, and its rank in a torchrun job.

Only the command line reads the environment variables of torchrun: in a training script that calls
functions of this package, RANK describes the processes of the script, which do not share this work.
"""

from __future__ import annotations

import gc
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lidar_cli.errors import SettingsError, shortened, suggestion
from lidar_cli.settings import DeviceSettings

if TYPE_CHECKING:
    import torch


def check_device_name(name: str) -> None:
    """Raise SettingsError for a name that is no device's, without looking for the device."""
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", name):
        raise SettingsError(
            f"--device {shortened(name)}: expected auto, cpu, cuda or cuda:N"
            f"{suggestion(name, 'auto', 'cpu', 'cuda')}",
            code="no-such-device",
        )


def find_device(name: str) -> torch.device:
    """The named device; `auto` is the first CUDA device, or the CPU where there is none.

    Raises SettingsError if it is unknown or absent.
    """
    import torch

    check_device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(
            f"--device {name}: torch finds no such GPU here; leave --device out, or give "
            "--device cpu",
            code="no-cuda",
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"--device {name}: {reason}; expected auto, cpu, cuda or cuda:N"
        ) from error
    return device


# Compute capabilities of cards that do float64 at half the speed of float32; others take 32 to 64
# times as long. Source: NVIDIA, CUDA C++ Programming Guide, throughput of arithmetic instructions.
FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


def scoring_device(device: torch.device, capability: tuple[int, int] | None = None) -> torch.device:
    """The device of the moments and spectra, which are in float64, of what another one embeds.

    It is the CPU if the other is slow in float64. capability: by default that of the device.
    """
    if device.type != "cuda":
        return device
    import torch

    if torch.version.hip:  # AMD's cards for computing are fast in float64
        return device
    is_fast = (capability or torch.cuda.get_device_capability(device)) in FAST_FLOAT64
    return device if is_fast else torch.device("cpu")


def find_scoring_device(name: str) -> torch.device:
    """As `find_device`, but `auto` is no device that is slow in float64."""
    device = find_device(name)
    return scoring_device(device) if name == "auto" else device


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no garbage in the block, where torch is imported: nothing would be freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cpu_count() -> int:
    """Cores that this process may use, which a batch system may limit."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_multiplies_in(precision: str) -> bool:
    """Whether oneDNN multiplies matrices of this precision on this CPU.

    Where it does not, torch converts every number, which takes longer than float32.
    """
    import torch

    if precision == "float32":
        return True
    short = {"bfloat16": "bf16", "float16": "fp16"}[precision]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported", None)
    return supported is not None and bool(supported())  # None in a torch without oneDNN


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
