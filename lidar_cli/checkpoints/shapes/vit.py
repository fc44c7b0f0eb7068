"""The spec of a Vision Transformer from names and shapes, built with timm's class.

The shapes do not determine the number of attention heads: it is the usual one for the width, unless
the caller gives another. LayerNorm's eps is 1e-6 in all families except some of Hugging Face's.
Both are assumptions, as are the gate of a SwiGLU and the offset of positions at another image size.
The embedding is the class token if there is one and no norm after pooling (`fc_norm`), else the
mean of the patch tokens.

DINOv2 differs from timm in two ways, both supported here: registers have no position although the
class token has one, and blocks may be numbered within chunks. A SwiGLU is recognised by its first
layer, which is twice as wide as the input of the second. `mask_token`, which only masked training
uses, is ignored.

MoCo v3's vit_conv models (Xiao et al. 2021) have a convolutional stem as patch embedding:

    patch_embed.proj.{0, 3, ...}    convolutions of 3x3, stride 2, without bias
    patch_embed.proj.{1, 4, ...}    BatchNorm of each; a ReLU follows
    patch_embed.proj.{3 n}          a convolution of 1x1 to the width

n convolutions halve the image n times: a patch is 2^n pixels a side. This file needs no torch; the
module is in models/vit.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from lidar_cli.checkpoints.shapes.spec import (
    BY_USER,
    USUAL,
    Assumed,
    ModuleSpec,
    Shapes,
    Value,
    as_text,
    batchnorm,
    channels_note,
    embedding_shapes,
    layernorm,
    linear,
    number_of_blocks,
    repeated,
    with_notes,
)
from lidar_cli.errors import CheckpointError, SettingsError

ANCHOR = "blocks.0.attn.qkv.weight"
CHUNKED_ANCHOR = "blocks.0.0.attn.qkv.weight"
TORCHVISION_ANCHOR = "encoder.layers.encoder_layer_0.ln_1.weight"
MM_ANCHOR = "layers.0.ln1.weight"
PATCHES = "patch_embed.proj"
POOL = "attn_pool"

HEADS = {128: 2, 192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
NAMES = {
    192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge",
    1408: "giant", 4096: "7b",
}  # fmt: skip
DEPTHS = {
    192: 12, 384: 12, 768: 12, 1024: 24, 1152: 27, 1280: 32, 1408: 40, 1536: 40, 4096: 40,
}  # fmt: skip
EPS = 1e-6
DINO_OFFSET = 0.1  # see models/backbone.py
Resize = Literal["antialias", "plain"]  # of positions, see models/backbone.py

# torchvision's names -> timm's; the fused projection has the same order q, k, v in both.
FROM_TORCHVISION = (
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)ln_([12])\.", r"\1norm\2."),
    (r"(blocks\.\d+\.)self_attention\.in_proj_", r"\1attn.qkv."),
    (r"(blocks\.\d+\.)self_attention\.out_proj\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.mlp\.)(?:0|linear_1)\.", r"\1fc1."),
    (r"(blocks\.\d+\.mlp\.)(?:3|linear_2)\.", r"\1fc2."),
)
# DINOv2's names -> timm's. A block's chunk comes before its number among all blocks.
FROM_DINOV2 = (
    (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"register_tokens$", "reg_token"),
    (r"(blocks\.\d+\.mlp\.)w12\.", r"\1fc1."),
    (r"(blocks\.\d+\.mlp\.)w3\.", r"\1fc2."),
)


# mmpretrain's names -> timm's, and BEiT's.
FROM_MM = (
    (r"ln1\.", "norm."),
    (r"ln2\.", "fc_norm."),
    (r"pre_norm\.", "norm_pre."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(?=\d+\.)", "blocks."),
    (r"(blocks\.\d+\.)ln([12])\.", r"\1norm\2."),
    (r"(blocks\.\d+\.)attn\.gamma1\.weight$", r"\1ls1.gamma"),
    (r"(blocks\.\d+\.)ffn\.gamma2\.(?:weight|scale)$", r"\1ls2.gamma"),
    (r"(blocks\.\d+\.)ffn\.layers\.0\.0\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)ffn\.layers\.1\.", r"\1mlp.fc2."),
)


@dataclass(frozen=True, kw_only=True)
class TransformerSpec(ModuleSpec):
    """The sizes that all transformers of image patches have."""

    width: int
    depth: int  # blocks
    heads: int  # attention heads, 0 if unknown
    patch: int  # pixels a side
    grid: int  # patches a side; rows of a rectangular grid
    mlp: int  # width of the first MLP layer's output
    eps: float = EPS  # of LayerNorm
    channels: int = 3  # of the images

    @property
    def token_width(self) -> int:  # type: ignore[override]
        """The width of patch tokens."""
        return self.width

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that the position embedding is for."""
        return self.grid * self.patch

    def named(self, kind: str, depth: int, notes: list[str]) -> str:
        """Such as 'vit_tiny_patch4 (depth 2, no class token)'."""
        notes = [*(channels_note(self.channels)), *notes]
        usual = depth == DEPTHS.get(self.width)
        name = f"{kind}_{NAMES.get(self.width, str(self.width))}_patch{self.patch}"
        return with_notes(name, notes if usual else [f"depth {depth}", *notes])

    def check_open(self, origin: str) -> None:
        """Raise CheckpointError for an unknown number of heads, SettingsError for a wrong one."""
        if self.heads == 0:
            raise CheckpointError(
                f"{origin}: a ViT of width {self.width}, whose number of attention heads the "
                f"weights do not say; known widths: {', '.join(map(str, HEADS))}; set it with "
                "--assume heads=N, or name the architecture with --arch",
                code="unknown-heads",
            )
        if self.width % self.heads and self.why.get("heads") == BY_USER:
            raise SettingsError(
                f"--assume heads={self.heads}: {origin}: does not divide the width {self.width}; "
                "give another number",
                code="impossible-heads",
            )


