"""Swin Transformers at image sizes that their windows do not divide, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from formats import FIXTURES
from literal import assert_close, images
from raising import raises

from lidar_cli.checkpoints.open import open_checkpoint, open_untrained
from lidar_cli.errors import CheckpointError
from lidar_cli.settings import ModelSettings


@torch.no_grad()
def test_stages_are_padded_to_whole_windows(tmp_path: Path) -> None:
    """At 20 px the stages have 10 and 5 patches a side, and windows of 4."""
    fixture = FIXTURES["microsoft-swin"]()
    loaded = open_checkpoint(fixture.save(tmp_path))
    assert loaded.description.image_size == 16
    for size in (20, 16):
        loaded.set_image_size(size)
        embeddings = loaded.embed(images(size), ["backbone"])["backbone"]
        assert_close(embeddings, fixture.embed["encoder", "backbone"](images(size)))


def test_a_stage_below_its_window_is_refused(tmp_path: Path) -> None:
    loaded = open_checkpoint(FIXTURES["timm-swin"]().save(tmp_path))
    with raises(CheckpointError, "image-size") as raised:
        loaded.set_image_size(8)
    raised.match(r"leaves 2 x 2 patches in stage 2 .* window of 4; use --image-size 16")
    with raises(CheckpointError, "image-size"):
        loaded.set_image_size(17)


def test_untrained_weights_are_random_and_finite(tmp_path: Path) -> None:
    path = FIXTURES["timm-swin"]().save(tmp_path)
    description = open_checkpoint(path).description
    embeddings = open_untrained(path, 0, ModelSettings(), description).embed(
        images(16), ["backbone"]
    )["backbone"]
    assert embeddings.isfinite().all()
    assert embeddings.std() > 0.1


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("layers.0.blocks.0.attn.relative_position_bias_table", (48, 2), "not-a-swin"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", (), "not-a-swin"),
        ("layers.0.blocks.0.attn.proj.weight", None, "not-a-swin"),
        ("layers.1.blocks.1.norm2.bias", None, "missing-tensors"),
        ("norm.weight", (25,), "other-shapes"),
    ],
)
def test_shapes_that_are_no_swin(
    name: str, shape: tuple[int, ...] | None, code: str, tmp_path: Path
) -> None:
    tree = dict(FIXTURES["timm-swin"]().tree)
    del tree[name]
    if shape is not None:
        tree[name] = torch.ones(shape)
    torch.save(tree, tmp_path / "a.pt")
    with raises(CheckpointError, code):
        open_checkpoint(tmp_path / "a.pt")
