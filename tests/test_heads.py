"""A projector built from its weights computes what the Sequential that was saved computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from raising import raises
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from lidar_cli.checkpoints.models.resnet import ResNet as OurResNet
from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.shapes.spec import Assumed
from lidar_cli.errors import CheckpointError, SettingsError

WIDTH = 32  # of the backbone below


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            gain = 1.0 if tensor.dim() == 1 else tensor[0].numel() ** -0.5
            tensor.normal_(0.0, gain, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return randomised(ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 12, WIDTH), num_classes=0))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 24), activation(), nn.Linear(24, 8))


HEADS: dict[str, nn.Sequential] = {
    "two layers": mlp(),
    "linear alone": nn.Sequential(nn.Linear(WIDTH, 8)),
    "no bias": nn.Sequential(nn.Linear(WIDTH, 24, bias=False), nn.ReLU(), nn.Linear(24, 8)),
    "VICReg": nn.Sequential(
        nn.Linear(WIDTH, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 8, bias=False),
    ),
    "MoCo v3": nn.Sequential(
        nn.Linear(WIDTH, 24, bias=False),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),
    ),
    "layer norm": nn.Sequential(
        nn.Linear(WIDTH, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 8)
    ),
    "dropout": nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Dropout(0.9), nn.Linear(24, 8)),
    "no activation": nn.Sequential(nn.Linear(WIDTH, 24), nn.Linear(24, 8)),
    "ten layers": nn.Sequential(  # 10 comes after 9, not after 1
        nn.Linear(WIDTH, 12),
        *(layer for i in range(4) for layer in (nn.ReLU(), nn.Linear(12 + i, 13 + i))),
        nn.ReLU(),
        nn.Linear(16, 8),
    ),
}


def eps_of_norms(module: nn.Module) -> list[float]:
    """In order; where activations are near 1, no embedding shows 1e-6 for 1e-5."""
    norms = (nn.LayerNorm, nn.BatchNorm1d)
    return [part.eps for part in module.modules() if isinstance(part, norms)]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["projector", "projection_head.layers"])
def test_heads(kind: str, name: str, backbone: nn.Module, tmp_path: Path) -> None:
    head = randomised(HEADS[kind], 1)
    path = save(tmp_path / "a.pt", prefixed(backbone, "backbone.") | prefixed(head, f"{name}."))
    loaded = open_checkpoint(path)
    assert loaded.description.widths == {"backbone": WIDTH, "projector": 8}
    assert eps_of_norms(loaded.modules["projector"]) == eps_of_norms(head)
    embeddings = loaded.embed(images(), ["projector"])["projector"]
    expected = head(backbone(images())).detach()
    assert expected.std() > 1e-2
    assert (embeddings - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("backbone_prefix", "head_prefix"),
    [
        ("", "projector."),
        ("", "fc."),  # MoCo v2: in the classifier's place
        ("backbone.", "backbone.fc."),
        ("module.encoder.", "module.projection."),
        ("module.backbone.", "module.projection_head._orig_mod."),
        ("encoder.", "head."),
    ],
)
def test_places_of_the_head(
    backbone_prefix: str, head_prefix: str, backbone: nn.Module, tmp_path: Path
) -> None:
    head = randomised(mlp(), 1)
    tree = prefixed(backbone, backbone_prefix) | prefixed(head, head_prefix)
    loaded = open_checkpoint(save(tmp_path / "a.pt", {"state_dict": tree}))
    rows = loaded.embed(images(), ["projector"])["projector"]
    assert (rows - head(backbone(images()))).abs().max() < 1e-5


def test_projector_and_classifier_side_by_side(backbone: nn.Module, tmp_path: Path) -> None:
    head = randomised(mlp(), 1)
    tree = prefixed(backbone, "encoder.") | prefixed(head, "projector.")
    tree |= prefixed(nn.Linear(WIDTH, 10), "encoder.fc.") | prefixed(nn.Linear(9, 3), "classifier.")
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree))
    assert set(loaded.description.ignored) == {"encoder.fc", "classifier"}
    used = [*backbone.parameters(), *head.parameters()]
    assert loaded.description.parameters == sum(p.numel() for p in used)


@pytest.mark.parametrize(
    ("option", "activation"), [("auto", nn.ReLU), ("relu", nn.ReLU), ("gelu", nn.GELU)]
)
def test_activation(
    option: str, activation: type[nn.Module], backbone: nn.Module, tmp_path: Path
) -> None:
    head = randomised(mlp(activation), 1)
    tree = prefixed(backbone, "backbone.") | prefixed(head, "projector.")
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree), activation=option)
    rows = loaded.embed(images(), ["projector"])["projector"]
    assert (rows - head(backbone(images()))).abs().max() < 1e-5
    other = randomised(mlp(nn.ReLU if activation is nn.GELU else nn.GELU), 1)
    assert (rows - other(backbone(images()))).abs().max() > 1e-3
    value, why = ("relu", "usual") if option == "auto" else (option, "--activation")
    assert loaded.description.assumed["activation"] == Assumed(value, why)


def test_several_layers_come_out_of_one_forward(
    backbone: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = randomised(mlp(), 1)
    tree = prefixed(backbone, "backbone.") | prefixed(head, "projector.")
    loaded = open_checkpoint(save(tmp_path / "a.pt", tree))
    calls = []
    forward = OurResNet.forward
    monkeypatch.setattr(OurResNet, "forward", lambda s, x: calls.append(1) or forward(s, x))
    embeddings = loaded.embed(images(), ["projector", "backbone"])
    assert list(embeddings) == ["projector", "backbone"]
    assert len(calls) == 1
    assert torch.equal(embeddings["projector"], loaded.modules["projector"](embeddings["backbone"]))
    assert (embeddings["backbone"] - backbone(images())).abs().max() < 1e-4


def test_unknown_layer_names_those_that_are_there(backbone: nn.Module, tmp_path: Path) -> None:
    loaded = open_checkpoint(save(tmp_path / "a.pt", backbone.state_dict()))
    with raises(SettingsError, "no-such-layer") as raised:
        loaded.embed(images(), ["projector"])
    raised.match("'projector': this checkpoint has backbone")


def two_heads() -> dict[str, Tensor]:
    return prefixed(mlp(), "projector.") | prefixed(mlp(), "projection_head.")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (prefixed(nn.Sequential(nn.Linear(100, 8)), "projector."), "takes 100 numbers, but 32"),
        (
            prefixed(nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(9, 8)), "projector."),
            "layer 1 takes 9 numbers, but 8",
        ),
        (
            prefixed(nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 8)), "projector."),
            "begin at 1, .*expected layer 0",
        ),
        ({"projector.fc1.weight": torch.ones(8, WIDTH)}, r"fc1\.weight is not a tensor of"),
        ({"projector.0.weight_g": torch.ones(8, 1)}, r"layer 0 with weight_g is not a Linear"),
        ({"projector.0.weight": torch.ones(8, WIDTH, 1, 1)}, "layer 0 with weight is not"),
        (
            {"projector.0.weight": torch.ones(8, WIDTH), "projector.0.scale": torch.ones(8)},
            r"0\.scale have no place",
        ),
        ({"projector.1.running_mean": torch.ones(WIDTH)}, "begin at 1"),
        ({"projector.0.running_mean": torch.ones(WIDTH)}, r"0\.running_var missing"),
        (
            {"projector.0.weight": torch.ones(8, WIDTH), "projector.0.bias": torch.ones(9)},
            r"0\.bias has shape \[9\], expected \[8\]",
        ),
        (
            {
                "projector.0.weight": torch.ones(8, WIDTH),
                "projector.layers.0.weight": torch.ones(8, WIDTH),
            },
            "two layers have one number",
        ),
        (two_heads(), "2 projectors, projector, projection_head; expected one"),
    ],
)
def test_heads_that_are_not_understood(
    head: dict[str, Tensor], message: str, backbone: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(save(tmp_path / "a.pt", prefixed(backbone, "backbone.") | head))
    assert "\n" not in str(caught.value)
