"""What is named to be ranked: files, folders and patterns, as one selection in a fixed order.

Imports no tensor library, so that a mistyped path is refused at once.
"""

from __future__ import annotations

import difflib
import errno
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lidar_cli.checkpoints.reading.folder import (
    CHECKPOINT_SUFFIXES,
    DISTRIBUTED,
    PART,
    checkpoint_in,
    is_checkpoint,
)
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.runtime.files import did_you_mean, irregular_kind
from lidar_cli.settings import RankSettings

FEATURE_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npy", ".npz")
RECURSIVE = "**"  # the part of a pattern that stands for any number of folders
# Files that training scripts save with the weights; others are recognised by their content.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state(_\d+)?|.*_optim_states)\.(pt|pth|bin)"
)
# Folders that a checkpoint is written to before they get their name.
UNFINISHED = re.compile(r".+\.tmp|tmp-checkpoint-\d+")
LINK_TO_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class Selection:
    """The files, folders and patterns that were named, sorted, each once.

    directory: the folder that is named alone, else the one that all have in common.
    cache_parent: the folder that contains the default cache, `.lidar`.
    include, exclude: globs, see `includes`.
    """

    arguments: tuple[Path, ...]
    directory: Path
    cache_parent: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.arguments))

    @property
    def is_filtered(self) -> bool:
        """Whether there are globs that leave files out."""
        return bool(self.include or self.exclude)

    def named(self) -> Iterator[tuple[Path, bool]]:
        """Each file and folder as they are now, and whether a pattern matched it."""
        for argument in self.arguments:
            if is_pattern(argument):
                yield from ((path, True) for path in sorted(matches(argument)))
            else:
                yield argument, False

    def includes(self, path: Path) -> bool:
        """Whether --include and --exclude leave a file in the selection.

        A glob matches the path below `directory`, or any one name in that path.
        """
        if not self.is_filtered:
            return True
        base = Path(place_of(self.directory))
        place = Path(place_of(path))
        below = place.relative_to(base) if place.is_relative_to(base) else Path(place.name)
        is_included = not self.include or _matches_any(below, self.include)
        return is_included and not _matches_any(below, self.exclude)


Paths = Selection | Path | Sequence[Path]


def select(paths: Paths, settings: RankSettings | None = None) -> Selection:
    """The selection of paths and patterns, with the settings' --include and --exclude.

    A selection is returned as it is. A pattern that --watch follows may match nothing yet.
    Raises InputError for a path that does not exist, or a pattern that matches nothing.
    """
    if isinstance(paths, Selection):
        return paths
    settings = settings or RankSettings()
    given = [paths] if isinstance(paths, Path) else paths
    by_place = {place_of(path): path for path in reversed(given)}
    arguments = [by_place[place] for place in sorted(by_place)]
    for path in arguments:
        _check(path, settings.watch)
    folders = [path for path in arguments if path.is_dir() and not is_checkpoint(path)]
    return Selection(
        arguments=tuple(arguments),
        directory=common_folder(
            [path if path in folders else _folder_of(path) for path in arguments]
        ),
        cache_parent=folders[0] if len(folders) == 1 else Path(),
        include=settings.include,
        exclude=settings.exclude,
    )


def check_two(paths: Sequence[Path]) -> None:
    """Raise SettingsError unless there are two paths, InputError if one does not exist."""
    if len(paths) != 2:
        some = " ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        advice = "name another" if len(paths) == 1 else f"to order them: lidar rank {some}"
        raise SettingsError(
            f"compare takes two checkpoints or feature files, not {len(paths)}; {advice}",
            code="not-two",
        )
    select(paths)


def check_any(selection: Selection) -> None:
    """Raise InputError if a selection has no file, and all of its folders can be listed."""
    unlisted: list[OSError] = []
    if next(files_of(selection, unlisted.append), None) is None and not unlisted:
        raise no_checkpoint(selection)


def no_checkpoint(selection: Selection) -> InputError:
    """The error for a selection without a file."""
    left = " that --include and --exclude leave" if selection.is_filtered else ""
    return InputError(
        f"{selection}: no checkpoint in it{left}; expected files ending in "
        f"{' '.join(CHECKPOINT_SUFFIXES)}, or feature files",
        code="no-checkpoint",
    )


