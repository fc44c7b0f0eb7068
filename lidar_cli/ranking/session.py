"""Scores the checkpoints that are named and orders them in comparable groups.

Every checkpoint sees the same samples and exactly the same views. Embeddings are cached by the
content of the checkpoint and the settings. A checkpoint that cannot be scored is listed as failed,
with the reason, and does not stop the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lidar_cli.checkpoints.detect import check_assumptions, check_names
from lidar_cli.checkpoints.shapes.inner import names_of
from lidar_cli.configuration import parse_size
from lidar_cli.core.metrics import Metric
from lidar_cli.data.dataset import Samples
from lidar_cli.data.factory import Items
from lidar_cli.data.open import open_samples
from lidar_cli.errors import FILE_ERRORS, InputError, NoProcess, SettingsError
from lidar_cli.extraction.run import note_data, note_precision
from lidar_cli.extraction.view_cache import view_memory
from lidar_cli.features.embeddings import Embeddings
from lidar_cli.features.schema import EMBEDDING_REVISION, revision_of
from lidar_cli.probing.few_shot import check_class_sizes
from lidar_cli.ranking.baseline import Baseline, Untrained, UntrainedNetworks
from lidar_cli.ranking.cache import Cache, CacheFolder, Task
from lidar_cli.ranking.claims import Claims
from lidar_cli.ranking.depth import DepthProfile, depth_profiles
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import (
    Checkpoint,
    DirectoryScan,
    FeatureFile,
    Skipped,
    scan_directory,
)
from lidar_cli.ranking.group_metrics import GroupMetric, find_order
from lidar_cli.ranking.names import name_below, short_names
from lidar_cli.ranking.order import Group, Row, comparable_groups, unranked_row
from lidar_cli.ranking.paths import Paths, Selection, select
from lidar_cli.ranking.runs import Run, find_runs, recorded_positions
from lidar_cli.ranking.scorer import NOT_SCORED, Scorer, score_features
from lidar_cli.ranking.trust import Trust, facts_of_group, judge, noise_warnings
from lidar_cli.runtime.device import (
    MEMORY_SHARE,
    RankInfo,
    check_free_memory,
    find_device,
    free_memory,
    scoring_device,
)
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score, ranked_metrics
from lidar_cli.scoring.open import open_array, open_groups
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import EMBEDDED, ArraySettings, RankSettings, flags
from lidar_cli.views.methods import find_recipe

# Bytes of decoded images that stay in memory from one checkpoint to the next, if so much is free.
DECODED_MEMORY = 2 * 2**30
PROBE = "probe"  # the value of --oracle that names no file
PROBED_LAYER = "backbone"
FAILED = 5  # files whose reasons precede the error that nothing could be ranked


class Session:
    """One selection at one set of settings: what rank, --watch, --race and --oracle probe share.

    Raises SettingsError or InputError for a metric, a device, a cache folder or a table of groups
    that cannot be used.
    """

    def __init__(self, selection: Selection, settings: RankSettings, progress: Progress) -> None:
        self.selection = selection
        self.directory = selection.directory
        self.settings = settings
        self.progress = progress
        self.by = find_order(settings.by)
        self.device = find_device(settings.device)
        self.scoring_device = scoring_device(self.device)
        cleans = not settings.dry_run
        self.folder = CacheFolder(selection.cache_parent, settings.cache, cleans)
        self.groups = open_groups(settings)
        self.scan = DirectoryScan()
        self.array_names: dict[str, str] = {}  # of embeddings in memory, by path

    def score_features(self, path: Path, settings: RankSettings) -> Score:
        """The score of a feature file, by settings that may name another layer than the session's.

        Raises as `scorer.score_features`.
        """
        return score_features(
            path, settings, self.scoring_device, self.progress, self.folder.path, self.groups
        )

    @cached_property
    def samples(self) -> Samples:
        """The samples that every checkpoint sees; they stay decoded as far as memory allows."""
        samples = open_decoded(self.settings)
        note_data(samples, self.settings, self.progress)
        note_precision(self.settings, self.device, self.progress)
        if isinstance(samples, Items):
            self._check_views(samples)
        return samples

    def _check_views(self, items: Items) -> None:
        """Raise SettingsError if the user's samples lack the views that are needed, or have any."""
        if items.n_views < 2 and self.by.needs_two_views:
            raise SettingsError(
                f"--data {items.data}: has q = {items.n_views}, and {self.by.name} needs two views "
                "of a sample; let its items be [q, ...], or order by what needs none: --by rankme",
                code="one-view",
            )
        if items.n_views and self.settings.oracle == PROBE:
            raise SettingsError(
                f"--oracle probe: embeds samples without views, and those of --data {items.data} "
                f"have q = {items.n_views}; give --oracle a CSV file of accuracies",
                code="own-views",
            )

    def digests(self) -> Digests:
        """Digests of the files as they are now."""
        return Digests(self.folder.path, store=not self.settings.dry_run)

    def names(self) -> dict[str, str]:
        """The short names of the scanned checkpoints, and of feature files without one, by path."""
        checkpoints = [checkpoint.path for checkpoint in self.scan.checkpoints.values()]
        features = [file.path for file in self.scan.features_without_checkpoint]
        return short_names([str(path) for path in (*checkpoints, *features)]) | self.array_names

    def scan_directory(self) -> None:
        """Recognise and hash every file. Raises as `discover.scan_directory`."""
        self.scan = scan_directory(self.selection, self.settings, self.progress, self.digests())
        self.note_assumptions()

    def check_labels(self) -> None:
        """Raise InputError as `open_probe_session`, before any checkpoint is embedded.

        The images of the probe are the first of the ranking's, or these and more, which are drawn
        only here.
        """
        count, samples = probe_count(self.settings), self.samples
        if (self.settings.oracle_samples or 0) > len(samples):
            samples = open_samples(replace(self.settings, n_samples=count, clean_samples=None))
        _check_labels(samples, self.settings, count)

    def note_failed(self, failed: Sequence[Skipped]) -> None:
        """Note the first of several failed files, as an error names only one."""
        if len(failed) > 1:
            for file in failed[:FAILED]:
                self.progress.note(f"failed: {file.path}: {file.reason}")

    def note_assumptions(self) -> None:
        """Note what was assumed of the scanned checkpoints, each assumption once."""
        self.scan.note_assumptions(self.progress, self.names())

    def note_same_samples(self, groups: Sequence[Group]) -> None:
        """Note of each group whose files name no samples that these are assumed to be the same."""
        for group in groups:
            if len(group.rows) > 1 and group.common["samples"] is None:
                first, others = self.names()[group.rows[0].path], len(group.rows) - 1
                self.progress.note(
                    f"{first} and {others} other{'s' if others > 1 else ''}: assumed the same "
                    "samples in the same order, since they hold no ids"
                )

    def choose_layer(
        self, features: Sequence[FeatureFile] = (), *, takes_several: bool = False
    ) -> str:
        """The layer to compare of the scanned checkpoints and these feature files.

        For auto, the projector if every file has one, else the backbone, else the only layer that
        all have. With `takes_several`, it may be several with commas, which are embedded; the last
        named orders. Raises SettingsError if the settings name several layers that cannot be
        used, or auto leaves several.
        """
        layer = self.settings.layer
        if "," in layer and not takes_several:
            raise SettingsError(
                f"--layer {layer}: one layer is compared here; name one. rank without --race and "
                "--watch takes several",
                code="several-layers",
            )
        if "," in layer and not self.settings.store:
            raise SettingsError(
                f"--layer {layer}: several layers are scored from stored embeddings; leave out "
                "--no-store, or name one layer",
                code="several-layers",
            )
        if layer != "auto":
            return layer
        files: list[Collection[str]] = [
            checkpoint.description.widths for checkpoint in self.scan.checkpoints.values()
        ]
        # An array has one layer, which is ranked whichever layer of checkpoints is.
        of_lidar = [file for file in features if not file.is_array]
        files += [file.provenance.get("layers", ()) for file in (of_lidar if files else features)]
        without = sum("projector" not in layers for layers in files)
        if without == 0:
            return "projector"
        shared = sorted(set.intersection(*map(set, files)))
        if len(shared) == 1:
            (only,) = shared
            if only != "backbone":
                return only
        elif shared and "backbone" not in shared:
            raise SettingsError(
                f"the files hold the layers {', '.join(shared)}; name one with --layer",
                code="several-layers",
            )
        of = f"{without} of {len(files)} files" if without < len(files) else "the files"
        self.progress.note(f"{of} hold no projector, so the backbone of all is compared")
        return "backbone"

    def open_scorer(self, layer: str) -> Scorer:
        """A scorer of one layer, with the cache and the feature files scanned so far.

        Raises InputError if the data or the cache cannot be used.
        """
        samples = self.samples
        cache = Cache(self.folder, self.settings)
        cache.add_features(self.scan.features)
        settings = replace(self.settings, layer=layer)
        scorer = Scorer(
            cache, samples, settings, self.device, self.progress, self.scan.fail, self.groups
        )
        scorer.names = self.names()
        return scorer


