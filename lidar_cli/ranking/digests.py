"""SHA-256 digests of checkpoints, each computed once per change of the file, by one process.

All processes that rank a directory need the digest of every checkpoint in it, and there may be ten
thousand. So each digest is stored with the inode, size and times of its file, and is used again
while these are unchanged. This is done only where they prove that the content is unchanged:

- the file system itself records the time of each change (ctime), also of a change through mapped
  memory, and no program can set that time. A trial file shows whether this holds: it does not on
  sshfs and tmpfs, and on Windows that field is not the time of a change;
- the last change is at least SETTLED seconds ago by the file system's clock, because two changes
  within one tick get the same time, and so do changes through mapped memory until they are written
  back;
- the file is on the file system of the trial file.
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
from typing import Any

from lidar_cli.checkpoints.reading.read import content_files, sha256, stamp
from lidar_cli.runtime.files import open_regular, parse_json, read_limited, write_atomic

MAX_BYTES = 2**16  # size limit of a record
SETTLED = 120  # seconds: longer than any clock tick, and than the delay of writing back
MAX_NUMBERS = 1000  # of a record; more are hashed
TICK = 0.05  # seconds, longer than a tick of any file system's clock
Stamp = tuple[int, ...]


class Digests:
    """Digests of files, stored in a folder if that can be written.

    store: False to read stored digests only, and to write nothing.
    """

    def __init__(self, folder: Path, store: bool = True) -> None:
        self._stores = store
        self._folder = folder
        self._digests: dict[Path, tuple[Stamp, str]] = {}
        self._trial: tuple[int, int] | None = (
            None  # device (-1: not reliable), and its time at the trial
        )

    def of(self, path: Path) -> tuple[Stamp, str]:
        """The stamp of a file, taken before its content is read, and its digest; read once per run.

        Raises CheckpointError if the file cannot be read.
        """
        if path not in self._digests:
            before = stamp(path)
            reliable = self._reliable_stamp(path)
            digest = self._stored(path, reliable) if reliable else None
            if digest is None:
                digest = sha256(path)
                if self._stores and reliable and reliable == self._reliable_stamp(path):
                    self._store(path, reliable, digest)
            self._digests[path] = before, digest
        return self._digests[path]

    def _reliable_stamp(self, path: Path) -> list[int] | None:
        """Inode, size and times of each file; None if equal ones would not prove equal content."""
        if os.name != "posix":
            return None
        numbers: list[int] = []
        try:
            device, now = self._trial or self._run_trial()
            for one in content_files(path):
                # Opened, because a network file system may answer a plain stat from memory.
                with open_regular(one) as file:
                    status = os.fstat(file.fileno())
                if status.st_dev != device or now - status.st_ctime_ns < SETTLED * 10**9:
                    return None
                times = status.st_mtime_ns, status.st_ctime_ns
                numbers += (status.st_ino, status.st_size, *times)
        except OSError:
            return None
        return numbers if len(numbers) <= MAX_NUMBERS else [len(numbers), _number_of(numbers)]

    def _run_trial(self) -> tuple[int, int]:
        """Device of the folder, -1 if its times of change are not reliable, and its current time.

        Raises OSError.
        """
        self._trial = -1, 0  # a trial that raises is not repeated
        if self._stores:
            self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as trial:  # unnamed, so that a kill leaves no file
            trial.write(b"0")
            trial.flush()
            written = os.fstat(trial.fileno()).st_mtime_ns
            os.utime(trial.fileno(), (0, 0))
            before = os.fstat(trial.fileno())
            time.sleep(TICK)
            with mmap.mmap(trial.fileno(), 1) as mapped:
                mapped[0] ^= (
                    1  # a read, then a write: tmpfs records the time of the first access only
                )
                mapped.flush()
            after = os.fstat(trial.fileno())
        is_reliable = before.st_mtime_ns == 0 and (
            after.st_ctime_ns > before.st_ctime_ns >= written > 0
        )
        self._trial = before.st_dev if is_reliable else -1, after.st_ctime_ns
        return self._trial

    def _record(self, path: Path) -> tuple[Path, str]:
        """The file that stores the digest of a checkpoint, and the path of that from the folder.

        The path is the same on all hosts, and whatever else is ranked.
        """
        below = os.path.relpath(path, self._folder)
        key = hashlib.sha256(below.encode(errors="surrogateescape")).hexdigest()[:16]
        return self._folder / f"{path.name}-{key}.sha256", below

    def _stored(self, path: Path, file: list[int]) -> str | None:
        record = read_record(self._record(path)[0])
        return str(record.get("sha256")) if record.get("file") == file else None

    def _store(self, path: Path, file: list[int], digest: str) -> None:
        record, below = self._record(path)
        content = json.dumps({"file": file, "sha256": digest, "path": below}).encode()
        with suppress(OSError):  # it is computed again next time
            write_atomic(record, content)


def _number_of(numbers: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest())


def read_record(path: Path) -> dict[str, Any]:
    """The stamp, the digest and the path of a checkpoint; {} if the record cannot be used."""
    try:
        record = parse_json(read_limited(path, MAX_BYTES, follow=False))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"file", "sha256"} <= record.keys() else {}
