"""A process that is ended takes its children with it, whatever ended it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from make import environment

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="this system has no /proc"
)
PATIENCE = 60.0  # seconds, for a machine under load

SIDE_BY_SIDE = """
import sys, time
from lidar_cli.runtime.progress import Progress
from lidar_cli.runtime.processes import run_parallel

if __name__ == "__main__":
    from test_terminated import sleep
    run_parallel(sleep, [(sys.argv[1], number) for number in range(2)], "sleeping", Progress())
"""


def sleep(folder: str, number: int) -> None:
    (Path(folder) / f"began-{number}").touch()
    time.sleep(10 * PATIENCE)


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
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent / "helpers")])
    with subprocess.Popen(command, env=environment(PYTHONPATH=here)) as process:
        try:
            until(lambda: (tmp_path / "began-0").exists())
            children = descendants(process.pid)
            assert children
            process.kill()
            process.wait(PATIENCE)
            until(lambda: not alive(children))
        finally:
            process.kill()


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