def open_session(paths: Paths, settings: RankSettings, progress: Progress | None = None) -> Session:
    """A session whose settings have been checked as far as is possible before any work.

    Raises SettingsError for a mistyped name or an unknown key of a [recipe] table, InputError if
    there is no such file or folder.
    """
    find_order(settings.by)
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    check_names(settings.format, settings.branch)
    check_assumptions(settings.assume)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    check_free_memory(
        f"--view-memory {settings.view_memory}", view_memory(settings.view_memory) or 0
    )
    return Session(select(paths, settings), settings, progress or Progress())


def open_probe_session(paths: Paths, settings: RankSettings, progress: Progress) -> Session:
    """A session that embeds the backbones of labelled images without views, for linear probes.

    Raises InputError if the data has no labels.
    """
    settings = replace(settings, n_samples=probe_count(settings), clean_samples=None, n_views=0)
    settings = replace(settings, layer=PROBED_LAYER, store=True, collect=False, groups=None)
    session = Session(select(paths, settings), settings, progress)
    session.samples = open_decoded(settings)  # without `note_data`: the ranking has noted the same
    _check_labels(session.samples, settings)
    return session


def _check_labels(samples: Samples, settings: RankSettings, count: int | None = None) -> None:
    """Raise InputError if the first `count` samples have no labels, or too few of a class."""
    if samples.labels is None:
        raise InputError(
            f"--oracle probe: the data {samples.data} has no labels; name data with classes, such "
            "as a folder with a subfolder a class, or give --oracle a CSV file of accuracies",
            code="no-labels",
        )
    if settings.labels_per_class is not None:
        labels = np.asarray(samples.labels[:count])
        _, counts = np.unique(labels[labels >= 0], return_counts=True)
        check_class_sizes(torch.from_numpy(counts), settings.labels_per_class)


