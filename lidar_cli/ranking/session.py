"""A directory of checkpoints to ordered, comparable groups.

Every checkpoint sees the same samples and the very same views. Features are kept in a cache, named
by the content of the checkpoint and of the settings; a broken checkpoint becomes a row with its
reason and never stops the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lidar_cli.checkpoints.detect import check_assumptions
from lidar_cli.checkpoints.match import check_names
from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.data.open import open_samples
from lidar_cli.errors import FILE_ERRORS, InputError, NoProcess, SettingsError, nearest
from lidar_cli.extraction.run import tell_of
from lidar_cli.extraction.view_cache import view_memory
from lidar_cli.features.schema import EMBEDDING_REVISION, revision_of
from lidar_cli.ranking.cache import Cache, Scored, score_features
from lidar_cli.ranking.cache_folder import CacheFolder
from lidar_cli.ranking.claims import Claims
from lidar_cli.ranking.digests import Digests
from lidar_cli.ranking.discover import Checkpoint, FeatureFile, Skipped, survey
from lidar_cli.ranking.oracle_probe import PROBE, help_embedding
from lidar_cli.ranking.order import Group, Row, grouped, misleading
from lidar_cli.runtime.device import MEMORY_SHARE, check_free_memory, find_device, free_memory
from lidar_cli.runtime.distributed import RankInfo
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.groups import Grouping
from lidar_cli.scoring.intervals import Interval
from lidar_cli.scoring.run import open_groups
from lidar_cli.settings import RankSettings, parse_size
from lidar_cli.views.lookup import find_recipe

# Bytes of decoded images kept from one checkpoint to the next, if so much is free.
DECODED_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Ranking:
    """All that `rank` found under a directory."""

    directory: str
    by: Metric
    level: float  # of the intervals and of the test that names ties
    data: str
    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)  # by path


def rank_directory(
    directory: Path, settings: RankSettings, progress: Progress | None = None
) -> Ranking:
    """Every checkpoint and feature file under a directory, scored and ordered.

    Raises SettingsError for an unknown metric, InputError if the directory or the data cannot be
    used or nothing in it could be ranked.
    """
    progress = progress or Progress()
    job = _Job(directory, checked(directory, settings), settings, progress)
    job.score_all(lambda claims: True)
    return job.ranking()


def rank_together(
    directory: Path, settings: RankSettings, progress: Progress, rank_info: RankInfo
) -> Ranking | None:
    """What `rank_directory` gives, or None where another process tells it.

    Processes that rank the same directory at the same time divide it, wherever they run, and what
    linear probes need of it. Of those
    of an engine the first one tells, else the first to find that all is made.
    Raises what `rank_directory` raises.
    """
    settings = rank_info.with_device(settings)
    job = _Job(directory, checked(directory, settings), settings, progress)

    def tells(claims: Claims) -> bool:
        return rank_info.is_main if rank_info.ranks > 1 else claims.first_to_tell()

    if job.score_all(tells) and rank_info.is_main:
        return job.ranking()
    if settings.oracle == PROBE:
        help_embedding(job.checkpoints().values(), str(directory), settings, progress)
    return None


def checked(directory: Path, settings: RankSettings) -> Metric:
    """The metric that orders, once all that can be checked before the work was.

    Raises SettingsError for a mistyped name or an unknown key of a [recipe] table, InputError if
    there is no such directory.
    """
    by = find_metric(settings.by)
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    check_names(settings.format, settings.branch)
    check_assumptions(settings.assume)
    check_free_memory(f"--memory {settings.memory}", parse_size(settings.memory))
    check_free_memory(
        f"--view-memory {settings.view_memory}", view_memory(settings.view_memory) or 0
    )
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; rank takes a directory of checkpoints")
    return by


def find_metric(name: str) -> Metric:
    """The metric of a name. Raises SettingsError."""
    if name not in METRICS:
        raise SettingsError(f"--by {name}: no such metric; {nearest(name, list(METRICS))}")
    return METRICS[name]


class _Job:
    def __init__(
        self, directory: Path, by: Metric, settings: RankSettings, progress: Progress
    ) -> None:
        self.directory = directory
        self.by = by
        self.settings = settings
        self.progress = progress
        self.device = find_device(settings.device)
        self.cache = CacheFolder(directory, settings.cache)
        digests = Digests(directory, self.cache.path)
        self.groups = open_groups(settings)
        self.found = survey(directory, settings, progress, digests)
        self.scored: list[tuple[Row, dict[str, Any]]] = []  # each with its provenance

    def score_all(self, tells: Callable[[Claims], bool]) -> bool:
        """Embed and score each checkpoint and each feature file that stands for itself.

        Not the ones that others made, and False, where `tells` says so.
        """
        every = [
            *(set(known.description.widths) for known in self.found.checkpoints.values()),
            *(set(file.provenance.get("layers", ())) for file in self.found.alone),
        ]
        layer = one_layer(self.settings.layer, every, self.progress)
        used: set[Path] = set()
        if self.found.checkpoints:
            answers: list[bool] = []

            def ask(claims: Claims) -> bool:
                answers.append(tells(claims))
                return answers[-1]

            used = self._score_checkpoints(layer, ask)
            if answers == [False]:
                return False
        for file in self.found.features:
            if not self.found.holds(file):
                try:
                    result = score_features(
                        file.path,
                        layer,
                        self.settings,
                        self.device,
                        self.progress,
                        self.cache.path,
                        self.groups,
                    )
                    self._place(file.path, (), Scored(result, file.provenance, file.path))
                except NoProcess:
                    raise
                except FILE_ERRORS as error:
                    self.found.fail(file.path, error)
            elif file.path not in used:
                reason = "features of a checkpoint here, at other settings than asked for"
                revision = revision_of(file.provenance)
                if revision != EMBEDDING_REVISION:
                    reason = (
                        f"features of embedding revision {revision}; this lidar embeds at "
                        f"{EMBEDDING_REVISION}"
                    )
                self.found.skipped.append(Skipped(str(file.path), reason))
        return True

    def ranking(self) -> Ranking:
        """What was scored, in order. Raises InputError if nothing was, or nothing has a value."""
        by, failed = self.by, self.found.failed
        if not self.scored:
            first = f"; the first: {failed[0].path}: {failed[0].reason}" if failed else ""
            raise InputError(
                f"{self.directory}: nothing could be ranked ({len(failed)} failed, "
                f"{len(self.found.skipped)} skipped{first})"
            )
        if all(row.value is None for row, _ in self.scored):
            row, _ = self.scored[0]
            raise InputError(
                f"{self.directory}: nothing could be ranked, no checkpoint has a value; "
                f"{row.path}: no {by.name}: {row.reason}; choose another metric with --by"
            )
        groups = grouped(self.scored, by, self.settings.confidence)
        return Ranking(
            directory=str(self.directory),
            by=by,
            level=self.settings.confidence,
            data=", ".join(sorted({str(told.get("data")) for _, told in self.scored})),
            groups=groups,
            skipped=tuple(self.found.skipped),
            failed=tuple(failed),
            warnings=tuple(misleading(groups, by)),
            checkpoints=self.checkpoints(),
        )

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Those that did not fail, by path."""
        failed = {left.path for left in self.found.failed}
        every = ((str(one.path), one) for one in self.found.checkpoints.values())
        return {path: one for path, one in every if path not in failed}

    def _score_checkpoints(self, layer: str, tells: Callable[[Claims], bool]) -> set[Path]:
        """Score every checkpoint. The feature files that were used."""
        cache = open_cache(
            self.cache,
            self.settings,
            self.found.features,
            layer,
            self.device,
            self.progress,
            self.groups,
        )
        used: set[Path] = set()
        checkpoints = self.found.checkpoints.values()
        each = cache.score_each(checkpoints, self.found.fail, tells=tells)
        for checkpoint, _, scored in each:
            self._place(checkpoint.path, tuple(checkpoint.aliases), scored)
            used.add(scored.path)
        return used

    def _place(self, path: Path, aliases: tuple[str, ...], scored: Scored) -> None:
        self.scored.append((row_of(path, aliases, scored, self.by), scored.provenance))


