"""Drawn parameters: torchvision's distributions, and nothing but (seed, sample, view)."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from lidar_cli.errors import SettingsError
from lidar_cli.views import parameters
from lidar_cli.views.methods import RECIPES, find_recipe
from lidar_cli.views.parameters import Slot, ViewParameters, draw

SIMCLR = find_recipe("simclr", "imagenet")
N, Q = 1500, 4
DRAWS = N * Q
# Each comparison below is of fixed draws, so it cannot flicker; a p-value under this bound would
# be met by one in a thousand seeds, and a wrong distribution of 6,000 draws lies far under it.
P_BOUND = 1e-3


def draw_of(height: int, width: int, seed: int = 0, **changes: object) -> ViewParameters:
    recipe = dataclasses.replace(SIMCLR, **changes)
    return draw(recipe, seed, range(N), [(height, width)] * N, Q)


def torchvision_boxes(height: int, width: int) -> np.ndarray:
    """Top, left, height, width of DRAWS boxes [4, DRAWS], by torchvision itself."""
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        boxes = [
            RandomResizedCrop.get_params(image, [*SIMCLR.crop_scale], [*SIMCLR.crop_ratio])
            for _ in range(DRAWS)
        ]
    return np.array(boxes).T


@pytest.mark.parametrize("size", [(375, 500), (32, 32), (200, 900)])
def test_boxes_are_distributed_as_torchvision_draws_them(size):
    p = draw_of(*size)
    ours = np.stack([x.ravel() for x in (p.top, p.left, p.height, p.width)])
    theirs = torchvision_boxes(*size)
    for quantity in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top / np.maximum(size[0] - height, 1),
        lambda top, left, height, width: left / np.maximum(size[1] - width, 1),
        lambda top, left, height, width: top + height,
        lambda top, left, height, width: left + width,
    ):
        assert stats.ks_2samp(quantity(*ours), quantity(*theirs)).pvalue > P_BOUND


def test_the_comparison_of_boxes_would_notice_a_uniform_ratio():
    p = draw_of(375, 500, crop_ratio=(0.8, 4 / 3))
    theirs = torchvision_boxes(375, 500)
    ours = (p.width / p.height).ravel()
    assert stats.ks_2samp(ours, theirs[3] / theirs[2]).pvalue < 1e-9


def test_boxes_stay_inside_the_image_and_reach_its_edges():
    p = draw_of(20, 30)
    assert p.top.min() == 0
    assert p.left.min() == 0
    assert (p.top + p.height).max() == 20
    assert (p.left + p.width).max() == 30
    assert min(p.height.min(), p.width.min()) >= 1


@pytest.mark.parametrize("size", [(1000, 20), (20, 1000), (1, 40), (40, 1)])
def test_an_extreme_image_falls_back_to_the_centre_as_torchvision_does(size):
    """No attempt fits where even the smallest area at the best ratio overlaps the short side."""
    assert math.sqrt(0.08 * size[0] * size[1] * 3 / 4) > min(size) + 0.5 or min(size) == 1
    p = draw_of(*size)
    theirs = torchvision_boxes(*size)
    ours = np.stack([x.ravel() for x in (p.top, p.left, p.height, p.width)])
    if min(size) > 1:
        assert len(np.unique(theirs, axis=1).T) == 1
        assert (ours == theirs[:, :1]).all()
    else:  # some attempts fit, some fall back: both kinds in equal shares
        share = [np.mean(boxes[2] * boxes[3] == boxes[2:, 0].prod()) for boxes in (ours, theirs)]
        assert share[0] == pytest.approx(share[1], abs=0.03)
    assert (ours[0] + ours[2] <= size[0]).all()
    assert (ours[1] + ours[3] <= size[1]).all()


def test_jitter_is_distributed_as_torchvision_draws_it():
    p = draw_of(32, 32)
    jitter = ColorJitter(*SIMCLR.jitter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        drawn = [
            ColorJitter.get_params(
                jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
            )
            for _ in range(DRAWS)
        ]
    for k in range(4):
        theirs = [values[1 + k] for values in drawn]
        assert stats.ks_2samp(p.factors[..., k].ravel(), theirs).pvalue > P_BOUND


def test_strong_jitter_never_draws_a_negative_factor():
    strong = SIMCLR.at_strength(2)
    p = draw(strong, 0, range(N), [(32, 32)] * N, Q)
    uniform = stats.uniform(0, 2.6)  # max(0, 1 - 1.6) to 1 + 1.6, as ColorJitter has it
    assert ColorJitter(1.6).brightness == (0, 2.6)
    assert stats.kstest(p.factors[..., 0].ravel(), uniform.cdf).pvalue > P_BOUND


def test_every_order_of_the_jitter_is_equally_likely():
    p = draw_of(32, 32)
    counts = Counter(map(tuple, p.order.reshape(-1, 4).tolist()))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert stats.chisquare([*counts.values()]).pvalue > P_BOUND


def test_gates_open_with_their_probabilities_and_sigma_is_uniform():
    p = draw_of(32, 32)
    for gate, probability in [(p.flip, 0.5), (p.jitter, 0.8), (p.grey, 0.2), (p.blur, 0.5)]:
        assert stats.binomtest(int(gate.sum()), DRAWS, probability).pvalue > P_BOUND
    assert stats.kstest(p.sigma.ravel(), stats.uniform(0.1, 1.9).cdf).pvalue > P_BOUND


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_gate_of_certain_probability_never_errs(probability):
    p = draw_of(32, 32, blur=(probability,), grey=probability)
    assert (p.blur == bool(probability)).all()
    assert (p.grey == bool(probability)).all()


KINDS = {  # name: blur of views 0, 2 and of views 1, 3; solarisation of the same
    "simclr": ((0.5, 0.5), (0, 0)),
    "vicreg": ((1.0, 0.1), (0, 0.2)),
    "dinov2": ((0.0, 0.9), (0, 0.2)),
    "mae": ((0, 0), (0, 0)),
}


@pytest.mark.parametrize("name", KINDS)
def test_views_alternate_between_the_kinds_of_their_method(name):
    p = draw(RECIPES[name], 0, range(N), [(32, 32)] * N, Q)
    for gate, probabilities in zip((p.blur, p.solarise), KINDS[name], strict=True):
        for j in range(Q):
            opened = int(gate[:, j].sum())
            assert stats.binomtest(opened, N, probabilities[j % 2]).pvalue > P_BOUND, j


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].crop_scale is not None])
def test_every_recipe_draws_its_own_ranges(name):
    """Areas against torchvision's boxes of the same scale; jitter, flip and grey by their law."""
    recipe = RECIPES[name]
    p = draw(recipe, 2, range(N), [(375, 500)] * N, Q)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        image = torch.empty(3, 375, 500)
        theirs = [
            RandomResizedCrop.get_params(image, [*recipe.crop_scale], [3 / 4, 4 / 3])
            for _ in range(3000)
        ]
    areas = [height * width for _, _, height, width in theirs]
    assert stats.ks_2samp((p.height * p.width).ravel(), areas).pvalue > P_BOUND
    for k in range(3):
        factors = p.factors[..., k].ravel()
        spread = 2 * recipe.jitter[k]
        if spread:
            assert stats.kstest(factors, stats.uniform(1 - spread / 2, spread).cdf).pvalue > P_BOUND
        else:
            assert (factors == 1).all()
    for gate, probability in (
        (p.flip, recipe.flip),
        (p.grey, recipe.grey),
        (p.jitter, recipe.jitter_probability),
    ):
        assert stats.binomtest(int(gate.sum()), DRAWS, probability).pvalue > P_BOUND


