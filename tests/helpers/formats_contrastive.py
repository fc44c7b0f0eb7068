"""Checkpoints of contrastive methods and their kin, as their authors' code saves them."""

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
    fixture,
    lightning,
    mlp,
    official_head,
    optimizer,
    part,
    run_official,
    script_function,
    wrapped,
)
from torch import Tensor


@fixture
def vicreg() -> Fixture:
    w = Weights()
    w.resnet("backbone.", bottleneck=True, stem=8)  # every width scaled, the stem's too
    official_head(w, "projector", bias=True)
    exclude = script_function("exclude_bias_and_norm")
    groups = {"weight_decay_filter": exclude, "lars_adaptation_filter": exclude}
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "vicreg",
        {"epoch": 9, "model": wrapped(w), "optimizer": optimizer(**groups)},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        file="model.pth",
    )


@fixture
def barlow() -> Fixture:
    w = Weights()
    w.resnet("backbone.", bottleneck=True)
    official_head(w, "projector", bias=False)
    w.bn("bn", 20, affine=False)  # of the loss
    exclude = script_function("exclude_bias_and_norm")
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "barlow",
        {"epoch": 9, "model": wrapped(w), "optimizer": optimizer(weight_decay_filter=exclude)},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        ignored=("bn",),
    )


@fixture
def simclr_sthalles() -> Fixture:
    w = Weights()
    w.resnet("backbone.")
    w.linear("backbone.fc.0", 16, 16)
    w.linear("backbone.fc.2", 16, 12)
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "simclr-sthalles",
        {"epoch": 100, "arch": "resnet18", "state_dict": w, "optimizer": optimizer()},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "backbone.fc.0", "act", "backbone.fc.2"
            ),
        },
        file="checkpoint_0100.pth.tar",
    )


@fixture
def simclr_spijkervet() -> Fixture:
    w = Weights()
    w.resnet("encoder.")
    w.linear("projector.0", 16, 16, bias=False)
    w.linear("projector.2", 16, 12, bias=False)
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "simclr-spijkervet",
        wrapped(w),
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
        file="checkpoint_100.tar",
    )


@fixture
def simclr_atanov() -> Fixture:
    """A CIFAR stem, named layers, a BatchNorm behind the last, and an fc that nothing uses."""
    w = Weights()
    w.resnet("convnet.", kernel=3)
    w.linear("convnet.fc", 16, 10)
    w.linear("projection.fc1", 16, 16, bias=False)
    w.bn("projection.bn1", 16)
    w.linear("projection.fc2", 16, 12, bias=False)
    w.bn("projection.bn2", 12)
    backbone = functools.partial(w.run_resnet, "convnet.", padding=1)
    steps = ("projection.fc1", "bn projection.bn1", "act", "projection.fc2", "bn projection.bn2")
    return Fixture(
        "simclr-atanov",
        {
            "state_dict": w,
            "hparams": argparse.Namespace(arch="ResNet18", dist="dp"),
            "opt_state_dict": optimizer(),
            "iter": 100,
        },
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
        },
        file="checkpoint-100.pth.tar",
        ignored=("convnet.fc",),
    )


@fixture
def simclr_leftthomas() -> Fixture:
    """The children of a ResNet by their places, the profiler's counts at each of them."""
    w = Weights()
    w.resnet("f.", kernel=3, bottleneck=True)
    w.linear("g.0", 16, 24, bias=False)
    w.bn("g.1", 24)
    w.linear("g.3", 24, 12)
    places = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool")
    tree = {name: tensor for name, tensor in w.items() if name.startswith("g.")}
    for at, name in enumerate(places):
        inside = part(w, f"f.{name}.")
        tree |= {f"f.{at}.{inner}": tensor for inner, tensor in inside.items()}
        tree |= {f"f.{at}.total_ops": torch.zeros(1), f"f.{at}.total_params": torch.zeros(1)}
    for name in ("", "f.", "g.", "g.0.", "g.3."):
        tree |= {f"{name}total_ops": torch.zeros(1), f"{name}total_params": torch.zeros(1)}
    backbone = functools.partial(w.run_resnet, "f.", padding=1)
    return Fixture(
        "simclr-leftthomas",
        tree,
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), "g.0", "bn g.1", "act", "g.3"),
        },
        file="128_0.5_200_512_500_model.pth",
    )


