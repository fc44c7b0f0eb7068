"""The features of a checkpoint: those that exist already, else extracted into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import FeatureFileError, InputError, InUse
from lidar_cli.features import read_hdf5, read_provenance
from lidar_cli.jobs.extract import open_with, run, stem
from lidar_cli.jobs.plan import Plan, identity, make_plan
from lidar_cli.jobs.score import Score, score
from lidar_cli.jobs.survey import Checkpoint, FeatureFile
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples
from lidar_cli.settings import ExtractSettings, RankSettings


@dataclass(frozen=True)
class Scored:
    """A score, the provenance of its embeddings, and the file that holds them."""

    score: Score
    provenance: dict[str, Any]
    path: Path


class Cache:
    """Scores of checkpoints, each from features that exist already, else extracted into a folder.

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
        self._features = features
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

    def score(self, checkpoint: Checkpoint, plan: Plan) -> Scored:
        """The score of a checkpoint. Raises what `run` and `score` raise."""
        extracted = self._folder / f"{stem(checkpoint.path)}-{plan.key}.h5"
        same = [file.path for file in self._features if serves(file.provenance, plan)]
        features = same[0] if same else extracted
        try:
            if not features.exists():
                raise FeatureFileError("not extracted yet")
            if not serves(read_provenance(features), plan):
                raise FeatureFileError("of other settings")
            result = self._score(features)
        except FeatureFileError:
            # Absent, incomplete, damaged or not what its name says: make it anew.
            features = extracted
            self._extract(checkpoint, plan, features)
            result = self._score(features)
        return Scored(result, read_provenance(features), features)

    def _score(self, path: Path) -> Score:
        return score_features(
            path, self._layer, self._settings, self._device, self._watcher, self._folder
        )

    def _extract(self, checkpoint: Checkpoint, plan: Plan, output: Path) -> None:
        loaded = open_with(checkpoint.path, self._settings).to(self._device)
        settings = replace(self._extract_settings(), overwrite=output.exists())
        try:
            run(plan, loaded, self._samples, settings, output, self._device, self._watcher)
        except InUse:
            raise
        except FeatureFileError:
            # A partial file that is damaged, or of another device or version, cannot go on.
            again = replace(settings, overwrite=True, resume=False)
            run(plan, loaded, self._samples, again, output, self._device, self._watcher)

    def _extract_settings(self) -> ExtractSettings:
        shared = {
            name: getattr(self._settings, name)
            for name in ExtractSettings.__dataclass_fields__
            if hasattr(self._settings, name)
        }
        return ExtractSettings(**(shared | {"layer": self._layer, "resume": True}))


def score_features(
    path: Path,
    layer: str,
    settings: RankSettings,
    device: torch.device,
    watcher: Watcher,
    cache: Path,
) -> Score:
    """The score of one layer of a feature file, with influences on the metric that orders alone.

    cache: the folder that keeps the influences on every metric.
    Raises what `read_hdf5` and `score` raise.
    """
    (embeddings,) = read_hdf5(path, layer)
    everything, level = frozenset(METRICS), settings.confidence
    found = score(embeddings, settings, device, everything, watcher, level, cache)
    # n numbers a metric are little for one checkpoint, and much for ten thousand.
    by = {name: found.influences[name] for name in found.influences.keys() & {settings.by}}
    return replace(found, influences=by)


def serves(provenance: dict[str, Any], plan: Plan) -> bool:
    """Whether stored features hold what a plan would compute, perhaps beside other layers."""
    told, wanted = identity(provenance), plan.identity
    layers = set(told.pop("layers", ())), set(wanted.pop("layers"))
    return layers[1] <= layers[0] and told == wanted
