"""The Swin Transformer as timm's class, for any image size; see shapes/swin.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.shapes.swin import EPS, TABLE, SwinSpec, grids


class Swin(Backbone):
    """timm's SwinTransformer, whose windows stay those of the file at every image size."""

    def __init__(self, spec: SwinSpec) -> None:
        super().__init__()
        from timm.models.swin_transformer import SwinTransformer

        self.width = spec.width
        self.spec = spec
        self.size = spec.image_size
        self.model: Any = SwinTransformer(
            img_size=spec.image_size,
            patch_size=spec.patch,
            in_chans=spec.channels,
            num_classes=0,
            embed_dim=spec.stages[0].width,
            depths=tuple(stage.depth for stage in spec.stages),
            num_heads=tuple(stage.heads for stage in spec.stages),
            window_size=spec.stages[0].window,
            always_partition=True,  # timm would make the windows smaller than the tables
            # timm rounds the product down
            mlp_ratio=tuple((stage.mlp + 0.5) / stage.width for stage in spec.stages),  # type: ignore[arg-type]
            qkv_bias=spec.qkv_bias,
            drop_path_rate=0.0,
            norm_layer=partial(nn.LayerNorm, eps=spec.eps),  # type: ignore[arg-type]
            weight_init="skip",
        )
        if not spec.patch_norm:
            self.model.patch_embed.norm = nn.Identity()
        for name, part in self.model.named_modules():
            if isinstance(part, nn.LayerNorm) and name.endswith(("embed.norm", "downsample.norm")):
                part.eps = EPS  # as in Hugging Face, whatever config.json has for the others
        layers: Any = self.model.layers
        for sizes, stage in zip(spec.stages, layers, strict=True):
            for block in stage.blocks:
                table = torch.empty((2 * sizes.window - 1) ** 2, sizes.heads)
                setattr(block.attn, TABLE, nn.Parameter(table))
                block.forward = partial(_block, block)
        self._set_windows()

    @property
    def weights(self) -> nn.Module:
        """timm's module, whose tensors have the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_image_size(self, size: int) -> None:
        """Prepare for images of `size` pixels a side, with the windows of the file.

        Raises CheckpointError for a size that is not a multiple of the patch size, or leaves a
        stage with fewer patches than its window.
        """
        grids(self.spec, size)
        if size != self.size:
            self.size = size
            self.model.patch_embed.set_input_size((size, size))
            device = self.model.norm.weight.device
            self._set_windows()
            self.model.to(device)

    def _set_windows(self) -> None:
        """Set the windows' sizes and shifts, and the buffers that follow from them."""
        from timm.models.swin_transformer import get_relative_position_index

        sides = grids(self.spec, self.size)
        for sizes, side, stage in zip(self.spec.stages, sides, self.model.layers, strict=True):
            window = (sizes.window, sizes.window)
            with torch.device("cpu"):  # even while the module is built on the meta device
                index = get_relative_position_index(*window)
                padded = torch.empty(1, *[side + -side % sizes.window] * 2, 1)
            for number, block in enumerate(stage.blocks):
                shift = sizes.window // 2 if number % 2 and side > sizes.window else 0
                block.input_resolution = (side, side)
                block.window_size = block.attn.window_size = window
                block.window_area = block.attn.window_area = sizes.window**2
                block.shift_size = (shift, shift)
                block.attn.register_buffer("relative_position_index", index, persistent=False)
                block.register_buffer("attn_mask", block.get_attn_mask(padded), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S], S as set by `set_image_size`."""
        x = self.model.layers(self.model.patch_embed(images))  # [b, H, W, width]
        mean: Tensor = self.model.norm(x).mean(dim=(1, 2))
        return mean


def _block(block: Any, x: Tensor) -> Tensor:
    """The forward of a block, [b, H, W, width] -> the same."""
    x = x + _attention(block, block.norm1(x))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def _attention(block: Any, x: Tensor) -> Tensor:
    """A block's attention over [b, H, W, width], padded to whole windows before they are shifted.

    timm shifts first, which moves patches of the last row and column to other windows.
    """
    height, width = x.shape[1:3]
    window = block.window_size[0]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    attended: Tensor = block._attn(padded)
    return attended[:, :height, :width]
