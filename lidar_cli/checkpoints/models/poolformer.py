"""PoolFormer, with its authors' names of tensors; see shapes/poolformer.py."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.shapes.poolformer import PoolFormerSpec


class Block(nn.Module):
    """Pooling and an MLP, each after a norm, with a shortcut."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Conv2d(width, hidden, 1), "fc2": nn.Conv2d(hidden, width, 1)}
        )
        self.layer_scale_1 = nn.Parameter(torch.empty(width))
        self.layer_scale_2 = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, h, w] -> the same shape."""
        normed = self.norm1(x)
        pooled = F.avg_pool2d(normed, 3, 1, 1, count_include_pad=False) - normed
        x = x + self.layer_scale_1.view(-1, 1, 1) * pooled
        inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        out: Tensor = x + self.layer_scale_2.view(-1, 1, 1) * inner
        return out


class PoolFormer(Backbone):
    """A PoolFormer without classifier."""

    def __init__(self, spec: PoolFormerSpec) -> None:
        super().__init__()
        self.width = spec.width
        stem = nn.Conv2d(spec.channels, spec.widths[0], spec.kernel, 4, 2)
        self.patch_embed = nn.ModuleDict({"proj": stem})
        stages = [
            nn.Sequential(*(Block(width, hidden) for _ in range(depth)))
            for width, hidden, depth in zip(spec.widths, spec.hidden, spec.depths, strict=True)
        ]
        self.network = nn.ModuleList([stages[0]])
        for (into, out), stage in zip(pairwise(spec.widths), stages[1:], strict=True):
            self.network.append(nn.ModuleDict({"proj": nn.Conv2d(into, out, 3, 2, 1)}))
            self.network.append(stage)
        self.norm = nn.GroupNorm(1, spec.width)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        x = self.patch_embed["proj"](images)
        for part in self.network:
            x = part["proj"](x) if isinstance(part, nn.ModuleDict) else part(x)
        pooled: Tensor = self.norm(x).mean(dim=(2, 3))
        return pooled
