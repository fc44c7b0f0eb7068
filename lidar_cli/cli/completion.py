"""The values that a shell completes. Nothing here imports torch."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any

from lidar_cli.settings import LAYERS


def values_of(name: str, hint: Any) -> Callable[[str], list[str]] | None:
    """The completion of a value; None if the shell completes it, as for a path.

    hint: the setting's type, which may list its values.
    """
    if name in SOURCES:
        return SOURCES[name]
    if typing.get_origin(hint) is typing.Literal:
        return _one(lambda: map(str, typing.get_args(hint)))
    return None


def _one(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _several(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes the last of several values with commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            f"{before}{comma}{name}"
            for name in names()
            if name.startswith(last) and name not in given
        ]

    return complete


def _metrics() -> Iterable[str]:
    from lidar_cli.core.metrics import METRICS

    return METRICS


def _orders() -> Iterable[str]:
    from lidar_cli.ranking.group_metrics import ORDERS

    return ORDERS


def _recipes() -> Iterable[str]:
    from lidar_cli.views.methods import RECIPES

    return ("auto", *RECIPES)


def _formats() -> Iterable[str]:
    from lidar_cli.checkpoints.detect import PLAIN
    from lidar_cli.checkpoints.formats import FORMATS

    return ("auto", PLAIN, *(entry.name for entry in FORMATS))


def _branches() -> Iterable[str]:
    from lidar_cli.checkpoints.detect import branch_words

    return branch_words()


def _topics() -> Iterable[str]:
    from lidar_cli.explain.topics import topic_names

    return topic_names()


def _assumptions() -> Iterable[str]:
    from lidar_cli.checkpoints.shapes.spec import ASSUME_KEYS

    return (f"{key}=" for key in ASSUME_KEYS)


SOURCES = {
    "topic": _one(_topics),
    "by": _one(_orders),
    "metrics": _several(lambda: ("all", *_metrics())),
    "layer": _several(lambda: ("auto", *LAYERS)),
    "views": _one(_recipes),
    "format": _one(_formats),
    "branch": _one(_branches),
    "assume": _one(_assumptions),
    "device": _one(lambda: ("auto", "cpu", "cuda")),
}
