"""A pickle as data: the standard library's C unpickler, without real classes or functions.

It runs only in the child of `runtime.sandbox`. An unpickler calls objects on its stack (REDUCE,
NEWOBJ, NEWOBJ_EX, INST, OBJ), and sets their state, entries and elements (BUILD, SETITEMS, APPENDS,
ADDITEMS). Literals are harmless there. All other objects on the stack come from this module:

- for a name, a class that belongs to this file, with no settable attribute, whose instances record
  the arguments of the call (Recorded);
- for a persistent id, an instance of such a class;
- for an extension code (EXT1 to EXT4), nothing: copyreg's tables are emptied.

No name is looked up. interpret.py gives the records their meaning after the load. The list of
refused names only informs the user; safety does not depend on it.
Source: Modules/_pickle.c of Python 3.11 to 3.14.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from lidar_cli.checkpoints.reading.lazy_tensor import Malformed

PERSISTENT = "(persistent id)"  # name of the class for one; no module has such a name
BUFFER = 1 << 20
REFUSED_MODULES = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy")
)
REFUSED_BUILTINS = frozenset(("eval", "exec", "compile", "open", "__import__", "getattr"))
GETATTR = "builtins.getattr"
RENAMED = {  # modules: old name in pickles -> present name
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
    "io": "builtins",  # io.open is builtins.open
    "_io": "builtins",
}
MAX_NAME = 1000  # characters of a module and class name


class Forbidden(Exception):
    """A file names a function that could only do harm; the text is the qualified name."""


def qualified(module: object, name: object) -> str:
    """'module.name', with the module's present name; raises Forbidden and Malformed.

    getattr passes: `_Unpickler._method` decides by its arguments.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise Malformed("a name is not text")
    if len(module) + len(name) > MAX_NAME:
        raise Malformed("a name is too long")
    if module not in ("io", "_io") or name.split(".")[0] == "open":
        module = RENAMED.get(module, module)
    whole = f"{module}.{name}"
    if whole != GETATTR:
        refuse(whole)
    return whole


def refuse(whole: str) -> None:
    """Raise Forbidden for a qualified name that could only do harm."""
    module, _, rest = whole.partition(".")
    if module in REFUSED_MODULES:
        raise Forbidden(whole)
    if module == "builtins" and rest.split(".")[0] in REFUSED_BUILTINS:
        raise Forbidden(whole)


def _unsettable(*_: object) -> NoReturn:
    raise Malformed("its pickle changes a class")


def _ignored(_: object) -> None:
    """Ignore the state of a class, which an unpickler would set as its attributes."""


class Unsettable(type):
    """Metaclass of all classes that a pickle can reach: their attributes cannot be changed."""

    __setattr__ = _unsettable
    __delattr__ = _unsettable
    __setitem__ = _unsettable
    append = property(_unsettable)
    extend = property(_unsettable)
    add = property(_unsettable)
    __setstate__ = property(lambda _: _ignored)


