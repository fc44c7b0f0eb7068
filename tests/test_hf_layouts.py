"""Hugging Face's layouts, by forward passes written out on their own names, and by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_forward import DEPTH, HEADS, PATCH, WIDTH, hf_shapes, hf_tokens
from literal import assert_close, images, normed, random_weights
from peers import package
from safetensors.torch import save_file
from torch import Tensor, nn

from lidar_cli.checkpoints.models.weights import fill, shapes_of
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.lazy_tensor import JoinedTensor, join_parts
from lidar_cli.checkpoints.reading.read import read_checkpoint
from lidar_cli.checkpoints.shapes import beit, huggingface
from lidar_cli.checkpoints.shapes.spec import renamed
from lidar_cli.errors import CheckpointError

KINDS = ("ijepa", "vit", "dinov2", "dinov2 swiglu", "dinov2 registers", "data2vec")


def hf_embedding(kind: str, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Mean of the patch tokens, or the class token, where the library's heads read it."""
    eps = 1e-12 if kind in ("vit", "data2vec") else 1e-6
    x = hf_tokens(kind, weights, pixels, eps)
    if kind == "data2vec":
        pooled = x[:, 1:].mean(1)
        has_norm = "pooler.layernorm.weight" in weights
        return normed(pooled, weights, "pooler.layernorm", eps) if has_norm else pooled
    x = normed(x, weights, "layernorm", eps)
    return x.mean(1) if kind == "ijepa" else x[:, 0]


PREFIXES = {"ijepa": "ijepa.", "data2vec": "data2vec_vision.", "vit": "vit."}


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layouts_equal_the_forward_written_out(kind: str, prefixed: bool, tmp_path: Path) -> None:
    weights = random_weights(hf_shapes(kind))
    prefix = PREFIXES.get(kind, "dinov2.") if prefixed else ""
    tree = {prefix + name: tensor for name, tensor in weights.items()}
    if prefixed:
        tree |= {"classifier.weight": torch.ones(5, WIDTH), "classifier.bias": torch.ones(5)}
    save_file(tree, tmp_path / "model.safetensors")
    loaded = open_checkpoint(tmp_path / "model.safetensors")
    description = loaded.description
    assert description.format == f"hf-{kind.split()[0]}"
    assert (description.prefix, description.image_size) == (prefix, 16)
    unused = [n for n in ("embeddings.mask_token",) if n in weights and kind != "data2vec"]
    counted = sum(t.numel() for n, t in weights.items() if n not in unused)
    assert description.parameters == counted
    embeddings = loaded.embed(images(16), ["backbone"])["backbone"]
    assert_close(embeddings, hf_embedding(kind, weights, images(16)))


@torch.no_grad()
def test_data2vec_saved_without_its_pooler_has_no_last_norm(tmp_path: Path) -> None:
    weights = {n: t for n, t in random_weights(hf_shapes("data2vec")).items() if "pooler" not in n}
    save_file(weights, tmp_path / "a.safetensors")
    embeddings = open_checkpoint(tmp_path / "a.safetensors").embed(images(16), ["backbone"])[
        "backbone"
    ]
    assert_close(embeddings, hf_embedding("data2vec", weights, images(16)))
    named = {renamed(n, huggingface.FROM_HF_BEIT): t for n, t in weights.items()}
    shapes = shapes_of(join_parts(named)[0])
    assert not huggingface.beit_spec(shapes, "here").norm
    assert beit.spec(shapes, "here").norm  # in BEiT's own files a tensor is missing


