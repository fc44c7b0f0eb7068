"""Transformers as other people's code saves them: data2vec, Hugging Face, DINOv2, conv stems.

The weights and literal forward passes of BEiT, of data2vec
2.0 and of Hugging Face's names are those of the tests of their architectures.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beit_forward import beit_blocks, beit_shapes, fairseq_names, index
from data2vec2_forward import IMAGE, d2v2_tokens, d2v2_weights
from hf_forward import hf_shapes, hf_tokens
from layouts import Embed, Fixture, Weights, fixture, mlp, optimizer, part, script_function, wrapped
from literal import linear, normed, random_weights
from torch import Tensor
from torch.nn import functional as F

# data2vec.


def patch_tokens(weights: dict[str, Tensor], pixels: Tensor, eps: float) -> Tensor:
    """Of a BEiT, after its last norm."""
    return normed(beit_blocks(weights, pixels, eps=eps)[-1], weights, "norm", eps)[:, 1:]


def beit(seed: int) -> dict[str, Tensor]:
    head = {"lm_head.weight": (192, 192), "lm_head.bias": (192,)}
    return random_weights(beit_shapes(2, 192) | head, seed)


@fixture
def data2vec_fork() -> Fixture:
    student, teacher = beit(0), beit(1)
    buffer = {"rel_pos_bias.relative_position_index": index()}
    return Fixture(
        "data2vec",
        {
            "model": student | buffer,
            "model_ema": teacher | buffer,
            "optimizer": optimizer(lr=np.float64(0.002)),
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": argparse.Namespace(model="beit_base_patch16_224", target_layers="[6,7,8]"),
        },
        {
            ("student", "backbone"): lambda x: patch_tokens(student, x, 1e-6).mean(1),
            # At each token, where the loss sees it, and only then the mean.
            ("student", "projector"): lambda x: linear(
                patch_tokens(student, x, 1e-6), student, "lm_head"
            ).mean(1),
            ("teacher", "backbone"): lambda x: patch_tokens(teacher, x, 1e-6).mean(1),
        },
        size=16,
        file="checkpoint-799.pth",
    )


def fairseq_tree(model: dict[str, Any]) -> dict[str, Any]:
    """A configuration with objects of fairseq's and omegaconf's in it."""
    config = script_function("Data2VecVisionConfig")
    return {
        "args": None,
        "cfg": {"model": {"_name": "data2vec_vision", "made_by": config}, "task": {}},
        "model": OrderedDict(model),
        "criterion": {},
        "optimizer_history": [{"num_updates": 10, "lr_scheduler_state": {"best": np.float64(0.1)}}],
        "task_state": {},
        "extra_state": {"metrics": argparse.Namespace(loss=0.1), "epoch": 3},
        "last_optimizer_state": optimizer(),
    }


@fixture
def data2vec_fairseq() -> Fixture:
    """The average is of the transformer alone: patches and class token are the student's."""
    student, average = beit(2), beit(3)
    inside = ("blocks.", "norm.", "rel_pos_bias.")
    teacher = {n: average[n] if n.startswith(inside) else t for n, t in student.items()}
    buffer = {"encoder.rel_pos_bias.relative_position_index": index()}
    ema = part(Weights.of(fairseq_names(average) | buffer), "encoder.")
    return Fixture(
        "data2vec-fairseq",
        fairseq_tree(fairseq_names(student) | buffer | {"_ema": ema}),
        {
            ("student", "backbone"): lambda x: patch_tokens(student, x, 1e-5).mean(1),
            ("teacher", "backbone"): lambda x: patch_tokens(teacher, x, 1e-5).mean(1),
        },
        size=16,
        file="checkpoint_last.pt",
    )


