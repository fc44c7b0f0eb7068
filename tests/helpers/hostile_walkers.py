"""The walker of checkpoints as it runs in the child, watched or without its list of names."""

from __future__ import annotations

import copyreg
import io
import sys
from typing import Any, BinaryIO

import lidar_cli
from lidar_cli.checkpoints.reading import interpret, pickle, rebuild, walk
from lidar_cli.errors import CheckpointError

EXTENSIONS = {code: ("os", f"system{code}") for code in (1, 0xF0, 0x1234, 0x12345678)}
HARMLESS = (
    "open",
    "builtins.id",
    "object.__getattr__",
    "sys._getframe",
    "gc.",
)  # 'open' by its mode
READING = (None, "r", "rb")
events: list[str] = []
watching: list[bool] = []


def unlisted(file: BinaryIO, path: str) -> Any:
    """As `walk`, with no name refused."""
    pickle.REFUSED_MODULES = pickle.REFUSED_BUILTINS = frozenset()
    return walk.walk(file, path)


def watched(file: BinaryIO, lengths: list[int]) -> Any:
    """Walk the files of which this one is made; what Python's audit hooks see, and what changed."""
    if not watching:
        sys.addaudithook(_hook)
    contents = [file.read(length) for length in lengths]
    refused = 0
    before = _ours()
    watching[:] = [True]
    for content in contents:
        _register()
        try:
            walk.walk(io.BytesIO(content), "a file")
        except (CheckpointError, MemoryError):  # of a memo of 2^32 places
            refused += 1
    watching.clear()
    after = _ours()
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    return {"events": events, "changed": changed, "refused": refused}


def broken(file: BinaryIO, how: str) -> Any:
    """The hook and the comparison can find something."""
    watching[:] = [True]
    sys.addaudithook(_hook)
    before = _ours()
    if how == "import":
        import this  # noqa: F401
    elif how == "attribute":
        walk.EXPECTED = "changed"
    elif how == "key":
        interpret.EMPTY["os.system"] = dict
    elif how == "value":
        interpret.EMPTY["collections.OrderedDict"] = list
    elif how == "list":
        lidar_cli.__all__.append("a")
    elif how == "inside":
        vars(rebuild)["__builtins__"]["print"] = exec
    else:
        sys.modules["a"] = sys
    watching.clear()
    return {"events": events, "changed": before != _ours()}


def _register() -> None:
    """What a program with extension codes would have in its tables."""
    copyreg._inverted_registry.update(EXTENSIONS)  # type: ignore[attr-defined]
    copyreg._extension_cache.update(dict.fromkeys(EXTENSIONS, print))  # type: ignore[attr-defined]


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if watching and not event.startswith(HARMLESS):
        events.append(event)
    elif watching and event == "open" and args[1] not in READING:
        events.append(f"open {args[1]}")


def _ours() -> dict[str, Any]:
    """Every attribute of our modules and of their classes, by what it is and holds."""
    attributes: dict[str, Any] = {"sys.modules": tuple(sys.modules)}
    for name, module in list(sys.modules.items()):
        if name.startswith("lidar_cli"):
            for key, value in list(vars(module).items()):
                attributes[f"{name}.{key}"] = _identity(value)
                if isinstance(value, type) and value.__module__.startswith("lidar_cli"):
                    for inner, part in list(vars(value).items()):
                        attributes[f"{name}.{key}.{inner}"] = _identity(part)
    return attributes


def _identity(value: Any, depth: int = 3) -> Any:
    """What changes where another object, or another content, is in this place."""
    if isinstance(value, dict) and depth:
        return {id(key): _identity(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list) and depth:
        return [_identity(inner, depth - 1) for inner in value]
    return {id(inner) for inner in value} if isinstance(value, set) else id(value)
