"""Position embeddings of a square grid, resampled to another one, as each project does it.

    antialias    bicubic to the new size, antialiased: timm; DINOv2 with registers
    plain        bicubic to the new size: Hugging Face
    an offset    bicubic by the factor (new + offset) / old: DINO; DINOv2 without registers

The offset, 0.1, was meant against rounding, and shifts every sample a little: where its models are
used at another size than they were trained at, it belongs to their numbers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Resize = Literal["antialias", "plain"]


def resample(
    positions: Tensor, old: int, new: int, prefix: int, how: Resize, offset: float = 0.0
) -> Tensor:
    """Positions [1, prefix + new^2, width] of positions [1, prefix + old^2, width].

    prefix: tokens before the patches, which keep theirs. offset: patches added to the side of the
    new grid; antialiasing is for none.
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
