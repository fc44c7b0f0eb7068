"""Vision Transformers by timm's and torchvision's names, from their shapes, as timm's class.

The number of heads is not in the shapes: it is the usual one for the width, unless the caller knows
it. LayerNorm's eps is 1e-6 in all families but some of Hugging Face's. A class token is the
embedding where there is one and no norm after pooling (`fc_norm`); else it is the mean of the patch
tokens.

DINOv2's names are mapped to timm's, and its two peculiarities kept: registers have no position
although the class token has one, and blocks may be numbered within chunks. A SwiGLU shows in the
shapes, for its first layer is twice as wide as its second takes. `mask_token`, which only masked
training uses, is noise here.
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
from lidar_cli.checkpoints.positions import Resize, resample
from lidar_cli.errors import CheckpointError

ANCHOR = "blocks.0.attn.qkv.weight"
CHUNKED_ANCHOR = "blocks.0.0.attn.qkv.weight"
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


# DINOv2's names -> timm's. A block's chunk comes before its number among all blocks.
FROM_DINOV2 = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def from_dinov2(name: str) -> str:
    """timm's name of a tensor of DINOv2's backbone, in chunks or not; others keep theirs."""
    for pattern, replacement in FROM_DINOV2:
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
    mlp: int  # width of the first layer's output
    swiglu: bool  # of which the activated half then multiplies the other
    class_token: bool
    registers: int
    positioned: int  # of class and register tokens, those with a position embedding
    qkv_bias: bool
    qk_norm: bool
    proj_bias: bool
    layer_scale: bool
    pre_norm: bool
    final_norm: bool
    fc_norm: bool
    eps: float = EPS  # of LayerNorm
    resize: Resize = "antialias"  # of the position embedding, at another image size

    @property
    def arch(self) -> str:
        """Such as 'vit_small_patch16' or 'vit_tiny_patch4 (depth 2, no class token)'."""
        notes = []
        if self.depth != DEPTHS.get(self.width):
            notes.append(f"depth {self.depth}")
        if self.registers:
            notes.append(f"{self.registers} registers")
        if self.swiglu:
            notes.append("SwiGLU")
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


def spec(
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    *,
    heads: int | None = None,
    eps: float = EPS,
    resize: Resize | None = None,
) -> ViTSpec:
    """The Vision Transformer that tensors of these shapes, by timm's names, belong to.

    heads, eps, resize: where a format or a config.json tells them; else what is usual, see ViTSpec.
    Raises CheckpointError if the shapes fit none, or the width does not tell the heads.
    """
    width, patch = patches(shapes, origin)
    registers = _length(shapes, "reg_token")
    grid, positioned = _grid(shapes, origin)
    head_dim = shapes.get("blocks.0.attn.q_norm.weight", (0,))[0]
    known = width // head_dim if head_dim else heads
    second = shapes.get("blocks.0.mlp.fc2.weight", ())
    mlp = hidden(shapes, "blocks.0.mlp.fc1.weight", origin)
    if resize is None:
        # A mask token of two dimensions is DINOv2's.
        dinov2 = len(shapes.get("mask_token", ())) == 2
        resize = "offset" if dinov2 and not registers else "antialias"
    return ViTSpec(
        width=width,
        depth=depth(shapes),
        heads=known or usual_heads(width, origin),
        heads_known=known is not None,
        patch=patch,
        grid=grid,
        mlp=mlp,
        swiglu=len(second) == 2 and mlp == 2 * second[1],
        class_token="cls_token" in shapes,
        registers=registers,
        positioned=positioned,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        qk_norm=bool(head_dim),
        proj_bias="blocks.0.attn.proj.bias" in shapes,
        layer_scale="blocks.0.ls1.gamma" in shapes,
        pre_norm="norm_pre.weight" in shapes,
        final_norm="norm.weight" in shapes or "fc_norm.weight" in shapes,
        fc_norm="fc_norm.weight" in shapes,
        eps=eps,
        resize=resize,
    )


def patches(shapes: Mapping[str, tuple[int, ...]], origin: str) -> tuple[int, int]:
    """Width and patch size by the patch embedding; raises CheckpointError."""
    shape = shapes.get("patch_embed.proj.weight", ())
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        found = list(shape) if shape else "missing"
        raise CheckpointError(
            f"{origin}: the patch embedding of the ViT, patch_embed.proj.weight, is {found}; "
            "expected [width, 3, patch, patch]; name the architecture with --arch"
        )
    return shape[0], shape[2]


def usual_heads(width: int, origin: str) -> int:
    """The number of attention heads that goes with a width; raises CheckpointError."""
    heads = HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{origin}: a ViT of width {width}, whose number of attention heads the weights do not "
            f"tell; known widths: {', '.join(map(str, HEADS))}; name the architecture with --arch"
        )
    return heads


def depth(shapes: Mapping[str, tuple[int, ...]], blocks: str = "blocks") -> int:
    """How many numbers follow that name."""
    pattern = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def hidden(shapes: Mapping[str, tuple[int, ...]], name: str, origin: str) -> int:
    """The width of a first MLP layer's output; raises CheckpointError if the layer is missing."""
    shape = shapes.get(name, ())
    if not shape or shape[0] < 1:
        raise CheckpointError(
            f"{origin}: the ViT lacks {name}; expected two-layer MLPs by timm's "
            "names; name the architecture with --arch"
        )
    return shape[0]


