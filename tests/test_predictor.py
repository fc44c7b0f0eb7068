"""I-JEPA's encoder under masks and its predictor, image by image, against loops written out."""

from __future__ import annotations

import literal
import pytest
import torch
from literal import assert_close, images, linear, normed, random_weights
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from lidar_cli.checkpoints.models.heads import Predictor
from lidar_cli.checkpoints.models.vit import ViT
from lidar_cli.checkpoints.models.weights import fill, shapes_of
from lidar_cli.checkpoints.open import build
from lidar_cli.checkpoints.shapes import vit
from lidar_cli.checkpoints.shapes.heads import predictor_spec
from lidar_cli.errors import CheckpointError

WIDTH, INNER, HEADS, PATCH, GRID, DEPTH = 24, 12, 3, 4, 4, 2
CONTEXT = [
    torch.tensor([[0, 1, 2, 5, 6], [0, 4, 5, 8, 9], [1, 2, 3, 7, 15]]),
    torch.tensor([[4, 5, 10, 11, 12], [2, 3, 6, 7, 9], [0, 8, 9, 13, 14]]),
]
TARGETS = [
    torch.tensor([[3, 7, 11], [1, 2, 3], [4, 5, 6]]),
    torch.tensor([[8, 9, 13], [10, 14, 15], [8, 12, 13]]),
    torch.tensor([[14, 15, 0], [12, 13, 6], [11, 10, 7]]),
    torch.tensor([[9, 13, 14], [6, 7, 11], [0, 2, 4]]),
]


def encoder_weights(seed: int = 0) -> dict[str, Tensor]:
    """timm's block names and no class token."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        shapes |= literal.block_shapes(f"blocks.{i}", WIDTH, 4 * WIDTH)
    return random_weights(shapes, seed)


def predictor_weights(depth: int = DEPTH) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "predictor_embed.weight": (INNER, WIDTH),
        "predictor_embed.bias": (INNER,),
        "mask_token": (1, 1, INNER),
        "predictor_pos_embed": (1, GRID**2, INNER),
        "predictor_norm.weight": (INNER,),
        "predictor_norm.bias": (INNER,),
        "predictor_proj.weight": (WIDTH, INNER),
        "predictor_proj.bias": (WIDTH,),
    }
    for i in range(depth):
        shapes |= literal.block_shapes(f"predictor_blocks.{i}", INNER, 4 * INNER)
    return random_weights(shapes, 1)


def encoder(weights: dict[str, Tensor]) -> ViT:
    model = build(vit.spec(shapes_of(weights), "here", heads=HEADS))
    fill(model.weights, weights, "here")
    return model.eval()


def built(weights: dict[str, Tensor]) -> Predictor:
    model = build(predictor_spec(shapes_of(weights), HEADS, "here"))
    fill(model, weights, "here")
    return model


def encode(weights: dict[str, Tensor], pixels: Tensor, keep: list[int] | None = None) -> Tensor:
    """Tokens of one image [3, S, S], of some of its patches: [K, width]."""
    x = literal.patches(
        pixels[None], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    )
    x = x + weights["pos_embed"]
    if keep is not None:
        x = torch.stack([x[:, k] for k in keep], dim=1)
    for i in range(DEPTH):
        x = literal.block(x, weights, f"blocks.{i}", HEADS)
    return normed(x, weights, "norm", 1e-6)[0]


def predict(weights: dict[str, Tensor], z: Tensor, context: list[int], target: list[int]) -> Tensor:
    """Of one image and one pair of masks: context tokens [K_enc, D] -> [K_pred, D]."""
    positions = weights["predictor_pos_embed"][0]
    rows = list(linear(z, weights, "predictor_embed"))
    rows = [row + positions[k] for row, k in zip(rows, context, strict=True)]
    rows += [weights["mask_token"][0, 0] + positions[k] for k in target]
    x = torch.stack(rows)[None]
    for i in range(DEPTH):
        x = literal.block(x, weights, f"predictor_blocks.{i}", HEADS)
    x = normed(x, weights, "predictor_norm", 1e-6)[0, len(context) :]
    return linear(x, weights, "predictor_proj")


@torch.no_grad()
def test_context_tokens_see_the_kept_patches_alone() -> None:
    weights = encoder_weights()
    expected = [
        encode(weights, image, keep)
        for mask in CONTEXT
        for image, keep in zip(images(16), mask.tolist(), strict=True)
    ]
    tokens = torch.cat([encoder(weights).tokens(images(16), mask) for mask in CONTEXT])
    assert_close(tokens, torch.stack(expected))


@pytest.mark.parametrize("n_context", [1, 2])
@pytest.mark.parametrize("n_targets", [1, 4])
@torch.no_grad()
def test_predictor_equals_loops_over_masks_and_images(n_targets: int, n_context: int) -> None:
    """Target block outermost, then context mask, then image."""
    inside, outside = encoder_weights(), predictor_weights()
    context, targets = CONTEXT[:n_context], TARGETS[:n_targets]
    expected = [
        predict(outside, encode(inside, image, c.tolist()), c.tolist(), t.tolist())
        for target in targets
        for mask in context
        for image, c, t in zip(images(16), mask, target, strict=True)
    ]
    z = torch.cat([encoder(inside).tokens(images(16), mask) for mask in context])
    predicted = built(outside)(z, context, targets)
    assert predicted.shape == (n_targets * n_context * 3, 3, WIDTH)
    assert_close(predicted, torch.stack(expected))


@torch.no_grad()
def test_embedding_of_an_image_is_the_mean_over_its_tokens() -> None:
    weights = encoder_weights()
    expected = torch.stack([encode(weights, image).mean(0) for image in images(16)])
    assert_close(encoder(weights)(images(16)), expected)


@torch.no_grad()
def test_positions_of_another_image_size() -> None:
    weights = predictor_weights()
    model = built(weights)
    model.set_grid(2)
    model.set_grid(6)  # from the file's, not from the blurred ones
    peer = resample_abs_pos_embed(weights["predictor_pos_embed"], [6, 6], num_prefix_tokens=0)
    assert_close(model.predictor_pos_embed, peer)
    model.set_grid(GRID)
    assert torch.equal(model.predictor_pos_embed, weights["predictor_pos_embed"])


@torch.no_grad()
def test_published_size() -> None:
    """Of the huge model: depth 12, width 384, the encoder's 16 heads."""
    shapes = {n: tuple(t.shape) for n, t in predictor_weights(12).items()}
    published = {
        name: tuple({INNER: 384, 3 * INNER: 1152, 4 * INNER: 1536, WIDTH: 1280, 16: 256}.get(n, n)
                    for n in shape)
        for name, shape in shapes.items() if "blocks" not in name
    }  # fmt: skip
    for i in range(12):
        published |= literal.block_shapes(f"predictor_blocks.{i}", 384, 1536)
    spec = predictor_spec(published, 16, "here")
    assert (spec.inner, spec.depth) == (384, 12)
    assert (spec.width, spec.grid, spec.heads) == (1280, 16, 16)
    assert shapes_of(build(spec).state_dict()) == published


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    shapes = shapes_of(predictor_weights())
    with pytest.raises(CheckpointError, match=rf"a width that {heads} heads divide"):
        predictor_spec(shapes, heads, "here")


@pytest.mark.parametrize("name", ["predictor_embed.weight", "predictor_pos_embed"])
def test_missing_parts_are_named(name: str) -> None:
    shapes = {n: s for n, s in shapes_of(predictor_weights()).items() if n != name}
    with pytest.raises(CheckpointError, match=f"{name} missing"):
        predictor_spec(shapes, HEADS, "here")
