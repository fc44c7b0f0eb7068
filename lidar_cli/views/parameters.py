"""The parameters of every view of a batch, drawn from a recipe before any pixel is touched.

Each random number is a hash of (seed, sample, view, slot), see `words`. So the parameters of a view
depend on nothing else: not on the batch, its order, the number of views or the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from lidar_cli.views.recipes import Recipe

CROP_ATTEMPTS = 10  # torchvision.transforms.RandomResizedCrop
CLEAN = -1  # the number of the clean image among the views
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")  # numbers in `order`


class Slot(IntEnum):
    """First hash slot of each quantity; a change would change every view."""

    AREA = 0  # CROP_ATTEMPTS slots
    RATIO = 16  # CROP_ATTEMPTS slots
    TOP = 32
    LEFT = 33
    FLIP = 34
    JITTER = 35
    ORDER = 36  # 4 slots
    FACTOR = 40  # 4 slots
    GREY = 44
    BLUR = 45
    SIGMA = 46
    SOLARISE = 47
    PATCH = 48


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of the views of a batch, arrays [b, q, ...]: view j of sample i at [i, j].

    Boxes are in pixels of the source image. `order` [b, q, 4] lists the numbers of the jitter
    operations in the order in which they are applied, `factors` [b, q, 4] their strengths in the
    order of JITTER_OPERATIONS. The booleans say whether an operation is applied.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: Bools
    jitter: Bools
    order: Ints
    factors: Floats
    grey: Bools
    blur: Bools
    sigma: Floats
    solarise: Bools


def draw(
    recipe: Recipe,
    seed: int,
    samples: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    n_views: int,
) -> ViewParameters:
    """Parameters of n_views views of each sample, distributed as in torchvision's transforms.

    samples: global indices, not positions in the batch. sizes: (height, width) of each image.
    Source: torchvision.transforms RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur.
    """
    if recipe.crop_scale is None:
        raise ValueError(f"the views of {recipe.name} are not random")
    stream = streams(seed, samples, range(n_views))
    top, left, height, width = _boxes(recipe, stream, np.asarray(sizes, np.int64).reshape(-1, 2))
    low, high = recipe.blur_sigma
    return ViewParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=uniform(stream, Slot.FLIP) < recipe.flip,
        jitter=uniform(stream, Slot.JITTER) < recipe.jitter_probability,
        order=np.argsort(words(stream, Slot.ORDER, 4), axis=-1, kind="stable"),
        factors=_factors(recipe, stream),
        grey=uniform(stream, Slot.GREY) < recipe.grey,
        blur=uniform(stream, Slot.BLUR) < _by_view(recipe.blur, n_views),
        sigma=low + (high - low) * uniform(stream, Slot.SIGMA),
        solarise=uniform(stream, Slot.SOLARISE) < _by_view(recipe.solarise, n_views),
    )


def _by_view(probabilities: tuple[float, ...], n_views: int) -> Floats:
    """The probability for each view [q]: view j is of kind j modulo the number of kinds."""
    return np.resize(np.asarray(probabilities, dtype=np.float64), n_views)


def _boxes(recipe: Recipe, stream: Words, sizes: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Top, left, height and width [b, q]: the first of ten attempts that fits, or the centre."""
    assert recipe.crop_scale is not None
    image_height, image_width = sizes[:, 0, None], sizes[:, 1, None]  # [b, 1]
    low, high = recipe.crop_scale
    narrow, wide = recipe.crop_ratio
    area = low + (high - low) * uniforms(stream, Slot.AREA, CROP_ATTEMPTS)  # [b, q, attempts]
    area *= (image_height * image_width)[..., None]
    ratio = np.log(narrow) + np.log(wide / narrow) * uniforms(stream, Slot.RATIO, CROP_ATTEMPTS)
    ratio = np.exp(ratio)
    widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (widths > 0) & (widths <= image_width[..., None])
    fits &= (heights > 0) & (heights <= image_height[..., None])
    first = fits.argmax(axis=-1)[..., None]
    any_fits = fits.any(axis=-1)
    height = np.take_along_axis(heights, first, axis=-1)[..., 0]
    width = np.take_along_axis(widths, first, axis=-1)[..., 0]

    # If no attempt fits: the full short side, and the long side cut to the ratio.
    central_height = np.minimum(image_height, np.rint(image_width / narrow)).astype(np.int64)
    central_width = np.minimum(image_width, np.rint(image_height * wide)).astype(np.int64)
    height = np.where(any_fits, height, central_height)
    width = np.where(any_fits, width, central_width)
    top = (uniform(stream, Slot.TOP) * (image_height - height + 1)).astype(np.int64)
    left = (uniform(stream, Slot.LEFT) * (image_width - width + 1)).astype(np.int64)
    top = np.where(any_fits, top, (image_height - height) // 2)
    left = np.where(any_fits, left, (image_width - width) // 2)
    return top, left, height, width


def _factors(recipe: Recipe, stream: Words) -> Floats:
    """Jitter strengths [b, q, 4]: three factors around 1, none negative, and a hue shift."""
    amount = np.asarray(recipe.jitter)
    centre = np.asarray([1.0, 1.0, 1.0, 0.0])
    floor = np.asarray([0.0, 0.0, 0.0, -0.5])
    low = np.maximum(floor, centre - amount)
    factors: Floats = low + (centre + amount - low) * uniforms(stream, Slot.FACTOR, 4)
    return factors


def draw_patches(seed: int, samples: Sequence[int], n_views: int) -> Floats:
    """Which patch token of an image is embedded, [b, q + 1], as a share of all its patches.

    Patch floor(u N) of N, row by row of the grid, for each view and then for the clean image: equal
    patches of equal grids, whatever the batch.
    """
    return uniform(streams(seed, samples, [*range(n_views), CLEAN]), Slot.PATCH)


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def streams(seed: int, samples: Sequence[int], views: Sequence[int]) -> Words:
    """A hash state [b, v] for each view of each sample."""
    state = mix(np.asarray([seed % 2**64], dtype=np.uint64))
    state = mix(state + np.asarray(samples, dtype=np.int64).astype(np.uint64))
    return mix(np.add.outer(state, np.asarray(views, dtype=np.int64).astype(np.uint64)))


def mix(words: Words) -> Words:
    """The outputs of SplitMix64 for these states (Steele, Lea and Flood 2014)."""
    words = words + GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def words(stream: Words, slot: int, count: int) -> Words:
    """Random words [..., count] of slots `slot`, `slot` + 1, ... of streams [...]."""
    slots = np.arange(slot, slot + count, dtype=np.uint64)
    return mix(stream[..., None] + slots * GOLDEN)


def uniforms(stream: Words, slot: int, count: int) -> Floats:
    """Numbers in [0, 1) with 53 random bits, [..., count]."""
    return (words(stream, slot, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(stream: Words, slot: int) -> Floats:
    """One number in [0, 1) for each stream."""
    return uniforms(stream, slot, 1)[..., 0]
