"""The metric that orders at every named layer of each checkpoint, from the stored embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lidar_cli.errors import FeatureFileError
from lidar_cli.features.reader import read_hdf5
from lidar_cli.ranking.group_metrics import ORDERS, parts_of
from lidar_cli.ranking.order import Row
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.run import score_layer
from lidar_cli.settings import RankSettings


@dataclass(frozen=True)
class DepthProfile:
    """One metric at several layers of a checkpoint, in order of depth.

    values: by layer; None where the metric has no value or the file lacks the layer.
    pooling: of the layers inside the backbone, in words.
    """

    metric: str
    values: Mapping[str, float | None]
    pooling: Mapping[str, str]


def depth_profiles(
    rows: Iterable[Row],
    layers: list[str],
    settings: RankSettings,
    device: torch.device,
    progress: Progress,
) -> dict[str, DepthProfile]:
    """The profile of each row by its path; one layer after the other is read, in chunks.

    For a metric of a group it is of the first of the metrics that form it.
    """
    metric = parts_of(ORDERS[settings.by])[0]
    profiles = {}
    for row in rows:
        provenance = row.score.provenance
        stored = [name for name in provenance.get("layers") or () if name in layers]
        values: dict[str, float | None] = {}
        for layer in [*stored, *(name for name in layers if name not in stored)]:
            if layer == row.score.layer:
                values[layer] = row.score.value(metric)
                continue
            try:
                (embeddings,) = read_hdf5(Path(row.score.file), layer)
            except FeatureFileError:
                values[layer] = None
                continue
            scored = score_layer(embeddings, settings, device, frozenset({metric}), progress)
            values[layer] = scored.value(metric)
        profiles[row.path] = DepthProfile(metric, values, provenance.get("pooling") or {})
    return profiles
