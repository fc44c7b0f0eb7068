"""Files that cost memory or time are one line each, and the others are ranked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bombs import bombs
from command import run_command
from make import environment, tiny_state_dict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is watched, not limited")

LIMITED = """
import atexit, pathlib, resource, sys

def report():  # getrusage of this process would count what its parent had before it
    own = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    pathlib.Path("memory").write_text(f"{own + children.ru_maxrss}")

atexit.register(report)  # last, when the child was waited for
from lidar_cli.runtime import sandbox
sandbox.SHARED.limits = sandbox.Limits(seconds=int(sys.argv[1]), memory=int(sys.argv[2]) << 20)
sys.argv[:3] = ["lidar"]
from lidar_cli.__main__ import main
main()
"""
SMALL = (1, 256)  # seconds and MB for each file
DEFAULT = (12, 1024)
RANKED = ("bytearray-copies", "collide", "recursion", "json", "entries", "length", "bytes")

Ended = tuple[int, str, str, float, int]


def lidar(*command: str | Path, folder: Path, limits: tuple[int, int]) -> Ended:
    """Exit status, stdout, stderr, seconds of processor time and kB of program and child."""
    arguments = [sys.executable, "-c", LIMITED, *map(str, (*limits, *command))]
    with (folder / "out").open("w+") as out, (folder / "errors").open("w+") as errors:
        with subprocess.Popen(arguments, stdout=out, stderr=errors, cwd=folder) as program:
            _, status, used = os.wait4(program.pid, 0)
            program.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        text, lines = out.read(), errors.read()
    assert "Traceback" not in lines
    memory = int((folder / "memory").read_text())
    return program.returncode, text, lines, used.ru_utime + used.ru_stime, memory


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return bombs(tmp_path_factory.mktemp("bombs") / "runs")


@pytest.mark.nightly
def test_inspect_gives_each_one_line(hostile: list[Path], tmp_path: Path) -> None:
    status, out, errors, _, memory = lidar("inspect", *hostile, folder=tmp_path, limits=SMALL)
    assert (status, out) == (3, "")
    for path, line in zip(hostile, errors.splitlines(), strict=True):
        assert line.startswith(f"error: {path}")
        assert len(line.removeprefix(f"error: {path}")) > 20
    assert memory < 400_000


def test_rank_ranks_the_good_one(hostile: list[Path], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    ranked = [path for path in hostile if path.stem in RANKED]
    for path in ranked:
        (runs / path.name).hardlink_to(path)
    torch.save(tiny_state_dict(), runs / "good.pt")
    options = ("--data", "embedded", "-n", "60", "-q", "2", "--json", "--cache", tmp_path / "cache")
    ended = run_command([*SMALL, "rank", runs, *options], tmp_path, environment(), script=LIMITED)
    assert "Traceback" not in ended.stderr
    ranking = json.loads(ended.stdout)
    assert ended.returncode == 4
    assert [Path(row["path"]).name for row in ranking["checkpoints"]] == ["good.pt"]
    failed = {Path(row["path"]).name: row["reason"] for row in ranking["failed"]}
    assert failed.keys() == {path.name for path in ranked}
    assert all(len(reason) > 20 for reason in failed.values())


def test_extract_gives_one_line(hostile: list[Path], tmp_path: Path) -> None:
    path = hostile[0].with_name("bytearray-copies.pt")
    command = ("extract", path, "-o", tmp_path / "a.h5")
    ended = run_command([*SMALL, *command], tmp_path, environment(), script=LIMITED)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: {path}: takes more than ")


@pytest.mark.nightly
@pytest.mark.parametrize("command", ["inspect", "extract"])
def test_with_the_limits_that_users_have(command: str, hostile: list[Path], tmp_path: Path) -> None:
    for path in hostile:
        status, _, errors, seconds, memory = lidar(command, path, folder=tmp_path, limits=DEFAULT)
        assert (status, len(errors.splitlines())) == (3, 1)
        assert seconds < 20
        assert memory < 1_500_000
