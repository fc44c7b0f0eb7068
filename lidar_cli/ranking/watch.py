"""Follows a directory: each checkpoint is scored once its file is complete."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.checkpoints.reading.read import content_files
from lidar_cli.checkpoints.shapes.spec import NotOpen
from lidar_cli.core.metrics import Metric
from lidar_cli.errors import FILE_ERRORS, NoProcess
from lidar_cli.extraction.plan import Plan
from lidar_cli.ranking.discover import (
    Checkpoint,
    FeatureFile,
    Recogniser,
    Skipped,
    classify_file,
)
from lidar_cli.ranking.group_metrics import find_order
from lidar_cli.ranking.order import Row, comparable, is_constant, unranked_row
from lidar_cli.ranking.paths import Paths, files_of, select
from lidar_cli.ranking.runs import Axis, position_in_name
from lidar_cli.ranking.scorer import Scorer
from lidar_cli.ranking.session import Session, open_session
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings

Stamp = tuple[int, ...]  # size, time of the last change, inode of each file


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A checkpoint that --watch has scored.

    name: as in the progress, short among the checkpoints so far. key: identifies its content and
    the settings. A restart skips a checkpoint whose `row.path` and key are recorded.
    """

    row: Row
    name: str
    by: Metric
    sha256: str
    key: str

    @property
    def is_collapsed(self) -> bool:
        """As `is_constant`."""
        return is_constant(self.row.score, self.by)

    @property
    def settings(self) -> str:
        """A text that is equal for checkpoints whose values are comparable."""
        parts = [self.by.name, self.row.score.epsilon, sorted(comparable(self.row.score).items())]
        return _digest(repr(parts))


class CompletedFiles:
    """Finds the complete files of a selection, each once per content.

    A file is complete if it is not empty and is unchanged since the last call of `poll`.
    """

    def __init__(self, paths: Paths) -> None:
        self._selection = select(paths)
        self._before: dict[Path, Stamp] = {}
        self._complete: dict[Path, Stamp] = {}

    def poll(self) -> list[Path]:
        """The files that have become complete since the last call."""
        files = files_of(self._selection, lambda _: None)  # a later call may list them
        now = {path: stamp for path in files if (stamp := _stamp(path))}
        complete = {
            path: stamp
            for path, stamp in now.items()
            if stamp == self._before.get(path) and stamp != self._complete.get(path)
        }
        self._before = now
        self._complete |= complete
        return list(complete)

    def is_unchanged(self, path: Path) -> bool:
        """Whether a file is unchanged since `poll` returned it."""
        return _stamp(path) == self._complete.get(path)


def follow(
    paths: Paths,
    settings: RankSettings,
    progress: Progress | None = None,
    recorded: Collection[tuple[str, str]] = (),
) -> Iterator[ScoredCheckpoint | Skipped]:
    """Yields each checkpoint of a selection once it is scored, or the reason why it failed.

    Ends after `settings.watch_for` seconds, if set, but not before the second look. The first
    complete files determine the layer. A feature file is used for the checkpoint whose digest it
    records.

    recorded: path and key of checkpoints that are not scored again.
    Raises SettingsError and InputError as `rank_directory`, except for an empty directory.
    """
    find_order(settings.by, "--watch")
    watch = _Watch(open_session(paths, settings, progress), recorded)
    ends = None if settings.watch_for is None else time.monotonic() + settings.watch_for
    watch.files.poll()  # no file can be complete before the second look
    while True:
        time.sleep(settings.interval)
        is_last = ends is not None and time.monotonic() >= ends
        yield from watch.score(watch.files.poll())
        if is_last:
            return


