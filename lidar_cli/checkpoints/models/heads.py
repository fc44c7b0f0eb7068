"""The modules of projectors and predictors; see shapes/heads.py for their equations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.activations import activation
from lidar_cli.checkpoints.models.backbone import OriginalTensors, resample_positions, select_tokens
from lidar_cli.checkpoints.shapes.heads import Layer, MLPSpec, PredictorSpec
from lidar_cli.views.masks import Mask


class WeightNormed(nn.Module):
    """A Linear whose weight is g v / |v|, row by row (Salimans and Kingma 2016)."""

    def __init__(self, into: int, out: int, bias: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(out, 1))
        self.weight_v = nn.Parameter(torch.empty(out, into))
        self.bias = nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[b, into] -> [b, out]."""
        v = self.weight_v
        return F.linear(x, self.weight_g * v / v.norm(dim=1, keepdim=True), self.bias)


def mlp(spec: MLPSpec) -> nn.Sequential:
    """The MLP of a spec; its tensors are named by the index of their layer, as in the spec."""
    head = nn.Sequential()
    for layer in spec.layers:
        if layer.after_gap:
            head.add_module(f"act{layer.index}", activation(spec.before(layer))())
        head.add_module(str(layer.index), _module(layer))
    if spec.last_activation:
        head.add_module("last_act", activation(spec.activation)())
    return head


def _module(layer: Layer) -> nn.Module:
    if layer.weight_norm:
        return WeightNormed(layer.into, layer.out, layer.has_bias)
    if layer.kind == "linear":
        return nn.Linear(layer.into, layer.out, bias=layer.has_bias)
    if layer.kind == "batchnorm":
        return nn.BatchNorm1d(layer.out, affine=layer.has_weight)
    return nn.LayerNorm(layer.out, bias=layer.has_bias)


class Predictor(nn.Module):
    """I-JEPA's predictor, with timm's blocks and I-JEPA's names of tensors."""

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
        self.originals = OriginalTensors()

    def set_grid(self, grid: int) -> None:
        """Resample the file's positions for images of `grid` patches a side."""
        if grid == self.grid:
            return

        def resampled(name: str, positions: Tensor, old: int) -> Tensor:
            return resample_positions(positions, old, grid, 0, "antialias")  # as in the encoder

        self.originals.replace(self, ("predictor_pos_embed",), self.grid, resampled)
        self.grid = grid

    def forward(self, z: Tensor, context: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Predicted tokens [n_pred n_enc b, K_pred, width], see shapes/heads.py.

        z: the encoder's tokens [n_enc b, K_enc, width] of the context patches, mask by mask.
        context: n_enc masks [b, K_enc]. targets: n_pred masks [b, K_pred].
        """
        x = self.predictor_embed(z) + self._positions(context)
        seen = x.shape[1]
        target = self.mask_token + self._positions([t for t in targets for _ in context])
        x = torch.cat([x.repeat(len(targets), 1, 1), target], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        tokens: Tensor = self.predictor_proj(self.predictor_norm(x)[:, seen:])
        return tokens

    def mean_prediction(self, z: Tensor, mask: Mask) -> Tensor:
        """The mean [b, width] of the predicted tokens in all target blocks of a mask.

        z: the encoder's tokens [b, K, width] of the visible patches.
        """
        assert mask.seen is not None
        assert mask.targets is not None
        tokens: Tensor = self(z, [mask.seen], list(mask.targets))
        return tokens.view(len(mask.targets), len(z), -1, self.width).mean(dim=(0, 2))

    def _positions(self, masks: Sequence[Tensor]) -> Tensor:
        """The positions [len(masks) b, K, inner] of the patches of each mask, mask by mask."""
        keep = torch.cat(list(masks))
        return select_tokens(self.predictor_pos_embed.expand(len(keep), -1, -1), keep)
