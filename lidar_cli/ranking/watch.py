"""A directory that is followed: each checkpoint is scored when it has landed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.checkpoints.shapes.spec import NotOpen
from lidar_cli.core.metrics import Metric
from lidar_cli.extraction.plan import Plan
from lidar_cli.ranking.cache import Cache
from lidar_cli.ranking.cache_folder import CacheFolder
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import (
    Checkpoint,
    DirectoryScan,
    Looks,
    Skipped,
    classify_file,
    files_under,
)
from lidar_cli.ranking.order import Row
from lidar_cli.ranking.session import checked, one_layer, open_cache, row_of
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import open_groups
from lidar_cli.settings import RankSettings

Stamp = tuple[int, int, int]  # size, time of the last change, and which file it is


@dataclass(frozen=True)
class Landed:
    """A checkpoint that was scored.

    key: of its content and of the settings: with `row.path`, what a restart need not repeat.
    """

    row: Row
    by: Metric
    sha256: str
    key: str


class Landings:
    """Which files of a directory are complete, each told once for each content.

    A file is complete if it holds something and neither its size nor its time of change differ
    from those of the look before.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before: dict[Path, Stamp] = {}
        self._told: dict[Path, Stamp] = {}

    def look(self) -> list[Path]:
        """The files that are complete since this look."""
        files = files_under(self._directory, lambda _: None)  # the next look may list them
        now = {path: stamp for path in files if (stamp := _stamp(path))}
        landed = {
            path: stamp
            for path, stamp in now.items()
            if stamp == self._before.get(path) and stamp != self._told.get(path)
        }
        self._before = now
        self._told |= landed
        return list(landed)

    def rests(self, path: Path) -> bool:
        """Whether a file is still as it was when it was told."""
        return _stamp(path) == self._told.get(path)


def follow(
    directory: Path,
    settings: RankSettings,
    progress: Progress | None = None,
    known: Collection[tuple[str, str]] = (),
) -> Iterator[Landed | Skipped]:
    """Each checkpoint under a directory once it is scored, or left with the reason why not.

    Does not end, unless `settings.watch_for` says so, then at least after the second look. The
    layer and the images are settled by the first files that are complete. Feature files serve the
    checkpoints that they name.

    known: path and key of what need not be scored again.
    Raises SettingsError and InputError as `rank_directory`, but for an empty directory.
    """
    progress = progress or Progress()
    job = _Job(directory, checked(directory, settings), settings, progress, known)
    ends = None if settings.watch_for is None else time.monotonic() + settings.watch_for
    job.landings.look()  # nothing is known to rest before the second
    while True:
        time.sleep(settings.interval)
        last = ends is not None and time.monotonic() >= ends
        yield from job.score(job.landings.look())
        if last:
            return


class _Job:
    def __init__(
        self,
        directory: Path,
        by: Metric,
        settings: RankSettings,
        progress: Progress,
        known: Collection[tuple[str, str]],
    ) -> None:
        self.landings = Landings(directory)
        self._directory = directory
        self._folder = CacheFolder(directory, settings.cache)
        self._by = by
        self._settings = settings
        self._progress = progress
        self._known = known
        self._device = find_device(settings.device)
        self._groups = open_groups(settings)
        self._found = DirectoryScan()
        self._cache: Cache | None = None

    def score(self, paths: Sequence[Path]) -> Iterator[Landed | Skipped]:
        """What becomes of files that are complete."""
        new = self._place(paths)
        yield from self._failures()
        if not new:
            return
        self._cache = self._cache or self._open(new)
        each = self._cache.score_each(new, self._found.fail, self._is_unknown)
        for checkpoint, plan, scored in each:
            if self.landings.rests(checkpoint.path):
                row = row_of(checkpoint.path, tuple(checkpoint.aliases), scored, self._by)
                yield Landed(row, self._by, checkpoint.digest, self._key(plan))
            else:
                # The scored weights may not be those that were hashed; the next looks tell it anew.
                self._cache.forget(checkpoint, plan)
                del self._found.checkpoints[checkpoint.digest]
                self._progress.note(f"{checkpoint.path}: changed while it was read; read again")
            yield from self._failures()
        yield from self._failures()

    def _place(self, paths: Sequence[Path]) -> list[Checkpoint]:
        """The checkpoints of a content that is new."""
        before = set(self._found.checkpoints)
        looks, digests = Looks(self._settings), Digests(self._directory, self._folder.path)
        for path in paths:
            try:
                classify_file(path, self._found, looks, self._progress, digests)
            except NotOpen as error:  # of one file, which ends nothing for those that land later
                self._found.fail(path, error)
        for left in self._found.skipped:
            self._progress.note(f"skipped: {left.path}: {left.reason}")
        self._found.skipped.clear()
        if self._cache is not None:
            self._cache.add_features(self._found.features)
            self._found.features.clear()
        return [
            checkpoint
            for digest, checkpoint in self._found.checkpoints.items()
            if digest not in before
        ]

    def _failures(self) -> Iterator[Skipped]:
        yield from self._found.failed
        self._found.failed.clear()

    def _open(self, first: Sequence[Checkpoint]) -> Cache:
        every = [set(checkpoint.description.widths) for checkpoint in first]
        layer = one_layer(self._settings.layer, every, self._progress)
        return open_cache(
            self._folder,
            self._settings,
            self._found.features,
            layer,
            self._device,
            self._progress,
            self._groups,
        )

    def _is_unknown(self, checkpoint: Checkpoint, plan: Plan) -> bool:
        return (str(checkpoint.path), self._key(plan)) not in self._known

    def _key(self, plan: Plan) -> str:
        settings = self._settings
        told = [plan.key, self._by.name, settings.delta, settings.epsilon, settings.normalize]
        told += [settings.confidence, *([settings.groups] if settings.groups else [])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _stamp(path: Path) -> Stamp | None:
    """None for a file that is empty, so that its writer has only begun, or gone by now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if found.st_size else None
