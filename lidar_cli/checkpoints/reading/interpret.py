"""Turns the records of a pickle (pickle.py) into plain values, LazyTensors and stand-ins.

A record becomes a value after its arguments have: by the function of rebuild.py for its name, or
as a StandIn if there is none. The traversal uses an explicit stack and visits each object once, so
its cost is linear in the bytes of the pickle, whatever the nesting and sharing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor, Malformed
from lidar_cli.checkpoints.reading.pickle import PERSISTENT, Recorded, Result
from lidar_cli.checkpoints.reading.rebuild import HANDLERS, fill_array, is_unfilled
from lidar_cli.checkpoints.reading.stand_ins import ArrayType, Global, StandIn

SCALARS = frozenset((int, float, bool, type(None), complex, bytes))
LITERALS = SCALARS | {str}
IMMUTABLE = frozenset((tuple, frozenset))  # created after their parts
MUTABLE = (list, dict, set)  # created empty before their parts, and filled after them
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
BASES = ("builtins.dict", "builtins.list")
EMPTY: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": dict, "collections.Counter": dict, "builtins.dict": dict,
    "collections.deque": list, "builtins.list": list, "builtins.set": set,
}  # fmt: skip
SURROGATES = "\udc80", "\udcff"  # range that represents bytes that are not UTF-8
# Raised by handlers for arguments of the wrong number or type.
BAD_ARGUMENTS = (
    ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError, struct.error
)  # fmt: skip

Persistent = Callable[[Any], Any]


def interpret(root: Any, persistent: Persistent | None = None) -> Any:
    """The value that the records of a pickle describe. Raises Malformed if they are inconsistent.

    persistent: a function from a persistent id to its storage.
    """
    try:
        return _Interpreter(persistent).value_of(root)
    except BAD_ARGUMENTS as error:
        raise Malformed(f"its pickle is damaged ({type(error).__name__})") from error


class _Interpreter:
    """One traversal of the records."""

    def __init__(self, persistent: Persistent | None) -> None:
        self.persistent = persistent
        self.values: dict[int, Any] = {}  # id of an object -> its value
        self.visited: set[int] = set()  # ids of objects
        self.globals: dict[str, Global] = {}  # by qualified name
        self.postponed: list[Any] = []  # objects in cycles, which are finished last

    def value_of(self, root: Any) -> Any:
        """The value of the root object."""
        stack: list[tuple[Any, bool]] = []  # objects, and whether their parts have values
        if not self.is_done(root):
            stack.append((root, False))
        while stack:
            raw, parts_are_done = stack.pop()
            if not parts_are_done:
                if id(raw) in self.visited:
                    continue
                self.visited.add(id(raw))
                missing = [part for part in self.begin(raw) if not self.is_done(part)]
                if missing:
                    stack.append((raw, True))
                    stack.extend((part, False) for part in reversed(missing))
                    continue
            try:
                self.finish(raw)
            except _Unfinished:
                self.postponed.append(raw)
        for raw in self.postponed:
            try:
                self.finish(raw)
            except _Unfinished as error:
                raise Malformed("its pickle has a value that is a part of itself") from error
        return self.get(root)

    def is_done(self, raw: Any) -> bool:
        """Whether an object has a value; values that need no other value are created here."""
        kind = type(raw)
        if kind in LITERALS or id(raw) in self.values:
            return True
        if (kind is tuple or kind is list) and _is_plain(raw):
            self.values[id(raw)] = raw
        elif isinstance(raw, type):
            self.values[id(raw)] = self.global_of(raw)
        elif isinstance(raw, Recorded):
            if raw.name == PERSISTENT:
                self.values[id(raw)] = self.storage_of(raw)
            elif raw.name != REBUILD_TENSOR or not self.create_plain_tensor(raw):
                return False
        else:
            return False
        return True

    def create_plain_tensor(self, raw: Recorded) -> bool:
        """Create a tensor if its arguments are numbers and a storage, the usual case.

        A fast path; returns whether it was taken.
        """
        storage, geometry = raw.args[0], raw.args[1:4]  # offset, size, stride; hooks are ignored
        if len(raw.args) != 6 or getattr(storage, "name", None) != PERSISTENT:
            return False
        if raw.state is not None or raw.entries or raw.elements:
            return False
        if any(type(part) is not tuple for part in geometry[1:]) or type(geometry[0]) is not int:
            return False
        self.is_done(storage)
        values = (self.values[id(storage)], *geometry)
        self.values[id(raw)] = HANDLERS[REBUILD_TENSOR](values)
        return True

    def begin(self, raw: Any) -> list[Any]:
        """The parts of an object; its value is created here if it can be filled later."""
        kind = type(raw)
        if kind in MUTABLE:
            self.values[id(raw)] = kind()
            return [*raw, *raw.values()] if kind is dict else list(raw)
        if kind in IMMUTABLE:
            return list(raw)
        if not isinstance(raw, Recorded):
            self.values[id(raw)] = bytearray(raw) if kind is bytearray else StandIn(kind.__name__)
            return []
        name, args, kwargs = _call_of(raw)
        if name in EMPTY and not args and not isinstance(raw, Result):
            self.values[id(raw)] = EMPTY[name]()
        elif name not in HANDLERS or isinstance(raw, Result):
            self.values[id(raw)] = StandIn(name)
        parts = [*args, kwargs, raw.state, *raw.elements]
        for entry in raw.entries:
            parts += entry
        return parts

    def finish(self, raw: Any) -> None:
        """Create or fill the value; raises _Unfinished if the value of a part is missing."""
        kind, get = type(raw), self.get
        if kind is dict:
            self.values[id(raw)].update([(get(key), get(value)) for key, value in raw.items()])
        elif kind is list:
            self.values[id(raw)][:] = [get(part) for part in raw]
        elif kind is set:
            self.values[id(raw)].update([get(part) for part in raw])
        elif kind in IMMUTABLE:
            self.values[id(raw)] = kind([get(part) for part in raw])
        elif isinstance(raw, Recorded):
            self.finish_record(raw)

    def finish_record(self, raw: Recorded) -> None:
        """Set the value of a record, and the value's entries, elements and state."""
        get = self.get
        name, args, kwargs = _call_of(raw)
        values = tuple([get(part) for part in args])
        entries = [(get(key), get(value)) for key, value in raw.entries]
        elements = [get(part) for part in raw.elements]
        state = get(raw.state)
        if id(raw) not in self.values:
            self.values[id(raw)] = HANDLERS[name](values)
        elif isinstance(stand_in := self.values[id(raw)], StandIn):
            stand_in.args, stand_in.kwargs = values, get(kwargs)
            if (base := _base_of(raw)) is not None:
                content = HANDLERS[base](values)
                stand_in.entries = content if isinstance(content, dict) else None
                stand_in.elements = None if isinstance(content, dict) else content
        value = self.values[id(raw)]
        if entries:
            _set_entries(value, entries)
        if elements:
            _add_elements(value, elements)
        if isinstance(value, StandIn):
            value.state = state
        elif isinstance(value, LazyTensor) and state is not None and is_unfilled(value):
            fill_array(value, state)
        elif isinstance(value, ArrayType) and state is not None and state[1] in ("<", ">"):
            value.order = state[1]
        # Attributes of a plain container, such as _metadata of a state dict, are ignored.

    def get(self, raw: Any) -> Any:
        """The value of a part; raises _Unfinished if it is missing."""
        kind = type(raw)
        if kind is str:
            return raw if raw.isascii() else _decode_text(raw)
        if kind in SCALARS:
            return raw
        try:
            return self.values[id(raw)]
        except KeyError:
            raise _Unfinished from None

    def global_of(self, cls: Any) -> Global:
        """The value of a class or function that is not called; one Global for each name."""
        if not issubclass(cls, Recorded):
            raise Malformed("its pickle holds a class")
        return self.globals.setdefault(cls.name, Global(cls.name))

    def storage_of(self, record: Recorded) -> Any:
        """The storage that a persistent id refers to."""
        if self.persistent is None:
            raise Malformed("its pickle has a reference to something outside")
        saved = record.args[0]
        if type(saved) is not tuple:
            return self.persistent(saved)
        return self.persistent(
            tuple([self.global_of(part) if isinstance(part, type) else part for part in saved])
        )


