"""Vision Transformers by timm's and torchvision's names, from their shapes, as timm's class.

The number of heads is not in the shapes: it is the usual one for the width. Every family read here
has a LayerNorm eps of 1e-6. A class token is the embedding where there is one and no norm after
pooling (`fc_norm`); else it is the mean of the patch tokens. This file needs no torch; the module
is in vit_module.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lidar_cli.checkpoints.spec import title
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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the module, by timm's names."""
        width = self.width
        tokens = self.grid**2
        if self.embeds_prefix:
            tokens += self.registers + int(self.class_token)
        found: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, width)}
        if self.class_token:
            found["cls_token"] = (1, 1, width)
        if self.registers:
            found["reg_token"] = (1, self.registers, width)
        found["patch_embed.proj.weight"] = (width, 3, self.patch, self.patch)
        if not self.pre_norm:
            found["patch_embed.proj.bias"] = (width,)
        norms = {"norm_pre": self.pre_norm, "fc_norm": self.fc_norm}
        norms["norm"] = self.final_norm and not self.fc_norm
        for name in [name for name, there in norms.items() if there]:
            found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        for index in range(self.depth):
            found |= {f"blocks.{index}.{name}": shape for name, shape in self._block().items()}
        return found

    def _block(self) -> dict[str, tuple[int, ...]]:
        width, mlp = self.width, self.mlp
        found: dict[str, tuple[int, ...]] = {}
        for name, out, into, bias in (
            ("attn.qkv", 3 * width, width, self.qkv_bias),
            ("attn.proj", width, width, self.proj_bias),
            ("mlp.fc1", mlp, width, self.proj_bias),
            ("mlp.fc2", width, mlp, self.proj_bias),
        ):
            found[f"{name}.weight"] = (out, into)
            if bias:
                found[f"{name}.bias"] = (out,)
        for name in ("norm1", "norm2"):
            found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        if self.qk_norm:
            for name in ("attn.q_norm", "attn.k_norm"):
                size = width // self.heads
                found |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        if self.layer_scale:
            found |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        return found


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
