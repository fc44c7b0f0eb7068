"""Reads a folder of torch.distributed.checkpoint as the tree that one torch.save would hold.

FOLDER/.metadata    what was saved, and where its pieces are: see walk_distributed.py
FOLDER/*.distcp     the pieces: chunks of tensors, and values that are not tensors
FOLDER/meta.pt      Lightning's: the rest of the checkpoint, in a file of torch.save

Names and shapes need .metadata alone, values that are not tensors their pieces; the other pieces
are located when the first tensor of a file is needed. The state of an optimizer is not read.
torch.distributed is not used, and nothing that the files name is imported or called.
Source: torch/distributed/checkpoint (torch 2.14); lightning/fabric/utilities/load.py.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lidar_cli.checkpoints.reading.folder import DISTRIBUTED, join_distributed
from lidar_cli.checkpoints.reading.lazy_tensor import (
    ITEMSIZE,
    MAX_NUMBER,
    LazyTensor,
    Malformed,
    checked_sizes,
    format_shape,
)
from lidar_cli.checkpoints.reading.record import decode
from lidar_cli.errors import CheckpointError, shortened
from lidar_cli.runtime.files import irregular_kind
from lidar_cli.runtime.sandbox import run_limited

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ".metadata"
SUFFIX = ".distcp"
LIGHTNING = "meta.pt"
WALKERS = "lidar_cli.checkpoints.reading.walk_distributed"
CHECKSUMS = f"{WALKERS}:walk_checksums"
ADVICE = "copy or save the folder again"
MAX_DEPTH = 50  # of nested dicts and lists
TREE_OF_LIGHTNING = "pytorch-lightning_version"  # a key of each checkpoint of its Trainer


class HasTree(Protocol):
    """The contents of a file."""

    @property
    def tree(self) -> Any:
        """The tree of values."""

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """The names of its stand-ins."""


def content_files(folder: Path) -> list[Path]:
    """The files with the content of a distributed checkpoint, in a fixed order.

    All files of another folder. Raises OSError, also for one without .metadata.
    """
    names = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    if any(map(DISTRIBUTED.fullmatch, names)):
        if METADATA not in names:
            raise FileNotFoundError(errno.ENOENT, f"no {METADATA}", os.fspath(folder))
        names = [one for one in names if one in (METADATA, LIGHTNING) or one.endswith(SUFFIX)]
    return [folder / name for name in names]


def read_tree(
    folder: Path, read_file: Callable[[Path], HasTree]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree of a distributed checkpoint, and the names of its stand-ins.

    read_file: reads a file of torch.save.
    Raises CheckpointError.
    """
    layout = read_layout(folder)
    values, stand_ins = _values(layout)
    pairs = [(entry.path, values.get(entry.path, entry.tensor)) for entry in layout.entries]
    try:
        tree = _nested(pairs)
    except Malformed as error:
        raise _damaged(folder / METADATA, error) from error
    if (folder / LIGHTNING).is_file():
        _check_regular(folder / LIGHTNING)
        file = read_file(folder / LIGHTNING)
        rest = file.tree
        stand_ins |= dict.fromkeys(file.stand_ins)
        if isinstance(rest, dict):
            if TREE_OF_LIGHTNING in rest and "state_dict" not in tree and "model" in tree:
                tree["state_dict"] = tree.pop("model")  # as in the Trainer's files
            tree = {**rest, **tree}
    return tree, tuple(stand_ins)


@dataclass(eq=False)
class PieceFile:
    """A file with pieces; they are located by a child process when the first one is needed."""

    path: Path
    nbytes: int
    ranges: list[tuple[int, int]]  # first byte and number of bytes of each piece
    contents: list[Any] | None = None

    def add(self, start: int, nbytes: int) -> int:
        """The number of a new piece. Raises Malformed if it is not inside the file."""
        if start + nbytes > self.nbytes:
            raise Malformed(f"a piece reaches past {self.path.name}, which has {self.nbytes} bytes")
        self.ranges.append((start, nbytes))
        return len(self.ranges) - 1

    def content(self, number: int) -> Any:
        """What a piece holds. Raises CheckpointError."""
        if self.contents is None:
            self.contents, _ = self.read(self.ranges)
        return self.contents[number]

    def read(self, ranges: list[tuple[int, int]]) -> tuple[list[Any], tuple[str, ...]]:
        """What pieces hold, and the names of their stand-ins. Raises CheckpointError."""
        arguments = [str(self.path), ranges]
        walked = run_limited(
            f"{WALKERS}:walk_pieces", self.path, arguments, error=CheckpointError, advice=ADVICE
        )
        try:
            contents, names = decode(walked.value, self.path, walked.stamp[2])
        except Malformed as error:
            raise _damaged(self.path, error) from error
        if not isinstance(contents, list) or len(contents) != len(ranges):
            raise _damaged(self.path, Malformed("it holds another number of pieces"))
        return contents, names


