"""Backbones that are no plain ViT, as Hugging Face, Microsoft and timm save them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import literal
import torch
from formats_transformers import Folder, hugging_face
from hf_forward import hf_tokens
from layouts import Embed, Fixture, Weights, fixture
from literal import normed
from swin_forward import swin_embedding, swin_weights
from torch import Tensor
from torch.nn import functional as F

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
        "hf-swin-simmim", tree, swin_embed(weights, 1e-2), size=16, file="pytorch_model.bin",
        config=config | {"num_heads": [2, 3], "hidden_act": "gelu"},
        ignored=("decoder.0", "embeddings"), arch="swin_12_patch2_window4 (depth 2-2)",
    )  # fmt: skip


@fixture
def hf_swin_plain() -> Fixture:
    """As converted from Microsoft's, with the buffer of older versions."""
    weights = swin_weights(4)
    tree = hf_swin_names(weights)
    buffer = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    tree[buffer] = torch.zeros(16, 16, dtype=torch.int64)
    return Fixture("hf-swin", tree, swin_embed(weights), size=16)


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


# ViTMAE.


@fixture
def hf_vitmae() -> Fixture:
    config = {"model_type": "vit_mae", "num_attention_heads": 6, "layer_norm_eps": 1e-12}
    return hugging_face("hf-vitmae", "vit", "encoder", config)


@fixture
def hf_vitmae_decoder() -> Fixture:
    """Recognised by its decoder, with a config.json or without; nothing of it is embedded."""
    encoder = hf_vitmae()
    tree = {f"vit.{name}": tensor for name, tensor in encoder.tree.items()}
    tree |= {"decoder.mask_token": torch.ones(1, 1, 16), "decoder.decoder_pred.bias": torch.ones(8)}
    tree |= {f"decoder.decoder_{name}.weight": torch.ones(8, 16) for name in ("pred", "embed")}
    return dataclasses.replace(
        encoder, format="hf-vitmae-pretraining", tree=tree, file="model.bin", config={},
        embed={key: lambda x: vitmae_usual(encoder.tree, x) for key in encoder.embed},
    )  # fmt: skip