@torch.no_grad()
def test_data2vec_with_a_table_in_each_layer_and_positions(tmp_path: Path) -> None:
    """As after fine-tuning; equal tables are the shared one."""
    weights = random_weights(hf_shapes("data2vec"))
    shared = "encoder.relative_position_bias.relative_position_bias_table"
    tree = {name: tensor for name, tensor in weights.items() if name != shared}
    for i in range(DEPTH):
        name = f"encoder.layer.{i}.attention.attention.relative_position_bias"
        tree[f"{name}.relative_position_bias_table"] = weights[shared].clone()
        tree[f"{name}.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    tree["embeddings.position_embeddings"] = torch.zeros(1, 17, WIDTH)
    save_file(tree, tmp_path / "a.safetensors")
    loaded = open_checkpoint(tmp_path / "a.safetensors")
    assert loaded.description.ignored == ("encoder.layer",)
    embeddings = loaded.embed(images(16), ["backbone"])["backbone"]
    assert_close(embeddings, hf_embedding("data2vec", weights, images(16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key.weight": None}, r"blocks\.1\.attn\.qkv\.weight missing"),
        ({"key.weight": (WIDTH, 191)}, r"blocks\.1\.attn\.qkv\.weight missing"),
        ({"key.weight": ()}, r"blocks\.1\.attn\.qkv\.weight missing"),
        ({"key.weight": (191, WIDTH)}, r"qkv\.weight has shape \[575, 192\]"),
        ({"query.bias": None}, r"blocks\.1\.attn\.qkv\.bias missing"),
    ],
)
def test_parts_that_do_not_fit_are_missing(
    changes: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    weights = random_weights(hf_shapes("ijepa"))
    for name, shape in changes.items():
        name = f"encoder.layer.1.attention.attention.{name}"
        del weights[name]
        if shape is not None:
            weights[name] = torch.ones(shape)
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "a.safetensors")


def test_parts_are_joined_in_order_and_unread(tmp_path: Path) -> None:
    tensors = {f"a.weight@{i}": torch.full((i + 1, 2), float(i)) for i in (2, 0, 1)}
    torch.save(tensors | {"b": torch.ones(3)}, tmp_path / "a.pt")
    tree = read_checkpoint(tmp_path / "a.pt")
    joined, sources = join_parts(tree)
    assert list(sources["a.weight"]) == ["a.weight@0", "a.weight@1", "a.weight@2"]
    assert (joined["b"], sources["b"]) == (tree["b"], ("b",))
    stacked = joined["a.weight"]
    assert isinstance(stacked, JoinedTensor)
    assert (stacked.shape, stacked.dtype, stacked.nbytes) == ((6, 2), "float32", 48)
    assert stacked.materialise()[:, 0].tolist() == [0, 1, 1, 2, 2, 2]


def test_many_joined_tensors_over_few_bytes_are_refused(tmp_path: Path) -> None:
    part = torch.zeros(1).expand(2**18)  # within what a view may repeat, each
    module = nn.Module()
    tree = {}
    for i in range(40):
        for j in range(3):
            tree[f"{i}@{j}"] = part
        module.register_buffer(str(i), torch.empty(3 * 2**18, device="meta"))
    torch.save(tree, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"the tensors have \d+ bytes over \d+ of the file"):
        fill(module, join_parts(read_checkpoint(tmp_path / "a.pt"))[0], "here")


# The library itself.

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
         "image_size": 16, "patch_size": PATCH}  # fmt: skip
TABLES = {"use_shared_relative_position_bias": True, "use_mask_token": True,
          "layer_scale_init_value": 0.1}  # fmt: skip
LIBRARY: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "ijepa": ("IJepaModel", "IJepaConfig", {"layer_norm_eps": 1e-6}, {"add_pooling_layer": False}),
    "vit": ("ViTModel", "ViTConfig", {}, {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}, {}),
    "dinov2 swiglu": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, {}),
    "dinov2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, {}),
    "data2vec": (
        "Data2VecVisionModel",
        "Data2VecVisionConfig",
        TABLES,
        {"add_pooling_layer": True},
    ),
    "data2vec without pooler": ("Data2VecVisionModel", "Data2VecVisionConfig", TABLES, {}),
}


@pytest.mark.peers
@pytest.mark.parametrize("kind", LIBRARY)
@pytest.mark.parametrize("size", [16, 24])
@torch.no_grad()
def test_library_itself(kind: str, size: int, tmp_path: Path) -> None:
    transformers = package("transformers")
    model_name, config_name, config, options = LIBRARY[kind]
    config = getattr(transformers, config_name)(**SIZES, **config)
    model = getattr(transformers, model_name)(config, **options).eval()
    model.load_state_dict(random_weights(shapes_of(model.state_dict())))
    model.save_pretrained(tmp_path)
    loaded = open_checkpoint(tmp_path)
    loaded.set_image_size(size)
    if kind.startswith("data2vec") and size != 16:
        pytest.skip("the library interpolates tables linearly, and only with flags set")
    flags = {} if size == 16 or kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    output = model(pixel_values=images(size), **flags)
    tokens = output.last_hidden_state
    expected = tokens[:, 0] if kind.startswith(("dinov2", "vit")) else tokens.mean(1)
    if kind == "data2vec":
        expected = output.pooler_output
    elif kind == "data2vec without pooler":
        expected = tokens[:, 1:].mean(1)
    assert_close(loaded.embed(images(size), ["backbone"])["backbone"], expected)
