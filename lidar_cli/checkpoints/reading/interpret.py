"""The records of a pickle (unpickle.py) -> plain values, LazyTensors and stand-ins.

Each record is given its meaning once all that it was made from has one: by a function of ours for
the few names in rebuild.py, and as a StandIn for all others. The walk keeps its own stack and
visits an object once, so that neither depth nor sharing costs more than the pickle has bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor, Malformed, is_tensor
from lidar_cli.checkpoints.reading.pickle import PERSISTENT, Recorded, Result
from lidar_cli.checkpoints.reading.rebuild import HANDLERS, ArrayType, fill_array, is_unfilled
from lidar_cli.checkpoints.reading.stand_ins import Global, StandIn

SCALARS = frozenset((int, float, bool, type(None), complex, bytes))
LITERALS = SCALARS | {str}
PARTED = frozenset((tuple, frozenset))  # made when their parts are there
FILLED: dict[type, Callable[[], Any]] = {
    list: list,
    dict: dict,
    set: set,
}  # made at once, filled when their parts are there
TENSOR = "torch._utils._rebuild_tensor_v2"
INHERITED = ("builtins.dict", "builtins.list")
EMPTY: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": dict, "collections.Counter": dict, "builtins.dict": dict,
    "collections.deque": list, "builtins.list": list, "builtins.set": set,
}  # fmt: skip
SURROGATES = "\udc80", "\udcff"  # how bytes that are no UTF-8 come in text of Python 2
ERRORS = (
    ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError, struct.error
)  # fmt: skip

Persistent = Callable[[Any], Any]


def interpret(root: Any, persistent: Persistent | None = None) -> Any:
    """The value that a pickle describes; persistent: what the ids of storages stand for.

    Raises Malformed where its parts do not make sense.
    """
    try:
        return _Interpreter(persistent).value_of(root)
    except ERRORS as error:  # a record without the arguments that it needs, or of another type
        raise Malformed(f"its pickle is damaged ({type(error).__name__})") from error


class _Interpreter:
    """One walk. `done` holds values by the id of the object that they are of, `late` the rest."""

    def __init__(self, persistent: Persistent | None) -> None:
        self.persistent = persistent
        self.done: dict[int, Any] = {}
        self.entered: set[int] = set()
        self.globals: dict[str, Global] = {}
        self.late: list[Any] = []

    def value_of(self, root: Any) -> Any:
        """The value of the outermost object."""
        stack: list[tuple[Any, bool]] = []
        if not self.is_done(root):
            stack.append((root, False))
        while stack:
            raw, ready = stack.pop()
            if not ready:
                if id(raw) in self.entered:
                    continue
                self.entered.add(id(raw))
                waiting = [part for part in self.begin(raw) if not self.is_done(part)]
                if waiting:
                    stack.append((raw, True))
                    stack.extend((part, False) for part in reversed(waiting))
                    continue
            try:
                self.finish(raw)
            except _Unfinished:
                self.late.append(raw)
        for raw in self.late:
            try:
                self.finish(raw)
            except _Unfinished as error:
                raise Malformed("its pickle has a value that is a part of itself") from error
        return self.get(root)

    def is_done(self, raw: Any) -> bool:
        """Whether the value is there, or needs nothing to be made."""
        kind = type(raw)
        if kind in LITERALS or id(raw) in self.done:
            return True
        if (kind is tuple or kind is list) and _is_plain(raw):
            self.done[id(raw)] = raw
        elif isinstance(raw, type):
            self.done[id(raw)] = self.name(raw)
        elif isinstance(raw, Recorded):
            if raw.name == PERSISTENT:
                self.done[id(raw)] = self.stored(raw)
            elif raw.name != TENSOR or not self.is_plain_tensor(raw):
                return False
        else:
            return False
        return True

    def is_plain_tensor(self, raw: Recorded) -> bool:
        """Make a tensor of numbers and a storage at once, which nearly all tensors are."""
        storage, place = raw.args[0], raw.args[1:4]  # its hooks are left out
        if len(raw.args) != 6 or getattr(storage, "name", None) != PERSISTENT:
            return False
        if raw.state is not None or raw.entries or raw.elements:
            return False
        if any(type(part) is not tuple for part in place[1:]) or type(place[0]) is not int:
            return False
        self.is_done(storage)
        values = (self.done[id(storage)], *place)
        self.done[id(raw)] = HANDLERS[TENSOR](values)
        return True

    def begin(self, raw: Any) -> list[Any]:
        """The parts of an object, of which that which can be filled later is made at once."""
        kind = type(raw)
        if kind in FILLED:
            self.done[id(raw)] = FILLED[kind]()
            return [*raw, *raw.values()] if kind is dict else list(raw)
        if kind in PARTED:
            return list(raw)
        if not isinstance(raw, Recorded):
            self.done[id(raw)] = bytearray(raw) if kind is bytearray else StandIn(kind.__name__)
            return []
        name, args, kwargs = _made_from(raw)
        if name in EMPTY and not args and not isinstance(raw, Result):
            self.done[id(raw)] = EMPTY[name]()
        elif name not in HANDLERS or isinstance(raw, Result):
            self.done[id(raw)] = StandIn(name)
        parts = [*args, kwargs, raw.state, *raw.elements]
        for entry in raw.entries:
            parts += entry
        return parts

    def finish(self, raw: Any) -> None:
        """Make or fill the value; raises _Unfinished if a part of it is not there yet."""
        kind, get = type(raw), self.get
        if kind is dict:
            self.done[id(raw)].update([(get(key), get(value)) for key, value in raw.items()])
        elif kind is list:
            self.done[id(raw)][:] = [get(part) for part in raw]
        elif kind is set:
            self.done[id(raw)].update([get(part) for part in raw])
        elif kind in PARTED:
            self.done[id(raw)] = kind([get(part) for part in raw])
        elif isinstance(raw, Recorded):
            self.finish_record(raw)

    def finish_record(self, raw: Recorded) -> None:
        """Give a record its value, and this its entries, elements and state."""
        get = self.get
        name, args, kwargs = _made_from(raw)
        values = tuple([get(part) for part in args])
        entries = [(get(key), get(value)) for key, value in raw.entries]
        elements = [get(part) for part in raw.elements]
        state = get(raw.state)
        value = self.done.get(id(raw), self)
        if value is self:
            value = self.done[id(raw)] = HANDLERS[name](values)
        elif isinstance(value, StandIn):
            value.args, value.kwargs = values, get(kwargs)
            if (base := _inherited(raw)) is not None:
                content = HANDLERS[base](values)
                value.entries = content if isinstance(content, dict) else None
                value.elements = None if isinstance(content, dict) else content
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
        # The attributes of a plain container, such as _metadata of a state dict, are left out.

    def get(self, raw: Any) -> Any:
        """The value of a part; raises _Unfinished if it is not there yet."""
        kind = type(raw)
        if kind is str:
            return raw if raw.isascii() else _text(raw)
        if kind in SCALARS:
            return raw
        try:
            return self.done[id(raw)]
        except KeyError:
            raise _Unfinished from None

    def name(self, made: Any) -> Global:
        """The value of a class or function itself, the same for each time that it is met."""
        if not issubclass(made, Recorded):
            raise Malformed("its pickle holds a class")
        return self.globals.setdefault(made.name, Global(made.name))

    def stored(self, record: Recorded) -> Any:
        """What a persistent id stands for."""
        if self.persistent is None:
            raise Malformed("its pickle has a reference to something outside")
        saved = record.args[0]
        if type(saved) is not tuple:
            return self.persistent(saved)
        return self.persistent(
            tuple([self.name(part) if isinstance(part, type) else part for part in saved])
        )


class _Unfinished(Exception):
    """A part of a value is itself being made."""


def _made_from(raw: Recorded) -> tuple[str, tuple[Any, ...], Any]:
    """Name, arguments and keyword arguments, without the functions that protocols go through."""
    if isinstance(raw, Result):
        return raw.args[0].name, raw.args[1:], raw.kwargs
    name, args, kwargs = raw.name, raw.args, raw.kwargs
    if name == "copyreg._reconstructor" and len(args) == 3 and _is_class(args[0]):
        inherits = _is_class(args[1]) and args[1].name in INHERITED
        plain = inherits and args[0].name in HANDLERS
        return (args[1].name if plain else args[0].name), args[2:], None
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


def _inherited(raw: Recorded) -> str | None:
    """The built-in class, dict or list, of which an object of protocols 0 and 1 is a subclass."""
    if raw.name != "copyreg._reconstructor" or len(raw.args) != 3:
        return None
    base = raw.args[1]
    return base.name if _is_class(base) and base.name in INHERITED else None


def _is_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Recorded)


def _is_plain(parts: Any) -> bool:
    """Whether these are numbers, and text that is as it was written."""
    return LITERALS.issuperset(map(type, parts)) and all(
        part.isascii() for part in parts if type(part) is str
    )


def _set_entries(value: Any, entries: list[tuple[Any, Any]]) -> None:
    if isinstance(value, StandIn):
        value.entries = {} if value.entries is None else value.entries
        value = value.entries
    if not isinstance(value, dict):
        raise Malformed("its pickle sets entries of what is no dict")
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
        raise Malformed("its pickle appends to what is no list")


def _text(text: str) -> str:
    """Text as it is, and bytes in place of it as Latin-1."""
    if not any(SURROGATES[0] <= letter <= SURROGATES[1] for letter in text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:  # other surrogates, which only text has
        return text


NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
CONTAINERS = (StandIn, dict, list, tuple)
MAX_LETTERS = 16 << 20  # of the names of all modules
MAX_DEPTH = 100  # modules in modules


def plain(root: Any) -> Any:
    """The same tree, changed in place, without the stand-ins for which something plain serves.

    Raises Malformed for modules that hold each other in a circle.
    """
    made: dict[int, Any] = {}  # by id of the stand-in, all of which live in the tree
    root = _replaced(root, made)
    seen = {id(root)}
    todo = [root] if isinstance(root, CONTAINERS) else []
    while todo:
        inner: Any = todo.pop()
        if isinstance(inner, StandIn):
            parts = [inner.args, inner.kwargs, inner.state]
        elif isinstance(inner, dict):
            for name, value in inner.items():
                inner[name] = _replaced(value, made)  # the keys stay, so this is allowed
            parts = list(inner.values())
        else:
            if isinstance(inner, list):
                inner[:] = [_replaced(value, made) for value in inner]
            parts = list(inner)
        for part in parts:
            if isinstance(part, CONTAINERS) and id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
    return root


def _replaced(value: Any, made: dict[int, Any]) -> Any:
    if not isinstance(value, StandIn):
        return value
    if id(value) not in made:
        if _is_module(value):
            made[id(value)] = state_dict(value)
        elif value.entries is not None:
            made[id(value)] = value.entries
        elif value.elements is not None:
            made[id(value)] = value.elements
        elif value.name in NAMESPACES and isinstance(value.state, dict):
            made[id(value)] = value.state
        else:
            made[id(value)] = value
    return made[id(value)]


def _is_module(value: object) -> bool:
    """Whether a stand-in has what every torch.nn.Module has."""
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state


def state_dict(module: StandIn) -> dict[str, Any]:
    """Tensors by name: parameters, buffers, then those of the modules inside, in their order."""
    tensors: dict[str, Any] = {}
    letters = 0
    todo: list[tuple[str, int, StandIn]] = [("", 0, module)]
    while todo:
        prefix, depth, inner = todo.pop()
        if depth > MAX_DEPTH:
            raise Malformed("its modules hold one another without end")
        transient = inner.state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            for name, value in _entries(inner, group):
                skipped = isinstance(transient, set) and group == "_buffers" and name in transient
                if is_tensor(value) and not skipped:
                    tensors[prefix + name] = value
        letters += sum(len(prefix) + len(name) for name, _ in _entries(inner, "_modules"))
        if letters > MAX_LETTERS:
            raise Malformed("its modules hold one another without end")
        children = []
        for name, value in _entries(inner, "_modules"):
            if _is_module(value):
                children.append((f"{prefix}{name}.", depth + 1, value))
        todo.extend(reversed(children))
    return tensors


def _entries(module: StandIn, group: str) -> list[tuple[str, Any]]:
    found = module.state.get(group)
    entries = found.entries if isinstance(found, StandIn) else found
    if not isinstance(entries, dict):
        return []
    return [(name, value) for name, value in entries.items() if isinstance(name, str)]
