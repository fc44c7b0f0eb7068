"""Checkpoints of DINO and DINOv2, as their authors' code saves them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    dino_head,
    fixture,
    mlp,
    optimizer,
    part,
    run_dino,
    wrapped,
)
from torch import Tensor
from torch.nn import functional as F


def dino_pair(
    teacher: str, student: str, backbone: Callable[[Weights, str], None],
    run: Callable[[Weights, str, Tensor], Tensor], width: int, **options: bool,
) -> tuple[Weights, dict[tuple[str, str], Embed]]:  # fmt: skip
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, prefix in (("teacher", teacher), ("student", student)):
        backbone(w, f"{prefix}backbone.")
        dino_head(w, f"{prefix}head", width, **options)
        trunk = functools.partial(run, w, f"{prefix}backbone.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=prefix, t=trunk: run_dino(
            w, f"{p}head", t(x), options.get("bn", False)
        )  # type: ignore[misc]
    return w, embed


def dino_tree(w: Weights, teacher_wrapped: bool) -> dict[str, Any]:
    teacher = part(w, "teacher.")
    return {
        "student": wrapped(part(w, "student.")),
        "teacher": wrapped(teacher) if teacher_wrapped else teacher,
        "optimizer": optimizer(lr=np.float64(0.0005), weight_decay=np.float64(0.04)),
        "epoch": 20,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=8, momentum_teacher=0.996),
        "dino_loss": {"center": torch.zeros(1, 40)},
    }


@fixture
def dino_vit() -> Fixture:
    w, embed = dino_pair("teacher.", "student.", Weights.vit, Weights.run_vit, 192)
    return Fixture("dino", dino_tree(w, False), embed, arch="vit_tiny_patch8 (depth 2)")


@fixture
def dino_resnet() -> Fixture:
    """With BatchNorm the teacher is wrapped too; head with BatchNorm, weight norm's new names."""
    w, embed = dino_pair(
        "teacher.", "student.", Weights.resnet, Weights.run_resnet, 16, new=True, bn=True
    )
    return Fixture("dino", dino_tree(w, True), embed)


def ibot_pair(masked: bool, second: bool) -> Fixture:
    """masked: whether the student hides patches; second: whether patches have own prototypes."""
    w, embed = dino_pair("teacher.", "student.", Weights.vit, Weights.run_vit, 192)
    for branch in ("teacher", "student"):
        if second:
            w.weight_norm(f"{branch}.head.last_layer2", 16, 30)
    tree = dino_tree(w, False)
    if masked:
        tree["student"]["module.backbone.masked_embed"] = torch.ones(1, 192)
    tree["ibot_loss"] = {"center": torch.zeros(1, 40), "center2": torch.zeros(1, 1, 30)}
    del tree["dino_loss"]
    return Fixture("ibot", tree, embed)


@fixture
def ibot() -> Fixture:
    return ibot_pair(masked=True, second=True)


@fixture
def ibot_shared_head() -> Fixture:
    """One layer of prototypes, which some versions save once: the masked token marks it."""
    return ibot_pair(masked=True, second=False)


def layer_scales(w: Weights, prefix: str, block: Callable[[int], str]) -> None:
    for i in range(2):
        w.uniform(f"{prefix}{block(i)}.ls1.gamma", 192)
        w.uniform(f"{prefix}{block(i)}.ls2.gamma", 192)


@fixture
def dinov2_dump() -> Fixture:
    """Blocks in chunks: the chunk's number, then the block's own."""
    w = Weights()
    chunked = "blocks.{0}.{0}".format
    w.vit("teacher.backbone.", block=chunked)
    layer_scales(w, "teacher.backbone.", chunked)
    w.normal("teacher.backbone.mask_token", 1, 192)
    dino_head(w, "teacher.dino_head", 192)
    dino_head(w, "teacher.ibot_head", 192)
    trunk = functools.partial(w.run_vit, "teacher.backbone.", block=chunked)
    return Fixture(
        "dinov2",
        {"teacher": part(w, "teacher.")},
        {
            ("teacher", "backbone"): trunk,
            ("teacher", "projector"): lambda x: run_dino(w, "teacher.dino_head", trunk(x)),
        },
        file="teacher_checkpoint.pth",
    )


@fixture
def franca() -> Fixture:
    """Five chains of layers on nested widths, which end in GELU; the last has the whole width."""
    w = Weights()
    chunked = "blocks.{0}.{0}".format
    w.vit("teacher.backbone.", block=chunked)
    layer_scales(w, "teacher.backbone.", chunked)
    w.normal("teacher.backbone.mask_token", 1, 192)
    p = "teacher.dino_head."
    for i, width in enumerate((12, 24, 48, 96, 192)):
        w.linear(f"{p}matryoshka_projections.{i}", 192, width)
        for at, into, out in ((0, width, 24), (2, 24, 24), (4, 24, 12)):
            w.linear(f"{p}mlps.{i}.{at}", into, out)
        w.weight_norm(f"{p}last_layers.{i}", 12, 4 * (i + 1))
    trunk = functools.partial(w.run_vit, "teacher.backbone.", block=chunked)

    def projected(x: Tensor) -> Tensor:
        steps = [f"{p}matryoshka_projections.4"]
        for at in (0, 2, 4):
            steps += [f"{p}mlps.4.{at}", "act"]
        return mlp(w, trunk(x), *steps, activation=F.gelu)

    return Fixture(
        "franca",
        {"teacher": part(w, "teacher.")},
        {("teacher", "backbone"): trunk, ("teacher", "projector"): projected},
        file="franca_vitb14_In21K.pth",
    )


@fixture
def dinov2_hub() -> Fixture:
    w = Weights()
    w.vit("")
    layer_scales(w, "", "blocks.{}".format)
    w.normal("mask_token", 1, 192)
    embed: dict[tuple[str, str], Embed] = {
        ("teacher", "backbone"): functools.partial(w.run_vit, "")
    }
    return Fixture("dinov2-hub", dict(w), embed, file="dinov2_vits14_pretrain.pth")
