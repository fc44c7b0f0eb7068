"""From images and drawn parameters to views, all views of a batch at once.

Axes: b images of any sizes, q views each, S the side of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import InputError
from lidar_cli.views import colour
from lidar_cli.views.draws import JITTER_OPERATIONS, ViewParameters
from lidar_cli.views.recipes import Recipe
from lidar_cli.views.resample import Axis, resample

# Floats of the largest intermediate of one resampling; bounds memory, not the result.
RESAMPLING_FLOATS = 2**26
EVALUATION_RATIO = 256 / 224  # short side over view side, as linear evaluations resize


def make_views(
    images: Sequence[Tensor], parameters: ViewParameters, recipe: Recipe, image_size: int
) -> Tensor:
    """Normalised views [b, q, 3, S, S] of uint8 images [h, w, 3], on the images' device.

    Crop, flip, jitter, grey, blur, normalise, in this order. Raises InputError for an image
    that is not uint8 [h, w, 3].
    """
    p = parameters
    b, q = p.top.shape
    full, none = np.full((b, q), image_size), np.zeros((b, q), np.int64)
    rows = Axis(p.top, p.height, full, none, np.zeros((b, q), np.bool_))
    columns = Axis(p.left, p.width, full, none, p.flip)
    device = images[0].device
    with torch.autocast(device.type, enabled=False):
        x = _resample_all(images, rows, columns, recipe, image_size).flatten(0, 1)
        _recolour(x, p, recipe.blur_kernel(image_size))
        return _normalise(x, recipe).view(b, q, *x.shape[1:])


def make_clean(images: Sequence[Tensor], recipe: Recipe, image_size: int) -> Tensor:
    """Un-augmented normalised images [b, 3, S, S], as a linear evaluation sees them.

    The short side is resized to round(S 256 / 224), then the centre is kept; an image that
    already is S x S is left as it is. Raises InputError as `make_views` does.
    """
    short = round(image_size * EVALUATION_RATIO)
    sizes = np.asarray([image.shape[:2] for image in images], np.int64)  # [b, 2]
    targets = short * sizes // sizes.min(axis=1, keepdims=True)
    targets[(sizes == image_size).all(axis=1)] = image_size
    offsets = np.rint((targets - image_size) / 2).astype(np.int64)
    start, straight = np.zeros((len(images), 1), np.int64), np.zeros((len(images), 1), np.bool_)
    rows, columns = (
        Axis(start, sizes[:, [k]], targets[:, [k]], offsets[:, [k]], straight) for k in (0, 1)
    )
    with torch.autocast(images[0].device.type, enabled=False):
        x = _resample_all(images, rows, columns, recipe, image_size).flatten(0, 1)
        return _normalise(x, recipe)


def _resample_all(
    images: Sequence[Tensor], rows: Axis, columns: Axis, recipe: Recipe, size: int
) -> Tensor:
    """Boxes [b, q] of every image, resampled to [b, q, 3, S, S] in [0, 1]."""
    _check(images)
    b, q = rows.start.shape
    out = torch.empty(b, q, 3, size, size, device=images[0].device)
    for group in _groups(images, q * size * 3):
        stack = torch.stack([images[i] for i in group]).float().div_(255)
        x = resample(stack, rows.of(group), columns.of(group), size, recipe.interpolation)
        if len(group) == b:
            return x.view(out.shape)
        for i, views in zip(group, x.view(-1, *out.shape[1:]), strict=True):
            out[i] = views
    return out


def _groups(images: Sequence[Tensor], floats_a_column: int) -> Iterator[list[int]]:
    """Positions of images of equal size, few enough at once for RESAMPLING_FLOATS."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault((image.shape[0], image.shape[1]), []).append(i)
    for (_, width), members in by_size.items():
        most = max(1, RESAMPLING_FLOATS // (floats_a_column * width))
        for first in range(0, len(members), most):
            yield members[first : first + most]


def _recolour(x: Tensor, p: ViewParameters, kernel: int) -> None:
    """Jitter, grey and blur, in place, each on the views that have it; x [N, 3, S, S]."""
    order = np.where(p.jitter[..., None], p.order, -1).reshape(-1, 4)
    chosen = [np.flatnonzero(order[:, step] == k) for step in range(4) for k in range(4)]
    chosen += [np.flatnonzero(p.grey), np.flatnonzero(p.blur)]
    # One transfer each for indices and strengths: many small ones would stall a GPU.
    packed = torch.as_tensor(np.concatenate(chosen), device=x.device)
    indices = torch.split(packed, [len(part) for part in chosen])
    strengths = np.concatenate([p.factors.reshape(-1, 4), p.sigma.reshape(-1, 1)], axis=1)
    strength = torch.as_tensor(strengths.astype(np.float32), device=x.device)  # [N, 5]

    operations = [getattr(colour, name) for name in JITTER_OPERATIONS]
    for k, index in enumerate(indices[:16]):
        if len(index):
            factor = strength[index, k % 4].view(-1, 1, 1, 1)
            x[index] = operations[k % 4](x[index], factor)
    if len(indices[16]):
        x[indices[16]] = colour.grey(x[indices[16]]).expand(-1, 3, -1, -1)
    if len(indices[17]) and kernel > 1:
        x[indices[17]] = colour.blur(x[indices[17]], strength[indices[17], 4], kernel)


def _normalise(x: Tensor, recipe: Recipe) -> Tensor:
    stats = torch.tensor([recipe.mean, recipe.std], device=x.device).view(2, 3, 1, 1)
    return x.sub_(stats[0]).div_(stats[1])


def _check(images: Sequence[Tensor]) -> None:
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"an image is {image.dtype} of shape {list(image.shape)}; "
                f"expected uint8 [height, width, 3]"
            )