def files_of(selection: Selection, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """The files of a selection, and folders that are one checkpoint, each once, in a stable order.

    Those in folders and those that match a pattern have a suffix of checkpoints or features. A part
    of a distributed checkpoint stands for its folder.
    on_error: receives the error of a folder that cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    files: set[str] = set()
    for path, is_match in selection.named():
        paths = iter([path])
        if path.is_dir():
            folders = walk(path, on_error, entered)
            paths = (one for at, names in folders for one in _files_in(at, names))
        elif DISTRIBUTED.fullmatch(path.name):
            paths = iter([path.parent])
        elif is_match:
            paths = filter(has_suffix, paths)
        for file in paths:
            if place_of(file) not in files and selection.includes(file):
                files.add(place_of(file))
                yield file


def _files_in(folder: Path, names: list[str]) -> Iterator[Path]:
    """The checkpoints and feature files among the files of a folder, or the folder itself."""
    whole = checkpoint_in(folder, names)
    if whole is not None:
        yield whole
        names = [name for name in names if not PART.fullmatch(name)]
    yield from filter(has_suffix, (folder / name for name in names))


def has_suffix(path: Path) -> bool:
    """Whether a file has a suffix of checkpoints, feature files or arrays."""
    return path.name.lower().endswith((*CHECKPOINT_SUFFIXES, *FEATURE_SUFFIXES, *ARRAY_SUFFIXES))


def reason_unopened(path: Path) -> str | None:
    """Why a file is skipped without opening it; None if it is to be opened."""
    if NOT_WEIGHTS.fullmatch(path.name.lower()):
        return "by its name, not model weights"
    folder = path if path.is_dir() else path.parent
    if UNFINISHED.fullmatch(folder.name) and (path.is_dir() or PART.fullmatch(path.name)):
        return "by its name, a checkpoint that is being saved"
    from lidar_cli.features.schema import joined_name  # which imports numpy

    if joined := joined_name(path):
        return f"by its name, a shard of {joined}"
    if is_link_to_nothing(path):
        return f"a link to nothing: {path.readlink()}"
    kind = irregular_kind(path)
    return f"{kind}, not a file" if kind else None


def only_file(path: Path) -> Path:
    """The file that a path names: itself, or the only checkpoint in it.

    A folder that cannot be listed has none.
    Raises InputError if there is none, SettingsError if there are several.
    """
    files: list[Path] = []
    for file in files_of(select(path), lambda _: None):
        if file != path and reason_unopened(file) is not None:
            continue
        if any(file.samefile(other) for other in files):  # last.ckpt may be a link to another
            continue
        files.append(file)
        if len(files) > 1:
            raise SettingsError(
                f"{path}: holds several checkpoints, such as {files[0]} and {files[1]}; name one "
                f"of them, or order them all: lidar rank {path}",
                code="not-two",
            )
    if not files:
        raise InputError(f"{path}: no checkpoint in it", code="no-checkpoint")
    return files[0]


def walk(
    directory: Path, on_error: Callable[[OSError], None], seen: set[tuple[int, int]]
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `directory` down and the names of its files, in a stable order.

    Hidden folders, such as the cache, are left out, and so are folders in `seen`: device and inode
    of those that were entered. on_error: receives the error of a folder that cannot be listed.
    """
    for folder, subfolders, names in os.walk(directory, onerror=on_error, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError as error:  # removed in the meantime
            on_error(error)
            subfolders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was entered
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), sorted(names)


def is_pattern(path: Path) -> bool:
    """Whether a path has wildcards and is not itself the path of a file or folder."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def matches(pattern: Path) -> set[Path]:
    """The files and folders that match a pattern, in which `**` stands for any folders.

    A wildcard matches no hidden name.
    """
    if RECURSIVE not in pattern.parts:
        return set(map(Path, glob.glob(str(pattern))))  # noqa: PTH207 (Path.glob matches hidden names)
    at = pattern.parts.index(RECURSIVE)
    bases = [path for path in matches(Path(*pattern.parts[:at])) if path.is_dir()]
    if pattern.parts[at + 1 :] == ():
        return set(bases)
    seen: set[tuple[int, int]] = set()
    folders = [folder for base in sorted(bases) for folder, _ in walk(base, lambda _: None, seen)]
    tail = pattern.parts[at + 1 :]
    return {path for one in folders for path in matches(Path(glob.escape(str(one)), *tail))}


def place_of(path: Path) -> str:
    """The absolute path without `..`, the same for the same path typed in two ways."""
    return os.path.normpath(path.absolute())


def is_link_to_nothing(path: Path) -> bool:
    """Whether a path is a link whose target does not exist."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in LINK_TO_NOTHING and path.is_symlink()
    return False


def _matches_any(below: Path, globs: Sequence[str]) -> bool:
    texts = (below.as_posix(), *below.parts)
    return any(fnmatchcase(text, one) for one in globs for text in texts)


def _check(path: Path, may_match_nothing: bool) -> None:
    """Raise InputError for a path that does not exist, or a pattern that matches nothing."""
    if os.path.lexists(path):
        return
    if not is_pattern(path):
        raise InputError(f"{path}: no such file or folder{_advice(path)}", code="no-such-directory")
    folder = _folder_of(path)
    if not folder.is_dir():
        raise InputError(
            f"{path}: no such folder as {folder}{_advice(folder)}", code="no-such-directory"
        )
    if not may_match_nothing and not matches(path):
        names = sorted({other.name for other in matches(path.parent / "*")})
        close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
        advice = (
            f"did you mean {path.parent / close[0]}?"
            if close and not glob.has_magic(path.name)
            else "a `*` matches part of one name, `**` any folders"
        )
        raise InputError(
            f"{path}: this pattern matches nothing in {folder}{os.sep}; {advice}", code="no-match"
        )


def _advice(path: Path) -> str:
    """The existing path that is most like a mistyped one, or else what may be named."""
    advice = "; name checkpoints, folders of them, or patterns such as 'runs/*/last.ckpt'"
    return did_you_mean(path) or advice


def _folder_of(path: Path) -> Path:
    """The folder that a file is in, or the one below which a pattern matches."""
    folder = path.parent
    while is_pattern(folder):
        folder = folder.parent
    return folder


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that contains all of these."""
    if len(folders) == 1:
        return folders[0]
    texts = [os.path.normpath(folder) for folder in folders]
    if len({folder.is_absolute() for folder in folders}) > 1:
        texts = [place_of(folder) for folder in folders]
    try:
        return Path(os.path.commonpath(texts))
    except ValueError:  # on several drives
        return Path()
