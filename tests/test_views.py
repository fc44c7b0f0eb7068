"""Pixels of the views: torchvision's operations one at a time, on the same drawn parameters."""

import dataclasses

import numpy as np
import pytest
import torch
from one_view import FLOAT_BOUND, box_blur, one_at_a_time, sizes_of
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from lidar_cli.errors import InputError
from lidar_cli.views import operations
from lidar_cli.views.methods import RECIPES, find_recipe
from lidar_cli.views.parameters import ViewParameters, draw
from lidar_cli.views.pipeline import Views, make_views
from lidar_cli.views.recipes import Recipe

SIMCLR = find_recipe("simclr", "unit")


@pytest.fixture(scope="module")
def photographs() -> list[torch.Tensor]:
    """Two photographs of 427 x 640, and smaller cuts of them in other shapes."""
    china, flower = (torch.from_numpy(image.copy()) for image in load_sample_images().images)
    return [china, flower[100:420, 150:390], china[:96, :96], flower[200:233, 300:341]]


@pytest.fixture(scope="module")
def noise() -> list[torch.Tensor]:
    """Uniform noise, whose bicubic overshoots and saturated hues photographs rarely have."""
    random = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (32, 32), (50, 37), (20, 90), (32, 32)]
    return [torch.randint(0, 256, (*s, 3), dtype=torch.uint8, generator=random) for s in sizes]


def blurred(x: torch.Tensor, blur, *strength) -> torch.Tensor:
    """A blurred copy of x."""
    copy = x.clone()
    blur(copy, *strength)
    return copy


def differences(
    images: list[torch.Tensor], recipe: Recipe, size: int, n_views: int
) -> tuple[torch.Tensor, ViewParameters]:
    """Largest absolute difference of each view [b, q] from torchvision's float pipeline."""
    p = draw(recipe, 3, range(len(images)), sizes_of(images), n_views)
    ours = make_views(images, p, recipe, size)
    out = torch.empty(len(images), n_views)
    for i, image in enumerate(images):
        picture = image.permute(2, 0, 1).float() / 255
        for j in range(n_views):
            out[i, j] = (ours[i, j] - one_at_a_time(picture, p, (i, j), recipe, size)).abs().max()
    return out, p


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224])
def test_boxes_are_resized_as_torchvision_does(photographs, noise, interpolation, size):
    """Both shrinking and growing, in every box; bicubic overshoots are cut."""
    crop = Recipe(
        "crop", crop_scale=(0.08, 1.0), interpolation=interpolation, flip=0.5, mean=(0,) * 3,
        std=(1,) * 3,
    )  # fmt: skip
    error, p = differences(photographs + noise, crop, size, 6)
    assert error.max() < FLOAT_BOUND
    assert (p.height > size).any()
    assert (p.height < size).any()
    assert p.flip.any()
    assert not p.flip.all()


@pytest.mark.parametrize("operation", range(4))
def test_each_jitter_operation_is_torchvisions(photographs, noise, operation):
    """On its own: the other three strengths are zero, at which they change nothing."""
    amounts = [0.0] * 4
    amounts[operation] = SIMCLR.jitter[operation]
    only = dataclasses.replace(
        SIMCLR, jitter=tuple(amounts), jitter_probability=1.0, grey=0.0, blur=(0.0,),
    )  # fmt: skip
    error, _ = differences(photographs + noise, only, 32, 6)
    assert error.max() < FLOAT_BOUND


@pytest.mark.parametrize("size", [8, 32, 48, 224])
def test_whole_views_are_torchvisions(photographs, noise, size):
    error, p = differences(photographs + noise, SIMCLR, size, 10 if size < 224 else 4)
    assert error.max() < FLOAT_BOUND
    for gate in (p.jitter, p.grey, p.blur, p.flip):
        assert gate.any()
        assert not gate.all()


OTHERS = [name for name in RECIPES if name != "simclr" and RECIPES[name].crop_scale is not None]


