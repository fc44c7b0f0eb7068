"""ResNet, with torchvision's and timm's names of tensors; see shapes/resnet.py."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.models.backbone import Backbone, LastLinear
from lidar_cli.checkpoints.shapes.resnet import MAX_POOL, Block, ResNetSpec, usual_pool


class ResidualBlock(nn.Module):
    """Two convolutions (basic) or three (bottleneck), with BatchNorm and ReLU, and a shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        if block.bottleneck:
            self.conv1 = nn.Conv2d(block.into, block.inner, 1, bias=False)
            self.conv2 = _conv3x3(block.inner, block.inner, block.stride, block.groups)
            self.bn2 = nn.BatchNorm2d(block.inner)
            self.conv3 = nn.Conv2d(block.inner, block.out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(block.out)
        else:
            self.conv1 = _conv3x3(block.into, block.inner, block.stride)
            self.conv2 = _conv3x3(block.inner, block.out, 1, block.groups)
            self.bn2 = nn.BatchNorm2d(block.out)
        self.bn1 = nn.BatchNorm2d(block.inner)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(block.into, block.out, 1, block.stride, bias=False),
                nn.BatchNorm2d(block.out),
            )
            if block.downsample
            else None
        )
        self.bottleneck = block.bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """[b, into, h, w] -> [b, out, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.bottleneck:
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + shortcut)


class ResNet(Backbone):
    """A ResNet without classifier: stem, stages, global average pool."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.width = spec.output_width
        stride = 2 if spec.kernel == 7 else 1
        pad = spec.kernel // 2 if spec.stem_padding is None else spec.stem_padding
        self.conv1 = nn.Conv2d(spec.channels, spec.stem, spec.kernel, stride, pad, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem)
        pooled = (spec.stem_pool or usual_pool(spec.kernel)) == MAX_POOL
        self.pool = nn.MaxPool2d(3, 2, 1) if pooled else nn.Identity()
        self.stages = [f"layer{i}" for i in range(1, len(spec.stages) + 1)]
        for name, blocks in zip(self.stages, spec.stages, strict=True):
            self.add_module(name, nn.Sequential(*map(ResidualBlock, blocks)))
        self.embedding = LastLinear(spec.embedding) if spec.embedding else None

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, channels, S, S]."""
        x = self.pool(F.relu(self.bn1(self.conv1(images))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled if self.embedding is None else self.embedding(pooled)


def _conv3x3(into: int, out: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, stride, 1, groups=groups, bias=False)
