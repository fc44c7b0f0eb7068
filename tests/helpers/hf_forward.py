"""Hugging Face's ViT forward passes, written out."""

from __future__ import annotations

import literal
import torch
from beit_forward import bias_of
from literal import linear, normed
from torch import Tensor

WIDTH, HEADS, PATCH, GRID, DEPTH = 192, 3, 4, 4, 2  # a width whose heads are known


def hf_shapes(kind: str, heads: int = HEADS) -> dict[str, tuple[int, ...]]:
    """Of a model without a prefix."""
    dinov2, data2vec = kind.startswith("dinov2"), kind == "data2vec"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
    }
    if kind != "ijepa":
        shapes["embeddings.cls_token"] = (1, 1, WIDTH)
    if dinov2:
        shapes["embeddings.mask_token"] = (1, WIDTH)
    if kind == "dinov2 registers":
        shapes["embeddings.register_tokens"] = (1, 4, WIDTH)
    if data2vec:
        shapes["embeddings.mask_token"] = (1, 1, WIDTH)
        table = "encoder.relative_position_bias.relative_position_bias_table"
        shapes[table] = ((2 * GRID - 1) ** 2 + 3, heads)
    else:
        prefix = 0 if kind == "ijepa" else 1
        shapes["embeddings.position_embeddings"] = (1, GRID**2 + prefix, WIDTH)
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        linears = {
            "attention.attention.query": (WIDTH, WIDTH),
            "attention.attention.key": (WIDTH, WIDTH),
            "attention.attention.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
        }
        if kind == "dinov2 swiglu":
            linears |= {"mlp.weights_in": (160, WIDTH), "mlp.weights_out": (WIDTH, 80)}
        elif dinov2:
            linears |= {"mlp.fc1": (96, WIDTH), "mlp.fc2": (WIDTH, 96)}
        else:
            linears |= {"intermediate.dense": (96, WIDTH), "output.dense": (WIDTH, 96)}
        for name, shape in linears.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
        for name in norms:
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
        if dinov2:
            for name in ("layer_scale1", "layer_scale2"):
                shapes[f"{layer}.{name}.lambda1"] = (WIDTH,)
        if data2vec:
            shapes |= {f"{layer}.lambda_1": (WIDTH,), f"{layer}.lambda_2": (WIDTH,)}
            del shapes[f"{layer}.attention.attention.key.bias"]
    last = "pooler.layernorm" if data2vec else "layernorm"
    return shapes | {f"{last}.weight": (WIDTH,), f"{last}.bias": (WIDTH,)}


def hf_tokens(
    kind: str, weights: dict[str, Tensor], pixels: Tensor, eps: float, heads: int = HEADS
) -> Tensor:
    """Tokens after the blocks, before the last norm."""
    dinov2, data2vec = kind.startswith("dinov2"), kind == "data2vec"
    x = literal.patches(
        pixels,
        weights["embeddings.patch_embeddings.projection.weight"],
        weights["embeddings.patch_embeddings.projection.bias"],
    )
    if kind != "ijepa":
        x = torch.cat([weights["embeddings.cls_token"].expand(len(x), 1, -1), x], dim=1)
    if not data2vec:
        x = x + weights["embeddings.position_embeddings"]
    if kind == "dinov2 registers":
        registers = weights["embeddings.register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    bias = None
    if data2vec:
        bias = bias_of(weights["encoder.relative_position_bias.relative_position_bias_table"])
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        first, second = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
        y = normed(x, weights, f"{layer}.{first}", eps)
        q, k, v = (
            linear(y, weights, f"{layer}.attention.attention.{name}")
            for name in ("query", "key", "value")
        )
        y = literal.attend(q, k, v, heads, bias)
        y = linear(y, weights, f"{layer}.attention.output.dense")
        for name in ("layer_scale1.lambda1", "lambda_1"):
            y = y * weights.get(f"{layer}.{name}", torch.ones(()))
        x = x + y
        y = normed(x, weights, f"{layer}.{second}", eps)
        if kind == "dinov2 swiglu":
            y = literal.swiglu(y, weights, f"{layer}.mlp", "weights_in", "weights_out")
        elif dinov2:
            y = literal.mlp(y, weights, f"{layer}.mlp")
        else:
            y = literal.mlp(y, weights, layer, "intermediate.dense", "output.dense")
        for name in ("layer_scale2.lambda1", "lambda_2"):
            y = y * weights.get(f"{layer}.{name}", torch.ones(()))
        x = x + y
    return x
