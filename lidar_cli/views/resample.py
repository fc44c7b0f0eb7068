"""Crop, anti-aliased resize and flip of many boxes, as one weighted sum along each axis.

Axes: images [g, h, w, 3] of one size, q boxes each; out [g, q, 3, S, S]. N is g * q.
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

from lidar_cli.views.recipes import Interpolation

SUPPORT = {"bilinear": 1, "bicubic": 2}  # reach of the filters below, in output pixels


@dataclass(frozen=True)
class Axis:
    """Where the outputs lie along one axis of the source, arrays of one shape: [b, q] or [N].

    `length` source pixels from `start` on, and nothing outside of them, are resized to `target`
    pixels; of those, `size` are kept from `offset` on, in reverse order where `reverse`.
    """

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    reverse: npt.NDArray[np.bool_]

    def single(self) -> Axis:
        """One box each of b q images instead of q boxes each of b: [b q, 1]."""
        return Axis(*(getattr(self, f.name).reshape(-1, 1) for f in fields(self)))

    def of(self, images: Sequence[int]) -> Axis:
        """The boxes of some images of the batch, flattened to [N]."""
        picked = [getattr(self, f.name)[images].reshape(-1) for f in fields(self)]
        return Axis(*picked)


def resample(
    images: Tensor, rows: Axis, columns: Axis, size: int, interpolation: Interpolation
) -> Tensor:
    """Boxes of float images [g, h, w, 3], resized to [N, 3, size, size] and cut to [0, 1].

    Equals cropping first and resizing the crop with anti-aliasing: weights never reach outside
    the box. The cut is what 8-bit pipelines do where a bicubic filter overshoots.
    """
    g, h, w, _ = images.shape
    n = len(rows.start)
    # Whole rows, colour planes one after the other, are summed with their few weights; a dense
    # product here costs many times more on a CPU. Along columns it costs what transposing would.
    table = images.permute(0, 1, 3, 2).reshape(g * h, 3 * w)
    index, weight = taps(rows, size, interpolation, images.device)
    index = index.clamp_(0, h - 1).view(g, -1) + h * torch.arange(g, device=images.device)[:, None]
    reach = weight.shape[-1]
    squat = functional.embedding_bag(
        index.view(-1, reach), table, mode="sum", per_sample_weights=weight.view(-1, reach)
    )  # [N S, 3 w]
    across = axis_matrix(columns, w, size, interpolation, images.device)  # [N, S, w]
    small = torch.bmm(squat.view(n, size * 3, w), across.transpose(1, 2))  # [N, S 3, S]
    return small.clamp_(0, 1).view(n, size, 3, size).permute(0, 2, 1, 3).contiguous()


def axis_matrix(
    axis: Axis, source: int, size: int, interpolation: Interpolation, device: torch.device
) -> Tensor:
    """Weights [N, size, source] that resample one axis; every row sums to 1."""
    index, weight = taps(axis, size, interpolation, device)
    matrix = torch.zeros(*index.shape[:2], source, device=device)
    # Taps outside the image weigh nothing; clamped, they only need a place to fall on.
    return matrix.scatter_add_(2, index.clamp_(0, source - 1), weight)


def taps(
    axis: Axis, size: int, interpolation: Interpolation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Source positions and weights [N, size, T] of the outputs along one axis.

        x = start + (i + offset + 1/2) length / target - 1/2      centre of output i
        weight(k) ~ f((k - x) / max(1, length / target))          0 outside the box

    Source: the anti-aliased resize of Pillow and torch, which widen the filter when shrinking.
    """
    support = SUPPORT[interpolation] * np.maximum(1.0, axis.length / axis.target)
    reach = math.ceil(support.max())
    numbers = np.stack([axis.start, axis.length, axis.target, axis.offset, axis.reverse])
    moved = torch.as_tensor(numbers.astype(np.float64), device=device)[..., None]  # [5, N, 1]
    start, length, target, offset, reverse = moved.unbind()
    i = torch.arange(size, dtype=torch.float64, device=device)
    i = torch.where(reverse > 0, size - 1 - i, i)
    x = start + (i + offset + 0.5) * length / target - 0.5  # [N, S]
    # Double precision up to here, so that the distances are exact on a wide image too.
    whole = x.floor()
    steps = torch.arange(-reach, reach + 2, device=device)
    index = whole.long()[..., None] + steps
    distance = steps - (x - whole).float()[..., None]
    weight = _filter(distance / (length / target).clamp(min=1).float()[..., None], interpolation)
    inside = (index >= start[..., None]) & (index < (start + length)[..., None])
    weight = weight * inside
    return index, weight / weight.sum(dim=-1, keepdim=True)


def _filter(t: Tensor, interpolation: Interpolation) -> Tensor:
    """The triangle, or the cubic of Keys 1981 with a = -1/2, at distance t."""
    t = t.abs()
    if interpolation == "bilinear":
        return (1 - t).clamp(min=0)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
