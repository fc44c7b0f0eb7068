"""Draws which patches a masked model sees and which it predicts, by its authors' rules.

A mask depends on (seed, sample, view) alone, as a view does. Patches of an [H, W] grid are numbered
by rows, N = H W of them; b samples. Everything is drawn on the host and returned as CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import SettingsError
from lidar_cli.runtime.prefetch import copy_to_device
from lidar_cli.views.parameters import Bools, Floats, Ints, Words, mix, streams, uniforms
from lidar_cli.views.recipes import Blocks, InverseBlocks, MaskRule, MultiBlock

Grid = tuple[int, int]  # rows and columns of patches


class Domain(IntEnum):
    """Added to the hash so that different draws share no random numbers; never change a value."""

    CONTEXT_AND_TARGETS = 1
    SIZES = 2  # one draw for all samples
    REFERENCE_BATCH = 3
    BLOCKS = 4
    INVERSE_BLOCKS = 5


IJEPA, DATA2VEC, DATA2VEC2 = MultiBlock(), Blocks(), InverseBlocks()
CONTEXT_ATTEMPTS = 20  # failures after which one more target may overlap the context


def ijepa_masks(
    seed: int, samples: Sequence[int], view: int, grid: Grid, rules: MultiBlock = IJEPA
) -> tuple[Tensor, Tensor]:
    """Contexts [b, K], patches to encode, and targets [4, b, P], patches to predict; ascending.

    As in training, all samples share the sizes of the blocks, drawn for each (seed, view), and all
    contexts are cut to one length K by dropping their last patches. Training cuts to the shortest
    context of a batch, which would make a mask depend on its batch. Here K is the length of the
    shortest of `rules.batch` contexts drawn for (seed, view) alone, and the blocks of a sample
    whose context is shorter are drawn again. Contexts are then distributed as those of a training
    batch without its shortest.

    Raises SettingsError for a grid too small for the blocks.
    """
    context_size, target_size = block_sizes(seed, view, grid, rules)
    length = _context_length(seed, view, grid, rules)
    stream = _streams(Domain.CONTEXT_AND_TARGETS, seed, samples, view)
    contexts, corners = _multi_block(stream, context_size, target_size, grid, rules)
    short = np.flatnonzero(contexts.sum(axis=1) < length)
    while len(short):
        stream[short] = mix(stream[short])
        contexts[short], corners[short] = _multi_block(
            stream[short], context_size, target_size, grid, rules
        )
        short = short[contexts[short].sum(axis=1) < length]
    targets = _blocks(corners, target_size, grid)  # [b, 4, N]
    b, patches = contexts.shape
    # Stable: the patches of the context come first and keep their order.
    seen = np.argsort(~contexts, axis=1, kind="stable")[:, :length]
    predicted = np.nonzero(targets.transpose(1, 0, 2).reshape(-1, patches))[1]
    return torch.from_numpy(seen), torch.from_numpy(predicted.reshape(rules.targets, b, -1))


@lru_cache(maxsize=4096)  # since every batch needs it for every view
def _context_length(seed: int, view: int, grid: Grid, rules: MultiBlock) -> int:
    """K: the length of the shortest of `rules.batch` contexts drawn for (seed, view) alone."""
    reference = _streams(Domain.REFERENCE_BATCH, seed, range(rules.batch), view)
    contexts, _ = _multi_block(reference, *block_sizes(seed, view, grid, rules), grid, rules)
    return int(contexts.sum(axis=1).min())


def block_sizes(
    seed: int, view: int, grid: Grid, rules: MultiBlock = IJEPA
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the context block and of the target blocks, each from one draw u:

        area = floor(N (lo + u (hi - lo)))          lo, hi: the rule's scale
        ratio = lo + u (hi - lo)                    lo, hi: the rule's ratio; the same u
        height = round(sqrt(area ratio)), width = round(sqrt(area / ratio)), each below the grid's

    Raises SettingsError for a grid too small for the blocks.
    """
    stream = _streams(Domain.SIZES, seed, [0], view)[0]
    u = uniforms(stream, 0, 2)
    target = _block_size(u[0], rules.target_scale, rules.target_ratio, grid)
    context = _block_size(u[1], rules.context_scale, rules.context_ratio, grid)
    for what, size in (("context", context), ("target", target)):
        if min(size) < 1 or size[0] * size[1] <= rules.min_keep:
            raise SettingsError(
                f"a {what} block of {size[0]} x {size[1]} patches on a grid of "
                f"{grid[0]} x {grid[1]} holds no more than {rules.min_keep}; "
                "masks of I-JEPA need a larger image or smaller patches"
            )
    return context, target


