"""What names and shapes tell about a backbone, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lidar_cli.checkpoints.weights import Weight

Shapes = Mapping[str, tuple[int, ...]]


class Spec(Protocol):
    """All that names and shapes of the tensors tell about a backbone.

    Where its family names no module that builds, a spec has a method `build() -> Backbone`, without
    weights. It may have `shapes() -> dict` of all its tensors, which spares building the module,
    and with it torch, where only shapes are wanted. One whose module is a `MaskedBackbone` has a
    `patch` in pixels and a method `masks(teacher) -> tuple`, the rules under which it is trained
    and can be embedded; of a teacher, who sees whole images, no mask token is needed.
    """

    @property
    def arch(self) -> str:
        """In words, such as 'resnet18 (width 16)'."""

    @property
    def width(self) -> int:
        """Of the embedding."""

    @property
    def image_size(self) -> int | None:
        """In pixels a side, None where the weights do not tell."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the weights do not tell, and was taken as usual."""


@dataclass(frozen=True)
class FoundBackbone:
    """A backbone and what of a state dict belongs to it."""

    build: Callable[[], Any]  # the module, still without weights
    width: int
    format: str
    arch: str
    image_size: int | None
    assumptions: tuple[str, ...]
    tensors: Mapping[str, Weight]  # by the names of module.weights
    keys: frozenset[str]  # of those tensors in the state dict
    prefix: str  # of those keys
    noise: tuple[str, ...] = ()  # beginnings of keys that only training needs
    classifiers: tuple[str, ...] = ()  # names of linear layers that may lie beside it
    spec: Any = None  # the Spec, where it was told by shapes


def title(name: str, notes: list[str]) -> str:
    """'name', or 'name (note, note)'."""
    return f"{name} ({', '.join(notes)})" if notes else name


def batchnorm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Tensors of an affine BatchNorm."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in vectors} | {f"{name}.num_batches_tracked": ()}
