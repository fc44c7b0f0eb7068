"""The spec of PoolFormer, by the names of its authors, which solo-learn uses.

    patch_embed.proj                a convolution of 7x7 pixels and stride 4
    network.I.J, I even             x + s1 (pool(n) - n), n = norm1(x);  x + s2 mlp(norm2(x))
    network.I.proj, I odd           a convolution of 3x3 pixels and stride 2 between two stages
    norm                            of the last stage, whose mean over the image is the embedding

pool is the mean of the 3x3 pixels around each; a norm is over channels and pixels, with eps 1e-5.
timm's model of these weights normalises after the mean instead of before. This file needs no torch;
the module is in models/poolformer.py.

Sources: Yu et al. 2022; vturrisi/solo-learn at 9187ea3: backbones/poolformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lidar_cli.checkpoints.shapes.spec import (
    ModuleSpec,
    Shapes,
    convolution,
    layernorm,
    number_of_blocks,
    repeated,
    with_notes,
)
from lidar_cli.errors import CheckpointError

ANCHOR = "network.0.0.layer_scale_1"
NAMES: dict[tuple[int, tuple[int, ...]], str] = {  # (width of the first stage, blocks of each)
    (64, (2, 2, 6, 2)): "s12",
    (64, (4, 4, 12, 4)): "s24",
    (64, (6, 6, 18, 6)): "s36",
    (96, (6, 6, 18, 6)): "m36",
    (96, (8, 8, 24, 8)): "m48",
}


@dataclass(frozen=True, kw_only=True)
class PoolFormerSpec(ModuleSpec):
    """Sizes of a PoolFormer."""

    notes: ClassVar[tuple[str, ...]] = ("3x3 pooling, GroupNorm's eps 1e-05",)

    channels: int  # of the images
    kernel: int  # pixels a side of the first convolution
    widths: tuple[int, ...]  # of each stage
    depths: tuple[int, ...]  # blocks of each stage
    hidden: tuple[int, ...]  # width of the MLPs of each stage

    @property
    def width(self) -> int:
        """The width of the embedding."""
        return self.widths[-1]

    @property
    def image_size(self) -> None:
        """None: the weights do not determine it."""
        return None

    @property
    def arch(self) -> str:
        """Such as 'poolformer_s12'."""
        name = NAMES.get((self.widths[0], self.depths))
        notes = [f"{'-'.join(map(str, sizes))}" for sizes in (self.depths, self.widths)]
        sizes = [f"depths {notes[0]}", f"channels {notes[1]}"]
        return f"poolformer_{name}" if name else with_notes("poolformer", sizes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its authors' name -> shape of every tensor of the module."""
        shapes = convolution("patch_embed.proj", self.channels, self.widths[0], self.kernel)
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            hidden = self.hidden[stage]
            block = layernorm("norm1", width) | layernorm("norm2", width)
            block |= convolution("mlp.fc1", width, hidden, 1)
            block |= convolution("mlp.fc2", hidden, width, 1)
            block |= {"layer_scale_1": (width,), "layer_scale_2": (width,)}
            shapes |= repeated(f"network.{2 * stage}", depth, block)
        for stage, (into, out) in enumerate(pairwise(self.widths)):
            shapes |= convolution(f"network.{2 * stage + 1}.proj", into, out, 3)
        return shapes | layernorm("norm", self.width)


def spec(shapes: Shapes, origin: str) -> PoolFormerSpec:
    """The spec of the PoolFormer with these shapes; raises CheckpointError if they fit none."""
    stem = shapes.get("patch_embed.proj.weight", ())
    stages = [f"network.{2 * stage}" for stage in range(4)]
    first = [shapes.get(f"{stage}.0.mlp.fc1.weight", ()) for stage in stages]
    if len(stem) != 4 or any(len(shape) != 4 for shape in first):
        raise CheckpointError(
            f"{origin}: the stem of the PoolFormer is {list(stem) or 'missing'}, its first MLPs "
            f"{[list(shape) for shape in first]}; expected four stages, network.0, 2, 4 and 6; "
            "name the architecture with --arch",
            code="not-a-poolformer",
        )
    return PoolFormerSpec(
        channels=stem[1],
        kernel=stem[2],
        widths=tuple(shape[1] for shape in first),
        depths=tuple(number_of_blocks(shapes, stage) for stage in stages),
        hidden=tuple(shape[0] for shape in first),
    )
