"""The spec of data2vec 2.0's Vision Transformer, by fairseq's names.

    x = [extra tokens; patches + positions]
    x = norm(x), then the context blocks, then the blocks
    a block:  x = norm1(x + attn(x));  x = norm2(x + mlp(x))

Norms come after the residual sums and there is none at the end, which timm's ViT does not support.
Positions are fixed and stored. The extra tokens, usually one, have no position. In
training the student's blocks see only the visible patches, and a convolutional decoder, ignored
here, regresses the teacher's features of the other patches. The embedding is the mean of the patch
tokens. This file needs no torch; the module is in models/data2vec2.py.

Source: Baevski et al. 2022 (data2vec 2.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import USUAL, Shapes, layernorm, number_of_blocks, repeated
from lidar_cli.errors import CheckpointError

ANCHOR = "modality_encoders.IMAGE.local_encoder.proj.weight"
UNUSED = ("modality_encoders.IMAGE.decoder.",)

# fairseq's names -> names in models/data2vec2.py.
FROM_FAIRSEQ = (
    (r"modality_encoders\.IMAGE\.", ""),
    (r"local_encoder\.", "patch_embed."),
    (r"fixed_positional_encoder\.positions$", "pos_embed"),
    (r"context_encoder\.blocks\.", "context."),
    (r"context_encoder\.norm\.", "norm."),
)


@dataclass(frozen=True, kw_only=True)
class Data2Vec2Spec(vit.TransformerSpec):
    """Sizes of a data2vec 2.0 encoder; `depth` counts the blocks after the context blocks."""

    context: int  # blocks of the image encoder
    extra: int  # tokens before the patches

    @property
    def arch(self) -> str:
        """Such as 'data2vec2_base_patch16'."""
        return self.named("data2vec2", self.context + self.depth, [])

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """The rule of its training."""
        return ("inverse-blocks",)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the module."""
        width, patch = self.width, self.patch
        shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, self.grid**2, width)}
        if self.extra:
            shapes["extra_tokens"] = (1, self.extra, width)
        shapes["patch_embed.proj.weight"] = (width, self.channels, patch, patch)
        shapes["patch_embed.proj.bias"] = (width,)
        block = vit.block_shapes(width, self.mlp, qkv_bias=True)
        shapes |= layernorm("norm", width) | repeated("context", self.context, block)
        return shapes | repeated("blocks", self.depth, block)


def spec(shapes: Shapes, origin: str) -> Data2Vec2Spec:
    """The spec of the encoder with these shapes, renamed by FROM_FAIRSEQ.

    Raises CheckpointError if the shapes fit no such encoder.
    """
    width, patch = vit.patch_embedding(shapes, origin)
    positions = shapes.get("pos_embed", ())
    side = math.isqrt(positions[1]) if len(positions) == 3 else 0
    if not side or side * side != positions[1]:
        raise CheckpointError(
            f"{origin}: the positions of the data2vec 2.0 encoder are "
            f"{list(positions) or 'missing'}; expected [1, patches, width] of a square grid; "
            "name your own code with --model",
            code="not-a-data2vec2",
        )
    extra = shapes.get("extra_tokens", ())
    count, why, decided = vit.attention_heads(width, 0, "", None)
    return Data2Vec2Spec(
        width=width,
        context=number_of_blocks(shapes, "context"),
        depth=number_of_blocks(shapes),
        heads=count,
        patch=patch,
        channels=vit.input_channels(shapes),
        grid=side,
        mlp=vit.mlp_width(shapes, "blocks.0.mlp.fc1.weight", origin),
        extra=extra[1] if len(extra) == 3 else 0,
        why=why | {"eps": USUAL},
        decided=decided,
    )
