"""Reads the files of torch.distributed.checkpoint; runs only in the child of `runtime.sandbox`.

.metadata    a pickle of Metadata
    state_dict_metadata    name -> type, shape and chunks of a tensor, or that it is another value
    planner_data           name -> path in the nested dicts and lists of what was saved
    storage_data           name and offset of a chunk -> file, first byte, number of bytes
*.distcp     pieces in a row, each a zip file of torch.save with a chunk of a tensor, or a value
Source: torch/distributed/checkpoint/metadata.py, filesystem.py, default_planner.py, _traverse.py
(torch 2.14).
"""

from __future__ import annotations

import gc
import re
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading.interpret import interpret
from lidar_cli.checkpoints.reading.lazy_tensor import Malformed, checked_sizes, dtype_name
from lidar_cli.checkpoints.reading.pickle import load, open_range
from lidar_cli.checkpoints.reading.record import encode
from lidar_cli.checkpoints.reading.stand_ins import Global, StandIn
from lidar_cli.checkpoints.reading.walk import as_checkpoint_errors, checksums, read_zip

# The first or second part of the names of an optimizer's state, which is not read.
OPTIMIZER = re.compile(r"optim(izer)?(s|_states?|_state_dict)?(_\d+)?")
MAX_DEPTH = 50  # of nested dicts and lists
BUFFER = 1 << 12  # bytes; a piece begins and ends with a few small members


def walk_metadata(file: BinaryIO, path: str) -> dict[str, Any]:
    """The record of a .metadata file; raises CheckpointError, which names `path`.

    {"files": [name, ...], "transforms": [name, ...], "entries": [entry, ...]}
        entry    [path, type, shape, [[offsets, sizes, *piece], ...]]    a tensor
                 [path, *piece]                                          another value
                 [path]                                                  an optimizer, not read
        piece    row of its file, first byte, number of bytes
    """
    gc.disable()  # it would traverse up to a million values repeatedly
    with as_checkpoint_errors(path, "metadata"):
        root = interpret(load(open_range(file, 0, file.seek(0, 2)))[0])
        return _Metadata(root).record()


def walk_pieces(file: BinaryIO, arguments: Any) -> Any:
    """The record of the list of what pieces of a file hold; raises CheckpointError.

    arguments: the path for messages, and the first byte and number of bytes of each piece.
    """
    path, ranges = arguments
    values, names = [], dict[str, None]()
    gc.disable()
    with as_checkpoint_errors(path, "distcp"):
        for start, nbytes in ranges:
            value, more = read_zip(open_range(file, start, start + nbytes, BUFFER), path, start)
            values.append(value)
            names |= dict.fromkeys(more)
        return encode(values, tuple(names))


def walk_checksums(file: BinaryIO, arguments: Any) -> list[tuple[int, int, int]]:
    """As `walk.checksums`, of all members of all pieces. arguments: as of `walk_pieces`."""
    path, ranges = arguments
    with as_checkpoint_errors(path, "distcp"):
        return [
            (start + first, count, crc)
            for start, nbytes in sorted(ranges)
            for first, count, crc in checksums(open_range(file, start, start + nbytes, BUFFER))
        ]