def _block_size(
    u: float, scale: tuple[float, float], ratio: tuple[float, float], grid: Grid
) -> tuple[int, int]:
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    shape = ratio[0] + u * (ratio[1] - ratio[0])
    height, width = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _multi_block(
    stream: Words, context_size: Grid, target_size: Grid, grid: Grid, rules: MultiBlock
) -> tuple[Bools, Ints]:
    """Contexts [b, N] before the cut, and corners (top, left) of the targets [b, 4, 2].

    A block never reaches the last row or column: its corner is drawn below grid minus size, which
    is excluded. Targets may overlap each other. A context is its block without the targets; if it
    has no more than min_keep patches it is drawn again, and after every 20 failures one more
    target, from the last to the first, may overlap it.
    """
    count = rules.targets
    corners = _corners(uniforms(stream, 0, 2 * count).reshape(-1, count, 2), target_size, grid)
    targets = _blocks(corners, target_size, grid)  # [b, 4, N]
    contexts = np.zeros((len(stream), grid[0] * grid[1]), np.bool_)
    waiting, attempt = np.arange(len(stream)), 0
    while len(waiting):
        u = uniforms(stream[waiting], 2 * count + 2 * attempt, 2)
        block = _blocks(_corners(u, context_size, grid), context_size, grid)
        excluded = max(0, count - attempt // CONTEXT_ATTEMPTS)
        block &= ~targets[waiting, :excluded].any(axis=1)
        contexts[waiting] = block
        waiting = waiting[block.sum(axis=1) <= rules.min_keep]
        attempt += 1
    return contexts, corners


def _corners(u: Floats, size: Grid, grid: Grid) -> Ints:
    """(top, left) [..., 2] of blocks; the last position on each axis is excluded."""
    corners: Ints = (u * (np.asarray(grid) - np.asarray(size))).astype(np.int64)
    return corners


def _blocks(corners: Ints, size: Grid | Ints, grid: Grid) -> Bools:
    """Patches [..., N] of blocks with corners [..., 2], all of one size or of sizes [..., 2]."""
    low = corners[..., None]
    high = low + np.asarray(size)[..., None]
    rows, columns = np.arange(grid[0]), np.arange(grid[1])
    inside_rows = (rows >= low[..., 0, :]) & (rows < high[..., 0, :])
    inside_columns = (columns >= low[..., 1, :]) & (columns < high[..., 1, :])
    inside: Bools = inside_rows[..., :, None] & inside_columns[..., None, :]
    return inside.reshape(*corners.shape[:-1], grid[0] * grid[1])


BLOCK_ATTEMPTS = 10


def block_masks(
    seed: int, samples: Sequence[int], view: int, grid: Grid, rule: Blocks = DATA2VEC
) -> Tensor:
    """Masked patches, bool [b, N]: rectangles until at most round(N rule.masked) are covered.

    The area of a block is uniform between `smallest` and the number of patches still to cover, even
    if that is less than `smallest`; its height over its width is log-uniform within `ratio`. A
    block is accepted if it is smaller than the grid on both axes, covers at least one new patch,
    and no more new ones than are still to cover. After ten failures in a row the mask is final,
    often with fewer patches.

    Raises SettingsError if nothing can be masked, or no block could be placed on an image.
    Source: microsoft/unilm, beit/masking_generator.py; facebookresearch/data2vec_vision,
    beit/datasets.py.
    """
    patches = grid[0] * grid[1]
    masked, smallest, ratio = round(rule.masked * patches), rule.smallest, rule.ratio
    if masked < 1:
        raise SettingsError(f"masking {rule.masked:g} of {patches} patches masks none of them")
    stream = _streams(Domain.BLOCKS, seed, samples, view)
    mask = np.zeros((len(stream), patches), np.bool_)
    failures = np.zeros(len(stream), np.int64)
    active, attempt = np.arange(len(stream)), 0
    while len(active):
        u = uniforms(stream[active], 4 * attempt, 4)
        left = masked - mask[active].sum(axis=1)
        area = smallest + u[:, 0] * (left - smallest)
        shape = np.exp(np.log(ratio[0]) + u[:, 1] * np.log(ratio[1] / ratio[0]))
        size = np.rint(np.sqrt(np.stack([area * shape, area / shape], axis=1))).astype(np.int64)
        corner = (u[:, 2:] * (np.asarray(grid) - size + 1)).astype(np.int64)
        block = _blocks(corner, size, grid) & ~mask[active]
        new = block.sum(axis=1)
        accepted = (size < np.asarray(grid)).all(axis=1) & (new > 0) & (new <= left)
        mask[active[accepted]] |= block[accepted]
        failures[active] = np.where(accepted, 0, failures[active] + 1)
        done = (mask[active].sum(axis=1) >= masked) | (failures[active] >= BLOCK_ATTEMPTS)
        active = active[~done]
        attempt += 1
    if not mask.any(axis=1).all():
        raise SettingsError(
            f"no block of at least {smallest} patches could be placed on a grid of "
            f"{grid[0]} x {grid[1]} to mask {masked}; masks of blocks need smaller ones"
        )
    return torch.from_numpy(mask)


def inverse_block_masks(
    seed: int, samples: Sequence[int], view: int, grid: Grid, rule: InverseBlocks = DATA2VEC2
) -> Tensor:
    """Masked patches, bool [b, N]: all but those of a few squares, equally many for all samples.

        squares: floor(N (1 - masked + adjust) / side^2) of them, about centres drawn with
                 repetition, clamped at the borders
        visible: floor(N (1 - masked)) patches, drawn from those of the squares; if these are
                 fewer, all of them and others at random

    Raises SettingsError if no patch or every patch would be visible.
    Source: facebookresearch/fairseq, fairseq/data/data_utils.py, examples/data2vec/config/v2.
    """
    height, width = grid
    patches = height * width
    visible, side = int(patches * (1 - rule.masked)), rule.side
    count = int(patches * (1 - rule.masked + rule.adjust) / side**2)
    if not 0 < visible < patches:
        raise SettingsError(f"masking {rule.masked:g} of {patches} patches keeps {visible} of them")
    stream = _streams(Domain.INVERSE_BLOCKS, seed, samples, view)
    u = uniforms(stream, 0, count + patches)
    centres = (u[:, :count] * patches).astype(np.int64)
    reach = np.arange(side) - side // 2
    rows = np.clip(centres[..., None] // width + reach, 0, height - 1)  # [b, squares, side]
    columns = np.clip(centres[..., None] % width + reach, 0, width - 1)
    numbers = (rows[..., :, None] * width + columns[..., None, :]).reshape(len(stream), -1)
    squares = np.zeros((len(stream), patches), np.bool_)
    np.put_along_axis(squares, numbers, True, axis=1)
    # Patches of squares in random order, then the others in random order; the first are visible.
    order = np.argsort(u[:, count:] + ~squares, axis=1)
    mask = np.ones_like(squares)
    np.put_along_axis(mask, order[:, :visible], False, axis=1)
    return torch.from_numpy(mask)


def _streams(domain: Domain, seed: int, samples: Sequence[int], view: int) -> Words:
    """Hash states [b], different from those of view parameters and of other domains."""
    return mix(mix(streams(seed, samples, [view])[:, 0]) + np.uint64(domain))


@dataclass(frozen=True)
class Mask:
    """The masks of one view of b images with N patches, numbered by rows.

    seen: patches that enter the encoder, int64 [b, K]; None if all enter, with mask tokens for
        the hidden ones.
    targets: patches of each block that is predicted separately, int64 [t, b, P], or None.
    compared: how often the loss compares each patch, float32 [b, N]: 1 for hidden patches of
        blocks and inverse blocks; for multi-block, the number of targets that contain it.
    """

    seen: Tensor | None
    targets: Tensor | None
    compared: Tensor

    @property
    def lengths(self) -> tuple[int, int]:
        """K and P, -1 for None; masks of equal lengths can pass through a model together."""
        return (
            -1 if self.seen is None else self.seen.shape[1],
            -1 if self.targets is None else self.targets.shape[2],
        )


def masks_on(masks: Sequence[Mask], device: torch.device) -> list[Mask]:
    """The masks, all drawn by one rule, on a device; one copy of each of their fields."""

    def moved(parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return copy_to_device([part for part in parts if part is not None], device) or parts

    seen, targets = moved([mask.seen for mask in masks]), moved([mask.targets for mask in masks])
    compared = copy_to_device([mask.compared for mask in masks], device)
    return [Mask(*parts) for parts in zip(seen, targets, compared, strict=True)]


def draw_mask(rule: MaskRule, seed: int, samples: Sequence[int], view: int, grid: Grid) -> Mask:
    """The masks of one view, on the host. samples: global indices.

    Raises SettingsError for a grid that is too small for the rule.
    """
    b, patches = len(samples), grid[0] * grid[1]
    if isinstance(rule, Blocks):
        hidden = block_masks(seed, samples, view, grid, rule)
        return Mask(None, None, hidden.float())
    if isinstance(rule, InverseBlocks):
        hidden = inverse_block_masks(seed, samples, view, grid, rule)
        return Mask((~hidden).nonzero()[:, 1].view(b, -1), None, hidden.float())
    seen, targets = ijepa_masks(seed, samples, view, grid, rule)
    compared = torch.zeros(b, patches)
    for target in targets:
        compared.scatter_add_(1, target, torch.ones(target.shape))
    return Mask(seen, targets, compared)


def full_mask(b: int, patches: int, device: torch.device | str) -> Mask:
    """A mask that hides nothing: all patches are seen, and all form one target."""
    every = torch.arange(patches, device=device).expand(b, -1)
    return Mask(every, every[None], torch.ones(b, patches, device=device))


def group_by_length(masks: Sequence[Mask]) -> list[list[int]]:
    """Indices of the masks, in groups of equal lengths."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, mask in enumerate(masks):
        groups.setdefault(mask.lengths, []).append(index)
    return list(groups.values())


def stack_masks(masks: Sequence[Mask]) -> Mask:
    """v masks of equal lengths as one mask of b v images; image i under mask j is at i v + j."""
    return Mask(
        _stacked([mask.seen for mask in masks], 0),
        _stacked([mask.targets for mask in masks], 1),
        torch.stack([mask.compared for mask in masks], dim=1).flatten(0, 1),
    )


def _stacked(parts: Sequence[Tensor | None], axis: int) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.stack(tensors, dim=axis + 1).flatten(axis, axis + 1) if tensors else None
