"""The convolutional stem of MoCo v3's vit_conv models, which stands for the patch embedding.

    patch_embed.proj.{0, 3, ...}    convolutions of 3x3, stride 2, without bias
    patch_embed.proj.{1, 4, ...}    BatchNorm of each; ReLU behind it
    patch_embed.proj.{3 n}          a convolution of 1x1 to the width

n convolutions halve the image n times: a patch is 2^n pixels a side. This file needs no torch; the
module is in vit_module.py. Source: Xiao et al. 2021.
"""

from __future__ import annotations

from lidar_cli.checkpoints.shapes.spec import Shapes, batchnorm
from lidar_cli.errors import CheckpointError

NAME = "patch_embed.proj"


def last(stem: tuple[int, ...]) -> str:
    """The name of the layer that gives the width: of the patch embedding, where stem is ()."""
    return f"{NAME}.{3 * len(stem)}" if stem else NAME


def channels(shapes: Shapes) -> tuple[int, ...]:
    """Of the convolutions of 3x3, in order; () if there is no such stem."""
    found: list[int] = []
    while True:
        shape = shapes.get(f"{NAME}.{3 * len(found)}.weight", ())
        if len(shape) != 4 or shape[2:] != (3, 3):
            return tuple(found)
        found.append(shape[0])


def sizes(stem: tuple[int, ...], shapes: Shapes, origin: str) -> tuple[int, int]:
    """Width and patch size behind a stem; raises CheckpointError if its last layer is missing."""
    name = f"{last(stem)}.weight"
    shape = shapes.get(name, ())
    if len(shape) != 4:
        raise CheckpointError(
            f"{origin}: the convolutional stem of the ViT lacks {name}; expected "
            "[width, channels, 1, 1]; name the architecture with --arch"
        )
    return shape[0], 2 ** len(stem)


def tensors(stem: tuple[int, ...], width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all of them but the bias of the last layer."""
    found: dict[str, tuple[int, ...]] = {}
    into = 3
    for index, out in enumerate(stem):
        found[f"{NAME}.{3 * index}.weight"] = (out, into, 3, 3)
        found |= batchnorm(f"{NAME}.{3 * index + 1}", out)
        into = out
    return found | {f"{last(stem)}.weight": (width, into, 1, 1)}
