"""The module of a Vision Transformer: timm's class, pooled as its spec in vit.py says."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.backbone import Backbone
from lidar_cli.checkpoints.vit import EPS, ViTSpec
from lidar_cli.errors import CheckpointError


def build(spec: ViTSpec) -> ViT:
    """The module, without weights."""
    try:
        with torch.device("meta"):
            return ViT(spec)
    except RuntimeError:  # older timm reads numbers from a tensor while it builds
        return ViT(spec)


class ViT(Backbone):
    """timm's VisionTransformer, pooled to one vector an image, at any multiple of the patch."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        pooled = spec.fc_norm or not spec.class_token
        self.width = spec.width
        self.model: Any = VisionTransformer(
            img_size=spec.image_size,
            patch_size=spec.patch,
            num_classes=0,
            global_pool="avg" if pooled else "token",
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            mlp_ratio=(spec.mlp + 0.5) / spec.width,  # timm rounds the product down
            qkv_bias=spec.qkv_bias,
            qk_norm=spec.qk_norm,
            proj_bias=spec.proj_bias,
            init_values=1.0 if spec.layer_scale else None,
            class_token=spec.class_token,
            no_embed_class=not spec.embeds_prefix,
            reg_tokens=spec.registers,
            pre_norm=spec.pre_norm,
            final_norm=spec.final_norm,
            fc_norm=spec.fc_norm,
            weight_init="skip",
            norm_layer=partial(nn.LayerNorm, eps=EPS),
        )
        self.patch = spec.patch
        self.size = spec.image_size
        self.prefix = spec.registers + int(spec.class_token) if spec.embeds_prefix else 0
        self.trained: tuple[int, Tensor] | None = None  # grid and positions as in the file

    @property
    def weights(self) -> nn.Module:
        """timm's module, which has the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_image_size(self, size: int) -> None:
        """Resample the position embedding of the file to images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        if size < 1 or size % self.patch:
            raise CheckpointError(
                f"image size {size} is not a multiple of the ViT's patch size {self.patch}; "
                f"use --image-size {max(1, round(size / self.patch)) * self.patch}"
            )
        if size == self.size:
            return
        from timm.layers.pos_embed import resample_abs_pos_embed

        if self.trained is None:
            self.trained = (self.size // self.patch, self.model.pos_embed.detach().cpu().clone())
        grid, positions = self.trained  # always from these: resampling twice would blur
        positions = resample_abs_pos_embed(
            positions,
            new_size=[size // self.patch] * 2,
            old_size=[grid, grid],
            num_prefix_tokens=self.prefix,
        ).to(self.model.pos_embed.device)
        self.model.patch_embed.set_input_size((size, size))
        self.model.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S], S as last set."""
        embeddings: Tensor = self.model(images)
        return embeddings
