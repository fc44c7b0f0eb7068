"""BEiT as data2vec trains it, against forward passes written out, and against timm."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import literal
import pytest
import torch
from beit_forward import GRID, HEADS, PATCH, WIDTH, beit_blocks, beit_shapes, fairseq_names, index
from literal import assert_close, images, linear, normed, random_weights
from raising import raises
from timm.models.beit import Beit as TimmBeit
from torch import Tensor, nn

from lidar_cli.checkpoints.models.beit import Beit
from lidar_cli.checkpoints.models.weights import fill, shapes_of
from lidar_cli.checkpoints.open import build, open_checkpoint
from lidar_cli.checkpoints.shapes import beit
from lidar_cli.checkpoints.shapes.spec import renamed
from lidar_cli.errors import CheckpointError


def built(weights: dict[str, Tensor], **options: Any) -> Beit:
    model = build(beit.spec(shapes_of(weights), "here", **options))
    fill(model.weights, weights, "here")
    return model.eval()


KINDS: dict[str, dict[str, bool]] = {
    "shared table": {},
    "own tables": {"shared": False, "tables": True},
    "shared table and positions": {"positions": True},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_beit_equals_the_forward_written_out(kind: str) -> None:
    weights = random_weights(beit_shapes(**KINDS[kind]))
    expected = normed(beit_blocks(weights, images(16))[-1], weights, "norm", 1e-6)
    model = built(weights)
    assert_close(model.tokens(images(16)), expected)
    assert_close(model(images(16)), expected[:, 1:].mean(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_beit_equals_timms(kind: str) -> None:
    """timm's own class, built by hand, with its own index of displacements."""
    parts = KINDS[kind]
    weights = random_weights(beit_shapes(**parts))
    peer = TimmBeit(
        img_size=16, patch_size=PATCH, embed_dim=WIDTH, depth=3, num_heads=HEADS, num_classes=0,
        global_pool="token", init_values=0.1, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_abs_pos_emb=parts.get("positions", False), use_rel_pos_bias=parts.get("tables", False),
        use_shared_rel_pos_bias=parts.get("shared", True),
    )  # fmt: skip
    buffers = {n: t for n, t in peer.state_dict().items() if n.endswith("index")}  # older timm's
    peer.load_state_dict(buffers | {n: t for n, t in weights.items() if n != "mask_token"})
    assert_close(built(weights).tokens(images(16)), peer.eval().forward_features(images(16)))


@torch.no_grad()
def test_fine_tuned_beit_normalises_after_pooling() -> None:
    weights = random_weights(beit_shapes(shared=False, tables=True))
    for name in ("weight", "bias"):
        weights[f"fc_norm.{name}"] = weights.pop(f"norm.{name}")
    pooled = beit_blocks(weights, images(16))[-1][:, 1:].mean(1)
    assert_close(built(weights)(images(16)), normed(pooled, weights, "fc_norm", 1e-6))


@torch.no_grad()
def test_mask_token_stands_where_patches_are_masked() -> None:
    weights = random_weights(beit_shapes(positions=True))
    masked = torch.rand(3, GRID**2, generator=torch.Generator().manual_seed(1)) < 0.6
    model = built(weights)
    expected = normed(beit_blocks(weights, images(16), masked)[-1], weights, "norm", 1e-6)
    assert_close(model.tokens(images(16), masked), expected)
    other = torch.where(
        masked.reshape(3, 1, GRID, GRID).repeat_interleave(4, 2).repeat_interleave(4, 3),
        torch.randn(3, 3, 16, 16),
        images(16),
    )
    assert_close(model.tokens(other, masked), expected)  # masked pixels are not seen
    del weights["mask_token"]
    with raises(CheckpointError, "no-mask-token") as raised:
        built(weights).tokens(images(16), masked)
    raised.match("has no mask_token")


@torch.no_grad()
def test_published_names_and_sizes_are_those_of_timm() -> None:
    """The base model, except for its depth: 732 displacements by 12 heads mean a grid of 14."""
    peer = TimmBeit(depth=1, global_pool="token", num_classes=0, init_values=0.1,
                    use_abs_pos_emb=False, use_shared_rel_pos_bias=True)  # fmt: skip
    shapes = {n: s for n, s in shapes_of(peer.state_dict()).items() if not n.endswith("index")}
    assert shapes["rel_pos_bias.relative_position_bias_table"] == (732, 12)
    spec = beit.spec(shapes, "here")
    assert (spec.arch, spec.image_size) == ("beit_base_patch16 (depth 1)", 224)
    assert (spec.heads, list(spec.assumed)) == (12, ["eps"])
    assert shapes_of(build(spec).weights.state_dict()) == shapes


