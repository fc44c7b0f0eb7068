"""Checkpoints of LeJEPA's minimal example and of EB-JEPA, as their authors' code saves them."""

from __future__ import annotations

import functools

import torch
from formats_plain import torchvision_names
from layouts import (
    Fixture,
    Weights,
    fixture,
    mlp,
    official_head,
    optimizer,
    run_official,
)
from torch import Tensor


@fixture
def lejepa() -> Fixture:
    """timm's classifier is part of the embedding; torchvision's MLP numbers its dropouts too."""
    w = Weights()
    w.vit("backbone.")
    w.linear("backbone.head", 192, 20)
    for at, into, out in ((0, 20, 24), (4, 24, 24), (8, 24, 12)):
        w.linear(f"proj.{at}", into, out)
        if at < 8:
            w.bn(f"proj.{at + 1}", out)

    def trunk(x: Tensor) -> Tensor:
        return w.lin("backbone.head", w.run_vit("backbone.", x))

    def projected(x: Tensor) -> Tensor:
        steps = ("proj.0", "bn proj.1", "act", "proj.4", "bn proj.5", "act", "proj.8")
        return mlp(w, trunk(x), *steps)

    return Fixture(
        "lejepa",
        dict(w),
        {("encoder", "backbone"): trunk, ("encoder", "projector"): projected},
        arch="vit_tiny_patch8 (depth 2, Linear to 20)",
    )


def eb_jepa_tree(w: dict[str, Tensor]) -> dict[str, object]:
    return {
        "epoch": 299,
        "step": 0,
        "model_state_dict": w,
        "optimizer_state_dict": optimizer(),
        "scaler_state_dict": {},
        "linear_probe_state_dict": {"classifier.weight": torch.ones(10, 16)},
        "linear_val_acc": 91.0,
    }


@fixture
def eb_jepa() -> Fixture:
    w = Weights()
    w.resnet("backbone.backbone.", kernel=3)
    official_head(w, "projector", bias=True, last_bias=True)
    trunk = functools.partial(w.run_resnet, "backbone.backbone.", padding=2)
    return Fixture(
        "eb-jepa",
        eb_jepa_tree(w),
        {
            ("encoder", "backbone"): trunk,
            ("encoder", "projector"): lambda x: run_official(w, "projector", trunk(x)),
        },
        file="latest.pth.tar",
        arch="resnet 1-1-1-1 (width 8, 3x3 stem, pad 2)",
    )


@fixture
def eb_jepa_vit() -> Fixture:
    """torchvision's ViT, without a projector."""
    w = Weights()
    w.vit("")
    tree = {f"backbone.{name}": tensor for name, tensor in torchvision_names(w).items()}
    return Fixture(
        "eb-jepa",
        eb_jepa_tree(tree),
        {("encoder", "backbone"): functools.partial(w.run_vit, "")},
        file="epoch_50.pth.tar",
    )
