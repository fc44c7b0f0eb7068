"""Scores of many checkpoints, each read from the cache or computed once by one of the processes.

Processes that rank the same directory divide the checkpoints by claims; a claim of a dead process
is taken over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.checkpoints.reading.read import sha256, stamp
from lidar_cli.checkpoints.shapes.inner import names_of
from lidar_cli.data.dataset import Samples
from lidar_cli.data.factory import Items
from lidar_cli.errors import FILE_ERRORS, FeatureFileError, InputError, SettingsError, Unresumable
from lidar_cli.extraction.engine import EmbeddingModel, ViewSource
from lidar_cli.extraction.plan import image_size, make_plan
from lidar_cli.extraction.run import changed_error, note_disk_use, open_with, run
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache, view_memory
from lidar_cli.features.reader import read_first, read_provenance
from lidar_cli.features.schema import EMBEDDING_REVISION, partial_path
from lidar_cli.features.writer import begun_path
from lidar_cli.ranking.baseline import Untrained
from lidar_cli.ranking.cache import Cache, Task, matches_plan
from lidar_cli.ranking.claims import Claims, replace_by_copy
from lidar_cli.ranking.discover import Checkpoint
from lidar_cli.ranking.group_metrics import ORDERS, needed_parts, parts_of
from lidar_cli.ranking.names import short_names
from lidar_cli.ranking.unstored import add_intervals, score_unstored
from lidar_cli.runtime.device import scoring_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, ranked_metrics
from lidar_cli.scoring.intervals import Grouping
from lidar_cli.scoring.open import open_layer
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import ExtractSettings, RankSettings
from lidar_cli.views.pipeline import Views

NOT_SCORED = "not scored yet"  # begins the reason of a checkpoint that --collect waits for
FIRST_PAUSE = 0.5  # seconds between two checks of what other processes have stored
LONGEST_PAUSE = 4.0  # the pause doubles up to this while nothing changes
PATIENCE = 3.0  # seconds of waiting before a note says so

T = TypeVar("T")
Work = Callable[[Task, ViewCache | None], T]


class Scorer:
    """Embeds and scores the checkpoints of one directory at one set of settings.

    settings: their `layer` is the one layer that is compared, or several of which the last is.
    fail: receives each checkpoint that cannot be scored, and the reason; the others continue.
    groups: groups of samples, for intervals and ties; the cache does not depend on them.
    """

    def __init__(
        self,
        cache: Cache,
        samples: Samples,
        settings: RankSettings,
        device: torch.device,
        progress: Progress,
        fail: Callable[[Path, Exception], None],
        groups: Grouping | None = None,
    ) -> None:
        self.cache = cache
        self._samples = samples
        self._settings = settings
        self._device = device
        self._progress = progress
        self._fail = fail
        self._groups = groups
        self._noted: set[str] = set()
        self.names: dict[str, str] = {}  # short names, by path
        self._to_embed: set[str] = set()  # paths that no process has begun, as far as is known

    # Many checkpoints

    def plans(self, checkpoints: Iterable[Checkpoint]) -> list[Task]:
        """A task for each checkpoint that does not fail.

        Raises InputError or SettingsError for a fault of the images or the command, which concerns
        every checkpoint.
        """
        tasks = []
        checkpoints = list(checkpoints)
        files = [str(one.path) for one in checkpoints if not isinstance(one, Untrained)]
        self.names = short_names([*self.names, *files])
        for checkpoint in checkpoints:
            with self._reporting_failure(checkpoint):
                plan = make_plan(
                    checkpoint.description,
                    str(checkpoint.path),
                    checkpoint.digest,
                    self._samples,
                    self._settings,
                    self._device,
                )
                tasks.append(Task(checkpoint, plan))
        self._note_image_size(tasks)
        outdated = self.cache.count_outdated(tasks)
        if outdated:
            self._progress.note(
                f"{outdated} of {len(tasks)} checkpoints are embedded again: their rows are "
                f"of another embedding revision than {EMBEDDING_REVISION}"
            )
        return tasks

    def _note_image_size(self, tasks: Sequence[Task]) -> None:
        """Note the size of the views of checkpoints whose weights do not determine it."""
        by_text: dict[str, list[str]] = {}
        if isinstance(self._samples, Items):
            return
        for checkpoint in (task.checkpoint for task in tasks):
            _, assumed = image_size(self._settings, checkpoint.description, self._samples)
            if assumed is not None and not isinstance(checkpoint, Untrained):
                name = self.names.get(str(checkpoint.path), str(checkpoint.path))
                by_text.setdefault(assumed.text("image_size"), []).append(name)
        for text, (first, *others) in by_text.items():
            if text in self._noted:  # of an earlier checkpoint of --watch
                continue
            self._noted.add(text)
            more = f" and {len(others)} other{'s' if len(others) > 1 else ''}"
            self._progress.note(f"{first}{more if others else ''}: assumed {text}")

    def note_disk_space(self, tasks: Sequence[Task]) -> None:
        """Note the space that the embeddings of these tasks will take, unless one is begun."""
        if self._settings.collect or not self._settings.store:
            return
        missing = [task for task in tasks if not self.cache.has(task)]
        begun = any(partial_path(self.cache.features_path(task)).exists() for task in missing)
        if len(missing) > 1 and not begun:
            folder = self.cache.path
            size = sum(task.plan.layout.nbytes for task in missing)
            what = f"{folder}: {len(missing)} checkpoints will take"
            note_disk_use(what, size, folder, self._progress)

    @contextmanager
    def shared_views(self, tasks: Sequence[Task]) -> Iterator[ViewCache | None]:
        """A cache of the views that all these tasks see, so that each view is drawn once.

        None if fewer than two tasks need embedding, or the settings allow no memory for it.
        """
        waiting = sum(not self.cache.has(task) for task in tasks)
        if waiting < 2 or not self.can_share_views:
            yield None
            return
        room = CacheLimits.of(self._settings.view_memory, self._device, self.cache.path)
        with ViewCache(room, self._device, self.cache.path) as store:
            yield store

    @property
    def can_share_views(self) -> bool:
        """Whether a view that several checkpoints see is drawn once, if there is room for it."""
        allowed = view_memory(self._settings.view_memory) != 0
        return allowed and not isinstance(self._samples, Items)

    def begin(self, tasks: Sequence[Task]) -> None:
        """Report to the progress that these tasks come next."""
        names = [self.name(task) for task in tasks]
        paths = (str(task.checkpoint.path) for task in tasks if not self.cache.has(task))
        self._to_embed = set(paths)
        self._progress.begin(names, len(self._to_embed), self._shown)

    @property
    def _shown(self) -> str:
        """The metric that the progress shows: of one of a group, what it is formed from first."""
        return parts_of(ORDERS[self._settings.by])[0]

    def name(self, task: Task) -> str:
        """The short name of the checkpoint of a task."""
        path = str(task.checkpoint.path)
        return self.names.get(path, path)  # an untrained network is named by itself

    def report_finished(
        self, task: Task, result: object, begun: float, cached: bool = False
    ) -> None:
        """Report a finished task to the progress, with its value if the result is a score."""
        value = result.value(self._shown) if isinstance(result, Score) else None
        seconds = time.monotonic() - begun
        self._progress.finished(self.name(task), value, seconds, cached)

    def claims(self) -> Claims:
        """The claims of processes that share the cache, as this one sees them."""
        return Claims(self.cache.claims, self._settings.claim_timeout)

    def results(self, tasks: Sequence[Task], work: Work[T]) -> Iterator[tuple[Task, T]]:
        """The result of `work` for every task that does not fail, whichever process computed it.

        Raises InputError or SettingsError for a fault of the images or the command.
        """
        stored: list[Task] = []
        with self.claims() as claims:
            for task, computed in self.divide(tasks, claims, work):
                if computed is None:
                    stored.append(task)
                else:
                    yield task, computed
            yield from self.stored_results(stored, work)

    def stored_results(self, tasks: Iterable[Task], work: Work[T]) -> Iterator[tuple[Task, T]]:
        """The result of `work` for each stored task, computed again if it is damaged."""
        for task in tasks:
            computed, name, begun = None, self.name(task), time.monotonic()
            self._progress.checkpoint(name)
            with self._reporting_failure(task.checkpoint):
                computed = work(task, None)
            if computed is None:
                self._progress.failed(name)
            else:
                self.report_finished(task, computed, begun, cached=True)
                yield task, computed

    def divide(
        self, tasks: Sequence[Task], claims: Claims, work: Work[T]
    ) -> Iterator[tuple[Task, T | None]]:
        """Every task that does not fail, and its result if this process computed it, else None.

        Waits for tasks that other processes have claimed, and computes those whose process died.
        """
        self.note_disk_space(tasks)
        self.begin(tasks)
        by_views: dict[Views, list[Task]] = {}
        for task in tasks:
            by_views.setdefault(task.plan.views, []).append(task)
        claimed: list[Task] = []
        for same_views in by_views.values():
            with self.shared_views(same_views) as views:
                claimed += yield from self._work_through(same_views, claims, work, views)
        pause, began, is_noted = FIRST_PAUSE, time.monotonic(), False
        while claimed:
            before = len(claimed)
            claimed = yield from self._work_through(claimed, claims, work)
            if len(claimed) < before:
                pause = FIRST_PAUSE
                continue
            if not is_noted and time.monotonic() - began >= PATIENCE:
                self._note_waiting(claimed)
                is_noted = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _work_through(
        self, tasks: Iterable[Task], claims: Claims, work: Work[T], views: ViewCache | None = None
    ) -> Generator[tuple[Task, T | None], None, list[Task]]:
        """Yields as `divide`; returns the tasks that other processes have claimed."""
        claimed = []
        for task in tasks:
            path, name, computed = self.cache.features_path(task), self.name(task), None
            begun = time.monotonic()
            if self.cache.has(task):
                self._leave_to_others(task)
                yield task, None
                continue
            if self._settings.collect:
                claimed_by = "; a process is working on it" if claims.is_claimed(path.name) else ""
                self._fail(task.checkpoint.path, FeatureFileError(f"{NOT_SCORED}{claimed_by}"))
                self._progress.failed(name)
                continue
            with self._reporting_failure(task.checkpoint), claims.hold(path.name) as claim:
                if claim is None:
                    self._leave_to_others(task)
                    claimed.append(task)
                    continue
                self._progress.checkpoint(name)
                if claim.taken_over:
                    begun_path(path).unlink(missing_ok=True)
                    replace_by_copy(partial_path(path), path)
                try:
                    computed = work(task, views)
                except FeatureFileError:
                    if not claims.is_lost(claim):
                        raise
                    claimed.append(task)
                    continue
            if computed is None:
                self._progress.failed(name)
            else:
                self.report_finished(task, computed, begun)
                yield task, computed
        return claimed

    def _leave_to_others(self, task: Task) -> None:
        """Report to the progress, once, that another process embeds a task."""
        path = str(task.checkpoint.path)
        if path in self._to_embed:
            self._to_embed.discard(path)
            self._progress.embedded_elsewhere()

    def _note_waiting(self, tasks: Sequence[Task]) -> None:
        self._progress.note(
            f"waiting for other processes that work on {len(tasks)} checkpoints, the first is "
            f"{tasks[0].checkpoint.path}; a process that gives no sign of life is replaced after "
            f"{self._settings.claim_timeout:g} seconds (--claim-timeout; claims are in "
            f"{self.cache.claims})"
        )

    @contextmanager
    def _reporting_failure(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Report an error in the block as the failure of this checkpoint, and continue after it."""
        try:
            yield
        except FILE_ERRORS as error:
            if concerns_every_checkpoint(error):
                raise
            self._fail(checkpoint.path, error)

    # One checkpoint

    def score(self, task: Task, views: ViewCache | None = None) -> Score:
        """The score of a checkpoint, computed unless it is stored.

        views: the cache that tasks with the same views share. Raises what embedding and scoring
        raise.
        """
        if self._settings.store:
            return self._from_features(task, self._score_file, views)
        stored = self._from_stored(task, self._score_file)
        return self._score_unstored(task, views) if stored is None else stored

    def embed(self, task: Task, views: ViewCache | None = None) -> Path:
        """The feature file of a checkpoint, written unless it is there. Raises as `score_layer`."""
        return self._from_features(task, lambda path: path, views)

    def score_first(
        self, task: Task, counts: Sequence[int], views: ViewCache | None = None
    ) -> list[Score]:
        """For each count, the score of that many first samples.

        It has the metric that orders, and the one that shows a constant embedding.
        Embeds samples up to the first count and leaves a partial file. Raises as `score_layer`.
        """

        def score_each_count(path: Path) -> list[Score]:
            return [self._score_part(path, n) for n in counts]

        return self._from_features(task, score_each_count, views, until=counts[0])

    def _from_stored(self, task: Task, use: Callable[[Path], T]) -> T | None:
        """The result of `use` on the stored features of a task; None if none is intact."""
        for path in self.cache.stored_features(task):
            with suppress(FeatureFileError):  # damaged, or not what its name says
                if matches_plan(read_provenance(path), task.plan):
                    return use(path)
        return None

    def _from_features(
        self,
        task: Task,
        use: Callable[[Path], T],
        views: ViewCache | None,
        until: int | None = None,
    ) -> T:
        """The result of `use` on the features of a task, which are embedded unless they are stored.

        until: how many samples are needed; None for all.
        """
        stored = self._from_stored(task, use)
        if stored is not None:
            return stored
        path = self.cache.features_path(task)
        self._extract(task, path, views, until)
        return use(path)

    def _score_file(self, path: Path) -> Score:
        return score_features(
            path,
            self._settings,
            scoring_device(self._device),
            self._progress,
            self.cache.path,
            self._groups,
        )

    def _score_part(self, path: Path, n: int) -> Score:
        return score_layer(
            read_first(path, self._settings.layer, n),
            self._settings,
            scoring_device(self._device),
            frozenset({self._settings.by, "normalized_std"}),
            self._progress,
            self._settings.confidence,
            groups=self._groups,
        )

    def _extract(
        self, task: Task, output: Path, views: ViewCache | None, until: int | None
    ) -> None:
        model, source = self.model_and_views(task, views)
        with suppress(FeatureFileError):  # the rows from the damaged one on are embedded
            if count := self.cache.begin_with_fewer(task, self._samples):
                total = task.plan.layout.n_clean
                self._progress.note(f"{count} of {total} samples of each are in the cache already")

        def run_with(settings: ExtractSettings) -> None:
            run(model, source, settings, output, self._progress, until)

        # All other settings are in the plan.
        batch_size, workers = self._settings.batch_size, self._settings.workers
        settings = ExtractSettings(
            batch_size=batch_size, workers=workers, resume=True, overwrite=output.exists()
        )
        try:
            run_with(settings)
        except Unresumable:  # a partial file that is damaged, or of another device or version
            run_with(replace(settings, overwrite=True, resume=False))

    def _score_unstored(self, task: Task, views: ViewCache | None) -> Score:
        saved = self.cache.saved_score(task)
        computed = saved.read()
        if computed is None:
            model, source = self.model_and_views(task, views)
            computed = score_unstored(model, source, self._settings, self._progress)
            saved.write(computed)
        scored = add_intervals(computed, self._samples, self._settings, self._groups)
        return with_influences_of(scored, self._settings.by)

    def model_and_views(
        self, task: Task, views: ViewCache | None
    ) -> tuple[EmbeddingModel, ViewSource]:
        """The opened model of a task, and its views."""
        embedder, device = self._open(task.checkpoint), self._device
        form, workers = embedder.memory_format, self._settings.workers
        source = ViewSource(task.plan, self._samples, device, form, workers, views)
        return EmbeddingModel(task.plan, embedder, device), source

    def _open(self, checkpoint: Checkpoint) -> Embedder:
        """The opened checkpoint. Raises CheckpointError if it is not the hashed content."""
        path, settings = checkpoint.path, self._settings
        if isinstance(checkpoint, Untrained):
            return checkpoint.open(settings, self._device)
        if settings.model is None and settings.prefix is None:  # else `layer` may select another
            settings = replace(settings, branch=checkpoint.description.branch)
        loaded = open_with(path, settings, self._device)
        is_hashed = stamp(path) == checkpoint.stamp or sha256(path) == checkpoint.digest
        if not is_hashed or loaded.description.branch != checkpoint.description.branch:
            raise changed_error(path)
        return loaded


