"""Crop, anti-aliased resize and flip of many boxes, as one weighted sum along each axis.

Axes: b images of any sizes, N boxes out of them, S the side of the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lidar_cli.views.parameters import Bools, Ints
from lidar_cli.views.recipes import Interpolation

SUPPORT = {"bilinear": 1, "bicubic": 2}  # reach of the filters below, in output pixels
PIECE = 64  # pixels of a column that are read together: what a box does not touch is left alone


@dataclass(frozen=True)
class Axis:
    """Where the outputs lie along one axis of the source, arrays of one shape: [b, q] or [N].

    `length` source pixels from `start` on, and nothing outside of them, are resized to `target`
    pixels; of those, `size` are kept from `offset` on, in reverse order where `reverse`.
    """

    start: Ints
    length: Ints
    target: Ints
    offset: Ints
    reverse: Bools

    def of(self, boxes: Ints) -> Axis:
        """Some of the boxes by their number in the flattened arrays: [N]."""
        return Axis(*(getattr(self, f.name).reshape(-1)[boxes] for f in fields(self)))


@dataclass(frozen=True)
class Sources:
    """Images of any sizes as one table of pieces of their columns, in [0, 1]: [P, PIECE].

    Pixels PIECE k .. PIECE (k + 1) - 1 of column x of channel c of image i are row
    first[i] + (c width[i] + x) pieces[i] + k; what a last piece has in excess is 0.
    """

    table: Tensor
    first: Ints  # [b]
    width: Ints
    pieces: Ints

    @staticmethod
    def of(stacks: Sequence[Tensor]) -> Sources:
        """Of images in stacks [m, 3, w, h], uint8 or floats in [0, 1], numbered through all."""
        width = np.concatenate([np.full(len(x), x.shape[2]) for x in stacks])
        pieces = np.concatenate([np.full(len(x), -(-x.shape[3] // PIECE)) for x in stacks])
        sizes = 3 * width * pieces
        first = np.cumsum(sizes) - sizes
        table = torch.zeros(int(sizes.sum()), PIECE, device=stacks[0].device)
        counts = [len(x) * 3 * x.shape[2] * -(-x.shape[3] // PIECE) for x in stacks]
        for stack, place in zip(stacks, torch.split(table, counts), strict=True):
            place.view(*stack.shape[:3], -1)[..., : stack.shape[3]] = stack
        if stacks[0].dtype == torch.uint8:
            table.div_(255)
        return Sources(table, first, width, pieces)


def floats_of(rows: Axis, columns: Axis, size: int, interpolation: Interpolation) -> Ints:
    """Floats [N] of the largest intermediate of each box.

    That is the pieces of its columns, or their numbers in the table (int64) where an output has
    more taps than half a piece has pixels. Boxes side by side have the taps of the widest filter.
    """
    taps = 2 * _reach(max(1.0, float((columns.length / columns.target).max())), interpolation)
    return 3 * size * max(PIECE, 2 * taps) * _touched(rows)


def _reach(shrink: float, interpolation: Interpolation) -> int:
    """Source pixels to each side of an output that the filter of a shrunken axis reads."""
    return math.ceil(SUPPORT[interpolation] * shrink)


def _touched(rows: Axis) -> Ints:
    """Pieces of a column that a box touches, [N]."""
    touched: Ints = (rows.start + rows.length - 1) // PIECE - rows.start // PIECE + 1
    return touched


def resample(
    sources: Sources,
    images: Ints,
    rows: Axis,
    columns: Axis,
    size: int,
    interpolation: Interpolation,
) -> Tensor:
    """Boxes [N] of the images [N], resized to [N, 3, size, size] and cut to [0, 1].

    Equals cropping first and resizing the crop with anti-aliasing: weights never reach outside
    the box. The cut is what 8-bit pipelines do where a bicubic filter overshoots.
    """
    n, device = len(images), sources.table.device
    first, width, pieces = (x[images] for x in (sources.first, sources.width, sources.pieces))
    numbers = [
        np.stack([np.concatenate([getattr(axis, f.name) for axis in (columns, rows)])
                  for f in fields(Axis)]),
        np.stack([first, width * pieces, pieces, rows.start // PIECE]),
    ]  # fmt: skip
    axes, places = moved(numbers, device)
    shrink = max(float((axis.length / axis.target).max()) for axis in (columns, rows))
    index, weight = _taps(axes, size, max(1.0, shrink), interpolation)

    channel = torch.arange(3, device=device).view(3, 1, 1, 1)
    piece = torch.arange(int(_touched(rows).max()), device=device)[:, None]
    first, plane, pieces, low = places.long().view(4, n, 1, 1, 1, 1)
    piece = torch.minimum(low + piece, pieces - 1)  # a box that touches fewer reads one again
    x = index[:n].view(n, 1, size, 1, -1) * pieces  # [N, 1, S, 1, T]
    narrow = weighted_rows(
        sources.table, first + channel * plane + piece + x, weight[:n].view(n, 1, size, 1, -1)
    )  # [N, 3, S, pieces, PIECE]; h' of their rows
    table = (
        narrow.view(n, 3, size, -1).transpose(2, 3).contiguous()
    )  # [N, 3, rows of the pieces, S]
    y = index[n:].view(n, 1, size, -1) - PIECE * low.view(n, 1, 1, 1)  # [N, 1, S, T]
    start = torch.arange(3 * n, device=device).view(n, 3, 1, 1) * table.shape[2]
    small = weighted_rows(table.view(-1, size), start + y, weight[n:].view(n, 1, size, -1))
    return small.clamp_(0, 1)


def _taps(
    axes: Tensor, size: int, shrink: float, interpolation: Interpolation
) -> tuple[Tensor, Tensor]:
    """Source positions and weights [N, size, T] of the outputs along axes [5, N].

        x = start + (i + offset + 1/2) length / target - 1/2      centre of output i
        weight(k) ~ f((k - x) / max(1, length / target))          0 outside the box

    shrink: at least 1 and length / target of each axis. Positions outside the box are moved to its
    edge. Source: the anti-aliased resize of Pillow and torch, which widen the filter when
    shrinking.
    """
    reach = _reach(shrink, interpolation)
    start, length, target, offset, reverse = axes[..., None].unbind()  # [N, 1]
    i = torch.arange(size, dtype=torch.float64, device=axes.device)
    i = i + reverse * (size - 1 - 2 * i)
    x = start + (i + offset + 0.5) * length / target - 0.5  # [N, S]
    # Double precision up to here, so that the distances are exact on a wide image too.
    whole = x.floor()
    steps = torch.arange(-reach, reach + 2, device=axes.device)
    index = whole.long()[..., None] + steps
    distance = steps - (x - whole).float()[..., None]
    weight = _filter(distance / (length / target).clamp(min=1).float()[..., None], interpolation)
    start, stop = start.long()[..., None], (start + length).long()[..., None]
    inside = torch.minimum(torch.maximum(index, start), stop - 1)
    weight *= inside == index
    # The last of running sums, not a sum: the zeros of a wider reach change no bit of it.
    return inside, weight / weight.cumsum(dim=-1)[..., -1:]


def _filter(t: Tensor, interpolation: Interpolation) -> Tensor:
    """The triangle, or the cubic of Keys 1981 with a = -1/2, at distance t.

    Both pieces of the cubic are 0 where they meet at 1, as the outer one is at 2.
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


def moved(arrays: Sequence[npt.NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """The host's numbers in double precision on a device, in one transfer that none waits for."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float64))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = torch.split(flat.to(device), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