def _length(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """The number of tokens in a tensor [1, tokens, width], 0 if it is absent."""
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == 3 else 0


def image_size(shapes: Mapping[str, tuple[int, ...]], origin: str) -> int:
    """Pixels a side by the embeddings of positions and patches; raises CheckpointError."""
    return _grid(shapes, origin)[0] * shapes["patch_embed.proj.weight"][-1]


def _grid(shapes: Mapping[str, tuple[int, ...]], origin: str) -> tuple[int, int]:
    """Patches a side, and how many of class and register tokens come first in the positions."""
    length = _length(shapes, "pos_embed")
    registers = _length(shapes, "reg_token")
    first = int("cls_token" in shapes)
    prefix = first + registers
    # Models with registers usually give them no position, so that reading goes first for them.
    for positioned in [0, first, prefix] if registers else [prefix, 0]:
        side = math.isqrt(max(length - positioned, 0))
        if side > 0 and side * side == length - positioned:
            return side, positioned
    raise CheckpointError(
        f"{origin}: the position embedding of the ViT, pos_embed, has {length} tokens; expected a "
        f"square number, with or without {prefix} more; name the architecture with --arch"
    )


class ViT(Backbone):
    """timm's VisionTransformer, pooled to one vector an image, at any multiple of the patch."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        from timm.layers.mlp import GluMlp, Mlp
        from timm.models.vision_transformer import VisionTransformer

        pooled = spec.fc_norm or not spec.class_token
        mlp: Any = partial(GluMlp, gate_last=False) if spec.swiglu else Mlp
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
            no_embed_class=spec.positioned == 0,
            reg_tokens=spec.registers,
            pre_norm=spec.pre_norm,
            final_norm=spec.final_norm,
            fc_norm=spec.fc_norm,
            weight_init="skip",
            norm_layer=partial(nn.LayerNorm, eps=spec.eps),
            act_layer=nn.SiLU if spec.swiglu else nn.GELU,
            mlp_layer=mlp,
        )
        positions = torch.empty(1, spec.positioned + spec.grid**2, spec.width)
        self.model.pos_embed = nn.Parameter(positions)  # timm has none for the class token alone
        self.patch = spec.patch
        self.size = spec.image_size
        self.positioned = spec.positioned
        self.resize: Resize = spec.resize
        self.trained: tuple[int, Tensor] | None = None  # grid and positions as in the file

    @property
    def weights(self) -> nn.Module:
        """timm's module, which has the names of the spec."""
        return self.model  # type: ignore[no-any-return]

    def set_image_size(self, size: int) -> None:
        """Resample the position embedding of the file to images of `size` pixels a side.

        Raises CheckpointError unless that is a multiple of the patch size.
        """
        grid = grid_of(size, self.patch)
        if size == self.size:
            return
        if self.trained is None:
            self.trained = (self.size // self.patch, self.model.pos_embed.detach().cpu().clone())
        old, positions = self.trained  # always from these: resampling twice would blur
        positions = resample(positions, old, grid, self.positioned, self.resize)
        positions = positions.to(self.model.pos_embed.device)
        self.model.patch_embed.set_input_size((size, size))
        self.model.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.size = size

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens [b, prefix + K, width] after the last norm; class token and registers first.

        keep: indices [b, K] of the patches that enter the blocks, all if None.
        """
        model, positioned = self.model, self.positioned
        x = model.patch_embed(images) + model.pos_embed[:, positioned:]
        if keep is not None:
            x = take(x, keep)
        prefix = [t for t in (model.cls_token, model.reg_token) if t is not None]
        if prefix:
            first = torch.cat(prefix, dim=1)
            placed = first[:, :positioned] + model.pos_embed[:, :positioned]
            first = torch.cat([placed, first[:, positioned:]], dim=1)
            x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        tokens: Tensor = model.norm(model.blocks(model.norm_pre(x)))
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S], S as last set."""
        embeddings: Tensor = self.model.forward_head(self.tokens(images), pre_logits=True)
        return embeddings


def grid_of(size: int, patch: int) -> int:
    """Patches a side of an image; raises CheckpointError unless they fill it."""
    if size < 1 or size % patch:
        raise CheckpointError(
            f"image size {size} is not a multiple of the ViT's patch size {patch}; "
            f"use --image-size {max(1, round(size / patch)) * patch}"
        )
    return size // patch


def take(tokens: Tensor, keep: Tensor) -> Tensor:
    """The tokens [b, K, width] at indices [b, K] of tokens [b, N, width]."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