@dataclass(frozen=True, kw_only=True)
class ViTSpec(TransformerSpec):
    """Sizes and optional parts of a Vision Transformer."""

    swiglu: bool  # whether the MLPs are SwiGLUs
    class_token: bool
    registers: int
    positioned: int  # number of class and register tokens that have a position embedding
    qkv_bias: bool
    qk_norm: bool
    proj_bias: bool
    layer_scale: bool
    pre_norm: bool
    final_norm: bool
    fc_norm: bool
    resize: Resize = "antialias"  # how positions are resized for another image size
    position_offset: float = 0.0  # added to the new grid's side then, see models/backbone.py
    gate: str = "silu"  # activation in a SwiGLU, 'silu' or 'gelu'
    mean_pooled: bool = False  # whether patch tokens are averaged though there is a class token
    embedding: tuple[int, ...] = ()  # shape of the weight of a last Linear layer, () without one
    block_activation: str = "gelu"  # in MLPs that are no SwiGLUs: or 'quick_gelu', 'gelu_tanh'
    attention_pool: bool = False  # whether a probe that attends to all tokens pools them, as SigLIP
    stem: tuple[int, ...] = ()  # channels of a convolutional stem's 3x3 layers, () without one
    tokens: int  # number of tokens that have a position embedding
    columns: int  # patches in a row of the grid

    @property
    def image_size(self) -> int:
        """Pixels a side of the images; the shorter side, if they are not square."""
        return min(self.grid, self.columns) * self.patch

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Other assumptions, in words."""
        if self.grid == self.columns:
            return ()
        grid = f"{self.grid} x {self.columns} patches"
        return (f"square views, to which the positions of {grid} are resized",)

    def assume(self, key: str, value: Value, why: str) -> Self:
        """As in `ModuleSpec`; raises SettingsError for a grid of another number of patches."""
        if key != "grid" or not isinstance(value, tuple):
            return super().assume(key, value, why)
        first = int(self.class_token)
        positioned = self.tokens - math.prod(value)
        if positioned not in (0, first, first + self.registers):
            raise SettingsError(
                f"--assume grid={as_text(value, 'x')}: {math.prod(value)} patches, where "
                f"{self.tokens} tokens have a position, of the class token too if it has one; "
                "give rows x columns",
                code="impossible-grid",
            )
        sides: dict[str, Any] = dict(zip(("grid", "columns"), value, strict=True))
        why_all = {**self.why, "grid": why}
        return dataclasses.replace(self, **sides, positioned=positioned, why=why_all)

    @property
    def assumed(self) -> dict[str, Assumed]:
        """As in `ModuleSpec`, with both sides of the grid."""
        sides = {"grid": (self.grid, self.columns)}
        return {
            key: Assumed(sides.get(key, one.value), one.why) for key, one in super().assumed.items()
        }

    def check_open(self, origin: str) -> None:
        """As in `TransformerSpec`; raises CheckpointError for an unknown grid too."""
        super().check_open(origin)
        if self.tokens == 0:
            name = f"vit_{NAMES.get(self.width, 'SIZE')}_patch{self.patch}_dinov3"
            raise CheckpointError(
                f"{origin}: the ViT has no position embedding; if it is DINOv3 by timm's names, "
                f"give its name in timm, such as --arch {name}",
                code="no-positions",
            )
        if self.grid == 0:
            raise unknown_grid(self.tokens, int(self.class_token) + self.registers, origin)

    @property
    def output_width(self) -> int:
        """The width of the embedding."""
        return self.embedding[0] if self.embedding else self.width

    @property
    def arch(self) -> str:
        """Such as 'vit_small_patch16'."""
        notes = []
        if self.grid != self.columns:
            notes.append(f"{self.grid} x {self.columns} patches")
        if self.registers:
            notes.append(f"{self.registers} registers")
        if self.swiglu:
            notes.append("SwiGLU")
        if self.attention_pool:
            notes.append("attention pooling")
        elif not self.class_token:
            notes.append("no class token")
        elif self.mean_pooled:
            notes.append("mean of patch tokens")
        if self.embedding:
            notes.append(f"Linear to {self.output_width}")
        if self.stem:
            notes.append("convolutional stem")
        return self.named("vit", self.depth, notes)

    def masks(self, teacher: bool) -> tuple[str, ...]:
        """I-JEPA's rule, if the embedding is the mean of the patch tokens."""
        no_mean = self.class_token or self.registers or self.fc_norm or self.attention_pool
        return () if no_mean else ("multi-block",)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """timm's name -> shape of every tensor of the module."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, self.tokens, width)}
        if self.class_token:
            shapes["cls_token"] = (1, 1, width)
        if self.registers:
            shapes["reg_token"] = (1, self.registers, width)
        if self.stem:
            shapes |= _stem_shapes(self.stem, width, self.channels)
        else:
            shapes[f"{PATCHES}.weight"] = (width, self.channels, self.patch, self.patch)
        if not self.pre_norm:
            shapes[f"{_last_layer(self.stem)}.bias"] = (width,)
        norms = {"norm_pre": self.pre_norm, "fc_norm": self.fc_norm}
        norms["norm"] = self.final_norm and not self.fc_norm
        for name in [name for name, present in norms.items() if present]:
            shapes |= layernorm(name, width)
        if self.embedding:
            shapes |= embedding_shapes(self.embedding)
        if self.attention_pool:
            shapes |= _pool_shapes(width, self.mlp)
        return shapes | repeated("blocks", self.depth, self._block())

    def _block(self) -> dict[str, tuple[int, ...]]:
        width, second = self.width, self.mlp // 2 if self.swiglu else self.mlp
        shapes = block_shapes(
            width, self.mlp, second, qkv_bias=self.qkv_bias, proj_bias=self.proj_bias
        )
        if self.qk_norm:
            size = width // self.heads
            shapes |= layernorm("attn.q_norm", size) | layernorm("attn.k_norm", size)
        if self.layer_scale:
            shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        return shapes


def _pool_shapes(width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an attention pooling, by Hugging Face's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
    }
    shapes |= linear("attention.out_proj", width, width) | layernorm("layernorm", width)
    shapes |= linear("mlp.fc1", mlp, width) | linear("mlp.fc2", width, mlp)
    return {f"{POOL}.{name}": shape for name, shape in shapes.items()}


def block_shapes(
    width: int, mlp: int, second: int | None = None, *, qkv_bias: bool, proj_bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a transformer block, by timm's names.

    mlp: width of the first MLP layer's output. second: width of the second layer's input, None if
    it is the same.
    """
    shapes = linear("attn.qkv", 3 * width, width, qkv_bias)
    shapes |= linear("attn.proj", width, width, proj_bias)
    shapes |= linear("mlp.fc1", mlp, width, proj_bias)
    shapes |= linear("mlp.fc2", width, second or mlp, proj_bias)
    return shapes | layernorm("norm1", width) | layernorm("norm2", width)


