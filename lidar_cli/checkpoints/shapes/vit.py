"""Vision Transformers by timm's and torchvision's names, from their shapes, as timm's class.

The number of heads is not in the shapes: it is the usual one for the width, unless the caller knows
it. LayerNorm's eps is 1e-6 in all families but some of Hugging Face's. Both are assumptions, as is
the gate of a SwiGLU and the offset of positions at another image size. A class token is the
embedding where there is one and no norm after pooling (`fc_norm`); else it is the mean of the patch
tokens. MoCo v3's convolutional stem shows in the names of its layers.

DINOv2's names are mapped to timm's, and its two peculiarities kept: registers have no position
although the class token has one, and blocks may be numbered within chunks. A SwiGLU shows in the
shapes, for its first layer is twice as wide as its second takes. `mask_token`, which only masked
training uses, is noise here. This file needs no torch; the module is in vit_module.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lidar_cli.checkpoints.assume import SET, USUAL, Open
from lidar_cli.checkpoints.shapes import conv_stem
from lidar_cli.checkpoints.shapes.spec import title
from lidar_cli.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from lidar_cli.checkpoints.models.positions import Resize

ANCHOR = "blocks.0.attn.qkv.weight"
CHUNKED_ANCHOR = "blocks.0.0.attn.qkv.weight"
TORCHVISION_ANCHOR = "encoder.layers.encoder_layer_0.ln_1.weight"

HEADS = {128: 2, 192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant"}
DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1408: 40, 1536: 40}
EPS = 1e-6
DINO_OFFSET = 0.1  # see positions.py

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
class ViTSpec(Open):
    """Sizes and optional parts of a Vision Transformer."""

    width: int
    depth: int
    heads: int
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
    position_offset: float = 0.0  # added to its new side then, see positions.py
    gate: str = "silu"  # of a SwiGLU, or 'gelu'
    stem: tuple[int, ...] = ()  # channels of convolutions that stand for the patch embedding

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
        if self.stem:
            notes.append("convolutional stem")
        size = NAMES.get(self.width, str(self.width))
        return title(f"vit_{size}_patch{self.patch}", notes)

    @property
    def image_size(self) -> int:
        """Of the position embedding, in pixels a side."""
        return self.grid * self.patch

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """I-JEPA's, if the embedding is the mean of the patches and nothing beside it."""
        return () if self.class_token or self.registers or self.fc_norm else ("multi-block",)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the module, by timm's names."""
        width = self.width
        tokens = self.positioned + self.grid**2
        found: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, width)}
        if self.class_token:
            found["cls_token"] = (1, 1, width)
        if self.registers:
            found["reg_token"] = (1, self.registers, width)
        if self.stem:
            found |= conv_stem.tensors(self.stem, width)
        else:
            found["patch_embed.proj.weight"] = (width, 3, self.patch, self.patch)
        if not self.pre_norm:
            found[f"{conv_stem.last(self.stem)}.bias"] = (width,)
        norms = {"norm_pre": self.pre_norm, "fc_norm": self.fc_norm}
        norms["norm"] = self.final_norm and not self.fc_norm
        for name in [name for name, there in norms.items() if there]:
            found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        for index in range(self.depth):
            found |= {f"blocks.{index}.{name}": shape for name, shape in self._block().items()}
        return found

    def _block(self) -> dict[str, tuple[int, ...]]:
        width = self.width
        second = self.mlp // 2 if self.swiglu else self.mlp
        found = block_shapes(
            width, self.mlp, second, qkv_bias=self.qkv_bias, proj_bias=self.proj_bias
        )
        if self.qk_norm:
            for name in ("attn.q_norm", "attn.k_norm"):
                size = width // self.heads
                found |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        if self.layer_scale:
            found |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        return found


def block_shapes(
    width: int, mlp: int, second: int | None = None, *, qkv_bias: bool, proj_bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a pre-norm block by timm's names.

    mlp: width of the hidden layer's output. second: of what its second layer takes, if another.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, out, into, bias in (
        ("attn.qkv", 3 * width, width, qkv_bias),
        ("attn.proj", width, width, proj_bias),
        ("mlp.fc1", mlp, width, proj_bias),
        ("mlp.fc2", width, second or mlp, proj_bias),
    ):
        found[f"{name}.weight"] = (out, into)
        if bias:
            found[f"{name}.bias"] = (out,)
    for name in ("norm1", "norm2"):
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return found