class _Unfinished(Exception):
    """A part of a value has no value yet."""


def _call_of(raw: Recorded) -> tuple[str, tuple[Any, ...], Any]:
    """Name, arguments and keyword arguments of a call, unwrapped from copyreg's functions."""
    if isinstance(raw, Result):
        return raw.args[0].name, raw.args[1:], raw.kwargs
    name, args, kwargs = raw.name, raw.args, raw.kwargs
    if name == "copyreg._reconstructor" and len(args) == 3 and _is_class(args[0]):
        has_base = _is_class(args[1]) and args[1].name in BASES
        is_plain = has_base and args[0].name in HANDLERS
        return (args[1].name if is_plain else args[0].name), args[2:], None
    while name in ("copyreg.__newobj__", "copyreg.__newobj_ex__") and args and _is_class(args[0]):
        if args[0].name.startswith("copyreg."):
            break
        if name.endswith("_ex__"):
            if type(args) is not tuple or len(args) != 3 or type(args[1]) is not tuple:
                raise Malformed("its pickle calls something without arguments")
            name, args, kwargs = args[0].name, args[1], args[2]
        else:
            name, args = args[0].name, args[1:]
    return name, args, kwargs


def _base_of(raw: Recorded) -> str | None:
    """The base class, dict or list, with which protocols 0 and 1 pickle an instance; else None."""
    if raw.name != "copyreg._reconstructor" or len(raw.args) != 3:
        return None
    base = raw.args[1]
    return base.name if _is_class(base) and base.name in BASES else None


def _is_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Recorded)


def _is_plain(parts: Any) -> bool:
    """Whether all parts are numbers and ASCII text, which are their own values."""
    return LITERALS.issuperset(map(type, parts)) and all(
        part.isascii() for part in parts if type(part) is str
    )


def _set_entries(value: Any, entries: list[tuple[Any, Any]]) -> None:
    if isinstance(value, StandIn):
        value.entries = {} if value.entries is None else value.entries
        value = value.entries
    if not isinstance(value, dict):
        raise Malformed("its pickle sets entries of a value that is no dict")
    value.update(entries)


def _add_elements(value: Any, elements: list[Any]) -> None:
    if isinstance(value, StandIn):
        value.elements = [] if value.elements is None else value.elements
        value = value.elements
    if isinstance(value, set):
        value.update(elements)
    elif isinstance(value, list):
        value.extend(elements)
    else:
        raise Malformed("its pickle appends to a value that is no list")


def _decode_text(text: str) -> str:
    """The text; a string of Python 2 that is not UTF-8 is decoded as Latin-1."""
    if not any(SURROGATES[0] <= letter <= SURROGATES[1] for letter in text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:  # other surrogates occur only in text
        return text
