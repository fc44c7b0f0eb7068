"""A pickle as data: the standard library's C unpickler, with nothing real to call.

It runs in the child of `runtime.sandbox` alone. An unpickler calls what lies on its stack (REDUCE,
NEWOBJ, NEWOBJ_EX, INST, OBJ), and sets state, entries and elements of it (BUILD, SETITEMS, APPENDS,
ADDITEMS). Values of literals are harmless in that. What else can come on the stack is made here:

- for a name, a class of this file's alone, without anything to set, whose instances record what
  they were made from (Recorded);
- for a persistent id, an instance of such a class;
- for an extension code (EXT1 to EXT4), nothing: copyreg's tables are emptied.

Nothing is looked up by a name. What the records mean is decided after the load, in interpret.py.
Source: Modules/_pickle.c of Python 3.11 to 3.14.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from lidar_cli.checkpoints.reading.lazy_tensor import Malformed
from lidar_cli.checkpoints.reading.stand_ins import GETATTR, Forbidden, qualified, refuse

PERSISTENT = "(persistent id)"  # the name of what stands for one; no module is called so
BUFFER = 1 << 20


def _unsettable(*_: object) -> NoReturn:
    raise Malformed("its pickle changes a class")


def _ignored(_: object) -> None:
    """The state of a class, which a plain unpickler would set as its attributes."""


class Unsettable(type):
    """The class of the classes that a pickle can reach: nothing of them can be changed."""

    __setattr__ = _unsettable
    __delattr__ = _unsettable
    __setitem__ = _unsettable
    append = property(_unsettable)
    extend = property(_unsettable)
    add = property(_unsettable)
    __setstate__ = property(lambda _: _ignored)


class Recorded(metaclass=Unsettable):
    """What a pickle makes of a name: the arguments, state, entries and elements that it gave."""

    __slots__ = ("args", "elements", "entries", "kwargs", "state")
    name: str  # qualified
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    state: Any
    entries: Any  # a list of pairs, or () while there is none
    elements: Any  # a list, or ()

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
    """What a call of something recorded gives; the first argument is what was called."""

    __slots__ = ()
    name = "(result)"


def recorded_class(name: str, make: Callable[..., Recorded] | None = None) -> type[Recorded]:
    """A class for one name of one file."""
    content: dict[str, Any] = {"__slots__": (), "name": name}
    if make is not None:
        content["__new__"] = make
    return Unsettable("Recorded", (Recorded,), content)  # type: ignore[return-value]


class _Unpickler(pickle.Unpickler):
    """Reads one pickle of a file."""

    def __init__(self, file: BinaryIO, has_storages: bool) -> None:
        # Text of Python 2 may be bytes: interpret.py reads those as Latin-1, which loses nothing.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.has_storages = has_storages
        self.classes: dict[tuple[str, str], type[Recorded]] = {}
        self.methods = 0
        self.persistent = recorded_class(PERSISTENT)

    def find_class(self, module: str, name: str) -> Any:
        """The class that stands for a name in this file; raises Forbidden and Malformed."""
        key = module, name
        if key not in self.classes:
            whole = qualified(module, name)
            make = self._method if whole == GETATTR else None
            self.classes[key] = recorded_class(whole, make)
        return self.classes[key]

    def persistent_load(self, saved: Any) -> Any:
        """What stands for a storage, or the class that torch wrote with its source code."""
        if not self.has_storages:
            raise Malformed("its pickle has a reference to something outside")
        if type(saved) is tuple and len(saved) == 4 and saved[0] == "module":
            return saved[1]
        return self.persistent(saved)

    def _method(self, cls: type[Recorded], *args: Any, **kwargs: Any) -> Recorded:
        """A bound method, which pickles name as getattr(object, name); nothing is looked up.

        Schedulers of honest checkpoints hold some. All other uses of getattr are refused.
        """
        whose, name = args if len(args) == 2 else (None, "")
        public = type(name) is str and name.isidentifier() and not name.startswith("_")
        if not isinstance(whose, Recorded) or not public or kwargs:
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
        """Where in the whole file."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As of any raw file."""
        view = memoryview(buffer)[: max(0, self._end - self._position)]
        self._file.seek(self._position)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return int(count)


def part(file: BinaryIO, start: int, end: int) -> BinaryIO:
    """The part of a file that pickles may lie in, buffered."""
    return io.BufferedReader(Part(file, start, end), BUFFER)


def load(file: BinaryIO, has_storages: bool = False) -> tuple[Any, dict[str, None]]:
    """The records of one pickle, and the names in it in the order of the stream.

    Raises Malformed if the stream is damaged, Forbidden if it names what could only do harm.
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
    except Exception as error:  # of many types, all of a stream that makes no sense
        early = "truncated" in str(error) or "exhausted" in str(error)
        why = "ends early" if early else f"is damaged ({type(error).__name__})"
        raise Malformed(f"its pickle {why}") from error
    names = dict.fromkeys(made.name for made in unpickler.classes.values())
    if GETATTR in names and not unpickler.methods:
        refuse(GETATTR)
    return root, names