def data2vec2(local: bool) -> Fixture:
    """local: whether the average includes the patch embedding."""
    student, teacher = d2v2_weights(192), d2v2_weights(192, seed=1)
    patches = f"{IMAGE}.local_encoder."
    if not local:
        teacher |= {n: t for n, t in student.items() if n.startswith(patches)}
    ema = {n: t for n, t in teacher.items() if local or not n.startswith(patches)}
    decoder = {
        f"{IMAGE}.decoder.blocks.0.0.weight": torch.ones(8, 12, 3, 3),
        f"{IMAGE}.decoder.blocks.0.0.bias": torch.ones(8),
        f"{IMAGE}.decoder.proj.weight": torch.ones(192, 8),
        f"{IMAGE}.decoder.proj.bias": torch.ones(192),
    }
    return Fixture(
        "data2vec2",
        fairseq_tree(student | decoder | {"_ema": ema}),
        {
            ("student", "backbone"): lambda x: d2v2_tokens(student, x, 3)[:, 1:].mean(1),
            ("teacher", "backbone"): lambda x: d2v2_tokens(teacher, x, 3)[:, 1:].mean(1),
        },
        size=16,
        file="checkpoint_best.pt",
    )


@fixture
def data2vec2_base() -> Fixture:
    return data2vec2(local=True)


@fixture
def data2vec2_without_local_average() -> Fixture:
    return data2vec2(local=False)


# Hugging Face.


@dataclass
class Folder(Fixture):
    """Weights beside their config.json; as safetensors, and by the folder, in test_hf_config.py."""

    config: dict[str, Any] | None = None

    def save(self, folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(self.config))
        return super().save(folder)


def hugging_face(
    format: str, kind: str, branch: str, config: dict[str, Any], prefix: str = ""
) -> Fixture:
    """Heads and eps as its configuration says, not as usual for the width of 192."""
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    weights = random_weights(hf_shapes(kind, heads))

    def embedding(x: Tensor) -> Tensor:
        x = hf_tokens(kind, weights, x, eps, heads)
        if kind == "data2vec":
            return normed(x[:, 1:].mean(1), weights, "pooler.layernorm", eps)
        x = normed(x, weights, "layernorm", eps)
        return x.mean(1) if kind == "ijepa" else x[:, 0]

    tree = {prefix + name: tensor for name, tensor in weights.items()}
    if prefix:
        tree |= {"classifier.weight": torch.ones(5, 192), "classifier.bias": torch.ones(5)}
    usual = {"hidden_size": 192, "num_hidden_layers": 2, "hidden_act": "gelu", "patch_size": 4}
    return Folder(
        format,
        tree,
        {(branch, "backbone"): embedding},
        size=16,
        file="pytorch_model.bin",
        config=usual | config,
    )


@fixture
def hf_vit() -> Fixture:
    config = {"model_type": "vit", "num_attention_heads": 6, "layer_norm_eps": 1e-12}
    return hugging_face("hf-vit", "vit", "encoder", config, "vit.")


@fixture
def hf_ijepa() -> Fixture:
    config = {"model_type": "ijepa", "num_attention_heads": 12, "layer_norm_eps": 1e-6}
    return hugging_face("hf-ijepa", "ijepa", "student", config)


@fixture
def hf_dinov2() -> Fixture:
    config = {"model_type": "dinov2", "num_attention_heads": 6, "layer_norm_eps": 1e-6}
    return hugging_face("hf-dinov2", "dinov2", "teacher", config)


@fixture
def hf_dinov2_swiglu() -> Fixture:
    config = {"model_type": "dinov2", "num_attention_heads": 3, "layer_norm_eps": 1e-3}
    return hugging_face("hf-dinov2", "dinov2 swiglu", "teacher", config, "dinov2.")


