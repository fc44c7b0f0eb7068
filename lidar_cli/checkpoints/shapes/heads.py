"""The specs of projectors and predictors: MLPs, and the predictor of I-JEPA.

The layers of an MLP are recognised in the order of their index:

    2-D weight              Linear, with or without bias
    weight_g, weight_v      Linear under weight norm: g v / |v|, row by row
    running_mean            BatchNorm1d, affine or not
    1-D weight, no mean     LayerNorm
    a gap in the indices    an activation (or a layer without effect in eval mode, such as dropout)

The weights do not determine which activation it is, nor whether one follows the last layer.
SIMPLEX stands for softmax(x / 0.1) over each 8 numbers (Lavoie et al. 2022), in byol-pytorch.

I-JEPA's predictor maps the tokens of context patches to those of target patches:

    x = predictor_embed(z) + p[context]          [R, K_enc, Dp]    R = n_enc b rows
    m = mask_token + p[target]                   [R, K_pred, Dp]   for each target block
    y = norm(blocks([x; m]))[last K_pred]        predictor_proj(y) [n_pred R, K_pred, D]

p is predictor_pos_embed. Several masks are concatenated along the batch, mask by mask: row
(e b + i) of z is image i under context mask e; row ((p n_enc + e) b + i) of the output is its
target block p. The predictor has as many attention heads as the encoder, but another width; eps is
1e-6. Masks are
indices [b, K] of patches, row by row of the grid. Source: Assran et al. 2023 (I-JEPA).

This file needs no torch; the modules are in models/heads.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    ModuleSpec,
    Shapes,
    batchnorm,
    layernorm,
    linear,
    number_of_blocks,
    repeated,
)
from lidar_cli.errors import CheckpointError

Kind = Literal["linear", "batchnorm", "layernorm"]
SIMPLEX = "simplex"
SIMPLEX_SIZE, SIMPLEX_TEMPERATURE = 8, 0.1
PREDICTOR_EPS = 1e-6


@dataclass(frozen=True)
class Layer:
    """One layer of an MLP that has tensors."""

    index: int  # in the Sequential that was saved
    kind: Kind
    into: int
    out: int
    has_weight: bool  # for a BatchNorm: whether it is affine
    has_bias: bool
    after_gap: bool  # whether an activation precedes it
    weight_norm: bool = False  # whether it is a Linear under weight norm

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each of its tensors."""
        if self.kind == "batchnorm":
            names = batchnorm(str(self.index), self.out)
            drop = () if self.has_weight else ("weight", "bias")
            return {n: s for n, s in names.items() if n.rpartition(".")[2] not in drop}
        shapes: dict[str, tuple[int, ...]] = {}
        if self.weight_norm:
            shapes = {"weight_g": (self.out, 1), "weight_v": (self.out, self.into)}
        else:
            shapes = {"weight": (self.out, self.into) if self.kind == "linear" else (self.out,)}
        if self.has_bias:
            shapes["bias"] = (self.out,)
        return {f"{self.index}.{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True)
class MLPSpec(ModuleSpec):
    """The layers of an MLP, in order."""

    layers: tuple[Layer, ...]
    activation: str = "relu"  # or 'gelu'
    gaps: tuple[tuple[int, str], ...] = ()  # index of a layer -> what precedes it instead
    last_activation: bool = False  # whether it follows the last layer too

    def before(self, layer: Layer) -> str:
        """The activation that precedes a layer, '' for none."""
        return dict(self.gaps).get(layer.index, self.activation) if layer.after_gap else ""

    @property
    def width(self) -> int:
        """The width of the output."""
        return self.layers[-1].out

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the input and of each Linear layer's output."""
        outputs = (layer.out for layer in self.layers if layer.kind == "linear")
        return self.layers[0].into, *outputs

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Other assumptions, in words."""
        notes = []
        if any(layer.kind == "layernorm" for layer in self.layers):
            notes.append("LayerNorm where the projector has a norm without statistics")
        if any(self.before(layer) == SIMPLEX for layer in self.layers):
            notes.append(
                f"softmax over each {SIMPLEX_SIZE} numbers at temperature {SIMPLEX_TEMPERATURE} "
                "in the projector"
            )
        return tuple(notes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, named by the index of its layer."""
        return {name: shape for layer in self.layers for name, shape in layer.shapes().items()}


def is_needed(layers: str, head: str, later: Iterable[str]) -> bool:
    """Whether `--layer` requests a head, or a later one whose input it computes."""
    names = {name.strip() for name in layers.split(",")}
    return bool(names & {"auto", head, *later})


def numbered_name(name: str) -> str:
    """The name as INDEX.TENSOR: '0.weight' for '0.weight', 'layers.0.weight' and 'weight'.

    Both layouts of weight norm get the names weight_g [out, 1] and weight_v [out, in].
    """
    name = name.removeprefix("layers.")
    for part, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{part}", old)
    if name.count(".") == 0:
        return f"0.{name}"
    return re.sub(r"^0+(?=\d)", "", name)


def mlp_spec(
    shapes: Shapes,
    width: int,
    activation: str,
    origin: str,
    why: str = USUAL,
    gaps: tuple[tuple[int, str], ...] = (),
) -> MLPSpec:
    """The spec of the MLP with these shapes.

    shapes: by names such as '0.weight', see `numbered_name`. width: of the input. why: the origin
    of the activation. gaps: index of a layer -> what precedes it instead of the activation.
    Raises CheckpointError for a layer of an unknown kind, or one whose input width is not the
    output width of the previous layer.
    """
    tensors: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"(\d+)\.(\w+)", name)
        if match is None:
            raise CheckpointError(
                f"{origin}: {first_few([name])} is not a tensor of a numbered layer; expected "
                "Linear, BatchNorm and LayerNorm in a Sequential; name your own code with --model",
                code="not-an-mlp",
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
            f"{origin}: the layers begin at {layers[0].index}, and what comes before is not in the "
            "file; expected layer 0; name your own code with --model",
            code="not-an-mlp",
        )
    if any(layer.after_gap for layer in layers):
        return MLPSpec(tuple(layers), activation, gaps, why={"activation": why})
    return MLPSpec(tuple(layers), decided={"activation": "its projector has no activation"})


