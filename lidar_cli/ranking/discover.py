"""The files under a directory: checkpoints by content, feature files, and the rest."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.detect import detect
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import as_dict, read_contents, stamp
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription
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
from lidar_cli.features.reader import read_provenance
from lidar_cli.features.schema import joined_name
from lidar_cli.ranking.digests import Digests, Stamp
from lidar_cli.runtime.files import irregular_kind, is_hdf5
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import EmbedSettings

FEATURE_SUFFIXES = (".h5", ".hdf5")
# Beginning of the digest of an untrained network; the digest of a file is hexadecimal.
UNTRAINED = "untrained-"
# Files that training scripts save with the weights; others are recognised by their content.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?)\.(pt|pth|bin)"
)


@dataclass
class Checkpoint:
    """A recognised checkpoint file.

    aliases: other files with the same content. stamp: of `path` before it was hashed.
    """

    path: Path
    digest: str
    description: CheckpointDescription
    aliases: list[str] = field(default_factory=list)
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True)
class FeatureFile:
    """A complete feature file of which only the provenance has been read."""

    path: Path
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A file that is not ranked, and why."""

    path: str
    reason: str


@dataclass
class DirectoryScan:
    """The files under a directory, by kind."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)  # by digest
    features: list[FeatureFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    assumed: set[str] = field(default_factory=set)  # assumptions that have been noted

    @property
    def features_without_checkpoint(self) -> list[FeatureFile]:
        """Feature files whose checkpoint is not in the directory: they are ranked themselves."""
        return [file for file in self.features if not self.has_checkpoint_of(file)]

    def has_checkpoint_of(self, file: FeatureFile) -> bool:
        """Whether the checkpoint of a feature file is in the directory."""
        return file.provenance.get("sha256") in self.checkpoints

    def fail(self, path: Path, error: Exception) -> None:
        """Add a file to the failed files, with the reason in one line."""
        self.failed.append(Skipped(str(path), _reason(path, error)))


def scan_directory(
    directory: Path, settings: EmbedSettings, progress: Progress, digests: Digests
) -> DirectoryScan:
    """Recognise every file, hash the checkpoints, and group those of equal content.

    Raises InputError if there is no file to scan, SettingsError for an unknown architecture,
    NoProcess if no process can be started to read files in.
    """
    scan, recogniser = DirectoryScan(), Recogniser(settings)
    files = list(files_under(directory, lambda error: scan.fail(Path(error.filename), error)))
    to_open = [path for path in files if _reason_unopened(path) is None]
    # In random order, so that processes which start together hash different files first.
    for at, path in enumerate(random.SystemRandom().sample(to_open, len(to_open))):
        progress.update("hashing checkpoints", at, len(to_open))
        try:
            if not _is_feature_file(path):
                recogniser.check(path)
                digests.of(path)
        except NoProcess:
            raise
        except (LidarError, OSError):
            continue  # raised again by classify_file
    for at, path in enumerate(files):
        progress.update("reading checkpoints", at, len(files))
        classify_file(path, scan, recogniser, progress, digests)
    if not files and not scan.failed:
        raise InputError(
            f"{directory}: no checkpoint in it; expected files ending in "
            f"{' '.join(CHECKPOINT_SUFFIXES)}, or feature files",
            code="no-checkpoint",
        )
    return scan


class Recogniser:
    """Describes checkpoints by their names and shapes, each once and before it is hashed.

    So a large file that is not a checkpoint is not read to its end.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings
        self._results: dict[Path, tuple[Stamp, CheckpointDescription | Exception | None]] = {}

    def assumed_text(self, description: CheckpointDescription) -> str:
        """The assumptions that embedding a checkpoint uses, in words. Raises SettingsError."""
        return with_assumed_in_use(description, self._settings).assumed_text

    def check(self, path: Path) -> None:
        """Describe a file, once. Raises the error with which the file is refused."""
        if path not in self._results:
            before = stamp(path)
            try:
                self._results[path] = before, self._describe(path)
            except NoProcess:
                raise
            except FILE_ERRORS as error:
                error.__cause__ = error.__context__ = None  # their frames hold the file's content
                self._results[path] = before, error.with_traceback(None)
        _, result = self._results[path]
        if isinstance(result, Exception):
            raise result

    def description(self, path: Path, hashed: Stamp) -> CheckpointDescription:
        """The description of the content that was hashed.

        hashed: stamp of the file before it was hashed. Raises as `check`.
        """
        before, result = self._results.pop(path)
        if isinstance(result, CheckpointDescription) and before == hashed:
            return result
        return _describe(path, self._settings)

    def _describe(self, path: Path) -> CheckpointDescription | None:
        if self._settings.model is None:
            return _describe(path, self._settings)
        read_contents(path)  # the user's module is built once per content, not per file
        return None


def classify_file(
    path: Path, scan: DirectoryScan, recogniser: Recogniser, progress: Progress, digests: Digests
) -> None:
    """Add a file to a scan by its kind. Raises SettingsError and NoProcess as `scan_directory`."""
    if reason := _reason_unopened(path):
        scan.skipped.append(Skipped(str(path), reason))
        return
    try:
        if _is_feature_file(path):
            file = FeatureFile(path, read_provenance(path))
            if str(file.provenance.get("sha256")).startswith(UNTRAINED):
                scan.skipped.append(Skipped(str(path), "of an untrained network, see --baseline"))
            else:
                scan.features.append(file)
            return
        recogniser.check(path)
        before, digest = digests.of(path)
        if digest in scan.checkpoints:
            scan.checkpoints[digest].aliases.append(str(path))
            return
        description = recogniser.description(path, before)
        if description.stand_ins_text:
            progress.note(f"{path}: {description.stand_ins_text}")
        scan.checkpoints[digest] = Checkpoint(path, digest, description, stamp=before)
        assumed = recogniser.assumed_text(description)
        if assumed and assumed not in scan.assumed:
            scan.assumed.add(assumed)
            progress.note(f"{path}, and others like it: assumed {assumed}")
    except (SettingsError, NoProcess):
        raise
    except NoWeights as error:
        scan.skipped.append(Skipped(str(path), _reason(path, error)))
    except FILE_ERRORS as error:
        scan.fail(path, error)


def _reason_unopened(path: Path) -> str | None:
    """Why a file is skipped without opening it; None if it is to be opened."""
    if NOT_WEIGHTS.fullmatch(path.name.lower()):
        return "by its name, not model weights"
    if joined := joined_name(path):
        return f"by its name, a shard of {joined}"
    kind = irregular_kind(path)
    return f"{kind}, not a file" if kind else None


def _is_feature_file(path: Path) -> bool:
    return path.name.lower().endswith(FEATURE_SUFFIXES) and is_hdf5(path)


def _describe(path: Path, settings: EmbedSettings) -> CheckpointDescription:
    if settings.model is not None:
        return open_checkpoint(path, model=settings.model).description
    contents = read_contents(path)
    description, _ = detect(
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
    return replace(description, stand_ins=contents.stand_ins)


def files_under(directory: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Files with the suffixes of checkpoints and features, in a stable order.

    Hidden folders, such as the cache, are left out.
    on_error: receives the error of a folder that cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(directory, onerror=on_error, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError as error:  # removed in the meantime
            on_error(error)
            subfolders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back into the tree
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith((*CHECKPOINT_SUFFIXES, *FEATURE_SUFFIXES)):
                yield Path(folder) / name


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).removeprefix(f"{path}: ") or type(error).__name__
