"""What DINOv2 and its kin add to a ViT, against forward passes written out, and against timm."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import literal
import pytest
import timm
import torch
from literal import assert_close, images, normed, random_weights
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lidar_cli.checkpoints.formats.format import USUAL_ATTENTION_HEADS
from lidar_cli.checkpoints.models.vit import ViT
from lidar_cli.checkpoints.models.weights import fill, shapes_of
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.spec import renamed
from lidar_cli.errors import CheckpointError

WIDTH, HEADS, PATCH, GRID, DEPTH = 24, 3, 4, 4, 3


def dinov2_weights(registers: int = 4, glu: bool = True, grid: int = GRID) -> dict[str, Tensor]:
    """A DINOv2 backbone by the names of its repository."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, WIDTH)
    for i in range(DEPTH):
        name = f"blocks.{i}"
        shapes |= literal.block_shapes(name, WIDTH, 4 * WIDTH)
        shapes |= {f"{name}.ls1.gamma": (WIDTH,), f"{name}.ls2.gamma": (WIDTH,)}
        if glu:
            for layer in ("fc1", "fc2"):
                for part in ("weight", "bias"):
                    del shapes[f"{name}.mlp.{layer}.{part}"]
            shapes |= {
                f"{name}.mlp.w12.weight": (80, WIDTH),
                f"{name}.mlp.w12.bias": (80,),
                f"{name}.mlp.w3.weight": (WIDTH, 40),
                f"{name}.mlp.w3.bias": (WIDTH,),
            }
    return random_weights(shapes)


def dinov2_forward(weights: dict[str, Tensor], pixels: Tensor, positions: Tensor) -> Tensor:
    """All tokens after the norm: class token, registers, patches."""
    x = literal.patches(
        pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    )
    x = torch.cat([weights["cls_token"].expand(len(x), 1, WIDTH), x], dim=1) + positions
    if "register_tokens" in weights:  # once the positions are added
        registers = weights["register_tokens"].expand(len(x), -1, WIDTH)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    for i in range(DEPTH):
        name = f"blocks.{i}"
        y = normed(x, weights, f"{name}.norm1", 1e-6)
        x = x + weights[f"{name}.ls1.gamma"] * literal.fused_attention(
            y, weights, f"{name}.attn", HEADS
        )
        y = normed(x, weights, f"{name}.norm2", 1e-6)
        glu = f"{name}.mlp.w12.weight" in weights
        y = (
            literal.swiglu(y, weights, f"{name}.mlp", "w12", "w3")
            if glu
            else literal.mlp(y, weights, f"{name}.mlp")
        )
        x = x + weights[f"{name}.ls2.gamma"] * y
    return normed(x, weights, "norm", 1e-6)


def built(weights: dict[str, Tensor], **options: Any) -> ViT:
    """Our module with weights by DINOv2's or timm's names."""
    named = {renamed(name, vit.FROM_DINOV2): tensor for name, tensor in weights.items()}
    model = build(vit.spec(shapes_of(named), "here", **({"heads": HEADS} | options)))
    fill(model.weights, {n: t for n, t in named.items() if n != "mask_token"}, "here")
    return model.eval()


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_dinov2_equals_the_forward_written_out(registers: int, glu: bool) -> None:
    weights = dinov2_weights(registers, glu)
    model = built(weights)
    expected = dinov2_forward(weights, images(16), weights["pos_embed"])
    assert_close(model.tokens(images(16)), expected)
    assert_close(model(images(16)), expected[:, 0])


