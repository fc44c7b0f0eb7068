"""What the tests against other people's packages share: small networks, and their files."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from literal import assert_close, images
from torch import Tensor, nn

from lidar_cli.checkpoints.models.embedder import Embedder
from lidar_cli.checkpoints.open import open_checkpoint

MARKS = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # those of other people's code are theirs
]


def package(name: str, of: str = "") -> Any:
    """A module of another package; the test is skipped, with the reason, where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs {of or name.split('.')[0]}: {error}")


def scramble(module: nn.Module, seed: int = 0) -> None:
    """Random weights and statistics that keep activations near 1, and each tensor visible."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 0 or not tensor.is_floating_point():
            continue
        if tensor.dim() == 1 or name.endswith("weight_g"):
            tensor.uniform_(0.2, 0.8, generator=generator)
        else:
            fan_in = math.prod(tensor.shape[1:])
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)


def resnet(seed: int = 0, **options: Any) -> nn.Module:
    """torchvision's ResNet with one basic block a stage, 512 numbers out."""
    models = package("torchvision.models.resnet")
    network: nn.Module = models.ResNet(models.BasicBlock, [1, 1, 1, 1], **options)
    network.fc = nn.Identity()
    scramble(network, seed)
    return network


def vit(seed: int = 0, **options: Any) -> Any:
    """timm's ViT of two blocks for images of 32 pixels, 192 numbers out."""
    models = package("timm.models.vision_transformer")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
    network = models.VisionTransformer(**sizes | {"num_classes": 0} | options)
    scramble(network, seed)
    return network


def save_by_lightning(
    module: Any,
    path: Path,
    framework: str = "pytorch_lightning",
    with_optimizer: bool = False,
    callbacks: tuple[Any, ...] = (),
) -> Path:
    """A checkpoint as a Trainer of Lightning writes it, with all that stands beside the weights."""
    lightning = package(framework)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=path.parent,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.strategy.connect(module)
    module.trainer = trainer
    if with_optimizer:
        trainer.strategy.setup_optimizers(trainer)
    trainer.save_checkpoint(path)
    return path


Expected = dict[tuple[str, str], Any]  # branch and layer -> what its own modules make of images


@torch.no_grad()
def assert_embeds(path: Path, format: str, expected: Expected, size: int = 32) -> Embedder:
    """The file opens without a flag as `format`, with these branches and layers and no others."""
    branches = tuple(dict.fromkeys(branch for branch, _ in expected))
    default = open_checkpoint(path)
    assert default.description.format == format
    assert default.description.branches == branches
    assert default.description.branch == branches[0]
    for branch in branches:
        loaded = default if branch == branches[0] else open_checkpoint(path, branch=branch)
        layers = [layer for of, layer in expected if of == branch]
        assert list(loaded.layers) == layers
        embeddings = loaded.embed(images(size), layers)
        for layer in layers:
            rows: Tensor = expected[branch, layer](images(size))
            assert_close(embeddings[layer], rows)
    return default


def chain(*modules: Any) -> Any:
    """The forward pass of modules in their order, in eval mode."""
    for module in modules:
        if isinstance(module, nn.Module):
            module.eval()

    def forward(x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    return forward
