"""stable-pretraining: its own methods, and its Module with the backbones that it wraps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers import MARKS, assert_embeds, chain, package, resnet, save_by_lightning, scramble, vit
from torch import nn

pytestmark = MARKS

FRAMEWORK = "lightning.pytorch"
ONE: dict[str, dict[str, Any]] = {
    "SimCLR": {"projector_dims": (24, 24, 12)},
    "VICReg": {"projector_dims": (24, 24, 12)},
    "BarlowTwins": {"projector_dims": (24, 24, 12)},
    "SimSiam": {"projector_dim": 24, "predictor_hidden_dim": 6},
    "SwAV": {"projector_dims": (24, 12), "n_prototypes": 30},
    "TiCO": {"projector_dims": (24, 12)},
    "WMSE": {"projector_dims": (24, 12)},
    "NNCLR": {"projector_dims": (24, 12), "predictor_hidden_dim": 24, "queue_length": 16},
}
TWO: dict[str, dict[str, Any]] = {
    "BYOL": {"projector_dims": (24, 12), "predictor_dims": (24, 12)},
    "MoCov2": {"projector_dims": (24, 12), "queue_length": 16},
    "MoCov3": {"projector_dims": (24, 24, 12), "predictor_hidden_dim": 24},
}


def saved(module: Any, folder: Path) -> Path:
    """A checkpoint with what the package's Manager adds to it."""
    manager = package("stable_pretraining.manager", of="stable-pretraining")
    scramble(module)
    return save_by_lightning(
        module.eval(),
        folder / "last.ckpt",
        FRAMEWORK,
        callbacks=(manager._RunDirCallback(str(folder)),),
    )


@pytest.mark.parametrize("trunk", ["resnet", "vit"])
@pytest.mark.parametrize("method", ONE)
def test_one_branch(method: str, trunk: str, tmp_path: Path) -> None:
    make = getattr(package("stable_pretraining.methods", of="stable-pretraining"), method)
    backbone = resnet() if trunk == "resnet" else vit(img_size=224, patch_size=16)
    module = make(encoder_name=backbone, **ONE[method])
    path = saved(module, tmp_path)
    # What is normalised to length 1 for the loss is embedded as it was before, as everywhere.
    layers = [layer for layer in module.projector if type(layer).__name__ != "L2Norm"]
    expected = {
        ("encoder", "backbone"): chain(module.backbone),
        ("encoder", "projector"): chain(module.backbone, *layers),
    }
    if hasattr(module, "predictor"):
        expected["encoder", "predictor"] = chain(
            module.backbone, module.projector, module.predictor
        )
    assert_embeds(path, "stable-pretraining", expected, 64 if trunk == "resnet" else 224)


@pytest.mark.parametrize("trunk", ["resnet", "vit"])
@pytest.mark.parametrize("method", TWO)
def test_student_and_teacher(method: str, trunk: str, tmp_path: Path) -> None:
    make = getattr(package("stable_pretraining.methods", of="stable-pretraining"), method)
    backbone = resnet() if trunk == "resnet" else vit(img_size=224, patch_size=16)
    module = make(encoder_name=backbone, **TWO[method])
    path = saved(module, tmp_path)
    expected = {}
    for branch in ("teacher", "student"):
        trunk_, head = getattr(module.backbone, branch), getattr(module.projector, branch)
        expected[branch, "backbone"] = chain(trunk_)
        expected[branch, "projector"] = chain(trunk_, head)
        if branch == "student" and hasattr(module, "predictor"):
            expected[branch, "predictor"] = chain(trunk_, head, module.predictor)
    size = 64 if trunk == "resnet" else 224
    assert_embeds(path, "stable-pretraining-teacher", expected, size)


@pytest.mark.parametrize("method", ["DINO", "DINOv2", "iBOT"])
def test_dino(method: str, tmp_path: Path) -> None:
    make = getattr(package("stable_pretraining.methods", of="stable-pretraining"), method)
    prototypes: dict[str, Any] = {"n_cls_prototypes": 40, "n_patch_prototypes": 40}
    if method == "DINO":
        prototypes = {"n_prototypes": 40}
    module = make(
        encoder_name=vit(img_size=224, patch_size=16),
        projector_hidden_dim=24,
        projector_bottleneck_dim=12,
        **prototypes,
    )
    path = saved(module, tmp_path)
    heads = module.projector if method == "DINO" else module.cls_head
    expected = {}
    for branch in ("teacher", "student"):
        trunk = getattr(module.backbone, branch)
        expected[branch, "backbone"] = chain(trunk)
        expected[branch, "projector"] = chain(trunk, getattr(heads, branch)[:5])
    assert_embeds(
        path, f"stable-pretraining-{'dino' if method == 'DINO' else 'dinov2'}", expected, 224
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_module_of_ones_own(nested: bool, tmp_path: Path) -> None:
    """The package's Module with parts by name, and a configuration in its hyper-parameters."""
    spt = package("stable_pretraining", of="stable-pretraining")
    configuration = package("omegaconf").OmegaConf.create({"lr": 0.1, "widths": [1, 2]})
    backbone: Any = spt.backbone.from_torchvision("resnet18", low_resolution=True)
    backbone.fc = nn.Identity()
    projector = nn.Sequential(nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 12))
    module = spt.Module(
        backbone=backbone,
        projector=projector,
        forward=package("stable_pretraining.forward").simclr,
        hparams={"nested": configuration} if nested else {"lr": 0.1},
    )
    path = saved(module, tmp_path)
    expected = {
        ("encoder", "backbone"): chain(backbone),
        ("encoder", "projector"): chain(backbone, projector),
    }
    assert_embeds(path, "stable-pretraining", expected)
