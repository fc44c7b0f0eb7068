"""The spec of a ResNet of any width, depth and kind of block, by torchvision's and timm's names.

As in torchvision, the 3x3 convolution of a bottleneck has the stride. A 7x7 stem has stride 2 and
is usually followed by a max-pool. A 3x3 stem is that of the CIFAR variants, with stride 1 and
usually without max-pool; the shapes do not determine its padding, 1 or 2. This file needs no torch;
the modules are in models/resnet.py.

Sources: He et al. 2016; Xie et al. 2017 (groups).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import count

from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    ModuleSpec,
    Shapes,
    Value,
    as_text,
    batchnorm,
    channels_note,
    embedding_shapes,
    with_notes,
)
from lidar_cli.errors import CheckpointError, SettingsError

MAX_POOL, NO_POOL = "max", "none"
ANCHOR = "layer1.0.conv1.weight"  # in every ResNet, and in nothing else
# (blocks of each stage, whether they are bottlenecks) -> the usual name.
NAMES: dict[tuple[tuple[int, ...], bool], str] = {
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
    inner: int  # output of the first convolution, and of the second in a bottleneck
    out: int
    stride: int
    groups: int
    bottleneck: bool
    downsample: bool

    def convolutions(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the convolutions' weights, in order."""
        into, inner, out, groups = self.into, self.inner, self.out, self.groups
        if self.bottleneck:
            return (inner, into, 1, 1), (inner, inner // groups, 3, 3), (out, inner, 1, 1)
        return (inner, into, 3, 3), (out, inner // groups, 3, 3)


@dataclass(frozen=True)
class ResNetSpec(ModuleSpec):
    """Sizes of a ResNet: its stem, and the blocks of each stage."""

    stem: int  # output channels of the stem
    kernel: int  # pixels a side of the stem's kernel, 7 or 3
    stages: tuple[tuple[Block, ...], ...]
    stem_padding: int | None = None  # None for kernel // 2
    stem_pool: str = ""  # 'max' or 'none' after the stem, '' for the usual one
    channels: int = 3  # of the images
    embedding: tuple[int, ...] = ()  # shape of the weight of a last Linear layer, () without one

    @property
    def arch(self) -> str:
        """Such as 'resnet50 (groups 32, inner width 128)'."""
        first = self.stages[0][0]
        depths = tuple(len(stage) for stage in self.stages)
        notes = channels_note(self.channels)
        if self.stem != 64:
            notes.append(f"width {self.stem}")
        if first.groups != 1:
            notes.append(f"groups {first.groups}")
        if first.inner != self.stem:
            notes.append(f"inner width {first.inner}")
        if self.kernel == 3:
            usual = self.stem_padding in (None, 1)
            notes.append("3x3 stem" if usual else f"3x3 stem, pad {self.stem_padding}")
        if self.embedding:
            notes.append(f"Linear to {self.output_width}")
        if self.stem_pool not in ("", usual_pool(self.kernel)):
            notes.append("no max-pool" if self.stem_pool == NO_POOL else "max-pool")
        plain = f"resnet {'-'.join(map(str, depths))}"
        return with_notes(NAMES.get((depths, first.bottleneck), plain), notes)

    @property
    def width(self) -> int:
        """The channels of the last stage."""
        return self.stages[-1][-1].out

    @property
    def output_width(self) -> int:
        """The width of the embedding."""
        return self.embedding[0] if self.embedding else self.width

    @property
    def image_size(self) -> None:
        """None: the weights do not determine it."""
        return None

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each stage's first block."""
        return tuple(blocks[0].stride for blocks in self.stages)

    def assume(self, key: str, value: Value, why: str) -> ResNetSpec:
        """As in `ModuleSpec`; raises SettingsError for strides that the stages cannot have."""
        if key != "strides":
            return super().assume(key, value, why)
        stages = []
        if not isinstance(value, tuple) or len(value) != len(self.stages):
            raise SettingsError(
                f"--assume strides={as_text(value)}: the {self.arch} has {len(self.stages)} "
                "stages; give a number for each",
                code="impossible-strides",
            )
        for number, (stride, (first, *rest)) in enumerate(zip(value, self.stages, strict=True), 1):
            if stride != 1 and not first.downsample:
                raise SettingsError(
                    f"--assume strides={as_text(value)}: layer{number} has no downsample, so that "
                    "its stride is 1",
                    code="impossible-strides",
                )
            stages.append((dataclasses.replace(first, stride=stride), *rest))
        return dataclasses.replace(self, stages=tuple(stages), why={**self.why, "strides": why})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the module."""
        shapes: dict[str, tuple[int, ...]] = {
            "conv1.weight": (self.stem, self.channels, self.kernel, self.kernel)
        }
        shapes |= batchnorm("bn1", self.stem)
        if self.embedding:
            shapes |= embedding_shapes(self.embedding)
        for number, blocks in enumerate(self.stages, 1):
            for index, block in enumerate(blocks):
                name = f"layer{number}.{index}"
                for i, shape in enumerate(block.convolutions(), 1):
                    shapes[f"{name}.conv{i}.weight"] = shape
                    shapes |= batchnorm(f"{name}.bn{i}", shape[0])
                if block.downsample:
                    shapes[f"{name}.downsample.0.weight"] = (block.out, block.into, 1, 1)
                    shapes |= batchnorm(f"{name}.downsample.1", block.out)
        return shapes


def usual_pool(kernel: int) -> str:
    """What usually follows a stem with this kernel."""
    return MAX_POOL if kernel == 7 else NO_POOL


def spec(shapes: Shapes, origin: str) -> ResNetSpec:
    """The spec of the ResNet with these shapes.

    Raises CheckpointError if its stem or its blocks are of an unknown kind.
    """
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or min(stem[:2]) < 1 or stem[2:] not in ((7, 7), (3, 3)):
        raise CheckpointError(
            f"{origin}: the stem of the ResNet, conv1.weight, is {_shape(stem)}; expected "
            "[width, channels, 7, 7] or [width, channels, 3, 3]; name the architecture with --arch",
            code="not-a-resnet",
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
    if stem[2] == 3:
        padding, why, decided = 1, {"stem_padding": USUAL}, {}
    else:
        padding, why, decided = 3, {}, {"stem_padding": "a 7x7 stem is padded by 3"}
    why |= {"stem_pool": USUAL, "strides": USUAL}
    sizes = stem[0], stem[2], tuple(stages), padding, usual_pool(stem[2]), stem[1]
    embedding = shapes.get("embedding.weight", ())
    return ResNetSpec(*sizes, embedding, why=why, decided=decided)


def _block(shapes: Shapes, name: str, into: int, stride: int, origin: str) -> Block:
    bottleneck = f"{name}.conv3.weight" in shapes
    numbers = (1, 2, 3) if bottleneck else (1, 2)
    convs = [shapes.get(f"{name}.conv{i}.weight", ()) for i in numbers]
    if any(len(shape) != 4 or min(shape) < 1 for shape in convs):
        raise CheckpointError(
            f"{origin}: the convolutions of {name} are {', '.join(map(_shape, convs))}; "
            "expected 4-D weights; name the architecture with --arch",
            code="not-a-resnet",
        )
    inner = convs[0][0]
    groups = inner // convs[1][1] if inner % convs[1][1] == 0 else 1
    out = convs[-1][0]
    downsample = f"{name}.downsample.0.weight" in shapes
    if not downsample and (stride != 1 or into != out):
        raise CheckpointError(
            f"{origin}: {name}.downsample.0.weight is missing where the block goes from {into} "
            f"to {out} channels at stride {stride}; name the architecture with --arch",
            code="not-a-resnet",
        )
    if convs[1][0] % groups or inner % groups:
        groups = 1  # the later comparison of shapes names the wrong tensor
    return Block(into, inner, out, stride, groups, bottleneck, downsample)


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if shape else "missing"