@fixture
def hf_dinov2_registers() -> Fixture:
    config = {
        "model_type": "dinov2_with_registers", "num_attention_heads": 4, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    prefix = "dinov2_with_registers."
    return hugging_face("hf-dinov2", "dinov2 registers", "teacher", config, prefix)


@fixture
def hf_data2vec() -> Fixture:
    config = {"model_type": "data2vec-vision", "num_attention_heads": 4, "layer_norm_eps": 1e-12}
    return hugging_face("hf-data2vec", "data2vec", "student", config, "data2vec_vision.")


@fixture
def hf_beit() -> Fixture:
    """The same names as Data2VecVision's, but for what its configuration says."""
    config = {"model_type": "beit", "num_attention_heads": 3, "layer_norm_eps": 1e-12}
    return hugging_face("Hugging Face BEiT", "data2vec", "encoder", config)


# DINOv2's hub files, and MoCo v3's convolutional stem.


def dinov2_hub(registers: int, swiglu: bool) -> Fixture:
    w = Weights()
    w.vit("")
    w.normal("mask_token", 1, 192)
    if registers:
        w.normal("register_tokens", 1, registers, 192, fan=1)
    for i in range(2):
        w.uniform(f"blocks.{i}.ls1.gamma", 192)
        w.uniform(f"blocks.{i}.ls2.gamma", 192)
        if swiglu:
            for name in ("fc1", "fc2"):
                del w[f"blocks.{i}.mlp.{name}.weight"], w[f"blocks.{i}.mlp.{name}.bias"]
            w.linear(f"blocks.{i}.mlp.w12", 192, 160)
            w.linear(f"blocks.{i}.mlp.w3", 80, 192)
    embed: dict[tuple[str, str], Embed] = {
        ("teacher", "backbone"): functools.partial(w.run_vit, "")
    }
    name = "dinov2_vitg14_reg4_pretrain.pth" if registers else "dinov2_vitg14_pretrain.pth"
    return Fixture("dinov2-hub", dict(w), embed, file=name, ignored=("mask_token",))


@fixture
def dinov2_hub_swiglu() -> Fixture:
    return dinov2_hub(0, swiglu=True)


@fixture
def dinov2_hub_registers() -> Fixture:
    return dinov2_hub(4, swiglu=False)


@fixture
def dinov2_hub_registers_swiglu() -> Fixture:
    return dinov2_hub(4, swiglu=True)


@fixture
def moco_v3_conv() -> Fixture:
    """Four convolutions of stride 2 in place of patches; 12 heads, as without."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "base_encoder."), ("teacher", "momentum_encoder.")):
        w.vit(e, 384, patch=16, grid=2)
        del w[f"{e}patch_embed.proj.weight"], w[f"{e}patch_embed.proj.bias"]
        into = 3
        for at, out in zip((0, 3, 6, 9), (8, 12, 16, 24), strict=True):
            w.normal(f"{e}patch_embed.proj.{at}.weight", out, into, 3, 3)
            w.bn(f"{e}patch_embed.proj.{at + 1}", out)
            into = out
        w.normal(f"{e}patch_embed.proj.12.weight", 384, into, 1, 1)
        w.uniform(f"{e}patch_embed.proj.12.bias", 384)
        h = f"{e}head."
        w.linear(h + "0", 384, 24, bias=False)
        w.bn(h + "1", 24)
        w.linear(h + "3", 24, 12, bias=False)
        w.bn(h + "4", 12, affine=False)
        steps = (h + "0", f"bn {h}1", "act", h + "3", f"bn {h}4")

        def trunk(x: Tensor, e: str = e) -> Tensor:
            for at in (0, 3, 6, 9):
                name = f"{e}patch_embed.proj.{at}"
                x = F.conv2d(x, w[f"{name}.weight"], stride=2, padding=1)
                x = F.relu(w.norm(f"{e}patch_embed.proj.{at + 1}", x))
            last = f"{e}patch_embed.proj.12"
            tokens = F.conv2d(x, w[f"{last}.weight"], w[f"{last}.bias"])
            return w.run_tokens(e, tokens.flatten(2).transpose(1, 2), heads=12)

        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    return Fixture(
        "moco-v3-vit",
        {"epoch": 300, "arch": "vit_conv_small", "state_dict": wrapped(w),
         "optimizer": optimizer(), "scaler": {"scale": 65536.0}},
        embed,
        file="checkpoint_0299.pth.tar",
        arch="vit_small_patch16 (depth 2, convolutional stem)",
    )  # fmt: skip