def test_recipes_share_the_random_numbers_of_a_view():
    """What two methods have in common they do alike, and what only one has moves nothing else."""
    vicreg, simclr = (
        draw(RECIPES[name], 0, range(50), [(40, 50)] * 50, 4) for name in ("vicreg", "simclr")
    )
    for name in ("top", "left", "height", "width", "flip", "jitter", "order", "grey", "sigma"):
        assert np.array_equal(getattr(vicreg, name), getattr(simclr, name))
    assert not np.array_equal(vicreg.factors, simclr.factors)


def test_hash_and_slots_are_those_of_every_view_ever_made():
    """The first outputs of SplitMix64 from state 0 are published; a slot that moves moves views."""
    first = parameters.mix(np.zeros(1, np.uint64))
    assert first[0] == 0xE220A8397B1DCDAF
    assert parameters.words(np.zeros((), np.uint64), 1, 1)[0] == 0x6E789E6AA1B965F4
    assert {slot.name: slot.value for slot in Slot} == {
        "AREA": 0, "RATIO": 16, "TOP": 32, "LEFT": 33, "FLIP": 34, "JITTER": 35, "ORDER": 36,
        "FACTOR": 40, "GREY": 44, "BLUR": 45, "SIGMA": 46, "SOLARISE": 47, "PATCH": 48,
    }  # fmt: skip


