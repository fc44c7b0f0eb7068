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
    "crashes the process that reads it": "crashed",
}
LONGEST = 20_000  # characters of a line, which may repeat a few names out of the file
Outcomes = dict[str, tuple[str, Any]]


class Lost(Exception):
    """A reader process died of an input, or was ended at its time limit."""


@dataclass
class Tally:
    """What came of all inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # of them, where HDF5 was lost in the child

    def __str__(self) -> str:
        outcomes, lost = (
            ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            for counts in (self.outcomes, self.lost)
        )
        return (
            f"{self.outcomes.total()} inputs: {outcomes}; HDF5 in the child: {lost or 'never lost'}"
        )


class Reading:
    """A context manager: compares what the readers return for inputs with the intact file.

    folder: for its files, such as an input with which a process was lost.
    """

    def __init__(self, folder: Path) -> None:
        self.tally = Tally()
        self._folder = folder
        self._sound: dict[str, Outcomes] = {}

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
        read = self._ask(kind, path)
        assert {what for what, _ in read.values()} == {"read"}, read
        self._sound[kind] = read

    def of(self, kind: str, path: Path) -> str:
        """The outcome of an input, counted: same, refused, or other.

        other: different content without a checksum, such as another label.
        Raises AssertionError for a traceback, a lost process, or wrong rows in spite of checksums.
        """
        try:
            read = self._ask(kind, path)
        except Lost as lost:
            raise AssertionError(f"{self._keep(path)}: {lost}") from None
        lines = [str(line) for what, line in read.values() if what == "refused"]
        self.tally.lost.update(
            {how for words, how in LOST.items() for line in lines if words in line}
        )
        outcome = self._compared(self._sound[kind], read, path)
        self.tally.outcomes[outcome] += 1
        return outcome

    def _ask(self, kind: str, path: Path) -> Outcomes:
        order = {"kind": kind, "path": str(path), "seconds": SECONDS}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        read = json.loads(self._server.stdout.readline())
        if "lost" in read:
            self._said.seek(0)
            hung = "Timeout (" in self._said.read()
            self._said.seek(0)
            self._said.truncate()
            raise Lost("hung" if hung else f"ended with {read['lost']}")
        return read

    def _compared(self, sound: Outcomes, read: Outcomes, path: Path) -> str:
        outcomes = set()
        for reader, (what, value) in read.items():
            assert what != "traceback", f"{self._keep(path)}: {reader}: {value}"
            if what == "refused":
                assert 0 < len(value) < LONGEST, f"{self._keep(path)}: {reader}: {value}"
                outcomes.add(what)
                continue
            outcomes.add("same" if value == sound[reader][1] else "other")
            if isinstance(value, dict) and value.get("verified"):
                expected = list(sound[reader][1]["rows"].values())
                wrong = [name for name, rows in value["rows"].items() if rows not in expected]
                assert not wrong, f"{self._keep(path)}: {reader}: other rows in {wrong}"
        if {"score", "rows"} <= read.keys() and read["score"][0] == "read":
            assert read["rows"][0] == "read", f"{self._keep(path)}: scored, but not read"
            if read["rows"][1]["verified"]:
                expected = list(map(_numbers, sound["score"][1]))
                assert all(_numbers(one) in expected for one in read["score"][1]), self._keep(path)
        return next(one for one in ("other", "refused", "same") if one in outcomes)

    def _keep(self, path: Path) -> Path:
        folder = self._folder / "kept"
        shutil.copytree(path.parent, folder, dirs_exist_ok=True)
        return folder / path.name


def _numbers(record: dict[str, Any]) -> list[float | None]:
    return [record[name] for name in METRICS]
