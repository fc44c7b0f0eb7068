"""What lies under a directory: checkpoints by content, feature files, and what is neither."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.detect import recognise
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import as_dict, read_contents, stamp
from lidar_cli.checkpoints.result import Description
from lidar_cli.errors import (
    FILE_ERRORS,
    InputError,
    LidarError,
    NoProcess,
    NoWeights,
    SettingsError,
    first_line,
)
from lidar_cli.extraction.plan import with_assumed_in_use
from lidar_cli.extraction.run import CHECKPOINT_SUFFIXES
from lidar_cli.features.hdf5 import is_hdf5
from lidar_cli.features.reader import read_provenance
from lidar_cli.features.schema import joined_name
from lidar_cli.ranking.digests import Digests, Stamp
from lidar_cli.runtime.files import irregular
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ModelSettings, SampleSettings

FEATURE_SUFFIXES = (".h5", ".hdf5")
# Files that training scripts save beside the weights; others are told by their content.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)"
)


@dataclass
class Checkpoint:
    """A checkpoint file that was recognised, with the other files of the same content."""

    path: Path
    digest: str
    description: Description
    aliases: list[str] = field(default_factory=list)
    stamp: tuple[int, ...] = ()  # of the file when it was hashed


@dataclass(frozen=True)
class FeatureFile:
    """A complete feature file, not yet read."""

    path: Path
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A file that has no place in the order, and why."""

    path: str
    reason: str


@dataclass
class DirectoryScan:
    """Every file under a directory in its place."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)  # by digest
    features: list[FeatureFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    assumed: set[str] = field(default_factory=set)  # texts that were said

    @property
    def alone(self) -> list[FeatureFile]:
        """Feature files whose checkpoint is not here, so that they stand for themselves."""
        return [file for file in self.features if not self.holds(file)]

    def holds(self, file: FeatureFile) -> bool:
        """Whether the checkpoint of a feature file is here."""
        return file.provenance.get("sha256") in self.checkpoints

    def fail(self, path: Path, error: Exception) -> None:
        """Give a file its place among the failed."""
        self.failed.append(Skipped(str(path), _reason(path, error)))


def survey(
    directory: Path, settings: ModelSettings, progress: Progress, digests: Digests
) -> DirectoryScan:
    """Recognise every file, hash the checkpoints, and put equal content together.

    Raises InputError if there is no file to look at, SettingsError for an unknown architecture,
    NoProcess if none can be looked at.
    """
    found, looks = DirectoryScan(), Looks(settings)
    files = list(files_under(directory, lambda error: found.fail(Path(error.filename), error)))
    to_open = [path for path in files if _reason_unopened(path) is None]
    # Each process in an order of its own, so that those which start together divide the reading.
    for at, path in enumerate(random.SystemRandom().sample(to_open, len(to_open))):
        progress.update("hashing checkpoints", at, len(to_open))
        try:
            if not _features(path):
                looks.at(path)
                digests.of(path)
        except NoProcess:
            raise
        except (LidarError, OSError):
            continue  # raised again where the file gets its place
    for at, path in enumerate(files):
        progress.update("reading checkpoints", at, len(files))
        classify_file(path, found, looks, progress, digests)
    if not files and not found.failed:
        raise InputError(
            f"{directory}: no checkpoint in it; expected files ending in "
            f"{' '.join(CHECKPOINT_SUFFIXES)}, or feature files"
        )
    return found


class Looks:
    """What names and shapes say of checkpoints, looked at once each and before a file is hashed.

    So that a file which is no checkpoint, however long, is not read to its end.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._seen: dict[Path, tuple[Stamp, Description | Exception | None]] = {}

    def assumed_text(self, description: Description) -> str:
        """What is assumed of a checkpoint as the settings use it. Raises SettingsError."""
        if isinstance(self._settings, SampleSettings):
            description = with_assumed_in_use(description, self._settings)
        return description.assumed_text

    def at(self, path: Path) -> None:
        """Look at a file, unless it was looked at. Raises what is wrong with it."""
        if path not in self._seen:
            before = stamp(path)
            try:
                self._seen[path] = before, self._look(path)
            except NoProcess:
                raise
            except FILE_ERRORS as error:
                error.__cause__ = error.__context__ = None  # whose frames hold what was read
                self._seen[path] = before, error.with_traceback(None)
        _, seen = self._seen[path]
        if isinstance(seen, Exception):
            raise seen

    def description(self, path: Path, hashed: Stamp) -> Description:
        """Of the content that had this stamp when it was hashed. Raises as `at`."""
        before, seen = self._seen.pop(path)
        if isinstance(seen, Description) and before == hashed:
            return seen
        return _describe(path, self._settings)

    def _look(self, path: Path) -> Description | None:
        if self._settings.model is None:
            return _describe(path, self._settings)
        read_contents(path)  # the module is made once for each content
        return None


def classify_file(
    path: Path, found: DirectoryScan, looks: Looks, progress: Progress, digests: Digests
) -> None:
    """Give a file its place in what was found. Raises as `survey`."""
    if reason := _reason_unopened(path):
        found.skipped.append(Skipped(str(path), reason))
        return
    try:
        if _features(path):
            found.features.append(FeatureFile(path, read_provenance(path)))
            return
        looks.at(path)
        before, digest = digests.of(path)
        if digest in found.checkpoints:
            found.checkpoints[digest].aliases.append(str(path))
            return
        description = looks.description(path, before)
        if description.note:
            progress.note(f"{path}: {description.note}")
        found.checkpoints[digest] = Checkpoint(path, digest, description, stamp=before)
        assumed = looks.assumed_text(description)
        if assumed and assumed not in found.assumed:
            found.assumed.add(assumed)
            progress.note(f"{path}, and others like it: assumed {assumed}")
    except (SettingsError, NoProcess):
        raise
    except NoWeights as error:
        found.skipped.append(Skipped(str(path), _reason(path, error)))
    except FILE_ERRORS as error:
        found.fail(path, error)


def _may_be_features(path: Path) -> bool:
    return path.name.lower().endswith(FEATURE_SUFFIXES)


def _reason_unopened(path: Path) -> str | None:
    """Why a file is skipped that nobody has looked into."""
    if NOT_WEIGHTS.fullmatch(path.name.lower()):
        return "by its name, not model weights"
    if joined := joined_name(path):
        return f"by its name, a shard of {joined}"
    kind = irregular(path)
    return f"{kind}, not a file" if kind else None


def _features(path: Path) -> bool:
    return _may_be_features(path) and is_hdf5(path)


def _describe(path: Path, settings: ModelSettings) -> Description:
    if settings.model is not None:
        return open_checkpoint(path, model=settings.model).description
    contents = read_contents(path)
    found = recognise(
        path,
        as_dict(contents),
        arch=settings.arch,
        activation=settings.activation,
        format=settings.format,
        branch=settings.branch,
        layer=settings.layer,
        config=contents.config,
        assume=settings.assume,
    )
    return replace(found, stand_ins=contents.stand_ins)


def files_under(directory: Path, refused: Callable[[OSError], None]) -> Iterator[Path]:
    """Files by suffix, in a stable order; hidden folders, the cache among them, are left out.

    refused: takes what the system says of a folder that it does not list.
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, onerror=refused, followlinks=True):
        try:
            here = Path(folder).stat()
        except OSError as error:  # gone by now
            refused(error)
            subfolders.clear()
            continue
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back into the tree
            subfolders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith((*CHECKPOINT_SUFFIXES, *FEATURE_SUFFIXES)):
                yield Path(folder) / name


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).removeprefix(f"{path}: ") or type(error).__name__
