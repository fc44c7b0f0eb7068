"""The Vision Transformer as timm's class, with the pooling of its spec; see shapes/vit.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.activations import activation
from lidar_cli.checkpoints.models.backbone import (
    LastLinear,
    MaskedBackbone,
    OriginalTensors,
    resample_positions,
    select_tokens,
)
from lidar_cli.checkpoints.shapes.vit import POOL, ViTSpec, grid_of
from lidar_cli.views.masks import Mask


def stem(spec: ViTSpec) -> nn.Sequential:
    """The convolutional stem: 3x3 of stride 2 with BatchNorm and ReLU, repeated, then a 1x1."""
    layers: list[nn.Module] = []
    into = spec.channels
    for out in spec.stem:
        layers += [nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        into = out
    return nn.Sequential(*layers, nn.Conv2d(into, spec.width, 1))


class AttentionPooling(nn.Module):
    """The attention of a learnt probe to all tokens, then an MLP with a shortcut, as in SigLIP."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        from timm.layers.mlp import Mlp

        self.probe = nn.Parameter(torch.empty(1, 1, spec.width))
        self.attention = nn.MultiheadAttention(spec.width, spec.heads, batch_first=True)
        self.layernorm = nn.LayerNorm(spec.width, eps=spec.eps)
        act: Any = activation(spec.block_activation)
        self.mlp = Mlp(spec.width, spec.mlp, act_layer=act)

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, n, width] -> [b, width]."""
        probe = self.probe.expand(len(tokens), -1, -1)
        x: Tensor = self.attention(probe, tokens, tokens, need_weights=False)[0][:, 0]
        return x + self.mlp(self.layernorm(x))  # type: ignore[no-any-return]


class ViT(MaskedBackbone):
    """timm's VisionTransformer with one embedding per image, for any multiple of the patch size."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        from timm.layers.mlp import GluMlp, Mlp
        from timm.models.vision_transformer import VisionTransformer

        pooled = spec.fc_norm or spec.mean_pooled or not spec.class_token
        pool: Any = "avg" if pooled else "token"
        mlp: Any = partial(GluMlp, gate_last=False) if spec.swiglu else Mlp
        self.width = spec.output_width
        self.model: Any = VisionTransformer(
            img_size=(spec.grid * spec.patch, spec.columns * spec.patch),
            patch_size=spec.patch,
            in_chans=spec.channels,
            num_classes=0,
            global_pool=pool,
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            mlp_ratio=(spec.mlp + 0.5) / spec.width,  # timm rounds the product down
            qkv_bias=spec.qkv_bias,
            qk_norm=spec.qk_norm,
            proj_bias=spec.proj_bias,
            init_values=1.0 if spec.layer_scale else None,
            class_token=spec.class_token,
            no_embed_class=spec.positioned == 0,
            reg_tokens=spec.registers,
            pre_norm=spec.pre_norm,
            final_norm=spec.final_norm,
            fc_norm=spec.fc_norm,
            weight_init="skip",
            norm_layer=partial(nn.LayerNorm, eps=spec.eps),
            act_layer=activation(spec.gate if spec.swiglu else spec.block_activation),
            mlp_layer=mlp,
        )
        if spec.attention_pool:
            setattr(self.model, POOL, AttentionPooling(spec))
        if spec.stem:
            self.model.patch_embed.proj = stem(spec)
        positions = torch.empty(1, spec.tokens, spec.width)
        self.model.pos_embed = nn.Parameter(positions)  # timm cannot give only the class token one
        if spec.embedding:
            self.model.embedding = LastLinear(spec.embedding)
        self.patch = spec.patch
        self.file_grid = spec.grid, spec.columns
        # A rectangular grid is resampled for any size, even that of its shorter side.
        self.size = spec.image_size if spec.grid == spec.columns else 0
        self.positioned = spec.positioned
        self.resize = spec.resize
        self.offset = spec.position_offset
        self.originals = OriginalTensors()

    @property
    def weights(self) -> nn.Module:
        """timm's module, whose tensors have the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_image_size(self, size: int) -> None:
        """Resample the file's position embedding for images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = grid_of(size, self.patch)
        if size == self.size:
            return

        def resampled(name: str, positions: Tensor, old: int) -> Tensor:
            return resample_positions(
                positions, self.file_grid, grid, self.positioned, self.resize, self.offset
            )

        self.originals.replace(self.model, ("pos_embed",), self.file_grid[0], resampled)
        self.model.patch_embed.set_input_size((size, size))
        self.size = size

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens [b, prefix + K, width] after the last norm, class token and registers first.

        keep: indices [b, K] of the patches that enter the blocks, None for all.
        """
        model, positioned = self.model, self.positioned
        x = model.patch_embed(images) + model.pos_embed[:, positioned:]
        if keep is not None:
            x = select_tokens(x, keep)
        prefix = [t for t in (model.cls_token, model.reg_token) if t is not None]
        if prefix:
            first = torch.cat(prefix, dim=1)
            placed = first[:, :positioned] + model.pos_embed[:, :positioned]
            first = torch.cat([placed, first[:, positioned:]], dim=1)
            x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        tokens: Tensor = model.norm(model.blocks(model.norm_pre(x)))
        return tokens

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, K, width] of the visible patches, without class token and registers."""
        keep = None if mask is None else mask.seen
        return self.tokens(images, keep)[:, self.model.num_prefix_tokens :]

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S], S as set by `set_image_size`."""
        x: Tensor = self.model.forward_head(self.tokens(images), pre_logits=True)
        return self.model.embedding(x) if hasattr(self.model, "embedding") else x