@pytest.mark.parametrize("new", [3, 6])
@torch.no_grad()
def test_tables_and_positions_are_resampled_from_the_file_each_time(new: int) -> None:
    weights = random_weights(beit_shapes(positions=True))
    model = built(weights)
    before = model(images(16))
    model.set_image_size(8)
    model.set_image_size(new * PATCH)
    odd, other = 2 * GRID - 1, 2 * new - 1
    table = weights["rel_pos_bias.relative_position_bias_table"]
    grid = literal.cubic(table[:-3].reshape(odd, odd, HEADS), other, other / odd)
    positions = weights["pos_embed"]
    patches = literal.cubic(positions[0, 1:].reshape(GRID, GRID, WIDTH), new, new / GRID)
    resized = weights | {
        "rel_pos_bias.relative_position_bias_table": torch.cat(
            [grid.reshape(-1, HEADS), table[-3:]]
        ),
        "pos_embed": torch.cat([positions[:, :1], patches.reshape(1, -1, WIDTH)], dim=1),
    }
    pixels = images(new * PATCH)
    assert_close(
        model.tokens(pixels), normed(beit_blocks(resized, pixels)[-1], weights, "norm", 1e-6)
    )
    model.set_image_size(16)
    assert torch.equal(model(images(16)), before)
    with raises(CheckpointError, "image-size"):
        model.set_image_size(15)


@torch.no_grad()
def test_file_of_the_beit_fork_opens_with_lm_head_as_projector(tmp_path: Path) -> None:
    weights = random_weights(
        beit_shapes(2, 192) | {"lm_head.weight": (192, 192), "lm_head.bias": (192,)}
    )
    tree = weights | {"rel_pos_bias.relative_position_index": index()}
    torch.save({"model": tree, "epoch": 799}, tmp_path / "a.pth")
    loaded = open_checkpoint(tmp_path / "a.pth")
    description = loaded.description
    assert (description.format, description.image_size) == ("data2vec", 16)
    assert description.widths == {"backbone": 192, "projector": 192}
    assert description.ignored == ("model.rel_pos_bias",)
    tokens = normed(beit_blocks(weights, images(16))[-1], weights, "norm", 1e-6)[:, 1:]
    embeddings = loaded.embed(images(16), ["backbone", "projector"])
    assert_close(embeddings["backbone"], tokens.mean(1))
    assert_close(embeddings["projector"], linear(tokens, weights, "lm_head").mean(1))


@torch.no_grad()
def test_file_of_fairseq_opens(tmp_path: Path) -> None:
    """Its LayerNorm has the larger eps, and its final_proj is never trained."""
    weights = random_weights(
        beit_shapes(2, 192) | {"lm_head.weight": (192, 192), "lm_head.bias": (192,)}
    )
    weights["patch_embed.proj.weight"] *= 0.01
    weights["cls_token"] *= 0.01
    weights["patch_embed.proj.bias"] *= 0.01
    tree = fairseq_names(weights) | {"encoder.rel_pos_bias.relative_position_index": index()}
    back = {renamed(n, beit.FROM_FAIRSEQ) for n in tree} - {"rel_pos_bias.relative_position_index"}
    assert back == {n.replace("lm_head", "final_proj") for n in weights}
    torch.save({"model": tree}, tmp_path / "a.pt")
    loaded = open_checkpoint(tmp_path / "a.pt")
    assert loaded.description.format == "data2vec-fairseq"
    for eps, close in ((1e-5, True), (1e-6, False)):
        tokens = normed(beit_blocks(weights, images(16), eps=eps)[-1], weights, "norm", eps)[:, 1:]
        embeddings = loaded.embed(images(16), ["backbone"])["backbone"]
        assert (float((embeddings - tokens.mean(1)).abs().max()) < 1e-5) is close
    assert loaded.layers == ("backbone",)
    assert "model.final_proj" in loaded.description.ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rel_pos_bias.relative_position_bias_table": (50, 3)}, "BEiT has 50 displacements"),
        ({"rel_pos_bias.relative_position_bias_table": (52,)}, r"relative positions is \[52\]"),
        ({"rel_pos_bias.relative_position_bias_table": None}, "BEiT has positions missing"),
        ({"rel_pos_bias.relative_position_bias_table": None, "pos_embed": (1, 16, 192)},
         r"positions \[1, 16, 192\]"),
        ({"patch_embed.proj.weight": (192, 3, 4, 2)}, r"patch embedding .* \[192, 3, 4, 2\]"),
    ],
)  # fmt: skip
def test_impossible_shapes_are_named(
    changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    shapes = beit_shapes(1, 192) | changes
    with pytest.raises(CheckpointError, match=message):
        beit.spec({name: shape for name, shape in shapes.items() if shape is not None}, "here")
