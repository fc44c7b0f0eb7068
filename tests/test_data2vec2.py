"""data2vec 2.0's post-norm encoder, against a forward pass written out on fairseq's names."""

from __future__ import annotations

from pathlib import Path

import literal
import pytest
import torch
from literal import assert_close, images, normed, random_weights
from torch import Tensor

from lidar_cli.checkpoints import data2vec2, data2vec2_module, open_checkpoint
from lidar_cli.checkpoints.data2vec2 import from_fairseq
from lidar_cli.checkpoints.data2vec2_module import Data2Vec2
from lidar_cli.checkpoints.weights import fill, shapes_of
from lidar_cli.errors import CheckpointError

PATCH, GRID = 4, 4
IMAGE = "modality_encoders.IMAGE"


def d2v2_weights(
    width: int = 24, context: int = 2, extra: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{IMAGE}.local_encoder.proj.weight": (width, 3, PATCH, PATCH),
        f"{IMAGE}.local_encoder.proj.bias": (width,),
        f"{IMAGE}.fixed_positional_encoder.positions": (1, GRID**2, width),
        f"{IMAGE}.context_encoder.norm.weight": (width,),
        f"{IMAGE}.context_encoder.norm.bias": (width,),
    }
    if extra:
        shapes[f"{IMAGE}.extra_tokens"] = (1, extra, width)
    for i in range(context):
        shapes |= literal.block_shapes(f"{IMAGE}.context_encoder.blocks.{i}", width, 4 * width)
    for i in range(3):
        shapes |= literal.block_shapes(f"blocks.{i}", width, 4 * width)
    return random_weights(shapes, seed)


def d2v2_tokens(
    weights: dict[str, Tensor], pixels: Tensor, heads: int, keep: Tensor | None = None
) -> Tensor:
    """Extra tokens and patches after the last block."""
    x = literal.patches(
        pixels,
        weights[f"{IMAGE}.local_encoder.proj.weight"],
        weights[f"{IMAGE}.local_encoder.proj.bias"],
    )
    x = x + weights[f"{IMAGE}.fixed_positional_encoder.positions"]
    if keep is not None:
        x = torch.stack([tokens[indices] for tokens, indices in zip(x, keep, strict=True)])
    if f"{IMAGE}.extra_tokens" in weights:
        x = torch.cat([weights[f"{IMAGE}.extra_tokens"].expand(len(x), -1, -1), x], dim=1)
    x = normed(x, weights, f"{IMAGE}.context_encoder.norm", 1e-6)
    blocks = [name.removesuffix(".norm1.weight") for name in weights if "norm1.weight" in name]
    for name in sorted(blocks, key=lambda name: not name.startswith(IMAGE)):
        y = x + literal.fused_attention(x, weights, f"{name}.attn", heads)
        x = normed(y, weights, f"{name}.norm1", 1e-6)
        x = normed(x + literal.mlp(x, weights, f"{name}.mlp"), weights, f"{name}.norm2", 1e-6)
    return x


def built(weights: dict[str, Tensor]) -> Data2Vec2:
    named = {from_fairseq(name): tensor for name, tensor in weights.items()}
    model = data2vec2_module.build(data2vec2.spec(shapes_of(named), "here", heads=3))
    fill(model, named, "here")
    return model


@pytest.mark.parametrize(("context", "extra"), [(2, 1), (0, 1), (2, 0), (1, 3)])
@torch.no_grad()
def test_encoder_equals_the_forward_written_out(context: int, extra: int) -> None:
    weights = d2v2_weights(context=context, extra=extra)
    expected = d2v2_tokens(weights, images(16), 3)
    model = built(weights)
    assert_close(model.tokens(images(16)), expected)
    assert_close(model(images(16)), expected[:, extra:].mean(1))


@torch.no_grad()
def test_kept_patches_enter_alone() -> None:
    weights = d2v2_weights()
    keep = torch.tensor([[3, 0, 9], [1, 2, 15], [5, 4, 3]])
    found = built(weights).tokens(images(16), keep)
    assert_close(found, d2v2_tokens(weights, images(16), 3, keep))


@torch.no_grad()
def test_positions_are_resampled_from_the_file_each_time() -> None:
    weights = d2v2_weights()
    name = f"{IMAGE}.fixed_positional_encoder.positions"
    model = built(weights)
    model.set_image_size(8)
    model.set_image_size(24)
    grid = literal.cubic(weights[name][0].reshape(GRID, GRID, -1), 6, 1.5).reshape(1, 36, -1)
    assert_close(model.tokens(images(24)), d2v2_tokens(weights | {name: grid}, images(24), 3))
    with pytest.raises(CheckpointError, match="15 is not a multiple"):
        model.set_image_size(15)


@torch.no_grad()
def test_file_opens_without_its_decoder(tmp_path: Path) -> None:
    weights = d2v2_weights(192)
    decoder = {
        f"{IMAGE}.decoder.blocks.0.0.weight": torch.ones(8, 12, 3, 3),
        f"{IMAGE}.decoder.blocks.0.0.bias": torch.ones(8),
        f"{IMAGE}.decoder.proj.weight": torch.ones(192, 8),
        f"{IMAGE}.decoder.proj.bias": torch.ones(192),
    }
    torch.save({"model": weights | decoder, "cfg": {}}, tmp_path / "a.pt")
    loaded = open_checkpoint(tmp_path / "a.pt")
    description = loaded.description
    assert description.format == "data2vec2"
    assert (description.arch, description.image_size) == ("data2vec2_tiny_patch4 (depth 5)", 16)
    assert description.ignored == (f"model.{IMAGE}.decoder",)
    assert description.parameters == sum(tensor.numel() for tensor in weights.values())
    found = loaded.embed(images(16), ["backbone"])["backbone"]
    assert_close(found, d2v2_tokens(weights, images(16), 3)[:, 1:].mean(1))


@pytest.mark.parametrize("positions", [None, (1, 15, 24), (16, 24)])
def test_positions_of_no_square_grid_are_refused(positions: tuple[int, ...] | None) -> None:
    shapes = {from_fairseq(n): s for n, s in shapes_of(d2v2_weights()).items()}
    shapes["pos_embed"] = positions or ()
    with pytest.raises(CheckpointError, match=r"positions of the data2vec 2\.0 encoder are"):
        data2vec2.spec(shapes, "here", heads=3)
