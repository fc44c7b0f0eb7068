"""A projector from its weights: the layers of an MLP, read in the order of their index.

    2-D weight              Linear, with or without bias
    running_mean            BatchNorm1d, affine or not
    1-D weight, no mean     LayerNorm
    a gap in the numbers    an activation (and what does nothing in eval mode, such as dropout)

Which activation it is, and whether one follows the last layer, the weights do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lidar_cli.checkpoints.weights import some
from lidar_cli.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["linear", "batchnorm", "layernorm"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


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


@dataclass(frozen=True)
class HeadSpec:
    """A chain of layers."""

    layers: tuple[Layer, ...]
    activation: str  # 'auto', 'relu' or 'gelu'

    @property
    def width(self) -> int:
        """Of the output."""
        return self.layers[-1].out

    @property
    def is_mlp(self) -> bool:
        """More than the one Linear that a classifier is."""
        return len(self.layers) > 1

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The activation, if nobody named it."""
        notes = []
        if self.activation == "auto" and any(layer.after_gap for layer in self.layers):
            notes.append("ReLU between the layers of the projector")
        if any(layer.kind == "layernorm" for layer in self.layers):
            notes.append("LayerNorm where the projector has a norm without statistics")
        return tuple(notes)

    def build(self) -> nn.Sequential:
        """The module, without weights; tensors are named as in the file, by index."""
        activation = ACTIVATIONS["relu" if self.activation == "auto" else self.activation]
        head = nn.Sequential()
        with torch.device("meta"):
            for layer in self.layers:
                if layer.after_gap:
                    head.add_module(f"act{layer.index}", activation())
                head.add_module(str(layer.index), _module(layer))
        return head


def plain_name(name: str) -> str:
    """'0.weight' for '0.weight', 'layers.0.weight' and, where nothing is numbered, 'weight'."""
    name = name.removeprefix("layers.")
    return f"0.{name}" if name in ("weight", "bias") else name


def spec(shapes: Shapes, width: int, activation: str, origin: str) -> HeadSpec:
    """The MLP that tensors of these shapes form behind a backbone of the given width.

    shapes: by names of the form '0.weight', see `plain_name`.
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
    return HeadSpec(tuple(layers), activation)


def _layer(
    index: int, shapes: dict[str, tuple[int, ...]], width: int, after_gap: bool, origin: str
) -> Layer:
    weight = shapes.get("weight", ())
    kind: Kind
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
    return Layer(index, kind, into, out, "weight" in shapes, "bias" in shapes, after_gap)


def _module(layer: Layer) -> nn.Module:
    if layer.kind == "linear":
        return nn.Linear(layer.into, layer.out, bias=layer.has_bias)
    if layer.kind == "batchnorm":
        return nn.BatchNorm1d(layer.out, affine=layer.has_weight)
    return nn.LayerNorm(layer.out, bias=layer.has_bias)
