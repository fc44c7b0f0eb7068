"""ResNets of any width, depth and block, by torchvision's and timm's names, from their shapes.

Sources: He et al. 2016; Xie et al. 2017 (groups); the stride lies on the 3x3 convolution of a
bottleneck, as in torchvision. A 7x7 stem has stride 2 and is followed by a max-pool; a 3x3 stem is
that of the CIFAR variants, stride 1 and no max-pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.backbone import Backbone, title
from lidar_cli.errors import CheckpointError

ANCHOR = "layer1.0.conv1.weight"  # every ResNet has it, and nothing else has
NAMES: dict[
    tuple[tuple[int, ...], bool], str
] = {  # blocks a stage, whether bottlenecks -> the usual name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
    ((3, 24, 36, 3), True): "resnet200",
}


@dataclass(frozen=True)
class Block:
    """Channels of one residual block."""

    into: int
    inner: int  # after the first convolution, and of the 3x3 one of a bottleneck
    out: int
    stride: int
    groups: int
    bottleneck: bool
    downsample: bool


@dataclass(frozen=True)
class ResNetSpec:
    """Stem and blocks, stage by stage."""

    stem: int  # channels
    kernel: int  # of the stem, 7 or 3
    stages: tuple[tuple[Block, ...], ...]

    @property
    def arch(self) -> str:
        """Such as 'resnet50 (groups 32, inner width 128)'."""
        first = self.stages[0][0]
        depths = tuple(len(stage) for stage in self.stages)
        notes = []
        if self.stem != 64:
            notes.append(f"width {self.stem}")
        if first.groups != 1:
            notes.append(f"groups {first.groups}")
        if first.inner != self.stem:
            notes.append(f"inner width {first.inner}")
        if self.kernel == 3:
            notes.append("3x3 stem")
        plain = f"resnet {'-'.join(map(str, depths))}"
        return title(NAMES.get((depths, first.bottleneck), plain), notes)

    @property
    def width(self) -> int:
        """Of the embedding."""
        return self.stages[-1][-1].out

    @property
    def image_size(self) -> None:
        """Not in the weights."""
        return None

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The shapes tell all."""
        return ()

    def build(self) -> ResNet:
        """The module, without weights."""
        with torch.device("meta"):
            return ResNet(self)


def spec(shapes: Mapping[str, tuple[int, ...]], origin: str) -> ResNetSpec:
    """The ResNet that tensors of these shapes belong to.

    Raises CheckpointError if its stem or its blocks are of a kind that is not known.
    """
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or stem[0] < 1 or stem[1] != 3 or stem[2:] not in ((7, 7), (3, 3)):
        raise CheckpointError(
            f"{origin}: the stem of the ResNet, conv1.weight, is {_shape(stem)}; expected "
            "[width, 3, 7, 7] or [width, 3, 3, 3]; name the architecture with --arch"
        )
    stages = []
    width = stem[0]
    for stage in count(1):
        blocks: list[Block] = []
        for index in count():
            name = f"layer{stage}.{index}"
            if f"{name}.conv1.weight" not in shapes:
                break
            stride = 2 if stage > 1 and index == 0 else 1
            blocks.append(_block(shapes, name, width, stride, origin))
            width = blocks[-1].out
        if not blocks:
            break
        stages.append(tuple(blocks))
    return ResNetSpec(stem[0], stem[2], tuple(stages))


def _block(
    shapes: Mapping[str, tuple[int, ...]], name: str, into: int, stride: int, origin: str
) -> Block:
    bottleneck = f"{name}.conv3.weight" in shapes
    numbers = (1, 2, 3) if bottleneck else (1, 2)
    convs = [shapes.get(f"{name}.conv{i}.weight", ()) for i in numbers]
    if any(len(shape) != 4 or min(shape) < 1 for shape in convs):
        found = ", ".join(_shape(shape) for shape in convs)
        raise CheckpointError(
            f"{origin}: the convolutions of {name} are {found}; expected 4-D weights; "
            "name the architecture with --arch"
        )
    inner = convs[0][0]
    groups = inner // convs[1][1] if inner % convs[1][1] == 0 else 1
    out = convs[-1][0]
    downsample = f"{name}.downsample.0.weight" in shapes
    if not downsample and (stride != 1 or into != out):
        raise CheckpointError(
            f"{origin}: {name}.downsample.0.weight is missing where the block goes from {into} "
            f"to {out} channels at stride {stride}; name the architecture with --arch"
        )
    if convs[1][0] % groups or inner % groups:
        groups = 1  # the comparison of shapes then names the tensor
    return Block(into, inner, out, stride, groups, bottleneck, downsample)


class ResidualBlock(nn.Module):
    """conv-BN-ReLU, twice (basic) or thrice (bottleneck), around a shortcut."""

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
    """Stem, stages, global average pool; no classifier."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.width = spec.width
        stride = 2 if spec.kernel == 7 else 1
        self.conv1 = nn.Conv2d(3, spec.stem, spec.kernel, stride, spec.kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem)
        self.pool = nn.MaxPool2d(3, 2, 1) if spec.kernel == 7 else nn.Identity()
        self.stages = [f"layer{i}" for i in range(1, len(spec.stages) + 1)]
        for name, blocks in zip(self.stages, spec.stages, strict=True):
            self.add_module(name, nn.Sequential(*map(ResidualBlock, blocks)))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width] of images [b, 3, S, S]."""
        x = self.pool(F.relu(self.bn1(self.conv1(images))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled


def _conv3x3(into: int, out: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, stride, 1, groups=groups, bias=False)


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if shape else "missing"
