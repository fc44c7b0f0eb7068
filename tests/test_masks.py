"""Masks: the statistics of their sources over 10,000 draws, and rules that every mask keeps."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from lidar_cli.errors import SettingsError
from lidar_cli.views import masks
from lidar_cli.views.masks import (
    IJEPA,
    block_masks,
    block_sizes,
    ijepa_masks,
    inverse_block_masks,
)
from lidar_cli.views.recipes import Blocks, InverseBlocks, MultiBlock

DRAWS = 10_000
P_BOUND = 1e-3  # of fixed draws: met by all but one seed in a thousand


def as_grids(index: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Patch numbers [..., K] as bool [..., H, W]."""
    out = torch.zeros(*index.shape[:-1], grid[0] * grid[1], dtype=torch.bool)
    return out.scatter_(-1, index, True).view(*index.shape[:-1], *grid).numpy()


# Percentages of target sizes (height, width), context sizes; simulated from the collator's rules.
TARGET_SIZES = {
    (14, 14): {(7, 5): 36, (5, 6): 27, (6, 6): 22, (6, 5): 13, (8, 5): 3},
    (16, 16): {(8, 6): 30, (7, 6): 29, (6, 7): 28, (9, 6): 7, (5, 7): 5, (6, 6): 2},
}
CONTEXT_SIZES = {
    (14, 14): {(13, 13): 100},
    (16, 16): {(15, 15): 100},
    (28, 28): {(27, 27): 69, (26, 26): 31},
}


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (28, 28)])
def test_sizes_of_ijepa_blocks_have_the_collators_frequencies(grid):
    """To 1.5 % of the draws: three standard errors of either simulation, and its rounding."""
    contexts, targets = Counter(), Counter()
    for view in range(DRAWS):
        context, target = block_sizes(0, view, grid)
        contexts[context] += 1
        targets[target] += 1
    assert set(contexts) == set(CONTEXT_SIZES[grid])
    for size, share in CONTEXT_SIZES[grid].items():
        assert 100 * contexts[size] / DRAWS == pytest.approx(share, abs=1.5)
    if grid in TARGET_SIZES:
        assert set(targets) == set(TARGET_SIZES[grid])
        for size, share in TARGET_SIZES[grid].items():
            assert 100 * targets[size] / DRAWS == pytest.approx(share, abs=1.5)


@pytest.mark.parametrize(
    ("grid", "before", "of_4", "of_128"),
    [((14, 14), 82, 68, 50), ((16, 16), 110, 92, 68), ((28, 28), 362, 308, 237)],
)
def test_contexts_are_as_long_as_the_collator_makes_them(grid, before, of_4, of_128):
    """Mean before the cut, and the shortest of 4 and of 128.

    A mean of 500 batches has a standard error of up to 0.7 %, for the sizes are drawn once a batch;
    the published figures come from a simulation too. The shortest of 64 is 5 % longer.
    """
    lengths = []
    for view in range(500):
        sizes = block_sizes(0, view, grid)
        stream = masks._streams(masks.Domain.CONTEXT_AND_TARGETS, 0, range(128), view)
        lengths.append(masks._multi_block(stream, *sizes, grid, IJEPA)[0].sum(axis=1))
    lengths = np.array(lengths)  # 64,000 masks
    assert lengths.mean() == pytest.approx(before, rel=0.04)
    assert lengths.reshape(-1, 4).min(axis=1).mean() == pytest.approx(of_4, rel=0.04)
    assert lengths.min(axis=1).mean() == pytest.approx(of_128, rel=0.04)
    assert lengths.min() > IJEPA.min_keep


