"""Scores of checkpoints: from what a folder keeps of them, else from embedding them anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lidar_cli.checkpoints import Loaded, sha256, stamp
from lidar_cli.errors import FeatureFileError, InputError, LidarError, SettingsError, Unresumable
from lidar_cli.features import partial_path, read_first, read_provenance
from lidar_cli.jobs.embedding.batches import Pass
from lidar_cli.jobs.embedding.plan import Plan, make_plan
from lidar_cli.jobs.embedding.view_store import Room, ViewStore
from lidar_cli.jobs.extract import changed, open_with, run, stem
from lidar_cli.jobs.ranking.claims import Claims, set_apart
from lidar_cli.jobs.ranking.stored import ordering, score_features, serves
from lidar_cli.jobs.ranking.survey import Checkpoint, FeatureFile
from lidar_cli.jobs.ranking.unstored import score_unstored
from lidar_cli.jobs.score import score, with_intervals
from lidar_cli.jobs.scoring.saved_score import SavedScore
from lidar_cli.jobs.scoring.sheet import EVERY_METRIC, Score
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples
from lidar_cli.settings import ExtractSettings, RankSettings
from lidar_cli.views import Views

LOOK = 0.5  # seconds between two looks at what other processes make


@dataclass(frozen=True)
class Scored:
    """A score, with influences on the metric that orders alone, and the provenance of it.

    path: the file that it was read from, of embeddings or of the score itself.
    """

    score: Score
    provenance: dict[str, Any]
    path: Path


Task = tuple[Checkpoint, Plan]


class Cache:
    """Scores of checkpoints, each from a file that exists already, else made and kept in a folder.

    features: those of the directory, which serve where they hold what is wanted.
    Raises InputError if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        features: Sequence[FeatureFile],
        layer: str,
        samples: Samples,
        settings: RankSettings,
        device: torch.device,
        watcher: Watcher,
    ) -> None:
        self._folder = folder
        self._features: dict[str, list[FeatureFile]] = {}  # by the digest of their checkpoint
        for file in features:
            self._features.setdefault(str(file.provenance.get("sha256")), []).append(file)
        self._layer = layer
        self._samples = samples
        self._settings = settings
        self._device = device
        self._watcher = watcher
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: the cache cannot be written ({error.strerror}); "
                "name another place with --cache"
            ) from error

    def plan(self, checkpoint: Checkpoint) -> Plan:
        """What is to be computed for a checkpoint. Raises what `make_plan` raises."""
        return make_plan(
            checkpoint.description,
            str(checkpoint.path),
            checkpoint.digest,
            self._samples,
            self._extract_settings(),
            self._device,
        )

    def plans(
        self, checkpoints: Iterable[Checkpoint], fail: Callable[[Path, Exception], None]
    ) -> list[Task]:
        """Each checkpoint with its plan, but for those that fail.

        Raises InputError or SettingsError where the images or the command are at fault.
        """
        found = []
        for checkpoint in checkpoints:
            with failing(checkpoint, fail):
                found.append((checkpoint, self.plan(checkpoint)))
        return found

    @contextmanager
    def shared_views(self, tasks: Sequence[Task]) -> Iterator[ViewStore | None]:
        """A store for the views of checkpoints that see the same ones, while they are scored.

        None where fewer than two of them are to be embedded, or the settings want none.
        """
        waiting = sum(not self._has(checkpoint, plan) for checkpoint, plan in tasks)
        room = None
        if waiting > 1:
            room = Room.of(self._settings.view_memory, self._device, self._folder)
        if room is None:
            yield None
            return
        with ViewStore(room, self._device, self._folder) as store:
            yield store

    def score_each(
        self,
        checkpoints: Iterable[Checkpoint],
        fail: Callable[[Path, Exception], None],
        wanted: Callable[[Checkpoint, Plan], bool] = lambda checkpoint, plan: True,
        tells: Callable[[Claims], bool] = lambda claims: True,
    ) -> Iterator[tuple[Checkpoint, Plan, Scored]]:
        """The scores of those that are wanted; checkpoints with the same views share them.

        Those that another process is making are waited for, and made here if it dies.
        fail: takes what is wrong with one checkpoint, which does not stop the others.
        tells: asked once all are made, whether this process is to have the scores of those that it
        did not make as well.
        Raises InputError or SettingsError where the images or the command are at fault, since
        every checkpoint would meet the same.
        """
        by_views: dict[Views, list[Task]] = {}
        for checkpoint, plan in self.plans(checkpoints, fail):
            if wanted(checkpoint, plan):
                by_views.setdefault(plan.views, []).append((checkpoint, plan))
        with Claims(self._folder / "claims", self._settings.claim_timeout) as claims:
            later: list[Task] = []
            for tasks in by_views.values():
                with self.shared_views(tasks) as store:
                    for task in tasks:
                        if self._has(*task):
                            later.append(task)
                        elif self._settings.collect:
                            at_it = "; a process is at it" if claims.held(self._name(task)) else ""
                            fail(task[0].path, FeatureFileError(f"not scored yet{at_it}"))
                        else:
                            settled, scored = self._make(task, claims, fail, store)
                            if not settled:
                                later.append(task)
                            elif scored is not None:
                                yield *task, scored
            while waiting := [task for task in later if not self._has(*task)]:
                for task in waiting:
                    settled, scored = self._make(task, claims, fail)
                    if settled:
                        later.remove(task)
                    if scored is not None:
                        yield *task, scored
                if len(waiting) == len([task for task in later if not self._has(*task)]):
                    time.sleep(LOOK)
            if not tells(claims):
                return
            for task in later:
                scored = None
                with failing(task[0], fail):
                    scored = self.score(*task)
                if scored is not None:
                    yield *task, scored

    def _make(
        self,
        task: Task,
        claims: Claims,
        fail: Callable[[Path, Exception], None],
        store: ViewStore | None = None,
    ) -> tuple[bool, Scored | None]:
        """Whether a checkpoint is settled, for another process is not making it; its score."""
        checkpoint, plan = task
        with failing(checkpoint, fail), claims.hold(self._name(task)) as claim:
            if claim is None:
                return False, None
            if claim.taken:
                own = self._own(checkpoint, plan)
                set_apart(partial_path(own), own)
            try:
                return True, self.score(checkpoint, plan, store)
            except FeatureFileError:
                if claims.lost(claim):
                    return False, None
                raise
        return True, None

    def _name(self, task: Task) -> str:
        return self._own(*task).name

    def forget(self, checkpoint: Checkpoint, plan: Plan) -> None:
        """Remove what the folder keeps of a checkpoint, since it was made of another content."""
        self._own(checkpoint, plan).unlink(missing_ok=True)
        self._saved(checkpoint, plan).path.unlink(missing_ok=True)

    def score(self, checkpoint: Checkpoint, plan: Plan, store: ViewStore | None = None) -> Scored:
        """The score of a checkpoint. Raises what embedding and scoring raise."""
        for features in self._features_of(checkpoint, plan):
            with suppress(FeatureFileError):  # damaged, or not what its name says: made anew
                provenance = read_provenance(features)
                if serves(provenance, plan):
                    return self._score(features, provenance)
        if not self._settings.store:
            return self._score_unstored(checkpoint, plan, store)
        features = self._own(checkpoint, plan)
        self._extract(checkpoint, plan, features, store)
        return self._score(features, read_provenance(features))

    def score_first(
        self, checkpoint: Checkpoint, plan: Plan, n: int, store: ViewStore | None = None
    ) -> Scored:
        """The score of the first n samples by the one metric, embedded as interrupted work.

        Raises what embedding and scoring raise.
        """
        for features in self._features_of(checkpoint, plan):
            with suppress(FeatureFileError):  # damaged, or not what its name says: made anew
                if serves(read_provenance(features), plan):
                    return self.score_part(features, n)
        features = self._own(checkpoint, plan)
        self._extract(checkpoint, plan, features, store, until=n)
        return self.score_part(features, n)

    def score_part(self, features: Path, n: int) -> Scored:
        """The score of the first n samples of a file, or of what there is of it."""
        embeddings = read_first(features, self._layer, n)
        by, level = self._settings.by, self._settings.confidence
        found = score(
            embeddings, self._settings, self._device, frozenset({by}), self._watcher, level
        )
        return Scored(found, embeddings.provenance, features)

    def _own(self, checkpoint: Checkpoint, plan: Plan) -> Path:
        return self._folder / f"{stem(checkpoint.path)}-{plan.key}.h5"

    def _saved(self, checkpoint: Checkpoint, plan: Plan) -> SavedScore:
        return SavedScore(self._folder, stem(checkpoint.path), plan, self._settings)

    def _features_of(self, checkpoint: Checkpoint, plan: Plan) -> list[Path]:
        """Where features would be that serve, the directory's own first."""
        known = self._features.get(checkpoint.digest, ())
        same = [file.path for file in known if serves(file.provenance, plan)]
        own = self._own(checkpoint, plan)
        return [*same[:1], *([own] if own.exists() else [])]

    def _has(self, checkpoint: Checkpoint, plan: Plan) -> bool:
        """Whether a checkpoint need not be embedded, unless a file turns out to be damaged."""
        saved = self._saved(checkpoint, plan).path.exists() and not self._settings.store
        return saved or bool(self._features_of(checkpoint, plan))

    def _score(self, path: Path, provenance: dict[str, Any]) -> Scored:
        result = score_features(
            path, self._layer, self._settings, self._device, self._watcher, self._folder
        )
        return Scored(result, provenance, path)

    def _extract(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        output: Path,
        store: ViewStore | None,
        until: int | None = None,
    ) -> None:
        loaded, watcher = self._open(checkpoint), self._watcher

        def carry_out(settings: ExtractSettings) -> None:
            run(plan, loaded, self._samples, settings, output, self._device, watcher, store, until)

        settings = replace(self._extract_settings(), overwrite=output.exists())
        try:
            carry_out(settings)
        except Unresumable:  # a partial file that is damaged, or of another device or version
            carry_out(replace(settings, overwrite=True, resume=False))

    def _score_unstored(
        self, checkpoint: Checkpoint, plan: Plan, store: ViewStore | None
    ) -> Scored:
        saved = self._saved(checkpoint, plan)
        found = saved.read()
        if found is None:
            loaded = self._open(checkpoint)
            work = Pass(plan, loaded, self._samples, self._device, self._settings.workers, store)
            found = score_unstored(work, self._settings, self._watcher)
            saved.write(found)
        result = found.score
        assert result.rankme_rows is not None
        level, rows = self._settings.confidence, result.rankme_rows
        result = with_intervals(
            result, EVERY_METRIC, result.influences, rows, level, found.without_influences
        )
        return Scored(ordering(result, self._settings.by), found.provenance, saved.path)

    def _open(self, checkpoint: Checkpoint) -> Loaded:
        """The weights that were hashed, since what is made of them is kept under their digest."""
        path = checkpoint.path
        loaded = open_with(path, self._settings, self._device)
        if stamp(path) != checkpoint.stamp and sha256(path) != checkpoint.digest:
            raise changed(path)
        return loaded

    def _extract_settings(self) -> ExtractSettings:
        shared = {
            name: getattr(self._settings, name)
            for name in ExtractSettings.__dataclass_fields__
            if hasattr(self._settings, name)
        }
        return ExtractSettings(**(shared | {"layer": self._layer, "resume": True}))


@contextmanager
def failing(checkpoint: Checkpoint, fail: Callable[[Path, Exception], None]) -> Iterator[None]:
    """What is wrong with a checkpoint gives it its place among the failed, and ends there."""
    try:
        yield
    except (InputError, SettingsError):
        raise
    except (LidarError, OSError) as error:
        fail(checkpoint.path, error)