def probe_count(settings: RankSettings) -> int:
    """How many images `--oracle probe` embeds."""
    return settings.oracle_samples or settings.clean_samples or settings.n_samples


def open_decoded(settings: RankSettings) -> Samples:
    """The samples that the settings name, each decoded once as far as memory allows."""
    memory = min(DECODED_MEMORY, int(MEMORY_SHARE * free_memory()))
    return open_samples(settings).with_cache(memory)


def toy_data_note(data: str, result: str = "this order is by") -> str | None:
    """A sentence about a result of the embedded images; None for other data.

    data: of the result; several are separated by commas.
    """
    if EMBEDDED not in data.split(", "):
        return None
    return f"{result} toy pictures (small stand-in images), not your data"


# A whole ranking


@dataclass(frozen=True)
class Ranking:
    """The ordered groups of a selection, and the files that are not ranked.

    directory: the folder that all have in common. images: how many the data hold, None if unknown.
    has_labels: whether the data have classes, so that they can be probed.
    is_of_arrays: whether all rows are arrays of embeddings, which cannot be probed.
    embedded: how many checkpoints this process embedded, in `seconds`. command: the words of the
    command line after `lidar`, empty if there is none.
    """

    directory: str
    by: Metric
    level: float  # of the intervals and of the test for ties
    data: str
    groups: tuple[Group, ...]
    runs: tuple[Run, ...] = ()  # see `with_runs`
    baseline: tuple[Baseline, ...] = ()  # with --baseline
    trust: tuple[Trust | None, ...] = ()  # of each group; None if it has no two checkpoints
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)  # by path
    names: Mapping[str, str] = field(default_factory=dict)  # short names, by path
    selection: Paths = ()
    images: int | None = None
    has_labels: bool = False
    is_of_arrays: bool = False
    embedded: int = 0
    seconds: float = 0.0
    command: tuple[str, ...] = ()
    depth: Mapping[str, DepthProfile] = field(default_factory=dict)  # of several layers, by path

    def name(self, path: str) -> str:
        """The short name of a checkpoint; of another file, its path below the directory."""
        return name_below(path, self.names, self.directory)

    def trust_of(self, group: Group) -> Trust | None:
        """Whether the order of one of the groups is to be believed; None if that is unknown."""
        pairs = zip(self.groups, self.trust, strict=False)
        return next((trust for one, trust in pairs if one is group), None)


