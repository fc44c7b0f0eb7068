"""What a cache contains, by checkpoint, and what of it no checkpoint uses.

Only regular files whose names have the forms of a cache are listed, and only in a folder with the
marker of a cache. A file that cannot be assigned to a checkpoint counts as used.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lidar_cli.checkpoints.reading.folder import is_checkpoint
from lidar_cli.errors import FILE_ERRORS, CheckpointError, InputError, LidarError
from lidar_cli.features.reader import read_interrupted, read_provenance
from lidar_cli.features.schema import EMBEDDING_REVISION, check_unlocked, revision_of
from lidar_cli.ranking.cache import KEY, MARKER, NAME_PATTERNS, STALE_AFTER, CacheFolder
from lidar_cli.ranking.digests import Digests, read_record
from lidar_cli.ranking.discover import UNTRAINED
from lidar_cli.ranking.paths import FEATURE_SUFFIXES, files_of, place_of, select
from lidar_cli.runtime.files import check_regular, irregular_kind, parse_json
from lidar_cli.scoring.saved import SUFFIX

INFLUENCE = re.compile(rf"(?P<features>.+){KEY}\.influence", re.DOTALL)
IN_CACHE = re.compile(rf".+{KEY}\.h5", re.DOTALL)
OLD_TEMPORARY = NAME_PATTERNS[-1]
GONE = "its checkpoint is gone or has changed"
OLDER = "an older version wrote it"
UNTRAINED_NETWORKS = "(untrained)"  # in place of a checkpoint, of files of --baseline
DEPTH = 2  # folders below the one that is named in which a cache is looked for
CANDIDATES = 3  # caches that a message names
WHICH = "name the directory that is ranked, or the folder with --cache PATH"


@dataclass(frozen=True)
class CacheFile:
    """A file of a cache.

    checkpoint: its path in the directory, else the path that the file records, else empty; of an
    untrained network UNTRAINED_NETWORKS.
    unused: why nothing uses the file; None if it may be used.
    """

    name: str
    size: int
    stamp: tuple[int, int]  # inode and time of the last change
    checkpoint: str = ""
    unused: str | None = None


def list_cache(directory: Path, named: Path | None) -> tuple[CacheFolder, list[CacheFile]]:
    """The cache of a directory, and its files. named: the folder that `--cache` names.

    Raises InputError if there is no cache, or a folder that must not be used, and CheckpointError
    for a checkpoint that cannot be read.
    """
    folder = CacheFolder(directory, named)
    if not folder.has_marker:
        below = [] if named else sorted(_caches_below(directory))[:CANDIDATES]
        commands = " or ".join(f"lidar cache {shlex.quote(str(one))}" for one in below)
        raise InputError(
            f"{folder.path}: no cache there; "
            + (f"there is one with:  {commands}" if below else WHICH),
            code="no-cache",
        )
    # Before the checkpoints are listed: of what is added later, the checkpoint might be missed.
    entries = _regular_entries(folder.path)
    owners = _Owners(directory, folder, {name for name, _ in entries})
    return folder, [owners.describe(name, status) for name, status in entries]


def _caches_below(directory: Path) -> list[Path]:
    """The folders at most DEPTH below a directory that hold a cache."""
    return [
        marker.parent.parent
        for depth in range(1, DEPTH + 1)
        for marker in directory.glob(f"{'*/' * depth}.lidar/{MARKER}")
    ]


def remove_unused(folder: CacheFolder, files: Sequence[CacheFile]) -> list[CacheFile]:
    """Remove the unused files that are still as they were listed. Returns the removed ones."""
    removed = []
    descriptor = os.open(folder.path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        for file in files:
            with suppress(OSError):
                status = os.stat(file.name, dir_fd=descriptor, follow_symlinks=False)
                is_same = (status.st_ino, status.st_mtime_ns) == file.stamp
                if file.unused and stat.S_ISREG(status.st_mode) and is_same:
                    os.unlink(file.name, dir_fd=descriptor)
                    removed.append(file)
    finally:
        os.close(descriptor)
    return removed


def _regular_entries(folder: Path) -> list[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat(follow_symlinks=False))
            for entry in entries
            if entry.is_file(follow_symlinks=False)
            if any(form.fullmatch(entry.name) for form in NAME_PATTERNS)
        )


class _Owners:
    """Assigns the files of a cache to the checkpoints of a directory."""

    def __init__(self, directory: Path, folder: CacheFolder, names: Collection[str]) -> None:
        self._directory = directory
        self._folder = folder.path
        digests = Digests(folder.path)
        files = files_of(select([directory]), _refuse)
        paths = [path for path in files if irregular_kind(path) is None]
        checkpoints = [path for path in paths if path.suffix not in FEATURE_SUFFIXES]
        self._paths: dict[str, str] = {}  # by digest
        for path in checkpoints:
            # Nothing is stored of a folder that cannot be read, such as one of DeepSpeed's ZeRO 3.
            with suppress(*([CheckpointError] if path.is_dir() else [])):
                self._paths[digests.of(path)[1]] = str(path)
        self._listed = {path.resolve(): str(path) for path in checkpoints}
        self._features = {path.stem for path in paths if path.suffix in FEATURE_SUFFIXES}
        self._names = names

    def describe(self, name: str, status: os.stat_result) -> CacheFile:
        """A file with its checkpoint, and why it is unused."""
        checkpoint, unused = self._owner(name, status.st_mtime)
        return CacheFile(
            name, status.st_size, (status.st_ino, status.st_mtime_ns), checkpoint, unused
        )

    def _owner(self, name: str, changed: float) -> tuple[str, str | None]:
        if name.endswith(".sha256"):
            return self._owner_of_record(read_record(self._folder / name))
        if match := INFLUENCE.fullmatch(name):
            features = f"{match['features']}.h5"
            if features in self._names:
                return self._owner(features, changed)
            # Feature files that are not of a cache may be in any directory.
            is_gone = IN_CACHE.fullmatch(features) and match["features"] not in self._features
            return "", "its embeddings are gone" if is_gone else None
        if OLD_TEMPORARY.fullmatch(name) and not name.endswith((".h5", SUFFIX)):
            return "", OLDER if time.time() - changed > STALE_AFTER else None
        provenance = self._provenance(name)
        recorded = str(provenance.get("checkpoint") or "")
        if str(provenance.get("sha256")).startswith(UNTRAINED):  # of --baseline
            is_old = revision_of(provenance) < EMBEDDING_REVISION
            return UNTRAINED_NETWORKS, OLDER if is_old else None
        path = self._paths.get(str(provenance.get("sha256")), recorded)
        return path, self._why_unused(provenance)

    def _provenance(self, name: str) -> dict[str, Any]:
        """What a file records of its checkpoint; {} if it cannot be read or is in use."""
        path = self._folder / name
        try:
            if name.endswith(SUFFIX):
                return _provenance_of_score(path)
            if name.endswith(".h5"):
                return read_provenance(path)
            if name.endswith(".h5.partial"):
                check_unlocked(path)
                return read_interrupted(path.with_suffix(""))
        except (LidarError, *FILE_ERRORS):
            pass
        return {}

    def _owner_of_record(self, record: dict[str, Any]) -> tuple[str, str | None]:
        """The checkpoint whose digest is recorded, and why the record is unused."""
        if "path" not in record:
            return "", OLDER if record else None
        path = place_of(self._folder / str(record["path"]))
        if not _exists(path):
            return path, GONE
        return self._listed.get(Path(path).resolve(), path), None

    def _why_unused(self, provenance: dict[str, Any]) -> str | None:
        digest = provenance.get("sha256")
        if not digest:
            return None
        if digest in self._paths:
            return OLDER if revision_of(provenance) < EMBEDDING_REVISION else None
        return None if self._is_elsewhere(str(provenance.get("checkpoint"))) else GONE

    def _is_elsewhere(self, recorded: str) -> bool:
        """Whether a checkpoint that was ranked from this cache may exist and not be listed.

        It is of another directory, was named by itself, or its path is relative to another folder.
        """
        if _exists(recorded):
            return Path(recorded).resolve() not in self._listed
        place = Path(place_of(Path(recorded)))
        bases = place_of(self._directory), self._directory.resolve()
        is_below = any(place.is_relative_to(base) for base in bases)
        return not (is_below or Path(recorded).is_absolute())


def _exists(path: str) -> bool:
    """Whether there is a checkpoint at a path, which may be impossible."""
    try:
        return is_checkpoint(Path(path))
    except (OSError, ValueError):
        return False


def _provenance_of_score(path: Path) -> dict[str, Any]:
    """The provenance in a file of `SavedScore`; {} if it has another form."""
    try:
        check_regular(path, follow=False)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        _, provenance, _ = parse_json(header["record"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return {}
    return provenance if isinstance(provenance, dict) else {}


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be listed ({error.strerror}), so it is unknown what its "
        "checkpoints use; allow access to it",
        code="cannot-list",
    ) from error