class _Watch:
    def __init__(self, session: Session, recorded: Collection[tuple[str, str]]) -> None:
        self.files = CompletedFiles(session.selection)
        self._session = session
        self._scan = session.scan
        self._recorded = recorded
        self._scorer: Scorer | None = None

    def score(self, paths: Sequence[Path]) -> Iterator[ScoredCheckpoint | Skipped]:
        """Classify complete files, and score the arrays and new checkpoints among them."""
        new = self._classify(paths)
        arrays = [file for file in self._scan.features if file.is_array]
        self._scan.features[:] = [file for file in self._scan.features if not file.is_array]
        yield from self._failures()
        for file in arrays:
            yield from self._score_array(file)
        if not new:
            return
        if self._scorer is None:
            self._scorer = self._session.open_scorer(self._session.choose_layer())
        scorer = self._scorer
        tasks = [
            task
            for task in scorer.plans(new)
            if (str(task.checkpoint.path), self._key(task.plan)) not in self._recorded
        ]
        tasks.sort(key=lambda task: _order(str(task.checkpoint.path)))
        for task, score in scorer.results(tasks, scorer.score):
            checkpoint = task.checkpoint
            if self.files.is_unchanged(checkpoint.path):
                row = unranked_row(checkpoint.path, checkpoint.aliases, score, self._session.by)
                name, by, key = scorer.name(task), self._session.by, self._key(task.plan)
                yield ScoredCheckpoint(row, name, by, checkpoint.digest, key)
            else:
                # The scored weights may not be the hashed ones. A later look returns it again.
                scorer.cache.remove(task)
                del self._scan.checkpoints[checkpoint.digest]
                path = checkpoint.path
                self._session.progress.note(f"{path}: changed while it was read; read again")
            yield from self._failures()
        yield from self._failures()

    def _score_array(self, file: FeatureFile) -> Iterator[ScoredCheckpoint | Skipped]:
        """Score an array of another program; its state on the disk stands for its content."""
        session, path = self._session, file.path
        digest = _digest(json.dumps(_stamp(path)))
        key = self._key_of(digest)
        if (str(path), key) in self._recorded:
            return
        try:
            score = session.score_features(path, session.settings)
        except NoProcess:
            raise
        except FILE_ERRORS as error:
            self._scan.fail(path, error)
            yield from self._failures()
        else:
            row = unranked_row(path, file.aliases, score, session.by)
            yield ScoredCheckpoint(row, path.name, session.by, digest, key)

    def _classify(self, paths: Sequence[Path]) -> list[Checkpoint]:
        """The checkpoints whose content no earlier file had."""
        session, scan = self._session, self._scan
        before = set(scan.checkpoints)
        recogniser, digests = Recogniser(session.settings), session.digests()
        for path in paths:
            try:
                classify_file(path, scan, recogniser, session.progress, digests)
            except NotOpen as error:  # concerns this file only
                scan.fail(path, error)
        session.note_assumptions()
        for file in scan.skipped:
            session.progress.note(f"skipped: {file.path}: {file.reason}")
        scan.skipped.clear()
        if self._scorer is not None:
            self._scorer.cache.add_features(scan.features)
            scan.features.clear()
        return [one for digest, one in scan.checkpoints.items() if digest not in before]

    def _failures(self) -> Iterator[Skipped]:
        yield from self._scan.failed
        self._scan.failed.clear()

    def _key(self, plan: Plan) -> str:
        return self._key_of(plan.key)

    def _key_of(self, content: str) -> str:
        settings = self._session.settings
        parts = [content, settings.by, settings.delta, settings.epsilon, settings.normalize]
        parts += [settings.confidence, *([settings.groups] if settings.groups else [])]
        return _digest(json.dumps(parts))


def _order(path: str) -> list[int]:
    """A key that sorts checkpoints of a run that land together by step, as far as names say."""
    position = position_in_name(path)
    axes: tuple[Axis, ...] = ("step", "epoch", "number")
    return [-1 if (at := position.on(axis)) is None else at for axis in axes]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: Path) -> Stamp | None:
    """Size, time of change and inode of each file of a checkpoint.

    None if one is absent, or empty: just created. A distributed checkpoint is absent until it has
    .metadata, which is written last.
    """
    stamp: list[int] = []
    try:
        for file in content_files(path):
            status = file.stat()
            if not status.st_size:
                return None
            stamp += (status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError:
        return None
    return tuple(stamp) or None
