"""Vision Transformers by timm's and torchvision's names, from their shapes, as timm's class.

The number of heads is not in the shapes: it is the usual one for the width. Every family read here
has a LayerNorm eps of 1e-6. A class token is the embedding where there is one and no norm after
pooling (`fc_norm`); else it is the mean of the patch tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lidar_cli.checkpoints.backbone import Backbone, title
from lidar_cli.errors import CheckpointError

ANCHOR = "blocks.0.attn.qkv.weight"
TORCHVISION_ANCHOR = "encoder.layers.encoder_layer_0.ln_1.weight"

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant"}
DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1408: 40, 1536: 40}
EPS = 1e-6

# torchvision's names -> timm's; the fused projection has the same order q, k, v in both.
FROM_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)


def from_torchvision(name: str) -> str:
    """timm's name of a tensor of torchvision's VisionTransformer."""
    for pattern, replacement in FROM_TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class ViTSpec:
    """Sizes and optional parts of a Vision Transformer."""

    width: int
    depth: int
    heads: int
    heads_known: bool  # by the weights, not by the table
    patch: int
    grid: int  # patches a side
    mlp: int  # width of the hidden layer
    class_token: bool
    registers: int
    embeds_prefix: bool  # class and register tokens have a position embedding too
    qkv_bias: bool
    qk_norm: bool
    proj_bias: bool
    layer_scale: bool
    pre_norm: bool
    final_norm: bool
    fc_norm: bool

    @property
    def arch(self) -> str:
        """Such as 'vit_small_patch16' or 'vit_tiny_patch4 (depth 2, no class token)'."""
        notes = []
        if self.depth != DEPTHS.get(self.width):
            notes.append(f"depth {self.depth}")
        if self.registers:
            notes.append(f"{self.registers} registers")
        if not self.class_token:
            notes.append("no class token")
        size = NAMES.get(self.width, str(self.width))
        return title(f"vit_{size}_patch{self.patch}", notes)

    @property
    def image_size(self) -> int:
        """Of the position embedding, in pixels a side."""
        return self.grid * self.patch

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The number of heads, where it is the usual one for the width."""
        usual = f"{self.heads} attention heads, as usual for width {self.width}"
        return () if self.heads_known else (usual,)

    def build(self) -> ViT:
        """The module, without weights. Imports timm."""
        try:
            with torch.device("meta"):
                return ViT(self)
        except RuntimeError:  # older timm reads numbers from a tensor while it builds
            return ViT(self)


def spec(shapes: Mapping[str, tuple[int, ...]], origin: str) -> ViTSpec:
    """The Vision Transformer that tensors of these shapes, by timm's names, belong to.

    Raises CheckpointError if the shapes fit none, or the width does not tell the heads.
    """
    patch_shape = shapes.get("patch_embed.proj.weight", ())
    if len(patch_shape) != 4 or patch_shape[1] != 3 or patch_shape[2] != patch_shape[3]:
        found = list(patch_shape) if patch_shape else "missing"
        raise CheckpointError(
            f"{origin}: the patch embedding of the ViT, patch_embed.proj.weight, is {found}; "
            "expected [width, 3, patch, patch]; name the architecture with --arch"
        )
    width, _, patch, _ = patch_shape
    class_token = "cls_token" in shapes
    registers = _length(shapes, "reg_token")
    grid, embeds_prefix = _grid(shapes, origin)
    head_dim = shapes.get("blocks.0.attn.q_norm.weight", (0,))[0]
    heads = width // head_dim if head_dim else HEADS.get(width)
    if not heads:
        raise CheckpointError(
            f"{origin}: a ViT of width {width}, whose number of attention heads the weights do not "
            f"tell; known widths: {', '.join(map(str, HEADS))}; name the architecture with --arch"
        )
    blocks = {int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))}
    hidden = shapes.get("blocks.0.mlp.fc1.weight", ())
    if not hidden or hidden[0] < 1:
        raise CheckpointError(
            f"{origin}: the ViT lacks blocks.0.mlp.fc1.weight; expected two-layer MLPs by timm's "
            "names; name the architecture with --arch"
        )
    return ViTSpec(
        width=width,
        depth=len(blocks),
        heads=heads,
        heads_known=bool(head_dim),
        patch=patch,
        grid=grid,
        mlp=hidden[0],
        class_token=class_token,
        registers=registers,
        embeds_prefix=embeds_prefix,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        qk_norm=bool(head_dim),
        proj_bias="blocks.0.attn.proj.bias" in shapes,
        layer_scale="blocks.0.ls1.gamma" in shapes,
        pre_norm="norm_pre.weight" in shapes,
        final_norm="norm.weight" in shapes or "fc_norm.weight" in shapes,
        fc_norm="fc_norm.weight" in shapes,
    )


def _length(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """The number of tokens in a tensor [1, tokens, width], 0 if it is absent."""
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == 3 else 0


def image_size(shapes: Mapping[str, tuple[int, ...]], origin: str) -> int:
    """Pixels a side by the embeddings of positions and patches; raises CheckpointError."""
    return _grid(shapes, origin)[0] * shapes["patch_embed.proj.weight"][-1]


def _grid(shapes: Mapping[str, tuple[int, ...]], origin: str) -> tuple[int, bool]:
    """Patches a side, and whether class and register tokens come first in the positions."""
    length = _length(shapes, "pos_embed")
    registers = _length(shapes, "reg_token")
    prefix = int("cls_token" in shapes) + registers
    with_prefix = (math.isqrt(max(length - prefix, 0)), True)
    without = (math.isqrt(length), False)
    # Models with registers usually give them no position, so that reading goes first for them.
    order = [without, with_prefix] if registers else [with_prefix, without]
    for side, embeds in order:
        if side > 0 and side * side == length - (prefix if embeds else 0):
            return side, embeds
    raise CheckpointError(
        f"{origin}: the position embedding of the ViT, pos_embed, has {length} tokens; expected a "
        f"square number, with or without {prefix} more; name the architecture with --arch"
    )


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