def test_quantities_samples_and_views_are_uncorrelated():
    """Correlations of independent draws are about 1 / sqrt(draws); the bound is five of these."""
    p = draw_of(375, 500)
    columns = [p.top, p.left, p.height, p.flip, p.jitter, p.grey, p.blur, p.sigma]
    columns += [draw_of(375, 500, solarise=(0.5,)).solarise]
    columns += [p.order[..., k] for k in range(3)] + [p.factors[..., k] for k in range(4)]
    # Top and left depend on the size of the box, positions in an order on each other, by nature.
    dependent = {(0, 1), (0, 2), (1, 2), (9, 10), (9, 11), (10, 11)}
    matrix = np.corrcoef([c.ravel().astype(float) for c in columns])
    for a, b in itertools.combinations(range(len(columns)), 2):
        if (a, b) not in dependent:
            assert abs(matrix[a, b]) < 5 / math.sqrt(DRAWS), (a, b)
    slack_y, slack_x = 375 - p.height, 500 - p.width
    free = (slack_y > 5) & (slack_x > 5)  # boxes with room to move along both axes
    y, x = p.top[free] / slack_y[free], p.left[free] / slack_x[free]
    for other in (x, p.flip[free], p.sigma[free]):
        assert abs(np.corrcoef(y, other)[0, 1]) < 5 / math.sqrt(free.sum())
    for column in (p.sigma, p.factors[..., 0], p.height):
        assert abs(np.corrcoef(column[:, 0], column[:, 1])[0, 1]) < 5 / math.sqrt(N)  # views
        assert abs(np.corrcoef(column[:-1, 0], column[1:, 0])[0, 1]) < 5 / math.sqrt(N)  # samples
    other = draw_of(375, 500, seed=1)
    assert abs(np.corrcoef(p.sigma.ravel(), other.sigma.ravel())[0, 1]) < 5 / math.sqrt(DRAWS)


def test_no_two_seeds_samples_or_views_share_a_draw():
    sigmas = [draw_of(32, 32, seed=seed).sigma.ravel() for seed in (0, 1, -1, 2**63)]
    assert len(np.unique(sigmas)) == 4 * DRAWS


def assert_same(a: ViewParameters, b: ViewParameters) -> None:
    for field in dataclasses.fields(ViewParameters):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def part(p: ViewParameters, samples: object, n_views: int) -> ViewParameters:
    names = [field.name for field in dataclasses.fields(ViewParameters)]
    return ViewParameters(**{name: getattr(p, name)[samples, :n_views] for name in names})


def test_a_draw_depends_on_seed_sample_and_view_alone():
    samples = [7, 0, 10**9, 3]
    sizes = [(40, 50), (60, 30), (32, 32), (500, 375)]
    whole = draw(SIMCLR, 5, samples, sizes, 6)
    for picked in ([2], [3, 1], [1, 0, 3, 2]):
        subset = draw(SIMCLR, 5, [samples[i] for i in picked], [sizes[i] for i in picked], 6)
        assert_same(subset, part(whole, picked, 6))
    assert_same(draw(SIMCLR, 5, samples, sizes, 2), part(whole, slice(None), 2))


def test_the_size_of_an_image_leaves_its_colours_alone():
    small, large = (draw(SIMCLR, 0, [4], [size], 8) for size in [(32, 32), (300, 200)])
    for name in ("flip", "jitter", "order", "factors", "grey", "blur", "sigma"):
        assert np.array_equal(getattr(small, name), getattr(large, name))


def test_recipes_are_found_by_name_and_misspelt_ones_named():
    assert find_recipe("auto", "auto") == SIMCLR
    assert find_recipe("simclr", "unit").std == (1, 1, 1)
    with pytest.raises(SettingsError, match=r"unknown views 'simcrl'; did you mean simclr\?"):
        find_recipe("simcrl", "auto")
    with pytest.raises(SettingsError, match=r"'imagnet'; did you mean imagenet\?"):
        find_recipe("simclr", "imagnet")


def test_a_recipe_describes_every_constant_in_json():
    described = SIMCLR.describe()
    assert json.loads(json.dumps(described)) == described
    names = {field.name for field in dataclasses.fields(SIMCLR)}
    assert set(described) == names - {"quarter_turns"}  # which only a recipe that turns has
    assert described != SIMCLR.at_strength(0.5).describe()


def test_strength_scales_jitter_alone_and_has_bounds():
    half = SIMCLR.at_strength(0.5)
    assert half.jitter == (0.4, 0.4, 0.4, 0.1)
    assert dataclasses.replace(half, jitter=SIMCLR.jitter) == SIMCLR
    with pytest.raises(SettingsError, match=r"strength 3 gives simclr a hue range of 0\.6"):
        SIMCLR.at_strength(3)


def test_the_blur_kernel_is_a_tenth_of_the_view_made_odd():
    """23 at 224 is the published kernel; the radius is (S // 10) // 2."""
    assert [SIMCLR.kernel(size) for size in (224, 96, 48, 32, 9)] == [23, 9, 5, 3, 1]


def test_a_recipe_without_random_crop_cannot_be_drawn():
    with pytest.raises(ValueError, match="identity are not random"):
        draw(find_recipe("identity", "auto"), 0, [0], [(8, 8)], 2)