def concerns_every_checkpoint(error: BaseException) -> bool:
    """Whether an error is a fault of the images or the command, and not of one checkpoint.

    BadRows, which is an InputError too, is a fault of one feature file.
    """
    is_general = isinstance(error, InputError | SettingsError)
    return is_general and not isinstance(error, FeatureFileError)


def score_features(
    path: Path,
    settings: RankSettings,
    device: torch.device,
    progress: Progress,
    cache: Path,
    groups: Grouping | None = None,
) -> Score:
    """The score of one layer of a feature file, with the influences that ordering needs alone.

    cache: the folder that stores the influences on every metric.
    groups: groups of samples, within which influences are summed.
    Raises what `read_hdf5` and `score_layer` raise.
    """
    embeddings = open_layer(path, replace(settings, layer=names_of(settings.layer)[-1]))
    level, wanted = settings.confidence, ranked_metrics(settings)
    scored = score_layer(
        embeddings, settings, device, wanted, progress, level, cache, groups=groups
    )
    return with_influences_of(scored, settings.by)


def with_influences_of(scored: Score, by: str) -> Score:
    """The score with the influences that ties by `by` and by the second opinion need.

    The n influences on each metric are little memory for one checkpoint, but not for ten thousand.
    """
    needed = scored.influences.keys() & needed_parts(by)
    influences = {name: scored.influences[name] for name in needed}
    return replace(scored, influences=influences)
