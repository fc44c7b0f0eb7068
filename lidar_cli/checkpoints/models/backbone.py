"""What all backbones share: their interface, and positions resampled to another grid of patches.

Position embeddings of a square grid are resampled to another one as each project does it:

    antialias    bicubic to the new size, antialiased: timm; DINOv2 with registers
    plain        bicubic to the new size: Hugging Face
    an offset    bicubic by the factor (new + offset) / old: DINO; DINOv2 without registers

The offset, 0.1, was meant against rounding, and shifts every sample a little: where its models are
used at another size than they were trained at, it belongs to their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.shapes.vit import Resize
from lidar_cli.views.masks import Mask


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
    """A backbone that can be embedded under masks: its embedding is a mean of patch tokens.

    patch: side of a patch in pixels.
    """

    patch: int
    replaces_hidden = False  # whether a mask token replaces hidden patches; else they are left out

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens [b, N, width] of the patches, by rows, or [b, K, width] of the visible ones."""
        raise NotImplementedError

    def embedding_from_mean(self, mean: Tensor) -> Tensor:
        """The embedding [b, width], from the mean of the patch tokens."""
        return mean


class OriginalTensors:
    """Tensors as they were in the file, from which each other image size is resampled.

    Resampling a resampled tensor again would blur it.
    """

    def __init__(self) -> None:
        self.grid = 0  # patches a side, as in the file
        self.tensors: dict[str, Tensor] = {}

    def replace(
        self,
        module: nn.Module,
        names: Sequence[str],
        grid: int,
        resampled: Callable[[str, Tensor, int], Tensor],
    ) -> None:
        """Set each parameter whose name ends so to resampled(name, original, original grid).

        grid: patches a side at present; the first call saves the parameters as the originals.
        """
        if not self.tensors:
            self.grid = grid
            self.tensors = {
                name: tensor.detach().cpu().clone()
                for name, tensor in module.named_parameters()
                if name.rpartition(".")[2] in names
            }
        for name, original in self.tensors.items():
            owner, _, last = name.rpartition(".")
            part = module.get_submodule(owner)
            tensor = resampled(last, original, self.grid).to(getattr(part, last).device)
            setattr(part, last, nn.Parameter(tensor, requires_grad=False))


def select_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens [b, K, width] at indices [b, K] of tokens [b, N, width]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def resample_positions(
    positions: Tensor, old: int, new: int, prefix: int, how: Resize, offset: float = 0.0
) -> Tensor:
    """Positions [1, prefix + new^2, width] of positions [1, prefix + old^2, width].

    prefix: tokens before the patches, whose positions stay. offset: patches added to the side of
    the new grid; antialiasing applies only without one.
    """
    if old == new:
        return positions
    width = positions.shape[-1]
    first, patches = positions[:, :prefix], positions[:, prefix:]
    grid = patches.float().reshape(1, old, old, width).permute(0, 3, 1, 2)
    if offset:
        factor = (new + offset) / old
        grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    else:
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=how == "antialias")
    patches = grid.permute(0, 2, 3, 1).reshape(1, new * new, width)
    return torch.cat([first, patches.to(positions.dtype)], dim=1)
