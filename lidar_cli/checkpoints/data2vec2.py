"""data2vec 2.0's Vision Transformer, by fairseq's names, from its shapes.

    x = [extra tokens; patches + positions]
    x = norm(x), then the context blocks, then the blocks
    a block:  x = norm1(x + attn(x));  x = norm2(x + mlp(x))

Norms stand behind the residuals and none at the end, which timm's ViT cannot say. Positions are
fixed ones, stored. The extra tokens, usually one, have none. In training the student's blocks see
only kept patches, and a convolutional decoder, noise here, regresses the teacher's features of the
rest. The embedding is the mean of the patch tokens. This file needs no torch; the module is in
data2vec2_module.py.

Source: Baevski et al. 2022 (data2vec 2.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lidar_cli.checkpoints import vit
from lidar_cli.checkpoints.spec import title
from lidar_cli.errors import CheckpointError

ANCHOR = "modality_encoders.IMAGE.local_encoder.proj.weight"
NOISE = ("modality_encoders.IMAGE.decoder.",)
EPS = 1e-6

# fairseq's names -> those of the module below.
FROM_FAIRSEQ = (
    (r"^modality_encoders\.IMAGE\.", ""),
    (r"^local_encoder\.", "patch_embed."),
    (r"^fixed_positional_encoder\.positions$", "pos_embed"),
    (r"^context_encoder\.blocks\.", "context."),
    (r"^context_encoder\.norm\.", "norm."),
)


def from_fairseq(name: str) -> str:
    """The name here of a tensor of fairseq's data2vec 2.0 for images."""
    for pattern, replacement in FROM_FAIRSEQ:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Data2Vec2Spec:
    """Sizes of a data2vec 2.0 encoder."""

    width: int
    context: int  # blocks of the image encoder
    depth: int  # blocks after them
    heads: int
    heads_known: bool  # by the caller, not by the width
    patch: int
    grid: int  # patches a side
    mlp: int  # width of the hidden layer
    extra: int  # tokens before the patches
    eps: float = EPS

    @property
    def arch(self) -> str:
        """Such as 'data2vec2_base_patch16'."""
        depth = self.context + self.depth
        notes = [f"depth {depth}"] if depth != vit.DEPTHS.get(self.width) else []
        name = vit.NAMES.get(self.width, str(self.width))
        return title(f"data2vec2_{name}_patch{self.patch}", notes)

    @property
    def image_size(self) -> int:
        """Of the positions, in pixels a side."""
        return self.grid * self.patch

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The number of heads, where it is the usual one for the width."""
        usual = f"{self.heads} attention heads, as usual for width {self.width}"
        return () if self.heads_known else (usual,)

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """Those of its training."""
        return ("inverse-blocks",)


def spec(
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    *,
    heads: int | None = None,
    eps: float = EPS,
) -> Data2Vec2Spec:
    """The encoder that tensors of these shapes, named by `from_fairseq`, belong to.

    heads, eps: where a configuration tells them. Raises CheckpointError if the shapes fit none.
    """
    width, patch = vit.patches(shapes, origin)
    positions = shapes.get("pos_embed", ())
    side = math.isqrt(positions[1]) if len(positions) == 3 else 0
    if not side or side * side != positions[1]:
        raise CheckpointError(
            f"{origin}: the positions of the data2vec 2.0 encoder are "
            f"{list(positions) or 'missing'}; expected [1, patches, width] of a square grid; "
            "name your own code with --model"
        )
    extra = shapes.get("extra_tokens", ())
    return Data2Vec2Spec(
        width=width,
        context=vit.depth(shapes, "context"),
        depth=vit.depth(shapes),
        heads=heads or vit.usual_heads(width, origin),
        heads_known=heads is not None,
        patch=patch,
        grid=side,
        mlp=vit.hidden(shapes, "blocks.0.mlp.fc1.weight", origin),
        extra=extra[1] if len(extra) == 3 else 0,
        eps=eps,
    )
