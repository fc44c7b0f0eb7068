"""What all backbones have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lidar_cli.checkpoints.spec import title as title
from lidar_cli.checkpoints.weights import Weight


class Backbone(nn.Module):
    """A module from normalised images [b, 3, S, S] to embeddings [b, width]."""

    width: int

    @property
    def weights(self) -> nn.Module:
        """The module whose state dict has the names that the spec gave to its tensors."""
        return self

    def set_image_size(self, size: int) -> None:
        """Prepare for images of `size` pixels a side; raises CheckpointError if impossible."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width]."""
        raise NotImplementedError


class Spec(Protocol):
    """All that names and shapes of the tensors tell about a backbone."""

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

    module: Backbone  # still without weights
    format: str
    arch: str
    image_size: int | None
    assumptions: tuple[str, ...]
    tensors: Mapping[str, Weight]  # by the names of module.weights
    keys: frozenset[str]  # of those tensors in the state dict
    prefix: str  # of those keys
    classifiers: tuple[str, ...] = ()  # names of linear layers that may lie beside it
    noise: tuple[str, ...] = ()  # beginnings of names that only training needs
