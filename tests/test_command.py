"""Forked commands end, write and see their surroundings as `python -m lidar_cli` does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command, run_command
from make import environment, lidar, lidar_anew

SCRIPTS = {
    "returns": "print(3)",
    "exits with a number": "import sys; print(1, file=sys.stderr); sys.exit(7)",
    "exits with a line": "import sys; sys.exit('why')",
    "exits with nothing": "import sys; sys.exit()",
    "is killed": "import os; os.kill(os.getpid(), 9)",
    "is interrupted": "import os; os.kill(os.getpid(), 2)",
    "writes at its end": "import atexit; atexit.register(print, 'last'); print('first')",
    "sees its surroundings": "import os, sys; print(os.getcwd(), os.environ['KEY'], sys.argv[1:])",
    "has a thread": "import threading; threading.Timer(0.2, print, ['late']).start()",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_fork_ends_as_a_fresh_process(script: str, tmp_path: Path) -> None:
    variables = environment(KEY="value")
    forked = run_command(["a", "b c"], tmp_path, variables, script=script)
    fresh = subprocess.run(
        [sys.executable, "-c", script, "a", "b c"],
        cwd=tmp_path, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:] or (
        fresh.returncode == -signal.SIGINT  # without the trace
    )


def test_an_error_has_its_trace(tmp_path: Path) -> None:
    done = run_command([], tmp_path, environment(), script="1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_commands_run_at_the_same_time_and_end_by_signals(tmp_path: Path) -> None:
    script = "import time; print('began', flush=True); time.sleep(100)"
    with (
        Command([], tmp_path, environment(), script=script) as one,
        Command([], tmp_path, environment(), script=script) as two,
    ):
        for each in (one, two):
            assert each.stdout is not None
            assert each.stdout.readline() == "began\n"
        assert one.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            one.wait(0.05)
        one.send_signal(signal.SIGTERM)
        assert one.wait(30) == -signal.SIGTERM
        assert two.poll() is None
    assert two.returncode == -signal.SIGKILL


@pytest.mark.parametrize("words", [["--version"], ["score", "absent.npy"], ["score", "--nonsense"]])
def test_the_program_is_the_same(words: list[str], tmp_path: Path) -> None:
    forked, fresh = lidar(*words, cwd=tmp_path), lidar_anew(*words, cwd=tmp_path)
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr == fresh.stderr