def _layer(
    index: int, shapes: dict[str, tuple[int, ...]], width: int, after_gap: bool, origin: str
) -> Layer:
    weight_norm = "weight_v" in shapes and "weight" not in shapes
    weight = shapes.get("weight_v" if weight_norm else "weight", ())
    kind: Kind
    if "running_wmat" in shapes:
        raise CheckpointError(
            f"{origin}: layer {index} is an IterNorm, which whitens and is not read; expected "
            "Linear, BatchNorm and LayerNorm; name your own code with --model",
            code="not-an-mlp",
        )
    if "running_mean" in shapes:
        kind, into, out = "batchnorm", *(shapes["running_mean"] or (0,))[:1] * 2
    elif len(weight) == 2:
        kind, (out, into) = "linear", weight
    elif len(weight) == 1:
        kind, into, out = "layernorm", *weight * 2
    else:
        raise CheckpointError(
            f"{origin}: layer {index} with {first_few(shapes)} is not a Linear, BatchNorm or "
            "LayerNorm; name your own code with --model",
            code="not-an-mlp",
        )
    if into != width:
        raise CheckpointError(
            f"{origin}: layer {index} takes {into} numbers, but {width} come before it; expected a "
            "chain that begins at the backbone's width; name your own code with --model",
            code="not-an-mlp",
        )
    has_weight, has_bias = "weight" in shapes, "bias" in shapes
    return Layer(index, kind, into, out, has_weight, has_bias, after_gap, weight_norm)


@dataclass(frozen=True)
class PredictorSpec(ModuleSpec):
    """Sizes of an I-JEPA predictor, whose number of heads and eps are the encoder's."""

    width: int  # of the encoder's tokens and of the output
    inner: int  # width of the predictor's tokens
    depth: int
    heads: int
    grid: int  # patches a side
    mlp: int  # width of the hidden layer
    qkv_bias: bool
    eps: float = PREDICTOR_EPS

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of input, tokens and output."""
        return self.width, self.inner, self.width

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """I-JEPA's name -> shape of every tensor."""
        inner = self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "mask_token": (1, 1, inner),
            "predictor_pos_embed": (1, self.grid**2, inner),
        }
        shapes |= linear("predictor_embed", inner, self.width) | layernorm("predictor_norm", inner)
        shapes |= linear("predictor_proj", self.width, inner)
        block = vit.block_shapes(inner, self.mlp, qkv_bias=self.qkv_bias)
        return shapes | repeated("predictor_blocks", self.depth, block)


def predictor_spec(
    shapes: Shapes, heads: int, origin: str, *, eps: float = PREDICTOR_EPS
) -> PredictorSpec:
    """The spec of the predictor with these shapes, by I-JEPA's names.

    heads: the encoder's number of heads. Raises CheckpointError if the shapes fit no predictor.
    """
    embed = shapes.get("predictor_embed.weight", ())
    positions = shapes.get("predictor_pos_embed", ())
    side = math.isqrt(positions[1]) if len(positions) == 3 else 0
    if len(embed) != 2 or not side or side * side != positions[1] or heads < 1 or embed[0] % heads:
        raise CheckpointError(
            f"{origin}: the predictor has predictor_embed.weight {list(embed) or 'missing'} and "
            f"predictor_pos_embed {list(positions) or 'missing'}; expected [width, encoder's "
            f"width] of a width that {heads} heads divide, and [1, patches, width] of a square "
            "grid; name your own code with --model",
            code="not-a-predictor",
        )
    return PredictorSpec(
        width=embed[1],
        inner=embed[0],
        depth=number_of_blocks(shapes, "predictor_blocks"),
        heads=heads,
        grid=side,
        mlp=vit.mlp_width(shapes, "predictor_blocks.0.mlp.fc1.weight", origin),
        qkv_bias="predictor_blocks.0.attn.qkv.bias" in shapes,
        eps=eps,
    )
