"""Colour and blur operations on views [N, 3, S, S] in [0, 1], each view with its own strength.

Source of the arithmetic: torchvision.transforms.functional on float images.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)


def grey(x: Tensor) -> Tensor:
    """Luma [N, 1, S, S] of ITU-R BT.601 with torchvision's rounded weights."""
    r, g, b = torch.split(x, 1, dim=1)
    return (GREY[0] * r).add_(g, alpha=GREY[1]).add_(b, alpha=GREY[2])


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Views scaled towards black; factor [N, 1, 1, 1]."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Views scaled about the mean of their grey image; factor [N, 1, 1, 1]."""
    mean = grey(x).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, x, factor).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Views scaled about their grey image; factor [N, 1, 1, 1]."""
    return torch.lerp(grey(x), x, factor).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Views with the hue turned; turn [N, 1, 1, 1] in circles.

    H is the hue in sixths of a circle, V the largest channel, C = V less the smallest one:

        channel = V - C clip(min(k, 4 - k), 0, 1),   k = (n + H) mod 6,   n = 5, 3, 1 for R, G, B

    Equal to the way back from HSV through its six cases, without the cases.
    """
    r, g, b = torch.split(x, 1, dim=1)
    high = x.amax(dim=1, keepdim=True)
    chroma = high - x.amin(dim=1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1.0)  # grey has no hue, and chroma 0 ignores it
    sixths = torch.where(
        high == r, (g - b) / safe, torch.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    n = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    k = (sixths + 6 * turn + n).remainder_(6)
    return high - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Views under a Gaussian of `kernel` x `kernel` pixels, reflected at the borders.

    x -> G x G^T,   G [S, S] the banded matrix of one axis;   sigma [N] in pixels
    """
    size = x.shape[-1]
    radius = kernel // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight = weight / weight.sum(dim=1, keepdim=True)  # [N, K]
    index = (torch.arange(size, device=x.device)[:, None] + offset).abs()  # [S, K]
    index = size - 1 - (size - 1 - index).abs()
    matrix = torch.zeros(len(x), size, size, device=x.device)
    matrix.scatter_add_(
        2, index.expand(len(x), -1, -1), weight[:, None].expand(-1, size, -1).contiguous()
    )
    wide = torch.bmm(x.reshape(len(x), 3 * size, size), matrix.transpose(1, 2))
    return torch.matmul(matrix[:, None], wide.view_as(x))