class _Metadata:
    """The stand-ins of a .metadata file."""

    def __init__(self, root: Any) -> None:
        fields = _attributes(root)
        self.entries = _dict(fields.get("state_dict_metadata"))
        paths = fields.get("planner_data")
        self.paths = paths if isinstance(paths, dict) else {}
        self.files: dict[str, int] = {}
        self.transforms: dict[str, None] = {}
        self.stored: dict[tuple[Any, Any], Any] = {}  # by name and offset
        for index, info in _dict(fields.get("storage_data")).items():
            place = _attributes(index)
            self.stored[place.get("fqn"), place.get("offset")] = info

    def record(self) -> dict[str, Any]:
        """The record, see `walk_metadata`."""
        entries: dict[Any, list[Any]] = {}
        for name, entry in self.entries.items():
            if not isinstance(name, str):
                raise Malformed("it has a name that is not text")
            parts = name.split(".")[:2]
            of_optimizer = [i for i, part in enumerate(parts) if OPTIMIZER.fullmatch(part)]
            if of_optimizer:
                path, depth = self.path(name), of_optimizer[0] + 1
                top = path[:depth] if len(path) > 1 else (".".join(parts[:depth]),)
                entries[top] = [top]
            else:
                entries[name] = [self.path(name), *self.entry(name, entry)]
        return {
            "files": list(self.files),
            "transforms": list(self.transforms),
            "entries": list(entries.values()),
        }

    def path(self, name: str) -> tuple[Any, ...]:
        """The keys and indices that lead to a value in what was saved."""
        path = self.paths.get(name, (name,))
        is_path = isinstance(path, tuple) and 0 < len(path) <= MAX_DEPTH
        if not is_path or not {str, int}.issuperset(map(type, path)):
            raise Malformed(f"{name[:60]!a} has no path in what was saved")
        return tuple(path)

    def entry(self, name: str, entry: Any) -> list[Any]:
        """Type, shape and chunks of a tensor; or the piece with a value."""
        if not isinstance(entry, StandIn):
            raise Malformed(f"{name[:60]!a} is not described")
        if not isinstance(entry.state, dict):  # BytesStorageMetadata has no fields
            return self.piece(name, None)
        shape = checked_sizes(entry.state.get("size"))
        chunks = entry.state.get("chunks")
        if not isinstance(chunks, list):
            raise Malformed(f"{name[:60]!a} has no chunks")
        return [
            _element_type(entry.state.get("properties")),
            shape,
            list(self.chunks(name, chunks)),
        ]

    def chunks(self, name: str, chunks: list[Any]) -> list[list[Any]]:
        """Offsets, sizes and piece of each chunk that is not empty."""
        rows: dict[tuple[int, ...], list[Any]] = {}
        for chunk in chunks:
            fields = _attributes(chunk)
            offsets, sizes = (checked_sizes(fields.get(key)) for key in ("offsets", "sizes"))
            if offsets in rows:
                raise Malformed(f"two pieces of {name[:60]!a} overlap")
            if 0 not in sizes:  # a process without a share of the tensor
                rows[offsets] = [offsets, sizes, *self.piece(name, offsets)]
        return list(rows.values())

    def piece(self, name: str, offsets: tuple[int, ...] | None) -> list[Any]:
        """Row of the file, first byte and number of bytes of a piece."""
        info = self.stored.get((name, offsets))
        if info is None:
            raise Malformed(f"a piece of {name[:60]!a} is missing")
        fields = _attributes(info)
        file, transforms = fields.get("relative_path"), fields.get("transform_descriptors") or ()
        start, nbytes = checked_sizes((fields.get("offset"), fields.get("length")))
        if not isinstance(file, str) or not isinstance(transforms, list | tuple):
            raise Malformed(f"a piece of {name[:60]!a} has no file")
        self.transforms |= dict.fromkeys(str(one)[:60] for one in transforms)
        return [self.files.setdefault(file, len(self.files)), start, nbytes]


def _element_type(properties: Any) -> str:
    """The type of a tensor's elements, '' if it is unknown or the tensor is not dense."""
    state = properties.state if isinstance(properties, StandIn) else None
    if isinstance(state, dict):
        state = (state.get("dtype"), state.get("layout", "torch.strided"))
    if not isinstance(state, tuple) or len(state) < 2:
        raise Malformed("a tensor has no type")
    dtype, layout = state[:2]
    is_dense = isinstance(dtype, Global) and layout == "torch.strided"
    return (dtype_name(dtype.name) or "") if is_dense else ""


def _attributes(value: Any) -> dict[str, Any]:
    if not isinstance(value, StandIn):
        raise Malformed("it is no description of a distributed checkpoint")
    return _dict(value.state)


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Malformed("it is no description of a distributed checkpoint")
    return value
