"""What all backbones have in common."""

from __future__ import annotations

from torch import Tensor, nn

from lidar_cli.checkpoints.spec import FoundBackbone, Spec, title

__all__ = ["Backbone", "FoundBackbone", "Spec", "title"]


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
