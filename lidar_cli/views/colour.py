"""Colour and blur operations on views [N, 3, S, S] in [0, 1], each view with its own strength.

All but grey change x in place. Source of the arithmetic: torchvision.transforms.functional on float
images, unless another is named. Grey, jitter and solarisation also take whole images [N, 3, h, w].

Where a call could do two steps (lerp, addcmul), two calls do them: fused, the last few pixels of a
thread's share may round otherwise than the rest, and bits would depend on the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lidar_cli.views.parameters import Bools, Ints, ViewParameters
from lidar_cli.views.recipes import SOLARISE_THRESHOLD, Operation, Recipe
from lidar_cli.views.resample import moved, weighted_rows

PILLOW_PASSES = 3
GREY = (0.2989, 0.587, 0.114)
TINY = 1e-12  # chroma of grey, which has no hue


def grey(x: Tensor) -> Tensor:
    """Luma [N, 1, S, S] of ITU-R BT.601 with torchvision's rounded weights."""
    r, g, b = torch.split(x, 1, dim=1)
    luma = r * GREY[0]
    part = g * GREY[1]
    return luma.add_(part).add_(torch.mul(b, GREY[2], out=part))


def brightness(x: Tensor, factor: Tensor) -> None:
    """Views scaled towards black; factor [N, 1, 1, 1]."""
    x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> None:
    """Views scaled about the mean of their grey image; factor [N, 1, 1, 1]."""
    # Row by row, for threads would divide the sum over a single view, and round otherwise.
    mean = grey(x).sum(dim=3, keepdim=True).double().mean(dim=2, keepdim=True).float()
    x.mul_(factor).add_(mean.div_(x.shape[3]).mul_(1 - factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> None:
    """Views scaled about their grey image; factor [N, 1, 1, 1]."""
    centre = grey(x).mul_(1 - factor)
    x.mul_(factor).add_(centre).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> None:
    """Views with the hue turned; turn [N, 1, 1, 1] in circles.

    H is the hue in circles, low the smallest channel, C the largest less the smallest:

        channel = low + 6 C clip(d - 1/6, 0, 1/6),   d = distance of H + turn + k to whole numbers,
        k = 1/2, 1/6, -1/6 for R, G, B

    Equal to the way back from HSV through its six cases, without the cases.
    """
    r, g, b = torch.split(x, 1, dim=1)
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(high, b, out=high)
    torch.minimum(low, b, out=low)
    chroma = (high - low).clamp_(min=TINY)
    # 6 H C, by the channel that is the largest; the factors 0 and 1 choose faster than `where`.
    h = (r - g).add_(chroma, alpha=4)
    other = (b - r).add_(chroma, alpha=2)
    chosen = torch.eq(g, high, out=torch.empty_like(high))
    h.lerp_(other, chosen)
    h.lerp_(torch.sub(g, b, out=other), torch.eq(r, high, out=chosen))
    chroma.mul_(6)
    h.div_(chroma).add_(turn + 1)  # positive, for frac
    # With k + 1/2, for the distance of z to whole numbers is |frac(z + 1/2) - 1/2|.
    torch.add(h, 1 - torch.arange(3, device=x.device).view(3, 1, 1) / 3, out=x)
    x.frac_().sub_(0.5).abs_().sub_(1 / 6).clamp_(0, 1 / 6).mul_(chroma).add_(low)


def solarise(x: Tensor) -> Tensor:
    """Views whose bright pixels, each channel for itself, are inverted."""
    return torch.where(x >= SOLARISE_THRESHOLD, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, kernel: int) -> None:
    """Views under a Gaussian of `kernel` x `kernel` pixels, reflected at the borders.

    sigma [N] in pixels
    """
    size, radius = x.shape[-1], kernel // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma.double()[:, None]) ** 2)
    index = (torch.arange(size, device=x.device)[:, None] + offset).abs()  # [S, K]
    index = size - 1 - (size - 1 - index).abs()
    _both_axes(x, index, weight / weight.sum(dim=1, keepdim=True), 1)


def pillow_blur(x: Tensor, sigma: Tensor, largest: float) -> None:
    """Views under Pillow's GaussianBlur of radius sigma: three box filters along each axis.

    A box reaches l + 1 pixels to each side, the outermost ones with weight a < 1; the variance of
    three is sigma^2:

        s = sigma^2 / 3,   l = floor((sqrt(12 s + 1) - 1) / 2)
        a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2))

    Beyond the border lies the outermost pixel, anew for every filter. Pillow also rounds to 8 bits
    after each of the six filters, which is not done here. sigma [N] in pixels, none over `largest`.
    Source: Gwosdek et al. 2011, Theoretical foundations of Gaussian convolution by extended box
    filtering, as Pillow uses it.
    """
    size = x.shape[-1]
    s = sigma.double() ** 2 / PILLOW_PASSES
    whole = ((12 * s + 1).sqrt() - 1).div(2).floor()
    a = (2 * whole + 1) * (whole * (whole + 1) - 3 * s) / (6 * (s - (whole + 1) ** 2))
    # Known without a look at sigma, for which a GPU would have to be waited for.
    reach = math.floor((math.sqrt(4 * largest**2 + 1) - 1) / 2) + 1
    offset = torch.arange(-reach, reach + 1, device=x.device)
    inside = (whole + 1)[:, None] - offset.abs()  # pixels from the outermost one, [N, K]
    weight = torch.where(inside > 0, 1.0, torch.where(inside == 0, a[:, None], 0.0))
    index = (torch.arange(size, device=x.device)[:, None] + offset).clamp_(0, size - 1)
    _both_axes(x, index, weight / (2 * (whole + a) + 1)[:, None], PILLOW_PASSES)


def _both_axes(x: Tensor, index: Tensor, weight: Tensor, passes: int) -> None:
    """Filter columns, then rows, `passes` times each, with weight [N, K] on the pixels [S, K]."""
    n, _, size, _ = x.shape
    first = size * torch.arange(3 * n, device=x.device).view(n, 3, 1, 1)
    rows, weight = first + index, weight.float().view(n, 1, 1, -1)
    filtered = x
    for _ in range(2):
        for _ in range(passes):
            filtered = weighted_rows(filtered.reshape(-1, size), rows, weight)
        filtered = filtered.transpose(2, 3)
    x.copy_(filtered)


JITTER = (brightness, contrast, saturation, hue)  # in the order of JITTER_OPERATIONS


def arranged(parameters: ViewParameters, views: Ints) -> Ints:
    """The same views [N], those with alike operations side by side.

    They then make few runs for `recolour`: one for blur, at most 128 for jitter, whatever N.
    """
    steps = _jitter_steps(parameters, views)
    return views[np.lexsort([*steps.T[::-1], parameters.blur.reshape(-1)[views]])]


def recolour(
    x: Tensor,
    parameters: ViewParameters,
    views: Ints,
    operations: Sequence[Operation],
    recipe: Recipe,
) -> None:
    """Carry out operations in their order, in place, each on the views that have it.

    x [N, 3, h, w] in [0, 1]; views [N]: numbers i q + j of these views in the parameters. Places
    of `flip` in the order are passed over. Views in any order come out alike, `arranged` ones
    faster: jitter and blur work on runs of views, without a copy of them.
    """
    p = parameters
    gates = (np.flatnonzero(gate.reshape(-1)[views]) for gate in (p.grey, p.solarise))
    factors, sigma, to_grey, to_solarise = moved(
        [p.factors.reshape(-1, 4)[views], p.sigma.reshape(-1)[views], *gates], x.device
    )
    factors = factors.float().view(-1, 4, 1, 1, 1)
    for operation in operations:
        if operation == "jitter":
            for step in _jitter_steps(p, views).T:
                for run, k in _runs(step):
                    if k >= 0 and recipe.jitter[k]:
                        JITTER[k](x[run], factors[run, k])
        elif operation == "grey" and len(to_grey):
            index = to_grey.long()
            x[index] = grey(x[index])
        elif operation == "blur":
            for run, happens in _runs(p.blur.reshape(-1)[views]):
                if happens:
                    _blur(x[run], sigma[run], recipe)
        elif operation == "solarise" and len(to_solarise):
            index = to_solarise.long()
            x[index] = solarise(x[index])


def _blur(x: Tensor, sigma: Tensor, recipe: Recipe) -> None:
    if recipe.blur_filter == "pillow":
        pillow_blur(x, sigma, recipe.blur_sigma[1])
        return
    size = x.shape[-1]
    kernel = min(recipe.kernel(size), 2 * size - 1)  # a reflection reaches across the view once
    if kernel > 1:
        blur(x, sigma, kernel)


def _jitter_steps(parameters: ViewParameters, views: Ints) -> Ints:
    """Number of each view's first, second, ... jitter operation [N, 4]; -1 for none."""
    steps: Ints = np.where(parameters.jitter[..., None], parameters.order, -1)
    return steps.reshape(-1, 4)[views]


def _runs(values: Ints | Bools) -> Iterator[tuple[slice, int]]:
    """Stretches of equal neighbours, and their value."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop), int(values[start])
