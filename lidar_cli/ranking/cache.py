"""The cache of a ranked directory: feature files and scores, named by what they were computed from.

A downloaded directory may contain a `.lidar` folder with symbolic links that lead outside it. So
neither the `.lidar` of a ranked directory nor any file inside a cache may be a link. Only files
whose names match `NAME_PATTERNS` are written or removed. The marker file shows that a folder is a
cache: a folder that has other files and no marker was named by mistake and is refused.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from lidar_cli.configuration import parse_size
from lidar_cli.data.dataset import Samples
from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.extraction.plan import Plan, identity
from lidar_cli.extraction.run import stem
from lidar_cli.features.reader import read_hdf5, read_provenance
from lidar_cli.features.schema import (
    EMBEDDING_REVISION,
    differing_fields,
    partial_path,
    revision_of,
)
from lidar_cli.features.writer import FeatureWriter, remove_begun
from lidar_cli.ranking.discover import Checkpoint, FeatureFile
from lidar_cli.runtime.files import TEMPORARY, write_atomic
from lidar_cli.scoring.saved import SavedScore
from lidar_cli.settings import RankSettings

MARKER = "LIDAR_CACHE"
MARKER_TEXT = b"A cache of lidar. It may be deleted; the next ranking then creates it again.\n"
CLAIMS = "claims"
STALE_AFTER = 24 * 3600.0  # seconds; an older temporary file has no writer any more
KEY = "-[0-9a-f]{16}"
BEGUN_FILE = re.compile(rf".+{KEY}\.h5\.partial\.begun", re.DOTALL)
NAME_PATTERNS = (
    re.compile(rf".+{KEY}\.(h5|score|influence|sha256)", re.DOTALL),
    re.compile(rf".+{KEY}\.h5\.partial(\.[0-9a-f]{{8}})?", re.DOTALL),
    BEGUN_FILE,
    TEMPORARY,
    re.compile(r".+\.\d+-[0-9a-f]{8}", re.DOTALL),  # temporaries of earlier versions
)
# Fields of a provenance on which the rows of a sample do not depend.
NOT_IN_ROWS = {
    *("n_samples", "n_clean", "samples_sha256", "labels_sha256"),
    *("batch_size", "data", "bad_samples"),
}
# Files that file systems and file browsers create; a cache may contain them.
SYSTEM_FILES = re.compile(r"\..*|lost\+found|desktop\.ini|Thumbs\.db", re.IGNORECASE | re.DOTALL)


class CacheFolder:
    """The folder of a cache: checked on construction, created by `make`.

    directory: the ranked directory. named: the folder that `--cache` names, whose path may pass
    through links; None for the `.lidar` of the directory, which must not be a link. cleans: whether
    temporary files of interrupted writers are removed.
    Raises InputError, which ends with `--cache PATH`, for a folder that must not be used.
    """

    def __init__(self, directory: Path, named: Path | None, cleans: bool = True) -> None:
        self.path = named or directory / ".lidar"
        self._cleans = cleans
        self._has_marker = False
        if named is None and self.path.is_symlink():
            raise cache_error(self.path, "is a link, which may lead anywhere")
        try:
            if os.path.lexists(self.path):
                self._check()
        except OSError as error:
            raise cache_error(self.path, f"cannot be read ({error.strerror})") from error

    @property
    def claims(self) -> Path:
        """The folder of claim files."""
        return self.path / CLAIMS

    @property
    def has_marker(self) -> bool:
        """Whether the folder is there and is marked as a cache."""
        return self._has_marker

    def make(self) -> Path:
        """Create and mark the folder if needed. Raises InputError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._has_marker:
                write_atomic(self.path / MARKER, MARKER_TEXT)
                self._has_marker = True
        except OSError as error:
            raise cache_error(
                self.path, f"the cache cannot be written ({error.strerror})"
            ) from error
        return self.path

    def _check(self) -> None:
        if not self.path.is_dir():
            raise cache_error(self.path, "is not a folder")
        foreign = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _is_cache_name(entry.name):
                    self._has_marker |= entry.name == MARKER
                    _check_entry(entry)
                    if self._cleans:
                        _remove_interrupted(entry)
                elif not SYSTEM_FILES.fullmatch(entry.name):
                    foreign.append(entry.name)
        if foreign and not self._has_marker:
            raise cache_error(
                self.path, f"is not a cache: it holds {min(foreign)!r} and has no file {MARKER}"
            )


