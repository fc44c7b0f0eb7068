"""The architectures of a ranking at random initialisation, as a level to compare with.

An untrained network takes the place of a checkpoint: it has a plan, a digest (of its architecture
and its seed, which no file can have) and a place in the cache, but no rank.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lidar_cli.checkpoints.models import untrained
from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.checkpoints.open import build, open_untrained, recognise
from lidar_cli.checkpoints.shapes.inner import ordering_layer
from lidar_cli.core.metrics import Metric
from lidar_cli.errors import FILE_ERRORS, NoProcess, first_line
from lidar_cli.ranking.cache import Task
from lidar_cli.ranking.discover import UNTRAINED, Checkpoint
from lidar_cli.ranking.order import Group
from lidar_cli.ranking.weights import architecture_text
from lidar_cli.scoring.compute import Score
from lidar_cli.settings import RankSettings

SEEDS = (0, 1, 2)
REVISION = 1  # to be increased if an initialisation changes


@dataclass
class Untrained(Checkpoint):
    """An architecture at random initialisation, in place of a checkpoint.

    path: a name, no file. reference: a checkpoint with the architecture. key: all that determines
    the network and its views but the seed. initialisation: in words.
    """

    reference: Path = Path()
    key: str = ""
    seed: int = 0
    initialisation: str = ""

    def open(self, settings: RankSettings, device: torch.device) -> Embedder:
        """The network with its random weights, on the device. Raises as `open_checkpoint`."""
        settings = _for_branch(self, settings)
        return open_untrained(self.reference, self.seed, settings, self.description).to(device)


@dataclass(frozen=True)
class Baseline:
    """One architecture at random initialisation, with the images, views and layer of one group.

    name: in tables and plots. group: index of the group. initialisation: in words. scores: one a
    seed of SEEDS; none, with a reason, if the architecture cannot be initialised or scored.
    """

    name: str
    architecture: str
    layer: str
    group: int
    initialisation: str = ""
    scores: tuple[Score, ...] = ()
    reason: str | None = None

    def values(self, metric: str) -> tuple[float, ...]:
        """The value of each seed; empty if one of them has none."""
        values = [score.value(metric) for score in self.scores]
        present = tuple(value for value in values if value is not None)
        return present if len(present) == len(values) else ()

    def mean(self, metric: str) -> float | None:
        """The mean over seeds, None without values."""
        values = self.values(metric)
        return fmean(values) if values else None


class UntrainedNetworks:
    """The untrained networks of a ranking: one per architecture, layer and views, for each seed.

    tasks: those of the checkpoints. Raises NoProcess if no process can be started to read files in.
    """

    def __init__(self, tasks: Iterable[Task], settings: RankSettings) -> None:
        self._layer = settings.layer
        self._files: dict[str, list[Task]] = {}  # by what determines a network but its seed
        self._networks: dict[str, list[Untrained]] = {}
        self._reasons: dict[str, str] = {}
        self._scores: dict[str, dict[int, Score]] = {}  # by the same, then by seed
        for like, members in _alike(tasks).items():
            try:
                specs, words = _architecture(members[0], settings)
            except NoProcess:
                raise
            except FILE_ERRORS as error:
                self._files[like], self._reasons[like] = members, first_line(error)
                continue
            key = json.dumps([_shared(members[0].plan.identity), specs], sort_keys=True)
            self._files.setdefault(key, []).extend(members)
            if key not in self._networks:
                arch = members[0].checkpoint.description.arch
                others = [one[0] for one in self._networks.values()]
                number = 1 + sum(other.description.arch == arch for other in others)
                self._networks[key] = [
                    _untrained(members[0].checkpoint, key, specs, seed, words, number)
                    for seed in SEEDS
                ]

    @property
    def checkpoints(self) -> list[Untrained]:
        """All networks, to be planned and scored like checkpoints."""
        return [network for networks in self._networks.values() for network in networks]

    def add(self, network: Untrained, score: Score) -> None:
        """Add the score of a network."""
        self._scores.setdefault(network.key, {})[network.seed] = score

    def baselines(self, groups: Sequence[Group], failed: Mapping[str, str]) -> tuple[Baseline, ...]:
        """The baseline of each architecture, where a group has a checkpoint with it.

        failed: why networks could not be scored, by path.
        """
        baselines = []
        for key, members in self._files.items():
            paths = {str(task.checkpoint.path) for task in members}
            group = next(
                (at for at, one in enumerate(groups) if any(row.path in paths for row in one.rows)),
                None,
            )
            if group is None:
                continue
            networks, scores = self._networks.get(key, []), self._scores.get(key, {})
            reasons = (failed.get(str(network.path)) for network in networks)
            reason = self._reasons.get(key) or next((text for text in reasons if text), None)
            complete = [scores[seed] for seed in SEEDS if seed in scores]
            baselines.append(
                Baseline(
                    name="untrained",
                    architecture=members[0].checkpoint.description.arch,
                    layer=ordering_layer(self._layer, members[0].plan.provenance["layers"]),
                    group=group,
                    initialisation=networks[0].initialisation if networks else "",
                    scores=tuple(complete) if len(complete) == len(SEEDS) else (),
                    reason=reason,
                )
            )
        return tuple(_with_names(baselines))


def worse_than_untrained(
    groups: Sequence[Group], baselines: Iterable[Baseline], by: Metric
) -> list[Baseline]:
    """The baselines whose mean is better than the best checkpoint of their group."""
    better = []
    for baseline in baselines:
        best, mean = groups[baseline.group].rows[0].value, baseline.mean(by.name)
        if best is not None and mean is not None and by.sort_key(mean) < by.sort_key(best):
            better.append(baseline)
    return better


def _alike(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    """Tasks by all that can be seen of their networks without reading the files again."""
    alike: dict[str, list[Task]] = {}
    for task in tasks:
        description = task.checkpoint.description
        key = [_shared(task.plan.identity), description.widths, description.parameters]
        alike.setdefault(json.dumps(key, sort_keys=True), []).append(task)
    return alike


def _shared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plan's identity that an untrained network has too."""
    return {key: value for key, value in identity.items() if key not in ("sha256", "model_format")}


