"""BEiT's forward pass, written out."""

from __future__ import annotations

import math

import literal
import torch
from literal import linear, normed
from timm.models.beit import Beit as TimmBeit
from torch import Tensor

WIDTH, HEADS, PATCH, GRID = 24, 3, 4, 4


def beit_shapes(depth: int = 3, width: int = WIDTH, **parts: bool) -> dict[str, tuple[int, ...]]:
    """Of a BEiT by its own names; parts: shared (default), tables of blocks, positions."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    table = ((2 * GRID - 1) ** 2 + 3, HEADS)
    if parts.get("shared", True):
        shapes["rel_pos_bias.relative_position_bias_table"] = table
    if parts.get("positions"):
        shapes["pos_embed"] = (1, 1 + GRID**2, width)
    for i in range(depth):
        name = f"blocks.{i}"
        shapes |= literal.block_shapes(name, width, 4 * width)
        del shapes[f"{name}.attn.qkv.bias"]
        for vector in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"):
            shapes[f"{name}.{vector}"] = (width,)
        if parts.get("tables"):
            shapes[f"{name}.attn.relative_position_bias_table"] = table
    return shapes


def bias_of(table: Tensor, grid: int = GRID) -> Tensor:
    """Pair by pair: the row of the displacement, or one of the three of the class token."""
    n = 1 + grid * grid
    bias = torch.empty(table.shape[1], n, n)
    for i in range(n):
        for j in range(n):
            if i == 0 and j == 0:
                row = -1
            elif j == 0:
                row = -2
            elif i == 0:
                row = -3
            else:
                (top, left), (other, side) = divmod(i - 1, grid), divmod(j - 1, grid)
                row = (top - other + grid - 1) * (2 * grid - 1) + left - side + grid - 1
            bias[:, i, j] = table[row]
    return bias


def beit_blocks(
    weights: dict[str, Tensor],
    pixels: Tensor,
    masked: Tensor | None = None,
    eps: float = 1e-6,
    heads: int = HEADS,
) -> list[Tensor]:
    """Tokens after each block."""
    x = literal.patches(
        pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    )
    if masked is not None:
        x = x.clone()
        for image in range(len(x)):
            for patch in range(x.shape[1]):
                if masked[image, patch]:
                    x[image, patch] = weights["mask_token"][0, 0]
    x = torch.cat([weights["cls_token"].expand(len(x), 1, -1), x], dim=1)
    if "pos_embed" in weights:
        x = x + weights["pos_embed"]
    grid = math.isqrt(x.shape[1] - 1)
    outputs = []
    for i in range(sum(name.endswith(".gamma_1") for name in weights)):
        name = f"blocks.{i}"
        bias = torch.zeros(heads, x.shape[1], x.shape[1])
        for table in ("rel_pos_bias", f"{name}.attn"):
            if f"{table}.relative_position_bias_table" in weights:
                bias = bias + bias_of(weights[f"{table}.relative_position_bias_table"], grid)
        y = normed(x, weights, f"{name}.norm1", eps)
        q, k, v = linear(y, weights, f"{name}.attn.qkv").chunk(3, dim=-1)
        q, v = q + weights[f"{name}.attn.q_bias"], v + weights[f"{name}.attn.v_bias"]
        y = linear(literal.attend(q, k, v, heads, bias), weights, f"{name}.attn.proj")
        x = x + weights[f"{name}.gamma_1"] * y
        y = literal.mlp(normed(x, weights, f"{name}.norm2", eps), weights, f"{name}.mlp")
        x = x + weights[f"{name}.gamma_2"] * y
        outputs.append(x)
    return outputs


def index() -> Tensor:
    """The buffer that files of BEiT hold and that follows from the grid."""
    return TimmBeit(
        img_size=16,
        patch_size=PATCH,
        embed_dim=6,
        depth=1,
        num_heads=1,
        use_shared_rel_pos_bias=True,
    ).rel_pos_bias.relative_position_index.clone()


def fairseq_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as fairseq names them."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("patch_embed.proj", "patch_embed.conv").replace("cls_token", "cls_emb")
        name = name.replace("mask_token", "mask_emb").replace("lm_head", "final_proj")
        name = name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2")
        if name.startswith(("blocks", "norm", "rel_pos_bias")):
            name = f"encoder.{name}"
        renamed[name] = tensor
    return renamed