class Outcome(Enum):
    """Which process has the scores of all checkpoints, and prints the ranking."""

    SCORED = auto()
    SCORED_BY_OTHERS = auto()


def rank_directory(
    paths: Paths,
    settings: RankSettings,
    progress: Progress | None = None,
    arrays: Sequence[Embeddings] = (),
) -> Ranking:
    """Every checkpoint and feature file of a selection, and arrays, scored and ordered.

    paths: a file, a folder or a pattern, or several of them. arrays: embeddings in memory.
    Raises SettingsError for an unknown metric, InputError if a path or the data cannot be
    used, nothing in it could be ranked, or the labels that a probe needs are missing.
    """
    job = _Job(open_session(paths, settings, progress))
    job.score_all(None)
    for embeddings in arrays:
        job.score_array(embeddings)
    return job.ranking()


def rank_together(
    paths: Paths, settings: RankSettings, progress: Progress, rank_info: RankInfo
) -> Ranking | None:
    """The ranking as `rank_directory` returns it, or None if another process prints it.

    Processes that rank the same paths at the same time, on any hosts, divide the checkpoints
    among themselves, and the embedding for linear probes. With torchrun the main process prints the
    ranking; otherwise the process that is first to see that all checkpoints are scored.
    Raises as `rank_directory`.
    """
    settings = rank_info.with_device(settings)
    job = _Job(open_session(paths, settings, progress))
    outcome = job.score_all(rank_info)
    if outcome is Outcome.SCORED and rank_info.is_main:
        return job.ranking()
    if settings.oracle == PROBE:
        embed_for_probes(job.selection, settings, progress, job.checkpoints().values())
    return None


def embed_for_probes(
    paths: Paths,
    settings: RankSettings,
    progress: Progress,
    checkpoints: Collection[Checkpoint],
) -> None:
    """Embed the checkpoints that another process will probe, except those it embeds itself.

    Failures are not reported here, since the other process reports them.
    Raises InputError if the data has no labels.
    """
    scorer = open_probe_session(paths, settings, progress).open_scorer(PROBED_LAYER)
    for _ in scorer.results(scorer.plans(checkpoints), scorer.embed):
        pass


def with_runs(ranking: Ranking) -> Ranking:
    """The ranking with its runs, for which each checkpoint is read once more.

    Raises NoProcess if no process can be started to read files in.
    """
    rows = [row for group in ranking.groups for row in group.rows]
    copies = [path for row in rows if row.path in ranking.checkpoints for path in row.aliases]
    recorded = recorded_positions([*ranking.checkpoints, *copies])
    return replace(ranking, runs=find_runs(ranking.groups, ranking.by, recorded))


