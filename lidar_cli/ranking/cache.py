"""Scores of checkpoints: from what a folder keeps of them, else from embedding them anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lidar_cli.checkpoints.models.embedder import Loaded
from lidar_cli.checkpoints.reading.read import sha256, stamp
from lidar_cli.data.dataset import Samples
from lidar_cli.errors import FILE_ERRORS, FeatureFileError, InputError, SettingsError, Unresumable
from lidar_cli.extraction.batches import Pass
from lidar_cli.extraction.plan import Plan, identity, make_plan
from lidar_cli.extraction.run import changed, open_with, run, say_room, stem
from lidar_cli.extraction.view_cache import Room, ViewStore
from lidar_cli.features.blocks import Names
from lidar_cli.features.reader import read_first, read_hdf5, read_provenance
from lidar_cli.features.schema import EMBEDDING_REVISION, partial_path, revision_of
from lidar_cli.features.writer import begun_path
from lidar_cli.ranking.cache_folder import CacheFolder
from lidar_cli.ranking.claims import Claims, set_apart
from lidar_cli.ranking.discover import Checkpoint, FeatureFile
from lidar_cli.ranking.unstored import score_unstored
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import EVERY_METRIC, Score
from lidar_cli.scoring.groups import Grouping
from lidar_cli.scoring.run import score, with_intervals
from lidar_cli.scoring.saved import SavedScore
from lidar_cli.settings import ExtractSettings, RankSettings
from lidar_cli.views.pipeline import Views

LOOK = 0.5  # seconds between two looks at what other processes make,
LONGEST_PAUSE = 4.0  # and where nothing changes for long
PATIENCE = 3.0  # seconds of waiting for others until that is said


@dataclass(frozen=True)
class Scored:
    """A score, with influences on the metric that orders alone, and the provenance of it.

    path: the file that it was read from, of embeddings or of the score itself.
    """

    score: Score
    provenance: dict[str, Any]
    path: Path


T = TypeVar("T")
Task = tuple[Checkpoint, Plan]
Make = Callable[[Checkpoint, Plan, ViewStore | None], T]


class Cache:
    """Scores of checkpoints, each from a file that exists already, else made and kept in a folder.

    features: those of the directory, which serve where they hold what is wanted.
    groups: of samples, which intervals and ties allow for; what is kept does not depend on them.
    Raises InputError if the folder cannot be written.
    """

    def __init__(
        self,
        folder: CacheFolder,
        features: Sequence[FeatureFile],
        layer: str,
        samples: Samples,
        settings: RankSettings,
        device: torch.device,
        progress: Progress,
        groups: Grouping | None = None,
    ) -> None:
        self._folder = folder.make()
        self._claims = folder.claims
        self._groups = groups
        # By the digest of their checkpoint, then by their path.
        self._features: dict[str, dict[Path, FeatureFile]] = {}
        self._checkpoint_of: dict[Path, str] = {}
        self.add_features(features)
        self._layer = layer
        self._samples = samples
        self._settings = settings
        self._device = device
        self._progress = progress

    def add_features(self, files: Iterable[FeatureFile]) -> None:
        """Let feature files serve the checkpoints that they name; a path counts as it is last."""
        for file in files:
            digest = str(file.provenance.get("sha256"))
            if file.path in self._checkpoint_of:
                del self._features[self._checkpoint_of[file.path]][file.path]
            self._checkpoint_of[file.path] = digest
            self._features.setdefault(digest, {})[file.path] = file

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
        self._note_outdated(found)
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
        yield from self._each(checkpoints, fail, self.score, wanted, tells)

    def embed_each(
        self, checkpoints: Iterable[Checkpoint], fail: Callable[[Path, Exception], None]
    ) -> Iterator[tuple[Checkpoint, Plan, Path]]:
        """A feature file of each checkpoint, embedded unless there is one; shared as scores are.

        Raises InputError or SettingsError as `score_each`.
        """
        yield from self._each(checkpoints, fail, self.embedded)

    def _each(
        self,
        checkpoints: Iterable[Checkpoint],
        fail: Callable[[Path, Exception], None],
        make: Make[T],
        wanted: Callable[[Checkpoint, Plan], bool] = lambda checkpoint, plan: True,
        tells: Callable[[Claims], bool] = lambda claims: True,
    ) -> Iterator[tuple[Checkpoint, Plan, T]]:
        by_views: dict[Views, list[Task]] = {}
        for checkpoint, plan in self.plans(checkpoints, fail):
            if wanted(checkpoint, plan):
                by_views.setdefault(plan.views, []).append((checkpoint, plan))
        if self._settings.store and not self._settings.collect:
            self._say_room([task for tasks in by_views.values() for task in tasks])
        with Claims(self._claims, self._settings.claim_timeout) as claims:
            there: list[Task] = []
            claimed: list[Task] = []  # by other processes
            for tasks in by_views.values():
                with self.shared_views(tasks) as store:
                    for task in tasks:
                        if self._has(*task):
                            there.append(task)
                        elif self._settings.collect:
                            at_it = "; a process is at it" if claims.held(self._name(task)) else ""
                            fail(task[0].path, FeatureFileError(f"not scored yet{at_it}"))
                        else:
                            settled, result = self._make(task, claims, fail, make, store)
                            if not settled:
                                claimed.append(task)
                            elif result is not None:
                                yield *task, result
            yield from self._claimed_by_others(claimed, there, claims, fail, make)
            if not tells(claims):
                return
            for task in there:
                result = None
                with failing(task[0], fail):
                    result = make(*task, None)
                if result is not None:
                    yield *task, result

    def _claimed_by_others(
        self,
        claimed: list[Task],
        there: list[Task],
        claims: Claims,
        fail: Callable[[Path, Exception], None],
        make: Make[T],
    ) -> Iterator[tuple[Checkpoint, Plan, T]]:
        """Wait for what others are making, into `there`, and make what they leave undone."""
        pause, began, is_said = LOOK, time.monotonic(), False
        while claimed:
            waiting = []
            for task in claimed:
                if self._has(*task):
                    there.append(task)
                    continue
                settled, result = self._make(task, claims, fail, make)
                if not settled:
                    waiting.append(task)
                elif result is not None:
                    yield *task, result
            if len(waiting) < len(claimed):
                pause = LOOK
            else:
                if not is_said and time.monotonic() - began >= PATIENCE:
                    self._say_waiting(waiting)
                    is_said = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            claimed = waiting

    def _say_waiting(self, tasks: Sequence[Task]) -> None:
        self._progress.note(
            f"waiting for other processes that have {len(tasks)} checkpoints in hand, the first is "
            f"{tasks[0][0].path}; one that gives no sign of life is replaced after "
            f"{self._settings.claim_timeout:g} seconds (--claim-timeout; claims are in "
            f"{self._claims})"
        )

    def _note_outdated(self, tasks: Sequence[Task]) -> None:
        """Say in one line how many are embedded again though rows of another revision exist."""
        stored: dict[str, list[Path]] = {}  # names less the key of the plan -> files in the folder
        for file in self._folder.glob("*.h5"):
            stored.setdefault(file.name.rpartition("-")[0], []).append(file)
        outdated = []
        for checkpoint, plan in tasks:
            if self._has(checkpoint, plan):
                continue
            files = self._features.get(checkpoint.digest, {}).values()
            records = [file.provenance for file in files]
            for path in stored.get(stem(checkpoint.path), ()):
                with suppress(FeatureFileError):
                    records.append(read_provenance(path))
            revisions = {
                revision_of(record)
                for record in records
                if record.get("sha256") == checkpoint.digest
            }
            if revisions and EMBEDDING_REVISION not in revisions:
                outdated.append(checkpoint)
        if outdated:
            self._progress.note(
                f"{len(outdated)} of {len(tasks)} checkpoints are embedded again: their rows are "
                f"of another embedding revision than {EMBEDDING_REVISION}"
            )

    def _say_room(self, tasks: Sequence[Task]) -> None:
        missing = [task for task in tasks if not self._has(*task)]
        begun = sum(partial_path(self._own(*task)).exists() for task in missing)
        size = sum(plan.layout.nbytes for _, plan in missing)
        if len(missing) > 1 and not begun:
            what = f"{self._folder}: {len(missing)} checkpoints will take"
            say_room(what, size, self._folder, self._progress)

    def _make(
        self,
        task: Task,
        claims: Claims,
        fail: Callable[[Path, Exception], None],
        make: Make[T],
        store: ViewStore | None = None,
    ) -> tuple[bool, T | None]:
        """Whether a checkpoint is settled, for another process is not making it; its result."""
        checkpoint, plan = task
        with failing(checkpoint, fail), claims.hold(self._name(task)) as claim:
            if claim is None:
                return False, None
            if claim.taken:
                own = self._own(checkpoint, plan)
                begun_path(own).unlink(missing_ok=True)
                set_apart(partial_path(own), own)
            try:
                return True, make(checkpoint, plan, store)
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

    def embedded(self, checkpoint: Checkpoint, plan: Plan, store: ViewStore | None = None) -> Path:
        """A feature file of a checkpoint, made unless it is there. Raises what embedding raises."""
        for features in self._features_of(checkpoint, plan):
            with suppress(FeatureFileError):  # damaged, or not what its name says: made anew
                if serves(read_provenance(features), plan):
                    return features
        features = self._own(checkpoint, plan)
        self._extract(checkpoint, plan, features, store)
        return features

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
            embeddings,
            self._settings,
            self._device,
            frozenset({by}),
            self._progress,
            level,
            groups=self._groups,
        )
        return Scored(found, embeddings.provenance, features)

    def _own(self, checkpoint: Checkpoint, plan: Plan) -> Path:
        return self._folder / f"{stem(checkpoint.path)}-{plan.key}.h5"

    def _saved(self, checkpoint: Checkpoint, plan: Plan) -> SavedScore:
        return SavedScore(self._folder, stem(checkpoint.path), plan, self._settings)

    def _features_of(self, checkpoint: Checkpoint, plan: Plan) -> list[Path]:
        """Where features would be that serve, the directory's own first."""
        files = self._features.get(checkpoint.digest, {}).values()
        same = [file.path for file in files if serves(file.provenance, plan)]
        own = self._own(checkpoint, plan)
        return [*same[:1], *([own] if own.exists() else [])]

    def _has(self, checkpoint: Checkpoint, plan: Plan) -> bool:
        """Whether a checkpoint need not be embedded, unless a file turns out to be damaged."""
        saved = self._saved(checkpoint, plan).path.exists() and not self._settings.store
        return saved or bool(self._features_of(checkpoint, plan))

    def _score(self, path: Path, provenance: dict[str, Any]) -> Scored:
        result = score_features(
            path,
            self._layer,
            self._settings,
            self._device,
            self._progress,
            self._folder,
            self._groups,
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
        loaded, progress = self._open(checkpoint), self._progress

        def carry_out(settings: ExtractSettings) -> None:
            run(plan, loaded, self._samples, settings, output, self._device, progress, store, until)

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
            found = score_unstored(work, self._settings, self._progress)
            saved.write(found)
        result = found.score
        assert result.rankme_rows is not None
        level, rows = self._settings.confidence, result.rankme_rows
        groups = None
        if self._groups is not None:
            samples = self._samples
            names = Names(samples.ids[:rows], samples.labels and samples.labels[:rows])
            groups = self._groups.of_names(samples.data, names)
        result = with_intervals(
            result, EVERY_METRIC, result.influences, rows, level, found.without_influences, groups
        )
        return Scored(ordering(result, self._settings.by), found.provenance, saved.path)

    def _open(self, checkpoint: Checkpoint) -> Loaded:
        """The weights that were hashed, since what is made of them is kept under their digest."""
        path, settings = checkpoint.path, self._settings
        if settings.model is None:  # the layer alone may choose another branch than the plan has
            settings = replace(settings, branch=checkpoint.description.branch)
        loaded = open_with(path, settings, self._device)
        hashed = stamp(path) == checkpoint.stamp or sha256(path) == checkpoint.digest
        if not hashed or loaded.description.branch != checkpoint.description.branch:
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
    except FeatureFileError as error:
        fail(checkpoint.path, error)
    except (InputError, SettingsError):
        raise
    except FILE_ERRORS as error:
        fail(checkpoint.path, error)


def score_features(
    path: Path,
    layer: str,
    settings: RankSettings,
    device: torch.device,
    progress: Progress,
    cache: Path,
    groups: Grouping | None = None,
) -> Score:
    """The score of one layer of a feature file, with influences on the metric that orders alone.

    cache: the folder that keeps the influences on every metric.
    groups: of samples, within which they are summed.
    Raises what `read_hdf5` and `score` raise.
    """
    (embeddings,) = read_hdf5(path, layer)
    level = settings.confidence
    found = score(embeddings, settings, device, EVERY_METRIC, progress, level, cache, groups=groups)
    return ordering(found, settings.by)


def ordering(found: Score, by: str) -> Score:
    """The score without the influences that its order does not need.

    n numbers a metric are little for one checkpoint, and much for ten thousand.
    """
    kept = {name: found.influences[name] for name in found.influences.keys() & {by}}
    return replace(found, influences=kept)


def serves(provenance: dict[str, Any], plan: Plan) -> bool:
    """Whether stored features hold what a plan would compute, perhaps beside other layers."""
    told, wanted = identity(provenance), plan.identity
    layers = set(told.pop("layers", ())), set(wanted.pop("layers"))
    return layers[1] <= layers[0] and told == wanted