def spec(
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    resize: Resize = "antialias",
) -> ViTSpec:
    """The Vision Transformer that tensors of these shapes, by timm's names, belong to.

    heads, eps: of a config.json; else what is usual. Raises CheckpointError if the shapes fit none.
    """
    stem = conv_stem.channels(shapes)
    width, patch = conv_stem.sizes(stem, shapes, origin) if stem else patches(shapes, origin)
    registers = _length(shapes, "reg_token")
    grid, positioned = _grid(shapes, origin)
    head_dim = shapes.get("blocks.0.attn.q_norm.weight", (0,))[0]
    stored = width // head_dim if head_dim else 0
    second = shapes.get("blocks.0.mlp.fc2.weight", ())
    mlp = hidden(shapes, "blocks.0.mlp.fc1.weight", origin)
    swiglu = len(second) == 2 and mlp == 2 * second[1]
    # A mask token of two dimensions is DINOv2's, whose models without registers have the offset.
    dinov2 = len(shapes.get("mask_token", ())) == 2 and not registers
    count, why, decided = heads_of(width, stored, "attn.q_norm", heads)
    why["position_offset"] = "DINOv2's without registers" if dinov2 else USUAL
    if eps is None:
        why["eps"] = USUAL
    else:
        decided["eps"] = eps_by_config(eps)
    if swiglu:
        why["gate"] = "DINOv2's"
    return ViTSpec(
        width=width,
        depth=depth(shapes),
        heads=count,
        patch=patch,
        grid=grid,
        mlp=mlp,
        swiglu=swiglu,
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
        eps=EPS if eps is None else eps,
        resize=resize,
        position_offset=DINO_OFFSET if dinov2 else 0.0,
        stem=stem,
        why=why,
        decided=decided,
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


def heads_of(
    width: int, stored: int, place: str, config: int | None
) -> tuple[int, dict[str, str], dict[str, str]]:
    """The number of attention heads, 0 if nothing says it, and `why` or `decided` of a spec.

    stored: the number that a tensor, `place`, has; 0 if there is none. config: of a config.json.
    """
    if stored or config:
        place = place if stored else "config.json"
        return stored or config or 0, {}, {"heads": f"{place} has {stored or config} heads"}
    return HEADS.get(width, 0), {"heads": f"usual for width {width}"}, {}


def eps_by_config(eps: float) -> str:
    """What decides a LayerNorm's eps that a config.json has."""
    return f"config.json has layer_norm_eps {eps:g}"


def check_heads(spec: Any, origin: str) -> None:
    """Raise CheckpointError for a ViT whose heads nothing says, SettingsError for impossible ones.

    A spec without heads passes.
    """
    heads: int | None = getattr(spec, "heads", None)
    if heads == 0:
        raise CheckpointError(
            f"{origin}: a ViT of width {spec.width}, whose number of attention heads the weights "
            f"do not say; known widths: {', '.join(map(str, HEADS))}; set it with --assume "
            "heads=N, or name the architecture with --arch"
        )
    if heads is not None and spec.width % heads and spec.why.get("heads") == SET:
        raise SettingsError(
            f"--assume heads={heads}: {origin}: does not divide the width {spec.width}; give "
            "another number"
        )


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


def grid_of_positions(shapes: Mapping[str, tuple[int, ...]], origin: str) -> int:
    """Patches a side by the position embedding; raises CheckpointError."""
    return _grid(shapes, origin)[0]


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


def grid_of(size: int, patch: int) -> int:
    """Patches a side of an image; raises CheckpointError unless they fill it."""
    if size < 1 or size % patch:
        raise CheckpointError(
            f"image size {size} is not a multiple of the ViT's patch size {patch}; "
            f"use --image-size {max(1, round(size / patch)) * patch}"
        )
    return size // patch
