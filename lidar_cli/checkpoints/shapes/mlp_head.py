"""A projector from its weights: the layers of an MLP, read in the order of their index.

    2-D weight              Linear, with or without bias
    weight_g, weight_v      Linear under weight norm: g v / |v|, row by row
    running_mean            BatchNorm1d, affine or not
    1-D weight, no mean     LayerNorm
    a gap in the numbers    an activation (and what does nothing in eval mode, such as dropout)

Which activation it is, and whether one follows the last layer, the weights do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lidar_cli.checkpoints.assume import USUAL, Open
from lidar_cli.checkpoints.models.weights import some
from lidar_cli.checkpoints.shapes.spec import Shapes, batchnorm
from lidar_cli.errors import CheckpointError

Kind = Literal["linear", "batchnorm", "layernorm"]


@dataclass(frozen=True)
class Layer:
    """One layer that has tensors."""

    index: int  # its place in the Sequential that was saved
    kind: Kind
    into: int
    out: int
    has_weight: bool  # of a BatchNorm: affine
    has_bias: bool
    after_gap: bool  # an activation stands before it
    weight_norm: bool = False  # a Linear whose weight is a length times a direction

    @property
    def counts(self) -> bool:
        """Whether it is a layer that people count: a Linear."""
        return self.kind == "linear"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors."""
        if self.kind == "batchnorm":
            names = batchnorm(str(self.index), self.out)
            drop = () if self.has_weight else ("weight", "bias")
            return {n: s for n, s in names.items() if n.rpartition(".")[2] not in drop}
        found: dict[str, tuple[int, ...]] = {}
        if self.weight_norm:
            found = {"weight_g": (self.out, 1), "weight_v": (self.out, self.into)}
        else:
            found = {"weight": (self.out, self.into) if self.kind == "linear" else (self.out,)}
        if self.has_bias:
            found["bias"] = (self.out,)
        return {f"{self.index}.{name}": shape for name, shape in found.items()}


@dataclass(frozen=True)
class HeadSpec(Open):
    """A chain of layers."""

    layers: tuple[Layer, ...]
    activation: str = "relu"  # or 'gelu'

    @property
    def width(self) -> int:
        """Of the output."""
        return self.layers[-1].out

    @property
    def widths(self) -> tuple[int, ...]:
        """From input to output, of the layers that people count."""
        return self.layers[0].into, *(layer.out for layer in self.layers if layer.counts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else is assumed, in words."""
        if any(layer.kind == "layernorm" for layer in self.layers):
            return ("LayerNorm where the projector has a norm without statistics",)
        return ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, named as in the file, by index."""
        return {name: shape for layer in self.layers for name, shape in layer.shapes().items()}


def needed(layers: str, head: str, behind: Iterable[str]) -> bool:
    """Whether `--layer` asks for a head, or for one that takes what it gives."""
    names = {name.strip() for name in layers.split(",")}
    return bool(names & {"auto", head, *behind})


def plain_name(name: str) -> str:
    """'0.weight' for '0.weight', 'layers.0.weight' and, where nothing is numbered, 'weight'.

    The two layouts of weight norm become one: weight_g [out, 1], weight_v [out, in].
    """
    name = name.removeprefix("layers.")
    for part, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{part}", old)
    if name.count(".") == 0:
        return f"0.{name}"
    return re.sub(r"^0+(?=\d)", "", name)


def spec(shapes: Shapes, width: int, activation: str, origin: str, why: str = USUAL) -> HeadSpec:
    """The MLP that tensors of these shapes form behind a backbone of the given width.

    shapes: by names of the form '0.weight', see `plain_name`. why: where the activation is from.
    Raises CheckpointError for names that are no numbered layer, and widths that do not chain.
    """
    tensors: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"(\d+)\.(\w+)", name)
        if match is None:
            raise CheckpointError(
                f"{origin}: {some([name])} is not a tensor of a numbered layer; expected "
                "Linear, BatchNorm and LayerNorm in a Sequential; name your own code with --model"
            )
        tensors.setdefault(int(match[1]), {})[match[2]] = shape
    layers: list[Layer] = []
    previous = -1
    for index in sorted(tensors):
        layer = _layer(index, tensors[index], width, index > previous + 1, origin)
        layers.append(layer)
        width, previous = layer.out, index
    if layers[0].after_gap:
        raise CheckpointError(
            f"{origin}: the layers begin at {layers[0].index}, and what stands before cannot be "
            "told; expected layer 0; name your own code with --model"
        )
    if any(layer.after_gap for layer in layers):
        return HeadSpec(tuple(layers), activation, why={"activation": why})
    return HeadSpec(tuple(layers), decided={"activation": "no activation stands in its projector"})


def _layer(
    index: int, shapes: dict[str, tuple[int, ...]], width: int, after_gap: bool, origin: str
) -> Layer:
    weight_norm = "weight_v" in shapes and "weight" not in shapes
    weight = shapes.get("weight_v" if weight_norm else "weight", ())
    kind: Kind
    if "running_wmat" in shapes:
        raise CheckpointError(
            f"{origin}: layer {index} is an IterNorm, which whitens and is not read; expected "
            "Linear, BatchNorm and LayerNorm; name your own code with --model"
        )
    if "running_mean" in shapes:
        kind, into, out = "batchnorm", *(shapes["running_mean"] or (0,))[:1] * 2
    elif len(weight) == 2:
        kind, (out, into) = "linear", weight
    elif len(weight) == 1:
        kind, into, out = "layernorm", *weight * 2
    else:
        raise CheckpointError(
            f"{origin}: layer {index} with {some(shapes)} is not a Linear, BatchNorm or "
            "LayerNorm; name your own code with --model"
        )
    if into != width:
        raise CheckpointError(
            f"{origin}: layer {index} takes {into} numbers, but {width} come before it; expected a "
            "chain that begins at the backbone's width; name your own code with --model"
        )
    has_weight, has_bias = "weight" in shapes, "bias" in shapes
    return Layer(index, kind, into, out, has_weight, has_bias, after_gap, weight_norm)
