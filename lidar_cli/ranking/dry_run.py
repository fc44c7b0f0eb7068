"""What a ranking would do: its checkpoints, groups and cache, and its time, disk and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lidar_cli.checkpoints.shapes.inner import ordering_layer
from lidar_cli.errors import FILE_ERRORS, InputError
from lidar_cli.extraction.measure import Measured, measure
from lidar_cli.extraction.plan import Plan
from lidar_cli.ranking.baseline import UntrainedNetworks
from lidar_cli.ranking.cache import Task
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.joining import Joined, Member, differing, join
from lidar_cli.ranking.order import views_and_statistics
from lidar_cli.ranking.paths import Paths
from lidar_cli.ranking.scorer import Scorer, concerns_every_checkpoint
from lidar_cli.ranking.session import (
    PROBE,
    PROBED_LAYER,
    Session,
    open_probe_session,
    open_session,
)
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import RankSettings
from lidar_cli.views.pipeline import Views


@dataclass(frozen=True)
class DryRun:
    """A ranking before it begins.

    folders: how many the checkpoints are in. groups: the settings of each comparable group, and its
    number of checkpoints. joined: the fewest groups that options give. seconds: to embed what is
    not cached, untrained networks and images of linear probes included; None if nothing is to be
    embedded.
    """

    directory: str
    cache: str
    checkpoints: int
    folders: int
    architectures: tuple[str, ...]
    methods: tuple[str, ...]
    groups: tuple[tuple[dict[str, Any], int], ...]
    joined: Joined
    cached: int
    plan: Plan
    seconds: float | None
    disk: int
    memory: int | None
    skipped: tuple[Skipped, ...]
    failed: tuple[Skipped, ...]

    @property
    def differ(self) -> list[str]:
        """The settings that keep the groups apart."""
        return differing([common for common, _ in self.groups])


def dry_run(paths: Paths, settings: RankSettings, progress: Progress | None = None) -> DryRun:
    """Plan a ranking, and measure a batch of each architecture. Nothing is stored.

    settings: with `dry_run`. Raises as `rank_directory`.
    """
    session = open_session(paths, settings, progress)
    session.scan_directory()
    layer = session.choose_layer(session.scan.features_without_checkpoint, takes_several=True)
    scorer = session.open_scorer(layer)
    tasks = scorer.plans(session.scan.checkpoints.values())
    if not tasks:
        session.note_failed(session.scan.failed)
        failed = "".join(f"; {file.path}: {file.reason}" for file in session.scan.failed[:1])
        raise InputError(
            f"{session.selection}: no checkpoint to embed{failed}", code="no-checkpoint"
        )
    missing = [task for task in tasks if not scorer.cache.has(task)]
    cached = len(tasks) - len(missing)
    if settings.baseline is not None:
        networks = scorer.plans(UntrainedNetworks(tasks, settings).checkpoints)
        missing += [network for network in networks if not scorer.cache.has(network)]
    parts = [(session, scorer, missing)]
    if settings.oracle == PROBE:
        parts.append(_probes(session, tasks))
    measured = [result for part in parts if (result := _measure(*part)) is not None]
    descriptions = [task.checkpoint.description for task in tasks]
    return DryRun(
        directory=str(session.directory),
        cache=str(session.folder.path),
        checkpoints=len(tasks),
        folders=len({task.checkpoint.path.parent for task in tasks}),
        architectures=tuple(dict.fromkeys(one.arch for one in descriptions)),
        methods=tuple(dict.fromkeys(one.format for one in descriptions)),
        groups=_groups(tasks, layer),
        joined=join(
            [Member(_common(task, layer), task.checkpoint.description.widths) for task in tasks]
        ),
        cached=cached,
        plan=tasks[0].plan,
        seconds=sum(seconds for seconds, _ in measured) if measured else None,
        disk=sum(
            task.plan.layout.nbytes
            for one, _, embedded in parts
            if one.settings.store
            for task in embedded
        ),
        memory=max((memory for _, memory in measured), default=None),
        skipped=tuple(session.scan.skipped),
        failed=tuple(session.scan.failed),
    )


def _probes(session: Session, tasks: Sequence[Task]) -> tuple[Session, Scorer, list[Task]]:
    """What is to be embedded of the same checkpoints for linear probes."""
    probes = open_probe_session(session.selection, session.settings, session.progress)
    scorer = probes.open_scorer(PROBED_LAYER)
    plans = scorer.plans(task.checkpoint for task in tasks)
    return probes, scorer, [task for task in plans if not scorer.cache.has(task)]


def _measure(session: Session, scorer: Scorer, tasks: Sequence[Task]) -> tuple[float, int] | None:
    """Seconds to embed the tasks, and bytes of memory, from a batch of each architecture."""
    measured: dict[str, Measured] = {}
    drawn: dict[Views, int] = {}  # how many samples' views are drawn, and shared
    seconds = 0.0
    for task in tasks:
        layout = task.plan.layout
        key = repr((task.checkpoint.description.arch, task.plan.views.image_size, layout))
        if key not in measured:
            session.progress.update("measuring architectures", len(measured), len(measured) + 1)
            try:
                model, source = scorer.model_and_views(task, None)
                measured[key] = measure(model, source, session.settings.batch_size)
            except FILE_ERRORS as error:
                if concerns_every_checkpoint(error):
                    raise
                session.scan.fail(task.checkpoint.path, error)
                continue
        is_stored = session.settings.store
        stored = scorer.cache.count_of_fewer(task, session.samples) if is_stored else 0
        one, missing = measured[key], layout.n_clean - stored
        shared = min(missing, drawn.get(task.plan.views, 0))
        seconds += one.seconds * missing - one.drawing * shared
        if scorer.can_share_views:
            drawn[task.plan.views] = max(missing, drawn.get(task.plan.views, 0))
    if not measured:
        return None
    return seconds, max(one.memory for one in measured.values())


def _groups(tasks: Sequence[Task], layer: str) -> tuple[tuple[dict[str, Any], int], ...]:
    """The settings by which checkpoints are comparable, as far as their plans determine them."""
    counts: dict[str, tuple[dict[str, Any], int]] = {}
    for task in tasks:
        common = _common(task, layer)
        key = repr(sorted(common.items()))
        counts[key] = common, counts.get(key, (common, 0))[1] + 1
    return tuple(sorted(counts.values(), key=lambda group: -group[1]))


def _common(task: Task, option: str) -> dict[str, Any]:
    provenance, widths = task.plan.provenance, task.plan.layout.widths
    layer = ordering_layer(option, widths)
    views, statistics = views_and_statistics(provenance["views"])
    return {
        "views": views,
        "pixel statistics": statistics,
        "image size": provenance.get("image_size"),
        "mask grid": provenance.get("mask_grid"),
        "d": widths[layer],
        "layer": layer,
    }