def open_cache(
    folder: CacheFolder,
    settings: RankSettings,
    features: Sequence[FeatureFile],
    layer: str,
    device: torch.device,
    progress: Progress,
    groups: Grouping | None = None,
) -> Cache:
    """What scores checkpoints and keeps what it made in a folder, on samples that stay decoded.

    features: those of the directory that is ranked; groups: as in `Cache`.
    Raises InputError if the data or the folder cannot be used.
    """
    samples = open_samples(settings).remembering(
        min(DECODED_MEMORY, int(MEMORY_SHARE * free_memory()))
    )
    tell_of(samples, progress)
    return Cache(folder, features, layer, samples, settings, device, progress, groups)


def row_of(path: Path, aliases: tuple[str, ...], scored: Scored, by: Metric) -> Row:
    """A scored checkpoint as a row, without its rank."""
    sure = scored.score.confidence
    return Row(
        str(path),
        aliases,
        scored.score,
        scored.score.value(by.name),
        scored.score.notes.get(by.name),
        sure.intervals[by.name] if sure else Interval(),
    )


def one_layer(asked: str, every: Sequence[Collection[str]], progress: Progress) -> str:
    """The one layer that is compared: for auto, projector if every file has one, else backbone.

    every: the layers of each file. Raises SettingsError where several are asked for.
    """
    if asked != "auto":
        if "," in asked:
            raise SettingsError(f"--layer {asked}: rank compares one layer")
        return asked
    without = sum("projector" not in layers for layers in every)
    if without:
        of = f"{without} of {len(every)} files" if without < len(every) else "the files"
        progress.note(f"{of} hold no projector, so the backbone of all is compared")
    return "backbone" if without else "projector"
