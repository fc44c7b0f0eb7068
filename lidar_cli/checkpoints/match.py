"""Which described format a file is of, and the state dict in which it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lidar_cli.checkpoints.formats import FORMATS, Format
from lidar_cli.checkpoints.formats.format import readable, renamed
from lidar_cli.checkpoints.reading.containers import StateDict, candidates, clean
from lidar_cli.checkpoints.reading.lazy_tensor import Weight, is_tensor
from lidar_cli.errors import CheckpointError, SettingsError, nearest

PLAIN = "plain"  # the --format of a file that no description should claim
BRANCHES = {  # what --branch takes -> the branch's name
    "auto": "auto",
    "student": "student",
    "encoder": "student",
    "online": "student",
    "query": "student",
    "teacher": "teacher",
    "target": "teacher",
    "momentum": "teacher",
    "ema": "teacher",
    "key": "teacher",
}
DEEPEST = 6  # levels of dicts below a container that are looked into


@dataclass(frozen=True)
class Match:
    """A format, and the state dict in which it was found."""

    format: Format
    state: StateDict
    why: str


def check_names(format: str, branch: str) -> None:
    """Raise SettingsError for a format or branch that no checkpoint can have."""
    known = ["auto", PLAIN, *(one.name for one in FORMATS)]
    if format not in known:
        raise SettingsError(f"--format {format}: {nearest(format, known)}")
    if branch not in BRANCHES:
        raise SettingsError(f"--branch {branch}: {nearest(branch, list(BRANCHES))}")


def match(
    path: Path,
    tree: Mapping[str, Any],
    name: str = "auto",
    config: Mapping[str, Any] | None = None,
) -> Match | None:
    """The most specific format whose marks are all there; None if there is none.

    name: of the one format to look for, 'auto' for all, 'plain' for none. config: config.json of
    the folder, where there is one.
    Raises CheckpointError if two are equally specific, or the named one does not match, and
    SettingsError for an unknown name.
    """
    known = {one.name: one for one in FORMATS}
    if name == PLAIN:
        return None
    check_names(name, "auto")
    asked = FORMATS if name == "auto" else (known[name],)
    places = candidates(tree)
    found: dict[str, Match] = {}
    states: dict[object, StateDict | None] = {}  # few for many formats
    for one in asked:
        if not _around(one, tree, config if name == "auto" else None):
            continue
        for container, root in places:
            if not one.roots or container in one.roots or name != "auto":
                place = (container, one.inside, one.added)
                if place not in states:
                    states[place] = _state(one, container, root)
                state = states[place]
                if state is not None and _fits(one, state):
                    found.setdefault(one.name, Match(one, state, _why(one)))
    if name != "auto" and not found:
        raise CheckpointError(
            f"{path}: is not {name}: expected tensors named {readable(asked[0].marks)}"
            f"{_listed(' beside the keys ', asked[0].keys)}; leave --format out"
        )
    most = max((_rank(m.format) for m in found.values()), default=0)
    best = [m for m in found.values() if _rank(m.format) == most]
    if len(best) > 1:
        names = ", ".join(m.format.name for m in best)
        raise CheckpointError(f"{path}: may be {names}; choose one of them with --format")
    return best[0] if best else None


def _state(format: Format, container: str, root: Mapping[str, Any]) -> StateDict | None:
    """The tensors of a container, nested dicts joined in where the format says; None if none."""
    tensors: dict[str, Weight] = {}
    originals: dict[str, str] = {}
    others: list[str] = []
    taken: set[str] = set()
    dicts: set[int] = set()
    places = [(p, prefix, _inner(root, p)) for p, prefix in format.inside or (("", ""),)]
    for place, prefix, inner in places:
        if inner is None or prefix in taken:
            continue
        apart = {id(other) for _, _, other in places if other is not inner}  # told by themselves
        before = set(apart)
        for name, value in _walk(inner, DEEPEST if place else 0, apart):
            key = prefix + renamed(clean(name), ((format.added, ""),))
            if not is_tensor(value):
                others.append(f"{place}.{name}".lstrip("."))
            elif key in tensors:
                return None
            else:
                taken.add(prefix)
                tensors[key] = value
                originals[key] = f"{place}.{name}".lstrip(".")
        dicts |= apart - before
    if not tensors:
        return None
    nested = bool(container) and not format.inside
    others = others if nested else []
    return StateDict(container, tensors, originals, tuple(others), frozenset(dicts))


def _inner(root: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    for key in place.split(".") if place else []:
        value = root.get(key)
        if not isinstance(value, dict):
            return None
        root = value
    return root


def _walk(inner: Mapping[Any, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Entries, those of nested dicts too, by names joined with dots; each dict is told once."""
    seen.add(id(inner))
    for key, value in inner.items():
        if isinstance(value, dict) and depth > 0:
            if id(value) not in seen:  # a pickle can repeat one without end
                yield from ((f"{key}.{name}", v) for name, v in _walk(value, depth - 1, seen))
        else:
            yield str(key), value


def _around(format: Format, tree: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether what lies beside the weights is the format's: keys of the file, a config.json."""
    keys = all(key in tree for key in format.keys) and not any(k in tree for k in format.no_keys)
    told = config or {}
    return keys and all(told.get(name, value) == value for name, value in format.config)


def _fits(format: Format, state: StateDict) -> bool:
    """Whether all marks are there, and nothing that the format lacks."""

    def there(pattern: str) -> bool:
        match = re.compile(pattern).match
        return any(match(name) for name in state.tensors)

    def square(pattern: str) -> bool:
        found = [t for name, t in state.tensors.items() if re.match(pattern, name)]
        return all(len(t.shape) == 2 and t.shape[0] == t.shape[1] for t in found)

    named = all(map(there, format.marks)) and not any(map(there, format.lacks))
    return named and all(map(square, format.square))


def _rank(format: Format) -> int:
    """How specific: the number of conditions that the file met."""
    return len(format.marks) + len(format.keys)


def _why(format: Format) -> str:
    return f"tensors named {readable(format.marks)}{_listed(' beside the keys ', format.keys)}"


def _listed(before: str, names: tuple[str, ...]) -> str:
    return before + ", ".join(names) if names else ""
