"""Resampling, colour and blur of many views at once, each view with its own parameters.

Axes: b images of any sizes, N boxes in them, S the side of a view. Crop, anti-aliased resize and
flip are one weighted sum along each axis. Colour operations take views [N, c, S, S] in [0, 1], with
c = 3 for hue, saturation and grey; all but grey and solarise change them in place. Grey, jitter and
solarise also take uncropped images [N, c, h, w]. The colour formulas are those of
torchvision.transforms.functional on float images
unless another source is named.

Two calls are used where a fused one (lerp, addcmul) would do: fused, the last few pixels of a
thread's share may round differently, and a view would depend on its batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lidar_cli.views.parameters import Bools, Ints, ViewParameters
from lidar_cli.views.recipes import SOLARISE_THRESHOLD, Interpolation, Operation, Recipe

SUPPORT = {"bilinear": 1, "bicubic": 2}  # half width of the filters below, in output pixels
PIECE = 64  # pixels of an image row in one row of the table; a box reads the pieces it touches
PILLOW_PASSES = 3
GREY = (0.2989, 0.587, 0.114)
TINY = 1e-12  # least chroma, against a division by 0 at grey pixels, which have no hue


@dataclass(frozen=True)
class Axis:
    """Positions of boxes and of their views along one axis; all arrays are [b, q] or all are [N].

    `length` source pixels from `start` on are resized to `target` pixels. The view consists of
    `size` of these from `offset` on, in reverse order where `reverse` is set.
    """

    start: Ints
    length: Ints
    target: Ints
    offset: Ints
    reverse: Bools

    def select(self, boxes: Ints) -> Axis:
        """The boxes with these numbers in the flattened arrays: [N]."""
        return Axis(*(getattr(self, f.name).reshape(-1)[boxes] for f in fields(self)))


@dataclass(frozen=True)
class Sources:
    """Images of any sizes as one table [P, PIECE c] of pieces of their rows, in [0, 1].

    Pixels PIECE k .. PIECE (k + 1) - 1 of row y of image i, each with its c channels, are row
    first[i] + y pieces[i] + k of the table; the last piece of a row is padded with 0.
    """

    table: Tensor
    first: Ints  # [b]
    pieces: Ints
    channels: int

    @staticmethod
    def of(stacks: Sequence[Tensor]) -> Sources:
        """The table of stacks [m, h, w, c], uint8 or floats in [0, 1]."""
        height = np.concatenate([np.full(len(x), x.shape[1]) for x in stacks])
        pieces = np.concatenate([np.full(len(x), -(-x.shape[2] // PIECE)) for x in stacks])
        sizes = height * pieces
        first = np.cumsum(sizes) - sizes
        channels = stacks[0].shape[3]
        table = torch.zeros(int(sizes.sum()), PIECE * channels, device=stacks[0].device)
        counts = [x.shape[:2].numel() * -(-x.shape[2] // PIECE) for x in stacks]
        for stack, rows in zip(stacks, torch.split(table, counts), strict=True):
            rows.view(*stack.shape[:2], -1)[..., : stack[0, 0].numel()] = stack.flatten(2)
        if stacks[0].dtype == torch.uint8:
            table.div_(255)
        return Sources(table, first, pieces, channels)


def peak_floats(
    rows: Axis, columns: Axis, size: int, interpolation: Interpolation, channels: int
) -> Ints:
    """Size [N] of the largest intermediate tensor of each box, in floats.

    The largest is the pieces of its rows, or, if an output has more taps than a piece has pixels,
    their indices in the table. All boxes have the taps of the widest filter.
    """
    taps = 2 * _reach(max(1.0, float((rows.length / rows.target).max())), interpolation)
    return channels * size * max(PIECE, taps) * _touched(columns)


def _reach(shrink: float, interpolation: Interpolation) -> int:
    """Source pixels that the filter reads to each side of an axis shrunk by this factor."""
    return math.ceil(SUPPORT[interpolation] * shrink)


def _touched(columns: Axis) -> Ints:
    """Pieces of a row that a box touches, [N]."""
    last: Ints = (columns.start + columns.length - 1) // PIECE
    return last - columns.start // PIECE + 1


def resample(
    sources: Sources,
    images: Ints,
    rows: Axis,
    columns: Axis,
    size: int,
    interpolation: Interpolation,
) -> Tensor:
    """Views [N, c, size, size] in [0, 1]: one box of each of the images [N], resized.

    Equals cropping, then resizing the crop with anti-aliasing: no pixel outside the box has a
    weight. Bicubic overshoot is clamped, as in 8-bit pipelines.
    """
    n, c, device = len(images), sources.channels, sources.table.device
    arrays = [
        np.stack([np.concatenate([getattr(axis, f.name) for axis in (rows, columns)])
                  for f in fields(Axis)]),
        np.stack([sources.first[images], sources.pieces[images], columns.start // PIECE]),
    ]  # fmt: skip
    axes, offsets = to_device(arrays, device)
    shrink = max(float((axis.length / axis.target).max()) for axis in (rows, columns))
    index, weight = _taps(axes, size, max(1.0, shrink), interpolation)

    first, pieces, low = offsets.int().view(3, n, 1, 1, 1)
    piece = torch.arange(int(_touched(columns).max()), dtype=torch.int32, device=device)[:, None]
    piece = torch.minimum(low + piece, pieces - 1)  # a box that touches fewer repeats the last
    y = index[:n].view(n, size, 1, -1) * pieces  # [N, S, 1, T]
    short = weighted_rows(sources.table, first + piece + y, weight[:n].view(n, size, 1, -1))
    table = transpose(short.view(n, size, -1))  # [N, pieces PIECE c, S]
    x = index[n:].view(n, 1, size, -1) - PIECE * low  # [N, 1, S, T]
    start = table.shape[1] * torch.arange(n, dtype=torch.int32, device=device).view(n, 1, 1, 1)
    channel = torch.arange(c, dtype=torch.int32, device=device).view(c, 1, 1)
    small = weighted_rows(
        table.view(-1, size), start + channel + c * x, weight[n:].view(n, 1, size, -1)
    )  # [N, c, S, S], columns first
    return transpose(small).clamp_(0, 1)


def _taps(
    axes: Tensor, size: int, shrink: float, interpolation: Interpolation
) -> tuple[Tensor, Tensor]:
    """Source positions and weights [N, size, T] of the outputs along axes [5, N].

        x = start + (i + offset + 1/2) length / target - 1/2      centre of output i
        weight(k) ~ f((k - x) / max(1, length / target))          0 outside the box

    shrink: the largest length / target, at least 1. Positions outside the box are moved to its
    edge. Source: the anti-aliased resize of Pillow and torch, which widen the filter when
    shrinking.
    """
    reach = _reach(shrink, interpolation)
    start, length, target, offset, reverse = axes[..., None].unbind()  # [N, 1]
    i = torch.arange(size, dtype=torch.float64, device=axes.device)
    i = i + reverse * (size - 1 - 2 * i)
    x = start + (i + offset + 0.5) * length / target - 0.5  # [N, S]
    # Double precision up to here, so that the distances are exact on wide images too.
    floor = x.floor()
    steps = torch.arange(-reach, reach + 2, dtype=torch.int32, device=axes.device)
    index = floor.int()[..., None] + steps
    distance = steps - (x - floor).float()[..., None]
    weight = _filter(distance / (length / target).clamp(min=1).float()[..., None], interpolation)
    start, stop = start.int()[..., None], (start + length).int()[..., None]
    inside = torch.minimum(torch.maximum(index, start), stop - 1)
    weight *= inside == index
    # The last of the cumulative sums, not `sum`: it is the same bits whatever zeros are appended.
    return inside, weight / weight.cumsum(dim=-1)[..., -1:]


def _filter(t: Tensor, interpolation: Interpolation) -> Tensor:
    """The triangle filter, or the cubic of Keys 1981 with a = -1/2, at distance t.

    Both pieces of the cubic are 0 at distance 1, and the outer piece is 0 at distance 2.
    """
    t = t.abs_()
    if interpolation == "bilinear":
        return (1 - t).clamp_(min=0)
    near, far = t.clamp(max=1), t.clamp(1, 2)
    inner = (1.5 * near - 2.5) * near * near + 1
    return inner + ((-0.5 * far + 2.5) * far - 4) * far + 2


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_t weight[..., t] table[index[..., t]] of a table [R, F]: [..., F].

    The terms are added in the order of t, so terms of weight 0 change no bit of a sum.
    """
    sums = functional.embedding_bag(
        index.reshape(-1, index.shape[-1]),
        table,
        mode="sum",
        per_sample_weights=weight.expand(index.shape).reshape(-1, index.shape[-1]),
    )
    return sums.view(*index.shape[:-1], table.shape[1])