class Recorded(metaclass=Unsettable):
    """A call of a named class or function: its arguments, then state, entries and elements."""

    __slots__ = ("args", "elements", "entries", "kwargs", "state")
    name: str  # qualified
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    state: Any
    entries: Any  # a list of pairs, () if none
    elements: Any  # a list, () if none

    def __new__(cls, *args: Any, **kwargs: Any) -> Recorded:  # noqa: D102
        record = _new(cls)
        _set_args(record, args)
        _set_kwargs(record, kwargs or None)
        _set_state(record, None)
        _set_entries(record, ())
        _set_elements(record, ())
        return record

    def __call__(self, *args: Any, **kwargs: Any) -> Recorded:  # noqa: D102
        return Result(self, *args, **kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        raise Malformed("its pickle sets an attribute")

    def __delattr__(self, name: str) -> None:
        raise Malformed("its pickle removes an attribute")

    def __setstate__(self, state: Any) -> None:
        _set_state(self, state)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.entries == ():
            _set_entries(self, [(key, value)])
        else:
            self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """Record one element."""
        self.extend((value,))

    def extend(self, values: Any) -> None:
        """Record elements, which the unpickler has in a list."""
        if self.elements == ():
            _set_elements(self, list(values))
        else:
            self.elements.extend(values)

    def add(self, value: Any) -> None:
        """Record one element of a set."""
        self.extend((value,))


_new = object.__new__
_set_args = vars(Recorded)["args"].__set__
_set_kwargs = vars(Recorded)["kwargs"].__set__
_set_state = vars(Recorded)["state"].__set__
_set_entries = vars(Recorded)["entries"].__set__
_set_elements = vars(Recorded)["elements"].__set__


class Result(Recorded):
    """The result of calling a record, which is the first argument."""

    __slots__ = ()
    name = "(result)"


def recorded_class(name: str, make: Callable[..., Recorded] | None = None) -> type[Recorded]:
    """A new class for one name in one file."""
    content: dict[str, Any] = {"__slots__": (), "name": name}
    if make is not None:
        content["__new__"] = make
    return Unsettable("Recorded", (Recorded,), content)  # type: ignore[return-value]


class _Unpickler(pickle.Unpickler):
    """Reads one pickle of a file."""

    def __init__(self, file: BinaryIO, has_storages: bool) -> None:
        # Text of Python 2 may be bytes: interpret.py reads those as Latin-1, without loss.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.has_storages = has_storages
        self.classes: dict[tuple[str, str], type[Recorded]] = {}
        self.methods = 0
        self.persistent = recorded_class(PERSISTENT)

    def find_class(self, module: str, name: str) -> Any:
        """The class for a name in this file; raises Forbidden and Malformed."""
        key = module, name
        if key not in self.classes:
            whole = qualified(module, name)
            make = self._method if whole == GETATTR else None
            self.classes[key] = recorded_class(whole, make)
        return self.classes[key]

    def persistent_load(self, saved: Any) -> Any:
        """A record of a storage, or the class that torch wrote with its source code."""
        if not self.has_storages:
            raise Malformed("its pickle has a reference to something outside")
        if type(saved) is tuple and len(saved) == 4 and saved[0] == "module":
            return saved[1]
        return self.persistent(saved)

    def _method(self, cls: type[Recorded], *args: Any, **kwargs: Any) -> Recorded:
        """A bound method, pickled as getattr(object, name); nothing is looked up.

        Schedulers in ordinary checkpoints contain some. All other uses of getattr are refused.
        """
        owner, name = args if len(args) == 2 else (None, "")
        public = type(name) is str and name.isidentifier() and not name.startswith("_")
        if not isinstance(owner, Recorded) or not public or kwargs:
            refuse(GETATTR)
        self.methods += 1
        return Recorded.__new__(cls, *args)


class Part(io.RawIOBase):
    """Bytes `start` to `end` of a file, as a file that ends there."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        file.seek(start)
        self._position = start

    def readable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in the whole file."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`, at most up to `end`."""
        view = memoryview(buffer)[: max(0, self._end - self._position)]
        self._file.seek(self._position)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return int(count)


def part(file: BinaryIO, start: int, end: int) -> BinaryIO:
    """A buffered file of the bytes `start` to `end`."""
    return io.BufferedReader(Part(file, start, end), BUFFER)


def load(file: BinaryIO, has_storages: bool = False) -> tuple[Any, dict[str, None]]:
    """The records of one pickle, and the names in it, in the order of the stream.

    Raises Malformed if the stream is damaged, Forbidden if it names a function that could only do
    harm.
    """
    for table in ("_extension_registry", "_inverted_registry", "_extension_cache"):
        getattr(copyreg, table).clear()
    unpickler = _Unpickler(file, has_storages)
    try:
        root = unpickler.load()
    except (Malformed, Forbidden, MemoryError, RecursionError, OSError):
        raise
    except EOFError as error:
        raise Malformed("its pickle ends early") from error
    except Exception as error:  # a malformed stream raises many types
        early = "truncated" in str(error) or "exhausted" in str(error)
        why = "ends early" if early else f"is damaged ({type(error).__name__})"
        raise Malformed(f"its pickle {why}") from error
    names = dict.fromkeys(cls.name for cls in unpickler.classes.values())
    if GETATTR in names and not unpickler.methods:
        refuse(GETATTR)
    return root, names