def spec(
    shapes: Shapes,
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    resize: Resize = "antialias",
) -> ViTSpec:
    """The spec of the Vision Transformer with these shapes, by timm's names.

    heads, eps: the values in a config.json, None for the usual ones.
    Raises CheckpointError if the shapes fit no Vision Transformer.
    """
    stem = _stem(shapes)
    width, patch = _stem_sizes(stem, shapes, origin) if stem else patch_embedding(shapes, origin)
    registers = _length(shapes, "reg_token")
    grid, positioned = _grid(shapes)
    head_dim = shapes.get("blocks.0.attn.q_norm.weight", (0,))[0]
    by_norm = width // head_dim if head_dim else 0
    second = shapes.get("blocks.0.mlp.fc2.weight", ())
    mlp = mlp_width(shapes, "blocks.0.mlp.fc1.weight", origin)
    swiglu = len(second) == 2 and mlp == 2 * second[1]
    # Only DINOv2's mask token has two dimensions; its models without registers have the offset.
    dinov2 = len(shapes.get("mask_token", ())) == 2 and not registers
    count, why, decided = attention_heads(width, by_norm, "attn.q_norm", heads)
    why["position_offset"] = "DINOv2's without registers" if dinov2 else USUAL
    if eps is None:
        why["eps"] = USUAL
    else:
        decided["eps"] = eps_by_config(eps)
    if not grid:
        why["grid"] = "unknown"
    if swiglu:
        why["gate"] = "DINOv2's"
    return ViTSpec(
        width=width,
        depth=number_of_blocks(shapes),
        heads=count,
        patch=patch,
        grid=grid,
        columns=grid,
        tokens=_length(shapes, "pos_embed"),
        channels=input_channels(shapes),
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
        embedding=shapes.get("embedding.weight", ()),
        attention_pool=f"{POOL}.probe" in shapes,
        stem=stem,
        why=why,
        decided=decided,
    )