def transpose(x: Tensor) -> Tensor:
    """The transposed matrices [..., B, A] of x [..., A, B], contiguous."""
    if not x.is_cpu:
        return x.transpose(-1, -2).contiguous()
    # Shuffling A groups of B channels transposes, three times as fast as a strided copy on a CPU.
    *batch, a, b = x.shape
    length = a * b
    pixels = x.reshape(-1, length, 1, 1)
    pixels = pixels.as_strided(pixels.shape, (length, 1, length, length))  # channels last
    return torch.channel_shuffle(pixels, a).view(*batch, b, a)


def to_device(arrays: Sequence[npt.NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Arrays in double precision on a device, copied in one asynchronous transfer."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float64))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = torch.split(flat.to(device), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def grey(x: Tensor) -> Tensor:
    """Luma [N, 1, S, S] of ITU-R BT.601 with torchvision's rounded weights."""
    r, g, b = torch.split(x, 1, dim=1)
    luma = r * GREY[0]
    part = g * GREY[1]
    return luma.add_(part).add_(torch.mul(b, GREY[2], out=part))


def brightness(x: Tensor, factor: Tensor) -> None:
    """Scale views towards black, in place; factor [N, 1, 1, 1]."""
    x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> None:
    """Scale views about the mean of their grey image, in place; factor [N, 1, 1, 1].

    Of other than three channels, about the mean of all; of one, as torchvision does.
    """
    # Row by row: threads would split a sum over one complete view, and round differently.
    means = x.sum(dim=3, keepdim=True).double().mean(dim=2, keepdim=True).div_(x.shape[3])
    mean = grey(means) if x.shape[1] == 3 else means.mean(dim=1, keepdim=True)
    x.mul_(factor).add_(mean.float().mul_(1 - factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> None:
    """Scale views about their grey image, in place; factor [N, 1, 1, 1]."""
    centre = grey(x).mul_(1 - factor)
    x.mul_(factor).add_(centre).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> None:
    """Turn the hue of views, in place; turn [N, 1, 1, 1] in circles.

    h is the turned hue in [0, 1), low the smallest channel, high the largest, C = high - low:

        R = low - C + 6 C |h - 1/2|,   G = low + 2 C - 6 C |h - 1/3|,   B: G with 2/3 for 1/3

    each clamped to [low, high]. Equal to the conversion from HSV through its six cases.
    """
    r, g, b = torch.split(x, 1, dim=1)
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(high, b, out=high)
    torch.minimum(low, b, out=low)
    chroma = (high - low).clamp_(min=TINY)
    # 6 H C, by the largest channel; lerp with 0 and 1 is faster than `where`.
    h = (r - g).add_(chroma, alpha=4)
    other = (b - r).add_(chroma, alpha=2)
    chosen = torch.eq(g, high, out=torch.empty_like(high))
    h.lerp_(other, chosen)
    h.lerp_(torch.sub(g, b, out=other), torch.eq(r, high, out=chosen))
    torch.mul(chroma, 6, out=other)
    h.div_(other).add_(turn + 1).frac_()  # positive, for frac
    for channel, centre in ((r, 1 / 2), (g, 1 / 3), (b, 2 / 3)):
        torch.sub(h, centre, out=channel)
    x.abs_().mul_(other)
    r.add_(torch.sub(low, chroma, out=other))
    torch.add(low, chroma, alpha=2, out=other)
    torch.sub(other, g, out=g)
    torch.sub(other, b, out=b)
    torch.clamp(x, low, high, out=x)


def solarise(x: Tensor) -> Tensor:
    """Views whose values from SOLARISE_THRESHOLD on are inverted, channel by channel."""
    return torch.where(x >= SOLARISE_THRESHOLD, 1 - x, x)


def blur(x: Tensor, sigma: Tensor, kernel: int) -> None:
    """Blur views in place by a Gaussian of `kernel` x `kernel` pixels, reflected at the borders.

    sigma: [N], in pixels.
    """
    size, radius = x.shape[-1], kernel // 2
    offset = torch.arange(-radius, radius + 1, dtype=torch.int32, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma.double()[:, None]) ** 2)
    pixel = torch.arange(size, dtype=torch.int32, device=x.device)
    index = (pixel[:, None] + offset).abs()  # [S, K]
    index = size - 1 - (size - 1 - index).abs()
    _both_axes(x, index, weight / weight.sum(dim=1, keepdim=True), 1)


def pillow_blur(x: Tensor, sigma: Tensor, largest: float) -> None:
    """Blur views in place as Pillow's GaussianBlur of radius sigma: three box filters an axis.

    A box reaches l + 1 pixels to each side, the outermost with weight a < 1; the three boxes
    together have variance sigma^2:

        s = sigma^2 / 3,   l = floor((sqrt(12 s + 1) - 1) / 2)
        a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2))

    Beyond the border the outermost pixel is repeated, for every filter. Unlike Pillow, nothing is
    rounded to 8 bits between filters. sigma: [N], in pixels, at most `largest`.
    Source: Gwosdek et al. 2011, Theoretical foundations of Gaussian convolution by extended box
    filtering, as Pillow uses it.
    """
    size = x.shape[-1]
    s = sigma.double() ** 2 / PILLOW_PASSES
    inner = ((12 * s + 1).sqrt() - 1).div(2).floor()  # l
    a = (2 * inner + 1) * (inner * (inner + 1) - 3 * s) / (6 * (s - (inner + 1) ** 2))
    # From `largest`, since a value of sigma on the GPU would have to be waited for.
    reach = math.floor((math.sqrt(4 * largest**2 + 1) - 1) / 2) + 1
    offset = torch.arange(-reach, reach + 1, dtype=torch.int32, device=x.device)
    inside = (inner + 1)[:, None] - offset.abs()  # pixels from the outermost one, [N, K]
    weight = torch.where(inside > 0, 1.0, torch.where(inside == 0, a[:, None], 0.0))
    pixel = torch.arange(size, dtype=torch.int32, device=x.device)
    index = (pixel[:, None] + offset).clamp_(0, size - 1)
    _both_axes(x, index, weight / (2 * (inner + a) + 1)[:, None], PILLOW_PASSES)


def _both_axes(x: Tensor, index: Tensor, weight: Tensor, passes: int) -> None:
    """Filter columns, then rows, `passes` times each, in place.

    index: [S, K], the pixels that each output reads; weight: [N, K], their weights.
    """
    n, c, size, _ = x.shape
    first = size * torch.arange(c * n, dtype=torch.int32, device=x.device).view(n, c, 1, 1)
    rows, weight = first + index, weight.float().view(n, 1, 1, -1)
    filtered = x
    for _ in range(2):
        for _ in range(passes):
            filtered = weighted_rows(filtered.reshape(-1, size), rows, weight)
        filtered = transpose(filtered)
    x.copy_(filtered)


JITTER = (brightness, contrast, saturation, hue)  # in the order of JITTER_OPERATIONS


def sort_by_operations(parameters: ViewParameters, views: Ints) -> Ints:
    """The views [N], sorted so that those with the same operations are neighbours.

    `apply_colour` then has few runs: one for blur, at most 128 for jitter, for any N.
    """
    steps = _jitter_steps(parameters, views)
    return views[np.lexsort([*steps.T[::-1], parameters.blur.reshape(-1)[views]])]


def apply_colour(
    x: Tensor,
    parameters: ViewParameters,
    views: Ints,
    operations: Sequence[Operation],
    recipe: Recipe,
) -> None:
    """Apply operations in their order, in place, each to the views that it is drawn for.

    x: [N, 3, h, w] in [0, 1]. views: [N], the numbers i q + j of these views in the parameters.
    `flip` is skipped, as `resample` does it. The order of the views changes no bit, but sorting
    them by operations is faster, since jitter and blur change runs of views without copies.
    """
    p = parameters
    gates = (np.flatnonzero(gate.reshape(-1)[views]) for gate in (p.grey, p.solarise))
    factors, sigma, to_grey, to_solarise = to_device(
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
    kernel = min(recipe.kernel(size), 2 * size - 1)  # pixels are reflected once at most
    if kernel > 1:
        blur(x, sigma, kernel)


def _jitter_steps(parameters: ViewParameters, views: Ints) -> Ints:
    """The number of each view's first, second, ... jitter operation, [N, 4]; -1 for none."""
    steps: Ints = np.where(parameters.jitter[..., None], parameters.order, -1)
    return steps.reshape(-1, 4)[views]


def _runs(values: Ints | Bools) -> Iterator[tuple[slice, int]]:
    """The slice and the value of each run of equal neighbours."""
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop), int(values[start])
