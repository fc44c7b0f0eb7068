"""Makes views from images and drawn parameters, many views at once.

Axes: b images of any sizes, q views each, c channels, S the side of a view.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lidar_cli.core.accumulate import map_parallel
from lidar_cli.errors import InputError
from lidar_cli.views.masks import Mask, draw_mask
from lidar_cli.views.operations import (
    Axis,
    Sources,
    apply_colour,
    peak_floats,
    resample,
    sort_by_operations,
    to_device,
)
from lidar_cli.views.parameters import Ints, ViewParameters, draw
from lidar_cli.views.recipes import Interpolation, Recipe

# Floats of the largest intermediate tensor in each thread: a bound of memory, without any effect on
# results.
# On a CPU the tensor should fit the cache: memory access costs more than the arithmetic.
CPU_FLOATS = 2**21
GPU_FLOATS = 2**26
IMAGE_COPIES = 4  # at most, in memory while colour operations change an uncropped image

# Changes pixels [n, c, ...] in place; also gets the numbers of their boxes [n].
Change = Callable[[Tensor, Ints], None]


def make_views(
    images: Sequence[Tensor],
    parameters: ViewParameters,
    recipe: Recipe,
    image_size: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Normalised views [b, q, c, S, S] of uint8 images [h, w, c], on the images' device.

    The recipe's operations are applied in its order, then the view is normalised, in single
    precision; the result is rounded to `dtype`. On a CPU no bit of a view depends on the other
    views. memory_format: that of the views as [b q, c, S, S].

    Raises InputError for an image that is not uint8 [h, w, c].
    """
    _check(images, recipe)
    p = parameters
    full, none = np.full(p.top.shape, image_size), np.zeros_like(p.top)
    rows = Axis(p.top, p.height, full, none, np.zeros_like(p.flip))
    columns = Axis(p.left, p.width, full, none, p.flip)
    out = _Normalised(p.top.size, images, recipe, image_size, dtype, memory_format)

    def before(x: Tensor, views: Ints) -> None:
        apply_colour(x, p, views, recipe.before_crop, recipe)

    def after(x: Tensor, views: Ints) -> None:
        apply_colour(x, p, views, recipe.after_crop, recipe)
        out.put(views, x)

    with torch.autocast(images[0].device.type, enabled=False):
        _resample_all(
            images,
            rows,
            columns,
            image_size,
            recipe.interpolation,
            after,
            arrange=lambda views: sort_by_operations(p, views),
            change=before if set(recipe.before_crop) - {"flip"} else None,
        )
    return out.views.view(*p.top.shape, *out.views.shape[1:])


