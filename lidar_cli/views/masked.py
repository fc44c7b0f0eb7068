"""What a masked view hides from a model, whichever rule drew it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidar_cli.views.mask_rules import Blocks, InverseBlocks, MaskRule
from lidar_cli.views.masks import Grid, block_masks, ijepa_masks, inverse_block_masks


@dataclass(frozen=True)
class Mask:
    """One view's masks of b images of N patches, numbered by rows.

    seen: patches that enter the encoder, int64 [b, K]; None where all enter, with a mask token in
        the place of the hidden ones.
    targets: those of each block that is predicted on its own, int64 [t, b, P]; None without any.
    compared: how often the loss compares each patch, float32 [b, N]. In a mask of blocks or of
        inverse blocks these are the hidden ones; targets may overlap, and then count twice.
    """

    seen: Tensor | None
    targets: Tensor | None
    compared: Tensor

    @property
    def lengths(self) -> tuple[int, int]:
        """K and P: masks of equal lengths can go through a model together."""
        return (
            -1 if self.seen is None else self.seen.shape[1],
            -1 if self.targets is None else self.targets.shape[2],
        )

    def to(self, device: torch.device | str) -> Mask:
        """The same on a device."""
        return Mask(
            None if self.seen is None else self.seen.to(device),
            None if self.targets is None else self.targets.to(device),
            self.compared.to(device),
        )


def draw_mask(rule: MaskRule, seed: int, samples: Sequence[int], view: int, grid: Grid) -> Mask:
    """View `view` of each sample, by its global index; on the host.

    Raises SettingsError for a grid on which the rule cannot be kept.
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


def whole(b: int, patches: int, device: torch.device | str) -> Mask:
    """A mask that hides nothing: all patches are seen, and all are one target."""
    every = torch.arange(patches, device=device).expand(b, -1)
    return Mask(every, every[None], torch.ones(b, patches, device=device))


def together(masks: Sequence[Mask]) -> list[list[int]]:
    """The numbers of the masks, those of equal lengths together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, mask in enumerate(masks):
        groups.setdefault(mask.lengths, []).append(number)
    return list(groups.values())


def joined(masks: Sequence[Mask]) -> Mask:
    """Masks of equal lengths as one of [b v] images: image i under mask j at i v + j."""
    return Mask(
        _stacked([mask.seen for mask in masks], 0),
        _stacked([mask.targets for mask in masks], 1),
        torch.stack([mask.compared for mask in masks], dim=1).flatten(0, 1),
    )


def _stacked(parts: Sequence[Tensor | None], axis: int) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there, dim=axis + 1).flatten(axis, axis + 1) if there else None
