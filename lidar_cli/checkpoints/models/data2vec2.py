"""The encoder of data2vec 2.0, see shapes/data2vec2.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import (
    MaskedBackbone,
    OriginalTensors,
    resample_positions,
    select_tokens,
)
from lidar_cli.checkpoints.shapes.data2vec2 import Data2Vec2Spec
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.views.masks import Mask


class PostNormBlock(nn.Module):
    """timm's attention and MLP, each with a LayerNorm after the residual sum."""

    def __init__(self, spec: Data2Vec2Spec) -> None:
        super().__init__()
        from timm.layers.mlp import Mlp
        from timm.models import vision_transformer

        attention = vars(vision_transformer)["Attention"]  # timm has moved the class
        self.attn = attention(spec.width, spec.heads, qkv_bias=True)
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.mlp = Mlp(spec.width, spec.mlp)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[b, tokens, width] -> [b, tokens, width]."""
        x = self.norm1(x + self.attn(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class PatchEmbedding(nn.Module):
    """A linear map of each patch."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """[b, channels, S, S] -> [b, N, width], row by row of the grid."""
        x: Tensor = self.proj(images)
        return x.flatten(2).transpose(1, 2)


class Data2Vec2(MaskedBackbone):
    """data2vec 2.0's encoder: patches, positions, extra tokens, post-norm blocks."""

    extra_tokens: Tensor | None

    def __init__(self, spec: Data2Vec2Spec) -> None:
        super().__init__()
        self.width = spec.width
        self.patch = spec.patch
        self.grid = spec.grid
        self.patch_embed = PatchEmbedding(spec.channels, spec.width, spec.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, spec.grid**2, spec.width))
        tokens = nn.Parameter(torch.empty(1, spec.extra, spec.width)) if spec.extra else None
        self.register_parameter("extra_tokens", tokens)
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.context = nn.Sequential(*(PostNormBlock(spec) for _ in range(spec.context)))
        self.blocks = nn.Sequential(*(PostNormBlock(spec) for _ in range(spec.depth)))
        self.originals = OriginalTensors()

    @property
    def token_pooling(self) -> tuple[bool, int]:
        """As of `Backbone`."""
        return False, 0 if self.extra_tokens is None else self.extra_tokens.shape[1]

    def set_image_size(self, size: int) -> None:
        """Resample the file's positions for images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = grid_of(size, self.patch)
        if grid == self.grid:
            return

        def resampled(name: str, positions: Tensor, old: int) -> Tensor:
            return resample_positions(positions, old, grid, 0, "plain")

        self.originals.replace(self, ("pos_embed",), self.grid, resampled)
        self.grid = grid

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens [b, extra + K, width] after the last block, extra tokens first.

        keep: indices [b, K] of the patches that enter the blocks, None for all.
        """
        x = self.patch_embed(images) + self.pos_embed
        if keep is not None:
            x = select_tokens(x, keep)
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1)
        tokens: Tensor = self.blocks(self.context(self.norm(x)))
        return tokens

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, K, width] of the visible patches, without the extra tokens."""
        _, extra = self.token_pooling
        return self.tokens(images, None if mask is None else mask.seen)[:, extra:]

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S], S as set by `set_image_size`."""
        return self.patch_tokens(images).mean(dim=1)
