"""The description of a checkpoint file, and the modules to build from it; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lidar_cli.checkpoints.models.weights import first_few
from lidar_cli.checkpoints.reading.lazy_tensor import Weight
from lidar_cli.checkpoints.shapes.spec import Assumed

PIXEL_STATS = "pixel_stats"  # the key of --assume that is not a field of a spec


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint file contains, derived from the names and shapes of its tensors."""

    format: str
    arch: str
    image_size: int | None  # pixels a side, None if the weights do not determine it
    widths: dict[str, int]  # layer -> length of its embedding
    container: str  # keys of the state dict, joined with dots; '' for the file itself
    prefix: str  # of the backbone's tensors in the state dict
    ignored: tuple[str, ...]  # recognised modules and tensors that are not used
    parameters: int  # number of parameters in use, without BatchNorm's statistics
    assumed: Mapping[str, Assumed] = field(default_factory=dict)  # values the weights leave open
    assumptions: tuple[str, ...] = ()  # other assumptions, in words
    branch: str = "encoder"
    branches: tuple[str, ...] = ("encoder",)  # all branches in the file, the default first
    recipe: str | None = None  # name of the view recipe of its training
    pixel_stats: str = "auto"  # of its training images; 'auto' for the recipe's
    why: str = ""  # how the format was recognised
    branch_reason: str | None = None  # why the branch is not the default one
    patch: int | None = None  # pixels a side of a ViT's patches, None for other backbones
    masks: tuple[str, ...] = ()  # mask rules that its embedding supports, see views/masks.py
    stand_ins: tuple[str, ...] = ()  # foreign names in the file, neither imported nor run

    @property
    def assumed_text(self) -> str:
        """All assumptions in words, '' if there are none."""
        values = [value.text(key) for key, value in self.assumed.items()]
        return "; ".join([*values, *self.assumptions])

    @property
    def stand_ins_text(self) -> str | None:
        """A sentence about the foreign names in the file, None if there are none."""
        if not self.stand_ins:
            return None
        return f"names {first_few(self.stand_ins, 6)}: stand-ins, nothing was imported or called"


@dataclass(frozen=True)
class Assignment:
    """A module to build, and the tensors of the file that fill it.

    The fields after `tensors` are set for a backbone only.
    """

    spec: Any  # a ModuleSpec, which also lists the fields that only a backbone's spec has
    tensors: Mapping[str, Weight]  # name in the module's state dict -> tensor
    title: str = ""  # the format to report if the file matches no format
    keys: frozenset[str] = frozenset()  # keys of these tensors in the state dict
    prefix: str = ""  # common prefix of those keys
    unused_prefixes: tuple[str, ...] = ()  # prefixes of tensors that only training needs
    classifiers: tuple[str, ...] = ()  # names of its linear classifiers, which are ignored
    dropped: tuple[str, ...] = ()  # names of its tensors that timm's conversion drops
