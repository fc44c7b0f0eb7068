"""Layers inside a backbone: modules by their own names, such as blocks.3, and how each is pooled.

Each is pooled as its backbone is: the class token, or the mean over the patches or the image. No
norm follows that is not inside the module.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lidar_cli.errors import CheckpointError
from lidar_cli.settings import LAYERS

CLASS_TOKEN = "class token"
MEAN_OF_TOKENS = "mean over the patches"
MEAN_OF_IMAGE = "global average"
ROWS = "not pooled"  # one vector an image already


@dataclass(frozen=True)
class InnerLayer:
    """How the output of a module becomes one embedding an image.

    axes: over which the mean is taken, after `first` tokens; none for the class token and for rows.
    """

    width: int
    pooling: str
    axes: tuple[int, ...] = ()
    first: int = 0


def names_of(option: str) -> list[str]:
    """The layers that `--layer` names."""
    return [name.strip() for name in option.split(",") if name.strip()]


def inner_names(option: str, others: Iterable[str] = LAYERS) -> list[str]:
    """The layers of `--layer` that are modules inside a backbone.

    others: the layers that are not.
    """
    return [name for name in names_of(option) if name not in (*others, "auto")]


def outer_layers(option: str) -> str:
    """The value of `--layer` without the modules inside a backbone; they need the backbone."""
    return ",".join(name for name in names_of(option) if name in (*LAYERS, "auto")) or "backbone"


def ordering_layer(option: str, layers: Iterable[str]) -> str:
    """The layer by which a ranking is ordered: of several that are embedded, the last named."""
    layers = list(layers)
    return names_of(option)[-1] if len(layers) > 1 else layers[0]


def parents(names: Iterable[str]) -> list[str]:
    """Names of the modules that have the tensors of these names, such as blocks.0 and blocks."""
    parts = (name.split(".")[:-1] for name in names)
    return list(
        dict.fromkeys(".".join(one[:end]) for one in parts for end in range(1, len(one) + 1))
    )


def in_groups(names: Iterable[str]) -> list[str]:
    """The outermost numbered modules, such as 'blocks.0 ... blocks.11'."""
    groups: dict[str, list[int]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)", name):
            groups.setdefault(match[1], []).append(int(match[2]))
    several = {stem: numbers for stem, numbers in groups.items() if len(numbers) > 1}
    least = min((stem.count(".") for stem in several), default=0)
    return [
        f"{stem}{min(numbers)} ... {stem}{max(numbers)}"
        for stem, numbers in several.items()
        if stem.count(".") == least
    ]


def pooling_texts(inner: Mapping[str, InnerLayer]) -> list[str]:
    """How layers are pooled, in words; those that are pooled alike together."""
    alike: dict[str, list[str]] = {}
    for name, layer in inner.items():
        alike.setdefault(layer.pooling, []).append(name)
    return [f"{', '.join(names)}: {pooling}" for pooling, names in alike.items()]


def unknown_layer(name: str, inner: Iterable[str], others: Iterable[str]) -> CheckpointError:
    """The error for a layer that is neither a module of the backbone nor one of the others."""
    inner, others = list(inner), list(others)
    near = difflib.get_close_matches(name, [*others, *inner], n=3, cutoff=0.5)
    available = ", ".join([*others, *in_groups(inner)])
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {available}"
    return CheckpointError(f"no layer {name!r} in this checkpoint; {hint}", code="no-such-layer")
