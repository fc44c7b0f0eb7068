"""What all backbones have in common."""

from __future__ import annotations

from torch import Tensor, nn

from lidar_cli.checkpoints.shapes.spec import FoundBackbone, Spec, title
from lidar_cli.views.masks import Mask

__all__ = ["Backbone", "FoundBackbone", "MaskedBackbone", "Spec", "title"]


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


class MaskedBackbone(Backbone):
    """One that can be embedded under masks: its embedding is a mean of patch tokens.

    patch: side of a patch in pixels.
    """

    patch: int

    @property
    def replaces(self) -> bool:
        """Whether a mask token stands where patches are hidden; else they are left out."""
        return False

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, N, width] of the patches, by rows, or [b, K, width] of those that are seen."""
        raise NotImplementedError

    def finish(self, mean: Tensor) -> Tensor:
        """The embedding [b, width] whose mean of patch tokens is given."""
        return mean
