"""The Swin Transformer, written out over all pairs of patches of a stage; by Microsoft's names."""

from __future__ import annotations

import literal
import torch
from layouts import Weights
from literal import normed
from torch import Tensor
from torch.nn import functional as F

PATCH, WIDTH, DEPTHS, HEADS, WINDOW = 2, 12, (2, 2), (2, 3), 4


def swin_weights(seed: int = 0) -> Weights:
    """Of a model for images of 16 pixels, whose last stage has one window."""
    w = Weights(seed)
    w.normal("patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    w.uniform("patch_embed.proj.bias", WIDTH)
    w.ln("patch_embed.norm", WIDTH)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width = WIDTH * 2**stage
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            w.vit_block(name, width)
            rows = (2 * WINDOW - 1) ** 2
            w.normal(f"{name}.attn.relative_position_bias_table", rows, heads, fan=1)
        if stage < len(DEPTHS) - 1:
            w.ln(f"layers.{stage}.downsample.norm", 4 * width)
            w.linear(f"layers.{stage}.downsample.reduction", 4 * width, 2 * width, bias=False)
    w.ln("norm", width)
    return w


def swin_embedding(w: Weights, pixels: Tensor, eps: float = 1e-5) -> Tensor:
    """The mean of the last stage's patches; eps: of all norms but those of patches and merging."""
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = normed(x.permute(0, 2, 3, 1), w, "patch_embed.norm", 1e-5)
    for stage, depth in enumerate(DEPTHS):
        for i in range(depth):
            x = _block(w, f"layers.{stage}.blocks.{i}", x, HEADS[stage], i % 2 == 1, eps)
        name = f"layers.{stage}.downsample"
        if f"{name}.norm.weight" in w:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            rows, columns = x[:, 0::2], x[:, 1::2]
            x = torch.cat(
                [rows[:, :, 0::2], columns[:, :, 0::2], rows[:, :, 1::2], columns[:, :, 1::2]], -1
            )
            x = w.lin(f"{name}.reduction", normed(x, w, f"{name}.norm", 1e-5))
    return normed(x, w, "norm", eps).mean(dim=(1, 2))


def _block(w: Weights, name: str, x: Tensor, heads: int, odd: bool, eps: float) -> Tensor:
    b, side, _, width = x.shape
    padded = side + -side % WINDOW
    y = F.pad(normed(x, w, f"{name}.norm1", eps), (0, 0, 0, padded - side, 0, padded - side))
    qkv = w.lin(f"{name}.attn.qkv", y.reshape(b, padded**2, width)).chunk(3, dim=-1)
    table = w[f"{name}.attn.relative_position_bias_table"]
    bias = _bias(table, padded, WINDOW // 2 if odd and side > WINDOW else 0)
    y = w.lin(f"{name}.attn.proj", literal.attend(*qkv, heads, bias))
    x = x + y.reshape(b, padded, padded, width)[:, :side, :side]
    return x + w.run_mlp(name, normed(x, w, f"{name}.norm2", eps))


def _bias(table: Tensor, side: int, shift: int) -> Tensor:
    """[heads, side^2, side^2], minus infinity where two patches share no window."""
    bias = torch.full((table.shape[1], side**2, side**2), -torch.inf)
    places = [(row, column) for row in range(side) for column in range(side)]
    for i, first in enumerate(places):
        for j, second in enumerate(places):
            # Where a shift wraps round the edge, the patches there have a window of their own.
            windows = [
                [((at - shift) % side // WINDOW, at < shift) for at in place]
                for place in (first, second)
            ]
            if windows[0] == windows[1]:
                down, right = first[0] - second[0], first[1] - second[1]
                bias[:, i, j] = table[(down + WINDOW - 1) * (2 * WINDOW - 1) + right + WINDOW - 1]
    return bias
