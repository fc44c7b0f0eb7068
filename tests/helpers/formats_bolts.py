"""Checkpoints of Lightning modules of SimCLR, BYOL, MoCo and SwAV: Bolts, and Spijkervet's."""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch
from layouts import Embed, Fixture, Weights, fixture, lightning, mlp


def head(w: Weights, name: str, into: int, last_bias: bool = True) -> tuple[str, ...]:
    """Linear BN ReLU Linear, in `model`; returns its steps."""
    w.linear(f"{name}.model.0", into, 24, bias=not last_bias)
    w.bn(f"{name}.model.1", 24)
    w.linear(f"{name}.model.3", 24, 12, bias=last_bias)
    p = f"{name}.model."
    return p + "0", f"bn {p}1", "act", p + "3"


def bolts_simclr_like(kernel: int, **arguments: Any) -> Fixture:
    w = Weights()
    w.resnet("encoder.", kernel=kernel)
    w.linear("encoder.fc", 16, 10)
    steps = head(w, "projection", 16, last_bias=False)
    padding = 1 if kernel == 3 else None
    backbone = functools.partial(w.run_resnet, "encoder.", padding=padding, pool=False)
    return Fixture(
        "bolts-simclr",
        lightning(w, hyper_parameters={"arch": "resnet18", "maxpool1": False} | arguments),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
        },
        file="last.ckpt",
        ignored=("encoder.fc",),
    )


@fixture
def bolts_simclr() -> Fixture:
    """CIFAR-10: a stem of 3x3 without max-pool."""
    return bolts_simclr_like(3, dataset="cifar10", first_conv=False)


@fixture
def bolts_simclr_stl() -> Fixture:
    """STL-10: a stem of 7x7 without max-pool, which only the arguments say."""
    return bolts_simclr_like(7, dataset="stl10", first_conv=True)


def bolts_byol_like(old: bool) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "online_network."), ("teacher", "target_network.")):
        w.resnet(f"{e}encoder.", bottleneck=True)
        steps = head(w, f"{e}projector", 16)
        trunk = functools.partial(w.run_resnet, f"{e}encoder.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
        if old or branch == "student":
            steps += head(w, f"{e}predictor" if old else "predictor", 12)
            embed[branch, "predictor"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    arguments = {"dataset": "cifar10", "learning_rate": 0.2, "initial_tau": 0.996}
    return Fixture(
        "bolts-byol-old" if old else "bolts-byol",
        lightning(w, hyper_parameters=arguments),
        embed,
        file="last.ckpt",
    )


@fixture
def bolts_byol() -> Fixture:
    return bolts_byol_like(old=False)


@fixture
def bolts_byol_old() -> Fixture:
    return bolts_byol_like(old=True)


@fixture
def bolts_moco() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "encoder_q."), ("teacher", "encoder_k.")):
        w.resnet(e)
        w.linear(f"{e}fc", 16, 12)
        trunk = functools.partial(w.run_resnet, e)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, e=e, t=trunk: w.lin(f"{e}fc", t(x))  # type: ignore[misc]
    queue = {f"{name}.representations": torch.ones(12, 64) for name in ("queue", "val_queue")}
    queue |= {f"{name}.pointer": torch.tensor(0) for name in ("queue", "val_queue")}
    return Fixture("bolts-moco", lightning(dict(w) | queue), embed, file="epoch=199.ckpt")


@fixture
def bolts_swav() -> Fixture:
    """The input is padded by 1 before a stem that pads by 1."""
    w = Weights()
    w.resnet("model.", kernel=3)
    p = "model.projection_head."
    w.linear(p + "0", 16, 24)
    w.bn(p + "1", 24)
    w.linear(p + "3", 24, 12)
    w.linear("model.prototypes", 12, 30, bias=False)
    backbone = functools.partial(w.run_resnet, "model.", padding=2)
    return Fixture(
        "bolts-swav",
        lightning(w, hyper_parameters={"dataset": "cifar10", "maxpool1": False}),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), p + "0", f"bn {p}1", "act", p + "3"
            ),
        },
        file="last.ckpt",
    )


@fixture
def spijkervet_lightning() -> Fixture:
    """The encoder is in the file twice."""
    w = Weights()
    w.resnet("model.encoder.")
    w.linear("model.projector.0", 16, 16, bias=False)
    w.linear("model.projector.2", 16, 12, bias=False)
    twice = {name.removeprefix("model."): t for name, t in w.items() if "encoder" in name}
    backbone = functools.partial(w.run_resnet, "model.encoder.")
    arguments = vars(argparse.Namespace(resnet="resnet18", projection_dim=64))
    return Fixture(
        "spijkervet-lightning",
        lightning(dict(w) | twice, hyper_parameters=arguments),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "model.projector.0", "act", "model.projector.2"
            ),
        },
        file="epoch=99.ckpt",
    )
