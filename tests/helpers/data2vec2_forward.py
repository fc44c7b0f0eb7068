"""data2vec 2.0's forward pass, written out."""

from __future__ import annotations

import literal
import torch
from literal import normed, random_weights
from torch import Tensor

PATCH, GRID = 4, 4


IMAGE = "modality_encoders.IMAGE"


def d2v2_weights(
    width: int = 24, context: int = 2, extra: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{IMAGE}.local_encoder.proj.weight": (width, 3, PATCH, PATCH),
        f"{IMAGE}.local_encoder.proj.bias": (width,),
        f"{IMAGE}.fixed_positional_encoder.positions": (1, GRID**2, width),
        f"{IMAGE}.context_encoder.norm.weight": (width,),
        f"{IMAGE}.context_encoder.norm.bias": (width,),
    }
    if extra:
        shapes[f"{IMAGE}.extra_tokens"] = (1, extra, width)
    for i in range(context):
        shapes |= literal.block_shapes(f"{IMAGE}.context_encoder.blocks.{i}", width, 4 * width)
    for i in range(3):
        shapes |= literal.block_shapes(f"blocks.{i}", width, 4 * width)
    return random_weights(shapes, seed)


def d2v2_tokens(
    weights: dict[str, Tensor], pixels: Tensor, heads: int, keep: Tensor | None = None
) -> Tensor:
    """Extra tokens and patches after the last block."""
    x = literal.patches(
        pixels,
        weights[f"{IMAGE}.local_encoder.proj.weight"],
        weights[f"{IMAGE}.local_encoder.proj.bias"],
    )
    x = x + weights[f"{IMAGE}.fixed_positional_encoder.positions"]
    if keep is not None:
        x = torch.stack([tokens[indices] for tokens, indices in zip(x, keep, strict=True)])
    if f"{IMAGE}.extra_tokens" in weights:
        x = torch.cat([weights[f"{IMAGE}.extra_tokens"].expand(len(x), -1, -1), x], dim=1)
    x = normed(x, weights, f"{IMAGE}.context_encoder.norm", 1e-6)
    blocks = [name.removesuffix(".norm1.weight") for name in weights if "norm1.weight" in name]
    for name in sorted(blocks, key=lambda name: not name.startswith(IMAGE)):
        y = x + literal.fused_attention(x, weights, f"{name}.attn", heads)
        x = normed(y, weights, f"{name}.norm1", 1e-6)
        x = normed(x + literal.mlp(x, weights, f"{name}.mlp"), weights, f"{name}.norm2", 1e-6)
    return x
