"""The tree of a checkpoint as JSON: the child process encodes it, the parent process decodes it.

    {"nodes": [node, ...], "root": value, "storages": [...], "sources": [...], "stand_ins": [...]}
    value    a number, text, true, false, null, or [i] for node i
    node     [kind, part, ...], see MUTABLE and IMMUTABLE; tuples and sets follow their parts
    storage  [type, number of bytes, source, first byte in the source]
    source   [first byte in the file, number of bytes], or [base64] of bytes in the pickle

A value far larger than a training setting (a list of all images, a log) becomes a stand-in for its
type. `decode` does not trust the child process: it checks all offsets against the file again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import (
    LazyTensor,
    Malformed,
    Source,
    Storage,
    checked_sizes,
    element_size,
    strided_view,
)
from lidar_cli.checkpoints.reading.stand_ins import ArrayType, Global, StandIn, plain

DIRECT = frozenset((int, float, bool, type(None), str))
MUTABLE: dict[str, Callable[[], Any]] = {"d": dict, "l": list, "o": lambda: StandIn("")}
IMMUTABLE = {"t": tuple, "s": set, "f": frozenset}
KINDS: dict[type, str] = {dict: "d", list: "l", tuple: "t", set: "s", frozenset: "f"}
CONTAINERS = (dict, list, tuple, set, frozenset, StandIn)
LONG = 100_000  # elements of a container without tensors, characters of a text
MAX_ARRAYS = 4 << 20  # bytes of all numpy arrays inside the pickle
MAX_BITS = 8192  # of an integer; Python refuses to print much longer ones
MAX_KEY_DEPTH = 4  # of nested tuples in a key
MAX_UNUSUAL_KEYS = 1000  # neither text nor small integers: their hashes may collide on purpose

TOO_LONG = "a numpy array of more than 4 MB inside the pickle"


def encode(tree: Any, stand_ins: tuple[str, ...]) -> dict[str, Any]:
    """The record of a tree; raises Malformed for huge integers and keys that slow dicts down."""
    return {**_Encoder().encode(tree), "stand_ins": stand_ins}


class _Encoder:
    def __init__(self) -> None:
        self.nodes: list[list[Any]] = []
        self.references: dict[int, list[int]] = {}  # id of an object -> [number of its node]
        self.objects: list[Any] = []  # those in `references`, so that no id is reused
        self.storages: dict[int, int] = {}  # id -> row
        self.sources: dict[int, int] = {}  # id -> row
        self.storage_rows: list[list[Any]] = []
        self.source_rows: list[list[Any]] = []
        self.array_bytes = 0
        self.n_unusual_keys = 0

    def encode(self, tree: Any) -> dict[str, Any]:
        """The record without the names of stand-ins."""
        stack: list[tuple[Any, bool]] = [(tree, False)]
        while stack:
            value, parts_are_numbered = stack.pop()
            if parts_are_numbered:
                self.finish(value)
            elif type(value) not in DIRECT and id(value) not in self.references:
                self.begin(value, stack)
        root = self.part(tree)
        rows = {"storages": self.storage_rows, "sources": self.source_rows}
        return {"nodes": self.nodes, "root": root, **rows}

    def begin(self, value: Any, stack: list[tuple[Any, bool]]) -> None:
        """Number a value without parts; push a container onto the stack, its parts above it."""
        if not isinstance(value, CONTAINERS):
            self.add(value, self.leaf(value))
            return
        content = plain(value)
        if content is not value:
            if id(content) not in self.references:
                self.begin(content, stack)
            self.references[id(value)] = self.references[id(content)]
            return
        parts = _parts(value)
        if len(parts) > LONG and _holds_no_tensor(parts):
            self.add(value, _stand_in(f"builtins.{type(value).__name__}"))
            return
        if type(value) in (dict, list, StandIn):
            self.add(value, [])
        elif id(value) in self.references:
            return
        stack.append((value, True))
        stack.extend((part, False) for part in parts if type(part) not in DIRECT)

    def finish(self, value: Any) -> None:
        """Write the node of a container whose parts are numbered."""
        part = self.part
        if isinstance(value, dict):
            flat: list[Any] = ["d"]
            for key, inner in value.items():
                self.check_key(key)
                flat += (part(key), part(inner))
        elif isinstance(value, StandIn):
            flat = ["o", value.name, *map(part, _fields(value))]
        else:
            if isinstance(value, set | frozenset):
                for key in value:
                    self.check_key(key)
            flat = [KINDS[type(value)], *map(part, value)]
        if id(value) in self.references:
            self.nodes[self.references[id(value)][0]][:] = flat
        else:
            self.add(value, flat)

    def add(self, value: Any, node: list[Any]) -> None:
        """Number a value and add its node."""
        self.references[id(value)] = [len(self.nodes)]
        self.objects.append(value)
        self.nodes.append(node)

    def part(self, value: Any) -> Any:
        """A value inside a node: itself, or the reference to its node."""
        kind = type(value)
        if kind not in DIRECT:
            return self.references[id(value)]
        if kind is int and value.bit_length() > MAX_BITS:
            raise Malformed(f"its pickle has an integer of more than {MAX_BITS} bits")
        return value if kind is not str or len(value) <= LONG else value[:LONG]

    def check_key(self, key: Any) -> None:
        """Raise Malformed if too many keys are of types whose hashes can collide on purpose."""
        if type(key) is str or key is None or (type(key) is int and abs(key) < 2**61 - 1):
            return
        if not _is_shallow(key):
            raise Malformed("a key is nested too deeply")
        self.n_unusual_keys += 1
        if self.n_unusual_keys > MAX_UNUSUAL_KEYS:
            raise Malformed(
                f"it has more than {MAX_UNUSUAL_KEYS} keys that are neither text nor numbers"
            )

    def leaf(self, value: Any) -> list[Any]:
        """The node of a value without parts."""
        if isinstance(value, LazyTensor):
            return self.tensor(value)
        if isinstance(value, Global):
            return ["g", value.name]
        if isinstance(value, bytes | bytearray):
            if len(value) > LONG:
                return _stand_in(f"builtins.{type(value).__name__}")
            return ["b" if type(value) is bytes else "B", base64.b64encode(value).decode()]
        if isinstance(value, complex):
            return ["c", value.real, value.imag]
        name = f"numpy.dtype[{value.code}]" if isinstance(value, ArrayType) else "torch.storage"
        return _stand_in(name)

    def tensor(self, value: LazyTensor) -> list[Any]:
        """The node of a tensor."""
        source = None if value.storage is None else value.storage.source
        if value.storage is None or source is None:
            return ["p", value.dtype, value.shape, value.problem]
        if source.data is not None:
            self.array_bytes += 0 if id(source) in self.sources else source.nbytes
            if self.array_bytes > MAX_ARRAYS:
                return ["p", value.dtype, value.shape, TOO_LONG]
        row = self.storage(value.storage)
        node = ["T", value.dtype, value.shape, value.stride, value.offset, row]
        return [*node, sorted(value.bits), value.problem] if value.bits or value.problem else node

    def storage(self, storage: Storage) -> int:
        """The row of a storage, which is added if it is new."""
        if id(storage) not in self.storages:
            source = storage.source
            if id(source) not in self.sources:
                self.sources[id(source)] = len(self.source_rows)
                row: list[Any] = [source.start, source.nbytes]
                if source.data is not None:
                    row = [base64.b64encode(source.data).decode()]
                self.source_rows.append(row)
            self.storages[id(storage)] = len(self.storage_rows)
            source_row = self.sources[id(source)]
            self.storage_rows.append([storage.dtype, storage.nbytes, source_row, storage.first])
        return self.storages[id(storage)]


def _stand_in(name: str) -> list[Any]:
    """The node of an empty stand-in."""
    return ["o", name, None, None, None, None, None]


def _holds_no_tensor(parts: list[Any]) -> bool:
    """Whether all parts are numbers and texts, or containers of only such values."""
    containers = {id(part): plain(part) for part in parts if isinstance(part, CONTAINERS)}
    kinds = {type(part) for part in parts if id(part) not in containers}
    for part in containers.values():
        kinds.update(map(type, _parts(part)))
    return not any(issubclass(kind, (*CONTAINERS, LazyTensor)) for kind in kinds)


def _is_shallow(key: Any, depth: int = 0) -> bool:
    """Whether a key has at most MAX_KEY_DEPTH nested tuples, so that it can be printed."""
    if not isinstance(key, tuple | frozenset):
        return True
    return depth < MAX_KEY_DEPTH and all(_is_shallow(part, depth + 1) for part in key)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return _fields(value) if isinstance(value, StandIn) else list(value)


def _fields(value: StandIn) -> list[Any]:
    return [value.args, value.kwargs, value.state, value.entries, value.elements]


def decode(record: Any, path: Path, size: int) -> tuple[Any, tuple[str, ...]]:
    """The tree and the names of its stand-ins, from the record of a file of `size` bytes.

    Raises Malformed unless it has the form that `encode` writes and all offsets are in the file.
    """
    try:
        sources = [_source(row, path, size) for row in record["sources"]]
        storages = [_storage(row, sources) for row in record["storages"]]
        values = _values(record["nodes"], storages)
        names = tuple(str(name) for name in record["stand_ins"])
        return _resolved(record["root"], values), names
    except (LookupError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise Malformed("what was read of it makes no sense") from error


def _source(row: Any, path: Path, size: int) -> Source:
    if len(row) == 1:
        content = base64.b64decode(row[0], validate=True)
        return Source(Path("(in the pickle)"), 0, len(content), content)
    start, nbytes = checked_sizes(row)
    if start + nbytes > size:
        raise Malformed("a storage reaches past the file")
    return Source(path, start, nbytes)


def _storage(row: Any, sources: list[Source]) -> Storage:
    dtype, nbytes, source_row, first = row
    checked_sizes((nbytes, source_row, first))
    element_size(dtype)
    if first + nbytes > sources[source_row].nbytes:
        raise Malformed("a view of a storage reaches past it")
    return Storage(dtype, nbytes, sources[source_row], first)


def _values(nodes: list[list[Any]], storages: list[Storage]) -> list[Any]:
    """The value of each node; containers that can hold themselves are created empty first."""
    values: list[Any] = [MUTABLE[node[0]]() if node[0] in MUTABLE else None for node in nodes]
    for i, node in enumerate(nodes):
        kind = node[0]
        if kind == "T":
            values[i] = _tensor(node, storages)
        elif kind not in MUTABLE:
            values[i] = _leaf(node, values)
    for node, value in zip(nodes, values, strict=True):
        kind = node[0]
        if kind == "d":
            parts = [p if type(p) is not list else values[p[0]] for p in node[1:]]
            value.update(zip(parts[::2], parts[1::2], strict=True))
        elif kind == "l":
            value.extend(p if type(p) is not list else values[p[0]] for p in node[1:])
        elif kind == "o":
            value.name = node[1]
            fields = [_resolved(part, values) for part in node[2:]]
            value.args, value.kwargs, value.state, value.entries, value.elements = fields
    return values


def _leaf(node: list[Any], values: list[Any]) -> Any:
    kind = node[0]
    if kind in IMMUTABLE:
        return IMMUTABLE[kind](_resolved(part, values) for part in node[1:])
    if kind == "g":
        return Global(node[1])
    if kind == "p":
        return LazyTensor(node[1], checked_sizes(node[2]), problem=node[3])
    if kind == "c":
        return complex(node[1], node[2])
    content = base64.b64decode(node[1], validate=True)
    return {"b": bytes, "B": bytearray}[kind](content)


def _tensor(node: list[Any], storages: list[Storage]) -> LazyTensor:
    _, dtype, shape, stride, offset, row, *more = node
    if type(row) is not int or row < 0:
        raise Malformed("a tensor has no storage")
    tensor = strided_view(storages[row], dtype, offset, shape, stride)
    if more:
        tensor.bits, tensor.problem = frozenset(more[0]), more[1] or tensor.problem
    return tensor


def _resolved(part: Any, values: list[Any]) -> Any:
    return part if type(part) is not list else values[part[0]]
