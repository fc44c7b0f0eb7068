"""Views by torchvision, one at a time on the drawn parameters, to hold the batched ones against."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from lidar_cli.views.parameters import JITTER_OPERATIONS, ViewParameters
from lidar_cli.views.recipes import Recipe

# Single precision rounding, in pixels of [0, 1]: torch finds the place of an output on a wide image
# to about 1e-5 of a pixel only, and noise changes by up to 1 from one pixel to the next.
FLOAT_BOUND = 5e-5


def sizes_of(images: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [tuple(image.shape[:2]) for image in images]


def box_blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Three extended box filters along each axis of [3, h, w], pixel by pixel, in double precision.

    Of length L = 2 (l + a) + 1, so that L^2 of a plain box, L^2 = 12 sigma^2 / 3 + 1, gives l.
    """
    variance = sigma**2 / 3
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    weights = np.array([part, *[1.0] * (2 * whole + 1), part]) / (2 * (whole + part) + 1)
    array = x.double().numpy()
    for axis in (1, 2):
        for _ in range(3):
            pad = [(0, 0)] * 3
            pad[axis] = (whole + 1, whole + 1)
            padded = np.pad(array, pad, mode="edge")
            length = array.shape[axis]
            array = sum(
                weight * np.take(padded, range(k, k + length), axis=axis)
                for k, weight in enumerate(weights)
            )
    return torch.from_numpy(array).float()


def one_at_a_time(
    picture: torch.Tensor | Image.Image,
    p: ViewParameters,
    at: tuple[int, int],
    recipe: Recipe,
    size: int,
):
    """The view `at`, by torchvision's functions in the order of the recipe.

    picture: a float tensor [3, h, w] or a PIL image, which torchvision gives to Pillow. A box is
    that of the image before it is flipped.
    """
    top, left, height, width = (int(x[at]) for x in (p.top, p.left, p.height, p.width))
    mode = InterpolationMode(recipe.interpolation)
    x = picture
    for operation in recipe.order:
        tensor = isinstance(x, torch.Tensor)
        if operation == "crop":
            image_width = x.shape[2] if tensor else x.width
            flipped = p.flip[at] and "flip" in recipe.before_crop
            first = image_width - left - width if flipped else left
            x = reference.resized_crop(
                x, top, first, height, width, [size] * 2, mode, antialias=True
            )
            x = x.clamp(0, 1) if tensor else x
        elif operation == "flip" and p.flip[at]:
            x = reference.hflip(x)
        elif operation == "jitter" and p.jitter[at]:
            for k in p.order[at]:
                adjust = getattr(reference, f"adjust_{JITTER_OPERATIONS[k]}")
                x = adjust(x, float(p.factors[at][k]))
        elif operation == "grey" and p.grey[at]:
            x = reference.rgb_to_grayscale(x, num_output_channels=3)
        elif operation == "blur" and p.blur[at]:
            sigma, kernel = float(p.sigma[at]), recipe.kernel(size)
            if recipe.blur_filter == "pillow":
                x = box_blur(x, sigma) if tensor else x.filter(ImageFilter.GaussianBlur(sigma))
            elif kernel > 1:
                x = reference.gaussian_blur(x, [kernel, kernel], [sigma] * 2)
        elif operation == "solarise" and p.solarise[at]:
            x = reference.solarize(x, 128 / 255 if tensor else 128)
    return x
