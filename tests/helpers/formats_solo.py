"""Checkpoints as solo-learn saves them."""

from __future__ import annotations

import functools

import torch
from layouts import (
    Embed,
    Fixture,
    Weights,
    dino_head,
    fixture,
    lightning,
    mlp,
    official_head,
    run_dino,
    run_official,
    script_function,
)
from torch import Tensor


@fixture
def solo_learn_byol() -> Fixture:
    """Two branches, a predictor, probes, a CIFAR stem of padding 2."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, m in (("student", ""), ("teacher", "momentum_")):
        w.resnet(f"{m}backbone.", kernel=3)
        w.linear(f"{m}classifier", 16, 10)
        p = f"{m}projector."
        w.linear(p + "0", 16, 24)
        w.bn(p + "1", 24)
        w.linear(p + "3", 24, 12)
        trunk = functools.partial(w.run_resnet, f"{m}backbone.", padding=2)
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=p, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), p + "0", f"bn {p}1", "act", p + "3"
        )
    w.linear("predictor.0", 12, 24)
    w.bn("predictor.1", 24)
    w.linear("predictor.3", 24, 12)
    projector = embed["student", "projector"]
    embed["student", "predictor"] = lambda x: mlp(
        w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
    )
    return Fixture("solo-learn", lightning(w), embed, file="byol-cifar-ep=999.ckpt")


@fixture
def solo_learn_vicreg() -> Fixture:
    """The last Linear has a bias here; functools.partial among the schedules."""
    w = Weights()
    w.resnet("backbone.")
    w.linear("classifier", 16, 10)
    official_head(w, "projector", bias=True, last_bias=True)
    backbone = functools.partial(w.run_resnet, "backbone.")
    return Fixture(
        "solo-learn",
        lightning(w, lr_schedulers=[{"lr_lambdas": [functools.partial(max, 1)]}]),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): lambda x: run_official(w, "projector", backbone(x)),
        },
        file="vicreg.ckpt",
    )


@fixture
def solo_learn_old() -> Fixture:
    w = Weights()
    w.resnet("encoder.")
    w.linear("classifier", 16, 10)
    w.linear("projector.0", 16, 16)
    w.linear("projector.2", 16, 12)
    backbone = functools.partial(w.run_resnet, "encoder.")
    return Fixture(
        "solo-learn-old",
        lightning(w),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): lambda x: mlp(
                w, backbone(x), "projector.0", "act", "projector.2"
            ),
        },
        file="simclr.ckpt",
    )


def solo_dino(format: str, trunk_name: str) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, m in (("teacher", "momentum_"), ("student", "")):
        w.vit(f"{m}{trunk_name}.")
        dino_head(w, f"{m}head", 192)
        trunk = functools.partial(w.run_vit, f"{m}{trunk_name}.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, h=f"{m}head", t=trunk: run_dino(w, h, t(x))  # type: ignore[misc]
    w.linear("classifier", 192, 10)
    w.normal("dino_loss_func.center", 1, 40)
    return Fixture(format, lightning(w), embed, file="dino.ckpt")


@fixture
def solo_learn_dino() -> Fixture:
    return solo_dino("solo-learn-dino", "backbone")


@fixture
def solo_learn_old_dino() -> Fixture:
    return solo_dino("solo-learn-old-dino", "encoder")


@fixture
def solo_learn_simsiam() -> Fixture:
    """A schedule whose get_lr is a function of the library's, bound to the old get_lr."""
    w = Weights()
    w.resnet("backbone.")
    w.linear("classifier", 16, 10)
    w.linear("projector.0", 16, 24, bias=False)
    w.bn("projector.1", 24)
    w.linear("projector.3", 24, 24, bias=False)
    w.bn("projector.4", 24)
    w.linear("projector.6", 24, 12)
    w.bn("projector.7", 12, affine=False)
    w.linear("predictor.0", 12, 6, bias=False)
    w.bn("predictor.1", 6)
    w.linear("predictor.3", 6, 12)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10)
    static = functools.partial(script_function("static_lr"), get_lr=schedule.get_lr)
    schedule.get_lr = static  # type: ignore[method-assign]
    backbone = functools.partial(w.run_resnet, "backbone.")

    def projector(x: Tensor) -> Tensor:
        return w.norm("projector.7", run_official(w, "projector", backbone(x)))

    return Fixture(
        "solo-learn",
        lightning(w, lr_schedulers=[schedule.state_dict()]),
        {
            ("student", "backbone"): backbone,
            ("student", "projector"): projector,
            ("student", "predictor"): lambda x: mlp(
                w, projector(x), "predictor.0", "bn predictor.1", "act", "predictor.3"
            ),
        },
        file="simsiam.ckpt",
    )


@fixture
def solo_learn_mae() -> Fixture:
    """12 heads in the tiny ViT too, where other methods of the library have 3."""
    w = Weights()
    w.vit("backbone.")
    w.linear("classifier", 192, 10)
    w.normal("decoder.mask_token", 1, 1, 64)
    w.normal("decoder.decoder_pos_embed", 1, 17, 64)
    w.linear("decoder.decoder_embed", 192, 64)
    w.ln("decoder.decoder_norm", 64)
    w.linear("decoder.decoder_pred", 64, 192)
    backbone = functools.partial(w.run_vit, "backbone.", heads=12)
    return Fixture(
        "solo-learn-mae", lightning(w), {("encoder", "backbone"): backbone}, file="m.ckpt"
    )
