"""The last step of reading: plain containers in place of the stand-ins that hold nothing else.

    a whole module                      -> its state dict, as `module.state_dict()` names it
    a subclass of dict or list          -> the dict or list that it is
    argparse.Namespace                  -> the dict of its attributes

All walks keep their own stack and visit an object once, so neither depth nor sharing costs more
than the file has bytes. Elements of tuples stay as they are.
"""

from __future__ import annotations

from typing import Any

from lidar_cli.checkpoints.lazy import Malformed, is_tensor
from lidar_cli.checkpoints.standins import StandIn

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
