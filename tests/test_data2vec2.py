"""data2vec 2.0's post-norm encoder, against a forward pass written out on fairseq's names."""

from __future__ import annotations

from pathlib import Path

import literal
import pytest
import torch
from data2vec2_forward import GRID, IMAGE, d2v2_tokens, d2v2_weights
from literal import assert_close, images
from raising import raises
from torch import Tensor

from lidar_cli.checkpoints.models.data2vec2 import Data2Vec2
from lidar_cli.checkpoints.models.weights import fill, shapes_of
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.checkpoints.shapes import data2vec2
from lidar_cli.checkpoints.shapes.spec import renamed
from lidar_cli.errors import CheckpointError


def built(weights: dict[str, Tensor]) -> Data2Vec2:
    named = {renamed(name, data2vec2.FROM_FAIRSEQ): tensor for name, tensor in weights.items()}
    model = build(data2vec2.spec(shapes_of(named), "here").assume("heads", 3, "set"))
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
    tokens = built(weights).tokens(images(16), keep)
    assert_close(tokens, d2v2_tokens(weights, images(16), 3, keep))


@torch.no_grad()
def test_positions_are_resampled_from_the_file_each_time() -> None:
    weights = d2v2_weights()
    name = f"{IMAGE}.fixed_positional_encoder.positions"
    model = built(weights)
    model.set_image_size(8)
    model.set_image_size(24)
    grid = literal.cubic(weights[name][0].reshape(GRID, GRID, -1), 6, 1.5).reshape(1, 36, -1)
    assert_close(model.tokens(images(24)), d2v2_tokens(weights | {name: grid}, images(24), 3))
    with raises(CheckpointError, "image-size"):
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
    embeddings = loaded.embed(images(16), ["backbone"])["backbone"]
    assert_close(embeddings, d2v2_tokens(weights, images(16), 3)[:, 1:].mean(1))


@pytest.mark.parametrize("positions", [None, (1, 15, 24), (16, 24)])
def test_positions_of_no_square_grid_are_refused(positions: tuple[int, ...] | None) -> None:
    shapes = {renamed(n, data2vec2.FROM_FAIRSEQ): s for n, s in shapes_of(d2v2_weights()).items()}
    shapes["pos_embed"] = positions or ()
    with pytest.raises(CheckpointError, match=r"positions of the data2vec 2\.0 encoder are"):
        data2vec2.spec(shapes, "here")