@pytest.mark.parametrize(("grid", "mean"), [((14, 14), 50), ((16, 16), 68)])
def test_contexts_are_cut_as_in_a_batch_of_128(grid, mean):
    lengths = [ijepa_masks(0, [5], view, grid)[0].shape[1] for view in range(300)]
    assert np.mean(lengths) == pytest.approx(mean, rel=0.03)
    assert len(set(lengths)) > 10


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (28, 28), (12, 18)])
def test_ijepa_masks_keep_the_rules(grid):
    for view in range(6):
        (_, _), (height, width) = block_sizes(4, view, grid)
        context, targets = ijepa_masks(4, range(200), view, grid)
        assert context.dtype == targets.dtype == torch.int64
        assert targets.shape == (4, 200, height * width)
        assert (context.diff(dim=1) > 0).all()
        assert (targets.diff(dim=2) > 0).all()
        blocks, visible = as_grids(targets, grid), as_grids(context, grid)
        assert not (visible & blocks.any(axis=0)).any()
        assert not blocks[..., -1, :].any()
        assert not blocks[..., :, -1].any()
        assert not visible[..., -1, :].any()
        assert not visible[..., :, -1].any()
        assert blocks[..., 0, :].any()  # the first ones do belong
        assert blocks[..., :, 0].any()
        # Each target is one full rectangle of the drawn size.
        assert (blocks.any(axis=-1).sum(axis=-1) == height).all()
        assert (blocks.any(axis=-2).sum(axis=-1) == width).all()
        # Nothing holds the targets apart from each other.
        assert (blocks.sum(axis=0) > 1).any()