def patch_embedding(shapes: Shapes, origin: str) -> tuple[int, int]:
    """Width and patch size, from the patch embedding; raises CheckpointError."""
    shape = shapes.get(f"{PATCHES}.weight", ())
    if len(shape) != 4 or 0 in shape or shape[2] != shape[3]:
        raise CheckpointError(
            f"{origin}: the patch embedding of the ViT, {PATCHES}.weight, is "
            f"{list(shape) or 'missing'}; expected [width, channels, patch, patch]; "
            "name the architecture with --arch",
            code="not-a-vit",
        )
    return shape[0], shape[2]


def input_channels(shapes: Shapes) -> int:
    """The channels of the images, from the first convolution of the patch embedding."""
    shape = shapes.get(f"{PATCHES}.weight") or shapes.get(f"{PATCHES}.0.weight") or (0, 3)
    return shape[1]


def attention_heads(
    width: int, by_shape: int, tensor: str, config: int | None
) -> tuple[int, dict[str, str], dict[str, str]]:
    """The number of attention heads, 0 if unknown, and what `why` and `decided` have about it.

    by_shape: the number that the shape of `tensor` determines, 0 without such a tensor. config: the
    number in a config.json.
    """
    count = by_shape or config or 0
    if count:
        return count, {}, {"heads": f"{tensor if by_shape else 'config.json'} has {count} heads"}
    return HEADS.get(width, 0), {"heads": f"usual for width {width}"}, {}


def eps_by_config(eps: float) -> str:
    """The sentence that a config.json determines LayerNorm's eps."""
    return f"config.json has layer_norm_eps {eps:g}"