def _is_cache_name(name: str) -> bool:
    return name in (MARKER, CLAIMS) or any(form.fullmatch(name) for form in NAME_PATTERNS)


def _check_entry(entry: os.DirEntry[str]) -> None:
    """Refuse links and special files."""
    path = Path(entry.path)
    if entry.is_symlink():
        raise cache_error(path, "is a link, which nothing in a cache may be")
    if entry.name == CLAIMS:
        if not entry.is_dir():
            raise cache_error(path, "is not a folder")
    elif not entry.is_file(follow_symlinks=False) and os.path.lexists(path):
        raise cache_error(path, "is not a file")


def _remove_interrupted(entry: os.DirEntry[str]) -> None:
    """Remove a temporary file of an interrupted writer."""
    path = Path(entry.path)
    if BEGUN_FILE.fullmatch(entry.name):
        remove_begun(path)
    elif TEMPORARY.fullmatch(entry.name) and _is_stale(entry):
        path.unlink(missing_ok=True)


def cache_error(path: Path, why: str) -> InputError:
    """The error for a cache that must not be used."""
    return InputError(f"{path}: {why}; name another folder with --cache PATH", code="cache-refused")


def _is_stale(temporary: os.DirEntry[str]) -> bool:
    try:
        return time.time() - temporary.stat(follow_symlinks=False).st_mtime > STALE_AFTER
    except OSError:  # renamed to its final name in the meantime
        return False


@dataclass(frozen=True)
class Task:
    """A checkpoint and the plan of its embedding."""

    checkpoint: Checkpoint
    plan: Plan