def make_clean(
    images: Sequence[Tensor],
    recipe: Recipe,
    image_size: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Un-augmented normalised images [b, c, S, S], as in the method's linear evaluation.

    With clean_crop "after", the short side is resized to round(S clean_resize), then the centre is
    cropped; with "before", a centre of round(short side / clean_resize) pixels is cropped, then
    resized. An image of S x S is neither resized nor cropped. dtype, memory_format, Raises: as in
    `make_views`.
    """
    _check(images, recipe)
    sizes = np.asarray([image.shape[:2] for image in images], np.int64)  # [b, 2]
    short = sizes.min(axis=1, keepdims=True)
    exact = (sizes == image_size).all(axis=1, keepdims=True)
    start, length, offset = np.zeros_like(sizes), sizes, np.zeros_like(sizes)
    if recipe.clean_crop == "after":
        target = round(image_size * recipe.clean_resize) * sizes // short
        target = np.where(exact, image_size, target)
        offset = np.rint((target - image_size) / 2).astype(np.int64)
    else:
        side = np.maximum(1, np.rint(short / recipe.clean_resize)).astype(np.int64)
        length = np.where(exact, sizes, np.broadcast_to(side, sizes.shape))
        start = (sizes - length + 1) // 2
        target = np.full_like(sizes, image_size)
    straight = np.zeros((len(images), 1), np.bool_)
    rows, columns = (
        Axis(start[:, [k]], length[:, [k]], target[:, [k]], offset[:, [k]], straight)
        for k in (0, 1)
    )
    out = _Normalised(len(images), images, recipe, image_size, dtype, memory_format)
    with torch.autocast(images[0].device.type, enabled=False):
        _resample_all(
            images,
            rows,
            columns,
            image_size,
            recipe.clean_interpolation,
            lambda x, some: out.put(some, x),
        )
    return out.views


class _Normalised:
    """Normalised views [N, c, S, S], stored a few at a time."""

    def __init__(
        self,
        count: int,
        images: Sequence[Tensor],
        recipe: Recipe,
        size: int,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        device, shape = images[0].device, (count, images[0].shape[2], size, size)
        strides = torch.empty(shape, device="meta", memory_format=memory_format).stride()
        self.views = _empty(math.prod(shape), dtype, device).as_strided(shape, strides)
        stats = to_device([np.asarray(recipe.mean), np.asarray(recipe.std)], device)
        self.mean, self.std = (stat.float().view(-1, 1, 1) for stat in stats)

    def put(self, some: Ints, x: Tensor) -> None:
        """Normalise the views x, in place, and store them under the numbers `some`."""
        x.sub_(self.mean).div_(self.std)
        (index,) = to_device([some], x.device)
        self.views[index.long()] = x.to(self.views.dtype)


def _resample_all(
    images: Sequence[Tensor],
    rows: Axis,
    columns: Axis,
    size: int,
    interpolation: Interpolation,
    after: Change,
    arrange: Callable[[Ints], Ints] = lambda boxes: boxes,
    change: Change | None = None,
) -> None:
    """Resample boxes [b, q] of the images, a portion at a time.

    after: gets the resampled pixels [n, c, S, S] of each portion; on a CPU several threads call it.
    arrange: sorts the boxes of a group. change: changes the uncropped image of each box, a copy
    [n, c, h, w], before resampling. All three get the numbers i q + j of the boxes.
    """
    on_cpu = images[0].device.type == "cpu"
    most, threads = (CPU_FLOATS, torch.get_num_threads()) if on_cpu else (GPU_FLOATS, 1)
    if on_cpu:
        _keep_freed_memory()
    q = rows.start.shape[1]
    stacks = [image[None] for image in images]  # [1, h, w, c]
    pixels = np.asarray([image.numel() for image in images])

    def resample_group(group: slice) -> None:
        boxes = arrange(np.arange(group.start * q, group.stop * q))
        floats = peak_floats(
            rows.select(boxes), columns.select(boxes), size, interpolation, images[0].shape[2]
        )
        if on_cpu:  # a portion has the pieces and taps of its largest box: join boxes of one size
            order = np.argsort(floats, kind="stable")
            boxes, floats = boxes[order], floats[order]
        if change is None:
            shared = Sources.of(stacks[group])
        else:
            floats = np.maximum(floats, IMAGE_COPIES * pixels[boxes // q])

        def resample_some(portion: slice) -> None:
            some = boxes[portion]
            if change is None:
                sources, source = shared, some // q - group.start
            else:
                changed, source = _changed_images(images, some, q, change)
                sources = Sources.of(changed)
            x = resample(
                sources, source, rows.select(some), columns.select(some), size, interpolation
            )
            after(x, some)

        portions = _portions(floats, min(most, int(floats.sum()) // threads))
        if on_cpu:
            map_parallel(resample_some, portions)
        else:
            for portion in portions:
                resample_some(portion)

    for group in _portions(pixels, most * threads):
        resample_group(group)


def _empty(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised numbers [count]; on a CPU, from NumPy's allocator.

    It asks Linux for pages of 2 MB, so that writing a batch takes a few page faults, not thousands.
    """
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(count * dtype.itemsize, np.uint8)).view(dtype)


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc reuse up to 64 MB of freed memory for the next portion.

    By default glibc returns memory to the kernel and requests it again, page by page, which takes a
    fifth of the processor time on two threads and more on one. It retains twice the size of the
    largest block below 32 MB that was ever freed; this function allocates and frees such a block
    without touching a page of it. Other allocators are not affected.
    """
    torch.empty(2**23 - 2**12)


def _changed_images(
    images: Sequence[Tensor], boxes: Ints, q: int, change: Change
) -> tuple[list[Tensor], Ints]:
    """Changed copies of the image of each box [n]: stacks [m, h, w, c], and each copy's index."""
    sizes = np.asarray([images[box // q].shape for box in boxes])
    _, kinds = np.unique(sizes, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)  # some versions of NumPy return a column
    order = np.argsort(kinds, kind="stable")
    stacks = []
    for members in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):
        copies = torch.stack([images[box // q] for box in boxes[members]]).permute(0, 3, 1, 2)
        stack = copies.contiguous().float().div_(255)
        change(stack, boxes[members])
        stacks.append(stack.permute(0, 2, 3, 1))
    return stacks, np.argsort(order)


def _portions(floats: Ints, most: int) -> Iterator[slice]:
    """Runs of consecutive boxes: as many as need at most `most` floats together, at least one.

    Every box of a run is counted with the floats of the largest.
    """
    first, largest = 0, 0
    for k, needed in enumerate(floats.tolist()):
        if k > first and max(largest, needed) * (k + 1 - first) > most:
            yield slice(first, k)
            first, largest = k, 0
        largest = max(largest, needed)
    yield slice(first, len(floats))


def _check(images: Sequence[Tensor], recipe: Recipe) -> None:
    channels = len(recipe.mean)
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise InputError(
                f"an image is {image.dtype} of shape {list(image.shape)}; "
                f"expected uint8 [height, width, {channels}]"
            )


@dataclass(frozen=True)
class Views:
    """Makes views of samples; a sample has the same views in every batch, run and process.

    image_size: side of the views in pixels. patch: side of the model's patches, for masks.
    bands: of the images that the samples select, () for colours.
    """

    recipe: Recipe
    seed: int
    n_views: int
    image_size: int
    patch: int | None = None
    bands: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.recipe.mean)

    @property
    def grid(self) -> int | None:
        """Patches along each side of the grid of masks; None for a recipe without masks."""
        if self.recipe.masks is None:
            return None
        assert self.patch is not None
        return self.image_size // self.patch

    @property
    def differ_by_masks(self) -> bool:
        """Whether the views of a sample have the same pixels and only their masks differ."""
        return self.recipe.masks is not None and self.recipe.crop_scale is None

    def views(
        self,
        images: Sequence[Tensor],
        samples: Sequence[int],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Normalised views [b, q, c, S, S] of uint8 images [h, w, c], on the images' device.

        [b, 1, c, S, S] if they differ by their masks alone. samples: the images' global indices.
        dtype, memory_format, Raises: as in `make_views`.
        """
        if self.recipe.crop_scale is None:
            count = 1 if self.differ_by_masks else self.n_views
            clean = self.clean(images, dtype)
            copies = clean.repeat_interleave(count, dim=0)
            copies = copies.contiguous(memory_format=memory_format)
            return self._turned(copies.view(len(images), count, *clean.shape[1:]))
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        parameters = draw(self.recipe, self.seed, samples, sizes, self.n_views)
        return self._turned(
            make_views(images, parameters, self.recipe, self.image_size, dtype, memory_format)
        )

    def _turned(self, views: Tensor) -> Tensor:
        """The views [b, q, c, S, S], each turned in place as the recipe says."""
        if self.recipe.quarter_turns:
            for turns, view in enumerate(views.unbind(1)):
                view.copy_(torch.rot90(view.clone(), turns, dims=(-2, -1)))
        return views

    def masks(self, samples: Sequence[int]) -> list[Mask] | None:
        """One mask of all samples for each view, on the host; None for a recipe without masks.

        Raises SettingsError for a grid that is too small for the recipe's rule.
        """
        rule, side = self.recipe.masks, self.grid
        if rule is None or side is None:
            return None
        views = range(self.n_views)
        return [draw_mask(rule, self.seed, samples, view, (side, side)) for view in views]

    def clean(
        self,
        images: Sequence[Tensor],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Un-augmented normalised images [b, c, S, S]; see `make_clean`."""
        return make_clean(images, self.recipe, self.image_size, dtype, memory_format)