def _architecture(task: Task, settings: RankSettings) -> tuple[list[str], str]:
    """What determines the architecture up to the task's layer, and its initialisation in words.

    Raises as `recognise`.
    """
    if settings.model is not None:
        words = f"as {settings.model} returns it, with torch's generator seeded"
        return [settings.model, str(task.plan.provenance["source_sha256"])], words
    texts, modules = [], []
    _, assigned = recognise(task.checkpoint.path, _for_branch(task.checkpoint, settings))
    for layer, assignment in assigned.items():
        texts.append(architecture_text(layer, assignment.spec))
        modules.append(build(assignment.spec))
        if layer == task.plan.provenance["layers"][-1]:
            break
    return texts, untrained.in_words(modules)


def _for_branch(checkpoint: Checkpoint, settings: RankSettings) -> RankSettings:
    if settings.prefix is not None:  # which names the weights
        return settings
    return replace(settings, branch=checkpoint.description.branch)


def _untrained(
    reference: Checkpoint, key: str, specs: Sequence[str], seed: int, words: str, number: int
) -> Untrained:
    """A network. number: among those of its architecture, so that each has a path."""
    description = replace(
        reference.description, format="untrained", container="", prefix="", ignored=(), why=""
    )
    text = json.dumps([REVISION, list(specs), seed])
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", description.arch).strip("-")
    return Untrained(
        Path(f"untrained-{slug}{f'-{number}' if number > 1 else ''}-seed-{seed}"),
        UNTRAINED + hashlib.sha256(text.encode()).hexdigest(),
        description,
        reference=reference.path,
        key=key,
        seed=seed,
        initialisation=words,
    )


def _with_names(baselines: Sequence[Baseline]) -> Iterable[Baseline]:
    """The baselines, with the architecture in the name where a group has several."""
    for at, one in enumerate(baselines):
        others = [other for other in baselines if other.group == one.group and other is not one]
        name = f"untrained {one.architecture}" if others else one.name
        same = [other for other in baselines[:at] if other in others]
        count = sum(other.architecture == one.architecture for other in same)
        yield replace(one, name=f"{name} ({count + 1})" if count else name)
