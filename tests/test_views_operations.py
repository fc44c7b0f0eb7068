"""Each operation on its own beside torchvision's: v2 on floats, and Pillow's 8 bits by v1.

The stated errors are of pixels in [0, 1].
"""

import dataclasses

import numpy as np
import pytest
import torch
from one_view import FLOAT_BOUND, sizes_of
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional as v1
from torchvision.transforms.v2 import functional as v2

from lidar_cli.views.methods import find_recipe
from lidar_cli.views.operations import transpose
from lidar_cli.views.parameters import ViewParameters, draw
from lidar_cli.views.pipeline import make_views
from lidar_cli.views.recipes import Recipe

SIZE, Q = 64, 6
BITS = 1 / 255
PLAIN = dataclasses.replace(
    find_recipe("simclr", "unit"), flip=0.0, jitter_probability=0.0, grey=0.0, blur=(0.0,)
)
JITTERED = dataclasses.replace(PLAIN, jitter_probability=1.0)


def adjust(name, k):
    """torchvision's jitter operation by its functions f, with the view's own factor."""
    return lambda f, x, p, at: getattr(f, f"adjust_{name}")(x, float(p.factors[at][k]))


def gaussian(f, x, p, at):
    return f.gaussian_blur(x, [7, 7], [float(p.sigma[at])] * 2)


def solarise(f, x, p, at):
    return f.solarize(x, 128 * BITS if isinstance(x, torch.Tensor) else 128)


# Recipe, what torchvision does, and the bound on the difference from 8 bits:
# half a step of rounding at the end, and what the operation makes of roundings inside itself.
OPERATIONS = {
    "flip": (dataclasses.replace(PLAIN, flip=1.0), lambda f, x, p, at: f.hflip(x), 0.01),
    # Pillow truncates, hence a whole step
    "brightness": (dataclasses.replace(JITTERED, jitter=(0.8, 0, 0, 0)),
                   adjust("brightness", 0), 1.01),
    # the mean is rounded: half a step times |1 - f|
    "contrast": (dataclasses.replace(JITTERED, jitter=(0, 0.8, 0, 0)), adjust("contrast", 1), 1.5),
    # luma is rounded, by other weights
    "saturation": (dataclasses.replace(JITTERED, jitter=(0, 0, 0.8, 0)),
                   adjust("saturation", 2), 2.01),
    # hue in steps of 1/255 circle, 6/255 of the chroma each, rounded twice, and added as an integer
    "hue": (dataclasses.replace(JITTERED, jitter=(0, 0, 0, 0.2)), adjust("hue", 3), 18.0),
    "grey": (dataclasses.replace(PLAIN, grey=1.0),
             lambda f, x, p, at: f.rgb_to_grayscale(x, num_output_channels=3), 1.01),
    "blur": (dataclasses.replace(PLAIN, blur=(1.0,), blur_kernel=7), gaussian, 0.51),
    "solarise": (dataclasses.replace(PLAIN, order=(*PLAIN.order[:5], "solarise"),
                                     solarise=(1.0,)), solarise, 0.01),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """Cuts of two photographs, noise, and the grey ramp; all as large as a view."""
    china, flower = (torch.from_numpy(image.copy()) for image in load_sample_images().images)
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8, generator=random)
    ramp = torch.arange(256, dtype=torch.uint8).repeat(16).view(SIZE, SIZE, 1).repeat(1, 1, 3)
    return [china[200:264, 300:364], flower[100:164, 150:214], noise, ramp]


def whole(pictures: list[torch.Tensor], recipe: Recipe) -> ViewParameters:
    """Drawn parameters, but with the whole picture as every box: no pixel is resampled."""
    p = draw(recipe, 3, range(len(pictures)), sizes_of(pictures), Q)
    nothing, full = np.zeros_like(p.top), np.full_like(p.top, SIZE)
    return dataclasses.replace(p, top=nothing, left=nothing, height=full, width=full)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(pictures, name):
    recipe, theirs, bound = OPERATIONS[name]
    p = whole(pictures, recipe)
    ours = make_views(pictures, p, recipe, SIZE)
    for i, picture in enumerate(pictures):
        image = picture.permute(2, 0, 1).float() / 255
        for j in range(Q):
            error = (ours[i, j] - theirs(v2, image, p, (i, j))).abs()
            assert error.max() < FLOAT_BOUND
            eight = theirs(v1, Image.fromarray(picture.numpy()), p, (i, j))
            error = (ours[i, j] - v1.to_tensor(eight)).abs()
            assert error.max() < bound * BITS


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_the_box_blur_is_pillows(pictures, sigma):
    """Pillow rounds six times, each time by half a step, and no filter stretches an error."""
    recipe = dataclasses.replace(PLAIN, blur=(1.0,), blur_filter="pillow")
    p = whole(pictures, recipe)
    p = dataclasses.replace(p, sigma=np.full_like(p.sigma, sigma))
    ours = make_views(pictures, p, recipe, SIZE)
    for i, picture in enumerate(pictures):
        eight = Image.fromarray(picture.numpy()).filter(ImageFilter.GaussianBlur(sigma))
        assert (ours[i, 0] - v1.to_tensor(eight)).abs().max() < 3.01 * BITS


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_boxes_are_resized_as_pillow_does(interpolation):
    """It rounds after each of both axes, by half a step; the filters' lobes stretch the first.

    It also cuts to [0, 255] in between, where a cubic overshoots by at most its negative weights,
    1/8 at the middle between two pixels; that is rare.
    """
    china, flower = (torch.from_numpy(image.copy()) for image in load_sample_images().images)
    pictures = [china, flower[100:420, 150:390], china[:50, :40]]
    recipe = dataclasses.replace(PLAIN, interpolation=interpolation)
    p = draw(recipe, 3, range(3), sizes_of(pictures), Q)
    ours = make_views(pictures, p, recipe, SIZE)
    for i, picture in enumerate(pictures):
        for j in range(Q):
            top, left, height, width = (int(x[i, j]) for x in (p.top, p.left, p.height, p.width))
            box = (left, top, left + width, top + height)
            image = Image.fromarray(picture.numpy()).crop(box)
            mode = Image.Resampling[interpolation.upper()]
            eight = v1.to_tensor(image.resize((SIZE, SIZE), mode))
            error = (ours[i, j] - eight).abs()
            assert error.flatten().quantile(0.99) < 1.3 * BITS
            assert error.max() < (1.3 * BITS if interpolation == "bilinear" else 1 / 8)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 9, 16), (4, 1, 3), (4, 3, 1), (1, 1, 1)])
def test_matrices_are_transposed(shape):
    x = torch.arange(np.prod(shape), dtype=torch.float32).view(shape)
    assert np.array_equal(transpose(x).numpy(), x.numpy().swapaxes(-1, -2))
    assert transpose(x).is_contiguous()


def test_another_strength_would_be_noticed(pictures):
    recipe, theirs, bound = OPERATIONS["brightness"]
    p = whole(pictures, recipe)
    ours = make_views(pictures, p, recipe, SIZE)
    other = dataclasses.replace(p, factors=p.factors + 0.05)
    image = Image.fromarray(pictures[2].numpy())
    error = (ours[2, 0] - v1.to_tensor(theirs(v1, image, other, (2, 0)))).abs()
    assert error.max() > 2 * bound * BITS
