"""Checkpoints as VISSL saves them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
    run_dino,
)
from torch import Tensor


def vissl_tree(
    w: Weights, loss: dict[str, Tensor] | None = None, outermost: bool = False
) -> dict[str, Any]:
    """outermost: whether the loss's state lies at the top, where else stands a number."""
    base = {"trunk": part(w, "trunk."), "heads": part(w, "heads.")}
    return {
        "phase_idx": 99,
        "iteration": 100,
        "loss": loss if outermost else 0.5,
        "iteration_num": 100,
        "train_phase_idx": 99,
        "type": "consolidated",
        "classy_state_dict": {
            "train": True,
            "base_model": {"model": base, "meta": {"name": "ssl"}},
            "meters": [],
            "optimizer": {"optim": optimizer(), "param_scheduler": {}},
            "losses": [],
            "hooks": {},
        }
        | ({"loss": loss} if loss and not outermost else {}),
    }


def vissl(name: str, steps: tuple[str, ...], make: Callable[[Weights], None]) -> Fixture:
    w = Weights()
    w.resnet("trunk._feature_blocks.")
    make(w)
    trunk = functools.partial(w.run_resnet, "trunk._feature_blocks.")
    embed: dict[tuple[str, str], Embed] = {("encoder", "backbone"): trunk}
    if steps:
        embed["encoder", "projector"] = lambda x: mlp(w, trunk(x), *steps)
    return Fixture(
        name, vissl_tree(w), embed, file="model_final_checkpoint_phase99.torch", legacy=True
    )


@fixture
def vissl_plain() -> Fixture:
    return vissl("vissl", (), lambda w: None)


@fixture
def vissl_simclr() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.clf.0", 16, 16)
        w.linear("heads.1.clf.0", 16, 12)

    return vissl("vissl-simclr", ("heads.0.clf.0", "act", "heads.1.clf.0"), make)


@fixture
def vissl_simclr_one_head() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.clf.0", 16, 24)
        w.linear("heads.0.clf.2", 24, 12)

    return vissl("vissl-simclr", ("heads.0.clf.0", "act", "heads.0.clf.2"), make)


@fixture
def vissl_barlow() -> Fixture:
    def make(w: Weights) -> None:
        for i in range(2):
            w.linear(f"heads.{i}.clf.0", 16 if i == 0 else 24, 24, bias=False)
            w.bn(f"heads.{i}.clf.1", 24)
        w.linear("heads.2.clf.0", 24, 20, bias=False)

    h = "heads."
    steps = (h + "0.clf.0", f"bn {h}0.clf.1", "act", h + "1.clf.0", f"bn {h}1.clf.1", "act",
             h + "2.clf.0")  # fmt: skip
    return vissl("vissl-barlow", steps, make)


@fixture
def vissl_swav() -> Fixture:
    def make(w: Weights) -> None:
        w.linear("heads.0.projection_head.0", 16, 24)
        w.bn("heads.0.projection_head.1", 24)
        w.linear("heads.0.projection_head.3", 24, 12)
        w.linear("heads.0.prototypes0", 12, 30, bias=False)

    p = "heads.0.projection_head."
    return vissl("vissl-swav", (p + "0", f"bn {p}1", "act", p + "3"), make)


@fixture
def vissl_moco() -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    loss = "loss.moco_encoder."
    for branch, prefix in (("student", ""), ("teacher", loss)):
        w.resnet(f"{prefix}trunk._feature_blocks.")
        w.linear(f"{prefix}heads.0.clf.0", 16, 16)
        w.linear(f"{prefix}heads.1.clf.0", 16, 12)
        trunk = functools.partial(w.run_resnet, f"{prefix}trunk._feature_blocks.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=prefix, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), f"{p}heads.0.clf.0", "act", f"{p}heads.1.clf.0"
        )
    state = part(w, "loss.") | {"queue": torch.ones(12, 64), "queue_ptr": torch.zeros(1).long()}
    return Fixture("vissl-moco", vissl_tree(w, state), embed, file="checkpoint.torch")


def vissl_dino_at(outermost: bool) -> Fixture:
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, prefix in (("teacher", "loss.momentum_teacher.module."), ("student", "")):
        w.vit(f"{prefix}trunk.")
        h = f"{prefix}heads.0"
        w.linear(f"{h}.mlp.0", 192, 24)
        w.linear(f"{h}.mlp.2", 24, 24)
        w.linear(f"{h}.mlp.4", 24, 16)
        w.weight_norm(f"{h}.prototypes0", 16, 40)
        trunk = functools.partial(w.run_vit, f"{prefix}trunk.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, h=h, t=trunk: run_dino(w, h, t(x))  # type: ignore[misc]
    state = part(w, "loss.") | {"center": torch.zeros(1, 40)}
    tree = vissl_tree(w, state, outermost)
    return Fixture("vissl-dino", tree, embed, file="checkpoint.torch")


@fixture
def vissl_dino() -> Fixture:
    return vissl_dino_at(outermost=False)


@fixture
def vissl_dino_outermost_loss() -> Fixture:
    return vissl_dino_at(outermost=True)


@fixture
def vissl_classifier() -> Fixture:
    """Supervised or RotNet: the one Linear layer gives logits."""
    actual = vissl("vissl-classifier", (), lambda w: w.linear("heads.0.clf.0", 16, 4))
    return dataclasses.replace(actual, ignored=("heads.0",))


@fixture
def vissl_ema() -> Fixture:
    """HOOKS.EMA_MODEL: a second set of weights, averaged."""
    w = Weights()
    embed: dict[tuple[str, str], Embed] = {}
    for branch, prefix in (("encoder", ""), ("teacher", "ema.")):
        w.resnet(f"{prefix}trunk._feature_blocks.")
        w.linear(f"{prefix}heads.0.clf.0", 16, 16)
        w.linear(f"{prefix}heads.1.clf.0", 16, 12)
        trunk = functools.partial(w.run_resnet, f"{prefix}trunk._feature_blocks.")
        embed[branch, "backbone"] = trunk
        embed[branch, "projector"] = lambda x, p=prefix, t=trunk: mlp(  # type: ignore[misc]
            w, t(x), f"{p}heads.0.clf.0", "act", f"{p}heads.1.clf.0"
        )
    tree = vissl_tree(w)
    averaged = {"trunk": part(w, "ema.trunk."), "heads": part(w, "ema.heads.")}
    tree["classy_state_dict"] |= {"ema_model": {"model": averaged, "meta": {}}, "ema_meters": []}
    return Fixture("vissl-simclr", tree, embed, file="checkpoint.torch")