@pytest.mark.parametrize("name", OTHERS)
def test_views_of_every_method_are_torchvisions(photographs, noise, name):
    """In the method's own order, where two kinds of views are made both of them.

    A pixel within rounding of the threshold may be solarised on one side only; it is then off by
    1 - 2 * 128 / 255, which is less than 1/255.
    """
    recipe = find_recipe(name, "unit")
    images = [photographs[3], *noise, photographs[2]]
    p = draw(recipe, 3, range(len(images)), sizes_of(images), 8)
    ours = make_views(images, p, recipe, 48)
    for i, image in enumerate(images):
        picture = image.permute(2, 0, 1).float() / 255
        for j in range(8):
            error = (ours[i, j] - one_at_a_time(picture, p, (i, j), recipe, 48)).abs()
            if p.solarise[i, j]:
                assert (error > FLOAT_BOUND).float().mean() < 1e-3
                assert error.max() < 1 / 255 + FLOAT_BOUND
            else:
                assert error.max() < FLOAT_BOUND
    if any(recipe.solarise):
        assert p.solarise[:, 1::2].any()
        assert p.solarise[:, ::2].any() == (recipe.solarise[0] > 0)
    if any(recipe.blur):
        assert p.blur.any()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("moco-v1", ("crop", "jitter", "grey", "flip")),
        ("data2vec-crop", ("flip", "crop", "jitter")),
        ("vicreg", ("crop", "flip", "jitter", "grey", "solarise", "blur")),
        ("vicreg", ("crop", "flip", "solarise", "jitter", "grey", "blur")),
    ],
)
def test_another_order_of_operations_would_be_noticed(photographs, name, other):
    recipe = dataclasses.replace(find_recipe(name, "unit"), grey=0.5)
    if any(recipe.solarise):
        recipe = dataclasses.replace(recipe, blur=(1.0,), solarise=(1.0,))
    p = draw(recipe, 3, range(2), sizes_of(photographs[2:]), 6)
    ours = make_views(photographs[2:], p, recipe, 48)
    swapped = make_views(photographs[2:], p, dataclasses.replace(recipe, order=other), 48)
    moved = (ours - swapped).abs().amax(dim=(2, 3, 4))
    assert (moved > 10 * FLOAT_BOUND).sum() >= 3


def test_the_place_of_the_flip_moves_no_pixel(photographs):
    recipe = find_recipe("moco-v3", "unit")
    p = draw(recipe, 3, range(4), sizes_of(photographs), 4)
    early = dataclasses.replace(
        recipe, order=("crop", "flip", "jitter", "grey", "blur", "solarise")
    )
    assert p.flip.any()
    assert torch.equal(
        make_views(photographs, p, recipe, 32), make_views(photographs, p, early, 32)
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.41, 1.42, 2.0, 5.0])
def test_the_box_blur_is_pillows_to_its_roundings(photographs, sigma):
    """Pillow rounds to 1/255 six times, by half of it at most; the Gaussian is far off."""
    picture = photographs[0][:224, :224]
    theirs = Image.fromarray(picture.numpy()).filter(ImageFilter.GaussianBlur(sigma))
    theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1) / 255
    x = picture.permute(2, 0, 1)[None].float() / 255
    strength = torch.tensor([sigma])
    ours = blurred(x, operations.pillow_blur, strength, sigma)[0]
    assert (ours - theirs).abs().max() < 3.01 / 255
    if sigma >= 0.5:
        assert (blurred(x, operations.blur, strength, 23)[0] - theirs).abs().max() > 10 / 255


def test_strengths_of_the_box_blur_do_not_mix(noise):
    """Views whose boxes reach differently far, in one batch and one at a time."""
    x = torch.stack([noise[0], noise[1], noise[4]]).permute(0, 3, 1, 2).float() / 255
    sigma = torch.tensor([0.1, 2.0, 40.0])  # the last reaches beyond the view
    together = blurred(x, operations.pillow_blur, sigma, 40.0)
    for k in range(3):
        torch.testing.assert_close(together[k], box_blur(x[k], float(sigma[k])), rtol=0, atol=1e-5)


