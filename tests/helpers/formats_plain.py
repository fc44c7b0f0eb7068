"""Backbones by the names of torchvision and timm."""

from __future__ import annotations

import functools

import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    fixture,
    mlp,
    wrapped,
)
from torch import Tensor


@fixture
def torchvision_resnet() -> Fixture:
    """A released backbone, or torchvision's own file: nothing but the names of a ResNet."""
    w = Weights()
    w.resnet("", bottleneck=True)
    w.linear("fc", 16, 10)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_resnet, "")
    }
    return Fixture("torchvision", dict(w), embed, file="resnet50.pth", ignored=("fc",))


@fixture
def timm_vit() -> Fixture:
    w = Weights()
    w.vit("")
    w.linear("head", 192, 10)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("timm", dict(w), embed, file="vit.pth", ignored=("head",))


def torchvision_names(w: Weights) -> dict[str, Tensor]:
    """A ViT by timm's names, by torchvision's."""
    names = (("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"),
             ("patch_embed.proj", "conv_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"),
             ("attn.qkv.", "self_attention.in_proj_"), ("attn.proj", "self_attention.out_proj"),
             ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.3"),
             ("blocks.", "encoder.layers.encoder_layer_"))  # fmt: skip
    tree = {}
    for name, tensor in w.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        tree[f"encoder.{name.replace('norm', 'ln')}" if name.startswith("norm") else name] = tensor
    return tree


@fixture
def torchvision_vit() -> Fixture:
    """Its own names of what is timm's ViT."""
    w = Weights()
    w.vit("")
    tree = {"heads.head.weight": torch.ones(10, 192), "heads.head.bias": torch.ones(10)}
    tree |= torchvision_names(w)
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("torchvision", tree, embed, file="vit_b_16.pth", ignored=("heads.head",))


@fixture
def wrapped_backbone() -> Fixture:
    """A script's own names, which no format has: recognised by the usual ones."""
    w = Weights()
    w.resnet("encoder.")
    w.linear("projector.0", 16, 24)
    w.linear("projector.2", 24, 12)
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "ResNet state dict",
        {"state_dict": wrapped(w), "epoch": 3},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
    )


@fixture
def deepspeed() -> Fixture:
    """Its state dict lies under 'module', beside what its engine keeps."""
    w = Weights()
    w.vit("")
    tree = {"module": w, "buffer_names": [], "optimizer": None, "ds_version": "0.5"}
    embed: dict[tuple[str, str], Embed] = {
        ("encoder", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("timm", tree, embed, file="mp_rank_00_model_states.pt")


def averaged(key: str) -> Fixture:
    """A training file of timm's or DeiT's: raw weights, and their moving average under a key."""
    raw, average = Weights(0), Weights(1)
    embed: dict[tuple[str, str], Embed] = {}
    for branch, w in (("encoder", raw), ("teacher", average)):
        w.vit("")
        w.linear("head", 192, 10)
        embed[branch, "backbone"] = functools.partial(w.run_vit, "")
    container = "state_dict" if key == "state_dict_ema" else "model"
    tree = {"epoch": 3, "arch": "vit_tiny_patch8", container: dict(raw), key: dict(average)}
    return Fixture("timm", tree, embed, file="checkpoint-3.pth.tar", ignored=("head", key))


@fixture
def timm_training() -> Fixture:
    return averaged("state_dict_ema")


@fixture
def deit_training() -> Fixture:
    return averaged("model_ema")
