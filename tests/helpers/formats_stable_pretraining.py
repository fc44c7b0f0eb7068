"""Checkpoints as stable-pretraining saves them."""

from __future__ import annotations

import functools

import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    fixture,
    lightning,
    mlp,
)
from torch.nn import functional as F


@fixture
def stable_pretraining_simclr() -> Fixture:
    w = Weights()
    w.resnet("backbone.", kernel=3)
    for i, (into, out) in enumerate(((16, 24), (24, 24), (24, 12))):
        w.linear(f"projector.{3 * i}", into, out, bias=False)
        w.bn(f"projector.{3 * i + 1}", out)
    w.linear("callbacks_modules.linear_probe", 16, 10)
    p = "projector."
    backbone = functools.partial(w.run_resnet, "backbone.", padding=1)
    steps = (p + "0", f"bn {p}1", "act", p + "3", f"bn {p}4", "act", p + "6", f"bn {p}7")
    return Fixture(
        "stable-pretraining",
        lightning(w, spt_run_dir="/runs/1", hyper_parameters={"system": {"working_dir": "/"}}),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
        },
        file="last.ckpt",
        ignored=("callbacks_modules.linear_probe",),
    )


def spt_pair(format: str, dino: bool, head: str = "projector") -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch in ("teacher", "student"):
        w.resnet(f"backbone.{branch}.")
        p = f"{head}.{branch}."
        w.linear(p + "0", 16, 24)
        if dino:
            w.linear(p + "2", 24, 24)
            w.linear(p + "4", 24, 12)
            w.linear(p + "6", 12, 40, bias=False)
            steps = (p + "0", "act", p + "2", "act", p + "4")
        else:
            w.bn(p + "1", 24)
            w.linear(p + "3", 24, 12)
            steps = (p + "0", f"bn {p}1", "act", p + "3")
        trunk = functools.partial(w.run_resnet, f"backbone.{branch}.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), *s, activation=F.gelu if dino else F.relu
        )
    if not dino:
        w.linear("predictor.0", 12, 24)
        w.bn("predictor.1", 24)
        w.linear("predictor.3", 24, 12)
        projector = embed["student", "projector"]
        embed["student", "predictor"] = lambda x: mlp(
            w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
        )
    for module in ("backbone", head):
        for name in ("base_ema_coefficient", "final_ema_coefficient", "ema_coefficient"):
            w[f"{module}.{name}"] = torch.tensor(0.99)
    return Fixture(format, lightning(w, spt_run_dir="/runs/1"), embed, file="last.ckpt")


@fixture
def stable_pretraining_byol() -> Fixture:
    return spt_pair("stable-pretraining-teacher", dino=False)


@fixture
def stable_pretraining_dino() -> Fixture:
    return spt_pair("stable-pretraining-dino", dino=True)


@fixture
def stable_pretraining_dinov2() -> Fixture:
    """A head for the patches too, and a token for those that are hidden."""
    actual = spt_pair("stable-pretraining-dinov2", dino=True, head="cls_head")
    actual.tree["state_dict"].linear("patch_head.student.0", 16, 24)
    actual.tree["state_dict"].normal("mask_token", 1, 1, 16)
    return actual
