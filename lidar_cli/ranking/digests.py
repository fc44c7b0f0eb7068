"""SHA-256 of checkpoints, each computed once after the file changed, by whichever process is first.

All processes that rank a directory need the digest of every checkpoint in it, which may be ten
thousand. So digests are stored, each with the stamp that the file system gave its file, and used
again while the stamp is the same. That is done only where an equal stamp proves equal content:

- the file system dates each change itself, also one through mapped memory, and nobody can set that
  date, which a trial file shows; sshfs and tmpfs do not, and on Windows the date is another one;
- the last change is long past by the file system's clock: two changes within a tick have one date,
  and so have changes through mapped memory until they are written back;
- the file is on the file system that was tried.
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
TICK = 0.05  # seconds, longer than a tick of any file system's clock
Stamp = tuple[int, ...]


class Digests:
    """Digests of the files under a directory, stored in a folder if that can be written."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self._directory = directory
        self._folder = folder
        self._digests: dict[Path, tuple[Stamp, str]] = {}
        self._trial: tuple[int, int] | None = None  # device, and its time when it was tried

    def of(self, path: Path) -> tuple[Stamp, str]:
        """The stamp of a file, taken before its content is read, and the digest; once a run.

        Raises CheckpointError if the file cannot be read.
        """
        if path not in self._digests:
            before = stamp(path)
            dated = self._dated(path)
            digest = self._stored(path, dated) if dated else None
            if digest is None:
                digest = sha256(path)
                if dated and dated == self._dated(path):
                    self._store(path, dated, digest)
            self._digests[path] = before, digest
        return self._digests[path]

    def _dated(self, path: Path) -> list[int] | None:
        """Inode, size and dates of a file; None where they do not prove that it is unchanged."""
        if os.name != "posix":
            return None
        try:
            # Opened, because a network file system may answer a plain stat from memory.
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
            device, now = self._trial or self._try()
        except OSError:
            return None
        if status.st_dev != device or now - status.st_ctime_ns < SETTLED * 10**9:
            return None
        return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]

    def _try(self) -> tuple[int, int]:
        """Device of the folder, -1 if it does not date changes, and its time. Raises OSError."""
        self._trial = -1, 0  # if the trial fails it would fail again
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as trial:  # nameless, so that no kill leaves it behind
            trial.write(b"0")
            trial.flush()
            written = os.fstat(trial.fileno()).st_mtime_ns
            os.utime(trial.fileno(), (0, 0))
            before = os.fstat(trial.fileno())
            time.sleep(TICK)
            with mmap.mmap(trial.fileno(), 1) as mapped:
                mapped[0] ^= 1  # read before it is written, since tmpfs dates the first access only
                mapped.flush()
            after = os.fstat(trial.fileno())
        dates_changes = before.st_mtime_ns == 0 and (
            after.st_ctime_ns > before.st_ctime_ns >= written > 0
        )
        self._trial = before.st_dev if dates_changes else -1, after.st_ctime_ns
        return self._trial

    def _record(self, path: Path) -> Path:
        name = os.path.relpath(path, self._directory)  # the same on all hosts
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
        return self._folder / f"{path.name}-{key}.sha256"

    def _stored(self, path: Path, dated: list[int]) -> str | None:
        try:
            record = parse_json(read_limited(self._record(path), MOST, follow=False))
            return str(record["sha256"]) if record["file"] == dated else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _store(self, path: Path, dated: list[int], digest: str) -> None:
        content = json.dumps({"file": dated, "sha256": digest}).encode()
        with suppress(OSError):  # it is computed again next time
            write_atomic(self._record(path), content)
