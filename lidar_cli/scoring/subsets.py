"""Metrics of parts of a file beside those of all of it, from one pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lidar_cli.core.metrics import METRICS
from lidar_cli.features.blocks import Chunk, Embeddings
from lidar_cli.runtime.device import find_device
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.compute import Score
from lidar_cli.scoring.convergence import Convergence, Point, advise, parts_of
from lidar_cli.scoring.groups import Grouping
from lidar_cli.scoring.run import open_embeddings, parse_metrics, score_gathered
from lidar_cli.scoring.streaming import Gathered, enough_memory, read_into
from lidar_cli.settings import MetricSettings, ScoreSettings

OF_ROWS = ("rows", "covariance")  # what metrics read that views do not change


def converge_file(
    path: Path,
    settings: ScoreSettings,
    progress: Progress | None = None,
    groups: Grouping | None = None,
) -> list[Score]:
    """What `score_file` gives, each score with its `convergence`. Raises what it raises."""
    progress = progress or Progress()
    wanted = parse_metrics(settings.metrics)
    device = find_device(settings.device)
    return [
        converge(embeddings, settings, device, wanted, progress, settings.confidence, groups)
        for embeddings in open_embeddings(path, settings)
    ]


def converge(
    embeddings: Embeddings,
    settings: MetricSettings,
    device: torch.device,
    wanted: frozenset[str],
    progress: Progress,
    level: float | None = None,
    groups: Grouping | None = None,
) -> Score:
    """The wanted metrics of one layer, as `score` gives them to rounding, with those of its parts.

    Memory: the moments of five states instead of one. Raises what `score` raises.
    """
    if embeddings.note:
        progress.note(embeddings.note)
    with enough_memory(embeddings):
        parts = _Parts(embeddings, settings, device, wanted)
        read_into(parts, embeddings, settings, progress)
        *firsts, (_, state) = parts.merged()
        whole = score_gathered(embeddings, settings, state, wanted, progress, level, groups=groups)
        n_rows = state.rows.n
        last = _point(whole, n_rows, wanted)
        samples = [
            _point(score_gathered(part, settings, its, wanted, progress), its.rows.n, wanted)
            for part, its in firsts
        ]
        of_views = parts.of_views
        views = [
            _point(score_gathered(part, settings, its, of_views, progress), n_rows, of_views)
            for part, its in parts.by_views
        ]
    intervals = whole.confidence.intervals if whole.confidence else {}
    reach = {
        name: interval.ci_high - value
        for name, interval in intervals.items()
        if interval.ci_high is not None and (value := whole.value(name)) is not None
    }
    by_samples = (*samples, last)
    advice = advise(by_samples, embeddings.shape[2], reach)
    convergence = Convergence(by_samples, (*views, last) if whole.n_views else (), advice)
    return replace(whole, convergence=convergence)


def _point(score: Score, n_rows: int, wanted: frozenset[str]) -> Point:
    values = {name: score.value(name) for name in METRICS if name in wanted}
    return Point(score.n_samples, score.n_views, n_rows, values)


class _Parts:
    """Moments of the stretches between n/4, n/2 and n samples, which merge, and of q/4, q/2 views.

    Views of a part overlap with those of the next, so each number of views has moments of its own.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        settings: MetricSettings,
        device: torch.device,
        wanted: frozenset[str],
    ) -> None:
        n, q, _ = embeddings.shape
        self._embeddings = embeddings
        self._rows = embeddings.clean.shape[0] if embeddings.clean is not None else n
        self._ends = [(count, count * self._rows // max(1, n)) for count in parts_of(n)]
        self._stretches = [Gathered(embeddings, settings, device, wanted) for _ in self._ends]
        self.of_views = frozenset(name for name in wanted if METRICS[name].reads not in OF_ROWS)
        counts = parts_of(q)[:-1] if q and self.of_views else ()
        parts = [embeddings.first(n, count, self._rows) for count in counts]
        self.by_views = [(p, Gathered(p, settings, device, self.of_views)) for p in parts]

    def update(self, chunk: Chunk) -> None:
        """Add a chunk of whole samples, each to the stretch that it lies in."""
        first = (0, 0)
        for end, state in zip(self._ends, self._stretches, strict=True):
            views, clean = (
                part[max(0, low - chunk.start) : max(0, high - chunk.start)]
                if part is not None
                else None
                for part, low, high in zip((chunk.views, chunk.clean), first, end, strict=True)
            )
            state.update(Chunk(chunk.start, chunk.stop, views, clean))
            first = end
        if chunk.views is not None:
            for part, state in self.by_views:
                views = chunk.views[:, : part.shape[1]]
                state.update(Chunk(chunk.start, chunk.stop, views, None))

    def merged(self) -> list[tuple[Embeddings, Gathered]]:
        """A quarter, a half and all of the samples, with their moments."""
        q, state = self._embeddings.shape[1], self._stretches[0]
        found = []
        for (n, rows), stretch in zip(self._ends, self._stretches, strict=True):
            state = state if stretch is state else state.merge(stretch)
            found.append((self._embeddings.first(n, q, rows), state))
        return found
