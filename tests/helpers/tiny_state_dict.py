"""A state dict of a few tensors."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS = (4, 4, 6, 6)


def tiny_state_dict() -> dict[str, Tensor]:
    """The tensors of a ResNet of four narrow stages, by torchvision's names; about 5 kB."""
    tensors: dict[str, Tensor] = {"conv1.weight": torch.randn(4, 3, 3, 3)}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{part}"] = torch.rand(width) + 0.5

    norm("bn1", 4)
    into = 4
    for stage, out in enumerate(CHANNELS, 1):
        block = f"layer{stage}.0"
        tensors[f"{block}.conv1.weight"] = torch.randn(out, into, 3, 3)
        tensors[f"{block}.conv2.weight"] = torch.randn(out, out, 3, 3)
        norm(f"{block}.bn1", out)
        norm(f"{block}.bn2", out)
        if stage > 1:
            tensors[f"{block}.downsample.0.weight"] = torch.randn(out, into, 1, 1)
            norm(f"{block}.downsample.1", out)
        into = out
    return tensors
