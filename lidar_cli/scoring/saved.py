"""A score in a small file: values, spectra and influences, without the embeddings.

A safetensors file whose name has a hash of the plan and the constants: tensors `spectrum/NAME` [k]
and `influence/METRIC` [n], the other fields as JSON in the header. It has the influences on every
metric that has any, so that intervals at any level, and ties by any metric, need no embeddings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import FeatureFileError, first_line
from lidar_cli.extraction.plan import Plan
from lidar_cli.runtime.files import check_regular, parse_json, write_atomic
from lidar_cli.scoring.compute import Score, ranked_metrics
from lidar_cli.scoring.influences import METHOD
from lidar_cli.settings import OrderSettings

SUFFIX = ".score"


@dataclass(frozen=True)
class ScoreWithoutIntervals:
    """A score with influences but without intervals, which depend on the level.

    why_no_influences: the reason if influences could not be computed, else None.
    """

    score: Score
    provenance: dict[str, Any]
    why_no_influences: str | None


class SavedScore:
    """The file that stores the score of one plan at the constants of the settings.

    folder, stem: the folder of the file, and the beginning of its name.
    """

    def __init__(self, folder: Path, stem: str, plan: Plan, settings: OrderSettings) -> None:
        self._wanted = ranked_metrics(settings)
        self._identity = json.dumps(
            [METHOD, plan.identity, settings.delta, settings.epsilon, settings.normalize],
            sort_keys=True,
        )
        key = hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self.path = folder / f"{stem}-{key}{SUFFIX}"

    def read(self) -> ScoreWithoutIntervals | None:
        """The score; None if the file is absent, damaged, or lacks a metric that is wanted."""
        return read_score(self.path, self._wanted, self._identity)

    def write(self, computed: ScoreWithoutIntervals) -> None:
        """Save a score atomically.

        Raises FeatureFileError if the file cannot be written.
        """
        score = computed.score
        tensors = {
            f"spectrum/{name}": torch.tensor(values, dtype=torch.float64)
            for name, values in score.spectra.items()
        }
        tensors |= {f"influence/{name}": one.contiguous() for name, one in score.influences.items()}
        record = [score.record(), computed.provenance, computed.why_no_influences]
        header = {"identity": self._identity, "record": json.dumps(record, allow_nan=False)}
        try:
            write_atomic(self.path, save(tensors, header))  # another rank may write the same
        except OSError as error:
            raise FeatureFileError(
                f"{self.path}: cannot be written: {first_line(error)}; free some space"
            ) from error


def read_score(
    path: Path, wanted: AbstractSet[str] = frozenset(), identity: str | None = None
) -> ScoreWithoutIntervals | None:
    """The score in a file; None as `SavedScore.read`.

    wanted: metrics that it must have. identity: that it must have, None for any.
    """
    try:
        check_regular(path, follow=False)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if identity is not None and identity not in header.values():
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields, provenance, without = parse_json(header["record"])
        if not METRICS.keys() <= fields.keys():
            return None
        fields["alpha_req_ranks"] = tuple(fields["alpha_req_ranks"])
        spectra = {name: one.tolist() for name, one in _within(tensors, "spectrum").items()}
        influences = _within(tensors, "influence")
        more = {"spectra": spectra, "influences": influences, "provenance": provenance}
        score = Score.of(**fields, **more)
        is_complete = wanted <= score.computed
        return ScoreWithoutIntervals(score, provenance, without) if is_complete else None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _within(tensors: Mapping[str, Tensor], folder: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{folder}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{folder}/")
    }