def vitmae_usual(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """With the usual 3 heads, as without a config.json."""
    return normed(hf_tokens("vit", weights, pixels, 1e-12), weights, "layernorm", 1e-12)[:, 0]


# ResNet.


@fixture
def hf_resnet() -> Fixture:
    w = Weights(3)
    w.resnet("", bottleneck=True)
    tree = {"classifier.1.weight": torch.ones(5, 16), "classifier.1.bias": torch.ones(5)}
    for name, tensor in w.items():
        stage = re.match(r"layer(\d)\.", name)
        name = name.removeprefix(stage[0]) if stage else name
        start = f"encoder.stages.{int(stage[1]) - 1}.layers." if stage else "embedder.embedder."
        name = re.sub(r"^(conv|bn)1\.", lambda m: HF_RESNET[m[1]], name)
        name = re.sub(r"downsample\.([01])\.", lambda m: "shortcut." + HF_RESNET[m[1]], name)
        name = re.sub(
            r"(conv|bn)(\d)\.", lambda m: f"layer.{int(m[2]) - 1}.{HF_RESNET[m[1]]}", name
        )
        tree[f"resnet.{start}{name}"] = tensor
    config: dict[str, Any] = {"model_type": "resnet", "hidden_act": "relu"}
    return Folder(
        "hf-resnet", tree, {("encoder", "backbone"): lambda x: w.run_resnet("", x)},
        file="pytorch_model.bin", config=config, ignored=("classifier.1",),
    )  # fmt: skip


HF_RESNET = dict.fromkeys(("conv", "0"), "convolution.") | dict.fromkeys(
    ("bn", "1"), "normalization."
)

# CLIP and SigLIP.


def tower(seed: int, prefix: str, clip: bool) -> Weights:
    """By Hugging Face's names: width 192, 2 blocks, 4 x 4 patches of 4 pixels."""
    w = Weights(seed)
    w.normal(f"{prefix}embeddings.patch_embedding.weight", 192, 3, 4, 4)
    w.normal(f"{prefix}embeddings.position_embedding.weight", 16 + clip, 192, fan=1)
    if clip:
        w.normal(f"{prefix}embeddings.class_embedding", 192)
        w.ln(f"{prefix}pre_layrnorm", 192)
    else:
        w.uniform(f"{prefix}embeddings.patch_embedding.bias", 192)
    for i in range(2):
        name = f"{prefix}encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w.linear(f"{name}.self_attn.{part}", 192, 192)
        w.linear(f"{name}.mlp.fc1", 192, 96)
        w.linear(f"{name}.mlp.fc2", 96, 192)
        w.ln(f"{name}.layer_norm1", 192)
        w.ln(f"{name}.layer_norm2", 192)
    w.ln(f"{prefix}post_layernorm", 192)
    return w


def run_tower(
    w: Weights, prefix: str, x: Tensor, heads: int, eps: float, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """All tokens after the last norm."""
    name = f"{prefix}embeddings.patch_embedding"
    x = literal.patches(x, w[f"{name}.weight"], w.get(f"{name}.bias", torch.zeros(192)))
    if f"{prefix}embeddings.class_embedding" in w:
        first = w[f"{prefix}embeddings.class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1)
    x = x + w[f"{prefix}embeddings.position_embedding.weight"]
    if f"{prefix}pre_layrnorm.weight" in w:
        x = normed(x, w, f"{prefix}pre_layrnorm", eps)
    for i in range(2):
        name = f"{prefix}encoder.layers.{i}"
        y = normed(x, w, f"{name}.layer_norm1", eps)
        q, k, v = (w.lin(f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        x = x + w.lin(f"{name}.self_attn.out_proj", literal.attend(q, k, v, heads))
        y = normed(x, w, f"{name}.layer_norm2", eps)
        x = x + w.lin(f"{name}.mlp.fc2", act(w.lin(f"{name}.mlp.fc1", y)))
    return normed(x, w, f"{prefix}post_layernorm", eps)


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + (-1.702 * x).exp())


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh())


@fixture
def hf_clip() -> Fixture:
    """Of images and text: the vision part of the configuration counts."""
    prefix = "vision_model."
    w = tower(0, prefix, clip=True)
    w.linear("visual_projection", 192, 12, bias=False)
    text = {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.tensor(4.6)}
    text |= {"text_projection.weight": torch.ones(12, 8)}
    text |= {"vision_model.embeddings.position_ids": torch.arange(17)[None]}

    def backbone(x: Tensor) -> Tensor:
        return run_tower(w, prefix, x, 6, 1e-3, quick_gelu)[:, 0]

    vision = {"num_attention_heads": 6, "layer_norm_eps": 1e-3, "hidden_act": "quick_gelu"}
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): backbone,
        ("encoder", "projector"): lambda x: w.lin("visual_projection", backbone(x)),
    }
    return Folder(
        "hf-clip", w | text, embed, size=16, file="pytorch_model.bin",
        config={"model_type": "clip", "vision_config": vision, "num_attention_heads": 2},
    )  # fmt: skip


@fixture
def hf_siglip() -> Fixture:
    """Without a config.json, as a file: the usual heads, eps and activation."""
    w = tower(1, "", clip=False)
    w.normal("head.probe", 1, 1, 192, fan=1)
    w.normal("head.attention.in_proj_weight", 3 * 192, 192)
    w.uniform("head.attention.in_proj_bias", 3 * 192)
    w.linear("head.attention.out_proj", 192, 192)
    w.ln("head.layernorm", 192)
    w.linear("head.mlp.fc1", 192, 96)
    w.linear("head.mlp.fc2", 96, 192)

    def backbone(x: Tensor) -> Tensor:
        tokens = run_tower(w, "", x, 3, 1e-6, tanh_gelu)
        inputs = (w["head.probe"].expand(len(x), 1, -1), tokens, tokens)
        weights = w["head.attention.in_proj_weight"].chunk(3)
        biases = w["head.attention.in_proj_bias"].chunk(3)
        q, k, v = (y @ m.T + b for y, m, b in zip(inputs, weights, biases, strict=True))
        y = w.lin("head.attention.out_proj", literal.attend(q, k, v, 3))[:, 0]
        hidden = tanh_gelu(w.lin("head.mlp.fc1", normed(y, w, "head.layernorm", 1e-6)))
        return y + w.lin("head.mlp.fc2", hidden)

    return Fixture(
        "hf-siglip", dict(w), {("encoder", "backbone"): backbone}, size=16,
        arch="vit_tiny_patch4 (depth 2, attention pooling)",
    )  # fmt: skip


@fixture
def openai_clip() -> Fixture:
    """In open_clip's file, with text; the projection is a matrix, not a layer."""
    w = tower(2, "", clip=True)
    names = (
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("embeddings.patch_embedding", "conv1"),
        ("pre_layrnorm", "ln_pre"),
        ("post_layernorm", "ln_post"),
        ("encoder.layers", "transformer.resblocks"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("layer_norm", "ln_"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    proj = torch.randn(192, 12, generator=torch.Generator().manual_seed(5)) / 14
    tree = {"visual.proj": proj, "logit_scale": torch.tensor(4.6)}
    tree |= {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "ln_final.bias": torch.ones(8)}
    tree |= {"positional_embedding": torch.ones(77, 8), "text_projection": torch.ones(8, 12)}
    for name, tensor in w.items():
        for theirs, openai in names:
            name = name.replace(theirs, openai)
        if "q_proj" in name:
            of_q = name.replace("transformer.resblocks", "encoder.layers")
            parts = [w[of_q.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            tensor = torch.cat(parts)
        if "self_attn" not in name:
            tree[f"visual.{name}"] = tensor

    def backbone(x: Tensor) -> Tensor:
        return run_tower(w, "", x, 3, 1e-5, quick_gelu)[:, 0]

    return Fixture(
        "clip", {"state_dict": tree},
        {("encoder", "backbone"): backbone, ("encoder", "projector"): lambda x: backbone(x) @ proj},
        size=16, file="open_clip_pytorch_model.bin",
    )  # fmt: skip


# ConvNeXt.

CONVNEXT = ((8, 1), (16, 1), (24, 2), (32, 1))  # channels and blocks of each stage


def convnext(seed: int, v2: bool) -> Weights:
    w = Weights(seed)
    w.normal("embeddings.patch_embeddings.weight", 8, 3, 4, 4)
    w.uniform("embeddings.patch_embeddings.bias", 8)
    w.ln("embeddings.layernorm", 8)
    into = 8
    for stage, (width, depth) in enumerate(CONVNEXT):
        name = f"encoder.stages.{stage}"
        if stage:
            w.ln(f"{name}.downsampling_layer.0", into)
            w.normal(f"{name}.downsampling_layer.1.weight", width, into, 2, 2)
            w.uniform(f"{name}.downsampling_layer.1.bias", width)
        for block in (f"{name}.layers.{i}" for i in range(depth)):
            w.normal(f"{block}.dwconv.weight", width, 1, 7, 7)
            w.uniform(f"{block}.dwconv.bias", width)
            w.ln(f"{block}.layernorm", width)
            w.linear(f"{block}.pwconv1", width, 4 * width)
            w.linear(f"{block}.pwconv2", 4 * width, width)
            if v2:
                w.normal(f"{block}.grn.weight", 1, 1, 1, 4 * width, fan=1)
                w.normal(f"{block}.grn.bias", 1, 1, 1, 4 * width, fan=1)
            else:
                w.uniform(f"{block}.layer_scale_parameter", width)
        into = width
    w.ln("layernorm", 32)
    return w


def run_convnext(w: Weights, x: Tensor, eps: float) -> Tensor:
    """eps: of the last norm."""

    def convolved(name: str, x: Tensor, **options: Any) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)
        return x.permute(0, 2, 3, 1)

    x = convolved("embeddings.patch_embeddings", x.permute(0, 2, 3, 1), stride=4)
    x = normed(x, w, "embeddings.layernorm", 1e-6)
    for stage, (width, depth) in enumerate(CONVNEXT):
        name = f"encoder.stages.{stage}"
        if stage:
            x = normed(x, w, f"{name}.downsampling_layer.0", 1e-6)
            x = convolved(f"{name}.downsampling_layer.1", x, stride=2)
        for block in (f"{name}.layers.{i}" for i in range(depth)):
            y = convolved(f"{block}.dwconv", x, padding=3, groups=width)
            y = w.lin(f"{block}.pwconv1", normed(y, w, f"{block}.layernorm", 1e-6))
            y = literal.gelu(y)
            if f"{block}.grn.weight" in w:
                size = (y**2).sum(dim=(1, 2), keepdim=True).sqrt()
                shares = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
                y = w[f"{block}.grn.weight"] * (y * shares) + w[f"{block}.grn.bias"] + y
            x = x + w.lin(f"{block}.pwconv2", y) * w.get(f"{block}.layer_scale_parameter", 1.0)
    return normed(x.mean(dim=(1, 2)), w, "layernorm", eps)


@fixture
def hf_convnext() -> Fixture:
    """As configured with another eps, which is that of the last norm alone."""
    w = convnext(5, v2=False)
    tree = {f"convnext.{name}": tensor for name, tensor in w.items()}
    tree |= {"classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)}
    return Folder(
        "hf-convnext", tree, {("encoder", "backbone"): lambda x: run_convnext(w, x, 1e-2)},
        file="pytorch_model.bin", ignored=("classifier",),
        config={"model_type": "convnext", "layer_norm_eps": 1e-2},
    )  # fmt: skip


@fixture
def hf_convnextv2() -> Fixture:
    w = convnext(6, v2=True)
    return Fixture(
        "hf-convnext", dict(w), {("encoder", "backbone"): lambda x: run_convnext(w, x, 1e-12)},
        arch="convnextv2 (depths 1-1-2-1, channels 8-16-24-32)",
    )  # fmt: skip
