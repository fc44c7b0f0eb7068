"""A process that is ended takes its children with it, whatever ended it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command
from make import environment

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="this system has no /proc"
)
PATIENCE = 120.0  # seconds, for a machine under load

SIDE_BY_SIDE = """
import sys, time
from lidar_cli.runtime.progress import Progress
from pathlib import Path
from lidar_cli.runtime.processes import run_parallel

def sleep(folder, number):
    (Path(folder) / f"began-{number}").touch()
    time.sleep(600)

if __name__ == "__main__":
    run_parallel(sleep, [(sys.argv[1], number) for number in range(2)], "sleeping", Progress())
"""

# A signal between the moment when a training exists and the one when its parent knows of it.
SIGNALLED = """
import os, sys
from multiprocessing import util
from lidar_cli.__main__ import main
from lidar_cli.runtime import device

training, number = int(sys.argv.pop()), int(sys.argv.pop())
spawn, spawned = util.spawnv_passfds, []

def spawn_and_signal(path, arguments, descriptors):
    process = spawn(path, arguments, descriptors)
    if any("spawn_main" in str(word) for word in arguments):
        spawned.append(process)
        if len(spawned) == training:
            os.kill(os.getpid(), number)
    return process

device.cpu_count = lambda: 2
util.spawnv_passfds = spawn_and_signal
main()
"""


def descendants(parent: int) -> set[int]:
    """Processes below another that are no zombies."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, above = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(above)
    found = {parent}
    while more := {one for one, above in parents.items() if above in found} - found:
        found |= more
    return found - {parent}


def alive(processes: set[int]) -> set[int]:
    found = set()
    for number in processes:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] != "Z":
                found.add(number)
    return found


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_children_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SIDE_BY_SIDE)
    command = [sys.executable, path, tmp_path]
    with subprocess.Popen(command, env=environment()) as process:
        try:
            until(lambda: (tmp_path / "began-0").exists())
            children = descendants(process.pid)
            assert children
            process.kill()
            process.wait(PATIENCE)
            until(lambda: not alive(children))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "training", "status", "word"),
    [
        (signal.SIGTERM, 1, 143, "terminated"),
        (signal.SIGTERM, 2, 143, "terminated"),
        (signal.SIGINT, 2, 130, "interrupted"),
    ],
)
def test_a_signal_while_trainings_start_ends_all(
    tmp_path: Path, number: int, training: int, status: int, word: str
) -> None:
    words = ["demo", tmp_path / "demo", number, training]
    with Command(words, tmp_path, environment(), script=SIGNALLED) as process:
        # Each training has the stream too, so that this returns when the last has ended.
        _, said = process.communicate(PATIENCE)
    assert process.returncode == status
    assert said.splitlines()[1:] == [word]


@pytest.mark.nightly
def test_sigterm_ends_the_demo_and_its_trainings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lidar_cli", "demo", tmp_path / "demo"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            # The trainings, and what multiprocessing starts beside them.
            until(lambda: len(descendants(process.pid)) > 1)
            children = descendants(process.pid)
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 128 + signal.SIGTERM
            assert said.splitlines()[-1] == "terminated"
            assert "Traceback" not in said
            until(lambda: not alive(children))
        finally:
            process.kill()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
