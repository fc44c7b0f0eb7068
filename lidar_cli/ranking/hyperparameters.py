"""What checkpoints were trained with, from a CSV file or from themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.data.tables import Table
from lidar_cli.errors import LidarError, NoProcess

NUMBER = re.compile(r"([A-Za-z]*)[=_\-.]?([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
Value = str | float | bool | None  # an int counts as a float
HOMES = ("hyper_parameters", "args")  # of Lightning, and of scripts that keep their arguments
LONGEST = 100  # characters of a text that can be a choice


def from_table(lines: Mapping[str, Mapping[str, str]], table: Table) -> dict[str, dict[str, Value]]:
    """Checkpoint -> hyperparameters, a column each; texts that are numbers become numbers."""
    names = [name for name in table.columns if name not in ("path", "accuracy")]
    return {path: {name: _value(row[name]) for name in names} for path, row in lines.items()}


def from_checkpoints(paths: Sequence[str]) -> dict[str, dict[str, Value]]:
    """Checkpoint -> the plain values that it carries under `hyper_parameters` or `args`.

    Nothing for a checkpoint that carries none, or that is a feature file.
    """
    found = {}
    for path in paths:
        try:
            tree = read_checkpoint(Path(path))
        except NoProcess:
            raise
        except LidarError:
            continue
        home: dict[object, object]
        home = next((tree[name] for name in HOMES if isinstance(tree.get(name), dict)), {})
        found[path] = {
            name: value
            for name, value in home.items()
            if _is_choice(name)
            if value is None or isinstance(value, (bool, int, float)) or _is_choice(value)
        }
    return {path: values for path, values in found.items() if values}


def from_names(paths: Iterable[str], directory: str = ".") -> dict[str, dict[str, Value]]:
    """Path -> the numbers in its name, such as `epoch` and `step` of `epoch=3-step=500.ckpt`.

    A number is named after the word before it, in the file's name or in a folder below the
    directory; one without a word is `number`. Where a word comes twice the last counts.
    """
    found: dict[str, dict[str, Value]] = {}
    for path in paths:
        below = Path(path)
        below = below.relative_to(directory) if below.is_relative_to(directory) else below
        text = str(below.with_suffix("") if below.suffix[1:].isalpha() else below)
        found[path] = {
            (word.lower() or "number"): float(number) for word, number in NUMBER.findall(text)
        }
    return found


def with_names(
    known: Mapping[str, Mapping[str, Value]], paths: Sequence[str], directory: str = "."
) -> dict[str, dict[str, Value]]:
    """Path -> its hyperparameters, then the numbers of its name that every other name has too.

    `epoch` says how far a training was; the 7 of `vicreg-07` beside `simclr-06` is a run's name.
    """
    named = from_names(paths, directory)
    shared = set(named[paths[0]]).intersection(*named.values()) if paths else set()
    found = {}
    for path in paths:
        own = known.get(path, {})
        more = {word: n for word, n in named[path].items() if word in shared - set(own)}
        found[path] = {**own, **more}
    return found


def telling(known: Mapping[str, Mapping[str, Value]]) -> tuple[str, ...]:
    """Hyperparameters that differ between checkpoints and are not merely their names.

    A text that is another in every checkpoint, such as a run's name or its folder, was chosen by
    nobody. A checkpoint that lacks one has None for it.
    """
    names = dict.fromkeys(name for values in known.values() for name in values)
    told = []
    for name in names:
        values = [values.get(name) for values in known.values()]
        different = len(set(map(repr, values)))
        is_name = different == len(values) and all(isinstance(value, str) for value in values)
        if different > 1 and not is_name:
            told.append(name)
    return tuple(told)


def slices(known: Mapping[str, Mapping[str, Value]], name: str) -> list[list[str]]:
    """Sets of checkpoints that differ in one hyperparameter and in no other that tells them apart.

    Where a sweep varies one thing at a time there is a single one for each; a grid has many; a
    random search has none.
    """
    others = [other for other in telling(known) if other != name]
    alike: dict[str, list[str]] = {}
    for path, values in known.items():
        alike.setdefault(repr([values.get(other) for other in others]), []).append(path)
    return [
        paths
        for paths in alike.values()
        if len({repr(known[path].get(name)) for path in paths}) > 1
    ]


def _value(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text or None


def _is_choice(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
