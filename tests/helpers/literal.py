"""Transformers written out with plain tensor operations, to hold the package's modules against.

Weights are dicts by the names of the layout that a test is about; nothing here knows a module.
Shapes: b images, n tokens, d width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a size that keeps activations near 1 and every one of them visible."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = torch.empty(*shape).uniform_(0.2, 0.8, generator=generator)
        elif len(shape) == 3 or name.endswith(("table", "mask_token")):
            weights[name] = torch.randn(*shape, generator=generator)
        else:
            fan_in = math.prod(shape[1:])
            weights[name] = torch.randn(*shape, generator=generator) * fan_in**-0.5
    return weights


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-2, "constant embeddings would hide every error"
    error = float((found - expected).abs().max())
    assert error < tolerance * max(1.0, float(expected.abs().max())), error


def bits(tensor: Tensor) -> bytes:
    """For exact comparison."""
    return bytes(tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(
        torch.uint8).numpy()) if tensor.numel() else b""  # fmt: skip


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps), over the last axis; then scaled and shifted."""
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    x = torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"])
    bias = weights.get(f"{name}.bias")
    return x if bias is None else x + bias


def normed(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    return norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def patches(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each patch's pixels times the filter, row by row of the grid: [b, n, d]."""
    patch = weight.shape[-1]
    rows = []
    for top in range(0, pixels.shape[2], patch):
        for left in range(0, pixels.shape[3], patch):
            piece = pixels[:, :, top : top + patch, left : left + patch]
            rows.append(torch.einsum("bcij,dcij->bd", piece, weight) + bias)
    return torch.stack(rows, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d / h) + bias) v, head by head; bias [h, n, n]."""
    width = q.shape[-1] // heads
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bid,bjd->bij", q[..., part], k[..., part]) / math.sqrt(width)
        if bias is not None:
            scores = scores + bias[head]
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out.append(torch.einsum("bij,bjd->bid", shares, v[..., part]))
    return torch.cat(out, dim=-1)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def fused_attention(x: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    """Self-attention with one projection for q, k and v, in this order: `name`.qkv, `name`.proj."""
    q, k, v = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)
    return linear(attend(q, k, v, heads), weights, f"{name}.proj")


def mlp(x: Tensor, weights: Weights, name: str, first: str = "fc1", second: str = "fc2") -> Tensor:
    return linear(gelu(linear(x, weights, f"{name}.{first}")), weights, f"{name}.{second}")


def swiglu(x: Tensor, weights: Weights, name: str, first: str, second: str) -> Tensor:
    gate, value = linear(x, weights, f"{name}.{first}").chunk(2, dim=-1)
    return linear(silu(gate) * value, weights, f"{name}.{second}")


def block(x: Tensor, weights: Weights, name: str, heads: int, eps: float = 1e-6) -> Tensor:
    """A pre-norm block by timm's names."""
    x = x + fused_attention(
        normed(x, weights, f"{name}.norm1", eps), weights, f"{name}.attn", heads
    )
    return x + mlp(normed(x, weights, f"{name}.norm2", eps), weights, f"{name}.mlp")


def block_shapes(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Of a block by timm's names."""
    return {
        f"{name}.norm1.weight": (width,),
        f"{name}.norm1.bias": (width,),
        f"{name}.attn.qkv.weight": (3 * width, width),
        f"{name}.attn.qkv.bias": (3 * width,),
        f"{name}.attn.proj.weight": (width, width),
        f"{name}.attn.proj.bias": (width,),
        f"{name}.norm2.weight": (width,),
        f"{name}.norm2.bias": (width,),
        f"{name}.mlp.fc1.weight": (hidden, width),
        f"{name}.mlp.fc1.bias": (hidden,),
        f"{name}.mlp.fc2.weight": (width, hidden),
        f"{name}.mlp.fc2.bias": (width,),
    }


def cubic(grid: Tensor, new: int, factor: float) -> Tensor:
    """Bicubic resampling [h, w, d] -> [new, new, d], kernel a = -0.75, borders repeated.

    factor: new pixels an old one; the centre of pixel i lies at (i + 0.5) / factor - 0.5.
    """
    a, old = -0.75, grid.shape[0]

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = torch.zeros(new, old)
    for i in range(new):
        centre = (i + 0.5) / factor - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), old - 1)] += kernel(centre - j)
    return torch.einsum("ih,jw,hwd->ijd", matrix, matrix, grid)
