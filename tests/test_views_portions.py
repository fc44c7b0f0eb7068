"""Views: the same bits in any batch, portion and thread; hard boxes; work handed to a device."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest
import torch
from one_view import FLOAT_BOUND, one_at_a_time, sizes_of
from sklearn.datasets import load_sample_images
from torch.utils._python_dispatch import TorchDispatchMode

from lidar_cli.core.accumulate import map_parallel, parallel_in_portions_alone
from lidar_cli.views.methods import RECIPES, find_recipe
from lidar_cli.views.parameters import ViewParameters, draw
from lidar_cli.views.pipeline import Views, make_views
from lidar_cli.views.recipes import Recipe

RANDOM = [name for name, recipe in RECIPES.items() if recipe.crop_scale is not None]
SOME = [
    "simclr",
    "vicreg",
    "dinov2",
    "data2vec-crop",
]  # both blurs, and jitter on both sides of a crop


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """A photograph, cuts of another in other shapes, and noise; two of one size."""
    china, flower = (torch.from_numpy(image.copy()) for image in load_sample_images().images)
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (33, 41, 3), dtype=torch.uint8, generator=random)
    return [china, flower[100:420, 150:390], flower[200:233, 300:341], noise, flower[:64, :65]]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [32, 37, 224])
@pytest.mark.parametrize("name", SOME)
def test_no_bit_of_a_view_depends_on_its_batch(monkeypatch, two_threads, images, name, size):
    """Alone, in another order, without its siblings, in other portions, on other threads."""
    views = Views(find_recipe(name, "imagenet"), 11, 4, size)
    samples = [100 + i for i in range(len(images))]
    whole = views.views(images, samples)
    for i, image in enumerate(images):
        assert torch.equal(views.views([image], [samples[i]])[0], whole[i])
    order = [4, 0, 3, 1, 2]
    turned = views.views([images[i] for i in order], [samples[i] for i in order])
    assert torch.equal(turned, whole[order])
    fewer = dataclasses.replace(views, n_views=1).views(images, samples)
    assert torch.equal(fewer, whole[:, :1])
    for floats in (1, 10**6, 10**9):
        monkeypatch.setattr("lidar_cli.views.pipeline.CPU_FLOATS", floats)
        assert torch.equal(views.views(images, samples), whole)
    two_threads()
    for chosen in (slice(None), slice(0, 1), slice(1, 4)):
        assert torch.equal(views.views(images[chosen], samples[chosen]), whole[chosen])


@pytest.mark.parametrize("name", ["simclr", "simclr-google", "vicreg"])
def test_no_bit_of_a_clean_image_depends_on_its_batch(two_threads, images, name):
    views = Views(find_recipe(name, "imagenet"), 11, 4, 37)
    whole = views.clean(images)
    two_threads()
    for i, image in enumerate(images):
        assert torch.equal(views.clean([image])[0], whole[i])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["simclr", "identity"])
def test_views_come_in_the_form_that_is_asked_for(images, name, dtype, layout):
    """The pixels are those of single precision, rounded once."""
    views = Views(find_recipe(name, "imagenet"), 3, 3, 32)
    output = views.views(images, range(5), dtype, layout)
    assert output.shape == (5, 3, 3, 32, 32)
    assert output.flatten(0, 1).is_contiguous(memory_format=layout)
    assert torch.equal(output, views.views(images, range(5)).to(dtype))
    clean = views.clean(images, dtype, layout)
    assert clean.is_contiguous(memory_format=layout)
    assert torch.equal(clean, views.clean(images).to(dtype))


def boxed(images: list[torch.Tensor], recipe: Recipe, boxes: list[list[int]]) -> ViewParameters:
    """Drawn parameters of one view an image, but with boxes of (top, left, height, width)."""
    p = draw(recipe, 3, range(len(images)), sizes_of(images), 1)
    top, left, height, width = (np.asarray(boxes).T)[..., None]
    return dataclasses.replace(p, top=top, left=left, height=height, width=width)


def assert_torchvisions(images, p, recipe, size) -> None:
    ours = make_views(images, p, recipe, size)
    for i, image in enumerate(images):
        picture = image.permute(2, 0, 1).float() / 255
        error = (ours[i, 0] - one_at_a_time(picture, p, (i, 0), recipe, size)).abs()
        assert error.max() < FLOAT_BOUND


@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_extreme_boxes_are_torchvisions(images, interpolation, size):
    """Single pixels, single rows and columns, the corners, whole images, in one batch."""
    recipe = dataclasses.replace(find_recipe("ijepa-crop", "unit"), interpolation=interpolation)
    china, _, _, noise, _ = images
    boxes = [
        (china, [426, 639, 1, 1]),
        (china, [0, 0, 427, 640]),
        (china, [63, 10, 2, 600]),
        (noise[:, :1], [3, 0, 30, 1]),
        (noise[:1], [0, 0, 1, 41]),
        (noise[:1, :1], [0, 0, 1, 1]),
        (noise, [32, 0, 1, 41]),
        (noise, [0, 40, 33, 1]),
        (noise, [7, 5, 2, 3]),
    ]
    pictures = [image for image, _ in boxes]
    assert_torchvisions(pictures, boxed(pictures, recipe, [b for _, b in boxes]), recipe, size)


def test_a_large_image_is_torchvisions():
    """It shrinks by a hundred and more: hundreds of pixels along each axis weigh in on one."""
    random = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2500, 6000, 3), dtype=torch.uint8, generator=random)
    recipe = find_recipe("mae", "unit")
    pictures = [image, image[:40, :50]]
    p = boxed(pictures, recipe, [[3, 17, 2490, 5900], [0, 0, 40, 50]])
    assert_torchvisions(pictures, p, recipe, 32)


@pytest.mark.parametrize("name", RANDOM)
def test_views_of_tiny_images_are_torchvisions(images, name):
    """Smaller than the filters of resampling and blur; without solarisation, which is a step."""
    recipe = dataclasses.replace(find_recipe(name, "unit"), solarise=(0.0,), blur_kernel=5)
    noise = images[3]
    pictures = [noise[:1, :1], noise[:1], noise[:, :1], noise[:2, :3], noise[:7, :5]]
    p = draw(recipe, 3, range(5), sizes_of(pictures), 6)
    ours = make_views(pictures, p, recipe, 9)
    for i, image in enumerate(pictures):
        picture = image.permute(2, 0, 1).float() / 255
        for j in range(6):
            error = (ours[i, j] - one_at_a_time(picture, p, (i, j), recipe, 9)).abs()
            assert error.max() < FLOAT_BOUND


@pytest.mark.parametrize("sigma", [0.1, 2.0])
@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_the_ends_of_the_blurs_range_are_the_references(images, name, sigma):
    recipe = dataclasses.replace(find_recipe(name, "unit"), blur=(1.0,), solarise=(0.0,))
    p = draw(recipe, 3, range(len(images)), sizes_of(images), 1)
    p = dataclasses.replace(p, sigma=np.full_like(p.sigma, sigma))
    assert_torchvisions(images, p, recipe, 48)


def test_work_is_spread_over_threads_with_one_of_torchs_each(two_threads):
    two_threads()
    met = threading.Barrier(2)  # neither passes without the other
    seen, late = [], []

    def work(portion: int) -> None:
        if portion < 2:
            met.wait(30)
        seen.append((portion, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    with torch.inference_mode():
        map_parallel(work, range(5))
    assert sorted(seen) == [(portion, 1, True) for portion in range(5)]
    assert torch.get_num_threads() == 2
    another = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    another.start()
    another.join()
    assert late == [2], "a thread that begins later has what the others have"


@pytest.mark.parametrize(("dim", "threads_of_torch"), [(512, 1), (2048, 2)])
def test_a_scatter_of_partial_sums_leaves_all_threads_to_its_portions(
    two_threads, dim, threads_of_torch
):
    two_threads()
    met = threading.Barrier(2)
    with parallel_in_portions_alone(dim, torch.device("cpu")):
        assert torch.get_num_threads() == threads_of_torch
        map_parallel(lambda _: met.wait(30), range(2))  # one thread alone would wait in vain
    assert torch.get_num_threads() == 2
    map_parallel(lambda _: met.wait(30), range(2))


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        map_parallel(lambda portion: 1 // portion, [1, 0])


class Calls(TorchDispatchMode):
    """Counts the operations that reach a device, each a launch or more."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def calls(recipe: Recipe, n_images: int, n_views: int) -> list[str]:
    """Of one batch on the meta device, which has no values: reading one back is an error there."""
    images = [torch.empty(40 + i, 50, 3, dtype=torch.uint8, device="meta") for i in range(n_images)]
    views = Views(recipe, 0, n_views, 32)
    with Calls() as counted:
        views.views(images, range(n_images))
    return counted.names


@pytest.fixture
def no_autocast(monkeypatch):
    """Of which the meta device knows nothing."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("name", RANDOM)
def test_no_value_is_read_back_from_the_device(name):
    names = calls(find_recipe(name, "imagenet"), 3, 4)
    assert names
    assert not [call for call in names if "local_scalar" in call or "nonzero" in call]


def test_reading_a_value_back_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.empty(1, device="meta") > 0)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("name", SOME[:3])
def test_calls_do_not_grow_with_the_number_of_views(name):
    """From 1,600 views to 6,400: every order of the jitter has occurred by then."""
    recipe = find_recipe(name, "imagenet")
    few, many = (len(calls(recipe, 4, n_views)) for n_views in (400, 1600))
    assert few <= many < 1.05 * few