def moco(version: int) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "encoder_q."), ("teacher", "encoder_k.")):
        w.resnet(e, bottleneck=True)
        steps: tuple[str, ...] = (f"{e}fc",)
        if version == 1:
            w.linear(f"{e}fc", 16, 12)
        else:
            w.linear(f"{e}fc.0", 16, 16)
            w.linear(f"{e}fc.2", 16, 12)
            steps = (f"{e}fc.0", "act", f"{e}fc.2")
        trunk = functools.partial(w.run_resnet, e)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    queue = {"queue": torch.ones(12, 64), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return Fixture(
        f"moco-v{version}",
        {"epoch": 200, "arch": "resnet50", "state_dict": wrapped(dict(w) | queue),
         "optimizer": optimizer()},
        embed,
        file="checkpoint_0199.pth.tar",
    )  # fmt: skip


@fixture
def moco_v1() -> Fixture:
    return moco(1)


@fixture
def moco_v2() -> Fixture:
    return moco(2)


def moco_v3(vit: bool) -> Fixture:
    """ViT-S: 12 heads of 32, where the usual number for its width is 6."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    width = 384 if vit else 16
    for branch, e in (("student", "base_encoder."), ("teacher", "momentum_encoder.")):
        if vit:
            w.vit(e, width)
            trunk: Embed = functools.partial(w.run_vit, e, heads=12)
        else:
            w.resnet(e, bottleneck=True)
            trunk = functools.partial(w.run_resnet, e)
        h = f"{e}head." if vit else f"{e}fc."
        w.linear(h + "0", width, 24, bias=False)
        w.bn(h + "1", 24)
        steps: list[str] = [h + "0", f"bn {h}1", "act"]
        last = "3"
        if vit:
            w.linear(h + "3", 24, 24, bias=False)
            w.bn(h + "4", 24)
            steps += [h + "3", f"bn {h}4", "act"]
            last = "6"
        w.linear(h + last, 24, 12, bias=False)
        w.bn(f"{h}{int(last) + 1}", 12, affine=False)
        steps += [h + last, f"bn {h}{int(last) + 1}"]
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, s=steps, t=trunk: mlp(w, t(x), *s)  # type: ignore[misc]
    w.linear("predictor.0", 12, 24, bias=False)
    w.bn("predictor.1", 24)
    w.linear("predictor.3", 24, 12, bias=False)
    predict = ["predictor.0", "bn predictor.1", "act", "predictor.3"]
    if vit:
        w.bn("predictor.4", 12, affine=False)
        predict.append("bn predictor.4")
    projector = embed["student", "projector"]
    embed["student", "predictor"] = lambda x: mlp(w, projector(x), *predict)
    return Fixture(
        "moco-v3-vit" if vit else "moco-v3-resnet",
        {"epoch": 300, "arch": "vit_small" if vit else "resnet50", "state_dict": wrapped(w),
         "optimizer": optimizer(), "scaler": {"scale": 65536.0}},
        embed,
        file="vit-s-300ep.pth.tar" if vit else "r-50-300ep.pth.tar",
    )  # fmt: skip


@fixture
def moco_v3_vit() -> Fixture:
    return moco_v3(True)


@fixture
def moco_v3_resnet() -> Fixture:
    return moco_v3(False)


def swav_like(prototypes: Callable[[Weights], None], flat: bool) -> Fixture:
    w = Weights()
    w.resnet("", bottleneck=True, stem=8)
    w.linear("projection_head.0", 16, 24)
    w.bn("projection_head.1", 24)
    w.linear("projection_head.3", 24, 12)
    prototypes(w)
    p = "projection_head."
    backbone = functools.partial(w.run_resnet, "")
    tree: dict[str, Any] = wrapped(w)
    if not flat:
        tree = {"epoch": 400, "state_dict": tree, "optimizer": optimizer(lr=np.float64(0.6))}
    return Fixture(
        "swav",
        tree,
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(
                w, backbone(x), p + "0", f"bn {p}1", "act", p + "3"
            ),
        },
        file="checkpoint.pth.tar",
        legacy=flat,
    )


@fixture
def swav_released() -> Fixture:
    return swav_like(lambda w: w.linear("prototypes", 12, 30, bias=False), flat=True)


@fixture
def deepcluster_v2() -> Fixture:
    def make(w: Weights) -> None:
        for i in range(3):
            w.linear(f"prototypes.prototypes{i}", 12, 30, bias=False)

    return swav_like(make, flat=False)


@fixture
def swav_linear_head() -> Fixture:
    w = Weights()
    w.resnet("", bottleneck=True, stem=8)
    w.linear("projection_head", 16, 12)
    w.linear("prototypes", 12, 30, bias=False)
    backbone = functools.partial(w.run_resnet, "")
    return Fixture(
        "swav",
        {"epoch": 400, "state_dict": wrapped(w), "optimizer": optimizer()},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: w.lin("projection_head", backbone(x)),
        },
        file="checkpoint.pth.tar",
        ignored=("prototypes",),
    )


def simsiam_head(w: Weights, name: str) -> list[str]:
    """Three Linear layers, of which the last may have a bias, and a BatchNorm without weights."""
    steps: list[str] = []
    for at, width in (("0", 16), ("3", 24), ("6", 24)):
        w.linear(f"{name}.{at}", width, 24, bias=at == "6" and name.endswith("fc"))
        w.bn(f"{name}.{int(at) + 1}", 24, affine=at != "6")
        steps += [f"{name}.{at}", f"bn {name}.{int(at) + 1}", "act"]
    return steps[:-1]


@fixture
def simsiam() -> Fixture:
    w = Weights()
    w.resnet("encoder.", bottleneck=True)
    steps = simsiam_head(w, "encoder.fc")
    w.linear("predictor.0", 24, 8, bias=False)
    w.bn("predictor.1", 8)
    w.linear("predictor.3", 8, 24)
    predict = ("predictor.0", "bn predictor.1", "act", "predictor.3")
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "simsiam",
        {"epoch": 100, "arch": "resnet50", "state_dict": wrapped(w), "optimizer": optimizer()},
        {
            ("encoder", "backbone"): backbone,
            ("encoder", "projector"): lambda x: mlp(w, backbone(x), *steps),
            ("encoder", "predictor"): lambda x: mlp(w, backbone(x), *steps, *predict),
        },
        file="checkpoint_0099.pth.tar",
    )


def byol_learner(simplicial: bool, prefix: str = "") -> Fixture:
    """The online network is in the file twice, as `net` and in its encoder."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, e in (("student", "online_encoder."), ("teacher", "target_encoder.")):
        w.resnet(f"{e}net.")
        w.linear(f"{e}net.fc", 16, 10)
        p = f"{e}projector."
        q = f"{p}2." if simplicial else p
        if simplicial:
            w.linear(f"{p}0.0", 16, 16)
            w.bn(f"{p}0.1", 16)
        w.linear(f"{q}0", 16, 24)
        w.bn(f"{q}1", 24)
        w.linear(f"{q}3", 24, 12)

        def projector(x: Tensor, e: str = e, p: str = p, q: str = q) -> Tensor:
            x = w.run_resnet(f"{e}net.", x)
            if simplicial:
                x = mlp(w, x, f"{p}0.0", f"bn {p}0.1")
                x = torch.cat([(x[:, i : i + 8] / 0.1).softmax(1) for i in (0, 8)], dim=1)
            return mlp(w, x, f"{q}0", f"bn {q}1", "act", f"{q}3")

        embed[branch, "backbone"] = functools.partial(w.run_resnet, f"{e}net.")
        embed[branch, "projector"] = projector
    w.linear("online_predictor.0", 12, 24)
    w.bn("online_predictor.1", 24)
    w.linear("online_predictor.3", 24, 12)
    p = "online_predictor."
    online = embed["student", "projector"]
    embed["student", "predictor"] = lambda x: mlp(w, online(x), p + "0", f"bn {p}1", "act", p + "3")
    tree = dict(w) | {f"net.{k}": t for k, t in part(w, "online_encoder.net.").items()}
    tree = {prefix + name: tensor for name, tensor in tree.items()}
    return Fixture(
        "byol-pytorch", lightning(tree) if prefix else tree, dict(sorted(embed.items(), key=place))
    )


def place(item: tuple[tuple[str, str], Any]) -> int:
    branch, layer = item[0]
    layers = ("backbone", "projector", "predictor")
    return ("student", "teacher").index(branch) * 3 + layers.index(layer)


@fixture
def byol_pytorch() -> Fixture:
    return byol_learner(simplicial=False)


@fixture
def byol_pytorch_simplicial() -> Fixture:
    return byol_learner(simplicial=True, prefix="learner.")