class _Job:
    """Scores the files of a session and collects the rows of its ranking."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.selection = session.selection
        if session.selection.arguments:  # else there are only embeddings in memory
            session.scan_directory()
        self._rows: list[Row] = []
        self._used: set[Path] = set()  # feature files from which checkpoints were scored
        self._embedded, self._seconds = 0, 0.0  # checkpoints embedded here, and the time it took
        self._untrained = UntrainedNetworks([], session.settings)

    def score_all(self, rank_info: RankInfo | None) -> Outcome:
        """Score every checkpoint and every feature file without one.

        Returns SCORED_BY_OTHERS if another process will print the ranking.
        rank_info: None if this process prints in any case.
        """
        session, scan = self._session, self._session.scan
        layer = session.choose_layer(scan.features_without_checkpoint, takes_several=True)
        self._note_options_of_arrays()
        self._check_probed()
        if scan.checkpoints:
            if session.settings.oracle == PROBE:
                session.check_labels()
            outcome = self._score_checkpoints(session.open_scorer(layer), rank_info)
            if outcome is Outcome.SCORED_BY_OTHERS:
                return outcome
        for file in scan.features:
            if not scan.has_checkpoint_of(file):
                self._score_features(file, layer)
            elif file.path not in self._used:
                scan.skipped.append(Skipped(str(file.path), _reason_unused(file)))
        return Outcome.SCORED

    def _check_probed(self) -> None:
        """Raise InputError for `--oracle probe` if there are arrays alone, which have no labels."""
        scan = self._session.scan
        arrays = [file for file in scan.features if file.is_array]
        if self._session.settings.oracle != PROBE or not arrays:
            return
        if not scan.checkpoints and len(arrays) == len(scan.features):
            more = f" and {len(arrays) - 1} more: arrays" if len(arrays) > 1 else " is an array"
            raise InputError(
                f"--oracle probe: {arrays[0].path}{more} without labels, and a probe trains on "
                "labelled images of checkpoints or of feature files; give the accuracies in a CSV "
                "file: --oracle FILE",
                code="no-labels",
            )

    def _note_options_of_arrays(self) -> None:
        """Note the files to which a given option does not apply, because it is for arrays."""
        scan, settings = self._session.scan, self._session.settings
        given = [
            flags(option)[0]
            for option in fields(ArraySettings)
            if getattr(settings, option.name) != option.default
        ]
        features = [file.path for file in scan.features_without_checkpoint if not file.is_array]
        others = [*(str(one.path) for one in scan.checkpoints.values()), *map(str, features)]
        if given and others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            self._session.progress.note(
                f"{', '.join(given)}: for arrays of other programs, which {others[0]}{more} "
                f"{'are' if more else 'is'} not; the views of such a file stay as they are"
            )

    def _score_checkpoints(self, scorer: Scorer, rank_info: RankInfo | None) -> Outcome:
        tasks = scorer.plans(self._session.scan.checkpoints.values())
        if self._session.settings.baseline is not None:
            self._untrained = UntrainedNetworks(tasks, self._session.settings)
            tasks += scorer.plans(self._untrained.checkpoints)
        stored = []
        begun = time.monotonic()
        with scorer.claims() as claims:
            for task, score in scorer.divide(tasks, claims, scorer.score):
                if score is None:
                    stored.append(task)
                else:
                    self._add(task, score)
                    self._embedded, self._seconds = self._embedded + 1, time.monotonic() - begun
            if rank_info is not None and not _prints(rank_info, claims):
                return Outcome.SCORED_BY_OTHERS
            for task, score in scorer.stored_results(stored, scorer.score):
                self._add(task, score)
        return Outcome.SCORED

    def _add(self, task: Task, score: Score) -> None:
        checkpoint = task.checkpoint
        if isinstance(checkpoint, Untrained):
            self._untrained.add(checkpoint, score)
            return
        self._rows.append(
            unranked_row(checkpoint.path, checkpoint.aliases, score, self._session.by)
        )
        self._used.add(Path(score.file))

    def _score_features(self, file: FeatureFile, layer: str) -> None:
        """Score a feature file without a checkpoint, or add it to the failed files."""
        session = self._session
        settings = replace(session.settings, layer=layer)
        try:
            score = session.score_features(file.path, settings)
        except NoProcess:
            raise
        except FILE_ERRORS as error:
            session.scan.fail(file.path, error)
        else:
            self._rows.append(unranked_row(file.path, file.aliases, score, session.by))

    def score_array(self, embeddings: Embeddings) -> None:
        """Score embeddings in memory. Raises as `score_layer`."""
        session, name = self._session, embeddings.file
        embeddings = open_array(embeddings, session.settings)
        session.progress.checkpoint(name)
        score = score_layer(
            embeddings,
            session.settings,
            session.scoring_device,
            ranked_metrics(session.settings),
            session.progress,
            session.settings.confidence,
            groups=session.groups,
        )
        self._rows.append(unranked_row(Path(name), (), score, session.by))
        session.array_names[self._rows[-1].path] = name

    def ranking(self) -> Ranking:
        """The ranking of all rows. Raises InputError if there are none, or none has a value."""
        session, rows = self._session, self._rows
        by, skipped = session.by, session.scan.skipped
        networks = {str(network.path) for network in self._untrained.checkpoints}
        failed = [file for file in session.scan.failed if file.path not in networks]
        why_untrained = {
            file.path: file.reason for file in session.scan.failed if file.path in networks
        }
        if not rows:
            session.note_failed(failed)
            left = [*failed, *skipped]
            first = "".join(f"; the first: {file.path}: {file.reason}" for file in left[:1])
            raise InputError(
                f"{session.selection}: nothing could be ranked ({len(failed)} failed, "
                f"{len(skipped)} skipped{first})",
                code="nothing-ranked",
            )
        level = session.settings.confidence
        waiting = [file for file in failed if file.reason.startswith(NOT_SCORED)]
        if waiting and isinstance(by, GroupMetric):
            raise InputError(
                f"--by {by.name}: it is formed from all checkpoints of a group, and {len(waiting)} "
                f"of {len(rows) + len(waiting)} are not scored yet, the first is "
                f"{waiting[0].path}; wait for them, or leave out --by",
                code="incomplete-group",
            )
        groups = comparable_groups(rows, by, level, complete=not waiting)
        session.note_same_samples(groups)
        best = groups[0].rows[0]
        if all(row.value is None for group in groups for row in group.rows):
            raise InputError(
                f"{session.selection}: nothing could be ranked, no checkpoint has a value; "
                f"{best.path}: no {by.name}: {best.reason}; choose another metric with --by",
                code="no-value",
            )
        baselines = self._untrained.baselines(groups, why_untrained)
        ranking = Ranking(
            directory=str(session.directory),
            by=by,
            level=level,
            data=", ".join(sorted({row.score.data for row in rows if row.score.data})),
            groups=groups,
            baseline=baselines,
            trust=tuple(
                judge(facts_of_group(group, by, [one for one in baselines if one.group == at]))
                for at, group in enumerate(groups)
            ),
            skipped=tuple(skipped),
            failed=tuple(failed),
            warnings=tuple(noise_warnings(groups, by)),
            checkpoints=self.checkpoints(),
            names=session.names(),
            selection=session.selection,
            images=session.samples.total if session.scan.checkpoints else None,
            is_of_arrays=not session.scan.checkpoints
            and all(file.is_array for file in session.scan.features),
            has_labels=bool(session.scan.checkpoints) and session.samples.labels is not None,
            embedded=self._embedded,
            seconds=self._seconds,
            depth=self._depth_profiles(),
        )
        return with_runs(ranking) if session.settings.per_run else ranking

    def _depth_profiles(self) -> dict[str, DepthProfile]:
        session, layers = self._session, names_of(self._session.settings.layer)
        if len(layers) < 2:
            return {}
        return depth_profiles(
            self._rows, layers, session.settings, session.scoring_device, session.progress
        )

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The checkpoints that did not fail, by path."""
        failed = {file.path for file in self._session.scan.failed}
        checkpoints = {str(one.path): one for one in self._session.scan.checkpoints.values()}
        return {path: one for path, one in checkpoints.items() if path not in failed}


def _prints(rank_info: RankInfo, claims: Claims) -> bool:
    return rank_info.is_main if rank_info.ranks > 1 else claims.first_to_print()


def _reason_unused(file: FeatureFile) -> str:
    """Why the score of a checkpoint in the directory was not computed from this feature file."""
    revision = revision_of(file.provenance)
    if revision == EMBEDDING_REVISION:
        return "features of a checkpoint here, at other settings than asked for"
    return f"features of embedding revision {revision}; this lidar embeds at {EMBEDDING_REVISION}"