class Chunk(NamedTuple):
    """A box of a tensor, and the piece that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: PieceFile
    number: int

    def materialise(self, dtype: str) -> Tensor:
        """The numbers of the box. Raises CheckpointError unless the piece is such a tensor."""
        stored = self.file.content(self.number)
        if not isinstance(stored, LazyTensor):
            raise _damaged(self.file.path, Malformed("a piece holds no tensor"))
        if (stored.dtype, stored.shape) != (dtype, self.sizes):
            described = f"{stored.dtype} {format_shape(stored.shape)}"
            raise _damaged(
                self.file.path,
                Malformed(
                    f"a piece holds {described}, not {dtype} {format_shape(self.sizes)} "
                    f"as {METADATA} says"
                ),
            )
        return stored.materialise()


class ShardedTensor(LazyTensor):
    """A tensor in chunks, which are boxes that fill it."""

    __slots__ = ("chunks",)

    def __init__(self, dtype: str, shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> None:
        super().__init__(dtype or "unknown", shape, problem="" if dtype else "sparse or quantised")
        self.chunks = chunks

    def materialise(self) -> Tensor:
        """The tensor on the CPU; raises CheckpointError if it or its pieces cannot be read."""
        if self.problem:
            return super().materialise()
        import torch

        if len(self.chunks) == 1:
            return self.chunks[0].materialise(self.dtype)
        tensor: Tensor = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        for chunk in self.chunks:
            box = tuple(
                slice(first, first + count)
                for first, count in zip(chunk.offsets, chunk.sizes, strict=True)
            )
            tensor[box] = chunk.materialise(self.dtype)
        return tensor


class Entry(NamedTuple):
    """A value of what was saved: a tensor, a piece, or neither for the state of an optimizer."""

    path: tuple[str | int, ...]
    tensor: Any
    piece: tuple[PieceFile, int] | None = None


class Layout(NamedTuple):
    """The content of .metadata, of which all sizes are checked."""

    folder: Path
    files: list[PieceFile]
    entries: list[Entry]


def read_layout(folder: Path) -> Layout:
    """The names, shapes and pieces of a distributed checkpoint. Raises CheckpointError."""
    path = folder / METADATA
    _check_regular(path)
    walked = run_limited(
        f"{WALKERS}:walk_metadata", path, str(path), error=CheckpointError, advice=ADVICE
    )
    try:
        record = walked.value
        if record["transforms"]:
            raise CheckpointError(
                f"{folder}: its pieces are stored as {shortened(', '.join(record['transforms']))}, "
                f"which is not read; expected plain ones; {join_distributed(folder)}",
                code="transformed",
            )
        files = [_piece_file(folder, name) for name in record["files"]]
        entries = [_entry(row, files) for row in record["entries"]]
        for file in files:
            _check_disjoint(file)
    except Malformed as error:
        raise _damaged(path, error) from error
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(path, Malformed("it makes no sense")) from error
    return Layout(folder, files, entries)


def checksum_arguments(folder: Path) -> dict[Path, list[Any]]:
    """For each file for pieces, the arguments of `walk_distributed.walk_checksums`."""
    files = [path for path in content_files(folder) if path.name.endswith(SUFFIX)]
    ranges = {file.path: file.ranges for file in read_layout(folder).files}
    return {path: [str(path), ranges.get(path, [])] for path in files}


def _piece_file(folder: Path, name: str) -> PieceFile:
    """A file in the folder. Raises CheckpointError for other files, and for links."""
    shown = shortened(name)
    is_plain = name == os.path.basename(name) and "\\" not in name and "\0" not in name  # noqa: PTH119
    if not is_plain or not name.endswith(SUFFIX):
        raise CheckpointError(
            f"{folder}: {METADATA} refers to {shown}, which is no {SUFFIX} file in it; "
            "take the folder from a source that you trust",
            code="outside",
        )
    path = folder / name
    _check_regular(path)
    if not path.is_file():
        raise CheckpointError(f"{folder}: {shown} is missing; {ADVICE}", code="missing-piece")
    return PieceFile(path, path.stat().st_size, [])


def _check_regular(path: Path) -> None:
    """Raise CheckpointError for a link, a pipe or a device, which may be anything."""
    if kind := irregular_kind(path, follow=False):
        raise CheckpointError(
            f"{path}: is {kind}, expected a file; copy the folder with what it links to:  cp -rL",
            code="is-a-link",
        )


def _entry(row: Any, files: list[PieceFile]) -> Entry:
    path, *rest = row
    key = tuple(path)
    if not 0 < len(key) <= MAX_DEPTH or not {str, int}.issuperset(map(type, key)):
        raise Malformed("a value has no path")
    if not rest:
        return Entry(key, {})
    if isinstance(rest[0], int):
        file, start, nbytes = checked_sizes(rest)
        return Entry(key, None, (files[file], files[file].add(start, nbytes)))
    dtype, size, rows = rest
    shape = checked_sizes(size)
    if math.prod(max(n, 1) for n in shape) > MAX_NUMBER:
        raise Malformed(f"a tensor has the impossible shape {format_shape(shape)}")
    chunks = tuple(_chunk(row, dtype, shape, files) for row in rows)
    if not fill_exactly(shape, chunks):
        name = ".".join(map(str, key))
        raise Malformed(f"the pieces of {name[:60]!a} overlap, or leave a hole")
    return Entry(key, ShardedTensor(dtype, shape, chunks))


def _chunk(row: Any, dtype: str, shape: tuple[int, ...], files: list[PieceFile]) -> Chunk:
    offsets, sizes, *piece = row
    offsets, sizes = checked_sizes(offsets), checked_sizes(sizes)
    file, start, nbytes = checked_sizes(piece)
    if not len(offsets) == len(sizes) == len(shape) or any(
        first + count > length for first, count, length in zip(offsets, sizes, shape, strict=True)
    ):
        raise Malformed(f"a piece is outside its tensor of shape {format_shape(shape)}")
    if dtype and math.prod(sizes) * ITEMSIZE[dtype] > nbytes:
        raise Malformed(f"a piece of shape {format_shape(sizes)} has only {nbytes} bytes")
    return Chunk(offsets, sizes, files[file], files[file].add(start, nbytes))


def fill_exactly(shape: tuple[int, ...], chunks: Iterable[Chunk]) -> bool:
    """Whether chunks inside a tensor cover each element once: cut along one axis after another."""
    groups = [list(chunks)]
    if sum(math.prod(chunk.sizes) for chunk in groups[0]) != math.prod(shape):
        return False
    for axis in range(len(shape)):
        groups = [part for group in groups for part in _cut(group, axis)]
    return all(len(group) <= 1 for group in groups)


def _cut(chunks: list[Chunk], axis: int) -> list[list[Chunk]]:
    """Groups of chunks of which no two groups overlap along an axis."""
    if len(chunks) < 2:
        return [chunks]
    groups: list[list[Chunk]] = []
    end = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[axis]):
        if not groups or chunk.offsets[axis] >= end:
            groups.append([])
        groups[-1].append(chunk)
        end = max(end, chunk.offsets[axis] + chunk.sizes[axis])
    return groups


def _check_disjoint(file: PieceFile) -> None:
    """Raise Malformed if two pieces share bytes, of which a small file could hold any number."""
    end = 0
    for start, nbytes in sorted(file.ranges):
        if start < end:
            raise Malformed(f"two pieces share bytes of {file.path.name}")
        end = start + nbytes


def _values(layout: Layout) -> tuple[dict[tuple[str | int, ...], Any], dict[str, None]]:
    """The values that are not sharded tensors, by path, and the names of their stand-ins."""
    values: dict[tuple[str | int, ...], Any] = {}
    stand_ins: dict[str, None] = {}
    for file in layout.files:
        wanted = [one for one in layout.entries if one.piece and one.piece[0] is file]
        if wanted:
            ranges = [file.ranges[one.piece[1]] for one in wanted if one.piece]
            contents, names = file.read(ranges)
            values |= {one.path: value for one, value in zip(wanted, contents, strict=True)}
            stand_ins |= dict.fromkeys(names)
    return values, stand_ins


class _Container(dict[Any, Any]):
    """A dict or list on the way to a value."""


def _nested(entries: Iterable[tuple[tuple[str | int, ...], Any]]) -> dict[Any, Any]:
    """Nested dicts and lists with each value at the end of its path. Raises Malformed."""
    root = _Container()
    for path, value in entries:
        container = root
        for part in path[:-1]:
            container = container.setdefault(part, _Container())
            if not isinstance(container, _Container):
                raise Malformed("a value is inside another")
        if path[-1] in container:
            raise Malformed("two values have the same path")
        container[path[-1]] = value
    return {key: _plain(value) for key, value in root.items()}


def _plain(value: Any) -> Any:
    """The dict or list of a container; other values unchanged."""
    if not isinstance(value, _Container):
        return value
    plain = {key: _plain(inner) for key, inner in value.items()}
    is_list = plain.keys() == set(range(len(plain)))
    return [plain[i] for i in range(len(plain))] if is_list else plain


def _damaged(path: Path, error: Malformed) -> CheckpointError:
    return CheckpointError(f"{path}: damaged: {shortened(str(error))}; {ADVICE}", code="damaged")
