"""Reads a pickle as data: the standard library's C unpickler, without real classes or functions.

It runs only in the child process of `runtime.sandbox`. An unpickler calls objects on its stack
(REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ), and sets their state, entries and elements (BUILD, SETITEMS,
APPENDS, ADDITEMS). Literals are harmless there. This module creates all other objects on the stack:

- for a name in the pickle, a new class without settable attributes, whose instances record the
  arguments of the call (Recorded);
- for a persistent id, an instance of such a class;
- for an extension code (EXT1 to EXT4), nothing: copyreg's tables are emptied.

No name is looked up. After the load, interpret.py turns the records into values. The list of
refused names only informs the user; safety does not depend on it.
Source: Modules/_pickle.c of Python 3.11 to 3.14.
"""

from __future__ import annotations

import copyreg
import errno
import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from lidar_cli.checkpoints.reading.lazy_tensor import Malformed

PERSISTENT = "(persistent id)"  # name of the class for persistent ids; no module has this name
BUFFER = 1 << 20  # bytes
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
MAX_NAME = 1000  # characters of a module name and a class name together


class Forbidden(Exception):
    """A file names a function that could only do harm; the text is the qualified name."""


def qualified_name(module: object, name: object) -> str:
    """'module.name', with the present name of a renamed module; raises Forbidden and Malformed.

    builtins.getattr is not refused here: `_Unpickler._bound_method` checks its arguments.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise Malformed("a name is not text")
    if len(module) + len(name) > MAX_NAME:
        raise Malformed("a name is too long")
    if module not in ("io", "_io") or name.split(".")[0] == "open":
        module = RENAMED.get(module, module)
    full_name = f"{module}.{name}"
    if full_name != GETATTR:
        refuse_harmful(full_name)
    return full_name


def refuse_harmful(full_name: str) -> None:
    """Raise Forbidden for a qualified name that could only do harm."""
    module, _, rest = full_name.partition(".")
    if module in REFUSED_MODULES:
        raise Forbidden(full_name)
    if module == "builtins" and rest.split(".")[0] in REFUSED_BUILTINS:
        raise Forbidden(full_name)


def _unsettable(*_: object) -> NoReturn:
    raise Malformed("its pickle changes a class")


def _ignored(_: object) -> None:
    """Ignore the state of a class, which an unpickler would set as attributes of the class."""


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
    """A recorded call of a named class or function.

    Its arguments, and the state, entries and elements that the pickle sets on the result.
    """

    __slots__ = ("args", "elements", "entries", "kwargs", "state")
    name: str  # qualified name of the class or function
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    state: Any
    entries: Any  # list of (key, value), () if none
    elements: Any  # list, () if none

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
        """Record several elements."""
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
    """A recorded call of a Recorded object, which is the first of `args`."""

    __slots__ = ()
    name = "(result)"


def recorded_class(name: str, make: Callable[..., Recorded] | None = None) -> type[Recorded]:
    """A new subclass of Recorded for one name in one file. make: its `__new__`, or None."""
    members: dict[str, Any] = {"__slots__": (), "name": name}
    if make is not None:
        members["__new__"] = make
    return Unsettable("Recorded", (Recorded,), members)  # type: ignore[return-value]


class _Unpickler(pickle.Unpickler):
    """Reads one pickle of a file. has_storages: whether persistent ids are allowed."""

    def __init__(self, file: BinaryIO, has_storages: bool) -> None:
        # Strings of Python 2 may hold bytes; surrogateescape preserves them for interpret.py.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.has_storages = has_storages
        self.classes: dict[tuple[str, str], type[Recorded]] = {}
        self.n_bound_methods = 0
        self.persistent = recorded_class(PERSISTENT)

    def find_class(self, module: str, name: str) -> Any:
        """The class for a name in this file; raises Forbidden and Malformed."""
        key = module, name
        if key not in self.classes:
            full_name = qualified_name(module, name)
            make = self._bound_method if full_name == GETATTR else None
            self.classes[key] = recorded_class(full_name, make)
        return self.classes[key]

    def persistent_load(self, saved: Any) -> Any:
        """A record of a storage, or the class that torch stored together with its source code."""
        if not self.has_storages:
            raise Malformed("its pickle has a reference to something outside")
        if type(saved) is tuple and len(saved) == 4 and saved[0] == "module":
            return saved[1]
        return self.persistent(saved)

    def _bound_method(self, cls: type[Recorded], *args: Any, **kwargs: Any) -> Recorded:
        """A bound method, pickled as getattr(object, name); nothing is looked up.

        Schedulers in ordinary checkpoints contain bound methods. All other uses of getattr are
        refused.
        """
        owner, name = args if len(args) == 2 else (None, "")
        public = type(name) is str and name.isidentifier() and not name.startswith("_")
        if not isinstance(owner, Recorded) or not public or kwargs:
            refuse_harmful(GETATTR)
        self.n_bound_methods += 1
        return Recorded.__new__(cls, *args)


class FileRange(io.RawIOBase):
    """Bytes `start` to `end` of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._size = max(0, end - start)
        self._position = 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set and return the position; raises OSError if it is negative."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`, at most up to the end."""
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return int(count)


def open_range(file: BinaryIO, start: int, end: int, buffer: int = BUFFER) -> BinaryIO:
    """A buffered file of the bytes `start` to `end`. buffer: bytes that are read at a time."""
    return io.BufferedReader(FileRange(file, start, end), buffer)


def load(file: BinaryIO, has_storages: bool = False) -> tuple[Any, dict[str, None]]:
    """The root object of one pickle, made of records, and the names in it, in stream order.

    has_storages: whether persistent ids are allowed.
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
    if GETATTR in names and not unpickler.n_bound_methods:
        refuse_harmful(GETATTR)
    return root, names
