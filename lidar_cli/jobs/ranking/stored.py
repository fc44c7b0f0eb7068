"""Features that are there already: whether they serve, and their score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lidar_cli.features import read_hdf5
from lidar_cli.jobs.embedding.plan import Plan, identity
from lidar_cli.jobs.score import score
from lidar_cli.jobs.scoring.groups import Grouping
from lidar_cli.jobs.scoring.sheet import EVERY_METRIC, Score
from lidar_cli.jobs.watch import Watcher
from lidar_cli.settings import RankSettings


def score_features(
    path: Path,
    layer: str,
    settings: RankSettings,
    device: torch.device,
    watcher: Watcher,
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
    found = score(embeddings, settings, device, EVERY_METRIC, watcher, level, cache, groups=groups)
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
