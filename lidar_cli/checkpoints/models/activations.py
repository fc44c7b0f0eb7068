"""The modules of activations, by their names in specs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from lidar_cli.checkpoints.shapes.heads import SIMPLEX, SIMPLEX_SIZE, SIMPLEX_TEMPERATURE


class Simplex(nn.Module):
    """The softmax over each SIMPLEX_SIZE numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, width] -> [b, width]."""
        groups = x.view(len(x), -1, SIMPLEX_SIZE) / SIMPLEX_TEMPERATURE
        return groups.softmax(dim=-1).flatten(1)


ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    SIMPLEX: Simplex,
}


def activation(name: str) -> Any:
    """The class of an activation, or what creates its module."""
    if name == "quick_gelu":
        from timm.layers.activations import QuickGELU  # timm takes seconds to import

        return QuickGELU
    return ACTIVATIONS[name]