def test_ten_thousand_ijepa_masks_have_the_numbers_of_the_configurations():
    """Four blocks of 0.15 to 0.2 of the patches, 0.75 to 1.5 high for their width, and a context.

    A side is rounded by at most half a patch, an area down by less than one.
    """
    shared = 0
    for view in range(50):
        (rows, columns), (height, width) = block_sizes(7, view, (14, 14))
        assert (rows, columns) == (13, 13)
        assert (height - 0.5) / (width + 0.5) <= 1.5
        assert (height + 0.5) / (width - 0.5) >= 0.75
        assert (height + 0.5) * (width + 0.5) > 0.15 * 196 - 1
        assert (height - 0.5) * (width - 0.5) < 0.2 * 196
        context, targets = ijepa_masks(7, range(DRAWS // 50), view, (14, 14))
        assert targets.shape == (4, DRAWS // 50, height * width)
        assert context.shape[1] > 10
        visible = as_grids(context, (14, 14))
        blocks = as_grids(targets, (14, 14))
        assert not (visible & blocks.any(axis=0)).any()
        assert (visible.sum(axis=(1, 2)) == context.shape[1]).all()
        shared += int((blocks.sum(axis=0) > 1).any(axis=(1, 2)).sum())
    assert shared > 0.9 * DRAWS  # almost always two targets share a patch


def test_corners_of_targets_are_uniform_below_the_last_place():
    tops = []
    for view in range(100):
        _, (height, _) = block_sizes(0, view, (14, 14))
        if height == 7:
            _, targets = ijepa_masks(0, range(100), view, (14, 14), MultiBlock(batch=1, min_keep=0))
            tops += (targets[..., 0] // 14).flatten().tolist()
    assert set(tops) == set(range(7))  # 7 would reach the last row
    # Redraws favour long contexts, so that a cut to the shortest of one mask bends this a little.
    shares = np.bincount(tops) / len(tops)
    assert shares == pytest.approx(np.full(7, 1 / 7), abs=0.05)


def test_the_cut_drops_the_last_patches():
    """Against the same masks before the cut, for samples that needed no second draw."""
    sizes = block_sizes(1, 2, (14, 14))
    stream = masks._streams(masks.Domain.CONTEXT_AND_TARGETS, 1, range(100), 2)
    whole, _ = masks._multi_block(stream, *sizes, (14, 14), IJEPA)
    context, _ = ijepa_masks(1, range(100), 2, (14, 14))
    k = context.shape[1]
    enough = whole.sum(axis=1) >= k
    assert enough.sum() > 90
    for ours, mask in zip(context[enough].numpy(), whole[enough], strict=True):
        assert (ours == np.flatnonzero(mask)[:k]).all()


def test_samples_too_short_for_the_cut_draw_again():
    """With the longest possible cut, of one mask, half of the samples are too short at first."""
    rules, again = MultiBlock(batch=1), 0
    for view in range(10):
        sizes = block_sizes(0, view, (14, 14))
        stream = masks._streams(masks.Domain.CONTEXT_AND_TARGETS, 0, range(50), view)
        first = masks._multi_block(stream, *sizes, (14, 14), rules)[0].sum(axis=1)
        context, targets = ijepa_masks(0, range(50), view, (14, 14), rules)
        again += (first < context.shape[1]).sum()
        assert not (as_grids(context, (14, 14)) & as_grids(targets, (14, 14)).any(axis=0)).any()
        assert as_grids(context, (14, 14)).sum(axis=(1, 2)).tolist() == [context.shape[1]] * 50
    assert again > 100


def test_targets_overlap_the_context_where_nothing_else_is_left():
    """Targets that always cover the context: the last are let go one by one, the first held."""
    rules = MultiBlock(
        targets=2, target_scale=(0.9, 0.9), target_ratio=(1, 1), context_scale=(0.9, 0.9),
        min_keep=1,
    )  # fmt: skip
    context, targets = ijepa_masks(0, range(20), 0, (8, 8), rules)
    assert context.shape == (20, 49)  # 7 x 7 at the corner, the only place, as are the targets
    assert (targets == context).all()


def test_a_grid_too_small_for_the_blocks_is_refused():
    with pytest.raises(SettingsError, match=r"target block of \d x \d patches on a grid of 6 x 6"):
        ijepa_masks(0, [0], 0, (6, 6))


def literal_block_mask(total: int, chance: random.Random, side: int = 14) -> list[list[bool]]:
    """One mask of 3.2's generator, block by block and patch by patch."""
    mask = [[False] * side for _ in range(side)]
    left = total
    while left > 0:
        for _ in range(10):
            area = chance.uniform(16, left)
            ratio = math.exp(chance.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= side or width >= side:
                continue
            top, first = chance.randint(0, side - height), chance.randint(0, side - width)
            block = [(y, x) for y in range(top, top + height) for x in range(first, first + width)]
            new = [(y, x) for y, x in block if not mask[y][x]]
            if 0 < len(new) <= left:
                for y, x in new:
                    mask[y][x] = True
                left -= len(new)
                break
        else:
            break
    return mask


@pytest.mark.parametrize(
    ("masked", "reached", "mean", "worst"), [(75, 0.68, 74.5, 65), (120, 0.70, 119.6, 109)]
)
def test_block_masks_have_the_statistics_of_their_generator(masked, reached, mean, worst):
    ours = block_masks(0, range(DRAWS), 0, (14, 14), Blocks(masked=masked / 196))
    assert ours.dtype == torch.bool
    assert ours.shape == (DRAWS, 196)
    counts = ours.sum(dim=1).numpy()
    assert counts.max() == masked
    assert (counts == masked).mean() == pytest.approx(reached, abs=0.02)
    assert counts.mean() == pytest.approx(mean, abs=0.1)
    assert counts.min() == pytest.approx(worst, abs=5)

    chance = random.Random(0)
    theirs = np.array([literal_block_mask(masked, chance) for _ in range(3000)])
    low = masked - 4
    bins = [np.bincount(np.clip(x, low, masked) - low) for x in (counts, theirs.sum(axis=(1, 2)))]
    assert stats.chi2_contingency(bins).pvalue > P_BOUND
    # Where the masks lie: each patch's share, and how many of its neighbours share its fate.
    grids = ours.view(-1, 14, 14).numpy()
    assert abs(grids.mean(axis=0) - theirs.mean(axis=0)).max() < 5 * 0.5 / math.sqrt(3000)
    edges = [(x[:, 1:] != x[:, :-1]).sum(axis=(1, 2)) for x in (grids, theirs)]
    assert stats.ks_2samp(*edges).pvalue > P_BOUND


@pytest.mark.parametrize("change", [{"smallest": 8}, {"ratio": (0.8, 1.25)}])
def test_the_comparison_of_block_masks_would_notice_other_blocks(change):
    rule = Blocks(masked=75 / 196, **change)
    grids = block_masks(0, range(3000), 0, (14, 14), rule).view(-1, 14, 14)
    chance = random.Random(0)
    theirs = np.array([literal_block_mask(75, chance) for _ in range(3000)])
    edges = [(x[:, 1:] != x[:, :-1]).sum(axis=(1, 2)) for x in (grids.numpy(), theirs)]
    assert stats.ks_2samp(*edges).pvalue < P_BOUND


def literal_inverse_mask(visible: int, squares: int, chance: random.Random, side: int = 14):
    seen = set()
    for _ in range(squares):
        y, x = divmod(chance.randrange(side * side), side)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                seen.add((min(max(y + dy, 0), side - 1), min(max(x + dx, 0), side - 1)))
    others = [(y, x) for y in range(side) for x in range(side) if (y, x) not in seen]
    chosen = sorted(seen)
    chosen = (
        chance.sample(chosen, visible)
        if len(chosen) > visible
        else chosen + chance.sample(others, visible - len(chosen))
    )
    grid = np.ones((side, side), bool)
    for y, x in chosen:
        grid[y, x] = False
    return grid


@pytest.mark.parametrize(
    ("masked", "adjust", "visible", "squares"),
    # floor(196 (1 - masked)) and floor(196 (1 - masked + adjust) / 9), by hand
    [(0.8, 0.07, 39, 5), (0.75, 0.1, 49, 7)],
)
def test_inverse_block_masks_keep_squares(masked, adjust, visible, squares):
    ours = inverse_block_masks(
        0, range(DRAWS), 0, (14, 14), InverseBlocks(masked=masked, adjust=adjust)
    )
    assert (ours.sum(dim=1) == 196 - visible).all()
    chance = random.Random(0)
    theirs = np.array([literal_inverse_mask(visible, squares, chance) for _ in range(3000)])
    grids = ours.view(-1, 14, 14).numpy()
    assert abs(grids.mean(axis=0) - theirs.mean(axis=0)).max() < 5 * 0.5 / math.sqrt(3000)
    edges = [(x[:, 1:] != x[:, :-1]).sum(axis=(1, 2)) for x in (grids, theirs)]
    assert stats.ks_2samp(*edges).pvalue > P_BOUND
    scattered = np.random.default_rng(0).permuted(np.tile(np.arange(196), (3000, 1)), axis=1)
    random_edges = as_grids(torch.from_numpy(scattered[:, :visible].copy()), (14, 14))
    random_edges = (random_edges[:, 1:] != random_edges[:, :-1]).sum(axis=(1, 2))
    assert stats.ks_2samp(edges[0], random_edges).pvalue < 1e-9  # squares, not single patches


MAKERS = [
    lambda seed, samples, view: torch.cat(
        [x.flatten() for x in ijepa_masks(seed, samples, view, (14, 14))]
    ).view(-1),
    lambda *where: block_masks(*where, (14, 14)).flatten(),
    lambda *where: inverse_block_masks(*where, (14, 14)).flatten(),
]


@pytest.mark.parametrize("make", MAKERS)
def test_seeds_samples_and_views_differ(make):
    first = make(0, [3], 0)
    assert torch.equal(first, make(0, [3], 0))
    for other in (make(1, [3], 0), make(0, [4], 0), make(0, [3], 1)):
        assert first.shape != other.shape or not torch.equal(first, other)


def test_a_mask_does_not_depend_on_its_company():
    samples, picked = [9, 0, 10**9, 4, 7], [3, 0]
    some = [samples[i] for i in picked]
    for view in range(5):
        context, targets = ijepa_masks(2, samples, view, (14, 14))
        fewer, fewer_targets = ijepa_masks(2, some, view, (14, 14))
        assert torch.equal(fewer, context[picked])
        assert torch.equal(fewer_targets, targets[:, picked])
        for make in (block_masks, inverse_block_masks):
            assert torch.equal(
                make(2, some, view, (14, 14)), make(2, samples, view, (14, 14))[picked]
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: block_masks(0, [0], 0, (7, 7), Blocks(masked=0.01)),
            "masking 0.01 of 49 patches masks",
        ),
        (lambda: inverse_block_masks(0, [0], 0, (2, 2)), "masking 0.8 of 4 patches keeps 0"),
    ],
)
def test_masks_that_cannot_be_are_refused(make, message):
    with pytest.raises(SettingsError, match=message):
        make()
