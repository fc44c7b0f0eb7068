"""Which settings bring comparable groups together, as far as any do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SETTING_OF_CONSTANT = {  # a constant in which groups differ -> the setting that makes it equal
    "views": "views",
    "pixel statistics": "pixel_stats",
    "image size": "image_size",
    "n": "n_samples",
    "q": "n_views",
    "seed": "seed",
    "precision": "precision",
    "storage": "storage",
}
WIDTHS = ("d", "layer")  # the constants that `--layer` changes


@dataclass(frozen=True)
class Member:
    """A row of a ranking, done or planned.

    common: the settings by which it is comparable. widths: layer -> length of its embedding; None
    for a feature file, which stays as it is.
    """

    common: Mapping[str, Any]
    widths: Mapping[str, int] | None


@dataclass(frozen=True)
class Joined:
    """The fewest comparable groups.

    settings: those of which one value for all gives them, () if none lowers the number of groups.
    layer: the value of `layer`. apart: the constants that keep the groups apart.
    """

    groups: int
    settings: tuple[str, ...]
    layer: str
    apart: tuple[str, ...]


def differing(commons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the constants in which groups differ."""
    return [key for key in commons[0] if len({repr(common[key]) for common in commons}) > 1]


def causes(constants: Sequence[str]) -> list[str]:
    """The constants that differ by themselves: n and seed determine samples, views masks."""
    effects = {"samples"} if {"n", "seed"} & set(constants) else set()
    effects |= {"mask grid"} if "views" in constants else set()
    return [name for name in constants if name not in effects]


def join(members: Sequence[Member]) -> Joined:
    """The settings of which one value for all gives the fewest groups."""
    fixed = [member for member in members if member.widths is None]
    target = (fixed or members)[0].common
    names = causes(differing([member.common for member in members]))
    setting_of = {
        name: SETTING_OF_CONSTANT[name]
        for name in names
        if name in SETTING_OF_CONSTANT and target[name] is not None
    }
    if "mask grid" in names and not fixed:
        setting_of["mask grid"] = "views"
    apart = [name for name in names if name not in setting_of and name not in WIDTHS]

    def groups_of(layer: str) -> int:
        return len({repr([_width(one, layer), *map(one.common.get, apart)]) for one in members})

    layers = [target["layer"], *(() if fixed else ("backbone", "projector"))]
    usable = [layer for layer in layers if all(_width(one, layer) for one in members)]
    layer = min(usable, key=groups_of, default=None)
    before = len({repr(sorted(one.common.items())) for one in members})
    fewest = before if layer is None else groups_of(layer)
    if layer is None or fewest == before:
        return Joined(before, (), target["layer"], tuple(names))
    if len({_width(one, layer) for one in members}) > 1:
        apart.append("d")
    settings = [setting_of[name] for name in names if name in setting_of]
    if any(one.common["layer"] != layer for one in members):
        settings.append("layer")
    return Joined(fewest, tuple(dict.fromkeys(settings)), layer, tuple(apart))


def _width(member: Member, layer: str) -> int | None:
    """The length of the embedding by a layer; None if the member has no such layer."""
    if layer == member.common["layer"]:
        return int(member.common["d"])
    return (member.widths or {}).get(layer)
