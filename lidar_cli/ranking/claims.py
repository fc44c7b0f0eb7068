"""Claim files, by which processes that share only a folder divide tasks among themselves.

    worker-TOKEN     one per process (worker): its host and process id; touched while it runs
    NAME.claim-G     the G-th claim of the task NAME, containing the token of its worker
    printer-G        created by the one worker that prints the results of all

Each file is opened with O_EXCL, so that only one process can create it, also on a network file
system. The claim of a dead worker is not removed, because two processes could then each remove the
other's claim; the process that takes the task over creates the claim with the next number. A
process that gets a claim checks again whether the task is done.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lidar_cli.errors import first_line
from lidar_cli.ranking.cache import cache_error
from lidar_cli.runtime.files import atomic, open_regular, parse_json, read_limited
from lidar_cli.runtime.processes import has_ended, process_identity

MAX_BYTES = 2**16  # size limit of a worker or claim file
NUMBER, LAST_NUMBER = "[0-9]{1,9}", 10**9 - 1
NAME_PATTERN = re.compile(
    rf"worker-[0-9a-f]{{1,16}}|printer-{NUMBER}|.+\.claim-{NUMBER}", re.DOTALL
)
HEARTBEATS = 10  # touches of a worker file per timeout
ATTEMPTS = 10  # to register, where other processes remove the folder at the same time


@dataclass(frozen=True)
class Claim:
    """A task that this process has claimed.

    taken_over: whether it follows the claim of a worker that did not touch its file for the timeout
    but may still be running.
    """

    name: str
    number: int
    taken_over: bool


class Claims:
    """The claims in a folder, as one process sees them. The first claim creates the folder.

    A context manager that removes the files of this process on exit, and the folder after the last
    process. Files with other names than those above are neither read nor removed.
    timeout: seconds without a touch after which a worker counts as dead; a worker on this host is
    dead as soon as its process has ended.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder = folder
        self._timeout = timeout
        self._token = secrets.token_hex(8)
        self._worker = f"worker-{self._token}"
        self._identity = process_identity()
        self._last_printer = -1  # number of the last printer file before this process registered
        # File name -> its time of change, and the monotonic time at which that was first seen.
        self._last_touch: dict[str, tuple[int, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, name: str) -> Iterator[Claim | None]:
        """The claim of a task while the block runs; None if another process has it.

        Raises InputError if the folder cannot be written, or the task has no claim number left.
        """
        self._register()
        number, taken_over = self._next_claim(name)
        if number is not None and number > LAST_NUMBER:
            path = self._folder / f"{name}.claim-{LAST_NUMBER}"
            raise cache_error(path, "is the last claim that has a number")
        if number is None or not self._create(f"{name}.claim-{number}", self._token):
            yield None
            return
        try:
            yield Claim(name, number, taken_over)
        finally:
            for other in self._numbers(name, ".claim"):
                if other <= number:
                    (self._folder / f"{name}.claim-{other}").unlink(missing_ok=True)

    def is_lost(self, claim: Claim) -> bool:
        """Whether another process has taken the claim over, because this one missed the timeout."""
        return max(self._numbers(claim.name, ".claim"), default=-1) != claim.number

    def is_claimed(self, name: str) -> bool:
        """Whether a process that may be alive has claimed the task."""
        number, _ = self._next_claim(name)
        return number is None

    def first_to_print(self) -> bool:
        """Whether this process prints the results; True for one of those that share the tasks."""
        if self._thread is None:
            return True
        return self._create(f"printer-{self._last_printer + 1}", self._token)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
        with suppress(OSError):  # the folder is in use by other processes, or absent
            (self._folder / self._worker).unlink(missing_ok=True)
            # A worker file is created before its claims. So if a listing has no live worker, no
            # live process has any of the listed claims.
            listed = [path for path in self._folder.iterdir() if NAME_PATTERN.fullmatch(path.name)]
            workers = [path for path in listed if path.name.startswith("worker-")]
            if any(self._state(path) == "alive" for path in workers):
                return
            for path in listed:
                path.unlink(missing_ok=True)
            self._folder.rmdir()

    def _register(self) -> None:
        if self._thread is not None:
            return
        for _ in range(ATTEMPTS):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if self._folder.is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, "its claims are a link")
                if self._create(self._worker, json.dumps(self._identity)):
                    break
            except FileNotFoundError:
                continue
            except OSError as error:
                with suppress(OSError):
                    self._folder.rmdir()
                why = f"the cache cannot be written ({first_line(error)})"
                raise cache_error(self._folder, why) from error
        # Processes number printer files without gaps, so files beyond a gap are not theirs.
        numbers = set(self._numbers("", "printer"))
        self._last_printer = next(at for at in count() if at not in numbers) - 1
        self._thread = threading.Thread(target=self._heartbeat, name="lidar-claims", daemon=True)
        self._thread.start()

    def _heartbeat(self) -> None:
        while not self._ended.wait(self._timeout / HEARTBEATS):
            with suppress(OSError):  # the next touch may succeed
                # Creates the file only if another process has removed it.
                if not self._create(self._worker, json.dumps(self._identity)):
                    os.utime(self._folder / self._worker)

    def _create(self, name: str, content: str) -> bool:
        path = self._folder / name
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _numbers(self, name: str, kind: str) -> list[int]:
        """The numbers of a task's claims, by a listing: network file systems keep it up to date."""
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        prefix = f"{name}{kind}-"
        ends = (each.removeprefix(prefix) for each in names if each.startswith(prefix))
        return [int(end) for end in ends if re.fullmatch(NUMBER, end)]

    def _next_claim(self, name: str) -> tuple[int | None, bool]:
        """The number of the next claim, None if one is in force; whether it takes the task over."""
        last = max(self._numbers(name, ".claim"), default=None)
        if last is None:
            return 0, False
        if last == LAST_NUMBER:  # planted: no run makes so many claims
            return last + 1, False
        claim = self._folder / f"{name}.claim-{last}"
        try:
            token = read_limited(claim, MAX_BYTES, follow=False).decode(errors="replace")
        except FileNotFoundError:
            return None, False  # just released: the next check decides
        except OSError:
            token = ""
        if not NAME_PATTERN.fullmatch(f"worker-{token}"):
            token = ""
        # A claim without a token was cut short or is being written: its time of change decides.
        state = self._state(self._folder / f"worker-{token}" if token else claim)
        return (None, False) if state == "alive" else (last + 1, state == "silent")

    def _state(self, path: Path) -> str:
        """The state of the worker of a file: `alive`, `gone`, or `silent`, which may be either."""
        try:
            # Opened, because a network file system may answer a plain stat from memory.
            with open_regular(path, follow=False) as file:
                touched = os.fstat(file.fileno()).st_mtime_ns
                content = file.read(MAX_BYTES)
        except OSError:
            return "silent"
        worker: dict[str, Any] = {}
        with suppress(ValueError, TypeError):
            worker = dict(parse_json(content))
        if has_ended(worker, self._identity):
            return "gone"
        # Only changes of the file's time count, by this host's clock: the clocks of two hosts may
        # differ.
        now = time.monotonic()
        before, seen = self._last_touch.get(path.name, (None, now))
        if touched != before:
            self._last_touch[path.name] = touched, now
            return "alive"
        return "alive" if now - seen < self._timeout else "silent"


def replace_by_copy(file: Path, final: Path) -> None:
    """Replace a file by a copy, so that writes of its old writer no longer affect it.

    final: the name that the old writer gives the file when it is complete. If it has done so in the
    meantime, the copy is removed.
    """
    with suppress(FileNotFoundError):  # one of the two files is absent
        with open_regular(file, follow=False) as content:
            old = os.fstat(content.fileno()).st_ino
            with atomic(file) as copy:
                shutil.copyfileobj(content, copy, 2**20)
        if final.stat().st_ino == old:
            file.unlink()