def test_a_fixed_kernel_is_cut_where_the_view_is_smaller(noise):
    recipe = dataclasses.replace(find_recipe("dinov2", "unit"), blur=(1.0,))
    views = Views(recipe, 0, 3, 4).views(noise, range(5))
    assert ((views >= -1e-6) & (views <= 1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["vicreg", "moco-v1", "data2vec-crop"])
def test_other_methods_are_close_to_their_eight_bit_pipeline(photographs, name):
    """Bounds as for SimCLR below, whose jitter is stronger; the blur is Pillow's here too.

    Solarising stretches no rounding; near the threshold both sides of it are equal.
    """
    recipe = find_recipe(name, "unit")
    if any(recipe.solarise):
        recipe = dataclasses.replace(recipe, solarise=(0.0, 0.7))
    p = draw(recipe, 3, range(4), sizes_of(photographs), 6)
    ours = make_views(photographs, p, recipe, 64)
    for i, image in enumerate(photographs):
        picture = Image.fromarray(image.numpy())
        for j in range(6):
            view = one_at_a_time(picture, p, (i, j), recipe, 64)
            theirs = torch.from_numpy(np.array(view)).permute(2, 0, 1) / 255
            error = (ours[i, j] - theirs).abs()
            assert error.mean() < 4 / 255
            assert error.flatten().quantile(0.99) < 15 / 255


def test_the_reference_would_notice_another_order_of_the_jitter(photographs):
    p = draw(SIMCLR, 3, [0], sizes_of(photographs[:1]), 10)
    turned = dataclasses.replace(p, order=p.order[..., ::-1].copy())
    ours, other = (make_views(photographs[:1], each, SIMCLR, 32) for each in (p, turned))
    moved = (ours - other).abs().amax(dim=(2, 3, 4))[0]
    assert (moved[torch.from_numpy(p.jitter[0])] > 10 * FLOAT_BOUND).sum() >= 5


@pytest.mark.parametrize(
    ("strength", "mean", "tail"),
    [(0.0, 1.5 / 255, 6 / 255), (1.0, 4 / 255, 15 / 255)],
)
def test_views_are_close_to_the_eight_bit_pillow_pipeline(photographs, strength, mean, tail):
    """Pillow rounds to 1/255 after every step, and its turn of the hue to 1/255 of the circle.

    Without jitter a view has passed two or three roundings. With it each earlier rounding is
    stretched by factors of up to 1.8, and the turn adds up to 6/255 of the chroma. Bounds are
    of the mean over a view's pixels and of their 99th percentile.
    """
    recipe = SIMCLR.at_strength(strength)
    p = draw(recipe, 3, range(4), sizes_of(photographs), 6)
    ours = make_views(photographs, p, recipe, 64)
    for i, image in enumerate(photographs):
        picture = Image.fromarray(image.numpy())
        for j in range(6):
            view = one_at_a_time(picture, p, (i, j), recipe, 64)
            theirs = torch.from_numpy(np.array(view)).permute(2, 0, 1) / 255
            error = (ours[i, j] - theirs).abs()
            assert error.mean() < mean
            assert error.flatten().quantile(0.99) < tail


def test_normalisation_comes_last(photographs):
    plain = Views(SIMCLR, 0, 3, 32).views(photographs, range(4))
    scaled = Views(find_recipe("simclr", "imagenet"), 0, 3, 32).views(photographs, range(4))
    expected = reference.normalize(plain, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert plain.min() >= -1e-6
    assert plain.max() <= 1 + 1e-6  # the weights of a blur sum to 1 up to rounding
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-5)


def test_a_view_depends_on_no_other_view(photographs, noise):
    """Batches of one, other orders, fewer views; see test_views_portions for threads."""
    images = photographs + noise
    views = Views(SIMCLR, 11, 4, 32)
    samples = [100 + i for i in range(len(images))]
    whole = views.views(images, samples)
    assert whole.shape == (len(images), 4, 3, 32, 32)
    assert whole.dtype == torch.float32
    bounds = {"rtol": 0, "atol": 0}
    for i, image in enumerate(images):
        torch.testing.assert_close(views.views([image], [samples[i]])[0], whole[i], **bounds)
    order = [4, 0, 8, 3, 5, 1, 7, 2, 6]
    turned = views.views([images[i] for i in order], [samples[i] for i in order])
    torch.testing.assert_close(turned, whole[order], **bounds)
    fewer = dataclasses.replace(views, n_views=1).views(images, samples)
    torch.testing.assert_close(fewer, whole[:, :1], **bounds)


def test_the_same_batch_gives_the_same_bits(photographs):
    views = Views(SIMCLR, 11, 4, 32)
    assert torch.equal(views.views(photographs, range(4)), views.views(photographs, range(4)))


def test_samples_views_and_seeds_differ(noise):
    same = [noise[0], noise[0]]
    a = Views(SIMCLR, 0, 2, 32).views(same, [0, 1]).flatten(0, 1)
    b = Views(SIMCLR, 1, 2, 32).views(same, [0, 1]).flatten(0, 1)
    distinct = torch.cat([a, b]).flatten(1)
    assert torch.pdist(distinct).min() > 0.1


def test_memory_bound_of_a_group_changes_nothing(monkeypatch, noise):
    whole = Views(SIMCLR, 0, 3, 32).views(noise, range(5))
    monkeypatch.setattr("lidar_cli.views.pipeline.CPU_FLOATS", 1)
    torch.testing.assert_close(Views(SIMCLR, 0, 3, 32).views(noise, range(5)), whole, rtol=0,
                               atol=1e-6)  # fmt: skip


def test_memory_bound_of_whole_images_changes_nothing(monkeypatch, noise):
    views = Views(find_recipe("data2vec-crop", "unit"), 0, 3, 32)
    whole = views.views(noise, range(5))
    for floats in (1, 100_000):
        monkeypatch.setattr("lidar_cli.views.pipeline.CPU_FLOATS", floats)
        torch.testing.assert_close(views.views(noise, range(5)), whole, rtol=0, atol=1e-6)


def test_autocast_of_the_caller_does_not_reach_the_pixels(noise):
    views = Views(SIMCLR, 0, 3, 32)
    outside = views.views(noise, range(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views.views(noise, range(5)), outside)


@pytest.mark.parametrize("size", [32, 224])
def test_clean_images_are_resized_and_cut_as_linear_evaluations_do(photographs, noise, size):
    images = [image for image in photographs + noise if image.shape != (size, size, 3)]
    clean = Views(SIMCLR, 0, 2, size).clean(images)
    short = {32: 37, 224: 256}[size]
    for image, ours in zip(images, clean, strict=True):
        picture = image.permute(2, 0, 1).float() / 255
        theirs = reference.resize(picture, short, InterpolationMode.BICUBIC, antialias=True)
        theirs = reference.center_crop(theirs, [size, size]).clamp(0, 1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT_BOUND)


@pytest.mark.parametrize("name", ["vicreg", "mae"])
def test_clean_images_have_the_interpolation_of_the_methods_evaluation(photographs, name):
    """Bilinear for VICReg, though its views are bicubic."""
    mode = {"vicreg": InterpolationMode.BILINEAR, "mae": InterpolationMode.BICUBIC}[name]
    clean = Views(find_recipe(name, "unit"), 0, 2, 32).clean(photographs)
    for image, ours in zip(photographs, clean, strict=True):
        picture = image.permute(2, 0, 1).float() / 255
        theirs = reference.resize(picture, 37, mode, antialias=True)
        theirs = reference.center_crop(theirs, [32, 32]).clamp(0, 1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT_BOUND)


def test_clean_images_of_the_original_simclr_are_cut_before_they_are_resized(photographs, noise):
    images = [*photographs, noise[3]]
    clean = Views(find_recipe("simclr-google", "auto"), 0, 2, 32).clean(images)
    for image, ours in zip(images, clean, strict=True):
        picture = image.permute(2, 0, 1).float() / 255
        side = round(0.875 * min(image.shape[:2]))
        top, left = ((length - side + 1) // 2 for length in image.shape[:2])
        theirs = reference.resized_crop(
            picture, top, left, side, side, [32, 32], InterpolationMode.BICUBIC, antialias=True
        )
        torch.testing.assert_close(ours, theirs.clamp(0, 1), rtol=0, atol=FLOAT_BOUND)


def test_a_clean_image_of_the_right_size_is_kept(noise):
    clean = Views(SIMCLR, 0, 2, 32).clean(noise[:2])
    expected = torch.stack(noise[:2]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(clean, expected, rtol=0, atol=1e-6)


def test_every_view_of_the_identity_is_the_clean_image(photographs):
    views = Views(find_recipe("identity", "auto"), 0, 3, 32)
    clean = views.clean(photographs)
    batch = views.views(photographs, range(4))
    assert batch.shape == (4, 3, 3, 32, 32)
    assert (batch == clean[:, None]).all()


def test_inputs_are_left_as_they_were(noise):
    before = [image.clone() for image in noise]
    views = Views(SIMCLR, 0, 2, 32)
    views.views(noise, range(5))
    views.clean(noise)
    assert all(torch.equal(a, b) for a, b in zip(noise, before, strict=True))


@pytest.mark.parametrize(
    "image", [torch.zeros(8, 8, 3), torch.zeros(3, 8, 8, dtype=torch.uint8)[:, :, :2]]
)
def test_another_kind_of_image_is_refused(image):
    with pytest.raises(InputError, match=r"expected uint8 \[height, width, 3\]"):
        Views(SIMCLR, 0, 2, 8).views([image], [0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["simclr", "vicreg", "data2vec-crop"])
def test_cuda_makes_the_views_of_the_cpu(photographs, noise, name):
    images = photographs + noise
    recipe = dataclasses.replace(find_recipe(name, "unit"), solarise=(0.0,))  # a step, see above
    views = Views(recipe, 0, 4, 32)
    there = views.views([image.cuda() for image in images], range(len(images)))
    assert there.is_cuda
    torch.testing.assert_close(
        there.cpu(), views.views(images, range(len(images))), rtol=0, atol=FLOAT_BOUND
    )
