"""The module of a projector or predictor, from its spec."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.shapes.mlp_head import HeadSpec, Layer

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class WeightNormed(nn.Module):
    """A Linear whose weight is g v / |v|, row by row (Salimans and Kingma 2016)."""

    def __init__(self, into: int, out: int, bias: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(out, 1))
        self.weight_v = nn.Parameter(torch.empty(out, into))
        self.bias = nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[b, into] -> [b, out]."""
        v = self.weight_v
        return F.linear(x, self.weight_g * v / v.norm(dim=1, keepdim=True), self.bias)


def build(spec: HeadSpec) -> nn.Sequential:
    """The module, without weights; tensors are named as in the spec, by index."""
    activation = ACTIVATIONS[spec.activation]
    head = nn.Sequential()
    with torch.device("meta"):
        for layer in spec.layers:
            if layer.after_gap:
                head.add_module(f"act{layer.index}", activation())
            head.add_module(str(layer.index), _module(layer))
    return head


def _module(layer: Layer) -> nn.Module:
    if layer.weight_norm:
        return WeightNormed(layer.into, layer.out, layer.has_bias)
    if layer.kind == "linear":
        return nn.Linear(layer.into, layer.out, bias=layer.has_bias)
    if layer.kind == "batchnorm":
        return nn.BatchNorm1d(layer.out, affine=layer.has_weight)
    return nn.LayerNorm(layer.out, bias=layer.has_bias)
