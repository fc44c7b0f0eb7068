"""The specs of Vision Transformers that rotate queries and keys by the position of their patch.

    q -> q cos a + R(q) sin a, k too        R maps each pair of numbers (x, y) to (-y, x)

The angles a [tokens, head width] are linear in a patch's coordinates:

    DINOv3     (i + 1/2) / side scaled to [-1, 1], of row and column; 2 pi times that over each of
               `periods`; a number and the one half a head's width after it are a pair
    CAPI       i / (side - 1), of row and column; times `freqs` [2, head width] of each block; pairs
               as in DINOv3. Registers have places on the edge of the image
    V-JEPA 2   numbers of frame, row and column; times base^(-2 j / d), where each of the three has
               d numbers, a third of the head's width; neighbours are pairs, but number j has
               frequency j mod d/2, as in its code

DINOv3's class token and registers are not rotated. Its own files have the periods, for those of
Hugging Face they follow from a base. The blocks are those of a usual ViT. The embedding is the
class token if there is one, else the mean of the patch tokens.

A patch of V-JEPA 2 has 2 frames. A still is repeated as 2 frames, or as `--assume frames=N` sets;
its authors' probe on ImageNet has 16. This file needs no torch; the module is in models/rope.py.

Sources: Siméoni et al. 2025 (DINOv3); Darcet et al. 2025 (CAPI); Assran et al. 2025 (V-JEPA 2).
facebookresearch/dinov3 at 6876159: dinov3/layers, models/vision_transformer.py, hub/backbones.py;
facebookresearch/capi at 98b4fa1: model.py; facebookresearch/vjepa2 at c2963a4: src/models;
transformers 5.24: models/dinov3_vit, models/vjepa2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import Shapes, layernorm, linear, number_of_blocks, repeated
from lidar_cli.errors import CheckpointError, SettingsError

Rotation = Literal["dinov3", "capi", "vjepa2"]

DINOV3_ANCHOR = "rope_embed.periods"
HF_DINOV3_ANCHOR = "layer.0.attention.o_proj.weight"
CAPI_ANCHOR = "encoder.blocks.0.residual1.fn.rope.freqs"
VJEPA2_ANCHOR = f"{vit.PATCHES}.weight"  # of five axes
HF_VJEPA2_ANCHOR = "encoder.embeddings.patch_embeddings.proj.weight"
RELEASED = "of the published files"
EPS = 1e-5  # LayerNorm's and RMSNorm's in the published DINOv3 and CAPI
DINOV3_BASE, VJEPA2_BASE = 100.0, 10000.0
DINOV3_HEAD_WIDTHS = {4096: 128}  # by the model's width; 64 for all others
VJEPA2_HEADS = {1408: 22, 1664: 26}

FROM_DINOV3 = (
    (r"storage_tokens$", "reg_token"),
    (r"(blocks\.\d+\.mlp\.)(?:fc1|w2)\.", r"\1up."),
    (r"(blocks\.\d+\.mlp\.)w1\.", r"\1gate."),
    (r"(blocks\.\d+\.mlp\.)(?:fc2|w3)\.", r"\1down."),
)
FROM_HF_DINOV3 = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"layer\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)attention\.([qkv])_proj\.", r"\1attn.\2."),
    (r"(blocks\.\d+\.)attention\.o_proj\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.mlp\.)(up|gate|down)_proj\.", r"\1\2."),
    (r"(blocks\.\d+\.)layer_scale([12])\.lambda1$", r"\1ls\2.gamma"),
)
FROM_CAPI = (
    (r"registers$", "reg_token"),
    (r"patch_embed\.", "patch_embed.proj."),
    (r"encoder\.", ""),
    (r"(blocks\.\d+\.)residual1\.fn\.([qkv])_proj\.", r"\1attn.\2."),
    (r"(blocks\.\d+\.)residual1\.fn\.", r"\1attn."),
    (r"(blocks\.\d+\.)residual2\.fn\.fc1\.", r"\1mlp.up."),
    (r"(blocks\.\d+\.)residual2\.fn\.fc2\.", r"\1mlp.down."),
    (r"(blocks\.\d+\.)residual([12])\.norm\.", r"\1norm\2."),
)
FROM_VJEPA2 = (
    (r"(blocks\.\d+\.mlp\.)fc1\.", r"\1up."),
    (r"(blocks\.\d+\.mlp\.)fc2\.", r"\1down."),
)
FROM_HF_VJEPA2 = (
    (r"encoder\.embeddings\.patch_embeddings\.", "patch_embed."),
    (r"encoder\.layernorm\.", "norm."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)attention\.([qkv])\w*\.", r"\1attn.\2."),
    (r"(blocks\.\d+\.)attention\.", r"\1attn."),
    *FROM_VJEPA2,
)
# Tensors that only training needs.
DINOV3_UNUSED = ("mask_token", "local_cls_norm.")
HF_DINOV3_UNUSED = ("embeddings.mask_token",)
CAPI_UNUSED = ("decoder.", "mask_token")
HF_VJEPA2_UNUSED = ("predictor.",)


@dataclass(frozen=True, kw_only=True)
class RopeViTSpec(vit.TransformerSpec):
    """Sizes and optional parts of a ViT with rotary positions."""

    rotation: Rotation
    linears: Mapping[str, bool]  # linear layers of a block -> whether they have a bias
    grid: int = 0  # the weights do not determine it
    class_token: bool = False
    registers: int = 0
    periods: bool = False  # whether the file has DINOv3's periods
    rope_base: float = 0.0  # of the frequencies that the file lacks
    masked_bias: bool = False  # whether a mask multiplies the bias of queries, keys and values
    layer_scale: bool = False
    gate: str = "silu"  # activation in a SwiGLU, 'silu' or 'gelu'
    class_norm: bool = False  # whether class token and registers have another last norm
    rms_norm: bool = False  # RMSNorm, the last one without weights, in place of LayerNorm
    tubelet: int = 0  # frames of a patch, 0 for a patch of an image
    frames: int = 1  # as which a still is repeated

    @property
    def image_size(self) -> None:  # type: ignore[override]
        """None, since the weights do not determine it."""

    @property
    def head_width(self) -> int:
        """The width of one head's queries."""
        return self.width // self.heads

    @property
    def swiglu(self) -> bool:
        """Whether the MLPs are SwiGLUs."""
        return "mlp.gate" in self.linears

    @property
    def arch(self) -> str:
        """Such as 'vit_small_patch16 (4 registers, RoPE)'."""
        notes = [f"{self.registers} registers"] if self.registers else []
        notes += ["SwiGLU"] if self.swiglu else []
        notes += [] if self.class_token else ["no class token"]
        notes += [f"{self.tubelet} frames a patch"] if self.tubelet else []
        return self.named("vit", self.depth, [*notes, "RoPE"])

    def check_open(self, origin: str) -> None:
        """As in `TransformerSpec`; raises SettingsError for a part of a patch's frames too."""
        super().check_open(origin)
        if self.tubelet and self.frames % self.tubelet:
            raise SettingsError(
                f"--assume frames={self.frames}: {origin}: each patch has {self.tubelet} frames; "
                "give a multiple",
                code="impossible-frames",
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the module.

        Raises ValueError if a head has no whole number of pairs on each axis.
        """
        if self.width % self.heads or self.head_width % (4 if self.rotation == "dinov3" else 2):
            raise ValueError(f"{self.heads} heads of width {self.width}")
        width, pixels = self.width, (self.patch, self.patch)
        patch = (self.tubelet, *pixels) if self.tubelet else pixels
        shapes: dict[str, tuple[int, ...]] = {
            f"{vit.PATCHES}.weight": (width, self.channels, *patch)
        }
        shapes[f"{vit.PATCHES}.bias"] = (width,)
        if self.class_token:
            shapes["cls_token"] = (1, 1, width)
        if self.registers:
            shapes["reg_token"] = (1, self.registers, width)
        if self.periods:
            shapes[DINOV3_ANCHOR] = (self.head_width // 4,)
        if not self.rms_norm:
            shapes |= layernorm("norm", width)
        if self.class_norm:
            shapes |= layernorm("cls_norm", width)
        return shapes | repeated("blocks", self.depth, self._block())

    def linear_sizes(self, name: str) -> tuple[int, int]:
        """The widths of a linear layer's output and input."""
        return {
            "attn.qkv": (3 * self.width, self.width),
            "mlp.up": (self.mlp, self.width),
            "mlp.gate": (self.mlp, self.width),
            "mlp.down": (self.width, self.mlp),
        }.get(name, (self.width, self.width))

    def _block(self) -> dict[str, tuple[int, ...]]:
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {}
        for name, bias in self.linears.items():
            shapes |= linear(name, *self.linear_sizes(name), bias)
        if self.masked_bias:
            shapes["attn.qkv.bias_mask"] = (3 * width,)
        if self.rotation == "capi":
            shapes["attn.rope.freqs"] = (2, self.head_width)
        for name in ("norm1", "norm2"):
            shapes |= {f"{name}.weight": (width,)} if self.rms_norm else layernorm(name, width)
        if self.layer_scale:
            shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        return shapes


def dinov3_spec(
    shapes: Shapes,
    origin: str,
    *,
    heads: int | None = None,
    eps: float | None = None,
    rope_base: float | None = None,
    gate: str | None = None,
) -> RopeViTSpec:
    """The spec of the DINOv3 with these shapes, renamed by FROM_DINOV3 or FROM_HF_DINOV3.

    heads, eps, rope_base, gate: the values in a config.json, None without one.
    Raises CheckpointError if the shapes fit no DINOv3.
    """
    width, _ = vit.patch_embedding(shapes, origin)
    (periods,) = shapes.get(DINOV3_ANCHOR) or (0,)
    by_periods = width // (4 * periods) if periods else 0
    usual = width // DINOV3_HEAD_WIDTHS.get(width, 64)
    spec = _spec(shapes, origin, "dinov3", (by_periods, DINOV3_ANCHOR), heads, usual, EPS, eps)
    spec = replace(
        spec,
        periods=bool(periods),
        rope_base=rope_base or DINOV3_BASE,
        gate=gate or "silu",
        why={**spec.why, "rope_base": RELEASED} | ({"gate": "DINOv3's"} if spec.swiglu else {}),
    )
    if periods:
        spec = spec.decide("rope_base", f"{DINOV3_ANCHOR} has the periods")
    elif rope_base is not None:
        spec = spec.decide("rope_base", f"config.json has rope_theta {rope_base:g}")
    if spec.swiglu and gate is not None:
        spec = spec.decide("gate", f"config.json has hidden_act {gate}")
    return spec


def capi_spec(shapes: Shapes, origin: str) -> RopeViTSpec:
    """The spec of CAPI's encoder with these shapes, renamed by FROM_CAPI.

    Raises CheckpointError if the shapes fit no such encoder.
    """
    width, _ = vit.patch_embedding(shapes, origin)
    freqs = shapes.get("blocks.0.attn.rope.freqs", ())
    count = width // freqs[1] if len(freqs) == 2 and freqs[1] else 0
    spec = _spec(shapes, origin, "capi", (count, "rope.freqs"), None, 0, EPS, None)
    if spec.registers % 4:
        raise CheckpointError(
            f"{origin}: {spec.registers} registers; expected as many for each edge of the image, "
            "as in CAPI; name your own code with --model",
            code="not-a-capi",
        )
    return replace(spec, rms_norm=True)


def vjepa2_spec(
    shapes: Shapes, origin: str, *, heads: int | None = None, eps: float | None = None
) -> RopeViTSpec:
    """The spec of the V-JEPA 2 with these shapes, renamed by FROM_VJEPA2 or FROM_HF_VJEPA2.

    heads, eps: the values in a config.json, None without one.
    Raises CheckpointError if the shapes fit no V-JEPA 2.
    """
    shape = shapes.get(f"{vit.PATCHES}.weight", ())
    if len(shape) != 5 or shape[3] != shape[4] or 0 in shape:
        raise CheckpointError(
            f"{origin}: the patch embedding of the V-JEPA 2, {vit.PATCHES}.weight, is "
            f"{list(shape) or 'missing'}; expected [width, 3, frames, patch, patch]; name your own "
            "code with --model",
            code="not-a-vjepa2",
        )
    image = {**shapes, f"{vit.PATCHES}.weight": (*shape[:2], *shape[3:])}
    usual = VJEPA2_HEADS.get(shape[0], vit.HEADS.get(shape[0], 0))
    spec = _spec(image, origin, "vjepa2", (0, ""), heads, usual, vit.EPS, eps)
    why = {"rope_base": "in its code", "frames": "least for a patch; its ImageNet probe has 16"}
    return replace(
        spec,
        tubelet=shape[2],
        frames=shape[2],
        rope_base=VJEPA2_BASE,
        why={**spec.why, **why},
    )


def _spec(
    shapes: Shapes,
    origin: str,
    rotation: Rotation,
    by_shape: tuple[int, str],
    heads: int | None,
    usual_heads: int,
    usual_eps: float,
    eps: float | None,
) -> RopeViTSpec:
    """The fields that follow from the shapes by the names in `models/rope.py`.

    by_shape: the number of heads that a tensor determines, 0 if none does, and its name. heads,
    eps: the values in a config.json. usual_heads, usual_eps: without one.
    """
    width, patch = vit.patch_embedding(shapes, origin)
    count, why, decided = vit.attention_heads(width, *by_shape, heads)
    if eps is None:
        why["eps"] = RELEASED
    else:
        decided["eps"] = vit.eps_by_config(eps)
    fused = "blocks.0.attn.qkv.weight" in shapes
    names = ["attn.qkv"] if fused else ["attn.q", "attn.k", "attn.v"]
    names += ["attn.proj", "mlp.up", "mlp.down"]
    names += ["mlp.gate"] if "blocks.0.mlp.gate.weight" in shapes else []
    registers = shapes.get("reg_token", ())
    return RopeViTSpec(
        rotation=rotation,
        width=width,
        channels=vit.input_channels(shapes),
        depth=number_of_blocks(shapes),
        heads=usual_heads if "heads" in why else count,
        patch=patch,
        mlp=vit.mlp_width(shapes, "blocks.0.mlp.up.weight", origin),
        linears={name: f"blocks.0.{name}.bias" in shapes for name in names},
        class_token="cls_token" in shapes,
        registers=registers[1] if len(registers) == 3 else 0,
        masked_bias={"blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias_mask"} <= shapes.keys(),
        layer_scale="blocks.0.ls1.gamma" in shapes,
        class_norm="cls_norm.weight" in shapes,
        eps=usual_eps if eps is None else eps,
        why=why,
        decided=decided,
    )
