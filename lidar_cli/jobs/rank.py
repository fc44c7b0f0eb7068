"""A directory of checkpoints to ordered, comparable groups.

Every checkpoint sees the same samples and the very same views. Features are kept in a cache, named
by the content of the checkpoint and of the settings; a broken checkpoint becomes a row with its
reason and never stops the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints import Description, open_checkpoint, read_contents, sha256
from lidar_cli.checkpoints.matching import check_names
from lidar_cli.checkpoints.read import as_dict
from lidar_cli.checkpoints.recognise import recognise
from lidar_cli.core.metrics import METRICS, Metric
from lidar_cli.errors import (
    FeatureFileError,
    InputError,
    InUse,
    LidarError,
    NoWeights,
    SettingsError,
)
from lidar_cli.features import is_hdf5, read_hdf5, read_provenance
from lidar_cli.jobs.device import find_device
from lidar_cli.jobs.extract import (
    CHECKPOINT_SUFFIXES,
    open_with,
    run,
    stem,
    tell_if_embedded,
)
from lidar_cli.jobs.plan import Plan, identity, make_plan
from lidar_cli.jobs.score import Score, score
from lidar_cli.jobs.watch import Watcher
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import ExtractSettings, RankSettings, nearest, parse_size
from lidar_cli.views import find_recipe

FEATURE_SUFFIXES = (".h5", ".hdf5")
# Files that training scripts save beside the weights; others are told by their content.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)"
)
DECODED_MEMORY = 2 * 2**30  # bytes of decoded images kept from one checkpoint to the next
MISLEADING_NOISE = 0.5  # noise_fraction above which LiDAR mostly counts noise


@dataclass(frozen=True)
class Row:
    """One checkpoint in its place; `value` is None, with a reason, where the metric is."""

    path: str
    aliases: tuple[str, ...]
    score: Score
    value: float | None
    reason: str | None = None
    rank: int = 0
    tied_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Checkpoints that can be compared, best first, and what they have in common."""

    common: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Left:
    """A file that has no place in the order, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """All that `rank` found under a directory."""

    directory: str
    by: Metric
    data: str
    groups: tuple[Group, ...]
    skipped: tuple[Left, ...] = ()
    failed: tuple[Left, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Checkpoint:
    """A checkpoint file that was recognised, with the other files of the same content."""

    path: Path
    digest: str
    description: Description
    aliases: list[str] = field(default_factory=list)


def rank_directory(
    directory: Path, settings: RankSettings, watcher: Watcher | None = None
) -> Ranking:
    """Every checkpoint and feature file under a directory, scored and ordered.

    Raises SettingsError for an unknown metric, InputError if the directory or the data cannot be
    used or nothing in it could be ranked.
    """
    watcher = watcher or Watcher()
    by = find_metric(settings.by)
    # Before the work: a mistyped name, or an unknown key of a [recipe] table, is told at once.
    find_recipe(settings.views, settings.pixel_stats, settings.recipe)
    check_names(settings.format, settings.branch)
    parse_size(settings.memory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; rank takes a directory of checkpoints")
    job = _Job(directory, settings, watcher)
    job.survey()
    job.score_all()
    return job.ranking(by)


def find_metric(name: str) -> Metric:
    """The metric of a name. Raises SettingsError."""
    if name not in METRICS:
        raise SettingsError(f"--by {name}: no such metric; {nearest(name, list(METRICS))}")
    return METRICS[name]


class _Job:
    def __init__(self, directory: Path, settings: RankSettings, watcher: Watcher) -> None:
        self.directory = directory
        self.settings = settings
        self.watcher = watcher
        self.device = find_device(settings.device)
        self.cache = settings.cache or directory / ".lidar"
        self.checkpoints: dict[str, _Checkpoint] = {}  # by digest
        self.features: list[tuple[Path, dict[str, Any]]] = []  # path, provenance
        self.scored: list[tuple[str, tuple[str, ...], Score, dict[str, Any]]] = []
        self.skipped: list[Left] = []
        self.failed: list[Left] = []

    def survey(self) -> None:
        """Recognise every file, hash the checkpoints, and put equal content together."""
        files = list(_files(self.directory))
        for at, path in enumerate(files):
            self.watcher.progress("reading checkpoints", at, len(files))
            if NOT_WEIGHTS.fullmatch(path.name.lower()):
                self.skipped.append(Left(str(path), "by its name, not model weights"))
                continue
            try:
                if path.name.lower().endswith(FEATURE_SUFFIXES) and is_hdf5(path):
                    self.features.append((path, read_provenance(path)))
                    continue
                digest = sha256(path)
                if digest in self.checkpoints:
                    self.checkpoints[digest].aliases.append(str(path))
                    continue
                self.checkpoints[digest] = _Checkpoint(path, digest, self._describe(path))
            except SettingsError:
                raise
            except NoWeights as error:
                self.skipped.append(Left(str(path), _reason(path, error)))
            except (LidarError, OSError) as error:
                self._fail(path, error)
        if not files:
            raise InputError(
                f"{self.directory}: no checkpoint in it; expected files ending in "
                f"{' '.join(CHECKPOINT_SUFFIXES)}, or feature files"
            )

    def score_all(self) -> None:
        """Embed and score each checkpoint and each feature file that stands for itself."""
        layer = self._layer()
        used: set[Path] = set()
        if self.checkpoints:
            samples = open_samples(self.settings).remembering(DECODED_MEMORY)
            tell_if_embedded(samples, self.watcher)
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{self.cache}: the cache cannot be written ({error.strerror}); "
                    "name another place with --cache"
                ) from error
            for found in self.checkpoints.values():
                try:
                    used |= self._score_checkpoint(found, layer, samples)
                except InputError:
                    raise  # the images are at fault, and every checkpoint would meet the same
                except SettingsError:
                    raise
                except (LidarError, OSError) as error:
                    self._fail(found.path, error)
        for path, provenance in self.features:
            if provenance.get("sha256") in self.checkpoints:
                if path not in used:
                    reason = "features of a checkpoint here, at other settings than asked for"
                    self.skipped.append(Left(str(path), reason))
                continue
            try:
                self.scored.append((str(path), (), self._score_features(path, layer), provenance))
            except (LidarError, OSError) as error:
                self._fail(path, error)

    def ranking(self, by: Metric) -> Ranking:
        """What was scored, in order. Raises InputError if nothing was, or nothing has a value."""
        if not self.scored:
            first = (
                f"; the first: {self.failed[0].path}: {self.failed[0].reason}"
                if self.failed
                else ""
            )
            raise InputError(
                f"{self.directory}: nothing could be ranked ({len(self.failed)} failed, "
                f"{len(self.skipped)} skipped{first})"
            )
        groups: dict[str, list[tuple[Row, dict[str, Any]]]] = {}
        for path, aliases, result, provenance in self.scored:
            common = comparable(result, provenance)
            value = result.value(by.name)
            row = Row(path, aliases, result, value, result.notes.get(by.name))
            groups.setdefault(repr(sorted(common.items())), []).append((row, common))
        rows = [row for members in groups.values() for row, _ in members]
        if all(row.value is None for row in rows):
            raise InputError(
                f"{self.directory}: nothing could be ranked, no checkpoint has a value; "
                f"{rows[0].path}: no {by.name}: {rows[0].reason}; choose another metric with --by"
            )
        ordered = sorted(
            (
                Group(members[0][1], order([row for row, _ in members], by))
                for members in groups.values()
            ),
            key=lambda group: -len(group.rows),
        )
        return Ranking(
            directory=str(self.directory),
            by=by,
            data=", ".join(sorted({str(told.get("data")) for *_, told in self.scored})),
            groups=tuple(ordered),
            skipped=tuple(self.skipped),
            failed=tuple(self.failed),
            warnings=tuple(_warnings(ordered, by)),
        )

    def _describe(self, path: Path) -> Description:
        if self.settings.model is not None:
            return open_checkpoint(path, model=self.settings.model).description
        contents = read_contents(path)
        asked = self.settings
        found = recognise(
            path,
            as_dict(contents),
            arch=asked.arch,
            format=asked.format,
            branch=asked.branch,
            layer=asked.layer,
            config=contents.config,
        )
        found = replace(found, stand_ins=contents.stand_ins)
        if found.note:
            self.watcher.note(f"{path}: {found.note}")
        return found

    def _layer(self) -> str:
        """The one layer that is compared: projector if every file has one, else backbone."""
        if self.settings.layer != "auto":
            if "," in self.settings.layer:
                raise SettingsError(f"--layer {self.settings.layer}: rank compares one layer")
            return self.settings.layer
        widths = [found.description.widths.keys() for found in self.checkpoints.values()]
        stored = [
            set(told.get("layers", ()))
            for _, told in self.features
            if told.get("sha256") not in self.checkpoints
        ]
        every = [*(set(keys) for keys in widths), *stored]
        without = sum("projector" not in layers for layers in every)
        if without:
            of = f"{without} of {len(every)} files" if without < len(every) else "the files"
            self.watcher.note(f"{of} hold no projector, so the backbone of all is compared")
        return "backbone" if without else "projector"

    def _score_checkpoint(self, found: _Checkpoint, layer: str, samples: Samples) -> set[Path]:
        """Score one checkpoint from features that exist, or extract them. The files it used."""
        settings = self._extract_settings(layer)
        plan = make_plan(
            found.description, str(found.path), found.digest, samples, settings, self.device
        )
        same = [path for path, told in self.features if _serves(told, plan)]
        cached = self.cache / f"{stem(found.path)}-{plan.key}.h5"
        features = same[0] if same else cached
        try:
            if not features.exists():
                raise FeatureFileError("not extracted yet")
            if not _serves(read_provenance(features), plan):
                raise FeatureFileError("of other settings")
            result = self._score_features(features, layer)
        except FeatureFileError:
            # Absent, incomplete, damaged or not what its name says: make it anew.
            features = cached
            self._extract(found.path, plan, samples, settings, cached)
            result = self._score_features(cached, layer)
        provenance = read_provenance(features)
        self.scored.append((str(found.path), tuple(found.aliases), result, provenance))
        return {features}

    def _extract(
        self,
        checkpoint: Path,
        plan: Plan,
        samples: Samples,
        settings: ExtractSettings,
        output: Path,
    ) -> None:
        loaded = open_with(checkpoint, self.settings).to(self.device)
        settings = replace(settings, overwrite=output.exists())
        try:
            run(plan, loaded, samples, settings, output, self.device, self.watcher)
        except InUse:
            raise
        except FeatureFileError:
            # A partial file that is damaged, or of another device or version, cannot go on.
            again = replace(settings, overwrite=True, resume=False)
            run(plan, loaded, samples, again, output, self.device, self.watcher)

    def _extract_settings(self, layer: str) -> ExtractSettings:
        shared = {
            name: getattr(self.settings, name)
            for name in ExtractSettings.__dataclass_fields__
            if hasattr(self.settings, name)
        }
        return ExtractSettings(**(shared | {"layer": layer, "resume": True}))

    def _score_features(self, path: Path, layer: str) -> Score:
        (embeddings,) = read_hdf5(path, layer)
        everything = frozenset(METRICS)
        return score(embeddings, self.settings, self.device, everything, self.watcher)

    def _fail(self, path: Path, error: Exception) -> None:
        self.failed.append(Left(str(path), _reason(path, error)))


def comparable(score: Score, provenance: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for two scores to be compared."""
    return {
        "samples": provenance.get("samples_sha256"),
        "seed": provenance.get("seed"),
        "views": provenance.get("views"),
        "image size": provenance.get("image_size"),
        "n": score.n_samples,
        "q": score.n_views,
        "d": score.dim,
        "layer": score.layer,
        "delta": score.delta,
        "normalised": score.normalized,
    }


