"""SHA-256 of checkpoints, each read once after it changed, by whichever process comes first.

Any number of processes rank ten thousand checkpoints, and each must know the content of all. A
digest is kept beside what the file system tells of the file, and serves while it tells the same.
That is kept and used only where it can be relied on:

- the system dates each change itself, also one through mapped memory, and nobody can set that date,
  as a file of trial shows; it is not so on sshfs or tmpfs, and on Windows the date is another;
- the last change is long past by its clock: two within a tick have one date, and so have those
  through mapped memory until it is written back;
- the file lies on the file system that was tried.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from lidar_cli.checkpoints.reading.read import sha256, stamp
from lidar_cli.runtime.atomic import write_atomic
from lidar_cli.runtime.files import open_regular, parse_json, read_limited

MOST = 2**16  # bytes of a record
SETTLED = 120  # seconds after a change: more than any tick, and than writing back may wait
TICK = 0.05  # seconds, in which every clock of a file system goes on
Stamp = tuple[int, ...]


class Digests:
    """Digests of the files under a directory, kept in a folder if that can be written."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self._directory = directory
        self._folder = folder
        self._found: dict[Path, tuple[Stamp, str]] = {}
        self._trial: tuple[int, int] | None = None  # device, and its time when it was tried

    def of(self, path: Path) -> tuple[Stamp, str]:
        """The stamp of a file, asked for before its content, and the digest of that; once a run.

        Raises CheckpointError if the file cannot be read.
        """
        if path not in self._found:
            before = stamp(path)
            word = self._word(path)
            digest = self._kept(path, word) if word else None
            if digest is None:
                digest = sha256(path)
                if word and word == self._word(path):
                    self._keep(path, word, digest)
            self._found[path] = before, digest
        return self._found[path]

    def _word(self, path: Path) -> list[int] | None:
        """What the file system tells of a file, None where that is not to be relied on."""
        if os.name != "posix":
            return None
        try:
            # Opened, not only asked for: a network file system may answer from memory otherwise.
            with open_regular(path) as file:
                told = os.fstat(file.fileno())
            device, now = self._trial or self._try()
        except OSError:
            return None
        if told.st_dev != device or now - told.st_ctime_ns < SETTLED * 10**9:
            return None
        return [told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]

    def _try(self) -> tuple[int, int]:
        """Device of the folder, -1 if it does not date changes, and its time. Raises OSError."""
        self._trial = -1, 0  # where it fails it would fail again
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as trial:  # nameless, so that no kill leaves it
            trial.write(b"0")
            trial.flush()
            made = os.fstat(trial.fileno()).st_mtime_ns
            os.utime(trial.fileno(), (0, 0))
            told = os.fstat(trial.fileno())
            time.sleep(TICK)
            with mmap.mmap(trial.fileno(), 1) as mapped:
                mapped[0] ^= 1  # read before it is written, since tmpfs dates a first touch alone
                mapped.flush()
            later = os.fstat(trial.fileno())
        honest = told.st_mtime_ns == 0 and later.st_ctime_ns > told.st_ctime_ns >= made > 0
        self._trial = told.st_dev if honest else -1, later.st_ctime_ns
        return self._trial

    def _record(self, path: Path) -> Path:
        name = os.path.relpath(path, self._directory)  # that all hosts give it
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
        return self._folder / f"{path.name}-{key}.sha256"

    def _kept(self, path: Path, word: list[int]) -> str | None:
        try:
            told = parse_json(read_limited(self._record(path), MOST, follow=False))
            return str(told["sha256"]) if told["file"] == word else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _keep(self, path: Path, word: list[int], digest: str) -> None:
        content = json.dumps({"file": word, "sha256": digest}).encode()
        with suppress(OSError):  # it is read again next time
            write_atomic(self._record(path), content)