def mlp_width(shapes: Shapes, name: str, origin: str) -> int:
    """The width of a first MLP layer's output; raises CheckpointError if the layer is missing."""
    shape = shapes.get(name, ())
    if not shape or shape[0] < 1:
        raise CheckpointError(
            f"{origin}: the ViT lacks {name}; expected two-layer MLPs by timm's "
            "names; name the architecture with --arch",
            code="not-a-vit",
        )
    return shape[0]


def _length(shapes: Shapes, name: str) -> int:
    """The number of tokens in a tensor [1, tokens, width], 0 if it is absent."""
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == 3 else 0


def grid_of_positions(shapes: Shapes) -> int:
    """Patches a side, from the position embedding; 0 if they form no square."""
    return _grid(shapes)[0]


def _grid(shapes: Shapes) -> tuple[int, int]:
    """Patches a side, and how many class and register tokens have positions, which come first.

    0 patches if they form no square.
    """
    length = _length(shapes, "pos_embed")
    registers = _length(shapes, "reg_token")
    first = int("cls_token" in shapes)
    prefix = first + registers
    # Models with registers usually give them no position, so this is tried first.
    for positioned in [0, first, prefix] if registers else [prefix, 0]:
        side = math.isqrt(max(length - positioned, 0))
        if side > 0 and side * side == length - positioned:
            return side, positioned
    return 0, first


def unknown_grid(tokens: int, prefix: int, origin: str) -> CheckpointError:
    """The error for positions that form no square. prefix: the number of other tokens."""
    patches = tokens - min(prefix, 1)
    hint = "name the architecture with --arch"
    if patches > 1:
        rows = next(n for n in range(math.isqrt(patches), 0, -1) if patches % n == 0)
        grid = f"{rows}x{patches // rows}"  # of the sides most alike
        hint = f"if the grid is not square, give it: --assume grid={grid}"
    return CheckpointError(
        f"{origin}: the position embedding of the ViT, pos_embed, has {tokens} tokens; expected a "
        f"square number, with or without {prefix} more; {hint}",
        code="unknown-grid",
    )


def grid_of(size: int, patch: int) -> int:
    """Patches a side of an image; raises CheckpointError if the size is not a multiple."""
    if size < 1 or size % patch:
        raise CheckpointError(
            f"image size {size} is not a multiple of the ViT's patch size {patch}; "
            f"use --image-size {max(1, round(size / patch)) * patch}",
            code="image-size",
        )
    return size // patch


def _last_layer(stem: tuple[int, ...]) -> str:
    """The name of the last layer of the patch embedding, with or without a stem."""
    return f"{PATCHES}.{3 * len(stem)}" if stem else PATCHES


def _stem(shapes: Shapes) -> tuple[int, ...]:
    """Output channels of the stem's 3x3 convolutions, in order; () if there is no stem."""
    channels: list[int] = []
    while True:
        shape = shapes.get(f"{PATCHES}.{3 * len(channels)}.weight", ())
        if len(shape) != 4 or shape[2:] != (3, 3):
            return tuple(channels)
        channels.append(shape[0])


def _stem_sizes(stem: tuple[int, ...], shapes: Shapes, origin: str) -> tuple[int, int]:
    """Width and patch size with a stem; raises CheckpointError if its last layer is missing."""
    name = f"{_last_layer(stem)}.weight"
    shape = shapes.get(name, ())
    if len(shape) != 4:
        raise CheckpointError(
            f"{origin}: the convolutional stem of the ViT lacks {name}; expected "
            "[width, channels, 1, 1]; name the architecture with --arch",
            code="not-a-vit",
        )
    return shape[0], 2 ** len(stem)


def _stem_shapes(stem: tuple[int, ...], width: int, into: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a stem, except the bias of the last layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, out in enumerate(stem):
        shapes[f"{PATCHES}.{3 * index}.weight"] = (out, into, 3, 3)
        shapes |= batchnorm(f"{PATCHES}.{3 * index + 1}", out)
        into = out
    return shapes | {f"{_last_layer(stem)}.weight": (width, into, 1, 1)}
