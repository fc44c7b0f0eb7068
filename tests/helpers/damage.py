"""Damaged feature files through everything that reads them, many to a process that may be lost.

A reader process has 1.5 GB of memory and a time limit for each input, and says what came of it. The
input that it is lost with is kept; HDF5 itself may be lost, in the child of the reader alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make import environment

from lidar_cli.core.metrics import METRICS

SECONDS = 30  # for an input; of what HDF5 is lost with, each reader waits until its child is
LOST = {  # in a reader's words -> what HDF5 did
    "of processor time to read": "hung",
    "MB of memory to read": "swelled",
    "crashes what reads it": "crashed",
}
LONGEST = 20_000  # characters of a line, which may repeat a few names out of the file
Found = dict[str, tuple[str, Any]]


class Lost(Exception):
    """A reader process died of an input, or was ended at its time limit."""


@dataclass
class Tally:
    """What came of all inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # of them, where HDF5 was lost in the child

    def __str__(self) -> str:
        told, lost = (
            ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            for counts in (self.outcomes, self.lost)
        )
        return f"{self.outcomes.total()} inputs: {told}; HDF5 in the child: {lost or 'never lost'}"


class Reading:
    """A context manager: what the readers say of inputs, held against the sound file.

    folder: for what it keeps, an input that a process was lost with above all.
    """

    def __init__(self, folder: Path) -> None:
        self.tally = Tally()
        self._folder = folder
        self._sound: dict[str, Found] = {}

    def __enter__(self) -> Reading:
        self._said = (self._folder / "stderr").open("w+")
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("damage_reader.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._said, self._server:  # closes its pipes, and waits
            pass

    def sound(self, kind: str, path: Path) -> None:
        """Read the sound file; inputs of this kind are damaged copies of the last one."""
        found = self._ask(kind, path)
        assert {what for what, _ in found.values()} == {"found"}, found
        self._sound[kind] = found

    def of(self, kind: str, path: Path) -> str:
        """The outcome of an input, counted: same, refused, or other.

        other: nothing vouches for what was found instead, such as another label.
        Raises AssertionError for a traceback, a lost process, or wrong rows that were vouched for.
        """
        try:
            found = self._ask(kind, path)
        except Lost as lost:
            raise AssertionError(f"{self._kept(path)}: {lost}") from None
        lines = [str(line) for what, line in found.values() if what == "refused"]
        self.tally.lost.update(
            {how for words, how in LOST.items() for line in lines if words in line}
        )
        outcome = self._compared(self._sound[kind], found, path)
        self.tally.outcomes[outcome] += 1
        return outcome

    def _ask(self, kind: str, path: Path) -> Found:
        order = {"kind": kind, "path": str(path), "seconds": SECONDS}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        found = json.loads(self._server.stdout.readline())
        if "lost" in found:
            self._said.seek(0)
            hung = "Timeout (" in self._said.read()
            self._said.seek(0)
            self._said.truncate()
            raise Lost("hung" if hung else f"ended with {found['lost']}")
        return found

    def _compared(self, sound: Found, found: Found, path: Path) -> str:
        outcomes = set()
        for reader, (what, told) in found.items():
            assert what != "traceback", f"{self._kept(path)}: {reader}: {told}"
            if what == "refused":
                assert 0 < len(told) < LONGEST, f"{self._kept(path)}: {reader}: {told}"
                outcomes.add(what)
                continue
            outcomes.add("same" if told == sound[reader][1] else "other")
            if isinstance(told, dict) and told.get("vouched"):
                known = list(sound[reader][1]["rows"].values())
                wrong = [name for name, rows in told["rows"].items() if rows not in known]
                assert not wrong, f"{self._kept(path)}: {reader}: other rows in {wrong}"
        if {"score", "rows"} <= found.keys() and found["score"][0] == "found":
            assert found["rows"][0] == "found", f"{self._kept(path)}: scored, but not read"
            if found["rows"][1]["vouched"]:
                known = list(map(_numbers, sound["score"][1]))
                assert all(_numbers(one) in known for one in found["score"][1]), self._kept(path)
        return next(one for one in ("other", "refused", "same") if one in outcomes)

    def _kept(self, path: Path) -> Path:
        kept = self._folder / "kept"
        shutil.copytree(path.parent, kept, dirs_exist_ok=True)
        return kept / path.name


def _numbers(record: dict[str, Any]) -> list[float | None]:
    return [record[name] for name in METRICS]
