"""timm's and torchvision's own models, as the packages save them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from literal import assert_close, images
from peers import MARKS, chain, package, scramble
from torch import nn

from lidar_cli.checkpoints.open import open_checkpoint

pytestmark = MARKS

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
TIMM = {  # name -> what makes it small
    "vit_tiny_patch16_224": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL,
    "deit_tiny_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "resnet18": {},
    "resnet26": {},
    "resnext50_32x4d": {},
    "convnext_atto": {},
}
TORCHVISION = {"resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64, "vit_b_16": 32}
NAMED = ("convnext_atto",)  # not determined by shapes: by --arch


@pytest.mark.parametrize("layout", ["state dict", "folder"])
@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str, layout: str, tmp_path: Path) -> None:
    """save_pretrained of timm's hub module, or its state dict; the classifier is left out."""
    timm = package("timm")
    model = timm.create_model(name, num_classes=7, **TIMM[name])
    scramble(model)
    path = tmp_path / "model.pth"
    if layout == "folder":
        package("timm.models").save_for_hf(model, tmp_path / "a", model_config={})
        path = tmp_path / "a"
    else:
        torch.save(model.state_dict(), path)
    model.reset_classifier(0)
    size = 64 if "net" in name or "next" in name else 32
    arch = name if name in NAMED else None
    loaded = open_checkpoint(path, arch=arch)
    embeddings = loaded.embed(images(size), ["backbone"])["backbone"]
    expected = chain(model)(images(size))
    assert_close(embeddings, expected)
    if arch is None and not TIMM[name]:
        by_name = open_checkpoint(path, arch=name).embed(images(size), ["backbone"])["backbone"]
        assert_close(by_name, expected)


@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_torchvision(name: str, tmp_path: Path) -> None:
    models = package("torchvision.models")
    size = TORCHVISION[name]
    if name == "vit_b_16":
        model = models.VisionTransformer(32, 8, 2, 3, 192, 384)
        model.heads = nn.Identity()
    else:
        model = getattr(models, name)()
        model.fc = nn.Linear(model.fc.in_features, 7)
    scramble(model)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    if name != "vit_b_16":
        model.fc = nn.Identity()
    embeddings = open_checkpoint(tmp_path / "a.pth").embed(images(size), ["backbone"])["backbone"]
    assert_close(embeddings, chain(model)(images(size)))