class Cache:
    """The stored features and scores of checkpoints, in the ranked directory and the cache folder.

    Raises InputError if the folder cannot be written.
    """

    def __init__(self, folder: CacheFolder, settings: RankSettings) -> None:
        self.path = folder.path if settings.dry_run else folder.make()
        self.claims = folder.claims
        self._settings = settings
        # Digest of the checkpoint -> path of a feature file -> that file.
        self._features: dict[str, dict[Path, FeatureFile]] = {}
        self._digest_of: dict[Path, str] = {}

    def add_features(self, files: Iterable[FeatureFile]) -> None:
        """Register feature files of the ranked directory; a path given again replaces the first."""
        for file in files:
            digest = str(file.provenance.get("sha256"))
            if file.path in self._digest_of:
                del self._features[self._digest_of[file.path]][file.path]
            self._digest_of[file.path] = digest
            self._features.setdefault(digest, {})[file.path] = file

    def features_path(self, task: Task) -> Path:
        """The file in the cache folder for the embeddings of a task."""
        return self.path / f"{stem(task.checkpoint.path)}-{task.plan.key}.h5"

    def saved_score(self, task: Task) -> SavedScore:
        """The file in the cache folder for the score of a task whose embeddings are not stored."""
        return SavedScore(self.path, stem(task.checkpoint.path), task.plan, self._settings)

    def stored_features(self, task: Task) -> list[Path]:
        """Feature files for a task, not yet read: of the ranked directory, then of the cache."""
        files = self._features.get(task.checkpoint.digest, {}).values()
        matching = [file.path for file in files if matches_plan(file.provenance, task.plan)]
        path = self.features_path(task)
        return [*matching[:1], *([path] if path.exists() else [])]

    def begin_with_fewer(self, task: Task, samples: Samples) -> int:
        """Begin the file of a task with rows stored for fewer samples; returns how many samples.

        The samples of a smaller n are the first of a larger n. Whole batches are copied, so that
        the file becomes the one that embedding all samples writes.
        Raises FeatureFileError if a row is damaged, after copying those before it.
        """
        layout, output = task.plan.layout, self.features_path(task)
        *_, (count, batch_size, path) = [(0, 0, output), *self._of_fewer_samples(task, samples)]
        if count == 0:
            return 0
        first, *others = read_hdf5(path, ",".join(layout.widths))
        memory = parse_size(self._settings.memory) // len(layout.widths)
        with FeatureWriter.create(
            output,
            layout,
            samples.ids[: layout.n_clean],
            samples.labels[: layout.n_clean] if samples.labels is not None else None,
            task.plan.provenance | {"batch_size": batch_size},
            bad=[(bad.id, bad.reason) for bad in samples.bad],
            overwrite=output.exists(),
        ) as writer:
            for chunk in first.chunks(memory, range(count)):
                span = range(chunk.start, chunk.stop)
                chunks = {first.layer: chunk}
                chunks |= {one.layer: next(one.chunks(sys.maxsize, span)) for one in others}
                clean = {layer: one.clean for layer, one in chunks.items() if one.clean is not None}
                views = {
                    layer: clean[layer][:0, None] if one.views is None else one.views
                    for layer, one in chunks.items()
                }
                writer.write(span, views, clean)
        return count

    def count_of_fewer(self, task: Task, samples: Samples) -> int:
        """How many samples of a task `begin_with_fewer` can copy."""
        return max((count for count, _, _ in self._of_fewer_samples(task, samples)), default=0)

    def _of_fewer_samples(self, task: Task, samples: Samples) -> list[tuple[int, int, Path]]:
        """Feature files that differ from the plan of a task only by having fewer samples.

        Each with its number of samples in whole batches and the size of these, the most last. An
        empty list if the file of the task is begun.
        """
        layout, files = task.plan.layout, []
        is_begun = partial_path(self.features_path(task)).exists()
        if is_begun or layout.n_samples not in (0, layout.n_clean):
            return []
        for path in self.path.glob(f"{escape(stem(task.checkpoint.path))}-*.h5"):
            with suppress(FeatureFileError, LookupError, TypeError, ValueError, ArithmeticError):
                provenance = read_provenance(path)
                count = provenance["n_clean"]
                batch_size = int(self._settings.batch_size or provenance["batch_size"])
                if (
                    set(differing_fields(provenance, task.plan.provenance)) <= NOT_IN_ROWS
                    and provenance["n_samples"] in (count if layout.n_samples else 0,)
                    and count < layout.n_clean
                    and provenance["samples_sha256"] == samples.first_fingerprint(count)
                ):
                    files.append((count // batch_size * batch_size, batch_size, path))
        return sorted(files)

    def has(self, task: Task) -> bool:
        """Whether features or a score of a task are stored, in a file that may yet be damaged."""
        if not self._settings.store and self.saved_score(task).path.exists():
            return True
        return bool(self.stored_features(task))

    def remove(self, task: Task) -> None:
        """Remove the features and the score of a task from the cache folder."""
        self.features_path(task).unlink(missing_ok=True)
        self.saved_score(task).path.unlink(missing_ok=True)

    def count_outdated(self, tasks: Sequence[Task]) -> int:
        """How many tasks must be embedded again: their rows are of another embedding revision."""
        stored: dict[str, list[Path]] = {}  # name without the key of the plan -> files
        for file in self.path.glob("*.h5"):
            stored.setdefault(file.name.rpartition("-")[0], []).append(file)
        count = 0
        for task in tasks:
            if self.has(task):
                continue
            digest = task.checkpoint.digest
            provenances = [file.provenance for file in self._features.get(digest, {}).values()]
            for path in stored.get(stem(task.checkpoint.path), ()):
                with suppress(FeatureFileError):
                    provenances.append(read_provenance(path))
            revisions = {revision_of(one) for one in provenances if one.get("sha256") == digest}
            count += bool(revisions) and EMBEDDING_REVISION not in revisions
        return count


def matches_plan(provenance: dict[str, Any], plan: Plan) -> bool:
    """Whether stored features are those that a plan computes; they may have more layers."""
    stored, planned = identity(provenance), plan.identity
    layers = set(stored.pop("layers", ()))
    return set(planned.pop("layers")) <= layers and stored == planned
