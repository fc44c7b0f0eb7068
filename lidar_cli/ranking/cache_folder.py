"""The folder of a cache: what may lie in it, and what alone is ever removed from it.

A downloaded directory may carry a `.lidar`, with links to anywhere in it. So the `.lidar` found in
a directory may be no link, and nothing of ours below any cache may be one. Only names of the forms
below are written and removed. The marker shows that a folder is a cache, so that a folder of other
things that was named by mistake is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from lidar_cli.errors import InputError
from lidar_cli.features.writer import remove_unbegun
from lidar_cli.runtime.atomic import TEMPORARY, write_atomic

MARKER = "LIDAR_CACHE"
MARKED = b"A cache of lidar: it may be removed as a whole, and is then made anew.\n"
CLAIMS = "claims"
STALE = 24 * 3600.0  # seconds after which nobody writes to a temporary file any more
KEY = "-[0-9a-f]{16}"
UNBEGUN = re.compile(rf".+{KEY}\.h5\.partial\.begun", re.DOTALL)
FORMS = (
    re.compile(rf".+{KEY}\.(h5|score|influence|sha256)", re.DOTALL),
    re.compile(rf".+{KEY}\.h5\.partial(\.[0-9a-f]{{8}})?", re.DOTALL),
    UNBEGUN,
    TEMPORARY,
    re.compile(r".+\.\d+-[0-9a-f]{8}", re.DOTALL),  # temporaries of earlier versions
)
# Of file systems and of the systems that browse them.
STRANGERS = re.compile(r"\..*|lost\+found|desktop\.ini|Thumbs\.db", re.IGNORECASE | re.DOTALL)


class CacheFolder:
    """A cache, checked when it is opened and created when it is first written to.

    directory: what is ranked. named: the folder that `--cache` names, whose path may pass through
    links; None for the `.lidar` of the directory, which may be none.
    Raises InputError, which ends with `--cache PATH`, for a folder that is not to be used.
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
        """The folder, made and marked if need be. Raises InputError if it cannot be written."""
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
        for entry in _entries(self.path):
            if entry.name == MARKER:
                self._has_marker = True
            elif entry.name == CLAIMS:
                _check_claims(entry)
                continue
            elif not any(form.fullmatch(entry.name) for form in FORMS):
                strangers.append(entry.name)
                continue
            if entry.is_symlink():
                raise refused(Path(entry.path), "is a link, which nothing in a cache may be")
            if not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                raise refused(Path(entry.path), "is not a file")
            if UNBEGUN.fullmatch(entry.name):
                remove_unbegun(Path(entry.path))
            elif TEMPORARY.fullmatch(entry.name) and _is_stale(entry):
                Path(entry.path).unlink(missing_ok=True)
        strangers = sorted(name for name in strangers if not STRANGERS.fullmatch(name))
        if strangers and not self._has_marker:
            raise refused(
                self.path, f"is no cache, it holds {strangers[0]!r} and has no file {MARKER}"
            )


def refused(path: Path, why: str) -> InputError:
    """The error of a cache that is not used."""
    return InputError(f"{path}: {why}; name another place with --cache PATH")


def _check_claims(folder: os.DirEntry[str]) -> None:
    path = Path(folder.path)
    if folder.is_symlink():
        raise refused(path, "is a link, which nothing in a cache may be")
    if not folder.is_dir():
        raise refused(path, "is not a folder")


def _is_stale(temporary: os.DirEntry[str]) -> bool:
    try:
        return time.time() - temporary.stat(follow_symlinks=False).st_mtime > STALE
    except OSError:  # it has got its name
        return False


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from entries
