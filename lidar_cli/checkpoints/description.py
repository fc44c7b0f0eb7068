"""What a checkpoint file is, and the modules to build from it; none of it needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes.spec import Assumed

PIXEL_STATS = "pixel_stats"  # the key of --assume that no spec has


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint file is, by names and shapes alone."""

    format: str
    arch: str
    image_size: int | None  # pixels a side, None where the weights do not say
    widths: dict[str, int]  # layer -> length of its embedding
    container: str  # keys down to the state dict, with dots; '' for the file itself
    prefix: str  # of the backbone in it
    ignored: tuple[str, ...]  # recognised modules and tensors that are not used
    parameters: int  # numbers in the tensors used, without BatchNorm's statistics
    assumed: Mapping[str, Assumed] = field(default_factory=dict)  # what the weights leave open
    assumptions: tuple[str, ...] = ()  # what else is assumed, in words
    branch: str = "encoder"
    branches: tuple[str, ...] = ("encoder",)  # all in the file, the default one first
    recipe: str | None = None  # name of the view recipe that the system was trained with
    pixel_stats: str = "auto"  # of the images that it was trained with; 'auto' for the recipe's
    why: str = ""  # how the format was recognised
    branch_reason: str | None = None  # why another branch than the default one was taken
    patch: int | None = None  # pixels a side, of a backbone that sees patches
    masks: tuple[str, ...] = ()  # rules under which it can be embedded, see views/masks.py
    stand_ins: tuple[str, ...] = ()  # foreign names in the file, neither imported nor run

    @property
    def assumed_text(self) -> str:
        """All that is assumed, '' for nothing."""
        return "; ".join([*(one.text(key) for key, one in self.assumed.items()), *self.assumptions])

    @property
    def note(self) -> str | None:
        """The foreign names in words, None if there are none."""
        note = f"names {first_few(self.stand_ins, 6)}: stand-ins, nothing was imported or called"
        return note if self.stand_ins else None


@dataclass(frozen=True)
class Assignment:
    """A module to build, and the tensors of the file that fill it.

    The fields after `tensors` are those of a backbone.
    """

    spec: Any  # a ModuleSpec; see there what that of a backbone also has
    tensors: Mapping[str, Weight]  # by the names of the module's weights
    title: str = ""  # the format of a file in which nothing names a system
    keys: frozenset[str] = frozenset()  # of the tensors in the state dict
    prefix: str = ""  # of those keys
    unused_prefixes: tuple[str, ...] = ()  # beginnings of keys that only training needs
    classifiers: tuple[str, ...] = ()  # names of linear classifiers that may be next to it
    dropped: tuple[str, ...] = ()  # names of tensors within it that are not used
