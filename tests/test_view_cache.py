"""Views kept from one checkpoint to the next: the very same numbers, and nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from command import run_command
from make import environment
from torch import Tensor

from lidar_cli.errors import SettingsError
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache
from lidar_cli.runtime.device import free_memory

CPU = torch.device("cpu")
SHAPE = (4, 3, 8, 8)
BYTES = 4 * 3 * 8 * 8 * 4  # of one sample's images


def images(sample: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(sample))


def fill(store: ViewCache, count: int) -> None:
    for sample in range(count):
        store.add(sample, images(sample))


@pytest.mark.parametrize(
    ("memory", "scratch", "cached"),
    [
        (10 * BYTES, 0, 5),
        (2 * BYTES, 0, 2),
        (2 * BYTES + 1, 10 * BYTES, 5),
        (2 * BYTES - 1, BYTES, 2),
        (0, 10 * BYTES, 5),
        (0, 0, 0),
    ],
)
def test_what_is_kept_comes_back_bit_for_bit(
    tmp_path: Path, memory: int, scratch: int, cached: int
) -> None:
    with ViewCache(CacheLimits(0, memory, scratch), CPU, tmp_path) as store:
        fill(store, 5)
        assert [sample in store for sample in range(6)] == [s < cached for s in range(6)]
        for sample in reversed(range(cached)):
            assert torch.equal(store.images(sample), images(sample))
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - hidden names count too


def test_a_small_sample_may_still_fit(tmp_path: Path) -> None:
    with ViewCache(CacheLimits(0, 2 * BYTES + BYTES // 4, 0), CPU, tmp_path) as store:
        fill(store, 3)
        store.add(7, images(7)[:1])
        assert [sample in store for sample in (0, 1, 2, 7)] == [True, True, False, True]
        assert torch.equal(store.images(7), images(7)[:1])


def test_the_places_are_filled_in_turn() -> None:
    room = CacheLimits.of("auto", CPU, Path())
    assert (room.device, room.memory > 0, room.scratch > 0) == (0, True, True)
    bounded = CacheLimits.of("3MB", CPU, Path())
    assert (bounded.memory, bounded.scratch > 0) == (3 * 2**20, True)
    with pytest.raises(SettingsError, match="'much' is not a memory size"):
        CacheLimits.of("much", CPU, Path())


PROGRAM = """
import os, resource, signal, sys, torch
from pathlib import Path
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache

folder, end = Path(sys.argv[1]), sys.argv[2]
if end == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
with ViewCache(CacheLimits(0, 0, 10**9), torch.device("cpu"), folder) as store:
    for sample in range(3):
        store.add(sample, torch.full((1, 3, 8, 16), float(sample)))  # 1,536 bytes
    print([sample in store for sample in range(3)], flush=True)
    print(store.images(0).unique().tolist(), flush=True)
    if end == "raise":
        raise RuntimeError("an error while views are cached")
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("end", "status", "cached"),
    [
        ("kill", -signal.SIGKILL, [True, True, True]),
        ("raise", 1, [True, True, True]),
        ("full", 0, [True, False, False]),
    ],
)
def test_no_file_is_left_whatever_ends_the_process(
    tmp_path: Path, end: str, status: int, cached: list[bool]
) -> None:
    done = run_command([tmp_path, end], tmp_path.parent, environment(), script=PROGRAM)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == [str(cached), "[0.0]"]
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_free_memory_is_less_than_there_is() -> None:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory() < there
