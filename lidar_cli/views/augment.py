"""From images and drawn parameters to views, all views of a batch at once.

Axes: b images of any sizes, q views each, S the side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import InputError
from lidar_cli.views.draws import ViewParameters
from lidar_cli.views.hashes import Ints
from lidar_cli.views.recipes import Interpolation, Recipe
from lidar_cli.views.recolour import recolour
from lidar_cli.views.resample import Axis, resample

# Floats of the largest intermediate of one resampling; bounds memory, not the result.
RESAMPLING_FLOATS = 2**26
COPIES = 4  # of a whole image, at most, while it is recoloured


def make_views(
    images: Sequence[Tensor], parameters: ViewParameters, recipe: Recipe, image_size: int
) -> Tensor:
    """Normalised views [b, q, 3, S, S] of uint8 images [h, w, 3], on the images' device.

    The operations in the recipe's order, then normalise. Raises InputError for an image that is
    not uint8 [h, w, 3].
    """
    p = parameters
    b, q = p.top.shape
    full, none = np.full((b, q), image_size), np.zeros((b, q), np.int64)
    rows = Axis(p.top, p.height, full, none, np.zeros((b, q), np.bool_))
    columns = Axis(p.left, p.width, full, none, p.flip)

    def whole_images(x: Tensor, views: Ints) -> None:
        recolour(x, p, views, recipe.before_crop, recipe)

    change = whole_images if set(recipe.before_crop) - {"flip"} else None
    with torch.autocast(images[0].device.type, enabled=False):
        x = _resample_all(images, rows, columns, recipe.interpolation, image_size, change)
        x = x.flatten(0, 1)
        recolour(x, p, np.arange(b * q), recipe.after_crop, recipe)
        return _normalise(x, recipe).view(b, q, *x.shape[1:])


def make_clean(images: Sequence[Tensor], recipe: Recipe, image_size: int) -> Tensor:
    """Un-augmented normalised images [b, 3, S, S], as the method's linear evaluation sees them.

    The short side is resized to round(S clean_resize), then the centre is kept; or a centre of
    round(short side / clean_resize) pixels is cut out, then resized. An image that already is
    S x S is left as it is. Raises InputError as `make_views` does.
    """
    _check(images)
    sizes = np.asarray([image.shape[:2] for image in images], np.int64)  # [b, 2]
    short = sizes.min(axis=1, keepdims=True)
    kept = (sizes == image_size).all(axis=1, keepdims=True)
    start, length, offset = np.zeros_like(sizes), sizes, np.zeros_like(sizes)
    if recipe.clean_crop == "after":
        target = round(image_size * recipe.clean_resize) * sizes // short
        target = np.where(kept, image_size, target)
        offset = np.rint((target - image_size) / 2).astype(np.int64)
    else:
        side = np.maximum(1, np.rint(short / recipe.clean_resize)).astype(np.int64)
        length = np.where(kept, sizes, np.broadcast_to(side, sizes.shape))
        start = (sizes - length + 1) // 2
        target = np.full_like(sizes, image_size)
    straight = np.zeros((len(images), 1), np.bool_)
    rows, columns = (
        Axis(start[:, [k]], length[:, [k]], target[:, [k]], offset[:, [k]], straight)
        for k in (0, 1)
    )
    with torch.autocast(images[0].device.type, enabled=False):
        x = _resample_all(images, rows, columns, recipe.clean_interpolation, image_size)
        return _normalise(x.flatten(0, 1), recipe)


def _resample_all(
    images: Sequence[Tensor],
    rows: Axis,
    columns: Axis,
    interpolation: Interpolation,
    size: int,
    change: Callable[[Tensor, Ints], None] | None = None,
) -> Tensor:
    """Boxes [b, q] of every image, resampled to [b, q, 3, S, S] in [0, 1].

    change: what happens to the whole image before, in place; it takes a copy of the image for each
    view, [N, 3, h, w], and the numbers i q + j of the views.
    """
    _check(images)
    b, q = rows.start.shape
    out = torch.empty(b, q, 3, size, size, device=images[0].device)
    sources, boxes = list(images), out
    if change is not None:  # every view is a box of an image of its own
        sources = [image for image in images for _ in range(q)]
        boxes, rows, columns = out.view(b * q, 1, 3, size, size), rows.single(), columns.single()
    for group in _groups(sources, boxes.shape[1] * size * 3, change is not None):
        stack = torch.stack([sources[i] for i in group]).float().div_(255)
        if change is not None:
            planes = stack.permute(0, 3, 1, 2).contiguous()
            change(planes, np.asarray(group))
            stack = planes.permute(0, 2, 3, 1)
        x = resample(stack, rows.of(group), columns.of(group), size, interpolation)
        if len(group) == len(sources):
            return x.view(out.shape)
        for i, views in zip(group, x.view(-1, *boxes.shape[1:]), strict=True):
            boxes[i] = views
    return out


def _groups(images: Sequence[Tensor], floats_a_column: int, whole: bool) -> Iterator[list[int]]:
    """Positions of images of equal size, few enough at once for RESAMPLING_FLOATS.

    whole: the images are recoloured too, which takes a few more copies of them.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault((image.shape[0], image.shape[1]), []).append(i)
    for (height, width), members in by_size.items():
        floats = (floats_a_column + whole * COPIES * 3 * height) * width
        most = max(1, RESAMPLING_FLOATS // floats)
        for first in range(0, len(members), most):
            yield members[first : first + most]


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
