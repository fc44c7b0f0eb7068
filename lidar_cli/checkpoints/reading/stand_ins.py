"""Data about the objects that a pickle names, in place of the objects. Nothing is imported."""

from __future__ import annotations

from typing import Any


class Global:
    """A class or function by its qualified name alone."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<name {self.name}>"


class StandIn:
    """An instance of an unknown class, or the result of an unknown function: its arguments."""

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


class ArrayType:
    """A numpy dtype: kind and size such as 'f8', and byte order '<' or '>'."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code.lstrip("<>=|")
        self.order = ">" if code.startswith(">") else "<"

    def __repr__(self) -> str:
        return f"<numpy type {self.order}{self.code}>"
