"""What stands in a tree for an object that a pickle names: data about it, never the object.

Nothing here can be called, and nothing imports what a name says. The list of refused names is a
courtesy to the user, who should hear of such a file; safety does not rest on it.
"""

from __future__ import annotations

from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import Malformed

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


class Forbidden(Exception):
    """A file names what could only do harm; the text is the qualified name."""


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

    getattr alone passes: it depends on its arguments whether it is refused, see unpickle.py.
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
