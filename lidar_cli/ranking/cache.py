"""The cache of a ranked directory: feature files and scores, named by what they were computed from.

A downloaded directory may contain a `.lidar` with links to anywhere. So the `.lidar` of a directory
must not be a link, nor may anything inside a cache be one. Only files whose names match `FORMS` are
written or removed. The marker shows that a folder is a cache, so that another folder, named by
mistake, is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.extraction.plan import Plan, identity
from lidar_cli.extraction.run import stem
from lidar_cli.features.reader import read_provenance
from lidar_cli.features.schema import EMBEDDING_REVISION, revision_of
from lidar_cli.features.writer import remove_begun
from lidar_cli.ranking.discover import Checkpoint, FeatureFile
from lidar_cli.runtime.atomic import TEMPORARY, write_atomic
from lidar_cli.scoring.saved import SavedScore
from lidar_cli.settings import RankSettings

MARKER = "LIDAR_CACHE"
MARKED = b"A cache of lidar: it may be removed as a whole, and is then made anew.\n"
CLAIMS = "claims"
STALE = 24 * 3600.0  # seconds after which a temporary file has no writer any more
KEY = "-[0-9a-f]{16}"
UNBEGUN = re.compile(rf".+{KEY}\.h5\.partial\.begun", re.DOTALL)
FORMS = (
    re.compile(rf".+{KEY}\.(h5|score|influence|sha256)", re.DOTALL),
    re.compile(rf".+{KEY}\.h5\.partial(\.[0-9a-f]{{8}})?", re.DOTALL),
    UNBEGUN,
    TEMPORARY,
    re.compile(r".+\.\d+-[0-9a-f]{8}", re.DOTALL),  # temporaries of earlier versions
)
# Files of file systems and of the systems that browse them.
STRANGERS = re.compile(r"\..*|lost\+found|desktop\.ini|Thumbs\.db", re.IGNORECASE | re.DOTALL)


class CacheFolder:
    """The folder of a cache, checked here and created when something is first written to it.

    directory: the ranked directory. named: the folder given by `--cache`, whose path may pass
    through links; None for the `.lidar` of the directory, which must not be a link.
    Raises InputError, which ends with `--cache PATH`, for a folder that must not be used.
    """

    def __init__(self, directory: Path, named: Path | None) -> None:
        self.path = named or directory / ".lidar"
        self._has_marker = False
        if named is None and self.path.is_symlink():
            raise refused(self.path, "is a link, which may lead anywhere")
        try:
            if os.path.lexists(self.path):
                self._check()
        except OSError as error:
            raise refused(self.path, f"cannot be read ({error.strerror})") from error

    @property
    def claims(self) -> Path:
        """The folder of claims."""
        return self.path / CLAIMS

    def make(self) -> Path:
        """Create and mark the folder if needed. Raises InputError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._has_marker:
                write_atomic(self.path / MARKER, MARKED)
                self._has_marker = True
        except OSError as error:
            raise refused(self.path, f"the cache cannot be written ({error.strerror})") from error
        return self.path

    def _check(self) -> None:
        if not self.path.is_dir():
            raise refused(self.path, "is not a folder")
        strangers = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _is_ours(entry.name):
                    self._has_marker |= entry.name == MARKER
                    _check_entry(entry)
                elif not STRANGERS.fullmatch(entry.name):
                    strangers.append(entry.name)
        if strangers and not self._has_marker:
            raise refused(
                self.path, f"is no cache, it holds {min(strangers)!r} and has no file {MARKER}"
            )


def _is_ours(name: str) -> bool:
    return name in (MARKER, CLAIMS) or any(form.fullmatch(name) for form in FORMS)


def _check_entry(entry: os.DirEntry[str]) -> None:
    """Refuse links and odd kinds of files, and remove what an interrupted writer left."""
    path = Path(entry.path)
    if entry.is_symlink():
        raise refused(path, "is a link, which nothing in a cache may be")
    if entry.name == CLAIMS:
        if not entry.is_dir():
            raise refused(path, "is not a folder")
    elif not entry.is_file(follow_symlinks=False) and os.path.lexists(path):
        raise refused(path, "is not a file")
    elif UNBEGUN.fullmatch(entry.name):
        remove_begun(path)
    elif TEMPORARY.fullmatch(entry.name) and _is_stale(entry):
        path.unlink(missing_ok=True)


def refused(path: Path, why: str) -> InputError:
    """The error for a cache that must not be used."""
    return InputError(f"{path}: {why}; name another place with --cache PATH", code="cache-refused")


def _is_stale(temporary: os.DirEntry[str]) -> bool:
    try:
        return time.time() - temporary.stat(follow_symlinks=False).st_mtime > STALE
    except OSError:  # renamed to its final name in the meantime
        return False


@dataclass(frozen=True)
class Task:
    """A checkpoint and the plan of its embedding."""

    checkpoint: Checkpoint
    plan: Plan


class Cache:
    """What is stored of checkpoints: feature files of the ranked directory, and the cache folder.

    Raises InputError if the folder cannot be written.
    """

    def __init__(self, folder: CacheFolder, settings: RankSettings) -> None:
        self.path = folder.make()
        self.claims = folder.claims
        self._settings = settings
        # By the digest of their checkpoint, then by their path.
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
        """Where the folder stores the embeddings of a task."""
        return self.path / f"{stem(task.checkpoint.path)}-{task.plan.key}.h5"

    def saved_score(self, task: Task) -> SavedScore:
        """Where the folder stores the score of a task that is embedded without a feature file."""
        return SavedScore(self.path, stem(task.checkpoint.path), task.plan, self._settings)

    def stored_features(self, task: Task) -> list[Path]:
        """Feature files for a task, not yet read: one of the directory first, then the folder's."""
        files = self._features.get(task.checkpoint.digest, {}).values()
        matching = [file.path for file in files if serves(file.provenance, task.plan)]
        path = self.features_path(task)
        return [*matching[:1], *([path] if path.exists() else [])]

    def has(self, task: Task) -> bool:
        """Whether a task needs no embedding, unless its file turns out to be damaged."""
        if not self._settings.store and self.saved_score(task).path.exists():
            return True
        return bool(self.stored_features(task))

    def remove(self, task: Task) -> None:
        """Remove what the folder stores of a task."""
        self.features_path(task).unlink(missing_ok=True)
        self.saved_score(task).path.unlink(missing_ok=True)

    def outdated(self, tasks: Sequence[Task]) -> int:
        """How many tasks need embedding although rows of another embedding revision are stored."""
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


def serves(provenance: dict[str, Any], plan: Plan) -> bool:
    """Whether stored features hold what a plan would compute, perhaps with other layers too."""
    stored, planned = identity(provenance), plan.identity
    layers = set(stored.pop("layers", ()))
    return set(planned.pop("layers")) <= layers and stored == planned
