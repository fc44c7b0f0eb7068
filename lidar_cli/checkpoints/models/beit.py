"""The module of a BEiT: timm's class, with the masked inputs of data2vec; see beit.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.models.backbone import MaskedBackbone
from lidar_cli.checkpoints.models.positions import resample
from lidar_cli.checkpoints.shapes.beit import EXTRA, TABLE, BeitSpec
from lidar_cli.checkpoints.shapes.vit import grid_of
from lidar_cli.errors import CheckpointError
from lidar_cli.views.masks import Mask


def build(spec: BeitSpec) -> Beit:
    """The module, without weights."""
    try:
        with torch.device("meta"):
            model = Beit(spec)
    except RuntimeError:  # older timm reads numbers from a tensor while it builds
        model = Beit(spec)
    model.set_buffers()
    return model


class Beit(MaskedBackbone):
    """timm's Beit, with the masked inputs of data2vec."""

    def __init__(self, spec: BeitSpec) -> None:
        super().__init__()
        from timm.models.beit import Beit as TimmBeit

        norm: Any = partial(nn.LayerNorm, eps=spec.eps)
        self.width = spec.width
        self.model: Any = TimmBeit(
            img_size=spec.image_size,
            patch_size=spec.patch,
            num_classes=0,
            global_pool="avg" if spec.fc_norm else "token",  # which places the norm
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            qkv_bias=spec.qkv_bias,
            mlp_ratio=(spec.mlp + 0.5) / spec.width,  # timm rounds the product down
            norm_layer=norm,
            init_values=1.0 if spec.layer_scale else None,
            use_abs_pos_emb=spec.positions,
            use_rel_pos_bias=spec.own_tables,
            use_shared_rel_pos_bias=spec.shared_table,
        )
        if not (spec.norm or spec.fc_norm):
            self.model.norm = nn.Identity()
        if spec.mask_token:
            self.model.mask_token = nn.Parameter(torch.empty(1, 1, spec.width))
        self.patch = spec.patch
        self.size = spec.image_size
        self.trained: tuple[int, dict[str, Tensor]] | None = None  # grid, and what depends on it

    @property
    def weights(self) -> nn.Module:
        """timm's module, which has the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_buffers(self) -> None:
        """Give values to what is in no file: the index of displacements, the zero bias of keys."""
        from timm.models.beit import gen_relative_position_index

        for part in self.model.modules():
            if getattr(part, "k_bias", None) is not None:
                part.k_bias = torch.zeros(self.width)
            if getattr(part, "relative_position_index", None) is not None:
                grid = self.size // self.patch
                index = gen_relative_position_index((grid, grid))
                # Older timm saves it, and would miss it in files.
                part.register_buffer("relative_position_index", index, persistent=False)

    def set_image_size(self, size: int) -> None:
        """Resample the file's tables and positions, bicubically, to images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = grid_of(size, self.patch)
        if size == self.size:
            return
        if self.trained is None:
            names = ("pos_embed", TABLE)
            found = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.model.named_parameters()
                if name.rpartition(".")[2] in names
            }
            self.trained = (self.size // self.patch, found)
        old, tensors = self.trained  # always from these: resampling twice would blur
        for name, tensor in tensors.items():
            if name == "pos_embed":
                tensor = resample(tensor, old, grid, 1, "plain")
            else:
                tensor = _table(tensor, old, grid)
            owner, _, last = name.rpartition(".")
            part = self.model.get_submodule(owner)
            device = getattr(part, last).device
            setattr(part, last, nn.Parameter(tensor.to(device), requires_grad=False))
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
        """Tokens [b, 1 + N, width] after the last block, class token first, and after `norm`.

        masked: bool [b, N], patches that the mask token replaces; raises CheckpointError if the
        file has no such token. Those at masked patches are what lm_head takes.
        """
        model = self.model
        x = model.patch_embed(images)
        if masked is not None:
            token = getattr(model, "mask_token", None)
            if token is None:
                raise CheckpointError(
                    "the BEiT has no mask_token, as after fine-tuning; expected a pre-trained "
                    "checkpoint for masked views; choose other views"
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

    @property
    def replaces(self) -> bool:
        """Always."""
        return True

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, N, width] of all patches; at hidden ones, what lm_head takes in training."""
        masked = None if mask is None else mask.compared > 0
        return self.tokens(images, masked)[:, 1:]

    def finish(self, mean: Tensor) -> Tensor:
        """After `fc_norm`, where there is one."""
        embedding: Tensor = self.model.fc_norm(mean)
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S], S as last set."""
        return self.finish(self.patch_tokens(images).mean(dim=1))


def _table(table: Tensor, old: int, new: int) -> Tensor:
    """The table [(2 new - 1)^2 + 3, heads] of displacements from that of the old grid."""
    patches, extra = table[:-EXTRA].unsqueeze(0), table[-EXTRA:]
    return torch.cat([resample(patches, 2 * old - 1, 2 * new - 1, 0, "plain")[0], extra])