@torch.no_grad()
def test_dinov2_equals_timm_after_timms_own_conversion() -> None:
    weights = dinov2_weights()
    peer = VisionTransformer(
        img_size=16, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=80.5 / WIDTH, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, init_values=1.0,
        reg_tokens=4, no_embed_class=True, num_classes=0,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    peer.load_state_dict(checkpoint_filter_fn(dict(weights), peer))
    assert_close(built(weights)(images(16)), peer.eval()(images(16)))


def test_published_architecture_has_the_names_and_sizes_of_timms_giant() -> None:
    """But for its depth, which would take memory."""
    peer = timm.create_model("vit_giant_patch14_reg4_dinov2", num_classes=0, img_size=518, depth=1)
    shapes = shapes_of(peer.state_dict())
    spec = vit.spec(shapes, "here")
    assert (spec.heads, spec.mlp, spec.swiglu) == (24, 8192, True)
    assert shapes_of(build(spec).weights.state_dict()) == shapes


# width: a model of timm's, whose modules name the heads; None for 64 numbers a head, as in all of
# the ViT and DeiT papers' models below the huge one.
HEAD_TABLE = {
    128: None,
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
    1408: "vit_giant_patch14_224",
    1536: "vit_giant_patch14_dinov2",
}


def test_every_row_of_the_table_of_heads_is_timms() -> None:
    expected = {}
    for width, name in HEAD_TABLE.items():
        expected[width] = width // 64
        if name is not None:
            with torch.device("meta"):
                peer = timm.create_model(name, depth=1, num_classes=0)
            assert peer.embed_dim == width
            expected[width] = peer.blocks[0].attn.num_heads
    assert expected == vit.HEADS
    assert expected == dict(USUAL_ATTENTION_HEADS)


def test_sizes_of_vits_are_called_as_timm_calls_them() -> None:
    for width, name in HEAD_TABLE.items():
        if name is not None:
            with torch.device("meta"):
                peer = timm.create_model(name, num_classes=0)
            assert vit.DEPTHS[width] == len(peer.blocks)
            assert f"vit_{vit.NAMES.get(width, 'giant')}_" in name


def chunked(weights: dict[str, Tensor], prefix: str, size: int) -> dict[str, Tensor]:
    """Names with the chunk of `size` blocks before the block's number among all."""
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // size))
        renamed[prefix + ".".join(parts)] = tensor
    return renamed


@pytest.mark.parametrize("kind", ["plain", "in chunks"])
def test_dinov2_files_open(kind: str, tmp_path: Path) -> None:
    """At a width whose heads are known, because the file does not have them."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=28, patch_size=14, embed_dim=192, depth=5, num_heads=3, init_values=1.0,
        num_classes=0, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    weights = random_weights(shapes_of(model.state_dict()))
    model.load_state_dict(weights)
    weights["mask_token"] = torch.zeros(1, 192)
    if kind == "in chunks":
        weights = chunked(weights, "backbone.", 2)
        assert "backbone.blocks.2.4.norm1.weight" in weights
    torch.save({"state_dict": weights}, tmp_path / "a.pt")
    loaded = open_checkpoint(tmp_path / "a.pt")
    assert loaded.description.ignored[-1].endswith("mask_token")
    expected = model.eval()(images(28)).detach()
    assert_close(loaded.embed(images(28), ["backbone"])["backbone"], expected)


def resized(positions: Tensor, new: int, factor: float) -> Tensor:
    grid = positions[0, 1:].reshape(GRID, GRID, WIDTH)
    patches = literal.cubic(grid, new, factor).reshape(1, new * new, WIDTH)
    return torch.cat([positions[:, :1], patches], dim=1)


@pytest.mark.parametrize("new", [3, 6])
@torch.no_grad()
def test_positions_are_resampled_with_dinos_offset_or_without(new: int) -> None:
    weights = dinov2_weights(registers=0, glu=False)
    pixels = images(new * PATCH)
    expected = {
        how: dinov2_forward(weights, pixels, resized(weights["pos_embed"], new, factor))
        for how, factor in (("plain", new / GRID), ("offset", (new + 0.1) / GRID))
    }
    assert (expected["plain"] - expected["offset"]).abs().max() > 1e-3
    for how, tokens in expected.items():
        model = built(weights, resize="plain")
        model.offset = 0.1 if how == "offset" else 0.0
        model.set_image_size(new * PATCH)
        assert_close(model.tokens(pixels), tokens)
    model = built(weights)  # DINOv2's mask token implies its offset
    model.set_image_size(new * PATCH)
    assert_close(model.tokens(pixels), expected["offset"])


@torch.no_grad()
def test_positions_with_registers_are_antialiased_as_in_timm() -> None:
    weights = dinov2_weights()
    model = built(weights)
    model.set_image_size(8)
    peer = timm.layers.resample_abs_pos_embed(weights["pos_embed"], [2, 2], [4, 4])
    assert_close(model.tokens(images(8)), dinov2_forward(weights, images(8), peer))
    plain = resized(weights["pos_embed"], 2, 0.5)
    assert (peer - plain).abs().max() > 1e-3, "antialiasing must show"


@torch.no_grad()
def test_positions_without_a_class_slot() -> None:
    """As I-JEPA's, whose own interpolation expects one and fails."""
    weights = dinov2_weights(registers=0, glu=False)
    del weights["cls_token"], weights["mask_token"]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    model = built(weights, resize="plain")
    model.set_image_size(24)
    grid = literal.cubic(weights["pos_embed"][0].reshape(GRID, GRID, WIDTH), 6, 1.5)
    model.eval()
    x = literal.patches(
        images(24), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    )
    x = x + grid.reshape(1, 36, WIDTH)
    for i in range(DEPTH):
        name = f"blocks.{i}"
        y = normed(x, weights, f"{name}.norm1", 1e-6)
        y = literal.fused_attention(y, weights, f"{name}.attn", HEADS)
        x = x + weights[f"{name}.ls1.gamma"] * y
        y = literal.mlp(normed(x, weights, f"{name}.norm2", 1e-6), weights, f"{name}.mlp")
        x = x + weights[f"{name}.ls2.gamma"] * y
    expected = normed(x, weights, "norm", 1e-6)
    assert_close(model(images(24)), expected.mean(1))


@torch.no_grad()
def test_epsilon_and_heads_are_parameters_that_matter() -> None:
    weights = dinov2_weights(registers=0, glu=False)
    quiet = {
        n: t * (1e-3 if n.startswith(("patch", "pos", "cls")) else 1) for n, t in weights.items()
    }
    usual, other = built(quiet)(images(16)), built(quiet, eps=1e-4)(images(16))
    assert (usual - other).abs().max() > 1e-2
    named = {renamed(n, vit.FROM_DINOV2): t.shape for n, t in weights.items()}
    spec = vit.spec(named, "here", heads=6)
    assert (spec.heads, "heads" in spec.assumed) == (6, False)
    assert (built(weights)(images(16)) - built(weights, heads=6)(images(16))).abs().max() > 1e-3
    unknown = vit.spec(named, "here")
    with pytest.raises(CheckpointError, match=r"width 24, whose number of attention heads"):
        unknown.check_open("here")


def test_the_architecture_names_its_parts() -> None:
    spec = vit.spec(
        {renamed(n, vit.FROM_DINOV2): t.shape for n, t in dinov2_weights().items()}, "x", heads=3
    )
    assert spec.arch == "vit_24_patch4 (depth 3, 4 registers, SwiGLU)"
    assert replace(spec, swiglu=False, registers=0).arch == "vit_24_patch4 (depth 3)"


@torch.no_grad()
def test_patches_that_are_kept_enter_with_their_own_positions() -> None:
    """Order is kept too: tokens are those of the blocks over the kept patches alone."""
    weights = dinov2_weights(registers=4)
    keep = torch.tensor([[3, 0, 9], [1, 2, 15], [5, 4, 3]])
    tokens = built(weights).tokens(images(16), keep)
    for i, indices in enumerate(keep):
        only = images(16)[i : i + 1]
        # The literal forward adds positions itself: give it those of the kept patches, and pixels
        # whose patches are the kept ones, laid out in a row.
        pieces = [
            only[:, :, 4 * (k // 4) : 4 * (k // 4) + 4, 4 * (k % 4) : 4 * (k % 4) + 4]
            for k in indices.tolist()
        ]
        row = torch.cat(pieces, dim=3)
        positions = weights["pos_embed"][:, [0, *(1 + indices).tolist()]]
        assert_close(tokens[i : i + 1], dinov2_forward(weights, row, positions))
