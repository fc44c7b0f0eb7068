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

from lidar_cli.checkpoints.assume import USUAL, Open
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import title
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
class Data2Vec2Spec(Open):
    """Sizes of a data2vec 2.0 encoder."""

    width: int
    context: int  # blocks of the image encoder
    depth: int  # blocks after them
    heads: int
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

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """Those of its training."""
        return ("inverse-blocks",)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the module, by its own names."""
        width, patch = self.width, self.patch
        found: dict[str, tuple[int, ...]] = {"pos_embed": (1, self.grid**2, width)}
        if self.extra:
            found["extra_tokens"] = (1, self.extra, width)
        found["patch_embed.proj.weight"] = (width, 3, patch, patch)
        found["patch_embed.proj.bias"] = (width,)
        found |= {"norm.weight": (width,), "norm.bias": (width,)}
        block = vit.block_shapes(width, self.mlp, qkv_bias=True)
        for blocks, depth in (("context", self.context), ("blocks", self.depth)):
            for index in range(depth):
                found |= {f"{blocks}.{index}.{name}": shape for name, shape in block.items()}
        return found


def spec(shapes: Mapping[str, tuple[int, ...]], origin: str) -> Data2Vec2Spec:
    """The encoder that tensors of these shapes, named by `from_fairseq`, belong to.

    Raises CheckpointError if the shapes fit none.
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
    count, why, decided = vit.heads_of(width, 0, "", None)
    return Data2Vec2Spec(
        width=width,
        context=vit.depth(shapes, "context"),
        depth=vit.depth(shapes),
        heads=count,
        patch=patch,
        grid=side,
        mlp=vit.hidden(shapes, "blocks.0.mlp.fc1.weight", origin),
        extra=extra[1] if len(extra) == 3 else 0,
        why=why | {"eps": USUAL},
        decided=decided,
    )
