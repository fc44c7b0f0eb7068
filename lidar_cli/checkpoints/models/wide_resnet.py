"""solo-learn's Wide ResNet, with its names of tensors; see shapes/wide_resnet.py."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.backbone import Backbone
from lidar_cli.checkpoints.shapes.wide_resnet import EPS, SLOPE, WideResNetSpec


class Layer(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and LeakyReLU, and a shortcut.

    activated: whether a layer that widens applies both to its input.
    """

    def __init__(self, into: int, out: int, stride: int, activated: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(into, eps=EPS)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1)
        self.bn2 = nn.BatchNorm2d(out, eps=EPS)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.convShortcut = nn.Conv2d(into, out, 1, stride) if into != out else None
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        """[b, into, h, w] -> [b, out, h / stride, w / stride]."""
        if self.convShortcut is None:
            shortcut, x = x, _activated(self.bn1(x))
        else:
            x = _activated(self.bn1(x)) if self.activated else x
            shortcut = self.convShortcut(x)
        out: Tensor = self.conv2(_activated(self.bn2(self.conv1(x)))) + shortcut
        return out


class WideResNet(Backbone):
    """A Wide ResNet without classifier."""

    def __init__(self, spec: WideResNetSpec) -> None:
        super().__init__()
        self.width = spec.width
        self.conv1 = nn.Conv2d(spec.channels, spec.widths[0], 3, 1, 1)
        self.layers = list(spec.layers())
        for name, sizes in spec.layers().items():
            block, _, index = name.split(".")
            if index == "0":
                self.add_module(block, nn.ModuleDict({"layer": nn.Sequential()}))
            layer = Layer(*sizes, activated=block == "block1")
            self.get_submodule(f"{block}.layer").add_module(index, layer)
        self.bn1 = nn.BatchNorm2d(spec.width, eps=EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        x = self.conv1(images)
        for name in self.layers:
            x = self.get_submodule(name)(x)
        pooled: Tensor = _activated(self.bn1(x)).mean(dim=(2, 3))
        return pooled


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)
