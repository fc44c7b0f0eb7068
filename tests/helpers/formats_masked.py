"""Checkpoints of I-JEPA, MAE and MSN, as their authors' code saves them."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    fixture,
    mlp,
    optimizer,
    part,
    wrapped,
)
from torch import Tensor
from torch.nn import functional as F


@fixture
def ijepa() -> Fixture:
    w = Weights()
    for name in ("encoder.", "target_encoder."):
        w.vit(name, cls=False)
    p = "predictor."
    w.linear(f"{p}predictor_embed", 192, 96)
    w.normal(f"{p}mask_token", 1, 1, 96)
    w.normal(f"{p}predictor_pos_embed", 1, 16, 96)
    for i in range(2):
        w.vit_block(f"{p}predictor_blocks.{i}", 96)
    w.ln(f"{p}predictor_norm", 96)
    w.linear(f"{p}predictor_proj", 96, 192)
    tree: dict[str, Any] = {
        name: wrapped(part(w, f"{name}.")) for name in ("encoder", "predictor", "target_encoder")
    }
    run = functools.partial(w.run_vit, pool="mean")

    def predict(x: Tensor) -> Tensor:
        """Of a clean image: every patch is seen, and every patch is predicted."""
        seen = w.lin(f"{p}predictor_embed", w.run_vit("encoder.", x, pool="none"))
        seen = seen + w[f"{p}predictor_pos_embed"]
        asked = (w[f"{p}mask_token"] + w[f"{p}predictor_pos_embed"]).expand(len(x), -1, -1)
        y = torch.cat([seen, asked], dim=1)
        for i in range(2):
            y = w.run_vit_block(f"{p}predictor_blocks.{i}", y, 3)
        y = w.layer_norm(f"{p}predictor_norm", y[:, 16:])
        return w.lin(f"{p}predictor_proj", y).mean(1)

    return Fixture(
        "ijepa",
        tree | {"opt": optimizer(), "scaler": None, "epoch": 300, "loss": 0.1, "lr": 1e-6},
        {
            ("teacher", "backbone"): lambda x: run("target_encoder.", x),
            ("student", "backbone"): lambda x: run("encoder.", x),
            ("student", "predictor"): predict,
        },
        file="jepa-latest.pth.tar",
    )


@fixture
def mae() -> Fixture:
    w = Weights()
    w.vit("")
    w.linear("decoder_embed", 192, 64)
    w.normal("mask_token", 1, 1, 64)
    w.normal("decoder_pos_embed", 1, 17, 64)
    w.linear("decoder_blocks.0.attn.qkv", 64, 192)
    w.ln("decoder_norm", 64)
    w.linear("decoder_pred", 64, 192)
    return Fixture(
        "mae",
        {"model": w, "optimizer": optimizer(), "epoch": 799, "scaler": {},
         "args": argparse.Namespace(model="mae_vit_base_patch16", output_dir=Path("/a"))},
        {("encoder", "backbone"): functools.partial(w.run_vit, "")},
    )  # fmt: skip


def msn_pair(bn: bool) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, name in (("teacher", "target_encoder."), ("student", "encoder.")):
        w.vit(name)
        h = f"{name}fc."
        w.linear(f"{h}fc1", 192, 24)
        w.linear(f"{h}fc2", 24, 24)
        w.linear(f"{h}fc3", 24, 12)
        if bn:
            w.bn(f"{h}bn1", 24)
            w.bn(f"{h}bn2", 24)
        steps = [f"{h}fc1", f"bn {h}bn1", "act", f"{h}fc2", f"bn {h}bn2", "act", f"{h}fc3"]
        steps = [step for step in steps if bn or not step.startswith("bn ")]
        trunk = functools.partial(w.run_vit, name)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), *s, activation=F.gelu
        )
    tree: dict[str, Any] = {
        name: wrapped(part(w, f"{name}.")) for name in ("encoder", "target_encoder")
    }
    more = {"prototypes": torch.ones(20, 12), "opt": optimizer(), "epoch": 1, "temperature": 0.1}
    return Fixture(
        "msn",
        tree | more,
        embed,
        file="msn-ep1.pth.tar",
        ignored=("encoder", "prototypes"),
    )


@fixture
def msn() -> Fixture:
    return msn_pair(bn=True)


@fixture
def msn_without_batchnorm() -> Fixture:
    return msn_pair(bn=False)
