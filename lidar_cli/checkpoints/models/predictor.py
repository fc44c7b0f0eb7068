"""The module of I-JEPA's predictor; see predictor.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.positions import resample
from lidar_cli.checkpoints.models.vit import take
from lidar_cli.checkpoints.shapes.predictor import PredictorSpec
from lidar_cli.views.masks import Mask


def build(spec: PredictorSpec) -> Predictor:
    """The module, without weights."""
    try:
        with torch.device("meta"):
            return Predictor(spec)
    except RuntimeError:  # older timm reads numbers from a tensor while it builds
        return Predictor(spec)


class Predictor(nn.Module):
    """Its blocks are timm's, its names I-JEPA's."""

    def __init__(self, spec: PredictorSpec) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        norm: Any = partial(nn.LayerNorm, eps=spec.eps)
        self.width = spec.width
        self.grid = spec.grid
        self.predictor_embed = nn.Linear(spec.width, spec.inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.inner))
        self.predictor_pos_embed = nn.Parameter(torch.zeros(1, spec.grid**2, spec.inner))
        self.predictor_blocks = nn.ModuleList(
            Block(
                spec.inner,
                spec.heads,
                mlp_ratio=(spec.mlp + 0.5) / spec.inner,  # timm rounds the product down
                qkv_bias=spec.qkv_bias,
                norm_layer=norm,
            )
            for _ in range(spec.depth)
        )
        self.predictor_norm = norm(spec.inner)
        self.predictor_proj = nn.Linear(spec.inner, spec.width)
        self.trained: tuple[int, Tensor] | None = None  # grid and positions as in the file

    def set_grid(self, grid: int) -> None:
        """Resample the file's positions to images of `grid` patches a side."""
        if grid == self.grid:
            return
        if self.trained is None:
            self.trained = (self.grid, self.predictor_pos_embed.detach().cpu().clone())
        old, positions = self.trained  # always from these: resampling twice would blur
        positions = resample(positions, old, grid, 0, "antialias")  # as the encoder's
        positions = positions.to(self.predictor_pos_embed.device)
        self.predictor_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.grid = grid

    def forward(self, z: Tensor, context: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Predicted tokens [n_pred n_enc b, K_pred, width], see predictor.py.

        z: the encoder's tokens [n_enc b, K_enc, width] of what each mask lets it see, mask by mask.
        context: n_enc masks [b, K_enc]. targets: n_pred masks [b, K_pred].
        """
        x = self.predictor_embed(z) + self._positions(context)
        kept = x.shape[1]
        asked = self.mask_token + self._positions([t for t in targets for _ in context])
        x = torch.cat([x.repeat(len(targets), 1, 1), asked], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        tokens: Tensor = self.predictor_proj(self.predictor_norm(x)[:, kept:])
        return tokens

    def mean_prediction(self, z: Tensor, mask: Mask) -> Tensor:
        """The mean [b, width] of the predicted tokens of all targets of a mask.

        z: the encoder's tokens [b, K, width] of the patches that the mask lets it see.
        """
        assert mask.seen is not None
        assert mask.targets is not None
        tokens: Tensor = self(z, [mask.seen], list(mask.targets))
        return tokens.view(len(mask.targets), len(z), -1, self.width).mean(dim=(0, 2))

    def _positions(self, masks: Sequence[Tensor]) -> Tensor:
        """The positions [len(masks) b, K, inner] of the patches of the masks, one after another."""
        keep = torch.cat(list(masks))
        return take(self.predictor_pos_embed.expand(len(keep), -1, -1), keep)
