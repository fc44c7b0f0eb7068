"""Short names of checkpoints: what differs between their paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

# Folders and files that frameworks put in the folder of every run.
FRAMEWORK_PARTS = re.compile(
    r"lightning_logs|version_0|checkpoints?|ckpts?|weights|snapshots|files|[0-9a-f]{16,}"
    r"|pytorch_model_fsdp(_\d+)?|mp_rank_00_model_states(\.pt)?"
    r"|(pytorch_model|model|checkpoint|ckpt|weights)(\.pth)?(\.[a-z]\w+)?"
)
FOLDERS_OF_RUNS = re.compile(r"runs?|outputs?|logs?|experiments?|exps?|results?|models?|\.+|/")
EXTENSION = re.compile(r"\.(pth\.tar|[A-Za-z][A-Za-z0-9]{0,11})$")
FILES_OF_ANY_RUN = re.compile(
    r"(last|best|latest|final|current|state|pytorch_model|model|checkpoint|ckpt|weights"
    r"|(epoch|step|iter|checkpoint|ckpt|model|ep)?[-_=]?\d+(-step=\d+)?)(-v\d+)?(\.pth)?(\.\w+)?"
)
STEP_AFTER_EPOCH = re.compile(r"(epoch=\d+)-step=\d+")


@dataclass(frozen=True)
class Parts:
    """The folders of a path and its file, root first; the name joins those that are shown."""

    texts: tuple[str, ...]
    shown: tuple[bool, ...]

    @property
    def name_parts(self) -> tuple[str, ...]:
        """The parts that the name joins."""
        return tuple(text for text, shown in zip(self.texts, self.shown, strict=True) if shown)

    @property
    def name(self) -> str:
        """The name."""
        return "/".join(self.name_parts)

    def without_text(self, text: str) -> Parts:
        """These parts without each that is this text."""
        pairs = zip(self.texts, self.shown, strict=True)
        return replace(self, shown=tuple(shown and one != text for one, shown in pairs))

    def without(self, at: int) -> Parts:
        """These parts with one less in the name. at: its position, also from the end if < 0."""
        at %= len(self.texts)
        return replace(self, shown=(*self.shown[:at], False, *self.shown[at + 1 :]))

    def with_file(self, text: str) -> Parts:
        """These parts with another text for the file name."""
        return replace(self, texts=(*self.texts[:-1], text))


Rows = list[Parts]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """A distinct name for each path, of what differs between them, whatever their order.

    A name joins folders of its path and its file name. It leaves out the folders, the file name and
    the extension that all paths share, and the folders that training frameworks add, as far as the
    names stay distinct. One path alone is named as by `name_of_one`.
    """
    unique = sorted(set(paths))
    if not unique:
        return {}
    if len(unique) == 1:
        return {unique[0]: name_of_one(unique[0])}
    rows = [_split(path) for path in unique]
    if len({row.texts for row in rows}) < len(rows):  # `a//b` and `a/b`
        return {path: path for path in unique}
    for shorten in (
        _without_shared_file,
        _without_framework_parts,
        _without_shared_folders,
        _without_steps,
    ):
        rows = shorten(rows)
    return {path: row.name for path, row in zip(unique, rows, strict=True)}


def name_of_one(path: str) -> str:
    """The last part of a path, or the folder of its run if any run may have such a part."""
    *folders, file = PurePath(path).parts or (path,)
    if FILES_OF_ANY_RUN.fullmatch(file.lower()) or FRAMEWORK_PARTS.fullmatch(file.lower()):
        names = (one for one in reversed(folders) if not FRAMEWORK_PARTS.fullmatch(one.lower()))
        folder = next(names, "/")
        return file if FOLDERS_OF_RUNS.fullmatch(folder.lower()) else folder
    return file


def name_below(path: str, names: Mapping[str, str], directory: str) -> str:
    """The short name of a path; without one, the path below the directory."""
    file = PurePath(path)
    below = file.relative_to(directory) if file.is_relative_to(directory) else file
    return names.get(path) or str(below)


def _split(path: str) -> Parts:
    parts = PurePath(path).parts or (path,)
    if len(parts) > 1 and parts[0] == "/":
        parts = parts[1:]
    return Parts(parts, (True,) * len(parts))


def _without_shared_file(rows: Rows) -> Rows:
    """Without the file name that all paths share, else without the extension."""
    if len({row.texts[-1] for row in rows}) == 1:
        rows = _shorter(rows, [row.without(-1) for row in rows])
    matches = [EXTENSION.search(row.texts[-1], 1) for row in rows]
    if len({match and match.group() for match in matches}) > 1:
        return rows
    return _shorter(rows, [row.with_file(EXTENSION.sub("", row.texts[-1])) for row in rows])


def _without_framework_parts(rows: Rows) -> Rows:
    """Without folders and file names that frameworks give to every run.

    Unless the name of one checkpoint would then begin that of another.
    """
    words = {text for row in rows for text in row.name_parts}
    for word in sorted(words):
        if FRAMEWORK_PARTS.fullmatch(word.lower()):
            shorter = [row.without_text(word) for row in rows]
            if _count_nested(shorter) <= _count_nested(rows):
                rows = _shorter(rows, shorter)
    return rows


def _without_shared_folders(rows: Rows) -> Rows:
    """Without the folders that all paths share, seen from the root or from the file."""
    depth = min(len(row.texts) for row in rows)
    for at in (*range(depth - 1), *range(-2, -depth - 1, -1)):
        if len({row.texts[at] for row in rows}) == 1:
            rows = _shorter(rows, [row.without(at) for row in rows])
    return rows


def _without_steps(rows: Rows) -> Rows:
    """Without the step after the epoch."""
    files = [STEP_AFTER_EPOCH.sub(r"\1", row.texts[-1]) for row in rows]
    return _shorter(rows, [row.with_file(file) for row, file in zip(rows, files, strict=True)])


def _shorter(rows: Rows, shorter: Rows) -> Rows:
    """The shorter rows if their names are distinct and each has a letter, else the rows."""
    names = {row.name for row in shorter}
    are_words = all(any(map(str.isalpha, row.name)) for row in shorter)
    return shorter if len(names) == len(rows) and are_words else rows


def _count_nested(rows: Rows) -> int:
    """How many names begin with the whole name of another checkpoint."""
    names = {row.name_parts for row in rows}
    return sum(any(one[:end] in names for end in range(1, len(one))) for one in names)
