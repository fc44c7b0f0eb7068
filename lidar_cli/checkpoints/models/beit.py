"""BEiT as timm's class, with the masked inputs of data2vec; see shapes/beit.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import (
    MaskedBackbone,
    OriginalTensors,
    resample_positions,
)
from lidar_cli.checkpoints.shapes.beit import CLASS_TOKEN_ROWS, TABLE, BeitSpec
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.errors import CheckpointError
from lidar_cli.views.masks import Mask


class Beit(MaskedBackbone):
    """timm's Beit, whose mask token replaces masked patches as in data2vec."""

    replaces_hidden = True

    def __init__(self, spec: BeitSpec) -> None:
        super().__init__()
        from timm.models.beit import Beit as TimmBeit

        norm: Any = partial(nn.LayerNorm, eps=spec.eps)
        self.width = spec.width
        self.model: Any = TimmBeit(
            img_size=spec.image_size,
            patch_size=spec.patch,
            in_chans=spec.channels,
            num_classes=0,
            global_pool="avg" if spec.fc_norm else "token",  # decides where timm puts the norm
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            qkv_bias=spec.qkv_bias,
            mlp_ratio=(spec.mlp + 0.5) / spec.width,  # timm rounds the product down
            norm_layer=norm,
            init_values=1.0 if spec.layer_scale else None,
            use_abs_pos_emb=spec.positions,
            use_rel_pos_bias=spec.table_per_block,
            use_shared_rel_pos_bias=spec.shared_table,
        )
        if not (spec.norm or spec.fc_norm):
            self.model.norm = nn.Identity()
        if spec.mask_token:
            self.model.mask_token = nn.Parameter(torch.empty(1, 1, spec.width))
        self.patch = spec.patch
        self.size = spec.image_size
        self.originals = OriginalTensors()
        self.set_buffers()

    @property
    def weights(self) -> nn.Module:
        """timm's module, whose tensors have the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    @property
    def token_pooling(self) -> tuple[bool, int]:
        """As of `Backbone`: the mean, whatever timm's class would do."""
        return False, 1

    def set_buffers(self) -> None:
        """Set the buffers that no file has: the index of displacements, the zero bias of keys."""
        from timm.models.beit import gen_relative_position_index

        grid = self.size // self.patch
        with torch.device("cpu"):  # even while the module is built on the meta device
            bias, index = torch.zeros(self.width), gen_relative_position_index((grid, grid))
        for part in self.model.modules():
            if getattr(part, "k_bias", None) is not None:
                part.k_bias = bias.clone()
            if getattr(part, "relative_position_index", None) is not None:
                # Persistent in older timm, where a file without it would lack a tensor.
                part.register_buffer("relative_position_index", index.clone(), persistent=False)

    def set_image_size(self, size: int) -> None:
        """Resample the file's tables and positions bicubically for images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = grid_of(size, self.patch)
        if size == self.size:
            return

        def resampled(name: str, tensor: Tensor, old: int) -> Tensor:
            if name == "pos_embed":
                return resample_positions(tensor, old, grid, 1, "plain")
            return _table(tensor, old, grid)

        self.originals.replace(self.model, ("pos_embed", TABLE), self.size // self.patch, resampled)
        self.model.patch_embed.set_input_size((size, size))
        for part in self.model.modules():
            if getattr(part, "window_size", None) is not None:
                part.window_size = (grid, grid)
                part.window_area = grid * grid
        self.size = size
        device = self.model.cls_token.device
        self.set_buffers()
        self.model.to(device)

    def tokens(self, images: Tensor, masked: Tensor | None = None) -> Tensor:
        """Tokens [b, 1 + N, width] after the last block and `norm`, class token first.

        masked: bool [b, N], whether the mask token replaces a patch. In training, the tokens at
        masked patches are the input of lm_head.
        Raises CheckpointError if `masked` is given and the file has no mask token.
        """
        model = self.model
        x = model.patch_embed(images)
        if masked is not None:
            token = getattr(model, "mask_token", None)
            if token is None:
                raise CheckpointError(
                    "the BEiT has no mask_token, as after fine-tuning; expected a pre-trained "
                    "checkpoint for masked views; choose other views",
                    code="no-mask-token",
                )
            x = torch.where(masked.unsqueeze(-1), token, x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed
        bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        tokens: Tensor = model.norm(x)
        return tokens

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, N, width] of all patches; those that the mask hides are replaced first."""
        masked = None if mask is None else mask.compared > 0
        return self.tokens(images, masked)[:, 1:]

    def embedding_from_mean(self, mean: Tensor) -> Tensor:
        """The mean after `fc_norm`, if there is one."""
        embedding: Tensor = self.model.fc_norm(mean)
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S], S as set by `set_image_size`."""
        return self.embedding_from_mean(self.patch_tokens(images).mean(dim=1))


def _table(table: Tensor, old: int, new: int) -> Tensor:
    """The table of displacements [(2 new - 1)^2 + 3, heads], resampled from the old grid's."""
    patches, extra = table[:-CLASS_TOKEN_ROWS].unsqueeze(0), table[-CLASS_TOKEN_ROWS:]
    return torch.cat([resample_positions(patches, 2 * old - 1, 2 * new - 1, 0, "plain")[0], extra])
