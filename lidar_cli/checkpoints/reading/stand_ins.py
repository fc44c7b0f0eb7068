"""Records that represent the objects that a pickle names. Nothing is imported or called."""

from __future__ import annotations

from typing import Any

from lidar_cli.checkpoints.reading.lazy_tensor import Malformed, is_tensor

NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
MAX_NAME_LETTERS = 16 << 20  # in the names of all modules together
MAX_DEPTH = 100  # of nested modules


class Global:
    """A class or function that is not called: only its qualified name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<name {self.name}>"


class StandIn:
    """An instance of an unknown class, or the result of an unknown function, as data."""

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


def plain(value: Any) -> Any:
    """The plain value of a stand-in if it has one; other values unchanged.

    A module becomes its state dict, an instance of a subclass of dict or list its content, a
    namespace the dict of its attributes. Raises Malformed for modules that contain one another.
    """
    if not isinstance(value, StandIn):
        return value
    if _is_module(value):
        return state_dict(value)
    if value.entries is not None:
        return value.entries
    if value.elements is not None:
        return value.elements
    is_namespace = value.name in NAMESPACES and isinstance(value.state, dict)
    return value.state if is_namespace else value


def _is_module(value: object) -> bool:
    """Whether a value is a stand-in with the attributes of a torch.nn.Module."""
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state


def state_dict(module: StandIn) -> dict[str, Any]:
    """Tensors by name, in the order of torch.nn.Module.state_dict."""
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
        if letters > MAX_NAME_LETTERS:
            raise Malformed("its modules hold one another without end")
        children = []
        for name, value in _entries(inner, "_modules"):
            if _is_module(value):
                children.append((f"{prefix}{name}.", depth + 1, value))
        todo.extend(reversed(children))
    return tensors


def _entries(module: StandIn, group: str) -> list[tuple[str, Any]]:
    entries = module.state.get(group)
    entries = entries.entries if isinstance(entries, StandIn) else entries
    if not isinstance(entries, dict):
        return []
    return [(name, value) for name, value in entries.items() if isinstance(name, str)]
