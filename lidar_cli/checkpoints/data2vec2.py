"""data2vec 2.0's Vision Transformer, by fairseq's names, from its shapes.

    x = [extra tokens; patches + positions]
    x = norm(x), then the context blocks, then the blocks
    a block:  x = norm1(x + attn(x));  x = norm2(x + mlp(x))

Norms stand behind the residuals and none at the end, which timm's ViT cannot say. Positions are
fixed ones, stored. The extra tokens, usually one, have none. In training the student's blocks see
only kept patches, and a convolutional decoder, noise here, regresses the teacher's features of the
rest. The embedding is the mean of the patch tokens.

Source: Baevski et al. 2022 (data2vec 2.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints import vit
from lidar_cli.checkpoints.backbone import Backbone, title
from lidar_cli.checkpoints.positions import resample
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

    def build(self) -> Data2Vec2:
        """The module, without weights. Imports timm."""
        with torch.device("meta"):
            return Data2Vec2(self)


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


class PostNormBlock(nn.Module):
    """Attention and MLP of timm, each followed by a norm of the sum."""

    def __init__(self, spec: Data2Vec2Spec) -> None:
        super().__init__()
        from timm.layers.mlp import Mlp
        from timm.models import vision_transformer

        attention = vars(vision_transformer)["Attention"]  # whose home in timm has moved
        self.attn = attention(spec.width, spec.heads, qkv_bias=True)
        self.norm1 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.mlp = Mlp(spec.width, spec.mlp)
        self.norm2 = nn.LayerNorm(spec.width, eps=spec.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[b, tokens, width] -> the same."""
        x = self.norm1(x + self.attn(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Patches(nn.Module):
    """A linear map of each patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """[b, 3, S, S] -> [b, N, width], row by row of the grid."""
        x: Tensor = self.proj(images)
        return x.flatten(2).transpose(1, 2)


class Data2Vec2(Backbone):
    """Patches, positions, extra tokens, and post-norm blocks."""

    extra_tokens: Tensor | None

    def __init__(self, spec: Data2Vec2Spec) -> None:
        super().__init__()
        self.width = spec.width
        self.patch = spec.patch
        self.grid = spec.grid
        self.patch_embed = Patches(spec.width, spec.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, spec.grid**2, spec.width))
        tokens = nn.Parameter(torch.empty(1, spec.extra, spec.width)) if spec.extra else None
        self.register_parameter("extra_tokens", tokens)
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.context = nn.Sequential(*(PostNormBlock(spec) for _ in range(spec.context)))
        self.blocks = nn.Sequential(*(PostNormBlock(spec) for _ in range(spec.depth)))
        self.trained: tuple[int, Tensor] | None = None  # grid and positions as in the file

    def set_image_size(self, size: int) -> None:
        """Resample the positions of the file to images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = vit.grid_of(size, self.patch)
        if grid == self.grid:
            return
        if self.trained is None:
            self.trained = (self.grid, self.pos_embed.detach().cpu().clone())
        old, positions = self.trained  # always from these: resampling twice would blur
        positions = resample(positions, old, grid, 0, "plain").to(self.pos_embed.device)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.grid = grid

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens [b, extra + K, width] after the last block, extra tokens first.

        keep: indices [b, K] of the patches that enter the blocks, all if None.
        """
        x = self.patch_embed(images) + self.pos_embed
        if keep is not None:
            x = vit.take(x, keep)
        if self.extra_tokens is not None:
            x = torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1)
        tokens: Tensor = self.blocks(self.context(self.norm(x)))
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S], S as last set."""
        extra = 0 if self.extra_tokens is None else self.extra_tokens.shape[1]
        return self.tokens(images)[:, extra:].mean(dim=1)
