"""View recipes: which random operations make the views, with which ranges and probabilities.

A recipe holds constants only. `draws` turns one into the parameters of every view, `augment`
turns parameters into pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from lidar_cli.errors import SettingsError
from lidar_cli.settings import nearest

# Three numbers each, in RGB order, of pixels in [0, 1].
PIXEL_STATS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
PIXEL_STATS["auto"] = PIXEL_STATS["imagenet"]


@dataclass(frozen=True)
class Recipe:
    """Constants of one augmentation, in the order in which its operations act on a view.

    Resampled crop, flip, jitter, grey, blur, normalise. A probability of 0 leaves the operation
    out. `crop_scale` is the view's share of the image area and `crop_ratio` its width over its
    height; both None for a recipe without random crop, whose views are the clean image.
    """

    name: str
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip_probability: float = 0.0
    jitter: tuple[float, float, float, float] = (
        0.0,
        0.0,
        0.0,
        0.0,
    )  # brightness, contrast, saturation, hue
    jitter_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the view
    blur_kernel_divisor: int = 10
    mean: tuple[float, float, float] = PIXEL_STATS["imagenet"][0]
    std: tuple[float, float, float] = PIXEL_STATS["imagenet"][1]

    def blur_kernel(self, image_size: int) -> int:
        """Side of the blur kernel in pixels: image_size // divisor, made odd; 23 at 224."""
        return image_size // self.blur_kernel_divisor // 2 * 2 + 1

    def at_strength(self, strength: float) -> Recipe:
        """This recipe with its jitter ranges scaled; the strength of SimCLR's ImageNet runs is 1.

        Raises SettingsError where the hue would turn by more than half a circle.
        """
        b, c, s, h = (strength * amount for amount in self.jitter)
        if strength < 0 or h > 0.5:
            raise SettingsError(
                f"jitter strength {strength:g} gives {self.name} a hue range of {h:g}; "
                f"expected 0 to 0.5"
            )
        return dataclasses.replace(self, jitter=(b, c, s, h))

    def describe(self) -> dict[str, Any]:
        """Every constant, ready for JSON: two recipes are equal if these are."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


# Source: google-research/simclr, data_util.py and run.py at color_jitter_strength 1. Departures:
# torchvision's random resized crop and blur borders, and pixel statistics chosen by the caller.
SIMCLR = Recipe(
    name="simclr",
    crop_scale=(0.08, 1.0),
    flip_probability=0.5,
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
)
IDENTITY = Recipe(name="identity")
RECIPES = {recipe.name: recipe for recipe in (SIMCLR, IDENTITY)}


def find_recipe(name: str, pixel_stats: str) -> Recipe:
    """The recipe of that name, normalising with the named pixel statistics.

    Raises SettingsError for a name that is not known, of either.
    """
    if name == "auto":
        name = SIMCLR.name
    if name not in RECIPES:
        raise SettingsError(f"unknown views {name!r}; {nearest(name, ['auto', *RECIPES])}")
    if pixel_stats not in PIXEL_STATS:
        known = nearest(pixel_stats, list(PIXEL_STATS))
        raise SettingsError(f"unknown pixel statistics {pixel_stats!r}; {known}")
    mean, std = PIXEL_STATS[pixel_stats]
    return dataclasses.replace(RECIPES[name], mean=mean, std=std)
