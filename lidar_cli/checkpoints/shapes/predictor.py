"""I-JEPA's predictor: from the tokens of context patches to those of target patches.

    x = predictor_embed(z) + p[context]          [R, K_enc, Dp]    R = n_enc b rows
    m = mask_token + p[target]                   [R, K_pred, Dp]   for each target block
    y = norm(blocks([x; m]))[last K_pred]        predictor_proj(y) [n_pred R, K_pred, D]

p are predictor_pos_embed's positions. Several masks lie along the batch, mask by mask: row
(e b + i) of z is image i under context mask e; row ((p n_enc + e) b + i) of the output is its
target block p. Heads are as many as the encoder's, at another width; eps is 1e-6.

Masks are indices [b, K] of patches, row by row of the grid. Source: Assran et al. 2023 (I-JEPA).
This file needs no torch; the module is in predictor_module.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.errors import CheckpointError

ANCHOR = "predictor_embed.weight"
EPS = 1e-6


@dataclass(frozen=True)
class PredictorSpec:
    """Sizes of an I-JEPA predictor, whose heads and eps are the encoder's."""

    width: int  # of the encoder's tokens, and of the output
    inner: int
    depth: int
    heads: int
    grid: int  # patches a side
    mlp: int  # width of the hidden layer
    qkv_bias: bool
    eps: float = EPS

    @property
    def arch(self) -> str:
        """Such as 'I-JEPA predictor (width 384, depth 12)'."""
        return f"I-JEPA predictor (width {self.inner}, depth {self.depth})"

    @property
    def widths(self) -> tuple[int, ...]:
        """From input to output."""
        return self.width, self.inner, self.width

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all its tensors."""
        inner = self.inner
        found: dict[str, tuple[int, ...]] = {
            "predictor_embed.weight": (inner, self.width),
            "predictor_embed.bias": (inner,),
            "mask_token": (1, 1, inner),
            "predictor_pos_embed": (1, self.grid**2, inner),
            "predictor_norm.weight": (inner,),
            "predictor_norm.bias": (inner,),
            "predictor_proj.weight": (self.width, inner),
            "predictor_proj.bias": (self.width,),
        }
        block = vit.block_shapes(inner, self.mlp, qkv_bias=self.qkv_bias)
        for index in range(self.depth):
            found |= {f"predictor_blocks.{index}.{name}": shape for name, shape in block.items()}
        return found


def spec(
    shapes: Mapping[str, tuple[int, ...]], heads: int, origin: str, *, eps: float = EPS
) -> PredictorSpec:
    """The predictor that tensors of these shapes, by I-JEPA's names, belong to.

    heads: the encoder's. Raises CheckpointError if the shapes fit none.
    """
    embed = shapes.get(ANCHOR, ())
    positions = shapes.get("predictor_pos_embed", ())
    side = math.isqrt(positions[1]) if len(positions) == 3 else 0
    if len(embed) != 2 or not side or side * side != positions[1] or heads < 1 or embed[0] % heads:
        raise CheckpointError(
            f"{origin}: the predictor has {ANCHOR} {list(embed) or 'missing'} and "
            f"predictor_pos_embed {list(positions) or 'missing'}; expected [width, encoder's "
            f"width] of a width that {heads} heads divide, and [1, patches, width] of a square "
            "grid; name your own code with --model"
        )
    return PredictorSpec(
        width=embed[1],
        inner=embed[0],
        depth=vit.depth(shapes, "predictor_blocks"),
        heads=heads,
        grid=side,
        mlp=vit.hidden(shapes, "predictor_blocks.0.mlp.fc1.weight", origin),
        qkv_bias="predictor_blocks.0.attn.qkv.bias" in shapes,
        eps=eps,
    )
