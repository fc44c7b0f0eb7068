"""Colour and blur operations on views [N, 3, S, S] in [0, 1], each view with its own strength.

Source of the arithmetic: torchvision.transforms.functional on float images, unless another is
named. Grey, jitter and solarisation also take whole images [N, 3, h, w].
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidar_cli.views.recipes import SOLARISE_THRESHOLD

PILLOW_PASSES = 3
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


def solarise(x: Tensor) -> Tensor:
    """Views whose bright pixels, each channel for itself, are inverted."""
    return torch.where(x >= SOLARISE_THRESHOLD, 1 - x, x)


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
    return _both_axes(x, _band(index, weight, size))


def pillow_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Views under Pillow's GaussianBlur of radius sigma: three box filters along each axis.

    A box reaches l + 1 pixels to each side, the outermost ones with weight a < 1; the variance of
    three is sigma^2:

        s = sigma^2 / 3,   l = floor((sqrt(12 s + 1) - 1) / 2)
        a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2))

    Beyond the border lies the outermost pixel, anew for every filter. Pillow also rounds to 8 bits
    after each of the six filters, which is not done here. sigma [N] in pixels.
    Source: Gwosdek et al. 2011, Theoretical foundations of Gaussian convolution by extended box
    filtering, as Pillow uses it.
    """
    size = x.shape[-1]
    s = sigma.double() ** 2 / PILLOW_PASSES
    whole = ((12 * s + 1).sqrt() - 1).div(2).floor()
    a = (2 * whole + 1) * (whole * (whole + 1) - 3 * s) / (6 * (s - (whole + 1) ** 2))
    reach = int(whole.max()) + 1
    offset = torch.arange(-reach, reach + 1, device=x.device)
    inside = (whole + 1)[:, None] - offset.abs()  # pixels from the outermost one, [N, K]
    weight = torch.where(inside > 0, 1.0, torch.where(inside == 0, a[:, None], 0.0))
    weight = (weight / (2 * (whole + a) + 1)[:, None]).float()
    index = (torch.arange(size, device=x.device)[:, None] + offset).clamp(0, size - 1)
    box = _band(index, weight, size)
    return _both_axes(x, torch.linalg.matrix_power(box, PILLOW_PASSES))


def _band(index: Tensor, weight: Tensor, size: int) -> Tensor:
    """Matrices [N, S, S] with weight [N, K] on the columns index [S, K], added where they meet."""
    matrix = torch.zeros(len(weight), size, size, device=weight.device)
    return matrix.scatter_add_(
        2, index.expand(len(weight), -1, -1), weight[:, None].expand(-1, size, -1).contiguous()
    )


def _both_axes(x: Tensor, matrix: Tensor) -> Tensor:
    size = x.shape[-1]
    wide = torch.bmm(x.reshape(len(x), 3 * size, size), matrix.transpose(1, 2))
    return torch.matmul(matrix[:, None], wide.view_as(x))
