"""What stands in a tree for an object that a pickle names: data about it, never the object.

Nothing here can be called, and nothing imports what a name says. The list of refused names is a
courtesy to the user, who should hear of such a file; safety does not rest on it.
"""

from __future__ import annotations

from typing import Any

from lidar_cli.checkpoints.lazy import Malformed

REFUSED_MODULES = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy")
)
REFUSED_BUILTINS = frozenset(("eval", "exec", "compile", "open", "__import__", "getattr"))
GETATTR = "builtins.getattr"
RENAMED = {  # modules by names that pickles have for them -> today's
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
    "io": "builtins",  # of which `open` is a function of the same name
    "_io": "builtins",
}
MAX_NAME = 1000  # characters of a module's or class's name
MAX_KEY = 1000  # parts of a nested tuple that is a key


class Forbidden(Exception):
    """A file names what could only do harm; the text is the qualified name."""


CONTAINER, SET = 8, 32  # what an empty one costs, in units of about 8 bytes


class Budget:
    """How much a file may still ask for by copying and by making containers of nothing.

    A few times its own size, whatever it repeats.
    """

    def __init__(self, size: int) -> None:
        self.left = 1_000_000 + 4 * size

    def spend(self, count: int) -> None:
        """Raise Malformed when more is copied than a file of its size can need."""
        self.left -= count
        if self.left < 0:
            raise Malformed("its pickle would unpack to far more than the file holds")


class Global:
    """A class or function by its qualified name alone."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<name {self.name}>"


class StandIn:
    """An object of a foreign class, or the result of a foreign function: what it was made from."""

    __slots__ = ("args", "elements", "entries", "kwargs", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.state: Any = None
        self.entries: dict[Any, Any] | None = None  # of a subclass of dict
        self.elements: list[Any] | None = None  # of a subclass of list

    def __repr__(self) -> str:
        return f"<stand-in for {self.name}>"


def qualified(module: object, name: object) -> str:
    """'module.name', with today's name of the module; raises Forbidden and Malformed.

    getattr alone passes: it depends on its arguments whether it is refused, see machine.py.
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


def key(value: Any, budget: Budget) -> Any:
    """A value that may be the key of a dict or lie in a set, its hash being cheap.

    Tuples that share their parts take time that doubles with each level to hash, integers beyond
    61 bits can be chosen to collide: both are charged. Raises Malformed for what has no hash.
    """
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is int:
        if abs(value) >= 2**61 - 1:  # sys.hash_info.modulus
            budget.spend(20_000)
    elif kind is tuple or kind is frozenset:
        parts = [value]
        count = 0
        while parts:
            part = parts.pop()
            if isinstance(part, tuple | frozenset):
                parts.extend(part)
            elif isinstance(part, list | dict | set | bytearray):
                raise Malformed(f"a {type(part).__name__} is used as a key")
            count += 1
            if count + len(parts) > MAX_KEY:
                raise Malformed("a key is nested too deeply")
        budget.spend(count)
    elif kind in (list, dict, set, bytearray):
        raise Malformed(f"a {kind.__name__} is used as a key")
    return value