def order(rows: list[Row], by: Metric) -> tuple[Row, ...]:
    """Rows best first; equal values share a rank and name each other; nulls come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        return row.value is None, 0.0 if row.value is None else by.sort_key(row.value), row.path

    ordered: list[Row] = []
    for at, row in enumerate(sorted(rows, key=key)):
        ties = [
            other.path
            for other in rows
            if other is not row and row.value is not None and other.value == row.value
        ]
        same = at and key(ordered[-1])[:2] == key(row)[:2]
        ordered.append(
            replace(row, rank=ordered[-1].rank if same else at + 1, tied_with=tuple(ties))
        )
    return tuple(ordered)


def _files(directory: Path) -> Iterator[Path]:
    """Files by suffix, in a stable order; hidden folders, the cache among them, are left out."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        place = Path(folder).stat()
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back into the tree
            subfolders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith((*CHECKPOINT_SUFFIXES, *FEATURE_SUFFIXES)):
                yield Path(folder) / name


def _serves(provenance: dict[str, Any], plan: Plan) -> bool:
    """Whether stored features hold what a plan would compute, perhaps beside other layers."""
    told, wanted = identity(provenance), plan.identity
    layers = set(told.pop("layers", ())), set(wanted.pop("layers"))
    return layers[1] <= layers[0] and told == wanted


def _warnings(groups: list[Group], by: Metric) -> Iterator[str]:
    for group in groups:
        noisy = [
            row
            for row in group.rows
            if row.score.noise_fraction is not None and row.score.noise_fraction > MISLEADING_NOISE
        ]
        if by.name == "lidar" and 2 * len(noisy) > len(group.rows):
            pick = order(
                [replace(row, value=row.score.pillai) for row in group.rows], METRICS["pillai"]
            )[0]
            would = f"pillai would pick {pick.path}" if pick.value is not None else "pillai is null"
            yield (
                f"view noise is more than half of the LDA trace in {len(noisy)} of "
                f"{len(group.rows)} checkpoints, and lidar counts it as rank: raise -q; {would}"
            )


def _reason(path: Path, error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.removeprefix(f"{path}: ")
