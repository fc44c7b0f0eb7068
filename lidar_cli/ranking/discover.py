"""The files under a directory: checkpoints by content, feature files, and the rest.

A folder that is one checkpoint in several files is one entry.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.open import open_checkpoint, recognise
from lidar_cli.checkpoints.reading.folder import CHECKPOINT_SUFFIXES
from lidar_cli.checkpoints.reading.read import read_contents, stamp
from lidar_cli.checkpoints.shapes.spec import CheckpointDescription
from lidar_cli.errors import (
    FILE_ERRORS,
    CheckpointError,
    FeatureFileError,
    InputError,
    LidarError,
    NoProcess,
    NoWeights,
    SettingsError,
    first_line,
)
from lidar_cli.extraction.plan import with_assumed_in_use
from lidar_cli.features.reader import read_provenance
from lidar_cli.ranking.digests import Digests, Stamp
from lidar_cli.ranking.group_metrics import ORDERS
from lidar_cli.ranking.paths import (
    ARRAY_SUFFIXES,
    Paths,
    files_of,
    has_suffix,
    no_checkpoint,
    reason_unopened,
    select,
)
from lidar_cli.ranking.weights import sample_digest, weights_digest
from lidar_cli.runtime.files import is_hdf5
from lidar_cli.runtime.progress import Progress
from lidar_cli.scoring.open import open_array
from lidar_cli.settings import CompareSettings, EmbedSettings, RankSettings

NEITHER = "neither a checkpoint nor a feature file"
# Beginning of the digest of an untrained network; the digest of a file is hexadecimal.
UNTRAINED = "untrained-"


@dataclass
class Checkpoint:
    """A recognised checkpoint file.

    aliases: other files with the same content or the same weights. stamp: of `path` before it was
    hashed. sample: digest of one of its tensors, '' if unknown.
    """

    path: Path
    digest: str
    description: CheckpointDescription
    aliases: list[str] = field(default_factory=list)
    stamp: tuple[int, ...] = ()
    sample: str = ""


@dataclass(frozen=True)
class FeatureFile:
    """A complete feature file, or an array, of which only the provenance has been read.

    aliases: other paths of the same file. is_array: whether another program wrote it.
    """

    path: Path
    provenance: dict[str, Any]
    aliases: list[str] = field(default_factory=list)
    is_array: bool = False


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
    assumed: dict[str, list[Path]] = field(default_factory=dict)  # by assumptions in words
    merged: set[str] = field(default_factory=set)  # digests of those that became aliases
    noted: set[str] = field(default_factory=set)  # assumptions that have been noted
    # By device and inode.
    feature_paths: dict[tuple[int, int], Path] = field(default_factory=dict)

    @property
    def features_without_checkpoint(self) -> list[FeatureFile]:
        """Feature files whose checkpoint is not in the directory: they are ranked themselves."""
        return [file for file in self.features if not self.has_checkpoint_of(file)]

    def has_checkpoint_of(self, file: FeatureFile) -> bool:
        """Whether the checkpoint of a feature file is in the directory."""
        digest = file.provenance.get("sha256")
        return digest in self.checkpoints or digest in self.merged

    def add_features(self, path: Path) -> None:
        """Add a feature file, or another path of one. Raises as `read_provenance`."""
        self._add(path, read_provenance(path), is_array=False)

    def add_array(self, path: Path, settings: RankSettings | CompareSettings) -> None:
        """Add an array of embeddings of another program.

        Raises InputError as `open_array`, and for rows without views if the metric needs views.
        """
        embeddings = open_array(path, settings)
        if embeddings.views is None and ORDERS[settings.by].needs_two_views:
            raise InputError(
                f"{path}: rows without views, and {settings.by} needs views; expected (n, q, "
                "d), or --views-per-sample, --group-by ids, or --by rankme",
                code="no-array",
            )
        self._add(path, embeddings.provenance, is_array=True)

    def _add(self, path: Path, provenance: dict[str, Any], *, is_array: bool) -> None:
        status = path.stat()
        if str(provenance.get("sha256")).startswith(UNTRAINED):
            self.skipped.append(Skipped(str(path), "of an untrained network, see --baseline"))
            return
        file = self.feature_paths.setdefault((status.st_dev, status.st_ino), path)
        if file != path:
            for one in self.features:
                if one.path == file:
                    one.aliases.append(str(path))
                    return
        self.features.append(FeatureFile(path, provenance, is_array=is_array))

    def fail(self, path: Path, error: Exception) -> None:
        """Add a file to the failed files, with the reason in one line."""
        self.failed.append(Skipped(str(path), _reason(path, error)))

    def note_assumptions(self, progress: Progress, names: Mapping[str, str]) -> None:
        """Note what was assumed of checkpoints, each assumption once. names: by path."""
        for assumed, (first, *others) in self.assumed.items():
            if assumed not in self.noted:
                self.noted.add(assumed)
                more = f" and {len(others)} other{'s' if len(others) > 1 else ''}"
                name = names.get(str(first), first)
                progress.note(f"{name}{more if others else ''}: assumed {assumed}")


def scan_directory(
    paths: Paths, settings: RankSettings | CompareSettings, progress: Progress, digests: Digests
) -> DirectoryScan:
    """Recognise every file, hash the checkpoints, and group those of equal content.

    Raises InputError if there is no file to scan, SettingsError for an unknown architecture,
    NoProcess if no process can be started to read files in.
    """
    selection, scan, recogniser = select(paths), DirectoryScan(), Recogniser(settings)
    files = list(files_of(selection, lambda error: scan.fail(Path(error.filename), error)))
    if not files and not scan.failed:
        raise no_checkpoint(selection)
    to_open = [path for path in files if reason_unopened(path) is None]
    # In random order, so that processes which start together hash different files first.
    for at, path in enumerate(random.SystemRandom().sample(to_open, len(to_open))):
        progress.update("hashing checkpoints", at, len(to_open))
        try:
            if not is_feature_file(path) and not path.name.lower().endswith(ARRAY_SUFFIXES):
                recogniser.check(path)
                digests.of(path)
        except NoProcess:
            raise
        except (LidarError, OSError):
            continue  # raised again by classify_file
    for at, path in enumerate(files):
        progress.update("reading checkpoints", at, len(files))
        classify_file(path, scan, recogniser, progress, digests)
    _merge_equal_weights(scan, settings)
    return scan


class Recogniser:
    """Describes checkpoints by their names and shapes, each once and before it is hashed.

    So a large file that is not a checkpoint is not read to its end.
    """

    def __init__(self, settings: RankSettings | CompareSettings) -> None:
        self.settings = settings
        self.samples: dict[Path, str] = {}  # digest of one tensor, by path
        self._results: dict[Path, tuple[Stamp, CheckpointDescription | Exception | None]] = {}

    def assumed_text(self, description: CheckpointDescription) -> str:
        """The assumptions that embedding a checkpoint uses, in words. Raises SettingsError."""
        return with_assumed_in_use(description, self.settings).assumed_text

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

    def configured(self, path: Path) -> str:
        """`configured` of the description of a checked file."""
        _, result = self._results[path]
        return result.configured if isinstance(result, CheckpointDescription) else ""

    def description(self, path: Path, hashed: Stamp) -> CheckpointDescription:
        """The description of the content that was hashed.

        hashed: stamp of the file before it was hashed. Raises as `check`.
        """
        before, result = self._results.pop(path)
        if isinstance(result, CheckpointDescription) and before == hashed:
            return result
        return _describe(path, self.settings)

    def _describe(self, path: Path) -> CheckpointDescription | None:
        if self.settings.model is None:
            description, modules = recognise(path, self.settings)
            self.samples[path] = sample_digest(modules)
            return description
        read_contents(path)  # the user's module is built once per content, not per file
        return None


def classify_file(
    path: Path, scan: DirectoryScan, recogniser: Recogniser, progress: Progress, digests: Digests
) -> None:
    """Add a file to a scan by its kind. Raises SettingsError and NoProcess as `scan_directory`."""
    if reason := reason_unopened(path):
        scan.skipped.append(Skipped(str(path), reason))
        return
    try:
        if is_feature_file(path):
            add_embeddings(path, scan, recogniser.settings)
            return
        if path.name.lower().endswith(ARRAY_SUFFIXES):
            scan.add_array(path, recogniser.settings)
            return
        if is_tensor_of_embeddings(path, recogniser):
            scan.add_array(path, recogniser.settings)
            return
        recogniser.check(path)
        before, digest = digests.of(path)
        if first := scan.checkpoints.get(digest):
            if recogniser.configured(path) != first.description.configured:
                raise CheckpointError(
                    f"{path}: has the weights of {first.path} and another config.json, by which "
                    "they embed otherwise; rank it alone",
                    code="other-configuration",
                )
            first.aliases.append(str(path))
            return
        description = recogniser.description(path, before)
        if description.stand_ins_text:
            progress.note(f"{path}: {description.stand_ins_text}")
        sample = recogniser.samples.get(path, "")
        scan.checkpoints[digest] = Checkpoint(
            path, digest, description, stamp=before, sample=sample
        )
        assumed = recogniser.assumed_text(description)
        if assumed:
            scan.assumed.setdefault(assumed, []).append(path)
    except (SettingsError, NoProcess):
        raise
    except NoWeights as error:
        scan.skipped.append(Skipped(str(path), _reason(path, error)))
    except CheckpointError as error:
        if has_suffix(path) or path.is_dir():
            scan.fail(path, error)
        else:  # a shell's runs/* names logs, too
            scan.skipped.append(Skipped(str(path), NEITHER))
    except InputError as error:
        if error.code == "no-array":  # of other numbers, such as losses
            scan.skipped.append(Skipped(str(path), _reason(path, error)))
        else:
            scan.fail(path, error)
    except FILE_ERRORS as error:
        scan.fail(path, error)


def add_embeddings(
    path: Path, scan: DirectoryScan, settings: RankSettings | CompareSettings
) -> None:
    """Add an HDF5 file: a feature file, or else an array. Raises FeatureFileError or InputError."""
    try:
        if settings.dataset is None:
            scan.add_features(path)
            return
    except FeatureFileError as error:
        if error.code != "not-a-feature-file":
            raise
    scan.add_array(path, settings)


def is_tensor_of_embeddings(path: Path, recogniser: Recogniser) -> bool:
    """Whether a file that is no checkpoint holds a tensor (n, q, d), or the one that is named.

    Raises NoProcess.
    """
    settings = recogniser.settings
    try:
        recogniser.check(path)
    except NoProcess:
        raise
    except (CheckpointError, NoWeights):
        try:
            embeddings = open_array(path, settings)
        except FILE_ERRORS:
            return False
        return embeddings.views is not None or settings.dataset is not None
    except FILE_ERRORS:
        return False
    return False


def is_feature_file(path: Path) -> bool:
    """Whether a file is HDF5 and has no suffix of checkpoints."""
    if path.name.lower().endswith(CHECKPOINT_SUFFIXES) or path.is_dir():
        return False
    return is_hdf5(path)


def _describe(path: Path, settings: EmbedSettings) -> CheckpointDescription:
    if settings.model is not None:
        return open_checkpoint(path, settings).description
    return recognise(path, settings)[0]


def _merge_equal_weights(scan: DirectoryScan, settings: EmbedSettings) -> None:
    """Make checkpoints of equal weights in files of other content one, with aliases."""
    alike: dict[str, list[Checkpoint]] = {}
    for one in scan.checkpoints.values():
        if one.sample:
            alike.setdefault(f"{one.sample} {_embedding_facts(one.description)}", []).append(one)
    for members in alike.values():
        first_with: dict[str, Checkpoint] = {}
        for one in members if len(members) > 1 else ():
            with suppress(LidarError, OSError):  # then it remains a checkpoint by itself
                weights = weights_digest(recognise(one.path, settings)[1])
                first = first_with.setdefault(weights, one)
                if first is not one and stamp(one.path) == one.stamp:
                    first.aliases += [str(one.path), *one.aliases]
                    scan.merged.add(scan.checkpoints.pop(one.digest).digest)


def _embedding_facts(description: CheckpointDescription) -> str:
    """What a plan takes from a description, but for the name of the format."""
    assumed = {key: value.value for key, value in description.assumed.items()}
    return repr(
        [
            *(description.arch, description.branch, description.widths, description.recipe),
            *(description.pixel_stats, description.image_size, description.patch, assumed),
            description.configured,
        ]
    )


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).removeprefix(f"{path}: ") or type(error).__name__
