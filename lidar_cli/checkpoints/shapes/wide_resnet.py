"""The spec of solo-learn's Wide ResNet for small images, such as wide_resnet28w2.

    conv1, then three blocks of layers, then bn1, LeakyReLU and the mean over the image
    a layer of equal widths:   x + conv2(act(bn2(conv1(act(bn1(x))))))
    the first layer of a block that widens:   convShortcut(x) + conv2(act(bn2(conv1(x))))

In the first block, act(bn1(x)) replaces x in the latter; in the others, that bn1 is not used. The
slope of LeakyReLU, 0.1, and BatchNorm's eps, 0.001, are those of the code. This file needs no
torch; the module is in models/wide_resnet.py.

Sources: Zagoruyko and Komodakis 2016; vturrisi/solo-learn at 9187ea3: backbones/wide_resnet.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lidar_cli.checkpoints.shapes.spec import (
    USUAL,
    ModuleSpec,
    Shapes,
    batchnorm,
    convolution,
    number_of_blocks,
    with_notes,
)
from lidar_cli.errors import CheckpointError

ANCHOR = "block1.layer.0.conv1.weight"
BLOCKS = ("block1", "block2", "block3")
SLOPE, EPS = 0.1, 1e-3


@dataclass(frozen=True, kw_only=True)
class WideResNetSpec(ModuleSpec):
    """Sizes of a Wide ResNet."""

    notes: ClassVar[tuple[str, ...]] = (f"LeakyReLU of slope {SLOPE}, BatchNorm's eps {EPS}",)

    channels: int  # of the images
    widths: tuple[int, ...]  # of the first convolution and of each block
    depths: tuple[int, ...]  # layers of each block
    strides: tuple[int, ...] = (1, 2, 2)

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.widths[-1]

    @property
    def image_size(self) -> int:
        """CIFAR's."""
        return 32

    @property
    def arch(self) -> str:
        """Such as 'wide_resnet28w2'."""
        depth, widen = 6 * self.depths[0] + 4, self.widths[1] // self.widths[0]
        usual = self.widths == (16, 16 * widen, 32 * widen, 64 * widen)
        notes = [] if usual else [f"channels {'-'.join(map(str, self.widths))}"]
        return with_notes(f"wide_resnet{depth}w{widen}", notes)

    def layers(self) -> dict[str, tuple[int, int, int]]:
        """Name of each layer -> its input and output width, and its stride."""
        layers = {}
        sizes = zip(BLOCKS, pairwise(self.widths), self.depths, self.strides, strict=True)
        for name, (into, out), depth, stride in sizes:
            layers[f"{name}.layer.0"] = (into, out, stride)
            layers |= {f"{name}.layer.{i}": (out, out, 1) for i in range(1, depth)}
        return layers

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """solo-learn's name -> shape of every tensor of the module."""
        shapes = convolution("conv1", self.channels, self.widths[0], 3)
        for name, (into, out, _) in self.layers().items():
            shapes |= batchnorm(f"{name}.bn1", into) | convolution(f"{name}.conv1", into, out, 3)
            shapes |= batchnorm(f"{name}.bn2", out) | convolution(f"{name}.conv2", out, out, 3)
            if into != out:
                shapes |= convolution(f"{name}.convShortcut", into, out, 1)
        return shapes | batchnorm("bn1", self.width)


def spec(shapes: Shapes, origin: str) -> WideResNetSpec:
    """The spec of the Wide ResNet with these shapes; raises CheckpointError if they fit none."""
    names = ["conv1", *(f"{block}.layer.0.conv1" for block in BLOCKS)]
    convolutions = [shapes.get(f"{name}.weight", ()) for name in names]
    if any(len(shape) != 4 or not all(shape) for shape in convolutions):
        raise CheckpointError(
            f"{origin}: the convolutions {', '.join(names)} of the Wide ResNet are "
            f"{', '.join(str(list(shape)) for shape in convolutions)}; expected 4-D weights; "
            "name your own code with --model",
            code="not-a-wide-resnet",
        )
    return WideResNetSpec(
        channels=convolutions[0][1],
        widths=tuple(shape[0] for shape in convolutions),
        depths=tuple(number_of_blocks(shapes, f"{block}.layer") for block in BLOCKS),
        why={"strides": USUAL},
    )
