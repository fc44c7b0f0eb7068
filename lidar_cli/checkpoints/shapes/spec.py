"""What names and shapes tell about a backbone, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lidar_cli.checkpoints.assume import KEYS, Assumed
from lidar_cli.checkpoints.reading.lazy_tensor import Weight

Shapes = Mapping[str, tuple[int, ...]]


class Spec(Protocol):
    """All that names and shapes of the tensors tell about a backbone.

    Where its family names no module that builds, a spec has a method `build() -> Backbone`, without
    weights. One whose module is a `MaskedBackbone` has a `patch` in pixels and a method
    `masks(teacher) -> tuple`, the rules under which it is trained and can be embedded; of a
    teacher, who sees whole images, no mask token is needed.
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
    def assumed(self) -> dict[str, Assumed]:
        """What the weights leave open, by the keys of `--assume`."""

    @property
    def decided(self) -> Mapping[str, str]:
        """Other keys of `--assume`, and what decides them."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the module, without building it, and so without torch."""


@dataclass(frozen=True)
class FoundBackbone:
    """A backbone and what of a state dict belongs to it."""

    build: Callable[[], Any]  # the module, still without weights
    width: int
    format: str
    arch: str
    image_size: int | None
    tensors: Mapping[str, Weight]  # by the names of module.weights
    keys: frozenset[str]  # of those tensors in the state dict
    prefix: str  # of those keys
    noise: tuple[str, ...] = ()  # beginnings of keys that only training needs
    classifiers: tuple[str, ...] = ()  # names of linear layers that may lie beside it
    dropped: tuple[str, ...] = ()  # names of tensors within it that are not used
    spec: Any = None  # the Spec, where shapes decide it

    @property
    def assumed(self) -> dict[str, Assumed]:
        """What its weights leave open; nothing where a name decides all."""
        return dict(self.spec.assumed) if self.spec is not None else {}

    @property
    def decided(self) -> dict[str, str]:
        """Keys of `--assume` that are not open, and what decides them."""
        if self.spec is None:
            return dict.fromkeys(KEYS, f"timm's {self.arch} decides it")
        return dict(self.spec.decided)


def title(name: str, notes: list[str]) -> str:
    """'name', or 'name (note, note)'."""
    return f"{name} ({', '.join(notes)})" if notes else name


def batchnorm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Tensors of an affine BatchNorm."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in vectors} | {f"{name}.num_batches_tracked": ()}
