"""The interface of all backbones, and the resampling of positions to another grid of patches.

Position embeddings of a square grid are resampled as the project that trained them does:

    antialias    bicubic to the new size, antialiased: timm; DINOv2 with registers
    plain        bicubic to the new size: Hugging Face
    an offset    bicubic by the factor (new + offset) / old: DINO; DINOv2 without registers

The offset, 0.1, was added against rounding errors and shifts every sampling point slightly. The
published results of these models at other image sizes include it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lidar_cli.checkpoints.shapes.vit import Resize
from lidar_cli.views.masks import Mask


class Backbone(nn.Module):
    """A module that maps normalised images [b, channels, S, S] to embeddings [b, width]."""

    width: int

    @property
    def weights(self) -> nn.Module:
        """The module whose state dict has the names in the spec's `shapes`."""
        return self

    @property
    def token_pooling(self) -> tuple[bool, int]:
        """Whether the class token alone is the embedding, and how many tokens precede patches."""
        return token_pooling(self.weights)

    def set_image_size(self, size: int) -> None:
        """Prepare for images of `size` pixels a side; raises CheckpointError if impossible."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [b, width]."""
        raise NotImplementedError


class MaskedBackbone(Backbone):
    """A backbone whose embedding, with or without a mask, is a mean of patch tokens.

    patch: pixels a side of a patch.
    """

    patch: int
    replaces_hidden = False  # whether a mask token replaces hidden patches; else they are left out

    def patch_tokens(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """Tokens of all patches [b, N, width], row by row, or of the visible ones [b, K, width]."""
        raise NotImplementedError

    def embedding_from_mean(self, mean: Tensor) -> Tensor:
        """The embedding [b, width] from the mean of the patch tokens."""
        return mean


def token_pooling(model: nn.Module) -> tuple[bool, int]:
    """`Backbone.token_pooling` of a timm model; (False, 0) of one that has no such tokens."""
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    learned = getattr(model, "attn_pool", None) is not None
    return prefix > 0 and not learned and getattr(model, "global_pool", "") == "token", prefix


class LastLinear(nn.Linear):
    """A Linear layer on pooled features; its weight may have the shape of a 1x1 convolution's."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape[1], shape[0])
        self.weight = nn.Parameter(self.weight.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """[b, into] -> [b, out]."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class OriginalTensors:
    """Copies of tensors as in the file, from which every other image size is resampled.

    Resampling a resampled tensor would blur it.
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
        """Set each parameter in `names` to resampled(name, original, original grid).

        names: last parts of names. grid: patches a side of the present parameters; the first call
        saves them as the originals.
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
    positions: Tensor,
    old: int | tuple[int, int],
    new: int,
    prefix: int,
    how: Resize,
    offset: float = 0.0,
) -> Tensor:
    """Positions [1, prefix + new^2, width] resampled from [1, prefix + old^2, width].

    old: patches a side of the old grid, or its rows and columns. prefix: number of tokens before
    the patches, whose positions are copied. offset: patches added to the side of the new grid; with
    an offset there is no antialiasing.
    """
    rows, columns = (old, old) if isinstance(old, int) else old
    if rows == columns == new:
        return positions
    width = positions.shape[-1]
    first, patches = positions[:, :prefix], positions[:, prefix:]
    grid = patches.float().reshape(1, rows, columns, width).permute(0, 3, 1, 2)
    if offset:
        factors = (new + offset) / rows, (new + offset) / columns
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=how == "antialias")
    patches = grid.permute(0, 2, 3, 1).reshape(1, new * new, width)
    return torch.cat([first, patches.to(positions.dtype)], dim=1)
