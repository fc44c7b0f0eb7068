"""Backbones that are no plain ViT, as Hugging Face, Microsoft and timm save them."""

from __future__ import annotations

import re
from typing import Any

import torch
from formats_transformers import Folder
from layouts import Embed, Fixture, Weights, fixture
from swin_forward import swin_embedding, swin_weights
from torch import Tensor

# Swin. Microsoft's names are those of the forward pass.

HF_SWIN = (
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"patch_embed\.norm\.", "embeddings.norm."),
    (r"norm\.", "layernorm."),
    (r"layers\.", "encoder.layers."),
)
HF_SWIN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.relative": "attention.self.relative",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def swin_embed(weights: Weights, eps: float = 1e-5) -> dict[tuple[str, str], Embed]:
    return {("encoder", "backbone"): lambda x: swin_embedding(weights, x, eps)}


def hf_swin_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values in tensors of their own."""
    tree = {}
    for name, tensor in weights.items():
        for pattern, replacement in HF_SWIN:
            name = re.sub(f"^{pattern}", replacement, name)
        for ours, theirs in HF_SWIN_BLOCK.items():
            name = name.replace(f".{ours}", f".{theirs}") if ".blocks." in name else name
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        if ".attn.qkv." in name:
            tree |= {name.replace("attn.qkv", f"attention.self.{p}"): t for p, t in parts}
        else:
            tree[name] = tensor
    return tree


@fixture
def hf_swin() -> Fixture:
    """For masked image modelling, as configured with another eps."""
    weights = swin_weights()
    tree = {f"swin.{name}": tensor for name, tensor in hf_swin_names(weights).items()}
    tree |= {"decoder.0.weight": torch.ones(48, 24, 1, 1), "decoder.0.bias": torch.ones(48)}
    tree["swin.embeddings.mask_token"] = torch.ones(1, 1, 12)
    config: dict[str, Any] = {"model_type": "swin", "layer_norm_eps": 1e-2, "image_size": 16}
    return Folder(
        "hf-swin", tree, swin_embed(weights, 1e-2), size=16, file="pytorch_model.bin",
        config=config | {"num_heads": [2, 3], "hidden_act": "gelu"},
        ignored=("decoder.0", "embeddings"), arch="swin_12_patch2_window4 (depth 2-2)",
    )  # fmt: skip


@fixture
def microsoft_swin() -> Fixture:
    weights = swin_weights(1)
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    head = {"head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}
    return Fixture(
        "Swin state dict", {"model": weights | buffers | head}, swin_embed(weights), size=16,
        file="swin_tiny_patch4_window7_224.pth", ignored=("head", *buffers),
    )  # fmt: skip


@fixture
def timm_swin() -> Fixture:
    """The downsampling belongs to the stage after it."""
    weights = swin_weights(2)
    tree = {k.replace("layers.0.downsample", "layers.1.downsample"): t for k, t in weights.items()}
    tree |= {"head.fc.weight": torch.ones(5, 24), "head.fc.bias": torch.ones(5)}
    return Fixture("timm Swin state dict", tree, swin_embed(weights), size=16, ignored=("head.fc",))
